/* cli/generate.c - hla generate: a prompt into a video. */
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

typedef struct generate_settings {
    cli_common common;
    model_settings model;
    clip_settings clip;
    const char *output, *save_latents, *latents, *initial_latents, *resume, *preview;
    int preview_every;
} generate_settings;

static const cli_option table[] = {
    {"output", 'o', OPTION_TEXT, offsetof(generate_settings, output), "FILE",
     "the video: .mp4 .webm (through ffmpeg) .gif .png .apng .y4m, or frame-%03d.png for single pictures; an older "
     "file of that name is replaced when the new one is whole",
     0, 0, NULL},
    MODEL_OPTIONS(generate_settings),
    {"attention", 'a', OPTION_CHOICE, offsetof(generate_settings, model.attention), NULL,
     "self-attention: default is hadamard where the model has feature maps, softmax elsewhere", 0, 0, attention_names},
    CLIP_OPTIONS(generate_settings),
    {"fps", 0, OPTION_NUMBER, offsetof(generate_settings, clip.fps), "N", "frames a second (default: the model's)",
     0.01, 1000, NULL},
    {"negative", 0, OPTION_TEXT, offsetof(generate_settings, clip.negative), "TEXT",
     "what guidance steers away from (default: empty)", 0, 0, NULL},
    {"shift", 0, OPTION_NUMBER, offsetof(generate_settings, clip.shift), "S",
     "flow shift: larger spends more steps on the coarse shape (default: the model's)", 0.01, 100, NULL},
    {"sampler", 0, OPTION_CHOICE, offsetof(generate_settings, clip.sampler), NULL, "solver (default: unipc)", 0, 0,
     sampler_names},
    {"save-latents", 0, OPTION_TEXT, offsetof(generate_settings, save_latents), "F.safetensors",
     "keep the finished latents before they are decoded, so that a failed decode loses nothing", 0, 0, NULL},
    {"latents", 0, OPTION_TEXT, offsetof(generate_settings, latents), "F.safetensors",
     "decode such a file instead of sampling; no prompt needed", 0, 0, NULL},
    {"initial-latents", 0, OPTION_TEXT, offsetof(generate_settings, initial_latents), "F.safetensors",
     "start from this noise instead of the seed's", 0, 0, NULL},
    {"resume", 0, OPTION_TEXT, offsetof(generate_settings, resume), "F.safetensors",
     "keep the state of sampling there after every step; the same command goes on from it, to the same video, however "
     "it "
     "was stopped",
     0, 0, NULL},
    {"preview", 0, OPTION_TEXT, offsetof(generate_settings, preview), "F.png",
     "a picture of the clip so far, rewritten on the way", 0, 0, NULL},
    {"preview-every", 0, OPTION_INTEGER, offsetof(generate_settings, preview_every), "K",
     "steps between previews (default: 5)", 1, 1000, NULL},
    {0}};

static int run(int argc, char **argv);

const cli_command generate_command = {"generate",
                                      "Turns a prompt into a video.",
                                      "PROMPT -o FILE [options]",
                                      table,
                                      "Examples:\n"
                                      "  hla generate \"a rocket flies up over a blue background\" -o rocket.mp4\n"
                                      "  hla generate \"a cat spins\" -o cat.gif --seed 7 --steps 40\n"
                                      "  hla generate \"a cat spins\" -o cat.mp4 --save-latents cat.safetensors\n"
                                      "The unconverted model, with softmax attention:\n"
                                      "  hla generate \"a cat spins\" -o cat.webm --attention softmax\n"
                                      "Decode saved latents again, into another format:\n"
                                      "  hla generate --latents cat.safetensors -o cat.png\n"
                                      "\n"
                                      "Ctrl-C stops at the next step, leaves no half-written video and says how to go\n"
                                      "on. The video's metadata hold the prompt, the seed, the model and the settings\n"
                                      "(ffprobe -show_format FILE). Exit status: 0 done, 1 failed, 2 wrong usage.\n",
                                      run};

/* Wrong combinations of options: STATUS_GO_ON if there are none. */
static int check(const generate_settings *settings, const char *prompt) {
    const cli_command *command = &generate_command;
    if (prompt == NULL && settings->latents == NULL)
        return wrong_usage(command, "no prompt: give one in quotes, or --latents F");
    if (prompt != NULL && settings->latents != NULL)
        return wrong_usage(command, "--latents skips sampling, so the prompt would not be used: leave it out");
    if (prompt != NULL && prompt[strspn(prompt, " \t\r\n")] == '\0') return wrong_usage(command, "the prompt is empty");
    if (settings->latents != NULL && settings->output == NULL)
        return wrong_usage(command, "--latents needs -o FILE for the decoded video");
    if (settings->output == NULL && settings->save_latents == NULL)
        return wrong_usage(command, "no output: give -o FILE, such as -o clip.mp4 (or --save-latents F alone)");
    if (settings->latents != NULL &&
        (settings->save_latents != NULL || settings->initial_latents != NULL || settings->resume != NULL))
        return wrong_usage(command,
                           "--latents skips sampling, so --save-latents, --initial-latents and --resume make no "
                           "sense with it");
    if (settings->save_latents != NULL && !ends_with(settings->save_latents, ".safetensors"))
        return wrong_usage(command, "--save-latents is '%s', wanted a name that ends in .safetensors",
                           settings->save_latents);
    if (settings->resume != NULL && !ends_with(settings->resume, ".safetensors"))
        return wrong_usage(command, "--resume is '%s', wanted a name that ends in .safetensors", settings->resume);
    if (settings->preview != NULL && settings->output != NULL && strcmp(settings->preview, settings->output) == 0)
        return wrong_usage(command, "--preview and --output are the same file '%s'", settings->output);
    return STATUS_GO_ON;
}

/* What can be known to fail before minutes of computing. */
static hlv_status check_files(hlv_context *ctx, const generate_settings *settings) {
    hlv_status status = HLV_OK;
    if (settings->output != NULL) status = hlv_video_check(ctx, settings->output);
    if (status == HLV_OK && settings->preview != NULL) status = hlv_video_check(ctx, settings->preview);
    if (status == HLV_OK && settings->save_latents != NULL) status = hlv_array_check(ctx, settings->save_latents);
    if (status == HLV_OK && settings->resume != NULL) status = hlv_array_check(ctx, settings->resume);
    return status;
}

/* What was sampled, and how fast. */
static void json_sampling(json_writer *out, const generate_settings *settings, const hlv_generate_options *options,
                          const hlv_generate_result *result) {
    json_text(out, "prompt", options->prompt);
    json_text(out, "negative", options->negative);
    json_text(out, "adapter", settings->model.adapter);
    json_text(out, "attention", attention_names[settings->model.attention]);
    json_whole(out, "width", options->width);
    json_whole(out, "height", options->height);
    json_whole(out, "frames", options->frames);
    json_whole(out, "steps", options->steps);
    json_number(out, "guidance", options->guidance);
    json_number(out, "shift", options->shift);
    json_text(out, "sampler", sampler_names[options->sampler]);
    json_seed(out, "seed", options->seed);
    json_whole(out, "tokens", result->tokens);
    json_whole(out, "prompt_tokens", result->prompt_tokens);
    json_bool(out, "prompt_truncated", result->prompt_truncated);
    json_number(out, "seconds_per_step", result->seconds_per_step);
}

static void report_json(const generate_settings *settings, const hlv_generate_options *options, const char *model,
                        const hlv_generate_result *result, int threads) {
    json_writer out = {.out = stdout};
    json_open(&out, NULL, '{');
    json_text(&out, "output", options->output);
    json_text(&out, "save_latents", options->save_latents);
    json_text(&out, "latents", options->latents);
    json_text(&out, "model", model);
    json_text(&out, "dtype", dtype_names[settings->model.dtype]);
    json_number(&out, "fps", options->fps);
    json_whole(&out, "threads", threads);
    if (options->latents == NULL) json_sampling(&out, settings, options, result);
    json_open(&out, "stage_seconds", '{');
    json_number(&out, "load", result->load_seconds);
    json_number(&out, "text", result->text_seconds);
    json_number(&out, "sample", result->sample_seconds);
    json_number(&out, "decode", result->decode_seconds);
    json_number(&out, "write", result->write_seconds);
    json_close(&out, '}');
    json_whole(&out, "peak_bytes", result->peak_bytes);
    json_close(&out, '}');
}

static void report_text(const hlv_generate_options *options, const hlv_generate_result *result) {
    double all = result->load_seconds + result->text_seconds + result->sample_seconds + result->decode_seconds +
                 result->write_seconds;
    printf("%s: ", options->output != NULL ? options->output : options->save_latents);
    if (options->latents == NULL)
        printf("%dx%d, %d frames, seed %llu, %d steps of %.3g s; ", options->width, options->height, options->frames,
               (unsigned long long)options->seed, options->steps, result->seconds_per_step);
    printf("%.1f s in all, %.0f MiB at most\n", all, (double)result->peak_bytes / 0x1p20);
}

/* After a stop or a failure: are there latents of this run to go on from? */
static void say_how_to_go_on(const generate_settings *settings, time_t start) {
    struct stat info;
    const char *model = settings->model.model;
    if (settings->resume != NULL && stat(settings->resume, &info) == 0) {
        fprintf(stderr, "Go on with the same command: %s holds the steps that are done.\n", settings->resume);
        return;
    }
    if (settings->latents != NULL || settings->output == NULL) return;
    if (settings->save_latents != NULL && stat(settings->save_latents, &info) == 0 && info.st_mtime >= start)
        fprintf(stderr, "Go on with: hla generate --latents '%s' -o '%s'%s%s%s\n", settings->save_latents,
                settings->output, model != NULL ? " --model '" : "", model != NULL ? model : "",
                model != NULL ? "'" : "");
    else if (session_interrupted())
        fprintf(stderr, "No video was written. The same command makes the same clip from the start%s.\n",
                settings->resume == NULL ? "; with --resume F.safetensors it goes on where it was stopped" : "");
}

/* A size of 0 asks for the latents' own; one that was given is checked against them. */
static void take_sizes_from_latents(hlv_generate_options *options, const clip_settings *clip) {
    if (clip->size[0] == 0) options->width = options->height = 0;
    if (clip->frames == 0) options->frames = 0;
}

static hlv_status generate(cli_session *session, const generate_settings *settings, const char *prompt) {
    hlv_model *model = NULL;
    char *directory = NULL;
    hlv_status status = check_files(session->ctx, settings);
    if (status == HLV_OK) status = open_model(session, &settings->model, &model, &directory);
    if (status == HLV_OK) {
        hlv_generate_options options;
        hlv_generate_result result = {0};
        clip_options(&options, model, &settings->clip);
        if (settings->latents != NULL) take_sizes_from_latents(&options, &settings->clip);
        options.prompt = prompt;
        options.output = settings->output;
        options.save_latents = settings->save_latents;
        options.latents = settings->latents;
        options.initial_latents = settings->initial_latents;
        options.resume = settings->resume;
        options.preview = settings->preview;
        options.preview_every = settings->preview_every;
        status = hlv_generate(model, &options, &result);
        session_end_line(session);
        if (status == HLV_OK && session->json)
            report_json(settings, &options, directory, &result, hlv_context_threads(session->ctx));
        else if (status == HLV_OK)
            report_text(&options, &result);
    }
    hlv_model_free(model);
    free(directory);
    return status;
}

static int run(int argc, char **argv) {
    generate_settings settings = {.clip = CLIP_DEFAULTS, .preview_every = 5};
    text_list words;
    int exit_status = parse_options(&generate_command, argc, argv, &settings, &words, 1);
    if (exit_status == STATUS_GO_ON) exit_status = check(&settings, words.count > 0 ? words.items[0] : NULL);
    cli_session session;
    if (exit_status == STATUS_GO_ON) exit_status = session_open(&session, &generate_command, &settings.common);
    if (exit_status != STATUS_GO_ON) return exit_status;
    time_t start = time(NULL);
    hlv_status status = generate(&session, &settings, words.count > 0 ? words.items[0] : NULL);
    exit_status = session_close(&session, status);
    if (status != HLV_OK && status != HLV_ERROR_ARGUMENT) say_how_to_go_on(&settings, start);
    return exit_status;
}
