/* tests/attention/hadamard_cases.h - random problems in guarded memory, any layout, with an independent answer.
 *
 * Arrays end at a page that may not be touched; what lies between their elements, and keys beyond a sequence's length,
 * are NaN, so that a wrong read shows in the result. Outputs start as NaN.
 */
#ifndef HLA_TESTS_HADAMARD_CASES_H
#define HLA_TESTS_HADAMARD_CASES_H

#include "hla/hla.h"

typedef enum layout {
    LAYOUT_BTHD,
    LAYOUT_BHTD,
    LAYOUT_PADDED,     /* [B,T,H,X] with gaps after every axis */
    LAYOUT_STRIDED_X,  /* [B,H,T,X] with x two elements apart */
    LAYOUT_TRANSPOSED, /* [X,B,H,T]: x slowest */
    LAYOUT_COUNT
} layout;

typedef enum hadamard_mode {
    LENGTHS = 1, /* per-sequence key lengths, one of them 0 when batch > 1 */
    CAUSAL = 2,
    GROUPED = 4,  /* half as many key heads as heads, or 1 if heads is odd */
    PACKED = 8,   /* six sequences: one without queries, one without keys, one without either */
    STATEFUL = 16 /* initial state in, final state out */
} hadamard_mode;

typedef struct hadamard_case {
    int64_t batch, heads, queries, keys, value_dim;
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    layout layout;
    unsigned modes; /* sum of hadamard_mode; false: none */
} hadamard_case;

extern const hadamard_case hadamard_cases[];
extern const int hadamard_case_count;

/* An array in guarded memory and the view of it. */
typedef struct guarded {
    hla_tensor view;
    void *pages;
    size_t bytes; /* of the whole mapping */
    size_t span;  /* of the array */
} guarded;

guarded guarded_make(hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x, layout arrangement); /* all NaN */
void guarded_free(guarded *array);
void poison(guarded *array);
double get(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t x);
void set(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t x, double value); /* rounds */

typedef struct random_state {
    uint64_t bits;
} random_state;
double uniform(random_state *state); /* [0,1) */

/* What calls write: the forward pass the first two, the backward pass the others, D_INITIAL_STATE among them. */
typedef enum hadamard_output {
    OUT,
    FINAL_STATE,
    DV,
    D_INITIAL_STATE,
    DQ,                        /* of factor 0, and so on */
    DK = DQ + HLA_MAX_FACTORS, /* of factor 0, and so on */
    HADAMARD_OUTPUTS = DK + HLA_MAX_FACTORS
} hadamard_output;

/* Inputs, outputs and the exact answer of a case. Arrays of what the case does not have are empty: pages is NULL.
 * States are float32 views [N,Hkv,R,V+1]. */
typedef struct hadamard_data {
    hla_hadamard_problem problem;
    guarded q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, initial_state, d_out, d_final_state;
    int64_t *key_lengths, *query_starts, *key_starts;
    guarded output[HADAMARD_OUTPUTS];
    double *expected[HADAMARD_OUTPUTS];   /* dense */
    double naive_error[HADAMARD_OUTPUTS]; /* relative, of the formula in float with the output rounded to dtype */
} hadamard_data;

/* Normalised: features in [0,1); otherwise in (-1,1)/sqrt(R_p) and scale 0.5. The second one with d_out, d_final_state
 * and the gradients. */
hadamard_data hadamard_make(const hadamard_case *c, hla_dtype dtype, bool normalised, uint64_t seed);
hadamard_data hadamard_make_backward(const hadamard_case *c, hla_dtype dtype, bool normalised, uint64_t seed);
void hadamard_free(hadamard_data *data);

/* Random inputs over all of a tensor. */
void fill_uniform(const hla_tensor *tensor, double low, double high, random_state *state);

/* Fills data->expected and data->naive_error from the inputs as they are. */
void hadamard_answer(hadamard_data *data);

/* Plan and run, forward or backward, with outputs poisoned before. */
hla_status hadamard_run(hla_context *context, hadamard_data *data, const char *kernel);
hla_status hadamard_run_backward(hla_context *context, hadamard_data *data, const char *kernel);

/* Whether a kernel runs here and takes problems of every type and mode (but states): that of AVX512-BF16 only takes
 * bidirectional bfloat16 without states. */
bool hadamard_takes_all(const hla_kernel_info *info);

/* Whether a kernel runs here and takes the case: those of the quadratic form take no states. */
bool hadamard_takes(const hadamard_data *data, const hla_kernel_info *info);

/* ||found - expected|| / ||expected||; the norm of found itself where expected is all zero; NaN if it holds one. */
double hadamard_error(const hadamard_data *data, hadamard_output output);

/* The gate of docs/OPERATOR.md section 7, for hadamard_error. */
double hadamard_tolerance(const hadamard_data *data, hadamard_output output);

/* Fails the test unless outputs first ... last - 1 pass the gate and the gaps between their elements are untouched.
 * label: of the case, for the message. */
void hadamard_check(const hadamard_data *data, hadamard_output first, hadamard_output last, const char *label);

/* "out", "dq_features[1]", ... in a buffer of at least 32 characters */
void hadamard_output_name(char *name, hadamard_output output);

/* All numbers of an output, [b][t][h][x]; the caller frees. */
double *hadamard_copy(const guarded *array);
int64_t hadamard_count(const guarded *array);

/* Whether everything in out's memory that is no element still is as poisoned. */
bool gaps_untouched(const guarded *array);

#endif
