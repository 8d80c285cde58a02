/* The general kernel on tensor cores that reads a state, or pairs of tokens, in the direction of values: out, dv, and
 * the records of queries.
 */
#include "attention/ops/hadamard/cuda/general_mma.cuh"

namespace {

/* What a block reads at its place. */
template <class type> struct reading {
    place at;
    tokens<element<type>> own;
    const uint16_t *state; /* [R][V + 8], or NULL */
    range pairs;
    int64_t limit; /* tokens that are written end there */
};

template <class type>
__device__ inline reading<type> reading_at(const hla_general_sight &sight, const void *rounded, int64_t work) {
    typedef element<type> T;
    const hla_general_shape &shape = sight.shape;
    reading<type> r;
    r.at = place_of(sight, work, BLOCK_ROWS);
    r.own = tokens_of<T>(shape, sight.self, r.at.n, r.at.head);
    const int64_t slot = state_slot(sight, r.at);
    r.state = slot < 0 ? nullptr : (const uint16_t *)rounded + slot * shape.features * (shape.value_dim + 8);
    r.pairs = {0, 0};
    const sequence s = sequence_at(shape, r.at.n);
    if (sight.pairs) r.pairs = paired(sight, r.at.token, sight.self.queries ? s.keys : s.queries, BLOCK_ROWS);
    r.limit = written_rows(sight, r.own);
    return r;
}

/* 16 features of the warp's 32 tokens as the left operand, from the first on: the first and the second eight have each
 * one outer index. */
template <class type> struct features_by_token {
    uint32_t own, product[2][2];  /* the warp's rows; outer products of tiles' rows g and g + 8, each twice */
    int made, entry[2], index[2]; /* which; of both halves, the entry in the last factor and the outer index */
    int rank, outers;

    __device__ __forceinline__ features_by_token(const hla_general_shape &shape, uint32_t rows_of_warp) {
        own = rows_of_warp, made = -1;
        rank = (int)shape.rank[FACTORS - 1], outers = (int)shape.features / rank;
        entry[0] = 0, index[0] = 0;
        entry[1] = rank > 8 ? 8 : 0, index[1] = rank > 8 ? 0 : 1;
    }

    __device__ __forceinline__ void make_outer(const hla_general_shape &shape, const feature_rows &rows, int wanted) {
        if (wanted == made) return;
        made = wanted;
        const int g = (int)threadIdx.x % 32 / 4;
        each_outer<FACTORS - 1>(shape, wanted < outers ? wanted : outers - 1, [&](int p, int number) {
            const uint32_t at = own + (uint32_t)(g * rows.pitch + 16 * rows.first[p] + 2 * number);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const uint32_t value = load_twice(at + (uint32_t)((16 * m + 8 * r) * rows.pitch));
                    product[m][r] = p == FACTORS - 2 ? value : type::multiply(product[m][r], value);
                }
        });
    }

    /* The next 16. */
    __device__ __forceinline__ void make(uint32_t (&a)[2][4], const hla_general_shape &shape,
                                         const feature_rows &rows) {
        const int lane = (int)threadIdx.x % 32;
        const int chunk = rows.first[FACTORS - 1] + (lane < 16 ? entry[0] : entry[1]) / 8;
#pragma unroll
        for (int m = 0; m < 2; m++)
            ptx::load_rows(a[m], own + (uint32_t)((16 * m + (lane & 15)) * rows.pitch + 16 * chunk));
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (shape.first_factor < FACTORS - 1) {
                make_outer(shape, rows, index[half]);
#pragma unroll
                for (int m = 0; m < 2; m++)
#pragma unroll
                    for (int r = 0; r < 2; r++)
                        a[m][2 * half + r] = type::multiply(a[m][2 * half + r], product[m][r]);
            }
            entry[half] += 16;
            while (entry[half] >= rank)
                entry[half] -= rank, index[half]++;
        }
    }
};

/* scores[m][n]: of the warp's 32 tokens with 32 others, tiles of 16 x 8, the product over all factors. */
template <class type>
__device__ __forceinline__ void make_scores(float (&scores)[2][4][4], const hla_general_shape &shape,
                                            const feature_rows &rows, uint32_t own, uint32_t others, float scale) {
    set_scores(scores, scale);
#pragma unroll
    for (int p = 0; p < FACTORS; p++)
        if (p >= shape.first_factor) multiply_scores<type>(scores, rows, own, others, p);
}

template <class type, int PAIRS>
__device__ __forceinline__ void store_rows(const hla_general_query &query, const reading<type> &r,
                                           const warp_sums<PAIRS> &sums, float scale, int64_t token) {
    typedef element<type> T;
    const hla_general_shape &shape = query.sight.shape;
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
    const sequence s = sequence_at(shape, r.at.n);
    const bool queries = query.sight.self.queries;
    const int64_t head = shape.first_kv * (queries ? shape.group : 1) + r.at.head;
    T *out = head_of_view<T>(query.out, s.b, queries ? s.query_first : s.key_first, head);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const int64_t t = token + 16 * m + lane / 4 + 8 * row;
            const float denominator = sums.last_of(m, row) + query.epsilon * scale;
            float factor = query.scale / scale;
            if (query.normalised) factor = denominator != 0 ? 1 / denominator : 0;
            if (t >= r.limit) continue;
            T *to = out + t * query.out.stride[1];
#pragma unroll
            for (int n = 0; n < 2 * PAIRS; n++) {
                if (8 * n >= shape.value_dim) continue;
                *(uint32_t *)(to + 8 * n + 2 * q) =
                    type::pack(factor * sums.y[m][n][2 * row], factor * sums.y[m][n][2 * row + 1]);
            }
        }
}

/* With g the row of a query, n what it reads and d the last of that: 1 / (d + epsilon) and -(g . n) / (d + epsilon). */
template <class type, int PAIRS>
__device__ __forceinline__ void store_records(const hla_general_query &query, const reading<type> &r,
                                              const warp_sums<PAIRS> &sums, float scale, float weight_scale,
                                              int64_t token) {
    const hla_general_side &self = query.sight.self;
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int row = 0; row < 2; row++) {
            const int64_t t = token + 16 * m + lane / 4 + 8 * row;
            const element<type> *from = r.own.row + clamped(t, r.own.count) * self.rows.stride[1];
            const float denominator = sums.last_of(m, row) + query.epsilon * scale;
            float product = 0;
#pragma unroll
            for (int n = 0; n < 2 * PAIRS; n++) {
                if (8 * n >= query.sight.shape.value_dim) continue;
                const float2 g = type::unpack(*(const uint32_t *)(from + 8 * n + 2 * q));
                product = fmaf(g.x, sums.y[m][n][2 * row], fmaf(g.y, sums.y[m][n][2 * row + 1], product));
            }
            product += __shfl_xor_sync(0xffffffffu, product, 1);
            product += __shfl_xor_sync(0xffffffffu, product, 2);
            if (q > 0 || t >= r.limit) continue;
            const bool empty = !(denominator != 0);
            const float last = empty ? 0 : -product / denominator;
            const float weight = empty ? 0 : weight_scale * scale / denominator;
            /* without keys or features it is 1 / epsilon, beyond float16: finite, so that nothing times it is nothing
             */
            const float rounded = type::scaled ? fminf(fmaxf(weight, -65504.0f), 65504.0f) : weight;
            const float coarse = type::unpack(type::pack(last, 0)).x;
            query.records[r.own.place + t] = {type::pack(coarse, last - coarse), type::pack(rounded, 0), weight, last};
        }
}

/* FORWARD: self is queries, whose rows of out are written. Else, of queries, their records, or keys read that of
 * queries. */
template <class type, int PAIRS, bool FORWARD>
__global__ void __launch_bounds__(BLOCK, 2) query_tiles_mma(const __grid_constant__ hla_general_query query,
                                                            const hla_general_reading sizes, int stages, int64_t work) {
    extern __shared__ __align__(16) char memory[];
    const hla_general_sight &sight = query.sight;
    const hla_general_shape &shape = sight.shape;
    const feature_rows rows = feature_rows_of(shape);
    const bool queries = FORWARD || sight.self.queries;
    const int width = (int)shape.value_dim, warp = (int)threadIdx.x / 32;
    const int stage_size = SLAB * (PITCH_OF<PAIRS> + (sight.pairs ? rows.pitch : 0));
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(memory);
    const uint32_t stages_at = base + (uint32_t)(BLOCK_ROWS * rows.pitch);
    const uint32_t own = base + (uint32_t)(warp * WARP_ROWS * rows.pitch);
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        const reading<type> r = reading_at<type>(query.sight, sizes.rounded, w);
        if (r.at.token >= r.limit) continue;
        for (int part = 0; part < BLOCK_ROWS; part += SLAB)
            copy_features(base + (uint32_t)(part * rows.pitch), rows, sight.self, r.own, r.at.token + part,
                          r.own.count);
        const int64_t token = r.at.token + warp * WARP_ROWS;
        const int features = (int)shape.features;
        warp_sums<PAIRS> sums;
        sums.clear();
        float scale = sizes.sigma;
        if (r.state) {
            features_by_token<type> left(shape, own);
            stream_slabs(
                (features - 1) / SLAB + 1, stages,
                [&](int i, int stage) {
                    const int row = SLAB * i + copied_row();
                    const uint16_t *from = r.state + (int64_t)(row < features ? row : 0) * (width + 8);
                    const uint32_t to = stages_at + (uint32_t)(stage * stage_size + copied_row() * PITCH_OF<PAIRS>);
                    for (int c = (int)threadIdx.x % 4; c <= width / 8; c += 4)
                        copy_chunk(to + 16 * (c < width / 8 ? c : 2 * PAIRS), from + 8 * c, row < features);
                },
                [&](int, int stage) {
#pragma unroll
                    for (int step = 0; step < SLAB / 16; step++) {
                        uint32_t a[2][4];
                        left.make(a, shape, rows);
                        multiply_slab<type, PAIRS, true>(
                            sums, a, stages_at + (uint32_t)(stage * stage_size + 16 * step * PITCH_OF<PAIRS>), width);
                    }
                });
        }
        if (r.pairs.end > r.pairs.first) {
            if (type::scaled) sums.multiply(sizes.pair_scale / scale);
            scale = type::scaled ? sizes.pair_scale : 1;
            const float score_scale = type::scaled ? sizes.score_scale : 1;
            const int64_t heads = queries ? 1 : shape.group;
            for (int64_t h = 0; h < heads; h++) {
                const int64_t head = queries ? r.at.head / shape.group : r.at.head * shape.group + h;
                const tokens<element<type>> others = tokens_of<element<type>>(shape, sight.other, r.at.n, head);
                stream_slabs((int)((r.pairs.end - r.pairs.first - 1) / SLAB + 1), stages,
                             [&](int i, int stage) {
                                 const uint32_t to = stages_at + (uint32_t)(stage * stage_size);
                                 const int64_t other = r.pairs.first + SLAB * i, end = r.pairs.end;
                                 copy_rows<element<type>, PAIRS>(to, sight.other, others, other, end, width);
                                 copy_features(to + SLAB * PITCH_OF<PAIRS>, rows, sight.other, others, other, end);
                                 if (!queries && sight.other.records)
                                     copy_records<element<type>, PAIRS>(to, sight.other, others, other, end);
                             },
                             [&](int i, int stage) {
                                 const uint32_t at = stages_at + (uint32_t)(stage * stage_size);
                                 const int64_t other = r.pairs.first + SLAB * i;
                                 if (shape.causal && all_masked(token, other, queries)) return;
                                 pair_tiles scores;
                                 make_scores<type>(scores, shape, rows, own, at + SLAB * PITCH_OF<PAIRS>, score_scale);
                                 if (shape.causal && some_masked(token, other, queries))
                                     mask_scores(scores, (int)(token - other), queries);
                                 if (!queries && sight.other.records) weigh_scores<PAIRS>(scores, at);
#pragma unroll
                                 for (int step = 0; step < SLAB / 16; step++) {
                                     uint32_t a[2][4];
                                     round_scores<type>(a, scores, step);
                                     multiply_slab<type, PAIRS, false>(
                                         sums, a, at + (uint32_t)(16 * step * PITCH_OF<PAIRS>), width);
                                 }
                             });
            }
        } else if (!r.state) {
            wait_for_copies(0); /* nothing to see; the features were on their way */
            __syncthreads();
        }
        if (!FORWARD && query.records)
            store_records<type, PAIRS>(query, r, sums, scale, sizes.weight_scale, token);
        else
            store_rows<type, PAIRS>(query, r, sums, scale, token);
    }
}

template <class type, int PAIRS>
int launch_query(const hla_general_query *query, const hla_general_reading *reading, void *stream) {
    const hla_general_sight &sight = query->sight;
    const int pitch = pitch_of(sight.shape), fixed = BLOCK_ROWS * pitch;
    const int stage = SLAB * (PITCH_OF<PAIRS> + (sight.pairs ? pitch : 0)), stages = stages_of(fixed, stage);
    const int64_t work = heads_of(sight) * sight.units.count * ((sight.units.length - 1) / BLOCK_ROWS + 1);
    const bool forward = sight.self.queries && !query->records;
    auto kernel = forward ? query_tiles_mma<type, PAIRS, true> : query_tiles_mma<type, PAIRS, false>;
    return launch(kernel, work, fixed + stages * stage, stream, *query, *reading, stages, work);
}

} // namespace

extern "C" bool hla_general_mma_fits(int64_t rank_sum, int64_t value_dim) {
    const int64_t pitch = feature_pitch(rank_sum), row = value_dim > 64 ? PITCH_OF<8> : PITCH_OF<4>;
    return BLOCK_ROWS * pitch + 2 * SLAB * (pitch + row) <= HLA_GENERAL_SHARED;
}

extern "C" int hla_general_mma_launch_query(const hla_general_query *query, const hla_general_reading *reading,
                                            void *stream) {
    const bool half = query->sight.shape.dtype == HLA_F16;
    if (query->sight.shape.value_dim > 64)
        return half ? launch_query<f16, 8>(query, reading, stream) : launch_query<bf16, 8>(query, reading, stream);
    return half ? launch_query<f16, 4>(query, reading, stream) : launch_query<bf16, 4>(query, reading, stream);
}
