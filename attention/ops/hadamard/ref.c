/* The oracle: the definition, naively, in double.
 *
 *     A_ij = prod_p (a_i^p . c_j^p)      n_i = sum_j A_ij v_j      d_i = sum_j A_ij
 */
#include "attention/ops/hadamard/kernel.h"

#include <omp.h>

static double element(const void *row, hla_dtype dtype, int64_t offset) {
    if (dtype == HLA_F32) return (double)((const float *)row)[offset];
    uint16_t bits = ((const uint16_t *)row)[offset];
    return (double)(dtype == HLA_BF16 ? hla_bf16_to_f32(bits) : hla_f16_to_f32(bits));
}

static double score(const hla_hadamard_call *call, int64_t b, int64_t h, int64_t i, int64_t j) {
    double product = 1;
    for (int p = 0; p < call->problem->factors; p++) {
        const hla_tensor *q = &call->q[p], *k = &call->k[p];
        const void *a = hla_tensor_row(q, b, i, h), *c = hla_tensor_row(k, b, j, h);
        double dot = 0;
        for (int64_t r = 0; r < q->shape[3]; r++) {
            dot += element(a, q->dtype, r * q->stride[3]) * element(c, k->dtype, r * k->stride[3]);
        }
        product *= dot;
    }
    return product;
}

/* sums: V doubles of scratch */
static void attend_row(const hla_hadamard_call *call, double *sums, int64_t b, int64_t h, int64_t i) {
    const hla_hadamard_problem *problem = call->problem;
    const hla_tensor *v = call->v;
    double denominator = 0;
    for (int64_t x = 0; x < problem->value_dim; x++)
        sums[x] = 0;
    for (int64_t j = 0; j < hla_hadamard_key_count(call, b); j++) {
        double weight = score(call, b, h, i, j);
        const void *row = hla_tensor_row(v, b, j, h);
        denominator += weight;
        for (int64_t x = 0; x < problem->value_dim; x++)
            sums[x] += weight * element(row, v->dtype, x * v->stride[3]);
    }
    denominator += (double)problem->epsilon;
    for (int64_t x = 0; x < problem->value_dim; x++) {
        double value = (double)problem->scale * sums[x];
        if (problem->normalised) value = denominator != 0 ? sums[x] / denominator : 0;
        sums[x] = value;
    }
    hla_store_row(call->out, b, i, h, sums);
}

static double *carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    return hla_arena_take(arena, problem->value_dim, (size_t)threads * sizeof(double));
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static void run(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_arena arena = {.base = call->workspace};
    double *sums = carve(&arena, problem, call->threads);
    int64_t rows = problem->batch * problem->heads * problem->queries;
#pragma omp parallel for num_threads(hla_team_size(call->threads, rows, 1)) schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        int64_t i = row % problem->queries, head = row / problem->queries;
        double *own = sums + (int64_t)omp_get_thread_num() * problem->value_dim;
        attend_row(call, own, head / problem->heads, head % problem->heads, i);
    }
}

const hla_hadamard_entry hla_hadamard_reference = {{"reference", HLA_ISA_BASELINE}, HLA_FORM_QUADRATIC, measure, run};
