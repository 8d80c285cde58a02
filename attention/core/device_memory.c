/* Memory, order and time of a context's GPU, for programs that do not call CUDA themselves. */
#include "attention/cuda/backend.h"
#include "hla/device.h"

/* That the context computes on a GPU, and an argument is not NULL. */
static hla_status check(hla_context *context, const char *name, const void *argument) {
    if (!context) return HLA_ERROR_ARGUMENT;
    if (!context->cuda) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "the context computes on the CPU: hla_context_use_cuda comes first");
    }
    return argument ? HLA_OK : hla_fail(context, HLA_ERROR_ARGUMENT, "%s is NULL", name);
}

/* In addition, that a stream is set. */
static hla_status check_queued(hla_context *context, const char *name, const void *argument) {
    hla_status status = check(context, name, argument);
    return status == HLA_OK ? hla_check_stream(context) : status;
}

hla_status hla_device_allocate(hla_context *context, size_t bytes, void **memory) {
    if (memory) *memory = NULL;
    hla_status status = check(context, "memory", memory);
    if (status != HLA_OK) return status;
    if (bytes == 0) return hla_fail(context, HLA_ERROR_ARGUMENT, "bytes is 0, wanted at least 1");
    return context->cuda->allocate(context, bytes, memory);
}

void hla_device_free(hla_context *context, void *memory) {
    if (context && context->cuda && memory) context->cuda->release(context, memory);
}

hla_status hla_device_copy(hla_context *context, void *to, const void *from, size_t bytes) {
    hla_status status = check(context, "to", to);
    if (status == HLA_OK) status = check(context, "from", from);
    return status == HLA_OK ? context->cuda->copy(context, to, from, bytes) : status;
}

hla_status hla_device_queue_copy(hla_context *context, void *to, const void *from, size_t bytes) {
    hla_status status = check_queued(context, "to", to);
    if (status == HLA_OK) status = check_queued(context, "from", from);
    if (status == HLA_OK) status = hla_check_address(context, "to", to);
    if (status == HLA_OK) status = hla_check_address(context, "from", from);
    return status == HLA_OK ? context->cuda->utilities->queue_copy(context, to, from, bytes) : status;
}

hla_status hla_device_queue_fill(hla_context *context, void *memory, int value, size_t bytes) {
    hla_status status = check_queued(context, "memory", memory);
    if (status == HLA_OK && (value < 0 || value > 255))
        status = hla_fail(context, HLA_ERROR_ARGUMENT, "value is %d, wanted 0 to 255", value);
    if (status == HLA_OK) status = hla_check_address(context, "memory", memory);
    return status == HLA_OK ? context->cuda->utilities->queue_fill(context, memory, value, bytes) : status;
}

hla_status hla_device_memory(hla_context *context, size_t *available, size_t *total) {
    size_t unused[2];
    hla_status status = check(context, "context", context);
    if (status != HLA_OK) return status;
    return context->cuda->utilities->memory(context, available ? available : &unused[0], total ? total : &unused[1]);
}

hla_status hla_device_stream_create(hla_context *context, void **stream) {
    if (stream) *stream = NULL;
    hla_status status = check(context, "stream", stream);
    return status == HLA_OK ? context->cuda->utilities->create_stream(context, stream) : status;
}

void hla_device_stream_free(hla_context *context, void *stream) {
    if (context && context->cuda && stream) context->cuda->utilities->free_stream(context, stream);
}

hla_status hla_device_synchronise(hla_context *context) {
    hla_status status = check_queued(context, "context", context);
    return status == HLA_OK ? context->cuda->utilities->synchronise(context) : status;
}

hla_status hla_device_event_create(hla_context *context, void **event) {
    if (event) *event = NULL;
    hla_status status = check(context, "event", event);
    return status == HLA_OK ? context->cuda->utilities->create_event(context, event) : status;
}

void hla_device_event_free(hla_context *context, void *event) {
    if (context && context->cuda && event) context->cuda->utilities->free_event(context, event);
}

hla_status hla_device_event_record(hla_context *context, void *event) {
    hla_status status = check_queued(context, "event", event);
    return status == HLA_OK ? context->cuda->utilities->record_event(context, event) : status;
}

hla_status hla_device_event_seconds(hla_context *context, void *start, void *end, double *seconds) {
    hla_status status = check(context, "start", start);
    if (status == HLA_OK) status = check(context, "end", end);
    if (status == HLA_OK) status = check(context, "seconds", seconds);
    return status == HLA_OK ? context->cuda->utilities->event_seconds(context, start, end, seconds) : status;
}
