/* The state form with what matrix products of 16 bits have to round. */
#include "tests/attention/cuda/rounded.h"

#include "attention/core/convert.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One query head of a sequence. */
typedef struct part {
    int64_t b, query_first, queries, key_first, keys, h, kv;
} part;

typedef struct sums {
    int64_t rank, width;        /* R, V + 1 */
    float *features;            /* one token's, rounded */
    double *state, *read, *row; /* [R][V+1] exact, and as queries read it; [V+1] */
} sums;

static float rounded(hla_dtype dtype, double value) {
    float exact = (float)value, result;
    uint32_t storage = 0;
    hla_store_floats(&storage, dtype, 1, 1, &exact);
    hla_load_floats(&result, &storage, dtype, 1, 1);
    return result;
}

static void expand(const sums *s, const hadamard_data *data, const guarded *factors, int64_t b, int64_t t, int64_t h) {
    for (int64_t f = 0; f < s->rank; f++) {
        double product = 1;
        int64_t rest = f;
        for (int p = data->problem.factors - 1; p >= 0; rest /= data->problem.rank[p--])
            product *= get(&factors[p].view, b, t, h, rest % data->problem.rank[p]);
        s->features[f] = rounded(data->problem.dtype, product);
    }
}

static void add_key(const sums *s, const hadamard_data *data, const part *at, int64_t j) {
    int64_t t = at->key_first + j;
    expand(s, data, data->k, at->b, t, at->kv);
    for (int64_t x = 0; x < s->width; x++)
        s->row[x] = x < s->width - 1 ? get(&data->v.view, at->b, t, at->kv, x) : 1;
    for (int64_t f = 0; f < s->rank; f++) {
        for (int64_t x = 0; x < s->width; x++)
            s->state[f * s->width + x] += (double)s->features[f] * s->row[x];
    }
}

/* sigma keeps float16 in range; the last column is not rounded. */
static void round_state(const sums *s, const hadamard_data *data, int64_t keys) {
    double sigma = exp2(-ceil(log2((double)(keys > 1 ? keys : 1))));
    for (int64_t e = 0; e < s->rank * s->width; e++) {
        bool last = e % s->width == s->width - 1;
        s->read[e] = last ? s->state[e] : (double)rounded(data->problem.dtype, sigma * s->state[e]) / sigma;
    }
}

/* Adds the query's squared errors and squared values to sums[0] and sums[1]. */
static void read_query(const sums *s, const hadamard_data *data, const part *at, int64_t i, double *total) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t t = at->query_first + i;
    expand(s, data, data->q, at->b, t, at->h);
    memset(s->row, 0, (size_t)s->width * sizeof *s->row);
    for (int64_t f = 0; f < s->rank; f++) {
        for (int64_t x = 0; x < s->width; x++)
            s->row[x] += (double)s->features[f] * s->read[f * s->width + x];
    }
    double denominator = s->row[s->width - 1] + (double)problem->epsilon;
    double factor = problem->normalised ? (denominator != 0 ? 1 / denominator : 0) : (double)problem->scale;
    const double *expected =
        data->expected[OUT] + ((at->b * problem->queries + t) * problem->heads + at->h) * (s->width - 1);
    for (int64_t x = 0; x < s->width - 1; x++) {
        double error = (double)rounded(problem->dtype, factor * s->row[x]) - expected[x];
        total[0] += error * error;
        total[1] += expected[x] * expected[x];
    }
}

static void read_head(const sums *s, const hadamard_data *data, const part *at, double *total) {
    bool causal = data->problem.causal;
    memset(s->state, 0, (size_t)(s->rank * s->width) * sizeof *s->state);
    for (int64_t j = 0; j < (causal ? 0 : at->keys); j++)
        add_key(s, data, at, j);
    round_state(s, data, at->keys);
    for (int64_t i = 0; i < at->queries; i++) {
        if (causal && i < at->keys) {
            add_key(s, data, at, i);
            round_state(s, data, at->keys);
        }
        read_query(s, data, at, i, total);
    }
}

static part part_of(const hadamard_data *data, int64_t n, int64_t h) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t kv_heads = problem->kv_heads > 0 ? problem->kv_heads : problem->heads;
    part at = {.b = n, .queries = problem->queries, .keys = problem->keys, .h = h};
    at.kv = h / (problem->heads / kv_heads);
    if (data->key_lengths) at.keys = data->key_lengths[n];
    if (problem->sequences == 0) return at;
    at.b = 0;
    at.query_first = data->query_starts[n], at.queries = data->query_starts[n + 1] - at.query_first;
    at.key_first = data->key_starts[n], at.keys = data->key_starts[n + 1] - at.key_first;
    return at;
}

double rounded_error(const hadamard_data *data) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t sequences = problem->sequences > 0 ? problem->sequences : problem->batch, heads = problem->heads;
    int64_t rank = 1, width = problem->value_dim + 1;
    for (int p = 0; p < problem->factors; p++)
        rank *= problem->rank[p];
    double errors = 0, values = 0;
    double(*totals)[2] = calloc((size_t)(sequences * heads), sizeof *totals);
    if (!totals) abort();
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < sequences * heads; unit++) {
        sums s = {.rank = rank, .width = width};
        s.features = calloc((size_t)rank, sizeof *s.features);
        s.state = calloc((size_t)(rank * width), sizeof *s.state);
        s.read = calloc((size_t)(rank * width), sizeof *s.read);
        s.row = calloc((size_t)width, sizeof *s.row);
        if (!s.features || !s.state || !s.read || !s.row) abort();
        part at = part_of(data, unit / heads, unit % heads);
        read_head(&s, data, &at, totals[unit]);
        free(s.features), free(s.state), free(s.read), free(s.row);
    }
    for (int64_t unit = 0; unit < sequences * heads; unit++)
        errors += totals[unit][0], values += totals[unit][1];
    free(totals);
    return values > 0 ? sqrt(errors / values) : 0;
}
