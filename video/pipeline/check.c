/* video/pipeline/check.c - every option of a call is checked here, before anything expensive begins. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "hlv/media.h"
#include "video/media/media.h"
#include "video/pipeline/run.h"
#include "video/text/text.h"
#include "video/weights/weights.h"

#define MAX_STEPS 1000
#define MAX_SIDE HLV_MAX_PIXELS_A_SIDE
#define MAX_FRAMES (1 << 20)

void hlv_generate_options_init(const hlv_model *model, hlv_generate_options *options) {
    const hlv_default_config *defaults = &model->defaults;
    *options = (hlv_generate_options){.struct_size = sizeof *options,
                                      .width = defaults->width,
                                      .height = defaults->height,
                                      .frames = defaults->frames,
                                      .fps = defaults->fps,
                                      .steps = defaults->steps,
                                      .guidance = defaults->guidance,
                                      .shift = model->scheduler.flow_shift,
                                      .preview_every = 5};
}

static hlv_status check_numbers(const hlv_run *run) {
    const hlv_generate_options *o = &run->options;
    if (o->steps < 1 || o->steps > MAX_STEPS)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "steps: found %d, wanted 1 to %d", o->steps, MAX_STEPS);
    if (!isfinite(o->guidance))
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "guidance: found %g, wanted a finite number", o->guidance);
    if (!isfinite(o->shift) || !(o->shift > 0))
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "shift: found %g, wanted a finite number above 0", o->shift);
    if (!(o->fps >= 0.01 && o->fps <= 1000))
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "fps: found %g, wanted 0.01 to 1000", o->fps);
    if (o->sampler != HLV_SAMPLER_UNIPC && o->sampler != HLV_SAMPLER_EULER)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "sampler: unknown value %d, wanted unipc or euler",
                        (int)o->sampler);
    if (o->preview && o->preview_every < 1)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "preview_every: found %d, wanted at least 1", o->preview_every);
    return HLV_OK;
}

static hlv_status check_side(const hlv_run *run, const char *name, int found, int patch) {
    const int multiple = hlv_vae_pixels_a_latent(&run->model->vae) * patch;
    if (found < 1 || found > MAX_SIDE || found % multiple)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "%s: found %d, wanted a multiple of %d up to %d", name, found,
                        multiple, MAX_SIDE);
    int positions = found / multiple, limit = run->model->transformer.rope_max_seq_len;
    if (positions > limit)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "%s: found %d, but this model reaches %d at most", name, found,
                        limit * multiple);
    return HLV_OK;
}

static hlv_status check_frames(const hlv_run *run) {
    const int scale = hlv_vae_frames_a_latent(&run->model->vae), patch = run->model->transformer.patch_size[0];
    const int found = run->options.frames;
    if (found < 1 || found > MAX_FRAMES || (found - 1) % scale)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "frames: found %d, wanted 1 more than a multiple of %d", found,
                        scale);
    const int latent = (found - 1) / scale + 1;
    if (latent % patch)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT,
                        "frames: %d frames are %d latent frames, wanted a multiple of the patch's %d", found, latent,
                        patch);
    if (latent / patch > run->model->transformer.rope_max_seq_len)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "frames: found %d, but this model reaches %d at most", found,
                        (run->model->transformer.rope_max_seq_len * patch - 1) * scale + 1);
    return HLV_OK;
}

/* Sizes left at 0 come from the latents file; sizes given must agree with it. */
static hlv_status sizes_from_latents(hlv_run *run) {
    hlv_generate_options *o = &run->options;
    int64_t shape[4]; /* C, F, Y, X */
    hlv_status status = hlv_latents_shape(run->ctx, o->latents, "latents", NULL, shape);
    if (status != HLV_OK) return status;
    const int scale = hlv_vae_pixels_a_latent(&run->model->vae);
    const struct {
        const char *name;
        int *option;
        int64_t size;
    } sizes[] = {{"width", &o->width, shape[3] * scale},
                 {"height", &o->height, shape[2] * scale},
                 {"frames", &o->frames, (shape[1] - 1) * hlv_vae_frames_a_latent(&run->model->vae) + 1}};
    if (shape[0] != run->model->vae.z_dim)
        return hlv_fail(run->ctx, HLV_ERROR_FORMAT, "%s: latents have %lld channels, the model's VAE wants %d",
                        o->latents, (long long)shape[0], run->model->vae.z_dim);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (*sizes[i].option == 0 && sizes[i].size <= MAX_FRAMES) *sizes[i].option = (int)sizes[i].size;
        if (*sizes[i].option != sizes[i].size)
            return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "%s: found %d, but the latents in %s are for %lld",
                            sizes[i].name, *sizes[i].option, o->latents, (long long)sizes[i].size);
    }
    return HLV_OK;
}

static hlv_status check_sizes(hlv_run *run) {
    const hlv_generate_options *o = &run->options;
    const int *patch = run->model->transformer.patch_size;
    hlv_status status = o->latents ? sizes_from_latents(run) : HLV_OK;
    if (status == HLV_OK) status = check_side(run, "width", o->width, patch[2]);
    if (status == HLV_OK) status = check_side(run, "height", o->height, patch[1]);
    if (status == HLV_OK) status = check_frames(run);
    if (status != HLV_OK) return status;
    const int scale = hlv_vae_pixels_a_latent(&run->model->vae);
    run->C = run->model->vae.z_dim;
    run->F = (o->frames - 1) / hlv_vae_frames_a_latent(&run->model->vae) + 1;
    run->Y = o->height / scale, run->X = o->width / scale;
    run->count = run->C * run->F * run->Y * run->X; /* at most 2^6 2^20 2^14 2^14: no overflow */
    return HLV_OK;
}

static hlv_status clean(hlv_run *run, int which, const char *name, const char *text) {
    hlv_status status = hlv_prompt_clean(run->ctx, text, &run->cleaned[which]);
    if (status != HLV_OK) return hlv_fail(run->ctx, status, "%s: %s", name, hlv_context_error(run->ctx));
    return HLV_OK;
}

static hlv_status check_prompts(hlv_run *run) {
    const hlv_generate_options *o = &run->options;
    if (o->latents) return HLV_OK;
    if (!o->prompt) return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "prompt: none given");
    hlv_status status = clean(run, HLV_POSITIVE, "prompt", o->prompt);
    if (status == HLV_OK && !run->cleaned[HLV_POSITIVE][0])
        status = hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "prompt: it is empty");
    if (status == HLV_OK && run->guided)
        status = clean(run, HLV_NEGATIVE, "negative prompt", o->negative ? o->negative : "");
    return status;
}

static hlv_status check_preview(const hlv_run *run) {
    const char *path = run->options.preview;
    size_t length = strlen(path);
    if (length < 4 || strcmp(path + length - 4, ".png") != 0 || strchr(path, '%'))
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT,
                        "preview: '%s' must be one picture, ending in .png and without %%", path);
    return hlv_video_check(run->ctx, path);
}

static hlv_status check_initial(const hlv_run *run) {
    const char *path = run->options.initial_latents;
    int64_t shape[4];
    hlv_status status = hlv_latents_shape(run->ctx, path, "latents", "noise", shape);
    if (status != HLV_OK) return status;
    if (shape[0] != run->C || shape[1] != run->F || shape[2] != run->Y || shape[3] != run->X)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT,
                        "%s: the starting noise is [%lld,%lld,%lld,%lld], wanted [%lld,%lld,%lld,%lld] for this size",
                        path, (long long)shape[0], (long long)shape[1], (long long)shape[2], (long long)shape[3],
                        (long long)run->C, (long long)run->F, (long long)run->Y, (long long)run->X);
    return HLV_OK;
}

/* Two things to write must not share a name: the later would replace the earlier. */
static hlv_status check_distinct(const hlv_run *run) {
    const hlv_generate_options *o = &run->options;
    const char *const paths[] = {o->output, o->save_latents, o->preview, o->resume};
    for (int i = 0; i < 4; i++)
        for (int j = i + 1; j < 4; j++)
            if (paths[i] && paths[j] && strcmp(paths[i], paths[j]) == 0)
                return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT,
                                "output: '%s' is asked for twice among video, latents, preview and resume", paths[i]);
    return HLV_OK;
}

static hlv_status check_paths(const hlv_run *run) {
    const hlv_generate_options *o = &run->options;
    if (!o->output && !o->save_latents)
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT, "output: neither a video nor a latents file to write was given");
    if (o->latents && (o->save_latents || o->initial_latents || o->preview || o->resume))
        return hlv_fail(run->ctx, HLV_ERROR_ARGUMENT,
                        "latents: nothing is sampled from a latents file, so there is no "
                        "use for save_latents, initial_latents, preview and resume");
    hlv_status status = check_distinct(run);
    if (status == HLV_OK && o->output) status = hlv_video_check(run->ctx, o->output);
    if (status == HLV_OK && o->save_latents) status = hlv_path_check(run->ctx, o->save_latents, false);
    if (status == HLV_OK && o->resume) status = hlv_path_check(run->ctx, o->resume, false);
    if (status == HLV_OK && o->preview) status = check_preview(run);
    if (status == HLV_OK && o->initial_latents) status = check_initial(run);
    return status;
}

/* Damaged weights should be found now, not after an hour of sampling: the headers of all files that will be needed, and
 * of the VAE, which comes last, every tensor. */
static hlv_status check_weights(const hlv_run *run) {
    static const char *const parts[] = {"text_encoder", "transformer", "vae"};
    const hlv_generate_options *o = &run->options;
    const bool needed[] = {!o->latents, !o->latents && !run->model->dit, o->output || o->preview};
    hlv_status status = HLV_OK;
    for (int i = 0; status == HLV_OK && i < 3; i++) {
        if (!needed[i]) continue;
        char *path = hlv_model_path(run->model, parts[i]);
        hlv_weights *weights = NULL;
        if (!path)
            status = HLV_ERROR_MEMORY;
        else if (i == 2)
            status = hlv_vae_check(run->ctx, path, HLV_VAE_DECODER);
        else
            status = hlv_weights_open(run->ctx, path, &weights);
        hlv_weights_free(weights);
        free(path);
    }
    return status;
}

hlv_status hlv_run_check(hlv_run *run) {
    run->guided = run->options.guidance > 1.0;
    hlv_status status = check_numbers(run);
    if (status == HLV_OK) status = check_sizes(run);
    if (status == HLV_OK) status = check_paths(run);
    if (status == HLV_OK) status = check_prompts(run);
    return status == HLV_OK ? check_weights(run) : status;
}
