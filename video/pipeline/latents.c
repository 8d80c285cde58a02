/* video/pipeline/latents.c - latents in .safetensors files, with what they were made from; a clip's description. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "video/pipeline/run.h"
#include "video/weights/weights.h"

static const char *const KEYS[HLV_METADATA_KEYS] = {"prompt", "negative_prompt", "seed", "model", "settings"};

const char *const *hlv_latents_keys(void) {
    return KEYS;
}

/* Opens the file and finds the tensor, [C,F,Y,X] or [1,C,F,Y,X]. */
static hlv_status find_latents(hlv_context *ctx, const char *path, const char *name, const char *other,
                               hlv_weights **file, const hlv_weight **latents) {
    hlv_status status = hlv_weights_open(ctx, path, file);
    if (status != HLV_OK) return status;
    *latents = hlv_weights_find(*file, name);
    if (!*latents && other) *latents = hlv_weights_find(*file, other);
    if (!*latents)
        status = hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: holds no tensor \"%s\"%s%s%s", path, name, other ? " or \"" : "",
                          other ? other : "", other ? "\"" : "");
    else if ((*latents)->ndim != 4 && !((*latents)->ndim == 5 && (*latents)->shape[0] == 1))
        status = hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: tensor \"%s\" has %d axes, wanted [channels,frames,rows,columns]",
                          path, (*latents)->name, (*latents)->ndim);
    else if ((*latents)->count == 0)
        status = hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: tensor \"%s\" is empty", path, (*latents)->name);
    if (status != HLV_OK) {
        hlv_weights_free(*file);
        *file = NULL;
    }
    return status;
}

hlv_status hlv_latents_shape(hlv_context *ctx, const char *path, const char *name, const char *other,
                             int64_t shape[4]) {
    hlv_weights *file = NULL;
    const hlv_weight *latents = NULL;
    hlv_status status = find_latents(ctx, path, name, other, &file, &latents);
    if (status != HLV_OK) return status;
    memcpy(shape, latents->shape + (latents->ndim - 4), 4 * sizeof *shape);
    hlv_weights_free(file);
    return HLV_OK;
}

hlv_status hlv_latents_read(hlv_run *run, const char *path, const char *name, const char *other, float *out) {
    hlv_weights *file = NULL;
    const hlv_weight *latents = NULL;
    hlv_status status = find_latents(run->ctx, path, name, other, &file, &latents);
    if (status != HLV_OK) return status;
    const int64_t want[4] = {run->C, run->F, run->Y, run->X};
    if (memcmp(latents->shape + (latents->ndim - 4), want, sizeof want) != 0)
        status = hlv_fail(run->ctx, HLV_ERROR_FORMAT, "%s: the latents changed while the file was being used", path);
    if (status == HLV_OK) hlv_weight_to_f32(latents, out);
    for (int64_t i = 0; status == HLV_OK && i < run->count; i++)
        if (!isfinite(out[i]))
            status = hlv_fail(run->ctx, HLV_ERROR_FORMAT, "%s: tensor \"%s\" holds a number that is not finite", path,
                              latents->name);
    hlv_weights_free(file);
    return status;
}

/* Appends a pair; NULL values are left out. */
static hlv_status describe(hlv_run *run, int key, const char *value) {
    if (!value) return HLV_OK;
    char **pair = &run->metadata[2 * run->metadata_count++];
    pair[0] = strdup(KEYS[key]);
    pair[1] = strdup(value);
    return pair[0] && pair[1] ? HLV_OK : hlv_fail(run->ctx, HLV_ERROR_MEMORY, "out of memory for the metadata");
}

/* The last part of a path: a model's name without where it lies on this machine. */
static void base_name(const char *path, char *name, size_t size) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/')
        begin--;
    snprintf(name, size, "%.*s", (int)(end - begin), path + begin);
}

hlv_status hlv_run_describe(hlv_run *run) {
    const hlv_generate_options *o = &run->options;
    const bool hadamard = run->model->adapter && run->model->attention != HLV_ATTENTION_SOFTMAX;
    char seed[32], model[256], settings[512];
    snprintf(seed, sizeof seed, "%" PRIu64, o->seed);
    base_name(run->model->directory, model, sizeof model);
    snprintf(settings, sizeof settings,
             "size %dx%d, frames %d, fps %g, steps %d, guidance %g, shift %g, sampler %s, attention %s, dtype %s",
             o->width, o->height, o->frames, o->fps, o->steps, o->guidance, o->shift,
             o->sampler == HLV_SAMPLER_EULER ? "euler" : "unipc", hadamard ? "hadamard" : "softmax",
             run->model->dtype == HLA_BF16 ? "bf16" : "f32");
    const char *const values[HLV_METADATA_KEYS] = {
        run->cleaned[HLV_POSITIVE],
        run->cleaned[HLV_NEGATIVE] && run->cleaned[HLV_NEGATIVE][0] ? run->cleaned[HLV_NEGATIVE] : NULL,
        o->initial_latents ? NULL : seed, model, settings};
    hlv_status status = HLV_OK;
    for (int key = 0; status == HLV_OK && key < HLV_METADATA_KEYS; key++)
        status = describe(run, key, values[key]);
    return status;
}

hlv_status hlv_latents_describe(hlv_run *run) {
    hlv_weights *file = NULL;
    hlv_status status = hlv_weights_open(run->ctx, run->options.latents, &file);
    for (int key = 0; status == HLV_OK && key < HLV_METADATA_KEYS; key++)
        status = describe(run, key, hlv_weights_metadata(file, KEYS[key]));
    hlv_weights_free(file);
    return status;
}

hlv_status hlv_latents_save(hlv_run *run) {
    const hlv_tensor_out tensor = {.name = "latents",
                                   .dtype = HLA_F32,
                                   .ndim = 4,
                                   .shape = {run->C, run->F, run->Y, run->X},
                                   .data = run->latents};
    return hlv_safetensors_write(run->ctx, run->options.save_latents, &tensor, 1, (const char *const *)run->metadata,
                                 run->metadata_count);
}
