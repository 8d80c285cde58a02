/* Host code of the tiled softmax kernels. */
#include "attention/ops/softmax/cuda/tiled.h"

/* The lengths, which come from host memory. */
static void measure(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    (void)threads;
    (void)hla_arena_take(arena, problem->batch, sizeof(int64_t));
}

static float *take_statistics(hla_arena *arena, const hla_softmax_problem *problem) {
    int64_t rows;
    if (__builtin_mul_overflow(problem->batch * problem->heads, 2 * problem->queries, &rows)) rows = INT64_MAX;
    return hla_arena_take(arena, rows, sizeof(float));
}

static void measure_backward(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    measure(arena, problem, threads);
    (void)take_statistics(arena, problem);
}

static hla_softmax_tiled describe(const hla_softmax_call *call, const int64_t *key_lengths) {
    const hla_softmax_problem *problem = &call->problem;
    return (hla_softmax_tiled){.q = hla_cuda_view_of(call->q),
                               .k = hla_cuda_view_of(call->k),
                               .v = hla_cuda_view_of(call->v),
                               .out = hla_cuda_view_of(call->out),
                               .dq = hla_cuda_view_of(call->dq),
                               .dk = hla_cuda_view_of(call->dk),
                               .dv = hla_cuda_view_of(call->dv),
                               .dtype = problem->dtype,
                               .batch = problem->batch,
                               .heads = problem->heads,
                               .shared = hla_softmax_shared(problem),
                               .queries = problem->queries,
                               .keys = problem->keys,
                               .dim = problem->dim,
                               .value_dim = problem->value_dim,
                               .key_lengths = call->key_lengths ? key_lengths : NULL,
                               .key_bias = call->key_bias,
                               .scale = problem->scale,
                               .causal = problem->causal,
                               .processors = call->context->device.processors};
}

static hla_status upload_lengths(const hla_softmax_call *call, int64_t *key_lengths) {
    if (!call->key_lengths) return HLA_OK;
    int error = hla_cuda_upload(key_lengths, call->key_lengths, call->problem.batch, call->context->stream);
    return hla_cuda_check(call->context, error, "cannot hand key_lengths to the GPU");
}

static hla_status run(const hla_softmax_call *call) {
    hla_arena arena = {.base = call->workspace};
    int64_t *key_lengths = hla_arena_take(&arena, call->problem.batch, sizeof(int64_t));
    hla_status status = upload_lengths(call, key_lengths);
    if (status != HLA_OK) return status;
    hla_softmax_tiled problem = describe(call, key_lengths);
    int error = hla_softmax_tiled_forward(&problem, call->context->stream);
    return hla_cuda_check(call->context, error, "cannot start softmax attention");
}

static hla_status run_backward(const hla_softmax_call *call) {
    hla_arena arena = {.base = call->workspace};
    int64_t *key_lengths = hla_arena_take(&arena, call->problem.batch, sizeof(int64_t));
    hla_status status = upload_lengths(call, key_lengths);
    if (status != HLA_OK) return status;
    hla_softmax_tiled problem = describe(call, key_lengths);
    problem.statistics = take_statistics(&arena, &call->problem);
    int error = hla_softmax_tiled_backward(&problem, call->context->stream);
    return hla_cuda_check(call->context, error, "cannot start the backward pass of softmax attention");
}

const hla_softmax_entry hla_softmax_tiled_cuda = {
    .kernel = {"tiled_cuda", HLA_ISA_CUDA, 80, 0},
    .measure = measure,
    .run = run,
    .measure_backward = measure_backward,
    .run_backward = run_backward,
};
