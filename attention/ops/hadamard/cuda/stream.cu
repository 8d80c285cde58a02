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
#include "attention/cuda/elements.cuh"
#include "attention/ops/hadamard/cuda/stream.h"

namespace {

constexpr int MOST_THREADS = 512;

/* Registers of a thread when one unit is asked: on Hopper few enough for five blocks of 160 threads a multiprocessor;
 * elsewhere some would be kept in memory then. */
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr int REGISTERS = 80;
#else
constexpr int REGISTERS = 96;
#endif
constexpr int64_t MOST_BLOCKS = INT32_MAX;

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
    uint32_t each, count; /* of a token, in all */
};

__device__ __forceinline__ units units_of(const hla_cuda_stream &call) {
    uint32_t each = call.out.data ? (uint32_t)(call.heads / call.kv_heads) : 1;
    return {each, each * (uint32_t)call.tokens};
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

/* Features of a pass's units for the rows of a range, of keys [rows][UNITS] and of queries likewise; zero where a token
 * has joined before, and beyond the last unit. */
template <int UNITS>
__device__ void expand(float *keys, float *queries, const hla_cuda_stream &call, const place &at, const units &work,
                       uint32_t first) {
    for (uint32_t i = threadIdx.x; i < UNITS * at.rows; i += blockDim.x) {
        const uint32_t unit = first + i % UNITS, f = at.first + i / UNITS;
        const uint32_t t = UNITS == 1 ? 0 : unit / work.each, member = UNITS == 1 ? 0 : unit - t * work.each;
        const bool there = unit < work.count;
        if (call.v.data) keys[i] = there && member == 0 ? feature(call, call.k, at.b, t, at.h, f) : 0;
        if (call.out.data) queries[i] = there ? feature(call, call.q, at.b, t, at.h * work.each + member, f) : 0;
    }
}

/* One number of each unit. */
template <int UNITS> struct of_units { float x[UNITS]; };

template <int UNITS> __device__ __forceinline__ of_units<UNITS> load_units(const float *row) {
    of_units<UNITS> value;
    if constexpr (UNITS == 4) {
        float4 four = *(const float4 *)row;
        value.x[0] = four.x, value.x[1] = four.y, value.x[2] = four.z, value.x[3] = four.w;
    } else {
        value.x[0] = *row;
    }
    return value;
}

/* Where the numbers of a lane lie in their group of WIDTH rows: in one row, or the first ones in it and the others in
 * the next (V + 1 is at least WIDTH). */
template <int WIDTH> struct split_rows {
    uint32_t first, last;
    bool in_first[WIDTH];
};

/* value[e] of unit u for each of the lane's numbers */
template <int WIDTH, int UNITS>
__device__ __forceinline__ float pick(const of_units<UNITS> &first, const of_units<UNITS> &last,
                                      const split_rows<WIDTH> &rows, int e, int u) {
    if (e == 0) return first.x[u];
    if (e == WIDTH - 1) return last.x[u];
    return rows.in_first[e] ? first.x[u] : last.x[u];
}

/* A lane's numbers of one group of rows meet a pass's units: each joins, then asks. keys, queries: of the group. */
template <int WIDTH, int UNITS>
__device__ __forceinline__ void meet(numbers<WIDTH> &state, numbers<WIDTH> (&sum)[UNITS],
                                     const numbers<WIDTH> (&v)[UNITS], const float *keys, const float *queries,
                                     const split_rows<WIDTH> &rows, bool join, bool ask) {
    of_units<UNITS> k[2] = {}, q[2] = {};
    if (join) {
        k[0] = load_units<UNITS>(keys + rows.first * UNITS);
        k[1] = WIDTH == 1 ? k[0] : load_units<UNITS>(keys + rows.last * UNITS);
    }
    if (ask) {
        q[0] = load_units<UNITS>(queries + rows.first * UNITS);
        q[1] = WIDTH == 1 ? q[0] : load_units<UNITS>(queries + rows.last * UNITS);
    }
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            if (join) state.x[e] = fmaf(pick<WIDTH, UNITS>(k[0], k[1], rows, e, u), v[u].x[e], state.x[e]);
            if (ask) sum[u].x[e] = fmaf(pick<WIDTH, UNITS>(q[0], q[1], rows, e, u), state.x[e], sum[u].x[e]);
        }
    }
}

/* The lane's part of the values that join in a pass, zero for units that do not. */
template <int WIDTH, int UNITS>
__device__ __forceinline__ void load_values(numbers<WIDTH> (&v)[UNITS], const hla_cuda_stream &call, const place &at,
                                            const units &work, uint32_t first, uint32_t lane) {
    const uint32_t width = (uint32_t)call.value_dim + 1;
#pragma unroll
    for (int u = 0; u < UNITS; u++) {
        const uint32_t unit = first + u, t = UNITS == 1 ? 0 : unit / work.each;
        const bool joins = call.v.data && lane < width && unit < work.count && t * work.each == unit;
#pragma unroll
        for (int e = 0; e < WIDTH; e++) {
            const uint32_t column = (lane * WIDTH + e) % width;
            v[u].x[e] = joins ? 1 : 0;
            if (joins && column < call.value_dim)
                v[u].x[e] =
                    load_element(call.v.data, row_of(call.v, at.b, t, at.h) + column * call.v.stride[3], call.dtype);
        }
    }
}

/* A pass over the range for UNITS units from first on: lane `lane` of the groups of WIDTH rows. Leaves the lane's sums.
 */
template <int WIDTH, int UNITS>
__device__ void pass(numbers<WIDTH> (&sum)[UNITS], float *keys, float *queries, const hla_cuda_stream &call,
                     const place &at, const units &work, uint32_t first, uint32_t lane) {
    constexpr int BATCH = UNITS == 1 ? 4 : 2; /* groups of rows on their way from memory: registers suffice */
    const uint32_t width = (uint32_t)call.value_dim + 1, groups = at.rows / WIDTH, step = width * WIDTH;
    const bool active = lane < width, join = call.v.data, ask = call.out.data;
    float *state = at.state + (int64_t)lane * WIDTH;
    numbers<WIDTH> next[BATCH], v[UNITS];
#pragma unroll
    for (int i = 0; i < BATCH; i++)
        next[i] = active && i < groups ? load<WIDTH>(state + (int64_t)i * step) : numbers<WIDTH>{};
    load_values<WIDTH, UNITS>(v, call, at, work, first, lane);
    __syncthreads(); /* the features of the pass before are no longer needed */
    expand<UNITS>(keys, queries, call, at, work, first);
    split_rows<WIDTH> rows = {lane * WIDTH / width, (lane * WIDTH + WIDTH - 1) / width, {}};
#pragma unroll
    for (int e = 0; e < WIDTH; e++)
        rows.in_first[e] = (lane * WIDTH + e) / width == rows.first;
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        sum[u] = {};
    __syncthreads();
    if (!active) return;
    for (uint32_t group = 0; group < groups; group += BATCH) {
        numbers<WIDTH> now[BATCH];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            now[i] = next[i];
            const uint32_t ahead = group + BATCH + i;
            if (ahead < groups) next[i] = load<WIDTH>(state + (int64_t)ahead * step);
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            if (group + i >= groups) break;
            const uint32_t features = (group + i) * WIDTH * UNITS;
            meet<WIDTH, UNITS>(now[i], sum, v, keys + features, queries + features, rows, join, ask);
            if (join) store<WIDTH>(state + (int64_t)(group + i) * step, now[i]);
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
    const int64_t width = call.value_dim + 1, step = work.count * width; /* of a range */
    const float *base = call.partial + at.pair * call.ranges * step;
    for (int64_t i = threadIdx.x; i < work.count * call.value_dim; i += blockDim.x) {
        const uint32_t unit = (uint32_t)(i / call.value_dim), t = unit / work.each, member = unit - t * work.each;
        const int64_t x = i - unit * call.value_dim;
        const float *from = base + unit * width;
        float sum = 0, denominator = 0;
#pragma unroll 8
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
__global__ void __maxnreg__(UNITS == 1 ? REGISTERS : 128) stream_ranges(const __grid_constant__ hla_cuda_stream call) {
    extern __shared__ __align__(16) float shared[];
    float *keys = shared, *queries = keys + UNITS * call.rows, *scratch = queries + UNITS * call.rows;
    const units work = units_of(call);
    const uint32_t width = (uint32_t)call.value_dim + 1;
    for (int64_t unit = blockIdx.x; unit < call.batch * call.kv_heads * call.ranges; unit += gridDim.x) {
        const place at = place_of(call, unit);
        for (uint32_t lanes = 0; lanes < width; lanes += blockDim.x) {
            for (uint32_t first = 0; first < work.count; first += UNITS) {
                numbers<WIDTH> sum[UNITS];
                pass<WIDTH, UNITS>(sum, keys, queries, call, at, work, first, lanes + threadIdx.x);
                if (!call.out.data) continue;
                float *partial = call.partial + ((at.pair * call.ranges + at.range) * work.count + first) * width;
                store_sums<WIDTH, UNITS>(partial, scratch, sum, (int)min((uint32_t)UNITS, work.count - first), width,
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
    const bool aligned = call->rank % 4 == 0 && (uintptr_t)call->state % 16 == 0 && call->value_dim < MOST_THREADS &&
                         call->value_dim >= 3;
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
