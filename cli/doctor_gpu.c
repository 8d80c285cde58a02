/* cli/doctor_gpu.c - the GPUs of this machine, and one small problem on each. */
#include "cli/doctor.h"
#include "hla/device.h"

#include <string.h>

/* A context that computes on GPU number `ordinal`. */
static hla_status open_gpu(gpu_info *gpu, int ordinal) {
    *gpu = (gpu_info){0};
    hla_status status = hla_context_create(&gpu->context, NULL);
    if (status == HLA_OK) status = hla_context_use_cuda(gpu->context, ordinal);
    if (status == HLA_OK) status = hla_device_stream_create(gpu->context, &gpu->stream);
    if (status == HLA_OK) status = hla_context_set_stream(gpu->context, gpu->stream);
    if (status == HLA_OK) status = hla_device_memory(gpu->context, NULL, &gpu->memory);
    snprintf(gpu->name, sizeof gpu->name, "%s", hla_context_device_name(gpu->context));
    return status;
}

static void close_gpu(gpu_info *gpu) {
    hla_device_stream_free(gpu->context, gpu->stream);
    hla_context_free(gpu->context);
}

int open_gpus(gpu_info gpus[MAX_GPUS], char *why) {
    int count = 0;
    while (count < MAX_GPUS && open_gpu(&gpus[count], count) == HLA_OK)
        count++;
    if (count == MAX_GPUS) return count;
    snprintf(why, 320, "%s", hla_context_error(gpus[count].context));
    close_gpu(&gpus[count]);
    return count;
}

void close_gpus(gpu_info *gpus, int count) {
    for (int i = 0; i < count; i++)
        close_gpu(&gpus[i]);
}

static size_t bytes_of(const operand *array) {
    return (size_t)array->array.count * sizeof(float);
}

/* Copies of the problem's arrays, the result's filled with NaN: q, k, v, out. */
enum { ARRAYS = 6 };

static hla_status upload(const gpu_info *gpu, const small_problem *small, hla_tensor views[ARRAYS]) {
    const operand *const arrays[ARRAYS] = {&small->q[0], &small->q[1], &small->k[0],
                                           &small->k[1], &small->v,    &small->out};
    hla_status status = HLA_OK;
    for (int i = 0; i < ARRAYS; i++) {
        views[i] = arrays[i]->view;
        views[i].data = NULL;
        if (status == HLA_OK) status = hla_device_allocate(gpu->context, bytes_of(arrays[i]), &views[i].data);
        if (status == HLA_OK)
            status = hla_device_copy(gpu->context, views[i].data, arrays[i]->view.data, bytes_of(arrays[i]));
    }
    if (status == HLA_OK)
        status = hla_device_queue_fill(gpu->context, views[ARRAYS - 1].data, 0xff, bytes_of(&small->out));
    return status;
}

hla_status compute_on_gpu(const gpu_info *gpu, small_problem *small) {
    hla_tensor views[ARRAYS];
    hla_hadamard_plan *plan = NULL;
    void *workspace = NULL;
    hla_status status = upload(gpu, small, views);
    if (status == HLA_OK) status = hla_hadamard_plan_create(gpu->context, &small->problem, &plan);
    size_t size = hla_hadamard_plan_workspace(plan);
    if (status == HLA_OK) status = hla_device_allocate(gpu->context, size + 1, &workspace);
    if (status == HLA_OK) {
        const hla_hadamard_inputs inputs = {.q_features = &views[0], .k_features = &views[2], .v = &views[4]};
        status = hla_hadamard_forward(plan, &views[5], NULL, &inputs, workspace, size);
    }
    if (status == HLA_OK)
        status = hla_device_copy(gpu->context, small->out.view.data, views[5].data, bytes_of(&small->out));
    hla_device_free(gpu->context, workspace);
    hla_hadamard_plan_free(plan);
    for (int i = 0; i < ARRAYS; i++)
        hla_device_free(gpu->context, views[i].data);
    return status;
}
