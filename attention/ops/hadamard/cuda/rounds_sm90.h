/* attention/ops/hadamard/cuda/rounds_sm90.h - causal attention on the fast path for Hopper, host side: how sequences
 * are cut into rounds, whose snapshots of the state are in memory at once. C.
 *
 * A query sees the keys of its sequence up to its own place. Places are cut into chunks; before each a snapshot of the
 * state is taken. A round takes stretches of places of as many sequences as its limits allow: queries there, and the
 * keys there that some query sees.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_ROUNDS_SM90_H
#define HLA_OPS_HADAMARD_CUDA_ROUNDS_SM90_H

#include "attention/ops/hadamard/cuda/hopper_call.h"

/* What the rounds of a call need beside the kernels' other workspace. */
typedef struct hla_hopper_rounds {
    int64_t chunk;                   /* tokens, whole query tiles */
    int64_t snapshots, tiles;        /* of a round at most, one head */
    hla_hopper_span *keys, *queries; /* device memory: the stretches of all rounds, each round's last only with the
                                        total of its units */
    hla_hopper_state state;
} hla_hopper_rounds;

void hla_hopper_take_rounds(hla_hopper_rounds *rounds, hla_arena *arena, const hla_hadamard_problem *problem,
                            int processors);

/* The forward pass. */
hla_status hla_hopper_run_rounds(const hla_hadamard_call *call, const hla_hopper_rounds *rounds);

#endif
