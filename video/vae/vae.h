/* video/vae/vae.h - the causal video VAE of Wan2.1: latents to pixels and back, streaming in time. */
#ifndef HLV_VAE_H
#define HLV_VAE_H

#include "video/nn/nn.h"
#include "video/weights/config.h"

typedef struct hlv_vae hlv_vae;
typedef enum hlv_vae_parts { HLV_VAE_DECODER = 1, HLV_VAE_ENCODER = 2 } hlv_vae_parts; /* a bit mask */
/* Whether hlv_vae_open would find its config, its files and every tensor of the parts; the weights are not read. */
hlv_status hlv_vae_check(hlv_context *ctx, const char *vae_dir, unsigned parts);
hlv_status hlv_vae_open(hlv_context *ctx, const char *vae_dir, hla_dtype dtype, unsigned parts, hlv_vae **vae);
void hlv_vae_free(hlv_vae *vae);
const hlv_vae_config *hlv_vae_get_config(const hlv_vae *vae);

/* frames [count, height, width, 3] in [-1, 1], channels last, first is the index of the first of them in the clip.
 * Return a status other than HLV_OK to stop. */
typedef hlv_status (*hlv_frames_fn)(void *user, const float *frames, int64_t first, int64_t count, int64_t height,
                                    int64_t width);

/* latents [C, F, Y, X] as the sampler holds them (normalised: mean and std are undone here). One latent frame at a
 * time, each handed on as soon as it is decoded, in one call of sink: memory does not grow with F. No progress is
 * reported: the sink knows how far it is, and whether anybody should be told. */
hlv_status hlv_vae_decode(const hlv_vae *vae, const float *latents, int64_t F, int64_t Y, int64_t X, hlv_frames_fn sink,
                          void *user);

/* frames [N, height, width, 3] in [-1, 1], N = 4k+1; latents [C, F, Y, X], the mean of the posterior, normalised.
 * Reports the stage "encode". */
hlv_status hlv_vae_encode(const hlv_vae *vae, float *latents, const float *frames, int64_t N, int64_t height,
                          int64_t width);

#endif
