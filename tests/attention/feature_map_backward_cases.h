/* tests/attention/feature_map_backward_cases.h - gradients of feature maps to test: problems with their inputs, and the
 * truth. For the tests of kernels on the CPU and on a GPU. */
#ifndef HLA_TESTS_FEATURE_MAP_BACKWARD_CASES_H
#define HLA_TESTS_FEATURE_MAP_BACKWARD_CASES_H

#include "attention/ops/feature_map/kernel.h"
#include "tests/attention/maps_support.h"

#include <float.h>

typedef struct shape {
    int64_t b, t, h, d, r;
    bool hidden, bias, rope;
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, false, false, false},  {1, 1, 2, 3, 5, false, true, false},
    {2, 7, 3, 5, 3, true, true, false},    {1, 70, 2, 64, 16, false, true, true},
    {1, 40, 1, 65, 33, true, true, false}, {1, 9, 1, 128, 128, false, false, false},
    {3, 33, 2, 16, 40, true, false, true}, {1, 10, 1, 256, 20, true, true, false},
    {2, 37, 1, 18, 6, true, true, true},
};

enum { WEIGHTS = 4, GRADIENTS = WEIGHTS + 1 }; /* weight, bias, hidden_weight, hidden_bias; dx is the fifth */
static const char *const gradient_names[GRADIENTS] = {"dweight", "dbias", "dhidden_weight", "dhidden_bias", "dx"};

/* One problem with its inputs; weights[i].view.data is NULL where there is none. */
typedef struct setting {
    hla_feature_map_problem problem;
    array x, d_out, weights[WEIGHTS], rope;
    array_layout layout;
    hla_feature_map_call call;
} setting;

static void point_at_weights(setting *s) {
    const void *data[WEIGHTS];
    for (int i = 0; i < WEIGHTS; i++)
        data[i] = s->weights[i].view.data;
    s->call.weights = (hla_feature_map_weights){data[0], data[1], data[2], data[3]};
}

static void setting_make(setting *s, const shape *n, hla_activation activation, hla_dtype dtype, array_layout layout,
                         uint64_t seed) {
    memset(s, 0, sizeof *s);
    hla_feature_map_problem_init(&s->problem);
    hla_feature_map_problem *p = &s->problem;
    p->batch = n->b, p->tokens = n->t, p->heads = n->h, p->dim = n->d, p->rank = n->r;
    p->dtype = dtype, p->activation = activation, p->shift = 0.75f, p->is_query = n->bias;
    s->layout = layout;
    double spread = 1 / sqrt((double)n->d);
    s->x = array_random(layout, dtype, n->b, n->t, n->h, n->d, 1, &seed);
    s->d_out = array_random(layout, dtype, n->b, n->t, n->h, n->r, 1, &seed);
    s->weights[0] = array_random(LAYOUT_BTHD, HLA_F32, 1, n->h, n->r, n->d, spread, &seed);
    if (n->bias) s->weights[1] = array_random(LAYOUT_BTHD, HLA_F32, 1, 1, n->h, n->r, 1, &seed);
    if (n->hidden) s->weights[2] = array_random(LAYOUT_BTHD, HLA_F32, 1, n->h, n->d, n->d, spread, &seed);
    if (n->hidden && n->bias) s->weights[3] = array_random(LAYOUT_BTHD, HLA_F32, 1, 1, n->h, n->d, 1, &seed);
    if (n->rope) s->rope = array_random(LAYOUT_BTHD, HLA_F32, 1, 1, n->t, n->d, 1, &seed);
    p->rope = s->rope.view.data;
    s->call = (hla_feature_map_call){.problem = *p, .out = &s->d_out.view, .x = &s->x.view, .threads = 1};
    point_at_weights(s);
}

static void setting_free(setting *s) {
    array_free(&s->x), array_free(&s->d_out), array_free(&s->rope);
    for (int i = 0; i < WEIGHTS; i++)
        array_free(&s->weights[i]);
}

/* All gradients in double, [H,R,D], [H,R], [H,D,D], [H,D], [B,T,H,D]. */
typedef struct gradients {
    double *values[GRADIENTS];
    int64_t count[GRADIENTS];
} gradients;

static gradients gradients_make(const setting *s) {
    const hla_feature_map_problem *p = &s->problem;
    gradients g = {.count = {p->heads * p->rank * p->dim, p->heads * p->rank, p->heads * p->dim * p->dim,
                             p->heads * p->dim, p->batch * p->tokens * p->heads * p->dim}};
    for (int i = 0; i < GRADIENTS; i++) {
        g.values[i] = calloc((size_t)g.count[i], sizeof(double));
        assert_non_null(g.values[i]);
    }
    return g;
}

static void gradients_free(gradients *g) {
    for (int i = 0; i < GRADIENTS; i++)
        free(g->values[i]);
}

/* Whether gradient i exists: the hidden ones only with a hidden layer. */
static bool exists(const setting *s, int i) {
    return s->call.weights.hidden_weight || (i != 2 && i != 3);
}

static gradients oracle(const setting *s) {
    const hla_feature_map_problem *p = &s->problem;
    int64_t d = p->dim, r = p->rank;
    gradients g = gradients_make(s);
    double *scratch = calloc((size_t)(2 * r + 2 * d), sizeof *scratch), *dx = g.values[4];
    float *input = calloc((size_t)(r + d), sizeof *input);
    assert_true(scratch && input);
    for (int64_t i = 0; i < p->batch * p->tokens * p->heads; i++, dx += d) {
        int64_t h = i % p->heads, t = i / p->heads % p->tokens, b = i / p->heads / p->tokens;
        hla_feature_map_sums sums = {g.values[0] + h * r * d, g.values[1] + h * r, g.values[2] + h * d * d,
                                     g.values[3] + h * d};
        hla_feature_map_reference_backward_row(&s->call, b, t, h, dx, &sums, scratch, input);
    }
    free(scratch), free(input);
    return g;
}

/* ---- the same in float, step by step as the header has it ---- */

/* e becomes act'(u) e. */
static void naive_derivative(float *e, const float *u, const hla_feature_map_problem *p) {
    float total = 0, sum = 0, largest = -FLT_MAX;
    int64_t place = 0;
    for (int64_t r = 0; r < p->rank; r++) {
        if (u[r] > largest) largest = u[r], place = r;
    }
    for (int64_t r = 0; r < p->rank; r++) {
        total += expf(u[r]);
        sum += (p->activation == HLA_ACTIVATION_EXP ? expf(u[r] - largest) : expf(u[r])) * e[r];
    }
    for (int64_t r = 0; r < p->rank; r++) {
        switch (p->activation) {
        case HLA_ACTIVATION_RELU:
            e[r] = u[r] > 0 ? e[r] : 0;
            break;
        case HLA_ACTIVATION_ELU1:
            e[r] *= u[r] > 0 ? 1 : expf(u[r]);
            break;
        case HLA_ACTIVATION_SOFTPLUS:
            e[r] *= expf(u[r]) / (1 + expf(u[r]));
            break;
        case HLA_ACTIVATION_EXP:
            e[r] = expf(u[r] - (p->is_query ? largest : p->shift)) * e[r];
            if (p->is_query && r == place) e[r] -= sum;
            break;
        case HLA_ACTIVATION_SOFTMAX:
            e[r] = expf(u[r]) / total * (e[r] - sum / total);
            break;
        case HLA_ACTIVATION_SQUARE:
            e[r] *= 2 * u[r];
            break;
        default:
            break;
        }
    }
}

static float dot(const float *a, const float *b, int64_t count, int64_t step) {
    float sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += a[i * step] * b[i];
    return sum;
}

/* RoPE of a row, or its transpose. */
static void turn(float *x, const hla_feature_map_problem *p, int64_t t, float sign) {
    for (int64_t i = 0; p->rope && i < p->dim; i += 2) {
        float c = p->rope[t * p->dim + i], s = sign * p->rope[t * p->dim + i + 1], a = x[i], b = x[i + 1];
        x[i] = c * a - s * b;
        x[i + 1] = s * a + c * b;
    }
}

/* One row; sums [R,D], [R], [D,D], [D] of its head and dx [D] in float. */
static void naive_row(const setting *s, int64_t b, int64_t t, int64_t h, float *const sums[WEIGHTS], float *dx,
                      float *scratch) {
    const hla_feature_map_problem *p = &s->problem;
    const hla_feature_map_weights *w = &s->call.weights;
    int64_t d = p->dim, r = p->rank;
    const float *weight = w->weight + h * r * d,
                *hidden_weight = w->hidden_weight ? w->hidden_weight + h * d * d : NULL;
    float *x = scratch, *z = x + d, *hidden = z + d, *dh = hidden + d, *u = dh + d, *e = u + r;
    for (int64_t i = 0; i < d; i++)
        x[i] = get(&s->x.view, b, t, h, i);
    turn(x, p, t, 1);
    for (int64_t i = 0; i < d; i++) {
        z[i] =
            hidden_weight ? dot(hidden_weight + i * d, x, d, 1) + (w->hidden_bias ? w->hidden_bias[h * d + i] : 0) : 0;
        hidden[i] = x[i] + (z[i] > 0 ? z[i] : 0);
    }
    for (int64_t i = 0; i < r; i++) {
        u[i] = dot(weight + i * d, hidden, d, 1) + (w->bias ? w->bias[h * r + i] : 0);
        e[i] = get(&s->d_out.view, b, t, h, i);
    }
    naive_derivative(e, u, p);
    for (int64_t i = 0; i < r; i++) {
        sums[1][i] += e[i];
        for (int64_t j = 0; j < d; j++)
            sums[0][i * d + j] += e[i] * hidden[j];
    }
    for (int64_t i = 0; i < d; i++)
        dh[i] = dot(weight + i, e, r, d);
    for (int64_t i = 0; i < d; i++) {
        z[i] = z[i] > 0 ? dh[i] : 0;
        sums[3][i] += z[i];
        for (int64_t j = 0; j < d; j++)
            sums[2][i * d + j] += z[i] * x[j];
    }
    for (int64_t i = 0; i < d; i++)
        dx[i] = dh[i] + (hidden_weight ? dot(hidden_weight + i, z, d, d) : 0);
    turn(dx, p, t, -1);
}

/* dx rounded to the problem's dtype; the other gradients are float32. */
static gradients naive_float(const setting *s) {
    const hla_feature_map_problem *p = &s->problem;
    gradients g = gradients_make(s);
    float *values[GRADIENTS], *scratch = calloc((size_t)(4 * p->dim + 2 * p->rank), sizeof *scratch);
    assert_non_null(scratch);
    for (int i = 0; i < GRADIENTS; i++) {
        values[i] = calloc((size_t)g.count[i], sizeof(float));
        assert_non_null(values[i]);
    }
    for (int64_t i = 0; i < p->batch * p->tokens * p->heads; i++) {
        int64_t h = i % p->heads, t = i / p->heads % p->tokens, b = i / p->heads / p->tokens;
        float *sums[WEIGHTS];
        for (int j = 0; j < WEIGHTS; j++)
            sums[j] = values[j] + h * (g.count[j] / p->heads);
        naive_row(s, b, t, h, sums, values[4] + i * p->dim, scratch);
    }
    for (int i = 0; i < GRADIENTS; i++) {
        for (int64_t j = 0; j < g.count[i]; j++)
            g.values[i][j] = i == 4 ? rounded((double)values[i][j], p->dtype) : (double)values[i][j];
        free(values[i]);
    }
    free(scratch);
    return g;
}

#endif
