/* The report of hlv_inspect for people. */
#include "video/weights/inspect.h"
#include "video/weights/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "1,418,996,800" into text (32 bytes). */
static const char *grouped(char *text, int64_t number) {
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%lld", (long long)number), used = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0) text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = '\0';
    return text;
}

/* "5.68 GB", "18.55 TFLOP" into text (32 bytes). */
static const char *scaled(char *text, double number, const char *unit) {
    static const char *const prefixes[] = {"", "k", "M", "G", "T", "P", "E"};
    size_t i = 0;
    for (; number >= 1000 && i + 1 < sizeof prefixes / sizeof *prefixes; i++)
        number /= 1000;
    snprintf(text, 32, i ? "%.2f %s%s" : "%.0f %s%s", number, prefixes[i], unit);
    return text;
}

static void write_parts(FILE *out, const hlv_inspection *found) {
    char a[32], b[32], c[32];
    fprintf(out, "%-14s %-24s %8s %15s  %-12s %9s\n", "part", "class", "tensors", "parameters", "dtype", "on disk");
    for (int i = 0; i < HLV_PARTS; i++) {
        const hlv_part *part = &found->parts[i];
        if (part->files == 0) continue;
        fprintf(out, "%-14s %-24s %8s %15s  %-12s %9s\n", part->name, part->class_name, grouped(a, part->tensors),
                grouped(b, part->parameters), part->dtypes, scaled(c, (double)part->bytes, "B"));
        bool whole = part->parameters >= part->by_config.parameters;
        if (i == HLV_PART_ADAPTER && whole && part->tensors > part->by_config.tensors)
            fprintf(out, "%-14s %s of its tensors replace the transformer's\n", "",
                    grouped(a, part->tensors - part->by_config.tensors));
        else if (part->parameters != part->by_config.parameters)
            fprintf(out, "%-14s its config makes %s tensors, %s parameters of it\n", "",
                    grouped(a, part->by_config.tensors), grouped(b, part->by_config.parameters));
    }
}

static void write_configs(FILE *out, const hlv_inspection *found) {
    const hlv_transformer_config *t = &found->transformer;
    const hlv_text_config *x = &found->text;
    const hlv_vae_config *v = &found->vae;
    fprintf(
        out,
        "\ntransformer: %d blocks, width %d (%d heads of %d), feed-forward %d, patch %dx%dx%d, %d latent channels\n",
        t->num_layers, t->num_attention_heads * t->attention_head_dim, t->num_attention_heads, t->attention_head_dim,
        t->ffn_dim, t->patch_size[0], t->patch_size[1], t->patch_size[2], t->in_channels);
    fprintf(out, "text encoder: %d layers, width %d (%d heads of %d), feed-forward %d, %d pieces\n", x->num_layers,
            x->d_model, x->num_heads, x->d_kv, x->d_ff, x->vocab_size);
    fprintf(out, "vae: %d channels times", v->base_dim);
    for (int i = 0; i < v->stages; i++)
        fprintf(out, " %d", v->dim_mult[i]);
    fprintf(out, ", %d latent channels, a latent for %d frames of %dx%d pixels\n", v->z_dim, found->clip.time,
            found->clip.space, found->clip.space);
    fprintf(out, "scheduler: UniPC of order %d, flow shift %g\n", found->scheduler.solver_order,
            found->scheduler.flow_shift);
}

static bool same_block(const hlv_block_config *a, const hlv_block_config *b) {
    if (a->hadamard != b->hadamard) return false;
    if (!a->hadamard) return true;
    for (int p = 0; p < HLA_MAX_FACTORS; p++)
        if (a->rank[p] != b->rank[p]) return false;
    return a->activation == b->activation && a->normalised == b->normalised && a->hidden == b->hidden &&
           a->rope_before == b->rope_before;
}

static void write_block(FILE *out, const hlv_block_config *block) {
    if (!block->hadamard) {
        fprintf(out, "softmax\n");
        return;
    }
    fprintf(out, "hadamard, ranks ");
    for (int p = 0; p < block->factors; p++)
        fprintf(out, "%s%d", p ? " x " : "", block->rank[p]);
    fprintf(out, ", %s%s%s%s\n", hla_activation_name(block->activation), block->hidden ? ", hidden layer" : "",
            block->normalised ? ", normalised" : ", not normalised", block->rope_before ? "" : ", maps before RoPE");
}

/* Equal neighbours in one line. */
static void write_attention(FILE *out, const hlv_adapter_config *adapter) {
    if (!adapter->num_layers) {
        fprintf(out, "self-attention: softmax in all blocks (no hla/ here)\n");
        return;
    }
    for (int i = 0; i < adapter->num_layers;) {
        int end = i + 1;
        while (end < adapter->num_layers && same_block(&adapter->blocks[i], &adapter->blocks[end]))
            end++;
        if (end - i == 1)
            fprintf(out, "self-attention of block %d: ", i);
        else
            fprintf(out, "self-attention of blocks %d to %d: ", i, end - 1);
        write_block(out, &adapter->blocks[i]);
        i = end;
    }
}

static void write_cost(FILE *out, const hlv_inspection *found) {
    const hlv_forward_cost *cost = &found->cost;
    const struct {
        const char *what;
        double operations;
    } rows[] = {
        {"self-attention q, k, v, o", cost->self_projections},
        {"cross-attention q, k, v, o", cost->cross_projections},
        {"feed-forward", cost->feed_forward},
        {"cross-attention, 512 keys", cost->cross_attention},
        {"embeddings and head", cost->embeddings},
        {"self-attention, softmax", cost->softmax},
        {"all with softmax", hlv_forward_total(cost, false)},
        {"self-attention, as adapted", cost->adapted},
        {"all as adapted", hlv_forward_total(cost, true)},
    };
    size_t count = sizeof rows / sizeof *rows - (found->adapter.num_layers ? 0 : 2);
    char a[32];
    fprintf(out, "\n%dx%d, %d frames: latents %d x %lld x %lld x %lld, %s tokens\none forward of the transformer:\n",
            found->clip.width, found->clip.height, found->clip.frames, found->vae.z_dim, (long long)found->clip.F,
            (long long)found->clip.Y, (long long)found->clip.X, grouped(a, found->clip.tokens));
    for (size_t i = 0; i < count; i++)
        fprintf(out, "  %-28s %14s\n", rows[i].what, scaled(a, rows[i].operations, "FLOP"));
    fprintf(out, "text encoder, 512 tokens:      %14s\n", scaled(a, found->text_cost, "FLOP"));
    fprintf(out, "VAE, decoding the clip:        %14s\n", scaled(a, found->decode_cost, "FLOP"));
}

static void write_memory(FILE *out, const hlv_inspection *found) {
    char a[32], b[32], c[32], d[32];
    fprintf(
        out,
        "\nmemory, about (the text encoder is freed after the prompt, the transformer stays):\n  %-8s %12s %12s %12s\n",
        "", "text", "sampling", "decoding");
    for (int i = 0; i < 2; i++) {
        const hlv_stage_memory *memory = &found->memory[i];
        fprintf(out, "  %-8s %12s %12s %12s", i ? "bf16" : "float32", scaled(a, memory->text, "B"),
                scaled(b, memory->sample, "B"), scaled(c, memory->decode, "B"));
        if (found->machine_bytes > 0)
            fprintf(out, "   %s this machine's %s", memory->fits ? "fits" : "does not fit",
                    scaled(d, found->machine_bytes, "B"));
        fprintf(out, "\n");
    }
}

/* Closes the stream that filled *text; frees it if anything failed. */
static char *finish(FILE *out, char **text) {
    bool failed = ferror(out) != 0;
    if (fclose(out) != 0 || failed) {
        free(*text);
        *text = NULL;
    }
    return *text;
}

char *hlv_inspection_text(const hlv_inspection *found) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return NULL;
    fprintf(out, "%s: WanPipeline\n\n", found->path);
    write_parts(out, found);
    write_configs(out, found);
    write_attention(out, &found->adapter);
    write_cost(out, found);
    write_memory(out, found);
    return finish(out, &text);
}

/* A name or value from a file, without anything that could steer a terminal. */
static void write_plain(FILE *out, const char *text) {
    for (; *text; text++)
        fputc((unsigned char)*text < ' ' || *text == 127 ? ' ' : *text, out);
}

char *hlv_weights_text(const hlv_weights *weights, const hlv_adapter_config *adapter) {
    char *text = NULL, shape[160], a[32], b[32], c[32];
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return NULL;
    int64_t parameters = 0, bytes = 0, files = hlv_weights_files(weights, &bytes);
    if (adapter) {
        fprintf(out, "%s: " HLV_ADAPTER_CLASS " for a transformer of %d blocks\n", hlv_weights_path(weights),
                adapter->num_layers);
        write_attention(out, adapter);
    }
    for (int64_t i = 0; i < hlv_weights_count(weights); i++) {
        const hlv_weight *weight = hlv_weights_at(weights, i);
        hlv_shape_text(shape, sizeof shape, weight->ndim, weight->shape);
        fprintf(out, "%-8s %-24s ", weight->dtype_name, shape);
        write_plain(out, weight->name);
        fputc('\n', out);
        parameters += weight->count;
    }
    const char *key, *value;
    int64_t entries = hlv_weights_metadata_at(weights, -1, &key, &value);
    for (int64_t i = 0; i < entries; i++) {
        hlv_weights_metadata_at(weights, i, &key, &value);
        fprintf(out, "metadata ");
        write_plain(out, key);
        fprintf(out, ": ");
        write_plain(out, value);
        fputc('\n', out);
    }
    fprintf(out, "%s: %s tensors, %s numbers, %s in %lld file%s\n", hlv_weights_path(weights),
            grouped(a, hlv_weights_count(weights)), grouped(b, parameters), scaled(c, (double)bytes, "B"),
            (long long)files, files == 1 ? "" : "s");
    return finish(out, &text);
}
