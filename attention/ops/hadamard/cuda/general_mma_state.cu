/* The general kernel on tensor cores that makes states: sums over the tokens of units, by themselves or running. */
#include "attention/ops/hadamard/cuda/general_mma.cuh"

namespace {

/* 16 tokens of the warp's 32 features as the left operand, made of a slab. Of a tile's 16 rows the first and the second
 * eight have each one outer index and are neighbours in the last factor: where all that lies is the same for all
 * tokens. OUTERS: the most factors beside the last. WEIGHTED: times each token's weight. */
template <class type, int OUTERS, bool WEIGHTED> struct features_by_row {
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

    /* weights: where those of the slab's 16 tokens lie, `weight_pitch` bytes apart */
    __device__ __forceinline__ void make(uint32_t (&a)[2][4], const hla_general_shape &shape, uint32_t slab,
                                         uint32_t weights, int weight_pitch) const {
        uint32_t start[2] = {ONES<type>, ONES<type>}, product[2]; /* tokens 2q and 8 further */
#pragma unroll
        for (int m = 0; m < 2; m++)
            ptx::load_matrices(a[m], slab + last[m]);
        if (WEIGHTED) {
            const uint32_t token = weights + (uint32_t)(2 * ((int)threadIdx.x % 4) * weight_pitch);
#pragma unroll
            for (int k = 0; k < 2; k++)
                start[k] =
                    load_two(token + (uint32_t)(8 * k * weight_pitch), token + (uint32_t)((8 * k + 1) * weight_pitch));
        } else if (shape.first_factor == FACTORS - 1) {
            return;
        }
#pragma unroll
        for (int half = 0; half < 4; half++) {
            if (!same[half]) {
                product[0] = start[0], product[1] = start[1];
#pragma unroll
                for (int i = OUTERS - 1; i >= 0; i--) {
                    if (FACTORS - 1 - OUTERS + i < shape.first_factor) continue;
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const uint32_t token = slab + outer[half][i] + (uint32_t)(8 * k * pitch);
                        const uint32_t pair = load_two(token, token + (uint32_t)pitch);
                        product[k] = !WEIGHTED && i == OUTERS - 1 ? pair : type::multiply(product[k], pair);
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
 * given what came before it. WEIGHTED: of queries, with their records in the last chunk of rows. */
template <class type, int PAIRS, int OUTERS, bool WEIGHTED>
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
        const features_by_row<type, OUTERS, WEIGHTED> left(shape, rows, f);
        const int64_t heads = build.side.queries ? shape.group : 1;
        warp_sums<PAIRS> sums;
        const int64_t last = running ? units.count : slot + 1;
        for (int64_t done = running ? 0 : slot; done < last;) {
            const stretch s = stretch_at(shape, units, units.first + done, last - done);
            const sequence at = sequence_at(shape, s.n);
            const int64_t count = build.side.queries ? at.queries : at.keys, first = s.number * length;
            const int64_t stop = first + s.count * length, end = stop < count ? stop : count;
            /* the sum of all keys before token t, for the chunk that begins there */
            auto keep = [&](int64_t t) {
                if (t == 0 || t >= at.queries) return;
                const int64_t place = (done + (t - first) / length) * shape.kvs + kv;
                store_rounded<type>((uint16_t *)to.rounded + place * rounded_size, sums, shape, f, to.sigma);
            };
            if (running && s.number > 0)
                load_state(sums, state, shape, f);
            else
                sums.clear();
            for (int64_t h = 0; h < heads && end > first; h++) {
                const tokens<T> own = tokens_of<T>(shape, build.side, s.n, kv * heads + h);
                stream_slabs((int)((end - first - 1) / SLAB + 1), stages,
                             [&](int i, int stage) {
                                 const uint32_t slab = base + (uint32_t)(stage * stage_size);
                                 const uint32_t y = slab + (uint32_t)(SLAB * rows.pitch);
                                 copy_features(slab, rows, build.side, own, first + SLAB * i, end);
                                 copy_rows<T, PAIRS>(y, build.side, own, first + SLAB * i, end, width);
                                 if (WEIGHTED) copy_records<T, PAIRS>(y, build.side, own, first + SLAB * i, end);
                             },
                             [&](int i, int stage) {
                                 const uint32_t slab = base + (uint32_t)(stage * stage_size);
                                 if (running && SLAB * i % (int)length == 0) keep(first + SLAB * i);
#pragma unroll
                                 for (int step = 0; step < SLAB / 16; step++) {
                                     const uint32_t y =
                                         slab + (uint32_t)(SLAB * rows.pitch + 16 * step * PITCH_OF<PAIRS>);
                                     uint32_t a[2][4];
                                     left.make(a, shape, slab + (uint32_t)(16 * step * rows.pitch),
                                               y + RECORD_OF<PAIRS> + offsetof(hla_general_record, rounded_weight),
                                               PITCH_OF<PAIRS>);
                                     multiply_slab<type, PAIRS, WEIGHTED>(sums, a, y, width);
                                 }
                             });
            }
            for (int64_t t = first; running && t < stop; t += length) /* chunks of queries behind the last key */
                if (t >= end) keep(t);
            done += s.count;
        }
        if (build.side.last == 0 && !WEIGHTED) sums.clear_last();
        store_state(state, sums, shape, f);
    }
}

template <class type, int PAIRS>
int launch_build(const hla_general_build *build, const hla_general_running *to, void *stream) {
    const hla_general_shape &shape = build->shape;
    const int64_t tiles = (shape.features - 1) / BLOCK_ROWS + 1;
    const int64_t work = tiles * shape.kvs * (to->rounded ? 1 : build->units.count);
    const int stage = SLAB * (pitch_of(shape) + PITCH_OF<PAIRS>), stages = stages_of(0, stage);
    const bool weighted = build->side.records != nullptr;
    auto kernel = weighted ? build_units_mma<type, PAIRS, 1, true> : build_units_mma<type, PAIRS, 1, false>;
    if (FACTORS - shape.first_factor > 2)
        kernel = weighted ? build_units_mma<type, PAIRS, FACTORS - 1, true>
                          : build_units_mma<type, PAIRS, FACTORS - 1, false>;
    return launch(kernel, work, stages * stage, stream, *build, *to, work, stages);
}

} // namespace

extern "C" int hla_general_mma_launch_build(const hla_general_build *build, const hla_general_running *to,
                                            void *stream) {
    const bool half = build->shape.dtype == HLA_F16;
    if (build->shape.value_dim > 64)
        return half ? launch_build<f16, 8>(build, to, stream) : launch_build<bf16, 8>(build, to, stream);
    return half ? launch_build<f16, 4>(build, to, stream) : launch_build<bf16, 4>(build, to, stream);
}
