/* hla/device.h - memory, work in order and time on the GPU that a context computes on, for programs that do not call
 * CUDA themselves. Who does has no need of it.
 *
 *     hla_context_use_cuda(ctx, 0);
 *     hla_device_stream_create(ctx, &stream);
 *     hla_context_set_stream(ctx, stream);
 *     hla_device_allocate(ctx, size, &memory);
 *     hla_device_copy(ctx, memory, data, size);
 *     hla_device_event_create(ctx, &start);
 *     hla_device_event_create(ctx, &end);
 *     hla_device_event_record(ctx, start);
 *     ...
 *     hla_device_event_record(ctx, end);
 *     hla_device_event_seconds(ctx, start, end, &seconds);
 *     hla_device_event_free(ctx, start);
 *     hla_device_event_free(ctx, end);
 *     hla_device_free(ctx, memory);
 *     hla_device_stream_free(ctx, stream);
 *
 * Every function wants a context that computes on a GPU: HLA_ERROR_ARGUMENT if it does not, or if an argument is NULL.
 * Failures of the GPU are HLA_ERROR_UNSUPPORTED with the driver's sentence, among them those of earlier calls that only
 * show once they have run. What is made here belongs to the caller and is freed with the same context, before it.
 */
#ifndef HLA_DEVICE_H
#define HLA_DEVICE_H

#include "hla/core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- memory ---- */

/* *memory: bytes (at least 1) of the GPU's memory, aligned to 256, uninitialised; NULL on an error, HLA_ERROR_MEMORY
 * without enough. Waits for the GPU, as does free. */
HLA_API hla_status hla_device_allocate(hla_context *context, size_t bytes, void **memory);
HLA_API void hla_device_free(hla_context *context, void *memory); /* NULL is fine */

/* Copies between host and device or within one of them, after all work of the GPU, and waits for it. */
HLA_API hla_status hla_device_copy(hla_context *context, void *to, const void *from, size_t bytes);

/* The same within the device, queued on the context's stream. */
HLA_API hla_status hla_device_queue_copy(hla_context *context, void *to, const void *from, size_t bytes);

/* Sets each byte to value, 0 to 255, queued on the context's stream. */
HLA_API hla_status hla_device_queue_fill(hla_context *context, void *memory, int value, size_t bytes);

/* Bytes that are free, and that the GPU has in all; each may be NULL. */
HLA_API hla_status hla_device_memory(hla_context *context, size_t *available, size_t *total);

/* ---- order and time ---- */

/* *stream: a cudaStream_t for hla_context_set_stream, which does not wait for the default stream. */
HLA_API hla_status hla_device_stream_create(hla_context *context, void **stream);
HLA_API void hla_device_stream_free(hla_context *context, void *stream); /* NULL is fine */

/* Waits for all that was queued on the context's stream. */
HLA_API hla_status hla_device_synchronise(hla_context *context);

/* *event: a cudaEvent_t that keeps the time. */
HLA_API hla_status hla_device_event_create(hla_context *context, void **event);
HLA_API void hla_device_event_free(hla_context *context, void *event); /* NULL is fine */

/* The event happens when all that was queued on the context's stream so far has been done. */
HLA_API hla_status hla_device_event_record(hla_context *context, void *event);

/* *seconds between two recorded events, to about half a microsecond; waits for the second. */
HLA_API hla_status hla_device_event_seconds(hla_context *context, void *start, void *end, double *seconds);

#ifdef __cplusplus
}
#endif
#endif
