/* Feature maps: the kernel table and the checks before a kernel runs. */
#include "attention/cuda/backend.h"
#include "attention/ops/feature_map/kernel.h"

#include <inttypes.h>
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

static const hla_feature_map_entry *entry_at(const hla_context *context, int i) {
    if (!context || !context->cuda) return i >= 0 && i < TABLE_SIZE ? table[i] : NULL;
    int last = 0; /* of the GPU's table */
    while (last < i && context->cuda->feature_map[last])
        last++;
    return i >= 0 && last == i ? context->cuda->feature_map[i] : NULL;
}

static const hla_kernel *kernel_at(const hla_context *context, int i) {
    const hla_feature_map_entry *entry = entry_at(context, i);
    return entry ? &entry->kernel : NULL;
}

bool hla_feature_map_kernel(const hla_context *context, int i, hla_feature_map_kernel_info *info) {
    const hla_kernel *kernel = kernel_at(context, i);
    if (!kernel || !info) return false;
    *info = (hla_feature_map_kernel_info){kernel->name, hla_kernel_runs(context, kernel), hla_isa_needs(kernel->isa)};
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
    if (problem->rope && problem->dim % 2 != 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.dim is %" PRId64 ", wanted an even number with problem.rope", problem->dim);
    }
    status = hla_check_offset(context, "floor", problem->floor);
    if (status == HLA_OK) status = hla_check_number(context, "shift", problem->shift);
    return status;
}

enum { WEIGHTS = 4, CONSTANTS = WEIGHTS + 1 }; /* the last: problem.rope */

/* One of the four arrays of weights, or of their gradients, as a view [1,1,H,...], so that size, overlap and finiteness
 * are checked like any tensor's; data NULL if it is not given. */
typedef struct named_view {
    const char *name;
    hla_tensor view;
} named_view;

static void view_weights(named_view views[WEIGHTS], const hla_feature_map_problem *problem,
                         const hla_feature_map_weights *weights) {
    int64_t heads = problem->heads, dim = problem->dim, rank = problem->rank;
    const named_view all[WEIGHTS] = {
        {"weights.weight", hla_tensor_bthd(weights->weight, HLA_F32, 1, heads, rank, dim)},
        {"weights.bias", hla_tensor_bthd(weights->bias, HLA_F32, 1, 1, heads, rank)},
        {"weights.hidden_weight", hla_tensor_bthd(weights->hidden_weight, HLA_F32, 1, heads, dim, dim)},
        {"weights.hidden_bias", hla_tensor_bthd(weights->hidden_bias, HLA_F32, 1, 1, heads, dim)}};
    memcpy(views, all, sizeof all);
}

/* What a call reads beside x: views of the weights and of the table of RoPE. */
static hla_status check_constants(hla_context *context, const hla_feature_map_problem *problem,
                                  const hla_feature_map_weights *weights, named_view views[CONSTANTS]) {
    if (!weights) return hla_fail(context, HLA_ERROR_ARGUMENT, "weights is NULL");
    if (!weights->weight) return hla_fail(context, HLA_ERROR_ARGUMENT, "weights.weight is NULL");
    if (weights->hidden_bias && !weights->hidden_weight) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "weights.hidden_bias is given without weights.hidden_weight");
    }
    view_weights(views, problem, weights);
    views[WEIGHTS] =
        (named_view){"problem.rope", hla_tensor_bthd(problem->rope, HLA_F32, 1, 1, problem->tokens, problem->dim)};
    for (int i = 0; i < CONSTANTS; i++) {
        const hla_tensor *view = &views[i].view;
        if (!view->data) continue;
        hla_status status = hla_check_tensor(context, views[i].name, view, HLA_F32, view->shape[0], view->shape[1],
                                             view->shape[2], view->shape[3]);
        if (status != HLA_OK) return status;
    }
    return HLA_OK;
}

static hla_status check_finite(hla_context *context, const named_view *views, int count) {
    hla_status status = HLA_OK;
    for (int i = 0; i < count && status == HLA_OK; i++) {
        if (views[i].view.data) status = hla_check_finite(context, views[i].name, &views[i].view, NULL);
    }
    return status;
}

/* That an output shares no memory with a weight. */
static hla_status check_apart(hla_context *context, const named_view *output, const named_view *others, int count) {
    for (int i = 0; i < count; i++) {
        if (!others[i].view.data) continue;
        hla_status status = hla_check_disjoint(context, output->name, &output->view, others[i].name, &others[i].view);
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

/* What measure and run take as the number of threads. */
static int threads_of(const hla_context *context) {
    return context->cuda ? context->device.processors : context->threads;
}

/* The entry to run, and the problem checked. */
static hla_status choose(hla_context *context, const hla_feature_map_problem *problem,
                         const hla_feature_map_entry **entry) {
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    int index;
    status = hla_kernel_choose(context, kernel_at, problem->kernel, "HLA_FEATURE_MAP_KERNEL", &index);
    if (status == HLA_OK) *entry = entry_at(context, index);
    return status;
}

hla_status hla_feature_map_forward(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *out,
                                   const hla_tensor *x, const hla_feature_map_weights *weights) {
    if (!context) return HLA_ERROR_ARGUMENT;
    const hla_feature_map_entry *entry;
    named_view views[CONSTANTS];
    hla_status status = hla_check_stream(context);
    if (status == HLA_OK) status = choose(context, problem, &entry);
    if (status == HLA_OK) status = check_tensors(context, problem, out, x);
    if (status == HLA_OK) status = check_constants(context, problem, weights, views);
    if (status == HLA_OK) status = check_apart(context, &(named_view){"out", *out}, views, CONSTANTS);
    if (status == HLA_OK) status = check_finite(context, views, CONSTANTS);
    if (status != HLA_OK) return status;
    hla_arena arena = {0};
    entry->measure(&arena, problem, threads_of(context));
    if (arena.overflow) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's workspace does not fit in 63-bit sizes");
    }
    void *workspace = arena.used ? aligned_alloc(HLA_ALIGNMENT, arena.used) : NULL; /* never on a GPU */
    if (arena.used && !workspace) {
        return hla_fail(context, HLA_ERROR_MEMORY, "out of memory: a feature map needs %zu bytes", arena.used);
    }
    hla_feature_map_call call = {.context = context,
                                 .problem = *problem,
                                 .out = out,
                                 .x = x,
                                 .weights = *weights,
                                 .threads = threads_of(context),
                                 .workspace = workspace};
    status = entry->run(&call);
    free(workspace);
    return status;
}

static hla_status measure_backward(hla_context *context, const hla_feature_map_entry *entry,
                                   const hla_feature_map_problem *problem, size_t *bytes) {
    hla_arena arena = {0};
    entry->measure_backward(&arena, problem, threads_of(context));
    if (arena.overflow) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem's workspace does not fit in 63-bit sizes");
    }
    *bytes = arena.used;
    return HLA_OK;
}

hla_status hla_feature_map_backward_workspace(hla_context *context, const hla_feature_map_problem *problem,
                                              size_t *bytes) {
    if (bytes) *bytes = 0;
    if (!context) return HLA_ERROR_ARGUMENT;
    if (!bytes) return hla_fail(context, HLA_ERROR_ARGUMENT, "bytes is NULL");
    const hla_feature_map_entry *entry;
    hla_status status = choose(context, problem, &entry);
    return status == HLA_OK ? measure_backward(context, entry, problem, bytes) : status;
}

/* Everything the backward pass reads, as views: d_out, x and what forward reads beside x. */
enum { INPUTS = 2 + CONSTANTS };

static hla_status check_inputs(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *d_out,
                               const hla_tensor *x, const hla_feature_map_weights *weights, named_view inputs[INPUTS]) {
    int64_t batch = problem->batch, tokens = problem->tokens, heads = problem->heads;
    const struct {
        const char *name;
        const hla_tensor *tensor;
        int64_t width;
    } tensors[] = {{"d_out", d_out, problem->rank}, {"x", x, problem->dim}};
    for (int i = 0; i < 2; i++) {
        hla_status status = hla_check_tensor(context, tensors[i].name, tensors[i].tensor, problem->dtype, batch, tokens,
                                             heads, tensors[i].width);
        if (status != HLA_OK) return status;
        inputs[i] = (named_view){tensors[i].name, *tensors[i].tensor};
    }
    return check_constants(context, problem, weights, inputs + 2);
}

/* dx and the gradients of the weights: shape, and no memory shared with an input or one another. */
static hla_status check_gradients(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *dx,
                                  const hla_feature_map_weight_gradients *dweights,
                                  const hla_feature_map_weights *weights, const named_view inputs[INPUTS]) {
    static const char *const names[] = {"dweights.weight", "dweights.bias", "dweights.hidden_weight",
                                        "dweights.hidden_bias", "dx"};
    named_view outputs[WEIGHTS + 1];
    if ((dweights->hidden_weight || dweights->hidden_bias) && !weights->hidden_weight) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is given without weights.hidden_weight",
                        dweights->hidden_weight ? names[2] : names[3]);
    }
    view_weights(
        outputs, problem,
        &(hla_feature_map_weights){dweights->weight, dweights->bias, dweights->hidden_weight, dweights->hidden_bias});
    int count = WEIGHTS;
    if (dx) outputs[count++].view = *dx;
    const int64_t wanted[] = {problem->batch, problem->tokens, problem->heads, problem->dim};
    for (int i = 0; i < count; i++) {
        outputs[i].name = names[i];
        const hla_tensor *view = &outputs[i].view;
        const int64_t *shape = i < WEIGHTS ? view->shape : wanted;
        if (i < WEIGHTS && !view->data) continue;
        hla_status status = hla_check_output(context, names[i], view, i < WEIGHTS ? HLA_F32 : problem->dtype, shape[0],
                                             shape[1], shape[2], shape[3]);
        if (status == HLA_OK) status = check_apart(context, &outputs[i], inputs, INPUTS);
        if (status == HLA_OK) status = check_apart(context, &outputs[i], outputs, i);
        if (status != HLA_OK) return status;
    }
    return HLA_OK;
}

hla_status hla_feature_map_backward(hla_context *context, const hla_feature_map_problem *problem, const hla_tensor *dx,
                                    const hla_feature_map_weight_gradients *dweights, const hla_tensor *d_out,
                                    const hla_tensor *x, const hla_feature_map_weights *weights, void *workspace,
                                    size_t workspace_size) {
    if (!context) return HLA_ERROR_ARGUMENT;
    const hla_feature_map_weight_gradients none = {0};
    if (!dweights) dweights = &none;
    const hla_feature_map_entry *entry;
    named_view inputs[INPUTS];
    size_t needed = 0;
    hla_status status = hla_check_stream(context);
    if (status == HLA_OK) status = choose(context, problem, &entry);
    if (status == HLA_OK) status = check_inputs(context, problem, d_out, x, weights, inputs);
    if (status == HLA_OK) status = check_gradients(context, problem, dx, dweights, weights, inputs);
    if (status == HLA_OK) status = check_finite(context, inputs, INPUTS);
    if (status == HLA_OK) status = measure_backward(context, entry, problem, &needed);
    if (status == HLA_OK) status = hla_check_workspace(context, workspace, workspace_size, needed);
    if (status != HLA_OK) return status;
    hla_feature_map_call call = {.context = context,
                                 .problem = *problem,
                                 .out = d_out,
                                 .x = x,
                                 .weights = *weights,
                                 .dx = dx,
                                 .gradients = *dweights,
                                 .threads = threads_of(context),
                                 .workspace = workspace};
    return entry->run_backward(&call);
}
