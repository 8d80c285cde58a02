/* Tensor views: making them and checking them. */
#include "attention/core/internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static const char axis_name[4] = {'b', 't', 'h', 'x'};

/* A product that wraps would be found by hla_check_tensor, which sees shape and stride. */
static int64_t wrapped_product(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a * (uint64_t)b);
}

hla_tensor hla_tensor_bthd(const void *data, hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x) {
    int64_t row = wrapped_product(h, x);
    return (hla_tensor){(void *)data, dtype, {b, t, h, x}, {wrapped_product(t, row), row, x, 1}};
}

hla_tensor hla_tensor_bhtd(const void *data, hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x) {
    int64_t head = wrapped_product(t, x);
    return (hla_tensor){(void *)data, dtype, {b, t, h, x}, {wrapped_product(h, head), x, head, 1}};
}

void hla_store_row(const hla_tensor *out, int64_t b, int64_t t, int64_t h, const double *row) {
    char *place = hla_tensor_row(out, b, t, h);
    int64_t step = out->stride[3] * hla_element_size(out->dtype);
    for (int64_t x = 0; x < out->shape[3]; x++, place += step) {
        float value = (float)row[x];
        hla_store_floats(place, out->dtype, 1, 1, &value);
    }
}

static bool is_empty(const hla_tensor *tensor) {
    for (int axis = 0; axis < 4; axis++) {
        if (tensor->shape[axis] == 0) return true;
    }
    return false;
}

/* Byte offsets, from data, of the first byte and of the first byte past the end; false when 64 bits do not hold them.
 */
static bool byte_range(const hla_tensor *tensor, int64_t *low, int64_t *high) {
    int64_t size = (int64_t)hla_dtype_size(tensor->dtype);
    *low = 0, *high = size;
    for (int axis = 0; axis < 4; axis++) {
        int64_t reach;
        if (__builtin_mul_overflow(tensor->shape[axis] - 1, tensor->stride[axis], &reach)) return false;
        if (__builtin_mul_overflow(reach, size, &reach)) return false;
        int64_t *end = reach < 0 ? low : high;
        if (__builtin_add_overflow(*end, reach, end)) return false;
    }
    int64_t span;
    return !__builtin_sub_overflow(*high, *low, &span);
}

hla_status hla_check_tensor(hla_context *context, const char *name, const hla_tensor *tensor, hla_dtype dtype,
                            int64_t b, int64_t t, int64_t h, int64_t x) {
    if (!tensor) return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is NULL", name);
    if (tensor->dtype != dtype) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s has dtype %s (%d), wanted %s", name,
                        hla_dtype_name(tensor->dtype), (int)tensor->dtype, hla_dtype_name(dtype));
    }
    const int64_t *shape = tensor->shape;
    if (shape[0] != b || shape[1] != t || shape[2] != h || shape[3] != x) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "%s has shape [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "], wanted [%" PRId64
                        ", %" PRId64 ", %" PRId64 ", %" PRId64 "]",
                        name, shape[0], shape[1], shape[2], shape[3], b, t, h, x);
    }
    if (is_empty(tensor)) return HLA_OK;
    if (!tensor->data) return hla_fail(context, HLA_ERROR_ARGUMENT, "%s.data is NULL", name);
    if ((uintptr_t)tensor->data % hla_dtype_size(dtype) != 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s.data is not aligned to its %zu-byte elements", name,
                        hla_dtype_size(dtype));
    }
    int64_t low, high;
    if (!byte_range(tensor, &low, &high)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s has strides that reach beyond 64-bit offsets", name);
    }
    return hla_check_address(context, name, tensor->data);
}

/* Axes longer than 1 in order of growing |stride|; returns how many. */
static int sort_axes(const hla_tensor *tensor, int axes[4]) {
    int count = 0;
    for (int axis = 0; axis < 4; axis++) {
        if (tensor->shape[axis] <= 1) continue;
        int place = count++;
        while (place > 0 && llabs(tensor->stride[axes[place - 1]]) > llabs(tensor->stride[axis])) {
            axes[place] = axes[place - 1];
            place--;
        }
        axes[place] = axis;
    }
    return count;
}

hla_status hla_check_output(hla_context *context, const char *name, const hla_tensor *tensor, hla_dtype dtype,
                            int64_t b, int64_t t, int64_t h, int64_t x) {
    hla_status status = hla_check_tensor(context, name, tensor, dtype, b, t, h, x);
    if (status != HLA_OK || is_empty(tensor)) return status;
    int axes[4];
    int count = sort_axes(tensor, axes);
    int64_t reach = 0; /* largest offset among the axes so far; fits, as byte_range did */
    for (int i = 0; i < count; i++) {
        int64_t stride = llabs(tensor->stride[axes[i]]);
        if (stride <= reach) {
            return hla_fail(context, HLA_ERROR_ARGUMENT,
                            "%s overlaps itself: stride %" PRId64 " of axis %c is too small, wanted more than %" PRId64,
                            name, tensor->stride[axes[i]], axis_name[axes[i]], reach);
        }
        reach += (tensor->shape[axes[i]] - 1) * stride;
    }
    return HLA_OK;
}

static int64_t floor_quotient(int64_t a, int64_t b) {
    int64_t quotient = a / b;
    return quotient - (a % b < 0);
}

/* Whether an index difference d, |d_k| < shape_k, has sum_k d_k stride_k within one element of distance (in bytes).
 * Strides are nested, so at each axis, from the largest, only the two nearest multiples can do. */
static bool can_meet(const int64_t *shape, const int64_t *stride, int count, int64_t distance, int64_t size) {
    if (count == 0) return distance > -size && distance < size;
    int64_t quotient = floor_quotient(distance, stride[count - 1]);
    for (int64_t step = quotient; step <= quotient + 1; step++) {
        if (step <= -shape[count - 1] || step >= shape[count - 1]) continue;
        if (can_meet(shape, stride, count - 1, distance - step * stride[count - 1], size)) return true;
    }
    return false;
}

static bool same_strides(const hla_tensor *a, const hla_tensor *b) {
    for (int axis = 0; axis < 4; axis++) {
        if ((a->shape[axis] > 1 || b->shape[axis] > 1) && a->stride[axis] != b->stride[axis]) return false;
    }
    return a->dtype == b->dtype;
}

/* For two views with the same nested strides; the distance between their bases is known to be small (ranges meet). */
static bool interleaved_meet(const hla_tensor *output, const hla_tensor *input) {
    int64_t size = (int64_t)hla_dtype_size(output->dtype), shape[4], stride[4];
    hla_tensor both = *output;
    for (int axis = 0; axis < 4; axis++) {
        if (input->shape[axis] > both.shape[axis]) both.shape[axis] = input->shape[axis];
    }
    int axes[4];
    int count = sort_axes(&both, axes);
    for (int i = 0; i < count; i++) {
        shape[i] = both.shape[axes[i]];
        stride[i] = llabs(both.stride[axes[i]]) * size;
    }
    int64_t distance = (int64_t)((uintptr_t)input->data - (uintptr_t)output->data);
    return can_meet(shape, stride, count, distance, size);
}

hla_status hla_check_disjoint(hla_context *context, const char *output_name, const hla_tensor *output,
                              const char *input_name, const hla_tensor *input) {
    if (is_empty(output) || is_empty(input)) return HLA_OK;
    int64_t output_low, output_high, input_low, input_high;
    if (!byte_range(output, &output_low, &output_high) || !byte_range(input, &input_low, &input_high)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s has strides that reach beyond 64-bit offsets", output_name);
    }
    uintptr_t out = (uintptr_t)output->data, in = (uintptr_t)input->data;
    bool apart = out + (uintptr_t)output_high <= in + (uintptr_t)input_low ||
                 in + (uintptr_t)input_high <= out + (uintptr_t)output_low;
    if (apart || (same_strides(output, input) && !interleaved_meet(output, input))) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s overlaps %s in memory", output_name, input_name);
}

/* Finite: the exponent bits are not all ones. */
static bool element_is_finite(const void *row, hla_dtype dtype, int64_t offset) {
    if (dtype == HLA_F32) return isfinite(((const float *)row)[offset]);
    uint16_t mask = dtype == HLA_BF16 ? 0x7f80u : 0x7c00u;
    return (((const uint16_t *)row)[offset] & mask) != mask;
}

hla_status hla_check_finite(hla_context *context, const char *name, const hla_tensor *tensor, const int64_t *lengths) {
    const int64_t *shape = tensor->shape;
    for (int64_t b = 0; context->check_finite && b < shape[0]; b++) {
        for (int64_t t = 0; t < (lengths ? lengths[b] : shape[1]); t++) {
            for (int64_t h = 0; h < shape[2]; h++) {
                const void *row = hla_tensor_row(tensor, b, t, h);
                for (int64_t x = 0; x < shape[3]; x++) {
                    if (element_is_finite(row, tensor->dtype, x * tensor->stride[3])) continue;
                    return hla_fail(context, HLA_ERROR_NOT_FINITE,
                                    "%s holds NaN or infinity at [%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "]",
                                    name, b, t, h, x);
                }
            }
        }
    }
    return HLA_OK;
}

hla_status hla_check_key_lengths(hla_context *context, const int64_t *key_lengths, int64_t batch, int64_t keys) {
    for (int64_t b = 0; key_lengths && b < batch; b++) {
        if (key_lengths[b] < 0 || key_lengths[b] > keys) {
            return hla_fail(context, HLA_ERROR_ARGUMENT,
                            "key_lengths[%" PRId64 "] is %" PRId64 ", wanted 0 to %" PRId64, b, key_lengths[b], keys);
        }
    }
    return HLA_OK;
}
