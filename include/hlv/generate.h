/* hlv/generate.h - from a prompt to a video.
 *
 *     hlv_generate_options options;
 *     hlv_generate_options_init(model, &options);      // the model's own defaults
 *     options.prompt = "a rocket flies up over a blue background";
 *     options.output = "rocket.mp4";
 *     hlv_generate_result result;
 *     if (hlv_generate(model, &options, &result) != HLV_OK) ...
 *
 * Source of the recipe: Wan2.1 (docs/ARCHITECTURE.md); latents, sigmas and guidance as in its diffusers pipeline.
 */
#ifndef HLV_GENERATE_H
#define HLV_GENERATE_H

#include "hlv/model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hlv_sampler { HLV_SAMPLER_UNIPC = 0, HLV_SAMPLER_EULER = 1 } hlv_sampler;

typedef struct hlv_generate_options {
    size_t struct_size;
    const char *prompt;   /* UTF-8; not empty */
    const char *negative; /* UTF-8; NULL is "" */
    const char *output;   /* video file, see hlv/media.h; NULL: latents only */
    int width, height;    /* pixels, multiples of the VAE's and patch's sizes */
    int frames;           /* 4k+1 */
    double fps;
    int steps;
    double guidance;      /* <= 1: without guidance */
    double shift;         /* flow shift */
    hlv_sampler sampler;
    uint64_t seed;        /* the same seed gives the same video on any number of threads */
    const char *save_latents; /* NULL, or a .safetensors file the finished latents are saved to before decoding */
    const char *latents;      /* NULL, or such a file: skip sampling and decode it */
    const char *initial_latents; /* NULL, or a .safetensors file with the starting noise instead of the seed's */
    const char *preview;      /* NULL, or a PNG path rewritten every preview_every steps */
    int preview_every;
} hlv_generate_options;

HLV_API void hlv_generate_options_init(const hlv_model *model, hlv_generate_options *options);

typedef struct hlv_generate_result {
    double load_seconds, text_seconds, sample_seconds, decode_seconds, write_seconds;
    double seconds_per_step; /* sampling only, mean */
    int64_t tokens;          /* transformer tokens a clip */
    int64_t peak_bytes;
    int prompt_tokens;       /* pieces used, </s> included */
    bool prompt_truncated;
} hlv_generate_result;

/* result may be NULL. On failure or cancel no half-written output is left, and save_latents, if reached, stays. */
HLV_API hlv_status hlv_generate(hlv_model *model, const hlv_generate_options *options, hlv_generate_result *result);

#ifdef __cplusplus
}
#endif
#endif
