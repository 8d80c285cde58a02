/* attention/ops/feature_map/cuda/elements.cuh - activations with their derivatives, and elements of any type, for the
 * kernels of the feature maps.
 */
#ifndef HLA_OPS_FEATURE_MAP_CUDA_ELEMENTS_CUH
#define HLA_OPS_FEATURE_MAP_CUDA_ELEMENTS_CUH

#include "attention/cuda/elements.cuh"
#include "attention/ops/feature_map/cuda/feature_map.h"

namespace {

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
