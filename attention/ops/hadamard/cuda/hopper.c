/* The fast path for Hopper, host side: its entry of the kernel table, the layout of its workspace, its forward pass. */
#include "attention/ops/hadamard/cuda/hopper_call.h"

#include "attention/ops/hadamard/cuda/general_call.h"
#include "attention/ops/hadamard/cuda/rounds_sm90.h"

/* ---- what it takes ---- */

bool hla_hopper_takes_problem(const hla_hadamard_problem *problem) {
    /* A state is float32 and, however its keys are split, the same up to that: not with products of features in 16
     * bits. */
    if (problem->factors != 2 || problem->dtype == HLA_F32 || problem->stateful) return false;
    if (!hla_hopper_takes(problem->rank[0], problem->rank[1], problem->value_dim)) return false;
    /* kernels count units of work and rows of states by 32-bit numbers */
    int64_t sequences = hla_hadamard_sequence_count(problem);
    int64_t tokens = hla_larger(problem->queries, problem->keys);
    int64_t units = (tokens * problem->batch / HLA_HOPPER_CHUNK + 2 * sequences) * problem->heads;
    return tokens < INT32_MAX / 2 && sequences < INT32_MAX / 2 && problem->heads < INT32_MAX / 2 &&
           units < INT32_MAX / 2 && sequences * problem->heads * hla_hadamard_state_rank(problem) < INT32_MAX / 2;
}

static bool addressable(const hla_tensor *tensor) {
    hla_cuda_view view = hla_cuda_view_of(tensor);
    return !tensor || hla_hopper_addressable(&view, tensor->shape);
}

bool hla_hopper_takes_call(const hla_hadamard_call *call, bool backward) {
    bool fits = addressable(call->out) && addressable(call->in.v);
    for (int p = 0; p < 2; p++)
        fits = fits && addressable(&call->in.q_features[p]) && addressable(&call->in.k_features[p]);
    for (int p = 0; backward && p < 2; p++)
        fits = fits && addressable(&call->gradients.dq_features[p]) && addressable(&call->gradients.dk_features[p]);
    return fits && (!backward || addressable(call->gradients.dv));
}

/* ---- sequences ---- */

static bool whole_batches(const hla_hadamard_problem *problem, const int64_t *key_lengths) {
    return problem->sequences == 0 && !key_lengths;
}

void hla_hopper_take_spans(hla_hopper_spans *spans, hla_arena *arena, const hla_hadamard_problem *problem) {
    int64_t count = hla_hadamard_sequence_count(problem) + 1;
    hla_hopper_span **const arrays[] = {&spans->key_chunks, &spans->key_tiles, &spans->query_chunks,
                                        &spans->query_tiles};
    for (int i = 0; i < 4; i++)
        *arrays[i] = hla_arena_take(arena, count, sizeof(hla_hopper_span));
}

static int64_t units_of(int64_t tokens, int64_t unit) {
    return (tokens + unit - 1) / unit;
}

/* The tokens of sequence n on one side, with the units of those before it. */
static hla_hopper_span span_of(const hla_hadamard_call *call, bool keys, int64_t n, int64_t units) {
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    return (hla_hopper_span){.b = sequence.b,
                             .first = keys ? sequence.key_first : sequence.query_first,
                             .count = keys ? sequence.keys : sequence.queries,
                             .units = units};
}

static hla_status upload(hla_hopper_span *to, const hla_hadamard_call *call, bool keys, int64_t unit) {
    enum { BATCH = 128 };
    hla_hopper_span batch[BATCH];
    int64_t count = hla_hadamard_sequence_count(call->problem), units = 0, filled = 0;
    for (int64_t n = 0; n <= count; n++) {
        batch[filled] = n < count ? span_of(call, keys, n, units) : (hla_hopper_span){.units = units};
        units += units_of(batch[filled++].count, unit);
        if (filled < BATCH && n < count) continue;
        int error = hla_cuda_upload((int64_t *)(to + n + 1 - filled), (const int64_t *)batch,
                                    filled * (int64_t)(sizeof *batch / sizeof(int64_t)), call->context->stream);
        if (error) return hla_cuda_check(call->context, error, "cannot pass the sequences to the GPU");
        filled = 0;
    }
    return HLA_OK;
}

hla_status hla_hopper_upload_spans(const hla_hopper_spans *spans, const hla_hadamard_call *call) {
    if (whole_batches(call->problem, call->in.key_lengths)) return HLA_OK;
    hla_status status = upload(spans->key_chunks, call, true, HLA_HOPPER_CHUNK);
    if (status == HLA_OK) status = upload(spans->key_tiles, call, true, HLA_HOPPER_TILE);
    if (status == HLA_OK) status = upload(spans->query_chunks, call, false, HLA_HOPPER_CHUNK);
    if (status == HLA_OK) status = upload(spans->query_tiles, call, false, HLA_HOPPER_TILE);
    return status;
}

hla_hopper_side hla_hopper_side_of(const hla_hadamard_call *call, bool keys, const hla_tensor *rows) {
    const hla_hadamard_problem *problem = call->problem;
    const hla_tensor *features = keys ? call->in.k_features : call->in.q_features;
    return (hla_hopper_side){
        .f1 = hla_cuda_view_of(&features[0]),
        .f2 = hla_cuda_view_of(&features[1]),
        .rows = hla_cuda_view_of(rows),
        .batch = problem->batch,
        .tokens = keys ? problem->keys : problem->queries,
        .heads = keys ? problem->kv_heads : problem->heads,
        .group = keys ? 1 : problem->heads / problem->kv_heads,
    };
}

/* With all its sequences. */
static hla_hopper_side side_of(const hla_hadamard_call *call, bool keys, const hla_hopper_span *spans,
                               const hla_tensor *rows, int64_t unit) {
    const hla_hadamard_problem *problem = call->problem;
    hla_hopper_side side = hla_hopper_side_of(call, keys, rows);
    side.spans = whole_batches(problem, call->in.key_lengths) ? NULL : spans;
    side.sequences = hla_hadamard_sequence_count(problem);
    for (int64_t n = 0; n < side.sequences; n++)
        side.units += units_of(span_of(call, keys, n, 0).count, unit);
    side.units_each = units_of(side.tokens, unit);
    return side;
}

hla_hopper_side hla_hopper_keys(const hla_hadamard_call *call, const hla_hopper_spans *spans, const hla_tensor *rows,
                                int64_t unit) {
    return side_of(call, true, unit == HLA_HOPPER_CHUNK ? spans->key_chunks : spans->key_tiles, rows, unit);
}

hla_hopper_side hla_hopper_queries(const hla_hadamard_call *call, const hla_hopper_spans *spans, const hla_tensor *rows,
                                   int64_t unit) {
    return side_of(call, false, unit == HLA_HOPPER_CHUNK ? spans->query_chunks : spans->query_tiles, rows, unit);
}

/* ---- memory ---- */

hla_hopper_shape hla_hopper_shape_of(const hla_hadamard_problem *problem, int processors) {
    return (hla_hopper_shape){.rank1 = problem->rank[0],
                              .rank2 = problem->rank[1],
                              .value_dim = problem->value_dim,
                              .half = problem->dtype == HLA_F16,
                              .sigma = hla_cuda_hadamard_sigma(problem),
                              .processors = processors};
}

void hla_hopper_take_kept(hla_hopper_state *state, hla_arena *arena, const hla_hadamard_problem *problem) {
    int64_t states = hla_hadamard_sequence_count(problem) * problem->kv_heads;
    int64_t rank = hla_hadamard_state_rank(problem);
    *state = (hla_hopper_state){.states = states};
    state->s = hla_arena_take(arena, states * rank * problem->value_dim, sizeof(uint16_t));
    state->z_split = hla_arena_take(arena, 2 * states * rank, sizeof(uint16_t));
    state->z = hla_arena_take(arena, states * rank, sizeof(float));
}

void hla_hopper_take_state(hla_hopper_state *state, hla_arena *arena, const hla_hadamard_problem *problem,
                           int processors) {
    hla_hopper_shape shape = hla_hopper_shape_of(problem, processors);
    hla_hopper_take_kept(state, arena, problem);
    state->partial = hla_arena_take(arena, hla_hopper_state_partial(&shape), sizeof(float));
    state->z_partial = hla_arena_take(arena, hla_hopper_z_partial(&shape, state->states), sizeof(float));
}

void hla_hopper_take_forward(hla_hopper_forward *forward, hla_arena *arena, const hla_hadamard_problem *problem,
                             int processors) {
    hla_hopper_take_state(&forward->state, arena, problem, processors);
    hla_hopper_take_spans(&forward->spans, arena, problem);
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int processors) {
    hla_hopper_forward forward;
    hla_hopper_rounds rounds;
    hla_arena general = {0};
    if (problem->causal)
        hla_hopper_take_rounds(&rounds, arena, problem, processors);
    else
        hla_hopper_take_forward(&forward, arena, problem, processors);
    hla_cuda_hadamard_general_measure(&general, problem, processors);
    if (general.used > arena->used) (void)hla_arena_take(arena, (int64_t)(general.used - arena->used), 1);
    arena->overflow = arena->overflow || general.overflow;
}

/* ---- the forward pass ---- */

hla_status hla_hopper_build_keys(const hla_hadamard_call *call, const hla_hopper_forward *forward) {
    hla_hopper_shape shape = hla_hopper_shape_of(call->problem, call->threads);
    hla_hopper_side keys = hla_hopper_keys(call, &forward->spans, call->in.v, HLA_HOPPER_CHUNK);
    return hla_cuda_check(call->context, hla_hopper_build(&shape, &keys, &forward->state, call->context->stream),
                          "cannot build the state");
}

static hla_status run_causal(const hla_hadamard_call *call) {
    if (!hla_hopper_takes_call(call, false) || !call->out || call->problem->keys == 0)
        return hla_cuda_hadamard_general_run(call);
    hla_hopper_rounds rounds;
    hla_arena arena = {.base = call->workspace};
    hla_hopper_take_rounds(&rounds, &arena, call->problem, call->threads);
    return hla_hopper_run_rounds(call, &rounds);
}

static hla_status run(const hla_hadamard_call *call) {
    if (call->problem->causal) return run_causal(call);
    if (!hla_hopper_takes_call(call, false)) {
        hla_status status = hla_cuda_hadamard_general_run(call);
        hla_hadamard_call state_alone = *call;
        state_alone.out = NULL;
        if (status != HLA_OK || !call->out || !hla_hopper_takes_call(&state_alone, false)) return status;
        return run(&state_alone); /* only out could not be addressed: a backward pass will look for the state here */
    }
    const hla_hadamard_problem *problem = call->problem;
    hla_hopper_forward forward;
    hla_arena arena = {.base = call->workspace};
    hla_hopper_take_forward(&forward, &arena, problem, call->threads);
    hla_status status = hla_hopper_upload_spans(&forward.spans, call);
    if (status == HLA_OK) status = hla_hopper_build_keys(call, &forward);
    if (status != HLA_OK || !call->out) return status;
    hla_hopper_shape shape = hla_hopper_shape_of(problem, call->threads);
    hla_hopper_side queries = hla_hopper_queries(call, &forward.spans, call->out, HLA_HOPPER_TILE);
    const hla_hopper_query_options options = {
        .normalised = problem->normalised, .epsilon = problem->epsilon, .scale = problem->scale};
    return hla_cuda_check(call->context,
                          hla_hopper_query(&shape, &queries, NULL, &forward.state, &options, call->context->stream),
                          "cannot read the state");
}

const hla_hadamard_entry hla_hadamard_state_sm90 = {
    .kernel = {.name = "state_sm90", .isa = HLA_ISA_CUDA, .capability = 90, .newest = 90},
    .form = HLA_FORM_STATE,
    .measure = measure,
    .run = run,
    .backward = &hla_hopper_backward,
    .takes = hla_hopper_takes_problem,
    .taken = "problems without states, of two factors, in bfloat16 or float16, with ranks 16, 32, 64 or "
             "128 and value_dim 64 or 128",
    .rate = 30,
};
