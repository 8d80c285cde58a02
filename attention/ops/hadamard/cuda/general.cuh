/* attention/ops/hadamard/cuda/general.cuh - what the general kernels share: element types, where tokens and units lie,
 * and the product of two slabs in shared memory.
 *
 * A block of 128 threads owns a tile of 64 x 64 sums, a thread 8 rows x 4 columns of it. Operands come in slabs of 32
 * steps of the summed index, [step][row] and [step][column], which a block fills together; whatever lies outside is 0.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_GENERAL_CUH
#define HLA_OPS_HADAMARD_CUDA_GENERAL_CUH

#include "attention/ops/hadamard/cuda/general.h"

#include <cuda_fp16.h>

namespace {

constexpr int TILE = HLA_GENERAL_TILE;
constexpr int FACTORS = HLA_MAX_FACTORS;
constexpr int THREADS = 128, ROWS = 8, COLUMNS = 4;
constexpr int DEPTH = 32;       /* steps of a slab */
constexpr int PITCH = TILE + 4; /* keeps rows on 16 bytes and apart in banks */
constexpr int64_t MAX_BLOCKS = 1 << 30;

/* ---- element types ---- */

struct bfloat16 {
    uint16_t bits;
};

__device__ inline float to_float(float value) {
    return value;
}

__device__ inline float to_float(bfloat16 value) {
    return __uint_as_float((unsigned)value.bits << 16);
}

__device__ inline float to_float(__half value) {
    return __half2float(value);
}

__device__ inline void store(float *to, float value) {
    *to = value;
}

/* To nearest, ties to even; a NaN stays one. */
__device__ inline void store(bfloat16 *to, float value) {
    unsigned bits = __float_as_uint(value);
    unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to->bits = (uint16_t)(value == value ? rounded : (bits >> 16) | 0x40u);
}

__device__ inline void store(__half *to, float value) {
    *to = __float2half_rn(value);
}

/* ---- sequences and units ---- */

struct sequence {
    int64_t b, query_first, queries, key_first, keys;
};

__device__ inline sequence sequence_at(const hla_general_shape &shape, int64_t n) {
    if (shape.packed) {
        int64_t query = shape.query_starts[n], key = shape.key_starts[n];
        return {0, query, shape.query_starts[n + 1] - query, key, shape.key_starts[n + 1] - key};
    }
    return {n, 0, shape.queries, 0, shape.key_lengths ? shape.key_lengths[n] : shape.keys};
}

/* Units of all sequences before n: packed, as many as fit between the starts and one more for each sequence, so that
 * no table of sums is needed. */
__device__ inline int64_t units_before(const hla_general_shape &shape, const hla_general_units &units, int64_t n) {
    if (!shape.packed) {
        int64_t queries = units.of_queries ? shape.queries : 0, keys = units.of_keys ? shape.keys : 0;
        int64_t tokens = queries > keys ? queries : keys;
        return n * (tokens > 0 ? (tokens - 1) / units.length + 1 : 1);
    }
    int64_t tokens = (units.of_queries ? shape.query_starts[n] : 0) + (units.of_keys ? shape.key_starts[n] : 0);
    return tokens / units.length + n;
}

/* The sequence of the wave that a unit belongs to. */
__device__ inline int64_t sequence_of_unit(const hla_general_shape &shape, const hla_general_units &units,
                                           int64_t unit) {
    int64_t low = shape.first_sequence, high = low + shape.sequences; /* low <= n < high */
    if (!shape.packed) return unit / units_before(shape, units, 1);
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (units_before(shape, units, middle) <= unit)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* ---- tokens ---- */

/* The tokens of one head of a sequence on one side. */
template <class T> struct tokens {
    const T *feature[FACTORS]; /* of token 0; factors that the problem lacks: NULL */
    const T *row;
    const float *weight; /* what row and last of a token's y are multiplied by, or are: two numbers, */
    int64_t weight_step; /* that far apart, or the same two for all tokens */
    int64_t place;       /* of token 0 among the queries of the wave, whose weights and records are numbered so */
    int64_t count;
};

template <class T> __device__ inline T *head_of_view(const hla_cuda_view &view, int64_t b, int64_t first, int64_t h) {
    return (T *)view.data + b * view.stride[0] + first * view.stride[1] + h * view.stride[2];
}

/* head: of the wave on that side, counted from its first. */
template <class T>
__device__ inline tokens<T> tokens_of(const hla_general_shape &shape, const hla_general_side &side, int64_t n,
                                      int64_t head) {
    sequence s = sequence_at(shape, n);
    int64_t first = side.queries ? s.query_first : s.key_first;
    int64_t heads = side.queries ? shape.group : 1; /* a key head */
    int64_t h = shape.first_kv * heads + head;
    tokens<T> t;
#pragma unroll
    for (int p = 0; p < FACTORS; p++)
        t.feature[p] = p < shape.first_factor ? nullptr : head_of_view<const T>(side.features[p], s.b, first, h);
    t.row = head_of_view<const T>(side.rows, s.b, first, h);
    int64_t b = shape.packed ? 0 : n - shape.first_sequence;
    t.place = (b * shape.kvs * heads + head) * shape.queries + first;
    t.weight = side.weights ? side.weights + 2 * t.place : &side.factor;
    t.weight_step = side.weights ? 2 : 0;
    t.count = side.queries ? s.queries : s.keys;
    return t;
}

/* Loads are of clamped indices, and what lies outside is replaced by 0 afterwards: without branches in between they
 * are all under way at once. end: at least 1. */
__device__ inline int64_t clamped(int64_t index, int64_t end) {
    return index < end ? index : end - 1;
}

/* Column x of a token's y, before the last; 0 outside. */
template <class T>
__device__ inline float y_of(const hla_general_shape &shape, const hla_general_side &side, const tokens<T> &t,
                             int64_t token, int64_t end, int64_t x) {
    int64_t safe = clamped(token, end);
    const T *row = t.row + safe * side.rows.stride[1] + clamped(x, shape.value_dim) * side.rows.stride[3];
    float value = to_float(*row) * t.weight[safe * t.weight_step];
    return token < end && x < shape.value_dim ? value : 0.0f;
}

/* The last one. */
template <class T> __device__ inline float last_of(const tokens<T> &t, int64_t token, int64_t end) {
    float value = t.weight[clamped(token, end) * t.weight_step + 1];
    return token < end ? value : 0.0f;
}

/* ---- slabs and products ---- */

struct slabs {
    float a[DEPTH][PITCH], b[DEPTH][PITCH];
    float last[DEPTH]; /* a column that stands for itself: the last of S or y */
};

/* Fills a slab with value(step, index): threads of a warp take neighbouring indices. */
template <class F> __device__ inline void fill_along_index(float (*slab)[PITCH], F value) {
    int index = (int)threadIdx.x % TILE, first = (int)threadIdx.x / TILE;
#pragma unroll 8
    for (int i = 0; i < DEPTH * TILE / THREADS; i++) {
        int step = first + i * (THREADS / TILE);
        slab[step][index] = value(step, index);
    }
}

/* The same; threads of a warp take eight neighbouring steps. */
template <class F> __device__ inline void fill_along_steps(float (*slab)[PITCH], F value) {
    int first_step = (int)threadIdx.x % 8, first_index = (int)threadIdx.x / 8;
#pragma unroll 2
    for (int i = 0; i < DEPTH / 8; i++) {
#pragma unroll
        for (int j = 0; j < TILE / (THREADS / 8); j++) {
            int step = first_step + 8 * i, index = first_index + j * (THREADS / 8);
            slab[step][index] = value(step, index);
        }
    }
}

/* Features f ... f + 31 of tokens t ... t + 63 to [feature][token]. */
template <class T>
__device__ inline void fill_features(float (*slab)[PITCH], const hla_general_shape &shape, const hla_general_side &side,
                                     const tokens<T> &own, int64_t t, int64_t f) {
    constexpr int APART = THREADS / 8, TOKENS = TILE / APART;
    int step = (int)threadIdx.x % 8, index = (int)threadIdx.x / 8;
    int64_t token[TOKENS];
#pragma unroll
    for (int j = 0; j < TOKENS; j++)
        token[j] = clamped(t + index + j * APART, own.count);
#pragma unroll 2
    for (int i = 0; i < DEPTH / 8; i++, step += 8) {
        float product[TOKENS] = {1, 1, 1, 1};
        uint32_t rest = (uint32_t)clamped(f + step, shape.features);
#pragma unroll
        for (int p = FACTORS - 1; p >= 0; p--) {
            if (p < shape.first_factor) continue;
            uint32_t rank = (uint32_t)shape.rank[p], entry = p > shape.first_factor ? rest % rank : rest;
            rest = p > shape.first_factor ? rest / rank : 0;
            const T *place = own.feature[p] + (int64_t)entry * side.features[p].stride[3];
#pragma unroll
            for (int j = 0; j < TOKENS; j++)
                product[j] *= to_float(place[token[j] * side.features[p].stride[1]]);
        }
#pragma unroll
        for (int j = 0; j < TOKENS; j++) {
            bool inside = f + step < shape.features && t + index + j * APART < own.count;
            slab[step][index + j * APART] = inside ? product[j] : 0.0f;
        }
    }
}

__device__ inline int own_row() {
    return (int)threadIdx.x / (TILE / COLUMNS) * ROWS;
}

__device__ inline int own_column() {
    return (int)threadIdx.x % (TILE / COLUMNS) * COLUMNS;
}

using tile_sums = float[ROWS][COLUMNS];

/* sums += the thread's part of a^T b over `depth` steps; a: [step][rows], `pitch` floats apart */
__device__ inline void multiply(tile_sums &sums, const float *a, int pitch, const float (*b)[PITCH],
                                int depth = DEPTH) {
    const float *left = a + own_row();
    const int column = own_column();
#pragma unroll 8
    for (int step = 0; step < depth; step++) {
        float4 low = *(const float4 *)(left + step * pitch), high = *(const float4 *)(left + step * pitch + 4);
        float4 right = *(const float4 *)&b[step][column];
        const float x[ROWS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        const float y[COLUMNS] = {right.x, right.y, right.z, right.w};
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                sums[i][j] = fmaf(x[i], y[j], sums[i][j]);
        }
    }
}

__device__ inline void set_all(tile_sums &sums, float value) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            sums[i][j] = value;
    }
}

/* Stores a thread's sums as [column][row]. */
__device__ inline void store_columns(float (*to)[PITCH], const tile_sums &sums) {
    int row = own_row(), column = own_column();
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        *(float4 *)&to[column + j][row] = make_float4(sums[0][j], sums[1][j], sums[2][j], sums[3][j]);
        *(float4 *)&to[column + j][row + 4] = make_float4(sums[4][j], sums[5][j], sums[6][j], sums[7][j]);
    }
}

/* A sum of any length in float32: parts of at most 128 steps are summed in order, the parts with what each addition
 * lost (Kahan). */
struct long_sum {
    float part, total, lost;

    __device__ inline void clear() {
        part = total = lost = 0;
    }

    __device__ inline void add_part() {
        float term = part - lost, sum = total + term;
        lost = (sum - total) - term;
        total = sum;
        part = 0;
    }
};

constexpr int PART_SLABS = 4; /* slabs of a part */

/* A tile of them, and the thread's half of one row's sum over the column `last`. What additions lost lies in shared
 * memory, [sum][thread]: it is needed once a part. */
using lost_sums = float[ROWS * COLUMNS][THREADS];

struct long_tile {
    tile_sums part, total;
    long_sum last;

    __device__ inline void clear(lost_sums &lost) {
        set_all(part, 0);
        set_all(total, 0);
        last.clear();
#pragma unroll
        for (int i = 0; i < ROWS * COLUMNS; i++)
            lost[i][threadIdx.x] = 0;
    }

    __device__ inline void add_parts(lost_sums &lost) {
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) {
                float &rest = lost[i * COLUMNS + j][threadIdx.x];
                float term = part[i][j] - rest, sum = total[i][j] + term;
                rest = (sum - total[i][j]) - term;
                total[i][j] = sum;
                part[i][j] = 0;
            }
        }
        last.add_part();
    }

    /* The column `last` of a slab: row threadIdx % 64, the first or second half of the steps. */
    __device__ inline void add_last(const float *a, int pitch, const float *column) {
        int row = (int)threadIdx.x % TILE, first = (int)threadIdx.x / TILE * (DEPTH / 2);
#pragma unroll 8
        for (int step = first; step < first + DEPTH / 2; step++)
            last.part = fmaf(a[step * pitch + row], column[step], last.part);
    }
};

/* sums[row] = both halves of each row's sum over the column `last`; for the whole block. */
__device__ inline void join_last(float *sums, const long_tile &tile) {
    int row = (int)threadIdx.x % TILE;
    if (threadIdx.x >= TILE) sums[row] = tile.last.total;
    __syncthreads();
    if (threadIdx.x < TILE) sums[row] += tile.last.total;
    __syncthreads();
}

/* w *= the scores of 64 tokens of own and 64 of other in factor p. */
template <class T>
__device__ inline void multiply_scores(tile_sums &w, slabs &shared, const hla_general_sight &sight,
                                       const tokens<T> &own, int64_t own_token, const tokens<T> &other,
                                       int64_t other_token, int p) {
    const int64_t rank = sight.shape.rank[p];
    const hla_cuda_view &own_view = sight.self.features[p], &other_view = sight.other.features[p];
    tile_sums dots;
    set_all(dots, 0);
    for (int64_t r = 0; r < rank; r += DEPTH) {
        fill_along_steps(shared.a, [&](int step, int index) {
            const T *place = own.feature[p] + clamped(own_token + index, own.count) * own_view.stride[1];
            float value = to_float(place[clamped(r + step, rank) * own_view.stride[3]]);
            return r + step < rank && own_token + index < own.count ? value : 0.0f;
        });
        fill_along_steps(shared.b, [&](int step, int index) {
            const T *place = other.feature[p] + clamped(other_token + index, other.count) * other_view.stride[1];
            float value = to_float(place[clamped(r + step, rank) * other_view.stride[3]]);
            return r + step < rank && other_token + index < other.count ? value : 0.0f;
        });
        __syncthreads();
        multiply(dots, &shared.a[0][0], PITCH, shared.b);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            w[i][j] *= dots[i][j];
    }
}

/* w = 0 where the pair's query comes before its key. */
__device__ inline void mask_causal(tile_sums &w, bool self_is_query, int64_t own_token, int64_t other_token) {
    int64_t first = own_token + own_row() - (other_token + own_column());
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            int64_t ahead = first + i - j; /* of the other token */
            if (self_is_query ? ahead < 0 : ahead > 0) w[i][j] = 0;
        }
    }
}

/* The other side's tokens first ... end - 1 that a tile of own at `token` is paired with. */
struct range {
    int64_t first, end;
};

__device__ inline range paired(const hla_general_sight &sight, int64_t token, int64_t count, int64_t tile = TILE) {
    int64_t chunk = sight.chunk > 0 ? sight.chunk : INT64_MAX / 2, start = token / chunk * chunk;
    range pairs = {start, start + chunk};
    if (sight.shape.causal && sight.self.queries) pairs.end = token + tile < pairs.end ? token + tile : pairs.end;
    if (sight.shape.causal && !sight.self.queries) pairs.first = token;
    if (pairs.end > count) pairs.end = count;
    return pairs;
}

/* Where a block works: tile `token` of head `head` of sequence n. */
struct place {
    int64_t n, token, head, unit;
    bool start; /* the chunk is the first in the order of the scan */
};

/* Block's work number `work` among count x heads x tiles of a unit. */
__device__ inline place place_of(const hla_general_sight &sight, int64_t work, int64_t tile = TILE) {
    int64_t tiles = (sight.units.length - 1) / tile + 1;
    place at;
    at.head = work / (tiles * sight.units.count);
    int64_t rest = work % (tiles * sight.units.count);
    at.unit = sight.units.first + rest / tiles;
    at.n = sequence_of_unit(sight.shape, sight.units, at.unit);
    int64_t first = units_before(sight.shape, sight.units, at.n);
    at.token = (at.unit - first) * sight.units.length + rest % tiles * tile;
    at.start = sight.self.queries ? at.unit == first : at.unit == units_before(sight.shape, sight.units, at.n + 1) - 1;
    return at;
}

/* Which of the states a tile reads, or -1 where it is known to be empty. */
__device__ inline int64_t state_slot(const hla_general_sight &sight, const place &at) {
    if (!sight.states || (sight.empty_start && at.start)) return -1;
    int64_t kv = sight.self.queries ? at.head / sight.shape.group : at.head;
    int64_t slot = sight.shape.causal ? at.unit - sight.units.first : at.n - sight.shape.first_sequence;
    return slot * sight.shape.kvs + kv;
}

__device__ inline const float *state_of(const hla_general_sight &sight, const place &at) {
    const int64_t slot = state_slot(sight, at);
    return slot < 0 ? nullptr : sight.states + slot * sight.shape.features * (sight.shape.value_dim + 1);
}

/* Rows of self that are written: those of keys beyond a length become zeros. */
template <class T> __device__ inline int64_t written_rows(const hla_general_sight &sight, const tokens<T> &own) {
    return sight.self.queries || sight.shape.packed ? own.count : sight.shape.keys;
}

/* heads of self in the wave */
inline __host__ __device__ int64_t heads_of(const hla_general_sight &sight) {
    return sight.shape.kvs * (sight.self.queries ? sight.shape.group : 1);
}

inline int grid_of(int64_t work) {
    return (int)(work < MAX_BLOCKS ? work : MAX_BLOCKS);
}

} // namespace

#endif
