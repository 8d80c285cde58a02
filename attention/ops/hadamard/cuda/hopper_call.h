/* attention/ops/hadamard/cuda/hopper_call.h - a call of the Hadamard operator as the fast path sees it. Host side, C.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_HOPPER_CALL_H
#define HLA_OPS_HADAMARD_CUDA_HOPPER_CALL_H

#include "attention/ops/hadamard/cuda/hopper.h"
#include "attention/ops/hadamard/kernel.h"

hla_hopper_shape hla_hopper_shape_of(const hla_hadamard_problem *problem, int processors);

/* Whether sizes, types and modes are the fast path's; and whether 16-byte accesses fit the tensors of a call. */
bool hla_hopper_takes_problem(const hla_hadamard_problem *problem);
bool hla_hopper_takes_call(const hla_hadamard_call *call, bool backward);

/* The sequences of a call, on each side in units of the state kernel (chunks) and of the query kernel (tiles). */
typedef struct hla_hopper_spans {
    hla_hopper_span *key_chunks, *key_tiles, *query_chunks, *query_tiles; /* device memory, or NULL: whole batches */
} hla_hopper_spans;

void hla_hopper_take_spans(hla_hopper_spans *spans, hla_arena *arena, const hla_hadamard_problem *problem);
/* Queues the upload, where it is needed. */
hla_status hla_hopper_upload_spans(const hla_hopper_spans *spans, const hla_hadamard_call *call);

/* A side of a call, without its sequences: the features of its factors and rows of V numbers. */
hla_hopper_side hla_hopper_side_of(const hla_hadamard_call *call, bool keys, const hla_tensor *rows);

/* A side of a call: its tokens, with the features of its factors and rows of V numbers. unit: HLA_HOPPER_CHUNK or
 * HLA_HOPPER_TILE. */
hla_hopper_side hla_hopper_keys(const hla_hadamard_call *call, const hla_hopper_spans *spans, const hla_tensor *rows,
                                int64_t unit);
hla_hopper_side hla_hopper_queries(const hla_hadamard_call *call, const hla_hopper_spans *spans, const hla_tensor *rows,
                                   int64_t unit);

/* The memory of the forward pass, first in its workspace. */
typedef struct hla_hopper_forward {
    hla_hopper_state state;
    hla_hopper_spans spans;
} hla_hopper_forward;

/* s, z and z_split, which a backward pass can read; the first in any workspace, so that a part of it can be kept. */
void hla_hopper_take_kept(hla_hopper_state *state, hla_arena *arena, const hla_hadamard_problem *problem);
void hla_hopper_take_state(hla_hopper_state *state, hla_arena *arena, const hla_hadamard_problem *problem,
                           int processors);
void hla_hopper_take_forward(hla_hopper_forward *forward, hla_arena *arena, const hla_hadamard_problem *problem,
                             int processors);

/* The state of the keys. */
hla_status hla_hopper_build_keys(const hla_hadamard_call *call, const hla_hopper_forward *forward);

extern const hla_hadamard_entry hla_hadamard_state_sm90;
extern const hla_hadamard_backward_entry hla_hopper_backward; /* backward_sm90.c */

#endif
