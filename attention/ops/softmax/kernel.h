/* attention/ops/softmax/kernel.h - what dispatch.c, the reference and the kernels of softmax attention share. */
#ifndef HLA_OPS_SOFTMAX_KERNEL_H
#define HLA_OPS_SOFTMAX_KERNEL_H

#include "attention/core/kernel.h"
#include "hla/softmax.h"

/* One execution; everything in it has been checked. */
typedef struct hla_softmax_call {
    hla_context *context;
    hla_softmax_problem problem; /* scale filled in, never 0 */
    const hla_tensor *out;       /* [B,Tq,H,V]; backward: its gradient d_out */
    const hla_tensor *q;         /* [B,Tq,H,D] */
    const hla_tensor *k;         /* [B,Tk,Hkv,D] */
    const hla_tensor *v;         /* [B,Tk,Hkv,V] */
    const hla_tensor *dq;        /* like q, k and v; backward only */
    const hla_tensor *dk;
    const hla_tensor *dv;
    const int64_t *key_lengths; /* [B] or NULL */
    const float *key_bias;      /* [Tk] or NULL */
    int threads;
    const void *prepared; /* what the entry's preparation made */
    void *workspace;
} hla_softmax_call;

/* Number of keys of batch entry b. */
static inline int64_t hla_softmax_keys(const hla_softmax_call *call, int64_t b) {
    return call->key_lengths ? call->key_lengths[b] : call->problem.keys;
}

/* How many of them query i sees. */
static inline int64_t hla_softmax_visible(const hla_softmax_call *call, int64_t b, int64_t i) {
    int64_t keys = hla_softmax_keys(call, b);
    return call->problem.causal ? hla_smaller(i + 1, keys) : keys;
}

static inline int64_t hla_softmax_key_heads(const hla_softmax_problem *problem) {
    return problem->kv_heads > 0 ? problem->kv_heads : problem->heads;
}

/* How many query heads share a key head. */
static inline int64_t hla_softmax_shared(const hla_softmax_problem *problem) {
    return problem->heads / hla_softmax_key_heads(problem);
}

/* What a kernel makes when a plan is created and keeps with it. */
typedef struct hla_softmax_preparation {
    /* HLA_ERROR_UNSUPPORTED: the entry before it in the table is used instead, unless this one was asked for. */
    hla_status (*create)(hla_context *context, const hla_softmax_problem *problem, void **prepared);
    void (*measure)(hla_arena *arena, const void *prepared); /* workspace of run, behind that of the entry's measure */
    void (*destroy)(void *prepared);
} hla_softmax_preparation;

/* One entry of the kernel table. */
typedef struct hla_softmax_entry {
    hla_kernel kernel;
    /* Takes from the arena what run will need (arena->base NULL: only measures). */
    void (*measure)(hla_arena *arena, const hla_softmax_problem *problem, int threads);
    hla_status (*run)(const hla_softmax_call *call);
    /* The same of the backward pass. */
    void (*measure_backward)(hla_arena *arena, const hla_softmax_problem *problem, int threads);
    hla_status (*run_backward)(const hla_softmax_call *call);
    const hla_softmax_preparation *preparation; /* NULL: there is nothing to prepare */
} hla_softmax_entry;

extern const hla_softmax_entry hla_softmax_reference, hla_softmax_baseline;
#if defined(__x86_64__)
extern const hla_softmax_entry hla_softmax_avx2, hla_softmax_avx512;
#elif defined(__aarch64__)
extern const hla_softmax_entry hla_softmax_neon;
#endif

/* The oracle: row out[b,i,h,:] in double. row: V doubles; scores: Tk doubles and values: max(D,V) floats of scratch,
 * query: D floats of scratch. */
void hla_softmax_reference_row(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *row,
                               double *scores, float *query, float *values);

/* scores[j] = scale q_i . k_j + bias_j of the keys that query i of head h sees; returns the largest, or minus infinity
 * without keys. query, key: D floats of scratch each. */
double hla_softmax_reference_scores(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *scores,
                                    float *query, float *key);

/* The oracle of the backward pass. Row dq[b,i,h,:] in double, and the row's logarithm of the sum of exponentials and
 * d_out . out; then, from those of all queries, statistics [B,Tq,H,2], rows dk[b,j,h,:] and dv[b,j,h,:] of a key head.
 * scores: 2 Tk doubles, rows: 2 (D + V) floats of scratch. */
void hla_softmax_reference_query_gradient(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *dq,
                                          double statistics[2], double *scores, float *rows);
void hla_softmax_reference_key_gradient(const hla_softmax_call *call, int64_t b, int64_t j, int64_t h, double *dk,
                                        double *dv, const double *statistics, float *rows);
void hla_softmax_reference_measure_backward(hla_arena *arena, const hla_softmax_problem *problem, int threads);
hla_status hla_softmax_reference_run_backward(const hla_softmax_call *call);

#endif
