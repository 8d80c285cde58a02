/* Element types: sizes, names, conversion of rows to and from float32. */
#include "attention/core/internal.h"

bool hla_dtype_valid(hla_dtype dtype) {
    return dtype == HLA_F32 || dtype == HLA_BF16 || dtype == HLA_F16;
}

size_t hla_dtype_size(hla_dtype dtype) {
    if (!hla_dtype_valid(dtype)) return 0;
    return dtype == HLA_F32 ? sizeof(float) : sizeof(uint16_t);
}

const char *hla_dtype_name(hla_dtype dtype) {
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    return hla_dtype_valid(dtype) ? names[dtype] : "unknown";
}

/* Normal numbers move the exponent by 112; subnormals are exact as mantissa * 2^-24. */
float hla_f16_to_f32(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t exponent = (value >> 10) & 0x1fu;
    uint32_t mantissa = value & 0x3ffu;
    if (exponent == 0) {
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    uint32_t wide = exponent == 0x1fu ? 0xffu : exponent + 112u;
    return hla_bits_to_float(sign | (wide << 23) | (mantissa << 13));
}

uint16_t hla_f32_to_f16(float value) {
    uint32_t bits = hla_float_to_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more round to infinity */
    if (magnitude < 0x38800000u) {
        /* below 2^-14: adding 0.5 leaves the mantissa in units of 2^-24, rounded by the hardware to nearest even */
        float shifted = hla_bits_to_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (hla_float_to_bits(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return (uint16_t)(sign | ((rounded >> 13) - (112u << 10)));
}

static void load_f32(float *out, const float *in, int64_t count, int64_t stride) {
    if (stride == 1) {
        memcpy(out, in, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = in[i * stride];
}

static void load_bf16(float *restrict out, const uint16_t *restrict in, int64_t count, int64_t stride) {
    if (stride == 1) {
        for (int64_t i = 0; i < count; i++)
            out[i] = hla_bf16_to_f32(in[i]);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        out[i] = hla_bf16_to_f32(in[i * stride]);
}

void hla_load_floats(float *out, const void *data, hla_dtype dtype, int64_t count, int64_t stride) {
    if (count <= 0) return;
    if (dtype == HLA_F32) {
        load_f32(out, data, count, stride);
    } else if (dtype == HLA_BF16) {
        load_bf16(out, data, count, stride);
    } else {
        const uint16_t *in = data;
        for (int64_t i = 0; i < count; i++)
            out[i] = hla_f16_to_f32(in[i * stride]);
    }
}

void hla_store_floats(void *data, hla_dtype dtype, int64_t count, int64_t stride, const float *values) {
    if (dtype == HLA_F32) {
        float *out = data;
        for (int64_t i = 0; i < count; i++)
            out[i * stride] = values[i];
    } else if (dtype == HLA_BF16) {
        uint16_t *out = data;
        for (int64_t i = 0; i < count; i++)
            out[i * stride] = hla_f32_to_bf16(values[i]);
    } else {
        uint16_t *out = data;
        for (int64_t i = 0; i < count; i++)
            out[i * stride] = hla_f32_to_f16(values[i]);
    }
}
