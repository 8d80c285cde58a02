/* hla/hadamard.h - Hadamard linear attention, forward and backward.
 *
 *     hla_hadamard_problem problem;
 *     hla_hadamard_problem_init(&problem);
 *     problem.batch = 1, problem.heads = H, problem.queries = problem.keys = T, problem.value_dim = V;
 *     problem.factors = 2, problem.rank[0] = problem.rank[1] = 16;
 *     hla_hadamard_plan *plan = NULL;
 *     hla_hadamard_plan_create(ctx, &problem, &plan);
 *     size_t size = hla_hadamard_plan_workspace(plan);
 *     void *workspace = aligned_alloc(64, size);
 *     hla_hadamard_inputs inputs = {.q_features = q_features, .k_features = k_features, .v = &v};
 *     hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size);
 *     hla_hadamard_plan_free(plan);
 *
 * Source: Ackermann, Cai, Ghafoorian, Habibian, "HLA: Hadamard Linear Attention", arXiv 2602.12128. Per batch and head,
 * with query features a_i^p = phi_p(q_i) and key features c_j^p = psi_p(k_j), both of width R_p:
 *
 *     A_ij = prod_p (a_i^p . c_j^p)          out_i = sum_j A_ij v_j / (sum_j A_ij + epsilon)   normalised
 *                                            out_i = scale * sum_j A_ij v_j                    un-normalised
 *
 * The keys enter only through their state, R (V + 1) numbers a head:
 *
 *     state[f][x] = sum_j phi_j[f] v_j[x], x < V      state[f][V] = sum_j phi_j[f]      phi_j = c_j^1 (x) ... (x) c_j^P
 */
#ifndef HLA_HADAMARD_H
#define HLA_HADAMARD_H

#include "hla/core.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HLA_MAX_FACTORS 4
#define HLA_MAX_RANK 256

/* Two exact ways to compute the same result (up to rounding). */
typedef enum hla_form {
    HLA_FORM_AUTO = 0,     /* the plan chooses by cost */
    HLA_FORM_STATE = 1,    /* linear in T: build sum_j (c_j^1 x ... x c_j^P) v_j, then contract it with the queries */
    HLA_FORM_QUADRATIC = 2 /* tiles of the score matrices, never stored whole */
} hla_form;

typedef struct hla_hadamard_problem {
    size_t struct_size;                             /* set by hla_hadamard_problem_init */
    int64_t batch, heads, queries, keys, value_dim; /* all at least 1, but keys may be 0 */
    int64_t kv_heads;              /* heads of keys and values, a divisor of heads: query head h attends to key head
                                      h / (heads / kv_heads); 0 (default): heads */
    int64_t sequences;             /* packed: that many sequences of any lengths lie one after the other on the token
                                      axis, batch is 1; 0 (default): not packed */
    int factors;                   /* P, 1 to HLA_MAX_FACTORS */
    int64_t rank[HLA_MAX_FACTORS]; /* R_p, 1 to HLA_MAX_RANK each */
    hla_dtype dtype;               /* of features, values, output and their gradients; sums are float32 or better */
    bool causal;                   /* query i sees key j if j <= i, each counted from its sequence's start; default
                                      false */
    bool stateful;                 /* calls may pass initial_state or ask for final_state, which takes the state form;
                                      default false */
    bool normalised;               /* default true */
    float epsilon;                 /* added to the denominator; default 1e-6 */
    float scale;                   /* un-normalised only; default 1 */
    hla_form form;                 /* default HLA_FORM_AUTO */
    const char *kernel;            /* force an entry of the kernel table by name; NULL: best this machine runs.
                                      The environment variable HLA_KERNEL does the same. */
} hla_hadamard_problem;

/* Defaults, and struct_size; NULL is fine. */
HLA_API void hla_hadamard_problem_init(hla_hadamard_problem *problem);

typedef struct hla_hadamard_plan hla_hadamard_plan;

/* Checks the problem, chooses form and kernel, and lays the workspace out. The plan keeps a pointer to context, which
 * must outlive it; on an error *plan is NULL. */
HLA_API hla_status hla_hadamard_plan_create(hla_context *context, const hla_hadamard_problem *problem,
                                            hla_hadamard_plan **plan);
HLA_API void hla_hadamard_plan_free(hla_hadamard_plan *plan);                /* NULL is fine */
HLA_API size_t hla_hadamard_plan_workspace(const hla_hadamard_plan *plan);   /* bytes, 64-byte aligned; may be 0 */
HLA_API hla_form hla_hadamard_plan_form(const hla_hadamard_plan *plan);      /* the form chosen, for the forward pass */
HLA_API const char *hla_hadamard_plan_kernel(const hla_hadamard_plan *plan); /* name of its kernel */
HLA_API const char *hla_hadamard_plan_explain(const hla_hadamard_plan *plan); /* a sentence or two, owned by the plan */

/* What a call reads; members that are not used stay zero. All tensors are of problem.dtype, have any strides and belong
 * to the caller. N stands for problem.sequences where packed, else for B; Hkv for problem.kv_heads, or H. */
typedef struct hla_hadamard_inputs {
    const hla_tensor *q_features; /* P views [B,Tq,H,R_p] */
    const hla_tensor *k_features; /* P views [B,Tk,Hkv,R_p] */
    const hla_tensor *v;          /* [B,Tk,Hkv,V] */
    const int64_t *key_lengths;   /* NULL, or B numbers 0 ... Tk: keys beyond are ignored; not with packed sequences */
    const int64_t *query_starts;  /* packed only: N + 1 offsets that rise from 0 to Tq ("cu_seqlens"): sequence n has */
    const int64_t *key_starts;    /*   queries query_starts[n] ... query_starts[n + 1] - 1; keys likewise, up to Tk */
    const float *initial_state;   /* NULL, or [N,Hkv,R,V+1]: of tokens that came before all keys, seen by every query */
    const void *forward_workspace; /* backward only: NULL, or the workspace of the forward call with this plan and these
                                      inputs, of which the first hla_hadamard_plan_kept_workspace(plan) bytes, or a copy
                                      of them aligned to 64, are read: kernels of a GPU then need not make the state
                                      again */
} hla_hadamard_inputs;

/* out [B,Tq,H,V], or NULL if only the state is wanted. final_state: NULL, or [N,Hkv,R,V+1] float32, the sum of the
 * initial state and that of all keys, where feature f = (r_1 R_2 + r_2) R_3 + ... counts factor 1 slowest; it may be
 * initial_state itself, and after any split of the keys into calls it is the same up to rounding. A row without keys,
 * or with a denominator of exactly zero, becomes zeros. out must not overlap itself or an input. workspace: at least
 * hla_hadamard_plan_workspace(plan) bytes, aligned to 64. Allocates nothing; nothing is written before every argument
 * has been checked. The result has the same bits for any number of threads. */
HLA_API hla_status hla_hadamard_forward(const hla_hadamard_plan *plan, const hla_tensor *out, float *final_state,
                                        const hla_hadamard_inputs *inputs, void *workspace, size_t workspace_size);

/* What a backward pass writes: shaped, typed and strided like the inputs they belong to, overwritten. All tensors are
 * wanted. Rows of keys beyond key_lengths become zeros. */
typedef struct hla_hadamard_gradients {
    const hla_tensor *dq_features; /* P views [B,Tq,H,R_p] */
    const hla_tensor *dk_features; /* P views [B,Tk,Hkv,R_p] */
    const hla_tensor *dv;          /* [B,Tk,Hkv,V] */
    float *d_initial_state;        /* NULL, or [N,Hkv,R,V+1]; may be d_final_state itself, which is then replaced */
} hla_hadamard_gradients;

/* Gradients of a loss whose gradient with respect to out is d_out [B,Tq,H,V] and with respect to final_state is
 * d_final_state [N,Hkv,R,V+1] (NULL: zero). Nothing need be kept from the forward pass: the state is computed again
 * (or taken from inputs.forward_workspace). With
 * w_i = 1 / (sum_j A_ij + epsilon) and g = d_out, dL/dA_ij = w_i (g_i . v_j - g_i . out_i), or scale * g_i . v_j
 * un-normalised; rows that the forward pass sets to zero for their denominator have no gradient. workspace: at least
 * hla_hadamard_plan_backward_workspace(plan) bytes, aligned to 64; rules as for the forward pass. Always in state form,
 * whatever the plan's form is. */
HLA_API hla_status hla_hadamard_backward(const hla_hadamard_plan *plan, const hla_hadamard_gradients *gradients,
                                         const hla_tensor *d_out, const float *d_final_state,
                                         const hla_hadamard_inputs *inputs, void *workspace, size_t workspace_size);
HLA_API size_t hla_hadamard_plan_backward_workspace(const hla_hadamard_plan *plan); /* bytes, 64-byte aligned */
/* Bytes at the beginning of a forward call's workspace that inputs.forward_workspace reads: all that is worth keeping
 * of it until the backward pass. 0 where the state is always made again. */
HLA_API size_t hla_hadamard_plan_kept_workspace(const hla_hadamard_plan *plan);

/* An entry of the kernel table. */
typedef struct hla_kernel_info {
    const char *name; /* e.g. "reference", "state_avx512", "quadratic_avx2" */
    hla_form form;
    bool runs_here;    /* this machine can execute it */
    const char *needs; /* the instruction sets it needs, "" for baseline */
} hla_kernel_info;

/* The kernel table of the context's device (NULL: of the CPU), for tests, benchmarks and `hla doctor`: entry i, or
 * false past the end. */
HLA_API bool hla_hadamard_kernel(const hla_context *context, int i, hla_kernel_info *info);

#ifdef __cplusplus
}
#endif
#endif
