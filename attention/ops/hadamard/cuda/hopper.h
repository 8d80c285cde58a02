/* attention/ops/hadamard/cuda/hopper.h - the parts of the fast path for Hopper (sm_90a): P = 2, ranks 16, 32, 64 or
 * 128, V 64 or 128, bfloat16 and float16, forward and, if not causal, backward. Host side; C and CUDA C++.
 *
 * Two kernels do the work, both with features made in registers, never in memory:
 *     state     S_f,v = sum_t (f1_a f2_b) x_t,v over one side's tokens: keys with v, or queries with d_out
 *     query     n_t,v = sum_f (f1_a f2_b) S_f,v over the other side's
 * Between them `finish` adds what was summed apart, and makes of z what the query kernel reads.
 *
 * A 16-bit state is [states][R][V], states counting (sequence, key head), with columns permuted in each group of 32:
 * column 32j + 8p + 2q + e holds value 32j + 8q + 2p + e (p, q in 0..3, e in 0..1; an involution), so that fragments of
 * accumulators are stored, and results written, 16 bytes at a time. In float16 S and z are multiplied by sigma, a power
 * of two that keeps sums of averages like 1 in range; it cancels, or is divided out.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_HOPPER_H
#define HLA_OPS_HADAMARD_CUDA_HOPPER_H

#include "attention/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HLA_HOPPER_CHUNK = 64, /* tokens that the state kernel takes at a time */
    HLA_HOPPER_TILE = 256  /* tokens of one query tile */
};

/* The tokens of a sequence on one side. */
typedef struct hla_hopper_span {
    int64_t b, first, count; /* rows [b, first ... first + count) of the tensors */
    int64_t units;     /* chunks (state kernel) or tiles (query kernel) of all sequences before this one, one head */
    int64_t snapshots; /* causal: of all sequences before this one, one head */
} hla_hopper_span;

/* One side of the operator: its tokens, their features and their rows of V numbers. */
typedef struct hla_hopper_side {
    hla_cuda_view f1, f2;         /* [B,T,heads,R_p] */
    hla_cuda_view rows;           /* [B,T,heads,V]: what is summed (state), or written (query) */
    int64_t batch, tokens, heads; /* extents of the tensors: tokens is the T axis */
    int64_t group;                /* heads that share a state */
    const hla_hopper_span *spans; /* device memory, [sequences + 1], the last only with its units, the total; or NULL:
                                     each batch entry is a sequence of all tokens */
    int64_t sequences, units;     /* units: the total, one head */
    int64_t units_each;           /* without spans: of a sequence */
} hla_hopper_side;

typedef struct hla_hopper_shape {
    int64_t rank1, rank2, value_dim;
    bool half;   /* float16, else bfloat16 */
    float sigma; /* of S and z: 1 in bfloat16 */
    int processors;
} hla_hopper_shape;

/* Causal: instead of each sequence's state its snapshots are kept, the sums before every `every`-th chunk. One call
 * takes a round, stretches of sequences; the first of them may go on with a sequence that the round before began, the
 * last be gone on with. Their sums so far are carried in float32. */
typedef struct hla_hopper_snapshots {
    int64_t every; /* chunks; 0: not causal */
    int64_t count; /* of the round, all key heads; numbered by sequence, key head, place */
    bool continues, goes_on;
    float *carry, *z_carry; /* [key heads][R][V], columns permuted, and [key heads][R] */
} hla_hopper_snapshots;

/* What building a state needs and leaves, all in device memory. */
typedef struct hla_hopper_state {
    int64_t states;       /* sequences x key heads */
    void *s;              /* 16-bit [states or snapshots][R][V], permuted columns */
    void *z_split;        /* 16-bit [states or snapshots][2][R]: z as a sum of two */
    float *z;             /* [states][R]; not causal */
    float *partial;       /* hla_hopper_state_partial() floats: states that are summed in parts */
    float *z_partial;     /* hla_hopper_z_partial() floats */
    const float *weight;  /* NULL, or one number a token and head, [B][heads][T]: features are scaled by it */
    const float *z_given; /* NULL, or z [states][R] without sigma: then it is not summed from features */
    hla_hopper_snapshots snapshots;
} hla_hopper_state;

/* States in memory: of sequences, or snapshots. */
static inline int64_t hla_hopper_states_kept(const hla_hopper_state *state) {
    return state->snapshots.every > 0 ? state->snapshots.count : state->states;
}

/* Whether there are kernels for these sizes. */
bool hla_hopper_takes(int64_t rank1, int64_t rank2, int64_t value_dim);

/* Floats of workspace for partial sums. states: in memory. */
int64_t hla_hopper_state_partial(const hla_hopper_shape *shape);
int64_t hla_hopper_z_partial(const hla_hopper_shape *shape, int64_t states);

/* Launchers; each returns a cudaError_t. The state kernel and finish are one call. */
int hla_hopper_build(const hla_hopper_shape *shape, const hla_hopper_side *side, const hla_hopper_state *state,
                     void *stream);

/* rows = features times state. normalised: divided by (denominator + epsilon), zero where that is zero; else multiplied
 * by scale. clear_after: rows of the T axis at and beyond a sequence's count are set to zero (batched sequences only).
 */
typedef struct hla_hopper_query_options {
    bool normalised, clear_after;
    float epsilon, scale;
} hla_hopper_query_options;

/* keys: causal, the keys that were built from, whose pairs with the queries behind each snapshot are added; else NULL.
 */
int hla_hopper_query(const hla_hopper_shape *shape, const hla_hopper_side *side, const hla_hopper_side *keys,
                     const hla_hopper_state *state, const hla_hopper_query_options *options, void *stream);

/* That tensor maps and 16-byte accesses can address a view of that shape: unit stride of x, everything else positive
 * and whole 16 bytes. */
bool hla_hopper_addressable(const hla_cuda_view *view, const int64_t shape[4]);

#ifdef __cplusplus
}
#endif
#endif
