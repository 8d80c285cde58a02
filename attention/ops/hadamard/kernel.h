/* attention/ops/hadamard/kernel.h - what plan, dispatch and kernels of the Hadamard operator agree on. */
#ifndef HLA_OPS_HADAMARD_KERNEL_H
#define HLA_OPS_HADAMARD_KERNEL_H

#include "attention/core/kernel.h"
#include "hla/hadamard.h"

/* One execution, forward or backward, arguments checked. Only kernels of a GPU can still fail. */
typedef struct hla_hadamard_call {
    hla_context *context;
    const hla_hadamard_problem *problem; /* kv_heads is never 0 here */
    int threads;                         /* of a GPU: multiprocessors */
    const hla_tensor *out;               /* [B,Tq,H,V], or NULL; backward: its gradient d_out */
    float *final_state;                  /* [N,Hkv,R,V+1], or NULL */
    hla_hadamard_inputs in;
    hla_hadamard_gradients gradients; /* backward only */
    const float *d_final_state;       /* [N,Hkv,R,V+1], or NULL; backward only */
    void *workspace;
} hla_hadamard_call;

/* The backward pass of a kernel. */
typedef struct hla_hadamard_backward_entry {
    void (*measure)(hla_arena *arena, const hla_hadamard_problem *problem, int threads);
    hla_status (*run)(const hla_hadamard_call *call);
    /* Takes from the arena what run reads of in.forward_workspace, as the forward pass does first; NULL: nothing. */
    void (*keep)(hla_arena *arena, const hla_hadamard_problem *problem);
} hla_hadamard_backward_entry;

/* One entry of the kernel table. */
typedef struct hla_hadamard_entry {
    hla_kernel kernel;
    hla_form form;
    /* Takes from the arena what run will need (arena->base NULL: only measures). */
    void (*measure)(hla_arena *arena, const hla_hadamard_problem *problem, int threads);
    hla_status (*run)(const hla_hadamard_call *call);
    const hla_hadamard_backward_entry *backward; /* NULL: that of the state form's entry of the same instruction set */
    bool (*takes)(const hla_hadamard_problem *problem); /* NULL: takes any problem */
    const char *taken;                                  /* what it takes, in words */
    double rate; /* of its arithmetic against other entries' of the table; 0 where all are alike */
} hla_hadamard_entry;

extern const hla_hadamard_entry hla_hadamard_reference;
extern const hla_hadamard_backward_entry hla_hadamard_backward_reference;
extern const hla_hadamard_entry hla_hadamard_quadratic_baseline, hla_hadamard_state_baseline;
#if defined(__x86_64__)
extern const hla_hadamard_entry hla_hadamard_quadratic_avx2, hla_hadamard_state_avx2;
extern const hla_hadamard_entry hla_hadamard_quadratic_avx512, hla_hadamard_state_avx512;
extern const hla_hadamard_entry hla_hadamard_state_avx512_bf16; /* bidirectional bfloat16 without states only */
#elif defined(__aarch64__)
extern const hla_hadamard_entry hla_hadamard_quadratic_neon, hla_hadamard_state_neon;
#endif

/* The kernel to use: problem->kernel, else the variable HLA_KERNEL, else the best of the wanted form that runs here and
 * takes the problem (HLA_FORM_AUTO: only a forced kernel is looked up, *kernel stays NULL without one). */
hla_status hla_hadamard_choose(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry **kernel);

/* The backward pass that goes with an entry: its own, or that of the state form of the same instruction set. */
const hla_hadamard_backward_entry *hla_hadamard_backward_of(const hla_hadamard_entry *entry);

/* ---- sequences: batch entries, or the sequences packed on one token axis ---- */

typedef struct hla_sequence {
    int64_t b;                    /* batch index of its rows */
    int64_t query_first, queries; /* its tokens on the token axes */
    int64_t key_first, keys;
} hla_sequence;

static inline int64_t hla_hadamard_sequence_count(const hla_hadamard_problem *problem) {
    return problem->sequences > 0 ? problem->sequences : problem->batch;
}

static inline hla_sequence hla_hadamard_sequence(const hla_hadamard_call *call, int64_t n) {
    const hla_hadamard_inputs *in = &call->in;
    if (call->problem->sequences > 0) {
        return (hla_sequence){0, in->query_starts[n], in->query_starts[n + 1] - in->query_starts[n], in->key_starts[n],
                              in->key_starts[n + 1] - in->key_starts[n]};
    }
    return (hla_sequence){n, 0, call->problem->queries, 0, in->key_lengths ? in->key_lengths[n] : call->problem->keys};
}

/* How many keys query i of a sequence sees. */
static inline int64_t hla_hadamard_visible(const hla_hadamard_problem *problem, const hla_sequence *sequence,
                                           int64_t i) {
    return problem->causal ? hla_smaller(i + 1, sequence->keys) : sequence->keys;
}

/* R: features of a token. Saturates. */
static inline int64_t hla_hadamard_state_rank(const hla_hadamard_problem *problem) {
    int64_t product = 1;
    for (int p = 0; p < problem->factors; p++) {
        if (__builtin_mul_overflow(product, problem->rank[p], &product)) return INT64_MAX;
    }
    return product;
}

#endif
