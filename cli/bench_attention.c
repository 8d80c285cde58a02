/* cli/bench_attention.c - hla bench attention: the operator against softmax attention over the number of tokens. */
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/machine.h"
#include "cli/model.h"
#include "cli/operator.h"
#include "cli/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define GATE_QUERIES 16 /* rows of each result that the reference computes again */

typedef struct bench_settings {
    cli_common common;
    count_list tokens;
    int heads, dim, factors, rank, repeat, dtype, form;
    const char *json_file, *plot_file;
} bench_settings;

static const char *const forms[] = {"auto", "state", "quadratic", NULL}; /* places as in hla_form */
static const double gate_limits[] = {[HLA_F32] = 1e-5, [HLA_BF16] = 1e-2};

static const cli_option table[] = {
    {"tokens", 'T', OPTION_COUNTS, offsetof(bench_settings, tokens), "N,N,...",
     "numbers of tokens (default: 256,512,1024,2048,4096,8192)", 1, 1 << 24, NULL},
    {"heads", 'H', OPTION_INTEGER, offsetof(bench_settings, heads), "N", "heads of the attention (default: 4)", 1, 1024,
     NULL},
    {"dim", 'D', OPTION_INTEGER, offsetof(bench_settings, dim), "N", "width of a head (default: 64)", 1, 4096, NULL},
    {"factors", 'P', OPTION_INTEGER, offsetof(bench_settings, factors), "N", "factors of Hadamard (default: 2)", 1,
     HLA_MAX_FACTORS, NULL},
    {"rank", 'R', OPTION_INTEGER, offsetof(bench_settings, rank), "N", "of each factor (default: 32)", 1, HLA_MAX_RANK,
     NULL},
    {"form", 0, OPTION_CHOICE, offsetof(bench_settings, form), NULL, "how Hadamard is computed (default: auto)", 0, 0,
     forms},
    {"dtype", 0, OPTION_CHOICE, offsetof(bench_settings, dtype), NULL, "of inputs and result (default: f32)", 0, 0,
     dtype_names},
    {"repeat", 'r', OPTION_INTEGER, offsetof(bench_settings, repeat), "N",
     "runs of each; the fastest counts (default: 3)", 1, 1000, NULL},
    {"json", 'j', OPTION_TEXT, offsetof(bench_settings, json_file), "FILE", "write the measurements there", 0, 0, NULL},
    {"plot", 0, OPTION_TEXT, offsetof(bench_settings, plot_file), "FILE.svg", "draw time against tokens there", 0, 0,
     NULL},
    {0}};

static int run(int argc, char **argv);

const cli_command bench_attention_command = {
    "bench attention",
    "Measures both attentions over the number of tokens.",
    "[--json FILE] [--plot FILE.svg] [options]",
    table,
    "Hadamard and softmax attention run on random inputs on the same threads in one\n"
    "process; Hadamard starts from given features. A time counts only if the result\n"
    "passed: rows of it are computed again by the double-precision reference, and\n"
    "must agree to 1e-5 (f32) or 1e-2 (bf16). Exit status 1 if one did not.\n"
    "\n"
    "Examples:\n"
    "  hla bench attention --plot attention.svg\n"
    "  hla bench attention --tokens 1024,4096,16384 --rank 16 --json attention.json\n",
    run};

typedef struct measurement {
    int64_t tokens;
    attention_run run[2]; /* Hadamard, softmax */
    double error[2];      /* against the reference */
    double flops[2];
} measurement;

/* Inputs for the largest T; smaller ones are views of them. */
typedef struct bench_state {
    cli_session session;
    hla_context *hla;
    operand q_features[HLA_MAX_FACTORS], k_features[HLA_MAX_FACTORS], q, k, v, out, expected;
    measurement rows[MAX_LIST];
    bool wrong;
} bench_state;

static uint32_t next(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

static hlv_status create_operand(bench_state *state, const bench_settings *settings, int64_t tokens, int64_t width,
                                 double low, double high, uint32_t seed, operand *made) {
    hlv_array array = {0};
    int64_t shape[4] = {1, tokens, settings->heads, width};
    hlv_status status = operand_create(state->session.ctx, (hla_dtype)settings->dtype, shape, made);
    if (status == HLV_OK) status = hlv_array_create(state->session.ctx, 4, shape, &array);
    for (int64_t i = 0; status == HLV_OK && i < array.count; i++)
        array.data[i] = (float)(low + (high - low) * (double)next(&seed) / 0x1p24);
    if (status == HLV_OK) operand_from_floats(made, array.data);
    hlv_array_free(state->session.ctx, &array);
    return status;
}

static hlv_status create_operands(bench_state *state, const bench_settings *settings, int64_t T) {
    hlv_status status = create_operand(state, settings, T, settings->dim, -1.5, 1.5, 1, &state->q);
    if (status == HLV_OK) status = create_operand(state, settings, T, settings->dim, -1.5, 1.5, 2, &state->k);
    if (status == HLV_OK) status = create_operand(state, settings, T, settings->dim, -1, 1, 3, &state->v);
    if (status == HLV_OK) status = create_operand(state, settings, T, settings->dim, NAN, NAN, 0, &state->out);
    if (status == HLV_OK)
        status = create_operand(state, settings, GATE_QUERIES, settings->dim, NAN, NAN, 0, &state->expected);
    for (int p = 0; p < settings->factors && status == HLV_OK; p++) {
        status = create_operand(state, settings, T, settings->rank, 0, 1, 4 + (uint32_t)p, &state->q_features[p]);
        if (status == HLV_OK)
            status = create_operand(state, settings, T, settings->rank, 0, 1, 14 + (uint32_t)p, &state->k_features[p]);
    }
    return status;
}

static void free_operands(bench_state *state) {
    hlv_context *ctx = state->session.ctx;
    operand *const all[] = {&state->q, &state->k, &state->v, &state->out, &state->expected};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        operand_free(ctx, all[i]);
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        operand_free(ctx, &state->q_features[p]);
        operand_free(ctx, &state->k_features[p]);
    }
}

/* The first T tokens, or `count` of them spread evenly. */
static operand part(const operand *whole, int64_t T, int64_t count) {
    operand view = *whole;
    view.view.shape[1] = count;
    view.view.stride[1] *= T / count;
    return view;
}

static double element(const hla_tensor *view, int64_t t, int64_t h, int64_t x) {
    int64_t at = t * view->stride[1] + h * view->stride[2] + x * view->stride[3];
    float value;
    if (view->dtype == HLA_F32) return ((const float *)view->data)[at];
    uint32_t bits = (uint32_t)((const uint16_t *)view->data)[at] << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static double view_error(const hla_tensor *a, const hla_tensor *b) {
    double difference = 0, norm = 0;
    for (int64_t t = 0; t < b->shape[1]; t++)
        for (int64_t h = 0; h < b->shape[2]; h++)
            for (int64_t x = 0; x < b->shape[3]; x++) {
                double want = element(b, t, h, x), off = element(a, t, h, x) - want;
                difference += off * off;
                norm += want * want;
            }
    return sqrt(difference / norm);
}

/* A problem over views: everything, or the gate's rows by the reference. */
static hlv_status hadamard(bench_state *state, const bench_settings *settings, int64_t T, int64_t queries,
                           const operand *out, const char *kernel, attention_run *done) {
    operand q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v = part(&state->v, T, T);
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = 1;
    problem.heads = settings->heads;
    problem.queries = queries;
    problem.keys = T;
    problem.value_dim = settings->dim;
    problem.factors = settings->factors;
    for (int p = 0; p < settings->factors; p++) {
        problem.rank[p] = settings->rank;
        q[p] = part(&state->q_features[p], T, queries);
        k[p] = part(&state->k_features[p], T, T);
    }
    problem.dtype = (hla_dtype)settings->dtype;
    problem.form = kernel == NULL ? (hla_form)settings->form : HLA_FORM_AUTO;
    problem.kernel = kernel;
    return run_hadamard(&state->session, state->hla, &problem, out, q, k, &v, kernel == NULL ? settings->repeat : 1,
                        done);
}

static hlv_status softmax(bench_state *state, const bench_settings *settings, int64_t T, int64_t queries,
                          const operand *out, const char *kernel, attention_run *done) {
    operand q = part(&state->q, T, queries), k = part(&state->k, T, T), v = part(&state->v, T, T);
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 1;
    problem.heads = settings->heads;
    problem.queries = queries;
    problem.keys = T;
    problem.dim = problem.value_dim = settings->dim;
    problem.dtype = (hla_dtype)settings->dtype;
    problem.kernel = kernel;
    return run_softmax(&state->session, state->hla, &problem, out, &q, &k, &v, kernel == NULL ? settings->repeat : 1,
                       done);
}

/* Counting a multiply-add as two (docs/OPERATOR.md, section 3). */
static double count_flops(const bench_settings *settings, int64_t T, bool state_form, bool is_softmax) {
    double tokens = (double)T, V = settings->dim, H = settings->heads;
    double R = pow(settings->rank, settings->factors);
    if (is_softmax) return 2 * tokens * tokens * 2 * V * H;
    return state_form ? 4 * tokens * R * (V + 1) * H
                      : 2 * tokens * tokens * (settings->factors * settings->rank + V) * H;
}

static hlv_status measure(bench_state *state, const bench_settings *settings, int64_t T, measurement *row) {
    int64_t gate = T < GATE_QUERIES ? T : GATE_QUERIES;
    operand out = part(&state->out, T, T), rows = part(&state->out, T, gate), expected = state->expected;
    expected.view.shape[1] = gate;
    row->tokens = T;
    hlv_status status = HLV_OK;
    for (int i = 0; i < 2 && status == HLV_OK; i++) {
        attention_run reference;
        hlv_status (*const attention)(bench_state *, const bench_settings *, int64_t, int64_t, const operand *,
                                      const char *, attention_run *) = i == 0 ? hadamard : softmax;
        status = attention(state, settings, T, T, &out, NULL, &row->run[i]);
        if (status == HLV_OK) status = attention(state, settings, T, gate, &expected, "reference", &reference);
        row->error[i] = view_error(&rows.view, &expected.view);
        row->flops[i] = count_flops(settings, T, row->run[i].form == HLA_FORM_STATE, i == 1);
        state->wrong = state->wrong || (status == HLV_OK && !(row->error[i] <= gate_limits[settings->dtype]));
    }
    return status;
}

static bool passed(const bench_settings *settings, const measurement *row, int i) {
    return row->error[i] <= gate_limits[settings->dtype];
}

static void report_text(const bench_state *state, const bench_settings *settings) {
    printf("%d heads of width %d, %d factors of rank %d, %s, %d threads; times in ms, rates in GFLOP/s\n",
           settings->heads, settings->dim, settings->factors, settings->rank, dtype_names[settings->dtype],
           hla_context_threads(state->hla));
    printf("%8s %12s %8s %-22s %12s %8s %8s\n", "tokens", "hadamard", "rate", "kernel", "softmax", "rate", "ratio");
    for (int i = 0; i < settings->tokens.count; i++) {
        const measurement *row = &state->rows[i];
        char time[2][16], rate[2][16];
        for (int a = 0; a < 2; a++) {
            snprintf(time[a], sizeof time[a], "%.3f", 1e3 * row->run[a].seconds);
            snprintf(rate[a], sizeof rate[a], "%.1f", row->flops[a] / row->run[a].seconds * 1e-9);
            if (!passed(settings, row, a)) {
                snprintf(time[a], sizeof time[a], "WRONG");
                snprintf(rate[a], sizeof rate[a], "%.1e", row->error[a]);
            }
        }
        printf("%8lld %12s %8s %-22s %12s %8s %8.2f\n", (long long)row->tokens, time[0], rate[0], row->run[0].kernel,
               time[1], rate[1], row->run[1].seconds / row->run[0].seconds);
    }
}

static void print_json(FILE *file, const void *user) {
    static const char *const names[] = {"hadamard", "softmax"};
    const bench_state *state = ((const void *const *)user)[0];
    const bench_settings *settings = ((const void *const *)user)[1];
    machine_info machine;
    read_machine(&machine);
    json_writer out = {.out = file};
    json_open(&out, NULL, '{');
    machine_json(&out, &machine, hla_context_threads(state->hla));
    json_whole(&out, "heads", settings->heads);
    json_whole(&out, "dim", settings->dim);
    json_whole(&out, "factors", settings->factors);
    json_whole(&out, "rank", settings->rank);
    json_text(&out, "dtype", dtype_names[settings->dtype]);
    json_whole(&out, "repeat", settings->repeat);
    json_open(&out, "runs", '[');
    for (int i = 0; i < 2 * settings->tokens.count; i++) {
        const measurement *row = &state->rows[i / 2];
        const attention_run *done = &row->run[i % 2];
        json_open(&out, NULL, '{');
        json_text(&out, "attention", names[i % 2]);
        json_whole(&out, "tokens", row->tokens);
        json_text(&out, "form", i % 2 == 0 ? forms[done->form] : NULL);
        json_text(&out, "kernel", done->kernel);
        json_number(&out, "seconds", passed(settings, row, i % 2) ? done->seconds : NAN);
        json_number(&out, "flops", row->flops[i % 2]);
        json_number(&out, "relative_error", row->error[i % 2]);
        json_close(&out, '}');
    }
    json_close(&out, ']');
    json_close(&out, '}');
}

static hlv_status write_plot(bench_state *state, const bench_settings *settings) {
    double x[MAX_LIST], y[2][MAX_LIST];
    char subtitle[200];
    machine_info machine;
    read_machine(&machine);
    for (int i = 0; i < settings->tokens.count; i++) {
        x[i] = (double)state->rows[i].tokens;
        for (int a = 0; a < 2; a++)
            y[a][i] = passed(settings, &state->rows[i], a) ? state->rows[i].run[a].seconds : NAN;
    }
    snprintf(subtitle, sizeof subtitle, "%d heads of width %d, %d x rank %d, %s, %d threads, %.80s", settings->heads,
             settings->dim, settings->factors, settings->rank, dtype_names[settings->dtype],
             hla_context_threads(state->hla), machine.processor);
    plot_line lines[] = {{"Hadamard", y[0]}, {"softmax", y[1]}};
    plot_data plot = {"Attention: time against tokens", subtitle, "tokens", "time of one call", x,
                      settings->tokens.count,           lines,    2};
    return write_report(&state->session, settings->plot_file, print_plot, &plot);
}

static int by_size(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static hlv_status bench(bench_state *state, const bench_settings *settings) {
    int count = settings->tokens.count;
    hlv_status status = check_report(&state->session, settings->json_file);
    if (status == HLV_OK) status = check_report(&state->session, settings->plot_file);
    if (status == HLV_OK) status = create_operands(state, settings, settings->tokens.items[count - 1]);
    for (int i = 0; i < count && status == HLV_OK; i++) {
        session_progress(&state->session, "bench", i, count);
        status = measure(state, settings, settings->tokens.items[i], &state->rows[i]);
        if (session_interrupted()) {
            state->session.sentence = "interrupted";
            return HLV_ERROR_CANCELLED;
        }
    }
    if (status == HLV_OK) session_progress(&state->session, "bench", count, count);
    session_end_line(&state->session);
    if (status == HLV_OK) report_text(state, settings);
    if (status == HLV_OK && settings->json_file != NULL)
        status = write_report(&state->session, settings->json_file, print_json, (const void *const[]){state, settings});
    if (status == HLV_OK && settings->plot_file != NULL) status = write_plot(state, settings);
    return status;
}

static int run(int argc, char **argv) {
    bench_settings settings = {.tokens = {.items = {256, 512, 1024, 2048, 4096, 8192}, .count = 6},
                               .heads = 4,
                               .dim = 64,
                               .factors = 2,
                               .rank = 32,
                               .repeat = 3};
    text_list words;
    int exit_status = parse_options(&bench_attention_command, argc, argv, &settings, &words, 0);
    if (exit_status == STATUS_GO_ON && settings.plot_file != NULL && !ends_with(settings.plot_file, ".svg"))
        exit_status = wrong_usage(&bench_attention_command, "--plot is '%s', wanted a name that ends in .svg",
                                  settings.plot_file);
    bench_state state = {0};
    if (exit_status == STATUS_GO_ON)
        exit_status = session_open(&state.session, &bench_attention_command, &settings.common);
    if (exit_status != STATUS_GO_ON) return exit_status;
    qsort(settings.tokens.items, (size_t)settings.tokens.count, sizeof settings.tokens.items[0], by_size);
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = settings.common.threads;
    hlv_status status = HLV_ERROR_MEMORY;
    if (hla_context_create(&state.hla, &options) == HLA_OK)
        status = bench(&state, &settings);
    else
        state.session.sentence = "out of memory";
    free_operands(&state);
    exit_status = session_close(&state.session, status);
    if (state.wrong && exit_status == STATUS_DONE) exit_status = STATUS_FAILED;
    hla_context_free(state.hla);
    return exit_status;
}
