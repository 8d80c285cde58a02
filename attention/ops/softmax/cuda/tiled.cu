/* Softmax attention in float32 tiles: of 64 rows by 64 columns, in blocks of 256 threads of which each owns 4 by 4
 * entries, and of a result 4 by 8. A block owns whole pieces of the result and sums them in order, so that results have
 * the same bits on every run. */
#include "attention/ops/softmax/cuda/tiled.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <float.h>
#include <math.h>

namespace {

constexpr int THREADS = 256, LANES = 16;            // threads: 16 rows of 16 columns
constexpr int TILE = 64, DEPTH = 32;                // tokens a side, numbers of a product at a time
constexpr int CHUNK = 128, COLUMNS = CHUNK / LANES; // columns of a result at a time
constexpr int EDGE = TILE / LANES;

// Rows [count, width] of one batch entry and head. Beyond them are zeros, which are not read.
struct rows {
    const char *data;
    hla_dtype dtype;
    int64_t stride_t, stride_x, count, width;
};

__device__ rows rows_of(const hla_cuda_view &view, hla_dtype dtype, int64_t b, int64_t h, int64_t count,
                        int64_t width) {
    int64_t offset = b * view.stride[0] + h * view.stride[2];
    return {(const char *)view.data + offset * (dtype == HLA_F32 ? 4 : 2),
            dtype,
            view.stride[1],
            view.stride[3],
            count,
            width};
}

__device__ float load(const rows &from, int64_t t, int64_t x) {
    if (t >= from.count || x >= from.width) return 0;
    int64_t at = t * from.stride_t + x * from.stride_x;
    if (from.dtype == HLA_F32) return ((const float *)from.data)[at];
    if (from.dtype == HLA_BF16) return __bfloat162float(((const __nv_bfloat16 *)from.data)[at]);
    return __half2float(((const __half *)from.data)[at]);
}

__device__ void store(const rows &to, int64_t t, int64_t x, float value) {
    if (t >= to.count || x >= to.width) return;
    int64_t at = t * to.stride_t + x * to.stride_x;
    if (to.dtype == HLA_F32)
        ((float *)to.data)[at] = value;
    else if (to.dtype == HLA_BF16)
        ((__nv_bfloat16 *)to.data)[at] = __float2bfloat16(value);
    else
        ((__half *)to.data)[at] = __float2half(value);
}

struct memory {
    union {
        struct {
            float a[TILE][DEPTH + 1], b[TILE][DEPTH + 1];
        };
        float wide[DEPTH][CHUNK];
    };
    float tile[TILE][TILE + 1];
};

// Entries of a tile that belong to this thread: rows row() + 16 i, columns column() + 16 j.
__device__ int row() {
    return (int)threadIdx.x / LANES;
}

__device__ int column() {
    return (int)threadIdx.x % LANES;
}

// product = A B^T for rows a0 ... of A and b0 ... of B
__device__ void multiply(float (&product)[EDGE][EDGE], memory &shared, const rows &a, int64_t a0, const rows &b,
                         int64_t b0) {
    for (int i = 0; i < EDGE; i++)
        for (int j = 0; j < EDGE; j++)
            product[i][j] = 0;
    for (int64_t first = 0; first < a.width; first += DEPTH) {
        __syncthreads();
        for (int n = (int)threadIdx.x; n < TILE * DEPTH; n += THREADS) {
            int t = n / DEPTH, x = n % DEPTH;
            shared.a[t][x] = load(a, a0 + t, first + x);
            shared.b[t][x] = load(b, b0 + t, first + x);
        }
        __syncthreads();
#pragma unroll 8
        for (int x = 0; x < DEPTH; x++) {
            float left[EDGE], right[EDGE];
#pragma unroll
            for (int i = 0; i < EDGE; i++) {
                left[i] = shared.a[row() + LANES * i][x];
                right[i] = shared.b[column() + LANES * i][x];
            }
#pragma unroll
            for (int i = 0; i < EDGE; i++)
#pragma unroll
                for (int j = 0; j < EDGE; j++)
                    product[i][j] += left[i] * right[j];
        }
    }
}

// sum += tile B for rows b0 ... and columns x0 ... of B; first publishes the threads' entries of the tile.
__device__ void add_product(float (&sum)[EDGE][COLUMNS], memory &shared, const float (&entries)[EDGE][EDGE],
                            const rows &b, int64_t b0, int64_t x0) {
#pragma unroll
    for (int i = 0; i < EDGE; i++)
#pragma unroll
        for (int j = 0; j < EDGE; j++)
            shared.tile[row() + LANES * i][column() + LANES * j] = entries[i][j];
    for (int first = 0; first < TILE; first += DEPTH) {
        __syncthreads();
        for (int n = (int)threadIdx.x; n < DEPTH * CHUNK; n += THREADS)
            shared.wide[n / CHUNK][n % CHUNK] = load(b, b0 + first + n / CHUNK, x0 + n % CHUNK);
        __syncthreads();
#pragma unroll 4
        for (int t = 0; t < DEPTH; t++) {
            float left[EDGE];
#pragma unroll
            for (int i = 0; i < EDGE; i++)
                left[i] = shared.tile[row() + LANES * i][first + t];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                float right = shared.wide[t][column() + LANES * j];
#pragma unroll
                for (int i = 0; i < EDGE; i++)
                    sum[i][j] += left[i] * right;
            }
        }
    }
    __syncthreads(); // the tile is written again
}

__device__ void store_chunk(const rows &to, int64_t t0, int64_t x0, const float (&sum)[EDGE][COLUMNS],
                            const float (&factor)[EDGE]) {
#pragma unroll
    for (int i = 0; i < EDGE; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            store(to, t0 + row() + LANES * i, x0 + column() + LANES * j, sum[i][j] * factor[i]);
}

// Over the 16 threads of a row; all get it.
__device__ float row_sum(float value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}

// A NaN is passed over here: it shows in the weights.
__device__ float row_maximum(float value) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

__device__ int64_t keys_of(const hla_softmax_tiled &problem, int64_t b) {
    return problem.key_lengths ? problem.key_lengths[b] : problem.keys;
}

// From products: scale q . k + bias, minus infinity where query i does not see key j.
__device__ float score(const hla_softmax_tiled &problem, float product, int64_t i, int64_t j, int64_t keys) {
    if (i >= problem.queries || j >= keys || (problem.causal && j > i)) return -INFINITY;
    return product * problem.scale + (problem.key_bias ? problem.key_bias[j] : 0);
}

// Running maximum, sum of exponentials and, for d_out . out, a weighted sum, of each of this thread's rows.
struct running {
    float largest[EDGE], sum[EDGE], weighted[EDGE];
};

__device__ void start(running &state) {
    for (int i = 0; i < EDGE; i++)
        state.largest[i] = -FLT_MAX, state.sum[i] = 0, state.weighted[i] = 0;
}

// Takes a tile of scores in, which become weights relative to the new maximum; weighted_by: NULL or the tile's factors.
// rescale: what earlier sums are multiplied with.
__device__ void take_in(running &state, float (&entries)[EDGE][EDGE], const float (*weighted_by)[EDGE],
                        float (&rescale)[EDGE]) {
#pragma unroll
    for (int i = 0; i < EDGE; i++) {
        float largest = state.largest[i], sum = 0, weighted = 0;
        for (int j = 0; j < EDGE; j++)
            largest = fmaxf(largest, entries[i][j]);
        largest = row_maximum(largest);
        rescale[i] = expf(state.largest[i] - largest);
        state.largest[i] = largest;
        for (int j = 0; j < EDGE; j++) {
            entries[i][j] = expf(entries[i][j] - largest);
            sum += entries[i][j];
            if (weighted_by) weighted += entries[i][j] * weighted_by[i][j];
        }
        state.sum[i] = state.sum[i] * rescale[i] + row_sum(sum);
        if (weighted_by) state.weighted[i] = state.weighted[i] * rescale[i] + row_sum(weighted);
    }
}

// One piece of work: a tile of tokens of a batch entry and head, and a chunk of columns.
struct piece {
    int64_t b, h, chunk, first;
};

__device__ piece piece_of(int64_t index, int64_t heads, int64_t chunks, int64_t tiles) {
    int64_t tile = index % tiles, rest = index / tiles;
    return {rest / chunks / heads, rest / chunks % heads, rest % chunks, tile * TILE};
}

__host__ __device__ int64_t parts(int64_t count, int64_t size) {
    return (count + size - 1) / size;
}

// The keys that any of a tile's queries sees.
__device__ int64_t keys_seen(const hla_softmax_tiled &problem, int64_t first, int64_t keys) {
    int64_t end = first + TILE;
    return problem.causal && end < keys ? end : keys;
}

__global__ void __launch_bounds__(THREADS, 2) forward(const __grid_constant__ hla_softmax_tiled problem, int64_t work) {
    __shared__ memory shared;
    int64_t chunks = parts(problem.value_dim, CHUNK), tiles = parts(problem.queries, TILE);
    for (int64_t index = blockIdx.x; index < work; index += gridDim.x) {
        piece p = piece_of(index, problem.heads, chunks, tiles);
        int64_t keys = keys_of(problem, p.b), end = keys_seen(problem, p.first, keys), key_head = p.h / problem.shared;
        rows q = rows_of(problem.q, problem.dtype, p.b, p.h, problem.queries, problem.dim);
        rows k = rows_of(problem.k, problem.dtype, p.b, key_head, keys, problem.dim);
        rows v = rows_of(problem.v, problem.dtype, p.b, key_head, keys, problem.value_dim);
        rows out = rows_of(problem.out, problem.dtype, p.b, p.h, problem.queries, problem.value_dim);
        float sum[EDGE][COLUMNS] = {}, entries[EDGE][EDGE], factor[EDGE];
        running state;
        start(state);
        for (int64_t first = 0; first < end; first += TILE) {
            multiply(entries, shared, q, p.first, k, first);
            for (int i = 0; i < EDGE; i++)
                for (int j = 0; j < EDGE; j++)
                    entries[i][j] =
                        score(problem, entries[i][j], p.first + row() + LANES * i, first + column() + LANES * j, keys);
            take_in(state, entries, nullptr, factor);
            for (int i = 0; i < EDGE; i++)
                for (int j = 0; j < COLUMNS; j++)
                    sum[i][j] *= factor[i];
            add_product(sum, shared, entries, v, first, p.chunk * CHUNK);
        }
        for (int i = 0; i < EDGE; i++)
            factor[i] = state.sum[i] == 0 ? 0 : 1 / state.sum[i];
        store_chunk(out, p.first, p.chunk * CHUNK, sum, factor);
    }
}

// Of each query: the logarithm of its sum of exponentials, and d_out . out = sum_j p_ij (d_out_i . v_j).
__global__ void __launch_bounds__(THREADS, 2)
    statistics(const __grid_constant__ hla_softmax_tiled problem, int64_t work) {
    __shared__ memory shared;
    int64_t tiles = parts(problem.queries, TILE);
    for (int64_t index = blockIdx.x; index < work; index += gridDim.x) {
        piece p = piece_of(index, problem.heads, 1, tiles);
        int64_t keys = keys_of(problem, p.b), end = keys_seen(problem, p.first, keys), key_head = p.h / problem.shared;
        rows q = rows_of(problem.q, problem.dtype, p.b, p.h, problem.queries, problem.dim);
        rows g = rows_of(problem.out, problem.dtype, p.b, p.h, problem.queries, problem.value_dim);
        rows k = rows_of(problem.k, problem.dtype, p.b, key_head, keys, problem.dim);
        rows v = rows_of(problem.v, problem.dtype, p.b, key_head, keys, problem.value_dim);
        float entries[EDGE][EDGE], products[EDGE][EDGE], factor[EDGE];
        running state;
        start(state);
        for (int64_t first = 0; first < end; first += TILE) {
            multiply(products, shared, g, p.first, v, first);
            multiply(entries, shared, q, p.first, k, first);
            for (int i = 0; i < EDGE; i++)
                for (int j = 0; j < EDGE; j++)
                    entries[i][j] =
                        score(problem, entries[i][j], p.first + row() + LANES * i, first + column() + LANES * j, keys);
            take_in(state, entries, products, factor);
        }
        for (int i = 0; i < EDGE; i++) {
            int64_t query = p.first + row() + LANES * i;
            if (column() != 0 || query >= problem.queries) continue;
            float *to = problem.statistics + ((p.b * problem.heads + p.h) * problem.queries + query) * 2;
            to[0] = state.sum[i] == 0 ? INFINITY : state.largest[i] + logf(state.sum[i]); // infinity: all weights are 0
            to[1] = state.sum[i] == 0 ? 0 : state.weighted[i] / state.sum[i];
        }
    }
}

// From the products q . k of query i and key j: the weight p_ij.
__device__ float weight(const hla_softmax_tiled &problem, float product, int64_t i, int64_t j, int64_t keys,
                        const float *row_statistics) {
    float value = score(problem, product, i, j, keys);
    return value == -INFINITY ? 0 : expf(value - row_statistics[2 * i]);
}

// dq_i = scale sum_j p_ij (d_out_i . v_j - d_out_i . out_i) k_j
__global__ void __launch_bounds__(THREADS, 2)
    query_gradient(const __grid_constant__ hla_softmax_tiled problem, int64_t work) {
    __shared__ memory shared;
    int64_t chunks = parts(problem.dim, CHUNK), tiles = parts(problem.queries, TILE);
    for (int64_t index = blockIdx.x; index < work; index += gridDim.x) {
        piece p = piece_of(index, problem.heads, chunks, tiles);
        int64_t keys = keys_of(problem, p.b), end = keys_seen(problem, p.first, keys), key_head = p.h / problem.shared;
        rows q = rows_of(problem.q, problem.dtype, p.b, p.h, problem.queries, problem.dim);
        rows g = rows_of(problem.out, problem.dtype, p.b, p.h, problem.queries, problem.value_dim);
        rows k = rows_of(problem.k, problem.dtype, p.b, key_head, keys, problem.dim);
        rows v = rows_of(problem.v, problem.dtype, p.b, key_head, keys, problem.value_dim);
        rows dq = rows_of(problem.dq, problem.dtype, p.b, p.h, problem.queries, problem.dim);
        const float *of_rows = problem.statistics + (p.b * problem.heads + p.h) * problem.queries * 2;
        float sum[EDGE][COLUMNS] = {}, entries[EDGE][EDGE], products[EDGE][EDGE], factor[EDGE];
        for (int64_t first = 0; first < end; first += TILE) {
            multiply(products, shared, g, p.first, v, first);
            multiply(entries, shared, q, p.first, k, first);
            for (int i = 0; i < EDGE; i++)
                for (int j = 0; j < EDGE; j++) {
                    int64_t query = p.first + row() + LANES * i, key = first + column() + LANES * j;
                    float share = weight(problem, entries[i][j], query, key, keys, of_rows);
                    entries[i][j] = share == 0 ? 0 : share * (products[i][j] - of_rows[2 * query + 1]);
                }
            add_product(sum, shared, entries, k, first, p.chunk * CHUNK);
        }
        for (int i = 0; i < EDGE; i++)
            factor[i] = problem.scale;
        store_chunk(dq, p.first, p.chunk * CHUNK, sum, factor);
    }
}

// dv_j = sum_i p_ij d_out_i and dk_j = scale sum_i p_ij (d_out_i . v_j - d_out_i . out_i) q_i, over the queries of all
// heads that share the key head: chunks of dk first, then those of dv. Tiles have a row for each key.
__global__ void __launch_bounds__(THREADS)
    key_gradient(const __grid_constant__ hla_softmax_tiled problem, int64_t work) {
    __shared__ memory shared;
    int64_t of_keys = parts(problem.dim, CHUNK), chunks = of_keys + parts(problem.value_dim, CHUNK);
    int64_t tiles = parts(problem.keys, TILE), key_heads = problem.heads / problem.shared;
    for (int64_t index = blockIdx.x; index < work; index += gridDim.x) {
        piece p = piece_of(index, key_heads, chunks, tiles);
        bool values = p.chunk >= of_keys;
        int64_t keys = keys_of(problem, p.b), x0 = (values ? p.chunk - of_keys : p.chunk) * CHUNK;
        rows k = rows_of(problem.k, problem.dtype, p.b, p.h, keys, problem.dim);
        rows v = rows_of(problem.v, problem.dtype, p.b, p.h, keys, problem.value_dim);
        int64_t width = values ? problem.value_dim : problem.dim;
        rows to = rows_of(values ? problem.dv : problem.dk, problem.dtype, p.b, p.h, problem.keys, width);
        float sum[EDGE][COLUMNS] = {}, entries[EDGE][EDGE], products[EDGE][EDGE], factor[EDGE];
        for (int64_t h = p.h * problem.shared; h < (p.h + 1) * problem.shared && p.first < keys; h++) {
            rows q = rows_of(problem.q, problem.dtype, p.b, h, problem.queries, problem.dim);
            rows g = rows_of(problem.out, problem.dtype, p.b, h, problem.queries, problem.value_dim);
            rows factors = rows_of(values ? problem.out : problem.q, problem.dtype, p.b, h, problem.queries, width);
            const float *of_rows = problem.statistics + (p.b * problem.heads + h) * problem.queries * 2;
            for (int64_t first = problem.causal ? p.first : 0; first < problem.queries; first += TILE) {
                if (!values) multiply(products, shared, v, p.first, g, first);
                multiply(entries, shared, k, p.first, q, first);
                for (int i = 0; i < EDGE; i++)
                    for (int j = 0; j < EDGE; j++) {
                        int64_t key = p.first + row() + LANES * i, query = first + column() + LANES * j;
                        float share = weight(problem, entries[i][j], query, key, keys, of_rows);
                        if (!values && share != 0) share *= products[i][j] - of_rows[2 * query + 1];
                        entries[i][j] = share;
                    }
                add_product(sum, shared, entries, factors, first, x0);
            }
        }
        for (int i = 0; i < EDGE; i++)
            factor[i] = values ? 1 : problem.scale;
        store_chunk(to, p.first, x0, sum, factor);
    }
}

int blocks(const hla_softmax_tiled *problem, int64_t work) {
    int64_t most = 4 * (int64_t)problem->processors;
    return (int)(work < most ? work : most);
}

} // namespace

extern "C" int hla_softmax_tiled_forward(const hla_softmax_tiled *problem, void *stream) {
    int64_t work = problem->batch * problem->heads * parts(problem->value_dim, CHUNK) * parts(problem->queries, TILE);
    forward<<<blocks(problem, work), THREADS, 0, (cudaStream_t)stream>>>(*problem, work);
    return (int)cudaGetLastError();
}

extern "C" int hla_softmax_tiled_backward(const hla_softmax_tiled *problem, void *stream) {
    cudaStream_t on = (cudaStream_t)stream;
    int64_t tiles = problem->batch * problem->heads * parts(problem->queries, TILE);
    int64_t key_tiles = problem->batch * (problem->heads / problem->shared) * parts(problem->keys, TILE);
    int64_t of_queries = tiles * parts(problem->dim, CHUNK);
    int64_t of_keys = key_tiles * (parts(problem->dim, CHUNK) + parts(problem->value_dim, CHUNK));
    statistics<<<blocks(problem, tiles), THREADS, 0, on>>>(*problem, tiles);
    query_gradient<<<blocks(problem, of_queries), THREADS, 0, on>>>(*problem, of_queries);
    if (of_keys > 0) key_gradient<<<blocks(problem, of_keys), THREADS, 0, on>>>(*problem, of_keys);
    return (int)cudaGetLastError();
}
