/* The configs of the published parts: transformer, VAE, text encoder, scheduler, model index. */
#include "video/weights/config.h"

#include "video/weights/config_json.h"
#include "video/weights/json.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* Far above any published model, and low enough that products of a few of them fit 64 bits. */
#define MAX_WIDTH 65536
#define MAX_LAYERS 1024
#define MAX_VOCABULARY 16777216

/* An integer key, where it goes, its class's default and its range. */
typedef struct int_field {
    const char *key;
    size_t offset;
    int absent, min, max;
} int_field;

/* A switch or word that must have one value, since only that way of working is built here. */
typedef struct fixed_bool {
    const char *key;
    bool absent, wanted;
} fixed_bool;

typedef struct fixed_text {
    const char *key, *absent, *wanted;
} fixed_text;

static void read_ints(hlv_json_fields *fields, const int_field *table, size_t count, void *config) {
    for (size_t i = 0; i < count; i++) {
        int value = hlv_json_int(fields, table[i].key, table[i].absent, table[i].min, table[i].max);
        memcpy((char *)config + table[i].offset, &value, sizeof value);
    }
}

static void check_bools(hlv_json_fields *fields, const fixed_bool *table, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (hlv_json_bool(fields, table[i].key, table[i].absent) != table[i].wanted)
            hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "'%s' is %s, and only %s is supported", table[i].key,
                          table[i].wanted ? "false" : "true", table[i].wanted ? "true" : "false");
}

static void check_texts(hlv_json_fields *fields, const fixed_text *table, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const char *text = hlv_json_text(fields, table[i].key, table[i].absent);
        if (text && strcmp(text, table[i].wanted) != 0)
            hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "'%s' is \"%.80s\", and only \"%s\" is supported",
                          table[i].key, text, table[i].wanted);
    }
}

/* Keys of variants that are not built: they must be null, absent or of a value that changes nothing. */
static void check_nulls(hlv_json_fields *fields, const char *const *keys, size_t count, const char *variant) {
    for (size_t i = 0; i < count; i++)
        if (!hlv_json_is_null(fields, keys[i]))
            hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "'%s' is not null: %s is not supported", keys[i], variant);
}

static void check_class(hlv_json_fields *fields, const char *key, const char *wanted) {
    const char *name = hlv_json_text(fields, key, NULL);
    if (!name)
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is absent, and must be \"%s\"", key, wanted);
    else if (strcmp(name, wanted) != 0)
        hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "unknown architecture: '%s' is \"%.80s\", and must be \"%s\"", key,
                      name, wanted);
}

#define COUNT(table) (sizeof(table) / sizeof *(table))

hlv_status hlv_transformer_config_from_json(hlv_context *ctx, const char *file, json_t *root,
                                            hlv_transformer_config *config) {
    static const int_field ints[] = {
        {"num_attention_heads", offsetof(hlv_transformer_config, num_attention_heads), 40, 1, 1024},
        {"attention_head_dim", offsetof(hlv_transformer_config, attention_head_dim), 128, 6, 1024},
        {"in_channels", offsetof(hlv_transformer_config, in_channels), 16, 1, HLV_MAX_CHANNELS},
        {"text_dim", offsetof(hlv_transformer_config, text_dim), 4096, 1, MAX_WIDTH},
        {"freq_dim", offsetof(hlv_transformer_config, freq_dim), 256, 2, MAX_WIDTH},
        {"ffn_dim", offsetof(hlv_transformer_config, ffn_dim), 13824, 1, MAX_WIDTH * 4},
        {"num_layers", offsetof(hlv_transformer_config, num_layers), 40, 1, MAX_LAYERS},
        {"rope_max_seq_len", offsetof(hlv_transformer_config, rope_max_seq_len), 1024, 1, 1 << 20},
    };
    static const char *const image_keys[] = {"image_dim", "added_kv_proj_dim", "pos_embed_seq_len"};
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = "", .object = root};
    *config = (hlv_transformer_config){.patch_size = {1, 2, 2}};

    check_class(&fields, "_class_name", "WanTransformer3DModel");
    check_nulls(&fields, image_keys, COUNT(image_keys), "image conditioning");
    read_ints(&fields, ints, COUNT(ints), config);
    config->out_channels = hlv_json_is_null(&fields, "out_channels")
                               ? config->in_channels
                               : hlv_json_int(&fields, "out_channels", 16, 1, HLV_MAX_CHANNELS);
    const json_t *patch = hlv_json_array(&fields, "patch_size", 3, 3);
    for (size_t i = 0; patch && i < 3; i++)
        config->patch_size[i] = hlv_json_int_at(&fields, "patch_size", patch, i, 1, 16);
    config->cross_attn_norm = hlv_json_bool(&fields, "cross_attn_norm", true);
    config->eps = hlv_json_real(&fields, "eps", 1e-6, 1e-12, 1);
    bool null_norm = json_is_null(json_object_get(root, "qk_norm"));
    const char *norm = null_norm ? NULL : hlv_json_text(&fields, "qk_norm", "rms_norm_across_heads");
    config->qk_norm = norm != NULL;
    if (norm && strcmp(norm, "rms_norm_across_heads") != 0)
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED,
                      "'qk_norm' is \"%.80s\", and only \"rms_norm_across_heads\" and null are supported", norm);

    if (config->attention_head_dim % 2)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "'attention_head_dim' is %d, and must be even for RoPE's pairs",
                      config->attention_head_dim);
    if (config->freq_dim % 2)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "'freq_dim' is %d, and must be even: half sines, half cosines",
                      config->freq_dim);
    if ((int64_t)config->num_attention_heads * config->attention_head_dim > MAX_WIDTH)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "%d heads of 'attention_head_dim' %d make a width above %d",
                      config->num_attention_heads, config->attention_head_dim, MAX_WIDTH);
    return fields.status;
}

static const double wan_latents_mean[] = {-0.7571, -0.7089, -0.9113, 0.1075,  -0.1745, 0.9653,  -0.1517, 1.5508,
                                          0.4134,  -0.0715, 0.5517,  -0.3632, -0.1922, -0.9497, 0.2503,  -0.2921};
static const double wan_latents_std[] = {2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                                         3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160};

/* One number a latent channel; the class's own list, of 16, where the key is absent. */
static void read_channels(hlv_json_fields *fields, const char *key, int channels, const double *absent, double min,
                          double *values) {
    size_t count = (size_t)channels;
    if (!json_object_get(fields->object, key)) {
        if (count != COUNT(wan_latents_mean))
            hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is absent, and must have %zu entries", key, count);
        for (size_t i = 0; i < count && i < COUNT(wan_latents_mean); i++)
            values[i] = absent[i];
        return;
    }
    const json_t *array = hlv_json_array(fields, key, count, count);
    for (size_t i = 0; array && i < count; i++)
        values[i] = hlv_json_real_at(fields, key, array, i, min, 1e6);
}

static void read_stages(hlv_json_fields *fields, hlv_vae_config *config) {
    static const int wan_mult[] = {1, 2, 4, 4};
    static const bool wan_downsample[] = {false, true, true};
    config->stages = (int)COUNT(wan_mult);
    memcpy(config->dim_mult, wan_mult, sizeof wan_mult);
    if (json_object_get(fields->object, "dim_mult")) {
        const json_t *array = hlv_json_array(fields, "dim_mult", 1, HLV_MAX_STAGES);
        config->stages = array ? (int)json_array_size(array) : 1;
        for (int i = 0; array && i < config->stages; i++)
            config->dim_mult[i] = hlv_json_int_at(fields, "dim_mult", array, (size_t)i, 1, 64);
    }
    memcpy(config->temporal_downsample, wan_downsample, sizeof wan_downsample);
    size_t steps = (size_t)config->stages - 1;
    if (!json_object_get(fields->object, "temperal_downsample")) {
        if (steps != COUNT(wan_downsample))
            hlv_json_fail(fields, HLV_ERROR_FORMAT, "'temperal_downsample' is absent, and must have %zu entries",
                          steps);
        return;
    }
    const json_t *array = hlv_json_array(fields, "temperal_downsample", steps, steps);
    for (size_t i = 0; array && i < steps; i++) {
        const json_t *value = json_array_get(array, i);
        if (!json_is_boolean(value))
            hlv_json_fail(fields, HLV_ERROR_FORMAT, "'temperal_downsample[%zu]' is %s, and must be true or false", i,
                          hlv_json_kind(value));
        config->temporal_downsample[i] = json_is_true(value);
    }
}

hlv_status hlv_vae_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_vae_config *config) {
    static const int_field ints[] = {
        {"base_dim", offsetof(hlv_vae_config, base_dim), 96, 1, 4096},
        {"z_dim", offsetof(hlv_vae_config, z_dim), 16, 1, HLV_MAX_CHANNELS},
        {"num_res_blocks", offsetof(hlv_vae_config, num_res_blocks), 2, 1, 64},
    };
    static const fixed_bool bools[] = {{"is_residual", false, false}};
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = "", .object = root};
    *config = (hlv_vae_config){.stages = 1};

    check_class(&fields, "_class_name", "AutoencoderKLWan");
    check_bools(&fields, bools, COUNT(bools));
    if (!hlv_json_is_null(&fields, "patch_size") && hlv_json_int(&fields, "patch_size", 1, 1, 64) != 1)
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED,
                      "'patch_size' is not null: a VAE on patches (Wan2.2) is not supported");
    for (int i = 0; i < 2; i++) {
        const char *key = i ? "out_channels" : "in_channels";
        int channels = hlv_json_int(&fields, key, 3, 1, 4096);
        if (channels != 3)
            hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED, "'%s' is %d, and only 3 (RGB) is supported", key, channels);
    }
    const json_t *scales = hlv_json_array(&fields, "attn_scales", 0, 64);
    if (scales && json_array_size(scales) > 0)
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED,
                      "'attn_scales' is not empty: attention at more levels is not supported");
    read_ints(&fields, ints, COUNT(ints), config);
    config->decoder_base_dim = hlv_json_is_null(&fields, "decoder_base_dim")
                                   ? config->base_dim
                                   : hlv_json_int(&fields, "decoder_base_dim", config->base_dim, 1, 4096);
    read_stages(&fields, config);
    read_channels(&fields, "latents_mean", config->z_dim, wan_latents_mean, -1e6, config->latents_mean);
    read_channels(&fields, "latents_std", config->z_dim, wan_latents_std, 1e-6, config->latents_std);
    return fields.status;
}

int hlv_vae_pixels_a_latent(const hlv_vae_config *config) {
    return 1 << (config->stages - 1);
}

int hlv_vae_frames_a_latent(const hlv_vae_config *config) {
    int frames = 1;
    for (int i = 0; i + 1 < config->stages; i++)
        frames *= config->temporal_downsample[i] ? 2 : 1;
    return frames;
}

/* The encoder's feed-forward must be gated with the tanh form of GELU, said by dense_act_fn and is_gated_act or, in
 * short, by feed_forward_proj. */
static void check_feed_forward(hlv_json_fields *fields) {
    static const fixed_text gelu[] = {{"dense_act_fn", "gelu_new", "gelu_new"}};
    static const fixed_bool gated[] = {{"is_gated_act", true, true}};
    static const fixed_text proj[] = {{"feed_forward_proj", "gated-gelu", "gated-gelu"}};
    if (!json_object_get(fields->object, "dense_act_fn")) check_texts(fields, proj, COUNT(proj));
    check_texts(fields, gelu, COUNT(gelu));
    check_bools(fields, gated, COUNT(gated));
}

hlv_status hlv_text_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_text_config *config) {
    static const int_field ints[] = {
        {"d_model", offsetof(hlv_text_config, d_model), 512, 1, MAX_WIDTH},
        {"d_ff", offsetof(hlv_text_config, d_ff), 1024, 1, MAX_WIDTH * 4},
        {"d_kv", offsetof(hlv_text_config, d_kv), 64, 1, 1024},
        {"num_heads", offsetof(hlv_text_config, num_heads), 6, 1, 1024},
        {"num_layers", offsetof(hlv_text_config, num_layers), 8, 1, MAX_LAYERS},
        {"vocab_size", offsetof(hlv_text_config, vocab_size), 250112, 1, MAX_VOCABULARY},
        {"relative_attention_num_buckets", offsetof(hlv_text_config, relative_attention_num_buckets), 32, 4, 4096},
        {"relative_attention_max_distance", offsetof(hlv_text_config, relative_attention_max_distance), 128, 2,
         1 << 20},
    };
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = "", .object = root};
    *config = (hlv_text_config){.pad_token_id = 0, .eos_token_id = 1};

    check_class(&fields, "model_type", "umt5");
    check_feed_forward(&fields);
    read_ints(&fields, ints, COUNT(ints), config);
    config->layer_norm_epsilon = hlv_json_real(&fields, "layer_norm_epsilon", 1e-6, 1e-12, 1);
    if (!hlv_json_is_null(&fields, "pad_token_id"))
        config->pad_token_id = hlv_json_int(&fields, "pad_token_id", 0, 0, config->vocab_size - 1);
    const json_t *end = json_object_get(root, "eos_token_id");
    if (json_is_array(end) && json_array_size(end) > 0)
        config->eos_token_id = hlv_json_int_at(&fields, "eos_token_id", end, 0, 0, config->vocab_size - 1);
    else if (!hlv_json_is_null(&fields, "eos_token_id"))
        config->eos_token_id = hlv_json_int(&fields, "eos_token_id", 1, 0, config->vocab_size - 1);

    /* Half the buckets for each direction, half of those for exact distances: the rest needs a longer distance. */
    if (config->relative_attention_num_buckets % 4 ||
        config->relative_attention_max_distance <= config->relative_attention_num_buckets / 4)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT,
                      "'relative_attention_num_buckets' is %d, and must be a multiple of 4 and below four times "
                      "'relative_attention_max_distance', which is %d",
                      config->relative_attention_num_buckets, config->relative_attention_max_distance);
    if ((int64_t)config->num_heads * config->d_kv > MAX_WIDTH)
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "%d heads of 'd_kv' %d make a width above %d", config->num_heads,
                      config->d_kv, MAX_WIDTH);
    return fields.status;
}

hlv_status hlv_scheduler_config_from_json(hlv_context *ctx, const char *file, json_t *root,
                                          hlv_scheduler_config *config) {
    static const int_field ints[] = {
        {"num_train_timesteps", offsetof(hlv_scheduler_config, num_train_timesteps), 1000, 2, 1000000},
        {"solver_order", offsetof(hlv_scheduler_config, solver_order), 2, 1, 2},
    };
    static const fixed_bool bools[] = {
        {"use_flow_sigmas", false, true},       {"predict_x0", true, true},
        {"use_karras_sigmas", false, false},    {"use_exponential_sigmas", false, false},
        {"use_beta_sigmas", false, false},      {"thresholding", false, false},
        {"use_dynamic_shifting", false, false},
    };
    static const fixed_text texts[] = {
        {"prediction_type", "epsilon", "flow_prediction"},
        {"solver_type", "bh2", "bh2"},
        {"final_sigmas_type", "zero", "zero"},
    };
    static const char *const solver[] = {"solver_p"}, *const terminal[] = {"shift_terminal"};
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = "", .object = root};
    *config = (hlv_scheduler_config){.solver_order = 2};

    check_class(&fields, "_class_name", "UniPCMultistepScheduler");
    check_texts(&fields, texts, COUNT(texts));
    check_bools(&fields, bools, COUNT(bools));
    check_nulls(&fields, solver, COUNT(solver), "another predictor");
    check_nulls(&fields, terminal, COUNT(terminal), "a shifted last sigma");
    const json_t *corrector = hlv_json_array(&fields, "disable_corrector", 0, 1000000);
    if (corrector && json_array_size(corrector) > 0)
        hlv_json_fail(&fields, HLV_ERROR_UNSUPPORTED,
                      "'disable_corrector' is not empty: leaving out the corrector is not supported");
    read_ints(&fields, ints, COUNT(ints), config);
    config->flow_shift = hlv_json_real(&fields, "flow_shift", 1, 1e-3, 1000);
    /* Either value: into sigma 0 all orders take the same step. */
    (void)hlv_json_bool(&fields, "lower_order_final", true);
    return fields.status;
}

/* model_index.json names each component as ["library", "Class"]; the tokenizer's class has had several names. */
static void check_component(hlv_json_fields *fields, const char *key, const char *const *classes) {
    const json_t *pair = hlv_json_array(fields, key, 2, 2);
    const char *name = json_string_value(json_array_get(pair, 1));
    if (!name) {
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' must be an array of two strings, library and class (%s)", key,
                      classes[0]);
        return;
    }
    for (int i = 0; classes[i]; i++)
        if (strcmp(classes[i], name) == 0) return;
    hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "unknown architecture: '%s' is of class \"%.80s\", and must be %s",
                  key, name, classes[0]);
}

/* A second component of Wan2.2 counts as absent where both of its strings are null. */
static void check_absent_component(hlv_json_fields *fields, const char *key) {
    const json_t *value = json_object_get(fields->object, key);
    if (!value || json_is_null(value)) return;
    if (json_array_size(value) == 2 && json_is_null(json_array_get(value, 1))) return;
    hlv_json_fail(fields, HLV_ERROR_UNSUPPORTED, "'%s' is not null: Wan2.2's two-stage models are not supported", key);
}

hlv_status hlv_default_config_from_json(hlv_context *ctx, const char *file, json_t *root, hlv_default_config *config) {
    static const struct {
        const char *key;
        const char *classes[5];
    } components[] = {
        {"scheduler", {"UniPCMultistepScheduler"}},
        {"text_encoder", {"UMT5EncoderModel"}},
        {"tokenizer", {"T5TokenizerFast", "T5Tokenizer", "PreTrainedTokenizerFast", "TokenizersBackend"}},
        {"transformer", {"WanTransformer3DModel"}},
        {"vae", {"AutoencoderKLWan"}},
    };
    static const int_field ints[] = {
        {"width", offsetof(hlv_default_config, width), 832, 1, 16384},
        {"height", offsetof(hlv_default_config, height), 480, 1, 16384},
        {"frames", offsetof(hlv_default_config, frames), 81, 1, 1000000},
        {"steps", offsetof(hlv_default_config, steps), 50, 1, 1000},
    };
    static const fixed_bool bools[] = {{"expand_timesteps", false, false}};
    static const char *const boundary[] = {"boundary_ratio"};
    hlv_json_fields fields = {.ctx = ctx, .file = file, .where = "", .object = root};

    check_class(&fields, "_class_name", "WanPipeline");
    for (size_t i = 0; i < COUNT(components) && fields.status == HLV_OK; i++)
        check_component(&fields, components[i].key, components[i].classes);
    check_absent_component(&fields, "transformer_2");
    check_nulls(&fields, boundary, COUNT(boundary), "a boundary between two transformers (Wan2.2)");
    check_bools(&fields, bools, COUNT(bools));

    json_t *given = json_object_get(root, "hla_defaults");
    if (given && !json_is_object(given))
        hlv_json_fail(&fields, HLV_ERROR_FORMAT, "'hla_defaults' is %s, and must be an object", hlv_json_kind(given));
    hlv_json_fields defaults = fields;
    defaults.where = "hla_defaults: ";
    defaults.object = given; /* NULL gives Wan's own */
    read_ints(&defaults, ints, COUNT(ints), config);
    config->fps = hlv_json_real(&defaults, "fps", 16, 0.01, 1000);
    config->guidance = hlv_json_real(&defaults, "guidance", 5, 0, 100);
    return defaults.status;
}

/* A file of a component directory, parsed; root is NULL where that failed. */
typedef struct document {
    char path[4096];
    json_t *root;
} document;

static hlv_status load(hlv_context *ctx, const char *directory, const char *name, document *file) {
    file->root = NULL;
    if (snprintf(file->path, sizeof file->path, "%s/%s", directory, name) >= (int)sizeof file->path)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%.200s...: the path is too long", directory);
    return hlv_json_read(ctx, file->path, &file->root);
}

hlv_status hlv_transformer_config_read(hlv_context *ctx, const char *component_dir, hlv_transformer_config *config) {
    document file;
    hlv_status status = load(ctx, component_dir, "config.json", &file);
    if (status == HLV_OK) status = hlv_transformer_config_from_json(ctx, file.path, file.root, config);
    json_decref(file.root);
    return status;
}

hlv_status hlv_vae_config_read(hlv_context *ctx, const char *component_dir, hlv_vae_config *config) {
    document file;
    hlv_status status = load(ctx, component_dir, "config.json", &file);
    if (status == HLV_OK) status = hlv_vae_config_from_json(ctx, file.path, file.root, config);
    json_decref(file.root);
    return status;
}

hlv_status hlv_text_config_read(hlv_context *ctx, const char *component_dir, hlv_text_config *config) {
    document file;
    hlv_status status = load(ctx, component_dir, "config.json", &file);
    if (status == HLV_OK) status = hlv_text_config_from_json(ctx, file.path, file.root, config);
    json_decref(file.root);
    return status;
}

hlv_status hlv_scheduler_config_read(hlv_context *ctx, const char *component_dir, hlv_scheduler_config *config) {
    document file;
    hlv_status status = load(ctx, component_dir, "scheduler_config.json", &file);
    if (status == HLV_OK) status = hlv_scheduler_config_from_json(ctx, file.path, file.root, config);
    json_decref(file.root);
    return status;
}

hlv_status hlv_adapter_config_read(hlv_context *ctx, const char *adapter_dir, hlv_adapter_config *config) {
    document file;
    *config = (hlv_adapter_config){.ctx = ctx};
    hlv_status status = load(ctx, adapter_dir, "config.json", &file);
    if (status == HLV_OK) status = hlv_adapter_config_from_json(ctx, file.path, file.root, config);
    json_decref(file.root);
    return status;
}

hlv_status hlv_model_index_read(hlv_context *ctx, const char *model_dir, hlv_default_config *defaults) {
    document file;
    hlv_status status = load(ctx, model_dir, "model_index.json", &file);
    if (status == HLV_OK) status = hlv_default_config_from_json(ctx, file.path, file.root, defaults);
    json_decref(file.root);
    return status;
}
