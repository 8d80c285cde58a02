/* cli/materialised.h - Hadamard attention as one would write it with a matrix product library, done well: the state
 * form, with the Kronecker products of the features written out, a block that fits the cache at a time, and oneDNN's
 * matrix product on it. The baseline that `hla bench attention` compares libhla with.
 *
 * Per batch and head, with phi_j = c_j^1 (x) ... (x) c_j^P and psi_i = a_i^1 (x) ... (x) a_i^P, R numbers each:
 *
 *     S = sum_j phi_j (x) v_j       z = sum_j phi_j       out_i = psi_i S / (psi_i . z + epsilon)
 *
 * float32, or bfloat16 operands with float32 sums; bidirectional, normalised, forward.
 */
#ifndef HLA_CLI_MATERIALISED_H
#define HLA_CLI_MATERIALISED_H

#include "hla/hadamard.h"

typedef struct materialised materialised;

/* NULL if memory is short or oneDNN has no fast product here. Queries and keys are as many. */
materialised *materialised_create(const hla_hadamard_problem *problem, int threads);
void materialised_free(materialised *made); /* NULL is fine */
size_t materialised_bytes(const materialised *made);

/* Tensors as of hla_hadamard_forward, the last axis contiguous. */
void materialised_forward(materialised *made, const hla_tensor *out, const hla_tensor *q_features,
                          const hla_tensor *k_features, const hla_tensor *v);

#endif
