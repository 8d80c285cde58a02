/* hla/softmax.h - softmax attention in tiles, forward and backward, without a T x T matrix: the baseline HLA is
 * compared with, the teacher it learns from, and the attention of the blocks that were not converted.
 *
 *     hla_softmax_problem problem;
 *     hla_softmax_problem_init(&problem);
 *     problem.batch = 1, problem.heads = H, problem.queries = problem.keys = T, problem.dim = problem.value_dim = D;
 *     hla_softmax_plan *plan = NULL;
 *     hla_softmax_plan_create(ctx, &problem, &plan);
 *     void *workspace = aligned_alloc(64, hla_softmax_plan_workspace(plan));
 *     hla_softmax_forward(plan, &out, &q, &k, &v, NULL, NULL, workspace, hla_softmax_plan_workspace(plan));
 *     hla_softmax_plan_free(plan);
 *
 * out_i = sum_j softmax_j(scale * q_i . k_j + key_bias_j) v_j
 *
 * Source: Vaswani et al., "Attention Is All You Need", arXiv 1706.03762, equation 1; computed tile by tile with a
 * running maximum and sum as in Dao et al., "FlashAttention", arXiv 2205.14135, algorithm 1. Backward: Dao,
 * "FlashAttention-2", arXiv 2307.08691, algorithm 2. Grouped heads: Ainslie et al., arXiv 2305.13245.
 */
#ifndef HLA_SOFTMAX_H
#define HLA_SOFTMAX_H

#include "hla/core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hla_softmax_problem {
    size_t struct_size;                                  /* set by hla_softmax_problem_init */
    int64_t batch, heads, queries, keys, dim, value_dim; /* all at least 1, but keys may be 0 */
    int64_t kv_heads;   /* heads of k and v, a divisor of heads: query head h attends to key head
                           h / (heads / kv_heads); 0 (default): heads */
    hla_dtype dtype;    /* of q, k, v, out and their gradients; scores and sums are float32 or better */
    bool causal;        /* query i sees key j if j <= i, both counted from 0; default false */
    float scale;        /* 0: 1/sqrt(dim), the default */
    const char *kernel; /* force an entry of the kernel table by name; NULL: best this machine runs.
                           The environment variable HLA_SOFTMAX_KERNEL does the same. */
} hla_softmax_problem;

/* Defaults, and struct_size; NULL is fine. */
HLA_API void hla_softmax_problem_init(hla_softmax_problem *problem);

typedef struct hla_softmax_plan hla_softmax_plan;

/* Checks the problem, picks the kernel and lays the workspace out. The plan keeps a pointer to context, which must
 * outlive it; on an error *plan is NULL. */
HLA_API hla_status hla_softmax_plan_create(hla_context *context, const hla_softmax_problem *problem,
                                           hla_softmax_plan **plan);
HLA_API void hla_softmax_plan_free(hla_softmax_plan *plan);                /* NULL is fine */
HLA_API size_t hla_softmax_plan_workspace(const hla_softmax_plan *plan);   /* bytes, 64-byte aligned; may be 0 */
HLA_API const char *hla_softmax_plan_kernel(const hla_softmax_plan *plan); /* name of the kernel chosen */

/* out [B,Tq,H,V]; q [B,Tq,H,D]; k [B,Tk,Hkv,D]; v [B,Tk,Hkv,V], where Hkv stands for problem.kv_heads or, if that is 0,
 * for H; all of problem.dtype, any strides, owned by the caller. key_lengths: NULL, or B numbers 0..Tk: keys beyond are
 * not read. A row without keys becomes zeros. key_bias: NULL or Tk floats added to every query's scores (shared by
 * batch and heads); a key that stands for n identical keys carries ln n, one with minus infinity has no weight. The
 * result does not depend on the number of threads, bit for bit. out must not overlap an input. Allocates nothing; on an
 * error nothing has been written. */
HLA_API hla_status hla_softmax_forward(const hla_softmax_plan *plan, const hla_tensor *out, const hla_tensor *q,
                                       const hla_tensor *k, const hla_tensor *v, const int64_t *key_lengths,
                                       const float *key_bias, void *workspace, size_t workspace_size);

/* Gradients of a loss whose gradient with respect to out is d_out [B,Tq,H,V]: dq, dk and dv, shaped like q, k and v and
 * overwritten; all three are wanted. Nothing is kept from the forward pass. With g = d_out and the weights
 * p_ij = softmax_j(scale * q_i . k_j + key_bias_j),
 *
 *     dv_j = sum_i p_ij g_i     ds_ij = p_ij (g_i . v_j - g_i . out_i)
 *     dq_i = scale * sum_j ds_ij k_j     dk_j = scale * sum_i ds_ij q_i
 *
 * where the sums over i take in all query heads that share a key head. Keys that no query sees, beyond key_lengths for
 * example, get zeros. key_bias has no gradient here: it carries masks and counts, which are not learned. key_lengths,
 * key_bias, strides, ownership, errors and threads as for the forward pass; the outputs must not overlap an input or
 * each other. workspace: at least hla_softmax_plan_backward_workspace(plan) bytes, aligned to 64; of a few heads at a
 * time it holds float32 copies of q, k, v, d_out and dq, and two numbers a query. */
HLA_API hla_status hla_softmax_backward(const hla_softmax_plan *plan, const hla_tensor *dq, const hla_tensor *dk,
                                        const hla_tensor *dv, const hla_tensor *d_out, const hla_tensor *q,
                                        const hla_tensor *k, const hla_tensor *v, const int64_t *key_lengths,
                                        const float *key_bias, void *workspace, size_t workspace_size);
HLA_API size_t hla_softmax_plan_backward_workspace(const hla_softmax_plan *plan); /* bytes, 64-byte aligned */

/* An entry of the kernel table. */
typedef struct hla_softmax_kernel_info {
    const char *name;  /* "reference", "avx512", ... */
    bool runs_here;    /* this machine can execute it */
    const char *needs; /* the instruction sets it needs, "" for baseline */
} hla_softmax_kernel_info;

/* The kernel table of the context's device (NULL: of the CPU), for tests, benchmarks and `hla doctor`: entry i, or
 * false past the end. */
HLA_API bool hla_softmax_kernel(const hla_context *context, int i, hla_softmax_kernel_info *info);

#ifdef __cplusplus
}
#endif
#endif
