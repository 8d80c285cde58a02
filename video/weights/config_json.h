/* video/weights/config_json.h - the inside of config.h: a parsed document to its struct. `file` is for sentences. */
#ifndef HLV_CONFIG_JSON_H
#define HLV_CONFIG_JSON_H

#include "video/weights/config.h"

#include <jansson.h>

hlv_status hlv_transformer_config_from_json(hlv_context *ctx, const char *file, json_t *root,
                                            hlv_transformer_config *config);
hlv_status hlv_vae_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_vae_config *config);
hlv_status hlv_text_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_text_config *config);
hlv_status hlv_scheduler_config_from_json(hlv_context *ctx, const char *file, json_t *root,
                                          hlv_scheduler_config *config);
hlv_status hlv_adapter_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_adapter_config *config);
hlv_status hlv_default_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_default_config *config);

#endif
