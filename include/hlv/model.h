/* hlv/model.h - a text-to-video checkpoint in the Diffusers layout, opened; and what is in one.
 *
 *     hlv_model_options options;
 *     hlv_model_options_init(&options);
 *     options.directory = "models/hla-tiny";
 *     hlv_model *model = NULL;
 *     if (hlv_model_open(ctx, &options, &model) != HLV_OK) ...
 *     hlv_model_free(model);
 */
#ifndef HLV_MODEL_H
#define HLV_MODEL_H

#include "hlv/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hlv_attention {
    HLV_ATTENTION_DEFAULT = 0,  /* as the adapter says for each block; softmax where there is no adapter */
    HLV_ATTENTION_HADAMARD = 1, /* needs an adapter, in the model directory or given apart */
    HLV_ATTENTION_SOFTMAX = 2   /* every block softmax, the adapter unused */
} hlv_attention;

typedef struct hlv_model_options {
    size_t struct_size;
    const char
        *directory; /* Diffusers layout: model_index.json, scheduler/, text_encoder/, tokenizer/, transformer/, vae/ */
    const char
        *adapter; /* directory with config.json and model.safetensors of the HLA maps; NULL: DIR/hla if present */
    hlv_attention attention;
    hla_dtype dtype; /* HLA_F32 or HLA_BF16: of matrix products; sums and the residual stream stay float32 */
} hlv_model_options;

HLV_API void hlv_model_options_init(hlv_model_options *options);

/* Reads and checks every config; weights are read when they are first needed: the text encoder's and the VAE's for each
 * clip and freed again, the transformer's once. The model keeps copies of the strings and a pointer to context, which
 * must outlive it. On an error *model is NULL. */
typedef struct hlv_model hlv_model;
HLV_API hlv_status hlv_model_open(hlv_context *context, const hlv_model_options *options, hlv_model **model);
HLV_API void hlv_model_free(hlv_model *model); /* NULL is fine */

/* What is in a checkpoint directory, an adapter's directory or a single .safetensors file, as text for people or as
 * JSON; owned by the caller, freed with free(). width, height, frames (0: the model's defaults) set the size that FLOPs
 * and memory are given for.
 */
HLV_API hlv_status hlv_inspect(hlv_context *context, const char *path, int width, int height, int frames, bool json,
                               char **text);

#ifdef __cplusplus
}
#endif
#endif
