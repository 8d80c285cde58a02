/* hla/hadamard.h - Hadamard linear attention, forward.
 *
 *     hla_hadamard_problem problem;
 *     hla_hadamard_problem_init(&problem);
 *     problem.batch = 1, problem.heads = H, problem.queries = problem.keys = T, problem.value_dim = V;
 *     problem.factors = 2, problem.rank[0] = problem.rank[1] = 16;
 *     hla_hadamard_plan *plan = NULL;
 *     hla_hadamard_plan_create(ctx, &problem, &plan);
 *     void *workspace = aligned_alloc(64, hla_hadamard_plan_workspace(plan));
 *     hla_hadamard_forward(plan, &out, q_features, k_features, &v, NULL, workspace, hla_hadamard_plan_workspace(plan));
 *     hla_hadamard_plan_free(plan);
 *
 * Source: Ackermann, Cai, Ghafoorian, Habibian, "HLA: Hadamard Linear Attention", arXiv 2602.12128. Per batch and head,
 * with query features a_i^p = phi_p(q_i) and key features c_j^p = psi_p(k_j), both of width R_p:
 *
 *     A_ij = prod_p (a_i^p . c_j^p)          out_i = sum_j A_ij v_j / (sum_j A_ij + epsilon)   normalised
 *                                            out_i = scale * sum_j A_ij v_j                    un-normalised
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
    int factors;                                    /* P, 1 to HLA_MAX_FACTORS */
    int64_t rank[HLA_MAX_FACTORS];                  /* R_p, 1 to HLA_MAX_RANK each */
    hla_dtype dtype;                                /* of features, values and output; sums are float32 or better */
    bool normalised;                                /* default true */
    float epsilon;                                  /* added to the denominator; default 1e-6 */
    float scale;                                    /* un-normalised only; default 1 */
    hla_form form;                                  /* default HLA_FORM_AUTO */
    const char *kernel; /* force an entry of the kernel table by name; NULL: best this machine runs.
                           The environment variable HLA_KERNEL does the same. */
} hla_hadamard_problem;

HLA_API void hla_hadamard_problem_init(hla_hadamard_problem *problem);

typedef struct hla_hadamard_plan hla_hadamard_plan;

/* Checks the problem, chooses form and kernel, and lays the workspace out. The plan keeps a pointer to context, which
 * must outlive it; on an error *plan is NULL. */
HLA_API hla_status hla_hadamard_plan_create(hla_context *context, const hla_hadamard_problem *problem,
                                            hla_hadamard_plan **plan);
HLA_API void hla_hadamard_plan_free(hla_hadamard_plan *plan);              /* NULL is fine */
HLA_API size_t hla_hadamard_plan_workspace(const hla_hadamard_plan *plan); /* bytes, 64-byte aligned; may be 0 */
HLA_API hla_form hla_hadamard_plan_form(const hla_hadamard_plan *plan);
HLA_API const char *hla_hadamard_plan_kernel(const hla_hadamard_plan *plan);
HLA_API const char *hla_hadamard_plan_explain(const hla_hadamard_plan *plan); /* a sentence or two, owned by the plan */

/* out [B,Tq,H,V]; q_features[p] [B,Tq,H,R_p]; k_features[p] [B,Tk,H,R_p]; v [B,Tk,H,V]; all of problem.dtype, any
 * strides, owned by the caller. key_lengths: NULL, or B numbers 0..Tk: keys beyond are ignored. A row without keys, or
 * with a denominator of exactly zero, becomes zeros. out must not overlap itself or an input. workspace: at least
 * hla_hadamard_plan_workspace(plan) bytes, aligned to 64. Allocates nothing; nothing is written before every argument
 * has been checked. The result has the same bits for any number of threads. */
HLA_API hla_status hla_hadamard_forward(const hla_hadamard_plan *plan, const hla_tensor *out,
                                        const hla_tensor *q_features, const hla_tensor *k_features, const hla_tensor *v,
                                        const int64_t *key_lengths, void *workspace, size_t workspace_size);

/* The kernel table, for tests, benchmarks and `hla doctor`: entry i, or false past the end. */
typedef struct hla_kernel_info {
    const char *name; /* e.g. "reference", "state_avx512", "quadratic_avx2" */
    hla_form form;
    bool runs_here;    /* this machine can execute it */
    const char *needs; /* the instruction sets it needs, "" for baseline */
} hla_kernel_info;
HLA_API bool hla_hadamard_kernel(int i, hla_kernel_info *info);

#ifdef __cplusplus
}
#endif
#endif
