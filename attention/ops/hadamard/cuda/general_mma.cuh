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

template <class type> using element = typename std::conditional<type::scaled, __half, bfloat16>::type;

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
template <int PAIRS> constexpr int RECORD_OF = 2 * PAIRS * 16;
template <int PAIRS> constexpr int PITCH_OF = RECORD_OF<PAIRS> + 16;
constexpr uint32_t WEIGHT_IN_RECORD = offsetof(hla_general_record, weight), LAST_IN_RECORD = WEIGHT_IN_RECORD + 4;
static_assert(sizeof(hla_general_record) == 16 && offsetof(hla_general_record, last) == LAST_IN_RECORD, "as copied");

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

/* Slabs through a ring of stages: copy(i, stage) brings slab i, use(i, stage) works on it. */
template <class F, class G> __device__ __forceinline__ void stream_slabs(int count, int stages, F copy, G use) {
    for (int i = 0; i < stages - 1; i++) {
        if (i < count) copy(i, i);
        commit_copies();
    }
    int stage = 0, next = stages - 1;
    for (int i = 0; i < count; i++) {
        wait_for_copies(stages - 2);
        __syncthreads();
        if (i + stages - 1 < count) copy(i + stages - 1, next);
        commit_copies();
        use(i, stage);
        if (++stage == stages) stage = 0;
        if (++next == stages) next = 0;
    }
    wait_for_copies(0);
    __syncthreads();
}

/* The records of queries, to the last chunk of their rows. */
template <class T, int PAIRS>
__device__ __forceinline__ void copy_records(uint32_t to, const hla_general_side &side, const tokens<T> &own, int64_t t,
                                             int64_t end) {
    const int64_t token = t + copied_row();
    if (threadIdx.x % 4 == 0)
        copy_chunk(to + (uint32_t)(copied_row() * PITCH_OF<PAIRS> + RECORD_OF<PAIRS>),
                   side.records + own.place + (token < end ? token : 0), token < end);
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
    __device__ __forceinline__ void clear_last() {
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                last[m][i] = 0;
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

/* ---- pairs ---- */

/* Numbers of the warp's 32 tokens with 32 others: [m][n] is the tile of rows 16m ... and columns 8n ... */
using pair_tiles = float[2][4][4];

template <class F> __device__ __forceinline__ void each_pair(F act) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                act(m, n, i);
}

__device__ __forceinline__ void set_scores(pair_tiles &scores, float value) {
    each_pair([&](int m, int n, int i) { scores[m][n][i] = value; });
}

/* scores *= the scores in factor p */
template <class type>
__device__ __forceinline__ void multiply_scores(pair_tiles &scores, const feature_rows &rows, uint32_t own,
                                                uint32_t others, int p) {
    const int lane = (int)threadIdx.x % 32, last = rows.first[p + 1];
    pair_tiles dots = {};
    for (int c = rows.first[p]; c < last; c += 2) {
        const bool whole = c + 2 <= last; /* else only eight terms are left */
        uint32_t a[2][4];
#pragma unroll
        for (int m = 0; m < 2; m++) {
            ptx::load_rows(a[m],
                           own + (uint32_t)((16 * m + (lane & 15)) * rows.pitch + 16 * (whole ? c + (lane >> 4) : c)));
            if (!whole) a[m][2] = a[m][3] = 0;
        }
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            uint32_t b[4];
            ptx::load_rows(b, others + (uint32_t)((16 * pair + 8 * (lane >> 4) + (lane & 7)) * rows.pitch +
                                                  16 * (whole ? c + (lane >> 3 & 1) : c)));
            if (!whole) b[1] = b[3] = 0;
#pragma unroll
            for (int m = 0; m < 2; m++) {
                type::mma(dots[m][2 * pair], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                type::mma(dots[m][2 * pair + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
            }
        }
    }
    each_pair([&](int m, int n, int i) { scores[m][n][i] *= dots[m][n][i]; });
}

/* Causal: zero where the pair's query comes before its key. ahead: how far the warp's first token lies behind the first
 * of the others. */
__device__ __forceinline__ void mask_scores(pair_tiles &scores, int ahead, bool self_is_query) {
    const int lane = (int)threadIdx.x % 32;
    each_pair([&](int m, int n, int i) {
        const int token = ahead + 16 * m + lane / 4 + 8 * (i / 2), other = 8 * n + 2 * (lane % 4) + i % 2;
        if (self_is_query ? other > token : other < token) scores[m][n][i] = 0;
    });
}

/* Whether none of 32 others is paired with any of the warp's 32 tokens, and whether some pairs have to be masked. */
__device__ __forceinline__ bool all_masked(int64_t token, int64_t other, bool self_is_query) {
    return self_is_query ? other >= token + WARP_ROWS : other + SLAB <= token;
}
__device__ __forceinline__ bool some_masked(int64_t token, int64_t other, bool self_is_query) {
    return self_is_query ? other + SLAB > token : other < token + WARP_ROWS;
}

/* Columns times the weights of the others, queries, whose rows with their records begin at `others`. */
template <int PAIRS> __device__ __forceinline__ void weigh_scores(pair_tiles &scores, uint32_t others) {
    const uint32_t record = others + (uint32_t)(2 * ((int)threadIdx.x % 4) * PITCH_OF<PAIRS> + RECORD_OF<PAIRS>);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t at = record + (uint32_t)((8 * n + e) * PITCH_OF<PAIRS>);
            const float weight = __uint_as_float(ptx::load_shared_word(at + WEIGHT_IN_RECORD));
#pragma unroll
            for (int m = 0; m < 2; m++)
                scores[m][n][e] *= weight, scores[m][n][e + 2] *= weight;
        }
}

/* Others 16 step ... of the scores, rounded, as the left operand. */
template <class type>
__device__ __forceinline__ void round_scores(uint32_t (&a)[2][4], const pair_tiles &scores, int step) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float *pair = &scores[m][2 * step + j / 2][2 * (j % 2)];
            a[m][j] = type::pack(pair[0], pair[1]);
        }
}

/* Leaves of them what rounding lost. */
template <class type>
__device__ __forceinline__ void subtract_rounded(pair_tiles &scores, const uint32_t (&a)[2][4], int step) {
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float2 rounded = type::unpack(a[m][j]);
            scores[m][2 * step + j / 2][2 * (j % 2)] -= rounded.x;
            scores[m][2 * step + j / 2][2 * (j % 2) + 1] -= rounded.y;
        }
}

/* ---- features ---- */

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

/* ---- launch ---- */

/* Bytes of a row of features. */
inline int pitch_of(const hla_general_shape &shape) {
    int64_t sum = 0;
    for (int p = shape.first_factor; p < FACTORS; p++)
        sum += shape.rank[p];
    return feature_pitch(sum);
}

/* Stages that fit beside `fixed` bytes: three, or two. */
inline int stages_of(int fixed, int stage) {
    return fixed + 3 * stage <= HLA_GENERAL_SHARED ? 3 : 2;
}

template <class K, class... A> int launch(K *kernel, int64_t work, int shared, void *stream, const A &...arguments) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return (int)error;
    kernel<<<grid_of(work), BLOCK, shared, (cudaStream_t)stream>>>(arguments...);
    return (int)cudaGetLastError();
}

} // namespace

#endif
