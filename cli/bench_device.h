/* cli/bench_device.h - what `hla bench attention --device cuda` is made of: arrays and calls on the GPU, the measures
 * of the GPU itself, and the reports. Cases, inputs and the gate are those of attention_bench.h. */
#ifndef HLA_CLI_BENCH_DEVICE_H
#define HLA_CLI_BENCH_DEVICE_H

#include "cli/attention_bench.h"
#include "hla/device.h"

/* What is asked for. */
typedef struct device_request {
    const bench_case *ranks; /* of which tokens, causal and backward are set by the benchmark */
    int rank_lists;
    const int64_t *tokens;
    int token_count;
    bool methods[METHOD_COUNT], passes[2], modes[2]; /* of Hadamard's methods, kernels of that form are measured */
    bool planned_only;                               /* of Hadamard's kernels, the one that a plan takes */
    int repeat, threads;
    const char *json_file, *plot_file;
} device_request;

/* Measures all cases; *wrong: one result did not pass. */
hlv_status bench_on_device(cli_session *session, const device_request *request, bool *wrong);

/* The GPU, with a context that computes on it and one on the CPU for references. */
typedef struct bench_device {
    hla_context *gpu, *cpu;
    void *stream, *start, *end; /* events */
} bench_device;

hlv_status device_open(cli_session *session, int threads, bench_device *device);
void device_close(bench_device *device);

/* *seconds: of each of `calls` calls, the GPU's time between the first and the last; run is given user. */
typedef hla_status device_work(bench_device *device, void *user);
hlv_status device_time(cli_session *session, bench_device *device, device_work *run, void *user, int64_t calls,
                       double *seconds);

/* ---- arrays and calls ---- */

/* Copies of a bench's arrays in the GPU's memory, with the same views but for the addresses. */
hlv_status device_data_create(cli_session *session, bench_device *device, const bench_data *host, bench_data *made);
void device_data_free(bench_device *device, bench_data *made);

/* A planned call in the GPU's memory. */
typedef struct device_call {
    bool backward;
    bench_views views;
    hla_hadamard_plan *hadamard;
    hla_softmax_plan *softmax;
    void *workspace, *kept; /* the latter: backward of Hadamard, what is kept of the forward pass */
    size_t bytes, kept_bytes;
    char kernel[64];
} device_call;

/* kernel: NULL for the plan's choice. A problem that the kernel does not take is HLV_ERROR_UNSUPPORTED. */
hlv_status device_call_open(cli_session *session, bench_device *device, const bench_method *method,
                            const bench_case *problem, const bench_views *views, const char *kernel, device_call *call);
hla_status device_call_run(bench_device *device, void *call); /* a device_work */
void device_call_close(bench_device *device, device_call *call);

/* Runs the call on poisoned outputs, copies them to the host's and compares with the gate. A backward pass gets the
 * gradients of the gate's rows, in the GPU's memory. */
hlv_status device_gate_check(cli_session *session, bench_device *device, device_call *call, const bench_gate *gate,
                             const bench_views *host, const hla_tensor *d_out_of_rows, double *error);

/* ---- the GPU itself ---- */

/* A bfloat16 product of two 8192 x 8192 matrices by cuBLASLt, where that library is found. */
typedef struct device_product device_product;

/* *product is NULL without the library; *why then says so. */
hlv_status device_product_create(cli_session *session, bench_device *device, device_product **product,
                                 const char **why);
hlv_status device_product_measure(cli_session *session, bench_device *device, device_product *product,
                                  double *operations_a_second);
void device_product_free(bench_device *device, device_product *product);

/* Bytes a second, read and written, of a copy within the GPU's memory. */
hlv_status device_copy_measure(cli_session *session, bench_device *device, double *bytes_a_second);

/* ---- reports ---- */

typedef struct device_result {
    const bench_method *method; /* of linear and softmax, and of Hadamard by form */
    bench_case problem;
    char kernel[64], lacks[320]; /* not measured: why; else empty */
    bool passed, planned;
    int samples;
    double error, seconds, seconds_median, peak, operations, bytes; /* peak: of the product beside it, or NaN */
    size_t workspace;
} device_result;

typedef struct device_report {
    const device_result *results; /* those of a case follow one another */
    int count, repeat, threads;
    const char *device_name, *without_product; /* the latter: why there is no peak, else NULL */
    size_t memory;                             /* of the GPU */
    double copy;                               /* bytes a second */
} device_report;

/* Sorts them. */
double bench_median(double *values, int count);

bool device_measured(const device_result *result);
void device_report_case(const device_result *results, int count);
void device_report_json(FILE *file, const void *report);
void device_report_plot(FILE *file, const void *report);

#endif
