/* attention/cuda/cuda.h - helpers of the plug-in's host code and of its kernels' launchers: errors of the runtime, and
 * arguments that kernels take by value. C and CUDA C++.
 */
#ifndef HLA_CUDA_CUDA_H
#define HLA_CUDA_CUDA_H

#include "hla/core.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A view as kernels see it. */
typedef struct hla_cuda_view {
    void *data;
    int64_t stride[4]; /* in elements: b, t, h, x */
} hla_cuda_view;

static inline hla_cuda_view hla_cuda_view_of(const hla_tensor *tensor) {
    hla_cuda_view view = {NULL, {0, 0, 0, 0}};
    if (!tensor) return view;
    view.data = tensor->data;
    for (int axis = 0; axis < 4; axis++)
        view.stride[axis] = tensor->stride[axis];
    return view;
}

/* HLA_OK for cudaSuccess (error 0), else records "action: the runtime's sentence" in the context. */
hla_status hla_cuda_check(hla_context *context, int error, const char *action);

/* Copies count numbers of host memory to device memory through kernel arguments: no pageable copy, so that the host
 * array may change at once and a graph that captures the call keeps the numbers. Returns a cudaError_t. */
int hla_cuda_upload(int64_t *to, const int64_t *from, int64_t count, void *stream);

#ifdef __cplusplus
}
#endif
#endif
