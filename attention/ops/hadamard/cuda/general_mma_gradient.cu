/* The general kernel on tensor cores that reads a state, or pairs of tokens, in the direction of features: the gradient
 * of one factor, in a launch of its own.
 *
 * With o an index of all factors but p, a block sums for 128 tokens of a head and 8 TILES entries e of factor p
 *     df_t[e] = sum_o (product of the other factors' entries o) (S[o, e] . y_t)
 * S . y is a product of matrices whose rows are S's as they lie; what it is multiplied by is float32, and so is all
 * that the last column of y brings. A slab of 32 rows of S has one to four o. Pairs of tokens are alike: y . y of 32
 * others, times their scores in the other factors, times their features.
 */
#include "attention/ops/hadamard/cuda/general_mma.cuh"

namespace {

/* The o that follow each other, for one lane: entries of the other factors, and where S[o, 0] lies. */
struct other_entries {
    int p, entry[FACTORS];

    __device__ __forceinline__ explicit other_entries(int p) : p(p), entry{} {
    }

    __device__ __forceinline__ void next(const hla_general_shape &shape) {
        bool carry = true;
#pragma unroll
        for (int q = FACTORS - 1; q >= 0; q--) {
            if (q == p || q < shape.first_factor || !carry) continue;
            carry = ++entry[q] == (int)shape.rank[q];
            if (carry) entry[q] = 0;
        }
    }
    /* The product of the other factors' entries for rows g + 8r of the warp's tiles m. */
    template <class type>
    __device__ __forceinline__ void multiply(float (&product)[2][2], const hla_general_shape &shape,
                                             const feature_rows &rows, uint32_t own) const {
        const uint32_t row = own + (uint32_t)((int)threadIdx.x % 32 / 4 * rows.pitch);
        product[0][0] = product[0][1] = product[1][0] = product[1][1] = 1;
#pragma unroll
        for (int q = 0; q < FACTORS; q++) {
            if (q == p || q < shape.first_factor) continue;
            const uint32_t at = row + (uint32_t)(16 * rows.first[q] + 2 * entry[q]);
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int r = 0; r < 2; r++)
                    product[m][r] *= type::unpack(load_twice(at + (uint32_t)((16 * m + 8 * r) * rows.pitch))).x;
        }
    }
};

/* y of the warp's 32 tokens: rows as the left operand of 16 PAIRS steps, and the last numbers of rows g + 8r. */
template <class type, int PAIRS> struct own_rows {
    uint32_t a[PAIRS][2][4];
    float last[2][2];

    __device__ __forceinline__ own_rows(const hla_general_sight &sight, const tokens<element<type>> &own,
                                        int64_t token) {
        const int lane = (int)threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int64_t t = token + 16 * m + lane / 4 + 8 * r, safe = clamped(t, own.count);
                const element<type> *row = own.row + safe * sight.self.rows.stride[1] + 2 * (lane % 4);
                const float number = sight.self.records ? sight.self.records[own.place + safe].last : sight.self.last;
                last[m][r] = t < own.count ? number : 0;
#pragma unroll
                for (int k = 0; k < PAIRS; k++) {
                    const bool there = t < own.count && 16 * k < (int)sight.shape.value_dim;
                    a[k][m][r] = there ? *(const uint32_t *)(row + 16 * k) : 0;
                    a[k][m][r + 2] = there ? *(const uint32_t *)(row + 16 * k + 8) : 0;
                }
            }
    }
};

/* sums += y of own times 32 rows in shared memory, of S or of others' y */
template <class type, int PAIRS>
__device__ __forceinline__ void multiply_rows(pair_tiles &sums, const own_rows<type, PAIRS> &y, uint32_t rows,
                                              int width) {
    const int lane = (int)threadIdx.x % 32;
    rows += (uint32_t)((8 * (lane >> 4) + (lane & 7)) * PITCH_OF<PAIRS> + 16 * (lane >> 3 & 1));
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        if (16 * k >= width) continue;
#pragma unroll
        for (int pair = 0; pair < 2; pair++) {
            uint32_t b[4];
            ptx::load_rows(b, rows + (uint32_t)(16 * pair * PITCH_OF<PAIRS> + 32 * k));
#pragma unroll
            for (int m = 0; m < 2; m++) {
                const uint32_t(&a)[4] = y.a[k][m];
                type::mma(sums[m][2 * pair], a[0], a[1], a[2], a[3], b[0], b[1]);
                type::mma(sums[m][2 * pair + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
    }
}

/* sums = the products of the last numbers; last_of(address of a row's last chunk): that of a column. */
template <class type, int PAIRS, class F>
__device__ __forceinline__ void multiply_last(pair_tiles &sums, const own_rows<type, PAIRS> &y, uint32_t rows,
                                              F last_of) {
    rows += (uint32_t)(2 * ((int)threadIdx.x % 4) * PITCH_OF<PAIRS> + RECORD_OF<PAIRS>);
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const float last = last_of(rows + (uint32_t)((8 * n + e) * PITCH_OF<PAIRS>));
#pragma unroll
            for (int m = 0; m < 2; m++)
                sums[m][n][e] = y.last[m][0] * last, sums[m][n][e + 2] = y.last[m][1] * last;
        }
}

/* A factor as a launch goes through it. */
struct factor {
    int p, rank, chunk; /* where a token's row of features has it, in chunks of 16 bytes */
    int stride, others; /* rows of S from one entry to the next; how many o there are */

    /* Row of S of o and entry e. */
    __device__ __forceinline__ int64_t state_row(int o, int e) const {
        const int before = o / stride;
        return ((int64_t)before * rank + e) * stride + (o - before * stride);
    }
};

template <int TILES> using gradient_sums = float[2][TILES][4];

template <class type, int PAIRS, int TILES> struct gradient_block {
    typedef element<type> T;
    const hla_general_sight &sight;
    const hla_general_shape &shape;
    const feature_rows rows;
    const factor mine;
    const int first; /* entry of the block */
    const tokens<T> own;
    const int64_t token; /* the warp's first */
    const uint32_t features, stages_at;
    const int stages, stage_size;

    __device__ __forceinline__ void add_state(gradient_sums<TILES> &total, const own_rows<type, PAIRS> &y,
                                              const uint16_t *state) const {
        constexpr int EACH = 4 / TILES; /* o of a slab */
        const int width = (int)shape.value_dim;
        other_entries at(mine.p);
        stream_slabs((mine.others - 1) / EACH + 1, stages,
                     [&](int i, int stage) {
                         const int o = EACH * i + copied_row() / (8 * TILES), e = first + copied_row() % (8 * TILES);
                         const bool there = o < mine.others;
                         const uint16_t *from = state + (there ? mine.state_row(o, e) : 0) * (width + 8);
                         const uint32_t to =
                             stages_at + (uint32_t)(stage * stage_size + copied_row() * PITCH_OF<PAIRS>);
                         for (int c = (int)threadIdx.x % 4; c <= width / 8; c += 4)
                             copy_chunk(to + 16 * (c < width / 8 ? c : 2 * PAIRS), from + 8 * c, there);
                     },
                     [&](int, int stage) {
                         const uint32_t slab = stages_at + (uint32_t)(stage * stage_size);
                         pair_tiles u;
                         multiply_last(u, y, slab, [](uint32_t last) {
                             const float2 split = type::unpack(ptx::load_shared_word(last));
                             return split.x + split.y;
                         });
                         multiply_rows(u, y, slab, width);
#pragma unroll
                         for (int o = 0; o < EACH; o++) {
                             float product[2][2];
                             at.template multiply<type>(product, shape, rows, features);
                             at.next(shape);
#pragma unroll
                             for (int m = 0; m < 2; m++)
#pragma unroll
                                 for (int n = 0; n < TILES; n++)
#pragma unroll
                                     for (int i = 0; i < 4; i++)
                                         total[m][n][i] =
                                             fmaf(product[m][i / 2], u[m][TILES * o + n][i], total[m][n][i]);
                         }
                     });
    }

    /* total += weights x features of factor p of the slab's 32 others. Weights of both signs all but cancel, so they
     * are sums of two 16-bit numbers. */
    __device__ __forceinline__ void add_weighted(gradient_sums<TILES> &total, pair_tiles &weights,
                                                 uint32_t others) const {
        const int lane = (int)threadIdx.x % 32;
        const uint32_t at = others + (uint32_t)((lane & 15) * rows.pitch + 16 * mine.chunk + 2 * first);
#pragma unroll
        for (int round = 0; round < 2; round++)
#pragma unroll
            for (int step = 0; step < SLAB / 16; step++) {
                uint32_t a[2][4];
                round_scores<type>(a, weights, step);
                subtract_rounded<type>(weights, a, step);
#pragma unroll
                for (int n = 0; n < TILES; n++) {
                    uint32_t b[2];
                    ptx::load_matrices(b, at + (uint32_t)(16 * step * rows.pitch + 16 * n));
#pragma unroll
                    for (int m = 0; m < 2; m++)
                        type::mma(total[m][n], a[m][0], a[m][1], a[m][2], a[m][3], b[0], b[1]);
                }
            }
    }

    __device__ __forceinline__ void add_pairs(gradient_sums<TILES> &total, const own_rows<type, PAIRS> &y,
                                              const tokens<T> &others, range pairs, float scale) const {
        const bool queries = sight.self.queries, records = sight.other.records != nullptr;
        stream_slabs((int)((pairs.end - pairs.first - 1) / SLAB + 1), stages,
                     [&](int i, int stage) {
                         const uint32_t to = stages_at + (uint32_t)(stage * stage_size);
                         const int64_t other = pairs.first + SLAB * i;
                         copy_rows<T, PAIRS>(to, sight.other, others, other, pairs.end, (int)shape.value_dim);
                         copy_features(to + SLAB * PITCH_OF<PAIRS>, rows, sight.other, others, other, pairs.end);
                         if (records) copy_records<T, PAIRS>(to, sight.other, others, other, pairs.end);
                     },
                     [&](int i, int stage) {
                         const uint32_t slab = stages_at + (uint32_t)(stage * stage_size);
                         const int64_t other = pairs.first + SLAB * i;
                         if (all_masked(token, other, queries)) return;
                         pair_tiles weights; /* dL/dA = y . y, then times the scores of the other factors */
                         multiply_last(weights, y, slab, [&](uint32_t record) {
                             return records ? __uint_as_float(ptx::load_shared_word(record + LAST_IN_RECORD))
                                            : sight.other.last;
                         });
                         multiply_rows(weights, y, slab, (int)shape.value_dim);
#pragma unroll
                         for (int q = 0; q < FACTORS; q++)
                             if (q >= shape.first_factor && q != mine.p)
                                 multiply_scores<type>(weights, rows, features, slab + SLAB * PITCH_OF<PAIRS>, q);
                         if (some_masked(token, other, queries)) mask_scores(weights, (int)(token - other), queries);
                         if (records) weigh_scores<PAIRS>(weights, slab);
                         if (type::scaled) each_pair([&](int m, int n, int i) { weights[m][n][i] *= scale; });
                         add_weighted(total, weights, slab + SLAB * PITCH_OF<PAIRS>);
                     });
    }

    __device__ __forceinline__ void store(const hla_cuda_view &view, const gradient_sums<TILES> &total, int64_t n,
                                          int64_t head, float scale) const {
        const sequence s = sequence_at(shape, n);
        const bool queries = sight.self.queries;
        const int lane = (int)threadIdx.x % 32;
        const int64_t limit = written_rows(sight, own), h = shape.first_kv * (queries ? shape.group : 1) + head;
        T *to = head_of_view<T>(view, s.b, queries ? s.query_first : s.key_first, h) + first + 2 * (lane % 4);
#pragma unroll
        for (int m = 0; m < 2; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int64_t t = token + 16 * m + lane / 4 + 8 * r;
                if (t >= limit) continue;
                const float factor = sight.self.records ? scale * sight.self.records[own.place + t].weight : scale;
#pragma unroll
                for (int n = 0; n < TILES; n++)
                    *(uint32_t *)(to + t * view.stride[1] + 8 * n) =
                        type::pack(factor * total[m][n][2 * r], factor * total[m][n][2 * r + 1]);
            }
    }
};

/* The numbers that a launch needs beside the gradient's. */
struct gradient_sizes {
    hla_general_reading reading;
    float scale;
    factor mine;
    int stages;
};

template <class type, int PAIRS, int TILES>
__global__ void __launch_bounds__(BLOCK, 2)
    gradient_tiles_mma(const __grid_constant__ hla_general_gradient gradient,
                       const __grid_constant__ gradient_sizes sizes, int64_t work) {
    extern __shared__ __align__(16) char memory[];
    typedef element<type> T;
    const hla_general_sight &sight = gradient.sight;
    const hla_general_shape &shape = sight.shape;
    const feature_rows rows = feature_rows_of(shape);
    const uint32_t base = (uint32_t)__cvta_generic_to_shared(memory);
    const int warp = (int)threadIdx.x / 32, parts = sizes.mine.rank / (8 * TILES);
    for (int64_t w = blockIdx.x; w < work; w += gridDim.x) {
        const place at = place_of(sight, w / parts, BLOCK_ROWS);
        const tokens<T> own = tokens_of<T>(shape, sight.self, at.n, at.head);
        if (at.token >= written_rows(sight, own)) continue;
        const gradient_block<type, PAIRS, TILES> block = {
            .sight = sight,
            .shape = shape,
            .rows = rows,
            .mine = sizes.mine,
            .first = (int)(w % parts) * 8 * TILES,
            .own = own,
            .token = at.token + warp * WARP_ROWS,
            .features = base + (uint32_t)(warp * WARP_ROWS * rows.pitch),
            .stages_at = base + (uint32_t)(BLOCK_ROWS * rows.pitch),
            .stages = sizes.stages,
            .stage_size = SLAB * (PITCH_OF<PAIRS> + (sight.pairs ? rows.pitch : 0))};
        float scale = sizes.reading.sigma;
        gradient_sums<TILES> total = {};
        if (at.token < own.count) { /* else rows of zeros */
            for (int i = 0; i < BLOCK_ROWS; i += SLAB)
                copy_features(base + (uint32_t)(i * rows.pitch), rows, sight.self, own, at.token + i, own.count);
            const own_rows<type, PAIRS> y(sight, own, block.token);
            const int64_t slot = state_slot(sight, at), size = shape.features * (shape.value_dim + 8);
            if (slot >= 0) block.add_state(total, y, (const uint16_t *)sizes.reading.rounded + slot * size);
            const sequence s = sequence_at(shape, at.n);
            const bool queries = sight.self.queries;
            range pairs = {0, 0};
            if (sight.pairs) pairs = paired(sight, at.token, queries ? s.keys : s.queries, BLOCK_ROWS);
            if (type::scaled && sight.pairs) {
                for (int m = 0; m < 2; m++)
                    for (int n = 0; n < TILES; n++)
                        for (int i = 0; i < 4; i++)
                            total[m][n][i] *= sizes.reading.pair_scale / scale;
                scale = sizes.reading.pair_scale;
            }
            for (int64_t h = 0; pairs.end > pairs.first && h < (queries ? 1 : shape.group); h++) {
                const int64_t head = queries ? at.head / shape.group : at.head * shape.group + h;
                block.add_pairs(total, y, tokens_of<T>(shape, sight.other, at.n, head), pairs,
                                sizes.reading.score_scale);
            }
            wait_for_copies(0); /* of features, where there was nothing to see */
            __syncthreads();
        }
        block.store(gradient.gradients[sizes.mine.p], total, at.n, at.head, sizes.scale / scale);
    }
}

template <class type, int PAIRS, int TILES>
int launch_factor(const hla_general_gradient *gradient, gradient_sizes sizes, void *stream) {
    const hla_general_sight &sight = gradient->sight;
    const int pitch = pitch_of(sight.shape), fixed = BLOCK_ROWS * pitch;
    const int stage = SLAB * (PITCH_OF<PAIRS> + (sight.pairs ? pitch : 0));
    const int64_t tiles = heads_of(sight) * sight.units.count * ((sight.units.length - 1) / BLOCK_ROWS + 1);
    const int64_t work = tiles * (sizes.mine.rank / (8 * TILES));
    sizes.stages = stages_of(fixed, stage);
    return launch(gradient_tiles_mma<type, PAIRS, TILES>, work, fixed + sizes.stages * stage, stream, *gradient, sizes,
                  work);
}

template <class type, int PAIRS>
int launch_factors(const hla_general_gradient *gradient, gradient_sizes sizes, void *stream) {
    const hla_general_shape &shape = gradient->sight.shape;
    sizes.mine.chunk = 0, sizes.mine.stride = (int)shape.features;
    for (int p = shape.first_factor; p < FACTORS; p++) {
        const int rank = (int)shape.rank[p];
        sizes.mine.p = p, sizes.mine.rank = rank, sizes.mine.stride /= rank;
        sizes.mine.others = (int)shape.features / rank;
        int error = rank % 32 == 0   ? launch_factor<type, PAIRS, 4>(gradient, sizes, stream)
                    : rank % 16 == 0 ? launch_factor<type, PAIRS, 2>(gradient, sizes, stream)
                                     : launch_factor<type, PAIRS, 1>(gradient, sizes, stream);
        if (error) return error;
        sizes.mine.chunk += rank / 8;
    }
    return 0;
}

} // namespace

extern "C" int hla_general_mma_launch_gradient(const hla_general_gradient *gradient, const hla_general_reading *reading,
                                               float scale, void *stream) {
    const bool half = gradient->sight.shape.dtype == HLA_F16;
    const gradient_sizes sizes = {*reading, scale, {}, 0};
    if (gradient->sight.shape.value_dim > 64)
        return half ? launch_factors<f16, 8>(gradient, sizes, stream)
                    : launch_factors<bf16, 8>(gradient, sizes, stream);
    return half ? launch_factors<f16, 4>(gradient, sizes, stream) : launch_factors<bf16, 4>(gradient, sizes, stream);
}
