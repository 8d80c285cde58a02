/* attention/ops/softmax/kernel.h - what dispatch.c, the reference and the kernels of softmax attention share. */
#ifndef HLA_OPS_SOFTMAX_KERNEL_H
#define HLA_OPS_SOFTMAX_KERNEL_H

#include "attention/core/kernel.h"
#include "hla/softmax.h"

/* One execution; everything in it has been checked. */
typedef struct hla_softmax_call {
    hla_softmax_problem problem; /* scale filled in, never 0 */
    const hla_tensor *out;       /* [B,Tq,H,V] */
    const hla_tensor *q;         /* [B,Tq,H,D] */
    const hla_tensor *k;         /* [B,Tk,H,D] */
    const hla_tensor *v;         /* [B,Tk,H,V] */
    const int64_t *key_lengths;  /* [B] or NULL */
    const float *key_bias;       /* [Tk] or NULL */
    int threads;
    void *workspace;
} hla_softmax_call;

/* Number of keys of batch entry b. */
static inline int64_t hla_softmax_keys(const hla_softmax_call *call, int64_t b) {
    return call->key_lengths ? call->key_lengths[b] : call->problem.keys;
}

/* One entry of the kernel table. */
typedef struct hla_softmax_entry {
    hla_kernel kernel;
    /* Takes from the arena what run will need (arena->base NULL: only measures). */
    void (*measure)(hla_arena *arena, const hla_softmax_problem *problem, int threads);
    void (*run)(const hla_softmax_call *call);
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

#endif
