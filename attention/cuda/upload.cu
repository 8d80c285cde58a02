/* Numbers from host to device by value. */
#include "attention/cuda/cuda.h"

#include <string.h>

namespace {

constexpr int BATCH = 480; /* kernels take 4 KB of arguments */

struct numbers {
    int64_t value[BATCH];
};

__global__ void store(int64_t *to, const __grid_constant__ numbers from, int count) {
    int i = (int)threadIdx.x;
    if (i < count) to[i] = from.value[i];
}

} // namespace

extern "C" int hla_cuda_upload(int64_t *to, const int64_t *from, int64_t count, void *stream) {
    for (int64_t first = 0; first < count; first += BATCH) {
        int batch = (int)(count - first < BATCH ? count - first : BATCH);
        numbers copy = {};
        memcpy(copy.value, from + first, (size_t)batch * sizeof *from);
        store<<<1, BATCH, 0, (cudaStream_t)stream>>>(to + first, copy, batch);
    }
    return (int)cudaGetLastError();
}

extern "C" int hla_cuda_kernels_run(int ordinal) {
    cudaError_t error = cudaSetDevice(ordinal);
    cudaFuncAttributes attributes;
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, store);
    if (error != cudaSuccess) (void)cudaGetLastError();
    return (int)error;
}
