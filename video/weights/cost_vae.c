/* The VAE's cost: one walk over its layers that adds up tensors, operations and memory.
 *
 * Decoding T latent frames makes 1 + 2 (T - 1) of T at each level that doubles time; decoding goes latent by latent, so
 * that a level holds 1, then 2, then 4 frames at once. */
#include "video/weights/cost.h"

typedef struct walk {
    hlv_cost_size size;
    double operations;
    int64_t history; /* floats: the two last input frames of every causal convolution */
    int64_t group;   /* floats: the largest group of frames handed from layer to layer */
    int64_t frames;  /* of the whole clip at this level */
    int64_t at_once; /* frames of a group */
    int64_t y, x;
} walk;

static void tensor(walk *w, int64_t parameters) {
    w->size.tensors++;
    w->size.parameters += parameters;
}

static void holds(walk *w, int64_t channels) {
    int64_t floats = channels * w->at_once * w->y * w->x;
    if (floats > w->group) w->group = floats;
}

/* taps: places of the kernel, of which kt lie in time. */
static void convolution(walk *w, int64_t in, int64_t out, int64_t kt, int64_t taps, int64_t frames) {
    tensor(w, in * out * taps);
    tensor(w, out);
    w->operations += 2.0 * (double)(in * out * taps) * (double)frames * (double)w->y * (double)w->x;
    if (kt > 1) w->history += (kt - 1) * in * w->y * w->x;
    holds(w, in);
    holds(w, out);
}

static void residual(walk *w, int64_t in, int64_t out) {
    tensor(w, in); /* norm1.gamma */
    convolution(w, in, out, 3, 27, w->frames);
    tensor(w, out); /* norm2.gamma */
    convolution(w, out, out, 3, 27, w->frames);
    if (in != out) convolution(w, in, out, 1, 1, w->frames);
}

static void middle(walk *w, int64_t channels) {
    residual(w, channels, channels);
    tensor(w, channels); /* norm.gamma */
    convolution(w, channels, 3 * channels, 1, 1, w->frames);
    convolution(w, channels, channels, 1, 1, w->frames);
    double pixels = (double)w->y * (double)w->x;
    w->operations += 4 * pixels * pixels * (double)channels * (double)w->frames;
    residual(w, channels, channels);
}

static void upsample(walk *w, int64_t channels, bool in_time) {
    if (in_time) {
        convolution(w, channels, 2 * channels, 3, 3, w->frames - 1); /* the first frame is not doubled */
        w->frames = 2 * w->frames - 1;
        w->at_once *= 2;
    }
    w->y *= 2;
    w->x *= 2;
    convolution(w, channels, channels / 2, 1, 9, w->frames);
}

static void downsample(walk *w, int64_t channels, bool in_time) {
    w->y /= 2;
    w->x /= 2;
    convolution(w, channels, channels, 1, 9, w->frames);
    if (!in_time) return;
    w->frames = (w->frames + 1) / 2;
    convolution(w, channels, channels, 3, 3, w->frames - 1);
}

static void decoder(const hlv_vae_config *config, walk *w) {
    int last = config->stages - 1;
    int64_t dim = config->decoder_base_dim, channels = dim * config->dim_mult[last];
    convolution(w, config->z_dim, config->z_dim, 1, 1, w->frames); /* post_quant_conv */
    convolution(w, config->z_dim, channels, 3, 27, w->frames);
    middle(w, channels);
    for (int i = 0; i <= last; i++) {
        int64_t out = dim * config->dim_mult[last - i];
        residual(w, channels, out);
        for (int j = 0; j < config->num_res_blocks; j++)
            residual(w, out, out);
        channels = out;
        if (i == last) continue;
        upsample(w, out, config->temporal_downsample[last - 1 - i]);
        channels = out / 2;
    }
    tensor(w, channels); /* norm_out.gamma */
    convolution(w, channels, 3, 3, 27, w->frames);
}

static void encoder(const hlv_vae_config *config, walk *w) {
    int64_t dim = config->base_dim, channels = dim;
    convolution(w, 3, channels, 3, 27, w->frames);
    for (int i = 0; i < config->stages; i++) {
        int64_t out = dim * config->dim_mult[i];
        residual(w, channels, out);
        for (int j = 1; j < config->num_res_blocks; j++)
            residual(w, out, out);
        channels = out;
        if (i + 1 < config->stages) downsample(w, out, config->temporal_downsample[i]);
    }
    middle(w, channels);
    tensor(w, channels);
    int64_t moments = 2 * (int64_t)config->z_dim;
    convolution(w, channels, moments, 3, 27, w->frames);
    convolution(w, moments, moments, 1, 1, w->frames); /* quant_conv */
}

static walk decode(const hlv_vae_config *config, const hlv_clip *clip) {
    walk w = {.frames = clip->F, .at_once = 1, .y = clip->Y, .x = clip->X};
    decoder(config, &w);
    return w;
}

hlv_cost_size hlv_vae_decoder_size(const hlv_vae_config *config) {
    return decode(config, &(hlv_clip){.F = 1, .Y = 1, .X = 1}).size;
}

hlv_cost_size hlv_vae_size(const hlv_vae_config *config) {
    hlv_cost_size size = hlv_vae_decoder_size(config);
    walk w = {.frames = 1, .at_once = 1, .y = 1, .x = 1};
    encoder(config, &w);
    return (hlv_cost_size){size.tensors + w.size.tensors, size.parameters + w.size.parameters};
}

double hlv_vae_decode_cost(const hlv_vae_config *config, const hlv_clip *clip) {
    return decode(config, clip).operations;
}

int64_t hlv_vae_history_floats(const hlv_vae_config *config, const hlv_clip *clip) {
    return decode(config, clip).history;
}

int64_t hlv_vae_group_floats(const hlv_vae_config *config, const hlv_clip *clip) {
    return decode(config, clip).group;
}

double hlv_vae_working_bytes(const hlv_vae_config *config, const hlv_clip *clip) {
    walk w = decode(config, clip);
    return ((double)w.history + 3 * (double)w.group) * (double)sizeof(float);
}
