/* The streaming state for few tokens on a GPU: one pass over the array [B,Hkv,R,V+1], bound by its memory.
 *
 *     append   S[f][x] += phi[f] v[x]          x = 0 ... V, v[V] = 1
 *     query    n[x] = sum_f phi[f] S[f][x]     the denominator is n[V]
 *
 * Rows are V + 1 numbers long, so that most of them are not aligned; but four rows are as long as V + 1 vectors of four
 * numbers, and in every group of four rows the same lane meets the same columns: it keeps its part of v and of the sums
 * in registers. A range of rows belongs to one block of threads, whose sums go to memory; the block that finishes last
 * adds the ranges' sums in their order, so that the result has the same bits whichever block that is.
 */
#include "attention/ops/hadamard/cuda/stream.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace {

constexpr int MOST_THREADS = 512;
constexpr int64_t MOST_BLOCKS = INT32_MAX;

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

__device__ __forceinline__ int64_t row_of(const hla_cuda_view &view, int64_t b, int64_t t, int64_t h) {
    return b * view.stride[0] + t * view.stride[1] + h * view.stride[2];
}

/* Feature f of token t: a product of one number of each factor, the last factor fastest. */
__device__ __forceinline__ float feature(const hla_cuda_stream &call, const hla_cuda_view *factors, int64_t b,
                                         int64_t t, int64_t h, uint32_t f) {
    float result = 1;
#pragma unroll
    for (int p = HLA_MAX_FACTORS - 1; p >= 0; p--) {
        if (p >= call.factors) continue;
        uint32_t digit = f;
        if (p > 0) {
            f /= call.factor_rank[p];
            digit -= f * call.factor_rank[p];
        }
        result *= load_element(factors[p].data, row_of(factors[p], b, t, h) + digit * factors[p].stride[3], call.dtype);
    }
    return result;
}

/* Numbers of one lane: WIDTH is 4 or 1. */
template <int WIDTH> struct numbers { float x[WIDTH]; };

template <int WIDTH> __device__ __forceinline__ numbers<WIDTH> load(const float *from) {
    numbers<WIDTH> value;
    if constexpr (WIDTH == 4) {
        float4 four = *(const float4 *)from;
        value.x[0] = four.x, value.x[1] = four.y, value.x[2] = four.z, value.x[3] = four.w;
    } else {
        value.x[0] = *from;
    }
    return value;
}

template <int WIDTH> __device__ __forceinline__ void store(float *to, const numbers<WIDTH> &value) {
    if constexpr (WIDTH == 4) {
        *(float4 *)to = make_float4(value.x[0], value.x[1], value.x[2], value.x[3]);
    } else {
        *to = value.x[0];
    }
}

/* The units of work of a pair, in their order: query heads of a key head within a token; tokens if nothing is asked. */
struct units {
    int64_t each, count; /* of a token, in all */
};

__device__ __forceinline__ units units_of(const hla_cuda_stream &call) {
    int64_t each = call.out.data ? call.heads / call.kv_heads : 1;
    return {each, each * call.tokens};
}

/* What a range of a pair needs to know of itself. */
struct place {
    int64_t pair, b, h, range; /* h: of the keys */
    uint32_t first, rows;
    float *state; /* its first row */
};

__device__ place place_of(const hla_cuda_stream &call, int64_t unit) {
    place at;
    at.pair = unit / call.ranges, at.range = unit % call.ranges;
    at.b = at.pair / call.kv_heads, at.h = at.pair % call.kv_heads;
    int64_t first = at.range * call.rows, rows = min(call.rows, call.rank - first);
    at.first = (uint32_t)first, at.rows = (uint32_t)rows;
    at.state = call.state + (at.pair * call.rank + first) * (call.value_dim + 1);
    return at;
}

/* Features of a pass's units for the rows of a range, keys [UNITS][rows] and queries [UNITS][rows]; those of keys are
 * zero where the token has joined before. */
template <int UNITS>
__device__ void expand(float *keys, float *queries, const hla_cuda_stream &call, const place &at, const units &work,
                       int64_t first) {
    const int count = (int)min((int64_t)UNITS, work.count - first);
    for (uint32_t i = threadIdx.x; i < count * at.rows; i += blockDim.x) {
        const uint32_t unit = i / at.rows, row = i - unit * at.rows, to = unit * (uint32_t)call.rows + row;
        const int64_t t = (first + unit) / work.each, member = (first + unit) - t * work.each;
        if (call.v.data) keys[to] = member == 0 ? feature(call, call.k, at.b, t, at.h, at.first + row) : 0;
        if (call.out.data) queries[to] = feature(call, call.q, at.b, t, at.h * work.each + member, at.first + row);
    }
}

/* A pass over the range for UNITS units from first on: lane `lane` of the groups of WIDTH rows. Leaves the lane's sums.
 */
template <int WIDTH, int UNITS>
__device__ void pass(numbers<WIDTH> (&sum)[UNITS], float *keys, float *queries, const hla_cuda_stream &call,
                     const place &at, const units &work, int64_t first, uint32_t lane) {
    const uint32_t width = (uint32_t)call.value_dim + 1, rows = (uint32_t)call.rows, groups = at.rows / WIDTH;
    const bool active = lane < width;
    constexpr int BATCH = UNITS == 1 ? 4 : 2; /* groups of rows on their way from memory: registers suffice */
    float *state = at.state + (int64_t)lane * WIDTH;
    const int64_t step = (int64_t)width * WIDTH;
    numbers<WIDTH> next[BATCH], v[UNITS] = {};
#pragma unroll
    for (int i = 0; i < BATCH; i++)
        next[i] = active && i < groups ? load<WIDTH>(state + i * step) : numbers<WIDTH>{};
    __syncthreads(); /* the features of the pass before are no longer needed */
    expand<UNITS>(keys, queries, call, at, work, first);
    const int count = (int)min((int64_t)UNITS, work.count - first);
    uint32_t row[WIDTH];
#pragma unroll
    for (int e = 0; e < WIDTH; e++) {
        const uint32_t column = (lane * WIDTH + e) % width;
        row[e] = (lane * WIDTH + e) / width;
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            sum[u].x[e] = 0;
            if (!call.v.data || !active || u >= count || (first + u) % work.each != 0) continue;
            const int64_t t = (first + u) / work.each;
            v[u].x[e] =
                column == call.value_dim
                    ? 1
                    : load_element(call.v.data, row_of(call.v, at.b, t, at.h) + column * call.v.stride[3], call.dtype);
        }
    }
    __syncthreads();
    if (!active) return;
    for (uint32_t group = 0; group < groups; group += BATCH) {
        numbers<WIDTH> now[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            now[i] = next[i];
            uint32_t ahead = group + BATCH + i;
            if (ahead < groups) next[i] = load<WIDTH>(state + ahead * step);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (group + i >= groups) break;
            const uint32_t at_row = (group + i) * WIDTH;
#pragma unroll
            for (int u = 0; u < UNITS; u++) {
                if (u >= count) break;
#pragma unroll
                for (int e = 0; e < WIDTH; e++) {
                    const uint32_t from = u * rows + at_row + row[e];
                    if (call.v.data) now[i].x[e] = fmaf(keys[from], v[u].x[e], now[i].x[e]);
                    if (call.out.data) sum[u].x[e] = fmaf(queries[from], now[i].x[e], sum[u].x[e]);
                }
            }
            if (call.v.data) store<WIDTH>(state + (group + i) * step, now[i]);
        }
    }
}

/* Sums of a pass to partial [UNITS][V+1]; scratch [4 (V+1)] with WIDTH 4, where the lanes are all of a group's. */
template <int WIDTH, int UNITS>
__device__ void store_sums(float *partial, float *scratch, const numbers<WIDTH> (&sum)[UNITS], int count,
                           uint32_t width, uint32_t lane) {
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        if (u >= count) break;
        float *to = partial + u * (int64_t)width;
        if constexpr (WIDTH == 1) {
            if (lane < width) to[lane] = sum[u].x[0];
        } else {
            __syncthreads();
            for (int e = 0; e < WIDTH && lane < width; e++)
                scratch[lane * WIDTH + e] = sum[u].x[e];
            __syncthreads();
            for (uint32_t x = threadIdx.x; x < width; x += blockDim.x)
                to[x] = (scratch[x] + scratch[width + x]) + (scratch[2 * width + x] + scratch[3 * width + x]);
        }
    }
}

/* Rows out[b,t,h,:] of a pair from the sums of all its ranges. */
__device__ void finish_pair(const hla_cuda_stream &call, const place &at, const units &work) {
    const int64_t width = call.value_dim + 1, step = work.count * width;
    const float *base = call.partial + at.pair * call.ranges * step;
    for (int64_t i = threadIdx.x; i < work.count * call.value_dim; i += blockDim.x) {
        const int64_t unit = i / call.value_dim, x = i - unit * call.value_dim;
        const int64_t t = unit / work.each, member = unit - t * work.each;
        const float *from = base + unit * width;
        float sum = 0, denominator = 0;
#pragma unroll 4
        for (int64_t range = 0; range < call.ranges; range++) {
            sum += __ldcg(from + range * step + x);
            denominator += __ldcg(from + range * step + call.value_dim);
        }
        denominator += call.epsilon;
        const float normalised = denominator != 0 ? sum / denominator : 0;
        store_element(call.out.data, row_of(call.out, at.b, t, at.h * work.each + member) + x * call.out.stride[3],
                      call.dtype, call.normalised ? normalised : call.scale * sum);
    }
}

/* Whether this block of threads is the last of its pair's; what the others wrote then is seen. */
__device__ bool is_last(const hla_cuda_stream &call, const place &at) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(call.arrived + at.pair, 1u) == (unsigned)call.ranges - 1;
        if (last) call.arrived[at.pair] = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

/* Shared memory: features of keys [UNITS][rows], of queries [UNITS][rows], scratch [4 (V+1)] with WIDTH 4. */
template <int WIDTH, int UNITS>
__global__ void __launch_bounds__(MOST_THREADS) stream_ranges(const __grid_constant__ hla_cuda_stream call) {
    extern __shared__ __align__(16) float shared[];
    float *keys = shared, *queries = keys + UNITS * call.rows, *scratch = queries + UNITS * call.rows;
    const units work = units_of(call);
    const uint32_t width = (uint32_t)call.value_dim + 1;
    for (int64_t unit = blockIdx.x; unit < call.batch * call.kv_heads * call.ranges; unit += gridDim.x) {
        const place at = place_of(call, unit);
        for (uint32_t lanes = 0; lanes < width; lanes += blockDim.x) {
            for (int64_t first = 0; first < work.count; first += UNITS) {
                numbers<WIDTH> sum[UNITS];
                pass<WIDTH, UNITS>(sum, keys, queries, call, at, work, first, lanes + threadIdx.x);
                if (!call.out.data) continue;
                float *partial = call.partial + ((at.pair * call.ranges + at.range) * work.count + first) * width;
                store_sums<WIDTH, UNITS>(partial, scratch, sum, (int)min((int64_t)UNITS, work.count - first), width,
                                         lanes + threadIdx.x);
            }
        }
        if (call.out.data && is_last(call, at)) finish_pair(call, at, work);
        __syncthreads();
    }
}

template <int WIDTH, int UNITS> int launch(const hla_cuda_stream *call, cudaStream_t stream) {
    const int64_t width = call->value_dim + 1, lanes = (width + 31) / 32 * 32;
    const int64_t blocks = call->batch * call->kv_heads * call->ranges;
    const size_t floats = (size_t)(2 * UNITS * call->rows) + (WIDTH == 4 ? (size_t)(4 * width) : 0);
    stream_ranges<WIDTH, UNITS>
        <<<(unsigned)(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS),
           (unsigned)(lanes < MOST_THREADS ? lanes : MOST_THREADS), floats * sizeof(float), stream>>>(*call);
    return (int)cudaGetLastError();
}

constexpr int HEADS = 256; /* numbers that one launch takes by value */

struct gammas {
    float value[HEADS];
};

/* Heads first ... first + count - 1 of to [batch][heads][size]. */
__global__ void __launch_bounds__(256) scale_heads(float *to, const __grid_constant__ gammas gamma, int64_t batch,
                                                   int64_t heads, int64_t first, int64_t count, int64_t size) {
    for (int64_t pair = blockIdx.y; pair < batch * count; pair += gridDim.y) {
        const int64_t h = pair % count;
        float *head = to + (pair / count * heads + first + h) * size;
        for (int64_t i = blockIdx.x * 256 + (int64_t)threadIdx.x; i < size; i += (int64_t)gridDim.x * 256)
            head[i] *= gamma.value[h];
    }
}

__global__ void __launch_bounds__(256) add_numbers(float *to, const float *from, int64_t count) {
    for (int64_t i = blockIdx.x * (int64_t)256 + threadIdx.x; i < count; i += (int64_t)gridDim.x * 256)
        to[i] += from[i];
}

unsigned blocks_for(int64_t count, int64_t most) {
    int64_t blocks = (count - 1) / 256 + 1;
    return (unsigned)(blocks < most ? blocks : most);
}

} // namespace

extern "C" int hla_cuda_stream_run(const hla_cuda_stream *call, void *stream) {
    const int64_t group = call->out.data ? call->heads / call->kv_heads : 1;
    const bool one = group * call->tokens == 1;
    const bool aligned = call->rank % 4 == 0 && (uintptr_t)call->state % 16 == 0 && call->value_dim < MOST_THREADS;
    cudaStream_t queue = (cudaStream_t)stream;
    if (aligned) return one ? launch<4, 1>(call, queue) : launch<4, 4>(call, queue);
    return one ? launch<1, 1>(call, queue) : launch<1, 4>(call, queue);
}

extern "C" int hla_cuda_stream_scale(float *to, const float *gamma, int64_t batch, int64_t heads, int64_t size,
                                     void *stream) {
    for (int64_t first = 0; first < heads; first += HEADS) {
        const int64_t count = heads - first < HEADS ? heads - first : HEADS, pairs = batch * count;
        gammas values = {};
        for (int64_t h = 0; h < count; h++)
            values.value[h] = gamma[first + h];
        dim3 grid(blocks_for(size, 4096), (unsigned)(pairs < 65535 ? pairs : 65535));
        scale_heads<<<grid, 256, 0, (cudaStream_t)stream>>>(to, values, batch, heads, first, count, size);
    }
    return (int)cudaGetLastError();
}

extern "C" int hla_cuda_stream_add(float *to, const float *from, int64_t count, void *stream) {
    add_numbers<<<blocks_for(count, 1 << 20), 256, 0, (cudaStream_t)stream>>>(to, from, count);
    return (int)cudaGetLastError();
}
