/* video/weights/config.h - the JSON configs of a Diffusers-layout checkpoint, read into plain structs with every value
 * checked. Sources: the configs of Wan-AI/Wan2.1-T2V-1.3B-Diffusers and the classes that read them. */
#ifndef HLV_CONFIG_H
#define HLV_CONFIG_H

#include "hla/feature_map.h"
#include "hla/hadamard.h"
#include "video/core/context.h"

#define HLV_MAX_STAGES 8    /* resolution levels of the VAE */
#define HLV_MAX_CHANNELS 64 /* latent channels */

typedef struct hlv_transformer_config { /* transformer/config.json, WanTransformer3DModel */
    int patch_size[3];                  /* time, height, width */
    int num_attention_heads, attention_head_dim;
    int in_channels, out_channels, text_dim, freq_dim, ffn_dim, num_layers;
    bool cross_attn_norm;
    bool qk_norm; /* "rms_norm_across_heads", or false for null */
    double eps;
    int rope_max_seq_len;
} hlv_transformer_config;

typedef struct hlv_vae_config { /* vae/config.json, AutoencoderKLWan */
    int base_dim, decoder_base_dim, z_dim, num_res_blocks;
    int stages, dim_mult[HLV_MAX_STAGES];
    bool temporal_downsample[HLV_MAX_STAGES];
    double latents_mean[HLV_MAX_CHANNELS], latents_std[HLV_MAX_CHANNELS];
} hlv_vae_config;

typedef struct hlv_text_config { /* text_encoder/config.json, UMT5EncoderModel */
    int d_model, d_ff, d_kv, num_heads, num_layers, vocab_size;
    int relative_attention_num_buckets, relative_attention_max_distance;
    double layer_norm_epsilon;
    int pad_token_id, eos_token_id;
} hlv_text_config;

typedef struct hlv_scheduler_config { /* scheduler/scheduler_config.json, UniPCMultistepScheduler */
    int num_train_timesteps, solver_order;
    double flow_shift;
} hlv_scheduler_config;

typedef struct hlv_block_config { /* one transformer block's self-attention */
    bool hadamard;                /* false: softmax */
    int factors;
    int rank[HLA_MAX_FACTORS];
    hla_activation activation;
    double floor, epsilon, scale;
    bool normalised;
    bool hidden;      /* feature maps have a hidden layer */
    bool bias;        /* feature maps have a bias */
    bool rope_before; /* true (default): the maps see rotated q and k; false: q and k before RoPE */
} hlv_block_config;

#define HLV_ADAPTER_CLASS "HadamardLinearAttention" /* "_class_name" in hla/config.json */

typedef struct hlv_adapter_config { /* hla/config.json; its format is written down in README.md */
    int num_layers;
    hlv_block_config *blocks; /* owned; hlv_adapter_config_free */
    hlv_context *ctx;         /* that owns their memory */
} hlv_adapter_config;

/* Defaults for a clip, kept in model_index.json under "hla_defaults" (diffusers ignores it); absent: Wan's own. */
typedef struct hlv_default_config {
    int width, height, frames, steps;
    double fps, guidance;
} hlv_default_config;

/* Each reads one file of the directory, and on failure says which file, which key, what stands there and what must.
 * Keys that are absent take the default of the class named above; README.md lists them. */
hlv_status hlv_transformer_config_read(hlv_context *ctx, const char *component_dir, hlv_transformer_config *config);
hlv_status hlv_vae_config_read(hlv_context *ctx, const char *component_dir, hlv_vae_config *config);
hlv_status hlv_text_config_read(hlv_context *ctx, const char *component_dir, hlv_text_config *config);
hlv_status hlv_scheduler_config_read(hlv_context *ctx, const char *component_dir, hlv_scheduler_config *config);
hlv_status hlv_adapter_config_read(hlv_context *ctx, const char *adapter_dir, hlv_adapter_config *config);
void hlv_adapter_config_free(hlv_adapter_config *config);  /* its insides only */
int hlv_vae_pixels_a_latent(const hlv_vae_config *config); /* along height and width: 8 for Wan */
int hlv_vae_frames_a_latent(const hlv_vae_config *config); /* after the first, which is one frame: 4 for Wan */

/* model_index.json: checks _class_name WanPipeline and the components' classes; reads the defaults. */
hlv_status hlv_model_index_read(hlv_context *ctx, const char *model_dir, hlv_default_config *defaults);

#endif
