/* video/pipeline/run.h - one call of hlv_generate while it is under way, and the steps it is made of. */
#ifndef HLV_PIPELINE_RUN_H
#define HLV_PIPELINE_RUN_H

#include "hlv/generate.h"
#include "video/pipeline/model.h"
#include "video/sampler/sampler.h"
#include "video/vae/vae.h"

/* Rows of text the transformer attends to: the prompt's, and zero rows for the rest. */
#define HLV_TEXT_TOKENS 512

/* The encoded prompts: with and without the wish. */
enum { HLV_POSITIVE, HLV_NEGATIVE, HLV_PROMPTS };

#define HLV_METADATA_KEYS 5

typedef struct hlv_run {
    hlv_model *model;
    hlv_context *ctx;
    hlv_generate_options options; /* sizes filled in */
    bool guided;
    int64_t C, F, Y, X, count;  /* latents [C,F,Y,X] */
    float *latents;             /* the finished ones, or while sampling the noisy ones */
    char *cleaned[HLV_PROMPTS]; /* prompts after cleaning; NULL where not used */
    float *text[HLV_PROMPTS];   /* [tokens, d_model], between encoding and sampling */
    int text_count[HLV_PROMPTS];
    int kept_steps, kept_order;            /* found in options.resume */
    hlv_vae *vae;                          /* opened for the first preview or the decoding */
    char *metadata[2 * HLV_METADATA_KEYS]; /* key, value, ...: owned values, keys too */
    int metadata_count;                    /* pairs */
    hlv_generate_result result;
} hlv_run;

double hlv_seconds(void); /* a monotonic clock */

/* Checks every option, fills in what the latents file decides, cleans the prompts; nothing expensive. */
hlv_status hlv_run_check(hlv_run *run);

/* run->text from run->cleaned; the text encoder is opened and freed again. */
hlv_status hlv_run_encode(hlv_run *run);

/* run->latents from run->text. */
hlv_status hlv_run_sample(hlv_run *run);

/* The state of sampling in options.resume (nothing is done without). find: how far it got, to run->kept_steps and
 * kept_order, 0 where there is no such file; one of another clip is an error. Keeping fails with a warning only. */
hlv_status hlv_resume_find(hlv_run *run);
hlv_status hlv_resume_read(hlv_run *run, hlv_solver *solver);
void hlv_resume_keep(hlv_run *run, hlv_solver *solver, int steps);
void hlv_resume_remove(hlv_run *run); /* the clip is done */

/* What is kept beside latents and frames: prompt, negative prompt, seed, model, settings. */
hlv_status hlv_run_describe(hlv_run *run);
const char *const *hlv_latents_keys(void); /* the HLV_METADATA_KEYS names that it uses */

/* Reads the header of a latents file: the shape of tensor `name`, or of `other` where that is missing (may be NULL). */
hlv_status hlv_latents_shape(hlv_context *ctx, const char *path, const char *name, const char *other, int64_t shape[4]);
/* Reads that tensor into out, of run's shape; refuses numbers that are not finite. */
hlv_status hlv_latents_read(hlv_run *run, const char *path, const char *name, const char *other, float *out);
/* Takes prompt, seed and so on of a latents file for the video's metadata. */
hlv_status hlv_latents_describe(hlv_run *run);
hlv_status hlv_latents_save(hlv_run *run);

/* Decodes run->latents into options.output. */
hlv_status hlv_run_decode(hlv_run *run);

/* Writes options.preview from the solver's estimate of the clean latents. A preview that cannot be written is a
 * warning: only a cancel is passed on. */
hlv_status hlv_run_preview(hlv_run *run, const float *estimate);

#endif
