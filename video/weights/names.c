#include "video/weights/names.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFIX "model.diffusion_model."

/* `from` is the beginning of a name, its '*' a number; `to` takes its place, with the number for its own '*'; what
 * follows stays. The first rule that fits is used. */
typedef struct rule {
    const char *from, *to;
} rule;

static const rule transformer_rules[] = {
    {"time_embedding.0.", "condition_embedder.time_embedder.linear_1."},
    {"time_embedding.2.", "condition_embedder.time_embedder.linear_2."},
    {"time_projection.1.", "condition_embedder.time_proj."},
    {"text_embedding.0.", "condition_embedder.text_embedder.linear_1."},
    {"text_embedding.2.", "condition_embedder.text_embedder.linear_2."},
    {"blocks.*.modulation", "blocks.*.scale_shift_table"},
    {"blocks.*.self_attn.q.", "blocks.*.attn1.to_q."},
    {"blocks.*.self_attn.k.", "blocks.*.attn1.to_k."},
    {"blocks.*.self_attn.v.", "blocks.*.attn1.to_v."},
    {"blocks.*.self_attn.o.", "blocks.*.attn1.to_out.0."},
    {"blocks.*.self_attn.", "blocks.*.attn1."},
    {"blocks.*.cross_attn.q.", "blocks.*.attn2.to_q."},
    {"blocks.*.cross_attn.k.", "blocks.*.attn2.to_k."},
    {"blocks.*.cross_attn.v.", "blocks.*.attn2.to_v."},
    {"blocks.*.cross_attn.o.", "blocks.*.attn2.to_out.0."},
    {"blocks.*.cross_attn.", "blocks.*.attn2."},
    {"blocks.*.norm3.", "blocks.*.norm2."},
    {"blocks.*.ffn.0.", "blocks.*.ffn.net.0.proj."},
    {"blocks.*.ffn.2.", "blocks.*.ffn.net.2."},
    {"head.head.", "proj_out."},
    {"head.modulation", "scale_shift_table"},
    {NULL, NULL},
};

static const rule text_rules[] = {
    {"token_embedding.", "shared."},
    {"norm.", "encoder.final_layer_norm."},
    {"blocks.*.attn.", "encoder.block.*.layer.0.SelfAttention."},
    {"blocks.*.pos_embedding.embedding.", "encoder.block.*.layer.0.SelfAttention.relative_attention_bias."},
    {"blocks.*.norm1.", "encoder.block.*.layer.0.layer_norm."},
    {"blocks.*.norm2.", "encoder.block.*.layer.1.layer_norm."},
    {"blocks.*.ffn.gate.0.", "encoder.block.*.layer.1.DenseReluDense.wi_0."},
    {"blocks.*.ffn.fc1.", "encoder.block.*.layer.1.DenseReluDense.wi_1."},
    {"blocks.*.ffn.fc2.", "encoder.block.*.layer.1.DenseReluDense.wo."},
    {NULL, NULL},
};

/* Where a part of the VAE sits; what is within it follows. */
static const rule vae_rules[] = {
    {"conv1.", "quant_conv."},
    {"conv2.", "post_quant_conv."},
    {"encoder.conv1.", "encoder.conv_in."},
    {"decoder.conv1.", "decoder.conv_in."},
    {"encoder.head.0.", "encoder.norm_out."},
    {"decoder.head.0.", "decoder.norm_out."},
    {"encoder.head.2.", "encoder.conv_out."},
    {"decoder.head.2.", "decoder.conv_out."},
    {"encoder.middle.0.", "encoder.mid_block.resnets.0."},
    {"decoder.middle.0.", "decoder.mid_block.resnets.0."},
    {"encoder.middle.1.", "encoder.mid_block.attentions.0."},
    {"decoder.middle.1.", "decoder.mid_block.attentions.0."},
    {"encoder.middle.2.", "encoder.mid_block.resnets.1."},
    {"decoder.middle.2.", "decoder.mid_block.resnets.1."},
    {"encoder.downsamples.*.", "encoder.down_blocks.*."},
    {NULL, NULL},
};

static const rule residual_rules[] = {
    {"residual.0.", "norm1."}, {"residual.2.", "conv1."},       {"residual.3.", "norm2."},
    {"residual.6.", "conv2."}, {"shortcut.", "conv_shortcut."}, {NULL, NULL},
};

/* Writes `to` into text with `number` for '*', then rest. */
static bool substitute(char *text, size_t size, const char *to, const char *number, int digits, const char *rest) {
    const char *star = strchr(to, '*');
    int written = star ? snprintf(text, size, "%.*s%.*s%s%s", (int)(star - to), to, digits, number, star + 1, rest)
                       : snprintf(text, size, "%s%s", to, rest);
    return written >= 0 && (size_t)written < size;
}

static bool begins(const char *text, const char *beginning) {
    return strncmp(text, beginning, strlen(beginning)) == 0;
}

static bool apply(const rule *rules, const char *name, char *renamed, size_t size) {
    for (const rule *r = rules; r->from; r++) {
        const char *at = name, *number = "";
        int digits = 0;
        const char *star = strchr(r->from, '*');
        size_t head = star ? (size_t)(star - r->from) : strlen(r->from);
        if (strncmp(at, r->from, head) != 0) continue;
        at += head;
        if (star) {
            number = at;
            while (isdigit((unsigned char)*at))
                at++;
            digits = (int)(at - number);
            if (digits == 0 || digits > 9 || !begins(at, star + 1)) continue;
            at += strlen(star + 1);
        }
        return substitute(renamed, size, r->to, number, digits, at);
    }
    return false;
}

/* The original's list of layers per level: three resnets, then a resampler, as in the published VAE. */
static bool place_upsample(const char *name, char *renamed, size_t size) {
    static const char head[] = "decoder.upsamples.";
    const char *number = name + sizeof head - 1;
    if (!begins(name, head) || !isdigit((unsigned char)*number)) return false;
    char *rest;
    unsigned long k = strtoul(number, &rest, 10);
    if (*rest != '.' || k > 1000) return false;
    int written = k % 4 == 3 ? snprintf(renamed, size, "decoder.up_blocks.%lu.upsamplers.0%s", k / 4, rest)
                             : snprintf(renamed, size, "decoder.up_blocks.%lu.resnets.%lu%s", k / 4, k % 4, rest);
    return written >= 0 && (size_t)written < size;
}

static bool rename_vae(const char *name, char *renamed, size_t size) {
    char placed[512];
    if (!place_upsample(name, placed, sizeof placed) && !apply(vae_rules, name, placed, sizeof placed)) return false;
    const char *inner = strstr(placed, "residual.");
    if (!inner) inner = strstr(placed, "shortcut.");
    char within[256];
    if (inner && apply(residual_rules, inner, within, sizeof within)) {
        int written = snprintf(renamed, size, "%.*s%s", (int)(inner - placed), placed, within);
        return written >= 0 && (size_t)written < size;
    }
    int written = snprintf(renamed, size, "%s", placed);
    return written >= 0 && (size_t)written < size;
}

static const char *after_prefix(const char *name) {
    return begins(name, PREFIX) ? name + sizeof PREFIX - 1 : name;
}

hlv_name_style hlv_names_detect(const char *name) {
    name = after_prefix(name);
    if (strcmp(name, "head.modulation") == 0) return HLV_NAMES_WAN_TRANSFORMER;
    if (strcmp(name, "decoder.middle.0.residual.0.gamma") == 0) return HLV_NAMES_WAN_VAE;
    if (strcmp(name, "token_embedding.weight") == 0) return HLV_NAMES_WAN_TEXT;
    return HLV_NAMES_AS_THEY_ARE;
}

bool hlv_names_rename(hlv_name_style style, const char *name, char *renamed, size_t size) {
    const char *bare = after_prefix(name);
    bool done = false;
    if (style == HLV_NAMES_WAN_TRANSFORMER) done = apply(transformer_rules, bare, renamed, size);
    if (style == HLV_NAMES_WAN_TEXT) done = apply(text_rules, bare, renamed, size);
    if (style == HLV_NAMES_WAN_VAE) done = rename_vae(bare, renamed, size);
    if (done || style == HLV_NAMES_AS_THEY_ARE || bare == name) return done;
    int written = snprintf(renamed, size, "%s", bare); /* only the prefix goes */
    return written >= 0 && (size_t)written < size;
}
