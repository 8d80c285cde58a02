/* tests/attention/feature_map_cases.h - feature maps to test: problems with their inputs, and the truth. For the tests
 * of kernels on the CPU and on a GPU. */
#ifndef HLA_TESTS_FEATURE_MAP_CASES_H
#define HLA_TESTS_FEATURE_MAP_CASES_H

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
    static inline real name##_activation(real u, real largest, real total, const hla_feature_map_problem *p) {                \
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
    static inline double *name(const setting *s) {                                                                            \
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

#endif
