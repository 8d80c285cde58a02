/* The ones column of a state by itself: z_ab = sum over tokens of c_t f1_a f2_b, where c_t is a number a token, or 1,
 * and f1 may be a product of two features.
 *
 * A block takes 64 values of a, all of b, and some of a state's chunks of 64 tokens, which it copies to shared memory
 * two chunks ahead. c f1 is made there in float32 and kept as a sum of two bfloat16 numbers, 16 bits in all, and so is
 * f2 if it is float16; tensor cores multiply them with float32 sums. Blocks' sums are added in order by a second
 * kernel.
 */
#include "attention/ops/hadamard/cuda/backward.h"
#include "attention/ops/hadamard/cuda/ptx.cuh"

#include <cuda_runtime.h>

namespace {

constexpr int CHUNK = HLA_HOPPER_CHUNK;
constexpr int THREADS = 256;
constexpr int ROWS = 64;  /* values of a */
constexpr int INNER = 16; /* most values of the second feature of f1 */
constexpr int PAD = 8;    /* numbers between rows, so that matrices are read without conflicts */
constexpr int64_t MOST_PARTIAL = (int64_t)4 << 20; /* floats */

struct arguments {
    hla_gram_call call;
    int parts, key_heads;
    int64_t states;
};

/* A tile of CHUNK tokens by WIDTH 16-bit numbers. */
template <int WIDTH> struct tile {
    static constexpr int STRIDE = WIDTH + PAD; /* numbers */
    static constexpr int BYTES = CHUNK * STRIDE * 2;
};

template <int R2, bool HALF> struct sizes {
    static constexpr int F1 = 0, INNER_AT = tile<ROWS>::BYTES, F2 = INNER_AT + tile<INNER>::BYTES;
    static constexpr int C = F2 + tile<R2>::BYTES, STAGE = C + CHUNK * 4;
    static constexpr int COARSE = 2 * STAGE, FINE = COARSE + tile<ROWS>::BYTES;
    static constexpr int F2_COARSE = FINE + tile<ROWS>::BYTES;
    static constexpr int F2_FINE = F2_COARSE + (HALF ? tile<R2>::BYTES : 0);
    static constexpr int SHARED = F2_FINE + (HALF ? tile<R2>::BYTES : 0);
    static_assert(SHARED >= ROWS * R2 * 4, "sums of half of the warps pass through shared memory");
};

__device__ __forceinline__ const uint16_t *row_of(const hla_cuda_view &view, int64_t b, int64_t t, int64_t h) {
    return (const uint16_t *)view.data + b * view.stride[0] + t * view.stride[1] + h * view.stride[2];
}

/* BYTES from memory to shared memory, or zeros. */
template <int BYTES> __device__ __forceinline__ void copy_later(uint32_t to, const void *from, bool valid) {
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0)
                     : "memory");
}

/* Walks over a state's chunks, head by head. */
struct walker {
    int64_t b, first, count; /* of the sequence */
    int head, chunk, chunks; /* chunks: of the sequence, one head */

    __device__ __forceinline__ walker(const arguments &in, int state) {
        const int sequence = state / in.key_heads;
        b = sequence, first = 0, count = in.call.tokens;
        if (in.call.spans) {
            const hla_hopper_span span = in.call.spans[sequence];
            b = span.b, first = span.first, count = span.count;
        }
        head = (state - sequence * in.key_heads) * (int)in.call.group, chunk = 0;
        chunks = (int)((count + CHUNK - 1) / CHUNK);
    }
    __device__ __forceinline__ void skip(int steps) {
        chunk += steps;
        if (chunk >= chunks && chunks > 0) head += chunk / chunks, chunk %= chunks;
    }
};

/* Tokens of the chunk that count. */
__device__ __forceinline__ int valid_tokens(const walker &at) {
    const int left = (int)at.count - at.chunk * CHUNK;
    return left < CHUNK ? left : CHUNK;
}

/* `width` numbers of each token, 8 times a power of two, from a column on. */
template <int WIDTH>
__device__ __forceinline__ void copy_feature(uint32_t to, const hla_cuda_view &view, const walker &at, int column,
                                             int width) {
    const int shift = __ffs(width / 8) - 1, valid = valid_tokens(at);
    const uint16_t *from = row_of(view, at.b, at.first + (int64_t)at.chunk * CHUNK, at.head) + column;
    for (int i = (int)threadIdx.x; i < CHUNK << shift; i += THREADS) {
        const int t = i >> shift, x = (i - (t << shift)) * 8;
        copy_later<16>(to + (uint32_t)(t * tile<WIDTH>::STRIDE + x) * 2,
                       from + (t < valid ? t : 0) * view.stride[1] + x, t < valid);
    }
}

template <int R2, bool HALF>
__device__ __forceinline__ void copy_chunk(const arguments &in, uint32_t stage, const walker &at, int a_first) {
    using G = sizes<R2, HALF>;
    const hla_gram_call &call = in.call;
    if (call.f1_inner.data) {
        copy_feature<ROWS>(stage + G::F1, call.f1, at, 0, (int)call.rank1);
        copy_feature<INNER>(stage + G::INNER_AT, call.f1_inner, at, 0, (int)call.rank1_inner);
    } else {
        const int left = (int)call.rank1 - a_first;
        copy_feature<ROWS>(stage + G::F1, call.f1, at, a_first, left < ROWS ? left : ROWS);
    }
    copy_feature<R2>(stage + G::F2, call.f2, at, 0, R2);
    if (call.c && threadIdx.x < CHUNK) {
        const int t = (int)threadIdx.x;
        const bool valid = t < valid_tokens(at);
        const float *c = call.c + (at.b * call.heads + at.head) * call.tokens + at.first + (int64_t)at.chunk * CHUNK;
        copy_later<4>(stage + G::C + 4 * t, c + (valid ? t : 0), valid);
    }
}

/* ---- in shared memory ---- */

__device__ __forceinline__ uint32_t &word(uint4 &eight, int i) {
    return i == 0 ? eight.x : i == 1 ? eight.y : i == 2 ? eight.z : eight.w;
}

/* Eight numbers times a factor, each as a sum of two bfloat16 numbers. */
template <bool HALF> __device__ __forceinline__ void split(char *coarse, char *fine, uint4 eight, float factor) {
    uint4 high, low;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = ptx::unpack<HALF>(word(eight, i));
        pair.x *= factor, pair.y *= factor;
        word(high, i) = ptx::pack<false>(pair.x, pair.y);
        const float2 rounded = ptx::unpack<false>(word(high, i));
        word(low, i) = ptx::pack<false>(pair.x - rounded.x, pair.y - rounded.y);
    }
    *(uint4 *)coarse = high, *(uint4 *)fine = low;
}

/* c f1 of a chunk, zero where there is no such a. */
template <int R2, bool HALF>
__device__ __forceinline__ void split_rows(const arguments &in, char *memory, const char *stage, int a_first) {
    using G = sizes<R2, HALF>;
    const hla_gram_call &call = in.call;
    const int inner = (int)call.rank1_inner, rows = (int)call.rank1 * inner - a_first;
#pragma unroll
    for (int i = 0; i < CHUNK * ROWS / 8 / THREADS; i++) {
        const int t = (i * THREADS + (int)threadIdx.x) / (ROWS / 8), a = (int)threadIdx.x % (ROWS / 8) * 8;
        const uint16_t *f1 = (const uint16_t *)(stage + G::F1) + t * tile<ROWS>::STRIDE;
        float factor = call.c ? *(const float *)(stage + G::C + 4 * t) : 1.0f;
        uint4 eight = make_uint4(0, 0, 0, 0);
        if (a < rows && inner > 1) { /* 8 or 16: eight values of a share the first feature */
            const uint16_t *second = (const uint16_t *)(stage + G::INNER_AT) + t * tile<INNER>::STRIDE;
            factor *= ptx::unpack<HALF>(f1[(a_first + a) / inner]).x;
            eight = *(const uint4 *)(second + (a_first + a) % inner);
        } else if (a < rows) {
            eight = *(const uint4 *)(f1 + a);
        }
        const int at = (t * tile<ROWS>::STRIDE + a) * 2;
        split<HALF>(memory + G::COARSE + at, memory + G::FINE + at, eight, factor);
    }
}

template <int R2> __device__ __forceinline__ void split_f2(char *memory, const char *stage) {
    using G = sizes<R2, true>;
#pragma unroll
    for (int i = (int)threadIdx.x; i < CHUNK * R2 / 8; i += THREADS) {
        const int at = (i / (R2 / 8) * tile<R2>::STRIDE + i % (R2 / 8) * 8) * 2;
        split<true>(memory + G::F2_COARSE + at, memory + G::F2_FINE + at, *(const uint4 *)(stage + G::F2 + at), 1.0f);
    }
}

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, "
        "%1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* sum += of 16 tokens: 16 values of a from a on, all of b; `matrix` lanes address as load_matrices wants. */
template <int R2>
__device__ __forceinline__ void multiply_tokens(float (&sum)[R2 / 8][4], uint32_t f1_tile, uint32_t f2_tile, int a,
                                                int token, int lane) {
    const int row = lane % 8, matrix = lane / 8;
    uint32_t f1[4];
    ptx::load_matrices(
        f1, f1_tile + (uint32_t)((token + row + matrix / 2 * 8) * tile<ROWS>::STRIDE + a + matrix % 2 * 8) * 2);
    const uint32_t f2_at = f2_tile + (uint32_t)((token + row + matrix % 2 * 8) * tile<R2>::STRIDE) * 2;
    if constexpr (R2 == 8) {
        uint32_t f2[2];
        ptx::load_matrices(f2, f2_at);
        multiply(sum[0], f1, f2[0], f2[1]);
    } else {
#pragma unroll
        for (int b = 0; b < R2; b += 16) {
            uint32_t f2[4];
            ptx::load_matrices(f2, f2_at + (uint32_t)(b + matrix / 2 * 8) * 2);
            multiply(sum[b / 8], f1, f2[0], f2[1]);
            multiply(sum[b / 8 + 1], f1, f2[2], f2[3]);
        }
    }
}

/* The sums of both halves of the warps, to the block's part. */
template <int R2>
__device__ __forceinline__ void store_sums(const arguments &in, float *shared, float (&sum)[R2 / 8][4], int64_t state,
                                           int part, int a_first, int warp, int lane) {
    const int64_t rank = in.call.rank1 * in.call.rank1_inner * R2;
    float *to = in.call.partial + ((int64_t)part * in.states + state) * rank + (int64_t)a_first * R2;
    const int rows = (int)(in.call.rank1 * in.call.rank1_inner) - a_first;
    __syncthreads();
#pragma unroll
    for (int half = 1; half >= 0; half--) {
        if (warp / 4 == half) {
#pragma unroll
            for (int j = 0; j < R2 / 8; j++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int a = 16 * (warp % 4) + lane / 4 + 8 * r, at = a * R2 + 8 * j + 2 * (lane % 4);
                    float2 pair = make_float2(sum[j][2 * r], sum[j][2 * r + 1]);
                    if (half == 1) {
                        *(float2 *)(shared + at) = pair;
                    } else if (a < rows) {
                        pair.x += shared[at], pair.y += shared[at + 1];
                        *(float2 *)(to + at) = pair;
                    }
                }
        }
        __syncthreads();
    }
}

template <int R2, bool HALF> __global__ __launch_bounds__(THREADS) void gram(const __grid_constant__ arguments in) {
    using G = sizes<R2, HALF>;
    extern __shared__ __align__(16) char memory[];
    const uint32_t shared = ptx::shared_address(memory);
    const int state = (int)blockIdx.x / in.parts, part = (int)blockIdx.x % in.parts, a_first = (int)blockIdx.y * ROWS;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    walker ahead(in, state);
    const int64_t chunks = (int64_t)ahead.chunks * in.call.group;
    const int begin = (int)(chunks * part / in.parts), end = (int)(chunks * (part + 1) / in.parts);
    ahead.skip(begin);
    float sum[R2 / 8][4];
#pragma unroll
    for (int j = 0; j < R2 / 8; j++)
        sum[j][0] = sum[j][1] = sum[j][2] = sum[j][3] = 0;
    auto copy_next = [&](int at) {
        if (at < end) copy_chunk<R2, HALF>(in, shared + (at & 1) * G::STAGE, ahead, a_first);
        asm volatile("cp.async.commit_group;" ::: "memory");
        ahead.skip(1);
    };
    copy_next(begin);
    copy_next(begin + 1);
    for (int at = begin; at < end; at++) {
        const int stage = (at & 1) * G::STAGE;
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        split_rows<R2, HALF>(in, memory, memory + stage, a_first);
        if constexpr (HALF) split_f2<R2>(memory, memory + stage);
        __syncthreads();
        const uint32_t f2 = shared + (HALF ? G::F2_COARSE : stage + G::F2);
#pragma unroll
        for (int i = 0; i < CHUNK / 32; i++) {
            const int token = 16 * (warp / 4 + 2 * i), a = 16 * (warp % 4);
            multiply_tokens<R2>(sum, shared + G::COARSE, f2, a, token, lane);
            multiply_tokens<R2>(sum, shared + G::FINE, f2, a, token, lane);
            if constexpr (HALF) multiply_tokens<R2>(sum, shared + G::COARSE, shared + G::F2_FINE, a, token, lane);
        }
        __syncthreads();
        copy_next(at + 2);
    }
    store_sums<R2>(in, (float *)memory, sum, state, part, a_first, warp, lane);
}

__global__ void add_parts(float *z, const float *partial, int64_t numbers, int parts, float scale) {
    const int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (i >= numbers) return;
    float sum = 0;
#pragma unroll 8
    for (int part = 0; part < parts; part++)
        sum += partial[part * numbers + i];
    z[i] = scale * sum;
}

/* ---- launch ---- */

template <int R2, bool HALF> int launch(const arguments &in, cudaStream_t stream) {
    using G = sizes<R2, HALF>;
    auto *kernel = gram<R2, HALF>;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, G::SHARED);
    if (error != cudaSuccess) return (int)error;
    const int64_t rows = in.call.rank1 * in.call.rank1_inner;
    const dim3 grid((unsigned)(in.states * in.parts), (unsigned)((rows + ROWS - 1) / ROWS));
    kernel<<<grid, THREADS, G::SHARED, stream>>>(in);
    return (int)cudaGetLastError();
}

template <int R2> int launch_of_type(const arguments &in, cudaStream_t stream) {
    return in.call.half ? launch<R2, true>(in, stream) : launch<R2, false>(in, stream);
}

} // namespace

extern "C" int64_t hla_gram_parts(int64_t states, int64_t rank, int processors) {
    int64_t parts = (3 * (int64_t)processors + states - 1) / states, most = MOST_PARTIAL / (states * rank);
    if (parts > most) parts = most;
    return parts > 1 ? parts : 1;
}

extern "C" int64_t hla_gram_partial(int64_t states, int64_t rank, int processors) {
    return hla_gram_parts(states, rank, processors) * states * rank;
}

extern "C" int hla_gram(const hla_gram_call *call, void *stream) {
    arguments in = {};
    in.call = *call;
    in.key_heads = (int)(call->heads / call->group), in.states = call->sequences * in.key_heads;
    const int64_t rank = call->rank1 * call->rank1_inner * call->rank2, numbers = in.states * rank;
    in.parts = (int)hla_gram_parts(in.states, rank, call->processors);
    cudaStream_t queue = (cudaStream_t)stream;
    const int error = call->rank2 == 8    ? launch_of_type<8>(in, queue)
                      : call->rank2 == 16 ? launch_of_type<16>(in, queue)
                      : call->rank2 == 32 ? launch_of_type<32>(in, queue)
                      : call->rank2 == 64 ? launch_of_type<64>(in, queue)
                                          : launch_of_type<128>(in, queue);
    if (error) return error;
    add_parts<<<(unsigned)((numbers + 255) / 256), 256, 0, queue>>>(call->z, call->partial, numbers, in.parts,
                                                                    call->scale);
    return (int)cudaGetLastError();
}
