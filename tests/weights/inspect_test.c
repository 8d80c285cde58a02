/* hlv_inspect and the cost formulas, against PyTorch's own counts and the published model's numbers. */
#include "support.h"

#include "hlv/model.h"
#include "video/core/context.h"
#include "video/weights/cost.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Wan2.1-T2V-1.3B, from its published configs. */
static const hlv_transformer_config wan = {.patch_size = {1, 2, 2},
                                           .num_attention_heads = 12,
                                           .attention_head_dim = 128,
                                           .in_channels = 16,
                                           .out_channels = 16,
                                           .text_dim = 4096,
                                           .freq_dim = 256,
                                           .ffn_dim = 8960,
                                           .num_layers = 30,
                                           .cross_attn_norm = true,
                                           .qk_norm = true,
                                           .eps = 1e-6,
                                           .rope_max_seq_len = 1024};
static const hlv_text_config wan_text = {.d_model = 4096,
                                         .d_ff = 10240,
                                         .d_kv = 64,
                                         .num_heads = 64,
                                         .num_layers = 24,
                                         .vocab_size = 256384,
                                         .relative_attention_num_buckets = 32,
                                         .relative_attention_max_distance = 128};
static const hlv_vae_config wan_vae = {.base_dim = 96,
                                       .decoder_base_dim = 96,
                                       .z_dim = 16,
                                       .num_res_blocks = 2,
                                       .stages = 4,
                                       .dim_mult = {1, 2, 4, 4},
                                       .temporal_downsample = {false, true, true}};

/* The numbers of a line "name a [b]" of costs.txt, which PyTorch counted. */
static double counted(const char *name, int column) {
    FILE *file = fopen(GOLDEN "costs.txt", "r");
    assert_non_null(file);
    char line[200];
    double numbers[2] = {NAN, NAN};
    size_t length = strlen(name);
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, name, length) != 0 || line[length] != ' ') continue;
        char *rest = NULL;
        numbers[0] = strtod(line + length, &rest);
        numbers[1] = strtod(rest, NULL);
    }
    fclose(file);
    if (isnan(numbers[column])) fail_msg("costs.txt lacks %s", name);
    return numbers[column];
}

static void check_size(const char *name, hlv_cost_size size) {
    assert_true((double)size.tensors == counted(name, 0));
    assert_true((double)size.parameters == counted(name, 1));
}

static void published_sizes_are_counted(void **state) {
    (void)state;
    check_size("transformer", hlv_transformer_size(&wan));
    check_size("text_encoder", hlv_text_size(&wan_text));
    check_size("vae", hlv_vae_size(&wan_vae));
}

#define NEAR(found, wanted, tolerance)                                                                                 \
    do {                                                                                                               \
        double near_found = (found), near_wanted = (wanted);                                                           \
        if (!(fabs(near_found - near_wanted) <= (tolerance)))                                                          \
            fail_msg("%s is %g, not %g", #found, near_found, near_wanted);                                             \
    } while (0)

/* The table of the published model at 832x480, in TFLOP, with the rounding of its last digit. */
static void published_costs_are_reached(void **state) {
    const fixture *f = *state;
    static const struct {
        int frames;
        int64_t tokens;
        double self, cross, feed, softmax, attended, total, total_tolerance;
    } table[] = {
        {81, 32760, 18.55, 9.42, 54.10, 197.8, 3.09, 283, 0.5},
        {33, 14040, 7.95, 4.12, 23.19, 36.33, 1.33, 72.9, 0.05},
        {17, 7800, 4.42, 2.35, 12.88, 11.21, 0.74, 31.6, 0.05},
        {1, 1560, 0.88, 0.59, 2.58, 0.45, 0.15, 4.65, 0.03},
    };
    hlv_clip clip;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        assert_int_equal(hlv_clip_measure(f->ctx, &wan, &wan_vae, 832, 480, table[i].frames, &clip), HLV_OK);
        assert_int_equal(clip.tokens, table[i].tokens);
        hlv_forward_cost cost = hlv_transformer_cost(&wan, NULL, clip.tokens, 512);
        NEAR(cost.self_projections / 1e12, table[i].self, 0.0051);
        NEAR(cost.cross_projections / 1e12, table[i].cross, 0.0051);
        NEAR(cost.feed_forward / 1e12, table[i].feed, 0.0051);
        NEAR(cost.softmax / 1e12, table[i].softmax, i ? 0.0051 : 0.051);
        NEAR(cost.cross_attention / 1e12, table[i].attended, 0.0051);
        NEAR(hlv_forward_total(&cost, false) / 1e12, table[i].total, table[i].total_tolerance);
        assert_true(cost.adapted == cost.softmax);
    }
    NEAR(hlv_text_cost(&wan_text, 512) / 1e12, 4.84, 0.0051);
    assert_int_equal(hlv_clip_measure(f->ctx, &wan, &wan_vae, 832, 480, 81, &clip), HLV_OK);
    NEAR(hlv_vae_decode_cost(&wan_vae, &clip) / 1e12, 275, 0.51);
    NEAR((double)hlv_vae_history_floats(&wan_vae, &clip) / 1e6, 944, 0.51);
}

/* HLA in place of softmax at 32760 tokens: 6.2 TFLOP with 2 x 32, 24.7 with 2 x 64, and the maps. */
static void hadamard_costs_are_reached(void **state) {
    (void)state;
    for (int rank = 32; rank <= 64; rank *= 2) {
        hlv_block_config blocks[30];
        for (int i = 0; i < 30; i++)
            blocks[i] = (hlv_block_config){.hadamard = true, .factors = 2, .rank = {rank, rank}};
        const hlv_adapter_config adapter = {.num_layers = 30, .blocks = blocks};
        hlv_forward_cost cost = hlv_transformer_cost(&wan, &adapter, 32760, 512);
        double maps = 30.0 * 2 * 2 * 32760 * 12 * 128 * 2 * rank;
        NEAR((cost.adapted - maps) / 1e12, rank == 32 ? 6.2 : 24.7, 0.051);
        NEAR((hlv_forward_total(&cost, false) - hlv_forward_total(&cost, true)) / 1e12,
             (cost.softmax - cost.adapted) / 1e12, 1e-6);
        /* few tokens: the quadratic form is the cheaper one */
        cost = hlv_transformer_cost(&wan, &adapter, 16, 512);
        NEAR(cost.adapted, 30.0 * (2 * 2 * 16 * 12 * 128 * 2 * rank + 2 * 16 * 16 * 12 * (2 * rank + 128)), 1);
    }
}

static json_t *inspect_json(const fixture *f, const char *path, int width, int height, int frames) {
    char *text = NULL;
    if (hlv_inspect(f->ctx, path, width, height, frames, true, &text) != HLV_OK)
        fail_msg("%s", hlv_context_error(f->ctx));
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
    free(text);
    assert_non_null(root);
    return root;
}

static double number(const json_t *root, const char *group, const char *key) {
    return json_number_value(json_object_get(group ? json_object_get(root, group) : root, key));
}

/* The operations of a small model are, to the last one, those PyTorch counts while it runs. */
static void counts_agree_with_pytorch(void **state) {
    const fixture *f = *state;
    json_t *root = inspect_json(f, GOLDEN, 48, 32, 9);
    NEAR(number(root, "flops_forward", "total_softmax"), counted("forward", 0), 0.5);
    NEAR(number(root, NULL, "flops_text"), counted("encode", 0), 0.5);
    NEAR(number(root, NULL, "flops_decode"), counted("decode", 0), 0.5);
    assert_int_equal(number(root, "clip", "tokens"), 5 * 4 * 6);
    const json_t *parts = json_object_get(root, "parts");
    assert_int_equal(json_array_size(parts), 3);
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        NEAR(number(part, NULL, "parameters"), number(part, NULL, "config_parameters"), 0);
        NEAR(number(part, NULL, "tensors"), number(part, NULL, "config_tensors"), 0);
        assert_string_equal(json_string_value(json_object_get(part, "dtype")), "F32");
        assert_true(number(part, NULL, "bytes") > 4 * number(part, NULL, "parameters"));
    }
    assert_int_equal(json_array_size(json_object_get(root, "attention")), 2);
    json_decref(root);
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
}

/* Numbers of a golden part's tensors whose names begin with one of two texts. */
static double numbers_of(const fixture *f, const char *part, const char *first, const char *second) {
    hlv_weights *weights = NULL;
    assert_int_equal(hlv_weights_open(f->ctx, part, &weights), HLV_OK);
    double sum = 0;
    for (int64_t i = 0; i < hlv_weights_count(weights); i++) {
        const hlv_weight *weight = hlv_weights_at(weights, i);
        if (strncmp(weight->name, first, strlen(first)) == 0 || strncmp(weight->name, second, strlen(second)) == 0)
            sum += (double)weight->count;
    }
    hlv_weights_free(weights);
    return sum;
}

/* What stands in memory at each stage, seen in the two bytes that bf16 saves for each weight: of the text encoder all
 * but the embedding; the transformer; the transformer and the VAE's decoder. */
static void memory_is_that_of_the_stages(void **state) {
    const fixture *f = *state;
    json_t *root = inspect_json(f, GOLDEN, 48, 32, 9);
    const json_t *memory = json_object_get(root, "memory_bytes");
    double transformer = numbers_of(f, GOLDEN "transformer", "", "");
    const struct {
        const char *stage;
        double weights;
    } stages[] = {{"text", numbers_of(f, GOLDEN "text_encoder", "encoder.", "encoder.")},
                  {"sample", transformer},
                  {"decode", transformer + numbers_of(f, GOLDEN "vae", "decoder.", "post_quant_conv.")}};
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
        double whole = number(memory, "f32", stages[i].stage), half = number(memory, "bf16", stages[i].stage);
        NEAR(whole - half, 2 * stages[i].weights, 0.5);
        assert_true(half >= 2 * stages[i].weights);
    }
    NEAR(number(memory, "f32", "peak"), fmax(number(memory, "f32", "sample"), number(memory, "f32", "decode")), 0);
    json_decref(root);
}

/* A model directory under the fixture's, its parts those of the golden one, with an adapter of its own. */
static void make_adapted(const fixture *f, const char *config) {
    static const char *const parts[] = {"transformer", "vae", "text_encoder", "scheduler", "model_index.json"};
    char path[256];
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        char target[512];
        snprintf(target, sizeof target, GOLDEN "%s", parts[i]);
        path_in(f, parts[i], path);
        assert_int_equal(symlink(target, path), 0);
    }
    path_in(f, "hla", path);
    assert_int_equal(mkdir(path, 0700), 0);
    put_text(f, "hla/config.json", config);
    static const float zeros[2 * 3 * 12];
    static const hlv_tensor_out tensors[] = {
        {"blocks.1.attn1.query_map.0.weight", HLA_F32, 3, {2, 3, 12}, zeros},
        {"blocks.1.attn1.query_map.1.weight", HLA_F32, 3, {2, 2, 12}, zeros},
        {"blocks.1.attn1.key_map.0.weight", HLA_F32, 3, {2, 3, 12}, zeros},
        {"blocks.1.attn1.key_map.1.weight", HLA_F32, 3, {2, 2, 12}, zeros},
        {"blocks.1.attn1.query_map.0.bias", HLA_BF16, 2, {2, 3}, zeros},
        {"blocks.1.attn1.query_map.1.bias", HLA_F16, 2, {2, 2}, zeros},
        {"blocks.1.attn1.key_map.0.bias", HLA_F32, 2, {2, 3}, zeros},
        {"blocks.1.attn1.key_map.1.bias", HLA_F32, 2, {2, 2}, zeros},
        {"blocks.1.attn1.to_q.bias", HLA_F32, 1, {24}, zeros},
    };
    path_in(f, "hla/model.safetensors", path);
    assert_int_equal(hlv_safetensors_write(f->ctx, path, tensors, 9, NULL, 0), HLV_OK);
}

#define ADAPTER(blocks) "{\"_class_name\":\"HadamardLinearAttention\",\"format_version\":1,\"blocks\":[" blocks "]}"

static void adapters_are_shown(void **state) {
    const fixture *f = *state;
    make_adapted(f,
                 ADAPTER("{\"kind\":\"softmax\"},{\"kind\":\"hadamard\",\"ranks\":[3,2],\"activation\":\"softplus\"}"));
    json_t *root = inspect_json(f, f->directory, 48, 32, 9);
    const json_t *part = json_array_get(json_object_get(root, "parts"), 3);
    assert_string_equal(json_string_value(json_object_get(part, "name")), "hla");
    assert_int_equal(number(part, NULL, "tensors"), 9);
    assert_int_equal(number(part, NULL, "config_tensors"), 8);
    assert_int_equal(number(part, NULL, "config_parameters"), 2 * 2 * (3 + 2) * (12 + 1));
    const json_t *blocks = json_object_get(root, "attention");
    assert_string_equal(json_string_value(json_object_get(json_array_get(blocks, 0), "kind")), "softmax");
    assert_string_equal(json_string_value(json_object_get(json_array_get(blocks, 1), "activation")), "softplus");
    double softmax_block = 4.0 * 120 * 120 * 24, maps = 2.0 * 2 * 120 * 2 * 12 * 5, states = 2.0 * 2 * 120 * 2 * 6 * 13;
    NEAR(number(root, "flops_forward", "self_attention_adapted"), softmax_block + maps + states, 0.5);
    json_decref(root);

    char *text = NULL;
    assert_int_equal(hlv_inspect(f->ctx, f->directory, 0, 0, 0, false, &text), HLV_OK);
    assert_non_null(strstr(text, "self-attention of block 0: softmax\n"));
    assert_non_null(strstr(text, "self-attention of block 1: hadamard, ranks 3 x 2, softplus, normalised\n"));
    assert_non_null(strstr(text, "1 of its tensors replace"));
    assert_non_null(strstr(text, "F32, BF16, F16"));
    assert_non_null(strstr(text, "832x480, 81 frames: latents 4 x 41 x 120 x 208, 255,840 tokens"));
    free(text);
}

/* The adapter's directory by itself: its blocks, then its tensors. */
static void adapters_alone_are_shown(void **state) {
    const fixture *f = *state;
    make_adapted(f, ADAPTER("{\"kind\":\"softmax\"},{\"kind\":\"hadamard\",\"ranks\":[3,2]}"));
    char path[256], *text = NULL;
    path_in(f, "hla", path);
    json_t *root = inspect_json(f, path, 0, 0, 0);
    assert_string_equal(json_string_value(json_object_get(root, "kind")), "adapter");
    const json_t *blocks = json_object_get(root, "attention");
    assert_int_equal(json_array_size(blocks), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(blocks, 1), "kind")), "hadamard");
    assert_int_equal(json_array_size(json_object_get(root, "tensors")), 9);
    json_decref(root);
    assert_int_equal(hlv_inspect(f->ctx, path, 0, 0, 0, false, &text), HLV_OK);
    assert_non_null(strstr(text, "hla: HadamardLinearAttention for a transformer of 2 blocks\n"));
    assert_non_null(strstr(text, "self-attention of block 1: hadamard, ranks 3 x 2, relu, normalised\n"));
    assert_non_null(strstr(text, "blocks.1.attn1.key_map.1.bias\n"));
    free(text);
    put_text(f, "hla/config.json", ADAPTER("{\"kind\":\"linear\"}"));
    check_failure(f, hlv_inspect(f->ctx, path, 0, 0, 0, false, &text), HLV_ERROR_UNSUPPORTED, "hla/config.json",
                  "'kind' is \"linear\"");
    assert_null(text);
    assert_int_equal(hlv_inspect(f->ctx, GOLDEN "transformer", 0, 0, 0, false, &text), HLV_OK); /* another class */
    assert_null(strstr(text, "blocks\n"));
    free(text);
}

static void mismatched_parts_are_refused(void **state) {
    const fixture *f = *state;
    make_adapted(f, ADAPTER("{\"kind\":\"softmax\"}"));
    char *text = NULL;
    check_failure(f, hlv_inspect(f->ctx, f->directory, 0, 0, 0, false, &text), HLV_ERROR_FORMAT, "hla: is for 1 blocks",
                  "the transformer has 2");
    assert_null(text);
    put_text(f, "hla/config.json", "{");
    check_failure(f, hlv_inspect(f->ctx, f->directory, 0, 0, 0, true, &text), HLV_ERROR_FORMAT, "hla/config.json",
                  "not readable JSON");
    char path[256];
    path_in(f, "vae", path);
    assert_int_equal(unlink(path), 0);
    check_failure(f, hlv_inspect(f->ctx, f->directory, 0, 0, 0, true, &text), HLV_ERROR_IO, "vae/config.json",
                  "cannot be opened");
}

static void sizes_are_checked(void **state) {
    const fixture *f = *state;
    static const struct {
        int width, height, frames;
        const char *says;
    } wrong[] = {
        {50, 32, 9, "width is 50, and must be a multiple of 8"},
        {-48, 32, 9, "width is -48"},
        {2000000000, 32, 9, "width is 2000000000"},
        {48, 36, 9, "height is 36, and must be a multiple of 8"},
        {48, 32, 8, "frames is 8, and must be 2k+1"},
        {48, 32, -1, "frames is -1"},
        {48, 32, 2000000001, "frames is 2000000001"},
    };
    char *text = NULL;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        hlv_status status = hlv_inspect(f->ctx, GOLDEN, wrong[i].width, wrong[i].height, wrong[i].frames, false, &text);
        check_failure(f, status, HLV_ERROR_ARGUMENT, wrong[i].says, "");
        assert_null(text);
    }
    check_failure(f, hlv_inspect(f->ctx, "", 0, 0, 0, false, &text), HLV_ERROR_ARGUMENT, "no path", "");
    assert_int_equal(hlv_inspect(NULL, GOLDEN, 0, 0, 0, false, &text), HLV_ERROR_ARGUMENT);
}

static void single_files_are_listed(void **state) {
    const fixture *f = *state;
    json_t *root = inspect_json(f, GOLDEN "dtypes.safetensors", 0, 0, 0);
    const json_t *tensors = json_object_get(root, "tensors"), *first = json_array_get(tensors, 0);
    assert_int_equal(json_array_size(tensors), 8);
    assert_string_equal(json_string_value(json_object_get(first, "name")), "brain");
    assert_string_equal(json_string_value(json_object_get(first, "dtype")), "BF16");
    assert_int_equal(number(root, NULL, "parameters"), 65536 + 2062 + 105 + 1 + 0 + 6 + 3 + 5);
    assert_string_equal(json_string_value(json_object_get(json_object_get(root, "metadata"), "note")), "Grüße");
    json_decref(root);

    char *text = NULL;
    assert_int_equal(hlv_inspect(f->ctx, GOLDEN "dtypes.safetensors", 0, 0, 0, false, &text), HLV_OK);
    assert_non_null(strstr(text, "[3, 5, 7]"));
    assert_non_null(strstr(text, "metadata note: Grüße\n"));
    assert_non_null(strstr(text, ": 8 tensors, 67,718 numbers, 136.26 kB in 1 file\n"));
    free(text);
    check_failure(f, hlv_inspect(f->ctx, GOLDEN "half.f32", 0, 0, 0, false, &text), HLV_ERROR_FORMAT, "half.f32", ":");
    check_failure(f, hlv_inspect(f->ctx, f->directory, 0, 0, 0, true, &text), HLV_ERROR_IO, f->directory, "no weights");
    assert_null(text);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(published_sizes_are_counted), CASE(published_costs_are_reached),  CASE(hadamard_costs_are_reached),
        CASE(counts_agree_with_pytorch),   CASE(memory_is_that_of_the_stages), CASE(adapters_are_shown),
        CASE(adapters_alone_are_shown),    CASE(mismatched_parts_are_refused), CASE(sizes_are_checked),
        CASE(single_files_are_listed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
