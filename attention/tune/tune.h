/* attention/tune/tune.h - measured values that decide between algorithms, one file an instruction set (baseline.c,
 * avx2.c, avx512.c, avx512_bf16.c, neon.c, cuda.c), each with the machine and the measurement it comes from.
 */
#ifndef HLA_TUNE_H
#define HLA_TUNE_H

#include "attention/simd/isa.h"

/* Costs in units of one multiply-add of the register tile. */
typedef struct hla_tune {
    double state_feature;      /* state form: making one feature of one token, and its share of z or d */
    double state_odd_feature;  /* the same where the inner rank is no number of whole vectors */
    double state_token;        /* state form: packing and writing one number of a token */
    double quadratic_score;    /* quadratic form: storing or multiplying in one score of one factor */
    double quadratic_token;    /* quadratic form: packing (transposing) one number of a token */
    double quadratic_slowdown; /* multiply-adds of the quadratic form relative to the state form's: short tiles */
} hla_tune;

extern const hla_tune hla_tune_baseline, hla_tune_avx2, hla_tune_avx512, hla_tune_avx512_bf16, hla_tune_neon,
    hla_tune_cuda;

const hla_tune *hla_tune_of(hla_isa isa);

#endif
