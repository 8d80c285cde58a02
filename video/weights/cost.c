#include "video/weights/cost.h"

#define CHUNK 1024 /* tokens that pass through the feed-forward part at once */

/* A linear layer's weight and bias. */
static void add_linear(hlv_cost_size *size, int64_t in, int64_t out) {
    size->tensors += 2;
    size->parameters += in * out + out;
}

static void add_tensor(hlv_cost_size *size, int64_t parameters) {
    size->tensors++;
    size->parameters += parameters;
}

static int64_t patch_cells(const hlv_transformer_config *config) {
    return (int64_t)config->patch_size[0] * config->patch_size[1] * config->patch_size[2];
}

static int64_t model_width(const hlv_transformer_config *config) {
    return (int64_t)config->num_attention_heads * config->attention_head_dim;
}

hlv_status hlv_clip_measure(hlv_context *ctx, const hlv_transformer_config *transformer, const hlv_vae_config *vae,
                            int width, int height, int frames, hlv_clip *clip) {
    const int space = hlv_vae_pixels_a_latent(vae), time = hlv_vae_frames_a_latent(vae);
    const int *patch = transformer->patch_size;
    int row = space * patch[1], column = space * patch[2];
    if (width < 1 || width > HLV_CLIP_MAX_SIDE || width % column)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "width is %d, and must be a multiple of %d, at most %d", width, column,
                        HLV_CLIP_MAX_SIDE);
    if (height < 1 || height > HLV_CLIP_MAX_SIDE || height % row)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "height is %d, and must be a multiple of %d, at most %d", height, row,
                        HLV_CLIP_MAX_SIDE);
    if (frames < 1 || frames > HLV_CLIP_MAX_FRAMES || (frames - 1) % time || ((frames - 1) / time + 1) % patch[0])
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "frames is %d, and must be %dk+1%s", frames, time,
                        patch[0] > 1 ? " with latents that fill whole patches" : "");
    *clip = (hlv_clip){.width = width,
                       .height = height,
                       .frames = frames,
                       .F = (frames - 1) / time + 1,
                       .Y = height / space,
                       .X = width / space,
                       .space = space,
                       .time = time};
    clip->tokens = clip->F / patch[0] * (clip->Y / patch[1]) * (clip->X / patch[2]);
    return HLV_OK;
}

hlv_cost_size hlv_transformer_size(const hlv_transformer_config *config) {
    int64_t D = model_width(config), cells = patch_cells(config);
    hlv_cost_size block = {0, 0};
    add_tensor(&block, 6 * D); /* scale_shift_table */
    for (int attention = 0; attention < 2; attention++) {
        for (int i = 0; i < 4; i++)
            add_linear(&block, D, D); /* q, k, v, out */
        for (int i = 0; i < 2 && config->qk_norm; i++)
            add_tensor(&block, D);
    }
    for (int i = 0; i < 2 && config->cross_attn_norm; i++)
        add_tensor(&block, D);
    add_linear(&block, D, config->ffn_dim);
    add_linear(&block, config->ffn_dim, D);

    hlv_cost_size size = {block.tensors * config->num_layers, block.parameters * config->num_layers};
    add_linear(&size, config->in_channels * cells, D);
    add_linear(&size, config->freq_dim, D);
    add_linear(&size, D, D);
    add_linear(&size, D, 6 * D);
    add_linear(&size, config->text_dim, D);
    add_linear(&size, D, D);
    add_linear(&size, D, config->out_channels * cells);
    add_tensor(&size, 2 * D); /* scale_shift_table */
    return size;
}

hlv_cost_size hlv_text_size(const hlv_text_config *config) {
    int64_t d = config->d_model, inner = (int64_t)config->num_heads * config->d_kv;
    int64_t block = 4 * d * inner + (int64_t)config->relative_attention_num_buckets * config->num_heads + 2 * d +
                    3 * d * config->d_ff;
    return (hlv_cost_size){2 + 10 * (int64_t)config->num_layers,
                           config->vocab_size * d + d + block * config->num_layers};
}

hlv_cost_size hlv_adapter_size(const hlv_transformer_config *transformer, const hlv_adapter_config *adapter) {
    int64_t heads = transformer->num_attention_heads, dim = transformer->attention_head_dim;
    hlv_cost_size size = {0, 0};
    for (int i = 0; i < adapter->num_layers; i++) {
        const hlv_block_config *block = &adapter->blocks[i];
        for (int map = 0; block->hadamard && map < 2 * block->factors; map++) { /* queries' and keys' */
            int64_t rank = block->rank[map / 2];
            add_tensor(&size, heads * rank * dim);
            if (block->bias) add_tensor(&size, heads * rank);
            if (!block->hidden) continue;
            add_tensor(&size, heads * dim * dim);
            add_tensor(&size, heads * dim);
        }
    }
    return size;
}

/* One Hadamard block's attention: its feature maps, and the cheaper of the state and the quadratic form. */
static double hadamard_cost(const hlv_block_config *block, double tokens, double heads, double dim) {
    double product = 1, sum = 0, hidden = 0;
    for (int p = 0; p < block->factors; p++) {
        product *= block->rank[p];
        sum += block->rank[p];
        if (block->hidden) hidden += dim;
    }
    double maps = 2 * 2 * tokens * heads * dim * (sum + hidden);
    double state = 2 * 2 * tokens * heads * product * (dim + (block->normalised ? 1 : 0));
    double quadratic = 2 * tokens * tokens * heads * (sum + dim);
    return maps + (state < quadratic ? state : quadratic);
}

hlv_forward_cost hlv_transformer_cost(const hlv_transformer_config *config, const hlv_adapter_config *adapter,
                                      int64_t tokens, int64_t text_tokens) {
    double D = (double)model_width(config), N = (double)tokens, L = (double)text_tokens;
    double blocks = config->num_layers, cells = (double)patch_cells(config);
    hlv_forward_cost cost = {
        .self_projections = blocks * 8 * N * D * D,
        .cross_projections = blocks * (4 * N * D * D + 4 * L * D * D),
        .feed_forward = blocks * 4 * N * D * config->ffn_dim,
        .cross_attention = blocks * 4 * N * L * D,
        .embeddings = 2 * N * D * cells * (config->in_channels + config->out_channels) +
                      2 * L * D * (config->text_dim + D) + 2 * D * (config->freq_dim + 7 * D),
        .softmax = blocks * 4 * N * N * D,
    };
    cost.adapted = cost.softmax;
    if (!adapter) return cost;
    cost.adapted = 0;
    for (int i = 0; i < adapter->num_layers; i++)
        cost.adapted += adapter->blocks[i].hadamard ? hadamard_cost(&adapter->blocks[i], N, config->num_attention_heads,
                                                                    config->attention_head_dim)
                                                    : 4 * N * N * D;
    return cost;
}

double hlv_forward_total(const hlv_forward_cost *cost, bool adapted) {
    return cost->self_projections + cost->cross_projections + cost->feed_forward + cost->cross_attention +
           cost->embeddings + (adapted ? cost->adapted : cost->softmax);
}

double hlv_text_cost(const hlv_text_config *config, int64_t tokens) {
    double d = config->d_model, inner = (double)config->num_heads * config->d_kv, L = (double)tokens;
    return config->num_layers * (2 * L * (4 * d * inner + 3 * d * config->d_ff) + 4 * L * L * inner);
}

double hlv_transformer_working_bytes(const hlv_transformer_config *config, const hlv_adapter_config *adapter,
                                     int64_t tokens, int64_t text_tokens) {
    double ranks = 0; /* of the block with the widest features */
    for (int i = 0; adapter && i < adapter->num_layers; i++) {
        double sum = 0;
        for (int p = 0; p < adapter->blocks[i].factors; p++)
            sum += adapter->blocks[i].rank[p];
        if (sum > ranks) ranks = sum;
    }
    double D = (double)model_width(config), N = (double)tokens, chunk = N < CHUNK ? N : CHUNK;
    double prompts =
        2.0 * 2 * config->num_layers * (double)text_tokens * D; /* keys and values, with and without guidance */
    double activations = 5 * N * D + chunk * config->ffn_dim;   /* x, y, q, k, v */
    double features = 2 * N * config->num_attention_heads * ranks;
    double latents = 4 * N * (double)patch_cells(config) * config->in_channels; /* the solver's and two velocities */
    return (activations + features + prompts + latents) * (double)sizeof(float);
}
