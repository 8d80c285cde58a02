/* hla/config.json: the kind of attention of each transformer block. Its format is written down in README.md. */
#include "video/weights/config_json.h"
#include "video/weights/json.h"

#include <stdio.h>
#include <string.h>

#define FORMAT_VERSION 1
#define MAX_BLOCKS 1024
#define COUNT(table) (sizeof(table) / sizeof *(table))

static const char *const hadamard_keys[] = {
    "kind", "ranks", "activation", "activation_floor", "normalised", "epsilon", "scale", "hidden", "bias", "rope"};
static const char *const softmax_keys[] = {"kind"};

/* A key that is not known might change what is computed: it is refused, never passed over. */
static void check_keys(hlv_json_fields *fields, const char *const *known, size_t count) {
    const char *key;
    json_t *value;
    json_object_foreach(fields->object, key, value) {
        bool found = false;
        for (size_t i = 0; i < count && !found; i++)
            found = strcmp(known[i], key) == 0;
        if (!found)
            hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED,
                          "'%.80s' is not a key this version knows for this kind of block", key);
    }
}

static void read_hadamard(hlv_json_fields *fields, hlv_block_config *block) {
    check_keys(fields, hadamard_keys, COUNT(hadamard_keys));
    const json_t *ranks = hlv_json_array(fields, "ranks", 1, HLA_MAX_FACTORS);
    if (!ranks) hlv_json_fail(fields, HLV_ERROR_FORMAT, "'ranks' is absent, and must be an array of 1 to 4 integers");
    block->factors = ranks ? (int)json_array_size(ranks) : 0;
    for (int p = 0; p < block->factors; p++)
        block->rank[p] = hlv_json_int_at(fields, "ranks", ranks, (size_t)p, 1, HLA_MAX_RANK);
    const char *activation = hlv_json_text(fields, "activation", "relu");
    if (!hla_activation_from_name(activation, &block->activation))
        hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "'activation' is \"%.80s\", which is not one of hla/feature_map.h",
                      activation);
    block->floor = hlv_json_real(fields, "activation_floor", 1e-3, 0, 1);
    block->normalised = hlv_json_bool(fields, "normalised", true);
    block->epsilon = hlv_json_real(fields, "epsilon", 1e-6, 0, 1);
    block->scale = hlv_json_real(fields, "scale", 1, -1e6, 1e6);
    block->hidden = hlv_json_bool(fields, "hidden", false);
    block->bias = hlv_json_bool(fields, "bias", true);
    const char *rope = hlv_json_text(fields, "rope", "before");
    block->rope_before = strcmp(rope, "before") == 0;
    if (!block->rope_before && strcmp(rope, "after") != 0)
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'rope' is \"%.80s\", and must be \"before\" or \"after\"", rope);
}

static hlv_status read_block(hlv_context *ctx, const char *file, json_t *entry, size_t i, hlv_block_config *block) {
    char where[40];
    snprintf(where, sizeof where, "blocks[%zu]: ", i);
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = where, .object = entry};
    *block = (hlv_block_config){.rope_before = true};
    if (!json_is_object(entry))
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: blocks[%zu] is %s, and must be an object", file, i,
                        hlv_json_kind(entry));
    const char *kind = hlv_json_text(&fields, "kind", NULL);
    if (!kind)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "'kind' is absent, and must be \"hadamard\" or \"softmax\"");
    else if (strcmp(kind, "softmax") == 0)
        check_keys(&fields, softmax_keys, COUNT(softmax_keys));
    else if (strcmp(kind, "hadamard") == 0) {
        block->hadamard = true;
        read_hadamard(&fields, block);
    } else
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED, "'kind' is \"%.80s\", and must be \"hadamard\" or \"softmax\"",
                      kind);
    return fields.status;
}

hlv_status hlv_adapter_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_adapter_config *config) {
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = "", .object = root};
    *config = (hlv_adapter_config){.ctx = ctx};
    const char *name = hlv_json_text(&fields, "_class_name", "absent");
    if (strcmp(name, HLV_ADAPTER_CLASS) != 0)
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED,
                      "unknown architecture: '_class_name' is \"%.80s\", and must be \"" HLV_ADAPTER_CLASS "\"", name);
    int version = hlv_json_int(&fields, "format_version", FORMAT_VERSION, 1, 1 << 20);
    if (version != FORMAT_VERSION)
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED, "'format_version' is %d, and this version reads %d", version,
                      FORMAT_VERSION);
    const json_t *blocks = hlv_json_array(&fields, "blocks", 1, MAX_BLOCKS);
    if (!blocks) hlv_json_fail(&fields, HLV_ERROR_FORMAT, "'blocks' is absent, and must be an array of blocks");
    int entries = (int)json_array_size(blocks);
    int layers = hlv_json_int(&fields, "num_layers", entries, 1, MAX_BLOCKS);
    if (layers != entries)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "'num_layers' is %d, and 'blocks' has %d entries", layers, entries);
    if (fields.status != HLV_OK) return fields.status;

    config->blocks = hlv_alloc(ctx, (size_t)entries * sizeof *config->blocks);
    if (!config->blocks) return HLV_ERROR_MEMORY;
    config->num_layers = entries;
    hlv_status status = HLV_OK;
    for (size_t i = 0; i < (size_t)entries && status == HLV_OK; i++)
        status = read_block(ctx, file, json_array_get(blocks, i), i, &config->blocks[i]);
    if (status != HLV_OK) hlv_adapter_config_free(config);
    return status;
}

void hlv_adapter_config_free(hlv_adapter_config *config) {
    if (!config || !config->blocks) return;
    hlv_free(config->ctx, config->blocks);
    *config = (hlv_adapter_config){.ctx = config->ctx};
}
