/* tests/attention/softmax_gradient_cases.h - gradients of softmax attention to test: problems with their inputs, the
 * double reference and the formulas in float. For the tests of kernels on the CPU and on a GPU. */
#ifndef HLA_TESTS_SOFTMAX_GRADIENT_CASES_H
#define HLA_TESTS_SOFTMAX_GRADIENT_CASES_H

#include "attention/ops/softmax/kernel.h"
#include "tests/attention/maps_support.h"

typedef struct shape {
    int64_t b, h, tq, tk, d, v;
    double score_scale; /* standard deviation of q and k */
    bool bias, lengths, causal;
    int64_t kv_heads; /* 0: h */
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, false, false, false, 0},      {1, 1, 1, 2, 3, 5, 1, false, false, false, 0},
    {2, 3, 7, 5, 3, 1, 1, true, true, false, 0},        {1, 2, 13, 0, 4, 3, 1, false, false, false, 0},
    {1, 4, 97, 20, 64, 64, 1, false, false, false, 0},  {1, 1, 98, 300, 64, 64, 1, false, false, false, 0},
    {1, 1, 65, 257, 65, 33, 1, true, false, false, 0},  {1, 1, 30, 140, 128, 128, 1, false, false, false, 0},
    {1, 1, 17, 70, 256, 256, 1, false, false, true, 0}, {3, 1, 1, 70, 16, 16, 1, false, true, false, 0},
    {1, 1, 195, 520, 8, 17, 3, false, false, false, 0}, {1, 1, 301, 301, 33, 20, 1, false, false, true, 0},
    {2, 2, 300, 70, 16, 9, 1, true, true, true, 0},     {1, 3, 40, 530, 8, 8, 2, false, false, true, 1},
    {2, 6, 35, 67, 16, 12, 1, true, true, false, 2},    {2, 4, 100, 100, 24, 40, 1, false, true, true, 2},
    {2, 2, 9, 0, 3, 4, 1, false, false, true, 1},
};

enum { GRADIENTS = 3 };
static const char *const gradient_names[GRADIENTS] = {"dq", "dk", "dv"};

/* One problem with its inputs. */
typedef struct setting {
    hla_softmax_problem problem;
    array q, k, v, d_out;
    float *bias;
    int64_t lengths[4];
    array_layout layout;
    hla_softmax_call call;
} setting;

static inline void setting_make(setting *s, const shape *n, hla_dtype dtype, array_layout layout) {
    uint64_t seed = 20261124;
    memset(s, 0, sizeof *s);
    const int64_t key_heads = n->kv_heads ? n->kv_heads : n->h;
    hla_softmax_problem *p = &s->problem;
    hla_softmax_problem_init(p);
    p->batch = n->b, p->heads = n->h, p->kv_heads = n->kv_heads, p->queries = n->tq, p->keys = n->tk;
    p->dim = n->d, p->value_dim = n->v, p->dtype = dtype, p->causal = n->causal;
    s->layout = layout;
    s->q = array_random(layout, dtype, n->b, n->tq, n->h, n->d, n->score_scale, &seed);
    s->k = array_random(layout, dtype, n->b, n->tk, key_heads, n->d, n->score_scale, &seed);
    s->v = array_random(layout, dtype, n->b, n->tk, key_heads, n->v, 1, &seed);
    s->d_out = array_random(layout, dtype, n->b, n->tq, n->h, n->v, 1, &seed);
    s->bias = n->bias ? floats_random(n->tk, 1, &seed) : NULL;
    if (n->bias) s->bias[n->tk / 2] = -INFINITY;
    for (int64_t b = 0; b < n->b; b++)
        s->lengths[b] = b == 0 ? n->tk * 2 / 3 : b == 1 ? 0 : n->tk;
    for (int64_t b = 0; n->lengths && b < n->b; b++) { /* keys beyond must not be read */
        for (int64_t t = s->lengths[b]; t < n->tk; t++) {
            for (int64_t h = 0; h < key_heads; h++)
                set(&s->k.view, b, t, h, 0, NAN), set(&s->v.view, b, t, h, 0, NAN);
        }
    }
    s->call = (hla_softmax_call){.problem = *p,
                                 .out = &s->d_out.view,
                                 .q = &s->q.view,
                                 .k = &s->k.view,
                                 .v = &s->v.view,
                                 .key_lengths = n->lengths ? s->lengths : NULL,
                                 .key_bias = s->bias,
                                 .threads = 2};
    s->call.problem.scale = (float)(1 / sqrt((double)n->d));
}

static inline void setting_free(setting *s) {
    array_free(&s->q), array_free(&s->k), array_free(&s->v), array_free(&s->d_out);
    free(s->bias);
}

/* dq [B,Tq,H,D], dk [B,Tk,Hkv,D], dv [B,Tk,Hkv,V] */
typedef struct gradients {
    double *values[GRADIENTS];
    int64_t count[GRADIENTS];
} gradients;

static inline gradients gradients_make(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    int64_t key_rows = p->batch * p->keys * hla_softmax_key_heads(p);
    gradients g = {.count = {p->batch * p->queries * p->heads * p->dim, key_rows * p->dim, key_rows * p->value_dim}};
    for (int i = 0; i < GRADIENTS; i++) {
        g.values[i] = calloc((size_t)g.count[i] + 1, sizeof(double));
        assert_non_null(g.values[i]);
    }
    return g;
}

static inline void gradients_free(gradients *g) {
    for (int i = 0; i < GRADIENTS; i++)
        free(g->values[i]);
}

static inline gradients oracle(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    gradients g = gradients_make(s);
    int64_t key_heads = hla_softmax_key_heads(p), queries = p->batch * p->queries * p->heads;
    double *statistics = calloc((size_t)queries * 2, sizeof(double));
    double *scores = calloc((size_t)p->keys * 2 + 1, sizeof(double));
    float *rows = calloc((size_t)(p->dim + p->value_dim) * 2, sizeof(float));
    assert_true(statistics && scores && rows);
    for (int64_t r = 0; r < queries; r++) {
        hla_softmax_reference_query_gradient(&s->call, r / p->heads / p->queries, r / p->heads % p->queries,
                                             r % p->heads, g.values[0] + r * p->dim, statistics + 2 * r, scores, rows);
    }
    for (int64_t r = 0; r < p->batch * p->keys * key_heads; r++) {
        hla_softmax_reference_key_gradient(&s->call, r / key_heads / p->keys, r / key_heads % p->keys, r % key_heads,
                                           g.values[1] + r * p->dim, g.values[2] + r * p->value_dim, statistics, rows);
    }
    free(statistics), free(scores), free(rows);
    return g;
}

/* ---- the formulas of hla/softmax.h in float, with the whole matrix of weights ---- */

static inline float dot(const hla_tensor *a, int64_t b, int64_t i, int64_t h, const hla_tensor *c, int64_t j,
                        int64_t g) {
    float sum = 0;
    for (int64_t x = 0; x < a->shape[3]; x++)
        sum += get(a, b, i, h, x) * get(c, b, j, g, x);
    return sum;
}

/* to[x] += factor row[x], in float. */
static inline void add_row(float *to, float factor, const hla_tensor *from, int64_t b, int64_t t, int64_t h) {
    for (int64_t x = 0; x < from->shape[3]; x++)
        to[x] += factor * get(from, b, t, h, x);
}

static inline void naive_row(const setting *s, int64_t b, int64_t i, int64_t h, float *const sums[GRADIENTS]) {
    const hla_softmax_problem *p = &s->problem;
    const float scale = s->call.problem.scale;
    int64_t heads = hla_softmax_key_heads(p), g = h * heads / p->heads;
    int64_t keys = s->call.key_lengths ? s->lengths[b] : p->keys;
    keys = p->causal && keys > i + 1 ? i + 1 : keys;
    float weight[1024], product[1024], total = 0, delta = 0;
    assert_true(keys <= 1024);
    for (int64_t j = 0; j < keys; j++) {
        weight[j] = expf(scale * dot(s->call.q, b, i, h, s->call.k, j, g) + (s->bias ? s->bias[j] : 0));
        total += weight[j];
    }
    for (int64_t j = 0; j < keys; j++) {
        weight[j] = total > 0 ? weight[j] / total : 0;
        product[j] = dot(s->call.out, b, i, h, s->call.v, j, g);
        delta += weight[j] * product[j];
    }
    for (int64_t j = 0; j < keys; j++) {
        float ds = weight[j] * (product[j] - delta);
        int64_t key = (b * p->keys + j) * heads + g;
        add_row(sums[0] + ((b * p->queries + i) * p->heads + h) * p->dim, scale * ds, s->call.k, b, j, g);
        add_row(sums[1] + key * p->dim, scale * ds, s->call.q, b, i, h);
        add_row(sums[2] + key * p->value_dim, weight[j], s->call.out, b, i, h);
    }
}

static inline gradients naive_float(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    gradients g = gradients_make(s);
    float *sums[GRADIENTS];
    for (int i = 0; i < GRADIENTS; i++) {
        sums[i] = calloc((size_t)g.count[i] + 1, sizeof(float));
        assert_non_null(sums[i]);
    }
    for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++)
        naive_row(s, r / p->heads / p->queries, r / p->heads % p->queries, r % p->heads, sums);
    for (int i = 0; i < GRADIENTS; i++) {
        for (int64_t n = 0; n < g.count[i]; n++)
            g.values[i][n] = rounded((double)sums[i][n], p->dtype);
        free(sums[i]);
    }
    return g;
}

#endif
