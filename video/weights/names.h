/* video/weights/names.h - tensor names of the original Wan repositories, turned into those of diffusers and
 * transformers. */
#ifndef HLV_NAMES_H
#define HLV_NAMES_H

#include <stdbool.h>
#include <stddef.h>

typedef enum hlv_name_style {
    HLV_NAMES_AS_THEY_ARE = 0,
    HLV_NAMES_WAN_TRANSFORMER = 1, /* has "head.modulation" */
    HLV_NAMES_WAN_VAE = 2,         /* has "decoder.middle.0.residual.0.gamma" */
    HLV_NAMES_WAN_TEXT = 3         /* has "token_embedding.weight" */
} hlv_name_style;

/* The style that one tensor's name gives away; HLV_NAMES_AS_THEY_ARE if it gives away none. A leading
 * "model.diffusion_model." is passed over. */
hlv_name_style hlv_names_detect(const char *name);

/* The new name of a tensor, which fits `size` bytes, into renamed; false if it keeps its own (unknown names do). */
bool hlv_names_rename(hlv_name_style style, const char *name, char *renamed, size_t size);

#endif
