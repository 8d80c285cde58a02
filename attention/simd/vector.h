/* attention/simd/vector.h - the few vector operations kernels are written in, for the instruction set HLA_ISA.
 *
 * A kernel source is compiled once per set (hla_isa_sources in CMakeLists.txt) with HLA_ISA defined as baseline, avx2,
 * avx512 or neon and the compiler flags that go with it. HLA_ISA_NAME(x) makes x_<set>, so that the copies link side by
 * side; everything else in such a source is static.
 */
#ifndef HLA_SIMD_VECTOR_H
#define HLA_SIMD_VECTOR_H

#include "attention/simd/isa.h"

#include <stdint.h>

#define HLA_PASTE_(a, b) a##_##b
#define HLA_PASTE(a, b) HLA_PASTE_(a, b)
#define HLA_ISA_NAME(name) HLA_PASTE(name, HLA_ISA)
#define HLA_QUOTE_(a) #a
#define HLA_QUOTE(a) HLA_QUOTE_(a)
#define HLA_ISA_STRING HLA_QUOTE(HLA_ISA)

#define HLA_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define HLA_UNROLL(n) _Pragma(HLA_QUOTE(unroll n))
#else
#define HLA_UNROLL(n) _Pragma(HLA_QUOTE(GCC unroll n))
#endif

#if defined(HLA_ISA_IS_AVX512)
#include <immintrin.h>
#define HLA_ISA_VALUE HLA_ISA_AVX512
enum { HLA_VECTOR_WIDTH = 16, HLA_TILE_ROWS = 8 }; /* 32 registers: 8 x 2 sums, 2 values, 1 factor */
typedef __m512 hla_vector;

HLA_INLINE hla_vector hla_vector_zero(void) {
    return _mm512_setzero_ps();
}
HLA_INLINE hla_vector hla_vector_set(float x) {
    return _mm512_set1_ps(x);
}
HLA_INLINE hla_vector hla_vector_load(const float *p) {
    return _mm512_loadu_ps(p);
}
HLA_INLINE void hla_vector_store(float *p, hla_vector x) {
    _mm512_storeu_ps(p, x);
}
HLA_INLINE hla_vector hla_vector_add(hla_vector x, hla_vector y) {
    return _mm512_add_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_multiply(hla_vector x, hla_vector y) {
    return _mm512_mul_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_divide(hla_vector x, hla_vector y) {
    return _mm512_div_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_multiply_add(hla_vector x, hla_vector y, hla_vector sum) {
    return _mm512_fmadd_ps(x, y, sum);
}
HLA_INLINE hla_vector hla_vector_interleave_low(hla_vector x, hla_vector y) {
    const __m512i order = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_permutex2var_ps(x, order, y);
}
HLA_INLINE hla_vector hla_vector_interleave_high(hla_vector x, hla_vector y) {
    const __m512i order = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    return _mm512_permutex2var_ps(x, order, y);
}

#elif defined(HLA_ISA_IS_AVX2)
#include <immintrin.h>
#define HLA_ISA_VALUE HLA_ISA_AVX2
enum { HLA_VECTOR_WIDTH = 8, HLA_TILE_ROWS = 4 }; /* 16 registers: 4 x 2 sums hide the latency of two FMA pipes */
typedef __m256 hla_vector;

HLA_INLINE hla_vector hla_vector_zero(void) {
    return _mm256_setzero_ps();
}
HLA_INLINE hla_vector hla_vector_set(float x) {
    return _mm256_set1_ps(x);
}
HLA_INLINE hla_vector hla_vector_load(const float *p) {
    return _mm256_loadu_ps(p);
}
HLA_INLINE void hla_vector_store(float *p, hla_vector x) {
    _mm256_storeu_ps(p, x);
}
HLA_INLINE hla_vector hla_vector_add(hla_vector x, hla_vector y) {
    return _mm256_add_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_multiply(hla_vector x, hla_vector y) {
    return _mm256_mul_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_divide(hla_vector x, hla_vector y) {
    return _mm256_div_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_multiply_add(hla_vector x, hla_vector y, hla_vector sum) {
    return _mm256_fmadd_ps(x, y, sum);
}
HLA_INLINE hla_vector hla_vector_interleave_low(hla_vector x, hla_vector y) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y), 0x20);
}
HLA_INLINE hla_vector hla_vector_interleave_high(hla_vector x, hla_vector y) {
    return _mm256_permute2f128_ps(_mm256_unpacklo_ps(x, y), _mm256_unpackhi_ps(x, y), 0x31);
}

#elif defined(HLA_ISA_IS_NEON)
#include <arm_neon.h>
#define HLA_ISA_VALUE HLA_ISA_NEON
enum { HLA_VECTOR_WIDTH = 4, HLA_TILE_ROWS = 8 }; /* 32 registers: 8 x 2 sums hide the latency of four FMA pipes */
typedef float32x4_t hla_vector;

HLA_INLINE hla_vector hla_vector_zero(void) {
    return vdupq_n_f32(0);
}
HLA_INLINE hla_vector hla_vector_set(float x) {
    return vdupq_n_f32(x);
}
HLA_INLINE hla_vector hla_vector_load(const float *p) {
    return vld1q_f32(p);
}
HLA_INLINE void hla_vector_store(float *p, hla_vector x) {
    vst1q_f32(p, x);
}
HLA_INLINE hla_vector hla_vector_add(hla_vector x, hla_vector y) {
    return vaddq_f32(x, y);
}
HLA_INLINE hla_vector hla_vector_multiply(hla_vector x, hla_vector y) {
    return vmulq_f32(x, y);
}
HLA_INLINE hla_vector hla_vector_divide(hla_vector x, hla_vector y) {
    return vdivq_f32(x, y);
}
HLA_INLINE hla_vector hla_vector_multiply_add(hla_vector x, hla_vector y, hla_vector sum) {
    return vfmaq_f32(sum, x, y);
}
HLA_INLINE hla_vector hla_vector_interleave_low(hla_vector x, hla_vector y) {
    return vzip1q_f32(x, y);
}
HLA_INLINE hla_vector hla_vector_interleave_high(hla_vector x, hla_vector y) {
    return vzip2q_f32(x, y);
}

#else /* any compiler with vector types: SSE2 on x86-64, NEON without fused multiply-add on AArch64 */
#define HLA_ISA_VALUE HLA_ISA_BASELINE
enum { HLA_VECTOR_WIDTH = 4, HLA_TILE_ROWS = 4 };
typedef float hla_vector __attribute__((vector_size(16)));
typedef float hla_vector_memory __attribute__((vector_size(16), aligned(4), may_alias));

HLA_INLINE hla_vector hla_vector_zero(void) {
    return (hla_vector){0};
}
HLA_INLINE hla_vector hla_vector_set(float x) {
    return (hla_vector){x, x, x, x};
}
HLA_INLINE hla_vector hla_vector_load(const float *p) {
    return *(const hla_vector_memory *)p;
}
HLA_INLINE void hla_vector_store(float *p, hla_vector x) {
    *(hla_vector_memory *)p = x;
}
HLA_INLINE hla_vector hla_vector_add(hla_vector x, hla_vector y) {
    return x + y;
}
HLA_INLINE hla_vector hla_vector_multiply(hla_vector x, hla_vector y) {
    return x * y;
}
HLA_INLINE hla_vector hla_vector_divide(hla_vector x, hla_vector y) {
    return x / y;
}
HLA_INLINE hla_vector hla_vector_multiply_add(hla_vector x, hla_vector y, hla_vector sum) {
    return x * y + sum;
}
HLA_INLINE hla_vector hla_vector_interleave_low(hla_vector x, hla_vector y) {
    return (hla_vector){x[0], y[0], x[1], y[1]};
}
HLA_INLINE hla_vector hla_vector_interleave_high(hla_vector x, hla_vector y) {
    return (hla_vector){x[2], y[2], x[3], y[3]};
}
#endif

/* row[i][j] becomes row[j][i]. Interleaving the upper half of the rows with the lower one moves the highest bit of an
 * element's place, row by row, to the end; after as many times as a lane's number has bits row and lane are exchanged.
 */
HLA_INLINE void hla_vector_transpose(hla_vector row[HLA_VECTOR_WIDTH]) {
    HLA_UNROLL(4)
    for (int step = 1; step < HLA_VECTOR_WIDTH; step *= 2) {
        hla_vector next[HLA_VECTOR_WIDTH];
        HLA_UNROLL(8)
        for (int i = 0; i < HLA_VECTOR_WIDTH / 2; i++) {
            next[2 * i] = hla_vector_interleave_low(row[i], row[i + HLA_VECTOR_WIDTH / 2]);
            next[2 * i + 1] = hla_vector_interleave_high(row[i], row[i + HLA_VECTOR_WIDTH / 2]);
        }
        HLA_UNROLL(16)
        for (int i = 0; i < HLA_VECTOR_WIDTH; i++)
            row[i] = next[i];
    }
}

/* Sum of the lanes, in halves: lane i takes lane i + width/2, and so on. */
HLA_INLINE float hla_vector_sum(hla_vector x) {
    float lane[HLA_VECTOR_WIDTH];
    hla_vector_store(lane, x);
    for (int half = HLA_VECTOR_WIDTH / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    }
    return lane[0];
}

#endif
