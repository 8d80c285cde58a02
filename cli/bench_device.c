/* cli/bench_device.c - hla bench attention --device cuda: the kernels of the GPU's tables on the cases of the CPU's
 * benchmark, each checked against the double-precision reference before it is timed by events. */
#include "cli/bench_device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_SECONDS 2e-3 /* short calls are repeated within a sample until it takes so long */
#define WARM_SECONDS 50e-3  /* calls before the first sample */
#define METHOD_SECONDS 1.0  /* of all samples; fewer of long calls */
#define MOST_CALLS 1000     /* within a sample or before the first one */

enum { MOST_SAMPLES = 1000 };

typedef struct bench_run {
    cli_session *session;
    const device_request *request;
    bench_device device;
    device_product *product;
    const char *without_product;
    double copy;
    device_result *results;
    int count, room, cases_done;
    bool wrong;
} bench_run;

/* One case: its arrays and what results are compared with. */
typedef struct bench_scene {
    bench_case problem;
    bench_data *host, *arrays; /* arrays: the GPU's */
    bench_gate gates[FUNCTION_COUNT];
    bool made[FUNCTION_COUNT];
} bench_scene;

static int ascending(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

double bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static const bench_method *method_of(bench_function function, hla_form form) {
    for (int m = 0; m < METHOD_COUNT; m++) {
        const bench_method *method = &bench_methods[m];
        if (method->function == function && !method->by_library &&
            (function == FUNCTION_SOFTMAX || method->form == form))
            return method;
    }
    return &bench_methods[0];
}

static hlv_status add_result(bench_run *run, const bench_scene *scene, const bench_method *method,
                             device_result **added) {
    if (run->count == run->room) {
        int room = run->room > 0 ? 2 * run->room : 64;
        device_result *grown = realloc(run->results, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            run->session->sentence = "out of memory";
            return HLV_ERROR_MEMORY;
        }
        run->results = grown;
        run->room = room;
    }
    *added = &run->results[run->count++];
    **added = (device_result){.method = method, .problem = scene->problem, .error = NAN, .peak = NAN};
    return HLV_OK;
}

/* The function's gate, made once a case; a backward pass wants the gradients of its rows on the GPU. */
static hlv_status prepare_gate(bench_run *run, bench_scene *scene, const bench_method *method) {
    bench_function function = method->function;
    if (scene->made[function]) return HLV_OK;
    scene->made[function] = true;
    return gate_open(run->session, run->device.cpu, method, &scene->problem, scene->host, &scene->gates[function]);
}

static hlv_status upload_gate_rows(bench_run *run, bench_scene *scene) {
    const operand *from = &scene->host->d_out_of_rows, *to = &scene->arrays->d_out_of_rows;
    if (!scene->problem.backward) return HLV_OK;
    size_t bytes = (size_t)from->array.count * hla_dtype_size(from->view.dtype);
    hla_status status = hla_device_copy(run->device.gpu, to->view.data, from->view.data, bytes);
    return status == HLA_OK ? HLV_OK : fail_operator(run->session, run->device.gpu, status);
}

/* Warms up, takes the samples, and the peak before and after them. */
static hlv_status time_call(bench_run *run, device_call *call, device_result *result) {
    cli_session *session = run->session;
    bench_device *device = &run->device;
    double samples[MOST_SAMPLES], first, before, after;
    hlv_status status = device_time(session, device, device_call_run, call, 1, &first);
    if (status == HLV_OK) status = device_product_measure(session, device, run->product, &before);
    if (status != HLV_OK) return status;
    int64_t inner = (int64_t)fmin(fmax(ceil(SAMPLE_SECONDS / first), 1), MOST_CALLS);
    int64_t warm = (int64_t)fmin(WARM_SECONDS / first, MOST_CALLS);
    int wanted = (int)fmin(run->request->repeat, fmax(METHOD_SECONDS / ((double)inner * first), 1));
    if (warm > 0) status = device_time(session, device, device_call_run, call, warm, &first);
    result->seconds = INFINITY;
    for (; result->samples < wanted && status == HLV_OK && !session_interrupted(); result->samples++) {
        double *sample = &samples[result->samples];
        status = device_time(session, device, device_call_run, call, inner, sample);
        result->seconds = fmin(result->seconds, *sample);
    }
    if (status == HLV_OK) status = device_product_measure(session, device, run->product, &after);
    if (status != HLV_OK || result->samples == 0) return status;
    result->seconds_median = bench_median(samples, result->samples);
    result->peak = (before + after) / 2;
    return HLV_OK;
}

/* One kernel of a case, or with NULL the plan's choice. One that does not take the case is left out, with a word. */
static hlv_status measure_kernel(bench_run *run, bench_scene *scene, const bench_method *method, const char *kernel,
                                 const char *planned) {
    cli_session *session = run->session;
    const bench_views views = data_views(scene->arrays, &scene->problem, method->function);
    const bench_views host = data_views(scene->host, &scene->problem, method->function);
    device_call call = {0};
    device_result *result;
    hlv_status status = add_result(run, scene, method, &result);
    if (status != HLV_OK) return status;
    if (kernel != NULL) snprintf(result->kernel, sizeof result->kernel, "%s", kernel);
    status = device_call_open(session, &run->device, method, &scene->problem, &views, kernel, &call);
    if (status == HLV_OK) snprintf(result->kernel, sizeof result->kernel, "%s", call.kernel);
    if (status == HLV_OK) status = prepare_gate(run, scene, method);
    if (status == HLV_OK) status = upload_gate_rows(run, scene);
    if (status == HLV_OK)
        status = device_gate_check(session, &run->device, &call, &scene->gates[method->function], &host,
                                   &scene->arrays->d_out_of_rows.view, &result->error);
    if (status == HLV_OK) {
        result->passed = result->error <= gate_limit(&scene->problem);
        run->wrong = run->wrong || !result->passed;
        result->planned = planned == NULL || strcmp(planned, call.kernel) == 0;
        result->workspace = call.bytes + call.kept_bytes;
        result->operations = method_operations(method, &scene->problem);
        result->bytes = function_bytes(method->function, &scene->problem);
        if (result->passed) status = time_call(run, &call, result);
    }
    device_call_close(&run->device, &call);
    if (status == HLV_ERROR_UNSUPPORTED || status == HLV_ERROR_MEMORY) {
        snprintf(result->lacks, sizeof result->lacks, "%s", session->sentence != NULL ? session->sentence : "");
        session->sentence = NULL;
        return HLV_OK;
    }
    return status;
}

static bool is_asked(const bench_run *run, const bench_method *method) {
    return run->request->methods[method - bench_methods];
}

/* Every kernel of the GPU's table; the one that a plan takes by itself is marked. */
static hlv_status measure_hadamard(bench_run *run, bench_scene *scene) {
    const bench_views views = data_views(scene->arrays, &scene->problem, FUNCTION_HADAMARD);
    hla_hadamard_problem description;
    hla_hadamard_plan *plan = NULL;
    hla_kernel_info kernel;
    char planned[64] = "";
    describe_hadamard(&bench_methods[0], &scene->problem, &views, NULL, &description);
    description.form = HLA_FORM_AUTO;
    if (hla_hadamard_plan_create(run->device.gpu, &description, &plan) == HLA_OK)
        snprintf(planned, sizeof planned, "%s", hla_hadamard_plan_kernel(plan));
    hla_hadamard_plan_free(plan);
    hlv_status status = HLV_OK;
    for (int i = 0; hla_hadamard_kernel(run->device.gpu, i, &kernel) && status == HLV_OK; i++) {
        const bench_method *method = method_of(FUNCTION_HADAMARD, kernel.form);
        if (run->request->planned_only && strcmp(kernel.name, planned) != 0) continue;
        if (kernel.runs_here && is_asked(run, method) && method_lacks(method, &scene->problem) == NULL)
            status = measure_kernel(run, scene, method, kernel.name, planned);
    }
    return status;
}

static hlv_status measure_case(bench_run *run, const bench_case *problem, bench_data *host, bench_data *arrays) {
    bench_scene scene = {.problem = *problem, .host = host, .arrays = arrays};
    const bench_method *linear = method_of(FUNCTION_LINEAR, HLA_FORM_STATE);
    const bench_method *softmax = method_of(FUNCTION_SOFTMAX, HLA_FORM_QUADRATIC);
    int first = run->count;
    hlv_status status = measure_hadamard(run, &scene);
    if (status == HLV_OK && is_asked(run, linear)) status = measure_kernel(run, &scene, linear, NULL, NULL);
    if (status == HLV_OK && is_asked(run, softmax)) status = measure_kernel(run, &scene, softmax, NULL, NULL);
    for (int f = 0; f < FUNCTION_COUNT; f++)
        gate_close(run->session, &scene.gates[f]);
    if (status != HLV_OK) return status;
    session_end_line(run->session);
    device_report_case(&run->results[first], run->count - first);
    fflush(stdout);
    return HLV_OK;
}

/* Every pass and mode of one list of ranks and number of tokens, on the same arrays. */
static hlv_status measure_tokens(bench_run *run, bench_case problem, int expected) {
    const device_request *request = run->request;
    bench_data host = {0}, arrays = {0};
    problem.backward = request->passes[1];
    hlv_status status = data_create(run->session, &problem, &host);
    if (status == HLV_OK) status = device_data_create(run->session, &run->device, &host, &arrays);
    for (int pass = 0; pass < 2; pass++)
        for (int mode = 0; mode < 2; mode++) {
            if (status != HLV_OK || !request->passes[pass] || !request->modes[mode]) continue;
            problem.backward = pass == 1;
            problem.causal = mode == 1;
            session_progress(run->session, "bench", run->cases_done++, expected);
            status = measure_case(run, &problem, &host, &arrays);
            if (status == HLV_OK && session_interrupted()) {
                run->session->sentence = "interrupted";
                status = HLV_ERROR_CANCELLED;
            }
        }
    device_data_free(&run->device, &arrays);
    data_free(run->session, &host);
    return status;
}

static hlv_status measure_all(bench_run *run) {
    const device_request *request = run->request;
    int expected = request->rank_lists * request->token_count * (request->passes[0] + request->passes[1]) *
                   (request->modes[0] + request->modes[1]);
    hlv_status status = device_product_create(run->session, &run->device, &run->product, &run->without_product);
    if (status == HLV_OK) status = device_copy_measure(run->session, &run->device, &run->copy);
    for (int i = 0; i < request->rank_lists; i++)
        for (int t = 0; t < request->token_count && status == HLV_OK; t++) {
            bench_case problem = request->ranks[i];
            problem.tokens = request->tokens[t];
            status = measure_tokens(run, problem, expected);
        }
    return status;
}

static hlv_status write_reports(bench_run *run) {
    const device_request *request = run->request;
    size_t memory = 0;
    (void)hla_device_memory(run->device.gpu, NULL, &memory);
    const device_report report = {
        run->results,         run->count, request->repeat, request->threads, hla_context_device_name(run->device.gpu),
        run->without_product, memory,     run->copy};
    printf("%s: copies %.2f TB/s (read and written)%s%s\n", report.device_name, 1e-12 * report.copy,
           report.without_product != NULL ? "; " : "", report.without_product != NULL ? report.without_product : "");
    hlv_status status = HLV_OK;
    if (request->json_file != NULL)
        status = write_report(run->session, request->json_file, device_report_json, &report);
    if (status == HLV_OK && request->plot_file != NULL)
        status = write_report(run->session, request->plot_file, device_report_plot, &report);
    return status;
}

hlv_status bench_on_device(cli_session *session, const device_request *request, bool *wrong) {
    bench_run run = {.session = session, .request = request};
    hlv_status status = check_report(session, request->json_file);
    if (status == HLV_OK) status = check_report(session, request->plot_file);
    if (status == HLV_OK) status = device_open(session, request->threads, &run.device);
    if (status == HLV_OK) status = measure_all(&run);
    session_end_line(session);
    if (status == HLV_OK || status == HLV_ERROR_CANCELLED) { /* interrupted: what has been measured is kept */
        hlv_status written = write_reports(&run);
        if (status == HLV_OK) status = written;
    }
    *wrong = run.wrong;
    if (session->sentence != NULL) { /* it may be a context's, which ends here */
        snprintf(session->message, sizeof session->message, "%s", session->sentence);
        session->sentence = session->message;
    }
    device_product_free(&run.device, run.product);
    device_close(&run.device);
    free(run.results);
    return status;
}
