/* Arrays on a GPU, and calls on them. */
#include "tests/attention/cuda/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MARGIN = 512, ALIGNMENT = 256 };

static void must(const device *gpu, hla_status status) {
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu->context));
}

bool device_open(device *gpu, size_t size) {
    *gpu = (device){.size = size};
    if (hla_context_create(&gpu->context, NULL) != HLA_OK) abort();
    if (hla_context_use_cuda(gpu->context, 0) != HLA_OK) {
        printf("skipped: no device: %s\n", hla_context_error(gpu->context));
        hla_context_free(gpu->context);
        return false;
    }
    void *memory = NULL;
    if (hla_device_stream_create(gpu->context, &gpu->stream) != HLA_OK ||
        hla_context_set_stream(gpu->context, gpu->stream) != HLA_OK ||
        hla_device_allocate(gpu->context, size, &memory) != HLA_OK) {
        fprintf(stderr, "%s\n", hla_context_error(gpu->context));
        abort();
    }
    gpu->memory = memory;
    gpu->used = size; /* all of it is to be poisoned */
    device_reset(gpu);
    return true;
}

void device_close(device *gpu) {
    hla_device_free(gpu->context, gpu->memory);
    hla_device_stream_free(gpu->context, gpu->stream);
    hla_context_free(gpu->context);
}

void device_reset(device *gpu) {
    must(gpu, hla_device_queue_fill(gpu->context, gpu->memory, 0xff, gpu->used));
    gpu->used = 0;
}

static size_t round_up(size_t size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void *device_take(device *gpu, size_t bytes) {
    char *piece = gpu->memory + gpu->used + MARGIN;
    gpu->used += MARGIN + round_up(bytes) + MARGIN;
    if (gpu->used > gpu->size) fail_msg("the test needs more than its %zu bytes of device memory", gpu->size);
    return piece;
}

static bool all_ones(device *gpu, const char *place, size_t bytes) {
    unsigned char copy[2 * MARGIN];
    must(gpu, hla_device_copy(gpu->context, copy, place, bytes));
    for (size_t i = 0; i < bytes; i++) {
        if (copy[i] != 0xff) return false;
    }
    return true;
}

bool device_margins_untouched(device *gpu, const void *piece, size_t bytes) {
    const char *first = piece;
    return all_ones(gpu, first - MARGIN, MARGIN) && all_ones(gpu, first + bytes, MARGIN + round_up(bytes) - bytes);
}

hla_tensor device_upload(device *gpu, const guarded *array) {
    hla_tensor view = array->view;
    view.data = NULL;
    if (!array->pages) return view;
    view.data = device_take(gpu, array->span);
    must(gpu, hla_device_copy(gpu->context, view.data, array->view.data, array->span));
    return view;
}

void device_download(device *gpu, const guarded *array, const hla_tensor *view, const char *name) {
    if (!array->pages) return;
    must(gpu, hla_device_copy(gpu->context, array->view.data, view->data, array->span));
    if (!device_margins_untouched(gpu, view->data, array->span)) fail_msg("wrote around %s", name);
}

void device_upload_all(device *gpu, device_data *to, const hadamard_data *data) {
    *to = (device_data){.v = device_upload(gpu, &data->v),
                        .initial_state = device_upload(gpu, &data->initial_state),
                        .d_out = device_upload(gpu, &data->d_out),
                        .d_final_state = device_upload(gpu, &data->d_final_state)};
    for (int p = 0; p < data->problem.factors; p++) {
        to->q[p] = device_upload(gpu, &data->q[p]);
        to->k[p] = device_upload(gpu, &data->k[p]);
    }
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        to->output[i] = data->output[i].view;
        to->output[i].data = data->output[i].pages ? device_take(gpu, data->output[i].span) : NULL;
    }
    to->inputs = (hla_hadamard_inputs){.q_features = to->q,
                                       .k_features = to->k,
                                       .v = &to->v,
                                       .key_lengths = data->key_lengths,
                                       .query_starts = data->query_starts,
                                       .key_starts = data->key_starts,
                                       .initial_state = to->initial_state.data};
    to->gradients =
        (hla_hadamard_gradients){to->output + DQ, to->output + DK, to->output + DV, to->output[D_INITIAL_STATE].data};
}

hla_status device_queue(const device_data *arrays, const hla_hadamard_plan *plan, bool backward, void *workspace,
                        size_t size) {
    if (backward)
        return hla_hadamard_backward(plan, &arrays->gradients, &arrays->d_out, arrays->d_final_state.data,
                                     &arrays->inputs, workspace, size);
    return hla_hadamard_forward(plan, &arrays->output[OUT], arrays->output[FINAL_STATE].data, &arrays->inputs,
                                workspace, size);
}

static hla_status run_plan(device *gpu, hadamard_data *data, const hla_hadamard_plan *plan, bool backward) {
    device_data arrays;
    device_reset(gpu);
    device_upload_all(gpu, &arrays, data);
    size_t size = backward ? hla_hadamard_plan_backward_workspace(plan) : hla_hadamard_plan_workspace(plan);
    void *workspace = device_take(gpu, size);
    hla_status status = device_queue(&arrays, plan, backward, workspace, size);
    if (status == HLA_OK) status = hla_device_synchronise(gpu->context);
    if (status != HLA_OK) return status;
    for (int i = backward ? DV : OUT; i < (backward ? HADAMARD_OUTPUTS : DV); i++) {
        char name[32];
        hadamard_output_name(name, (hadamard_output)i);
        device_download(gpu, &data->output[i], &arrays.output[i], name);
    }
    if (!device_margins_untouched(gpu, workspace, size)) fail_msg("wrote around the workspace");
    return HLA_OK;
}

hla_status device_run(device *gpu, hadamard_data *data, const char *kernel, bool backward) {
    data->problem.kernel = kernel;
    hla_hadamard_plan *plan = NULL;
    hla_status status = hla_hadamard_plan_create(gpu->context, &data->problem, &plan);
    if (status != HLA_OK) return status;
    status = run_plan(gpu, data, plan, backward);
    hla_hadamard_plan_free(plan);
    /* a kernel that cannot take a problem says so when it is planned, never when it runs */
    if (status == HLA_ERROR_UNSUPPORTED) fail_msg("%s: %s", kernel, hla_context_error(gpu->context));
    return status;
}

bool device_takes(const hadamard_data *data, const hla_kernel_info *info) {
    return info->runs_here && (info->form == HLA_FORM_STATE || !data->problem.stateful);
}
