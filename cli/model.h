/* cli/model.h - the options that say which model runs and what clip it makes, shared by `generate` and `bench
 * generate`. */
#ifndef HLA_CLI_MODEL_H
#define HLA_CLI_MODEL_H

#include "cli/session.h"

typedef struct model_settings {
    const char *model, *adapter;
    int attention; /* hlv_attention */
    int dtype;     /* hla_dtype */
    int device;
} model_settings;

/* 0, or a negative or not-a-number value, where the model's own default holds. */
typedef struct clip_settings {
    int size[2]; /* width, height */
    int frames, steps;
    double fps, guidance, shift; /* NAN: the model's */
    int sampler;                 /* hlv_sampler */
    uint64_t seed;
    const char *negative;
} clip_settings;

#define CLIP_DEFAULTS                                                                                                  \
    { .fps = NAN, .guidance = NAN, .shift = NAN }

extern const char *const attention_names[], *const dtype_names[], *const device_names[], *const sampler_names[];

/* Entries of an option table; `settings` has the members model and clip. */
/* clang-format off */
#define MODEL_OPTIONS(settings)                                                                                        \
    {"model", 'm', OPTION_TEXT, offsetof(settings, model.model), "DIR",                                                \
     "model directory in the Diffusers layout (default: $HLA_MODEL, else the embedded hla-tiny)", 0, 0, NULL},         \
    {"adapter", 0, OPTION_TEXT, offsetof(settings, model.adapter), "DIR",                                              \
     "directory of the Hadamard feature maps (default: MODEL/hla if present)", 0, 0, NULL},                            \
    {"dtype", 0, OPTION_CHOICE, offsetof(settings, model.dtype), NULL,                                                 \
     "type of the operands of matrix products; sums are always f32 (default: f32)", 0, 0, dtype_names},                \
    {"device", 0, OPTION_CHOICE, offsetof(settings, model.device), NULL,                                               \
     "where to compute (default: cpu)", 0, 0, device_names}

#define CLIP_OPTIONS(settings)                                                                                         \
    {"size", 's', OPTION_SIZE, offsetof(settings, clip.size), "WxH",                                                   \
     "pixels (default: the model's)", 0, 0, NULL},                                                                     \
    {"frames", 'f', OPTION_INTEGER, offsetof(settings, clip.frames), "N",                                              \
     "frames of the clip, 4k+1: 1, 5, 9 ... (default: the model's)", 1, 100000, NULL},                                 \
    {"steps", 'n', OPTION_INTEGER, offsetof(settings, clip.steps), "N",                                                \
     "sampling steps: more is finer and slower (default: the model's)", 1, 1000, NULL},                                \
    {"guidance", 'g', OPTION_NUMBER, offsetof(settings, clip.guidance), "G",                                           \
     "how strongly the prompt steers; 1 turns guidance off and halves the time (default: the model's)", 0, 100, NULL}, \
    {"seed", 'S', OPTION_SEED, offsetof(settings, clip.seed), "N",                                                     \
     "the same seed gives the same video on any number of threads (default: 0)", 0, 0, NULL}
/* clang-format on */

/* Opens the model that settings name, or the default one. */
hlv_status open_model(cli_session *session, const model_settings *settings, hlv_model **model, char **directory);

/* The model's own defaults, then what was given. */
void clip_options(hlv_generate_options *options, const hlv_model *model, const clip_settings *clip);

/* Where the default model lies, malloc'ed: $HLA_MODEL, else beside the program, else in the source tree; NULL if
 * nowhere, which no_default_model says in a clause. */
char *find_default_model(void);
extern const char no_default_model[];

#endif
