#include "cli/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_PATH_BYTES 4096

const char *const attention_names[] = {"default", "hadamard", "softmax", NULL};
const char *const dtype_names[] = {"f32", "bf16", NULL}; /* places as in hla_dtype */
const char *const device_names[] = {"cpu", "cuda", NULL};
const char *const sampler_names[] = {"unipc", "euler", NULL}; /* places as in hlv_sampler */

const char no_default_model[] = "no model: the embedded hla-tiny is not installed here; give --model DIR, a checkpoint "
                                "in the Diffusers layout, or set HLA_MODEL=DIR";

/* DIR/model_index.json is there. */
static bool is_model(const char *directory) {
    char path[MAX_PATH_BYTES + 32];
    int length = snprintf(path, sizeof path, "%s/model_index.json", directory);
    return length > 0 && (size_t)length < sizeof path && access(path, R_OK) == 0;
}

char *find_default_model(void) {
    static const char *const beside[] = {"../share/hla/models/hla-tiny", "../models/hla-tiny"};
    const char *named = getenv("HLA_MODEL");
    if (named != NULL && named[0] != '\0') return strdup(named);
    char program[MAX_PATH_BYTES], path[MAX_PATH_BYTES];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    program[length > 0 ? length : 0] = '\0';
    char *slash = strrchr(program, '/');
    for (size_t i = 0; slash != NULL && i < sizeof beside / sizeof beside[0]; i++) {
        int used = snprintf(path, sizeof path, "%.*s/%s", (int)(slash - program), program, beside[i]);
        if (used > 0 && (size_t)used < sizeof path && is_model(path)) return realpath(path, NULL);
    }
    return is_model(HLA_SOURCE_MODEL) ? strdup(HLA_SOURCE_MODEL) : NULL;
}

/* Something the engine has no sentence for. */
static hlv_status refuse(cli_session *session, const char *sentence) {
    session->sentence = sentence;
    return HLV_ERROR_UNSUPPORTED;
}

hlv_status open_model(cli_session *session, const model_settings *settings, hlv_model **model, char **directory) {
    *model = NULL;
    *directory = NULL;
    if (settings->device != 0) return refuse(session, "this build has no CUDA backend; use --device cpu");
    *directory = settings->model != NULL ? strdup(settings->model) : find_default_model();
    if (*directory == NULL) return refuse(session, no_default_model);
    hlv_model_options options;
    hlv_model_options_init(&options);
    options.directory = *directory;
    options.adapter = settings->adapter;
    options.attention = (hlv_attention)settings->attention;
    options.dtype = (hla_dtype)settings->dtype;
    return hlv_model_open(session->ctx, &options, model);
}

void clip_options(hlv_generate_options *options, const hlv_model *model, const clip_settings *clip) {
    hlv_generate_options_init(model, options);
    if (clip->size[0] > 0) {
        options->width = clip->size[0];
        options->height = clip->size[1];
    }
    if (clip->frames > 0) options->frames = clip->frames;
    if (clip->steps > 0) options->steps = clip->steps;
    if (!isnan(clip->fps)) options->fps = clip->fps;
    if (!isnan(clip->guidance)) options->guidance = clip->guidance;
    if (!isnan(clip->shift)) options->shift = clip->shift;
    options->sampler = (hlv_sampler)clip->sampler;
    options->seed = clip->seed;
    options->negative = clip->negative;
}
