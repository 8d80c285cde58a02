/* attention/ops/feature_map/cuda/planes.cuh - float32 numbers as sums of bfloat16 ones, in shared memory, for products
 * on tensor cores that are as exact as float32's.
 *
 * Three parts of 8 bits hold a float32's 24. Of the nine products of parts those below 2^-24 are left out; the others
 * are summed from the small ones up for 16 terms at a time, and added to the sum in float32 outside of the tensor
 * cores, which would not round but cut.
 *
 * A plane is a matrix of bfloat16 in rows of 16-byte chunks, which are permuted within a row so that ldmatrix reads
 * eight rows without bank conflicts.
 */
#ifndef HLA_OPS_FEATURE_MAP_CUDA_PLANES_CUH
#define HLA_OPS_FEATURE_MAP_CUDA_PLANES_CUH

#include "attention/ops/feature_map/cuda/fragments.cuh"

namespace {

constexpr int PARTS = 3; /* of a float32 */

/* A pair of numbers as PLANES pairs of parts, the largest first. */
template <int PLANES> __device__ __forceinline__ void split(uint32_t (&parts)[PLANES], float a, float b) {
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
        parts[p] = bf16::pack(a, b);
        float2 rounded = bf16::unpack(parts[p]);
        a -= rounded.x, b -= rounded.y;
    }
}

/* Where chunk `chunk` of row `row` lies, in chunks, in rows of CHUNKS (a power of two from 2) chunks. */
template <int CHUNKS> __device__ __forceinline__ int chunk_place(int row, int chunk) {
    constexpr int TURNS = CHUNKS < 8 ? CHUNKS : 8, SHARE = 8 / TURNS; /* rows in 128 bytes */
    return row * CHUNKS + (chunk ^ (row / SHARE & (TURNS - 1)));
}

/* Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8. Lane 4g + q receives of each the numbers
 * 2q and 2q + 1 of row g, or with TRANSPOSED of column g. */
template <bool TRANSPOSED> __device__ __forceinline__ uint4 load_matrices(const uint4 *row) {
    uint4 m;
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(m.x), "=r"(m.y), "=r"(m.z), "=r"(m.w)
                     : "r"(address)
                     : "memory");
    }
    return m;
}

/* Rows first ... first + 7 of a plane, chunks chunk ... chunk + 3. */
template <int CHUNKS> __device__ __forceinline__ uint4 load_row_chunks(const uint4 *plane, int first, int chunk) {
    const int lane = (int)threadIdx.x % 32;
    return load_matrices<false>(plane + chunk_place<CHUNKS>(first + lane % 8, chunk + lane / 8));
}

/* Transposed: rows first ... first + 15, chunks chunk and chunk + 1. The four matrices are, with ROWS_FIRST, both
 * halves of the rows of the first chunk, then of the second; else both chunks of the first rows, then of the second. */
template <int CHUNKS, bool ROWS_FIRST>
__device__ __forceinline__ uint4 load_columns(const uint4 *plane, int first, int chunk) {
    const int lane = (int)threadIdx.x % 32, low = lane / 8 % 2, high = lane / 16;
    const int row = first + lane % 8 + 8 * (ROWS_FIRST ? low : high);
    return load_matrices<true>(plane + chunk_place<CHUNKS>(row, chunk + (ROWS_FIRST ? high : low)));
}

/* sum += a b for 16 terms, a of A_PLANES parts, b of PARTS, from the small products up. */
template <int A_PLANES>
__device__ __forceinline__ void add_product(float (&sum)[4], const uint4 (&a)[A_PLANES], const uint2 (&b)[PARTS]) {
    float part[4] = {};
#pragma unroll
    for (int total = PARTS - 1; total >= 0; total--) {
#pragma unroll
        for (int p = 0; p < A_PLANES && p <= total; p++)
            bf16::mma(part, a[p].x, a[p].y, a[p].z, a[p].w, b[total - p].x, b[total - p].y);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum[i] += part[i];
}

/* The same with a of PARTS and b of B_PLANES parts. */
template <int B_PLANES>
__device__ __forceinline__ void add_product(float (&sum)[4], const uint4 (&a)[PARTS], const uint2 *b) {
    float part[4] = {};
#pragma unroll
    for (int total = PARTS - 1; total >= 0; total--) {
#pragma unroll
        for (int p = 0; p < B_PLANES && p <= total; p++)
            bf16::mma(part, a[total - p].x, a[total - p].y, a[total - p].z, a[total - p].w, b[p].x, b[p].y);
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum[i] += part[i];
}

} // namespace

#endif
