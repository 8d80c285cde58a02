/* attention/cuda/backend.h - what libhla and its plug-in for NVIDIA GPUs, libhla_cuda, agree on.
 *
 * The plug-in is found at run time (attention/core/device.c) and built from the same sources: it works on libhla's own
 * structs, and is refused unless its version is libhla's. Its host code is C like libhla's; CUDA sources hold kernels
 * and the functions that launch them, which take plain structs and return a cudaError_t as int.
 */
#ifndef HLA_CUDA_BACKEND_H
#define HLA_CUDA_BACKEND_H

#include "attention/core/internal.h"

struct hla_hadamard_entry;
struct hla_feature_map_entry;
struct hla_softmax_entry;
struct hla_stream_entry;

typedef struct hla_cuda_backend {
    const char *version; /* HLA_VERSION of the sources it was built from */

    /* Fills context->device for that GPU, and sees that kernels run on it. */
    hla_status (*open)(hla_context *context, int ordinal);

    /* Makes the context's GPU the current one, on which kernels start and memory is allocated. */
    hla_status (*select)(hla_context *context);

    /* That the context's GPU reads and writes at this address, which is not NULL; name: of the argument. */
    hla_status (*check_address)(hla_context *context, const char *name, const void *address);

    /* Memory of the context's GPU, for objects that own some; release takes NULL. Clearing and copying wait until the
     * device has done it. */
    hla_status (*allocate)(hla_context *context, size_t bytes, void **memory);
    void (*release)(hla_context *context, void *memory);
    hla_status (*clear)(hla_context *context, void *memory, size_t bytes);
    hla_status (*copy)(hla_context *context, void *to, const void *from,
                       size_t bytes); /* between host and device too */

    /* What include/hla/device.h offers besides; arguments are not NULL, a stream is set where one is needed. */
    const struct hla_cuda_utilities *utilities;

    /* Kernel tables as in each operator's kernel.h, the last that runs and takes a problem is preferred; each ends with
     * NULL. */
    const struct hla_hadamard_entry *const *hadamard;
    const struct hla_feature_map_entry *const *feature_map;
    const struct hla_softmax_entry *const *softmax;
    const struct hla_stream_entry *stream; /* NULL: all tokens go through plans */
} hla_cuda_backend;

typedef struct hla_cuda_utilities {
    hla_status (*queue_copy)(hla_context *context, void *to, const void *from, size_t bytes);
    hla_status (*queue_fill)(hla_context *context, void *memory, int value, size_t bytes);
    hla_status (*memory)(hla_context *context, size_t *available, size_t *total);
    hla_status (*create_stream)(hla_context *context, void **stream);
    void (*free_stream)(hla_context *context, void *stream);
    hla_status (*synchronise)(hla_context *context);
    hla_status (*create_event)(hla_context *context, void **event);
    void (*free_event)(hla_context *context, void *event);
    hla_status (*record_event)(hla_context *context, void *event);
    hla_status (*event_seconds)(hla_context *context, void *start, void *end, double *seconds);
} hla_cuda_utilities;

/* The one symbol that the plug-in exports. */
#define HLA_CUDA_ENTRY "hla_cuda_backend_get"
typedef const hla_cuda_backend *hla_cuda_backend_getter(void);

#endif
