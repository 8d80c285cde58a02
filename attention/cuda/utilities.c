/* Memory, streams and events for include/hla/device.h. */
#include "attention/cuda/backend.h"
#include "attention/cuda/cuda.h"
#include "attention/cuda/tables.h"

#include <cuda_runtime_api.h>

static hla_status queue_copy(hla_context *context, void *to, const void *from, size_t bytes) {
    cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, context->stream);
    return hla_cuda_check(context, (int)error, "cannot copy on the GPU");
}

static hla_status queue_fill(hla_context *context, void *memory, int value, size_t bytes) {
    return hla_cuda_check(context, (int)cudaMemsetAsync(memory, value, bytes, context->stream),
                          "cannot fill memory of the GPU");
}

static hla_status memory(hla_context *context, size_t *available, size_t *total) {
    hla_status status = context->cuda->select(context);
    if (status != HLA_OK) return status;
    return hla_cuda_check(context, (int)cudaMemGetInfo(available, total), "cannot ask the GPU for its memory");
}

static hla_status create_stream(hla_context *context, void **stream) {
    cudaStream_t made = NULL;
    hla_status status = context->cuda->select(context);
    if (status == HLA_OK)
        status = hla_cuda_check(context, (int)cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking),
                                "cannot make a stream");
    *stream = made;
    return status;
}

static void free_stream(hla_context *context, void *stream) {
    (void)context;
    (void)cudaStreamDestroy(stream);
}

static hla_status synchronise(hla_context *context) {
    return hla_cuda_check(context, (int)cudaStreamSynchronize(context->stream), "work of the GPU failed");
}

static hla_status create_event(hla_context *context, void **event) {
    cudaEvent_t made = NULL;
    hla_status status = context->cuda->select(context);
    if (status == HLA_OK) status = hla_cuda_check(context, (int)cudaEventCreate(&made), "cannot make an event");
    *event = made;
    return status;
}

static void free_event(hla_context *context, void *event) {
    (void)context;
    (void)cudaEventDestroy(event);
}

static hla_status record_event(hla_context *context, void *event) {
    return hla_cuda_check(context, (int)cudaEventRecord(event, context->stream), "cannot record an event");
}

static hla_status event_seconds(hla_context *context, void *start, void *end, double *seconds) {
    float milliseconds = 0;
    cudaError_t error = cudaEventSynchronize(end);
    if (error == cudaSuccess) error = cudaEventElapsedTime(&milliseconds, start, end);
    *seconds = (double)milliseconds * 1e-3;
    return hla_cuda_check(context, (int)error, "work of the GPU failed");
}

const hla_cuda_utilities hla_cuda_utilities_table = {
    .queue_copy = queue_copy,
    .queue_fill = queue_fill,
    .memory = memory,
    .create_stream = create_stream,
    .free_stream = free_stream,
    .synchronise = synchronise,
    .create_event = create_event,
    .free_event = free_event,
    .record_event = record_event,
    .event_seconds = event_seconds,
};
