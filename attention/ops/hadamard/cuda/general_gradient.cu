/* The general kernel that reads a state, or pairs of tokens, in the direction of features: gradients of the factors.
 *
 * A block owns 64 tokens of a head and goes through all features: a tile u_t[f] = sum_x S[f][x] y_t[x] is made and at
 * once folded, a thread a token, into the factors' gradients. For f = (.., e_p, ..) in rising order, the last factor P
 * gets
 *     df^P[e_P] += u[f] f^1[e_1] ... f^(P-1)[e_(P-1)]
 * and the sums g[e_1 .. e_(P-1)] = sum_(e_P) u[f] f^P[e_P] are the same problem with one factor less.
 */
#include "attention/ops/hadamard/cuda/general.cuh"

namespace {

/* Shared memory before the sums. */
struct gradient_shared {
    slabs operands;
    float row_last[TILE], column_last[TILE]; /* the last number of y of own tokens, and of S or y of the columns */
};

/* What a block keeps for its tokens, in shared memory or scratch: [sum of ranks][TILE] each. */
struct factor_sums {
    float *features, *gradients;
    int first[FACTORS]; /* row of each factor's first entry */
};

/* The tile's u, [feature][token], over the operands. */
__device__ inline float (*gradient_tile(slabs &operands))[PITCH] {
    static_assert(2 * DEPTH == TILE && offsetof(slabs, b) == sizeof(slabs::a), "a and b make one array");
    return operands.a;
}

__device__ inline factor_sums place_sums(float *memory, const hla_general_shape &shape) {
    factor_sums sums;
    int rows = 0;
#pragma unroll
    for (int p = 0; p < FACTORS; p++) {
        sums.first[p] = rows;
        if (p >= shape.first_factor) rows += (int)shape.rank[p];
    }
    sums.features = memory;
    sums.gradients = memory + rows * TILE;
    return sums;
}

/* Calls action(entry of all factors, token, factor, entry) for every number of [sum of ranks][TILE] that this thread
 * owns: eight neighbouring entries are those of neighbouring threads. */
template <class F>
__device__ inline void each_number(const factor_sums &sums, const hla_general_shape &shape, F action) {
#pragma unroll
    for (int p = 0; p < FACTORS; p++) {
        if (p < shape.first_factor) continue;
        for (int entry = (int)threadIdx.x % 8; entry < shape.rank[p]; entry += 8) {
            for (int token = (int)threadIdx.x / 8; token < TILE; token += THREADS / 8)
                action((sums.first[p] + entry) * TILE + token, token, p, entry);
        }
    }
}

template <class T>
__device__ inline void load_features(const factor_sums &sums, const hla_general_sight &sight, const tokens<T> &own,
                                     int64_t token) {
    each_number(sums, sight.shape, [&](int place, int index, int p, int entry) {
        const hla_cuda_view &view = sight.self.features[p];
        bool inside = token + index < own.count;
        const T *feature = own.feature[p] + (token + index) * view.stride[1] + entry * view.stride[3];
        sums.features[place] = inside ? to_float(*feature) : 0.0f;
        sums.gradients[place] = 0;
    });
}

template <class T>
__device__ inline void store_gradients(const hla_general_gradient &gradient, const factor_sums &sums, const place &at,
                                       int64_t limit) {
    const hla_general_shape &shape = gradient.sight.shape;
    sequence s = sequence_at(shape, at.n);
    bool queries = gradient.sight.self.queries;
    int64_t h = shape.first_kv * (queries ? shape.group : 1) + at.head;
    each_number(sums, shape, [&](int place, int index, int p, int entry) {
        const hla_cuda_view &view = gradient.gradients[p];
        T *to = head_of_view<T>(view, s.b, queries ? s.query_first : s.key_first, h);
        if (at.token + index < limit)
            store(to + (at.token + index) * view.stride[1] + entry * view.stride[3], sums.gradients[place]);
    });
}

/* ---- folding ---- */

/* The entries of a feature, and a token's product of the factors before p. */
struct entries {
    uint32_t entry[FACTORS];

    __device__ inline entries(const hla_general_shape &shape, int64_t f) {
        uint32_t rest = (uint32_t)f;
#pragma unroll
        for (int p = FACTORS - 1; p >= 0; p--) {
            entry[p] = p > shape.first_factor ? rest % (uint32_t)shape.rank[p] : rest;
            if (p > shape.first_factor) rest /= (uint32_t)shape.rank[p];
        }
    }

    __device__ inline float product_before(int end, const factor_sums &sums, const hla_general_shape &shape,
                                           int token) const {
        float product = 1;
#pragma unroll
        for (int p = 0; p < FACTORS; p++) {
            if (p >= shape.first_factor && p < end) product *= sums.features[(sums.first[p] + entry[p]) * TILE + token];
        }
        return product;
    }
};

constexpr int RUN = 8; /* entries of the last factor taken at once */

/* to[entry] += u x others over `count` neighbouring entries */
__device__ inline void add_run(float *to, const float (*u)[PITCH], float others, int count, int token) {
    for (; count >= RUN; count -= RUN, to += RUN * TILE, u += RUN) {
        float sum[RUN];
#pragma unroll
        for (int i = 0; i < RUN; i++)
            sum[i] = fmaf(u[i][token], others, to[i * TILE]);
#pragma unroll
        for (int i = 0; i < RUN; i++)
            to[i * TILE] = sum[i];
    }
    for (int i = 0; i < count; i++)
        to[i * TILE] = fmaf(u[i][token], others, to[i * TILE]);
}

/* sum + u . features over `count` neighbouring entries */
__device__ inline float contract_run(float sum, const float *features, const float (*u)[PITCH], int count, int token) {
#pragma unroll 8
    for (int i = 0; i < count; i++)
        sum = fmaf(u[i][token], features[i * TILE], sum);
    return sum;
}

/* How many of features f + i ... f + count - 1 differ in the last factor's entry only. */
__device__ inline int run_of(const entries &at, const hla_general_shape &shape, int i, int count) {
    int left = (int)shape.rank[FACTORS - 1] - (int)at.entry[FACTORS - 1];
    return left < count - i ? left : count - i;
}

/* The last factor's gradient from features f ... f + count - 1. */
__device__ inline void fold_last(const float (*u)[PITCH], const factor_sums &sums, const hla_general_shape &shape,
                                 int64_t f, int count, int token) {
    constexpr int LAST = FACTORS - 1;
    for (int i = 0; i < count;) {
        entries at(shape, f + i);
        int run = run_of(at, shape, i, count);
        float others = at.product_before(LAST, sums, shape, token);
        add_run(sums.gradients + (sums.first[LAST] + at.entry[LAST]) * TILE + token, u + i, others, run, token);
        i += run;
    }
}

/* The gradients of the factors before the last. sum[p]: what is contracted with factor p so far. */
__device__ inline void fold_others(const float (*u)[PITCH], const factor_sums &sums, const hla_general_shape &shape,
                                   int64_t f, int count, int token, float (&sum)[FACTORS]) {
    constexpr int LAST = FACTORS - 1;
    const float *features = sums.features + token;
    if (shape.first_factor == LAST) return;
    for (int i = 0; i < count;) {
        entries at(shape, f + i);
        int run = run_of(at, shape, i, count);
        const float *row = features + (sums.first[LAST] + at.entry[LAST]) * TILE;
        sum[LAST] = contract_run(sum[LAST], row, u + i, run, token);
        i += run;
        bool ends = at.entry[LAST] + (uint32_t)run == shape.rank[LAST];
#pragma unroll
        for (int p = LAST - 1; p >= 0; p--) {
            if (!ends || p < shape.first_factor) continue;
            float value = sum[p + 1];
            sum[p + 1] = 0;
            int place = (sums.first[p] + (int)at.entry[p]) * TILE;
            sums.gradients[place + token] =
                fmaf(value, at.product_before(p, sums, shape, token), sums.gradients[place + token]);
            sum[p] = fmaf(value, features[place], sum[p]);
            ends = at.entry[p] + 1 == shape.rank[p];
        }
    }
}

/* ---- products ---- */

/* operands.a = rows of own's y, columns x ... x + 31, [column][token] */
template <class T>
__device__ inline void fill_rows(float (*slab)[PITCH], const hla_general_shape &shape, const hla_general_side &side,
                                 const tokens<T> &t, int64_t token, int64_t x) {
    fill_along_steps(slab, [&](int step, int index) { return y_of(shape, side, t, token + index, t.count, x + step); });
}

/* to[0 ... 63] = the last numbers of tokens' y */
template <class T> __device__ inline void fill_last(float *to, const tokens<T> &t, int64_t token) {
    int index = (int)threadIdx.x;
    if (index < TILE) to[index] = last_of(t, token + index, t.count);
}

/* sums = the product of the last columns */
__device__ inline void multiply_last(tile_sums &sums, const gradient_shared &shared) {
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            sums[i][j] = shared.row_last[own_row() + i] * shared.column_last[own_column() + j];
    }
}

/* Contracts y with the whole state and folds it. shared.row_last is filled. */
template <class T>
__device__ inline void add_state(const factor_sums &sums, gradient_shared &shared, const hla_general_sight &sight,
                                 const tokens<T> &own, int64_t token, const float *state) {
    const hla_general_shape &shape = sight.shape;
    const int64_t width = shape.value_dim + 1;
    slabs &operands = shared.operands;
    float(*u)[PITCH] = gradient_tile(operands);
    float contracted[FACTORS] = {0};
    for (int64_t f = 0; f < shape.features; f += TILE) {
        int count = (int)(shape.features - f < TILE ? shape.features - f : TILE);
        if (threadIdx.x < TILE)
            shared.column_last[threadIdx.x] =
                threadIdx.x < count ? state[(f + threadIdx.x) * width + shape.value_dim] : 0;
        __syncthreads();
        tile_sums products;
        multiply_last(products, shared);
        for (int64_t x = 0; x < shape.value_dim; x += DEPTH) {
            fill_rows(operands.a, shape, sight.self, own, token, x);
            fill_along_steps(operands.b, [&](int step, int index) {
                bool inside = index < count && x + step < shape.value_dim;
                float value = state[clamped(f + index, shape.features) * width + clamped(x + step, shape.value_dim)];
                return inside ? value : 0.0f;
            });
            __syncthreads();
            multiply(products, &operands.a[0][0], PITCH, operands.b);
            __syncthreads();
        }
        store_columns(u, products);
        __syncthreads();
        int row = (int)threadIdx.x % TILE;
        if (threadIdx.x < TILE)
            fold_last(u, sums, shape, f, count, row);
        else
            fold_others(u, sums, shape, f, count, row, contracted);
        __syncthreads();
    }
}

/* gradients of factor p += weights x the other side's features over its 64 tokens from `start` on */
template <class T>
__device__ inline void add_weighted(const factor_sums &sums, slabs &operands, const float (*weights)[PITCH],
                                    const hla_general_sight &sight, const tokens<T> &other, int64_t start, int p) {
    const int64_t rank = sight.shape.rank[p];
    const hla_cuda_view &view = sight.other.features[p];
    for (int64_t r = 0; r < rank; r += TILE) {
        tile_sums products;
        set_all(products, 0);
        for (int half = 0; half < TILE; half += DEPTH) {
            fill_along_index(operands.b, [&](int step, int index) {
                int64_t t = start + half + step;
                const T *place = other.feature[p] + clamped(t, other.count) * view.stride[1];
                float value = to_float(place[clamped(r + index, rank) * view.stride[3]]);
                return t < other.count && r + index < rank ? value : 0.0f;
            });
            __syncthreads();
            multiply(products, &weights[half][0], PITCH, operands.b);
            __syncthreads();
        }
        for (int j = 0; j < COLUMNS; j++) {
            if (r + own_column() + j >= rank) continue;
            float *to = sums.gradients + (sums.first[p] + r + own_column() + j) * TILE + own_row();
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                to[i] += products[i][j];
        }
    }
}

/* The pairs with 64 tokens of the other side. weights: [TILE][PITCH] of shared memory. */
template <class T>
__device__ inline void add_pairs(const factor_sums &sums, gradient_shared &shared, float (*weights)[PITCH],
                                 const hla_general_sight &sight, const tokens<T> &own, int64_t token,
                                 const tokens<T> &other, int64_t start) {
    const hla_general_shape &shape = sight.shape;
    slabs &operands = shared.operands;
    fill_last(shared.column_last, other, start);
    __syncthreads();
    tile_sums scores; /* dL/dA = y . y */
    multiply_last(scores, shared);
    for (int64_t x = 0; x < shape.value_dim; x += DEPTH) {
        fill_rows(operands.a, shape, sight.self, own, token, x);
        fill_rows(operands.b, shape, sight.other, other, start, x);
        __syncthreads();
        multiply(scores, &operands.a[0][0], PITCH, operands.b);
        __syncthreads();
    }
    mask_causal(scores, sight.self.queries, token, start);
    for (int p = shape.first_factor; p < FACTORS; p++) {
        tile_sums weighted;
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                weighted[i][j] = scores[i][j];
        }
        for (int q = shape.first_factor; q < FACTORS; q++) {
            if (q != p) multiply_scores(weighted, operands, sight, own, token, other, start, q);
        }
        store_columns(weights, weighted);
        __syncthreads();
        add_weighted(sums, operands, weights, sight, other, start, p);
        __syncthreads();
    }
}

template <class T>
__device__ inline void add_tile(const factor_sums &sums, gradient_shared &shared, float (*weights)[PITCH],
                                const hla_general_sight &sight, const tokens<T> &own, const place &at) {
    fill_last(shared.row_last, own, at.token);
    __syncthreads();
    const float *state = state_of(sight, at);
    if (state) add_state(sums, shared, sight, own, at.token, state);
    const int64_t group = sight.shape.group, heads = sight.self.queries ? 1 : group;
    for (int64_t h = 0; sight.pairs && h < heads; h++) {
        int64_t head = sight.self.queries ? at.head / group : at.head * group + h;
        tokens<T> other = tokens_of<T>(sight.shape, sight.other, at.n, head);
        range pairs = paired(sight, at.token, other.count);
        for (int64_t t = pairs.first; t < pairs.end; t += TILE)
            add_pairs(sums, shared, weights, sight, own, at.token, other, t);
    }
}

/* Dynamic shared memory: gradient_shared, the pairs' weights, and the sums if there is no scratch. */
template <class T>
__global__ void __launch_bounds__(THREADS, 2)
    gradient_tiles(const __grid_constant__ hla_general_gradient gradient, int64_t work) {
    extern __shared__ __align__(16) char memory[];
    gradient_shared &shared = *(gradient_shared *)memory;
    float(*weights)[PITCH] = (float(*)[PITCH])(memory + sizeof(gradient_shared));
    const hla_general_sight &sight = gradient.sight;
    float *space = (float *)weights + (sight.pairs ? TILE * PITCH : 0);
    if (gradient.scratch) space = gradient.scratch + blockIdx.x * gradient.scratch_size;
    const factor_sums sums = place_sums(space, sight.shape);
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        place at = place_of(sight, w);
        tokens<T> own = tokens_of<T>(sight.shape, sight.self, at.n, at.head);
        int64_t limit = written_rows(sight, own);
        if (at.token >= limit) continue;
        load_features(sums, sight, own, at.token);
        __syncthreads();
        if (at.token < own.count) add_tile(sums, shared, weights, sight, own, at);
        __syncthreads();
        store_gradients<T>(gradient, sums, at, limit);
        __syncthreads();
    }
}

constexpr int64_t FIXED = sizeof(gradient_shared) + TILE * PITCH * sizeof(float);

} // namespace

extern "C" bool hla_general_gradient_fits(int64_t rank_sum) {
    return FIXED + hla_general_gradient_size(rank_sum) * (int64_t)sizeof(float) <= HLA_GENERAL_SHARED;
}

extern "C" int hla_general_launch_gradient(const hla_general_gradient *gradient, void *stream) {
    const hla_general_sight &sight = gradient->sight;
    int64_t work = heads_of(sight) * sight.units.count * (sight.units.length / TILE), rank_sum = 0;
    for (int p = sight.shape.first_factor; p < FACTORS; p++)
        rank_sum += sight.shape.rank[p];
    int64_t bytes = sight.pairs ? FIXED : (int64_t)sizeof(gradient_shared);
    if (!gradient->scratch) bytes += hla_general_gradient_size(rank_sum) * (int64_t)sizeof(float);
    static void (*const kernels[])(hla_general_gradient, int64_t) = {gradient_tiles<float>, gradient_tiles<bfloat16>,
                                                                     gradient_tiles<__half>};
    auto kernel = kernels[sight.shape.dtype];
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (error != cudaSuccess) return (int)error;
    int grid = grid_of(gradient->scratch && work > gradient->blocks ? gradient->blocks : work);
    kernel<<<grid, THREADS, (size_t)bytes, (cudaStream_t)stream>>>(*gradient, work);
    return (int)cudaGetLastError();
}
