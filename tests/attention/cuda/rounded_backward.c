/* The backward pass in state form with what matrix products of 16 bits have to round: products of two features, and the
 * states S and Ghat where they are contracted; causal, those that each token sees. Denominators' sums, and features
 * where a state is contracted with them one by one, are not rounded. */
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
    const hla_hadamard_problem *problem;
    int64_t rank, width, rank_sum;
    double *state, *z, *read;          /* [R][V], [R], and S as it is read, [R][V] */
    double *features, *row;            /* [sum of ranks], [V]: of a token */
    double *contracted, *z_contracted; /* [sum of ranks]: state x row, and z, contracted with the other factors */
    double *product;                   /* [V]: of all features with the state */
    double (*total)[2];                /* [output]: squared errors and values */
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

static double dot(const double *x, const double *y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += x[i] * y[i];
    return sum;
}

static void load(const sums *s, const guarded *factors, const guarded *rows, int64_t b, int64_t t, int64_t h) {
    double *feature = s->features;
    for (int p = 0; p < s->problem->factors; p++) {
        for (int64_t r = 0; r < s->problem->rank[p]; r++)
            *feature++ = get(&factors[p].view, b, t, h, r);
    }
    for (int64_t x = 0; x < s->width; x++)
        s->row[x] = get(&rows->view, b, t, h, x);
}

/* Where the token's features that make up feature f lie. */
static void entries_of(const sums *s, int64_t f, int64_t entry[HLA_MAX_FACTORS]) {
    int64_t first = s->rank_sum;
    for (int p = s->problem->factors - 1; p >= 0; f /= s->problem->rank[p--]) {
        first -= s->problem->rank[p];
        entry[p] = first + f % s->problem->rank[p];
    }
}

/* state += (weight phi) row, z += moment phi */
static void add(const sums *s, double weight, double moment) {
    hla_dtype dtype = s->problem->dtype;
    for (int64_t f = 0; f < s->rank; f++) {
        int64_t entry[HLA_MAX_FACTORS];
        double product = rounded(dtype, weight), exact = 1;
        entries_of(s, f, entry);
        for (int p = 0; p < s->problem->factors; p++) {
            product = rounded(dtype, product * s->features[entry[p]]);
            exact *= s->features[entry[p]];
        }
        for (int64_t x = 0; x < s->width; x++)
            s->state[f * s->width + x] += product * s->row[x];
        s->z[f] += moment * exact;
    }
}

static void round_state(const sums *s, double sigma) {
    for (int64_t e = 0; e < s->rank * s->width; e++)
        s->read[e] = rounded(s->problem->dtype, sigma * s->state[e]) / sigma;
}

static void clear(const sums *s) {
    memset(s->state, 0, (size_t)(s->rank * s->width) * sizeof *s->state);
    memset(s->read, 0, (size_t)(s->rank * s->width) * sizeof *s->read);
    memset(s->z, 0, (size_t)s->rank * sizeof *s->z);
}

static void contract(const sums *s) {
    memset(s->contracted, 0, (size_t)s->rank_sum * sizeof *s->contracted);
    memset(s->z_contracted, 0, (size_t)s->rank_sum * sizeof *s->z_contracted);
    for (int64_t f = 0; f < s->rank; f++) {
        int64_t entry[HLA_MAX_FACTORS];
        double h = dot(s->read + f * s->width, s->row, s->width);
        entries_of(s, f, entry);
        for (int p = 0; p < s->problem->factors; p++) {
            double others = 1;
            for (int q = 0; q < s->problem->factors; q++)
                others *= q == p ? 1 : s->features[entry[q]];
            s->contracted[entry[p]] += others * h;
            s->z_contracted[entry[p]] += others * s->z[f];
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

static void compare_features(const sums *s, const hadamard_data *data, int first_output, int64_t index, double factor,
                             double more) {
    const double *values = s->contracted, *others = s->z_contracted;
    for (int p = 0; p < s->problem->factors; p++) {
        int64_t rank = s->problem->rank[p];
        compare(s, data, (hadamard_output)(first_output + p), index, rank, factor, values, more, others);
        values += rank, others += rank;
    }
}

/* A query's gradients from S; weights[2]: w and -w s, by which it enters Ghat. */
static void query(const sums *s, const hadamard_data *data, const part *at, int64_t i, int64_t h, double *weights) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t t = at->query_first + i, index = (at->b * problem->queries + t) * problem->heads + h;
    load(s, data->q, &data->d_out, at->b, t, h);
    contract(s);
    double w = (double)problem->scale, product = 0;
    if (problem->normalised) {
        int64_t rank = problem->rank[0]; /* phi is contracted wholly by one factor more */
        double denominator = dot(s->features, s->z_contracted, rank) + (double)problem->epsilon;
        w = denominator != 0 ? 1 / denominator : 0;
        product = w * dot(s->features, s->contracted, rank);
    }
    compare_features(s, data, DQ, index, w, -product);
    weights[0] = w, weights[1] = -w * product;
}

static void key(const sums *s, const hadamard_data *data, const part *at, int64_t j, double scale) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t t = at->key_first + j, kv_heads = problem->heads / at->group;
    int64_t index = (at->b * problem->keys + t) * kv_heads + at->kv;
    load(s, data->k, &data->v, at->b, t, at->kv);
    contract(s);
    compare_features(s, data, DK, index, scale, 1);
    memset(s->product, 0, (size_t)s->width * sizeof *s->product);
    for (int64_t f = 0; f < s->rank; f++) {
        int64_t entry[HLA_MAX_FACTORS];
        double product = 1;
        entries_of(s, f, entry);
        for (int p = 0; p < problem->factors; p++)
            product = rounded(problem->dtype, product * s->features[entry[p]]);
        for (int64_t x = 0; x < s->width; x++)
            s->product[x] += product * s->read[f * s->width + x];
    }
    compare(s, data, DV, index, s->width, scale, s->product, 0, NULL);
}

/* Queries read what keys 0 ... count - 1 add, causal those up to their own number. */
static void queries_pass(const sums *s, const hadamard_data *data, const part *at, double sigma, double (*weights)[2]) {
    int64_t added = 0;
    clear(s);
    for (int64_t i = 0; i < at->queries; i++) {
        int64_t wanted = data->problem.causal && i + 1 < at->keys ? i + 1 : at->keys;
        bool more = added < wanted;
        for (; added < wanted; added++) {
            load(s, data->k, &data->v, at->b, at->key_first + added, at->kv);
            add(s, 1, 1);
        }
        if (more) round_state(s, sigma);
        for (int64_t h = 0; h < at->group; h++)
            query(s, data, at, i, at->kv * at->group + h, weights[i * at->group + h]);
    }
}

/* Keys read what queries add, from the last on; causal those from their own number on. */
static void keys_pass(const sums *s, const hadamard_data *data, const part *at, double sigma, double (*weights)[2]) {
    const hla_hadamard_problem *problem = &data->problem;
    double sigma_of_queries = sigma_of(problem->dtype, problem->queries * at->group);
    int64_t left = at->queries; /* to be added */
    clear(s);
    for (int64_t j = at->keys - 1; j >= 0; j--) {
        int64_t wanted = problem->causal ? j : 0;
        bool more = left > wanted;
        for (; left > wanted; left--) {
            for (int64_t h = 0; h < at->group; h++) {
                const double *weight = weights[(left - 1) * at->group + h];
                load(s, data->q, &data->d_out, at->b, at->query_first + left - 1, at->kv * at->group + h);
                /* normalised: w / sigma and what becomes of it; otherwise the scale comes last */
                add(s, problem->normalised ? weight[0] / sigma : 1, weight[1] / sigma);
            }
        }
        if (more) round_state(s, sigma_of_queries);
        key(s, data, at, j, problem->normalised ? sigma : (double)problem->scale);
    }
}

static void pass(const sums *s, const hadamard_data *data, const part *at) {
    int64_t queries = at->queries * at->group;
    double(*weights)[2] = calloc((size_t)(queries > 0 ? queries : 1), sizeof *weights);
    if (!weights) abort();
    double sigma = sigma_of(data->problem.dtype, data->problem.keys);
    queries_pass(s, data, at, sigma, weights);
    keys_pass(s, data, at, sigma, weights);
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
    if (problem->stateful) return;
    int64_t sequences = problem->sequences > 0 ? problem->sequences : problem->batch;
    int64_t kv_heads = problem->kv_heads > 0 ? problem->kv_heads : problem->heads;
    int64_t rank = 1, rank_sum = 0, width = problem->value_dim, units = sequences * kv_heads;
    for (int p = 0; p < problem->factors; p++)
        rank *= problem->rank[p], rank_sum += problem->rank[p];
    double(*totals)[HADAMARD_OUTPUTS][2] = calloc((size_t)units, sizeof *totals);
    if (!totals) abort();
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < units; unit++) {
        double *memory = calloc((size_t)(rank * (2 * width + 1) + 3 * rank_sum + 2 * width), sizeof *memory);
        if (!memory) abort();
        sums s = {.problem = problem,
                  .rank = rank,
                  .width = width,
                  .rank_sum = rank_sum,
                  .state = memory,
                  .total = totals[unit]};
        s.read = s.state + rank * width, s.z = s.read + rank * width, s.features = s.z + rank;
        s.contracted = s.features + rank_sum, s.z_contracted = s.contracted + rank_sum;
        s.row = s.z_contracted + rank_sum, s.product = s.row + width;
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
