/* video/dit/load.c - the transformer's weights: every tensor is asked for first, so that all missing ones are named at
 * once, and only then packed. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "video/dit/internal.h"

#define NAME_SIZE 160

/* A tensor that was found and what becomes of it: a packed linear layer, or floats. */
typedef struct delivery {
    const hlv_weight *weight, *bias;
    hlv_linear **linear;
    hlv_act act;
    hla_dtype dtype;
    float **floats;
} delivery;

typedef struct order_list {
    hlv_dit *dit;
    hlv_loader *loader;
    delivery *items;
    int64_t count, capacity;
    bool out_of_memory;
} order_list;

static void add(order_list *list, const delivery *item) {
    if (list->count == list->capacity) {
        int64_t capacity = list->capacity ? 2 * list->capacity : 256;
        delivery *items = realloc(list->items, (size_t)capacity * sizeof *items);
        if (!items) {
            list->out_of_memory = true;
            return;
        }
        list->items = items, list->capacity = capacity;
    }
    list->items[list->count++] = *item;
}

/* NAME.weight [out,in] and NAME.bias [out]. */
static void want_linear(order_list *list, hlv_linear **linear, int64_t out, int64_t in, hlv_act act, hla_dtype dtype,
                        const char *name) {
    const hlv_weight *weight = hlv_loader_get(list->loader, 2, (const int64_t[]){out, in}, "%s.weight", name);
    const hlv_weight *bias = hlv_loader_get(list->loader, 1, &out, "%s.bias", name);
    add(list, &(delivery){.weight = weight, .bias = bias, .linear = linear, .act = act, .dtype = dtype});
}

static void want_floats(order_list *list, float **floats, int ndim, const int64_t *shape, const char *name) {
    add(list, &(delivery){.weight = hlv_loader_get(list->loader, ndim, shape, "%s", name), .floats = floats});
}

static void __attribute__((format(printf, 2, 3))) compose(char name[NAME_SIZE], const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, NAME_SIZE, format, arguments);
    va_end(arguments);
}

/* Norms of queries and keys are used where the checkpoint has them, even if its config says null: so does the
 * reference. */
static void want_norm(order_list *list, float **norm, const char *prefix, const char *which) {
    char name[NAME_SIZE];
    compose(name, "%s.%s.weight", prefix, which);
    if (list->dit->config.qk_norm || hlv_loader_has(list->loader, name))
        want_floats(list, norm, 1, &list->dit->width, name);
}

static void want_attention(order_list *list, hlv_dit_attention *attention, const char *prefix, hla_dtype dtype) {
    const int64_t D = list->dit->width;
    const struct {
        hlv_linear **linear;
        const char *name;
    } parts[] = {
        {&attention->q, "to_q"}, {&attention->k, "to_k"}, {&attention->v, "to_v"}, {&attention->out, "to_out.0"}};
    char name[NAME_SIZE];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        compose(name, "%s.%s", prefix, parts[i].name);
        want_linear(list, parts[i].linear, D, D, HLV_ACT_NONE, dtype, name);
    }
    want_norm(list, &attention->norm_q, prefix, "norm_q");
    want_norm(list, &attention->norm_k, prefix, "norm_k");
}

/* The map of factor p: PREFIX.p.weight [H,R_p,Dh], .bias [H,R_p], .hidden.weight [H,Dh,Dh], .hidden.bias [H,Dh]. */
static void want_map(order_list *list, hlv_dit_map *map, const hlv_block_config *config, int p, const char *prefix) {
    const int64_t H = list->dit->config.num_attention_heads, head = list->dit->config.attention_head_dim;
    const int64_t rank = config->rank[p];
    const struct {
        float **floats;
        const char *name;
        int64_t shape[3];
        int ndim;
        bool wanted;
    } parts[] = {{&map->weight, "weight", {H, rank, head}, 3, true},
                 {&map->bias, "bias", {H, rank}, 2, config->bias},
                 {&map->hidden_weight, "hidden.weight", {H, head, head}, 3, config->hidden},
                 {&map->hidden_bias, "hidden.bias", {H, head}, 2, config->hidden}};
    char name[NAME_SIZE];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        compose(name, "%s.%d.%s", prefix, p, parts[i].name);
        if (parts[i].wanted) want_floats(list, parts[i].floats, parts[i].ndim, parts[i].shape, name);
    }
}

static void want_block(order_list *list, int n, hla_dtype dtype) {
    const hlv_transformer_config *config = &list->dit->config;
    const int64_t D = list->dit->width;
    hlv_dit_block *block = &list->dit->blocks[n];
    char name[NAME_SIZE];
    compose(name, "blocks.%d.scale_shift_table", n);
    want_floats(list, &block->scale_shift, 3, (const int64_t[]){1, 6, D}, name);
    compose(name, "blocks.%d.attn1", n);
    want_attention(list, &block->self, name, dtype);
    compose(name, "blocks.%d.attn2", n);
    want_attention(list, &block->cross, name, dtype);
    if (config->cross_attn_norm) {
        compose(name, "blocks.%d.norm2.weight", n);
        want_floats(list, &block->norm2_weight, 1, &D, name);
        compose(name, "blocks.%d.norm2.bias", n);
        want_floats(list, &block->norm2_bias, 1, &D, name);
    }
    compose(name, "blocks.%d.ffn.net.0.proj", n);
    want_linear(list, &block->ffn_in, config->ffn_dim, D, HLV_ACT_GELU_TANH, dtype, name);
    compose(name, "blocks.%d.ffn.net.2", n);
    want_linear(list, &block->ffn_out, D, config->ffn_dim, HLV_ACT_NONE, dtype, name);
    for (int p = 0; block->config.hadamard && p < block->config.factors; p++) {
        compose(name, "blocks.%d.attn1.query_map", n);
        want_map(list, &block->query_map[p], &block->config, p, name);
        compose(name, "blocks.%d.attn1.key_map", n);
        want_map(list, &block->key_map[p], &block->config, p, name);
    }
}

/* Time path, patch embedding and head stay in float32: they are small and steer everything else. */
static void want_all(order_list *list, hla_dtype dtype) {
    hlv_dit *dit = list->dit;
    const hlv_transformer_config *config = &dit->config;
    const int64_t D = dit->width;
    const int64_t patch[] = {D, config->in_channels, config->patch_size[0], config->patch_size[1],
                             config->patch_size[2]};
    add(list, &(delivery){.weight = hlv_loader_get(list->loader, 5, patch, "patch_embedding.weight"),
                          .bias = hlv_loader_get(list->loader, 1, &D, "patch_embedding.bias"),
                          .linear = &dit->patch_embedding,
                          .dtype = HLA_F32});
    want_linear(list, &dit->time_in, D, config->freq_dim, HLV_ACT_SILU, HLA_F32,
                "condition_embedder.time_embedder.linear_1");
    want_linear(list, &dit->time_out, D, D, HLV_ACT_NONE, HLA_F32, "condition_embedder.time_embedder.linear_2");
    want_linear(list, &dit->time_proj, 6 * D, D, HLV_ACT_NONE, HLA_F32, "condition_embedder.time_proj");
    want_linear(list, &dit->text_in, D, config->text_dim, HLV_ACT_GELU_TANH, dtype,
                "condition_embedder.text_embedder.linear_1");
    want_linear(list, &dit->text_out, D, D, HLV_ACT_NONE, dtype, "condition_embedder.text_embedder.linear_2");
    for (int n = 0; n < config->num_layers; n++)
        want_block(list, n, dtype);
    want_floats(list, &dit->scale_shift, 3, (const int64_t[]){1, 2, D}, "scale_shift_table");
    want_linear(list, &dit->proj_out, config->out_channels * dit->patch, D, HLV_ACT_NONE, HLA_F32, "proj_out");
}

/* Weights that a config of this kind would leave unused mean that the two don't belong together. */
static hlv_status check_no_more_than_config(const hlv_dit *dit, const hlv_weights *weights) {
    char name[NAME_SIZE];
    compose(name, "blocks.%d.scale_shift_table", dit->config.num_layers);
    if (hlv_weights_find(weights, name))
        return hlv_fail(dit->ctx, HLV_ERROR_FORMAT,
                        "transformer config: num_layers is %d, but the weights hold %s as well", dit->config.num_layers,
                        name);
    if (!dit->config.cross_attn_norm && hlv_weights_find(weights, "blocks.0.norm2.weight"))
        return hlv_fail(dit->ctx, HLV_ERROR_FORMAT,
                        "transformer config: cross_attn_norm is false, but the weights hold blocks.0.norm2.weight");
    return HLV_OK;
}

static hlv_status deliver(hlv_context *ctx, const delivery *item) {
    if (item->linear) return hlv_linear_create(ctx, item->dtype, item->weight, item->bias, item->act, item->linear);
    *item->floats = hlv_weight_load_f32(ctx, item->weight);
    return *item->floats ? HLV_OK : HLV_ERROR_MEMORY;
}

static hlv_status deliver_all(const order_list *list) {
    hlv_context *ctx = list->dit->ctx;
    hlv_progress(ctx, "load", 0, list->count);
    for (int64_t i = 0; i < list->count; i++) {
        if (hlv_cancelled(ctx)) return hlv_fail(ctx, HLV_ERROR_CANCELLED, "cancelled while loading the transformer");
        hlv_status status = deliver(ctx, &list->items[i]);
        if (status != HLV_OK) return status;
        hlv_progress(ctx, "load", i + 1, list->count);
    }
    return HLV_OK;
}

hlv_status hlv_dit_load(hlv_dit *dit, const hlv_weights *weights, const hlv_weights *adapter, hla_dtype dtype) {
    hlv_status status = check_no_more_than_config(dit, weights);
    if (status != HLV_OK) return status;
    order_list list = {.dit = dit};
    status = hlv_loader_create(dit->ctx, weights, adapter, &list.loader);
    if (status != HLV_OK) return status;
    want_all(&list, dtype);
    status = hlv_loader_finish(list.loader);
    if (status == HLV_OK && list.out_of_memory)
        status = hlv_fail(dit->ctx, HLV_ERROR_MEMORY, "out of memory for the list of the transformer's tensors");
    if (status == HLV_OK) status = deliver_all(&list);
    free(list.items);
    return status;
}
