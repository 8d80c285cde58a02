/* attention/ops/hadamard/cuda/general_layout.h - how a call of the general kernels is cut, and its workspace. Host
 * side.
 *
 * A wave is as many sequences and key heads as may hold their states (not causal) and their queries' weights (backward)
 * at once. In a wave the units of all sequences follow each other, and a round takes as many of them as have a slot.
 * All cuts depend on the problem only.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_GENERAL_LAYOUT_H
#define HLA_OPS_HADAMARD_CUDA_GENERAL_LAYOUT_H

#include "attention/ops/hadamard/cuda/general.h"
#include "attention/ops/hadamard/kernel.h"

/* How a problem is cut, and its workspace. */
typedef struct hla_general_layout {
    bool mma;                                         /* the kernels on tensor cores are used */
    int64_t state_size;                               /* floats of a state: R (V + 1) */
    int64_t kvs, sequences;                           /* of a wave */
    int64_t span, slots;                              /* tokens of a unit, units of a round */
    int64_t scratch_size, scratch_blocks;             /* of the gradient kernel */
    int64_t *query_starts, *key_starts, *key_lengths; /* device copies */
    float *states, *slot_states, *carry, *weights, *scratch;
    uint16_t *rounded; /* mma: the states that are read */
    hla_general_record *records;
} hla_general_layout;

/* Of a call in state form; mma: on tensor cores. */
hla_general_layout hla_general_lay_out(hla_arena *arena, const hla_hadamard_problem *problem, bool backward, bool mma);

/* What a call in quadratic form needs of it. */
void hla_general_take_starts(hla_general_layout *l, hla_arena *arena, const hla_hadamard_problem *problem);

int64_t hla_general_rank_sum(const hla_hadamard_problem *problem);

#endif
