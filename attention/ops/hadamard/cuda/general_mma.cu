/* The general kernels on tensor cores, forward only: building states from keys, and reading them and the pairs of a
 * chunk. The same units, slots and places as the float32 kernels; states that are read are rounded to 16 bits.
 */
#include "attention/ops/hadamard/cuda/general_mma.cuh"

namespace {

template <class type> using element = typename std::conditional<type::scaled, __half, bfloat16>::type;

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

/* ---- build ---- */

/* 16 tokens of the warp's 32 features as the left operand, made of a slab. Of a tile's 16 rows the first and the second
 * eight have each one outer index and are neighbours in the last factor: where all that lies is the same for all
 * tokens. OUTERS: the most factors beside the last. */
template <class type, int OUTERS> struct features_by_row {
    uint32_t last[2];          /* bytes to the row that this lane points to, for each tile */
    uint32_t outer[4][OUTERS]; /* to entries for tokens 2q, for each half of each tile; the last OUTERS factors' */
    bool same[4];              /* as the half before */
    int pitch;

    __device__ __forceinline__ features_by_row(const hla_general_shape &shape, const feature_rows &rows, int64_t f) {
        const int lane = (int)threadIdx.x % 32, rank = (int)shape.rank[FACTORS - 1], most = (int)shape.features - 8;
        pitch = rows.pitch;
        int before = -1;
#pragma unroll
        for (int half = 0; half < 4; half++) {
            const int first = (int)f + 8 * half < most ? (int)f + 8 * half : most, index = first / rank;
            const int chunk = rows.first[FACTORS - 1] + (first - index * rank) / 8;
            if ((lane >> 3 & 1) == (half & 1))
                last[half / 2] = (uint32_t)(((lane & 7) + 8 * (lane >> 4)) * pitch + 16 * chunk);
            same[half] = index == before;
            before = index;
            int rest = index;
#pragma unroll
            for (int i = OUTERS - 1; i >= 0; i--) {
                const int p = FACTORS - 1 - OUTERS + i, next = p > shape.first_factor ? rest / (int)shape.rank[p] : 0;
                outer[half][i] =
                    (uint32_t)(2 * (lane % 4) * pitch + 16 * rows.first[p] + 2 * (rest - next * (int)shape.rank[p]));
                rest = next;
            }
        }
    }

    __device__ __forceinline__ void make(uint32_t (&a)[2][4], const hla_general_shape &shape, uint32_t slab) const {
        uint32_t product[2] = {ONES<type>, ONES<type>}; /* tokens 2q and 8 further */
#pragma unroll
        for (int m = 0; m < 2; m++)
            ptx::load_matrices(a[m], slab + last[m]);
        if (shape.first_factor == FACTORS - 1) return;
#pragma unroll
        for (int half = 0; half < 4; half++) {
            if (!same[half]) {
#pragma unroll
                for (int i = OUTERS - 1; i >= 0; i--) {
                    if (FACTORS - 1 - OUTERS + i < shape.first_factor) continue;
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const uint32_t token = slab + outer[half][i] + (uint32_t)(8 * k * pitch);
                        const uint32_t pair = load_two(token, token + (uint32_t)pitch);
                        product[k] = i == OUTERS - 1 ? pair : type::multiply(product[k], pair);
                    }
                }
            }
            uint32_t(&tile)[4] = a[half / 2];
            tile[half % 2] = type::multiply(tile[half % 2], product[0]);
            tile[half % 2 + 2] = type::multiply(tile[half % 2 + 2], product[1]);
        }
    }
};

template <int PAIRS>
__device__ __forceinline__ void store_state(float *state, const warp_sums<PAIRS> &sums, const hla_general_shape &shape,
                                            int64_t f) {
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
    const int64_t width = shape.value_dim + 1;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int64_t feature = f + 16 * m + lane / 4 + 8 * r;
            const float last = sums.last_of(m, r);
            if (feature >= shape.features) continue;
            float *row = state + feature * width;
#pragma unroll
            for (int n = 0; n < 2 * PAIRS; n++) {
                if (8 * n >= shape.value_dim) continue;
                row[8 * n + 2 * q] = sums.y[m][n][2 * r], row[8 * n + 2 * q + 1] = sums.y[m][n][2 * r + 1];
            }
            if (q == 0) row[width - 1] = last;
        }
}

template <int PAIRS>
__device__ __forceinline__ void load_state(warp_sums<PAIRS> &sums, const float *state, const hla_general_shape &shape,
                                           int64_t f) {
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
    const int64_t width = shape.value_dim + 1;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const float *row = state + clamped(f + 16 * m + lane / 4 + 8 * r, shape.features) * width;
#pragma unroll
            for (int n = 0; n < 2 * PAIRS; n++) {
                if (8 * n >= shape.value_dim) continue;
                sums.y[m][n][2 * r] = row[8 * n + 2 * q], sums.y[m][n][2 * r + 1] = row[8 * n + 2 * q + 1];
            }
            sums.last[m][2 * r] = q == 0 ? row[width - 1] : 0.0f;
        }
}

/* As a scan rounds it. */
template <class type, int PAIRS>
__device__ __forceinline__ void store_rounded(uint16_t *state, const warp_sums<PAIRS> &sums,
                                              const hla_general_shape &shape, int64_t f, float sigma) {
    const int lane = (int)threadIdx.x % 32, q = lane % 4, width = (int)shape.value_dim;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int64_t feature = f + 16 * m + lane / 4 + 8 * r;
            const float last = sigma * sums.last_of(m, r);
            if (feature >= shape.features) continue;
            uint16_t *row = state + feature * (width + 8);
#pragma unroll
            for (int n = 0; n < 2 * PAIRS; n++) {
                if (8 * n >= width) continue;
                *(uint32_t *)(row + 8 * n + 2 * q) =
                    type::pack(sigma * sums.y[m][n][2 * r], sigma * sums.y[m][n][2 * r + 1]);
            }
            const float coarse = type::unpack(type::pack(last, 0)).x;
            if (q == 0) *(uint4 *)(row + width) = make_uint4(type::pack(coarse, last - coarse), 0, 0, 0);
        }
}

/* Units of one sequence that follow each other, at most `most`. */
struct stretch {
    int64_t n, number, count; /* the first one's number in its sequence; how many */
};

__device__ inline stretch stretch_at(const hla_general_shape &shape, const hla_general_units &units, int64_t unit,
                                     int64_t most) {
    stretch s;
    s.n = sequence_of_unit(shape, units, unit);
    s.number = unit - units_before(shape, units, s.n);
    const int64_t left = units_before(shape, units, s.n + 1) - unit;
    s.count = left < most ? left : most;
    return s;
}

/* Each unit's sum to its slot; or, running (to.rounded is not NULL), all units one after the other, each of which is
 * given what came before it. */
template <class type, int PAIRS, int OUTERS>
__global__ void __launch_bounds__(BLOCK, 2) build_units_mma(const __grid_constant__ hla_general_build build,
                                                            const hla_general_running to, int64_t work, int stages) {
    extern __shared__ __align__(16) char memory[];
    typedef element<type> T;
    const hla_general_shape &shape = build.shape;
    const hla_general_units &units = build.units;
    const feature_rows rows = feature_rows_of(shape);
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(memory);
    const bool running = to.rounded != nullptr;
    const int width = (int)shape.value_dim, stage_size = SLAB * (rows.pitch + PITCH_OF<PAIRS>);
    const int64_t tiles = (shape.features - 1) / BLOCK_ROWS + 1, length = units.length;
    const int64_t state_size = shape.features * (shape.value_dim + 1), rounded_size = state_size + 7 * shape.features;
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        const int64_t kv = w / tiles % shape.kvs, slot = w / tiles / shape.kvs;
        const int64_t f = w % tiles * BLOCK_ROWS + (int)threadIdx.x / 32 * WARP_ROWS;
        float *state = running ? to.carry + kv * state_size : build.slots + (slot * shape.kvs + kv) * state_size;
        const features_by_row<type, OUTERS> left(shape, rows, f);
        warp_sums<PAIRS> sums;
        const int64_t last = running ? units.count : slot + 1;
        for (int64_t done = running ? 0 : slot; done < last;) {
            const stretch s = stretch_at(shape, units, units.first + done, last - done);
            const tokens<T> own = tokens_of<T>(shape, build.side, s.n, kv);
            const int64_t queries = sequence_at(shape, s.n).queries, first = s.number * length;
            const int64_t stop = first + s.count * length, end = stop < own.count ? stop : own.count;
            /* the sum of all keys before token t, for the chunk that begins there */
            auto keep = [&](int64_t t) {
                if (t == 0 || t >= queries) return;
                const int64_t place = (done + (t - first) / length) * shape.kvs + kv;
                store_rounded<type>((uint16_t *)to.rounded + place * rounded_size, sums, shape, f, to.sigma);
            };
            if (running && s.number > 0)
                load_state(sums, state, shape, f);
            else
                sums.clear();
            if (end > first)
                stream_slabs((int)((end - first - 1) / SLAB + 1), stages,
                             [&](int i, int stage) {
                                 const uint32_t slab = base + (uint32_t)(stage * stage_size);
                                 copy_features(slab, rows, build.side, own, first + SLAB * i, end);
                                 copy_rows<T, PAIRS>(slab + (uint32_t)(SLAB * rows.pitch), build.side, own,
                                                     first + SLAB * i, end, width);
                             },
                             [&](int i, int stage) {
                                 const uint32_t slab = base + (uint32_t)(stage * stage_size);
                                 if (running && SLAB * i % (int)length == 0) keep(first + SLAB * i);
#pragma unroll
                                 for (int step = 0; step < SLAB / 16; step++) {
                                     uint32_t a[2][4];
                                     left.make(a, shape, slab + (uint32_t)(16 * step * rows.pitch));
                                     multiply_slab<type, PAIRS, false>(
                                         sums, a, slab + (uint32_t)(SLAB * rows.pitch + 16 * step * PITCH_OF<PAIRS>),
                                         width);
                                 }
                             });
            for (int64_t t = first; running && t < stop; t += length) /* chunks of queries behind the last key */
                if (t >= end) keep(t);
            done += s.count;
        }
        store_state(state, sums, shape, f);
    }
}

/* ---- query ---- */

/* What a block reads at its place. */
template <class type> struct reading {
    place at;
    tokens<element<type>> own, keys;
    const uint16_t *state; /* [R][V + 8], or NULL */
    range pairs;
    int64_t limit; /* tokens that are written end there */
};

template <class type>
__device__ inline reading<type> reading_at(const hla_general_query &query, const uint16_t *rounded, int64_t work) {
    typedef element<type> T;
    const hla_general_sight &sight = query.sight;
    const hla_general_shape &shape = sight.shape;
    reading<type> r;
    r.at = place_of(sight, work, BLOCK_ROWS);
    r.own = tokens_of<T>(shape, sight.self, r.at.n, r.at.head);
    r.keys = tokens_of<T>(shape, sight.other, r.at.n, r.at.head / shape.group);
    const int64_t slot = state_slot(sight, r.at);
    r.state = slot < 0 ? nullptr : rounded + slot * shape.features * (shape.value_dim + 8);
    r.pairs = {0, 0};
    if (sight.pairs) r.pairs = paired(sight, r.at.token, r.keys.count, BLOCK_ROWS);
    r.limit = r.own.count;
    if (sight.chunk > 0) {
        const int64_t end = (r.at.token / sight.chunk + 1) * sight.chunk;
        if (end < r.limit) r.limit = end;
    }
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

/* scores[m][n]: of the warp's 32 tokens with 32 keys, tiles of 16 x 8, the product over all factors. */
template <class type>
__device__ __forceinline__ void make_scores(float (&scores)[2][4][4], const hla_general_shape &shape,
                                            const feature_rows &rows, uint32_t own, uint32_t keys, float scale) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int p = 0; p < FACTORS; p++) {
        if (p < shape.first_factor) continue;
        float dots[2][4][4] = {};
        const int last = rows.first[p + 1];
        for (int c = rows.first[p]; c < last; c += 2) {
            const bool whole = c + 2 <= last; /* else only eight terms are left */
            uint32_t a[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++) {
                ptx::load_rows(
                    a[m], own + (uint32_t)((16 * m + (lane & 15)) * rows.pitch + 16 * (whole ? c + (lane >> 4) : c)));
                if (!whole) a[m][2] = a[m][3] = 0;
            }
#pragma unroll
            for (int pair = 0; pair < 2; pair++) {
                uint32_t b[4];
                ptx::load_rows(b, keys + (uint32_t)((16 * pair + 8 * (lane >> 4) + (lane & 7)) * rows.pitch +
                                                    16 * (whole ? c + (lane >> 3 & 1) : c)));
                if (!whole) b[1] = b[3] = 0;
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    type::mma(dots[m][2 * pair], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                    type::mma(dots[m][2 * pair + 1], a[m][0], a[m][1], a[m][2], a[m][3], b[2], b[3]);
                }
            }
        }
        const bool first = p == shape.first_factor;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int n = 0; n < 4; n++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    scores[m][n][i] = (first ? scale : scores[m][n][i]) * dots[m][n][i];
    }
}

/* ahead: how far the warp's first token lies behind the first key. */
__device__ __forceinline__ void mask_scores(float (&scores)[2][4][4], int ahead) {
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int token = ahead + 16 * m + lane / 4 + 8 * (i / 2), key = 8 * n + 2 * (lane % 4) + i % 2;
                if (key > token) scores[m][n][i] = 0;
            }
}

template <class type, int PAIRS>
__device__ __forceinline__ void store_rows(const hla_general_query &query, const reading<type> &r,
                                           const warp_sums<PAIRS> &sums, float scale, int64_t token) {
    typedef element<type> T;
    const hla_general_shape &shape = query.sight.shape;
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
    const sequence s = sequence_at(shape, r.at.n);
    T *out = head_of_view<T>(query.out, s.b, s.query_first, shape.first_kv * shape.group + r.at.head);
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

/* The numbers that a launch needs beside the query's. */
struct query_sizes {
    const uint16_t *rounded;
    float sigma, pair_scale; /* of states, and of scores */
    int stages;
};

template <class type, int PAIRS>
__global__ void __launch_bounds__(BLOCK, 2)
    query_tiles_mma(const __grid_constant__ hla_general_query query, const query_sizes sizes, int64_t work) {
    extern __shared__ __align__(16) char memory[];
    const hla_general_sight &sight = query.sight;
    const hla_general_shape &shape = sight.shape;
    const feature_rows rows = feature_rows_of(shape);
    const int width = (int)shape.value_dim, warp = (int)threadIdx.x / 32;
    const int stage_size = SLAB * (PITCH_OF<PAIRS> + (sight.pairs ? rows.pitch : 0));
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(memory);
    const uint32_t stages_at = base + (uint32_t)(BLOCK_ROWS * rows.pitch);
    const uint32_t own = base + (uint32_t)(warp * WARP_ROWS * rows.pitch);
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        const reading<type> r = reading_at<type>(query, sizes.rounded, w);
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
                (features - 1) / SLAB + 1, sizes.stages,
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
            stream_slabs((int)((r.pairs.end - r.pairs.first - 1) / SLAB + 1), sizes.stages,
                         [&](int i, int stage) {
                             const uint32_t to = stages_at + (uint32_t)(stage * stage_size);
                             const int64_t key = r.pairs.first + SLAB * i;
                             copy_rows<element<type>, PAIRS>(to, sight.other, r.keys, key, r.pairs.end, width);
                             copy_features(to + SLAB * PITCH_OF<PAIRS>, rows, sight.other, r.keys, key, r.pairs.end);
                         },
                         [&](int i, int stage) {
                             const uint32_t at = stages_at + (uint32_t)(stage * stage_size);
                             const int64_t key = r.pairs.first + SLAB * i;
                             if (shape.causal && key >= token + WARP_ROWS) return; /* later than all of the warp's */
                             float scores[2][4][4];
                             make_scores<type>(scores, shape, rows, own, at + SLAB * PITCH_OF<PAIRS>, scale);
                             if (shape.causal && key + SLAB > token) mask_scores(scores, (int)(token - key));
#pragma unroll
                             for (int step = 0; step < SLAB / 16; step++) {
                                 uint32_t a[2][4];
#pragma unroll
                                 for (int m = 0; m < 2; m++)
#pragma unroll
                                     for (int j = 0; j < 4; j++) {
                                         const float *pair = &scores[m][2 * step + j / 2][2 * (j % 2)];
                                         a[m][j] = type::pack(pair[0], pair[1]);
                                     }
                                 multiply_slab<type, PAIRS, false>(sums, a,
                                                                   at + (uint32_t)(16 * step * PITCH_OF<PAIRS>), width);
                             }
                         });
        } else if (!r.state) {
            wait_for_copies(0); /* nothing to see; the features were on their way */
            __syncthreads();
        }
        store_rows<type, PAIRS>(query, r, sums, scale, token);
    }
}

/* ---- launch ---- */

/* Bytes of a row of features. */
int pitch_of(const hla_general_shape &shape) {
    int64_t sum = 0;
    for (int p = shape.first_factor; p < FACTORS; p++)
        sum += shape.rank[p];
    return feature_pitch(sum);
}

/* Stages that fit beside `fixed` bytes: three, or two. */
int stages_of(int fixed, int stage) {
    return fixed + 3 * stage <= HLA_GENERAL_SHARED ? 3 : 2;
}

template <class K, class... A> int launch(K *kernel, int64_t work, int shared, void *stream, const A &...arguments) {
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return (int)error;
    kernel<<<grid_of(work), BLOCK, shared, (cudaStream_t)stream>>>(arguments...);
    return (int)cudaGetLastError();
}

template <class type, int PAIRS>
int launch_build(const hla_general_build *build, const hla_general_running *to, void *stream) {
    const hla_general_shape &shape = build->shape;
    const int64_t tiles = (shape.features - 1) / BLOCK_ROWS + 1;
    const int64_t work = tiles * shape.kvs * (to->rounded ? 1 : build->units.count);
    const int stage = SLAB * (pitch_of(shape) + PITCH_OF<PAIRS>), stages = stages_of(0, stage);
    auto kernel =
        FACTORS - shape.first_factor > 2 ? build_units_mma<type, PAIRS, FACTORS - 1> : build_units_mma<type, PAIRS, 1>;
    return launch(kernel, work, stages * stage, stream, *build, *to, work, stages);
}

template <class type, int PAIRS> int launch_query(const hla_general_query *query, query_sizes sizes, void *stream) {
    const hla_general_sight &sight = query->sight;
    const int pitch = pitch_of(sight.shape), fixed = BLOCK_ROWS * pitch;
    const int stage = SLAB * (PITCH_OF<PAIRS> + (sight.pairs ? pitch : 0));
    const int64_t work = heads_of(sight) * sight.units.count * ((sight.units.length - 1) / BLOCK_ROWS + 1);
    sizes.stages = stages_of(fixed, stage);
    return launch(query_tiles_mma<type, PAIRS>, work, fixed + sizes.stages * stage, stream, *query, sizes, work);
}

} // namespace

extern "C" bool hla_general_mma_fits(int64_t rank_sum, int64_t value_dim) {
    const int64_t pitch = feature_pitch(rank_sum), row = value_dim > 64 ? PITCH_OF<8> : PITCH_OF<4>;
    return BLOCK_ROWS * pitch + 2 * SLAB * (pitch + row) <= HLA_GENERAL_SHARED;
}

extern "C" int hla_general_mma_launch_build(const hla_general_build *build, const hla_general_running *to,
                                            void *stream) {
    const bool half = build->shape.dtype == HLA_F16;
    if (build->shape.value_dim > 64)
        return half ? launch_build<f16, 8>(build, to, stream) : launch_build<bf16, 8>(build, to, stream);
    return half ? launch_build<f16, 4>(build, to, stream) : launch_build<bf16, 4>(build, to, stream);
}

extern "C" int hla_general_mma_launch_query(const hla_general_query *query, const void *rounded, float sigma,
                                            float pair_scale, void *stream) {
    const bool half = query->sight.shape.dtype == HLA_F16;
    const query_sizes sizes = {(const uint16_t *)rounded, sigma, pair_scale, 0};
    if (query->sight.shape.value_dim > 64)
        return half ? launch_query<f16, 8>(query, sizes, stream) : launch_query<bf16, 8>(query, sizes, stream);
    return half ? launch_query<f16, 4>(query, sizes, stream) : launch_query<bf16, 4>(query, sizes, stream);
}
