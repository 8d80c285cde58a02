/* video/vae/vae.c - opening the VAE, and the clip-level loops: latents to frames and frames to latents. */
#include "video/vae/layers.h"

#include <stdlib.h>

#define IMAGE_CHANNELS 3
#define MAX_PIXELS 65536 /* a side of an image */
#define MAX_FRAMES ((int64_t)1 << 24)

/* Config and weights, all there. The weights are the caller's to free, on failure too. */
static hlv_status find(hlv_vae *v, const char *vae_dir, hlv_weights **weights) {
    if (v->parts == 0 || v->parts > (HLV_VAE_DECODER | HLV_VAE_ENCODER))
        return hlv_fail(v->ctx, HLV_ERROR_ARGUMENT,
                        "parts of the VAE are %u, and must be decoder (1), encoder (2) or both (3)", v->parts);
    hlv_status status = hlv_vae_config_read(v->ctx, vae_dir, &v->config);
    if (status == HLV_OK) status = hlv_weights_open(v->ctx, vae_dir, weights);
    return status == HLV_OK ? hlv_vae_find(v, *weights) : status;
}

hlv_status hlv_vae_check(hlv_context *ctx, const char *vae_dir, unsigned parts) {
    hlv_vae v = {.ctx = ctx, .parts = parts};
    hlv_weights *weights = NULL;
    hlv_status status = find(&v, vae_dir, &weights);
    hlv_weights_free(weights);
    return status;
}

hlv_status hlv_vae_open(hlv_context *ctx, const char *vae_dir, hla_dtype dtype, unsigned parts, hlv_vae **vae) {
    *vae = NULL;
    hlv_vae *v = calloc(1, sizeof *v);
    if (!v) return hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: out of memory", vae_dir);
    v->ctx = ctx;
    v->parts = parts;
    v->dtype = dtype;
    hlv_weights *weights = NULL;
    hlv_status status = find(v, vae_dir, &weights);
    if (status == HLV_OK) status = hlv_vae_build(v, weights);
    hlv_weights_free(weights); /* the layers hold their own copies */
    if (status != HLV_OK) {
        hlv_vae_free(v);
        return status;
    }
    *vae = v;
    return HLV_OK;
}

void hlv_vae_free(hlv_vae *vae) {
    if (!vae) return;
    hlv_vae_network_free(vae->ctx, &vae->decoder);
    hlv_vae_network_free(vae->ctx, &vae->encoder);
    free(vae);
}

const hlv_vae_config *hlv_vae_get_config(const hlv_vae *vae) {
    return &vae->config;
}

/* z [Y, X, C] = frame f of latents [C, F, Y, X], the normalisation undone. */
static void take_latents(const hlv_vae_config *c, float *z, const float *latents, int64_t F, int64_t f,
                         int64_t pixels) {
    const int64_t C = c->z_dim;
    for (int64_t channel = 0; channel < C; channel++) {
        const float *source = latents + (channel * F + f) * pixels;
        const float mean = (float)c->latents_mean[channel], std = (float)c->latents_std[channel];
        for (int64_t i = 0; i < pixels; i++)
            z[i * C + channel] = source[i] * std + mean;
    }
}

/* The other way, from the mean half of moments [Y, X, 2C]. */
static void give_latents(const hlv_vae_config *c, float *latents, const float *moments, int64_t F, int64_t f,
                         int64_t pixels) {
    const int64_t C = c->z_dim;
    for (int64_t channel = 0; channel < C; channel++) {
        float *target = latents + (channel * F + f) * pixels;
        const float mean = (float)c->latents_mean[channel], std = (float)c->latents_std[channel];
        for (int64_t i = 0; i < pixels; i++)
            target[i] = (moments[i * 2 * C + channel] - mean) / std;
    }
}

static void clamp(float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        x[i] = x[i] < -1.0f ? -1.0f : x[i];
        x[i] = x[i] > 1.0f ? 1.0f : x[i];
    }
}

static hlv_status cancelled(hlv_context *ctx, const char *what, int64_t done, int64_t total) {
    return hlv_fail(ctx, HLV_ERROR_CANCELLED, "stopped after %s %lld of %lld latent frames", what, (long long)done,
                    (long long)total);
}

/* One latent frame: z, post_quant [Y, X, C] are scratch. */
static hlv_status decode_frame(const hlv_vae *vae, vae_stream *stream, float *z, float *post_quant, int64_t pixels,
                               vae_chunk *chunk) {
    const int64_t C = vae->config.z_dim;
    hlv_status status = hlv_linear_forward(vae->decoder.pointwise, post_quant, C, z, C, pixels);
    if (status == HLV_OK) status = hlv_vae_stream_push(stream, post_quant, 1, chunk);
    if (status == HLV_OK) clamp(chunk->x, chunk->frames * chunk->height * chunk->width * chunk->channels);
    return status;
}

static hlv_status decode_clip(const hlv_vae *vae, vae_stream *stream, const float *latents, int64_t F, int64_t pixels,
                              hlv_frames_fn sink, void *user) {
    hlv_context *ctx = vae->ctx;
    const int64_t C = vae->config.z_dim;
    float *z = hlv_alloc_floats(ctx, 2 * pixels * C);
    hlv_status status = z ? HLV_OK : HLV_ERROR_MEMORY;
    int64_t first = 0;
    for (int64_t f = 0; f < F && status == HLV_OK; f++) {
        vae_chunk chunk = {0};
        take_latents(&vae->config, z, latents, F, f, pixels);
        status = decode_frame(vae, stream, z, z + pixels * C, pixels, &chunk);
        if (status == HLV_ERROR_CANCELLED) status = cancelled(ctx, "decoding", f, F);
        if (status == HLV_OK) status = sink(user, chunk.x, first, chunk.frames, chunk.height, chunk.width);
        first += chunk.frames;
    }
    hlv_free(ctx, z);
    return status;
}

hlv_status hlv_vae_decode(const hlv_vae *vae, const float *latents, int64_t F, int64_t Y, int64_t X, hlv_frames_fn sink,
                          void *user) {
    const int64_t most = MAX_PIXELS / hlv_vae_pixels_a_latent(&vae->config);
    if (!(vae->parts & HLV_VAE_DECODER))
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT, "the VAE was opened without its decoder");
    if (!latents || !sink)
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT, "decoding needs latents and a sink for frames");
    if (F < 1 || F > MAX_FRAMES || Y < 1 || Y > most || X < 1 || X > most)
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT,
                        "latents of %lld frames, height %lld, width %lld: sizes are at least 1, sides at most %lld",
                        (long long)F, (long long)Y, (long long)X, (long long)most);
    vae_stream *stream = NULL;
    hlv_status status = hlv_vae_stream_create(vae->ctx, &vae->decoder, 1, Y, X, &stream);
    if (status == HLV_OK) status = decode_clip(vae, stream, latents, F, Y * X, sink, user);
    hlv_vae_stream_free(stream);
    return status;
}

static hlv_status encode_clip(const hlv_vae *vae, vae_stream *stream, float *latents, const float *frames, int64_t N,
                              int64_t floats_a_frame, int64_t pixels) {
    hlv_context *ctx = vae->ctx;
    const int64_t C2 = (int64_t)2 * vae->config.z_dim, scale = hlv_vae_frames_a_latent(&vae->config),
                  F = (N - 1) / scale + 1;
    float *moments = hlv_alloc_floats(ctx, pixels * C2);
    hlv_status status = moments ? HLV_OK : HLV_ERROR_MEMORY;
    for (int64_t f = 0; f < F && status == HLV_OK; f++) {
        vae_chunk chunk = {0};
        hlv_progress(ctx, "encode", f, F);
        const int64_t first = f == 0 ? 0 : 1 + (f - 1) * scale;
        status = hlv_vae_stream_push(stream, frames + first * floats_a_frame, f == 0 ? 1 : scale, &chunk);
        if (status == HLV_ERROR_CANCELLED) status = cancelled(ctx, "encoding", f, F);
        if (status == HLV_OK) status = hlv_linear_forward(vae->encoder.pointwise, moments, C2, chunk.x, C2, pixels);
        if (status == HLV_OK) give_latents(&vae->config, latents, moments, F, f, pixels);
    }
    if (status == HLV_OK) hlv_progress(ctx, "encode", F, F);
    hlv_free(ctx, moments);
    return status;
}

hlv_status hlv_vae_encode(const hlv_vae *vae, float *latents, const float *frames, int64_t N, int64_t height,
                          int64_t width) {
    const int64_t scale = hlv_vae_pixels_a_latent(&vae->config), times = hlv_vae_frames_a_latent(&vae->config);
    if (!(vae->parts & HLV_VAE_ENCODER))
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT, "the VAE was opened without its encoder");
    if (!latents || !frames)
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT, "encoding needs frames and room for latents");
    if (N < 1 || N > MAX_FRAMES || (N - 1) % times != 0)
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT, "%lld frames: the VAE takes 1 and then groups of %lld",
                        (long long)N, (long long)times);
    if (height < scale || height > MAX_PIXELS || height % scale || width < scale || width > MAX_PIXELS || width % scale)
        return hlv_fail(vae->ctx, HLV_ERROR_ARGUMENT,
                        "frames of height %lld, width %lld: the VAE takes multiples of %lld up to %d",
                        (long long)height, (long long)width, (long long)scale, MAX_PIXELS);
    vae_stream *stream = NULL;
    hlv_status status = hlv_vae_stream_create(vae->ctx, &vae->encoder, times, height, width, &stream);
    if (status == HLV_OK)
        status = encode_clip(vae, stream, latents, frames, N, height * width * IMAGE_CHANNELS,
                             (height / scale) * (width / scale));
    hlv_vae_stream_free(stream);
    return status;
}
