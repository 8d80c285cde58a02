/* Softmax attention: the kernel table, the plan, and the checks before a kernel runs. */
#include "attention/core/internal.h"
#include "attention/ops/softmax/internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct hla_softmax_plan {
    hla_context *context;
    hla_softmax_problem problem; /* scale filled in; kernel is entry->name */
    const hla_softmax_entry *entry;
    int threads;
    size_t workspace;
};

/* Slowest first: the last entry that runs here is the one chosen. */
static const hla_softmax_entry table[] = {
    {"reference", HLA_ISA_BASELINE, hla_softmax_reference_workspace, hla_softmax_reference_forward},
    {"baseline", HLA_ISA_BASELINE, hla_softmax_workspace_baseline, hla_softmax_forward_baseline},
#if defined(__x86_64__)
    {"avx2", HLA_ISA_AVX2, hla_softmax_workspace_avx2, hla_softmax_forward_avx2},
    {"avx512", HLA_ISA_AVX512, hla_softmax_workspace_avx512, hla_softmax_forward_avx512},
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

bool hla_softmax_kernel(int i, hla_softmax_kernel_info *info) {
    if (i < 0 || i >= TABLE_SIZE || !info) return false;
    *info = (hla_softmax_kernel_info){table[i].name, hla_isa_runs(table[i].isa), hla_isa_needs(table[i].isa)};
    return true;
}

/* The entry forced by name or environment, else the fastest that runs here; NULL, with *status and the sentence, if
 * that cannot be. */
static const hla_softmax_entry *choose_kernel(hla_context *context, const char *forced, hla_status *status) {
    const char *origin = "problem.kernel";
    if (!forced) {
        forced = getenv("HLA_SOFTMAX_KERNEL");
        origin = "HLA_SOFTMAX_KERNEL";
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
    *status = hla_fail(context, HLA_ERROR_ARGUMENT, "%s is \"%s\", which is no kernel of softmax attention", origin,
                       forced ? forced : "");
    return NULL;
}

void hla_softmax_problem_init(hla_softmax_problem *problem) {
    if (problem) *problem = (hla_softmax_problem){.struct_size = sizeof *problem, .dtype = HLA_F32};
}

static hla_status check_problem(hla_context *context, const hla_softmax_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    if (problem->struct_size < sizeof *problem) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.struct_size is %zu, wanted %zu: call hla_softmax_problem_init first",
                        problem->struct_size, sizeof *problem);
    }
    const struct {
        const char *name;
        int64_t size, least;
    } sizes[] = {{"batch", problem->batch, 1}, {"heads", problem->heads, 1}, {"queries", problem->queries, 1},
                 {"keys", problem->keys, 0},   {"dim", problem->dim, 1},     {"value_dim", problem->value_dim, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i].size < sizes[i].least) {
            return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.%s is %" PRId64 ", wanted at least %" PRId64,
                            sizes[i].name, sizes[i].size, sizes[i].least);
        }
    }
    if (!hla_dtype_valid(problem->dtype)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.dtype is %d, which is no hla_dtype", (int)problem->dtype);
    }
    if (!isfinite(problem->scale)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.scale is %g, wanted a finite number",
                        (double)problem->scale);
    }
    size_t bytes = sizeof(double);
    if (!hla_size_multiply(&bytes, problem->batch) || !hla_size_multiply(&bytes, problem->heads) ||
        !hla_size_multiply(&bytes, problem->queries) || !hla_size_multiply(&bytes, problem->value_dim) ||
        bytes > PTRDIFF_MAX) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's output does not fit in 63-bit sizes");
    }
    return HLA_OK;
}

hla_status hla_softmax_plan_create(hla_context *context, const hla_softmax_problem *problem, hla_softmax_plan **plan) {
    if (!plan) return hla_fail(context, HLA_ERROR_ARGUMENT, "plan is NULL");
    *plan = NULL;
    if (!context) return HLA_ERROR_ARGUMENT;
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    const hla_softmax_entry *entry = choose_kernel(context, problem->kernel, &status);
    if (!entry) return status;
    int threads = hla_context_threads(context);
    hla_arena arena = {0};
    entry->workspace(problem, threads, &arena);
    if (arena.overflow) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's workspace does not fit in 63-bit sizes");
    }
    hla_softmax_plan *created = malloc(sizeof *created);
    if (!created) return hla_fail(context, HLA_ERROR_MEMORY, "out of memory for a softmax plan");
    *created = (hla_softmax_plan){context, *problem, entry, threads, arena.used};
    created->problem.kernel = entry->name;
    if (problem->scale == 0) created->problem.scale = (float)(1 / sqrt((double)problem->dim));
    *plan = created;
    return HLA_OK;
}

void hla_softmax_plan_free(hla_softmax_plan *plan) {
    free(plan);
}

size_t hla_softmax_plan_workspace(const hla_softmax_plan *plan) {
    return plan ? plan->workspace : 0;
}

const char *hla_softmax_plan_kernel(const hla_softmax_plan *plan) {
    return plan ? plan->entry->name : "";
}

/* Shapes, strides and overlap of the four tensors. */
static hla_status check_tensors(hla_context *context, const hla_softmax_problem *problem, const hla_tensor *out,
                                const hla_tensor *q, const hla_tensor *k, const hla_tensor *v) {
    int64_t batch = problem->batch, heads = problem->heads, queries = problem->queries, keys = problem->keys;
    const struct {
        const char *name;
        const hla_tensor *tensor;
        int64_t tokens, width;
    } inputs[] = {{"q", q, queries, problem->dim}, {"k", k, keys, problem->dim}, {"v", v, keys, problem->value_dim}};
    hla_status status =
        hla_check_output(context, "out", out, problem->dtype, batch, queries, heads, problem->value_dim);
    for (int i = 0; i < 3 && status == HLA_OK; i++) {
        status = hla_check_tensor(context, inputs[i].name, inputs[i].tensor, problem->dtype, batch, inputs[i].tokens,
                                  heads, inputs[i].width);
        if (status == HLA_OK) status = hla_check_disjoint(context, "out", out, inputs[i].name, inputs[i].tensor);
        if (status == HLA_OK && context->check_finite) {
            status = hla_check_finite(context, inputs[i].name, inputs[i].tensor);
        }
    }
    return status;
}

/* Minus infinity is a mask; NaN and plus infinity make every result NaN. */
static hla_status check_bias(hla_context *context, const hla_tensor *out, const float *key_bias, int64_t keys) {
    if (!key_bias) return HLA_OK;
    hla_tensor view = hla_tensor_bthd(key_bias, HLA_F32, 1, 1, 1, keys);
    hla_status status = hla_check_tensor(context, "key_bias", &view, HLA_F32, 1, 1, 1, keys);
    if (status == HLA_OK) status = hla_check_disjoint(context, "out", out, "key_bias", &view);
    if (status != HLA_OK) return status;
    for (int64_t j = 0; context->check_finite && j < keys; j++) {
        if (!(key_bias[j] < INFINITY)) {
            return hla_fail(context, HLA_ERROR_NOT_FINITE, "key_bias[%" PRId64 "] is %g, wanted less than infinity", j,
                            (double)key_bias[j]);
        }
    }
    return HLA_OK;
}

hla_status hla_softmax_forward(const hla_softmax_plan *plan, const hla_tensor *out, const hla_tensor *q,
                               const hla_tensor *k, const hla_tensor *v, const int64_t *key_lengths,
                               const float *key_bias, void *workspace, size_t workspace_size) {
    if (!plan) return HLA_ERROR_ARGUMENT;
    hla_context *context = plan->context;
    const hla_softmax_problem *problem = &plan->problem;
    hla_status status = hla_check_key_lengths(context, key_lengths, problem->batch, problem->keys);
    if (status == HLA_OK) status = check_tensors(context, problem, out, q, k, v);
    if (status == HLA_OK) status = check_bias(context, out, key_bias, problem->keys);
    if (status == HLA_OK) status = hla_check_workspace(context, workspace, workspace_size, plan->workspace);
    if (status != HLA_OK) return status;
    hla_softmax_call call = {.problem = *problem,
                             .out = out,
                             .q = q,
                             .k = k,
                             .v = v,
                             .key_lengths = key_lengths,
                             .key_bias = key_bias,
                             .threads = plan->threads};
    plan->entry->forward(&call, workspace);
    return HLA_OK;
}
