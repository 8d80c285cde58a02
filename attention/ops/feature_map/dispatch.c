/* Feature maps: the kernel table and the checks before a kernel runs. */
#include "attention/ops/feature_map/kernel.h"

#include <stdlib.h>

static const hla_feature_map_entry *const table[] = {
    &hla_feature_map_reference,
    &hla_feature_map_baseline,
#if defined(__x86_64__)
    &hla_feature_map_avx2,
    &hla_feature_map_avx512,
#elif defined(__aarch64__)
    &hla_feature_map_neon,
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

static const hla_kernel *kernel_at(int i) {
    return i >= 0 && i < TABLE_SIZE ? &table[i]->kernel : NULL;
}

bool hla_feature_map_kernel(int i, hla_feature_map_kernel_info *info) {
    const hla_kernel *kernel = kernel_at(i);
    if (!kernel || !info) return false;
    *info = (hla_feature_map_kernel_info){kernel->name, hla_isa_runs(kernel->isa), hla_isa_needs(kernel->isa)};
    return true;
}

void hla_feature_map_problem_init(hla_feature_map_problem *problem) {
    if (!problem) return;
    *problem = (hla_feature_map_problem){
        .struct_size = sizeof *problem, .dtype = HLA_F32, .activation = HLA_ACTIVATION_RELU, .floor = 1e-3f};
}

static hla_status check_problem(hla_context *context, const hla_feature_map_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    const hla_named_size sizes[] = {{"batch", problem->batch, 1},
                                    {"heads", problem->heads, 1},
                                    {"tokens", problem->tokens, 1},
                                    {"dim", problem->dim, 1},
                                    {"rank", problem->rank, 1}};
    hla_status status =
        hla_check_struct(context, "problem", problem->struct_size, sizeof *problem, "hla_feature_map_problem_init");
    if (status == HLA_OK) status = hla_check_sizes(context, sizes, sizeof sizes / sizeof sizes[0]);
    if (status == HLA_OK) status = hla_check_dtype(context, problem->dtype);
    if (status != HLA_OK) return status;
    if ((size_t)problem->activation >= HLA_ACTIVATIONS) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.activation is %d, which is no hla_activation",
                        (int)problem->activation);
    }
    status = hla_check_offset(context, "floor", problem->floor);
    if (status == HLA_OK) status = hla_check_number(context, "shift", problem->shift);
    return status;
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
        if (status == HLA_OK) status = hla_check_finite(context, arrays[i].name, view, NULL);
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
    if (status == HLA_OK) status = hla_check_finite(context, "x", x, NULL);
    return status;
}

hla_status hla_feature_map_forward(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *out,
                                   const hla_tensor *x, const hla_feature_map_weights *weights) {
    if (!context) return HLA_ERROR_ARGUMENT;
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    int index;
    status = hla_kernel_choose(context, kernel_at, problem->kernel, "HLA_FEATURE_MAP_KERNEL", &index);
    if (status == HLA_OK) status = check_tensors(context, problem, out, x);
    if (status == HLA_OK) status = check_weights(context, problem, out, weights);
    if (status != HLA_OK) return status;
    const hla_feature_map_entry *entry = table[index];
    hla_arena arena = {0};
    entry->measure(&arena, problem, context->threads);
    if (arena.overflow) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's workspace does not fit in 63-bit sizes");
    }
    void *workspace = aligned_alloc(HLA_ALIGNMENT, arena.used);
    if (!workspace) {
        return hla_fail(context, HLA_ERROR_MEMORY, "out of memory: a feature map needs %zu bytes", arena.used);
    }
    hla_feature_map_call call = {.problem = *problem,
                                 .out = out,
                                 .x = x,
                                 .weights = *weights,
                                 .threads = context->threads,
                                 .workspace = workspace};
    entry->run(&call);
    free(workspace);
    return HLA_OK;
}
