/* attention/ops/feature_map/cuda/block.cuh - a block of tokens of one head in shared memory in float32, and products of
 * it with weights: what the general kernels of the feature maps, forward and backward, are made of.
 *
 * Rows of D or R numbers are padded with zeros to a multiple of 4, so that products read four at a time.
 */
#ifndef HLA_OPS_FEATURE_MAP_CUDA_BLOCK_CUH
#define HLA_OPS_FEATURE_MAP_CUDA_BLOCK_CUH

#include "attention/ops/feature_map/cuda/elements.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int MOST_ROWS = 32;                   /* tokens of a block */
constexpr int TILE = 64, DEPTH = 32;            /* of weights: outputs, and terms of their sums */
constexpr int TILE_FLOATS = TILE * (DEPTH + 4); /* with gaps against bank conflicts */
static_assert(DEPTH * (TILE + 4) <= TILE_FLOATS, "both orientations fit");

__host__ __device__ constexpr int padded(int width) {
    return (width + 3) / 4 * 4;
}

/* Tokens of a block: as many as fit when each takes that many floats; 0 if not even one does. */
inline int block_rows(int64_t floats) {
    int rows = MOST_ROWS;
    while (rows > 0 && (rows * floats + TILE_FLOATS) * (int64_t)sizeof(float) > HLA_CUDA_MAP_SHARED)
        rows /= 2;
    return rows;
}

/* Rows first ... first + rows - 1 of head h as floats; rows beyond the last token are zero. */
__device__ void load_rows(float *to, const hla_cuda_view &from, int dtype, int width, int rows, int64_t b, int64_t h,
                          int64_t first, int64_t tokens) {
    const int row = padded(width);
    for (int i = (int)threadIdx.x; i < rows * row; i += THREADS) {
        int t = i / row, x = i % row;
        bool there = x < width && first + t < tokens;
        to[i] = there ? load_element(from.data, row_of(from, b, first + t, h) + x * from.stride[3], dtype) : 0;
    }
}

__device__ void store_rows(const hla_cuda_view &to, const float *from, int dtype, int width, int rows, int64_t b,
                           int64_t h, int64_t first, int64_t tokens) {
    const int row = padded(width);
    for (int i = (int)threadIdx.x; i < rows * width; i += THREADS) {
        int t = i / width, x = i % width;
        if (first + t < tokens)
            store_element(to.data, row_of(to, b, first + t, h) + x * to.stride[3], dtype, from[t * row + x]);
    }
}

/* RoPE of all rows, or with direction -1 its transpose. */
__device__ void turn_rows(float *x, const hla_cuda_map &map, int rows, int64_t first, float direction) {
    const int pairs = map.dim / 2, row = padded(map.dim);
    for (int i = (int)threadIdx.x; i < rows * pairs; i += THREADS) {
        int t = i / pairs, p = i % pairs;
        if (first + t >= map.tokens) continue;
        const float *turn = map.rope + (first + t) * map.dim + 2 * p;
        float cosine = turn[0], sine = direction * turn[1], *pair = x + t * row + 2 * p, a = pair[0], b = pair[1];
        pair[0] = cosine * a - sine * b;
        pair[1] = sine * a + cosine * b;
    }
}

__device__ __forceinline__ float dot4(float4 a, float4 b, float sum) {
    sum = fmaf(a.x, b.x, sum);
    sum = fmaf(a.y, b.y, sum);
    sum = fmaf(a.z, b.z, sum);
    return fmaf(a.w, b.w, sum);
}

/* out [rows][outputs] = in [rows][terms] times weight^T, weight [outputs][terms]. Starts and ends with a barrier. */
__device__ void multiply(float *out, const float *in, const float *weight, float *tile, int rows, int outputs,
                         int terms) {
    const int in_row = padded(terms), out_row = padded(outputs);
    const int column = (int)threadIdx.x % 16, line = (int)threadIdx.x / 16;
    for (int n = 0; n < outputs; n += TILE) {
        float sum[2][4] = {};
        for (int k = 0; k < terms; k += DEPTH) {
            __syncthreads();
            for (int i = (int)threadIdx.x; i < TILE * DEPTH; i += THREADS) {
                int r = i / DEPTH, x = i % DEPTH;
                bool there = n + r < outputs && k + x < terms;
                tile[r * (DEPTH + 4) + x] = there ? weight[(int64_t)(n + r) * terms + k + x] : 0;
            }
            __syncthreads();
            const int last = min(DEPTH, in_row - k);
            for (int x = 0; x < last; x += 4) {
                float4 a[2];
#pragma unroll
                for (int j = 0; j < 2; j++)
                    a[j] = *(const float4 *)(in + min(line + 16 * j, rows - 1) * in_row + k + x);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    float4 w = *(const float4 *)(tile + (column + 16 * i) * (DEPTH + 4) + x);
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        sum[j][i] = dot4(a[j], w, sum[j][i]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int r = n + column + 16 * i;
                if (line + 16 * j < rows && r < out_row) out[(line + 16 * j) * out_row + r] = sum[j][i];
            }
        }
    }
    __syncthreads();
}

/* h = x + relu(z + bias) of all rows; z + bias is kept if keep is not NULL (it may be z). */
__device__ void finish_hidden(float *hidden, float *keep, const float *z, const float *x, const float *bias, int rows,
                              int dim) {
    const int row = padded(dim);
    for (int i = (int)threadIdx.x; i < rows * row; i += THREADS) {
        float sum = z[i] + (bias && i % row < dim ? bias[i % row] : 0);
        hidden[i] = x[i] + positive(sum);
        if (keep) keep[i] = sum;
    }
    __syncthreads();
}

__device__ __forceinline__ float warp_largest(float value) {
    for (int step = 16; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = 16; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

/* u += bias of one row, by a warp; the largest. */
__device__ float add_bias(float *u, const float *bias, int rank) {
    float largest = -INFINITY;
    for (int r = (int)threadIdx.x % 32; r < rank; r += 32) {
        u[r] += bias ? bias[r] : 0;
        largest = fmaxf(largest, u[r]);
    }
    return warp_largest(largest);
}

} // namespace

#endif
