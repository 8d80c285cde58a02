/* The examples the public headers open with, compiled as they stand (tests/attention/CMakeLists.txt extracts them) and
 * run. What they leave to the reader to declare is declared here. */
#include "hla/hla.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

enum { B = 1, T = 6, H = 2, D = 4, V = 5, RANK = 16 };

static hla_context *make_context(void) {
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, NULL), HLA_OK);
    return context;
}

static void fill(float *values, int count, float value) {
    for (int i = 0; i < count; i++)
        values[i] = value;
}

static void expect_all(const float *values, int count, float wanted) {
    for (int i = 0; i < count; i++) {
        if (!(fabsf(values[i] - wanted) <= 1e-5f)) fail_msg("element %d is %g", i, (double)values[i]);
    }
}

static int run_core(const float *data) {
#include "example_core.inc"
    assert_int_equal(q.stride[1], H * D);
    return 0;
}

static void test_core_example(void **unused) {
    (void)unused;
    float data[B * T * H * D] = {0};
    assert_int_equal(run_core(data), 0);
}

/* Where no GPU is the calls fail one by one, and nothing else happens. */
static void test_device_example(void **unused) {
    (void)unused;
    enum { size = 256 };
    char data[size] = {0};
    void *stream = NULL, *memory = NULL, *start = NULL, *end = NULL;
    double seconds = 0;
    hla_context *ctx = make_context();
#include "example_device.inc"
    assert_true(seconds >= 0);
    hla_context_free(ctx);
}

static void test_hadamard_example(void **unused) {
    (void)unused;
    float features[T * H * RANK], values[T * H * V], result[T * H * V];
    fill(features, T * H * RANK, 0.5f);
    fill(values, T * H * V, 3);
    fill(result, T * H * V, NAN);
    hla_tensor rows = hla_tensor_bthd(features, HLA_F32, 1, T, H, RANK);
    hla_tensor q_features[2] = {rows, rows}, k_features[2] = {rows, rows};
    hla_tensor v = hla_tensor_bthd(values, HLA_F32, 1, T, H, V), out = hla_tensor_bthd(result, HLA_F32, 1, T, H, V);
    hla_context *ctx = make_context();
#include "example_hadamard.inc"
    free(workspace);
    assert_string_equal(hla_context_error(ctx), "");
    hla_context_free(ctx);
    expect_all(result, T * H * V, 3); /* an average of equal values */
}

static void test_state_example(void **unused) {
    (void)unused;
    float features[H * RANK], values[H * V], result[H * V];
    fill(features, H * RANK, 0.5f);
    fill(values, H * V, 3);
    fill(result, H * V, NAN);
    hla_tensor rows = hla_tensor_bthd(features, HLA_F32, 1, 1, H, RANK);
    hla_tensor q_features[2] = {rows, rows}, k_features[2] = {rows, rows};
    hla_tensor v = hla_tensor_bthd(values, HLA_F32, 1, 1, H, V), out = hla_tensor_bthd(result, HLA_F32, 1, 1, H, V);
    hla_context *ctx = make_context();
#include "example_state.inc"
    assert_string_equal(hla_context_error(ctx), "");
    hla_context_free(ctx);
    expect_all(result, H * V, 3);
}

static void test_softmax_example(void **unused) {
    (void)unused;
    float rows[T * H * D], result[T * H * D];
    fill(rows, T * H * D, 3);
    fill(result, T * H * D, NAN);
    hla_tensor q = hla_tensor_bthd(rows, HLA_F32, 1, T, H, D), k = q, v = q;
    hla_tensor out = hla_tensor_bthd(result, HLA_F32, 1, T, H, D);
    hla_context *ctx = make_context();
#include "example_softmax.inc"
    free(workspace);
    assert_string_equal(hla_context_error(ctx), "");
    hla_context_free(ctx);
    expect_all(result, T * H * D, 3);
}

static void test_feature_map_example(void **unused) {
    (void)unused;
    float rows[T * H * D], w[H * RANK * D], b[H * RANK], result[T * H * RANK];
    fill(rows, T * H * D, 1);
    fill(w, H * RANK * D, 0.25f);
    fill(b, H * RANK, 1);
    fill(result, T * H * RANK, NAN);
    hla_tensor x = hla_tensor_bthd(rows, HLA_F32, 1, T, H, D), out = hla_tensor_bthd(result, HLA_F32, 1, T, H, RANK);
    hla_context *ctx = make_context();
#include "example_feature_map.inc"
    assert_string_equal(hla_context_error(ctx), "");
    hla_context_free(ctx);
    expect_all(result, T * H * RANK, 2 + problem.floor); /* relu(4 x 0.25 + 1) and its floor */
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_core_example),        cmocka_unit_test(test_hadamard_example),
        cmocka_unit_test(test_state_example),       cmocka_unit_test(test_softmax_example),
        cmocka_unit_test(test_feature_map_example), cmocka_unit_test(test_device_example),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
