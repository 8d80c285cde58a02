/* attention/ops/hadamard/cuda/general_mma.cuh - what the general kernels on tensor cores share: slabs in shared memory
 * and products of them.
 *
 * A block of four warps owns 128 rows of a product, a warp 32: features (build) or tokens (query). Columns are those of
 * y or S, 16 PAIRS at most, and the last one by itself. The summed index comes in slabs of 32 steps through a ring of
 * stages, filled by cp.async. Features lie as they come, [token][all factors], in rows of an odd number of 16-byte
 * chunks, so that eight rows are read without bank conflicts; products of factors are made in registers.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_GENERAL_MMA_CUH
#define HLA_OPS_HADAMARD_CUDA_GENERAL_MMA_CUH

#include "attention/cuda/pairs.cuh"
#include "attention/ops/hadamard/cuda/general.cuh"
#include "attention/ops/hadamard/cuda/ptx.cuh"

namespace {

constexpr int BLOCK_ROWS = HLA_GENERAL_MMA_TILE, WARP_ROWS = 32, SLAB = 32, BLOCK = 128;
static_assert(BLOCK_ROWS == BLOCK / 32 * WARP_ROWS, "each warp has its rows");

template <class type> constexpr uint32_t ONES = type::scaled ? 0x3c003c00u : 0x3f803f80u;

/* ---- where things lie in shared memory, in bytes ---- */

/* Rows of features of one token: factor p begins at chunk first[p]. */
struct feature_rows {
    int first[FACTORS + 1], pitch; /* in chunks of 16 bytes; bytes */
};

/* An odd number of chunks. */
__host__ __device__ constexpr int feature_pitch(int64_t rank_sum) {
    return ((int)rank_sum / 8 | 1) * 16;
}

__device__ __forceinline__ feature_rows feature_rows_of(const hla_general_shape &shape) {
    feature_rows rows;
    rows.first[0] = 0;
#pragma unroll
    for (int p = 0; p < FACTORS; p++)
        rows.first[p + 1] = rows.first[p] + (p < shape.first_factor ? 0 : (int)shape.rank[p] / 8);
    rows.pitch = feature_pitch(8 * rows.first[FACTORS]);
    return rows;
}

/* Rows of y or S: PAIRS x 16 columns, then a chunk of which the first two numbers stand for the last column. */
template <int PAIRS> constexpr int PITCH_OF = (2 * PAIRS + 1) * 16;

/* ---- copies ---- */

/* 16 bytes, or zeros. */
__device__ __forceinline__ void copy_chunk(uint32_t to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
/* Until at most so many of the groups committed are under way. */
__device__ __forceinline__ void wait_for_copies(int most) {
    if (most == 0)
        asm volatile("cp.async.wait_group 0;" ::: "memory");
    else
        asm volatile("cp.async.wait_group 1;" ::: "memory");
}

/* Threads take a row of 32 by fours: its chunks lane % 4, + 4, ... */
__device__ __forceinline__ int copied_row() {
    return (int)threadIdx.x / 4;
}

/* Features of tokens t ... t + 31, zeros from `end` on. */
template <class T>
__device__ __forceinline__ void copy_features(uint32_t to, const feature_rows &rows, const hla_general_side &side,
                                              const tokens<T> &own, int64_t t, int64_t end) {
    const int64_t token = t + copied_row();
    const bool there = token < end;
    to += (uint32_t)(copied_row() * rows.pitch);
#pragma unroll
    for (int p = 0; p < FACTORS; p++) {
        if (rows.first[p] == rows.first[p + 1]) continue;
        const T *row = own.feature[p] + (there ? token : 0) * side.features[p].stride[1] - 8 * rows.first[p];
#pragma unroll 1
        for (int c = rows.first[p] + (int)threadIdx.x % 4; c < rows.first[p + 1]; c += 4)
            copy_chunk(to + 16 * c, row + 8 * c, there);
    }
}

/* Rows of y likewise. */
template <class T, int PAIRS>
__device__ __forceinline__ void copy_rows(uint32_t to, const hla_general_side &side, const tokens<T> &own, int64_t t,
                                          int64_t end, int width) {
    const int64_t token = t + copied_row();
    const bool there = token < end;
    const T *row = own.row + (there ? token : 0) * side.rows.stride[1];
#pragma unroll 1
    for (int c = (int)threadIdx.x % 4; c < width / 8; c += 4)
        copy_chunk(to + copied_row() * PITCH_OF<PAIRS> + 16 * c, row + 8 * c, there);
}

/* ---- products ---- */

/* One 16-bit number, twice. */
__device__ __forceinline__ uint32_t load_twice(uint32_t address) {
    uint16_t value;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(value) : "r"(address) : "memory");
    return (uint32_t)value * 0x10001u;
}
__device__ __forceinline__ uint32_t load_two(uint32_t low, uint32_t high) {
    uint16_t a, b;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(a) : "r"(low) : "memory");
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(b) : "r"(high) : "memory");
    return (uint32_t)a | (uint32_t)b << 16;
}

/* A warp's sums: 32 rows in two tiles of 16, columns in tiles of 8, and the last column: the sum of the first two of
 * that tile's. */
template <int PAIRS> struct warp_sums {
    float y[2][2 * PAIRS][4], last[2][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                last[m][i] = 0;
#pragma unroll
                for (int n = 0; n < 2 * PAIRS; n++)
                    y[m][n][i] = 0;
            }
    }
    __device__ __forceinline__ void multiply(float factor) {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                last[m][i] *= factor;
#pragma unroll
                for (int n = 0; n < 2 * PAIRS; n++)
                    y[m][n][i] *= factor;
            }
    }
    /* The last column of row g + 8r of tile m, in all four lanes that share the row. */
    __device__ __forceinline__ float last_of(int m, int r) const {
        return __shfl_sync(0xffffffffu, last[m][2 * r] + last[m][2 * r + 1], (int)threadIdx.x % 32 & ~3);
    }
};

/* sums += a b for 16 steps: b, rows of y or S, begins at `slab`. With LAST its last column is there too; else it is 1.
 */
template <class type, int PAIRS, bool LAST>
__device__ __forceinline__ void multiply_slab(warp_sums<PAIRS> &sums, const uint32_t (&a)[2][4], uint32_t slab,
                                              int width) {
    const int lane = (int)threadIdx.x % 32;
    const uint32_t row = slab + (uint32_t)((lane & 15) * PITCH_OF<PAIRS>);
#pragma unroll
    for (int pair = 0; pair < PAIRS; pair++) {
        if (16 * pair >= width) continue;
        uint32_t b[4];
        ptx::load_matrices(b, row + (uint32_t)(32 * pair + 16 * (lane >> 4)));
#pragma unroll
        for (int m = 0; m < 2; m++) {
            type::mma(sums.y[m][2 * pair], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
            type::mma(sums.y[m][2 * pair + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
        }
    }
    uint32_t b[2] = {lane < 4 ? ONES<type> : 0u, lane < 4 ? ONES<type> : 0u}; /* column 0 of ones */
    if constexpr (LAST) ptx::load_matrices(b, row + (uint32_t)(32 * PAIRS));
#pragma unroll
    for (int m = 0; m < 2; m++)
        type::mma(sums.last[m], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
}

/* Calls act(p, entry) for each factor but the last, at most OUTERS, of an outer index: a feature's number / R_P. */
template <int OUTERS, class F>
__device__ __forceinline__ void each_outer(const hla_general_shape &shape, int outer, F act) {
#pragma unroll
    for (int p = FACTORS - 2; p >= FACTORS - 1 - OUTERS; p--) {
        if (p < shape.first_factor) continue;
        if (p == shape.first_factor) {
            act(p, outer);
            continue;
        }
        const int rank = (int)shape.rank[p], rest = outer / rank;
        act(p, outer - rest * rank);
        outer = rest;
    }
}

} // namespace

#endif
