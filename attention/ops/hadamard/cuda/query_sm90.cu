/* Reads states on Hopper: n_t,v = sum_f (f1_a f2_b) S_f,v, and d_t likewise with z, f = (a, b).
 *
 * Persistent blocks take tiles of 256 tokens of a head, 128 for each of two warpgroups, whose f2 stays in registers as
 * fragments; times f1_a, a number of the fragment's row, they are the A operand, and 64 rows of S at a time, brought by
 * a third warpgroup through a ring of stages, are the B operand. d comes first: z as a sum of two 16-bit numbers times
 * f2, contracted with f1 in float32. The third warpgroup also brings the features, those of the next tile while this
 * one is worked on, so that a tile does not begin with a trip to memory.
 *
 * Causal, a tile reads the snapshot before its chunk, and between d and n come its pairs with the keys from there on
 * (pairs_sm90.cuh), which the ring brings 64 at a time.
 */
#include "attention/ops/hadamard/cuda/copy_by_hand.cuh"
#include "attention/ops/hadamard/cuda/line.cuh"
#include "attention/ops/hadamard/cuda/pairs_sm90.cuh"
#include "attention/ops/hadamard/cuda/ptx.cuh"
#include "attention/ops/hadamard/cuda/tensor_map.h"
#include "attention/ops/hadamard/cuda/wgmma.cuh"

namespace {

constexpr int TILE = HLA_HOPPER_TILE;
constexpr int TILES = 2; /* of 64 tokens, a warpgroup */
constexpr int THREADS = 384;
constexpr int SHARED_LIMIT = 232448;

struct arguments {
    CUtensorMap s, z, f1, f2;
    hla_hopper_side side;
    hla_hopper_query_options options;
    int rank1, key_heads;
    int f1_row;          /* bytes of a row of f1 in shared memory: 128, 64 or 32 */
    int stages, buffers; /* of S or z, and of a tile's features */
    int tiles;           /* of all heads */
    float unscale;       /* 1 / sigma */
    float epsilon;       /* times sigma */
    float sigma;
    /* causal: the keys whose pairs are added, and how snapshots lie among them */
    CUtensorMap k1, k2, v;
    hla_hopper_side keys;
    hla_hopper_snapshots snapshots;
};

template <int R2, int V, bool CAUSAL> struct stage {
    static constexpr int Z_ROWS = R2 == 128 ? 32 : R2; /* values of a, a stage of z */
    static constexpr int Z_HALF = Z_ROWS * R2 * 2;     /* bytes of the coarse half of z, and of the fine one */
    static constexpr int S = 64 * V * 2;
    static constexpr int STATE = S > 2 * Z_HALF ? S : 2 * Z_HALF;
    static constexpr int KEYS = pairs::KEYS * 128 * 2; /* bytes that 64 keys' rows of f1, f2 or v may take */
    static constexpr int BYTES = CAUSAL && KEYS > STATE ? KEYS : STATE;
    static constexpr int ROW = (R2 < 64 ? R2 : 64) * 2; /* bytes of a row of f2, as swizzled */
    static constexpr int F2 = TILE * R2 * 2;            /* bytes of the tile's; its f1 follows */
    static_assert(BYTES % 1024 == 0 && F2 % 1024 == 0, "tiles keep the alignment that swizzling needs");
};

constexpr int PLACE = 32; /* bytes that tell of a tile, beside its features */
constexpr int MOST_STAGES = 12, FEWEST_STAGES = 6;

/* Where everything is: stages of S or z, and buffers of a tile's features. */
template <int R2, int V, bool CAUSAL> struct ring {
    using G = stage<R2, V, CAUSAL>;
    uint32_t stages, features, places, full, empty, features_full, features_empty;
    uint32_t features_size; /* bytes of a buffer */
    __device__ __forceinline__ ring(const void *memory, const arguments &in) {
        features_size = G::F2 + TILE * 2 * in.rank1;
        stages = (ptx::shared_address(memory) + 1023u) & ~1023u;
        features = stages + in.stages * G::BYTES;
        places = features + in.buffers * features_size;
        full = places + in.buffers * PLACE;
        empty = full + 8 * in.stages;
        features_full = empty + 8 * in.stages;
        features_empty = features_full + 8 * in.buffers;
    }
};

/* A tile of 256 tokens. */
struct place {
    int b, first, count; /* its tokens are rows [first, first + count) of the T axis, or the first 256 of them */
    int state, head;     /* state -1: nothing comes before the tile's chunk */
    int key, keys;       /* causal: rows of the T axis of keys whose pairs count, [key, key + keys) */
    int behind;          /* and of the tile's first token from the first of these */
};

/* Place i of a head's tiles, of which the first is tile `before` of all. In odd turns of the blocks each chunk's tiles
 * come in reverse, so that a block's are not all the last of their chunk, which have the most pairs. */
__device__ __forceinline__ int evened_out(const arguments &in, int i, int tiles, int before) {
    const int each = (int)in.snapshots.every * HLA_HOPPER_CHUNK / TILE, chunk = i / each * each;
    return before / (int)gridDim.x % 2 ? chunk + min(chunk + each, tiles) - 1 - i : i;
}

/* By the third warpgroup only, which has time for divisions. */
template <bool CAUSAL> __device__ __forceinline__ place place_of(const arguments &in, int tile) {
    const int sequence = line::sequence_at(in.side, tile), heads = (int)in.side.heads;
    const hla_hopper_span span = line::span_of(in.side, sequence);
    const int units = (int)span.units, tiles = (int)line::span_of(in.side, sequence + 1).units - units;
    const int within = tile - units * heads;
    place at;
    at.b = (int)span.b;
    at.head = within / tiles;
    const int key_head = at.head / (int)in.side.group, i = within % tiles;
    const int begin = TILE * (CAUSAL ? evened_out(in, i, tiles, tile - i) : i);
    at.first = (int)span.first + begin;
    at.count = (int)span.count - begin;
    at.state = sequence * in.key_heads + key_head;
    if constexpr (CAUSAL) {
        const hla_hopper_span keys = line::span_of(in.keys, sequence), next = line::span_of(in.keys, sequence + 1);
        const int every = (int)in.snapshots.every * HLA_HOPPER_CHUNK, snapshot = begin / every;
        at.state = (int)keys.snapshots * in.key_heads + key_head * (int)(next.snapshots - keys.snapshots) + snapshot;
        if (snapshot == 0 && !(in.snapshots.continues && sequence == 0)) at.state = -1;
        at.behind = begin - snapshot * every;
        at.key = (int)keys.first + snapshot * every;
        at.keys = min((int)keys.count - snapshot * every, at.behind + TILE);
    }
    return at;
}

__device__ __forceinline__ int64_t row_offset(const hla_cuda_view &view, int64_t b, int64_t t, int64_t h) {
    return b * view.stride[0] + t * view.stride[1] + h * view.stride[2];
}

/* ---- the third warpgroup ---- */

/* Brings a tile's features to a buffer, and says where the tile is. What lies behind the sequence's tokens comes along
 * and is not written out. */
template <int R2, int V, bool CAUSAL>
__device__ __forceinline__ void load_features(const arguments &in, const ring<R2, V, CAUSAL> &ring, const place &at,
                                              int buffer) {
    const uint32_t to = ring.features + buffer * ring.features_size, barrier = ring.features_full + 8 * buffer;
    ptx::store_shared(ring.places + buffer * PLACE, make_uint4(at.b, at.first, at.count, at.head));
    if (CAUSAL) ptx::store_shared(ring.places + buffer * PLACE + 16, make_uint4(at.state, at.behind, at.keys, 0));
    ptx::barrier_expect(barrier, ring.features_size);
    for (int half = 0; 64 * half < R2; half++)
        ptx::copy_tensor(to + half * (TILE * 128), &in.f2, barrier, 64 * half, at.head, at.first, at.b);
    for (int half = 0; 64 * half < in.rank1; half++)
        ptx::copy_tensor(to + stage<R2, V, CAUSAL>::F2 + half * (TILE * 128), &in.f1, barrier, 64 * half, at.head,
                         at.first, at.b);
}

/* The stages in turn. */
template <int R2, int V, bool CAUSAL> struct filler {
    using G = stage<R2, V, CAUSAL>;
    const ring<R2, V, CAUSAL> &ring;
    int count, filling;
    uint32_t parity;

    __device__ __forceinline__ uint32_t at() const {
        return ring.stages + filling * G::BYTES;
    }
    __device__ __forceinline__ uint32_t full() const {
        return ring.full + 8 * filling;
    }
    __device__ __forceinline__ void wait() const {
        ptx::barrier_wait(ring.empty + 8 * filling, parity);
    }
    __device__ __forceinline__ void next() {
        if (++filling == count) filling = 0, parity ^= 1;
    }
};

/* z of a tile, of which the fragments take Z_ROWS values of a a stage. */
template <int R2, int V, bool CAUSAL>
__device__ __forceinline__ void load_z(const arguments &in, filler<R2, V, CAUSAL> &to, int state, int lane) {
    using G = stage<R2, V, CAUSAL>;
    for (int a = 0; a < in.rank1; a += G::Z_ROWS) {
        to.wait();
        if (lane == 0) ptx::barrier_expect(to.full(), 2 * G::Z_HALF);
        for (int part = 0; part < 2 && lane == 0; part++)
            for (int half = 0; half < (R2 + 63) / 64; half++)
                ptx::copy_rows(to.at() + part * G::Z_HALF + half * (G::Z_ROWS * 128), &in.z, to.full(), 64 * half,
                               (state * 2 + part) * in.rank1 + a);
        to.next();
    }
}

template <int R2, int V, bool CAUSAL>
__device__ __forceinline__ void load_state(const arguments &in, filler<R2, V, CAUSAL> &to, int state, int lane) {
    const int rank = in.rank1 * R2;
#pragma unroll 1
    for (int row = 0; row < rank; row += 64) {
        to.wait();
        if (lane == 0) ptx::barrier_expect(to.full(), stage<R2, V, CAUSAL>::S);
        for (int half = 0; half < V / 64 && lane == 0; half++)
            ptx::copy_rows(to.at() + half * 8192, &in.s, to.full(), 64 * half, state * rank + row);
        to.next();
    }
}

/* f1, f2 and v of the keys whose pairs with a tile count, 64 at a time, a stage each. Values behind the last key are
 * zero, for they are multiplied by zeros; scores there are left out. By one warp. */
template <int R2, int V>
__device__ __forceinline__ void load_keys(const arguments &in, filler<R2, V, true> &to, const place &at, int lane) {
    const int head = at.head / (int)in.side.group;
    auto load = [&](const CUtensorMap *map, int width, int first) {
        to.wait();
        if (lane == 0) {
            ptx::barrier_expect(to.full(), pairs::KEYS * 2 * width);
            for (int half = 0; 64 * half < width; half++)
                ptx::copy_tensor(to.at() + half * 8192, map, to.full(), 64 * half, head, first, at.b);
        }
    };
#pragma unroll 1
    for (int key = 0; key < at.keys; key += pairs::KEYS) {
        load(&in.k1, in.rank1, at.key + key);
        to.next();
        load(&in.k2, R2, at.key + key);
        to.next();
        const int valid = min(pairs::KEYS, at.keys - key);
        if (valid == pairs::KEYS || at.key + at.keys >= in.keys.tokens) {
            load(&in.v, V, at.key + key);
        } else {
            to.wait();
            for (int half = 0; half < V / 64; half++)
                copy_by_hand(to.at() + half * 8192, in.keys.rows, {at.b, at.key + key, head, valid}, 64 * half, 128,
                             lane);
            ptx::async_fence();
            __syncwarp();
            if (lane == 0) ptx::barrier_arrive(to.full());
        }
        to.next();
    }
}

/* Brings what the block's tiles need. One warp. */
template <int R2, int V, bool CAUSAL>
__device__ __forceinline__ void load_tiles(const arguments &in, const ring<R2, V, CAUSAL> &ring, int lane) {
    filler<R2, V, CAUSAL> to = {ring, in.stages, 0, 1};
    int buffer = 0;
    uint32_t features_parity = 1;
    for (int tile = (int)blockIdx.x; tile < in.tiles; tile += (int)gridDim.x) {
        const place at = place_of<CAUSAL>(in, tile);
        ptx::barrier_wait(ring.features_empty + 8 * buffer, features_parity);
        if (lane == 0) load_features<R2, V, CAUSAL>(in, ring, at, buffer);
        if (++buffer == in.buffers) buffer = 0, features_parity ^= 1;
        if (in.options.normalised && at.state >= 0) load_z(in, to, at.state, lane);
        if constexpr (CAUSAL) load_keys(in, to, at, lane);
        if (at.state >= 0) load_state(in, to, at.state, lane);
    }
}

/* ---- the two warpgroups that compute ---- */

/* The third operand of __byte_perm that copies the low or the high number of a pair to both. */
template <int WHICH> constexpr uint32_t SPREAD = WHICH ? 0x3232 : 0x1010;

/* Adds the pairs of the warpgroup's tokens, the tile's from own_row - 16 warp on, to n (sums) and to d, both times
 * sigma. */
template <int R2, int V, bool HALF>
__device__ __forceinline__ void add_pairs(const arguments &in, const ring<R2, V, true> &ring, uint32_t f2_rows,
                                          int own_row, int lane, int behind, int keys, int &reading, uint32_t &parity,
                                          float (&sums)[TILES][V / 2], float (&d)[TILES][2]) {
    using G = stage<R2, V, true>;
    float weights[TILES][2] = {}, scale[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++)
        scale[t][0] = scale[t][1] = HALF ? 16384.0f : 1.0f;
    const int first_row = own_row / 64 * 64; /* of the warpgroup's first 64 tokens */
    const int seen_by_any = min(keys, behind + first_row + 64 * TILES);
    int stages[3]; /* of f1, f2, v */
    auto take_stages = [&]() {
#pragma unroll
        for (int i = 0; i < 3; i++) {
            ptx::barrier_wait(ring.full + 8 * reading, parity);
            stages[i] = reading;
            if (++reading == in.stages) reading = 0, parity ^= 1;
        }
    };
    auto leave_stages = [&]() {
#pragma unroll
        for (int i = 0; i < 3; i++)
            if (lane == 0) ptx::barrier_arrive(ring.empty + 8 * stages[i]);
    };
    int key = 0;
#pragma unroll 1
    for (; key < seen_by_any; key += pairs::KEYS) {
        take_stages();
#pragma unroll
        for (int part = 0; part < TILES * (pairs::KEYS / pairs::COLUMNS); part++) {
            const int t = part % TILES, column = part / TILES * pairs::COLUMNS; /* the first of these keys */
            const int row = first_row + 64 * t;
            const pairs::rows q1 = {f2_rows + G::F2 + row * in.f1_row, TILE * 128, in.f1_row};
            const pairs::rows q2 = {f2_rows + row * G::ROW, TILE * 128, G::ROW};
            const pairs::rows k1 = {ring.stages + stages[0] * G::BYTES + column * in.f1_row, 8192, in.f1_row};
            const pairs::rows k2 = {ring.stages + stages[1] * G::BYTES + column * G::ROW, 8192, G::ROW};
            float a[pairs::COLUMNS / 2], b[pairs::COLUMNS / 2];
            wgmma::fence();
            pairs::multiply_scores<HALF>(a, q1, k1, in.rank1);
            pairs::multiply_scores<HALF>(b, q2, k2, R2);
            wgmma::commit();
            wgmma::wait<0>();
            wgmma::settle(a), wgmma::settle(b);
            int seen[2]; /* keys from the lane's first column on that its rows see */
#pragma unroll
            for (int r = 0; r < 2; r++)
                seen[r] = min(behind + own_row + 64 * t + lane / 4 + 8 * r + 1, keys) - key - column - 2 * (lane & 3);
            pairs::multiply_elements(a, b, seen);
            const pairs::sums<V> to = {sums[t], weights[t], scale[t]};
            if constexpr (HALF) wgmma::settle(sums[t]), pairs::scale_rows(to, a);
            pairs::add_values<V, HALF>(to, a, ring.stages + stages[2] * G::BYTES + column * 128);
        }
        wgmma::wait<0>();
#pragma unroll
        for (int t = 0; t < TILES; t++)
            wgmma::settle(sums[t]);
        leave_stages();
    }
    for (; key < keys; key += pairs::KEYS) { /* they come after the warpgroup's tokens */
        take_stages();
        leave_stages();
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        float factor[2];
#pragma unroll
        for (int r = 0; r < 2; r++)
            factor[r] = in.sigma / scale[t][r], d[t][r] += factor[r] * weights[t][r];
        pairs::permute_columns<V>(sums[t], factor, lane);
    }
}

template <int R2, int V, bool HALF, bool CAUSAL>
__device__ __forceinline__ void read_states(const arguments &in, const ring<R2, V, CAUSAL> &ring, int warpgroup,
                                            int warp, int lane) {
    using G = stage<R2, V, CAUSAL>;
    constexpr int STEPS = R2 / 16;                           /* of 16 values of b */
    constexpr int PENDING = (R2 == 128 ? 1 : 2) * TILES - 1; /* products in flight: each keeps four registers */
    int reading = 0, buffer = 0;
    uint32_t parity = 0, features_parity = 0;
    auto advance = [&]() {
        if (++reading == in.stages) reading = 0, parity ^= 1;
    };
    const int own_row = warpgroup * TILES * 64 + 16 * warp; /* the warp's first of the first 64 */
    const int f1_row = own_row + lane / 4;                  /* the lane's; others are 8 and 64 further */
    /* The piece of 8 values of f1 that a is in. Rows 8 apart are swizzled alike. */
    auto f1_at = [&](uint32_t f1, int t, int r, int a) {
        return f1 + (uint32_t)((a >> 6) * (TILE * 128) + (64 * t + 8 * r) * in.f1_row) +
               ptx::swizzled(in.f1_row, f1_row, (a & 63) >> 3);
    };
    for (int tile = (int)blockIdx.x; tile < in.tiles; tile += (int)gridDim.x) {
        ptx::barrier_wait(ring.features_full + 8 * buffer, features_parity);
        const uint4 place = ptx::load_shared(ring.places + buffer * PLACE); /* b, first, count, head */
        const int count = (int)place.z;
        uint4 causal = make_uint4(0, 0, 0, 0); /* state, behind, keys */
        if (CAUSAL) causal = ptx::load_shared(ring.places + buffer * PLACE + 16);
        const bool with_state = (int)causal.x >= 0;
        const int behind = (int)causal.y, keys = (int)causal.z;
        const uint32_t f2_rows = ring.features + buffer * ring.features_size;
        const uint32_t f1_rows = f2_rows + G::F2;
        uint32_t f2[TILES][STEPS][4];
        auto load_f2 = [&]() {
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    const int row = own_row + 64 * t + (lane & 15), piece = 2 * (step % 4) + (lane >> 4);
                    ptx::load_rows(f2[t][step], f2_rows + step / 4 * (TILE * 128) + ptx::swizzled(G::ROW, row, piece));
                }
        };
        load_f2();
        float factor[TILES][2]; /* what the sums are multiplied by */
        float sums[TILES][V / 2];
#pragma unroll
        for (int t = 0; t < TILES; t++)
            factor[t][0] = factor[t][1] = 0;
        for (int first = 0; in.options.normalised && with_state && first < in.rank1; first += G::Z_ROWS) {
            float z[TILES][G::Z_ROWS / 2]; /* sum over b of f2_b z_ab, for a = first + column */
            ptx::barrier_wait(ring.full + 8 * reading, parity);
            uint32_t stage_at = ring.stages + reading * G::BYTES;
            wgmma::fence();
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int part = 0; part < 2; part++)
#pragma unroll
                    for (int step = 0; step < STEPS; step++) {
                        constexpr int row_bytes = (R2 < 64 ? R2 : 64) * 2;
                        uint32_t z_at = stage_at + part * G::Z_HALF + step / 4 * (G::Z_ROWS * 128);
                        uint64_t b =
                            wgmma::describe(z_at, 16, 8 * row_bytes, wgmma::SWIZZLE_OF<row_bytes>) + 2 * (step % 4);
                        wgmma::multiply<HALF, wgmma::MAJOR_K>(z[t], f2[t][step], b, part > 0 || step > 0);
                    }
            wgmma::commit();
            wgmma::wait<0>();
#pragma unroll
            for (int t = 0; t < TILES; t++)
                wgmma::settle(z[t]);
            if (lane == 0) ptx::barrier_arrive(ring.empty + 8 * reading);
            advance();
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int r = 0; r < 2; r++)
#pragma unroll
                    for (int j = 0; j < G::Z_ROWS / 8; j++) {
                        if (first + 8 * j >= in.rank1) continue; /* z holds other numbers there */
                        float2 a = ptx::unpack<HALF>(
                            ptx::load_shared_word(f1_at(f1_rows, t, r, first + 8 * j) + 4 * (lane & 3)));
                        factor[t][r] += a.x * z[t][4 * j + 2 * r] + a.y * z[t][4 * j + 2 * r + 1];
                    }
        }
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < V / 2; i++)
                sums[t][i] = 0;
        if constexpr (CAUSAL)
            add_pairs<R2, V, HALF>(in, ring, f2_rows, own_row, lane, behind, keys, reading, parity, sums, factor);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float d = factor[t][r];
                d += __shfl_xor_sync(0xffffffffu, d, 1);
                d += __shfl_xor_sync(0xffffffffu, d, 2);
                d += in.epsilon;
                factor[t][r] = !in.options.normalised ? in.options.scale * in.unscale : d == 0.0f ? 0.0f : 1.0f / d;
            }
        uint32_t release = 0;
        if constexpr (CAUSAL) load_f2(); /* the pairs took their registers */
        uint2 next[TILES][2];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                next[t][r] = ptx::load_shared_two(f1_at(f1_rows, t, r, 0));
                /* four values of a at a time: R2 / 16 stages of 64 rows */
#pragma unroll 1
        for (int a = 0; with_state && a < in.rank1; a += 4) {
            uint2 four[TILES][2];
#pragma unroll
            for (int t = 0; t < TILES; t++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    four[t][r] = next[t][r];
                    if (a + 4 < in.rank1)
                        next[t][r] = ptx::load_shared_two(f1_at(f1_rows, t, r, a + 4) + 2 * ((a + 4) & 4));
                }
#pragma unroll
            for (int i = 0; i < R2 / 16; i++) {
                ptx::barrier_wait(ring.full + 8 * reading, parity);
                const uint64_t b = wgmma::describe(ring.stages + reading * G::BYTES, 8192, 1024, wgmma::SWIZZLE_128);
#pragma unroll
                for (int quarter = 0; quarter < 4; quarter++) {
                    const int slab = 4 * i + quarter; /* of 16 rows, among those of the four values of a */
                    const int which = slab / STEPS, step = slab % STEPS;
#pragma unroll
                    for (int t = 0; t < TILES; t++) {
                        wgmma::wait<PENDING>();
                        if (quarter * TILES + t == PENDING && release && lane == 0) ptx::barrier_arrive(release);
                        uint32_t low = which & 2 ? four[t][0].y : four[t][0].x;
                        uint32_t high = which & 2 ? four[t][1].y : four[t][1].x;
                        low = __byte_perm(low, low, which & 1 ? SPREAD<1> : SPREAD<0>);
                        high = __byte_perm(high, high, which & 1 ? SPREAD<1> : SPREAD<0>);
                        uint32_t product[4];
                        product[0] = ptx::multiply<HALF>(f2[t][step][0], low);
                        product[1] = ptx::multiply<HALF>(f2[t][step][1], high);
                        product[2] = ptx::multiply<HALF>(f2[t][step][2], low);
                        product[3] = ptx::multiply<HALF>(f2[t][step][3], high);
                        wgmma::fence();
                        wgmma::multiply<HALF, wgmma::MAJOR_N>(sums[t], product, b + (uint64_t)(quarter * 128), 1);
                        wgmma::commit();
                    }
                }
                release = ring.empty + 8 * reading;
                advance();
            }
        }
        __syncwarp();
        if (lane == 0) ptx::barrier_arrive(ring.features_empty + 8 * buffer);
        if (++buffer == in.buffers) buffer = 0, features_parity ^= 1;
        uint16_t *out = (uint16_t *)in.side.rows.data + row_offset(in.side.rows, place.x, place.y, place.w);
        wgmma::wait<0>();
#pragma unroll
        for (int t = 0; t < TILES; t++)
            wgmma::settle(sums[t]);
        if (release && lane == 0) ptx::barrier_arrive(release);
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int token = (warpgroup * TILES + t) * 64 + 16 * warp + lane / 4 + 8 * r;
                if (token >= count) continue;
                uint16_t *row = out + token * in.side.rows.stride[1] + 8 * (lane & 3);
                const float s = factor[t][r];
#pragma unroll
                for (int j = 0; j < V / 32; j++) {
                    const float *from = &sums[t][16 * j + 2 * r];
                    uint4 packed;
                    packed.x = ptx::pack<HALF>(s * from[0], s * from[1]);
                    packed.y = ptx::pack<HALF>(s * from[4], s * from[5]);
                    packed.z = ptx::pack<HALF>(s * from[8], s * from[9]);
                    packed.w = ptx::pack<HALF>(s * from[12], s * from[13]);
                    *(uint4 *)(row + 32 * j) = packed;
                }
            }
    }
}

template <int R2, int V, bool HALF, bool CAUSAL>
__global__ __launch_bounds__(THREADS, 1) void query_state(const __grid_constant__ arguments in) {
    extern __shared__ uint8_t memory[];
    const ring<R2, V, CAUSAL> ring(memory, in);
    const int warp = __shfl_sync(0xffffffffu, (int)(threadIdx.x >> 5), 0), lane = threadIdx.x & 31;
    if (threadIdx.x == 0) {
        for (int i = 0; i < in.stages; i++) {
            ptx::barrier_init(ring.full + 8 * i, 1);
            ptx::barrier_init(ring.empty + 8 * i, 8);
        }
        for (int i = 0; i < in.buffers; i++) {
            ptx::barrier_init(ring.features_full + 8 * i, 1);
            ptx::barrier_init(ring.features_empty + 8 * i, 8);
        }
        ptx::barrier_init_fence();
    }
    __syncthreads();
    if (warp >= 8) {
        ptx::give_registers<R2 == 128 ? 24 : 40>();
        if (warp == 8) load_tiles(in, ring, lane);
    } else {
        ptx::take_registers<R2 == 128 ? 240 : 232>();
        read_states<R2, V, HALF, CAUSAL>(in, ring, warp / 4, warp % 4, lane);
    }
}

/* Zeros for rows at and beyond a sequence's count. One warp a row. */
__global__ void clear_rows(hla_hopper_side side, int width) {
    int64_t row = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int64_t rows = side.batch * side.tokens * side.heads;
    if (row >= rows) return;
    int64_t h = row % side.heads, t = row / side.heads % side.tokens, b = row / side.heads / side.tokens;
    if (t < line::span_of(side, b).count) return;
    uint16_t *to = (uint16_t *)side.rows.data + row_offset(side.rows, b, t, h);
    for (int x = threadIdx.x % 32; x < width; x += 32)
        to[x] = 0;
}

/* ---- launch ---- */

/* Two buffers of features, where that leaves room for stages enough. */
template <int R2, int V, bool HALF, bool CAUSAL> int launch(arguments in, int processors, cudaStream_t stream) {
    using G = stage<R2, V, CAUSAL>;
    auto *kernel = query_state<R2, V, HALF, CAUSAL>;
    const int features = G::F2 + TILE * 2 * in.rank1 + PLACE + 16, stage = G::BYTES + 16;
    in.buffers = 2 * features <= SHARED_LIMIT - 1024 - FEWEST_STAGES * stage ? 2 : 1;
    in.stages = (SHARED_LIMIT - 1024 - in.buffers * features) / stage;
    if (in.stages > MOST_STAGES) in.stages = MOST_STAGES;
    const int shared = 1024 + in.buffers * features + in.stages * stage;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return (int)error;
    const int blocks = in.tiles < processors ? in.tiles : processors;
    kernel<<<blocks, THREADS, shared, stream>>>(in);
    return (int)cudaGetLastError();
}

template <int R2, int V, bool HALF> int launch_of_mode(const arguments &in, int processors, cudaStream_t stream) {
    return in.snapshots.every > 0 ? launch<R2, V, HALF, true>(in, processors, stream)
                                  : launch<R2, V, HALF, false>(in, processors, stream);
}

template <int R2> int launch_of_rank(const arguments &in, const hla_hopper_shape *shape, cudaStream_t stream) {
    if (shape->value_dim == 64)
        return shape->half ? launch_of_mode<R2, 64, true>(in, shape->processors, stream)
                           : launch_of_mode<R2, 64, false>(in, shape->processors, stream);
    return shape->half ? launch_of_mode<R2, 128, true>(in, shape->processors, stream)
                       : launch_of_mode<R2, 128, false>(in, shape->processors, stream);
}

/* What the copy engine brings: states and their z, the queries' features, and causal, what the pairs need of the keys.
 */
int describe_tensors(arguments *in, const hla_hopper_shape *shape, const hla_hopper_state *state) {
    const int rank1 = (int)shape->rank1, rank2 = (int)shape->rank2, width = (int)shape->value_dim;
    const int64_t states = hla_hopper_states_kept(state);
    const int f2_columns = rank2 < 64 ? rank2 : 64;
    int error = hla_rows_map(&in->s, state->s, width, states * rank1 * rank2, shape->half, 64, 64);
    if (!error)
        error = hla_rows_map(&in->z, state->z_split, rank2, states * 2 * rank1, shape->half, f2_columns,
                             rank2 == 128 ? 32 : rank2);
    auto map_rows = [&](CUtensorMap *map, const hla_hopper_side &side, const hla_cuda_view &view, int64_t extent,
                        int columns, int rows) {
        const hla_tensor_map_extent extents = {extent, side.heads, side.tokens, side.batch};
        if (!error) error = hla_tensor_map(map, &view, &extents, shape->half, columns, rows);
    };
    map_rows(&in->f1, in->side, in->side.f1, rank1, in->f1_row / 2, TILE);
    map_rows(&in->f2, in->side, in->side.f2, rank2, f2_columns, TILE);
    if (in->snapshots.every > 0 && in->keys.tokens > 0) {
        map_rows(&in->k1, in->keys, in->keys.f1, rank1, in->f1_row / 2, pairs::KEYS);
        map_rows(&in->k2, in->keys, in->keys.f2, rank2, f2_columns, pairs::KEYS);
        map_rows(&in->v, in->keys, in->keys.rows, width, 64, pairs::KEYS);
    }
    return error;
}

} // namespace

extern "C" int hla_hopper_query(const hla_hopper_shape *shape, const hla_hopper_side *side, const hla_hopper_side *keys,
                                const hla_hopper_state *state, const hla_hopper_query_options *options, void *stream) {
    arguments in = {};
    in.side = *side, in.options = *options, in.snapshots = state->snapshots;
    if (keys) in.keys = *keys;
    in.rank1 = (int)shape->rank1, in.key_heads = (int)(side->heads / side->group);
    in.tiles = (int)(side->units * side->heads);
    in.sigma = shape->sigma, in.unscale = 1 / shape->sigma, in.epsilon = options->epsilon * shape->sigma;
    in.f1_row = (in.rank1 < 64 ? in.rank1 : 64) * 2;
    const int rank2 = (int)shape->rank2;
    cudaStream_t queue = (cudaStream_t)stream;
    int error = in.tiles > 0 ? describe_tensors(&in, shape, state) : 0;
    if (!error && in.tiles > 0) {
        if (rank2 == 16)
            error = launch_of_rank<16>(in, shape, queue);
        else if (rank2 == 32)
            error = launch_of_rank<32>(in, shape, queue);
        else if (rank2 == 64)
            error = launch_of_rank<64>(in, shape, queue);
        else
            error = launch_of_rank<128>(in, shape, queue);
    }
    if (!error && options->clear_after) {
        int64_t rows = side->batch * side->tokens * side->heads;
        clear_rows<<<(unsigned)((rows + 7) / 8), 256, 0, queue>>>(*side, (int)shape->value_dim);
        error = (int)cudaGetLastError();
    }
    return error;
}
