/* video/nn/vector.h - elementwise functions written so that the compiler vectorises the loops around them, and the
 * attribute that compiles such a loop once per instruction set, chosen by the loader at run time. Results may differ in
 * the last bit between instruction sets, never between thread counts. */
#ifndef HLV_NN_VECTOR_H
#define HLV_NN_VECTOR_H

#include <stdint.h>
#include <string.h>

/* On static functions only: clang 14 gives the clones of others a name that no other file finds. */
#if defined(__x86_64__) && defined(__gnu_linux__)
#define HLV_VECTOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HLV_VECTOR
#endif
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* under sanitizers loops stay scalar, which is no error */
#endif
#define HLV_INLINE static inline __attribute__((always_inline))

/* e^x to 2e-7 relative for x in [-87, 88]; outside it is held at the ends; NaN stays NaN. x = n ln 2 + r with |r| <= ln
 * 2 / 2, e^r by its Taylor polynomial of degree 7 (remainder r^8/8! = 5e-9), 2^n from bits. ln 2 is cut in two so that
 * r is exact to rounding. */
HLV_INLINE float hlv_exp(float x) {
    const float shift = 12582912.0f; /* 1.5 * 2^23: adding it leaves round(x) in the low bits */
    const uint32_t shift_bits = 0x4b400000u;
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + shift;
    const float n = shifted - shift;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040.0f;
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - shift_bits + 127u) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* x / (1 + e^-x) */
HLV_INLINE float hlv_silu(float x) {
    return x / (1.0f + hlv_exp(-x));
}

/* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) = x / (1 + e^-2a): no cancellation for negative x. */
HLV_INLINE float hlv_gelu_tanh(float x) {
    return x / (1.0f + hlv_exp(-1.5957691216f * (x + 0.044715f * x * x * x)));
}

#endif
