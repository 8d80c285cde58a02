/* The backward pass in state form with what matrix products of 16 bits have to round: products of two features, and the
 * states S and Ghat where they are contracted. Denominators' sums, and features where a state is contracted with them
 * one by one, are not rounded. */
#include "tests/attention/cuda/rounded.h"

#include "attention/core/convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A sequence and one of its key heads. */
typedef struct part {
    int64_t n, b, query_first, queries, key_first, keys, kv, group;
} part;

/* S or Ghat with its ones column z, what is read of it, and what a token makes of it. */
typedef struct sums {
    int64_t rank1, rank2, width;
    double *state, *z;       /* [R1][R2][V], [R1][R2] */
    double *f1, *f2, *row;   /* [R1], [R2], [V]: of a token */
    double *p, *q, *zp, *zq; /* [R1], [R2] twice: state x row, and z, contracted with the other factor */
    double (*total)[2];      /* [output]: squared errors and values */
} sums;

static double rounded(hla_dtype dtype, double value) {
    float exact = (float)value, result;
    uint32_t storage = 0;
    hla_store_floats(&storage, dtype, 1, 1, &exact);
    hla_load_floats(&result, &storage, dtype, 1, 1);
    return (double)result;
}

/* What float16 needs to hold the sum of that many; a power of two, so that only the range matters. */
static double sigma_of(hla_dtype dtype, int64_t count) {
    return dtype == HLA_F16 ? exp2(-ceil(log2((double)(count > 1 ? count : 1)))) : 1;
}

static void load(const sums *s, const guarded *factors, const guarded *rows, int64_t b, int64_t t, int64_t h) {
    for (int64_t r = 0; r < s->rank1; r++)
        s->f1[r] = get(&factors[0].view, b, t, h, r);
    for (int64_t r = 0; r < s->rank2; r++)
        s->f2[r] = get(&factors[1].view, b, t, h, r);
    for (int64_t x = 0; x < s->width; x++)
        s->row[x] = get(&rows->view, b, t, h, x);
}

/* state += (weight f1 x f2) row, z += (f1 x f2) moment */
static void add(const sums *s, hla_dtype dtype, double weight, double moment) {
    for (int64_t a = 0; a < s->rank1; a++) {
        double weighted = rounded(dtype, weight * s->f1[a]);
        for (int64_t b = 0; b < s->rank2; b++) {
            double product = rounded(dtype, weighted * s->f2[b]), *to = s->state + (a * s->rank2 + b) * s->width;
            for (int64_t x = 0; x < s->width; x++)
                to[x] += product * s->row[x];
            s->z[a * s->rank2 + b] += moment * s->f1[a] * s->f2[b];
        }
    }
}

static void round_state(const sums *s, hla_dtype dtype, double sigma) {
    for (int64_t e = 0; e < s->rank1 * s->rank2 * s->width; e++)
        s->state[e] = rounded(dtype, sigma * s->state[e]) / sigma;
}

static void clear(const sums *s) {
    memset(s->state, 0, (size_t)(s->rank1 * s->rank2 * s->width) * sizeof *s->state);
    memset(s->z, 0, (size_t)(s->rank1 * s->rank2) * sizeof *s->z);
}

static void contract(const sums *s) {
    memset(s->p, 0, (size_t)s->rank1 * sizeof *s->p), memset(s->zp, 0, (size_t)s->rank1 * sizeof *s->zp);
    memset(s->q, 0, (size_t)s->rank2 * sizeof *s->q), memset(s->zq, 0, (size_t)s->rank2 * sizeof *s->zq);
    for (int64_t a = 0; a < s->rank1; a++) {
        for (int64_t b = 0; b < s->rank2; b++) {
            const double *from = s->state + (a * s->rank2 + b) * s->width;
            double h = 0, z = s->z[a * s->rank2 + b];
            for (int64_t x = 0; x < s->width; x++)
                h += from[x] * s->row[x];
            s->p[a] += s->f2[b] * h, s->q[b] += s->f1[a] * h;
            s->zp[a] += s->f2[b] * z, s->zq[b] += s->f1[a] * z;
        }
    }
}

/* Compares factor (values + more * others) with row `index` of an output. */
static void compare(const sums *s, const hadamard_data *data, hadamard_output output, int64_t index, int64_t width,
                    double factor, const double *values, double more, const double *others) {
    const double *expected = data->expected[output] + index * width;
    for (int64_t r = 0; r < width; r++) {
        double value = factor * (values[r] + (others ? more * others[r] : 0));
        double error = rounded(data->problem.dtype, value) - expected[r];
        s->total[output][0] += error * error;
        s->total[output][1] += expected[r] * expected[r];
    }
}

static double dot(const double *x, const double *y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

/* A query's gradients from S; weights[2]: w and -w s, by which it enters Ghat. */
static void query(const sums *s, const hadamard_data *data, const part *at, int64_t i, int64_t h, double *weights) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t t = at->query_first + i, index = (at->b * problem->queries + t) * problem->heads + h;
    load(s, data->q, &data->d_out, at->b, t, h);
    contract(s);
    double w = (double)problem->scale, product = 0;
    if (problem->normalised) {
        double denominator = dot(s->f1, s->zp, s->rank1) + (double)problem->epsilon;
        w = denominator != 0 ? 1 / denominator : 0;
        product = w * dot(s->f1, s->p, s->rank1);
    }
    compare(s, data, DQ, index, s->rank1, w, s->p, -product, s->zp);
    compare(s, data, DQ + 1, index, s->rank2, w, s->q, -product, s->zq);
    weights[0] = w, weights[1] = -w * product;
}

static void key(const sums *s, const hadamard_data *data, const part *at, int64_t j, double scale) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t t = at->key_first + j, kv_heads = problem->heads / at->group;
    int64_t index = (at->b * problem->keys + t) * kv_heads + at->kv;
    load(s, data->k, &data->v, at->b, t, at->kv);
    contract(s);
    compare(s, data, DK, index, s->rank1, scale, s->p, 1, s->zp);
    compare(s, data, DK + 1, index, s->rank2, scale, s->q, 1, s->zq);
    memset(s->row, 0, (size_t)s->width * sizeof *s->row);
    for (int64_t f = 0; f < s->rank1 * s->rank2; f++) {
        double product = rounded(problem->dtype, s->f1[f / s->rank2] * s->f2[f % s->rank2]);
        for (int64_t x = 0; x < s->width; x++)
            s->row[x] += product * s->state[f * s->width + x];
    }
    compare(s, data, DV, index, s->width, scale, s->row, 0, NULL);
}

static void pass(const sums *s, const hadamard_data *data, const part *at) {
    const hla_hadamard_problem *problem = &data->problem;
    hla_dtype dtype = problem->dtype;
    int64_t queries = at->queries * at->group;
    double(*weights)[2] = calloc((size_t)(queries > 0 ? queries : 1), sizeof *weights);
    if (!weights) abort();
    double sigma = sigma_of(dtype, problem->keys);
    clear(s);
    for (int64_t j = 0; j < at->keys; j++) {
        load(s, data->k, &data->v, at->b, at->key_first + j, at->kv);
        add(s, dtype, 1, 1);
    }
    round_state(s, dtype, sigma);
    for (int64_t i = 0; i < queries; i++)
        query(s, data, at, i / at->group, at->kv * at->group + i % at->group, weights[i]);
    clear(s);
    for (int64_t i = 0; i < queries; i++) {
        load(s, data->q, &data->d_out, at->b, at->query_first + i / at->group, at->kv * at->group + i % at->group);
        /* normalised: w / sigma and what becomes of it; otherwise the scale comes last */
        add(s, dtype, problem->normalised ? weights[i][0] / sigma : 1, weights[i][1] / sigma);
    }
    round_state(s, dtype, sigma_of(dtype, problem->queries * at->group));
    for (int64_t j = 0; j < at->keys; j++)
        key(s, data, at, j, problem->normalised ? sigma : (double)problem->scale);
    free(weights);
}

static part part_of(const hadamard_data *data, int64_t n, int64_t kv, int64_t group) {
    const hla_hadamard_problem *problem = &data->problem;
    part at = {.n = n, .b = n, .queries = problem->queries, .keys = problem->keys, .kv = kv, .group = group};
    if (data->key_lengths) at.keys = data->key_lengths[n];
    if (problem->sequences == 0) return at;
    at.b = 0;
    at.query_first = data->query_starts[n], at.queries = data->query_starts[n + 1] - at.query_first;
    at.key_first = data->key_starts[n], at.keys = data->key_starts[n + 1] - at.key_first;
    return at;
}

void rounded_gradient_errors(const hadamard_data *data, double errors[HADAMARD_OUTPUTS]) {
    const hla_hadamard_problem *problem = &data->problem;
    memset(errors, 0, HADAMARD_OUTPUTS * sizeof *errors);
    if (problem->factors != 2 || problem->causal || problem->stateful) return;
    int64_t sequences = problem->sequences > 0 ? problem->sequences : problem->batch;
    int64_t kv_heads = problem->kv_heads > 0 ? problem->kv_heads : problem->heads;
    int64_t rank1 = problem->rank[0], rank2 = problem->rank[1], width = problem->value_dim,
            units = sequences * kv_heads;
    double(*totals)[HADAMARD_OUTPUTS][2] = calloc((size_t)units, sizeof *totals);
    if (!totals) abort();
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < units; unit++) {
        double *memory = calloc((size_t)(rank1 * rank2 * (width + 1) + 3 * (rank1 + rank2) + width), sizeof *memory);
        if (!memory) abort();
        sums s = {.rank1 = rank1, .rank2 = rank2, .width = width, .state = memory, .total = totals[unit]};
        s.z = s.state + rank1 * rank2 * width, s.f1 = s.z + rank1 * rank2, s.f2 = s.f1 + rank1, s.row = s.f2 + rank2;
        s.p = s.row + width, s.q = s.p + rank1, s.zp = s.q + rank2, s.zq = s.zp + rank1;
        part at = part_of(data, unit / kv_heads, unit % kv_heads, problem->heads / kv_heads);
        pass(&s, data, &at);
        free(memory);
    }
    for (int o = 0; o < HADAMARD_OUTPUTS; o++) {
        double error = 0, value = 0;
        for (int64_t unit = 0; unit < units; unit++)
            error += totals[unit][o][0], value += totals[unit][o][1];
        errors[o] = value > 0 ? sqrt(error / value) : 0;
    }
    free(totals);
}
