/* video/pipeline/model.c - opening a checkpoint: its configs are read and compared; weights wait until they are needed.
 */
#include "video/pipeline/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void hlv_model_options_init(hlv_model_options *options) {
    *options = (hlv_model_options){.struct_size = sizeof *options, .dtype = HLA_F32};
}

static char *join(hlv_context *ctx, const char *directory, const char *part) {
    size_t size = strlen(directory) + strlen(part) + 2;
    char *path = malloc(size);
    if (!path)
        hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for the path of %s", part);
    else
        snprintf(path, size, "%s/%s", directory, part);
    return path;
}

char *hlv_model_path(const hlv_model *model, const char *part) {
    return join(model->ctx, model->directory, part);
}

/* The adapter asked for, or DIR/hla where there is one. */
static hlv_status find_adapter(hlv_model *model, const char *asked) {
    if (asked) {
        model->adapter = strdup(asked);
        return model->adapter ? HLV_OK : hlv_fail(model->ctx, HLV_ERROR_MEMORY, "out of memory for the adapter's path");
    }
    char *directory = hlv_model_path(model, "hla"), *config = hlv_model_path(model, "hla/config.json");
    bool present = config && access(config, F_OK) == 0;
    hlv_status status = directory && config ? HLV_OK : HLV_ERROR_MEMORY;
    free(config);
    if (present)
        model->adapter = directory;
    else
        free(directory);
    return status;
}

static hlv_status read_configs(hlv_model *model) {
    hlv_context *ctx = model->ctx;
    char *transformer = hlv_model_path(model, "transformer"), *vae = hlv_model_path(model, "vae");
    char *text = hlv_model_path(model, "text_encoder"), *scheduler = hlv_model_path(model, "scheduler");
    hlv_status status = transformer && vae && text && scheduler ? HLV_OK : HLV_ERROR_MEMORY;
    if (status == HLV_OK) status = hlv_model_index_read(ctx, model->directory, &model->defaults);
    if (status == HLV_OK) status = hlv_transformer_config_read(ctx, transformer, &model->transformer);
    if (status == HLV_OK) status = hlv_vae_config_read(ctx, vae, &model->vae);
    if (status == HLV_OK) status = hlv_text_config_read(ctx, text, &model->text);
    if (status == HLV_OK) status = hlv_scheduler_config_read(ctx, scheduler, &model->scheduler);
    free(transformer);
    free(vae);
    free(text);
    free(scheduler);
    return status;
}

/* The parts of one checkpoint fit each other. */
static hlv_status compare_configs(const hlv_model *model) {
    const struct {
        const char *what, *other;
        int found, wanted;
    } pairs[] = {
        {"transformer: in_channels", "vae: z_dim", model->transformer.in_channels, model->vae.z_dim},
        {"transformer: out_channels", "vae: z_dim", model->transformer.out_channels, model->vae.z_dim},
        {"transformer: text_dim", "text_encoder: d_model", model->transformer.text_dim, model->text.d_model},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
        if (pairs[i].found != pairs[i].wanted)
            return hlv_fail(model->ctx, HLV_ERROR_FORMAT, "%s: the parts don't fit: %s is %d, but %s is %d",
                            model->directory, pairs[i].what, pairs[i].found, pairs[i].other, pairs[i].wanted);
    return HLV_OK;
}

/* An adapter that cannot be read or belongs to another model should fail now, not after the text encoder has run. */
static hlv_status check_adapter(const hlv_model *model) {
    if (model->attention == HLV_ATTENTION_SOFTMAX) return HLV_OK;
    if (!model->adapter) {
        if (model->attention == HLV_ATTENTION_DEFAULT) return HLV_OK;
        return hlv_fail(model->ctx, HLV_ERROR_ARGUMENT,
                        "attention: hadamard needs an adapter; %s has no hla/config.json and none was given",
                        model->directory);
    }
    hlv_adapter_config config;
    hlv_status status = hlv_adapter_config_read(model->ctx, model->adapter, &config);
    if (status != HLV_OK) return status;
    if (config.num_layers != model->transformer.num_layers)
        status = hlv_fail(model->ctx, HLV_ERROR_FORMAT, "%s/config.json is for %d blocks, the transformer has %d",
                          model->adapter, config.num_layers, model->transformer.num_layers);
    hlv_adapter_config_free(&config);
    return status;
}

static hlv_status check_options(hlv_context *ctx, const hlv_model_options *options) {
    if (options->struct_size != sizeof *options)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT,
                        "model options: struct_size is %zu, wanted %zu; use hlv_model_options_init",
                        options->struct_size, sizeof *options);
    if (!options->directory || !options->directory[0])
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "model: no directory given");
    if ((int)options->attention < HLV_ATTENTION_DEFAULT || options->attention > HLV_ATTENTION_SOFTMAX)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "attention: unknown value %d", (int)options->attention);
    if (options->dtype != HLA_F32 && options->dtype != HLA_BF16)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "dtype: found %d, wanted f32 or bf16", (int)options->dtype);
    return HLV_OK;
}

static hlv_status open_into(hlv_model *model, const hlv_model_options *options) {
    model->attention = options->attention, model->dtype = options->dtype;
    model->directory = strdup(options->directory);
    if (!model->directory) {
        hlv_fail(model->ctx, HLV_ERROR_MEMORY, "out of memory for the model's path");
        return HLV_ERROR_MEMORY;
    }
    hlv_status status = read_configs(model);
    if (status == HLV_OK) status = compare_configs(model);
    if (status == HLV_OK) status = find_adapter(model, options->adapter);
    return status == HLV_OK ? check_adapter(model) : status;
}

hlv_status hlv_model_open(hlv_context *ctx, const hlv_model_options *options, hlv_model **out) {
    if (!ctx || !out) return HLV_ERROR_ARGUMENT;
    *out = NULL;
    if (!options) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "model: no options given");
    hlv_status status = check_options(ctx, options);
    if (status != HLV_OK) return status;
    hlv_model *model = calloc(1, sizeof *model);
    if (!model) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for the model");
    model->ctx = ctx;
    status = open_into(model, options);
    if (status != HLV_OK) {
        hlv_model_free(model);
        return status;
    }
    *out = model;
    return HLV_OK;
}

void hlv_model_free(hlv_model *model) {
    if (!model) return;
    hlv_dit_free(model->dit);
    free(model->directory);
    free(model->adapter);
    free(model);
}

hlv_status hlv_model_transformer(hlv_model *model, const hlv_dit **dit) {
    hlv_status status = HLV_OK;
    if (!model->dit) {
        char *path = hlv_model_path(model, "transformer");
        if (!path) return HLV_ERROR_MEMORY;
        status = hlv_dit_open(model->ctx, path, model->adapter, model->attention, model->dtype, &model->dit);
        free(path);
    }
    *dit = model->dit;
    return status;
}
