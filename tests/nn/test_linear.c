/* hlv_linear against double sums: odd sizes, strides, every cut of the rows, f32 and bf16, and the same bits on any
 * number of threads. */
#include "nn_test.h"

typedef struct linear_case {
    int64_t rows, in, out, gap; /* gap: floats between rows beyond what is needed */
    bool bias;
    hlv_act act;
} linear_case;

static const linear_case cases[] = {
    {1, 256, 1536, 0, true, HLV_ACT_SILU},   {2, 5, 3, 0, false, HLV_ACT_NONE},
    {1, 1, 1, 0, true, HLV_ACT_NONE},        {169, 64, 96, 0, true, HLV_ACT_GELU_TANH},
    {129, 33, 513, 5, true, HLV_ACT_NONE},   {300, 256, 1024, 0, true, HLV_ACT_GELU_TANH},
    {77, 1024, 256, 3, false, HLV_ACT_SILU}, {47, 16, 1100, 1, true, HLV_ACT_NONE},
};

static double act_double(double x, hlv_act act) {
    if (act == HLV_ACT_SILU) return x / (1.0 + exp(-x));
    if (act == HLV_ACT_GELU_TANH) return 0.5 * x * (1.0 + tanh(sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    return x;
}

/* want [rows, out] */
static double *reference(const linear_case *c, const float *x, const float *w, const float *b) {
    double *want = malloc((size_t)(c->rows * c->out) * sizeof *want);
    assert_non_null(want);
    for (int64_t r = 0; r < c->rows; r++)
        for (int64_t o = 0; o < c->out; o++) {
            double sum = c->bias ? (double)b[o] : 0.0;
            for (int64_t i = 0; i < c->in; i++)
                sum += (double)x[r * (c->in + c->gap) + i] * (double)w[o * c->in + i];
            want[r * c->out + o] = act_double(sum, c->act);
        }
    return want;
}

/* y [rows, out] without the gap; what lies in the gap must stay as it was. */
static float *forward(const linear_case *c, hla_dtype dtype, int threads, const float *x, const float *w,
                      const float *b) {
    hlv_context *ctx = test_context(threads);
    hlv_weight weight = test_weight("w", w, 2, (int64_t[]){c->out, c->in});
    hlv_weight bias = test_weight("b", b, 1, (int64_t[]){c->out});
    hlv_linear *linear = NULL;
    assert_int_equal(hlv_linear_create(ctx, dtype, &weight, c->bias ? &bias : NULL, c->act, &linear), HLV_OK);
    assert_int_equal(hlv_linear_in(linear), c->in);
    assert_int_equal(hlv_linear_out(linear), c->out);
    int64_t ldy = c->out + c->gap;
    float *y = test_poison(c->rows * ldy);
    assert_int_equal(hlv_linear_forward(linear, y, ldy, x, c->in + c->gap, c->rows), HLV_OK);
    for (int64_t r = 0; r < c->rows; r++) {
        for (int64_t o = c->out; o < ldy; o++)
            assert_true(isnan(y[r * ldy + o]));
        memmove(y + r * c->out, y + r * ldy, (size_t)c->out * sizeof *y);
    }
    hlv_linear_free(linear);
    hlv_context_free(ctx);
    return y;
}

static void check_case(const linear_case *c, hla_dtype dtype, double tolerance) {
    float *x = test_numbers(1, c->rows * (c->in + c->gap), 1.0f);
    float *w = test_numbers(2, c->in * c->out, 1.0f / sqrtf((float)c->in));
    float *b = test_numbers(3, c->out, 1.0f);
    float *one = forward(c, dtype, 1, x, w, b);
    char what[128];
    snprintf(what, sizeof what, "rows %lld in %lld out %lld", (long long)c->rows, (long long)c->in, (long long)c->out);
    for (int threads = 2; threads <= 3; threads++) {
        float *more = forward(c, dtype, threads, x, w, b);
        assert_memory_equal(one, more, (size_t)(c->rows * c->out) * sizeof *one);
        free(more);
    }
    if (dtype == HLA_BF16) { /* the reference's operands are rounded too */
        test_bf16_all(x, c->rows * (c->in + c->gap));
        test_bf16_all(w, c->in * c->out);
    }
    double *want = reference(c, x, w, b);
    test_close(one, want, c->rows * c->out, tolerance, what);
    free(one);
    free(want);
    free(b);
    free(w);
    free(x);
}

static void test_f32(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_case(&cases[i], HLA_F32, 1e-6);
}

static void test_bf16_operands(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        check_case(&cases[i], HLA_BF16, 1e-6);
}

/* [D,C,1,2,2] counts as [D,4C]. */
static void test_more_axes(void **state) {
    (void)state;
    hlv_context *ctx = test_context(1);
    float *w = test_numbers(4, 6 * 12, 1.0f), y[6];
    float *x = test_numbers(5, 12, 1.0f);
    hlv_weight weight = test_weight("w", w, 5, (int64_t[]){6, 3, 1, 2, 2});
    hlv_linear *linear = NULL;
    assert_int_equal(hlv_linear_create(ctx, HLA_F32, &weight, NULL, HLV_ACT_NONE, &linear), HLV_OK);
    assert_int_equal(hlv_linear_in(linear), 12);
    assert_int_equal(hlv_linear_forward(linear, y, 6, x, 12, 1), HLV_OK);
    double want[6] = {0};
    for (int i = 0; i < 72; i++)
        want[i / 12] += (double)w[i] * (double)x[i % 12];
    test_close(y, want, 6, 1e-6, "five axes");
    hlv_linear_free(linear);
    hlv_context_free(ctx);
    free(x);
    free(w);
}

static void test_bad_arguments(void **state) {
    (void)state;
    hlv_context *ctx = test_context(1);
    float w[6] = {0}, x[3] = {0}, y[2] = {0};
    hlv_weight weight = test_weight("proj.weight", w, 2, (int64_t[]){2, 3});
    hlv_weight bias = test_weight("proj.bias", w, 1, (int64_t[]){3});
    hlv_weight flat = test_weight("flat", w, 1, (int64_t[]){6});
    hlv_linear *linear = NULL;
    assert_int_equal(hlv_linear_create(ctx, HLA_F32, NULL, NULL, HLV_ACT_NONE, &linear), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_linear_create(ctx, HLA_F16, &weight, NULL, HLV_ACT_NONE, &linear), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_linear_create(ctx, HLA_F32, &flat, NULL, HLV_ACT_NONE, &linear), HLV_ERROR_FORMAT);
    assert_int_equal(hlv_linear_create(ctx, HLA_F32, &weight, &bias, HLV_ACT_NONE, &linear), HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), "proj.bias"));
    assert_null(linear);
    assert_int_equal(hlv_linear_create(ctx, HLA_F32, &weight, NULL, HLV_ACT_NONE, &linear), HLV_OK);
    assert_int_equal(hlv_linear_forward(linear, y, 2, x, 2, 1), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_linear_forward(linear, y, 1, x, 3, 1), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_linear_forward(linear, y, 2, x, 3, -1), HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "proj.weight"));
    assert_int_equal(hlv_linear_forward(linear, y, 2, x, 3, 0), HLV_OK);
    hlv_linear_free(linear);
    hlv_linear_free(NULL);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16_operands),
        cmocka_unit_test(test_more_axes),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
