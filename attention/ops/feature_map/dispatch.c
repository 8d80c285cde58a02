/* Feature maps: the kernel table and the checks before a kernel runs. */
#include "attention/ops/feature_map/internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

/* Slowest first: the last entry that runs here is the one chosen. */
static const hla_feature_map_entry table[] = {
    {"reference", HLA_ISA_BASELINE, hla_feature_map_reference_workspace, hla_feature_map_reference_forward},
    {"baseline", HLA_ISA_BASELINE, hla_feature_map_workspace_baseline, hla_feature_map_forward_baseline},
#if defined(__x86_64__)
    {"avx2", HLA_ISA_AVX2, hla_feature_map_workspace_avx2, hla_feature_map_forward_avx2},
    {"avx512", HLA_ISA_AVX512, hla_feature_map_workspace_avx512, hla_feature_map_forward_avx512},
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

bool hla_feature_map_kernel(int i, hla_feature_map_kernel_info *info) {
    if (i < 0 || i >= TABLE_SIZE || !info) return false;
    *info = (hla_feature_map_kernel_info){table[i].name, hla_isa_runs(table[i].isa), hla_isa_needs(table[i].isa)};
    return true;
}

/* The entry forced by name or environment, else the fastest that runs here; NULL, with *status and the sentence, if
 * that cannot be. */
static const hla_feature_map_entry *choose_kernel(hla_context *context, const char *forced, hla_status *status) {
    const char *origin = "problem.kernel";
    if (!forced) {
        forced = getenv("HLA_FEATURE_MAP_KERNEL");
        origin = "HLA_FEATURE_MAP_KERNEL";
        if (forced && !*forced) forced = NULL;
    }
    for (int i = TABLE_SIZE - 1; i >= 0; i--) {
        if (forced && strcmp(forced, table[i].name) != 0) continue;
        if (hla_isa_runs(table[i].isa)) return &table[i];
        if (forced) {
            *status = hla_fail(context, HLA_ERROR_UNSUPPORTED, "%s is \"%s\", which needs %s; this machine lacks it",
                               origin, forced, hla_isa_needs(table[i].isa));
            return NULL;
        }
    }
    *status = hla_fail(context, HLA_ERROR_ARGUMENT, "%s is \"%s\", which is no kernel of the feature maps", origin,
                       forced ? forced : "");
    return NULL;
}

void hla_feature_map_problem_init(hla_feature_map_problem *problem) {
    if (!problem) return;
    *problem = (hla_feature_map_problem){
        .struct_size = sizeof *problem, .dtype = HLA_F32, .activation = HLA_ACTIVATION_RELU, .floor = 1e-3f};
}

static hla_status check_problem(hla_context *context, const hla_feature_map_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    if (problem->struct_size < sizeof *problem) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.struct_size is %zu, wanted %zu: call hla_feature_map_problem_init first",
                        problem->struct_size, sizeof *problem);
    }
    const struct {
        const char *name;
        int64_t size;
    } sizes[] = {{"batch", problem->batch},
                 {"heads", problem->heads},
                 {"tokens", problem->tokens},
                 {"dim", problem->dim},
                 {"rank", problem->rank}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i].size < 1) {
            return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.%s is %" PRId64 ", wanted at least 1", sizes[i].name,
                            sizes[i].size);
        }
    }
    if (!hla_dtype_valid(problem->dtype)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.dtype is %d, which is no hla_dtype", (int)problem->dtype);
    }
    if ((size_t)problem->activation >= HLA_ACTIVATIONS) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.activation is %d, which is no hla_activation",
                        (int)problem->activation);
    }
    if (!isfinite(problem->floor) || problem->floor < 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.floor is %g, wanted a finite number of at least 0",
                        (double)problem->floor);
    }
    if (!isfinite(problem->shift)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.shift is %g, wanted a finite number",
                        (double)problem->shift);
    }
    return HLA_OK;
}

/* The four arrays as views [1,1,H,...], so that size, overlap and finiteness are checked like any tensor's. */
static hla_status check_weights(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *out,
                                const hla_feature_map_weights *weights) {
    int64_t heads = problem->heads, dim = problem->dim, rank = problem->rank;
    if (!weights) return hla_fail(context, HLA_ERROR_ARGUMENT, "weights is NULL");
    if (!weights->weight) return hla_fail(context, HLA_ERROR_ARGUMENT, "weights.weight is NULL");
    if (weights->hidden_bias && !weights->hidden_weight) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "weights.hidden_bias is given without weights.hidden_weight");
    }
    const struct {
        const char *name;
        hla_tensor view;
    } arrays[] = {{"weights.weight", hla_tensor_bthd(weights->weight, HLA_F32, 1, heads, rank, dim)},
                  {"weights.bias", hla_tensor_bthd(weights->bias, HLA_F32, 1, 1, heads, rank)},
                  {"weights.hidden_weight", hla_tensor_bthd(weights->hidden_weight, HLA_F32, 1, heads, dim, dim)},
                  {"weights.hidden_bias", hla_tensor_bthd(weights->hidden_bias, HLA_F32, 1, 1, heads, dim)}};
    for (int i = 0; i < 4; i++) {
        const hla_tensor *view = &arrays[i].view;
        if (!view->data) continue;
        hla_status status = hla_check_tensor(context, arrays[i].name, view, HLA_F32, view->shape[0], view->shape[1],
                                             view->shape[2], view->shape[3]);
        if (status == HLA_OK) status = hla_check_disjoint(context, "out", out, arrays[i].name, view);
        if (status == HLA_OK && context->check_finite) status = hla_check_finite(context, arrays[i].name, view);
        if (status != HLA_OK) return status;
    }
    return HLA_OK;
}

static hla_status check_tensors(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *out,
                                const hla_tensor *x) {
    int64_t batch = problem->batch, tokens = problem->tokens, heads = problem->heads;
    hla_status status = hla_check_output(context, "out", out, problem->dtype, batch, tokens, heads, problem->rank);
    if (status == HLA_OK)
        status = hla_check_tensor(context, "x", x, problem->dtype, batch, tokens, heads, problem->dim);
    if (status == HLA_OK) status = hla_check_disjoint(context, "out", out, "x", x);
    if (status == HLA_OK && context->check_finite) status = hla_check_finite(context, "x", x);
    return status;
}

hla_status hla_feature_map_forward(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *out,
                                   const hla_tensor *x, const hla_feature_map_weights *weights) {
    if (!context) return HLA_ERROR_ARGUMENT;
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    const hla_feature_map_entry *entry = choose_kernel(context, problem->kernel, &status);
    if (!entry) return status;
    status = check_tensors(context, problem, out, x);
    if (status == HLA_OK) status = check_weights(context, problem, out, weights);
    if (status != HLA_OK) return status;
    int threads = hla_context_threads(context);
    hla_arena arena = {0};
    entry->workspace(problem, threads, &arena);
    if (arena.overflow) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's workspace does not fit in 63-bit sizes");
    }
    void *workspace = aligned_alloc(HLA_ALIGNMENT, arena.used);
    if (!workspace) {
        return hla_fail(context, HLA_ERROR_MEMORY, "out of memory: a feature map needs %zu bytes", arena.used);
    }
    hla_feature_map_call call = {.problem = *problem, .out = out, .x = x, .weights = *weights, .threads = threads};
    entry->forward(&call, workspace);
    free(workspace);
    return HLA_OK;
}
