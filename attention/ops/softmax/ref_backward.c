/* Gradients of softmax attention in double precision, row by row: the oracle of the backward pass. */
#include "attention/ops/softmax/kernel.h"

#include <math.h>
#include <omp.h>

static void load(float *row, const hla_tensor *tensor, int64_t b, int64_t t, int64_t h) {
    hla_load_floats(row, hla_tensor_row(tensor, b, t, h), tensor->dtype, tensor->shape[3], tensor->stride[3]);
}

static double dot(const float *x, const float *y, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

/* scores [Tk], then g . v_j [Tk]; rows: q and g, then k and v. */
void hla_softmax_reference_query_gradient(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *dq,
                                          double statistics[2], double *scores, float *rows) {
    const int64_t dim = call->problem.dim, value_dim = call->problem.value_dim;
    const int64_t keys = hla_softmax_visible(call, b, i), key_head = h / hla_softmax_shared(&call->problem);
    float *query = rows, *gradient = query + dim, *key = gradient + value_dim, *value = key + dim;
    double *products = scores + call->problem.keys, sum = 0, weighted = 0;
    double largest = hla_softmax_reference_scores(call, b, i, h, scores, query, key);
    load(gradient, call->out, b, i, h);
    for (int64_t x = 0; x < dim; x++)
        dq[x] = 0;
    statistics[0] = INFINITY, statistics[1] = 0; /* no key has a weight */
    if (largest == -INFINITY) return;
    for (int64_t j = 0; j < keys; j++) {
        load(value, call->v, b, j, key_head);
        products[j] = dot(gradient, value, value_dim);
        sum += exp(scores[j] - largest);
        weighted += exp(scores[j] - largest) * products[j];
    }
    statistics[0] = largest + log(sum), statistics[1] = weighted / sum;
    for (int64_t j = 0; j < keys; j++) {
        double ds = exp(scores[j] - largest) / sum * (products[j] - statistics[1]);
        load(key, call->k, b, j, key_head);
        for (int64_t x = 0; x < dim; x++)
            dq[x] += (double)call->problem.scale * ds * (double)key[x];
    }
}

void hla_softmax_reference_key_gradient(const hla_softmax_call *call, int64_t b, int64_t j, int64_t h, double *dk,
                                        double *dv, const double *statistics, float *rows) {
    const hla_softmax_problem *problem = &call->problem;
    const int64_t dim = problem->dim, value_dim = problem->value_dim, shared = hla_softmax_shared(problem);
    float *query = rows, *gradient = query + dim, *key = gradient + value_dim, *value = key + dim;
    for (int64_t x = 0; x < dim; x++)
        dk[x] = 0;
    for (int64_t x = 0; x < value_dim; x++)
        dv[x] = 0;
    if (j >= hla_softmax_keys(call, b)) return;
    load(key, call->k, b, j, h);
    load(value, call->v, b, j, h);
    double bias = call->key_bias ? (double)call->key_bias[j] : 0;
    for (int64_t n = 0; n < problem->queries * shared; n++) {
        int64_t i = n / shared, head = h * shared + n % shared;
        const double *row = statistics + ((b * problem->queries + i) * problem->heads + head) * 2;
        if (j >= hla_softmax_visible(call, b, i) || row[0] == INFINITY) continue;
        load(query, call->q, b, i, head);
        load(gradient, call->out, b, i, head);
        double weight = exp((double)problem->scale * dot(query, key, dim) + bias - row[0]);
        double ds = weight * (dot(gradient, value, value_dim) - row[1]);
        for (int64_t x = 0; x < dim; x++)
            dk[x] += (double)problem->scale * ds * (double)query[x];
        for (int64_t x = 0; x < value_dim; x++)
            dv[x] += weight * (double)gradient[x];
    }
}

/* Scratch of each thread, one after the other; statistics of all queries [B,Tq,H,2]. */
typedef struct scratch {
    double *statistics, *scores, *sums; /* sums: [threads][D + V] */
    float *rows;
} scratch;

static scratch carve(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    const int64_t most_width = (int64_t)1 << 40; /* sums of two stay far from 64 bits */
    const int64_t widths = hla_smaller(problem->dim, most_width) + hla_smaller(problem->value_dim, most_width);
    const size_t n = (size_t)threads, pair = 2 * sizeof(double);
    return (scratch){.statistics = hla_arena_take(arena, problem->batch * problem->heads * problem->queries, pair),
                     .scores = hla_arena_take(arena, problem->keys, n * pair),
                     .sums = hla_arena_take(arena, widths, n * sizeof(double)),
                     .rows = hla_arena_take(arena, widths, n * 2 * sizeof(float))};
}

void hla_softmax_reference_measure_backward(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    carve(arena, problem, threads);
}

hla_status hla_softmax_reference_run_backward(const hla_softmax_call *call) {
    const hla_softmax_problem *problem = &call->problem;
    hla_arena arena = {.base = call->workspace};
    const scratch all = carve(&arena, problem, call->threads);
    const int64_t heads = problem->heads, key_heads = hla_softmax_key_heads(problem);
    const int64_t queries = problem->batch * problem->queries * heads,
                  keys = problem->batch * problem->keys * key_heads;
#pragma omp parallel num_threads(hla_team_size(call->threads, queries, 1))
    {
        const int64_t me = omp_get_thread_num(), widths = problem->dim + problem->value_dim;
        double *sums = all.sums + me * widths, *scores = all.scores + me * 2 * problem->keys;
        float *rows = all.rows + me * 2 * widths;
#pragma omp for schedule(static)
        for (int64_t r = 0; r < queries; r++) {
            int64_t h = r % heads, i = r / heads % problem->queries, b = r / heads / problem->queries;
            hla_softmax_reference_query_gradient(call, b, i, h, sums, all.statistics + r * 2, scores, rows);
            hla_store_row(call->dq, b, i, h, sums);
        }
#pragma omp for schedule(static)
        for (int64_t r = 0; r < keys; r++) {
            int64_t h = r % key_heads, j = r / key_heads % problem->keys, b = r / key_heads / problem->keys;
            hla_softmax_reference_key_gradient(call, b, j, h, sums, sums + problem->dim, all.statistics, rows);
            hla_store_row(call->dk, b, j, h, sums);
            hla_store_row(call->dv, b, j, h, sums + problem->dim);
        }
    }
    return HLA_OK;
}
