/* hlv_inspect: reads the configs and the headers of all weights, and works out what a clip costs with them. */
#include "video/weights/inspect.h"

#include "hlv/model.h"
#include "video/weights/json.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Whether DIR/NAME exists; its path goes into path. */
static bool exists_in(const char *directory, const char *name, char *path, size_t size) {
    struct stat info;
    return snprintf(path, size, "%s/%s", directory, name) < (int)size && stat(path, &info) == 0;
}

/* Whether the words of list, parted by ", ", include word. */
static bool lists(const char *list, const char *word) {
    size_t length = strlen(word);
    for (const char *at = strstr(list, word); at; at = strstr(at + 1, word))
        if ((at == list || at[-1] == ' ') && (at[length] == ',' || !at[length])) return true;
    return false;
}

static void add_tensors(hlv_part *part, const hlv_weights *weights) {
    part->tensors = hlv_weights_count(weights);
    for (int64_t i = 0; i < part->tensors; i++) {
        const hlv_weight *weight = hlv_weights_at(weights, i);
        part->parameters += weight->count;
        size_t used = strlen(part->dtypes);
        if (!lists(part->dtypes, weight->dtype_name))
            snprintf(part->dtypes + used, sizeof part->dtypes - used, "%s%s", used ? ", " : "", weight->dtype_name);
    }
}

static hlv_status count_part(hlv_context *ctx, const char *directory, hlv_part *part) {
    hlv_weights *weights = NULL;
    hlv_status status = hlv_weights_open(ctx, directory, &weights);
    if (status != HLV_OK) return status;
    part->files = hlv_weights_files(weights, &part->bytes);
    add_tensors(part, weights);
    hlv_weights_free(weights);
    return HLV_OK;
}

static hlv_status read_adapter(hlv_context *ctx, hlv_inspection *found, const char *directory) {
    hlv_part *part = &found->parts[HLV_PART_ADAPTER];
    hlv_status status = hlv_adapter_config_read(ctx, directory, &found->adapter);
    if (status != HLV_OK) return status;
    if (found->adapter.num_layers != found->transformer.num_layers)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: is for %d blocks, and the transformer has %d", directory,
                        found->adapter.num_layers, found->transformer.num_layers);
    part->by_config = hlv_adapter_size(&found->transformer, &found->adapter);
    return count_part(ctx, directory, part);
}

/* Configs and weights of every part of the model. */
static hlv_status read_model(hlv_context *ctx, hlv_inspection *found) {
    char text[4096], transformer[4096], vae[4096], scheduler[4096], adapter[4096];
    hlv_part *parts = found->parts;
    hlv_status status = hlv_model_index_read(ctx, found->path, &found->defaults);
    exists_in(found->path, "text_encoder", text, sizeof text);
    exists_in(found->path, "transformer", transformer, sizeof transformer);
    exists_in(found->path, "vae", vae, sizeof vae);
    exists_in(found->path, "scheduler", scheduler, sizeof scheduler);
    if (status == HLV_OK) status = hlv_text_config_read(ctx, text, &found->text);
    if (status == HLV_OK) status = hlv_transformer_config_read(ctx, transformer, &found->transformer);
    if (status == HLV_OK) status = hlv_vae_config_read(ctx, vae, &found->vae);
    if (status == HLV_OK) status = hlv_scheduler_config_read(ctx, scheduler, &found->scheduler);
    if (status == HLV_OK) status = count_part(ctx, text, &parts[HLV_PART_TEXT]);
    if (status == HLV_OK) status = count_part(ctx, transformer, &parts[HLV_PART_TRANSFORMER]);
    if (status == HLV_OK) status = count_part(ctx, vae, &parts[HLV_PART_VAE]);
    if (status != HLV_OK) return status;
    parts[HLV_PART_TEXT].by_config = hlv_text_size(&found->text);
    parts[HLV_PART_TRANSFORMER].by_config = hlv_transformer_size(&found->transformer);
    parts[HLV_PART_VAE].by_config = hlv_vae_size(&found->vae);
    if (!exists_in(found->path, "hla/config.json", adapter, sizeof adapter)) return HLV_OK;
    exists_in(found->path, "hla", adapter, sizeof adapter);
    return read_adapter(ctx, found, adapter);
}

static hlv_stage_memory stage_memory(const hlv_inspection *found, double weight_bytes) {
    const hlv_adapter_config *adapter = found->adapter.num_layers ? &found->adapter : NULL;
    double maps = adapter ? (double)hlv_adapter_size(&found->transformer, adapter).parameters : 0;
    double transformer = (double)hlv_transformer_size(&found->transformer).parameters * weight_bytes + maps * 4;
    double embedding = (double)found->text.vocab_size * found->text.d_model; /* read from the file, row by row */
    hlv_stage_memory memory = {
        .text = ((double)hlv_text_size(&found->text).parameters - embedding) * weight_bytes,
        .sample = transformer + hlv_transformer_working_bytes(&found->transformer, adapter, found->clip.tokens,
                                                              HLV_INSPECT_TEXT_TOKENS),
        .decode = transformer + (double)hlv_vae_decoder_size(&found->vae).parameters * weight_bytes +
                  hlv_vae_working_bytes(&found->vae, &found->clip),
    };
    memory.peak = memory.text > memory.sample ? memory.text : memory.sample;
    if (memory.decode > memory.peak) memory.peak = memory.decode;
    memory.fits = memory.peak <= found->machine_bytes;
    return memory;
}

static void work_out(hlv_inspection *found) {
    const hlv_adapter_config *adapter = found->adapter.num_layers ? &found->adapter : NULL;
    found->cost = hlv_transformer_cost(&found->transformer, adapter, found->clip.tokens, HLV_INSPECT_TEXT_TOKENS);
    found->text_cost = hlv_text_cost(&found->text, HLV_INSPECT_TEXT_TOKENS);
    found->decode_cost = hlv_vae_decode_cost(&found->vae, &found->clip);
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    found->machine_bytes = pages > 0 && page > 0 ? (double)pages * (double)page : 0;
    found->memory[0] = stage_memory(found, 4);
    found->memory[1] = stage_memory(found, 2);
}

static hlv_status inspect_model(hlv_context *ctx, const char *path, int width, int height, int frames, bool json,
                                char **text) {
    hlv_inspection found = {.path = path,
                            .parts = {{.name = "text_encoder", .class_name = "UMT5EncoderModel"},
                                      {.name = "transformer", .class_name = "WanTransformer3DModel"},
                                      {.name = "vae", .class_name = "AutoencoderKLWan"},
                                      {.name = "hla", .class_name = HLV_ADAPTER_CLASS}}};
    hlv_status status = read_model(ctx, &found);
    if (status == HLV_OK)
        status = hlv_clip_measure(ctx, &found.transformer, &found.vae, width ? width : found.defaults.width,
                                  height ? height : found.defaults.height, frames ? frames : found.defaults.frames,
                                  &found.clip);
    if (status == HLV_OK) {
        work_out(&found);
        *text = json ? hlv_inspection_json(&found) : hlv_inspection_text(&found);
        if (!*text)
            status = hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: no report: its path is not UTF-8 or memory ran out", path);
    }
    hlv_adapter_config_free(&found.adapter);
    return status;
}

static hlv_status inspect_weights(hlv_context *ctx, const char *path, const hlv_adapter_config *adapter, bool json,
                                  char **text) {
    hlv_weights *weights = NULL;
    hlv_status status = hlv_weights_open(ctx, path, &weights);
    if (status != HLV_OK) return status;
    *text = json ? hlv_weights_json(weights, adapter) : hlv_weights_text(weights, adapter);
    if (!*text)
        status = hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: no report: its path is not UTF-8 or memory ran out", path);
    hlv_weights_free(weights);
    return status;
}

/* Whether path is the directory of an adapter: its config.json says so. */
static bool is_adapter(hlv_context *ctx, const char *path) {
    char config[4096];
    json_t *root = NULL;
    bool named = exists_in(path, "config.json", config, sizeof config) && hlv_json_read(ctx, config, &root) == HLV_OK;
    const char *name = json_string_value(json_object_get(root, "_class_name"));
    named = named && name && strcmp(name, HLV_ADAPTER_CLASS) == 0;
    json_decref(root);
    return named;
}

static hlv_status inspect_adapter(hlv_context *ctx, const char *path, bool json, char **text) {
    hlv_adapter_config adapter;
    hlv_status status = hlv_adapter_config_read(ctx, path, &adapter);
    if (status == HLV_OK) status = inspect_weights(ctx, path, &adapter, json, text);
    hlv_adapter_config_free(&adapter);
    return status;
}

hlv_status hlv_inspect(hlv_context *context, const char *path, int width, int height, int frames, bool json,
                       char **text) {
    if (!context || !text) return HLV_ERROR_ARGUMENT;
    *text = NULL;
    if (!path || !*path) return hlv_fail(context, HLV_ERROR_ARGUMENT, "no path to inspect was given");
    char index[4096];
    if (exists_in(path, "model_index.json", index, sizeof index))
        return inspect_model(context, path, width, height, frames, json, text);
    if (is_adapter(context, path)) return inspect_adapter(context, path, json, text);
    return inspect_weights(context, path, NULL, json, text);
}
