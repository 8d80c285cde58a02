/* attention/cuda/elements.cuh - elements of any type, for kernels that take all of them. */
#ifndef HLA_CUDA_ELEMENTS_CUH
#define HLA_CUDA_ELEMENTS_CUH

#include "attention/cuda/cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

__device__ __forceinline__ float load_element(const void *data, int64_t i, int dtype) {
    if (dtype == HLA_F32) return ((const float *)data)[i];
    if (dtype == HLA_BF16) return __bfloat162float(((const __nv_bfloat16 *)data)[i]);
    return __half2float(((const __half *)data)[i]);
}

__device__ __forceinline__ void store_element(void *data, int64_t i, int dtype, float value) {
    if (dtype == HLA_F32) ((float *)data)[i] = value;
    if (dtype == HLA_BF16) ((__nv_bfloat16 *)data)[i] = __float2bfloat16_rn(value);
    if (dtype == HLA_F16) ((__half *)data)[i] = __float2half_rn(value);
}

/* Offset of element [b,t,h,0]. */
__device__ __forceinline__ int64_t row_of(const hla_cuda_view &view, int64_t b, int64_t t, int64_t h) {
    return b * view.stride[0] + t * view.stride[1] + h * view.stride[2];
}

} // namespace

#endif
