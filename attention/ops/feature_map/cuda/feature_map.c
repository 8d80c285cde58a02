/* Feature maps on a GPU: from calls to what kernels take, and the entries of the kernel table. */
#include "attention/ops/feature_map/cuda/feature_map.h"

#include "attention/cuda/tables.h"

#include <inttypes.h>

enum {
    UNITS = 256, /* heads times chunks, unless there are more heads: two for each multiprocessor, and 51 MB of sums at
                    D = 128, R = 64 */
    BLOCK = 32   /* tokens; a chunk is at least one block */
};

static int64_t chunk_count(const hla_feature_map_problem *problem) {
    int64_t blocks = (problem->tokens - 1) / BLOCK + 1, chunks = (UNITS - 1) / hla_smaller(problem->heads, UNITS) + 1;
    return blocks >= chunks ? chunks : hla_smaller(chunks, blocks * hla_smaller(problem->batch, chunks));
}

/* Of one head's weight gradients [R][D], [R], [D][D], [D]. */
static int64_t sums_size(const hla_feature_map_problem *problem) {
    return (problem->rank + problem->dim) * (problem->dim + 1);
}

static hla_cuda_map map_of(const hla_feature_map_call *call) {
    const hla_feature_map_problem *problem = &call->problem;
    const hla_feature_map_weights *weights = &call->weights;
    return (hla_cuda_map){.batch = problem->batch,
                          .heads = problem->heads,
                          .tokens = problem->tokens,
                          .dim = (int)problem->dim,
                          .rank = (int)problem->rank,
                          .dtype = (int)problem->dtype,
                          .activation = (int)problem->activation,
                          .is_query = problem->is_query,
                          .floor = problem->floor,
                          .shift = problem->shift,
                          .out = hla_cuda_view_of(call->out),
                          .x = hla_cuda_view_of(call->x),
                          .dx = hla_cuda_view_of(call->dx),
                          .weight = weights->weight,
                          .bias = weights->bias,
                          .hidden_weight = weights->hidden_weight,
                          .hidden_bias = weights->hidden_bias,
                          .rope = problem->rope,
                          .gradients = call->gradients,
                          .sums = call->workspace,
                          .chunks = chunk_count(problem),
                          .size = sums_size(problem),
                          .processors = call->threads};
}

static hla_status check_widths(const hla_feature_map_call *call, bool backward) {
    const hla_feature_map_problem *problem = &call->problem;
    if (hla_cuda_map_fits(problem->dim, problem->rank, backward)) return HLA_OK;
    return hla_fail(call->context, HLA_ERROR_UNSUPPORTED,
                    "problem.dim is %" PRId64 " and problem.rank %" PRId64
                    ", a token of which does not fit into a multiprocessor's memory",
                    problem->dim, problem->rank);
}

static void measure(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    (void)arena, (void)problem, (void)threads;
}

static hla_status run(const hla_feature_map_call *call) {
    hla_status status = check_widths(call, false);
    if (status != HLA_OK) return status;
    const hla_cuda_map map = map_of(call);
    return hla_cuda_check(call->context, hla_cuda_map_forward(&map, call->context->stream),
                          "cannot start a feature map");
}

static hla_status run_mma(const hla_feature_map_call *call) {
    hla_status status = check_widths(call, false);
    if (status != HLA_OK) return status;
    const hla_cuda_map map = map_of(call);
    if (!hla_cuda_map_mma_takes(&map)) return run(call);
    return hla_cuda_check(call->context, hla_cuda_map_mma_forward(&map, call->context->stream),
                          "cannot start a feature map");
}

/* Nothing of a shape that will be refused: its products could wrap. */
static void measure_backward(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    (void)threads;
    if (!hla_cuda_map_fits(problem->dim, problem->rank, true)) return;
    hla_arena_take(arena, problem->heads * chunk_count(problem), 2 * (size_t)sums_size(problem) * sizeof(float));
}

static hla_status run_backward(const hla_feature_map_call *call) {
    hla_status status = check_widths(call, true);
    if (status != HLA_OK) return status;
    const hla_cuda_map map = map_of(call);
    return hla_cuda_check(call->context, hla_cuda_map_backward(&map, call->context->stream),
                          "cannot start the gradients of a feature map");
}

static hla_status run_mma_backward(const hla_feature_map_call *call) {
    hla_status status = check_widths(call, true);
    if (status != HLA_OK) return status;
    const hla_cuda_map map = map_of(call);
    if (!hla_cuda_map_mma_takes_backward(&map)) return run_backward(call);
    return hla_cuda_check(call->context, hla_cuda_map_mma_backward(&map, call->context->stream),
                          "cannot start the gradients of a feature map");
}

const hla_feature_map_entry hla_cuda_feature_map_float32 = {
    .kernel = {.name = "float32", .isa = HLA_ISA_CUDA, .capability = HLA_CUDA_LEAST_CAPABILITY},
    .measure = measure,
    .run = run,
    .measure_backward = measure_backward,
    .run_backward = run_backward,
};

const hla_feature_map_entry hla_cuda_feature_map_mma = {
    .kernel = {.name = "mma", .isa = HLA_ISA_CUDA, .capability = HLA_CUDA_LEAST_CAPABILITY},
    .measure = measure,
    .run = run_mma,
    .measure_backward = measure_backward,
    .run_backward = run_mma_backward,
};
