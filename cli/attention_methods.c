/* cli/attention_methods.c - the methods of `hla bench attention`: what each can, what it costs, and one call of it. */
#include "cli/attention_bench.h"

#include <string.h>

#define FLOATS_A_LINE 16 /* workspaces come in 64-byte lines */

const bench_method bench_methods[METHOD_COUNT] = {
    {"hadamard_state", "Hadamard, state form", FUNCTION_HADAMARD, HLA_FORM_STATE, false},
    {"hadamard_quadratic", "Hadamard, quadratic form", FUNCTION_HADAMARD, HLA_FORM_QUADRATIC, false},
    {"materialised", "Hadamard by oneDNN", FUNCTION_HADAMARD, HLA_FORM_STATE, true},
    {"softmax", "softmax", FUNCTION_SOFTMAX, HLA_FORM_QUADRATIC, false},
    {"linear", "linear (one factor)", FUNCTION_LINEAR, HLA_FORM_STATE, false},
};

const char *method_lacks(const bench_method *method, const bench_case *problem) {
    bool quadratic = method->function == FUNCTION_HADAMARD && method->form == HLA_FORM_QUADRATIC;
    if (problem->backward && (quadratic || method->by_library)) return "has no backward pass";
    if (problem->causal && method->by_library) return "has no causal mode";
    if (problem->dtype == HLA_F16 && method->by_library) return "has no f16";
    return NULL;
}

static double state_rank(const bench_case *problem, bench_function function) {
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    double R = 1;
    function_ranks(problem, function, &factors, rank);
    for (int p = 0; p < factors; p++)
        R *= (double)rank[p];
    return R;
}

void function_ranks(const bench_case *problem, bench_function function, int *factors, int64_t rank[HLA_MAX_FACTORS]) {
    *factors = 1;
    if (function == FUNCTION_HADAMARD) {
        *factors = problem->factors;
        memcpy(rank, problem->rank, sizeof problem->rank);
    } else if (function == FUNCTION_LINEAR) {
        double R = state_rank(problem, FUNCTION_HADAMARD);
        rank[0] = R < HLA_MAX_RANK ? (int64_t)R : HLA_MAX_RANK;
    } else {
        rank[0] = problem->dim;
    }
}

void ranks_text(char *text, size_t size, int factors, const int64_t *rank) {
    text[0] = '\0';
    for (int p = 0; p < factors; p++)
        snprintf(text + strlen(text), size - strlen(text), "%s%lld", p > 0 ? "x" : "", (long long)rank[p]);
}

static double sum_of_widths(const bench_case *problem, bench_function function) {
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    double sum = 0;
    function_ranks(problem, function, &factors, rank);
    for (int p = 0; p < factors; p++)
        sum += (double)rank[p];
    return sum;
}

/* docs/OPERATOR.md: the backward pass takes five products of the state's size where the forward pass takes two; softmax
 * takes five of pairs where forward takes two, three of them as wide as keys. */
double method_operations(const bench_method *method, const bench_case *problem) {
    double T = (double)problem->tokens, V = (double)problem->value_dim;
    double heads = (double)(problem->batch * problem->heads), pairs = problem->causal ? T * (T + 1) / 2 : T * T;
    double width = sum_of_widths(problem, method->function);
    if (method->form == HLA_FORM_STATE)
        return (problem->backward ? 10 : 4) * state_rank(problem, method->function) * V * T * heads;
    return 2 * pairs * (problem->backward ? 3 * width + 2 * V : width + V) * heads;
}

double function_bytes(bench_function function, const bench_case *problem) {
    double rows = (double)(problem->batch * problem->heads * problem->tokens);
    double inputs = 2 * sum_of_widths(problem, function) + (double)problem->value_dim, out = (double)problem->value_dim;
    return rows * (problem->backward ? 2 * inputs + out : inputs + out) * (double)hla_dtype_size(problem->dtype);
}

void describe_hadamard(const bench_method *method, const bench_case *problem, const bench_views *views,
                       const char *kernel, hla_hadamard_problem *made) {
    hla_hadamard_problem_init(made);
    made->batch = problem->batch;
    made->heads = problem->heads;
    made->queries = views->q[0].shape[1];
    made->keys = views->k[0].shape[1];
    made->value_dim = problem->value_dim;
    made->dtype = problem->dtype;
    made->causal = problem->causal;
    made->form = kernel == NULL ? method->form : HLA_FORM_AUTO;
    made->kernel = kernel;
    function_ranks(problem, method->function, &made->factors, made->rank);
}

/* Whether the plan takes this form where none is asked for. */
static bool is_planned(hla_context *hla, hla_hadamard_problem problem) {
    hla_form form = problem.form;
    hla_hadamard_plan *plan = NULL;
    problem.form = HLA_FORM_AUTO;
    if (hla_hadamard_plan_create(hla, &problem, &plan) != HLA_OK) return false;
    bool same = hla_hadamard_plan_form(plan) == form;
    hla_hadamard_plan_free(plan);
    return same;
}

static hlv_status open_hadamard(cli_session *session, hla_context *hla, const bench_method *method,
                                const bench_case *problem, const char *kernel, bench_call *call) {
    hla_hadamard_problem description;
    describe_hadamard(method, problem, &call->views, kernel, &description);
    hla_status status = hla_hadamard_plan_create(hla, &description, &call->hadamard);
    if (status != HLA_OK) return fail_operator(session, hla, status);
    call->bytes = call->backward ? hla_hadamard_plan_backward_workspace(call->hadamard)
                                 : hla_hadamard_plan_workspace(call->hadamard);
    snprintf(call->kernel, sizeof call->kernel, "%s", hla_hadamard_plan_kernel(call->hadamard));
    call->planned = kernel == NULL && is_planned(hla, description);
    return HLV_OK;
}

void describe_softmax(const bench_case *problem, const bench_views *views, const char *kernel,
                      hla_softmax_problem *made) {
    hla_softmax_problem_init(made);
    made->batch = problem->batch;
    made->heads = problem->heads;
    made->queries = views->q[0].shape[1];
    made->keys = views->k[0].shape[1];
    made->dim = problem->dim;
    made->value_dim = problem->value_dim;
    made->dtype = problem->dtype;
    made->causal = problem->causal;
    made->kernel = kernel;
}

static hlv_status open_softmax(cli_session *session, hla_context *hla, const bench_case *problem, const char *kernel,
                               bench_call *call) {
    hla_softmax_problem description;
    describe_softmax(problem, &call->views, kernel, &description);
    hla_status status = hla_softmax_plan_create(hla, &description, &call->softmax);
    if (status != HLA_OK) return fail_operator(session, hla, status);
    call->bytes =
        call->backward ? hla_softmax_plan_backward_workspace(call->softmax) : hla_softmax_plan_workspace(call->softmax);
    snprintf(call->kernel, sizeof call->kernel, "%s", hla_softmax_plan_kernel(call->softmax));
    return HLV_OK;
}

static hlv_status open_library(cli_session *session, hla_context *hla, const bench_method *method,
                               const bench_case *problem, bench_call *call) {
    hla_hadamard_problem description;
    describe_hadamard(method, problem, &call->views, NULL, &description);
    call->library = materialised_create(&description, hla_context_threads(hla));
    snprintf(call->kernel, sizeof call->kernel, "oneDNN");
    if (call->library != NULL) return HLV_OK;
    session->sentence = "oneDNN has no fast matrix product for this problem here, or memory is short";
    return HLV_ERROR_UNSUPPORTED;
}

hlv_status call_open(cli_session *session, hla_context *hla, const bench_method *method, const bench_case *problem,
                     const bench_views *views, const char *kernel, bench_call *call) {
    *call = (bench_call){.backward = problem->backward, .views = *views};
    hlv_status status;
    if (method->by_library && kernel == NULL)
        status = open_library(session, hla, method, problem, call);
    else if (method->function == FUNCTION_SOFTMAX)
        status = open_softmax(session, hla, problem, kernel, call);
    else
        status = open_hadamard(session, hla, method, problem, kernel, call);
    int64_t floats = (int64_t)(call->bytes / sizeof(float)) + FLOATS_A_LINE;
    if (status == HLV_OK) status = hlv_array_create(session->ctx, 1, &floats, &call->workspace);
    if (status != HLV_OK) call_close(session, call);
    return status;
}

hlv_status call_run(cli_session *session, hla_context *hla, bench_call *call) {
    const bench_views *views = &call->views;
    const hla_hadamard_inputs inputs = {.q_features = views->q, .k_features = views->k, .v = &views->v};
    const hla_hadamard_gradients gradients = {
        .dq_features = views->dq, .dk_features = views->dk, .dv = &views->dv, .d_initial_state = NULL};
    void *workspace = call->workspace.data;
    hla_status status = HLA_OK;
    if (call->library != NULL)
        materialised_forward(call->library, &views->out, views->q, views->k, &views->v);
    else if (call->softmax != NULL && call->backward)
        status = hla_softmax_backward(call->softmax, &views->dq[0], &views->dk[0], &views->dv, &views->d_out,
                                      &views->q[0], &views->k[0], &views->v, NULL, NULL, workspace, call->bytes);
    else if (call->softmax != NULL)
        status = hla_softmax_forward(call->softmax, &views->out, &views->q[0], &views->k[0], &views->v, NULL, NULL,
                                     workspace, call->bytes);
    else if (call->backward)
        status =
            hla_hadamard_backward(call->hadamard, &gradients, &views->d_out, NULL, &inputs, workspace, call->bytes);
    else
        status = hla_hadamard_forward(call->hadamard, &views->out, NULL, &inputs, workspace, call->bytes);
    return status == HLA_OK ? HLV_OK : fail_operator(session, hla, status);
}

void call_close(cli_session *session, bench_call *call) {
    hlv_array_free(session->ctx, &call->workspace);
    hla_hadamard_plan_free(call->hadamard);
    hla_softmax_plan_free(call->softmax);
    materialised_free(call->library);
    *call = (bench_call){0};
}
