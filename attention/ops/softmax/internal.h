/* attention/ops/softmax/internal.h - what dispatch.c, the reference and the kernels of softmax attention share. */
#ifndef HLA_SOFTMAX_INTERNAL_H
#define HLA_SOFTMAX_INTERNAL_H

#include "attention/core/internal.h"
#include "attention/simd/isa.h"
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
} hla_softmax_call;

/* Number of keys of batch entry b. */
static inline int64_t hla_softmax_keys(const hla_softmax_call *call, int64_t b) {
    return call->key_lengths ? call->key_lengths[b] : call->problem.keys;
}

/* One entry of the kernel table. workspace() adds the kernel's pieces to the arena (which only measures) when the plan
 * is made; forward() carves the same pieces again. */
typedef struct hla_softmax_entry {
    const char *name;
    hla_isa isa;
    void (*workspace)(const hla_softmax_problem *problem, int threads, hla_arena *arena);
    void (*forward)(const hla_softmax_call *call, void *workspace);
} hla_softmax_entry;

/* The oracle: row out[b,i,h,:] in double. row: V doubles; scores: Tk doubles and values: max(D,V) floats of scratch,
 * query: D floats of scratch. */
void hla_softmax_reference_row(const hla_softmax_call *call, int64_t b, int64_t i, int64_t h, double *row,
                               double *scores, float *query, float *values);

void hla_softmax_reference_workspace(const hla_softmax_problem *problem, int threads, hla_arena *arena);
void hla_softmax_reference_forward(const hla_softmax_call *call, void *workspace);

/* The entry points of cpu.c, one pair an instruction set. */
void hla_softmax_workspace_baseline(const hla_softmax_problem *problem, int threads, hla_arena *arena);
void hla_softmax_forward_baseline(const hla_softmax_call *call, void *workspace);
void hla_softmax_workspace_avx2(const hla_softmax_problem *problem, int threads, hla_arena *arena);
void hla_softmax_forward_avx2(const hla_softmax_call *call, void *workspace);
void hla_softmax_workspace_avx512(const hla_softmax_problem *problem, int threads, hla_arena *arena);
void hla_softmax_forward_avx512(const hla_softmax_call *call, void *workspace);

#endif
