/* Configs: those the reference libraries saved, their classes' defaults, and values that must be refused. */
#include "support.h"

#include "video/core/context.h"
#include "video/weights/config.h"
#include "video/weights/config_json.h"
#include "video/weights/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define TRANSFORMER "{\"_class_name\":\"WanTransformer3DModel\""
#define VAE "{\"_class_name\":\"AutoencoderKLWan\""
#define TEXT "{\"model_type\":\"umt5\""
#define SCHEDULER                                                                                                      \
    "{\"_class_name\":\"UniPCMultistepScheduler\",\"use_flow_sigmas\":true,\"prediction_type\":\"flow_prediction\""
#define ADAPTER "{\"_class_name\":\"HadamardLinearAttention\",\"format_version\":1"
#define BLOCK(fields) ADAPTER ",\"num_layers\":1,\"blocks\":[{" fields "}]}"
#define HADAMARD "\"kind\":\"hadamard\",\"ranks\":[16,16]"
#define INDEX_OF(scheduler, transformer)                                                                               \
    "{\"_class_name\":\"WanPipeline\",\"scheduler\":[\"diffusers\",\"" scheduler                                       \
    "\"],\"text_encoder\":[\"transformers\",\"UMT5EncoderModel\"],\"tokenizer\":[\"transformers\","                    \
    "\"T5TokenizerFast\"],\"transformer\":[\"diffusers\",\"" transformer                                               \
    "\"],\"vae\":[\"diffusers\",\"AutoencoderKLWan\"]"
#define INDEX INDEX_OF("UniPCMultistepScheduler", "WanTransformer3DModel")

typedef union any_config {
    hlv_transformer_config transformer;
    hlv_vae_config vae;
    hlv_text_config text;
    hlv_scheduler_config scheduler;
    hlv_adapter_config adapter;
    hlv_default_config defaults;
} any_config;

typedef enum kind { TRANSFORMERS, VAES, TEXTS, SCHEDULERS, ADAPTERS, INDICES } kind;

static hlv_status read_config(hlv_context *ctx, kind which, const char *directory, any_config *config) {
    memset(config, 0xa5, sizeof *config);
    switch (which) {
    case TRANSFORMERS:
        return hlv_transformer_config_read(ctx, directory, &config->transformer);
    case VAES:
        return hlv_vae_config_read(ctx, directory, &config->vae);
    case TEXTS:
        return hlv_text_config_read(ctx, directory, &config->text);
    case SCHEDULERS:
        return hlv_scheduler_config_read(ctx, directory, &config->scheduler);
    case ADAPTERS:
        return hlv_adapter_config_read(ctx, directory, &config->adapter);
    default:
        return hlv_model_index_read(ctx, directory, &config->defaults);
    }
}

static const char *file_name(kind which) {
    if (which == SCHEDULERS) return "scheduler_config.json";
    return which == INDICES ? "model_index.json" : "config.json";
}

static any_config read_good(const fixture *f, kind which, const char *json) {
    any_config config;
    put_text(f, file_name(which), json);
    if (read_config(f->ctx, which, f->directory, &config) != HLV_OK)
        fail_msg("%s: %s", json, hlv_context_error(f->ctx));
    return config;
}

static void saved_configs_are_read(void **state) {
    const fixture *f = *state;
    any_config c;
    assert_int_equal(read_config(f->ctx, TRANSFORMERS, GOLDEN "transformer", &c), HLV_OK);
    const hlv_transformer_config *t = &c.transformer;
    assert_int_equal(t->num_attention_heads * t->attention_head_dim, 24);
    assert_int_equal(t->in_channels, 4);
    assert_int_equal(t->out_channels, 4);
    assert_int_equal(t->text_dim, 16);
    assert_int_equal(t->freq_dim, 32);
    assert_int_equal(t->ffn_dim, 48);
    assert_int_equal(t->num_layers, 2);
    assert_true(t->cross_attn_norm && t->qk_norm);

    assert_int_equal(read_config(f->ctx, VAES, GOLDEN "vae", &c), HLV_OK);
    assert_int_equal(c.vae.base_dim, 2);
    assert_int_equal(c.vae.decoder_base_dim, 2); /* null: as base_dim */
    assert_int_equal(c.vae.stages, 3);
    assert_int_equal(c.vae.dim_mult[2], 3);
    assert_true(c.vae.temporal_downsample[0] && !c.vae.temporal_downsample[1]);
    assert_true(c.vae.latents_mean[1] == -1 && c.vae.latents_std[3] == 3.5);

    assert_int_equal(read_config(f->ctx, TEXTS, GOLDEN "text_encoder", &c), HLV_OK);
    assert_int_equal(c.text.vocab_size, 64);
    assert_int_equal(c.text.d_model, 24);
    assert_int_equal(c.text.d_kv, 8);
    assert_int_equal(c.text.d_ff, 40);
    assert_int_equal(c.text.num_layers, 3);
    assert_int_equal(c.text.num_heads, 3);
    assert_int_equal(c.text.eos_token_id, 1);
    assert_true(c.text.layer_norm_epsilon == 1e-6);

    assert_int_equal(read_config(f->ctx, SCHEDULERS, GOLDEN "scheduler", &c), HLV_OK);
    assert_int_equal(c.scheduler.num_train_timesteps, 1000);
    assert_int_equal(c.scheduler.solver_order, 2);
    assert_true(c.scheduler.flow_shift == 3);

    assert_int_equal(read_config(f->ctx, INDICES, GOLDEN, &c), HLV_OK);
    assert_int_equal(c.defaults.width, 832);
    assert_int_equal(c.defaults.height, 480);
    assert_int_equal(c.defaults.frames, 81);
    assert_int_equal(c.defaults.steps, 50);
    assert_true(c.defaults.fps == 16 && c.defaults.guidance == 5);
}

/* What is absent takes the class's default: the values are those of diffusers' and transformers' sources. */
static void absent_keys_take_the_defaults(void **state) {
    const fixture *f = *state;
    const hlv_transformer_config t = read_good(f, TRANSFORMERS, TRANSFORMER "}").transformer;
    assert_int_equal(t.num_attention_heads, 40);
    assert_int_equal(t.attention_head_dim, 128);
    assert_int_equal(t.ffn_dim, 13824);
    assert_int_equal(t.num_layers, 40);
    assert_int_equal(t.patch_size[0], 1);
    assert_int_equal(t.patch_size[2], 2);
    assert_int_equal(t.rope_max_seq_len, 1024);
    assert_true(t.qk_norm && t.cross_attn_norm && t.eps == 1e-6);
    assert_false(read_good(f, TRANSFORMERS, TRANSFORMER ",\"qk_norm\":null}").transformer.qk_norm);
    assert_int_equal(
        read_good(f, TRANSFORMERS, TRANSFORMER ",\"in_channels\":8,\"out_channels\":null}").transformer.out_channels,
        8);
    const hlv_vae_config v = read_good(f, VAES, VAE "}").vae;
    assert_int_equal(v.stages, 4);
    assert_int_equal(v.dim_mult[3], 4);
    assert_true(!v.temporal_downsample[0] && v.temporal_downsample[1] && v.temporal_downsample[2]);
    assert_true(v.latents_mean[15] == -0.2921 && v.latents_std[0] == 2.8184);
    const hlv_text_config x = read_good(f, TEXTS, TEXT ",\"eos_token_id\":[7,1],\"pad_token_id\":null}").text;
    assert_int_equal(x.d_model, 512);
    assert_int_equal(x.vocab_size, 250112);
    assert_int_equal(x.num_heads, 6);
    assert_int_equal(x.eos_token_id, 7);
    assert_int_equal(x.pad_token_id, 0);
    const hlv_scheduler_config s = read_good(f, SCHEDULERS, SCHEDULER "}").scheduler;
    assert_true(s.flow_shift == 1 && s.solver_order == 2 && s.num_train_timesteps == 1000);
    const hlv_default_config d =
        read_good(f, INDICES,
                  INDEX ",\"hla_defaults\":{\"width\":128,\"height\":96,\"frames\":33,\"fps\":12.5,"
                        "\"steps\":25,\"guidance\":4},\"transformer_2\":[null,null]}")
            .defaults;
    assert_int_equal(d.width, 128);
    assert_int_equal(d.height, 96);
    assert_int_equal(d.frames, 33);
    assert_int_equal(d.steps, 25);
    assert_true(d.fps == 12.5 && d.guidance == 4);
}

static void adapters_are_read(void **state) {
    const fixture *f = *state;
    any_config c =
        read_good(f, ADAPTERS,
                  ADAPTER ",\"num_layers\":3,\"blocks\":[{\"kind\":\"softmax\"},{" HADAMARD "},"
                          "{\"kind\":\"hadamard\",\"ranks\":[3,4,5],\"activation\":\"exp\",\"activation_floor\":0.5,"
                          "\"normalised\":false,\"epsilon\":0,\"scale\":0.25,\"hidden\":true,\"bias\":false,"
                          "\"rope\":\"after\"}]}");
    assert_int_equal(c.adapter.num_layers, 3);
    const hlv_block_config *b = c.adapter.blocks;
    assert_false(b[0].hadamard);
    assert_true(b[1].hadamard && b[1].normalised && b[1].bias && !b[1].hidden && b[1].rope_before);
    assert_int_equal(b[1].factors, 2);
    assert_int_equal(b[1].rank[1], 16);
    assert_int_equal(b[1].activation, HLA_ACTIVATION_RELU);
    assert_true(b[1].floor == 1e-3 && b[1].epsilon == 1e-6 && b[1].scale == 1);
    assert_int_equal(b[2].factors, 3);
    assert_int_equal(b[2].rank[0] * 100 + b[2].rank[1] * 10 + b[2].rank[2], 345);
    assert_int_equal(b[2].activation, HLA_ACTIVATION_EXP);
    assert_true(b[2].floor == 0.5 && b[2].epsilon == 0 && b[2].scale == 0.25);
    assert_true(!b[2].normalised && b[2].hidden && !b[2].bias && !b[2].rope_before);
    hlv_adapter_config_free(&c.adapter);
    hlv_adapter_config_free(&c.adapter);
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);

    assert_int_equal(hlv_context_set_memory_limit(f->ctx, 300), HLV_OK);
    assert_int_equal(read_config(f->ctx, ADAPTERS, f->directory, &c), HLV_ERROR_MEMORY);
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
}

typedef struct refused {
    kind which;
    const char *json;
    hlv_status status;
    const char *says;
} refused;

#define FORMAT HLV_ERROR_FORMAT
#define UNSUPPORTED HLV_ERROR_UNSUPPORTED

static const refused table[] = {
    {TRANSFORMERS, "", FORMAT, "not readable JSON"},
    {TRANSFORMERS, TRANSFORMER, FORMAT, "not readable JSON: line 1"},
    {TRANSFORMERS, "[]", FORMAT, "an array, and must be an object"},
    {TRANSFORMERS, "{}", FORMAT, "'_class_name' is absent"},
    {TRANSFORMERS, "{\"_class_name\":7}", FORMAT, "'_class_name' is an integer"},
    {TRANSFORMERS, "{\"_class_name\":\"FluxTransformer2DModel\"}", UNSUPPORTED, "unknown architecture"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":0}", FORMAT, "'num_layers' is 0, and must be an integer from 1"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":-3}", FORMAT, "'num_layers' is -3"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":2.5}", FORMAT, "'num_layers' is a real number"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":null}", FORMAT, "'num_layers' is null"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":4294967298}", FORMAT, "'num_layers' is 4294967298"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":99999999999999999999}", FORMAT, "not readable JSON"},
    {TRANSFORMERS, TRANSFORMER ",\"num_layers\":2,\"num_layers\":3}", FORMAT, "duplicate object key"},
    {TRANSFORMERS, TRANSFORMER ",\"attention_head_dim\":13}", FORMAT, "must be even"},
    {TRANSFORMERS, TRANSFORMER ",\"attention_head_dim\":1024,\"num_attention_heads\":1024}", FORMAT, "width above"},
    {TRANSFORMERS, TRANSFORMER ",\"freq_dim\":255}", FORMAT, "must be even"},
    {TRANSFORMERS, TRANSFORMER ",\"patch_size\":[1,2]}", FORMAT, "has 2 entries, and must have 3"},
    {TRANSFORMERS, TRANSFORMER ",\"patch_size\":[1,2,0]}", FORMAT, "'patch_size[2]' is 0"},
    {TRANSFORMERS, TRANSFORMER ",\"patch_size\":2}", FORMAT, "'patch_size' is an integer"},
    {TRANSFORMERS, TRANSFORMER ",\"image_dim\":1280}", UNSUPPORTED, "'image_dim' is not null: image conditioning"},
    {TRANSFORMERS, TRANSFORMER ",\"added_kv_proj_dim\":5120}", UNSUPPORTED, "'added_kv_proj_dim' is not null"},
    {TRANSFORMERS, TRANSFORMER ",\"qk_norm\":\"rms_norm\"}", UNSUPPORTED, "'qk_norm' is \"rms_norm\""},
    {TRANSFORMERS, TRANSFORMER ",\"eps\":0}", FORMAT, "'eps' is 0"},
    {TRANSFORMERS, TRANSFORMER ",\"eps\":NaN}", FORMAT, "not readable JSON"},
    {TRANSFORMERS, TRANSFORMER ",\"eps\":\"1e-6\"}", FORMAT, "'eps' is a string"},
    {TRANSFORMERS, TRANSFORMER ",\"cross_attn_norm\":1}", FORMAT, "'cross_attn_norm' is an integer"},
    {VAES, "{\"_class_name\":\"AutoencoderKL\"}", UNSUPPORTED, "unknown architecture"},
    {VAES, VAE ",\"is_residual\":true}", UNSUPPORTED, "'is_residual' is true"},
    {VAES, VAE ",\"patch_size\":2}", UNSUPPORTED, "'patch_size' is not null"},
    {VAES, VAE ",\"in_channels\":12}", UNSUPPORTED, "'in_channels' is 12"},
    {VAES, VAE ",\"attn_scales\":[0.5]}", UNSUPPORTED, "'attn_scales' is not empty"},
    {VAES, VAE ",\"z_dim\":65}", FORMAT, "'z_dim' is 65"},
    {VAES, VAE ",\"z_dim\":4}", FORMAT, "'latents_mean' is absent, and must have 4"},
    {VAES, VAE ",\"z_dim\":4,\"latents_mean\":[0,0,0]}", FORMAT, "'latents_mean' has 3 entries, and must have 4"},
    {VAES, VAE ",\"z_dim\":1,\"latents_mean\":[0],\"latents_std\":[0]}", FORMAT, "'latents_std[0]' is 0"},
    {VAES, VAE ",\"dim_mult\":[]}", FORMAT, "'dim_mult' has 0 entries"},
    {VAES, VAE ",\"dim_mult\":[1,1,1,1,1,1,1,1,1]}", FORMAT, "'dim_mult' has 9 entries"},
    {VAES, VAE ",\"dim_mult\":[1,2]}", FORMAT, "'temperal_downsample' is absent, and must have 1"},
    {VAES, VAE ",\"temperal_downsample\":[true]}", FORMAT, "has 1 entries, and must have 3"},
    {VAES, VAE ",\"temperal_downsample\":[true,0,1]}", FORMAT, "'temperal_downsample[1]' is an integer"},
    {TEXTS, "{\"model_type\":\"t5\"}", UNSUPPORTED, "unknown architecture: 'model_type' is \"t5\""},
    {TEXTS, TEXT ",\"dense_act_fn\":\"relu\"}", UNSUPPORTED, "'dense_act_fn' is \"relu\""},
    {TEXTS, TEXT ",\"feed_forward_proj\":\"relu\"}", UNSUPPORTED, "'feed_forward_proj' is \"relu\""},
    {TEXTS, TEXT ",\"is_gated_act\":false}", UNSUPPORTED, "'is_gated_act' is false"},
    {TEXTS, TEXT ",\"vocab_size\":0}", FORMAT, "'vocab_size' is 0"},
    {TEXTS, TEXT ",\"vocab_size\":100,\"eos_token_id\":100}", FORMAT, "'eos_token_id' is 100"},
    {TEXTS, TEXT ",\"relative_attention_num_buckets\":30}", FORMAT, "must be a multiple of 4"},
    {TEXTS, TEXT ",\"relative_attention_max_distance\":8}", FORMAT, "'relative_attention_num_buckets' is 32"},
    {TEXTS, TEXT ",\"num_heads\":1024,\"d_kv\":1024}", FORMAT, "width above"},
    {SCHEDULERS, "{\"_class_name\":\"FlowMatchEulerDiscreteScheduler\"}", UNSUPPORTED, "unknown architecture"},
    {SCHEDULERS, "{\"_class_name\":\"UniPCMultistepScheduler\"}", UNSUPPORTED, "'prediction_type' is \"epsilon\""},
    {SCHEDULERS, "{\"_class_name\":\"UniPCMultistepScheduler\",\"prediction_type\":\"flow_prediction\"}", UNSUPPORTED,
     "'use_flow_sigmas' is false"},
    {SCHEDULERS, SCHEDULER ",\"solver_type\":\"bh1\"}", UNSUPPORTED, "'solver_type' is \"bh1\""},
    {SCHEDULERS, SCHEDULER ",\"use_karras_sigmas\":true}", UNSUPPORTED, "'use_karras_sigmas' is true"},
    {SCHEDULERS, SCHEDULER ",\"disable_corrector\":[0]}", UNSUPPORTED, "'disable_corrector' is not empty"},
    {SCHEDULERS, SCHEDULER ",\"solver_order\":3}", FORMAT, "'solver_order' is 3"},
    {SCHEDULERS, SCHEDULER ",\"flow_shift\":0}", FORMAT, "'flow_shift' is 0"},
    {ADAPTERS, "{}", UNSUPPORTED, "unknown architecture"},
    {ADAPTERS, ADAPTER "}", FORMAT, "'blocks' is absent"},
    {ADAPTERS, "{\"_class_name\":\"HadamardLinearAttention\",\"format_version\":2}", UNSUPPORTED,
     "'format_version' is 2"},
    {ADAPTERS, ADAPTER ",\"num_layers\":2,\"blocks\":[{\"kind\":\"softmax\"}]}", FORMAT,
     "'num_layers' is 2, and 'blocks' has 1 entries"},
    {ADAPTERS, ADAPTER ",\"blocks\":[{\"kind\":\"softmax\"},7]}", FORMAT, "blocks[1] is an integer"},
    {ADAPTERS, BLOCK(""), FORMAT, "blocks[0]: 'kind' is absent"},
    {ADAPTERS, BLOCK("\"kind\":\"linear\""), UNSUPPORTED, "blocks[0]: 'kind' is \"linear\""},
    {ADAPTERS, BLOCK("\"kind\":\"hadamard\""), FORMAT, "'ranks' is absent"},
    {ADAPTERS, BLOCK("\"kind\":\"hadamard\",\"ranks\":[]"), FORMAT, "'ranks' has 0 entries"},
    {ADAPTERS, BLOCK("\"kind\":\"hadamard\",\"ranks\":[1,1,1,1,1]"), FORMAT, "'ranks' has 5 entries"},
    {ADAPTERS, BLOCK("\"kind\":\"hadamard\",\"ranks\":[16,257]"), FORMAT, "'ranks[1]' is 257"},
    {ADAPTERS, BLOCK(HADAMARD ",\"activation\":\"tanh\""), UNSUPPORTED, "'activation' is \"tanh\""},
    {ADAPTERS, BLOCK(HADAMARD ",\"rope\":\"during\""), FORMAT, "'rope' is \"during\""},
    {ADAPTERS, BLOCK(HADAMARD ",\"epsilon\":-1"), FORMAT, "'epsilon' is -1"},
    {ADAPTERS, BLOCK(HADAMARD ",\"decay\":0.9"), UNSUPPORTED, "'decay' is not a key"},
    {ADAPTERS, BLOCK("\"kind\":\"softmax\",\"ranks\":[16]"), UNSUPPORTED, "'ranks' is not a key"},
    {INDICES, "{\"_class_name\":\"FluxPipeline\"}", UNSUPPORTED, "unknown architecture"},
    {INDICES, "{\"_class_name\":\"WanPipeline\"}", FORMAT, "'scheduler' must be an array of two strings"},
    {INDICES, INDEX_OF("DDIMScheduler", "WanTransformer3DModel") "}", UNSUPPORTED, "'scheduler' is of class"},
    {INDICES, INDEX_OF("UniPCMultistepScheduler", "Other") "}", UNSUPPORTED, "'transformer' is of class \"Other\""},
    {INDICES, INDEX ",\"transformer_2\":[\"diffusers\",\"WanTransformer3DModel\"]}", UNSUPPORTED, "'transformer_2'"},
    {INDICES, INDEX ",\"boundary_ratio\":0.9}", UNSUPPORTED, "'boundary_ratio' is not null"},
    {INDICES, INDEX ",\"expand_timesteps\":true}", UNSUPPORTED, "'expand_timesteps' is true"},
    {INDICES, INDEX ",\"hla_defaults\":[]}", FORMAT, "'hla_defaults' is an array"},
    {INDICES, INDEX ",\"hla_defaults\":{\"fps\":0}}", FORMAT, "hla_defaults: 'fps' is 0"},
    {INDICES, INDEX ",\"hla_defaults\":{\"width\":-8}}", FORMAT, "hla_defaults: 'width' is -8"},
};

static void wrong_values_are_refused(void **state) {
    const fixture *f = *state;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        any_config config;
        char path[256];
        path_in(f, file_name(table[i].which), path);
        put_text(f, file_name(table[i].which), table[i].json);
        check_failure(f, read_config(f->ctx, table[i].which, f->directory, &config), table[i].status, path,
                      table[i].says);
        assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
    }
}

static void unreadable_files_are_named(void **state) {
    const fixture *f = *state;
    any_config config;
    char path[256];
    for (int which = TRANSFORMERS; which <= INDICES; which++) {
        path_in(f, file_name((kind)which), path);
        check_failure(f, read_config(f->ctx, (kind)which, f->directory, &config), HLV_ERROR_IO, path, "No such file");
    }
    path_in(f, "config.json", path);
    assert_int_equal(mkdir(path, 0700), 0);
    check_failure(f, read_config(f->ctx, VAES, f->directory, &config), HLV_ERROR_IO, path, "not a regular file");
    char longest[5000];
    memset(longest, 'd', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    check_failure(f, read_config(f->ctx, VAES, longest, &config), HLV_ERROR_ARGUMENT, "dddd", "too long");
}

static void big_files_are_refused_before_they_are_read(void **state) {
    const fixture *f = *state;
    char path[256];
    path_in(f, "config.json", path);
    put_text(f, "config.json", "{}");
    char *bytes = NULL;
    size_t size = 0;
    check_failure(f, hlv_file_read(f->ctx, path, 1, &bytes, &size), HLV_ERROR_FORMAT, path,
                  "has 2 bytes, more than the 1");
    assert_null(bytes);
    check_failure(f, hlv_file_read(f->ctx, "/dev/zero", 100, &bytes, &size), HLV_ERROR_IO, "/dev/zero",
                  "not a regular");
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(saved_configs_are_read),     CASE(absent_keys_take_the_defaults),
        CASE(adapters_are_read),          CASE(wrong_values_are_refused),
        CASE(unreadable_files_are_named), CASE(big_files_are_refused_before_they_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
