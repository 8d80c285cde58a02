/* video/dit/dit.c - opening and freeing the transformer. */
#include <stdlib.h>

#include "video/dit/internal.h"

int64_t hlv_dit_product(int64_t a, int64_t b) {
    int64_t product = 0;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

const hlv_transformer_config *hlv_dit_config(const hlv_dit *dit) {
    return &dit->config;
}

int hlv_dit_hadamard_blocks(const hlv_dit *dit) {
    int count = 0;
    for (int n = 0; n < dit->config.num_layers; n++)
        count += dit->blocks[n].config.hadamard;
    return count;
}

static hlv_status check_config(hlv_context *ctx, const hlv_transformer_config *config) {
    if (config->in_channels != config->out_channels)
        return hlv_fail(
            ctx, HLV_ERROR_UNSUPPORTED,
            "transformer config: in_channels %d and out_channels %d differ; this engine is for text to video",
            config->in_channels, config->out_channels);
    return HLV_OK;
}

/* Decides each block's attention. */
static hlv_status assign_blocks(hlv_dit *dit, const char *adapter_dir, hlv_attention attention) {
    if (attention == HLV_ATTENTION_HADAMARD && !adapter_dir)
        return hlv_fail(dit->ctx, HLV_ERROR_ARGUMENT,
                        "attention: hadamard needs an adapter, and the model directory has none (hla/config.json)");
    if (attention == HLV_ATTENTION_SOFTMAX || !adapter_dir) return HLV_OK;
    hlv_status status = hlv_adapter_config_read(dit->ctx, adapter_dir, &dit->adapter);
    if (status != HLV_OK) return status;
    if (dit->adapter.num_layers != dit->config.num_layers)
        return hlv_fail(dit->ctx, HLV_ERROR_FORMAT, "%s/config.json is for %d blocks, the transformer has %d",
                        adapter_dir, dit->adapter.num_layers, dit->config.num_layers);
    for (int n = 0; n < dit->config.num_layers; n++)
        dit->blocks[n].config = dit->adapter.blocks[n];
    if (attention == HLV_ATTENTION_HADAMARD && hlv_dit_hadamard_blocks(dit) == 0)
        return hlv_fail(dit->ctx, HLV_ERROR_ARGUMENT,
                        "attention: hadamard asked for, but %s/config.json makes every block softmax", adapter_dir);
    return HLV_OK;
}

static hlv_status load_from(hlv_dit *dit, const char *transformer_dir, const char *adapter_dir, hla_dtype dtype) {
    hlv_weights *weights = NULL, *adapter = NULL;
    hlv_status status = hlv_weights_open(dit->ctx, transformer_dir, &weights);
    if (status == HLV_OK && dit->adapter.num_layers) status = hlv_weights_open(dit->ctx, adapter_dir, &adapter);
    if (status == HLV_OK) status = hlv_dit_load(dit, weights, adapter, dtype);
    hlv_weights_free(adapter);
    hlv_weights_free(weights);
    return status;
}

static hlv_status open_into(hlv_dit *dit, const char *transformer_dir, const char *adapter_dir, hlv_attention attention,
                            hla_dtype dtype) {
    hlv_transformer_config *config = &dit->config;
    hlv_status status = hlv_transformer_config_read(dit->ctx, transformer_dir, config);
    if (status == HLV_OK) status = check_config(dit->ctx, config);
    if (status != HLV_OK) return status;
    dit->width = hlv_dit_product(config->num_attention_heads, config->attention_head_dim);
    dit->patch = hlv_dit_product(config->patch_size[0], hlv_dit_product(config->patch_size[1], config->patch_size[2]));
    dit->blocks = calloc((size_t)config->num_layers, sizeof *dit->blocks);
    if (!dit->blocks)
        return hlv_fail(dit->ctx, HLV_ERROR_MEMORY, "out of memory for %d transformer blocks", config->num_layers);
    status = assign_blocks(dit, adapter_dir, attention);
    return status == HLV_OK ? load_from(dit, transformer_dir, adapter_dir, dtype) : status;
}

hlv_status hlv_dit_open(hlv_context *ctx, const char *transformer_dir, const char *adapter_dir, hlv_attention attention,
                        hla_dtype dtype, hlv_dit **out) {
    *out = NULL;
    if (dtype != HLA_F32 && dtype != HLA_BF16)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "dtype: found %d, wanted f32 or bf16", (int)dtype);
    hlv_dit *dit = calloc(1, sizeof *dit);
    if (!dit) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for the transformer");
    dit->ctx = ctx;
    hlv_status status = open_into(dit, transformer_dir, adapter_dir, attention, dtype);
    if (status != HLV_OK) {
        hlv_dit_free(dit);
        return status;
    }
    *out = dit;
    return HLV_OK;
}

static void free_attention(hlv_context *ctx, hlv_dit_attention *attention) {
    hlv_linear_free(attention->q);
    hlv_linear_free(attention->k);
    hlv_linear_free(attention->v);
    hlv_linear_free(attention->out);
    hlv_free(ctx, attention->norm_q);
    hlv_free(ctx, attention->norm_k);
}

static void free_map(hlv_context *ctx, hlv_dit_map *map) {
    hlv_free(ctx, map->weight);
    hlv_free(ctx, map->bias);
    hlv_free(ctx, map->hidden_weight);
    hlv_free(ctx, map->hidden_bias);
}

static void free_block(hlv_context *ctx, hlv_dit_block *block) {
    free_attention(ctx, &block->self);
    free_attention(ctx, &block->cross);
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        free_map(ctx, &block->query_map[p]);
        free_map(ctx, &block->key_map[p]);
    }
    hlv_linear_free(block->ffn_in);
    hlv_linear_free(block->ffn_out);
    hlv_free(ctx, block->scale_shift);
    hlv_free(ctx, block->norm2_weight);
    hlv_free(ctx, block->norm2_bias);
}

void hlv_dit_free(hlv_dit *dit) {
    if (!dit) return;
    hlv_linear *const linears[] = {dit->patch_embedding, dit->time_in,  dit->time_out, dit->time_proj,
                                   dit->text_in,         dit->text_out, dit->proj_out};
    for (size_t i = 0; i < sizeof linears / sizeof linears[0]; i++)
        hlv_linear_free(linears[i]);
    hlv_free(dit->ctx, dit->scale_shift);
    for (int n = 0; dit->blocks && n < dit->config.num_layers; n++)
        free_block(dit->ctx, &dit->blocks[n]);
    free(dit->blocks);
    hlv_adapter_config_free(&dit->adapter);
    free(dit);
}
