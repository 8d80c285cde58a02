/* The report of hlv_inspect as JSON. Counts and bytes are integers, operations and estimates real numbers. */
#include "video/weights/inspect.h"

#include <jansson.h>
#include <stdlib.h>

static json_t *parts_json(const hlv_inspection *found) {
    json_t *parts = json_array();
    for (int i = 0; i < HLV_PARTS; i++) {
        const hlv_part *part = &found->parts[i];
        if (part->files == 0) continue;
        json_array_append_new(parts, json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:I, s:I}", "name", part->name,
                                               "class", part->class_name, "tensors", (json_int_t)part->tensors,
                                               "parameters", (json_int_t)part->parameters, "config_tensors",
                                               (json_int_t)part->by_config.tensors, "config_parameters",
                                               (json_int_t)part->by_config.parameters, "dtype", part->dtypes, "files",
                                               (json_int_t)part->files, "bytes", (json_int_t)part->bytes));
    }
    return parts;
}

static json_t *transformer_json(const hlv_transformer_config *t) {
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i, s:[i,i,i]}", "num_layers", t->num_layers, "num_attention_heads",
                     t->num_attention_heads, "attention_head_dim", t->attention_head_dim, "ffn_dim", t->ffn_dim,
                     "in_channels", t->in_channels, "text_dim", t->text_dim, "patch_size", t->patch_size[0],
                     t->patch_size[1], t->patch_size[2]);
}

static json_t *text_json(const hlv_text_config *x) {
    return json_pack("{s:i, s:i, s:i, s:i, s:i, s:i}", "num_layers", x->num_layers, "d_model", x->d_model, "num_heads",
                     x->num_heads, "d_kv", x->d_kv, "d_ff", x->d_ff, "vocab_size", x->vocab_size);
}

static json_t *vae_json(const hlv_vae_config *v) {
    json_t *mult = json_array();
    for (int i = 0; i < v->stages; i++)
        json_array_append_new(mult, json_integer(v->dim_mult[i]));
    return json_pack("{s:i, s:i, s:o}", "base_dim", v->base_dim, "z_dim", v->z_dim, "dim_mult", mult);
}

static json_t *block_json(const hlv_block_config *block) {
    if (!block->hadamard) return json_pack("{s:s}", "kind", "softmax");
    json_t *ranks = json_array();
    for (int p = 0; p < block->factors; p++)
        json_array_append_new(ranks, json_integer(block->rank[p]));
    return json_pack("{s:s, s:o, s:s, s:b, s:b, s:s}", "kind", "hadamard", "ranks", ranks, "activation",
                     hla_activation_name(block->activation), "normalised", block->normalised, "hidden", block->hidden,
                     "rope", block->rope_before ? "before" : "after");
}

/* One entry a block. */
static json_t *attention_json(const hlv_adapter_config *adapter, int layers) {
    static const hlv_block_config softmax = {.hadamard = false};
    json_t *blocks = json_array();
    for (int i = 0; i < layers; i++)
        json_array_append_new(blocks, block_json(adapter->num_layers ? &adapter->blocks[i] : &softmax));
    return blocks;
}

static json_t *cost_json(const hlv_inspection *found) {
    const hlv_forward_cost *cost = &found->cost;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "self_projections", cost->self_projections,
                     "cross_projections", cost->cross_projections, "feed_forward", cost->feed_forward,
                     "cross_attention", cost->cross_attention, "embeddings", cost->embeddings, "self_attention_softmax",
                     cost->softmax, "self_attention_adapted", cost->adapted, "total_softmax",
                     hlv_forward_total(cost, false), "total_adapted", hlv_forward_total(cost, true));
}

static json_t *memory_json(const hlv_stage_memory *memory) {
    return json_pack("{s:f, s:f, s:f, s:f, s:b}", "text", memory->text, "sample", memory->sample, "decode",
                     memory->decode, "peak", memory->peak, "fits", memory->fits);
}

/* The text of a tree, which is freed. */
static char *dump(json_t *root) {
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return NULL;
    size_t length = 0;
    while (text[length])
        length++;
    char *lines = realloc(text, length + 2);
    if (!lines) {
        free(text);
        return NULL;
    }
    lines[length] = '\n';
    lines[length + 1] = '\0';
    return lines;
}

char *hlv_inspection_json(const hlv_inspection *found) {
    const hlv_clip *clip = &found->clip;
    return dump(json_pack(
        "{s:s, s:s, s:o, s:o, s:o, s:o, s:{s:i, s:f}, s:o, s:{s:i, s:i, s:i, s:[i,I,I,I], s:I}, s:o, "
        "s:f, s:f, s:{s:o, s:o},"
        " s:f}",
        "path", found->path, "kind", "model", "parts", parts_json(found), "transformer",
        transformer_json(&found->transformer), "text_encoder", text_json(&found->text), "vae", vae_json(&found->vae),
        "scheduler", "solver_order", found->scheduler.solver_order, "flow_shift", found->scheduler.flow_shift,
        "attention", attention_json(&found->adapter, found->transformer.num_layers), "clip", "width", clip->width,
        "height", clip->height, "frames", clip->frames, "latents", found->vae.z_dim, (json_int_t)clip->F,
        (json_int_t)clip->Y, (json_int_t)clip->X, "tokens", (json_int_t)clip->tokens, "flops_forward", cost_json(found),
        "flops_text", found->text_cost, "flops_decode", found->decode_cost, "memory_bytes", "f32",
        memory_json(&found->memory[0]), "bf16", memory_json(&found->memory[1]), "machine_bytes", found->machine_bytes));
}

static json_t *weight_json(const hlv_weight *weight) {
    json_t *shape = json_array();
    for (int i = 0; i < weight->ndim; i++)
        json_array_append_new(shape, json_integer(weight->shape[i]));
    return json_pack("{s:s, s:s, s:o, s:I}", "name", weight->name, "dtype", weight->dtype_name, "shape", shape, "bytes",
                     (json_int_t)weight->bytes);
}

char *hlv_weights_json(const hlv_weights *weights, const hlv_adapter_config *adapter) {
    json_t *tensors = json_array(), *metadata = json_object();
    int64_t parameters = 0, bytes = 0, files = hlv_weights_files(weights, &bytes);
    for (int64_t i = 0; i < hlv_weights_count(weights); i++) {
        json_array_append_new(tensors, weight_json(hlv_weights_at(weights, i)));
        parameters += hlv_weights_at(weights, i)->count;
    }
    const char *key, *value;
    int64_t entries = hlv_weights_metadata_at(weights, -1, &key, &value);
    for (int64_t i = 0; i < entries; i++) {
        hlv_weights_metadata_at(weights, i, &key, &value);
        json_object_set_new(metadata, key, json_string(value));
    }
    return dump(json_pack("{s:s, s:s, s:I, s:I, s:I, s:o, s:o, s:o*}", "path", hlv_weights_path(weights), "kind",
                          adapter ? "adapter" : "weights", "files", (json_int_t)files, "bytes", (json_int_t)bytes,
                          "parameters", (json_int_t)parameters, "metadata", metadata, "tensors", tensors, "attention",
                          adapter ? attention_json(adapter, adapter->num_layers) : NULL));
}
