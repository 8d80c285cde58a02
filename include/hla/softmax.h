/* hla/softmax.h - softmax attention in tiles, without a T x T matrix: the baseline HLA is compared with, and the
 * attention of the blocks that were not converted.
 *
 *     hla_softmax_problem problem;
 *     hla_softmax_problem_init(&problem);
 *     problem.batch = 1, problem.heads = H, problem.queries = problem.keys = T, problem.dim = problem.value_dim = D;
 *     hla_softmax_plan *plan = NULL;
 *     hla_softmax_plan_create(ctx, &problem, &plan);
 *     hla_softmax_forward(plan, &out, &q, &k, &v, NULL, NULL, workspace, hla_softmax_plan_workspace(plan));
 *
 * out_i = sum_j softmax_j(scale * q_i . k_j + key_bias_j) v_j
 */
#ifndef HLA_SOFTMAX_H
#define HLA_SOFTMAX_H

#include "hla/core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hla_softmax_problem {
    size_t struct_size;
    int64_t batch, heads, queries, keys, dim, value_dim;
    hla_dtype dtype;
    float scale; /* 0: 1/sqrt(dim), the default */
} hla_softmax_problem;

HLA_API void hla_softmax_problem_init(hla_softmax_problem *problem);

typedef struct hla_softmax_plan hla_softmax_plan;
HLA_API hla_status hla_softmax_plan_create(hla_context *context, const hla_softmax_problem *problem,
                                           hla_softmax_plan **plan);
HLA_API void hla_softmax_plan_free(hla_softmax_plan *plan);
HLA_API size_t hla_softmax_plan_workspace(const hla_softmax_plan *plan);

/* out [B,Tq,H,V]; q [B,Tq,H,D]; k [B,Tk,H,D]; v [B,Tk,H,V]; any strides. key_lengths: NULL or B numbers.
 * key_bias: NULL or Tk floats added to every query's scores (shared by batch and heads); a key that stands for n
 * identical keys carries ln n. The result does not depend on the number of threads. */
HLA_API hla_status hla_softmax_forward(const hla_softmax_plan *plan, const hla_tensor *out, const hla_tensor *q,
                                       const hla_tensor *k, const hla_tensor *v, const int64_t *key_lengths,
                                       const float *key_bias, void *workspace, size_t workspace_size);

#ifdef __cplusplus
}
#endif
#endif
