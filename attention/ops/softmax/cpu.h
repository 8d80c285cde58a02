/* attention/ops/softmax/cpu.h - the two halves of a table entry; included by sources compiled once per instruction set.
 */
#ifndef HLA_OPS_SOFTMAX_CPU_H
#define HLA_OPS_SOFTMAX_CPU_H

#include "attention/ops/softmax/kernel.h"
#include "attention/simd/exp.h"
#include "attention/simd/tile.h"

void HLA_ISA_NAME(hla_softmax_measure_backward)(hla_arena *arena, const hla_softmax_problem *problem, int threads);
hla_status HLA_ISA_NAME(hla_softmax_run_backward)(const hla_softmax_call *call);

#endif
