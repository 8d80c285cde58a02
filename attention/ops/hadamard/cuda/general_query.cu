/* The general kernel that reads a state, or pairs of tokens, in the direction of values: out, dv, and the y of queries.
 */
#include "attention/ops/hadamard/cuda/general.cuh"

namespace {

struct query_shared {
    slabs operands;
    float weights[TILE][PITCH]; /* scores, [other][own] */
    lost_sums lost;
    float last[TILE]; /* of each row, the sum over the last column: the denominator */
};

/* tile += features x state, columns x ... */
template <class T>
__device__ inline void add_state(long_tile &tile, query_shared &shared, const hla_general_sight &sight,
                                 const tokens<T> &own, int64_t token, const float *state, int64_t x) {
    const hla_general_shape &shape = sight.shape;
    const int64_t width = shape.value_dim + 1;
    slabs &operands = shared.operands;
    int slabs_in_part = 0;
    for (int64_t f = 0; f < shape.features; f += DEPTH) {
        fill_features(operands.a, shape, sight.self, own, token, f);
        fill_along_index(operands.b, [&](int step, int index) {
            bool inside = f + step < shape.features && x + index < shape.value_dim;
            float value = state[clamped(f + step, shape.features) * width + clamped(x + index, shape.value_dim)];
            return inside ? value : 0.0f;
        });
        if (threadIdx.x < DEPTH) {
            bool inside = f + threadIdx.x < shape.features;
            operands.last[threadIdx.x] = inside ? state[(f + threadIdx.x) * width + shape.value_dim] : 0.0f;
        }
        __syncthreads();
        multiply(tile.part, &operands.a[0][0], PITCH, operands.b);
        tile.add_last(&operands.a[0][0], PITCH, operands.last);
        if (++slabs_in_part == PART_SLABS) {
            tile.add_parts(shared.lost);
            slabs_in_part = 0;
        }
        __syncthreads();
    }
    tile.add_parts(shared.lost);
}

/* tile += scores x rows over 64 tokens of the other side from `start` on, columns x ... */
template <class T>
__device__ inline void add_pairs(long_tile &tile, query_shared &shared, const hla_general_sight &sight,
                                 const tokens<T> &own, int64_t token, const tokens<T> &other, int64_t start,
                                 int64_t x) {
    const hla_general_shape &shape = sight.shape;
    slabs &operands = shared.operands;
    tile_sums scores;
    set_all(scores, 1);
    for (int p = shape.first_factor; p < FACTORS; p++)
        multiply_scores(scores, operands, sight, own, token, other, start, p);
    if (shape.causal) mask_causal(scores, sight.self.queries, token, start);
    store_columns(shared.weights, scores);
    for (int half = 0; half < TILE; half += DEPTH) {
        int64_t t = start + half;
        fill_along_index(operands.b, [&](int step, int index) {
            return y_of(shape, sight.other, other, t + step, other.count, x + index);
        });
        if (threadIdx.x < DEPTH) operands.last[threadIdx.x] = last_of(other, t + threadIdx.x, other.count);
        __syncthreads();
        multiply(tile.part, &shared.weights[half][0], PITCH, operands.b);
        tile.add_last(&shared.weights[half][0], PITCH, operands.last);
        __syncthreads();
    }
    tile.add_parts(shared.lost);
}

/* Everything that a tile of own sees, for columns x ...; shared.last: the sums over the last column. */
template <class T>
__device__ inline void sum_tile(long_tile &tile, query_shared &shared, const hla_general_sight &sight, const place &at,
                                const tokens<T> &own, int64_t x) {
    tile.clear(shared.lost);
    const float *state = state_of(sight, at);
    if (state) add_state(tile, shared, sight, own, at.token, state, x);
    const int64_t group = sight.shape.group, heads = sight.self.queries ? 1 : group;
    for (int64_t h = 0; sight.pairs && h < heads; h++) {
        int64_t head = sight.self.queries ? at.head / group : at.head * group + h;
        tokens<T> other = tokens_of<T>(sight.shape, sight.other, at.n, head);
        range pairs = paired(sight, at.token, other.count);
        for (int64_t t = pairs.first; t < pairs.end; t += TILE)
            add_pairs(tile, shared, sight, own, at.token, other, t, x);
    }
    join_last(shared.last, tile);
}

template <class T>
__device__ inline void store_rows(const hla_general_query &query, const query_shared &shared, const long_tile &tile,
                                  const place &at, int64_t limit, int64_t x) {
    const hla_general_shape &shape = query.sight.shape;
    sequence s = sequence_at(shape, at.n);
    bool queries = query.sight.self.queries;
    int64_t h = shape.first_kv * (queries ? shape.group : 1) + at.head;
    T *out = head_of_view<T>(query.out, s.b, queries ? s.query_first : s.key_first, h);
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int64_t token = at.token + own_row() + i;
        float denominator = shared.last[own_row() + i] + query.epsilon;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            int64_t column = x + own_column() + j;
            float value = query.scale * tile.total[i][j];
            if (query.normalised) value = denominator != 0 ? tile.total[i][j] / denominator : 0;
            if (token < limit && column < shape.value_dim)
                store(out + token * query.out.stride[1] + column * query.out.stride[3], value);
        }
    }
}

/* products[i] += the row's own numbers times the tile's, columns x ... */
template <class T>
__device__ inline void add_products(float (&products)[ROWS], const hla_general_query &query, const long_tile &tile,
                                    const tokens<T> &own, const place &at, int64_t x) {
    const hla_cuda_view &view = query.sight.self.rows;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        int64_t token = at.token + own_row() + i;
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            int64_t column = x + own_column() + j;
            if (token < own.count && column < query.sight.shape.value_dim)
                products[i] = fmaf(to_float(own.row[token * view.stride[1] + column * view.stride[3]]),
                                   tile.total[i][j], products[i]);
        }
    }
}

/* With g the row of a query: w = 1 / (d + epsilon) and -w (g . out), out = w n */
template <class T>
__device__ inline void store_weights(const hla_general_query &query, const query_shared &shared,
                                     float (&products)[ROWS], const tokens<T> &own, const place &at) {
    hla_general_side weighted = query.sight.self;
    weighted.weights = query.weights;
    float *weights = (float *)tokens_of<T>(query.sight.shape, weighted, at.n, at.head).weight;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        float sum = products[i];
        for (int lane = 1; lane < TILE / COLUMNS; lane *= 2)
            sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        int64_t token = at.token + own_row() + i;
        float denominator = shared.last[own_row() + i] + query.epsilon;
        float w = denominator != 0 ? 1 / denominator : 0, product = denominator != 0 ? sum / denominator : 0;
        if (own_column() == 0 && token < own.count) {
            weights[2 * token] = w;
            weights[2 * token + 1] = -w * product; /* w's own error is that of both numbers */
        }
    }
}

template <class T>
__global__ void __launch_bounds__(THREADS, 3)
    query_tiles(const __grid_constant__ hla_general_query query, int64_t work) {
    extern __shared__ __align__(16) char memory[];
    query_shared &shared = *(query_shared *)memory;
    const hla_general_sight &sight = query.sight;
    const int64_t columns = (sight.shape.value_dim - 1) / TILE + 1;
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        place at = place_of(sight, query.weights ? w : w / columns);
        int64_t first = query.weights ? 0 : w % columns, last = query.weights ? columns : first + 1;
        tokens<T> own = tokens_of<T>(sight.shape, sight.self, at.n, at.head);
        int64_t limit = written_rows(sight, own);
        if (at.token >= limit) continue;
        float products[ROWS] = {0};
        for (int64_t column = first; column < last; column++) {
            long_tile tile;
            sum_tile(tile, shared, sight, at, own, column * TILE);
            if (query.weights)
                add_products(products, query, tile, own, at, column * TILE);
            else
                store_rows<T>(query, shared, tile, at, limit, column * TILE);
        }
        if (query.weights) store_weights(query, shared, products, own, at);
        __syncthreads();
    }
}

} // namespace

extern "C" int hla_general_launch_query(const hla_general_query *query, void *stream) {
    const hla_general_sight &sight = query->sight;
    int64_t columns = query->weights ? 1 : (sight.shape.value_dim - 1) / TILE + 1;
    int64_t work = columns * heads_of(sight) * sight.units.count * (sight.units.length / TILE);
    static void (*const kernels[])(hla_general_query, int64_t) = {query_tiles<float>, query_tiles<bfloat16>,
                                                                  query_tiles<__half>};
    auto kernel = kernels[sight.shape.dtype];
    cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)sizeof(query_shared));
    if (error != cudaSuccess) return (int)error;
    kernel<<<grid_of(work), THREADS, sizeof(query_shared), (cudaStream_t)stream>>>(*query, work);
    return (int)cudaGetLastError();
}
