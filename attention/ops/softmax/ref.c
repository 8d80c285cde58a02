/* Softmax attention in double precision, one row at a time: the oracle the kernels are compared with. */
#include "attention/ops/softmax/kernel.h"

#include <math.h>
#include <omp.h>

double hla_softmax_reference_scores(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *scores,
                                    float *query, float *key) {
    const hla_softmax_problem *problem = &call->problem;
    const hla_tensor *q = call->q, *k = call->k;
    int64_t keys = hla_softmax_visible(call, b, i), key_head = h / hla_softmax_shared(problem);
    hla_load_floats(query, hla_tensor_row(q, b, i, h), q->dtype, problem->dim, q->stride[3]);
    double largest = -INFINITY;
    for (int64_t j = 0; j < keys; j++) {
        hla_load_floats(key, hla_tensor_row(k, b, j, key_head), k->dtype, problem->dim, k->stride[3]);
        double dot = 0;
        for (int64_t x = 0; x < problem->dim; x++)
            dot += (double)query[x] * (double)key[x];
        scores[j] = (double)problem->scale * dot + (call->key_bias ? (double)call->key_bias[j] : 0);
        if (scores[j] > largest) largest = scores[j];
    }
    return largest;
}

void hla_softmax_reference_row(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *row,
                               double *scores, float *query, float *values) {
    const hla_tensor *v = call->v;
    int64_t keys = hla_softmax_visible(call, b, i), value_dim = call->problem.value_dim;
    int64_t key_head = h / hla_softmax_shared(&call->problem);
    double largest = hla_softmax_reference_scores(call, b, i, h, scores, query, values);
    for (int64_t x = 0; x < value_dim; x++)
        row[x] = 0;
    if (largest == -INFINITY) largest = 0; /* every key masked: all weights become exp(-infinity) = 0 */
    double sum = 0;
    for (int64_t j = 0; j < keys; j++) {
        double weight = exp(scores[j] - largest);
        sum += weight;
        hla_load_floats(values, hla_tensor_row(v, b, j, key_head), v->dtype, value_dim, v->stride[3]);
        for (int64_t x = 0; x < value_dim; x++)
            row[x] += weight * (double)values[x];
    }
    for (int64_t x = 0; x < value_dim && sum != 0; x++)
        row[x] /= sum;
}

/* Scratch of each thread, one after the other. */
typedef struct scratch {
    double *row, *scores;  /* [threads][V], [threads][Tk] */
    float *query, *values; /* [threads][D], [threads][max(D,V)] */
} scratch;

static int64_t longest_vector(const hla_softmax_problem *problem) {
    return problem->dim > problem->value_dim ? problem->dim : problem->value_dim;
}

static scratch carve(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    size_t n = (size_t)threads;
    return (scratch){.row = hla_arena_take(arena, problem->value_dim, n * sizeof(double)),
                     .scores = hla_arena_take(arena, problem->keys, n * sizeof(double)),
                     .query = hla_arena_take(arena, problem->dim, n * sizeof(float)),
                     .values = hla_arena_take(arena, longest_vector(problem), n * sizeof(float))};
}

static void measure(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static hla_status run(const hla_softmax_call *call) {
    const hla_softmax_problem *problem = &call->problem;
    hla_arena arena = {.base = call->workspace};
    scratch all = carve(&arena, problem, call->threads);
    int64_t rows = problem->batch * problem->queries * problem->heads;
#pragma omp parallel for num_threads(hla_team_size(call->threads, rows, 1)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        int64_t h = r % problem->heads, i = r / problem->heads % problem->queries;
        int64_t b = r / problem->heads / problem->queries, me = omp_get_thread_num();
        double *row = all.row + me * problem->value_dim;
        hla_softmax_reference_row(call, b, i, h, row, all.scores + me * problem->keys, all.query + me * problem->dim,
                                  all.values + me * longest_vector(problem));
        hla_store_row(call->out, b, i, h, row);
    }
    return HLA_OK;
}

const hla_softmax_entry hla_softmax_reference = {
    .kernel = {.name = "reference", .isa = HLA_ISA_BASELINE},
    .measure = measure,
    .run = run,
    .measure_backward = hla_softmax_reference_measure_backward,
    .run_backward = hla_softmax_reference_run_backward,
};
