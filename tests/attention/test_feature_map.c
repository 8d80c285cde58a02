/* Every feature-map kernel, activation, dtype and memory layout against the double reference, and the reference against
 * the formulas of hla/feature_map.h written out here. */
#include "attention/ops/feature_map/kernel.h"
#include "tests/attention/maps_support.h"

#include <float.h>

typedef struct shape {
    int64_t b, t, h, d, r;
    bool hidden, bias, rope;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, false, false, false},  {1, 1, 2, 3, 5, false, true, false},
    {2, 7, 3, 5, 3, true, true, false},    {1, 33, 2, 64, 16, false, true, true},
    {1, 40, 1, 65, 33, true, true, false}, {1, 9, 1, 128, 128, false, false, false},
    {1, 13, 2, 16, 40, true, false, true}, {1, 10, 1, 256, 20, true, true, false},
    {2, 35, 2, 6, 7, false, true, true},   {1, 34, 1, 62, 18, true, true, true},
};

/* One problem with its inputs. */
typedef struct setting {
    hla_feature_map_problem problem;
    array x, out;
    float *weight, *bias, *hidden_weight, *hidden_bias, *rope;
    hla_feature_map_call call;
} setting;

static void setting_make(setting *s, const shape *sizes, hla_activation activation, hla_dtype dtype,
                         array_layout layout) {
    uint64_t seed = 20261124;
    memset(s, 0, sizeof *s);
    hla_feature_map_problem_init(&s->problem);
    hla_feature_map_problem *p = &s->problem;
    p->batch = sizes->b, p->tokens = sizes->t, p->heads = sizes->h, p->dim = sizes->d, p->rank = sizes->r;
    p->dtype = dtype, p->activation = activation, p->shift = 0.75f, p->is_query = sizes->bias;
    double spread = 1 / sqrt((double)sizes->d);
    s->x = array_random(layout, dtype, sizes->b, sizes->t, sizes->h, sizes->d, 1, &seed);
    s->out = array_poisoned(layout, dtype, sizes->b, sizes->t, sizes->h, sizes->r);
    s->weight = floats_random(sizes->h * sizes->r * sizes->d, spread, &seed);
    if (sizes->bias) s->bias = floats_random(sizes->h * sizes->r, 1, &seed);
    if (sizes->hidden) s->hidden_weight = floats_random(sizes->h * sizes->d * sizes->d, spread, &seed);
    if (sizes->hidden && sizes->bias) s->hidden_bias = floats_random(sizes->h * sizes->d, 1, &seed);
    if (sizes->rope) p->rope = s->rope = floats_random(sizes->t * sizes->d, 1, &seed);
    s->call = (hla_feature_map_call){.problem = *p,
                                     .out = &s->out.view,
                                     .x = &s->x.view,
                                     .weights = {s->weight, s->bias, s->hidden_weight, s->hidden_bias},
                                     .threads = 2};
}

static void setting_free(setting *s) {
    array_free(&s->x), array_free(&s->out);
    free(s->weight), free(s->bias), free(s->hidden_weight), free(s->hidden_bias), free(s->rope);
}

static int64_t output_count(const setting *s) {
    return s->problem.batch * s->problem.tokens * s->problem.heads * s->problem.rank;
}

/* The double reference's whole output. */
static double *oracle(const setting *s) {
    const hla_feature_map_problem *p = &s->problem;
    double *out = calloc((size_t)output_count(s), sizeof *out), *row = out;
    double *x = calloc((size_t)p->dim, sizeof *x), *hidden = calloc((size_t)p->dim, sizeof *hidden);
    float *input = calloc((size_t)p->dim, sizeof *input);
    assert_true(out && x && hidden && input);
    for (int64_t i = 0; i < p->batch * p->tokens * p->heads; i++, row += p->rank) {
        hla_feature_map_reference_row(&s->call, i / p->heads / p->tokens, i / p->heads % p->tokens, i % p->heads, row,
                                      x, hidden, input);
    }
    free(x), free(hidden), free(input);
    return out;
}

/* The formulas as the header has them, in the given type; largest and total belong to the whole row. */
#define DEFINE_NAIVE(name, real, exponential, logarithm)                                                               \
    static real name##_activation(real u, real largest, real total, const hla_feature_map_problem *p) {                \
        switch (p->activation) {                                                                                       \
        case HLA_ACTIVATION_RELU:                                                                                      \
            return (u > 0 ? u : 0) + (real)p->floor;                                                                   \
        case HLA_ACTIVATION_ELU1:                                                                                      \
            return (u > 0 ? u : exponential(u) - 1) + 1;                                                               \
        case HLA_ACTIVATION_SOFTPLUS:                                                                                  \
            return logarithm(1 + exponential(u));                                                                      \
        case HLA_ACTIVATION_EXP:                                                                                       \
            return exponential(u - (p->is_query ? largest : (real)p->shift));                                          \
        case HLA_ACTIVATION_SOFTMAX:                                                                                   \
            return exponential(u) / total;                                                                             \
        case HLA_ACTIVATION_SQUARE:                                                                                    \
            return u * u;                                                                                              \
        default:                                                                                                       \
            return u;                                                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    static double *name(const setting *s) {                                                                            \
        const hla_feature_map_problem *p = &s->problem;                                                                \
        int64_t d = p->dim, r = p->rank;                                                                               \
        double *out = calloc((size_t)output_count(s), sizeof *out), *place = out;                                      \
        real *x = calloc((size_t)d, sizeof *x), *u = calloc((size_t)r, sizeof *u);                                     \
        real *turned = calloc((size_t)d, sizeof *turned);                                                              \
        assert_true(out &&x &&u &&turned);                                                                             \
        for (int64_t row = 0; row < p->batch * p->tokens * p->heads; row++, place += r) {                              \
            int64_t b = row / p->heads / p->tokens, t = row / p->heads % p->tokens, h = row % p->heads;                \
            for (int64_t i = 0; i < d; i++) {                                                                          \
                real own = (real)get(&s->x.view, b, t, h, i);                                                          \
                real other = i + 1 < d || i % 2 == 1 ? (real)get(&s->x.view, b, t, h, i ^ 1) : 0;                      \
                const float *turn = s->rope ? s->rope + t * d + (i & ~INT64_C(1)) : NULL;                              \
                turned[i] = turn ? (real)turn[0] * own + (i % 2 == 1 ? 1 : -1) * (real)turn[1] * other : own;          \
            }                                                                                                          \
            for (int64_t i = 0; i < d; i++) {                                                                          \
                real sum = 0;                                                                                          \
                for (int64_t j = 0; s->hidden_weight && j < d; j++)                                                    \
                    sum += (real)s->hidden_weight[(h * d + i) * d + j] * turned[j];                                    \
                sum += s->hidden_bias ? (real)s->hidden_bias[h * d + i] : 0;                                           \
                x[i] = turned[i] + (sum > 0 ? sum : 0);                                                                \
            }                                                                                                          \
            real largest = -FLT_MAX, total = 0;                                                                        \
            for (int64_t i = 0; i < r; i++) {                                                                          \
                real sum = 0;                                                                                          \
                for (int64_t j = 0; j < d; j++)                                                                        \
                    sum += (real)s->weight[(h * r + i) * d + j] * x[j];                                                \
                u[i] = sum + (s->bias ? (real)s->bias[h * r + i] : 0);                                                 \
                largest = u[i] > largest ? u[i] : largest;                                                             \
                total += exponential(u[i]);                                                                            \
            }                                                                                                          \
            for (int64_t i = 0; i < r; i++)                                                                            \
                place[i] = (double)name##_activation(u[i], largest, total, p);                                         \
        }                                                                                                              \
        free(x), free(u), free(turned);                                                                                \
        return out;                                                                                                    \
    }

DEFINE_NAIVE(naive_double, double, exp, log)
DEFINE_NAIVE(naive_float, float, expf, logf)

static void test_reference_is_the_definition(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int activation = 0; activation < HLA_ACTIVATIONS; activation++) {
            setting s;
            setting_make(&s, &shapes[i], (hla_activation)activation, HLA_F32, LAYOUT_BTHD);
            double *reference = oracle(&s), *definition = naive_double(&s);
            double error = relative_error(reference, definition, output_count(&s));
            if (!(error <= 1e-12)) {
                fail_msg("shape %zu, %s: the reference is off by %g", i,
                         hla_activation_name((hla_activation)activation), error);
            }
            free(reference), free(definition);
            setting_free(&s);
        }
    }
}

/* Runs one kernel and returns its output as doubles, having checked that nothing else was written. */
static double *run(setting *s, const char *kernel, int threads) {
    hla_context *context = context_with(threads, false);
    s->problem.kernel = kernel;
    memset(s->out.block, 0xff, s->out.bytes);
    hla_status status = hla_feature_map_forward(context, &s->problem, &s->out.view, &s->x.view, &s->call.weights);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(context));
    hla_context_free(context);
    double *values = values_of(&s->out.view);
    assert_gaps_untouched(&s->out);
    return values;
}

/* All kernels on one problem. */
static void check_kernels(setting *s, const char *what) {
    double *truth = oracle(s), *naive = naive_float(s);
    for (int64_t n = 0; n < output_count(s); n++)
        naive[n] = rounded(naive[n], s->problem.dtype);
    double naive_error = relative_error(naive, truth, output_count(s));
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *values = run(s, info.name, 1);
        double error = relative_error(values, truth, output_count(s));
        if (!passes_gate(error, naive_error, s->problem.dtype)) {
            fail_msg("%s, %s: error %g, naive %g", info.name, what, error, naive_error);
        }
        free(values);
    }
    free(truth), free(naive);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int activation = 0; activation < HLA_ACTIVATIONS; activation++) {
            for (int variant = 0; variant < 3 * LAYOUTS; variant++) {
                setting s;
                setting_make(&s, &shapes[i], (hla_activation)activation, (hla_dtype)(variant % 3),
                             (array_layout)(variant / 3));
                char what[128];
                snprintf(what, sizeof what, "shape %zu, %s, %s, layout %d", i,
                         hla_activation_name((hla_activation)activation), hla_dtype_name((hla_dtype)(variant % 3)),
                         variant / 3);
                check_kernels(&s, what);
                setting_free(&s);
            }
        }
    }
}

static void check_threads(const shape *sizes, hla_activation activation) {
    setting s;
    setting_make(&s, sizes, activation, HLA_F32, LAYOUT_BTHD);
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *one = run(&s, info.name, 1);
        for (int threads = 2; threads <= 3; threads++) {
            double *more = run(&s, info.name, threads);
            if (memcmp(one, more, (size_t)output_count(&s) * sizeof *one) != 0) {
                fail_msg("%s: %d threads give other bits than one", info.name, threads);
            }
            free(more);
        }
        free(one);
    }
    setting_free(&s);
}

static void test_any_number_of_threads_gives_the_same_bits(void **state) {
    (void)state;
    const shape many = {2, 101, 3, 32, 24, true, true, true}, few = {1, 2, 1, 3, 2, false, true, false};
    check_threads(&many, HLA_ACTIVATION_RELU);
    check_threads(&many, HLA_ACTIVATION_SOFTMAX);
    check_threads(&few, HLA_ACTIVATION_EXP);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_is_the_definition),
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_any_number_of_threads_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
