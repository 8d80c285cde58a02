/* The norms, activations and residual sums against doubles, over odd widths, and the same bits on any number of
 * threads. */
#include "nn_test.h"

#include "video/nn/vector.h"

enum kind { LAYER, LAYER_PLAIN, MODULATE, RMS, RMS_PLAIN, L2, L2_SILU, L2_SILU_PLAIN, RESIDUAL, RESIDUAL_GATE, KINDS };

/* gamma and bias: rows of dim floats; y holds the residual's own x at the start. */
static void run(enum kind kind, hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim,
                const float *gamma, const float *bias) {
    switch (kind) {
    case LAYER:
        hlv_layer_norm(ctx, y, x, rows, dim, gamma, bias, 1e-6f);
        break;
    case LAYER_PLAIN:
        hlv_layer_norm(ctx, y, x, rows, dim, NULL, NULL, 1e-6f);
        break;
    case MODULATE:
        hlv_modulate(ctx, y, x, rows, dim, bias, gamma, 1e-6f);
        break;
    case RMS:
        hlv_rms_norm(ctx, y, x, rows, dim, gamma, 1e-5f);
        break;
    case RMS_PLAIN:
        hlv_rms_norm(ctx, y, x, rows, dim, NULL, 1e-5f);
        break;
    case L2:
        hlv_l2_norm(ctx, y, x, rows, dim, gamma, false);
        break;
    case L2_SILU:
        hlv_l2_norm(ctx, y, x, rows, dim, gamma, true);
        break;
    case L2_SILU_PLAIN:
        hlv_l2_norm(ctx, y, x, rows, dim, NULL, true);
        break;
    case RESIDUAL:
        hlv_residual(ctx, y, x, rows, dim, NULL);
        break;
    case RESIDUAL_GATE:
        hlv_residual(ctx, y, x, rows, dim, gamma);
        break;
    case KINDS:
        break;
    }
}

/* One row. start: y before the call. */
static void reference(enum kind kind, double *y, const float *start, const float *x, int64_t dim, const float *gamma,
                      const float *bias) {
    double sum = 0.0, squares = 0.0, spread = 0.0, n = (double)dim;
    for (int64_t i = 0; i < dim; i++) {
        sum += (double)x[i];
        squares += (double)x[i] * (double)x[i];
    }
    for (int64_t i = 0; i < dim; i++)
        spread += ((double)x[i] - sum / n) * ((double)x[i] - sum / n);
    for (int64_t i = 0; i < dim; i++) {
        double centred = ((double)x[i] - sum / n) / sqrt(spread / n + 1e-6), g = (double)gamma[i], b = (double)bias[i];
        double rms = (double)x[i] / sqrt(squares / n + 1e-5), l2 = (double)x[i] / fmax(sqrt(squares), 1e-12) * sqrt(n);
        const double values[KINDS] = {
            [LAYER] = centred * g + b,
            [LAYER_PLAIN] = centred,
            [MODULATE] = centred * (1.0 + g) + b,
            [RMS] = rms * g,
            [RMS_PLAIN] = rms,
            [L2] = l2 * g,
            [L2_SILU] = l2 * g / (1.0 + exp(-l2 * g)),
            [L2_SILU_PLAIN] = l2 / (1.0 + exp(-l2)),
            [RESIDUAL] = (double)start[i] + (double)x[i],
            [RESIDUAL_GATE] = (double)start[i] + g * (double)x[i],
        };
        y[i] = values[kind];
    }
}

static void check(enum kind kind, int64_t rows, int64_t dim) {
    bool residual = kind == RESIDUAL || kind == RESIDUAL_GATE;
    float *x = test_numbers(11, rows * dim, 3.0f), *gamma = test_numbers(12, dim, 2.0f),
          *bias = test_numbers(13, dim, 1.0f);
    float *start = test_numbers(14, rows * dim, 1.0f), *first = NULL;
    double *want = malloc((size_t)(rows * dim) * sizeof *want);
    assert_non_null(want);
    for (int64_t r = 0; r < rows; r++)
        reference(kind, want + r * dim, start + r * dim, x + r * dim, dim, gamma, bias);
    for (int threads = 1; threads <= 3; threads++) {
        hlv_context *ctx = test_context(threads);
        float *y = residual ? test_numbers(14, rows * dim, 1.0f) : test_poison(rows * dim);
        run(kind, ctx, y, x, rows, dim, gamma, bias);
        char what[64];
        snprintf(what, sizeof what, "kind %d rows %lld dim %lld", (int)kind, (long long)rows, (long long)dim);
        test_close(y, want, rows * dim, 1e-6, what);
        if (!residual) { /* in place */
            float *z = test_numbers(11, rows * dim, 3.0f);
            run(kind, ctx, z, z, rows, dim, gamma, bias);
            assert_memory_equal(y, z, (size_t)(rows * dim) * sizeof *y);
            free(z);
        }
        if (first) assert_memory_equal(first, y, (size_t)(rows * dim) * sizeof *y);
        if (first) free(y);
        if (!first) first = y;
        hlv_context_free(ctx);
    }
    free(first);
    free(want);
    free(start);
    free(bias);
    free(gamma);
    free(x);
}

static void test_rows(void **state) {
    (void)state;
    static const int64_t dims[] = {1, 3, 8, 16, 17, 96, 131, 1536, 5000};
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++) {
            if (dims[d] == 1 && (kind == LAYER || kind == MODULATE || kind == LAYER_PLAIN))
                continue; /* all zeros: 0/0 */
            check((enum kind)kind, 7, dims[d]);
        }
    check(L2_SILU, 1031, 16);
    check(RMS, 0, 16);
}

/* A row of zeros stays zero: the least norm divides, not the norm. */
static void test_zero_row(void **state) {
    (void)state;
    hlv_context *ctx = test_context(1);
    float x[16] = {0}, y[16];
    memset(y, 0xff, sizeof y);
    hlv_l2_norm(ctx, y, x, 1, 16, NULL, true);
    for (int i = 0; i < 16; i++)
        assert_true(y[i] == 0.0f);
    hlv_context_free(ctx);
}

static void test_exp(void **state) {
    (void)state;
    double worst = 0.0;
    for (int i = -86990; i <= 87990; i++) {
        float x = (float)i * 0.001f;
        double want = exp((double)x), error = fabs((double)hlv_exp(x) - want) / want;
        if (!(error <= worst)) worst = error;
    }
    if (!(worst <= 2e-7)) fail_msg("exp: relative error %g", worst);
}

/* SiLU and GELU: absolute error at most 2e-7 of |x|, for they are x times a number in [0, 1]; and exactly 0, x and
 * finite far out. */
static void test_activations(void **state) {
    (void)state;
    enum { HALF = 20000, COUNT = 2 * HALF + 1 };
    hlv_context *ctx = test_context(2);
    float *x = malloc(COUNT * sizeof *x);
    assert_non_null(x);
    for (int kind = HLV_ACT_GELU_TANH; kind <= HLV_ACT_SILU; kind++) {
        for (int i = 0; i < COUNT; i++)
            x[i] = (float)(i - HALF) * 0.001f;
        hlv_act_inplace(ctx, x, COUNT, (hlv_act)kind);
        for (int i = 0; i < COUNT; i++) {
            double u = (double)((float)(i - HALF) * 0.001f), a = sqrt(2.0 / M_PI) * (u + 0.044715 * u * u * u);
            double want = kind == HLV_ACT_SILU ? u / (1.0 + exp(-u)) : u / (1.0 + exp(-2.0 * a));
            if (!(fabs((double)x[i] - want) <= 2e-7 * fabs(u) + 1e-30))
                fail_msg("act %d at %g: %g, want %g", kind, u, (double)x[i], want);
        }
    }
    float far[4] = {-1e30f, 1e30f, -200.0f, 200.0f};
    hlv_act_inplace(ctx, far, 4, HLV_ACT_SILU);
    assert_true(fabsf(far[0]) < 1e-6f && far[1] == 1e30f && fabsf(far[2]) < 1e-30f && far[3] == 200.0f);
    float nan[3] = {NAN, NAN, NAN};
    hlv_act_inplace(ctx, nan, 1, HLV_ACT_SILU);
    hlv_act_inplace(ctx, nan + 1, 1, HLV_ACT_GELU_TANH);
    hlv_l2_norm(ctx, nan + 2, nan + 2, 1, 1, NULL, true);
    assert_true(isnan(nan[0]) && isnan(nan[1]) && isnan(nan[2]));
    float kept[2] = {-3.0f, 5.0f};
    hlv_act_inplace(ctx, kept, 2, HLV_ACT_NONE);
    assert_true(kept[0] == -3.0f && kept[1] == 5.0f);
    free(x);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_zero_row),
        cmocka_unit_test(test_exp),
        cmocka_unit_test(test_activations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
