/* Gradients of the feature maps on tensor cores, for 16-bit x without a hidden layer; sums as exact as float32's
 * (planes.cuh), so that the gradients of weights pass float32's gate.
 *
 * A block of threads takes a chunk of one head's tokens, 128 at a time, and keeps its head's weights in shared memory.
 * A warp projects 16 tokens and differentiates the activation in registers, as forward_mma.cu does, and turns du into
 * dx with the same weights, read along columns. x and du of all warps meet in shared memory, where dW = du^T x is
 * summed over the chunk in registers, db as one column more. Chunks are added up as in backward.cu.
 *
 * Weights lie in the order in which fragments.cuh names inputs and outputs: input 8q + 4s + 2i + e of 32 is column
 * 16s + 8i + 2q + e, output 2 GROUP q + 2i + e of 8 GROUP is row 8i + 2q + e.
 */
#include "attention/ops/feature_map/cuda/planes.cuh"

namespace {

constexpr int WARPS = 8, THREADS = 32 * WARPS, ROWS = 16 * WARPS; /* tokens at a time */
constexpr int MOST_DIM = 128, MOST_RANK = 64;                     /* more needs more registers than there are */
constexpr int FLUSH = 32;                                         /* blocks whose sums stay in registers */

/* D up to 32 D_GROUPS, R up to 8 R_TILES; x is the sum of X_PLANES bfloat16 numbers: 1 if it is one, 2 for float16, 3
 * after RoPE. */
template <class TYPE, int X_PLANES, int D_GROUPS, int R_TILES> struct instance {
    using type = TYPE;
    static constexpr int PLANES = X_PLANES, GROUPS = D_GROUPS, TILES = R_TILES, GROUP = R_TILES < 4 ? R_TILES : 4;
    static constexpr int X_CHUNKS = 4 * GROUPS, U_CHUNKS = TILES; /* of a row of x or weights, of du */
    static constexpr int WEIGHT = 8 * TILES * X_CHUNKS, X = ROWS * X_CHUNKS, U = ROWS * U_CHUNKS; /* of a plane */
    static constexpr int SHARED = (PARTS * WEIGHT + PLANES * X + PARTS * U) * 16 + 8 * TILES * 4;
    /* dW is R / 16 x D / 8 tiles of 16 x 8: each warp takes one row of them, or a part of it. */
    static constexpr bool AHEAD =
        PLANES * TILES * GROUPS < 96; /* the next tokens are read while these are worked on: registers suffice */
    static constexpr int LINES = TILES / 2, SHARES = WARPS / LINES, OWN = X_CHUNKS / SHARES;
};

/* Pointers into shared memory: planes of weights, x and du; the bias. */
struct head {
    uint4 *weight, *x, *u;
    float *bias;
};

template <class sizes> __device__ head prepare(unsigned char *shared, const hla_cuda_map &map, int64_t h) {
    constexpr int GROUP = sizes::GROUP, COUNT = 8 * sizes::TILES * sizes::X_CHUNKS;
    head own;
    own.weight = (uint4 *)shared;
    own.x = own.weight + PARTS * sizes::WEIGHT;
    own.u = own.x + sizes::PLANES * sizes::X;
    own.bias = (float *)(own.u + PARTS * sizes::U);
    const int dim = map.dim, rank = map.rank;
    for (int i = (int)threadIdx.x; i < COUNT; i += THREADS) {
        const int row = i / sizes::X_CHUNKS, q = i % 4, group = i % sizes::X_CHUNKS / 4; /* as they lie */
        const int r = row / (8 * GROUP) * 8 * GROUP + weight_row<GROUP>(row / 8 % GROUP, row % 8),
                  x = 32 * group + 8 * q;
        float w[8] = {};
        if (r < rank && x < dim) {
            const float4 *from = (const float4 *)(map.weight + (h * rank + r) * dim + x);
            const float4 a = from[0], b = from[1];
            w[0] = a.x, w[1] = a.y, w[2] = a.z, w[3] = a.w, w[4] = b.x, w[5] = b.y, w[6] = b.z, w[7] = b.w;
        }
#pragma unroll
        for (int j = 0; j < 4; j++) {
            uint32_t parts[PARTS];
            split(parts, w[2 * j], w[2 * j + 1]);
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                uint4 *plane = own.weight + p * sizes::WEIGHT;
                ((uint32_t *)(plane + chunk_place<sizes::X_CHUNKS>(row, 4 * group + j)))[q] = parts[p];
            }
        }
    }
    const bool shifted = map.activation == HLA_ACTIVATION_EXP || map.activation == HLA_ACTIVATION_SOFTMAX;
    for (int r = (int)threadIdx.x; r < 8 * sizes::TILES; r += THREADS)
        own.bias[r] = r >= rank ? (shifted ? -INFINITY : 0) : map.bias ? map.bias[h * rank + r] : 0;
    __syncthreads();
    return own;
}

/* The lane's two rows of a block: tokens t and t + 8. */
struct places {
    unsigned b, t;
    bool there[2];
};

/* 16 bits of x and d_out of the lane's rows as they were read. */
template <class sizes> struct tokens {
    places at;
    uint4 x[sizes::GROUPS][2];
    uint32_t e[sizes::TILES][2]; /* pairs of outputs, in the order of tiles */
};

template <class sizes>
__device__ __forceinline__ void load_x(tokens<sizes> &in, const hla_cuda_map &map, unsigned block, unsigned blocks,
                                       unsigned end, int64_t h) {
    const int lane = (int)threadIdx.x % 32, q = lane % 4;
    in.at.b = block / blocks;
    in.at.t = block % blocks * ROWS + threadIdx.x / 32 * 16 + lane / 4;
    in.at.there[0] = block < end && in.at.t < map.tokens, in.at.there[1] = block < end && in.at.t + 8 < map.tokens;
    const uint16_t *x = (const uint16_t *)map.x.data + row_of(map.x, in.at.b, in.at.t, h);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int group = 0; group < sizes::GROUPS; group++) {
            const int column = 32 * group + 8 * q;
            const bool there = in.at.there[i] && column < map.dim;
            in.x[group][i] =
                there ? __ldg((const uint4 *)(x + 8 * i * map.x.stride[1] + column)) : make_uint4(0, 0, 0, 0);
        }
    }
}

template <class sizes> __device__ __forceinline__ void load_e(tokens<sizes> &in, const hla_cuda_map &map, int64_t h) {
    constexpr int GROUP = sizes::GROUP;
    const int q = (int)threadIdx.x % 4;
    const uint16_t *e = (const uint16_t *)map.out.data + row_of(map.out, in.at.b, in.at.t, h);
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int tile = 0; tile < sizes::TILES; tile += GROUP) {
            const int column = 8 * tile + 2 * GROUP * q;
            const bool there = in.at.there[i] && column < map.rank;
            const uint16_t *from = e + 8 * i * map.out.stride[1] + column;
            if constexpr (GROUP == 4) {
                const uint4 four = there ? __ldg((const uint4 *)from) : make_uint4(0, 0, 0, 0);
                in.e[tile][i] = four.x, in.e[tile + 1][i] = four.y;
                in.e[tile + 2][i] = four.z, in.e[tile + 3][i] = four.w;
            } else {
                const uint2 two = there ? __ldg((const uint2 *)from) : make_uint2(0, 0);
                in.e[tile][i] = two.x, in.e[tile + 1][i] = two.y;
            }
        }
    }
}

/* The lane's row of a block, of its two. */
__device__ __forceinline__ int own_row(int i) {
    return (int)threadIdx.x / 32 * 16 + (int)threadIdx.x % 32 / 4 + 8 * i;
}

/* x, turned if there is RoPE, as planes in shared memory. */
template <class sizes>
__device__ __forceinline__ void store_x(const head &own, const tokens<sizes> &in, const hla_cuda_map &map) {
    using type = typename sizes::type;
    const int q = (int)threadIdx.x % 4;
#pragma unroll
    for (int group = 0; group < sizes::GROUPS; group++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 from = in.x[group][i];
            const int place = chunk_place<sizes::X_CHUNKS>(own_row(i), 4 * group + q);
            if constexpr (sizes::PLANES == 1) {
                own.x[place] = from;
                continue;
            }
            const uint32_t pairs[4] = {from.x, from.y, from.z, from.w};
            const bool turned = map.rope && in.at.there[i] && 32 * group + 8 * q < map.dim;
            const float *table = map.rope + (int64_t)(in.at.t + 8 * i) * map.dim + 32 * group + 8 * q;
            uint32_t parts[4][sizes::PLANES];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 x = type::unpack(pairs[j]);
                if (sizes::PLANES == 3 && turned) {
                    const float2 turn = __ldg((const float2 *)table + j);
                    x = make_float2(turn.x * x.x - turn.y * x.y, turn.y * x.x + turn.x * x.y);
                }
                split(parts[j], x.x, x.y);
            }
#pragma unroll
            for (int p = 0; p < sizes::PLANES; p++)
                own.x[p * sizes::X + place] = make_uint4(parts[0][p], parts[1][p], parts[2][p], parts[3][p]);
        }
    }
}

/* u [TILES][4] = W x of the warp's rows, whose x the lane has stored itself. */
template <class sizes> __device__ __forceinline__ void project(float (&u)[sizes::TILES][4], const head &own) {
    const int q = (int)threadIdx.x % 4;
#pragma unroll 1
    for (int group = 0; group < sizes::GROUPS; group++) {
        uint4 first[sizes::PLANES], second[sizes::PLANES]; /* steps of 16 terms */
#pragma unroll
        for (int p = 0; p < sizes::PLANES; p++) {
            const uint4 *plane = own.x + p * sizes::X;
            const uint4 a = plane[chunk_place<sizes::X_CHUNKS>(own_row(0), 4 * group + q)];
            const uint4 b = plane[chunk_place<sizes::X_CHUNKS>(own_row(1), 4 * group + q)];
            first[p] = make_uint4(a.x, b.x, a.y, b.y), second[p] = make_uint4(a.z, b.z, a.w, b.w);
        }
#pragma unroll
        for (int tile = 0; tile < sizes::TILES; tile++) {
            uint2 w[2][PARTS];
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                const uint4 m = load_row_chunks<sizes::X_CHUNKS>(own.weight + p * sizes::WEIGHT, 8 * tile, 4 * group);
                w[0][p] = make_uint2(m.x, m.y), w[1][p] = make_uint2(m.z, m.w);
            }
            add_product<sizes::PLANES>(u[tile], first, w[0]);
            add_product<sizes::PLANES>(u[tile], second, w[1]);
        }
    }
}

__device__ __forceinline__ float quad_largest(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/* Output that column 2q + e of a tile is. */
template <int GROUP> __device__ __forceinline__ int output_of(int tile, int e) {
    return tile / GROUP * GROUP * 8 + weight_row<GROUP>(tile % GROUP, (int)threadIdx.x % 4 * 2 + e);
}

/* y_r (e_r - sum_s y_s e_s) of row i of the lane's two */
template <class sizes>
__device__ __forceinline__ void differentiate_softmax(float (&u)[sizes::TILES][4], const tokens<sizes> &in, int i,
                                                      float shift) {
    using type = typename sizes::type;
    float total = 0, sum = 0;
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++) {
        const float2 e = type::unpack(in.e[tile][i]);
        float &a = u[tile][2 * i], &b = u[tile][2 * i + 1];
        a = expf(a - shift), b = expf(b - shift);
        total += a + b;
        sum = fmaf(a, e.x, fmaf(b, e.y, sum));
    }
    const float factor = 1 / quad_sum(total), mean = quad_sum(sum) * factor;
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++) {
        const float2 e = type::unpack(in.e[tile][i]);
        u[tile][2 * i] *= factor * (e.x - mean);
        u[tile][2 * i + 1] *= factor * (e.y - mean);
    }
}

/* What the maximum that an exp query subtracts receives: minus the row's sum, to the first feature that holds it. */
template <class sizes>
__device__ __forceinline__ void differentiate_largest(float (&du)[sizes::TILES][4], int i, int place) {
    constexpr unsigned ALL = 0xffffffffu;
    float sum = 0;
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++)
        sum += du[tile][2 * i] + du[tile][2 * i + 1];
    sum = quad_sum(sum);
    place = min(place, __shfl_xor_sync(ALL, place, 1));
    place = min(place, __shfl_xor_sync(ALL, place, 2));
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (output_of<sizes::GROUP>(tile, e) == place) du[tile][2 * i + e] -= sum;
        }
    }
}

/* Row i of the lane's two: u becomes du. */
template <class sizes>
__device__ __forceinline__ void differentiate_row(float (&u)[sizes::TILES][4], const tokens<sizes> &in, int i,
                                                  const hla_cuda_map &map) {
    using type = typename sizes::type;
    const bool by_largest = shifts_by_largest(map);
    float shift = map.shift;
    int place = 8 * sizes::TILES;
    if (by_largest) {
        float largest = -INFINITY;
#pragma unroll
        for (int tile = 0; tile < sizes::TILES; tile++)
            largest = fmaxf(largest, fmaxf(u[tile][2 * i], u[tile][2 * i + 1]));
        shift = quad_largest(largest);
        if (map.activation == HLA_ACTIVATION_SOFTMAX) {
            differentiate_softmax<sizes>(u, in, i, shift);
            return;
        }
    }
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++) {
        const float2 pair = type::unpack(in.e[tile][i]);
#pragma unroll
        for (int e = 0; e < 2; e++) {
            float &value = u[tile][2 * i + e];
            if (by_largest && value == shift) place = min(place, output_of<sizes::GROUP>(tile, e));
            value = differentiate(map.activation, e == 0 ? pair.x : pair.y, value, shift);
        }
    }
    if (by_largest) differentiate_largest<sizes>(u, i, place);
}

/* du of the warp's rows from u without bias; rows that are not there become zero. */
template <class sizes>
__device__ __forceinline__ void differentiate(float (&u)[sizes::TILES][4], const tokens<sizes> &in, const head &own,
                                              const hla_cuda_map &map) {
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++) {
#pragma unroll
        for (int e = 0; e < 4; e++)
            u[tile][e] += own.bias[output_of<sizes::GROUP>(tile, e % 2)];
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        differentiate_row<sizes>(u, in, i, map);
#pragma unroll
        for (int tile = 0; tile < sizes::TILES; tile++) {
            if (!in.at.there[i]) u[tile][2 * i] = u[tile][2 * i + 1] = 0;
        }
    }
}

/* du as planes in shared memory, in the outputs' own order. */
template <class sizes> __device__ __forceinline__ void store_u(const head &own, const float (&du)[sizes::TILES][4]) {
    constexpr int GROUP = sizes::GROUP;
    const int q = (int)threadIdx.x % 4;
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile += GROUP) {
        uint32_t parts[2][GROUP][PARTS]; /* of both rows */
#pragma unroll
        for (int j = 0; j < 2 * GROUP; j++)
            split(parts[j % 2][j / 2], du[tile + j / 2][j % 2 * 2], du[tile + j / 2][j % 2 * 2 + 1]);
#pragma unroll
        for (int i = 0; i < 2 * PARTS; i++) {
            const int row = own_row(i % 2), p = i / 2;
            uint4 *plane = own.u + p * sizes::U;
            if constexpr (GROUP == 4) {
                plane[chunk_place<sizes::U_CHUNKS>(row, tile + q)] =
                    make_uint4(parts[i % 2][0][p], parts[i % 2][1][p], parts[i % 2][2][p], parts[i % 2][3][p]);
            } else {
                uint2 *half = (uint2 *)(plane + chunk_place<sizes::U_CHUNKS>(row, tile + q / 2)) + q % 2;
                *half = make_uint2(parts[i % 2][0][p], parts[i % 2][1][p]);
            }
        }
    }
}

/* Part p of a group of tiles of du as inputs, two tiles a step; the lane has stored it itself. */
template <class sizes>
__device__ __forceinline__ void load_u(uint4 (&step)[sizes::GROUP / 2], const head &own, int tile, int p) {
    const int q = (int)threadIdx.x % 4;
    const uint4 *plane = own.u + p * sizes::U;
    if constexpr (sizes::GROUP == 4) {
        const uint4 a = plane[chunk_place<sizes::U_CHUNKS>(own_row(0), tile + q)];
        const uint4 b = plane[chunk_place<sizes::U_CHUNKS>(own_row(1), tile + q)];
        step[0] = make_uint4(a.x, b.x, a.y, b.y), step[1] = make_uint4(a.z, b.z, a.w, b.w);
    } else {
        const uint2 a = ((const uint2 *)(plane + chunk_place<sizes::U_CHUNKS>(own_row(0), tile + q / 2)))[q % 2];
        const uint2 b = ((const uint2 *)(plane + chunk_place<sizes::U_CHUNKS>(own_row(1), tile + q / 2)))[q % 2];
        step[0] = make_uint4(a.x, b.x, a.y, b.y);
    }
}

/* sum [4][4] += 16 outputs' du, in two parts, times their rows of the weights, chunks chunk ... chunk + 3. */
template <class sizes>
__device__ __forceinline__ void multiply_back(float (&sum)[4][4], const uint4 &high, const uint4 &low, const head &own,
                                              int row, int chunk) {
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
        const uint4 w = load_columns<sizes::X_CHUNKS, true>(own.weight, row, chunk + j);
        const uint4 v = load_columns<sizes::X_CHUNKS, true>(own.weight + sizes::WEIGHT, row, chunk + j);
        bf16::mma(sum[j], low.x, low.y, low.z, low.w, w.x, w.y);
        bf16::mma(sum[j + 1], low.x, low.y, low.z, low.w, w.z, w.w);
        bf16::mma(sum[j], high.x, high.y, high.z, high.w, v.x, v.y);
        bf16::mma(sum[j + 1], high.x, high.y, high.z, high.w, v.z, v.w);
        bf16::mma(sum[j], high.x, high.y, high.z, high.w, w.x, w.y);
        bf16::mma(sum[j + 1], high.x, high.y, high.z, high.w, w.z, w.w);
    }
}

/* dx = W^T du of the warp's rows, turned back. */
template <class sizes>
__device__ __forceinline__ void store_dx(const head &own, const hla_cuda_map &map, const places &at, int64_t h) {
    using type = typename sizes::type;
    const int q = (int)threadIdx.x % 4;
    uint16_t *base = (uint16_t *)map.dx.data + row_of(map.dx, at.b, at.t, h);
#pragma unroll 1
    for (int group = 0; group < sizes::GROUPS; group++) {
        float sum[4][4] = {};
#pragma unroll
        for (int tile = 0; tile < sizes::TILES; tile += sizes::GROUP) {
            uint4 high[sizes::GROUP / 2], low[sizes::GROUP / 2];
            load_u<sizes>(high, own, tile, 0);
            load_u<sizes>(low, own, tile, 1);
#pragma unroll
            for (int step = 0; step < sizes::GROUP / 2; step++)
                multiply_back<sizes>(sum, high[step], low[step], own, 8 * tile + 16 * step, 4 * group);
        }
        const int column = 32 * group + 8 * q;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!at.there[i] || column >= map.dim) continue;
            const float *table = map.rope + (int64_t)(at.t + 8 * i) * map.dim + column;
            uint32_t pairs[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float a = sum[j][2 * i], b = sum[j][2 * i + 1];
                if (sizes::PLANES == 3 && map.rope) {
                    const float2 turn = __ldg((const float2 *)table + j);
                    const float turned = turn.x * a + turn.y * b;
                    b = turn.x * b - turn.y * a, a = turned;
                }
                pairs[j] = type::pack(a, b);
            }
            *(uint4 *)(base + 8 * i * map.dx.stride[1] + column) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
        }
    }
}

/* A warp's part of dW, tiles of 16 outputs x 8 inputs, and of db, all columns of whose tile are the same. */
template <class sizes> struct gradient { float weight[sizes::OWN][4], bias[4]; };

template <class sizes> __device__ __forceinline__ void add_block(gradient<sizes> &sum, const head &own) {
    const int warp = (int)threadIdx.x / 32, line = warp / sizes::SHARES, first = warp % sizes::SHARES * sizes::OWN;
    const uint2 ones = make_uint2(0x3f803f80u, 0x3f803f80u);
#pragma unroll 1
    for (int t = 0; t < ROWS; t += 16) {
        uint4 du[PARTS];
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            du[p] = load_columns<sizes::U_CHUNKS, false>(own.u + p * sizes::U, t, 2 * line);
        if (first == 0) {
            float whole[4] = {sum.bias[0], 0, sum.bias[1], 0};
            add_product<1>(whole, du, &ones);
            sum.bias[0] = whole[0], sum.bias[1] = whole[2];
        }
        if constexpr (sizes::OWN == 1) {
            uint2 x[sizes::PLANES];
#pragma unroll
            for (int p = 0; p < sizes::PLANES; p++) { /* of two chunks the one that is the warp's */
                const uint4 m = load_columns<sizes::X_CHUNKS, true>(own.x + p * sizes::X, t, first / 2 * 2);
                x[p] = first % 2 == 0 ? make_uint2(m.x, m.y) : make_uint2(m.z, m.w);
            }
            add_product<sizes::PLANES>(sum.weight[0], du, x);
        } else {
#pragma unroll
            for (int tile = 0; tile < sizes::OWN; tile += 2) {
                uint2 x[2][sizes::PLANES];
#pragma unroll
                for (int p = 0; p < sizes::PLANES; p++) {
                    const uint4 m = load_columns<sizes::X_CHUNKS, true>(own.x + p * sizes::X, t, first + tile);
                    x[0][p] = make_uint2(m.x, m.y), x[1][p] = make_uint2(m.z, m.w);
                }
                add_product<sizes::PLANES>(sum.weight[tile], du, x[0]);
                add_product<sizes::PLANES>(sum.weight[tile + 1], du, x[1]);
            }
        }
    }
}

/* total [R][D], [R] (+)= the sums, which are cleared. */
template <class sizes>
__device__ void move_sums(float *total, gradient<sizes> &sum, const hla_cuda_map &map, bool add) {
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const int row = warp / sizes::SHARES * 16 + g, first = warp % sizes::SHARES * sizes::OWN;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = row + i / 2 * 8;
#pragma unroll
        for (int tile = 0; tile < sizes::OWN; tile++) {
            const int x = 8 * (first + tile) + 2 * q + i % 2;
            float *to = total + r * map.dim + x;
            if (r < map.rank && x < map.dim) *to = add ? *to + sum.weight[tile][i] : sum.weight[tile][i];
            sum.weight[tile][i] = 0;
        }
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int r = row + i * 8;
        float *to = total + map.rank * map.dim + r;
        if (first == 0 && q == 0 && r < map.rank) *to = add ? *to + sum.bias[i] : sum.bias[i];
        sum.bias[i] = 0;
    }
}

template <class sizes>
__global__ void __launch_bounds__(THREADS, 1) differentiate_chunks(const __grid_constant__ hla_cuda_map map) {
    extern __shared__ __align__(128) unsigned char shared[];
    const unsigned blocks = (unsigned)((map.tokens - 1) / ROWS + 1), all = (unsigned)map.batch * blocks;
    const unsigned heads = (unsigned)map.heads, chunks = (unsigned)map.chunks, each = all / chunks, more = all % chunks;
    const unsigned h = blockIdx.x % heads, chunk = blockIdx.x / heads;
    const unsigned start = chunk * each + min(chunk, more), end = start + each + (chunk < more);
    float *total = map.sums + ((int64_t)h * chunks + chunk) * map.size;
    tokens<sizes> in;
    load_x<sizes>(in, map, start, blocks, end, h);
    if constexpr (sizes::AHEAD) load_e<sizes>(in, map, h);
    const head own = prepare<sizes>(shared, map, h);
    gradient<sizes> sum = {};
    for (unsigned block = start; block < end; block++) {
        store_x<sizes>(own, in, map);
        float u[sizes::TILES][4] = {};
        project<sizes>(u, own);
        if constexpr (!sizes::AHEAD) load_e<sizes>(in, map, h);
        differentiate<sizes>(u, in, own, map);
        store_u<sizes>(own, u);
        const places at = in.at;
        if constexpr (sizes::AHEAD) {
            load_x<sizes>(in, map, block + 1, blocks, end, h);
            load_e<sizes>(in, map, h);
        }
        __syncthreads();
        if (map.dx.data) store_dx<sizes>(own, map, at, h);
        if (map.gradients.weight || map.gradients.bias) add_block<sizes>(sum, own);
        if ((block - start) % FLUSH == FLUSH - 1) move_sums<sizes>(total, sum, map, block - start >= FLUSH);
        if constexpr (!sizes::AHEAD) load_x<sizes>(in, map, block + 1, blocks, end, h);
        __syncthreads();
    }
    move_sums<sizes>(total, sum, map, end - start >= FLUSH);
}

template <class sizes> int launch(const hla_cuda_map *map, cudaStream_t stream) {
    if (cudaFuncSetAttribute(differentiate_chunks<sizes>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizes::SHARED)) {
        (void)cudaGetLastError(); /* a device with too little of it */
        return hla_cuda_map_backward(map, stream);
    }
    differentiate_chunks<sizes><<<(unsigned)(map->heads * map->chunks), THREADS, sizes::SHARED, stream>>>(*map);
    cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? hla_cuda_map_finish_backward(map, stream) : (int)error;
}

template <class type, int PLANES, int GROUPS> int launch_for_rank(const hla_cuda_map *map, cudaStream_t stream) {
    if (map->rank <= 16) return launch<instance<type, PLANES, GROUPS, 2>>(map, stream);
    if (map->rank <= 32) return launch<instance<type, PLANES, GROUPS, 4>>(map, stream);
    return launch<instance<type, PLANES, GROUPS, 8>>(map, stream);
}

template <class type, int PLANES> int launch_for_dim(const hla_cuda_map *map, cudaStream_t stream) {
    return (map->dim <= 64 ? launch_for_rank<type, PLANES, 2> : launch_for_rank<type, PLANES, 4>)(map, stream);
}

bool aligned(const void *address) {
    return (uintptr_t)address % 16 == 0;
}

bool rows_are_aligned(const hla_cuda_view &view) {
    return view.stride[3] == 1 && view.stride[0] % 8 == 0 && view.stride[1] % 8 == 0 && view.stride[2] % 8 == 0 &&
           aligned(view.data);
}

} // namespace

extern "C" bool hla_cuda_map_mma_takes_backward(const hla_cuda_map *map) {
    const int64_t blocks = (map->tokens - 1) / ROWS + 1;
    return map->dtype != HLA_F32 && !map->hidden_weight && map->dim % 8 == 0 && map->rank % 8 == 0 &&
           map->dim <= MOST_DIM && map->rank <= MOST_RANK && rows_are_aligned(map->x) && rows_are_aligned(map->out) &&
           (!map->dx.data || rows_are_aligned(map->dx)) && aligned(map->weight) && aligned(map->rope) &&
           map->heads <= INT32_MAX / map->chunks && map->tokens <= INT32_MAX / 2 && map->batch <= INT32_MAX / blocks;
}

extern "C" int hla_cuda_map_mma_backward(const hla_cuda_map *map, void *stream) {
    cudaStream_t queue = (cudaStream_t)stream;
    if (map->dtype == HLA_BF16) return (map->rope ? launch_for_dim<bf16, 3> : launch_for_dim<bf16, 1>)(map, queue);
    return (map->rope ? launch_for_dim<f16, 3> : launch_for_dim<f16, 2>)(map, queue);
}
