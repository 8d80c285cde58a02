/* The general kernels that make states: sums over the tokens of a unit, and their sums over units. */
#include "attention/ops/hadamard/cuda/general.cuh"

namespace {

/* Whether somebody will read the sums of that unit of sequence n. */
__device__ inline bool is_summed(const hla_general_shape &shape, const hla_general_units &units, int64_t n,
                                 int64_t number, bool of_queries, bool whole) {
    sequence s = sequence_at(shape, n);
    if (number * units.length >= (of_queries ? s.queries : s.keys)) return false;
    if (whole || !shape.causal) return true;
    return of_queries ? number > 0 : (number + 1) * units.length < s.queries;
}

struct build_shared {
    slabs operands;
    lost_sums lost;
};

/* [token][feature] of tokens t ... t + 31; feature: pointers to the thread's own column, inside: whether there is one
 */
template <class T>
__device__ inline void fill_rows_of_features(float (*slab)[PITCH], const hla_general_shape &shape,
                                             const hla_general_side &side, const T *const (&feature)[FACTORS],
                                             bool inside, int64_t t, int64_t end) {
    constexpr int STEPS = 8, APART = THREADS / TILE; /* tokens at a time, and their distance */
    const int index = (int)threadIdx.x % TILE;
    for (int first = (int)threadIdx.x / TILE; first < DEPTH; first += STEPS * APART) {
        float product[STEPS] = {1, 1, 1, 1, 1, 1, 1, 1};
#pragma unroll
        for (int p = 0; p < FACTORS; p++) {
            if (p < shape.first_factor) continue;
#pragma unroll
            for (int i = 0; i < STEPS; i++)
                product[i] *= to_float(feature[p][clamped(t + first + i * APART, end) * side.features[p].stride[1]]);
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++)
            slab[first + i * APART][index] = inside && t + first + i * APART < end ? product[i] : 0.0f;
    }
}

/* tile += the sums over tokens first ... end - 1 of one head, for features f ... and columns x ... */
template <class T>
__device__ inline void add_tokens(long_tile &tile, build_shared &memory, const hla_general_build &build,
                                  const tokens<T> &own, int64_t first, int64_t end, int64_t f, int64_t x) {
    const hla_general_shape &shape = build.shape;
    const hla_general_side &side = build.side;
    slabs &shared = memory.operands;
    const int64_t feature = f + threadIdx.x % TILE;
    const bool inside = feature < shape.features;
    const T *column[FACTORS];
    uint32_t rest = (uint32_t)clamped(feature, shape.features);
#pragma unroll
    for (int p = FACTORS - 1; p >= 0; p--) {
        if (p < shape.first_factor) continue;
        uint32_t rank = (uint32_t)shape.rank[p], entry = p > shape.first_factor ? rest % rank : rest;
        rest = p > shape.first_factor ? rest / rank : 0;
        column[p] = own.feature[p] + (int64_t)entry * side.features[p].stride[3];
    }
    int slabs_in_part = 0;
    for (int64_t t = first; t < end; t += DEPTH) {
        fill_rows_of_features(shared.a, shape, side, column, inside, t, end);
        fill_along_index(shared.b,
                         [&](int step, int index) { return y_of(shape, side, own, t + step, end, x + index); });
        if (threadIdx.x < DEPTH) shared.last[threadIdx.x] = last_of(own, t + threadIdx.x, end);
        __syncthreads();
        multiply(tile.part, &shared.a[0][0], PITCH, shared.b);
        if (x == 0) tile.add_last(&shared.a[0][0], PITCH, shared.last);
        if (++slabs_in_part == PART_SLABS) {
            tile.add_parts(memory.lost);
            slabs_in_part = 0;
        }
        __syncthreads();
    }
    tile.add_parts(memory.lost);
}

/* Writes a tile of S, and with the first columns the last one. */
__device__ inline void store_state(float *state, slabs &shared, const long_tile &tile, const hla_general_shape &shape,
                                   int64_t f, int64_t x) {
    const int64_t width = shape.value_dim + 1;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int64_t feature = f + own_row() + i;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            int64_t column = x + own_column() + j;
            if (feature < shape.features && column < shape.value_dim)
                state[feature * width + column] = tile.total[i][j];
        }
    }
    if (x > 0) return;
    join_last(&shared.a[0][0], tile);
    int64_t feature = f + threadIdx.x;
    if (threadIdx.x < TILE && feature < shape.features)
        state[feature * width + shape.value_dim] = shared.a[0][threadIdx.x];
    __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(THREADS, 4)
    build_units(const __grid_constant__ hla_general_build build, int64_t work) {
    __shared__ __align__(16) build_shared memory;
    const hla_general_shape &shape = build.shape;
    const int64_t columns = (shape.value_dim - 1) / TILE + 1, rows = (shape.features - 1) / TILE + 1;
    const int64_t heads = build.side.queries ? shape.group : 1, length = build.units.length;
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        int64_t rest = w, x = rest % columns * TILE;
        rest /= columns;
        int64_t f = rest % rows * TILE;
        rest /= rows;
        int64_t kv = rest % shape.kvs, slot = rest / shape.kvs;
        int64_t unit = build.units.first + slot, n = sequence_of_unit(shape, build.units, unit);
        int64_t number = unit - units_before(shape, build.units, n);
        if (!is_summed(shape, build.units, n, number, build.side.queries, build.whole)) continue;
        long_tile tile;
        tile.clear(memory.lost);
        for (int64_t h = 0; h < heads; h++) {
            tokens<T> own = tokens_of<T>(shape, build.side, n, kv * heads + h);
            int64_t first = number * length, end = first + length < own.count ? first + length : own.count;
            add_tokens(tile, memory, build, own, first, end, f, x);
        }
        float *state = build.slots + (slot * shape.kvs + kv) * shape.features * (shape.value_dim + 1);
        store_state(state, memory.operands, tile, shape, f, x);
    }
}

/* Where a number of a state goes when it is rounded, and how. */
struct rounding {
    int64_t size, place; /* numbers of a rounded state, and before this one */
    bool half, last;     /* float16; of the last column */

    __device__ rounding(const hla_general_shape &shape, int64_t e) {
        const int64_t width = shape.value_dim, f = e / (width + 1), x = e % (width + 1);
        size = shape.features * (width + 8), place = f * (width + 8) + x;
        half = shape.dtype == HLA_F16, last = x == width;
    }
    template <class T> __device__ void write(T *to, float number) const {
        store(to, number);
        if (!last) return;
        store(to + 1, number - to_float(*to));
        for (int i = 2; i < 8; i++)
            store(to + i, 0.0f);
    }
    __device__ void write(const hla_general_scan &scan, int64_t state, double sum) const {
        const float number = (float)(sum * (double)scan.sigma);
        if (half)
            write((__half *)scan.rounded + state * size + place, number);
        else
            write((bfloat16 *)scan.rounded + state * size + place, number);
    }
};

/* One number of the state of one key head: through the units of the launch, in the order of the scan. */
__device__ inline void scan_number(const hla_general_scan &scan, int64_t kv, int64_t e, int64_t size) {
    const hla_general_shape &shape = scan.shape;
    const hla_general_units &units = scan.units;
    int64_t unit = scan.reverse ? units.first + units.count - 1 : units.first, step = scan.reverse ? -1 : 1;
    int64_t n = sequence_of_unit(shape, units, unit);
    int64_t first = units_before(shape, units, n), next = units_before(shape, units, n + 1);
    float *goes_on = scan.carry + kv * size + e; /* causal */
    const rounding rounded(shape, e);
    double sum = 0;
    for (int64_t i = 0; i < units.count; i++, unit += step) {
        if (unit >= next || unit < first) {
            n += step;
            first = units_before(shape, units, n), next = units_before(shape, units, n + 1);
        }
        const int64_t state = (n * shape.kv_heads + shape.first_kv + kv) * size + e;
        float *slot = scan.slots + ((unit - units.first) * shape.kvs + kv) * size + e;
        if (!shape.causal) goes_on = scan.states + ((n - shape.first_sequence) * shape.kvs + kv) * size + e;
        if (unit == (scan.reverse ? next - 1 : first))
            sum = scan.initial ? (double)scan.initial[state] : 0;
        else if (i == 0)
            sum = (double)*goes_on;
        double term = is_summed(shape, units, n, unit - first, scan.queries, scan.whole) ? (double)*slot : 0;
        if (shape.causal && scan.rounded)
            rounded.write(scan, (unit - units.first) * shape.kvs + kv, sum);
        else if (shape.causal)
            *slot = (float)sum;
        sum += term;
        bool done = unit == (scan.reverse ? first : next - 1);
        if (done && scan.final) scan.final[state] = (float)sum;
        if (done && scan.rounded && !shape.causal)
            rounded.write(scan, (n - shape.first_sequence) * shape.kvs + kv, sum);
        if (i == units.count - 1 || (done && !shape.causal)) *goes_on = (float)sum;
    }
}

__global__ void __launch_bounds__(256) scan_units(const __grid_constant__ hla_general_scan scan, int64_t work) {
    const int64_t size = scan.shape.features * (scan.shape.value_dim + 1);
    for (int64_t w = (int64_t)blockIdx.x * 256 + threadIdx.x; w < work; w += (int64_t)gridDim.x * 256)
        scan_number(scan, w / size, w % size, size);
}

} // namespace

extern "C" int hla_general_launch_build(const hla_general_build *build, void *stream) {
    const hla_general_shape &shape = build->shape;
    int64_t work =
        ((shape.value_dim - 1) / TILE + 1) * ((shape.features - 1) / TILE + 1) * shape.kvs * build->units.count;
    static void (*const kernels[])(hla_general_build, int64_t) = {build_units<float>, build_units<bfloat16>,
                                                                  build_units<__half>};
    kernels[shape.dtype]<<<grid_of(work), THREADS, 0, (cudaStream_t)stream>>>(*build, work);
    return (int)cudaGetLastError();
}

extern "C" int hla_general_launch_scan(const hla_general_scan *scan, void *stream) {
    int64_t work = scan->shape.kvs * scan->shape.features * (scan->shape.value_dim + 1);
    scan_units<<<grid_of((work - 1) / 256 + 1), 256, 0, (cudaStream_t)stream>>>(*scan, work);
    return (int)cudaGetLastError();
}
