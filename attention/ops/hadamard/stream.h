/* attention/ops/hadamard/stream.h - the streaming state's insides, and its kernels for few tokens, which work on the
 * array [B,Hkv,R,V+1] in place. */
#ifndef HLA_OPS_HADAMARD_STREAM_H
#define HLA_OPS_HADAMARD_STREAM_H

#include "attention/ops/hadamard/plan.h"
#include "hla/state.h"

/* One execution, arguments checked. Token by token in order: token t joins the state, if there are keys; then query t
 * reads it, if there are queries. */
typedef struct hla_stream_call {
    hla_context *context;
    const hla_hadamard_problem *problem; /* kv_heads is never 0; queries and keys do not matter */
    int threads;
    int64_t tokens;
    float *state;                 /* [B,Hkv,R,V+1], written if there are keys */
    const hla_tensor *out;        /* [B,T,H,V] */
    const hla_tensor *q_features; /* P views [B,T,H,R_p], or NULL together with out */
    const hla_tensor *k_features; /* P views [B,T,Hkv,R_p] */
    const hla_tensor *v;          /* [B,T,Hkv,V], or NULL together with k_features */
    void *workspace;
} hla_stream_call;

typedef struct hla_stream_entry {
    hla_isa isa;
    int64_t most_tokens; /* more than these go through a plan */
    /* Takes from the arena what run will need for that many tokens (arena->base NULL: only measures). */
    void (*measure)(hla_arena *arena, const hla_hadamard_problem *problem, int64_t tokens, int threads);
    hla_status (*run)(const hla_stream_call *call);
    /* Of a GPU: what stream.c does itself where it can reach the numbers. Head h of heads (one for all, or one for each
     * key head) times gamma[h], in host memory; and adding the numbers of another state. */
    hla_status (*scale)(hla_state *state, const float *gamma, int64_t heads);
    hla_status (*add)(hla_state *state, const float *from);
} hla_stream_entry;

extern const hla_stream_entry hla_stream_baseline;
#if defined(__x86_64__)
extern const hla_stream_entry hla_stream_avx2, hla_stream_avx512;
#elif defined(__aarch64__)
extern const hla_stream_entry hla_stream_neon;
#endif

/* Of the CPU's entries (measured: README.md). */
enum { HLA_STREAM_TOKENS = 24 };

struct hla_state {
    hla_context *context;
    const struct hla_cuda_backend *cuda; /* whose memory the state's is; NULL: the host's */
    hla_hadamard_problem problem; /* stateful, kv_heads never 0; kernel is static, and set but on a GPU, where each plan
                                     chooses its own unless one was asked for */
    const hla_stream_entry *few;  /* NULL: every call goes through a plan (the reference was asked for) */
    hla_hadamard_plan *plan;      /* of the last call that needed one, or of creation */
    float *data;                  /* [B,Hkv,R,V+1] */
    size_t count;                 /* of numbers in data */
    int64_t tokens;
    void *workspace;
    size_t workspace_size;
};

#endif
