/* Context, element types, tensor checks and workspace carving. */
#include "attention/core/internal.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void test_names(void **unused) {
    (void)unused;
    assert_string_equal(hla_status_name(HLA_OK), "ok");
    assert_string_equal(hla_status_name(HLA_ERROR_NOT_FINITE), "not finite");
    assert_string_equal(hla_status_name((hla_status)99), "unknown");
    assert_string_equal(hla_status_name((hla_status)-1), "unknown");
    assert_int_equal(hla_dtype_size(HLA_F32), 4);
    assert_int_equal(hla_dtype_size(HLA_BF16), 2);
    assert_int_equal(hla_dtype_size(HLA_F16), 2);
    assert_int_equal(hla_dtype_size((hla_dtype)3), 0);
    int major, minor, patch;
    assert_int_equal(sscanf(hla_version(), "%d.%d.%d", &major, &minor, &patch), 3);
}

static void test_context(void **unused) {
    (void)unused;
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = 3;
    hla_context *first = NULL, *second = NULL;
    assert_int_equal(hla_context_create(&first, &options), HLA_OK);
    assert_int_equal(hla_context_create(&second, NULL), HLA_OK);
    assert_int_equal(hla_context_threads(first), 3);
    assert_true(hla_context_threads(second) >= 1);
    assert_string_equal(hla_context_error(first), "");
    assert_int_equal(hla_fail(first, HLA_ERROR_MEMORY, "%s %d", "answer", 42), HLA_ERROR_MEMORY);
    assert_string_equal(hla_context_error(first), "answer 42");
    assert_string_equal(hla_context_error(second), ""); /* contexts share nothing */
    hla_context_free(second);
    options.threads = -1;
    assert_int_equal(hla_context_create(&second, &options), HLA_ERROR_ARGUMENT);
    assert_null(second);
    options.threads = 0, options.struct_size = 1;
    assert_int_equal(hla_context_create(&second, &options), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_context_create(NULL, NULL), HLA_ERROR_ARGUMENT);
    assert_string_equal(hla_context_error(NULL), "");
    hla_context_free(first);
    hla_context_free(NULL);
}

/* A 16-bit float by its definition: sign, exponent and mantissa bits to a number. */
static double decode(uint16_t bits, int exponent_bits, int mantissa_bits) {
    int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
    int exponent = (bits >> mantissa_bits) & top, mantissa = bits & ((1 << mantissa_bits) - 1);
    double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == top) return mantissa ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0) return sign * ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

static bool same(double a, double b) {
    return isnan(a) ? isnan(b) : a == b && !signbit(a) == !signbit(b);
}

/* Every value decodes as defined and encodes back; halfway to the next rounds to the even one, a hair beside it to the
 * nearer one. */
static void check_format(int exponent_bits, int mantissa_bits, float (*load)(uint16_t), uint16_t (*store)(float)) {
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        uint16_t b = (uint16_t)bits;
        double value = decode(b, exponent_bits, mantissa_bits);
        if (!same((double)load(b), value)) fail_msg("0x%04x loads as %g, not %g", bits, (double)load(b), value);
        if (!same((double)load(store((float)value)), value))
            fail_msg("%g stores as 0x%04x", value, store((float)value));
        double next = decode((uint16_t)(bits + 1), exponent_bits, mantissa_bits);
        if ((bits & 0x7fff) == 0x7fff || !isfinite(value) || !isfinite(next)) continue;
        float middle = (float)((value + next) / 2);
        uint16_t even = b & 1 ? (uint16_t)(b + 1) : b;
        assert_int_equal(store(middle), even);
        assert_int_equal(store(nextafterf(middle, (float)value)), b);
        assert_int_equal(store(nextafterf(middle, (float)next)), b + 1);
    }
}

static float load_bf16(uint16_t bits) {
    return hla_bf16_to_f32(bits);
}

static uint16_t store_bf16(float value) {
    return hla_f32_to_bf16(value);
}

static void test_half_formats(void **unused) {
    (void)unused;
    check_format(8, 7, load_bf16, store_bf16);
    check_format(5, 10, hla_f16_to_f32, hla_f32_to_f16);
    assert_int_equal(hla_f32_to_f16(65519.0f), 0x7bff);
    assert_int_equal(hla_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(hla_f32_to_f16(-1e30f), 0xfc00);
    assert_int_equal(hla_f32_to_bf16(3.4e38f), 0x7f80);
}

static void test_rows(void **unused) {
    (void)unused;
    for (hla_dtype dtype = HLA_F32; dtype <= HLA_F16; dtype++) {
        for (int64_t stride = 1; stride <= 3; stride++) {
            float values[19], back[19];
            uint32_t storage[19 * 3];
            memset(storage, 0xff, sizeof storage);
            for (int i = 0; i < 19; i++)
                values[i] = (float)i - 7.5f, back[i] = NAN;
            hla_store_floats(storage, dtype, 19, stride, values);
            hla_load_floats(back, storage, dtype, 19, stride);
            assert_memory_equal(values, back, sizeof values);
        }
    }
}

static void test_sizes(void **unused) {
    (void)unused;
    size_t total = 3;
    assert_true(hla_size_multiply(&total, 5) && total == 15);
    assert_true(hla_size_add(&total, 2) && total == 17);
    assert_false(hla_size_multiply(&total, -1));
    total = SIZE_MAX / 2;
    assert_false(hla_size_multiply(&total, 3));
    total = SIZE_MAX;
    assert_false(hla_size_add(&total, 1));
}

static void test_views(void **unused) {
    (void)unused;
    float data[2 * 3 * 4 * 5] = {0};
    hla_tensor bthd = hla_tensor_bthd(data, HLA_F32, 2, 3, 4, 5), bhtd = hla_tensor_bhtd(data, HLA_F32, 2, 3, 4, 5);
    assert_ptr_equal(hla_tensor_row(&bthd, 1, 2, 3), data + ((1 * 3 + 2) * 4 + 3) * 5);
    assert_ptr_equal(hla_tensor_row(&bhtd, 1, 2, 3), data + ((1 * 4 + 3) * 3 + 2) * 5);
}

/* Outputs and inputs in one buffer: interleaved slices of a packed [T,3,H,X] array are apart, overlapping ones are not.
 */
static void test_overlap(void **unused) {
    (void)unused;
    enum { T = 6, H = 2, X = 4 };
    float packed[T * 3 * H * X] = {0};
    hla_tensor slices[3];
    for (int i = 0; i < 3; i++) {
        slices[i] = hla_tensor_bthd(packed + i * H * X, HLA_F32, 1, T, H, X);
        slices[i].stride[1] = 3 * H * X;
    }
    assert_int_equal(hla_check_output(NULL, "out", &slices[0], HLA_F32, 1, T, H, X), HLA_OK);
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[0], "v", &slices[1]), HLA_OK);
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[2], "v", &slices[0]), HLA_OK);
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[1], "v", &slices[1]), HLA_ERROR_ARGUMENT);
    slices[1].data = packed + H * X - 1; /* its first element is the other's last of a row */
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[0], "v", &slices[1]), HLA_ERROR_ARGUMENT);
    slices[1].data = packed + 3 * H * X - 1; /* its second element is the other's first of the next row */
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[0], "v", &slices[1]), HLA_ERROR_ARGUMENT);
    slices[1].data = packed + H * X + 3 * H * X * 2; /* from the middle on, still between */
    slices[1].shape[1] = T - 2;
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[0], "v", &slices[1]), HLA_OK);
    slices[2].stride[1]++;
    assert_int_equal(hla_check_disjoint(NULL, "out", &slices[0], "v", &slices[2]), HLA_ERROR_ARGUMENT);
    hla_tensor before = hla_tensor_bthd(packed, HLA_F32, 1, T, 1, X), behind = before;
    behind.data = packed + T * X;
    assert_int_equal(hla_check_disjoint(NULL, "out", &before, "v", &behind), HLA_OK);
    before.shape[3]++;
    assert_int_equal(hla_check_output(NULL, "out", &before, HLA_F32, 1, T, 1, X + 1), HLA_ERROR_ARGUMENT);
    before.stride[1] = -X - 1;
    assert_int_equal(hla_check_output(NULL, "out", &before, HLA_F32, 1, T, 1, X + 1), HLA_OK);
}

/* The same strides in elements are not the same in bytes: rows of two bfloat16 every 16 bytes, of two float32 every 32.
 */
static void test_overlap_of_types(void **unused) {
    (void)unused;
    float buffer[32] = {0};
    hla_tensor narrow = hla_tensor_bthd(buffer, HLA_BF16, 1, 3, 1, 2),
               wide = hla_tensor_bthd(buffer + 3, HLA_F32, 1, 3, 1, 2);
    narrow.stride[1] = wide.stride[1] = 8;
    assert_int_equal(hla_check_disjoint(NULL, "out", &narrow, "bias", &wide), HLA_ERROR_ARGUMENT);
    wide.data = buffer + 9;
    assert_int_equal(hla_check_disjoint(NULL, "out", &narrow, "bias", &wide), HLA_OK);
}

static void test_workspace(void **unused) {
    (void)unused;
    hla_arena measured = {0};
    hla_arena_take(&measured, 3, 4);
    hla_arena_take(&measured, 0, 4);
    hla_arena_take(&measured, 65, 1);
    assert_int_equal(measured.used, 64 + 128);
    char *block = aligned_alloc(64, measured.used);
    hla_arena arena = {.base = block};
    assert_ptr_equal(hla_arena_take(&arena, 3, 4), block);
    assert_ptr_equal(hla_arena_take(&arena, 65, 1), block + 64);
    assert_false(arena.overflow);
    hla_arena_take(&arena, INT64_MAX, 4);
    assert_true(arena.overflow);
    hla_arena large = {0}; /* more than any object has, though 64 bits hold it */
    hla_arena_take(&large, INT64_MAX, 1);
    assert_true(large.overflow);
    hla_arena negative = {0};
    hla_arena_take(&negative, -1, 4);
    assert_true(negative.overflow);
    free(block);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),   cmocka_unit_test(test_context),   cmocka_unit_test(test_half_formats),
        cmocka_unit_test(test_rows),    cmocka_unit_test(test_sizes),     cmocka_unit_test(test_views),
        cmocka_unit_test(test_overlap), cmocka_unit_test(test_workspace), cmocka_unit_test(test_overlap_of_types),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
