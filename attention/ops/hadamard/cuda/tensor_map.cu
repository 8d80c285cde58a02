#include "attention/ops/hadamard/cuda/tensor_map.h"

#include "attention/ops/hadamard/cuda/hopper.h"

#include <cuda_runtime.h>

namespace {

typedef CUresult encode_function(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver is not linked, but asked through the runtime. */
encode_function *find_encode() {
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_function *)found : nullptr;
}

CUtensorMapSwizzle swizzle_of(int bytes) {
    return bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
           : bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
           : bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                         : CU_TENSOR_MAP_SWIZZLE_NONE;
}

int encode(CUtensorMap *map, const void *data, int axes, const cuuint64_t *extent, const cuuint64_t *stride,
           const cuuint32_t *box, bool half) {
    static encode_function *const encode_tiled = find_encode(); /* the driver's, the same for all */
    if (!encode_tiled) return (int)cudaErrorNotSupported;
    const cuuint32_t every[4] = {1, 1, 1, 1};
    CUresult result = encode_tiled(map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                                   (cuuint32_t)axes, const_cast<void *>(data), extent, stride, box, every,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle_of(2 * (int)box[0]),
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? 0 : (int)cudaErrorInvalidValue;
}

} // namespace

int hla_tensor_map(CUtensorMap *map, const hla_cuda_view *view, const hla_tensor_map_extent *extent, bool half,
                   int box_x, int box_t) {
    const cuuint64_t extents[4] = {(cuuint64_t)extent->x, (cuuint64_t)extent->h, (cuuint64_t)extent->t,
                                   (cuuint64_t)extent->b};
    const int64_t strides[3] = {view->stride[2], view->stride[1], view->stride[0]};
    cuuint64_t bytes[3];
    for (int i = 0; i < 3; i++) /* of an axis of length 1 it does not matter, but must be valid */
        bytes[i] = extents[i + 1] > 1 ? (cuuint64_t)strides[i] * 2 : (cuuint64_t)(extent->x * 2 + 15) / 16 * 16;
    const cuuint32_t box[4] = {(cuuint32_t)box_x, 1, (cuuint32_t)box_t, 1};
    return encode(map, view->data, 4, extents, bytes, box, half);
}

int hla_rows_map(CUtensorMap *map, const void *data, int64_t width, int64_t rows, bool half, int box_x, int box_rows) {
    const cuuint64_t extents[2] = {(cuuint64_t)width, (cuuint64_t)rows};
    const cuuint64_t bytes[1] = {(cuuint64_t)width * 2};
    const cuuint32_t box[2] = {(cuuint32_t)box_x, (cuuint32_t)box_rows};
    return encode(map, data, 2, extents, bytes, box, half);
}

extern "C" bool hla_hopper_addressable(const hla_cuda_view *view, const int64_t shape[4]) {
    if ((uintptr_t)view->data % 16 != 0 || view->stride[3] != 1) return false;
    for (int axis = 0; axis < 3; axis++) {
        if (shape[axis] <= 1) continue;
        if (view->stride[axis] <= 0 || view->stride[axis] % 8 != 0 || view->stride[axis] >= (int64_t)1 << 38)
            return false;
    }
    return true;
}
