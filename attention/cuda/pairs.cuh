/* attention/cuda/pairs.cuh - pairs of 16-bit numbers in a register, and products of 16 x 16 by 16 x 8 of them on tensor
 * cores with float32 sums (mma.sync m16n8k16, sm_80 and later).
 *
 * Lane 4g + q of a warp holds of A rows g (a0, a2) and g + 8 (a1, a3), terms 2q and 2q + 1 (a0, a1) and 8 further (a2,
 * a3); of B column g, the same terms (b0, b1); of C rows g (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2q and 2q + 1.
 */
#ifndef HLA_CUDA_PAIRS_CUH
#define HLA_CUDA_PAIRS_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace {

struct bf16 {
    static constexpr bool scaled = false; /* its range is float32's: sums need no scale to stay in it */

    static __device__ __forceinline__ uint32_t pack(float a, float b) {
        __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
        return *(const uint32_t *)&pair;
    }

    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }

    static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
        __nv_bfloat162 pair = __hmul2(*(const __nv_bfloat162 *)&a, *(const __nv_bfloat162 *)&b);
        return *(const uint32_t *)&pair;
    }

    static __device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                               uint32_t b0, uint32_t b1) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                     "{%0,%1,%2,%3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
};

struct f16 {
    static constexpr bool scaled = true;

    static __device__ __forceinline__ uint32_t pack(float a, float b) {
        __half2 pair = __floats2half2_rn(a, b);
        return *(const uint32_t *)&pair;
    }

    static __device__ __forceinline__ float2 unpack(uint32_t pair) {
        return __half22float2(*(const __half2 *)&pair);
    }

    static __device__ __forceinline__ uint32_t multiply(uint32_t a, uint32_t b) {
        __half2 pair = __hmul2(*(const __half2 *)&a, *(const __half2 *)&b);
        return *(const uint32_t *)&pair;
    }

    static __device__ __forceinline__ void mma(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                               uint32_t b0, uint32_t b1) {
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
};

} // namespace

#endif
