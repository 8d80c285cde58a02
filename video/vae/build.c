/* video/vae/build.c - from a checkpoint to the two networks. Names and shapes: AutoencoderKLWan of diffusers. */
#include "video/vae/layers.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAME_BYTES 160
#define IMAGE_CHANNELS 3

/* The networks are walked twice: first every tensor is asked of the loader, so that all that is missing is known; then
 * the layers are made. */
typedef struct builder {
    hlv_vae *vae;
    const hlv_weights *weights;
    hlv_loader *loader; /* first walk only */
    vae_network *network;
    hlv_status status;
} builder;

static const hlv_weight *get(builder *b, int ndim, const int64_t *shape, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static const hlv_weight *get(builder *b, int ndim, const int64_t *shape, const char *format, ...) {
    char name[NAME_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    if (length < 0 || length >= (int)sizeof name) return NULL;
    return b->loader ? hlv_loader_get(b->loader, ndim, shape, "%s", name) : hlv_weights_find(b->weights, name);
}

/* The convolutions of the networks: kernel over time and space (kt 0: the weight has no such axis), strides and
 * padding. */
typedef struct conv_form {
    int64_t kt, k;
    hlv_conv_options options;
} conv_form;

static const conv_form causal = {3, 3, {.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1}};
static const conv_form shortcut = {1, 1, {0}};
static const conv_form smooth = {0, 3, {.pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1}};
static const conv_form halve = {0, 3, {.stride_y = 2, .stride_x = 2, .pad_bottom = 1, .pad_right = 1}};
static const conv_form double_time = {3, 1, {0}};
static const conv_form halve_time = {3, 1, {.stride_t = 2}};

/* Some of a tensor's rows (its first axis). */
static hlv_weight rows_of(const hlv_weight *whole, int64_t first, int64_t rows) {
    hlv_weight part = *whole;
    const int64_t row = whole->count / whole->shape[0];
    part.shape[0] = rows;
    part.count = rows * row;
    part.data = (const char *)whole->data + (size_t)(first * row) * hla_dtype_size(whole->dtype);
    return part;
}

/* Below, a tensor's name is prefix and part put together, then ".weight", ".bias" or ".gamma". */

/* Output channels number `piece` of `pieces` equal ones of the convolution from in to pieces * out channels. */
static void add_piece(builder *b, hlv_conv **conv, const conv_form *form, int64_t in, int64_t out, int piece,
                      int pieces, const char *prefix, const char *part) {
    const int64_t volume[] = {pieces * out, in, form->kt, form->k, form->k},
                  flat[] = {pieces * out, in, form->k, form->k};
    const hlv_weight *weight = get(b, form->kt ? 5 : 4, form->kt ? volume : flat, "%s%s.weight", prefix, part);
    const hlv_weight *bias = get(b, 1, flat, "%s%s.bias", prefix, part);
    if (b->loader || b->status != HLV_OK) return;
    const hlv_weight own_weight = rows_of(weight, piece * out, out), own_bias = rows_of(bias, piece * out, out);
    b->status = hlv_conv_create(b->vae->ctx, b->vae->dtype, &own_weight, &own_bias, &form->options, conv);
}

static void add_conv(builder *b, hlv_conv **conv, const conv_form *form, int64_t in, int64_t out, const char *prefix,
                     const char *part) {
    add_piece(b, conv, form, in, out, 0, 1, prefix, part);
}

static void add_linear(builder *b, hlv_linear **linear, int64_t in, int64_t out, int ndim, const char *prefix,
                       const char *part) {
    const int64_t shape[] = {out, in, 1, 1, 1};
    const hlv_weight *weight = get(b, ndim, shape, "%s%s.weight", prefix, part);
    const hlv_weight *bias = get(b, 1, shape, "%s%s.bias", prefix, part);
    if (b->loader || b->status != HLV_OK) return;
    b->status = hlv_linear_create(b->vae->ctx, b->vae->dtype, weight, bias, HLV_ACT_NONE, linear);
}

static void add_gamma(builder *b, float **gamma, int64_t channels, int ndim, const char *prefix, const char *part) {
    const hlv_weight *weight = get(b, ndim, (int64_t[]){channels, 1, 1, 1}, "%s%s.gamma", prefix, part);
    if (b->loader || b->status != HLV_OK) return;
    if (!(*gamma = hlv_weight_load_f32(b->vae->ctx, weight))) b->status = HLV_ERROR_MEMORY;
}

/* Room for the next layer of the network; a throw-away one in the first walk. */
static vae_layer *next_layer(builder *b, vae_layer *unused, vae_kind kind, int64_t in, int64_t out) {
    vae_layer *layer = unused;
    if (!b->loader && b->status == HLV_OK) layer = &b->network->layers[b->network->count++];
    *layer = (vae_layer){.kind = kind, .in = in, .out = out};
    return layer;
}

static void add_entry(builder *b, int64_t in, int64_t out, const char *part) {
    vae_layer unused, *layer = next_layer(b, &unused, VAE_CONV, in, out);
    add_conv(b, &layer->conv[0], &causal, in, out, part, ".conv_in");
}

static void add_resnet(builder *b, int64_t in, int64_t out, const char *prefix) {
    vae_layer unused, *layer = next_layer(b, &unused, VAE_RESNET, in, out);
    add_gamma(b, &layer->gamma[0], in, 4, prefix, ".norm1");
    add_conv(b, &layer->conv[0], &causal, in, out, prefix, ".conv1");
    add_gamma(b, &layer->gamma[1], out, 4, prefix, ".norm2");
    add_conv(b, &layer->conv[1], &causal, out, out, prefix, ".conv2");
    if (in != out) add_conv(b, &layer->conv[2], &shortcut, in, out, prefix, ".conv_shortcut");
}

static void add_attention(builder *b, int64_t channels, const char *prefix) {
    vae_layer unused, *layer = next_layer(b, &unused, VAE_ATTENTION, channels, channels);
    add_gamma(b, &layer->gamma[0], channels, 3, prefix, ".norm");
    add_linear(b, &layer->qkv, channels, 3 * channels, 4, prefix, ".to_qkv");
    add_linear(b, &layer->proj, channels, channels, 4, prefix, ".proj");
}

static void add_upsample(builder *b, int64_t in, bool time, const char *prefix) {
    vae_layer unused, *layer = next_layer(b, &unused, VAE_UPSAMPLE, in, in / 2);
    add_conv(b, &layer->conv[0], &smooth, in, in / 2, prefix, ".resample.1");
    for (int odd = 0; time && odd < 2; odd++)
        add_piece(b, &layer->conv[1 + odd], &double_time, in, in, odd, 2, prefix, ".time_conv");
}

static void add_downsample(builder *b, int64_t in, bool time, const char *prefix) {
    vae_layer unused, *layer = next_layer(b, &unused, VAE_DOWNSAMPLE, in, in);
    add_conv(b, &layer->conv[0], &halve, in, in, prefix, ".resample.1");
    if (time) add_conv(b, &layer->conv[1], &halve_time, in, in, prefix, ".time_conv");
}

/* part: "encoder" or "decoder". */
static void add_mid(builder *b, int64_t channels, const char *part) {
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s.mid_block.resnets.0", part);
    add_resnet(b, channels, channels, name);
    snprintf(name, sizeof name, "%s.mid_block.attentions.0", part);
    add_attention(b, channels, name);
    snprintf(name, sizeof name, "%s.mid_block.resnets.1", part);
    add_resnet(b, channels, channels, name);
}

static void add_head(builder *b, int64_t in, int64_t out, const char *part) {
    vae_layer unused, *layer = next_layer(b, &unused, VAE_HEAD, in, out);
    add_gamma(b, &layer->gamma[0], in, 4, part, ".norm_out");
    add_conv(b, &layer->conv[0], &causal, in, out, part, ".conv_out");
}

/* conv_in, mid, for each stage from the last: its resnets and, but after the last of them, an upsampler that halves the
 * channels; head. */
static void add_decoder(builder *b) {
    const hlv_vae_config *c = &b->vae->config;
    char name[NAME_BYTES];
    int64_t channels = (int64_t)c->decoder_base_dim * c->dim_mult[c->stages - 1];
    b->network = &b->vae->decoder;
    add_linear(b, &b->network->pointwise, c->z_dim, c->z_dim, 5, "post_quant_conv", "");
    add_entry(b, c->z_dim, channels, "decoder");
    add_mid(b, channels, "decoder");
    for (int i = 0; i < c->stages; i++) {
        const int stage = c->stages - 1 - i;
        const int64_t out = (int64_t)c->decoder_base_dim * c->dim_mult[stage];
        for (int j = 0; j <= c->num_res_blocks; j++, channels = out) {
            snprintf(name, sizeof name, "decoder.up_blocks.%d.resnets.%d", i, j);
            add_resnet(b, channels, out, name);
        }
        if (stage == 0) break;
        snprintf(name, sizeof name, "decoder.up_blocks.%d.upsamplers.0", i);
        add_upsample(b, out, c->temporal_downsample[stage - 1], name);
        channels = out / 2;
    }
    add_head(b, channels, IMAGE_CHANNELS, "decoder");
}

/* conv_in, for each stage its resnets and, but after the last, a downsampler, numbered through; mid, head. */
static void add_encoder(builder *b) {
    const hlv_vae_config *c = &b->vae->config;
    char name[NAME_BYTES];
    int64_t channels = c->base_dim;
    int block = 0;
    b->network = &b->vae->encoder;
    add_entry(b, IMAGE_CHANNELS, channels, "encoder");
    for (int stage = 0; stage < c->stages; stage++) {
        const int64_t out = (int64_t)c->base_dim * c->dim_mult[stage];
        for (int j = 0; j < c->num_res_blocks; j++, channels = out) {
            snprintf(name, sizeof name, "encoder.down_blocks.%d", block++);
            add_resnet(b, channels, out, name);
        }
        if (stage == c->stages - 1) break;
        snprintf(name, sizeof name, "encoder.down_blocks.%d", block++);
        add_downsample(b, channels, c->temporal_downsample[stage], name);
    }
    add_mid(b, channels, "encoder");
    add_head(b, channels, (int64_t)2 * c->z_dim, "encoder");
    add_linear(b, &b->network->pointwise, (int64_t)2 * c->z_dim, (int64_t)2 * c->z_dim, 5, "quant_conv", "");
}

static void add_parts(builder *b) {
    if (b->vae->parts & HLV_VAE_DECODER) add_decoder(b);
    if (b->vae->parts & HLV_VAE_ENCODER) add_encoder(b);
}

/* The most layers a network can have: conv_in, three of mid, head, and for each stage its resnets and a resampler. */
static hlv_status reserve_layers(hlv_vae *vae, vae_network *network) {
    const size_t most = 5 + (size_t)vae->config.stages * ((size_t)vae->config.num_res_blocks + 2);
    network->layers = calloc(most, sizeof *network->layers);
    if (network->layers) return HLV_OK;
    return hlv_fail(vae->ctx, HLV_ERROR_MEMORY, "out of memory for the %zu layers of the VAE", most);
}

hlv_status hlv_vae_find(hlv_vae *vae, const hlv_weights *weights) {
    const hlv_vae_config *c = &vae->config;
    for (int stage = 1; stage < c->stages; stage++)
        if ((int64_t)c->decoder_base_dim * c->dim_mult[stage] < 2)
            return hlv_fail(vae->ctx, HLV_ERROR_FORMAT,
                            "the VAE's decoder has one channel at stage %d, which cannot be halved", stage);
    builder b = {.vae = vae, .weights = weights};
    hlv_status status = hlv_loader_create(vae->ctx, weights, NULL, &b.loader);
    if (status != HLV_OK) return status;
    add_parts(&b);
    return hlv_loader_finish(b.loader);
}

hlv_status hlv_vae_build(hlv_vae *vae, const hlv_weights *weights) {
    builder b = {.vae = vae, .weights = weights};
    hlv_status status = reserve_layers(vae, &vae->decoder);
    if (status == HLV_OK) status = reserve_layers(vae, &vae->encoder);
    if (status != HLV_OK) return status;
    add_parts(&b);
    return b.status;
}

void hlv_vae_network_free(hlv_context *ctx, vae_network *network) {
    for (int i = 0; i < network->count; i++) {
        vae_layer *layer = &network->layers[i];
        for (int j = 0; j < 2; j++)
            hlv_free(ctx, layer->gamma[j]);
        for (int j = 0; j < VAE_MAX_CONVS; j++)
            hlv_conv_free(layer->conv[j]);
        hlv_linear_free(layer->qkv);
        hlv_linear_free(layer->proj);
    }
    hlv_linear_free(network->pointwise);
    free(network->layers);
}
