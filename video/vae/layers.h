/* video/vae/layers.h - the two networks of the VAE as flat lists of layers, and the clip that streams through one of
 * them. */
#ifndef HLV_VAE_LAYERS_H
#define HLV_VAE_LAYERS_H

#include "video/vae/vae.h"

#define VAE_MAX_CONVS 3

typedef enum vae_kind {
    VAE_CONV,      /* conv[0], 3x3x3 causal */
    VAE_RESNET,    /* gamma[0], conv[0], gamma[1], conv[1]; conv[2] the 1x1x1 shortcut, NULL if in == out */
    VAE_ATTENTION, /* gamma[0], qkv, proj */
    VAE_UPSAMPLE, /* conv[0] after doubling pixels; conv[1], conv[2] give the even and odd frames, NULL if time stays */
    VAE_DOWNSAMPLE, /* conv[0] of stride 2; conv[1] over time, NULL if time stays */
    VAE_HEAD        /* gamma[0], conv[0] */
} vae_kind;

typedef struct vae_layer {
    vae_kind kind;
    int64_t in, out; /* channels */
    float *gamma[2]; /* [in], [out] */
    hlv_conv *conv[VAE_MAX_CONVS];
    hlv_linear *qkv, *proj;
} vae_layer;

typedef struct vae_network {
    vae_layer *layers;
    int count;
    hlv_linear *pointwise; /* decoder: post_quant_conv, before; encoder: quant_conv, after */
} vae_network;

struct hlv_vae {
    hlv_context *ctx;
    hlv_vae_config config;
    unsigned parts;
    hla_dtype dtype;
    vae_network decoder, encoder;
};

/* Whether the weights hold all tensors of the networks named by vae->parts; every missing or mis-shaped one is named in
 * the one sentence. */
hlv_status hlv_vae_find(hlv_vae *vae, const hlv_weights *weights);
/* Makes those networks, after hlv_vae_find. */
hlv_status hlv_vae_build(hlv_vae *vae, const hlv_weights *weights);
void hlv_vae_network_free(hlv_context *ctx, vae_network *network);

/* A clip on its way through a network, a chunk of frames at a time: the buffers and each causal convolution's last
 * frames. */
typedef struct vae_stream vae_stream;

/* frames, height, width: of the largest chunk that will be pushed. */
hlv_status hlv_vae_stream_create(hlv_context *ctx, const vae_network *network, int64_t frames, int64_t height,
                                 int64_t width, vae_stream **stream);
void hlv_vae_stream_free(vae_stream *stream);

/* x [frames, height, width, channels] of the network's input; the first chunk of a clip has one frame. The result
 * [frames_out, height_out, width_out, channels_out] is the stream's own and lasts until the next push.
 * Asks whether to stop before each layer: HLV_ERROR_CANCELLED comes without a sentence, and ends the stream's use. */
typedef struct vae_chunk {
    float *x;
    int64_t frames, height, width, channels;
} vae_chunk;
hlv_status hlv_vae_stream_push(vae_stream *stream, const float *x, int64_t frames, vae_chunk *result);

#endif
