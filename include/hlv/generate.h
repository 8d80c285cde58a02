/* hlv/generate.h - from a prompt to a video.
 *
 *     hlv_generate_options options;
 *     hlv_generate_options_init(model, &options);      // the model's own defaults
 *     options.prompt = "a rocket flies up over a blue background";
 *     options.output = "rocket.mp4";
 *     hlv_generate_result result;
 *     if (hlv_generate(model, &options, &result) != HLV_OK) ...
 *
 * Source of the recipe: Wan2.1 (docs/WAN21.md); latents, sigmas and guidance as in its diffusers pipeline.
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
    const char *prompt;   /* UTF-8; not empty, unless `latents` is given */
    const char *negative; /* UTF-8; NULL is "" */
    const char *output;   /* video file, see hlv/media.h; NULL: only save_latents */
    int width, height;    /* pixels, multiples of the VAE's scale times the patch; 0 with `latents`: the file's */
    int frames;           /* 4k+1; 0 with `latents`: the file's */
    double fps;           /* frames a second */
    int steps;            /* at least 1 */
    double guidance;      /* <= 1: without guidance, and the negative prompt is not used */
    double shift;         /* flow shift, above 0 */
    hlv_sampler sampler;
    uint64_t seed;            /* the same seed gives the same video on any number of threads */
    const char *save_latents; /* NULL, or a .safetensors file the finished latents are saved to before decoding */
    const char *latents;      /* NULL, or such a file: skip prompt and sampling and decode its tensor "latents" */
    /* NULL, or a .safetensors file whose tensor "latents" or "noise" [C,F,Y,X] is the starting noise, not the seed's.
     */
    const char *initial_latents;
    /* NULL, or a .safetensors file in which the state of sampling is kept after every step. Where it is there already,
     * of the same prompt, seed, model and settings, sampling goes on from it, to the same bits; it is removed when the
     * clip is done. A step that cannot be kept is a warning. */
    const char *resume;
    const char *preview; /* NULL, or a PNG of the clip's first frame, rewritten every preview_every steps */
    int preview_every;   /* at least 1 where preview is given */
} hlv_generate_options;

/* The model's own size, frames, steps and guidance, its scheduler's shift; seed 0; nothing to read or write. */
HLV_API void hlv_generate_options_init(const hlv_model *model, hlv_generate_options *options);

typedef struct hlv_generate_result {
    double load_seconds; /* weights of text encoder, transformer and VAE */
    double text_seconds, sample_seconds, decode_seconds, write_seconds;
    double seconds_per_step; /* sampling only, mean, previews not counted */
    int64_t tokens;          /* transformer tokens a clip; 0 where nothing was sampled */
    int64_t peak_bytes;      /* most bytes held at once during the call, the model's own included */
    int prompt_tokens;       /* pieces used, </s> included */
    bool prompt_truncated;   /* the prompt was longer than the 512 pieces the model sees */
} hlv_generate_result;

/* Options are all checked before anything expensive begins, and the checkpoint's files as far as their headers. result
 * may be NULL; on failure it tells what was reached. On failure or cancel no half-written output is left, and
 * save_latents, if reached, stays. Stages reported to the context's progress callback, each from 0 to its end: "load"
 * (the text encoder's layers), "text" (prompts), "load" again (the transformer's tensors, at its first use), "sample"
 * (steps), "decode" (latent frames). */
HLV_API hlv_status hlv_generate(hlv_model *model, const hlv_generate_options *options, hlv_generate_result *result);

#ifdef __cplusplus
}
#endif
#endif
