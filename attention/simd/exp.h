/* attention/simd/exp.h - maximum, exponential and logarithm of vectors, for sources compiled once per instruction set.
 *
 * The exponentials carry NaN through and are within 2 units in the last place; where the result would be smaller than
 * 2^-125 they are exactly 0, so that no subnormal number ever slows a sum down.
 */
#ifndef HLA_SIMD_EXP_H
#define HLA_SIMD_EXP_H

#include "attention/simd/vector.h"

/* Larger and smaller lanes; y where either is NaN. hla_vector_exponent gives 2^(n - 127) for the integer n, 0 to 255,
 * in the low bits of a float between 2^23 and 2^24: 0 for n = 0, infinity for 255. hla_vector_largest is the largest
 * lane; with NaN among the lanes it is any of them. */
#if defined(HLA_ISA_IS_AVX512)
HLA_INLINE hla_vector hla_vector_larger(hla_vector x, hla_vector y) {
    return _mm512_max_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_smaller(hla_vector x, hla_vector y) {
    return _mm512_min_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_exponent(hla_vector x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 23));
}
HLA_INLINE float hla_vector_largest(hla_vector x) {
    return _mm512_reduce_max_ps(x);
}
#elif defined(HLA_ISA_IS_AVX2)
HLA_INLINE hla_vector hla_vector_larger(hla_vector x, hla_vector y) {
    return _mm256_max_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_smaller(hla_vector x, hla_vector y) {
    return _mm256_min_ps(x, y);
}
HLA_INLINE hla_vector hla_vector_exponent(hla_vector x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 23));
}
HLA_INLINE float hla_vector_largest(hla_vector x) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
#elif defined(HLA_ISA_IS_NEON)
/* A comparison with NaN is false, so that y is taken; NEON's own maximum would prefer the NaN, its maxnm the number. */
HLA_INLINE hla_vector hla_vector_larger(hla_vector x, hla_vector y) {
    return vbslq_f32(vcgtq_f32(x, y), x, y);
}
HLA_INLINE hla_vector hla_vector_smaller(hla_vector x, hla_vector y) {
    return vbslq_f32(vcltq_f32(x, y), x, y);
}
HLA_INLINE hla_vector hla_vector_exponent(hla_vector x) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x), 23));
}
HLA_INLINE float hla_vector_largest(hla_vector x) {
    return vmaxvq_f32(x);
}
#else
typedef int32_t hla_vector_bits __attribute__((vector_size(16)));

HLA_INLINE hla_vector hla_vector_select(hla_vector_bits mask, hla_vector x, hla_vector y) {
    return (hla_vector)((mask & (hla_vector_bits)x) | (~mask & (hla_vector_bits)y));
}
HLA_INLINE hla_vector hla_vector_larger(hla_vector x, hla_vector y) {
    return hla_vector_select(x > y, x, y);
}
HLA_INLINE hla_vector hla_vector_smaller(hla_vector x, hla_vector y) {
    return hla_vector_select(x < y, x, y);
}
HLA_INLINE hla_vector hla_vector_exponent(hla_vector x) {
    typedef uint32_t unsigned_bits __attribute__((vector_size(16)));
    return (hla_vector)((unsigned_bits)x << 23);
}
HLA_INLINE float hla_vector_largest(hla_vector x) {
    float even = x[0] > x[2] ? x[0] : x[2], odd = x[1] > x[3] ? x[1] : x[3];
    return even > odd ? even : odd;
}
#endif

HLA_INLINE hla_vector hla_vector_negate(hla_vector x) {
    return -x;
}

HLA_INLINE hla_vector hla_vector_subtract(hla_vector x, hla_vector y) {
    return x - y;
}

/* exp(r) for |r| <= ln(2) / 2 as 1 + r + r^2 p(r), p minimax of degree 4: relative error 3e-9 before rounding. */
HLA_INLINE hla_vector hla_vector_exp_reduced(hla_vector r) {
    hla_vector p = hla_vector_set(0x1.6a23fp-10f);
    p = hla_vector_multiply_add(p, r, hla_vector_set(0x1.123a0ap-7f));
    p = hla_vector_multiply_add(p, r, hla_vector_set(0x1.5558f2p-5f));
    p = hla_vector_multiply_add(p, r, hla_vector_set(0x1.555492p-3f));
    p = hla_vector_multiply_add(p, r, hla_vector_set(0x1.fffffcp-2f));
    p = hla_vector_multiply_add(p, r, hla_vector_set(1));
    return hla_vector_multiply_add(p, r, hla_vector_set(1));
}

/* 2^x for x up to 127. Adding 1.5 * 2^23 rounds x to an integer n, which is left, plus 127, in the low bits. */
HLA_INLINE hla_vector hla_vector_exp2(hla_vector x) {
    x = hla_vector_larger(hla_vector_set(-127), x);
    hla_vector shifted = hla_vector_add(x, hla_vector_set(0x1.8p23f + 127));
    hla_vector n = hla_vector_add(shifted, hla_vector_set(-(0x1.8p23f + 127)));
    hla_vector r = hla_vector_multiply(hla_vector_subtract(x, n), hla_vector_set(0x1.62e43p-1f)); /* ln 2 */
    return hla_vector_multiply(hla_vector_exp_reduced(r), hla_vector_exponent(shifted));
}

/* e^x for any x; infinity from 88.73 on. ln 2 in two pieces, the first of 15 bits, keeps x - n ln 2 exact; the scale
 * 2^n in two steps reaches n = 128. */
HLA_INLINE hla_vector hla_vector_exp(hla_vector x) {
    x = hla_vector_larger(hla_vector_set(-87.3f), hla_vector_smaller(hla_vector_set(89), x));
    hla_vector shifted =
        hla_vector_multiply_add(x, hla_vector_set(0x1.715476p+0f), hla_vector_set(0x1.8p23f + 126)); /* 1 / ln 2 */
    hla_vector n = hla_vector_add(shifted, hla_vector_set(-(0x1.8p23f + 126)));
    hla_vector r = hla_vector_multiply_add(n, hla_vector_set(-0x1.62e4p-1f), x);
    r = hla_vector_multiply_add(n, hla_vector_set(-0x1.7f7d1cp-20f), r);
    hla_vector half = hla_vector_multiply(hla_vector_exp_reduced(r), hla_vector_exponent(shifted));
    return hla_vector_add(half, half);
}

/* log(1 + z) for 0 <= z <= 1, as 2 atanh(s) with s = z / (2 + z) <= 1/3: s + s^3 p(s^2), p minimax of degree 4. */
HLA_INLINE hla_vector hla_vector_log1p_unit(hla_vector z) {
    hla_vector s = hla_vector_divide(z, hla_vector_add(z, hla_vector_set(2)));
    hla_vector t = hla_vector_multiply(s, s);
    hla_vector p = hla_vector_set(0x1.f1733ap-4f);
    p = hla_vector_multiply_add(p, t, hla_vector_set(0x1.b6e6cep-4f));
    p = hla_vector_multiply_add(p, t, hla_vector_set(0x1.2508bp-3f));
    p = hla_vector_multiply_add(p, t, hla_vector_set(0x1.9996bp-3f));
    p = hla_vector_multiply_add(p, t, hla_vector_set(0x1.555558p-2f));
    hla_vector sum = hla_vector_multiply_add(hla_vector_multiply(s, t), p, s);
    return hla_vector_add(sum, sum);
}

#endif
