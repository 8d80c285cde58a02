/* The streaming state on a GPU: from calls to what kernels take. */
#include "attention/ops/hadamard/cuda/stream.h"

#include "attention/cuda/tables.h"
#include "attention/ops/hadamard/stream.h"

enum {
    ROWS = 128,      /* of a range: 66 KB at V = 128 */
    PASS = 4,        /* queries that share one pass over a range; with more of them ranges grow, so that partial sums
                        stay few */
    MOST_GROWTH = 4, /* times ROWS */
    MOST_TOKENS = 64
};

static int64_t saturating_product(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
}

/* Sizes and memory of a call with that many tokens; all that depends on its tensors is left out. */
static hla_cuda_stream lay_out(hla_arena *arena, const hla_hadamard_problem *problem, int64_t tokens) {
    const int64_t units = saturating_product(tokens, problem->heads / problem->kv_heads);
    hla_cuda_stream call = {.batch = problem->batch,
                            .heads = problem->heads,
                            .kv_heads = problem->kv_heads,
                            .value_dim = problem->value_dim,
                            .tokens = tokens,
                            .rank = hla_hadamard_state_rank(problem),
                            .factors = problem->factors,
                            .dtype = (int)problem->dtype,
                            .normalised = problem->normalised,
                            .epsilon = problem->epsilon,
                            .scale = problem->scale};
    for (int p = 0; p < problem->factors; p++)
        call.factor_rank[p] = (uint32_t)problem->rank[p];
    call.rows = ROWS;
    while (call.rows < MOST_GROWTH * ROWS && call.rows / ROWS * PASS < units)
        call.rows *= 2;
    call.ranges = (call.rank - 1) / call.rows + 1;
    const int64_t pairs = problem->batch * problem->kv_heads;
    call.arrived = hla_arena_take(arena, pairs, sizeof *call.arrived);
    call.partial = hla_arena_take(
        arena,
        saturating_product(pairs, saturating_product(call.ranges, saturating_product(units, problem->value_dim + 1))),
        sizeof *call.partial);
    return call;
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int64_t tokens, int threads) {
    (void)threads;
    lay_out(arena, problem, tokens);
}

static hla_status run(const hla_stream_call *call) {
    hla_arena arena = {.base = call->workspace};
    hla_cuda_stream queued = lay_out(&arena, call->problem, call->tokens);
    queued.state = call->state;
    queued.out = hla_cuda_view_of(call->out);
    queued.v = hla_cuda_view_of(call->v);
    for (int p = 0; p < queued.factors; p++) {
        queued.q[p] = hla_cuda_view_of(call->q_features ? &call->q_features[p] : NULL);
        queued.k[p] = hla_cuda_view_of(call->k_features ? &call->k_features[p] : NULL);
    }
    return hla_cuda_check(call->context, hla_cuda_stream_run(&queued, call->context->stream),
                          "cannot start a step of the state");
}

static hla_status scale(hla_state *state, const float *gamma, int64_t heads) {
    const hla_hadamard_problem *problem = &state->problem;
    int64_t size = (int64_t)state->count / (problem->batch * problem->kv_heads);
    if (heads == 1) size *= problem->kv_heads; /* one number for all */
    int error = hla_cuda_stream_scale(state->data, gamma, problem->batch, heads, size, state->context->stream);
    return hla_cuda_check(state->context, error, "cannot start the state's decay");
}

static hla_status add(hla_state *state, const float *from) {
    int error = hla_cuda_stream_add(state->data, from, (int64_t)state->count, state->context->stream);
    return hla_cuda_check(state->context, error, "cannot start adding states");
}

const hla_stream_entry hla_cuda_stream_entry = {
    .isa = HLA_ISA_CUDA, .most_tokens = MOST_TOKENS, .measure = measure, .run = run, .scale = scale, .add = add};
