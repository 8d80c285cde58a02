/* tests/attention/state_cases.h - streaming states to test: tokens, and the definition as the truth, a state in double
 * that is summed token by token and read by the formula. For the tests on the CPU and on a GPU. */
#ifndef HLA_TESTS_STATE_CASES_H
#define HLA_TESTS_STATE_CASES_H

#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- tokens of one call, in memory between guard pages ---- */

typedef struct tokens {
    int64_t count;
    guarded q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, out;
    hla_tensor q_view[HLA_MAX_FACTORS], k_view[HLA_MAX_FACTORS];
} tokens;

static inline int64_t key_heads(const hla_hadamard_problem *problem) {
    return problem->kv_heads > 0 ? problem->kv_heads : problem->heads;
}

static inline tokens make_tokens(const hla_hadamard_problem *problem, int64_t count, layout arrangement,
                                 random_state *random) {
    tokens made = {.count = count};
    int64_t b = problem->batch, kv = key_heads(problem);
    for (int p = 0; p < problem->factors; p++) {
        int64_t rank = problem->rank[p];
        double high = problem->normalised ? 1 : 1 / sqrt((double)rank), low = problem->normalised ? 0 : -high;
        made.q[p] = guarded_make(problem->dtype, b, count, problem->heads, rank, arrangement);
        made.k[p] = guarded_make(problem->dtype, b, count, kv, rank, arrangement);
        fill_uniform(&made.q[p].view, low, high, random);
        fill_uniform(&made.k[p].view, low, high, random);
        made.q_view[p] = made.q[p].view;
        made.k_view[p] = made.k[p].view;
    }
    made.v = guarded_make(problem->dtype, b, count, kv, problem->value_dim, arrangement);
    made.out = guarded_make(problem->dtype, b, count, problem->heads, problem->value_dim, arrangement);
    fill_uniform(&made.v.view, -1, 1, random);
    return made;
}

static inline void free_tokens(tokens *made) {
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        guarded_free(&made->q[p]);
        guarded_free(&made->k[p]);
    }
    guarded_free(&made->v);
    guarded_free(&made->out);
}

/* ---- the truth ---- */

typedef struct model {
    hla_hadamard_problem problem;
    int64_t rank, width, count; /* R, V + 1, numbers in all */
    double *numbers;            /* [B,Hkv,R,V+1] */
} model;

static inline model make_model(const hla_hadamard_problem *problem) {
    model made = {.problem = *problem, .rank = 1, .width = problem->value_dim + 1};
    for (int p = 0; p < problem->factors; p++)
        made.rank *= problem->rank[p];
    made.count = problem->batch * key_heads(problem) * made.rank * made.width;
    made.numbers = calloc((size_t)made.count, sizeof *made.numbers);
    assert_non_null(made.numbers);
    return made;
}

/* Feature f of a token: factor 1 slowest. */
static inline double feature(const model *m, const hla_tensor *factors, int64_t b, int64_t t, int64_t h, int64_t f) {
    double product = 1;
    for (int p = m->problem.factors - 1; p >= 0; p--) {
        product *= get(&factors[p], b, t, h, f % m->problem.rank[p]);
        f /= m->problem.rank[p];
    }
    return product;
}

static inline double *model_row(const model *m, int64_t b, int64_t kv, int64_t f) {
    return m->numbers + ((b * key_heads(&m->problem) + kv) * m->rank + f) * m->width;
}

static inline void model_append(model *m, const tokens *from, int64_t t) {
    for (int64_t b = 0; b < m->problem.batch; b++) {
        for (int64_t kv = 0; kv < key_heads(&m->problem); kv++) {
            for (int64_t f = 0; f < m->rank; f++) {
                double phi = feature(m, from->k_view, b, t, kv, f), *row = model_row(m, b, kv, f);
                for (int64_t x = 0; x < m->width - 1; x++)
                    row[x] += phi * get(&from->v.view, b, t, kv, x);
                row[m->width - 1] += phi;
            }
        }
    }
}

/* Squares of the error and of the truth. */
typedef struct norms {
    double error, truth;
} norms;

static inline void compare_row(norms *sum, const model *m, const tokens *found, int64_t b, int64_t t, int64_t h,
                               double *row) {
    const hla_hadamard_problem *problem = &m->problem;
    int64_t kv = h / (problem->heads / key_heads(problem)), columns = m->width - 1;
    for (int64_t x = 0; x <= columns; x++)
        row[x] = 0;
    for (int64_t f = 0; f < m->rank; f++) {
        double phi = feature(m, found->q_view, b, t, h, f);
        const double *from = model_row(m, b, kv, f);
        for (int64_t x = 0; x <= columns; x++)
            row[x] += phi * from[x];
    }
    double denominator = row[columns] + (double)problem->epsilon;
    for (int64_t x = 0; x < columns; x++) {
        double truth = problem->normalised ? row[x] / denominator : (double)problem->scale * row[x];
        double error = get(&found->out.view, b, t, h, x) - truth;
        sum->error += error * error;
        sum->truth += truth * truth;
    }
}

static inline void compare_token(norms *sum, const model *m, const tokens *found, int64_t t) {
    double *row = calloc((size_t)m->width, sizeof *row);
    assert_non_null(row);
    for (int64_t b = 0; b < m->problem.batch; b++) {
        for (int64_t h = 0; h < m->problem.heads; h++)
            compare_row(sum, m, found, b, t, h, row);
    }
    free(row);
}

static inline void check_norms(const norms *sum, double bound, const char *what) {
    double error = sum->truth > 0 ? sqrt(sum->error / sum->truth) : sqrt(sum->error);
    if (!(error <= bound)) fail_msg("%s: off by %.3g, wanted at most %.3g", what, error, bound);
}

/* Rounding the result to 16 bits is most of the error there. */
static inline double output_bound(hla_dtype dtype) {
    static const double bounds[] = {[HLA_F32] = 3e-6, [HLA_BF16] = 3e-3, [HLA_F16] = 4e-4};
    return bounds[dtype];
}

/* count numbers of a state against the model's, relative to all of them. */
static inline void check_numbers(const model *m, const float *found, size_t count, double bound, const char *what) {
    assert_int_equal(count, m->count);
    norms sum = {0};
    for (int64_t i = 0; i < m->count; i++) {
        double error = (double)found[i] - m->numbers[i];
        sum.error += error * error;
        sum.truth += m->numbers[i] * m->numbers[i];
    }
    check_norms(&sum, bound, what);
}

static inline void model_decay(model *m, const float *gamma, int64_t gammas) {
    int64_t head = m->rank * m->width;
    for (int64_t i = 0; i < m->count; i++)
        m->numbers[i] *= (double)gamma[i / head % key_heads(&m->problem) % gammas];
}

/* ---- scripts ---- */

typedef enum call { APPEND, QUERY, STEP } call;

/* Calls that mix few and many tokens. */
static const struct {
    call kind;
    int64_t count;
} script[] = {{STEP, 1},   {APPEND, 3},  {QUERY, 2}, {STEP, 5}, {STEP, 130},
              {QUERY, 27}, {APPEND, 31}, {STEP, 1},  {QUERY, 0}};

typedef struct state_case {
    int64_t batch, heads, kv_heads, value_dim;
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
} state_case;

static const state_case cases[] = {
    {1, 1, 0, 1, 1, {1}},        {1, 2, 0, 64, 2, {8, 16}},   {2, 4, 2, 33, 2, {5, 13}},
    {1, 3, 1, 129, 2, {7, 7}},   {2, 2, 1, 40, 3, {6, 2, 9}}, {1, 1, 0, 15, 4, {3, 1, 4, 2}},
    {1, 2, 0, 256, 1, {50}},     {1, 1, 0, 31, 2, {40, 1}},   {3, 1, 0, 17, 4, {1, 1, 1, 5}},
    {1, 1, 0, 128, 2, {32, 36}}, /* more than one range of rows */
};

static inline hla_hadamard_problem problem_of(const state_case *c, hla_dtype dtype, bool normalised) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = c->batch, problem.heads = c->heads, problem.kv_heads = c->kv_heads;
    problem.value_dim = c->value_dim, problem.factors = c->factors;
    memcpy(problem.rank, c->rank, sizeof c->rank);
    problem.dtype = dtype, problem.normalised = normalised;
    if (!normalised) problem.scale = 0.5f;
    return problem;
}

#endif
