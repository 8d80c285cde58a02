/* video/weights/cost.h - what a model of given configs holds and costs, from the configs alone: tensors, parameters,
 * floating point operations (a multiply-add counts as 2), bytes of working memory. Small terms (norms, activations,
 * softmax's exponentials) are left out. */
#ifndef HLV_COST_H
#define HLV_COST_H

#include "video/weights/config.h"

typedef struct hlv_cost_size {
    int64_t tensors, parameters;
} hlv_cost_size;

#define HLV_CLIP_MAX_SIDE 65536     /* pixels */
#define HLV_CLIP_MAX_FRAMES 1000000 /* with these bounds every count below fits 64 bits */

typedef struct hlv_clip {
    int width, height, frames; /* pixels, frames */
    int64_t F, Y, X;           /* latents */
    int64_t tokens;
    int space, time; /* pixels a side and frames of one latent (the first holds one frame) */
} hlv_clip;

/* The latents and tokens of a clip; fails when the sizes do not divide as the VAE and the patches need. */
hlv_status hlv_clip_measure(hlv_context *ctx, const hlv_transformer_config *transformer, const hlv_vae_config *vae,
                            int width, int height, int frames, hlv_clip *clip);

hlv_cost_size hlv_transformer_size(const hlv_transformer_config *config);
hlv_cost_size hlv_text_size(const hlv_text_config *config);
hlv_cost_size hlv_vae_size(const hlv_vae_config *config);         /* encoder and decoder */
hlv_cost_size hlv_vae_decoder_size(const hlv_vae_config *config); /* the decoder with post_quant_conv */
hlv_cost_size hlv_adapter_size(const hlv_transformer_config *transformer, const hlv_adapter_config *adapter);

/* Operations of one forward of the transformer, all blocks together. */
typedef struct hlv_forward_cost {
    double self_projections;  /* q, k, v, o of the self-attention */
    double cross_projections; /* q, o, and k, v of the text */
    double feed_forward;
    double cross_attention;
    double embeddings; /* patches, text, head */
    double softmax;    /* self-attention, every block softmax */
    double adapted;    /* self-attention as the adapter says, feature maps included; = softmax without adapter */
} hlv_forward_cost;

double hlv_forward_total(const hlv_forward_cost *cost, bool adapted);
/* adapter may be NULL. text_tokens: rows of the text that are attended to (512 for Wan). */
hlv_forward_cost hlv_transformer_cost(const hlv_transformer_config *config, const hlv_adapter_config *adapter,
                                      int64_t tokens, int64_t text_tokens);
double hlv_text_cost(const hlv_text_config *config, int64_t tokens);
double hlv_vae_decode_cost(const hlv_vae_config *config, const hlv_clip *clip);

/* Bytes that a forward holds beside the weights. */
double hlv_transformer_working_bytes(const hlv_transformer_config *config, const hlv_adapter_config *adapter,
                                     int64_t tokens, int64_t text_tokens);
/* Numbers that decoding frame by frame holds: each convolution's last two frames; and the largest group of frames. */
int64_t hlv_vae_history_floats(const hlv_vae_config *config, const hlv_clip *clip);
int64_t hlv_vae_group_floats(const hlv_vae_config *config, const hlv_clip *clip);
/* Bytes that decoding holds beside the weights: the history and three groups. */
double hlv_vae_working_bytes(const hlv_vae_config *config, const hlv_clip *clip);

#endif
