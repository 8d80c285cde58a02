/* tests/attention/cuda/maps_device.h - arrays of maps_support.h on a GPU, for tests of feature maps there. */
#ifndef HLA_TESTS_CUDA_MAPS_DEVICE_H
#define HLA_TESTS_CUDA_MAPS_DEVICE_H

#include "tests/attention/maps_support.h"

#include <cuda_runtime_api.h>

enum { SKIPPED = 77 }; /* as ctest knows it */

/* A context on the first GPU with a stream of its own, or NULL, having said why. */
static inline hla_context *device_context(void) {
    hla_context *context = context_with(1, false);
    cudaStream_t stream;
    if (hla_context_use_cuda(context, 0) != HLA_OK) {
        printf("skipped: no device: %s\n", hla_context_error(context));
        hla_context_free(context);
        return NULL;
    }
    assert_int_equal(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
    assert_int_equal(hla_context_set_stream(context, stream), HLA_OK);
    return context;
}

static inline void device_context_free(hla_context *context) {
    assert_int_equal(cudaStreamDestroy(context->stream), cudaSuccess);
    hla_context_free(context);
}

static inline void device_wait(const hla_context *context) {
    cudaError_t error = cudaStreamSynchronize(context->stream);
    if (error != cudaSuccess) fail_msg("the GPU: %s", cudaGetErrorString(error));
}

/* Device memory with a copy of host memory; NULL stays NULL. */
static inline void *device_copy(const void *data, size_t bytes) {
    void *memory = NULL;
    if (!data) return NULL;
    assert_int_equal(cudaMalloc(&memory, bytes + 1), cudaSuccess);
    assert_int_equal(cudaMemcpy(memory, data, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    /* which returns before all has arrived; other streams do not wait for it */
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    return memory;
}

static inline void device_free(const void *memory) {
    assert_int_equal(cudaFree((void *)memory), cudaSuccess);
}

/* The same array on the device: its view, whose block starts at view.data as an array's does; data is NULL if a's is.
 */
typedef struct device_array {
    hla_tensor view;
    void *block;
} device_array;

static inline device_array device_array_of(const array *a) {
    device_array made = {a->view, device_copy(a->block, a->bytes)};
    if (made.block) made.view.data = (char *)made.block + ((unsigned char *)a->view.data - a->block);
    return made;
}

/* The device's bytes, gaps included, into the array they were copied from. */
static inline void device_array_fetch(array *a, const device_array *device) {
    assert_int_equal(cudaMemcpy(a->block, device->block, a->bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

#endif
