/* video/pipeline/generate.c - from a prompt to a video: check, encode the prompts, sample, save the latents, decode. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "video/pipeline/run.h"

#define SENTENCE_SIZE 1024

double hlv_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static hlv_status make_latents(hlv_run *run) {
    hlv_status status = hlv_run_describe(run);
    if (status == HLV_OK) status = hlv_resume_find(run);
    if (status == HLV_OK && run->kept_steps == run->options.steps) /* only the decoding is left */
        return hlv_latents_read(run, run->options.resume, "latents", NULL, run->latents);
    if (status == HLV_OK) status = hlv_run_encode(run);
    if (status == HLV_OK) status = hlv_run_sample(run);
    return status;
}

static hlv_status read_latents(hlv_run *run) {
    hlv_status status = hlv_latents_describe(run);
    if (status == HLV_OK) status = hlv_latents_read(run, run->options.latents, "latents", NULL, run->latents);
    return status;
}

/* A sampling that took hours is not thrown away because its latents cannot be saved: the clip is still decoded, and
 * only then the failure returned. */
static hlv_status save_and_decode(hlv_run *run) {
    const char *path = run->options.save_latents, *output = run->options.output;
    char unsaved[SENTENCE_SIZE] = "";
    hlv_status saved = path ? hlv_latents_save(run) : HLV_OK;
    if (saved != HLV_OK) snprintf(unsaved, sizeof unsaved, "%s", hlv_context_error(run->ctx));
    if (saved != HLV_OK && output) hlv_log(run->ctx, HLV_LOG_WARNING, "%s; decoding nevertheless", unsaved);
    hlv_status status = output ? hlv_run_decode(run) : HLV_OK;
    if (status != HLV_OK && path && saved == HLV_OK)
        return hlv_fail(run->ctx, status, "%s; the finished latents are kept in %s", hlv_context_error(run->ctx), path);
    if (status == HLV_OK && saved != HLV_OK) return hlv_fail(run->ctx, saved, "%s", unsaved);
    return status;
}

static hlv_status generate(hlv_run *run) {
    hlv_status status = hlv_run_check(run);
    if (status != HLV_OK) return status;
    run->latents = hlv_alloc_floats(run->ctx, run->count);
    if (!run->latents) return HLV_ERROR_MEMORY;
    status = run->options.latents ? read_latents(run) : make_latents(run);
    if (status == HLV_OK) status = save_and_decode(run);
    if (status == HLV_OK) hlv_resume_remove(run);
    return status;
}

static void free_run(hlv_run *run) {
    for (int i = 0; i < HLV_PROMPTS; i++) {
        free(run->cleaned[i]);
        hlv_free(run->ctx, run->text[i]);
    }
    for (int i = 0; i < 2 * run->metadata_count; i++)
        free(run->metadata[i]);
    hlv_vae_free(run->vae);
    hlv_free(run->ctx, run->latents);
}

hlv_status hlv_generate(hlv_model *model, const hlv_generate_options *options, hlv_generate_result *result) {
    if (result) *result = (hlv_generate_result){0};
    if (!model) return HLV_ERROR_ARGUMENT;
    hlv_context *ctx = model->ctx;
    if (!options || options->struct_size != sizeof *options)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT,
                        "generate options: struct_size is %zu, wanted %zu; use hlv_generate_options_init",
                        options ? options->struct_size : 0, sizeof *options);
    hlv_run run = {.model = model, .ctx = ctx, .options = *options};
    hlv_context_peak_bytes(ctx, true);
    hlv_status status = generate(&run);
    free_run(&run);
    run.result.peak_bytes = hlv_context_peak_bytes(ctx, false);
    if (result) *result = run.result;
    return status;
}
