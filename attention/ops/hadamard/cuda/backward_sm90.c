/* The backward pass of the fast path for Hopper, host side (the steps: backward.h). Causal, the general kernels do
 * it.
 */
#include "attention/ops/hadamard/cuda/backward.h"

#include "attention/ops/hadamard/cuda/general_call.h"
#include "attention/ops/hadamard/cuda/hopper_call.h"

#include <cuda_runtime_api.h>

/* Memory of the pass. The state of the keys and, once the queries' gradients are done, that of the queries share one
 * place. */
typedef struct backward_memory {
    hla_hopper_forward forward;
    float *weight, *moment; /* [B][H][Tq]: w and -w s */
    float *z, *partial;     /* of the queries' state */
} backward_memory;

static int64_t state_count(const hla_hadamard_problem *problem) {
    return hla_hadamard_sequence_count(problem) * problem->kv_heads;
}

static void take(backward_memory *memory, hla_arena *arena, const hla_hadamard_problem *problem, int processors) {
    int64_t rank = hla_hadamard_state_rank(problem);
    int64_t rows = problem->batch * problem->queries * problem->heads, states = state_count(problem);
    hla_hopper_take_forward(&memory->forward, arena, problem, processors);
    memory->weight = hla_arena_take(arena, rows, sizeof(float));
    memory->moment = hla_arena_take(arena, rows, sizeof(float));
    memory->z = hla_arena_take(arena, states * rank, sizeof(float));
    memory->partial = hla_arena_take(arena, hla_gram_partial(states, rank, processors), sizeof(float));
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int processors) {
    backward_memory memory;
    hla_arena general = {0};
    if (!problem->causal) take(&memory, arena, problem, processors);
    hla_cuda_hadamard_backward_mma.measure(&general, problem, processors);
    if (general.used > arena->used) (void)hla_arena_take(arena, (int64_t)(general.used - arena->used), 1);
    arena->overflow = arena->overflow || general.overflow;
}

/* ---- the steps ---- */

/* float16 holds numbers from 6e-5, below which they lose digits, up to 65504. A sum of T gradients is some sqrt(T) of
 * them where they differ in sign and T where they agree: divided by sqrt(T) both are kept. (Divided by T, 32,760 of
 * them were 1.6 % off.) */
static hla_hopper_shape query_state_shape(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_hopper_shape shape = hla_hopper_shape_of(problem, call->threads);
    int64_t tokens = problem->queries * (problem->heads / problem->kv_heads);
    shape.sigma = 1;
    for (int64_t count = 1; shape.half && count < tokens; count *= 4)
        shape.sigma /= 2;
    return shape;
}

/* What the sum over queries is multiplied by to be Ghat. */
static float query_state_scale(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    return problem->normalised ? hla_hopper_shape_of(problem, call->threads).sigma : problem->scale;
}

static hla_status query_gradients(const backward_memory *memory, const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_hopper_shape shape = hla_hopper_shape_of(problem, call->threads);
    hla_hopper_state kept = memory->forward.state;
    hla_status status = HLA_OK;
    if (call->in.forward_workspace) {
        hla_arena arena = {.base = (char *)call->in.forward_workspace};
        hla_hopper_take_kept(&kept, &arena, problem);
    } else {
        status = hla_hopper_build_keys(call, &memory->forward);
    }
    if (status != HLA_OK) return status;
    const hla_gradient_call gradient = {
        .side = hla_hopper_queries(call, &memory->forward.spans, call->out, HLA_HOPPER_TILE),
        .d1 = hla_cuda_view_of(&call->gradients.dq_features[0]),
        .d2 = hla_cuda_view_of(&call->gradients.dq_features[1]),
        .states = kept.states,
        .s = kept.s,
        .z_split = kept.z_split,
        .mode = problem->normalised ? HLA_GRADIENT_QUERIES : HLA_GRADIENT_PLAIN,
        .epsilon = shape.sigma * problem->epsilon,
        .scale = problem->scale / shape.sigma,
        .weight = memory->weight,
        .moment = memory->moment,
    };
    return hla_cuda_check(call->context, hla_gradient(&shape, &gradient, call->context->stream),
                          "cannot compute the queries' gradients");
}

/* z of the queries' state: the sum of features times -w s, or nothing. */
static hla_status build_query_z(const backward_memory *memory, const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    if (!problem->normalised) { /* nobody reads it, but numbers are numbers */
        size_t size = (size_t)(state_count(problem) * hla_hadamard_state_rank(problem)) * sizeof(float);
        cudaError_t error = cudaMemsetAsync(memory->z, 0, size, (cudaStream_t)call->context->stream);
        return hla_cuda_check(call->context, (int)error, "cannot clear the denominators' state");
    }
    hla_hopper_side queries = hla_hopper_queries(call, &memory->forward.spans, call->out, HLA_HOPPER_CHUNK);
    const hla_gram_call gram = {
        .f1 = queries.f1,
        .f2 = queries.f2,
        .rank1 = problem->rank[0],
        .rank1_inner = 1,
        .rank2 = problem->rank[1],
        .tokens = queries.tokens,
        .heads = queries.heads,
        .group = queries.group,
        .spans = queries.spans,
        .sequences = queries.sequences,
        .c = memory->moment,
        .scale = 1,
        .half = problem->dtype == HLA_F16,
        .processors = call->threads,
        .z = memory->z,
        .partial = memory->partial,
    };
    return hla_cuda_check(call->context, hla_gram(&gram, call->context->stream),
                          "cannot build the denominators' state");
}

static hla_status build_query_state(const backward_memory *memory, const hla_hadamard_call *call) {
    hla_hopper_shape shape = query_state_shape(call);
    hla_hopper_side queries = hla_hopper_queries(call, &memory->forward.spans, call->out, HLA_HOPPER_CHUNK);
    hla_hopper_state state = memory->forward.state;
    state.weight = call->problem->normalised ? memory->weight : NULL;
    state.z_given = memory->z;
    return hla_cuda_check(call->context, hla_hopper_build(&shape, &queries, &state, call->context->stream),
                          "cannot build the queries' state");
}

static hla_status key_gradients(const backward_memory *memory, const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_hopper_shape shape = query_state_shape(call);
    const hla_hopper_state *state = &memory->forward.state;
    float scale = query_state_scale(call);
    const hla_gradient_call gradient = {
        .side = hla_hopper_keys(call, &memory->forward.spans, call->in.v, HLA_HOPPER_TILE),
        .d1 = hla_cuda_view_of(&call->gradients.dk_features[0]),
        .d2 = hla_cuda_view_of(&call->gradients.dk_features[1]),
        .states = state->states,
        .s = state->s,
        .z_split = state->z_split,
        .mode = problem->normalised ? HLA_GRADIENT_KEYS : HLA_GRADIENT_PLAIN,
        .scale = scale / shape.sigma,
        .clear_after = call->in.key_lengths != NULL,
    };
    hla_status status = hla_cuda_check(call->context, hla_gradient(&shape, &gradient, call->context->stream),
                                       "cannot compute the keys' gradients");
    if (status != HLA_OK) return status;
    hla_hopper_side keys = hla_hopper_keys(call, &memory->forward.spans, call->gradients.dv, HLA_HOPPER_TILE);
    const hla_hopper_query_options options = {.scale = scale, .clear_after = call->in.key_lengths != NULL};
    return hla_cuda_check(call->context, hla_hopper_query(&shape, &keys, NULL, state, &options, call->context->stream),
                          "cannot compute the values' gradients");
}

static hla_status run(const hla_hadamard_call *call) {
    if (call->problem->causal || !hla_hopper_takes_call(call, true)) return hla_cuda_hadamard_backward_mma.run(call);
    backward_memory memory;
    hla_arena arena = {.base = call->workspace};
    take(&memory, &arena, call->problem, call->threads);
    hla_status status = hla_hopper_upload_spans(&memory.forward.spans, call);
    if (status == HLA_OK) status = query_gradients(&memory, call);
    if (status == HLA_OK) status = build_query_z(&memory, call);
    if (status == HLA_OK) status = build_query_state(&memory, call);
    if (status == HLA_OK) status = key_gradients(&memory, call);
    return status;
}

static void keep(hla_arena *arena, const hla_hadamard_problem *problem) {
    hla_hopper_state kept;
    if (!problem->causal) hla_hopper_take_kept(&kept, arena, problem);
}

const hla_hadamard_backward_entry hla_hopper_backward = {.measure = measure, .run = run, .keep = keep};
