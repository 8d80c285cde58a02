/* video/weights/inspect.h - the inside of hlv_inspect: what was found, and the two ways to write it down. */
#ifndef HLV_INSPECT_H
#define HLV_INSPECT_H

#include "video/weights/config.h"
#include "video/weights/cost.h"
#include "video/weights/weights.h"

#define HLV_INSPECT_TEXT_TOKENS 512 /* rows of the text that Wan attends to */

typedef enum hlv_part_kind {
    HLV_PART_TEXT = 0,
    HLV_PART_TRANSFORMER = 1,
    HLV_PART_VAE = 2,
    HLV_PART_ADAPTER = 3,
    HLV_PARTS = 4
} hlv_part_kind;

typedef struct hlv_part {
    const char *name, *class_name; /* folder and class */
    int64_t tensors, parameters, files, bytes;
    hlv_cost_size by_config; /* what the config makes of it */
    char dtypes[64];         /* "F32", or "BF16, F32" where they are mixed */
} hlv_part;

/* Bytes at the three stages of a generation: the text encoder is freed before the transformer is loaded, which stays
 * while the VAE decodes. */
typedef struct hlv_stage_memory {
    double text, sample, decode, peak;
    bool fits;
} hlv_stage_memory;

typedef struct hlv_inspection {
    const char *path;
    hlv_part parts[HLV_PARTS]; /* HLV_PART_ADAPTER has tensors 0 where there is none */
    hlv_transformer_config transformer;
    hlv_text_config text;
    hlv_vae_config vae;
    hlv_scheduler_config scheduler;
    hlv_adapter_config adapter; /* num_layers 0: none */
    hlv_default_config defaults;
    hlv_clip clip;
    hlv_forward_cost cost;
    double text_cost, decode_cost;
    hlv_stage_memory memory[2]; /* float32, bf16 */
    double machine_bytes;       /* physical memory; 0: unknown */
} hlv_inspection;

/* The text in fresh memory for free(); NULL when out of memory. */
char *hlv_inspection_text(const hlv_inspection *found);
char *hlv_inspection_json(const hlv_inspection *found);
/* adapter: what its config says, for the directory of an adapter alone; NULL for plain weights. */
char *hlv_weights_text(const hlv_weights *weights, const hlv_adapter_config *adapter);
char *hlv_weights_json(const hlv_weights *weights, const hlv_adapter_config *adapter);

#endif
