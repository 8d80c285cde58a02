/* tests/nn/nn_test.h - what the tests of the layers share: repeatable numbers, tensors by hand, comparisons in which
 * NaN fails. */
#ifndef HLV_TESTS_NN_TEST_H
#define HLV_TESTS_NN_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "video/nn/nn.h"

/* Uniform in [-1, 1): element i of stream `seed`. */
static inline float test_number(uint64_t seed, int64_t i) {
    uint64_t z = seed * 0x9e3779b97f4a7c15u + (uint64_t)i * 0xd1342543de82ef95u + 1;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)(int32_t)(z >> 32) / 2147483648.0f;
}

static inline float *test_numbers(uint64_t seed, int64_t count, float scale) {
    float *x = malloc((size_t)count * sizeof *x);
    assert_non_null(x);
    for (int64_t i = 0; i < count; i++)
        x[i] = scale * test_number(seed, i);
    return x;
}

/* Floats that are all NaN, so that what was not written shows. */
static inline float *test_poison(int64_t count) {
    float *x = malloc((size_t)count * sizeof *x);
    assert_non_null(x);
    memset(x, 0xff, (size_t)count * sizeof *x);
    return x;
}

static inline hlv_weight test_weight(const char *name, const float *data, int ndim, const int64_t *shape) {
    hlv_weight w = {.name = name, .file = "test", .dtype = HLA_F32, .ndim = ndim, .count = 1, .data = data};
    for (int i = 0; i < ndim; i++) {
        w.shape[i] = shape[i];
        w.count *= shape[i];
    }
    return w;
}

/* The float nearest to x with 8 significant bits, ties to even: what a bf16 operand is. */
static inline float test_bf16(float x) {
    int exponent = 0;
    double mantissa = frexp((double)x, &exponent);
    return (float)ldexp(nearbyint(ldexp(mantissa, 8)), exponent - 8);
}

static inline void test_bf16_all(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        x[i] = test_bf16(x[i]);
}

/* ||got - want|| / ||want||, NaN if anything is. */
static inline double test_relative_error(const float *got, const double *want, int64_t count) {
    double error = 0.0, size = 0.0;
    for (int64_t i = 0; i < count; i++) {
        error += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        size += want[i] * want[i];
    }
    return sqrt(error / (size > 0.0 ? size : 1.0));
}

static inline void test_close(const float *got, const double *want, int64_t count, double tolerance, const char *what) {
    double error = test_relative_error(got, want, count);
    if (!(error <= tolerance)) fail_msg("%s: relative error %g, at most %g wanted", what, error, tolerance);
}

static inline hlv_context *test_context(int threads) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    assert_int_equal(hlv_context_set_threads(ctx, threads), HLV_OK);
    return ctx;
}

#endif
