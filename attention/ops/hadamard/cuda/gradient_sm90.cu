/* Gradients of both features of one side on Hopper. With H_ab = sum_v S_ab,v x_v of a token, f = (a, b),
 *
 *     P_a = sum_b f2_b H_ab        Q_b = sum_a f1_a H_ab        Z_a = sum_b f2_b z_ab        Y_b = sum_a f1_a z_ab
 *
 * and the gradients are combinations of P and Z, Q and Y (backward.h). H is made 256 rows of S at a time in registers
 * (128 if R_2 is 128) and folded at once into Q, which stays in registers, and P, which waits in shared memory until
 * the token's denominator is known.
 *
 * Persistent blocks take 64 tokens for each of two warpgroups. x stays in registers as fragments of the A operand: in
 * the order of S's permuted columns they are 16 contiguous bytes of x. S comes through a ring of stages, 64 columns of
 * the rows each; a pair of blocks works on neighbouring tokens, and each brings half of every stage to both. Z and Y
 * are small products with z as a sum of two 16-bit numbers.
 */
#include "attention/ops/hadamard/cuda/backward.h"
#include "attention/ops/hadamard/cuda/line.cuh"
#include "attention/ops/hadamard/cuda/ptx.cuh"
#include "attention/ops/hadamard/cuda/tensor_map.h"
#include "attention/ops/hadamard/cuda/wgmma.cuh"

namespace {

constexpr int PAIR = 2; /* blocks of a cluster */
constexpr int SHARED_LIMIT = 232448;
constexpr int MOST_STAGES = 12;
constexpr int BARRIERS = 2 * MOST_STAGES + 4;

constexpr int GROUPS = 2; /* warpgroups that compute, 240 registers a thread */
constexpr int THREADS = 128 * (GROUPS + 1);
constexpr int TILE = 64 * GROUPS; /* tokens of a block */
static_assert(PAIR * TILE == HLA_HOPPER_TILE, "a pair of blocks takes a tile");

struct arguments {
    CUtensorMap s, z;
    hla_gradient_call call;
    int items; /* units of all heads */
    int rank1, key_heads;
    int units; /* of each sequence, one head; 0: that differs, spans tell */
    int stages, z_stages;
    int z_bytes; /* of one part of z, coarse or fine */
};

template <int R2, int V> struct sizes {
    static constexpr int ROWS = R2 == 128 ? 128 : 256; /* of S at a time: H of a warpgroup is 64 x ROWS */
    static constexpr int STAGE = ROWS * 64 * 2;        /* bytes: 64 columns of them */
    static constexpr int SHARE_ROWS = ROWS / PAIR, SHARE = STAGE / PAIR; /* that a block brings */
    static constexpr int WIDTH = R2 < 64 ? R2 : 64;                      /* columns of a tile of z */
    static constexpr int HALVES = R2 / WIDTH;
    static constexpr int ROW = 2 * WIDTH;                    /* bytes */
    static constexpr int STAGE_A = ROWS / R2;                /* values of a in a stage */
    static constexpr int STEP_A = STAGE_A < 4 ? 4 : STAGE_A; /* and in a turn of the main loop */
    static constexpr bool IN_TURN = V == 128;                /* warpgroups start their products one after the other */
};

__device__ __forceinline__ int64_t row_offset(const hla_cuda_view &view, int64_t b, int64_t t, int64_t h) {
    return b * view.stride[0] + t * view.stride[1] + h * view.stride[2];
}

/* Tokens that a pair of blocks takes. */
struct place {
    int64_t b, first; /* rows from first on of the T axis, */
    int count;        /* that many belong to the sequence */
    int head, state;
};

__device__ __forceinline__ place place_of(const arguments &in, int item) {
    const hla_hopper_side &side = in.call.side;
    const int heads = (int)side.heads;
    int sequence, units = in.units; /* units: of the sequence, one head */
    hla_hopper_span span;
    if (units > 0) {
        sequence = item / (units * heads), item -= sequence * (units * heads);
        span.b = sequence, span.first = 0, span.count = side.tokens;
    } else {
        sequence = line::sequence_at(side, item);
        span = side.spans[sequence];
        units = (int)(side.spans[sequence + 1].units - span.units), item -= (int)span.units * heads;
    }
    const int head = item / units, before = (item - head * units) * PAIR * TILE;
    place at;
    at.b = span.b;
    at.head = head;
    at.first = span.first + before;
    at.count = (int)span.count - before;
    at.state = sequence * in.key_heads + head / (int)side.group;
    return at;
}

/* ---- between the two blocks ---- */

__device__ __forceinline__ uint32_t rank_in_pair() {
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void meet_pair() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::: "memory");
}

/* To the same place in both blocks' shared memory; each block's barrier counts what arrives there. */
__device__ __forceinline__ void copy_rows_to_pair(uint32_t to, const CUtensorMap *map, uint32_t barrier, int x,
                                                  int row) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
                 "[%1, {%3, %4}], [%2], %5;" ::"r"(to),
                 "l"(map), "r"(barrier), "r"(x), "r"(row), "h"((uint16_t)((1 << PAIR) - 1))
                 : "memory");
}

/* Arrives at the barrier of that block of the pair. */
__device__ __forceinline__ void arrive_in(uint32_t barrier, uint32_t block) {
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
                 "r"(block)
                 : "memory");
}

/* ---- the last warpgroup: one thread ---- */

template <int R2, int V>
__device__ __forceinline__ void load_states(const arguments &in, uint32_t stages, uint32_t z, uint32_t full,
                                            uint32_t empty, uint32_t z_full, uint32_t z_empty) {
    using G = sizes<R2, V>;
    const int rank = in.rank1 * R2;
    const uint32_t block = rank_in_pair();
    const bool with_z = in.call.mode != HLA_GRADIENT_PLAIN;
    int filling = 0, z_filling = 0;
    uint32_t parity = 1, z_parity = 1;
    for (int item = (int)blockIdx.x / PAIR; item < in.items; item += (int)gridDim.x / PAIR) {
        const int state = place_of(in, item).state;
#pragma unroll 1
        for (int i = 0; i < rank / G::ROWS * (V / 64); i++) {
            ptx::barrier_wait(empty + 8 * filling, parity);
            uint32_t barrier = full + 8 * filling;
            ptx::barrier_expect(barrier, G::STAGE);
            copy_rows_to_pair(stages + filling * G::STAGE + block * G::SHARE, &in.s, barrier, i % (V / 64) * 64,
                              (int)(state * rank) + i / (V / 64) * G::ROWS + G::SHARE_ROWS * block);
            if (++filling == in.stages) filling = 0, parity ^= 1;
        }
        if (!with_z) continue;
        ptx::barrier_wait(z_empty + 8 * z_filling, z_parity);
        uint32_t barrier = z_full + 8 * z_filling, at = z + 2 * in.z_bytes * z_filling;
        ptx::barrier_expect(barrier, 2 * rank * 2);
        for (int part = 0; part < 2; part++)
            for (int half = 0; half < G::HALVES; half++)
                ptx::copy_rows(at + part * in.z_bytes + half * in.rank1 * G::ROW, &in.z, barrier, 64 * half,
                               (int)(state * 2 + part) * in.rank1);
        if (++z_filling == in.z_stages) z_filling = 0, z_parity ^= 1;
    }
}

/* ---- the warpgroups that compute ---- */

/* A sum of four lanes each, of four numbers: lane i of the four gets number i's. */
__device__ __forceinline__ float sum_lanes(const float (&p)[4], int lane) {
    const bool upper = lane & 2, odd = lane & 1;
    float keep0 = upper ? p[2] : p[0], keep1 = upper ? p[3] : p[1];
    keep0 += __shfl_xor_sync(0xffffffffu, upper ? p[0] : p[2], 2);
    keep1 += __shfl_xor_sync(0xffffffffu, upper ? p[1] : p[3], 2);
    return (odd ? keep1 : keep0) + __shfl_xor_sync(0xffffffffu, odd ? keep0 : keep1, 1);
}

__device__ __forceinline__ float sum_lanes(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/* The two warpgroups start their products in turn, so that one's are done while the other's run. */
__device__ __forceinline__ void wait_for_turn(int warpgroup) {
    asm volatile("bar.sync %0, 256;" ::"r"(warpgroup + 1) : "memory");
}
__device__ __forceinline__ void pass_turn(int warpgroup) {
    asm volatile("bar.arrive %0, 256;" ::"r"(warpgroup + 1) : "memory");
}

/* Adds a stage's share to H: 64 of the columns that are summed over. */
template <int ROWS, bool HALF>
__device__ __forceinline__ void multiply_stage(float (&h)[ROWS / 2], const uint32_t (*x)[4], uint32_t stage_at,
                                               bool first) {
    const uint64_t s = wgmma::describe(stage_at, 16, 1024, wgmma::SWIZZLE_128);
#pragma unroll
    for (int step = 0; step < 4; step++)
        wgmma::multiply<HALF, wgmma::MAJOR_K>(h, x[step], s + (uint64_t)(step * 2), !first || step > 0);
    wgmma::commit();
}

/* Folds H of a stage for row r of the fragments: its columns are (a, b), A values of a from the stage's first. f1, f2:
 * pairs of the token's features; p: P of those a, as sums over this lane's values of b. */
template <int R2, int A, bool HALF>
__device__ __forceinline__ void fold(float (&q)[R2 / 4], float (&p)[A], const float (&h)[A * R2 / 2],
                                     const uint32_t (&f2)[R2 / 8], const uint32_t (&f1)[(A + 1) / 2], int r) {
#pragma unroll
    for (int a = 0; a < A; a++)
        p[a] = 0;
#pragma unroll
    for (int b = 0; b < R2 / 8; b++) {
        const float2 f2_pair = ptx::unpack<HALF>(f2[b]);
#pragma unroll
        for (int a = 0; a < A; a++) {
            const float2 f1_pair = ptx::unpack<HALF>(f1[a / 2]);
            const float f1_a = a % 2 ? f1_pair.y : f1_pair.x;
            const float even = h[4 * (a * R2 / 8 + b) + 2 * r], odd = h[4 * (a * R2 / 8 + b) + 2 * r + 1];
            q[2 * b] = fmaf(f1_a, even, q[2 * b]);
            q[2 * b + 1] = fmaf(f1_a, odd, q[2 * b + 1]);
            p[a] = fmaf(f2_pair.x, even, p[a]);
            p[a] = fmaf(f2_pair.y, odd, p[a]);
        }
    }
}

/* Y of both parts of z, for columns 64 half .. of b; rows of f1 as fragments straight from memory. Products read a
 * fragment's registers until they are done: nothing else may be loaded into them before. */
template <int R2, bool HALF>
__device__ __forceinline__ void multiply_rows(float (&y)[(R2 < 64 ? R2 : 64) / 2], const uint16_t *const (&f1)[2],
                                              uint32_t z_at, int z_bytes, int rank1, int lane) {
    constexpr int ROW = R2 < 64 ? 2 * R2 : 128, STEPS = 4;
    constexpr uint32_t SWIZZLE = R2 >= 64 ? wgmma::SWIZZLE_128 : R2 == 32 ? wgmma::SWIZZLE_64 : wgmma::SWIZZLE_32;
    const uint64_t coarse = wgmma::describe(z_at, 16, 8 * ROW, SWIZZLE);
    const uint64_t fine = wgmma::describe(z_at + z_bytes, 16, 8 * ROW, SWIZZLE);
#pragma unroll 1
    for (int a_first = 0; a_first < rank1; a_first += 16 * STEPS) {
        uint32_t fragments[STEPS][4];
#pragma unroll
        for (int step = 0; step < STEPS; step++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int a = a_first + 16 * step;
                const uint16_t *from = f1[i & 1] + (a < rank1 ? a : 0) + 8 * (i / 2) + 2 * (lane & 3);
                fragments[step][i] = *(const uint32_t *)from;
            }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int a = a_first + 16 * step;
            if (a >= rank1) continue;
            wgmma::fence();
            wgmma::multiply<HALF, wgmma::MAJOR_N>(y, fragments[step], coarse + (uint64_t)(a * ROW / 16), 1);
            wgmma::multiply<HALF, wgmma::MAJOR_N>(y, fragments[step], fine + (uint64_t)(a * ROW / 16), 1);
        }
        wgmma::commit();
        wgmma::wait<0>();
        wgmma::settle(y);
    }
}

/* Z of both parts of z, for 32 values of a from a_first on. */
template <int R2, bool HALF>
__device__ __forceinline__ void multiply_columns(float (&z)[16], const uint32_t (&f2)[2][R2 / 8], uint32_t z_at,
                                                 int z_bytes, int rank1, int a_first) {
    constexpr int ROW = R2 < 64 ? 2 * R2 : 128;
    constexpr uint32_t SWIZZLE = R2 >= 64 ? wgmma::SWIZZLE_128 : R2 == 32 ? wgmma::SWIZZLE_64 : wgmma::SWIZZLE_32;
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < R2 / 16; step++) {
        const uint32_t fragment[4] = {f2[0][2 * step], f2[1][2 * step], f2[0][2 * step + 1], f2[1][2 * step + 1]};
        uint32_t at = z_at + step / 4 * rank1 * ROW + a_first * ROW + step % 4 * 32;
        wgmma::multiply<HALF, wgmma::MAJOR_K>(z, fragment, wgmma::describe(at, 16, 8 * ROW, SWIZZLE), step > 0);
        wgmma::multiply<HALF, wgmma::MAJOR_K>(z, fragment, wgmma::describe(at + z_bytes, 16, 8 * ROW, SWIZZLE), 1);
    }
    wgmma::commit();
    wgmma::wait<0>();
    wgmma::settle(z);
}

/* The same number, of which the compiler does not know that, so that what was made of it need not be kept. */
__device__ __forceinline__ int again(int item) {
    asm volatile("" : "+r"(item));
    return item;
}

template <int R2, int V, bool HALF>
__device__ __forceinline__ void contract(const arguments &in, uint32_t stages, uint32_t z, uint32_t p_at, uint32_t full,
                                         uint32_t empty, uint32_t z_full, uint32_t z_empty, int warpgroup, int warp,
                                         int lane) {
    using G = sizes<R2, V>;
    const hla_hopper_side &side = in.call.side;
    const hla_gradient_mode mode = in.call.mode;
    const uint32_t block = rank_in_pair();
    const int quad = lane & 3;
    const int row0 = ((int)block * GROUPS + warpgroup) * 64 + 16 * warp + lane / 4; /* and row0 + 8, of a unit */
    const uint32_t p_rows = p_at + (uint32_t)(warpgroup * in.rank1 * 64 * 4);
    if (G::IN_TURN && warpgroup == 1) pass_turn(0);
    int reading = 0, z_reading = 0;
    uint32_t parity = 0, z_parity = 0;
    auto release = [&](int stage) {
        if (lane < PAIR) arrive_in(empty + 8 * stage, lane);
    };
    for (int item = (int)blockIdx.x / PAIR; item < in.items; item += (int)gridDim.x / PAIR) {
        const uint16_t *f1_row[2];
        uint32_t x[V / 16][4], f2[2][R2 / 8];
        const place begin = place_of(in, item);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = row0 + 8 * r; /* tokens beyond the last one read that */
            const int64_t token = begin.first + (row < begin.count ? row : begin.count - 1);
            f1_row[r] = (const uint16_t *)side.f1.data + row_offset(side.f1, begin.b, token, begin.head);
            const uint16_t *f2_row = (const uint16_t *)side.f2.data + row_offset(side.f2, begin.b, token, begin.head);
            const uint16_t *x_row =
                (const uint16_t *)side.rows.data + row_offset(side.rows, begin.b, token, begin.head);
#pragma unroll
            for (int j = 0; j < V / 32; j++) {
                const uint4 eight = *(const uint4 *)(x_row + 32 * j + 8 * quad);
                x[2 * j][r] = eight.x, x[2 * j][r + 2] = eight.y;
                x[2 * j + 1][r] = eight.z, x[2 * j + 1][r + 2] = eight.w;
            }
#pragma unroll
            for (int j = 0; j < R2 / 8; j++)
                f2[r][j] = *(const uint32_t *)(f2_row + 8 * j + 2 * quad);
        }
        if (item + (int)gridDim.x / PAIR < in.items) { /* what the next tile will read */
            const place next = place_of(in, item + (int)gridDim.x / PAIR);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int64_t t = next.first + (row0 + 8 * r < next.count ? row0 + 8 * r : next.count - 1);
                const hla_cuda_view &view = quad == 0 ? side.f1 : quad == 1 ? side.f2 : side.rows;
                ptx::prefetch((const uint16_t *)view.data + row_offset(view, next.b, t, next.head) +
                              (quad == 3 ? V / 2 : 0));
            }
        }
        float q[2][R2 / 4];
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int i = 0; i < R2 / 4; i++)
                q[r][i] = 0;
        float h[G::ROWS / 2];
#pragma unroll 1
        for (int a_first = 0; a_first < in.rank1; a_first += G::STEP_A) {
            float p[2][G::STEP_A] = {};
#pragma unroll 1
            for (int a = a_first; a < a_first + G::STEP_A; a += G::STAGE_A) {
                int using_stage = reading;
                uint32_t using_parity = parity;
                if constexpr (G::IN_TURN) wait_for_turn(warpgroup);
                wgmma::fence();
#pragma unroll
                for (int i = 0; i < V / 64; i++) {
                    ptx::barrier_wait(full + 8 * using_stage, using_parity);
                    multiply_stage<G::ROWS, HALF>(h, x + 4 * i, stages + using_stage * G::STAGE, i == 0);
                    if (++using_stage == in.stages) using_stage = 0, using_parity ^= 1;
                }
                if constexpr (G::IN_TURN) pass_turn(1 - warpgroup);
                uint32_t f1[2][(G::STAGE_A + 1) / 2];
#pragma unroll
                for (int r = 0; r < 2; r++)
#pragma unroll
                    for (int i = 0; i < (G::STAGE_A + 1) / 2; i++)
                        f1[r][i] = G::STAGE_A == 1 ? f1_row[r][a] : *(const uint32_t *)(f1_row[r] + a + 2 * i);
                if constexpr (V == 128) {
                    wgmma::wait<1>();
                    release(reading);
                    if (++reading == in.stages) reading = 0, parity ^= 1;
                }
                wgmma::wait<0>();
                release(reading);
                if (++reading == in.stages) reading = 0, parity ^= 1;
                wgmma::settle(h);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float part[G::STAGE_A];
                    fold<R2, G::STAGE_A, HALF>(q[r], part, h, f2[r], f1[r], r);
#pragma unroll
                    for (int i = 0; i < G::STEP_A; i++) /* the last STAGE_A are new, those before move up */
                        p[r][i] = i + G::STAGE_A < G::STEP_A ? p[r][i + G::STAGE_A] : part[i + G::STAGE_A - G::STEP_A];
                }
            }
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int i = 0; i < G::STEP_A; i += 4) {
                    const float four[4] = {p[r][i], p[r][i + 1], p[r][i + 2], p[r][i + 3]};
                    ptx::store_shared(
                        p_rows + ((uint32_t)(a_first + i) * 64 + (16 * warp + lane / 4 + 8 * r) * 4 + quad) * 4,
                        sum_lanes(four, lane));
                }
        }
        __syncwarp();
        const place at = place_of(in, again(item));
        const bool with_z = mode != HLA_GRADIENT_PLAIN;
        const uint32_t z_at = z + 2 * in.z_bytes * z_reading;
        float w[2] = {in.call.scale, in.call.scale}, s[2] = {-1, -1};
        float y[G::HALVES][G::WIDTH / 2];
#pragma unroll
        for (int half = 0; half < G::HALVES; half++)
#pragma unroll
            for (int i = 0; i < G::WIDTH / 2; i++)
                y[half][i] = 0;
        if (with_z) {
            ptx::barrier_wait(z_full + 8 * z_reading, z_parity);
#pragma unroll
            for (int half = 0; half < G::HALVES; half++)
                multiply_rows<R2, HALF>(y[half], f1_row, z_at + half * in.rank1 * G::ROW, in.z_bytes, in.rank1, lane);
        }
        if (mode == HLA_GRADIENT_QUERIES) {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float denominator = 0, product = 0;
#pragma unroll
                for (int j = 0; j < R2 / 8; j++) {
                    const float2 f = ptx::unpack<HALF>(f2[r][j]);
                    const float *y_pair = &y[j / (G::WIDTH / 8)][4 * (j % (G::WIDTH / 8)) + 2 * r];
                    denominator = fmaf(f.x, y_pair[0], fmaf(f.y, y_pair[1], denominator));
                    product = fmaf(f.x, q[r][2 * j], fmaf(f.y, q[r][2 * j + 1], product));
                }
                denominator = sum_lanes(denominator) + in.call.epsilon;
                w[r] = denominator == 0 ? 0 : 1 / denominator;
                s[r] = w[r] * sum_lanes(product);
                if (quad == 0 && row0 + 8 * r < at.count) {
                    int64_t i = (at.b * side.heads + at.head) * side.tokens + at.first + row0 + 8 * r;
                    in.call.weight[i] = w[r];
                    in.call.moment[i] = -w[r] * s[r];
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            if (row0 + 8 * r >= at.count) continue;
            uint16_t *to =
                (uint16_t *)in.call.d2.data + row_offset(in.call.d2, at.b, at.first + row0 + 8 * r, at.head) + 2 * quad;
#pragma unroll
            for (int j = 0; j < R2 / 8; j++) {
                const float *y_pair = &y[j / (G::WIDTH / 8)][4 * (j % (G::WIDTH / 8)) + 2 * r];
                *(uint32_t *)(to + 8 * j) = ptx::pack<HALF>(w[r] * (q[r][2 * j] - s[r] * y_pair[0]),
                                                            w[r] * (q[r][2 * j + 1] - s[r] * y_pair[1]));
            }
        }
#pragma unroll 1
        for (int a_first = 0; a_first < in.rank1; a_first += 32) {
            float z_sum[16];
#pragma unroll
            for (int i = 0; i < 16; i++)
                z_sum[i] = 0;
            if (with_z) multiply_columns<R2, HALF>(z_sum, f2, z_at, in.z_bytes, in.rank1, a_first);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (row0 + 8 * r >= at.count) continue;
                uint16_t *to = (uint16_t *)in.call.d1.data +
                               row_offset(in.call.d1, at.b, at.first + row0 + 8 * r, at.head) + 2 * quad;
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int a = a_first + 8 * j;
                    if (a >= in.rank1) continue;
                    const float2 p = ptx::load_shared_pair(
                        p_rows +
                        (uint32_t)((a / 4 + quad / 2) * 256 + (16 * warp + lane / 4 + 8 * r) * 4 + 2 * (quad & 1)) * 4);
                    *(uint32_t *)(to + a) = ptx::pack<HALF>(w[r] * (p.x - s[r] * z_sum[4 * j + 2 * r]),
                                                            w[r] * (p.y - s[r] * z_sum[4 * j + 2 * r + 1]));
                }
            }
        }
        if (with_z) {
            if (lane == 0) ptx::barrier_arrive(z_empty + 8 * z_reading);
            if (++z_reading == in.z_stages) z_reading = 0, z_parity ^= 1;
        }
        __syncwarp();
    }
}

template <int R2, int V, bool HALF>
__global__ __launch_bounds__(THREADS, 1) void gradient(const __grid_constant__ arguments in) {
    using G = sizes<R2, V>;
    extern __shared__ uint8_t memory[];
    const uint32_t stages = (ptx::shared_address(memory) + 1023u) & ~1023u;
    const uint32_t z = stages + in.stages * G::STAGE, p = z + 2 * in.z_bytes * in.z_stages;
    const uint32_t full = p + (uint32_t)(in.rank1 * TILE * 4), empty = full + 8 * MOST_STAGES;
    const uint32_t z_full = empty + 8 * MOST_STAGES, z_empty = z_full + 16;
    const int warp = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0), lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        for (int i = 0; i < in.stages; i++) {
            ptx::barrier_init(full + 8 * i, 1);
            ptx::barrier_init(empty + 8 * i, PAIR * GROUPS * 4);
        }
        for (int i = 0; i < in.z_stages; i++) {
            ptx::barrier_init(z_full + 8 * i, 1);
            ptx::barrier_init(z_empty + 8 * i, GROUPS * 4);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    meet_pair();
    if (warp >= 4 * GROUPS) {
        ptx::give_registers<24>();
        if (warp == 4 * GROUPS && lane == 0) load_states<R2, V>(in, stages, z, full, empty, z_full, z_empty);
        __syncwarp();
    } else {
        ptx::take_registers<240>();
        contract<R2, V, HALF>(in, stages, z, p, full, empty, z_full, z_empty, warp / 4, warp % 4, lane);
    }
    meet_pair(); /* neither block leaves while the other may still write to it */
}

/* Rows of d1 and d2 beyond the sequences' ends become zero; a warp a row. */
__global__ void clear_rows(const __grid_constant__ hla_gradient_call call, int rank1, int rank2) {
    const hla_hopper_side &side = call.side;
    const int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= side.batch * side.tokens * side.heads) return;
    const int64_t h = row % side.heads, t = row / side.heads % side.tokens, b = row / side.heads / side.tokens;
    if (t < line::span_of(side, b).count) return;
    uint16_t *d1 = (uint16_t *)call.d1.data + row_offset(call.d1, b, t, h);
    uint16_t *d2 = (uint16_t *)call.d2.data + row_offset(call.d2, b, t, h);
    for (int x = (int)threadIdx.x % 32; x < rank1; x += 32)
        d1[x] = 0;
    for (int x = (int)threadIdx.x % 32; x < rank2; x += 32)
        d2[x] = 0;
}

/* ---- launch ---- */

template <int R2, int V, bool HALF> int launch(const hla_hopper_shape *shape, arguments &in, cudaStream_t stream) {
    using G = sizes<R2, V>;
    const int rank1 = in.rank1;
    const int z_rows = rank1 < 32 ? 32 : rank1; /* products take 32 at a time */
    in.z_bytes = z_rows * R2 * 2;
    in.z_stages = 2 * in.z_bytes <= 4096 ? 2 : 1;
    const int rest = 1024 + 2 * in.z_bytes * in.z_stages + rank1 * TILE * 4 + 8 * BARRIERS;
    in.stages = (SHARED_LIMIT - rest) / G::STAGE;
    if (in.stages > MOST_STAGES) in.stages = MOST_STAGES;
    const int shared = rest + in.stages * G::STAGE;
    auto *kernel = gradient<R2, V, HALF>;
    int error = (int)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (!error) error = hla_rows_map(&in.s, in.call.s, V, in.call.states * rank1 * R2, HALF, 64, G::SHARE_ROWS);
    if (!error && in.call.mode != HLA_GRADIENT_PLAIN)
        error = hla_rows_map(&in.z, in.call.z_split, R2, in.call.states * 2 * rank1, HALF, G::WIDTH, rank1);
    if (error) return error;
    int64_t pairs = shape->processors / PAIR > 0 ? shape->processors / PAIR : 1;
    if (pairs > in.items) pairs = in.items;
    cudaLaunchAttribute pair = {};
    pair.id = cudaLaunchAttributeClusterDimension;
    pair.val.clusterDim.x = PAIR, pair.val.clusterDim.y = pair.val.clusterDim.z = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(PAIR * pairs));
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = (size_t)shared;
    config.stream = stream;
    config.attrs = &pair, config.numAttrs = 1;
    return (int)cudaLaunchKernelEx(&config, kernel, in);
}

template <int R2> int launch_of_shape(const hla_hopper_shape *shape, arguments &in, cudaStream_t stream) {
    if (shape->value_dim == 64)
        return shape->half ? launch<R2, 64, true>(shape, in, stream) : launch<R2, 64, false>(shape, in, stream);
    return shape->half ? launch<R2, 128, true>(shape, in, stream) : launch<R2, 128, false>(shape, in, stream);
}

} // namespace

extern "C" int hla_gradient(const hla_hopper_shape *shape, const hla_gradient_call *call, void *stream) {
    arguments in = {};
    in.call = *call;
    in.items = (int)(call->side.units * call->side.heads);
    in.rank1 = (int)shape->rank1, in.key_heads = (int)(call->side.heads / call->side.group);
    in.units = call->side.spans ? 0 : (int)(call->side.units / call->side.sequences);
    cudaStream_t queue = (cudaStream_t)stream;
    const int64_t rows = call->side.batch * call->side.tokens * call->side.heads;
    if (call->clear_after && rows > 0) {
        clear_rows<<<(unsigned)((rows + 7) / 8), 256, 0, queue>>>(*call, (int)shape->rank1, (int)shape->rank2);
        cudaError_t error = cudaGetLastError();
        if (error != cudaSuccess) return (int)error;
    }
    if (in.items == 0) return 0;
    return shape->rank2 == 16   ? launch_of_shape<16>(shape, in, queue)
           : shape->rank2 == 32 ? launch_of_shape<32>(shape, in, queue)
           : shape->rank2 == 64 ? launch_of_shape<64>(shape, in, queue)
                                : launch_of_shape<128>(shape, in, queue);
}
