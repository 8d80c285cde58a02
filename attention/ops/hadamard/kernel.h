/* attention/ops/hadamard/kernel.h - what plan, dispatch and kernels of the Hadamard operator agree on. */
#ifndef HLA_OPS_HADAMARD_KERNEL_H
#define HLA_OPS_HADAMARD_KERNEL_H

#include "attention/core/kernel.h"
#include "hla/hadamard.h"

/* One execution, arguments checked. */
typedef struct hla_hadamard_call {
    const hla_hadamard_problem *problem;
    int threads;
    const hla_tensor *out;      /* [B,Tq,H,V] */
    const hla_tensor *q;        /* P views [B,Tq,H,R_p] */
    const hla_tensor *k;        /* P views [B,Tk,H,R_p] */
    const hla_tensor *v;        /* [B,Tk,H,V] */
    const int64_t *key_lengths; /* B numbers, or NULL */
    void *workspace;
} hla_hadamard_call;

/* One entry of the kernel table. */
typedef struct hla_hadamard_entry {
    hla_kernel kernel;
    hla_form form;
    /* Takes from the arena what run will need (arena->base NULL: only measures). */
    void (*measure)(hla_arena *arena, const hla_hadamard_problem *problem, int threads);
    void (*run)(const hla_hadamard_call *call);
} hla_hadamard_entry;

extern const hla_hadamard_entry hla_hadamard_reference;
extern const hla_hadamard_entry hla_hadamard_quadratic_baseline, hla_hadamard_state_baseline;
#if defined(__x86_64__)
extern const hla_hadamard_entry hla_hadamard_quadratic_avx2, hla_hadamard_state_avx2;
extern const hla_hadamard_entry hla_hadamard_quadratic_avx512, hla_hadamard_state_avx512;
#elif defined(__aarch64__)
extern const hla_hadamard_entry hla_hadamard_quadratic_neon, hla_hadamard_state_neon;
#endif

/* The kernel to use: problem->kernel, else the variable HLA_KERNEL, else the best of the wanted form that runs here
 * (HLA_FORM_AUTO: only a forced kernel is looked up, *kernel stays NULL without one). */
hla_status hla_hadamard_choose(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry **kernel);

static inline int64_t hla_hadamard_key_count(const hla_hadamard_call *call, int64_t b) {
    return call->key_lengths ? call->key_lengths[b] : call->problem->keys;
}

#endif
