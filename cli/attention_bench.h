/* cli/attention_bench.h - what `hla bench attention` is made of: the methods it compares, the arrays they work on, the
 * gate each result passes before it is timed, and the reports. */
#ifndef HLA_CLI_ATTENTION_BENCH_H
#define HLA_CLI_ATTENTION_BENCH_H

#include "cli/materialised.h"
#include "cli/operator.h"
#include "cli/peak.h"

/* One problem. Letters as in docs/OPERATOR.md: as many queries as keys, D wide for softmax, values V wide. */
typedef struct bench_case {
    int64_t batch, heads, tokens, dim, value_dim;
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    hla_dtype dtype;
    bool causal, backward;
} bench_case;

/* What is computed; methods of the same function share inputs and reference. */
typedef enum bench_function { FUNCTION_HADAMARD, FUNCTION_LINEAR, FUNCTION_SOFTMAX, FUNCTION_COUNT } bench_function;

/* The tensors of a call: q and k are features, or for softmax queries and keys. */
typedef struct bench_views {
    int parts; /* of q and k: P, or 1 for softmax */
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, out, d_out;
    hla_tensor dq[HLA_MAX_FACTORS], dk[HLA_MAX_FACTORS], dv;
} bench_views;

enum { MAX_OUTPUTS = 2 * HLA_MAX_FACTORS + 1 };

typedef struct bench_method {
    const char *name, *label; /* as options and reports call it; two words for people */
    bench_function function;
    hla_form form;
    bool by_library; /* oneDNN on materialised features */
} bench_method;

#define METHOD_COUNT 5
extern const bench_method bench_methods[METHOD_COUNT];

/* NULL, or what keeps the method from this case: "has no backward pass". */
const char *method_lacks(const bench_method *method, const bench_case *problem);

/* Ranks of a function: of linear, one factor of the same state rank as far as the library goes. */
void function_ranks(const bench_case *problem, bench_function function, int *factors, int64_t rank[HLA_MAX_FACTORS]);
void ranks_text(char *text, size_t size, int factors, const int64_t *rank); /* "32x32" */

/* Operations that the method's formula takes, a multiply-add counting two, and bytes of inputs read and results
 * written once. */
double method_operations(const bench_method *method, const bench_case *problem);
double function_bytes(bench_function function, const bench_case *problem);

/* The operators' words for a case. kernel: NULL, or the name of one. The numbers of queries and keys are those of the
 * views. */
void describe_hadamard(const bench_method *method, const bench_case *problem, const bench_views *views,
                       const char *kernel, hla_hadamard_problem *made);
void describe_softmax(const bench_case *problem, const bench_views *views, const char *kernel,
                      hla_softmax_problem *made);

/* A planned call on views, to be run again and again. */
typedef struct bench_call {
    bool backward;
    bench_views views;
    hla_hadamard_plan *hadamard;
    hla_softmax_plan *softmax;
    materialised *library;
    hlv_array workspace;
    size_t bytes; /* of workspace */
    char kernel[64];
    bool planned; /* the plan would choose this form by itself */
} bench_call;

/* kernel: NULL, or the name of one. The numbers of queries and keys are those of the views. */
hlv_status call_open(cli_session *session, hla_context *hla, const bench_method *method, const bench_case *problem,
                     const bench_views *views, const char *kernel, bench_call *call);
hlv_status call_run(cli_session *session, hla_context *hla, bench_call *call);
void call_close(cli_session *session, bench_call *call);

/* Arrays for up to `tokens` tokens of each function. */
typedef struct bench_data {
    operand inputs[FUNCTION_COUNT][2][HLA_MAX_FACTORS];    /* q, k */
    operand gradients[FUNCTION_COUNT][2][HLA_MAX_FACTORS]; /* dq, dk */
    operand v, out, dv, d_out, d_out_of_rows;              /* the last: only the gate's rows are not zero */
} bench_data;

hlv_status data_create(cli_session *session, const bench_case *largest, bench_data *data);
void data_free(cli_session *session, bench_data *data);
bench_views data_views(const bench_data *data, const bench_case *problem, bench_function function);

/* The tensors that a call writes: out, or dq, dk, dv. Returns how many; of_queries: how many of them, the first ones,
 * have a row for each query. */
int list_outputs(const bench_views *views, bool backward, const hla_tensor *list[MAX_OUTPUTS], int *of_queries);

/* Tokens first, first + step ... of a view. */
hla_tensor narrow(const hla_tensor *view, int64_t first, int64_t count, int64_t step);

/* Results of the reference kernel for a few queries against all their keys. */
typedef struct bench_gate {
    int64_t rows, step;            /* queries step - 1, 2 step - 1 ... */
    int outputs;                   /* out, or every gradient */
    operand expected[MAX_OUTPUTS]; /* float32 */
} bench_gate;

hlv_status gate_open(cli_session *session, hla_context *hla, const bench_method *method, const bench_case *problem,
                     bench_data *data, bench_gate *gate);
void gate_close(cli_session *session, bench_gate *gate);

/* Runs the call on poisoned outputs; the largest relative error of an output. A backward pass gets gradients of the
 * gate's rows only, so that the reference's few queries have the same gradients of all keys. */
hlv_status gate_check(cli_session *session, hla_context *hla, bench_call *call, const bench_gate *gate,
                      const bench_data *data, double *error);
/* The same of outputs that are there. */
double gate_error(const bench_gate *gate, const bench_views *views, bool backward);
double gate_limit(const bench_case *problem);

typedef struct bench_result {
    const bench_method *method;
    bench_case problem;
    const char *lacks; /* not measured: why; else NULL */
    bool passed, planned;
    char kernel[64];
    double error, seconds, seconds_median, peak, peak_share, peak_share_median, operations, bytes;
    size_t workspace;
    peak_unit unit;
} bench_result;

/* count results, METHOD_COUNT of each case in the order of bench_methods. */
typedef struct bench_report {
    const bench_result *results;
    int count, threads, repeat;
} bench_report;

void report_case(const bench_result *results, int threads);
void report_json(FILE *file, const void *report);
void report_plot(FILE *file, const void *report);

extern const char *const bench_dtype_names[]; /* places as in hla_dtype */

#endif
