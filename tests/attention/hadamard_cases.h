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

typedef struct hadamard_case {
    int64_t batch, heads, queries, keys, value_dim;
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    layout layout;
    bool lengths; /* per-sequence key lengths, one of them 0 when batch > 1 */
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

/* Inputs, output and the exact answer of a case. */
typedef struct hadamard_data {
    hla_hadamard_problem problem;
    guarded q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, out;
    int64_t *key_lengths;
    double *expected;   /* [B,Tq,H,V] */
    double naive_error; /* relative, of the formula in float with the output rounded to dtype */
} hadamard_data;

/* Normalised: features in [0,1); otherwise in (-1,1)/sqrt(R_p) and scale 0.5. */
hadamard_data hadamard_make(const hadamard_case *c, hla_dtype dtype, bool normalised, uint64_t seed);
void hadamard_free(hadamard_data *data);

/* Fills data->expected and data->naive_error from the inputs as they are. */
void hadamard_answer(hadamard_data *data);

/* Plans and runs; *status tells what happened; out is poisoned before. */
hla_status hadamard_run(hla_context *context, hadamard_data *data, const char *kernel);

/* ||out - expected|| / ||expected||; the norm of out itself where expected is all zero; NaN if out holds one. */
double hadamard_error(const hadamard_data *data);

/* The gate of docs/OPERATOR.md section 7, for hadamard_error. */
double hadamard_tolerance(const hadamard_data *data);

/* Whether everything in out's memory that is no element still is as poisoned. */
bool gaps_untouched(const guarded *array);

#endif
