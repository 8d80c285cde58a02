/* cli/attention_report.c - what `hla bench attention` prints, writes as JSON and draws. */
#include "cli/attention_bench.h"
#include "cli/json.h"
#include "cli/machine.h"
#include "cli/plot.h"

#include <math.h>
#include <string.h>

static const char *const pass_names[] = {"forward", "backward"}, *const mode_names[] = {"bidirectional", "causal"};

static bool measured(const bench_result *result) {
    return result->lacks == NULL && result->passed;
}

static void own_ranks(const bench_result *result, char *text, size_t size) {
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
    function_ranks(&result->problem, result->method->function, &factors, rank);
    ranks_text(text, size, result->method->function == FUNCTION_SOFTMAX ? 0 : factors, rank);
}

static void print_row(const bench_result *results, int m) {
    const bench_result *result = &results[m];
    char name[40], ranks[32];
    own_ranks(result, ranks, sizeof ranks);
    snprintf(name, sizeof name, "%s%s%s%s", result->method->name, result->planned ? "*" : "",
             result->method->function == FUNCTION_LINEAR ? " " : "",
             result->method->function == FUNCTION_LINEAR ? ranks : "");
    if (result->lacks != NULL) {
        printf("  %-20s %s\n", name, result->lacks);
        return;
    }
    if (!result->passed) {
        printf("  %-20s %-20s WRONG: relative error %.2e, wanted at most %.0e\n", name, result->kernel, result->error,
               gate_limit(&result->problem));
        return;
    }
    printf("  %-20s %-20s %10.3f %10.3f %8.1f %5.1f%% %8.1f %8.2f %8.1e ", name, result->kernel, 1e3 * result->seconds,
           1e3 * result->seconds_median, 1e-9 * result->operations / result->seconds, 100 * result->peak_share,
           1e-9 * result->peak, 1e-6 * result->bytes, result->error);
    for (int other = 0; other < METHOD_COUNT; other++)
        if (measured(&results[other]))
            printf(" %7.3f", result->seconds / results[other].seconds);
        else
            printf(" %7s", "-");
    printf("\n");
}

void report_case(const bench_result *results, int threads) {
    static const char *const heads[METHOD_COUNT] = {"state", "quadr.", "mater.", "softm.", "linear"};
    const bench_case *problem = &results[0].problem;
    char ranks[32];
    ranks_text(ranks, sizeof ranks, problem->factors, problem->rank);
    printf("%s, %s, %s: B %lld, H %lld, T %lld, D %lld, V %lld, ranks %s, %d threads\n", pass_names[problem->backward],
           mode_names[problem->causal], bench_dtype_names[problem->dtype], (long long)problem->batch,
           (long long)problem->heads, (long long)problem->tokens, (long long)problem->dim,
           (long long)problem->value_dim, ranks, threads);
    printf("  %-20s %-20s %10s %10s %8s %6s %8s %8s %8s  ratio to", "method", "kernel", "best ms", "median ms",
           "GFLOP/s", "share", "of peak", "MB", "error");
    for (int m = 0; m < METHOD_COUNT; m++)
        printf("%*s", m == 0 ? 1 : 8, "");
    printf("\n%*s", 106, "");
    for (int m = 0; m < METHOD_COUNT; m++)
        printf(" %7s", heads[m]);
    printf("\n");
    for (int m = 0; m < METHOD_COUNT; m++)
        if (results[m].lacks == NULL || strcmp(results[m].lacks, "was not asked") != 0) print_row(results, m);
    printf("\n");
}

static void run_json(json_writer *out, const bench_report *report, int i) {
    const bench_result *result = &report->results[i], *others = result - i % METHOD_COUNT;
    const bench_case *problem = &result->problem;
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
    json_whole(out, "threads", report->threads);
    json_text(out, "kernel", result->kernel);
    json_bool(out, "planned", result->planned);
    json_number(out, "seconds", measured(result) ? result->seconds : NAN);
    json_number(out, "seconds_median", measured(result) ? result->seconds_median : NAN);
    json_number(out, "flops", result->operations);
    json_number(out, "gflops", measured(result) ? 1e-9 * result->operations / result->seconds : NAN);
    json_text(out, "peak_unit", peak_name(result->unit));
    json_number(out, "peak_gflops", measured(result) ? 1e-9 * result->peak : NAN);
    json_number(out, "peak_share", measured(result) ? result->peak_share : NAN);
    json_number(out, "peak_share_median", measured(result) ? result->peak_share_median : NAN);
    json_number(out, "bytes", result->bytes);
    json_whole(out, "workspace_bytes", (int64_t)result->workspace);
    json_number(out, "relative_error", result->error);
    json_open(out, "ratios", '{');
    for (int m = 0; m < METHOD_COUNT; m++)
        if (measured(&others[m]) && measured(result))
            json_number(out, others[m].method->name, result->seconds / others[m].seconds);
    json_close(out, '}');
    json_close(out, '}');
}

void report_json(FILE *file, const void *user) {
    const bench_report *report = user;
    machine_info machine;
    double peak = NAN;
    read_machine(&machine);
    for (int i = 0; i < report->count; i++)
        if (measured(&report->results[i])) peak = fmax(peak, 1e-9 * report->results[i].peak);
    json_writer out = {.out = file};
    json_open(&out, NULL, '{');
    machine_json(&out, &machine, report->threads);
    json_open(&out, "peak", '{'); /* the highest that was measured */
    json_number(&out, "gflops", peak);
    json_whole(&out, "threads", report->threads);
    json_close(&out, '}');
    json_whole(&out, "repeat", report->repeat);
    json_open(&out, "runs", '[');
    for (int i = 0; i < report->count; i++)
        if (report->results[i].lacks == NULL) run_json(&out, report, i);
    json_close(&out, ']');
    json_close(&out, '}');
}

/* The results of a line: those of the same method and the same problem but for the tokens. */
static bool same_line(const bench_result *a, const bench_result *b) {
    bench_case left = a->problem, right = b->problem;
    left.tokens = right.tokens = 0;
    return a->method == b->method && left.backward == right.backward && left.causal == right.causal &&
           left.factors == right.factors &&
           memcmp(left.rank, right.rank, (size_t)left.factors * sizeof *left.rank) == 0;
}

/* Softmax is the same whatever the ranks are. */
static bool is_drawn(const bench_report *report, int i) {
    if (!measured(&report->results[i])) return false;
    for (int j = 0; j < i; j++) {
        bool repeated = report->results[i].method->function == FUNCTION_SOFTMAX &&
                        report->results[j].method == report->results[i].method &&
                        report->results[j].problem.backward == report->results[i].problem.backward &&
                        report->results[j].problem.causal == report->results[i].problem.causal;
        if (measured(&report->results[j]) && (repeated || same_line(&report->results[i], &report->results[j])))
            return false;
    }
    return true;
}

/* Which of the lines of this method it is: its dashes. */
static plot_line start_line(const bench_report *report, int i, const plot_line *lines, int count) {
    const bench_result *result = &report->results[i];
    plot_line line = {.colour = (int)(result->method - bench_methods)};
    char ranks[32];
    own_ranks(result, ranks, sizeof ranks);
    for (int l = 0; l < count; l++)
        line.dashes += lines[l].colour == line.colour;
    snprintf(line.name, sizeof line.name, "%s%s%s%s%s", result->method->label, ranks[0] != '\0' ? ", " : "", ranks,
             result->problem.backward ? ", backward" : "", result->problem.causal ? ", causal" : "");
    for (int j = i; j < report->count && line.points < PLOT_POINTS; j++)
        if (measured(&report->results[j]) && same_line(result, &report->results[j])) {
            line.x[line.points] = (double)report->results[j].problem.tokens;
            line.y[line.points++] = report->results[j].seconds;
        }
    return line;
}

void report_plot(FILE *file, const void *user) {
    const bench_report *report = user;
    const bench_case *problem = &report->results[0].problem;
    plot_line lines[PLOT_LINES];
    int count = 0;
    char subtitle[200];
    machine_info machine;
    read_machine(&machine);
    for (int i = 0; i < report->count && count < PLOT_LINES; i++)
        if (is_drawn(report, i)) {
            lines[count] = start_line(report, i, lines, count);
            count++;
        }
    snprintf(subtitle, sizeof subtitle, "batch %lld, %lld heads, D %lld, V %lld, %s, %d threads, %.80s",
             (long long)problem->batch, (long long)problem->heads, (long long)problem->dim,
             (long long)problem->value_dim, bench_dtype_names[problem->dtype], report->threads, machine.processor);
    const plot_data plot = {"Attention: time against tokens", subtitle, "tokens", "time of one call", lines, count};
    print_plot(file, &plot);
}
