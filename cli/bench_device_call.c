/* cli/bench_device_call.c - the GPU of `hla bench attention --device cuda`: its contexts, arrays and calls. */
#include "cli/bench_device.h"

#include <stdlib.h>
#include <string.h>

hlv_status device_open(cli_session *session, int threads, bench_device *device) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = threads;
    *device = (bench_device){0};
    if (hla_context_create(&device->gpu, &options) != HLA_OK || hla_context_create(&device->cpu, &options) != HLA_OK) {
        session->sentence = "out of memory";
        return HLV_ERROR_MEMORY;
    }
    hla_status status = hla_context_use_cuda(device->gpu, 0);
    if (status == HLA_OK) status = hla_device_stream_create(device->gpu, &device->stream);
    if (status == HLA_OK) status = hla_context_set_stream(device->gpu, device->stream);
    if (status == HLA_OK) status = hla_device_event_create(device->gpu, &device->start);
    if (status == HLA_OK) status = hla_device_event_create(device->gpu, &device->end);
    return status == HLA_OK ? HLV_OK : fail_operator(session, device->gpu, status);
}

void device_close(bench_device *device) {
    hla_device_event_free(device->gpu, device->start);
    hla_device_event_free(device->gpu, device->end);
    hla_device_stream_free(device->gpu, device->stream);
    hla_context_free(device->gpu);
    hla_context_free(device->cpu);
    *device = (bench_device){0};
}

hlv_status device_time(cli_session *session, bench_device *device, device_work *run, void *user, int64_t calls,
                       double *seconds) {
    hla_status status = hla_device_event_record(device->gpu, device->start);
    for (int64_t i = 0; i < calls && status == HLA_OK; i++)
        status = run(device, user);
    if (status == HLA_OK) status = hla_device_event_record(device->gpu, device->end);
    if (status == HLA_OK) status = hla_device_event_seconds(device->gpu, device->start, device->end, seconds);
    *seconds /= (double)calls;
    return status == HLA_OK ? HLV_OK : fail_operator(session, device->gpu, status);
}

/* ---- arrays ---- */

enum { MOST_OPERANDS = sizeof(bench_data) / sizeof(operand) };

static int list_operands(bench_data *data, operand *list[MOST_OPERANDS]) {
    operand *const wide[] = {&data->v, &data->out, &data->dv, &data->d_out, &data->d_out_of_rows};
    int count = 0;
    for (int function = 0; function < FUNCTION_COUNT; function++)
        for (int side = 0; side < 2; side++)
            for (int p = 0; p < HLA_MAX_FACTORS; p++) {
                list[count++] = &data->inputs[function][side][p];
                list[count++] = &data->gradients[function][side][p];
            }
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        list[count++] = wide[i];
    return count;
}

static size_t view_bytes(const hla_tensor *view) {
    return (size_t)(view->shape[0] * view->shape[1] * view->shape[2] * view->shape[3]) * hla_dtype_size(view->dtype);
}

hlv_status device_data_create(cli_session *session, bench_device *device, const bench_data *host, bench_data *made) {
    operand *list[MOST_OPERANDS];
    hla_status status = HLA_OK;
    *made = *host;
    int count = list_operands(made, list);
    for (int i = 0; i < count; i++)
        list[i]->array.data = NULL; /* these belong to the host's */
    for (int i = 0; i < count; i++) {
        const void *from = list[i]->view.data;
        list[i]->view.data = NULL;
        if (from == NULL || status != HLA_OK) continue;
        size_t bytes = view_bytes(&list[i]->view);
        status = hla_device_allocate(device->gpu, bytes, &list[i]->view.data);
        if (status == HLA_OK) status = hla_device_copy(device->gpu, list[i]->view.data, from, bytes);
    }
    return status == HLA_OK ? HLV_OK : fail_operator(session, device->gpu, status);
}

void device_data_free(bench_device *device, bench_data *made) {
    operand *list[MOST_OPERANDS];
    int count = list_operands(made, list);
    for (int i = 0; i < count; i++)
        hla_device_free(device->gpu, list[i]->view.data);
    *made = (bench_data){0};
}

/* ---- calls ---- */

static hla_status open_hadamard(bench_device *device, const bench_method *method, const bench_case *problem,
                                const char *kernel, device_call *call) {
    hla_hadamard_problem description;
    describe_hadamard(method, problem, &call->views, kernel, &description);
    hla_status status = hla_hadamard_plan_create(device->gpu, &description, &call->hadamard);
    if (status != HLA_OK) return status;
    call->bytes = call->backward ? hla_hadamard_plan_backward_workspace(call->hadamard)
                                 : hla_hadamard_plan_workspace(call->hadamard);
    if (call->backward) call->kept_bytes = hla_hadamard_plan_kept_workspace(call->hadamard);
    snprintf(call->kernel, sizeof call->kernel, "%s", hla_hadamard_plan_kernel(call->hadamard));
    return HLA_OK;
}

static hla_status open_softmax(bench_device *device, const bench_case *problem, const char *kernel, device_call *call) {
    hla_softmax_problem description;
    describe_softmax(problem, &call->views, kernel, &description);
    hla_status status = hla_softmax_plan_create(device->gpu, &description, &call->softmax);
    if (status != HLA_OK) return status;
    call->bytes =
        call->backward ? hla_softmax_plan_backward_workspace(call->softmax) : hla_softmax_plan_workspace(call->softmax);
    snprintf(call->kernel, sizeof call->kernel, "%s", hla_softmax_plan_kernel(call->softmax));
    return HLA_OK;
}

static hla_status run_forward(const device_call *call, void *workspace, size_t bytes) {
    const bench_views *views = &call->views;
    const hla_hadamard_inputs inputs = {.q_features = views->q, .k_features = views->k, .v = &views->v};
    return hla_hadamard_forward(call->hadamard, &views->out, NULL, &inputs, workspace, bytes);
}

static hla_status run_backward(const device_call *call) {
    const bench_views *views = &call->views;
    const hla_hadamard_inputs inputs = {
        .q_features = views->q, .k_features = views->k, .v = &views->v, .forward_workspace = call->kept};
    const hla_hadamard_gradients gradients = {.dq_features = views->dq, .dk_features = views->dk, .dv = &views->dv};
    return hla_hadamard_backward(call->hadamard, &gradients, &views->d_out, NULL, &inputs, call->workspace,
                                 call->bytes);
}

/* Memory of which every byte is one until it is written. */
static hla_status allocate(bench_device *device, size_t bytes, void **memory) {
    hla_status status = hla_device_allocate(device->gpu, bytes + 1, memory);
    return status == HLA_OK ? hla_device_queue_fill(device->gpu, *memory, 0xff, bytes + 1) : status;
}

/* What the backward pass needs of the forward one, and no more. */
static hla_status keep_state(bench_device *device, device_call *call) {
    size_t bytes = hla_hadamard_plan_workspace(call->hadamard);
    void *workspace = NULL;
    hla_status status = allocate(device, bytes, &workspace);
    if (status == HLA_OK) status = allocate(device, call->kept_bytes, &call->kept);
    if (status == HLA_OK) status = run_forward(call, workspace, bytes);
    if (status == HLA_OK) status = hla_device_queue_copy(device->gpu, call->kept, workspace, call->kept_bytes);
    if (status == HLA_OK) status = hla_device_synchronise(device->gpu);
    hla_device_free(device->gpu, workspace);
    return status;
}

hlv_status device_call_open(cli_session *session, bench_device *device, const bench_method *method,
                            const bench_case *problem, const bench_views *views, const char *kernel,
                            device_call *call) {
    *call = (device_call){.backward = problem->backward, .views = *views};
    hla_status status = method->function == FUNCTION_SOFTMAX ? open_softmax(device, problem, kernel, call)
                                                             : open_hadamard(device, method, problem, kernel, call);
    if (status == HLA_OK) status = allocate(device, call->bytes, &call->workspace);
    if (status == HLA_OK && call->backward && call->hadamard != NULL) status = keep_state(device, call);
    if (status == HLA_OK) return HLV_OK;
    device_call_close(device, call);
    return fail_operator(session, device->gpu, status);
}

hla_status device_call_run(bench_device *device, void *user) {
    device_call *call = user;
    const bench_views *views = &call->views;
    (void)device;
    if (call->hadamard != NULL)
        return call->backward ? run_backward(call) : run_forward(call, call->workspace, call->bytes);
    if (!call->backward)
        return hla_softmax_forward(call->softmax, &views->out, &views->q[0], &views->k[0], &views->v, NULL, NULL,
                                   call->workspace, call->bytes);
    return hla_softmax_backward(call->softmax, &views->dq[0], &views->dk[0], &views->dv, &views->d_out, &views->q[0],
                                &views->k[0], &views->v, NULL, NULL, call->workspace, call->bytes);
}

void device_call_close(bench_device *device, device_call *call) {
    hla_device_free(device->gpu, call->workspace);
    hla_device_free(device->gpu, call->kept);
    hla_hadamard_plan_free(call->hadamard);
    hla_softmax_plan_free(call->softmax);
    *call = (device_call){0};
}

/* ---- the gate ---- */

hlv_status device_gate_check(cli_session *session, bench_device *device, device_call *call, const bench_gate *gate,
                             const bench_views *host, const hla_tensor *d_out_of_rows, double *error) {
    const hla_tensor *outputs[MAX_OUTPUTS], *copies[MAX_OUTPUTS];
    hla_tensor d_out = call->views.d_out;
    hla_status status = HLA_OK;
    int of_queries, count = list_outputs(&call->views, call->backward, outputs, &of_queries);
    (void)list_outputs(host, call->backward, copies, &of_queries);
    for (int i = 0; i < count && status == HLA_OK; i++)
        status = hla_device_queue_fill(device->gpu, outputs[i]->data, 0xff, view_bytes(outputs[i]));
    if (call->backward) call->views.d_out = *d_out_of_rows;
    if (status == HLA_OK) status = device_call_run(device, call);
    call->views.d_out = d_out;
    if (status == HLA_OK) status = hla_device_synchronise(device->gpu);
    for (int i = 0; i < count && status == HLA_OK; i++)
        status = hla_device_copy(device->gpu, copies[i]->data, outputs[i]->data, view_bytes(outputs[i]));
    if (status != HLA_OK) return fail_operator(session, device->gpu, status);
    *error = gate_error(gate, host, call->backward);
    return HLV_OK;
}
