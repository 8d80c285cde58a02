/* Elements of a file, wherever they lie, to float32. */
#include "video/weights/weights.h"

#include <string.h>

static float bits_to_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE binary16: 1 sign, 5 exponent (bias 15), 10 fraction bits. */
static float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half >> 15) << 31;
    uint32_t exponent = (half >> 10) & 31, fraction = half & 1023;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
    if (exponent > 0) return bits_to_float(sign | (exponent + 127 - 15) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f; /* zero and subnormal numbers */
    return sign ? -magnitude : magnitude;
}

/* The elements of 16 bits at `bytes`, which need not be aligned. */
static uint16_t element(const uint8_t *bytes, int64_t i) {
    uint16_t bits;
    memcpy(&bits, bytes + 2 * i, sizeof bits);
    return bits;
}

void hlv_weight_to_f32(const hlv_weight *weight, float *out) {
    const uint8_t *bytes = weight->data;
    int64_t count = weight->count;
    if (weight->dtype == HLA_F32 && count) memcpy(out, bytes, (size_t)count * sizeof *out);
    if (weight->dtype == HLA_BF16)
        for (int64_t i = 0; i < count; i++)
            out[i] = bits_to_float((uint32_t)element(bytes, i) << 16);
    if (weight->dtype == HLA_F16)
        for (int64_t i = 0; i < count; i++)
            out[i] = half_to_float(element(bytes, i));
}

float *hlv_weight_load_f32(hlv_context *ctx, const hlv_weight *weight) {
    if (!weight) return NULL;
    float *values = hlv_alloc_floats(ctx, weight->count);
    if (values) hlv_weight_to_f32(weight, values);
    return values;
}
