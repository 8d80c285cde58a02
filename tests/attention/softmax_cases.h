/* tests/attention/softmax_cases.h - softmax attention to test: problems with their inputs, the double reference and the
 * naive formula. For the tests of kernels on the CPU and on a GPU. */
#ifndef HLA_TESTS_SOFTMAX_CASES_H
#define HLA_TESTS_SOFTMAX_CASES_H

#include "attention/ops/softmax/kernel.h"
#include "tests/attention/maps_support.h"

typedef struct shape {
    int64_t b, h, tq, tk, d, v;
    double score_scale; /* standard deviation of q and k */
    int bias, lengths;
    bool causal;
    int64_t kv_heads; /* 0: h */
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, 0, false, 0},
    {1, 1, 1, 2, 3, 5, 1, 0, 0, false, 0},
    {2, 3, 7, 5, 3, 1, 1, 1, 1, false, 0},
    {1, 2, 13, 0, 4, 3, 1, 0, 0, false, 0},
    {1, 4, 97, 20, 64, 64, 1, 0, 0, false, 0},
    {2, 2, 33, 8, 64, 64, 1, 1, 1, false, 0},
    {1, 1, 98, 300, 64, 64, 1, 0, 0, false, 0},
    {1, 1, 65, 257, 65, 33, 1, 1, 0, false, 0},
    {1, 1, 30, 512, 128, 128, 1, 0, 0, false, 0},
    {1, 1, 17, 270, 256, 256, 1, 0, 0, false, 0},
    {3, 1, 1, 70, 16, 16, 1, 0, 1, false, 0},
    {2, 2, 10, 31, 1, 48, 2, 1, 1, false, 0},
    {1, 1, 195, 520, 8, 17, 4, 0, 0, false, 0},
    /* causal, with more queries than keys and the other way round; grouped heads */
    {1, 1, 1, 1, 4, 4, 1, 0, 0, true, 0},
    {1, 2, 301, 301, 33, 20, 1, 0, 0, true, 0},
    {2, 2, 300, 70, 16, 9, 1, 1, 1, true, 0},
    {1, 3, 40, 530, 8, 8, 2, 0, 0, true, 1},
    {2, 6, 35, 67, 16, 12, 1, 1, 1, false, 2},
    {1, 4, 100, 100, 24, 40, 1, 0, 0, true, 4},
    {2, 2, 9, 0, 3, 4, 1, 0, 0, true, 1},
};

/* One problem with its inputs. */
typedef struct setting {
    hla_softmax_problem problem;
    array q, k, v, out;
    float *bias;
    int64_t lengths[4];
    hla_softmax_call call;
} setting;

static inline void setting_make(setting *s, const shape *sizes, hla_dtype dtype, array_layout layout) {
    uint64_t seed = 20261124;
    memset(s, 0, sizeof *s);
    const int64_t key_heads = sizes->kv_heads ? sizes->kv_heads : sizes->h;
    hla_softmax_problem_init(&s->problem);
    s->problem.causal = sizes->causal, s->problem.kv_heads = sizes->kv_heads;
    s->problem.batch = sizes->b, s->problem.heads = sizes->h, s->problem.queries = sizes->tq;
    s->problem.keys = sizes->tk, s->problem.dim = sizes->d, s->problem.value_dim = sizes->v, s->problem.dtype = dtype;
    s->q = array_random(layout, dtype, sizes->b, sizes->tq, sizes->h, sizes->d, sizes->score_scale, &seed);
    s->k = array_random(layout, dtype, sizes->b, sizes->tk, key_heads, sizes->d, sizes->score_scale, &seed);
    s->v = array_random(layout, dtype, sizes->b, sizes->tk, key_heads, sizes->v, 1, &seed);
    s->out = array_poisoned(layout, dtype, sizes->b, sizes->tq, sizes->h, sizes->v);
    s->bias = sizes->bias ? floats_random(sizes->tk, 2, &seed) : NULL;
    for (int64_t b = 0; b < sizes->b; b++)
        s->lengths[b] = b == 0 ? sizes->tk * 2 / 3 : b == 1 ? 0 : sizes->tk;
    s->call = (hla_softmax_call){.problem = s->problem,
                                 .out = &s->out.view,
                                 .q = &s->q.view,
                                 .k = &s->k.view,
                                 .v = &s->v.view,
                                 .key_lengths = sizes->lengths ? s->lengths : NULL,
                                 .key_bias = s->bias,
                                 .threads = 2};
    s->call.problem.scale = (float)(1 / sqrt((double)sizes->d));
}

static inline void setting_free(setting *s) {
    array_free(&s->q), array_free(&s->k), array_free(&s->v), array_free(&s->out);
    free(s->bias);
}

static inline int64_t output_count(const setting *s) {
    return s->problem.batch * s->problem.queries * s->problem.heads * s->problem.value_dim;
}

/* The double reference's whole output. */
static inline double *oracle(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    double *out = calloc((size_t)output_count(s), sizeof *out), *scores = calloc((size_t)p->keys + 1, sizeof *scores);
    float *query = calloc((size_t)p->dim, sizeof *query),
          *values = calloc((size_t)(p->dim + p->value_dim), sizeof *values);
    assert_true(out && scores && query && values);
    double *row = out;
    for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++, row += p->value_dim) {
        hla_softmax_reference_row(&s->call, r / p->heads / p->queries, r / p->heads % p->queries, r % p->heads, row,
                                  scores, query, values);
    }
    free(scores), free(query), free(values);
    return out;
}

/* Equation 1 as it stands, without maximum or tiles: out = (sum_j exp(s_j) v_j) / (sum_j exp(s_j)), in the given type.
 * Everything after the inputs is computed in that type; key lengths drop keys. */
#define DEFINE_NAIVE(name, real, exponential)                                                                          \
    static inline double *name(const setting *s) {                                                                     \
        const hla_softmax_problem *p = &s->problem;                                                                    \
        double *out = calloc((size_t)output_count(s), sizeof *out), *place = out;                                      \
        assert_non_null(out);                                                                                          \
        for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++, place += p->value_dim) {                        \
            int64_t b = r / p->heads / p->queries, i = r / p->heads % p->queries, h = r % p->heads;                    \
            int64_t keys = s->call.key_lengths ? s->call.key_lengths[b] : p->keys;                                     \
            int64_t kh = p->kv_heads ? h * p->kv_heads / p->heads : h;                                                 \
            keys = p->causal && keys > i + 1 ? i + 1 : keys;                                                           \
            real *weights = calloc((size_t)keys + 1, sizeof *weights), total = 0;                                      \
            assert_non_null(weights);                                                                                  \
            for (int64_t j = 0; j < keys; j++) {                                                                       \
                real dot = 0;                                                                                          \
                for (int64_t x = 0; x < p->dim; x++)                                                                   \
                    dot += (real)get(&s->q.view, b, i, h, x) * (real)get(&s->k.view, b, j, kh, x);                     \
                weights[j] = exponential(dot * (real)s->call.problem.scale + (s->bias ? (real)s->bias[j] : 0));        \
                total += weights[j];                                                                                   \
            }                                                                                                          \
            for (int64_t x = 0; x < p->value_dim && keys > 0; x++) {                                                   \
                real sum = 0;                                                                                          \
                for (int64_t j = 0; j < keys; j++)                                                                     \
                    sum += weights[j] * (real)get(&s->v.view, b, j, kh, x);                                            \
                place[x] = (double)(sum / total);                                                                      \
            }                                                                                                          \
            free(weights);                                                                                             \
        }                                                                                                              \
        return out;                                                                                                    \
    }

DEFINE_NAIVE(naive_double, double, exp)
DEFINE_NAIVE(naive_float, float, expf)

#endif
