/* cli/bench_device_report.c - what `hla bench attention --device cuda` prints, writes as JSON and draws. */
#include "cli/bench_device.h"
#include "cli/json.h"
#include "cli/machine.h"
#include "cli/plot.h"

#include <math.h>
#include <string.h>

static const char *const pass_names[] = {"forward", "backward"}, *const mode_names[] = {"bidirectional", "causal"};

bool device_measured(const device_result *result) {
    return result->lacks[0] == '\0' && result->passed && result->samples > 0;
}

static void own_ranks(const device_result *result, char *text, size_t size) {
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    function_ranks(&result->problem, result->method->function, &factors, rank);
    ranks_text(text, size, result->method->function == FUNCTION_SOFTMAX ? 0 : factors, rank);
}

static bool same_case(const bench_case *a, const bench_case *b) {
    return a->batch == b->batch && a->heads == b->heads && a->tokens == b->tokens && a->backward == b->backward &&
           a->causal == b->causal && a->factors == b->factors &&
           memcmp(a->rank, b->rank, (size_t)a->factors * sizeof *a->rank) == 0;
}

/* How many times as long softmax takes; NaN without it. */
static double times_softmax(const device_result *results, int count, const device_result *result) {
    for (int i = 0; i < count && device_measured(result); i++)
        if (results[i].method->function == FUNCTION_SOFTMAX && device_measured(&results[i]) &&
            same_case(&results[i].problem, &result->problem))
            return results[i].seconds_median / result->seconds_median;
    return NAN;
}

static void print_row(const device_result *results, int count, const device_result *result) {
    char name[64], ranks[32];
    own_ranks(result, ranks, sizeof ranks);
    snprintf(name, sizeof name, "%s%s%s", result->method->name, result->method->function == FUNCTION_LINEAR ? " " : "",
             result->method->function == FUNCTION_LINEAR ? ranks : "");
    printf("  %-20s %-22s%c ", name, result->kernel, result->planned ? '*' : ' ');
    if (result->lacks[0] != '\0') {
        printf("%s\n", result->lacks);
        return;
    }
    if (!result->passed) {
        printf("WRONG: relative error %.2e, wanted at most %.0e\n", result->error, gate_limit(&result->problem));
        return;
    }
    if (result->samples == 0) {
        printf("was interrupted\n");
        return;
    }
    double rate = result->operations / result->seconds_median;
    printf("%10.4f %10.4f %8.1f %6.1f%% %8.1f %8.2f %8.1e %10.1f\n", 1e3 * result->seconds_median,
           1e3 * result->seconds, 1e-12 * rate, 100 * rate / result->peak, 1e-12 * result->peak,
           times_softmax(results, count, result), result->error, (double)result->workspace / 0x1p20);
}

void device_report_case(const device_result *results, int count) {
    if (count == 0) return;
    const bench_case *problem = &results[0].problem;
    char ranks[32];
    ranks_text(ranks, sizeof ranks, problem->factors, problem->rank);
    printf("%s, %s, %s: B %lld, H %lld, T %lld, D %lld, V %lld, ranks %s\n", pass_names[problem->backward],
           mode_names[problem->causal], bench_dtype_names[problem->dtype], (long long)problem->batch,
           (long long)problem->heads, (long long)problem->tokens, (long long)problem->dim,
           (long long)problem->value_dim, ranks);
    printf("  %-20s %-23s %10s %10s %8s %7s %8s %8s %8s %10s\n", "method", "kernel (* is planned)", "median ms",
           "best ms", "TFLOP/s", "share", "of peak", "softmax", "error", "space MiB");
    for (int i = 0; i < count; i++)
        print_row(results, count, &results[i]);
    printf("\n");
}

static void run_json(json_writer *out, const device_report *report, const device_result *result) {
    const bench_case *problem = &result->problem;
    bool measured = device_measured(result);
    char ranks[32];
    own_ranks(result, ranks, sizeof ranks);
    json_open(out, NULL, '{');
    json_text(out, "method", result->method->name);
    json_text(out, "pass", pass_names[problem->backward]);
    json_text(out, "mode", mode_names[problem->causal]);
    json_text(out, "dtype", bench_dtype_names[problem->dtype]);
    json_whole(out, "B", problem->batch);
    json_whole(out, "H", problem->heads);
    json_whole(out, "T", problem->tokens);
    json_whole(out, "D", problem->dim);
    json_whole(out, "V", problem->value_dim);
    json_text(out, "ranks", ranks[0] != '\0' ? ranks : NULL);
    json_text(out, "kernel", result->kernel);
    json_bool(out, "planned", result->planned);
    json_text(out, "lacks", result->lacks[0] != '\0' ? result->lacks : NULL);
    json_whole(out, "samples", result->samples);
    json_number(out, "seconds", measured ? result->seconds : NAN);
    json_number(out, "seconds_median", measured ? result->seconds_median : NAN);
    json_number(out, "flops", result->operations);
    json_number(out, "gflops", measured ? 1e-9 * result->operations / result->seconds_median : NAN);
    json_number(out, "peak_gflops", measured ? 1e-9 * result->peak : NAN);
    json_number(out, "peak_share", measured ? result->operations / result->seconds_median / result->peak : NAN);
    json_number(out, "bytes", result->bytes);
    json_whole(out, "workspace_bytes", (int64_t)result->workspace);
    json_number(out, "relative_error", result->error);
    json_number(out, "times_faster_than_softmax", times_softmax(report->results, report->count, result));
    json_close(out, '}');
}

void device_report_json(FILE *file, const void *user) {
    const device_report *report = user;
    machine_info machine;
    double peak = NAN;
    read_machine(&machine);
    for (int i = 0; i < report->count; i++)
        if (device_measured(&report->results[i])) peak = fmax(peak, 1e-9 * report->results[i].peak);
    json_writer out = {.out = file};
    json_open(&out, NULL, '{');
    machine_json(&out, &machine, report->threads);
    json_open(&out, "device", '{');
    json_text(&out, "name", report->device_name);
    json_whole(&out, "memory_bytes", (int64_t)report->memory);
    json_number(&out, "copy_gbytes", 1e-9 * report->copy);
    json_close(&out, '}');
    json_open(&out, "peak", '{'); /* the highest that was measured */
    json_text(&out, "of",
              report->without_product != NULL ? report->without_product
                                              : "bf16 product 8192 x 8192 x 8192 by cuBLASLt");
    json_number(&out, "gflops", peak);
    json_close(&out, '}');
    json_whole(&out, "repeat", report->repeat);
    json_open(&out, "runs", '[');
    for (int i = 0; i < report->count; i++)
        run_json(&out, report, &report->results[i]);
    json_close(&out, ']');
    json_close(&out, '}');
}

/* The results of a line differ in the tokens only. */
static bool same_line(const device_result *a, const device_result *b) {
    bench_case other = b->problem;
    other.tokens = a->problem.tokens;
    return a->method == b->method && strcmp(a->kernel, b->kernel) == 0 && same_case(&a->problem, &other);
}

/* Softmax is the same whatever the ranks are. */
static bool is_drawn(const device_report *report, int i) {
    const device_result *result = &report->results[i];
    if (!device_measured(result)) return false;
    for (int j = 0; j < i; j++) {
        const device_result *other = &report->results[j];
        bool repeated = result->method->function == FUNCTION_SOFTMAX && other->method == result->method &&
                        other->problem.backward == result->problem.backward &&
                        other->problem.causal == result->problem.causal;
        if (device_measured(other) && (repeated || same_line(result, other))) return false;
    }
    return true;
}

/* Dashes: which of the lines of this method it is. */
static plot_line start_line(const device_report *report, int i, const plot_line *lines, int count) {
    const device_result *result = &report->results[i];
    plot_line line = {.colour = (int)(result->method - bench_methods)};
    char ranks[32];
    own_ranks(result, ranks, sizeof ranks);
    for (int l = 0; l < count; l++)
        line.dashes += lines[l].colour == line.colour;
    snprintf(line.name, sizeof line.name, "%.20s%s%s%s%s", result->kernel, ranks[0] != '\0' ? ", " : "", ranks,
             result->problem.backward ? ", backward" : "", result->problem.causal ? ", causal" : "");
    for (int j = i; j < report->count && line.points < PLOT_POINTS; j++)
        if (device_measured(&report->results[j]) && same_line(result, &report->results[j])) {
            line.x[line.points] = (double)report->results[j].problem.tokens;
            line.y[line.points++] = report->results[j].seconds_median;
        }
    return line;
}

void device_report_plot(FILE *file, const void *user) {
    const device_report *report = user;
    plot_line lines[PLOT_LINES];
    char subtitle[200] = "";
    int count = 0;
    for (int i = 0; i < report->count && count < PLOT_LINES; i++)
        if (is_drawn(report, i)) {
            lines[count] = start_line(report, i, lines, count);
            count++;
        }
    if (report->count > 0) {
        const bench_case *problem = &report->results[0].problem;
        snprintf(subtitle, sizeof subtitle, "batch %lld, %lld heads, D %lld, V %lld, %s, %.80s",
                 (long long)problem->batch, (long long)problem->heads, (long long)problem->dim,
                 (long long)problem->value_dim, bench_dtype_names[problem->dtype], report->device_name);
    }
    const plot_data plot = {"Attention: time against tokens", subtitle, "tokens", "time of one call", lines, count};
    print_plot(file, &plot);
}
