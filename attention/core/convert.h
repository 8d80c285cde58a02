/* attention/core/convert.h - bfloat16 and float16 to and from float32: numbers, and rows of a tensor.
 *
 * In a header and without branches inside the loops, so that a source compiled for an instruction set gets vector code
 * of that set.
 */
#ifndef HLA_CORE_CONVERT_H
#define HLA_CORE_CONVERT_H

#include "hla/core.h"

#include <string.h>

/* Of functions too long to be copied to every place that calls them. */
#define HLA_OUT_OF_LINE static __attribute__((noinline, unused))

/* hla_dtype_size for a dtype known to be valid, cheap enough for inner loops. */
static inline int64_t hla_element_size(hla_dtype dtype) {
    return dtype == HLA_F32 ? 4 : 2;
}

static inline float hla_bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t hla_float_to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float hla_bf16_to_f32(uint16_t value) {
    return hla_bits_to_float((uint32_t)value << 16);
}

/* Rounds to nearest, ties to even; a NaN stays a (quiet) NaN. */
static inline uint16_t hla_f32_to_bf16(float value) {
    uint32_t bits = hla_float_to_bits(value);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    uint32_t quiet = (bits >> 16) | 0x40u;
    return (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

/* The bits moved into place are the number times 2^-112, subnormal or not; infinity and NaN keep their exponent of all
 * ones instead. */
static inline float hla_f16_to_f32(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16, moved = (uint32_t)(value & 0x7fffu) << 13;
    uint32_t finite = hla_float_to_bits(hla_bits_to_float(moved) * 0x1p112f);
    return hla_bits_to_float(sign | (moved < 0x0f800000u ? finite : moved | 0x7f800000u));
}

/* Rounds to nearest, ties to even; overflow becomes infinity; a NaN stays a NaN. */
static inline uint16_t hla_f32_to_f16(float value) {
    uint32_t bits = hla_float_to_bits(value), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    uint32_t normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
    /* below 2^-14: adding 0.5 leaves the mantissa in units of 2^-24, rounded by the hardware */
    uint32_t subnormal = hla_float_to_bits(hla_bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
    uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half; /* 65520 and more round to infinity */
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return (uint16_t)(sign | half);
}

/* Reads count elements that lie stride elements apart as float32; out must not overlap them. */
HLA_OUT_OF_LINE void hla_load_floats(float *restrict out, const void *restrict data, hla_dtype dtype, int64_t count,
                                     int64_t stride) {
    const float *wide = data;
    const uint16_t *narrow = data;
    if (dtype == HLA_F32) {
        for (int64_t i = 0; i < count; i++)
            out[i] = wide[i * stride];
    } else if (dtype == HLA_BF16) {
        for (int64_t i = 0; i < count; i++)
            out[i] = hla_bf16_to_f32(narrow[i * stride]);
    } else {
        for (int64_t i = 0; i < count; i++)
            out[i] = hla_f16_to_f32(narrow[i * stride]);
    }
}

/* Writes count values, rounded to dtype, as elements that lie stride elements apart. */
HLA_OUT_OF_LINE void hla_store_floats(void *restrict data, hla_dtype dtype, int64_t count, int64_t stride,
                                      const float *restrict values) {
    float *wide = data;
    uint16_t *narrow = data;
    if (dtype == HLA_F32) {
        for (int64_t i = 0; i < count; i++)
            wide[i * stride] = values[i];
    } else if (dtype == HLA_BF16) {
        for (int64_t i = 0; i < count; i++)
            narrow[i * stride] = hla_f32_to_bf16(values[i]);
    } else {
        for (int64_t i = 0; i < count; i++)
            narrow[i * stride] = hla_f32_to_f16(values[i]);
    }
}

#endif
