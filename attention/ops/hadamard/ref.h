/* attention/ops/hadamard/ref.h - what the forward and the backward reference share: the definition in double. */
#ifndef HLA_OPS_HADAMARD_REF_H
#define HLA_OPS_HADAMARD_REF_H

#include "attention/ops/hadamard/kernel.h"

#include <omp.h>

/* Scratch of one thread. Features only where states are at hand: R may be beyond all memory. */
typedef struct scratch {
    double *row;                     /* V + 1 numbers */
    double *features, *feature_sums; /* R numbers each */
    double *da[HLA_MAX_FACTORS];     /* R_p numbers each */
} scratch;

static inline scratch carve(hla_arena *arena, const hla_hadamard_problem *problem, bool features) {
    scratch own;
    int64_t rank = features ? hla_hadamard_state_rank(problem) : 0;
    own.row = hla_arena_take(arena, problem->value_dim + 1, sizeof(double));
    own.features = hla_arena_take(arena, rank, sizeof(double));
    own.feature_sums = hla_arena_take(arena, rank, sizeof(double));
    for (int p = 0; p < problem->factors; p++)
        own.da[p] = hla_arena_take(arena, problem->rank[p], sizeof(double));
    return own;
}

/* Bytes of one thread's scratch. */
static inline int64_t scratch_bytes(hla_arena *arena, const hla_hadamard_problem *problem, bool features) {
    hla_arena one = {0};
    carve(&one, problem, features);
    arena->overflow |= one.overflow;
    return (int64_t)one.used;
}

/* base: [threads] scratches */
static inline scratch scratch_of_thread(const hla_hadamard_problem *problem, bool features, char *base) {
    hla_arena one = {0};
    carve(&one, problem, features);
    hla_arena mine = {.base = base + (size_t)omp_get_thread_num() * one.used};
    return carve(&mine, problem, features);
}

static inline double element(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t x) {
    const char *place = hla_tensor_row(tensor, b, t, h);
    float value;
    hla_load_floats(&value, place + x * tensor->stride[3] * hla_element_size(tensor->dtype), tensor->dtype, 1, 1);
    return (double)value;
}

/* The dot product of factor p of query i and key j, tokens of the tensors. */
static inline double dot(const hla_hadamard_call *call, int p, int64_t b, int64_t i, int64_t h, int64_t j, int64_t kv) {
    double sum = 0;
    for (int64_t r = 0; r < call->problem->rank[p]; r++)
        sum += element(&call->in.q_features[p], b, i, h, r) * element(&call->in.k_features[p], b, j, kv, r);
    return sum;
}

/* prod over all factors but `except` (-1: none) */
static inline double score(const hla_hadamard_call *call, int except, int64_t b, int64_t i, int64_t h, int64_t j,
                           int64_t kv) {
    double product = 1;
    for (int p = 0; p < call->problem->factors; p++)
        product *= p == except ? 1 : dot(call, p, b, i, h, j, kv);
    return product;
}

/* features[0 ... R) of a token, factor 1 slowest */
static inline void expand(double *features, const hla_tensor *factors, int count, int64_t b, int64_t t, int64_t h) {
    int64_t length = 1;
    features[0] = 1;
    for (int p = 0; p < count; p++) {
        int64_t rank = factors[p].shape[3];
        for (int64_t f = length - 1; f >= 0; f--) {
            double x = features[f];
            for (int64_t r = 0; r < rank; r++)
                features[f * rank + r] = x * element(&factors[p], b, t, h, r);
        }
        length *= rank;
    }
}

/* to_p[r] += the contraction of dphi[0 ... R) with the features of every factor but p */
static inline void contract(double *const *to, const double *dphi, const hla_tensor *factors,
                            const hla_hadamard_problem *problem, int64_t b, int64_t t, int64_t h) {
    int64_t rank = hla_hadamard_state_rank(problem);
    for (int64_t f = 0; f < rank; f++) {
        int64_t index[HLA_MAX_FACTORS] = {0}, rest = f;
        for (int p = problem->factors - 1; p >= 0; p--) {
            index[p] = rest % problem->rank[p];
            rest /= problem->rank[p];
        }
        for (int p = 0; p < problem->factors; p++) {
            double product = dphi[f];
            for (int other = 0; other < problem->factors; other++)
                product *= other == p ? 1 : element(&factors[other], b, t, h, index[other]);
            to[p][index[p]] += product;
        }
    }
}

/* Where the state of sequence n, key head kv begins in [N,Hkv,R,V+1]. */
static inline int64_t state_offset(const hla_hadamard_problem *problem, int64_t n, int64_t kv) {
    return (n * problem->kv_heads + kv) * hla_hadamard_state_rank(problem) * (problem->value_dim + 1);
}

/* sums[0 ... V] = n_i and d_i of query i of the sequence; own->features is overwritten. */
static inline void sum_row(const hla_hadamard_call *call, const scratch *own, double *sums, int64_t n, int64_t h,
                           int64_t i) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t kv = h / (problem->heads / problem->kv_heads), width = problem->value_dim;
    for (int64_t x = 0; x <= width; x++)
        sums[x] = 0;
    for (int64_t j = 0; j < hla_hadamard_visible(problem, &sequence, i); j++) {
        int64_t key = sequence.key_first + j;
        double weight = score(call, -1, sequence.b, sequence.query_first + i, h, key, kv);
        for (int64_t x = 0; x < width; x++)
            sums[x] += weight * element(call->in.v, sequence.b, key, kv, x);
        sums[width] += weight;
    }
    if (!call->in.initial_state) return;
    expand(own->features, call->in.q_features, problem->factors, sequence.b, sequence.query_first + i, h);
    const float *state = call->in.initial_state + state_offset(problem, n, kv);
    for (int64_t f = 0; f < hla_hadamard_state_rank(problem); f++) {
        for (int64_t x = 0; x <= width; x++)
            sums[x] += own->features[f] * (double)state[f * (width + 1) + x];
    }
}

#endif
