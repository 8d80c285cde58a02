/* attention/ops/hadamard/cuda/wgmma.cuh - matrix products of a warpgroup: D[64 x N] (+)= A[64 x 16] B[16 x N], 16-bit
 * factors, float32 sums in registers.
 *
 * Register 4j + 2r + e of a thread's D holds row 16 (warp % 4) + lane / 4 + 8r, column 8j + 2 (lane % 4) + e. Register
 * r + 2k of A holds row lane / 4 + 8r, columns 2 (lane % 4) + 8k and the next. B lies in shared memory, described by 64
 * bits: MAJOR_K where a column's 16 numbers are contiguous, MAJOR_N where a row's are.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_WGMMA_CUH
#define HLA_OPS_HADAMARD_CUDA_WGMMA_CUH

#include <stdint.h>

namespace wgmma {

enum { MAJOR_K = 0, MAJOR_N = 1 };

/* How rows of a tile are swizzled by the copy engine: in groups of 128, 64 or 32 bytes. */
enum { SWIZZLE_128 = 1, SWIZZLE_64 = 2, SWIZZLE_32 = 3 };
template <int ROW> constexpr uint32_t SWIZZLE_OF = ROW == 128 ? SWIZZLE_128 : ROW == 64 ? SWIZZLE_64 : SWIZZLE_32;

/* leading, stride: bytes between swizzled blocks along the contiguous and along the other axis. */
__device__ __forceinline__ uint64_t describe(uint32_t address, uint32_t leading, uint32_t stride, uint32_t swizzle) {
    return ((uint64_t)swizzle << 62) | ((uint64_t)(stride >> 4) << 32) | ((uint64_t)(leading >> 4) << 16) |
           (uint64_t)((address & 0x3ffff) >> 4);
}

/* Before the first product after registers of A or D were written. */
__device__ __forceinline__ void fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* Until at most PENDING of the groups committed are unfinished. */
template <int PENDING> __device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* Keeps the compiler from moving uses of D before a wait. */
template <int COUNT> __device__ __forceinline__ void settle(float (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        asm volatile("" : "+f"(d[i])::"memory");
}

#define HLA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HLA_D8(i) HLA_D4(i), HLA_D4(i + 4)
#define HLA_D16(i) HLA_D8(i), HLA_D8(i + 8)
#define HLA_D32(i) HLA_D16(i), HLA_D16(i + 16)
#define HLA_D64(i) HLA_D32(i), HLA_D32(i + 32)
#define HLA_D128(i) HLA_D64(i), HLA_D64(i + 64)
#define HLA_N8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define HLA_N16 HLA_N8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define HLA_N32 HLA_N16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define HLA_N64                                                                                                        \
    HLA_N32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "   \
            "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HLA_N128                                                                                                       \
    HLA_N64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"                         \
            ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"                         \
            ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"             \
            ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

/* A in registers. add: 0 for D = A B, else D += A B. */
#define HLA_DEFINE_FROM_REGISTERS(N, COUNT, A0, A1, A2, A3, B, ADD, MAJOR_AT)                                          \
    template <bool HALF, int MAJOR>                                                                                    \
    __device__ __forceinline__ void multiply(float(&d)[COUNT], const uint32_t(&a)[4], uint64_t b, int add) {           \
        if constexpr (HALF)                                                                                            \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" HLA_N##COUNT                       \
                         "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" MAJOR_AT ";\n}\n"               \
                         : HLA_D##COUNT(0)                                                                             \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(MAJOR));                  \
        else                                                                                                           \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" HLA_N##COUNT                     \
                         "}, {%" A0 ", %" A1 ", %" A2 ", %" A3 "}, %" B ", p, 1, 1, %" MAJOR_AT ";\n}\n"               \
                         : HLA_D##COUNT(0)                                                                             \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(MAJOR));                  \
    }

/* D[64 x 16], [64 x 32], [64 x 64], [64 x 128], [64 x 256], by the length of d */
HLA_DEFINE_FROM_REGISTERS(16, 8, "8", "9", "10", "11", "12", "13", "14")
HLA_DEFINE_FROM_REGISTERS(32, 16, "16", "17", "18", "19", "20", "21", "22")
HLA_DEFINE_FROM_REGISTERS(64, 32, "32", "33", "34", "35", "36", "37", "38")
HLA_DEFINE_FROM_REGISTERS(128, 64, "64", "65", "66", "67", "68", "69", "70")
HLA_DEFINE_FROM_REGISTERS(256, 128, "128", "129", "130", "131", "132", "133", "134")

/* D[64 x 16] += A B, both in shared memory with tokens, the summed axis, not contiguous. */
template <bool HALF> __device__ __forceinline__ void multiply_tokens(float (&d)[8], uint64_t a, uint64_t b) {
    if constexpr (HALF)
        asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {" HLA_N8 "}, %8, %9, p, 1, 1, 1, 1;\n}\n"
                     : HLA_D8(0)
                     : "l"(a), "l"(b));
    else
        asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {" HLA_N8 "}, %8, %9, p, 1, 1, 1, 1;\n}\n"
                     : HLA_D8(0)
                     : "l"(a), "l"(b));
}

/* D[64 x 32] (+)= A B, both in shared memory with the summed axis contiguous. */
template <bool HALF> __device__ __forceinline__ void multiply_rows(float (&d)[16], uint64_t a, uint64_t b, int add) {
    if constexpr (HALF)
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 {" HLA_N16 "}, %16, %17, p, 1, 1, 0, 0;\n}\n"
                     : HLA_D16(0)
                     : "l"(a), "l"(b), "r"(add));
    else
        asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
                     "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" HLA_N16 "}, %16, %17, p, 1, 1, 0, 0;\n}\n"
                     : HLA_D16(0)
                     : "l"(a), "l"(b), "r"(add));
}

#undef HLA_DEFINE_FROM_REGISTERS
#undef HLA_D4
#undef HLA_D8
#undef HLA_D16
#undef HLA_D32
#undef HLA_D64
#undef HLA_D128
#undef HLA_N8
#undef HLA_N16
#undef HLA_N32
#undef HLA_N64
#undef HLA_N128

} // namespace wgmma

#endif
