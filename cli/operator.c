#include "cli/operator.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define FLOATS_A_LINE 16 /* workspaces come in 64-byte lines */

hlv_status operand_create(hlv_context *ctx, hla_dtype dtype, const int64_t shape[4], operand *made) {
    hlv_status status = hlv_array_create(ctx, 4, shape, &made->array);
    if (status == HLV_OK) made->view = hla_tensor_bthd(made->array.data, dtype, shape[0], shape[1], shape[2], shape[3]);
    return status;
}

void operand_free(hlv_context *ctx, operand *made) {
    hlv_array_free(ctx, &made->array);
}

static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void operand_from_floats(operand *to, const float *floats) {
    if (to->view.dtype == HLA_F32) {
        memcpy(to->array.data, floats, (size_t)to->array.count * sizeof *floats);
        return;
    }
    for (int64_t i = 0; i < to->array.count; i++) {
        uint16_t half = to_bf16(floats[i]);
        memcpy((char *)to->array.data + 2 * i, &half, sizeof half);
    }
}

void operand_to_floats(float *floats, const operand *from) {
    if (from->view.dtype == HLA_F32) {
        memcpy(floats, from->array.data, (size_t)from->array.count * sizeof *floats);
        return;
    }
    for (int64_t i = 0; i < from->array.count; i++) {
        uint16_t half;
        memcpy(&half, (const char *)from->array.data + 2 * i, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&floats[i], &bits, sizeof bits);
    }
}

hlv_status fail_operator(cli_session *session, const hla_context *hla, hla_status status) {
    session->sentence = hla_context_error(hla);
    static const hlv_status table[] = {[HLA_OK] = HLV_OK,
                                       [HLA_ERROR_ARGUMENT] = HLV_ERROR_ARGUMENT,
                                       [HLA_ERROR_MEMORY] = HLV_ERROR_MEMORY,
                                       [HLA_ERROR_UNSUPPORTED] = HLV_ERROR_UNSUPPORTED,
                                       [HLA_ERROR_WORKSPACE] = HLV_ERROR_MEMORY,
                                       [HLA_ERROR_NOT_FINITE] = HLV_ERROR_FORMAT};
    return table[status];
}

static hlv_status create_workspace(hlv_context *ctx, size_t bytes, hlv_array *workspace) {
    int64_t floats = (int64_t)(bytes / sizeof(float)) + FLOATS_A_LINE;
    return hlv_array_create(ctx, 1, &floats, workspace);
}

/* At least once, so that there is a result. */
static bool keep_going(int done, int repeat) {
    return done == 0 || (done < repeat && !session_interrupted());
}

hlv_status run_hadamard(cli_session *session, hla_context *hla, const hla_hadamard_problem *problem, const operand *out,
                        const operand *q_features, const operand *k_features, const operand *v, int repeat,
                        attention_run *run) {
    hla_hadamard_plan *plan = NULL;
    hlv_array workspace = {0};
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS];
    for (int p = 0; p < problem->factors; p++) {
        q[p] = q_features[p].view;
        k[p] = k_features[p].view;
    }
    hla_status status = hla_hadamard_plan_create(hla, problem, &plan);
    if (status != HLA_OK) return fail_operator(session, hla, status);
    size_t bytes = hla_hadamard_plan_workspace(plan);
    hlv_status made = create_workspace(session->ctx, bytes, &workspace);
    run->seconds = INFINITY;
    for (int i = 0; made == HLV_OK && status == HLA_OK && keep_going(i, repeat); i++) {
        double start = seconds_now();
        const hla_hadamard_inputs inputs = {.q_features = q, .k_features = k, .v = &v->view};
        status = hla_hadamard_forward(plan, &out->view, NULL, &inputs, workspace.data, bytes);
        run->seconds = fmin(run->seconds, seconds_now() - start);
    }
    run->form = hla_hadamard_plan_form(plan);
    snprintf(run->kernel, sizeof run->kernel, "%s", hla_hadamard_plan_kernel(plan));
    snprintf(run->explain, sizeof run->explain, "%s", hla_hadamard_plan_explain(plan));
    hlv_array_free(session->ctx, &workspace);
    hla_hadamard_plan_free(plan);
    return status != HLA_OK ? fail_operator(session, hla, status) : made;
}

hlv_status run_softmax(cli_session *session, hla_context *hla, const hla_softmax_problem *problem, const operand *out,
                       const operand *q, const operand *k, const operand *v, int repeat, attention_run *run) {
    hla_softmax_plan *plan = NULL;
    hlv_array workspace = {0};
    hla_status status = hla_softmax_plan_create(hla, problem, &plan);
    if (status != HLA_OK) return fail_operator(session, hla, status);
    size_t bytes = hla_softmax_plan_workspace(plan);
    hlv_status made = create_workspace(session->ctx, bytes, &workspace);
    run->seconds = INFINITY;
    for (int i = 0; made == HLV_OK && status == HLA_OK && keep_going(i, repeat); i++) {
        double start = seconds_now();
        status = hla_softmax_forward(plan, &out->view, &q->view, &k->view, &v->view, NULL, NULL, workspace.data, bytes);
        run->seconds = fmin(run->seconds, seconds_now() - start);
    }
    run->form = HLA_FORM_QUADRATIC;
    snprintf(run->kernel, sizeof run->kernel, "%s", hla_softmax_plan_kernel(plan));
    snprintf(run->explain, sizeof run->explain, "softmax attention in tiles, quadratic in the tokens");
    hlv_array_free(session->ctx, &workspace);
    hla_softmax_plan_free(plan);
    return status != HLA_OK ? fail_operator(session, hla, status) : made;
}

double relative_error(const float *a, const float *b, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return sqrt(difference) / fmax(sqrt(norm), 1e-300);
}
