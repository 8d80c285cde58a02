/* attention/ops/hadamard/cuda/general.h - the general kernels for NVIDIA GPUs: every shape, mode, type and stride that
 * the operator allows, in float32 arithmetic. Host side; C and CUDA C++.
 *
 * A side is the queries or the keys. Forward and backward treat them alike: a token t of a side has features
 * phi_t = f_t^1 (x) ... (x) f_t^P and a row y_t of V + 1 numbers, (v_t, 1) for keys and (w g, -w g . out) for queries,
 * where g is the gradient of out. With S the state that the other side's tokens leave, four kernels do everything:
 *
 *     build      S[f][x] = sum_t phi_t[f] y_t[x]        of the tokens of a unit
 *     scan       adds the units of a sequence up, or makes of each the sum of those before it
 *     query      n_t[x] = sum_f phi_t[f] S[f][x]        out, dv, or what a query's y consists of
 *     gradient   df_t^p = S contracted with y_t and with the other factors of phi_t
 *
 * The last two can add the pairs of tokens of one chunk through their scores: the causal part, or the quadratic form.
 * A unit is a number of consecutive tokens of a sequence: what one build sums (a span), a causal chunk, or a tile.
 *
 * Arrays of factors are aligned to their end: factor p of P is entry HLA_MAX_FACTORS - P + p, the last is the fastest.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_GENERAL_H
#define HLA_OPS_HADAMARD_CUDA_GENERAL_H

#include "attention/cuda/cuda.h"
#include "hla/hadamard.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    HLA_GENERAL_TILE = 64,       /* tokens, features or columns of a tile */
    HLA_GENERAL_MMA_TILE = 128,  /* tokens or features of a tile of the kernels on tensor cores */
    HLA_GENERAL_SHARED = 101376, /* bytes of shared memory that a block has on any GPU */
};

/* The problem and the part of it that is worked on at a time: a wave, some sequences and key heads. */
typedef struct hla_general_shape {
    hla_dtype dtype;
    bool causal, packed;
    int first_factor; /* HLA_MAX_FACTORS - P */
    int64_t rank[HLA_MAX_FACTORS];
    int64_t features, value_dim;                      /* R, V */
    int64_t queries, keys;                            /* lengths of the token axes */
    int64_t kv_heads, group;                          /* group: query heads of a key head */
    const int64_t *query_starts, *key_starts;         /* packed: device memory */
    const int64_t *key_lengths;                       /* NULL, or device memory */
    int64_t first_sequence, sequences, first_kv, kvs; /* the wave */
} hla_general_shape;

/* What makes y = weight (row, last) of a query, for kernels on tensor cores. */
typedef struct hla_general_record {
    uint32_t split_last;     /* last as a sum of two 16-bit numbers, */
    uint32_t rounded_weight; /* weight in 16 bits */
    float weight, last;
} hla_general_record;

typedef struct hla_general_side {
    bool queries;                            /* else keys */
    hla_cuda_view features[HLA_MAX_FACTORS]; /* [B,T,heads,R_p] */
    hla_cuda_view rows;                      /* [B,T,heads,V]; y = (factor x row, last) */
    float factor, last;                      /* of every token, */
    const float *weights;                    /* or, if not NULL, [...][2] of each token of the wave */
    const hla_general_record *records;       /* the same for kernels on tensor cores; those do without factor */
} hla_general_side;

/* How a side's tokens are cut into units of `length` tokens. Numbers rise from sequence to sequence; every sequence has
 * at least one, some may be empty. */
typedef struct hla_general_units {
    int64_t length;
    bool of_queries, of_keys; /* whose tokens count; both: the longer side's */
    int64_t first, count;     /* the units of a launch */
} hla_general_units;

/* slots[unit - first][kvs][R][V+1] = the sums of one unit; those without tokens, or that nobody will read, stay. */
typedef struct hla_general_build {
    hla_general_shape shape;
    hla_general_side side;
    hla_general_units units;
    float *slots;
    bool whole; /* the sum of all tokens of a sequence is wanted; else, causal, only sums before others' chunks */
} hla_general_build;

/* Not causal: states[sequence][kv] = initial + all units. Causal: each slot becomes the sum of those before it (in
 * reverse: after it). What goes on in the next launch is kept in states (not causal) or carry (causal). */
typedef struct hla_general_scan {
    hla_general_shape shape;
    hla_general_units units;
    bool queries, reverse, whole; /* of which side the sums are */
    float *slots, *states, *carry;
    const float *initial; /* NULL, or [N][Hkv][R][V+1] */
    float *final;         /* likewise; the sum of everything. May be initial */
    void *rounded;        /* NULL, or 16-bit [like states, or causal like slots, which stay][R][V + 8]: sigma times what
                             is read of a state, the last column as a sum of two numbers in columns V and V + 1, then
                             zeros */
    float sigma;
} hla_general_scan;

/* What tokens of `self` see of the other side. */
typedef struct hla_general_sight {
    hla_general_shape shape;
    hla_general_side self, other;
    hla_general_units units; /* of self, in which tiles are counted */
    const float *states;     /* NULL, or [sequence][kvs] (not causal) or [unit - first][kvs] x [R][V+1] */
    bool empty_start;        /* causal: the first chunk of a sequence (in reverse: the last) has an empty state */
    bool pairs;              /* add the pairs of the same chunk */
    int64_t chunk;           /* 0: a chunk is the whole sequence */
} hla_general_sight;

/* out[t][x] = n / (d + epsilon), zero where that denominator is zero, or scale x n. weights, not NULL: instead the two
 * numbers of each query that make its y, from its row of self, the gradient of out. */
typedef struct hla_general_query {
    hla_general_sight sight;
    hla_cuda_view out;
    bool normalised;
    float epsilon, scale;
    float *weights;
    hla_general_record *records; /* instead of weights, on tensor cores */
} hla_general_query;

typedef struct hla_general_gradient {
    hla_general_sight sight;
    hla_cuda_view gradients[HLA_MAX_FACTORS];
    float *scratch;       /* NULL if a block's sums fit in its shared memory */
    int64_t scratch_size; /* floats of a block */
    int64_t blocks;       /* with scratch: that many blocks */
} hla_general_gradient;

/* Floats of a block's sums in the gradient kernel, and whether they fit in shared memory. */
static inline int64_t hla_general_gradient_size(int64_t rank_sum) {
    return 2 * rank_sum * HLA_GENERAL_TILE;
}
bool hla_general_gradient_fits(int64_t rank_sum);

/* Each launches a kernel on a stream and returns a cudaError_t. */
int hla_general_launch_build(const hla_general_build *build, void *stream);
int hla_general_launch_scan(const hla_general_scan *scan, void *stream);
int hla_general_launch_query(const hla_general_query *query, void *stream);
int hla_general_launch_gradient(const hla_general_gradient *gradient, void *stream);

/* The same on tensor cores, of keys' sums and queries' reads, for float16 and bfloat16: ranks are multiples of 8, their
 * sum fits, value_dim is a multiple of 16 up to 128, rows of features and v are contiguous and aligned to 16 bytes,
 * those of what is written to 4. Units of tiles count 128 tokens. */
bool hla_general_mma_fits(int64_t rank_sum, int64_t value_dim);

/* Causal, in one launch with build and instead of scan: each unit's slot receives, rounded, the sum of the keys before
 * it, and what goes on in the next launch is kept in carry. */
typedef struct hla_general_running {
    float *carry;  /* [kvs][R][V+1] */
    void *rounded; /* NULL: each unit's sum to its slot; else 16-bit [units][kvs][R][V + 8], as in hla_general_scan */
    float sigma;
} hla_general_running;
int hla_general_mma_launch_build(const hla_general_build *build, const hla_general_running *to, void *stream);

/* Where readers find states, and the powers of two by which float16 numbers are kept in range (1 in bfloat16). */
typedef struct hla_general_reading {
    const void *rounded; /* states as a scan or a running build rounded them, */
    float sigma;         /* multiplied by this; */
    float score_scale;   /* scores, products of other factors' and y . y, are multiplied by this, */
    float pair_scale;    /* and sums over pairs so by that, the weights of other's records included */
    float weight_scale;  /* weights of records are multiplied by this */
} hla_general_reading;
int hla_general_mma_launch_query(const hla_general_query *query, const hla_general_reading *reading, void *stream);

/* gradient->gradients = scale (and self's weight, if there are records) times the gradients. */
int hla_general_mma_launch_gradient(const hla_general_gradient *gradient, const hla_general_reading *reading,
                                    float scale, void *stream);

#ifdef __cplusplus
}
#endif
#endif
