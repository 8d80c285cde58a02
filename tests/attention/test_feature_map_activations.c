/* Each activation alone, against the double functions of libm, from tiny to extreme arguments; and their properties. */
#include "hla/feature_map.h"
#include "tests/attention/maps_support.h"

#include <float.h>

enum { ACTIVATIONS = HLA_ACTIVATION_IDENTITY + 1 };

#define FOR_EACH_KERNEL(info)                                                                                          \
    hla_feature_map_kernel_info info;                                                                                  \
    for (int number = 0; hla_feature_map_kernel(NULL, number, &info); number++)                                        \
        if (info.runs_here)

/* out [count][width] = act(in) with the unit matrix as W, so that u is in exactly. */
static void activate(const char *kernel, hla_activation activation, bool is_query, float shift, const float *in,
                     float *out, int64_t count, int64_t width) {
    hla_context *context = context_with(1, false);
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = problem.heads = 1, problem.tokens = count, problem.dim = problem.rank = width;
    problem.activation = activation, problem.kernel = kernel, problem.is_query = is_query, problem.shift = shift;
    float *unit = calloc((size_t)(width * width), sizeof *unit);
    assert_non_null(unit);
    for (int64_t i = 0; i < width; i++)
        unit[i * width + i] = 1;
    hla_feature_map_weights weights = {.weight = unit};
    hla_tensor x = hla_tensor_bthd(in, HLA_F32, 1, count, 1, width);
    hla_tensor y = hla_tensor_bthd(out, HLA_F32, 1, count, 1, width);
    memset(out, 0xff, (size_t)(count * width) * sizeof *out);
    assert_int_equal(hla_feature_map_forward(context, &problem, &y, &x, &weights), HLA_OK);
    free(unit);
    hla_context_free(context);
}

/* 0, +-10^-30 ... +-10^4, in steps that miss no range reduction, and the edges of exp. */
static int64_t arguments(float *u) {
    int64_t count = 0;
    const float edges[] = {0,      -0.0f, 87,   88,   88.72f, 88.73f, 89,    -86,    -86.5f,  -87,
                           -87.5f, -88,   -103, -104, 1e4f,   -1e4f,  3e38f, -3e38f, FLT_MIN, 1e-40f};
    for (size_t i = 0; i < sizeof edges / sizeof edges[0]; i++)
        u[count++] = edges[i];
    for (int i = -2000; i <= 2000; i++)
        u[count++] = (float)i * 0.0511f;
    for (int i = 0; i < 252; i++) {
        u[count++] = 1e-30f * powf(1.37f, (float)i);
        u[count] = -u[count - 1];
        count++;
    }
    return count;
}

enum { MOST_ARGUMENTS = 5000 };

static double relu(double u) {
    return fmax(u, 0) + (double)1e-3f;
}
static double elu1(double u) {
    return u > 0 ? u + 1 : exp(u);
}
static double softplus(double u) {
    return u > 0 ? u + log1p(exp(-u)) : log1p(exp(u));
}
static double square(double u) {
    return u * u;
}
static double identity(double u) {
    return u;
}

static void test_activations_against_libm(void **state) {
    (void)state;
    static const struct {
        hla_activation activation;
        double (*truth)(double);
        double roundings; /* of 2^-24, allowed relative to the result */
    } cases[] = {{HLA_ACTIVATION_RELU, relu, 1},         {HLA_ACTIVATION_ELU1, elu1, 3},
                 {HLA_ACTIVATION_SOFTPLUS, softplus, 6}, {HLA_ACTIVATION_EXP, exp, 3},
                 {HLA_ACTIVATION_SQUARE, square, 1},     {HLA_ACTIVATION_IDENTITY, identity, 0}};
    static float u[MOST_ARGUMENTS], y[MOST_ARGUMENTS];
    int64_t count = arguments(u);
    assert_true(count <= MOST_ARGUMENTS);
    FOR_EACH_KERNEL(info) {
        for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
            activate(info.name, cases[c].activation, false, 0, u, y, count, 1);
            for (int64_t i = 0; i < count; i++) {
                double wanted = cases[c].truth((double)u[i]), found = (double)y[i];
                if (wanted > (double)FLT_MAX) {
                    assert_true(isinf(y[i]) && y[i] > 0);
                    continue;
                }
                /* what would be smaller than 2^-125 may become zero */
                double bound = cases[c].roundings * 0x1p-24 * fabs(wanted) + 0x1p-125;
                if (!(fabs(found - wanted) <= bound)) {
                    fail_msg("%s: %s(%.9g) is %.9g, wanted %.9g", info.name, hla_activation_name(cases[c].activation),
                             (double)u[i], found, wanted);
                }
            }
        }
    }
}

/* NaN comes out as NaN, from each activation. */
static void test_nan_shows(void **state) {
    (void)state;
    float u[3] = {1, NAN, 2}, y[3];
    FOR_EACH_KERNEL(info) {
        for (int activation = 0; activation < ACTIVATIONS; activation++) {
            activate(info.name, (hla_activation)activation, false, 0, u, y, 3, 1);
            assert_true(isfinite(y[0]) && isnan(y[1]) && isfinite(y[2]));
        }
    }
}

/* Rows of very different features. */
static void test_exp_of_queries_and_softmax_at_extremes(void **state) {
    (void)state;
    enum { ROWS = 4, WIDTH = 19 };
    float u[ROWS * WIDTH], y[ROWS * WIDTH];
    for (int i = 0; i < ROWS * WIDTH; i++)
        u[i] = (float)((i * 7) % WIDTH) * 0.25f;
    for (int i = 0; i < WIDTH; i++)
        u[i] = i == 18 ? 1e4f : -1e4f, u[WIDTH + i] = -1e4f, u[2 * WIDTH + i] += 3e4f;
    for (int row = 0; row < ROWS; row++) {
        double largest = -INFINITY, sum = 0;
        for (int i = 0; i < WIDTH; i++)
            largest = fmax(largest, (double)u[row * WIDTH + i]);
        for (int i = 0; i < WIDTH; i++)
            sum += exp((double)u[row * WIDTH + i] - largest);
        FOR_EACH_KERNEL(info) {
            for (int normalise = 0; normalise < 2; normalise++) {
                activate(info.name, normalise ? HLA_ACTIVATION_SOFTMAX : HLA_ACTIVATION_EXP, true, 0, u, y, ROWS,
                         WIDTH);
                for (int i = 0; i < WIDTH; i++) {
                    double wanted = exp((double)u[row * WIDTH + i] - largest) / (normalise ? sum : 1);
                    double found = (double)y[row * WIDTH + i];
                    if (!(fabs(found - wanted) <= 4e-7 * wanted + 1e-37)) {
                        fail_msg("%s: row %d, feature %d is %.9g, wanted %.9g", info.name, row, i, found, wanted);
                    }
                }
            }
        }
    }
}

static void test_softmax_rows_sum_to_one(void **state) {
    (void)state;
    uint64_t seed = 5;
    for (int64_t width = 1; width <= 70; width += 3) {
        float *u = floats_random(9 * width, 4, &seed), *y = floats_random(9 * width, 1, &seed);
        FOR_EACH_KERNEL(info) {
            activate(info.name, HLA_ACTIVATION_SOFTMAX, false, 0, u, y, 9, width);
            for (int64_t row = 0; row < 9; row++) {
                double sum = 0;
                for (int64_t i = 0; i < width; i++)
                    sum += (double)y[row * width + i];
                if (!(fabs(sum - 1) <= 5e-7)) fail_msg("%s: width %d sums to %.9g", info.name, (int)width, sum);
            }
        }
        free(u), free(y);
    }
}

/* Keys are divided by one constant, queries each by its own largest feature. */
static void test_shift_of_exp(void **state) {
    (void)state;
    const float u[4] = {0.5f, -1, 2, 1.5f};
    float y[4];
    FOR_EACH_KERNEL(info) {
        activate(info.name, HLA_ACTIVATION_EXP, false, 1.25f, u, y, 2, 2);
        for (int i = 0; i < 4; i++)
            assert_true(fabs((double)y[i] - exp((double)u[i] - 1.25)) <= 1e-6);
        activate(info.name, HLA_ACTIVATION_EXP, true, 1.25f, u, y, 2, 2);
        for (int i = 0; i < 4; i++)
            assert_true(fabs((double)y[i] - exp((double)u[i] - (i < 2 ? 0.5 : 2))) <= 1e-6);
    }
}

static void test_names(void **state) {
    (void)state;
    static const char *const names[] = {"relu", "elu1", "softplus", "exp", "softmax", "square", "identity"};
    for (int i = 0; i < ACTIVATIONS; i++) {
        hla_activation found = (hla_activation)-1;
        assert_true(hla_activation_from_name(names[i], &found));
        assert_int_equal(found, i);
        assert_string_equal(hla_activation_name((hla_activation)i), names[i]);
    }
    hla_activation kept = HLA_ACTIVATION_SQUARE;
    assert_false(hla_activation_from_name("gelu", &kept));
    assert_false(hla_activation_from_name("", &kept));
    assert_false(hla_activation_from_name(NULL, &kept));
    assert_false(hla_activation_from_name("relu", NULL));
    assert_int_equal(kept, HLA_ACTIVATION_SQUARE);
    assert_string_equal(hla_activation_name((hla_activation)7), "unknown");
    assert_string_equal(hla_activation_name((hla_activation)-1), "unknown");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_activations_against_libm),
        cmocka_unit_test(test_nan_shows),
        cmocka_unit_test(test_exp_of_queries_and_softmax_at_extremes),
        cmocka_unit_test(test_softmax_rows_sum_to_one),
        cmocka_unit_test(test_shift_of_exp),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
