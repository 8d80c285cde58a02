/* attention/ops/feature_map/cuda/elements.cuh - elements of any type, and activations with their derivatives, for the
 * kernels of the feature maps.
 */
#ifndef HLA_OPS_FEATURE_MAP_CUDA_ELEMENTS_CUH
#define HLA_OPS_FEATURE_MAP_CUDA_ELEMENTS_CUH

#include "attention/ops/feature_map/cuda/feature_map.h"

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

/* max(u, 0), and NaN stays */
__device__ __forceinline__ float positive(float u) {
    return u < 0 ? 0 : u;
}

/* act(u); softmax is exp(u - shift), to be divided by the row's sum. */
__device__ __forceinline__ float activate(int activation, float u, float floor, float shift) {
    switch (activation) {
    case HLA_ACTIVATION_RELU:
        return positive(u) + floor;
    case HLA_ACTIVATION_ELU1:
        return u > 0 ? u + 1 : expf(u);
    case HLA_ACTIVATION_SOFTPLUS:
        return positive(u) + log1pf(expf(-fabsf(u)));
    case HLA_ACTIVATION_SQUARE:
        return u * u;
    case HLA_ACTIVATION_IDENTITY:
        return u;
    default:
        return expf(u - shift);
    }
}

/* act'(u) e; for exp and softmax what a constant shift would give. */
__device__ __forceinline__ float differentiate(int activation, float e, float u, float shift) {
    switch (activation) {
    case HLA_ACTIVATION_RELU:
        return u > 0 ? e : 0;
    case HLA_ACTIVATION_ELU1:
        return u > 0 ? e : e * expf(u);
    case HLA_ACTIVATION_SOFTPLUS:
        return e / (1 + expf(-u));
    case HLA_ACTIVATION_SQUARE:
        return 2 * u * e;
    case HLA_ACTIVATION_IDENTITY:
        return e;
    default:
        return e * expf(u - shift);
    }
}

__device__ __forceinline__ bool shifts_by_largest(const hla_cuda_map &map) {
    return map.activation == HLA_ACTIVATION_SOFTMAX || (map.activation == HLA_ACTIVATION_EXP && map.is_query);
}

} // namespace

#endif
