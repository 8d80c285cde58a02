/* cli/operator.h - running the operators on float32 arrays: what `attend`, `doctor` and `bench attention` share. */
#ifndef HLA_CLI_OPERATOR_H
#define HLA_CLI_OPERATOR_H

#include "cli/session.h"
#include "hla/hla.h"

/* An array [B,T,H,X] of the operator's element type, and its view. */
typedef struct operand {
    hlv_array array; /* room; bf16 elements use half of it */
    hla_tensor view;
} operand;

/* Room for [b,t,h,x] elements of dtype. */
hlv_status operand_create(hlv_context *ctx, hla_dtype dtype, const int64_t shape[4], operand *operand);
void operand_free(hlv_context *ctx, operand *operand);
void operand_from_floats(operand *operand, const float *floats); /* rounds to nearest even where the type is bf16 */
void operand_to_floats(float *floats, const operand *operand);

/* One attention: what was planned and how long it took. */
typedef struct attention_run {
    hla_form form; /* of Hadamard */
    char kernel[64], explain[512];
    double seconds; /* the fastest of the repetitions */
} attention_run;

/* Plans and runs; context is the session's for memory, hla for the operators. On failure session->sentence is set. */
hlv_status run_hadamard(cli_session *session, hla_context *hla, const hla_hadamard_problem *problem, const operand *out,
                        const operand *q_features, const operand *k_features, const operand *v, int repeat,
                        attention_run *run);
hlv_status run_softmax(cli_session *session, hla_context *hla, const hla_softmax_problem *problem, const operand *out,
                       const operand *q, const operand *k, const operand *v, int repeat, attention_run *run);

/* A failed libhla call: its sentence becomes the session's. */
hlv_status fail_operator(cli_session *session, const hla_context *hla, hla_status status);

/* ||a - b|| / ||b|| in double; NaN if either holds one. */
double relative_error(const float *a, const float *b, int64_t count);

#endif
