/* The forward and backward calls of the Hadamard operator: every argument is checked, then a kernel runs. */
#include "attention/ops/hadamard/plan.h"

#include <inttypes.h>
#include <stdio.h>

/* Memory that is written, to be kept apart from what is read. */
typedef struct named_tensor {
    const char *name;
    const hla_tensor *view;
} named_tensor;

enum { MAX_OUTPUTS = 2 * HLA_MAX_FACTORS + 1 };

/* What a call writes: names hold those of the factors' gradients. */
typedef struct outputs {
    named_tensor tensor[MAX_OUTPUTS];
    int count;
    char names[2 * HLA_MAX_FACTORS][24];
} outputs;

static hla_status check_starts(hla_context *context, const char *name, const int64_t *starts, int64_t sequences,
                               int64_t tokens) {
    if (sequences == 0) {
        if (!starts) return HLA_OK;
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is given, but problem.sequences is 0: nothing is packed",
                        name);
    }
    if (!starts) return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is NULL, packed sequences need it", name);
    if (starts[0] != 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s[0] is %" PRId64 ", wanted 0", name, starts[0]);
    }
    for (int64_t n = 0; n < sequences; n++) {
        if (starts[n + 1] >= starts[n] && starts[n + 1] <= tokens) continue;
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s[%" PRId64 "] is %" PRId64 ", wanted %" PRId64 " to %" PRId64,
                        name, n + 1, starts[n + 1], starts[n], tokens);
    }
    if (starts[sequences] == tokens) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s[%" PRId64 "] is %" PRId64 ", wanted %" PRId64 ", all tokens", name,
                    sequences, starts[sequences], tokens);
}

static hla_status check_sequences(const hla_hadamard_plan *plan, const hla_hadamard_inputs *in) {
    const hla_hadamard_problem *problem = &plan->problem;
    hla_context *context = plan->context;
    if (in->key_lengths && problem->sequences > 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "key_lengths cannot be used with packed sequences");
    }
    hla_status status = hla_check_key_lengths(context, in->key_lengths, problem->batch, problem->keys);
    if (status == HLA_OK)
        status = check_starts(context, "query_starts", in->query_starts, problem->sequences, problem->queries);
    if (status == HLA_OK)
        status = check_starts(context, "key_starts", in->key_starts, problem->sequences, problem->keys);
    return status;
}

/* An input: its shape, its distance from all outputs, and that what counts of it is finite. lengths: as in
 * hla_check_finite. */
static hla_status check_input(const hla_hadamard_plan *plan, const char *name, const hla_tensor *tensor, int64_t tokens,
                              int64_t heads, int64_t width, const int64_t *lengths, const outputs *out) {
    const hla_hadamard_problem *problem = &plan->problem;
    hla_status status =
        hla_check_tensor(plan->context, name, tensor, problem->dtype, problem->batch, tokens, heads, width);
    for (int i = 0; i < out->count && status == HLA_OK; i++)
        status = hla_check_disjoint(plan->context, out->tensor[i].name, out->tensor[i].view, name, tensor);
    if (status == HLA_OK) status = hla_check_finite(plan->context, name, tensor, lengths);
    return status;
}

static hla_status check_features(const hla_hadamard_plan *plan, const char *name, const hla_tensor *features,
                                 int64_t tokens, int64_t heads, const int64_t *lengths, const outputs *out) {
    if (!features) return hla_fail(plan->context, HLA_ERROR_ARGUMENT, "%s is NULL", name);
    for (int p = 0; p < plan->problem.factors; p++) {
        char element[32];
        snprintf(element, sizeof element, "%s[%d]", name, p);
        hla_status status =
            check_input(plan, element, &features[p], tokens, heads, plan->problem.rank[p], lengths, out);
        if (status != HLA_OK) return status;
    }
    return HLA_OK;
}

/* Adds an output of the call, once it passed its own check and is apart from those before it. */
static hla_status add_output(const hla_hadamard_plan *plan, outputs *out, const char *name, const hla_tensor *tensor,
                             int64_t tokens, int64_t heads, int64_t width) {
    const hla_hadamard_problem *problem = &plan->problem;
    hla_status status =
        hla_check_output(plan->context, name, tensor, problem->dtype, problem->batch, tokens, heads, width);
    for (int i = 0; i < out->count && status == HLA_OK; i++)
        status = hla_check_disjoint(plan->context, name, tensor, out->tensor[i].name, out->tensor[i].view);
    if (status == HLA_OK) out->tensor[out->count++] = (named_tensor){name, tensor};
    return status;
}

static hla_status check_inputs(const hla_hadamard_plan *plan, const hla_hadamard_inputs *in, const outputs *out) {
    const hla_hadamard_problem *problem = &plan->problem;
    const int64_t *lengths = in->key_lengths;
    hla_status status = check_features(plan, "q_features", in->q_features, problem->queries, problem->heads, NULL, out);
    if (status == HLA_OK)
        status = check_features(plan, "k_features", in->k_features, problem->keys, problem->kv_heads, lengths, out);
    if (status == HLA_OK)
        status = check_input(plan, "v", in->v, problem->keys, problem->kv_heads, problem->value_dim, lengths, out);
    return status;
}

/* A state array [N,Hkv,R,V+1], seen as one row; its size was checked with the problem. */
static hla_tensor state_view(const hla_hadamard_problem *problem, const float *state) {
    int64_t numbers = hla_hadamard_sequence_count(problem) * problem->kv_heads * hla_hadamard_state_rank(problem) *
                      (problem->value_dim + 1);
    return hla_tensor_bthd(state, HLA_F32, 1, 1, 1, numbers);
}

/* written: the array is an output, to be kept apart from what is read; else it is an input. */
static hla_status check_state(const hla_hadamard_plan *plan, const char *name, const float *state,
                              const hla_hadamard_inputs *in, const outputs *out, bool written) {
    const hla_hadamard_problem *problem = &plan->problem;
    if (!state) return HLA_OK;
    if (!problem->stateful) {
        return hla_fail(plan->context, HLA_ERROR_ARGUMENT, "%s is given, but problem.stateful is false", name);
    }
    hla_tensor view = state_view(problem, state);
    hla_status status = hla_check_tensor(plan->context, name, &view, HLA_F32, 1, 1, 1, view.shape[3]);
    for (int i = 0; i < out->count && status == HLA_OK; i++)
        status = hla_check_disjoint(plan->context, out->tensor[i].name, out->tensor[i].view, name, &view);
    if (!written) return status == HLA_OK ? hla_check_finite(plan->context, name, &view, NULL) : status;
    if (status == HLA_OK) status = hla_check_disjoint(plan->context, name, &view, "v", in->v);
    for (int p = 0; p < problem->factors && status == HLA_OK; p++) {
        status = hla_check_disjoint(plan->context, name, &view, "q_features", &in->q_features[p]);
        if (status == HLA_OK) status = hla_check_disjoint(plan->context, name, &view, "k_features", &in->k_features[p]);
    }
    return status;
}

/* Two states may be the same array, but must not overlap otherwise. */
static hla_status check_states_apart(const hla_hadamard_plan *plan, const char *output_name, const float *output,
                                     const char *input_name, const float *input) {
    if (!output || !input || output == input) return HLA_OK;
    hla_tensor out = state_view(&plan->problem, output), in = state_view(&plan->problem, input);
    return hla_check_disjoint(plan->context, output_name, &out, input_name, &in);
}

hla_status hla_hadamard_forward(const hla_hadamard_plan *plan, const hla_tensor *out, float *final_state,
                                const hla_hadamard_inputs *inputs, void *workspace, size_t workspace_size) {
    if (!plan) return HLA_ERROR_ARGUMENT;
    const hla_hadamard_problem *problem = &plan->problem;
    hla_context *context = plan->context;
    hla_status status = hla_check_stream(context);
    if (status != HLA_OK) return status;
    if (!inputs) return hla_fail(context, HLA_ERROR_ARGUMENT, "inputs is NULL");
    if (!out && !final_state) return hla_fail(context, HLA_ERROR_ARGUMENT, "out is NULL, and so is final_state");
    outputs written = {0};
    status = check_sequences(plan, inputs);
    if (status == HLA_OK && out)
        status = add_output(plan, &written, "out", out, problem->queries, problem->heads, problem->value_dim);
    if (status == HLA_OK) status = check_inputs(plan, inputs, &written);
    if (status == HLA_OK) status = check_state(plan, "initial_state", inputs->initial_state, inputs, &written, false);
    if (status == HLA_OK) status = check_state(plan, "final_state", final_state, inputs, &written, true);
    if (status == HLA_OK)
        status = check_states_apart(plan, "final_state", final_state, "initial_state", inputs->initial_state);
    if (status == HLA_OK) status = hla_check_workspace(context, workspace, workspace_size, plan->workspace);
    if (status != HLA_OK) return status;
    const hla_hadamard_call call = {.context = context,
                                    .problem = problem,
                                    .threads = plan->threads,
                                    .out = out,
                                    .final_state = final_state,
                                    .in = *inputs,
                                    .workspace = workspace};
    return plan->entry->run(&call);
}

static hla_status add_feature_gradients(const hla_hadamard_plan *plan, outputs *out, const char *name,
                                        const hla_tensor *features, int64_t tokens, int64_t heads, int first_name) {
    if (!features) return hla_fail(plan->context, HLA_ERROR_ARGUMENT, "%s is NULL", name);
    for (int p = 0; p < plan->problem.factors; p++) {
        char *element = out->names[first_name + p];
        snprintf(element, sizeof out->names[0], "%s[%d]", name, p);
        hla_status status = add_output(plan, out, element, &features[p], tokens, heads, plan->problem.rank[p]);
        if (status != HLA_OK) return status;
    }
    return HLA_OK;
}

static hla_status add_gradients(const hla_hadamard_plan *plan, const hla_hadamard_gradients *gradients, outputs *out) {
    const hla_hadamard_problem *problem = &plan->problem;
    if (!gradients) return hla_fail(plan->context, HLA_ERROR_ARGUMENT, "gradients is NULL");
    hla_status status =
        add_feature_gradients(plan, out, "dq_features", gradients->dq_features, problem->queries, problem->heads, 0);
    if (status == HLA_OK)
        status = add_feature_gradients(plan, out, "dk_features", gradients->dk_features, problem->keys,
                                       problem->kv_heads, HLA_MAX_FACTORS);
    if (status == HLA_OK)
        status = add_output(plan, out, "dv", gradients->dv, problem->keys, problem->kv_heads, problem->value_dim);
    return status;
}

static hla_status check_gradient_states(const hla_hadamard_plan *plan, const hla_hadamard_gradients *gradients,
                                        const hla_tensor *d_out, const float *d_final_state,
                                        const hla_hadamard_inputs *in, const outputs *out) {
    hla_status status = check_state(plan, "initial_state", in->initial_state, in, out, false);
    if (status == HLA_OK) status = check_state(plan, "d_final_state", d_final_state, in, out, false);
    if (status == HLA_OK) status = check_state(plan, "d_initial_state", gradients->d_initial_state, in, out, true);
    if (status == HLA_OK && gradients->d_initial_state) {
        hla_tensor view = state_view(&plan->problem, gradients->d_initial_state);
        status = hla_check_disjoint(plan->context, "d_initial_state", &view, "d_out", d_out);
    }
    if (status == HLA_OK)
        status =
            check_states_apart(plan, "d_initial_state", gradients->d_initial_state, "d_final_state", d_final_state);
    if (status == HLA_OK && gradients->d_initial_state && gradients->d_initial_state == in->initial_state)
        status = hla_fail(plan->context, HLA_ERROR_ARGUMENT, "d_initial_state overlaps initial_state in memory");
    if (status == HLA_OK)
        status =
            check_states_apart(plan, "d_initial_state", gradients->d_initial_state, "initial_state", in->initial_state);
    return status;
}

hla_status hla_hadamard_backward(const hla_hadamard_plan *plan, const hla_hadamard_gradients *gradients,
                                 const hla_tensor *d_out, const float *d_final_state, const hla_hadamard_inputs *inputs,
                                 void *workspace, size_t workspace_size) {
    if (!plan) return HLA_ERROR_ARGUMENT;
    const hla_hadamard_problem *problem = &plan->problem;
    hla_context *context = plan->context;
    hla_status status = hla_check_stream(context);
    if (status != HLA_OK) return status;
    if (!inputs) return hla_fail(context, HLA_ERROR_ARGUMENT, "inputs is NULL");
    if (plan->backward_workspace == SIZE_MAX) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED, "the workspace of the backward pass cannot be addressed");
    }
    outputs written = {0};
    status = check_sequences(plan, inputs);
    if (status == HLA_OK) status = add_gradients(plan, gradients, &written);
    if (status == HLA_OK) status = check_inputs(plan, inputs, &written);
    if (status == HLA_OK)
        status =
            check_input(plan, "d_out", d_out, problem->queries, problem->heads, problem->value_dim, NULL, &written);
    if (status == HLA_OK) status = check_gradient_states(plan, gradients, d_out, d_final_state, inputs, &written);
    if (status == HLA_OK) status = hla_check_workspace(context, workspace, workspace_size, plan->backward_workspace);
    if (status != HLA_OK) return status;
    const hla_hadamard_call call = {.context = context,
                                    .problem = problem,
                                    .threads = plan->threads,
                                    .out = d_out,
                                    .in = *inputs,
                                    .gradients = *gradients,
                                    .d_final_state = d_final_state,
                                    .workspace = workspace};
    return plan->backward->run(&call);
}
