/* video/pipeline/model.h - the inside of hlv_model: where the parts lie, their configs, and the transformer once
 * opened. */
#ifndef HLV_PIPELINE_MODEL_H
#define HLV_PIPELINE_MODEL_H

#include "video/dit/dit.h"
#include "video/weights/config.h"

struct hlv_model {
    hlv_context *ctx;
    char *directory;
    char *adapter; /* directory of the HLA maps; NULL: none */
    hlv_attention attention;
    hla_dtype dtype;
    hlv_transformer_config transformer;
    hlv_vae_config vae;
    hlv_text_config text;
    hlv_scheduler_config scheduler;
    hlv_default_config defaults;
    hlv_dit *dit; /* NULL until hlv_model_transformer */
};

/* directory/part, freed by the caller with free(); NULL and an error sentence when out of memory. */
char *hlv_model_path(const hlv_model *model, const char *part);

/* Opens the transformer unless it is open; it stays the model's. */
hlv_status hlv_model_transformer(hlv_model *model, const hlv_dit **dit);

#endif
