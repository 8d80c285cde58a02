/* Builds states on Hopper: S_f,v = sum over tokens of (f1_a f2_b) x_v, z_f the same of 1; f = (a, b).
 *
 * A thread block owns 128 TILES rows of a state, two warpgroups with TILES tiles of 64 each, whose sums stay in
 * registers, and walks over chunks of 64 tokens, which a third warpgroup brings to shared memory through a ring of
 * stages. A warp's 16 rows of a tile share one a and run over 16 values of b: fragments of the tile's A operand are f2,
 * transposed on loading, times f1_a, two tokens a register, which lies in one lane and is passed around. x is the B
 * operand. z comes from the third warpgroup's own small products of f2 and f1, exact up to float32 sums.
 */
#include "attention/ops/hadamard/cuda/copy_by_hand.cuh"
#include "attention/ops/hadamard/cuda/line.cuh"
#include "attention/ops/hadamard/cuda/ptx.cuh"
#include "attention/ops/hadamard/cuda/state_sm90.cuh"
#include "attention/ops/hadamard/cuda/tensor_map.h"
#include "attention/ops/hadamard/cuda/wgmma.cuh"

namespace {

constexpr int CHUNK = HLA_HOPPER_CHUNK;
constexpr int THREADS = 384; /* two warpgroups compute, the third one loads */
constexpr int SHARED_LIMIT = 232448;

struct arguments {
    CUtensorMap f1, f2, rows;
    hla_hopper_side side;
    hla_hopper_state state;
    hla_hopper_division division;
    line::shares shares;
    int rank1;
    int f1_row; /* bytes of a row of f1 in shared memory: 128, 64 or 32 */
    float sigma;
};

/* A stage: x in halves of 64 columns, f2 likewise, and f1, 64 columns at most. */
template <int R2, int TILES, int V> struct stage {
    static constexpr int ROW = (R2 < 64 ? R2 : 64) * 2; /* bytes of a row of f2, as swizzled */
    static constexpr int X = CHUNK * V * 2, F2 = CHUNK * R2 * 2, F1 = CHUNK * 128;
    static constexpr int F2_AT = X, F1_AT = F2_AT + F2, BYTES = F1_AT + F1;
    static constexpr int WEIGHTS = CHUNK * 4; /* of the tokens, apart from the tiles */
    static constexpr int FIT = (SHARED_LIMIT - 1024) / (BYTES + WEIGHTS + 16), COUNT = FIT < 8 ? FIT : 8;
    static constexpr int SHARED = COUNT * (BYTES + WEIGHTS + 16) + 1024;
    static_assert(BYTES % 1024 == 0 && COUNT >= 3, "stages keep the alignment that swizzling needs");
};

/* Where the parts of all stages are. */
template <int R2, int TILES, int V> struct ring {
    using S = stage<R2, TILES, V>;
    uint32_t stages, weights, full, empty;
    __device__ __forceinline__ explicit ring(const void *memory) {
        stages = (ptx::shared_address(memory) + 1023u) & ~1023u;
        weights = stages + S::COUNT * S::BYTES;
        full = weights + S::COUNT * S::WEIGHTS;
        empty = full + 8 * S::COUNT;
    }
};

/* Known to the compiler where three tiles leave no register to spare: they are for 64 x 64. */
template <int TILES> __device__ __forceinline__ int f1_row(const arguments &in) {
    return TILES == 3 ? 128 : in.f1_row;
}

/* ---- the third warpgroup ---- */

/* Walks over the chunks of a stretch of the line. */
struct walker {
    int at, segment_end;
    tensor_rows chunk;
    int begin, count, chunks; /* of the sequence; causal, queries without keys make it longer than its keys */

    __device__ __forceinline__ void enter(const hla_hopper_side &side, int end) {
        line::segment segment = line::segment_at(side, at, end);
        hla_hopper_span span = line::span_of(side, segment.sequence);
        int within = at - segment.state_begin, states = (int)(side.heads / side.group);
        chunks = (segment.state_end - segment.state_begin) / (int)side.group;
        segment_end = segment.end, begin = (int)span.first, count = (int)span.count;
        chunk.b = (int)span.b;
        chunk.head = segment.state % states * (int)side.group + within / chunks;
        chunk.first = begin + within % chunks * CHUNK;
        chunk.valid = min(CHUNK, begin + count - chunk.first);
    }
    __device__ __forceinline__ void advance(const hla_hopper_side &side, int end) {
        if (++at == end) return;
        if (at == segment_end) {
            enter(side, end);
            return;
        }
        chunk.first += CHUNK;
        if (chunk.first >= begin + chunks * CHUNK) chunk.first = begin, chunk.head++;
        chunk.valid = min(CHUNK, begin + count - chunk.first);
    }
};

/* Brings one chunk to a stage, of f1 the columns from f1_column on. By one warp. */
template <int R2, int TILES, int V>
__device__ __forceinline__ void load_chunk(const arguments &in, uint32_t stage_at, uint32_t weights, uint32_t full,
                                           const tensor_rows &at, int f1_column, int lane) {
    using S = stage<R2, TILES, V>;
    const hla_hopper_side &side = in.side;
    /* the copy engine fills rows beyond the tensor's end with zeros, but not rows beyond a sequence's */
    bool by_hand = at.valid < CHUNK && at.first + at.valid < side.tokens;
    if (in.state.weight) {
        const float *weight = in.state.weight + ((int64_t)at.b * side.heads + at.head) * side.tokens + at.first;
        for (int t = lane; t < CHUNK; t += 32)
            ptx::store_shared(weights + 4 * (uint32_t)t, t < at.valid ? weight[t] : 0.0f);
        if (lane != 0) ptx::barrier_arrive(full); /* each lane for what it wrote; lane 0 below */
    }
    if (by_hand) {
        for (int half = 0; half < V / 64; half++)
            copy_by_hand(stage_at + half * 8192, side.rows, at, 64 * half, 128, lane);
        for (int half = 0; half < (R2 + 63) / 64; half++)
            copy_by_hand(stage_at + S::F2_AT + half * 8192, side.f2, at, 64 * half, S::ROW, lane);
        copy_by_hand(stage_at + S::F1_AT, side.f1, at, f1_column, in.f1_row, lane);
        ptx::async_fence();
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(full);
        return;
    }
    if (lane != 0) return;
    ptx::barrier_expect(full, (uint32_t)(S::F1_AT + CHUNK * in.f1_row));
    for (int half = 0; half < V / 64; half++)
        ptx::copy_tensor(stage_at + half * 8192, &in.rows, full, 64 * half, at.head, at.first, at.b);
    for (int half = 0; half < (R2 + 63) / 64; half++)
        ptx::copy_tensor(stage_at + S::F2_AT + half * 8192, &in.f2, full, 64 * half, at.head, at.first, at.b);
    ptx::copy_tensor(stage_at + S::F1_AT, &in.f1, full, f1_column, at.head, at.first, at.b);
}

/* Adds a chunk's share to z: tile i of 64 values of b (fewer are repeated), the 16 values of a that begin at `slice` of
 * the stage's. */
template <int R2, int TILES, int V, bool HALF>
__device__ __forceinline__ void add_z(const arguments &in, float (&z)[(R2 + 63) / 64][8], uint32_t stage_at,
                                      int slice) {
    using S = stage<R2, TILES, V>;
    const int row = f1_row<TILES>(in);
    uint32_t swizzle = row == 128 ? wgmma::SWIZZLE_128 : row == 64 ? wgmma::SWIZZLE_64 : wgmma::SWIZZLE_32;
    uint64_t f1 = wgmma::describe(stage_at + S::F1_AT + 32 * slice, 0, 8 * row, swizzle);
    wgmma::fence();
#pragma unroll
    for (int i = 0; i < (R2 + 63) / 64; i++) {
        uint64_t f2 = wgmma::describe(stage_at + S::F2_AT + 8192 * i, 0, 8 * S::ROW, wgmma::SWIZZLE_OF<S::ROW>);
#pragma unroll
        for (int step = 0; step < CHUNK / 16; step++)
            wgmma::multiply_tokens<HALF>(z[i], f2 + (uint64_t)(step * S::ROW), f1 + (uint64_t)(step * row));
    }
    wgmma::commit();
    wgmma::wait<0>();
}

template <int R2>
__device__ __forceinline__ void store_z(const arguments &in, const float (&z)[(R2 + 63) / 64][8], int slot, int slice,
                                        int helper, int helpers_most, int warp, int lane) {
    int64_t rank = (int64_t)in.rank1 * R2;
    float *to = in.state.z_partial + ((int64_t)slot * helpers_most + helper) * rank;
#pragma unroll
    for (int i = 0; i < (R2 + 63) / 64; i++) {
        int b = 64 * i + 16 * warp + lane / 4;
        if (b >= R2) continue;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            int a = 16 * slice + 8 * (k / 4) + 2 * (lane % 4) + (k & 1);
            to[a * R2 + b + 8 * ((k >> 1) & 1)] = z[i][k];
        }
    }
}

template <int R2, int TILES, int V, bool HALF>
__device__ __forceinline__ void load_and_sum_z(const arguments &in, const ring<R2, TILES, V> &ring, int begin, int end,
                                               int group, int member, int warp, int lane) {
    using S = stage<R2, TILES, V>;
    const bool with_z = in.state.z_given == nullptr;
    const int every = (int)in.state.snapshots.every;
    const int half_members = TILES == 3 ? 11 : in.division.half_members; /* known where registers are scarce */
    const int slices = TILES == 3 ? 4 : in.division.slices, half = TILES == 3 ? 0 : member / half_members;
    const int slice = (member - half * half_members) % slices, helper = (member - half * half_members) / slices;
    const int helpers = (half_members + slices - 1 - slice) / slices, most = (half_members + slices - 1) / slices;
    walker ahead;
    ahead.at = begin;
    if (warp == 0 && begin < end) ahead.enter(in.side, end);
    int filling = 0;
    uint32_t filling_parity = 1;
    auto load_next = [&]() {
        if (ahead.at >= end) return;
        ptx::barrier_wait(ring.empty + 8 * filling, filling_parity);
        load_chunk<R2, TILES, V>(in, ring.stages + filling * S::BYTES, ring.weights + filling * S::WEIGHTS,
                                 ring.full + 8 * filling, ahead.chunk, 64 * half, lane);
        __syncwarp();
        ahead.advance(in.side, end);
        if (++filling == S::COUNT) filling = 0, filling_parity ^= 1;
    };
    if (!with_z) {
        while (warp == 0 && ahead.at < end)
            load_next();
        return;
    }
    for (int i = 0; warp == 0 && i < S::COUNT - 1; i++)
        load_next();
    int reading = 0;
    uint32_t parity = 0;
    for (int at = begin; at < end;) {
        const int piece_begin = at, piece_end = line::piece_end(line::segment_at(in.side, at, end), at, every);
        float z[(R2 + 63) / 64][8];
#pragma unroll
        for (int i = 0; i < (R2 + 63) / 64; i++)
#pragma unroll
            for (int k = 0; k < 8; k++)
                z[i][k] = 0;
#pragma unroll 1
        for (; at < piece_end; at++) {
            if (warp == 0) load_next();
            ptx::barrier_wait(ring.full + 8 * reading, parity);
            if (at % helpers == helper) add_z<R2, TILES, V, HALF>(in, z, ring.stages + reading * S::BYTES, slice);
            if (lane == 0) ptx::barrier_arrive(ring.empty + 8 * reading);
            if (++reading == S::COUNT) reading = 0, parity ^= 1;
        }
#pragma unroll
        for (int i = 0; i < (R2 + 63) / 64; i++)
            wgmma::settle(z[i]);
        int state = line::piece_snapshot(line::segment_at(in.side, piece_begin, end), piece_begin, every);
        store_z<R2>(in, z, group + state, half * slices + slice, helper, most, warp, lane);
    }
}

/* ---- the two warpgroups that compute ---- */

/* Columns of sums in memory, 32j + 8 (lane % 4) on, are columns 32j + 8q + 2 (lane % 4) + e: their numbers i = 2q + e,
 * in row lane / 4 + 8r. */
template <int V> __device__ __forceinline__ int sum_at(int j, int r, int i) {
    return 16 * j + 4 * (i / 2) + 2 * r + i % 2;
}
template <int V> __device__ __forceinline__ int column_at(int j, int r, int lane) {
    return (lane / 4 + 8 * r) * V + 32 * j + 8 * (lane % 4);
}

/* A tile's sums, rounded, to a state; `to`: of the warp's first row. */
template <int V, bool HALF>
__device__ __forceinline__ void store_rounded(uint16_t *to, const float (&sums)[V / 2], float sigma, int lane) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int j = 0; j < V / 32; j++) {
            uint32_t pair[4];
#pragma unroll
            for (int q = 0; q < 4; q++)
                pair[q] =
                    ptx::pack<HALF>(sigma * sums[sum_at<V>(j, r, 2 * q)], sigma * sums[sum_at<V>(j, r, 2 * q + 1)]);
            ptx::store_global(to + column_at<V>(j, r, lane), make_uint4(pair[0], pair[1], pair[2], pair[3]));
        }
}

/* The same as they are, and back. */
template <int V> __device__ __forceinline__ void store_exact(float *to, const float (&sums)[V / 2], int lane) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int j = 0; j < V / 32; j++)
#pragma unroll
            for (int i = 0; i < 8; i += 4)
                *(float4 *)(to + column_at<V>(j, r, lane) + i) =
                    make_float4(sums[sum_at<V>(j, r, i)], sums[sum_at<V>(j, r, i + 1)], sums[sum_at<V>(j, r, i + 2)],
                                sums[sum_at<V>(j, r, i + 3)]);
}
/* Pairs, as registers hold them: four at once would need registers of their own. */
template <int V>
__device__ __forceinline__ void load_exact(float (&sums)[V / 2], const float *from, bool wanted, int lane) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int j = 0; j < V / 32; j++)
#pragma unroll
            for (int i = 0; i < 8; i += 2) {
                const float2 *pair = (const float2 *)(from + column_at<V>(j, r, lane) + i);
                const float2 value = wanted ? *pair : make_float2(0, 0);
                sums[sum_at<V>(j, r, i)] = value.x, sums[sum_at<V>(j, r, i + 1)] = value.y;
            }
}

__device__ __forceinline__ bool continues(const arguments &in, const line::segment &segment) {
    return in.state.snapshots.continues && segment.sequence == 0;
}

/* What a block has to do. Asked for anew where it is needed between the loops over tokens, so that these keep their
 * registers. */
struct duty {
    int begin, end;    /* on the line */
    int group, member; /* of blocks */
};

template <int TILES> __device__ __forceinline__ duty duty_of(const arguments &in) {
    int block;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
    const int members = TILES == 3 ? 11 : in.division.members;
    duty found;
    found.group = block / members, found.member = block % members;
    found.begin = line::group_begin(in.shares, found.group), found.end = line::group_begin(in.shares, found.group + 1);
    return found;
}

/* The tile's first row of the warp, and the lane: asked for anew likewise. */
struct seat {
    int row, lane;
};

template <int TILES> __device__ __forceinline__ seat seat_of(int member, int tile) {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return {((member * 2 + thread / 128) * TILES + tile) * 64 + thread / 32 % 4 * 16, thread % 32};
}

/* Begins a segment's sums with nothing, or with what the round before carried. */
template <int R2, int TILES, int V>
__device__ __forceinline__ void begin_segment(const arguments &in, float (&sums)[TILES][V / 2], int at) {
    const duty own = duty_of<TILES>(in);
    const line::segment segment = line::segment_at(in.side, at, own.end);
    const int rank = in.rank1 * R2;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const seat seat = seat_of<TILES>(own.member, t);
        const bool wanted = continues(in, segment) && at == segment.state_begin && seat.row < rank;
        load_exact<V>(sums[t], in.state.snapshots.carry + ((int64_t)segment.state * rank + seat.row) * V, wanted,
                      seat.lane);
    }
}

/* Takes a snapshot where one is due and not all zero, which nobody reads. Returns the piece's end. */
template <int R2, int TILES, int V, bool HALF>
__device__ __forceinline__ int begin_piece(const arguments &in, const float (&sums)[TILES][V / 2], int at) {
    const duty own = duty_of<TILES>(in);
    const line::segment segment = line::segment_at(in.side, at, own.end);
    const int every = (int)in.state.snapshots.every, rank = in.rank1 * R2;
    const bool due =
        every > 0 && (at - segment.state_begin) % every == 0 && (at > segment.state_begin || continues(in, segment));
    uint16_t *to = (uint16_t *)in.state.s + (int64_t)line::piece_snapshot(segment, at, every) * rank * V;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const seat seat = seat_of<TILES>(own.member, t);
        if (due && seat.row < rank) store_rounded<V, HALF>(to + seat.row * V, sums[t], in.sigma, seat.lane);
    }
    return line::piece_end(segment, at, every);
}

/* Leaves what has been summed where a segment ends: the state, what the next round goes on with, or a part. */
template <int R2, int TILES, int V, bool HALF>
__device__ __forceinline__ void end_segment(const arguments &in, const float (&sums)[TILES][V / 2], int at) {
    const duty own = duty_of<TILES>(in);
    const hla_hopper_snapshots &snapshots = in.state.snapshots;
    line::segment segment = line::segment_at(in.side, at - 1, at);
    segment.begin = max(segment.state_begin, own.begin);
    const int64_t rank = in.rank1 * R2;
    const int slot = line::partial_slot(own.group, own.begin, segment.state_begin);
    const int key_head = segment.state - segment.sequence * (int)(in.side.heads / in.side.group);
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        const seat seat = seat_of<TILES>(own.member, t);
        if (seat.row >= rank) continue;
        if (!line::is_whole(segment))
            store_exact<V>(in.state.partial + (slot * rank + seat.row) * V, sums[t], seat.lane);
        else if (snapshots.every == 0)
            store_rounded<V, HALF>((uint16_t *)in.state.s + (segment.state * rank + seat.row) * V, sums[t], in.sigma,
                                   seat.lane);
        else if (snapshots.goes_on && segment.sequence == in.side.sequences - 1)
            store_exact<V>(snapshots.carry + (key_head * rank + seat.row) * V, sums[t], seat.lane);
    }
    __syncwarp();
}

template <bool HALF> __device__ __forceinline__ uint32_t weigh(uint32_t pair, float2 weight) {
    float2 value = ptx::unpack<HALF>(pair);
    return ptx::pack<HALF>(value.x * weight.x, value.y * weight.y);
}

template <int R2, int TILES, int V, bool HALF, bool WEIGHTED>
__device__ __forceinline__ void sum_tiles(const arguments &in, const ring<R2, TILES, V> &ring, int begin, int end,
                                          int member, int warpgroup, int warp, int lane) {
    using S = stage<R2, TILES, V>;
    constexpr int BUFFERS = TILES == 2 ? 2 : 1; /* of fragments: with 2 those of the next step are loaded ahead */
    constexpr int PENDING = TILES == 2 ? 3 : 2; /* products in flight: each keeps four registers */
    constexpr int HALVES = R2 == 128 ? 2 : 1;   /* tiles take the two halves of b in turn */
    constexpr int STEPS = CHUNK / 16;
    const int first_tile = member * 2 * TILES + warpgroup * TILES;
    const int matrix = lane >> 3, row8 = lane & 7;
    /* f2 is loaded as matrices of 8 tokens x 8 values of b: tokens 0-7 and 8-15, b and b + 8 */
    const int token = row8 + 8 * (matrix >> 1), b = R2 >= 64 ? 16 * warp : R2 == 32 ? 16 * (warp & 1) : 0;
    const uint32_t f2_at = S::F2_AT + ptx::swizzled(S::ROW, token, b / 8 + (matrix & 1));
    /* f1: 8 values of a from first_a on; lane 4 (a % 8) + i holds tokens 2i and 2i + 1 of a. They may straddle two
     * pieces of 8: then lanes of the values before first_a take the second one */
    constexpr bool STRADDLES = TILES == 3;
    const int first_a = first_tile * 64 / R2 % 64, f1_piece = first_a / 8;
    const int row = f1_row<TILES>(in);
    const uint32_t f1_at =
        S::F1_AT + ptx::swizzled(row, (matrix & 1) * 8 + row8, STRADDLES ? (f1_piece + (matrix >> 1)) % 8 : f1_piece);
    const uint32_t f1_step = 16 * (uint32_t)row;
    const bool in_first_piece = (lane >> 2) >= (first_a & 7);
    /* a tile further: 64 / R2 values of a further (with R2 = 128 every second tile; a warpgroup's first one is even) */
    const int source = (first_tile * 4 + warp) / (R2 / 16) % 8 * 4 + (lane & 3);
    constexpr int SOURCE_STEP = 4 * 64 / R2 * (R2 == 128 ? 0 : 1);
    float sums[TILES][V / 2];
    int reading = 0;
    uint32_t parity = 0;
    for (int at = begin; at < end;) {
        begin_segment<R2, TILES, V>(in, sums, at);
        do {
            const int piece_end = begin_piece<R2, TILES, V, HALF>(in, sums, at);
#pragma unroll 1
            for (; at < piece_end; at++) {
                const uint32_t stage_at = ring.stages + reading * S::BYTES;
                ptx::barrier_wait(ring.full + 8 * reading, parity);
                const uint64_t x = wgmma::describe(stage_at, 8192, 1024, wgmma::SWIZZLE_128);
                uint32_t f2[BUFFERS][HALVES][4], f1[BUFFERS][2];
                auto load = [&](int step) {
#pragma unroll
                    for (int half = 0; half < HALVES; half++)
                        ptx::load_matrices(f2[step % BUFFERS][half],
                                           stage_at + f2_at + half * 8192 + step * 16 * S::ROW);
                    uint32_t(&pairs)[2] = f1[step % BUFFERS];
                    if constexpr (STRADDLES) {
                        uint32_t both[4];
                        ptx::load_matrices(both, stage_at + f1_at + step * f1_step);
                        pairs[0] = in_first_piece ? both[0] : both[2], pairs[1] = in_first_piece ? both[1] : both[3];
                    } else {
                        ptx::load_matrices(pairs, stage_at + f1_at + step * f1_step);
                    }
                    if constexpr (WEIGHTED) {
                        uint32_t weights =
                            ring.weights + reading * S::WEIGHTS + (uint32_t)(16 * step + 2 * (lane & 3)) * 4;
                        pairs[0] = weigh<HALF>(pairs[0], ptx::load_shared_pair(weights));
                        pairs[1] = weigh<HALF>(pairs[1], ptx::load_shared_pair(weights + 32));
                    }
                };
                if constexpr (BUFFERS == 2) load(0);
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    if constexpr (BUFFERS == 1)
                        load(step);
                    else if (step + 1 < STEPS)
                        load(step + 1);
                    const int buffer = step % BUFFERS;
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        uint32_t low = __shfl_sync(0xffffffffu, f1[buffer][0], source + t * SOURCE_STEP);
                        uint32_t high = __shfl_sync(0xffffffffu, f1[buffer][1], source + t * SOURCE_STEP);
                        wgmma::wait<PENDING>();
                        if (WEIGHTED && step * TILES + t == PENDING) __syncwarp();  /* all lanes have their weights */
                        if (step * TILES + t == PENDING && at > begin && lane == 0) /* the stage before is read */
                            ptx::barrier_arrive(ring.empty + 8 * (reading > 0 ? reading - 1 : S::COUNT - 1));
                        const uint32_t(&b)[4] = f2[buffer][t % HALVES];
                        uint32_t product[4];
                        product[0] = ptx::multiply<HALF>(b[0], low), product[1] = ptx::multiply<HALF>(b[1], low);
                        product[2] = ptx::multiply<HALF>(b[2], high), product[3] = ptx::multiply<HALF>(b[3], high);
                        wgmma::fence();
                        wgmma::multiply<HALF, wgmma::MAJOR_N>(sums[t], product, x + (uint64_t)(step * 128), 1);
                        wgmma::commit();
                    }
                }
                if (++reading == S::COUNT) reading = 0, parity ^= 1;
            }
            wgmma::wait<0>();
#pragma unroll
            for (int t = 0; t < TILES; t++)
                wgmma::settle(sums[t]);
        } while (at < line::segment_at(in.side, at - 1, duty_of<TILES>(in).end).end);
        end_segment<R2, TILES, V, HALF>(in, sums, at);
    }
}

template <int R2, int TILES, int V, bool HALF, bool WEIGHTED>
__global__ __launch_bounds__(THREADS, 1) void build_state(const __grid_constant__ arguments in) {
    using S = stage<R2, TILES, V>;
    extern __shared__ uint8_t memory[];
    const ring<R2, TILES, V> ring(memory);
    const int warp = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0), lane = threadIdx.x & 31;
    const int group = blockIdx.x / in.division.members, member = blockIdx.x % in.division.members;
    const int begin = line::group_begin(in.shares, group);
    const int end = line::group_begin(in.shares, group + 1);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::COUNT; i++) {
            ptx::barrier_init(ring.full + 8 * i, in.state.weight ? 32 : 1);
            ptx::barrier_init(ring.empty + 8 * i, in.state.z_given ? 8 : 12); /* warps that read the stage */
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    ptx::let_next_kernel_start();
    if (warp >= 8) {
        ptx::give_registers<TILES == 3 ? 40 : 72>();
        load_and_sum_z<R2, TILES, V, HALF>(in, ring, begin, end, group, member, warp - 8, lane);
    } else {
        ptx::take_registers<TILES == 3 ? 232 : 216>();
        sum_tiles<R2, TILES, V, HALF, WEIGHTED>(in, ring, begin, end, member, warp / 4, warp % 4, lane);
    }
}

/* ---- launch ---- */

template <int R2, int TILES, int V, bool HALF, bool WEIGHTED> int launch(const arguments &in, cudaStream_t stream) {
    using S = stage<R2, TILES, V>;
    auto *kernel = build_state<R2, TILES, V, HALF, WEIGHTED>;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED);
    if (error != cudaSuccess) return (int)error;
    kernel<<<in.shares.groups * in.division.members, THREADS, S::SHARED, stream>>>(in);
    return (int)cudaGetLastError();
}

template <int R2, int TILES, int V> int launch_of_type(const arguments &in, bool half, cudaStream_t stream) {
    if (in.state.weight)
        return half ? launch<R2, TILES, V, true, true>(in, stream) : launch<R2, TILES, V, false, true>(in, stream);
    return half ? launch<R2, TILES, V, true, false>(in, stream) : launch<R2, TILES, V, false, false>(in, stream);
}

template <int R2, int TILES> int launch_of_width(const arguments &in, int64_t width, bool half, cudaStream_t stream) {
    return width == 64 ? launch_of_type<R2, TILES, 64>(in, half, stream)
                       : launch_of_type<R2, TILES, 128>(in, half, stream);
}

int describe_tensors(arguments *in, const hla_hopper_shape *shape) {
    const hla_hopper_side &side = in->side;
    hla_tensor_map_extent f1 = {shape->rank1, side.heads, side.tokens, side.batch}, f2 = f1, rows = f1;
    f2.x = shape->rank2, rows.x = shape->value_dim;
    int error = hla_tensor_map(&in->f1, &side.f1, &f1, shape->half, in->f1_row / 2, CHUNK);
    if (!error)
        error = hla_tensor_map(&in->f2, &side.f2, &f2, shape->half, shape->rank2 < 64 ? (int)shape->rank2 : 64, CHUNK);
    if (!error) error = hla_tensor_map(&in->rows, &side.rows, &rows, shape->half, 64, CHUNK);
    return error;
}

} // namespace

extern "C" int hla_hopper_build(const hla_hopper_shape *shape, const hla_hopper_side *side,
                                const hla_hopper_state *state, void *stream) {
    arguments in = {};
    in.side = *side, in.state = *state, in.division = hla_hopper_divide(shape);
    in.shares = line::share((int)(side->units * side->heads), in.division.groups);
    in.rank1 = (int)shape->rank1;
    in.f1_row = (in.rank1 < 64 ? in.rank1 : 64) * 2, in.sigma = shape->sigma;
    const int rank2 = (int)shape->rank2, width = (int)shape->value_dim;
    cudaStream_t queue = (cudaStream_t)stream;
    int error = in.shares.length > 0 ? describe_tensors(&in, shape) : 0;
    if (!error && in.shares.length > 0) {
        if (in.division.tiles == 3)
            error = launch_of_width<64, 3>(in, width, shape->half, queue);
        else if (rank2 == 16)
            error = launch_of_width<16, 2>(in, width, shape->half, queue);
        else if (rank2 == 32)
            error = launch_of_width<32, 2>(in, width, shape->half, queue);
        else if (rank2 == 64)
            error = launch_of_width<64, 2>(in, width, shape->half, queue);
        else
            error = launch_of_width<128, 2>(in, width, shape->half, queue);
    }
    if (!error) error = hla_hopper_finish(shape, &in.division, side, state, queue);
    return error;
}

extern "C" bool hla_hopper_takes(int64_t rank1, int64_t rank2, int64_t value_dim) {
    auto known = [](int64_t rank) { return rank == 16 || rank == 32 || rank == 64 || rank == 128; };
    return known(rank1) && known(rank2) && (value_dim == 64 || value_dim == 128);
}

extern "C" int64_t hla_hopper_state_partial(const hla_hopper_shape *shape) {
    return 2 * hla_hopper_divide(shape).groups * shape->rank1 * shape->rank2 * shape->value_dim;
}

extern "C" int64_t hla_hopper_z_partial(const hla_hopper_shape *shape, int64_t states) {
    hla_hopper_division division = hla_hopper_divide(shape);
    return (division.groups + states) * hla_hopper_helpers(division, 0) * shape->rank1 * shape->rank2;
}
