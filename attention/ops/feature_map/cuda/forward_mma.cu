/* Feature maps on tensor cores, bound by reading x: a warp takes 16 tokens of one head from memory to memory, its next
 * ones on their way while it finishes these. A block of threads keeps the weights of its head in shared memory. */
#include "attention/ops/feature_map/cuda/fragments.cuh"

namespace {

constexpr int WARPS = 8, THREADS = 32 * WARPS, ROWS = 16; /* of a warp */
constexpr int MOST = 128;                                 /* of R and D */

/* Sizes of an instance: D up to 32 CHUNKS, R up to 8 TILES. */
template <class TYPE, int D_CHUNKS, int R_TILES, bool WITH_HIDDEN> struct instance {
    using type = TYPE;
    static constexpr int CHUNKS = D_CHUNKS, TILES = R_TILES, GROUP = R_TILES < 4 ? R_TILES : 4;
    static constexpr bool HIDDEN = WITH_HIDDEN;
    static constexpr int WEIGHTS = 2 * CHUNKS * TILES * 32, HIDDEN_WEIGHTS = HIDDEN ? 2 * CHUNKS * 4 * CHUNKS * 32 : 0;
    static constexpr int BIASES = 8 * TILES + (HIDDEN ? 32 * CHUNKS : 0);
    static constexpr int SHARED = (WEIGHTS + HIDDEN_WEIGHTS) * 16 + BIASES * 4 + WARPS * 4;
    static constexpr int ANGLES = 4 * CHUNKS * THREADS * 16; /* more, with RoPE */
    static_assert(SHARED % 16 == 0, "the angles are aligned");
    static constexpr int BLOCKS = HIDDEN || TILES > 8 ? 1 : 2; /* of threads, a multiprocessor: registers suffice */
};

/* Rows that a warp reads or writes: of token t0 + g, and of t0 + g + 8; NULL beyond the last token. */
struct places {
    unsigned b, t; /* of the first */
    bool there[2];
};

__device__ __forceinline__ places place(const hla_cuda_map &map, unsigned tile, unsigned tiles) {
    places at;
    unsigned b = map.batch > 1 ? tile / tiles : 0;
    at.b = b;
    at.t = (tile - b * tiles) * ROWS + threadIdx.x % 32 / 4;
    at.there[0] = b < map.batch && at.t < map.tokens;
    at.there[1] = b < map.batch && at.t + 8 < map.tokens;
    return at;
}

__device__ __forceinline__ uint4 read_once(const void *address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
}

template <int CHUNKS>
__device__ __forceinline__ void load(rows16<CHUNKS> &in, const hla_cuda_map &map, const places &at, int64_t h) {
    const uint16_t *base = (const uint16_t *)map.x.data + row_of(map.x, at.b, at.t, h);
    const int column = (int)threadIdx.x % 4 * 8;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            bool there = at.there[i] && chunk * 32 + column < map.dim;
            in.row[chunk][i] =
                there ? read_once(base + 8 * i * map.x.stride[1] + chunk * 32 + column) : make_uint4(0, 0, 0, 0);
        }
    }
}

template <class type> __device__ __forceinline__ uint32_t turn(uint32_t pair, float cosine, float sine) {
    float2 x = type::unpack(pair);
    return type::pack(cosine * x.x - sine * x.y, sine * x.x + cosine * x.y);
}

/* The cosines and sines that a lane needs for its rows, [CHUNKS][2 rows][2 halves][WARPS][32 lanes] of 16 bytes in
 * shared memory, are asked for one tile ahead. */
__device__ __forceinline__ void copy_later(float4 *to, const float *from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
}

template <int CHUNKS>
__device__ __forceinline__ void ask_for_angles(float4 *angles, const hla_cuda_map &map, const places &at) {
    const int column = (int)threadIdx.x % 4 * 8;
#pragma unroll 1
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!at.there[i] || chunk * 32 + column >= map.dim) continue;
            const float *from = map.rope + (int64_t)(at.t + 8 * i) * map.dim + chunk * 32 + column;
            float4 *to = angles + (chunk * 4 + i * 2) * THREADS + threadIdx.x;
            copy_later(to, from);
            copy_later(to + THREADS, from + 4);
        }
    }
}

/* RoPE: a lane holds whole pairs. */
template <class type, int CHUNKS>
__device__ __forceinline__ void turn_rows(rows16<CHUNKS> &in, const float4 *angles, const hla_cuda_map &map,
                                          const places &at) {
    const int column = (int)threadIdx.x % 4 * 8;
    asm volatile("cp.async.wait_all;" ::: "memory");
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (!at.there[i] || chunk * 32 + column >= map.dim) continue;
            const float4 *own = angles + (chunk * 4 + i * 2) * THREADS + threadIdx.x;
            const float4 first = own[0], second = own[THREADS];
            uint4 &x = in.row[chunk][i];
            x.x = turn<type>(x.x, first.x, first.y);
            x.y = turn<type>(x.y, first.z, first.w);
            x.z = turn<type>(x.z, second.x, second.y);
            x.w = turn<type>(x.w, second.z, second.w);
        }
    }
    __syncwarp(); /* all has been read before it is written again */
}

/* x + relu(z / scale + bias), a pair */
template <class type>
__device__ __forceinline__ uint32_t add_hidden(uint32_t pair, float z0, float z1, float unscale, const float *bias) {
    float2 x = type::unpack(pair);
    return type::pack(x.x + positive(fmaf(z0, unscale, bias[0])), x.y + positive(fmaf(z1, unscale, bias[1])));
}

/* The hidden layer of a warp's rows; its outputs come out where the next product wants its inputs. */
template <class type, int CHUNKS>
__device__ __forceinline__ rows16<CHUNKS> hidden_layer(const rows16<CHUNKS> &x, const uint4 *panels, const float *bias,
                                                       float unscale) {
    rows16<CHUNKS> hidden;
    const int column = (int)threadIdx.x % 4 * 8;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        float z[4][4] = {};
        multiply_tiles<type, CHUNKS, 4 * CHUNKS, 4>(z, x, panels, 4 * chunk);
        const float *b = bias + chunk * 32 + column;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 from = x.row[chunk][i];
            hidden.row[chunk][i] = make_uint4(add_hidden<type>(from.x, z[0][2 * i], z[0][2 * i + 1], unscale, b),
                                              add_hidden<type>(from.y, z[1][2 * i], z[1][2 * i + 1], unscale, b + 2),
                                              add_hidden<type>(from.z, z[2][2 * i], z[2][2 * i + 1], unscale, b + 4),
                                              add_hidden<type>(from.w, z[3][2 * i], z[3][2 * i + 1], unscale, b + 6));
        }
    }
    return hidden;
}

__device__ __forceinline__ float quad_largest(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

/* activate() to about 20 bits, for features of at most 11. */
__device__ __forceinline__ float activate_fast(int activation, float u, float floor, float shift) {
    if (activation == HLA_ACTIVATION_ELU1) return u > 0 ? u + 1 : __expf(u);
    if (activation == HLA_ACTIVATION_EXP || activation == HLA_ACTIVATION_SOFTMAX) return __expf(u - shift);
    if (activation != HLA_ACTIVATION_SOFTPLUS) return activate(activation, u, floor, shift);
    const float z = __expf(-fabsf(u));
    return positive(u) + (z < 0x1p-6f ? z * (1 - z * (0.5f - z * (1 / 3.0f))) : __logf(1 + z));
}

/* Row i of the lane's two, u [TILES][2 of 4], becomes its features. */
template <int TILES>
__device__ __forceinline__ void activate_row(float (&u)[TILES][4], int i, const hla_cuda_map &map) {
    float shift = map.shift;
    if (shifts_by_largest(map)) {
        float largest = -INFINITY;
#pragma unroll
        for (int tile = 0; tile < TILES; tile++)
            largest = fmaxf(largest, fmaxf(u[tile][2 * i], u[tile][2 * i + 1]));
        shift = quad_largest(largest);
    }
    float sum = 0;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (int e = 2 * i; e < 2 * i + 2; e++)
            sum += u[tile][e] = activate_fast(map.activation, u[tile][e], map.floor, shift);
    }
    if (map.activation != HLA_ACTIVATION_SOFTMAX) return;
    const float factor = 1 / quad_sum(sum);
#pragma unroll
    for (int tile = 0; tile < TILES; tile++)
        u[tile][2 * i] *= factor, u[tile][2 * i + 1] *= factor;
}

template <class sizes>
__device__ __forceinline__ void finish(float (&u)[sizes::TILES][4], const hla_cuda_map &map, const float *bias,
                                       float unscale) {
    constexpr int GROUP = sizes::GROUP;
    const int column = (int)threadIdx.x % 4 * 2 * GROUP;
#pragma unroll
    for (int tile = 0; tile < sizes::TILES; tile++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            float b = bias[tile / GROUP * GROUP * 8 + column + tile % GROUP * 2 + e % 2];
            u[tile][e] = fmaf(u[tile][e], unscale, b);
        }
    }
    if (map.activation == HLA_ACTIVATION_RELU) { /* the default, without a choice at each number */
#pragma unroll
        for (int i = 0; i < 4 * sizes::TILES; i++)
            u[i / 4][i % 4] = positive(u[i / 4][i % 4]) + map.floor;
        return;
    }
    activate_row<sizes::TILES>(u, 0, map);
    activate_row<sizes::TILES>(u, 1, map);
}

template <class sizes>
__device__ __forceinline__ void store(const float (&u)[sizes::TILES][4], const hla_cuda_map &map, const places &at,
                                      int64_t h) {
    using type = typename sizes::type;
    constexpr int GROUP = sizes::GROUP;
    uint16_t *base = (uint16_t *)map.out.data + row_of(map.out, at.b, at.t, h);
    const int column = (int)threadIdx.x % 4 * 2 * GROUP;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (!at.there[i]) continue;
        uint16_t *row = base + 8 * i * map.out.stride[1] + column;
#pragma unroll
        for (int group = 0; group < sizes::TILES; group += GROUP) {
            if (group * 8 + column >= map.rank) continue;
            uint32_t pairs[GROUP];
#pragma unroll
            for (int j = 0; j < GROUP; j++)
                pairs[j] = type::pack(u[group + j][2 * i], u[group + j][2 * i + 1]);
            if constexpr (GROUP == 4) {
                *(uint4 *)(row + group * 8) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            } else {
                *(uint2 *)(row + group * 8) = make_uint2(pairs[0], pairs[1]);
            }
        }
    }
}

/* What a block of threads keeps in shared memory, and the powers of two to be undone. */
struct head {
    uint4 *weight, *hidden_weight;
    float *bias, *hidden_bias, unscale, hidden_unscale;
};

/* Missing biases are zero; a feature that is not there is -inf where it could count in a maximum or a sum. */
template <class sizes> __device__ head prepare(unsigned char *shared, const hla_cuda_map &map, int64_t h) {
    using type = typename sizes::type;
    head own;
    own.weight = (uint4 *)shared;
    own.hidden_weight = own.weight + sizes::WEIGHTS;
    own.bias = (float *)(own.hidden_weight + sizes::HIDDEN_WEIGHTS);
    own.hidden_bias = own.bias + 8 * sizes::TILES;
    float *scratch = own.bias + sizes::BIASES;
    const int dim = map.dim, rank = map.rank;
    const float *weight = map.weight + h * rank * dim;
    float scale = weight_scale<type, THREADS>(weight, rank * dim, scratch);
    own.unscale = 1 / scale;
    pack_weights<type, sizes::CHUNKS, sizes::TILES, sizes::GROUP, THREADS>(own.weight, weight, rank, dim, scale);
    const bool shifted = map.activation == HLA_ACTIVATION_EXP || map.activation == HLA_ACTIVATION_SOFTMAX;
    for (int r = (int)threadIdx.x; r < 8 * sizes::TILES; r += THREADS)
        own.bias[r] = r >= rank ? (shifted ? -INFINITY : 0) : map.bias ? map.bias[h * rank + r] : 0;
    if constexpr (sizes::HIDDEN) {
        weight = map.hidden_weight + h * dim * dim;
        scale = weight_scale<type, THREADS>(weight, dim * dim, scratch);
        own.hidden_unscale = 1 / scale;
        pack_weights<type, sizes::CHUNKS, 4 * sizes::CHUNKS, 4, THREADS>(own.hidden_weight, weight, dim, dim, scale);
        for (int x = (int)threadIdx.x; x < 32 * sizes::CHUNKS; x += THREADS)
            own.hidden_bias[x] = x < dim && map.hidden_bias ? map.hidden_bias[h * dim + x] : 0;
    }
    __syncthreads();
    return own;
}

/* parts: blocks of threads that share a head's tiles of 16 tokens, those of one moment side by side in memory. */
template <class sizes>
__global__ void __launch_bounds__(THREADS, sizes::BLOCKS)
    map_tiles(const __grid_constant__ hla_cuda_map map, unsigned tiles, unsigned parts) {
    using type = typename sizes::type;
    extern __shared__ __align__(16) unsigned char shared[];
    const unsigned all = tiles * (unsigned)map.batch, step = parts * WARPS;
    for (int64_t unit = blockIdx.x; unit < map.heads * parts; unit += gridDim.x) {
        const int64_t h = unit % map.heads;
        unsigned tile = (unsigned)(unit / map.heads) * WARPS + threadIdx.x / 32;
        rows16<sizes::CHUNKS> x;
        places at = place(map, tile, tiles);
        load(x, map, at, h);
        __syncthreads();
        float4 *angles = (float4 *)(shared + sizes::SHARED);
        if (map.rope) ask_for_angles<sizes::CHUNKS>(angles, map, at);
        const head own = prepare<sizes>(shared, map, h);
        while (tile < all) {
            if (map.rope) turn_rows<type>(x, angles, map, at);
            if constexpr (sizes::HIDDEN)
                x = hidden_layer<type>(x, own.hidden_weight, own.hidden_bias, own.hidden_unscale);
            float u[sizes::TILES][4] = {};
            multiply_tiles<type, sizes::CHUNKS, sizes::TILES, sizes::TILES>(u, x, own.weight, 0);
            const places from = at;
            tile += step;
            at = place(map, tile, tiles);
            load(x, map, at, h);
            if (map.rope) ask_for_angles<sizes::CHUNKS>(angles, map, at);
            finish<sizes>(u, map, own.bias, own.unscale);
            store<sizes>(u, map, from, h);
        }
    }
}

template <class sizes> int launch(const hla_cuda_map *map, cudaStream_t stream) {
    const int shared = sizes::SHARED + (map->rope ? sizes::ANGLES : 0);
    if (cudaFuncSetAttribute(map_tiles<sizes>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared)) {
        (void)cudaGetLastError(); /* a device with too little of it for the largest hidden layers */
        return hla_cuda_map_forward(map, stream);
    }
    const int64_t tiles = (map->tokens - 1) / ROWS + 1, most = (tiles * map->batch - 1) / WARPS + 1;
    int64_t parts = (int64_t)sizes::BLOCKS * map->processors / map->heads;
    parts = parts < 1 ? 1 : parts > most ? most : parts;
    int64_t units = map->heads * parts, grid = units < INT32_MAX ? units : INT32_MAX;
    map_tiles<sizes><<<(unsigned)grid, THREADS, shared, stream>>>(*map, (unsigned)tiles, (unsigned)parts);
    return (int)cudaGetLastError();
}

template <class type, int CHUNKS, bool HIDDEN> int launch_for_rank(const hla_cuda_map *map, cudaStream_t stream) {
    if (map->rank <= 16) return launch<instance<type, CHUNKS, 2, HIDDEN>>(map, stream);
    if (map->rank <= 32) return launch<instance<type, CHUNKS, 4, HIDDEN>>(map, stream);
    if (map->rank <= 64) return launch<instance<type, CHUNKS, 8, HIDDEN>>(map, stream);
    return launch<instance<type, CHUNKS, 16, HIDDEN>>(map, stream);
}

template <class type> int launch_for_dim(const hla_cuda_map *map, cudaStream_t stream) {
    const bool narrow = map->dim <= 64;
    if (map->hidden_weight)
        return (narrow ? launch_for_rank<type, 2, true> : launch_for_rank<type, 4, true>)(map, stream);
    return (narrow ? launch_for_rank<type, 2, false> : launch_for_rank<type, 4, false>)(map, stream);
}

bool aligned(const void *address, int64_t bytes) {
    return (uintptr_t)address % (uintptr_t)bytes == 0;
}

bool rows_are_aligned(const hla_cuda_view &view) {
    return view.stride[3] == 1 && view.stride[0] % 8 == 0 && view.stride[1] % 8 == 0 && view.stride[2] % 8 == 0 &&
           aligned(view.data, 16);
}

} // namespace

extern "C" bool hla_cuda_map_mma_takes(const hla_cuda_map *map) {
    const int64_t tiles = (map->tokens - 1) / ROWS + 1, most = INT32_MAX / ROWS / 2;
    return map->dtype != HLA_F32 && map->dim % 8 == 0 && map->rank % 8 == 0 && map->dim <= MOST && map->rank <= MOST &&
           rows_are_aligned(map->x) && rows_are_aligned(map->out) && aligned(map->weight, 16) &&
           aligned(map->hidden_weight, 16) && aligned(map->rope, 16) && tiles <= most && map->batch <= most / tiles;
}

extern "C" int hla_cuda_map_mma_forward(const hla_cuda_map *map, void *stream) {
    return (map->dtype == HLA_BF16 ? launch_for_dim<bf16> : launch_for_dim<f16>)(map, (cudaStream_t)stream);
}
