/* attention/ops/hadamard/cuda/general_call.h - the general kernels as whole calls, for table entries of kernels that
 * cannot take the strides of every call. Host side.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_GENERAL_CALL_H
#define HLA_OPS_HADAMARD_CUDA_GENERAL_CALL_H

#include "attention/ops/hadamard/kernel.h"

/* A forward call in state form and float32, and the workspace that it needs. */
void hla_cuda_hadamard_general_measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads);
hla_status hla_cuda_hadamard_general_run(const hla_hadamard_call *call);

/* A backward call: on tensor cores where they take it, else in float32. */
extern const hla_hadamard_backward_entry hla_cuda_hadamard_backward_mma;

extern const hla_hadamard_entry hla_cuda_hadamard_quadratic, hla_cuda_hadamard_state;
extern const hla_hadamard_entry hla_cuda_hadamard_quadratic_mma, hla_cuda_hadamard_state_mma; /* on tensor cores */

/* What states of 16 bits are multiplied by: float16 holds numbers up to 65504, which a sum over many keys may pass. */
float hla_cuda_hadamard_sigma(const hla_hadamard_problem *problem);

#endif
