/* cli/bench_attention.c - hla bench attention: this library, a matrix product library, softmax and linear attention in
 * one run, each checked before it is timed. */
#include "cli/attention_bench.h"
#include "cli/bench_device.h"
#include "cli/commands.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_SECONDS 4e-3 /* short calls are repeated within a sample until it takes so long */
#define MAX_RANKS 8
#define MOST_REPEATS 1000

typedef struct bench_settings {
    cli_common common;
    count_list tokens;
    int batch, heads, dim, value_dim, factors, rank, repeat, dtype, form, pass, mode, device;
    bool planned;
    const char *ranks, *methods, *json_file, *plot_file;
} bench_settings;

/* What the words of the settings mean. */
typedef struct bench_choice {
    int rank_lists;
    bench_case ranks[MAX_RANKS]; /* of which factors and rank count */
    bool methods[METHOD_COUNT], passes[2], modes[2];
} bench_choice;

static const char *const forms[] = {"auto", "state", "quadratic", NULL}; /* places as in hla_form */
static const char *const passes[] = {"forward", "backward", "both", NULL};
static const char *const modes[] = {"bidirectional", "causal", "both", NULL};
static const char *const devices[] = {"cpu", "cuda", NULL};

static const cli_option table[] = {
    {"tokens", 'T', OPTION_COUNTS, offsetof(bench_settings, tokens), "N,N,...",
     "numbers of tokens (default: 256,512,1024,2048,4096,8192)", 1, 1 << 24, NULL},
    {"batch", 'B', OPTION_INTEGER, offsetof(bench_settings, batch), "N", "sequences (default: 1)", 1, 1024, NULL},
    {"heads", 'H', OPTION_INTEGER, offsetof(bench_settings, heads), "N", "heads of the attention (default: 4)", 1, 1024,
     NULL},
    {"dim", 'D', OPTION_INTEGER, offsetof(bench_settings, dim), "N",
     "width of a head's queries and keys, for softmax (default: 64)", 1, 4096, NULL},
    {"value-dim", 'V', OPTION_INTEGER, offsetof(bench_settings, value_dim), "N",
     "width of a head's values (default: as --dim)", 1, 4096, NULL},
    {"ranks", 0, OPTION_TEXT, offsetof(bench_settings, ranks), "RxR,R,...",
     "ranks of the factors, such as 16x16,3x10x10 (default: from --factors and --rank)", 0, 0, NULL},
    {"factors", 'P', OPTION_INTEGER, offsetof(bench_settings, factors), "N", "factors of Hadamard (default: 2)", 1,
     HLA_MAX_FACTORS, NULL},
    {"rank", 'R', OPTION_INTEGER, offsetof(bench_settings, rank), "N", "of each factor (default: 32)", 1, HLA_MAX_RANK,
     NULL},
    {"methods", 0, OPTION_TEXT, offsetof(bench_settings, methods), "NAME,...",
     "some of hadamard_state, hadamard_quadratic, materialised, softmax, linear (default: all)", 0, 0, NULL},
    {"form", 0, OPTION_CHOICE, offsetof(bench_settings, form), NULL,
     "which form of Hadamard is measured (default: auto, both)", 0, 0, forms},
    {"pass", 0, OPTION_CHOICE, offsetof(bench_settings, pass), NULL, "what is measured (default: forward)", 0, 0,
     passes},
    {"mode", 0, OPTION_CHOICE, offsetof(bench_settings, mode), NULL, "of attention (default: bidirectional)", 0, 0,
     modes},
    {"dtype", 0, OPTION_CHOICE, offsetof(bench_settings, dtype), NULL, "of inputs and result (default: f32)", 0, 0,
     bench_dtype_names},
    {"device", 0, OPTION_CHOICE, offsetof(bench_settings, device), NULL, "that computes (default: cpu)", 0, 0, devices},
    {"planned", 0, OPTION_FLAG, offsetof(bench_settings, planned), NULL,
     "on a GPU: of Hadamard's kernels only the one that a plan takes", 0, 0, NULL},
    {"repeat", 'r', OPTION_INTEGER, offsetof(bench_settings, repeat), "N",
     "samples of each; the fastest and the median are shown (default: 5, on a GPU 20)", 1, MOST_REPEATS, NULL},
    {"json", 'j', OPTION_TEXT, offsetof(bench_settings, json_file), "FILE", "write the measurements there", 0, 0, NULL},
    {"plot", 0, OPTION_TEXT, offsetof(bench_settings, plot_file), "FILE.svg", "draw time against tokens there", 0, 0,
     NULL},
    {0}};

static int run(int argc, char **argv);

const cli_command bench_attention_command = {
    "bench attention",
    "Measures ways to compute attention over the number of tokens.",
    "[--json FILE] [--plot FILE.svg] [options]",
    table,
    "Five methods take turns on random inputs, on the same threads in one process:\n"
    "  hadamard_state      Hadamard attention, linear in the tokens\n"
    "  hadamard_quadratic  the same by tiles of scores (* is the plan's choice)\n"
    "  materialised        the same, features written out, by oneDNN's products\n"
    "  softmax             softmax attention in tiles\n"
    "  linear              one factor of the same state rank, at most 256\n"
    "Features are given, not computed. Shown are the time of the fastest sample and\n"
    "the median one, the formula's operations a second, their share of the peak of\n"
    "multiply-adds (of 16-bit dot products for bf16) that is measured right before\n"
    "and after each sample, the least bytes to read and write, and how many times as\n"
    "long as each other method it takes.\n"
    "\n"
    "A time counts only if the result passed: some queries are computed again by the\n"
    "double-precision reference and must agree to 1e-5 (f32; gradients 5e-5), 1e-2\n"
    "(bf16) or 2e-3 (f16). Exit status 1 if one did not.\n"
    "\n"
    "With --device cuda each Hadamard kernel of the GPU is measured, and linear and\n"
    "softmax attention as planned (by cuDNN where it is found), by CUDA events. The\n"
    "peak is then a bf16 product of 8192 x 8192 matrices by cuBLASLt before and after\n"
    "the samples, and a backward pass takes the state that the forward pass kept.\n"
    "\n"
    "Examples:\n"
    "  hla bench attention --plot attention.svg\n"
    "  hla bench attention --tokens 8192 --dim 128 --ranks 16x16,32x32,64x64 \\\n"
    "      --methods hadamard_state,materialised --json attention.json\n"
    "  hla bench attention --device cuda --dtype bf16 --heads 12 --dim 128 \\\n"
    "      --tokens 4096,32760 --ranks 32x32,64x64 --pass both --json gpu.json\n",
    run};

typedef struct bench_state {
    cli_session session;
    hla_context *hla;
    bench_result *results;
    int count, expected; /* results done, and cases in all */
    bool wrong;
} bench_state;

/* One method of a case, open. */
typedef struct entrant {
    bench_call call;
    bench_result *result;
    int64_t inner; /* calls a sample */
    double seconds[MOST_REPEATS], peaks[MOST_REPEATS];
} entrant;

static int ascending(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, ascending);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static hlv_status time_calls(bench_state *state, bench_call *call, int64_t calls, double *seconds) {
    hlv_status status = HLV_OK;
    double start = seconds_now();
    for (int64_t i = 0; i < calls && status == HLV_OK; i++)
        status = call_run(&state->session, state->hla, call);
    *seconds = (seconds_now() - start) / (double)calls;
    return status;
}

/* Opens a method, has it pass the gate, and warms it up. A method that cannot is left out, with a word. */
static hlv_status enter(bench_state *state, bench_data *data, bench_gate *gate, bool *gate_made, entrant *e) {
    cli_session *session = &state->session;
    bench_result *result = e->result;
    const bench_views views = data_views(data, &result->problem, result->method->function);
    double first;
    result->lacks = method_lacks(result->method, &result->problem);
    if (result->lacks != NULL) return HLV_OK;
    hlv_status status = call_open(session, state->hla, result->method, &result->problem, &views, NULL, &e->call);
    if (status == HLV_ERROR_UNSUPPORTED) {
        session->sentence = NULL;
        result->lacks = "is not supported here";
        return HLV_OK;
    }
    if (status == HLV_OK && !*gate_made) {
        status = gate_open(session, state->hla, result->method, &result->problem, data, gate);
        *gate_made = true;
    }
    if (status == HLV_OK) status = gate_check(session, state->hla, &e->call, gate, data, &result->error);
    if (status != HLV_OK) return status;
    result->passed = result->error <= gate_limit(&result->problem);
    state->wrong = state->wrong || !result->passed;
    snprintf(result->kernel, sizeof result->kernel, "%s", e->call.kernel);
    result->planned = e->call.planned && result->method->function == FUNCTION_HADAMARD;
    result->workspace = e->call.library != NULL ? materialised_bytes(e->call.library) : e->call.bytes;
    result->unit = peak_of(e->call.library != NULL ? NULL : e->call.kernel, result->problem.dtype);
    result->operations = method_operations(result->method, &result->problem);
    result->bytes = function_bytes(result->method->function, &result->problem);
    status = time_calls(state, &e->call, 1, &first);
    e->inner = first > 0 && first < SAMPLE_SECONDS ? (int64_t)ceil(SAMPLE_SECONDS / first) : 1;
    return status;
}

/* One sample between two of the peak. */
static hlv_status sample(bench_state *state, entrant *e, int i) {
    int threads = hla_context_threads(state->hla);
    double before = peak_measure(e->result->unit, threads);
    hlv_status status = time_calls(state, &e->call, e->inner, &e->seconds[i]);
    e->peaks[i] = (before + peak_measure(e->result->unit, threads)) / 2;
    return status;
}

static void conclude(entrant *e, int samples) {
    bench_result *result = e->result;
    double shares[MOST_REPEATS] = {0};
    result->seconds = INFINITY;
    for (int i = 0; i < samples; i++) {
        shares[i] = result->operations / e->seconds[i] / e->peaks[i];
        if (!(e->seconds[i] < result->seconds)) continue;
        result->seconds = e->seconds[i];
        result->peak = e->peaks[i];
        result->peak_share = shares[i];
    }
    result->peak_share_median = median(shares, samples);
    result->seconds_median = median(e->seconds, samples);
}

/* All methods of a case: first the gate of each, then samples in turn. */
static hlv_status measure(bench_state *state, const bench_settings *settings, const bench_choice *choice,
                          const bench_case *problem, bench_data *data) {
    entrant *entrants = calloc(METHOD_COUNT, sizeof *entrants);
    bench_gate gates[FUNCTION_COUNT] = {0};
    bool made[FUNCTION_COUNT] = {false};
    hlv_status status = entrants != NULL ? HLV_OK : HLV_ERROR_MEMORY;
    if (status != HLV_OK) state->session.sentence = "out of memory";
    int samples = 0;
    for (int m = 0; m < METHOD_COUNT && status == HLV_OK; m++) {
        entrants[m].result = &state->results[state->count + m];
        *entrants[m].result =
            (bench_result){.method = &bench_methods[m], .problem = *problem, .lacks = "was not asked"};
        bench_function function = bench_methods[m].function;
        if (choice->methods[m]) status = enter(state, data, &gates[function], &made[function], &entrants[m]);
    }
    for (; samples < settings->repeat && status == HLV_OK && (samples == 0 || !session_interrupted()); samples++)
        for (int m = 0; m < METHOD_COUNT && status == HLV_OK; m++)
            if (entrants[m].result->passed) status = sample(state, &entrants[m], samples);
    for (int m = 0; m < METHOD_COUNT && entrants != NULL; m++) {
        if (status == HLV_OK && entrants[m].result->passed) conclude(&entrants[m], samples);
        call_close(&state->session, &entrants[m].call);
    }
    for (int f = 0; f < FUNCTION_COUNT; f++)
        gate_close(&state->session, &gates[f]);
    free(entrants);
    if (status != HLV_OK) return status;
    session_end_line(&state->session);
    report_case(&state->results[state->count], hla_context_threads(state->hla));
    fflush(stdout);
    state->count += METHOD_COUNT;
    return HLV_OK;
}

/* Every pass and mode of one list of ranks, over the tokens. */
static hlv_status measure_ranks(bench_state *state, const bench_settings *settings, const bench_choice *choice,
                                bench_case problem) {
    bench_data data = {0};
    problem.tokens = settings->tokens.items[settings->tokens.count - 1];
    problem.backward = choice->passes[1];
    hlv_status status = data_create(&state->session, &problem, &data);
    for (int pass = 0; pass < 2; pass++)
        for (int mode = 0; mode < 2; mode++)
            for (int i = 0; i < settings->tokens.count && status == HLV_OK; i++) {
                if (!choice->passes[pass] || !choice->modes[mode]) continue;
                problem.backward = pass == 1;
                problem.causal = mode == 1;
                problem.tokens = settings->tokens.items[i];
                session_progress(&state->session, "bench", state->count / METHOD_COUNT, state->expected);
                status = measure(state, settings, choice, &problem, &data);
                if (status == HLV_OK && session_interrupted()) {
                    state->session.sentence = "interrupted";
                    status = HLV_ERROR_CANCELLED;
                }
            }
    data_free(&state->session, &data);
    return status;
}

static hlv_status bench(bench_state *state, const bench_settings *settings, const bench_choice *choice) {
    hlv_status status = check_report(&state->session, settings->json_file);
    if (status == HLV_OK) status = check_report(&state->session, settings->plot_file);
    state->expected = settings->tokens.count * choice->rank_lists * (choice->passes[0] + choice->passes[1]) *
                      (choice->modes[0] + choice->modes[1]);
    if (state->expected > 0) state->results = calloc((size_t)state->expected, METHOD_COUNT * sizeof *state->results);
    if (status == HLV_OK && state->results == NULL) {
        state->session.sentence = "out of memory";
        status = HLV_ERROR_MEMORY;
    }
    for (int i = 0; i < choice->rank_lists && status == HLV_OK; i++)
        status = measure_ranks(state, settings, choice, choice->ranks[i]);
    if (status == HLV_OK) session_progress(&state->session, "bench", state->expected, state->expected);
    session_end_line(&state->session);
    const bench_report report = {state->results, state->count, hla_context_threads(state->hla), settings->repeat};
    if (status == HLV_OK && settings->json_file != NULL)
        status = write_report(&state->session, settings->json_file, report_json, &report);
    if (status == HLV_OK && settings->plot_file != NULL)
        status = write_report(&state->session, settings->plot_file, report_plot, &report);
    free(state->results);
    return status;
}

/* "16x16": false if it is no list of ranks. */
static bool read_ranks(const char *text, size_t length, bench_case *ranks) {
    const char *end = text + length;
    ranks->factors = 0;
    while (ranks->factors < HLA_MAX_FACTORS && *text >= '0' && *text <= '9') {
        char *after;
        long rank = strtol(text, &after, 10);
        if (rank < 1 || rank > HLA_MAX_RANK) return false;
        ranks->rank[ranks->factors++] = rank;
        if (after == end) return true;
        if (*after != 'x') return false;
        text = after + 1;
    }
    return false;
}

static int choose_ranks(const bench_settings *settings, bench_choice *choice) {
    bench_case common = {.batch = settings->batch,
                         .heads = settings->heads,
                         .dim = settings->dim,
                         .value_dim = settings->value_dim > 0 ? settings->value_dim : settings->dim,
                         .factors = settings->factors,
                         .dtype = (hla_dtype)settings->dtype};
    for (int p = 0; p < settings->factors; p++)
        common.rank[p] = settings->rank;
    choice->ranks[0] = common;
    choice->rank_lists = settings->ranks == NULL ? 1 : 0;
    for (const char *text = settings->ranks; text != NULL;) {
        size_t length = strcspn(text, ",");
        if (choice->rank_lists == MAX_RANKS || !read_ranks(text, length, &common))
            return wrong_usage(&bench_attention_command,
                               "--ranks is '%s', wanted up to %d lists of up to %d ranks from 1 to %d, such as "
                               "16x16,32x32",
                               settings->ranks, MAX_RANKS, HLA_MAX_FACTORS, HLA_MAX_RANK);
        choice->ranks[choice->rank_lists++] = common;
        text = text[length] == ',' ? text + length + 1 : NULL;
    }
    return STATUS_GO_ON;
}

static int choose_methods(const bench_settings *settings, bench_choice *choice) {
    for (int m = 0; m < METHOD_COUNT; m++)
        choice->methods[m] = settings->methods == NULL;
    for (const char *text = settings->methods; text != NULL;) {
        size_t length = strcspn(text, ",");
        bool known = false;
        for (int m = 0; m < METHOD_COUNT; m++)
            if (strlen(bench_methods[m].name) == length && strncmp(bench_methods[m].name, text, length) == 0)
                known = choice->methods[m] = true;
        if (!known)
            return wrong_usage(&bench_attention_command,
                               "--methods is '%s', wanted some of hadamard_state, hadamard_quadratic, materialised, "
                               "softmax, linear, with commas between",
                               settings->methods);
        text = text[length] == ',' ? text + length + 1 : NULL;
    }
    for (int m = 0; m < METHOD_COUNT && settings->form != HLA_FORM_AUTO; m++)
        if (bench_methods[m].function == FUNCTION_HADAMARD && !bench_methods[m].by_library &&
            (int)bench_methods[m].form != settings->form)
            choice->methods[m] = false;
    return STATUS_GO_ON;
}

static int choose(const bench_settings *settings, bench_choice *choice) {
    for (int i = 0; i < 2; i++) {
        choice->passes[i] = settings->pass == i || settings->pass == 2;
        choice->modes[i] = settings->mode == i || settings->mode == 2;
    }
    if (settings->plot_file != NULL && !ends_with(settings->plot_file, ".svg"))
        return wrong_usage(&bench_attention_command, "--plot is '%s', wanted a name that ends in .svg",
                           settings->plot_file);
    int exit_status = choose_ranks(settings, choice);
    return exit_status == STATUS_GO_ON ? choose_methods(settings, choice) : exit_status;
}

static int by_size(const void *a, const void *b) {
    int64_t left = *(const int64_t *)a, right = *(const int64_t *)b;
    return (left > right) - (left < right);
}

static hlv_status run_on_device(bench_state *state, const bench_settings *settings, const bench_choice *choice) {
    device_request request = {.ranks = choice->ranks,
                              .rank_lists = choice->rank_lists,
                              .tokens = settings->tokens.items,
                              .token_count = settings->tokens.count,
                              .planned_only = settings->planned,
                              .repeat = settings->repeat,
                              .threads = settings->common.threads,
                              .json_file = settings->json_file,
                              .plot_file = settings->plot_file};
    memcpy(request.passes, choice->passes, sizeof request.passes);
    memcpy(request.modes, choice->modes, sizeof request.modes);
    memcpy(request.methods, choice->methods, sizeof request.methods);
    return bench_on_device(&state->session, &request, &state->wrong);
}

static hlv_status run_on_cpu(bench_state *state, const bench_settings *settings, const bench_choice *choice) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = settings->common.threads;
    if (hla_context_create(&state->hla, &options) == HLA_OK) return bench(state, settings, choice);
    state->session.sentence = "out of memory";
    return HLV_ERROR_MEMORY;
}

static int run(int argc, char **argv) {
    bench_settings settings = {.tokens = {.items = {256, 512, 1024, 2048, 4096, 8192}, .count = 6},
                               .batch = 1,
                               .heads = 4,
                               .dim = 64,
                               .factors = 2,
                               .rank = 32};
    text_list words;
    bench_choice choice = {0};
    bench_state state = {0};
    int exit_status = parse_options(&bench_attention_command, argc, argv, &settings, &words, 0);
    if (exit_status == STATUS_GO_ON) exit_status = choose(&settings, &choice);
    if (exit_status == STATUS_GO_ON)
        exit_status = session_open(&state.session, &bench_attention_command, &settings.common);
    if (exit_status != STATUS_GO_ON) return exit_status;
    qsort(settings.tokens.items, (size_t)settings.tokens.count, sizeof settings.tokens.items[0], by_size);
    bool on_device = settings.device == 1;
    if (settings.repeat == 0) settings.repeat = on_device ? 20 : 5;
    hlv_status status = (on_device ? run_on_device : run_on_cpu)(&state, &settings, &choice);
    exit_status = session_close(&state.session, status);
    if (state.wrong && exit_status == STATUS_DONE) exit_status = STATUS_FAILED;
    hla_context_free(state.hla);
    return exit_status;
}
