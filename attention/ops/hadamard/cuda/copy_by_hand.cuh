/* attention/ops/hadamard/cuda/copy_by_hand.cuh - rows of a sequence's end to shared memory, as the copy engine would
 * put them there: it fills rows beyond a tensor's end with zeros, but not those beyond a sequence's.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_COPY_BY_HAND_CUH
#define HLA_OPS_HADAMARD_CUDA_COPY_BY_HAND_CUH

#include "attention/cuda/cuda.h"
#include "attention/ops/hadamard/cuda/ptx.cuh"

/* Rows in a tensor of 16-bit numbers, of which `valid` count; none if negative. */
struct tensor_rows {
    int b, first, head, valid;
};

__device__ __forceinline__ const char *row_address(const hla_cuda_view &view, int64_t b, int64_t t, int64_t h) {
    return (const char *)view.data + 2 * (b * view.stride[0] + t * view.stride[1] + h * view.stride[2]);
}

/* row_bytes of 64 rows, from `column` on, to a swizzled tile; rows that do not count become zero. By one warp, which
 * makes them visible to the tensor cores itself. */
__device__ __forceinline__ void copy_by_hand(uint32_t to, const hla_cuda_view &view, const tensor_rows &rows,
                                             int column, int row_bytes, int lane) {
    int pieces = row_bytes / 16;
    for (int i = lane; i < 64 * pieces; i += 32) {
        int t = i / pieces, piece = i % pieces;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (t < rows.valid)
            value = *(const uint4 *)(row_address(view, rows.b, rows.first + t, rows.head) + 2 * (column + 8 * piece));
        ptx::store_shared(to + ptx::swizzled(row_bytes, t, piece), value);
    }
}

#endif
