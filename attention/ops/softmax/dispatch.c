/* Softmax attention: the kernel table, the plan, and the checks before a kernel runs. */
#include "attention/cuda/backend.h"
#include "attention/ops/softmax/kernel.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

struct hla_softmax_plan {
    hla_context *context;
    hla_softmax_problem problem; /* scale filled in; kernel is not kept */
    const hla_softmax_entry *entry;
    int threads;
    void *prepared; /* by the entry; NULL where it prepares nothing */
    size_t workspace, backward_workspace;
};

static const hla_softmax_entry *const table[] = {
    &hla_softmax_reference,
    &hla_softmax_baseline,
#if defined(__x86_64__)
    &hla_softmax_avx2,
    &hla_softmax_avx512,
#elif defined(__aarch64__)
    &hla_softmax_neon,
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

static const hla_softmax_entry *entry_at(const hla_context *context, int i) {
    if (!context || !context->cuda) return i >= 0 && i < TABLE_SIZE ? table[i] : NULL;
    int last = 0; /* of the GPU's table */
    while (last < i && context->cuda->softmax[last])
        last++;
    return i >= 0 && last == i ? context->cuda->softmax[i] : NULL;
}

static const hla_kernel *kernel_at(const hla_context *context, int i) {
    const hla_softmax_entry *entry = entry_at(context, i);
    return entry ? &entry->kernel : NULL;
}

bool hla_softmax_kernel(const hla_context *context, int i, hla_softmax_kernel_info *info) {
    const hla_kernel *kernel = kernel_at(context, i);
    if (!kernel || !info) return false;
    *info = (hla_softmax_kernel_info){kernel->name, hla_kernel_runs(context, kernel), hla_isa_needs(kernel->isa)};
    return true;
}

void hla_softmax_problem_init(hla_softmax_problem *problem) {
    if (problem) *problem = (hla_softmax_problem){.struct_size = sizeof *problem, .dtype = HLA_F32};
}

static hla_status check_problem(hla_context *context, const hla_softmax_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    const hla_named_size sizes[] = {{"batch", problem->batch, 1},     {"heads", problem->heads, 1},
                                    {"queries", problem->queries, 1}, {"keys", problem->keys, 0},
                                    {"dim", problem->dim, 1},         {"value_dim", problem->value_dim, 1}};
    hla_status status =
        hla_check_struct(context, "problem", problem->struct_size, sizeof *problem, "hla_softmax_problem_init");
    if (status == HLA_OK) status = hla_check_sizes(context, sizes, sizeof sizes / sizeof sizes[0]);
    if (status == HLA_OK) status = hla_check_dtype(context, problem->dtype);
    if (status == HLA_OK) status = hla_check_number(context, "scale", problem->scale);
    if (status != HLA_OK) return status;
    if (problem->kv_heads < 0 || (problem->kv_heads > 0 && problem->heads % problem->kv_heads != 0)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.kv_heads is %" PRId64 ", wanted 0 or a divisor of problem.heads, %" PRId64,
                        problem->kv_heads, problem->heads);
    }
    size_t bytes = sizeof(double);
    if (!hla_size_multiply(&bytes, problem->batch) || !hla_size_multiply(&bytes, problem->heads) ||
        !hla_size_multiply(&bytes, problem->queries) || !hla_size_multiply(&bytes, problem->value_dim) ||
        bytes > PTRDIFF_MAX) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's output does not fit in 63-bit sizes");
    }
    return HLA_OK;
}

static hla_status prepare(hla_softmax_plan *plan, const hla_softmax_entry *entry) {
    plan->entry = entry;
    return entry->preparation ? entry->preparation->create(plan->context, &plan->problem, &plan->prepared) : HLA_OK;
}

/* The entry that is asked for, else the last that runs and can prepare itself for the problem. */
static hla_status choose_kernel(hla_softmax_plan *plan, const char *kernel) {
    static const char variable[] = "HLA_SOFTMAX_KERNEL";
    hla_context *context = plan->context;
    int index, forced;
    hla_status status = hla_kernel_choose(context, kernel_at, kernel, variable, &index);
    if (status == HLA_OK) status = hla_kernel_forced(context, kernel_at, kernel, variable, &forced);
    if (status != HLA_OK) return status;
    status = prepare(plan, entry_at(context, index));
    while (status == HLA_ERROR_UNSUPPORTED && forced < 0 && --index >= 0)
        if (hla_kernel_runs(context, kernel_at(context, index))) status = prepare(plan, entry_at(context, index));
    return status;
}

static hla_status measure_workspaces(hla_softmax_plan *plan) {
    hla_arena arena = {0}, backward = {0};
    const hla_softmax_entry *entry = plan->entry;
    entry->measure(&arena, &plan->problem, plan->threads);
    if (plan->prepared) entry->preparation->measure(&arena, plan->prepared);
    entry->measure_backward(&backward, &plan->problem, plan->threads);
    plan->workspace = arena.used;
    plan->backward_workspace = backward.used;
    if (!arena.overflow && !backward.overflow) return HLA_OK;
    return hla_fail(plan->context, HLA_ERROR_ARGUMENT, "problem's workspace does not fit in 63-bit sizes");
}

hla_status hla_softmax_plan_create(hla_context *context, const hla_softmax_problem *problem, hla_softmax_plan **plan) {
    if (!plan) return hla_fail(context, HLA_ERROR_ARGUMENT, "plan is NULL");
    *plan = NULL;
    if (!context) return HLA_ERROR_ARGUMENT;
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    hla_softmax_plan *created = calloc(1, sizeof *created);
    if (!created) return hla_fail(context, HLA_ERROR_MEMORY, "out of memory for a softmax plan");
    created->context = context;
    created->threads = context->threads;
    created->problem = *problem;
    created->problem.kernel = NULL;
    if (problem->scale == 0) created->problem.scale = (float)(1 / sqrt((double)problem->dim));
    status = choose_kernel(created, problem->kernel);
    if (status == HLA_OK) status = measure_workspaces(created);
    if (status != HLA_OK) {
        hla_softmax_plan_free(created);
        return status;
    }
    *plan = created;
    return HLA_OK;
}

void hla_softmax_plan_free(hla_softmax_plan *plan) {
    if (plan && plan->prepared) plan->entry->preparation->destroy(plan->prepared);
    free(plan);
}

size_t hla_softmax_plan_workspace(const hla_softmax_plan *plan) {
    return plan ? plan->workspace : 0;
}

size_t hla_softmax_plan_backward_workspace(const hla_softmax_plan *plan) {
    return plan ? plan->backward_workspace : 0;
}

const char *hla_softmax_plan_kernel(const hla_softmax_plan *plan) {
    return plan ? plan->entry->kernel.name : "";
}

/* A tensor argument: what is wanted of it. */
typedef struct argument {
    const char *name;
    const hla_tensor *tensor;
    int64_t tokens, heads, width;
    const int64_t *lengths; /* NULL, or how many tokens of each batch entry count */
} argument;

/* Shapes, strides and overlap of outputs and inputs and finiteness of the inputs; key_bias, [Tk] or NULL. */
static hla_status check_arguments(hla_context *context, const hla_softmax_problem *problem, const argument *outputs,
                                  int output_count, const argument *inputs, int input_count, const float *key_bias) {
    hla_tensor bias = hla_tensor_bthd(key_bias, HLA_F32, 1, 1, 1, problem->keys);
    hla_status status = HLA_OK;
    for (int i = 0; i < output_count && status == HLA_OK; i++) {
        const argument *out = &outputs[i];
        status = hla_check_output(context, out->name, out->tensor, problem->dtype, problem->batch, out->tokens,
                                  out->heads, out->width);
        for (int j = 0; j < i && status == HLA_OK; j++)
            status = hla_check_disjoint(context, out->name, out->tensor, outputs[j].name, outputs[j].tensor);
    }
    for (int i = 0; i < input_count && status == HLA_OK; i++) {
        const argument *in = &inputs[i];
        status = hla_check_tensor(context, in->name, in->tensor, problem->dtype, problem->batch, in->tokens, in->heads,
                                  in->width);
        for (int j = 0; j < output_count && status == HLA_OK; j++)
            status = hla_check_disjoint(context, outputs[j].name, outputs[j].tensor, in->name, in->tensor);
        if (status == HLA_OK) status = hla_check_finite(context, in->name, in->tensor, in->lengths);
    }
    if (key_bias && status == HLA_OK)
        status = hla_check_tensor(context, "key_bias", &bias, HLA_F32, 1, 1, 1, problem->keys);
    for (int j = 0; key_bias && j < output_count && status == HLA_OK; j++)
        status = hla_check_disjoint(context, outputs[j].name, outputs[j].tensor, "key_bias", &bias);
    return status;
}

/* Minus infinity is a mask; NaN and plus infinity make every result NaN. */
static hla_status check_bias(hla_context *context, const float *key_bias, int64_t keys) {
    for (int64_t j = 0; key_bias && context->check_finite && j < keys; j++) {
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
    int64_t heads = problem->heads, key_heads = hla_softmax_key_heads(problem);
    const argument outputs[] = {{"out", out, problem->queries, heads, problem->value_dim, NULL}};
    const argument inputs[] = {{"q", q, problem->queries, heads, problem->dim, NULL},
                               {"k", k, problem->keys, key_heads, problem->dim, key_lengths},
                               {"v", v, problem->keys, key_heads, problem->value_dim, key_lengths}};
    hla_status status = hla_check_stream(context);
    if (status == HLA_OK) status = hla_check_key_lengths(context, key_lengths, problem->batch, problem->keys);
    if (status == HLA_OK) status = check_arguments(context, problem, outputs, 1, inputs, 3, key_bias);
    if (status == HLA_OK) status = check_bias(context, key_bias, problem->keys);
    if (status == HLA_OK) status = hla_check_workspace(context, workspace, workspace_size, plan->workspace);
    if (status != HLA_OK) return status;
    hla_softmax_call call = {.context = context,
                             .problem = *problem,
                             .out = out,
                             .q = q,
                             .k = k,
                             .v = v,
                             .key_lengths = key_lengths,
                             .key_bias = key_bias,
                             .threads = plan->threads,
                             .prepared = plan->prepared,
                             .workspace = workspace};
    return plan->entry->run(&call);
}

hla_status hla_softmax_backward(const hla_softmax_plan *plan, const hla_tensor *dq, const hla_tensor *dk,
                                const hla_tensor *dv, const hla_tensor *d_out, const hla_tensor *q, const hla_tensor *k,
                                const hla_tensor *v, const int64_t *key_lengths, const float *key_bias, void *workspace,
                                size_t workspace_size) {
    if (!plan) return HLA_ERROR_ARGUMENT;
    hla_context *context = plan->context;
    const hla_softmax_problem *problem = &plan->problem;
    int64_t heads = problem->heads, key_heads = hla_softmax_key_heads(problem);
    const argument outputs[] = {{"dq", dq, problem->queries, heads, problem->dim, NULL},
                                {"dk", dk, problem->keys, key_heads, problem->dim, NULL},
                                {"dv", dv, problem->keys, key_heads, problem->value_dim, NULL}};
    const argument inputs[] = {{"d_out", d_out, problem->queries, heads, problem->value_dim, NULL},
                               {"q", q, problem->queries, heads, problem->dim, NULL},
                               {"k", k, problem->keys, key_heads, problem->dim, key_lengths},
                               {"v", v, problem->keys, key_heads, problem->value_dim, key_lengths}};
    hla_status status = hla_check_stream(context);
    if (status == HLA_OK) status = hla_check_key_lengths(context, key_lengths, problem->batch, problem->keys);
    if (status == HLA_OK) status = check_arguments(context, problem, outputs, 3, inputs, 4, key_bias);
    if (status == HLA_OK) status = check_bias(context, key_bias, problem->keys);
    if (status == HLA_OK) status = hla_check_workspace(context, workspace, workspace_size, plan->backward_workspace);
    if (status != HLA_OK) return status;
    hla_softmax_call call = {.context = context,
                             .problem = *problem,
                             .out = d_out,
                             .q = q,
                             .k = k,
                             .v = v,
                             .dq = dq,
                             .dk = dk,
                             .dv = dv,
                             .key_lengths = key_lengths,
                             .key_bias = key_bias,
                             .threads = plan->threads,
                             .prepared = plan->prepared,
                             .workspace = workspace};
    return plan->entry->run_backward(&call);
}
