/* cli/bench_generate.c - hla bench generate: the same clip with Hadamard and with softmax attention, in turn, in one
 * process. */
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/machine.h"
#include "cli/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_REPEAT 16
#define MAX_STEPS 1000

typedef struct bench_settings {
    cli_common common;
    model_settings model;
    clip_settings clip;
    const char *prompt, *json_file;
    int format, repeat;
} bench_settings;

static const char *const formats[] = {"gif", "png", "y4m", "mp4", "webm", NULL};

static const cli_option table[] = {
    MODEL_OPTIONS(bench_settings),
    CLIP_OPTIONS(bench_settings),
    {"prompt", 'p', OPTION_TEXT, offsetof(bench_settings, prompt), "TEXT",
     "what the clip shows (default: \"a rocket flies up over a blue background\")", 0, 0, NULL},
    {"format", 0, OPTION_CHOICE, offsetof(bench_settings, format), NULL,
     "of the video, which is written to a temporary directory (default: gif)", 0, 0, formats},
    {"repeat", 'r', OPTION_INTEGER, offsetof(bench_settings, repeat), "N",
     "runs of each; the fastest counts (default: 1)", 1, MAX_REPEAT, NULL},
    {"json", 'j', OPTION_TEXT, offsetof(bench_settings, json_file), "FILE", "write the measurements there", 0, 0, NULL},
    {0}};

static int run(int argc, char **argv);

const cli_command bench_generate_command = {
    "bench generate",
    "Measures a clip with Hadamard and with softmax attention.",
    "[--json FILE] [options]",
    table,
    "The same clip is made with one attention and then the other, in one process.\n"
    "Seconds are wall-clock time, those of a step the median over the steps; bytes\n"
    "are what the engine allocated. The table goes to standard output in any case;\n"
    "--json FILE writes {\"machine\", \"runs\": [{\"attention\", \"seconds_per_step\",\n"
    "\"stage_seconds\", \"peak_bytes\", ...}]}.\n"
    "\n"
    "Examples:\n"
    "  hla bench generate --json speed.json\n"
    "  hla bench generate --steps 4 --repeat 3 --threads 1\n",
    run};

/* When each sampling step was done; what the progress callback fills. */
typedef struct step_times {
    cli_session *session;
    double at[MAX_STEPS + 1];
    int count;
} step_times;

typedef struct bench_run {
    hlv_attention attention;
    hlv_generate_options options;
    hlv_generate_result result;
    double seconds;          /* all stages */
    double seconds_per_step; /* the median: the first steps also wake threads and fill caches */
    double open_seconds;
} bench_run;

static void on_progress(void *user, const char *stage, int64_t done, int64_t total) {
    step_times *times = user;
    if (strcmp(stage, "sample") == 0 && done <= MAX_STEPS) {
        if (done == 0) times->count = 0;
        if (times->count <= MAX_STEPS) times->at[times->count++] = seconds_now();
    }
    session_progress(times->session, stage, done, total);
}

static int by_size(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

/* Of the times between steps; `mean` where none were reported. */
static double median_step(const step_times *times, double mean) {
    double steps[MAX_STEPS];
    int count = times->count - 1;
    if (count < 1) return mean;
    for (int i = 0; i < count; i++)
        steps[i] = times->at[i + 1] - times->at[i];
    qsort(steps, (size_t)count, sizeof steps[0], by_size);
    return (steps[(count - 1) / 2] + steps[count / 2]) / 2;
}

/* The fastest of `repeat` runs with one attention. */
static hlv_status measure(cli_session *session, const bench_settings *settings, const char *output, bench_run *run) {
    step_times times = {.session = session};
    hlv_model *model = NULL;
    char *directory = NULL;
    model_settings chosen = settings->model;
    chosen.attention = (int)run->attention;
    hlv_context_peak_bytes(session->ctx, true);
    double start = seconds_now();
    hlv_status status = open_model(session, &chosen, &model, &directory);
    run->open_seconds = seconds_now() - start;
    if (status == HLV_OK && !session->quiet) fprintf(stderr, "with %s attention\n", attention_names[run->attention]);
    run->seconds = run->seconds_per_step = INFINITY;
    hlv_context_set_progress(session->ctx, on_progress, &times);
    for (int i = 0; i < settings->repeat && status == HLV_OK; i++) {
        hlv_generate_result result = {0};
        clip_options(&run->options, model, &settings->clip);
        run->options.prompt = settings->prompt;
        run->options.output = output;
        start = seconds_now();
        status = hlv_generate(model, &run->options, &result);
        double seconds = seconds_now() - start;
        if (status == HLV_OK)
            run->seconds_per_step = fmin(run->seconds_per_step, median_step(&times, result.seconds_per_step));
        if (status == HLV_OK && seconds < run->seconds) {
            run->seconds = seconds;
            run->result = result;
        }
    }
    session_end_line(session);
    hlv_context_set_progress(session->ctx, NULL, NULL);
    hlv_model_free(model);
    free(directory);
    return status;
}

static void run_json(json_writer *out, const bench_run *run) {
    const hlv_generate_result *result = &run->result;
    json_open(out, NULL, '{');
    json_text(out, "attention", attention_names[run->attention]);
    json_number(out, "seconds_per_step", run->seconds_per_step);
    json_number(out, "seconds_per_step_mean", result->seconds_per_step);
    json_open(out, "stage_seconds", '{');
    json_number(out, "load", result->load_seconds);
    json_number(out, "text", result->text_seconds);
    json_number(out, "sample", result->sample_seconds);
    json_number(out, "decode", result->decode_seconds);
    json_number(out, "write", result->write_seconds);
    json_close(out, '}');
    json_number(out, "open_seconds", run->open_seconds);
    json_number(out, "seconds", run->seconds);
    json_whole(out, "peak_bytes", result->peak_bytes);
    json_whole(out, "tokens", result->tokens);
    json_whole(out, "steps", run->options.steps);
    json_number(out, "guidance", run->options.guidance);
    json_whole(out, "width", run->options.width);
    json_whole(out, "height", run->options.height);
    json_whole(out, "frames", run->options.frames);
    json_close(out, '}');
}

static void report_json(FILE *file, const bench_settings *settings, const bench_run *runs, int count, int threads) {
    machine_info machine;
    read_machine(&machine);
    json_writer out = {.out = file};
    json_open(&out, NULL, '{');
    machine_json(&out, &machine, threads);
    json_text(&out, "dtype", dtype_names[settings->model.dtype]);
    json_whole(&out, "repeat", settings->repeat);
    json_open(&out, "runs", '[');
    for (int i = 0; i < count; i++)
        run_json(&out, &runs[i]);
    json_close(&out, ']');
    json_close(&out, '}');
}

/* What write_report hands on. */
typedef struct bench_report {
    const bench_settings *settings;
    const bench_run *runs;
    int count, threads;
} bench_report;

static void print_report(FILE *file, const void *user) {
    const bench_report *report = user;
    report_json(file, report->settings, report->runs, report->count, report->threads);
}

static void report_text(const bench_run *runs, int count) {
    const hlv_generate_options *options = &runs[0].options;
    printf("%dx%d, %d frames, %lld tokens, %d steps, guidance %g\n", options->width, options->height, options->frames,
           (long long)runs[0].result.tokens, options->steps, options->guidance);
    printf("%-10s %10s %8s %8s %8s %8s %8s %10s\n", "attention", "s a step", "text", "sample", "decode", "write", "all",
           "peak MiB");
    for (int i = 0; i < count; i++) {
        const hlv_generate_result *result = &runs[i].result;
        printf("%-10s %10.4f %8.2f %8.2f %8.2f %8.2f %8.2f %10.0f\n", attention_names[runs[i].attention],
               runs[i].seconds_per_step, result->text_seconds, result->sample_seconds, result->decode_seconds,
               result->write_seconds, runs[i].seconds, (double)result->peak_bytes / 0x1p20);
    }
    printf("A step with softmax takes %.2f times as long as with hadamard.\n",
           runs[1].seconds_per_step / runs[0].seconds_per_step);
}

static hlv_status bench(cli_session *session, const bench_settings *settings) {
    bench_run runs[] = {{.attention = HLV_ATTENTION_HADAMARD}, {.attention = HLV_ATTENTION_SOFTMAX}};
    const char *directory = getenv("TMPDIR");
    char scratch[256], output[320];
    int length = snprintf(scratch, sizeof scratch, "%s/hla-bench-XXXXXX", directory != NULL ? directory : "/tmp");
    if (length < 0 || (size_t)length >= sizeof scratch || mkdtemp(scratch) == NULL) {
        session->sentence = "no directory for temporary files can be made: set TMPDIR";
        return HLV_ERROR_IO;
    }
    snprintf(output, sizeof output, "%s/clip.%s", scratch, formats[settings->format]);
    hlv_status status = check_report(session, settings->json_file);
    if (status == HLV_OK) status = hlv_video_check(session->ctx, output);
    for (int i = 0; i < 2 && status == HLV_OK; i++)
        status = measure(session, settings, output, &runs[i]);
    unlink(output);
    rmdir(scratch);
    session_end_line(session);
    if (status == HLV_OK) report_text(runs, 2);
    if (status == HLV_OK && settings->json_file != NULL)
        status = write_report(session, settings->json_file, print_report,
                              &(bench_report){settings, runs, 2, hlv_context_threads(session->ctx)});
    return status;
}

static int run(int argc, char **argv) {
    bench_settings settings = {
        .clip = CLIP_DEFAULTS, .repeat = 1, .prompt = "a rocket flies up over a blue background"};
    text_list words;
    int exit_status = parse_options(&bench_generate_command, argc, argv, &settings, &words, 0);
    cli_session session;
    if (exit_status == STATUS_GO_ON) exit_status = session_open(&session, &bench_generate_command, &settings.common);
    return exit_status == STATUS_GO_ON ? session_close(&session, bench(&session, &settings)) : exit_status;
}
