/* The UMT5 encoder against transformers' UMT5EncoderModel, on random checkpoints that save_pretrained wrote. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "tests/text/golden.h"
#include "video/text/text.h"

#define MOST 200

static const char *const configs[] = {"sharded", "wide_heads", "bf16", "f16_renamed"};

static hlv_context *make_context(int threads) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    assert_int_equal(hlv_context_set_threads(ctx, threads), HLV_OK);
    return ctx;
}

static hlv_text_encoder *open_golden(hlv_context *ctx, const char *config, hla_dtype dtype) {
    char path[4096];
    (void)snprintf(path, sizeof path, GOLDEN "encoder_%s", config);
    hlv_text_encoder *encoder = NULL;
    if (hlv_text_encoder_open(ctx, path, dtype, &encoder) != HLV_OK) fail_msg("%s", hlv_context_error(ctx));
    return encoder;
}

static int read_ids(int32_t ids[MOST], const json_t *list) {
    size_t count = json_array_size(list);
    assert_in_range(count, 1, MOST);
    for (size_t i = 0; i < count; i++)
        ids[i] = (int32_t)json_integer_value(json_array_get(list, i));
    return (int)count;
}

/* |found - wanted| / |wanted|, NaN where anything is. */
static double relative_error(const float *found, const float *wanted, int64_t count) {
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)found[i] - (double)wanted[i];
        difference += d * d;
        size += (double)wanted[i] * (double)wanted[i];
    }
    return sqrt(difference / size);
}

/* The largest error of all lengths of a config. */
static double config_error(hlv_context *ctx, const char *config, hla_dtype dtype) {
    char path[4096], name[64];
    (void)snprintf(path, sizeof path, GOLDEN "encoder_%s.safetensors", config);
    hlv_weights *golden = NULL;
    assert_int_equal(hlv_weights_open(ctx, path, &golden), HLV_OK);
    json_t *all_ids = golden_json("encoder_ids.json"), *list;
    hlv_text_encoder *encoder = open_golden(ctx, config, dtype);
    int64_t width = hlv_text_encoder_config(encoder)->d_model;
    double worst = 0;
    const char *length;
    int lengths = 0;
    json_object_foreach(json_object_get(all_ids, config), length, list) {
        int32_t ids[MOST];
        int count = read_ids(ids, list);
        (void)snprintf(name, sizeof name, "out_%s", length);
        const hlv_weight *wanted = hlv_weights_find(golden, name);
        assert_non_null(wanted);
        assert_int_equal(wanted->count, count * width);
        float *out = malloc((size_t)(count * width) * sizeof *out);
        memset(out, 0xFF, (size_t)(count * width) * sizeof *out);
        if (hlv_text_encoder_forward(encoder, out, ids, count) != HLV_OK) fail_msg("%s", hlv_context_error(ctx));
        double error = relative_error(out, wanted->data, wanted->count);
        if (!(error <= worst)) worst = error;
        free(out);
        lengths++;
    }
    assert_int_equal(lengths, 4);
    hlv_text_encoder_free(encoder);
    hlv_weights_free(golden);
    json_decref(all_ids);
    print_message("%s: relative error %.2e\n", config, worst);
    return worst;
}

static void outputs_are_those_of_the_reference(void **state) {
    (void)state;
    hlv_context *ctx = make_context(2);
    for (size_t i = 0; i < sizeof configs / sizeof *configs; i++)
        assert_true(config_error(ctx, configs[i], HLA_F32) <= 1e-4);
    assert_int_equal(hlv_context_current_bytes(ctx), 0);
    hlv_context_free(ctx);
}

/* Eight bits of mantissa in every product's operands: 2^-9 each, over a few layers. */
static void bf16_products_stay_near(void **state) {
    (void)state;
    hlv_context *ctx = make_context(2);
    assert_true(config_error(ctx, "sharded", HLA_BF16) <= 3e-2);
    hlv_context_free(ctx);
}

static void threads_do_not_change_a_bit(void **state) {
    (void)state;
    float out[2][MOST * 64];
    json_t *all_ids = golden_json("encoder_ids.json");
    int32_t ids[MOST];
    int count = read_ids(ids, json_object_get(json_object_get(all_ids, "wide_heads"), "200"));
    size_t bytes = 0;
    for (int run = 0; run < 2; run++) {
        hlv_context *ctx = make_context(run == 0 ? 1 : 3);
        hlv_text_encoder *encoder = open_golden(ctx, "wide_heads", HLA_F32);
        bytes = (size_t)count * (size_t)hlv_text_encoder_config(encoder)->d_model * sizeof(float);
        assert_true(bytes <= sizeof out[run]);
        memset(out[run], run == 0 ? 0xFF : 0x7F, bytes);
        assert_int_equal(hlv_text_encoder_forward(encoder, out[run], ids, count), HLV_OK);
        hlv_text_encoder_free(encoder);
        hlv_context_free(ctx);
    }
    assert_memory_equal(out[0], out[1], bytes);
    json_decref(all_ids);
}

static void wrong_ids_are_refused(void **state) {
    (void)state;
    hlv_context *ctx = make_context(1);
    hlv_text_encoder *encoder = open_golden(ctx, "bf16", HLA_F32);
    float out[2 * 40];
    const int32_t beyond[] = {3, 97}, below[] = {-1, 3};
    assert_int_equal(hlv_text_encoder_forward(encoder, out, beyond, 2), HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "token 1 has the id 97"));
    assert_non_null(strstr(hlv_context_error(ctx), "vocab_size is 97"));
    assert_int_equal(hlv_text_encoder_forward(encoder, out, below, 2), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_text_encoder_forward(encoder, out, beyond, 0), HLV_ERROR_ARGUMENT);
    hlv_text_encoder_free(encoder);
    hlv_context_free(ctx);
}

/* Less and less memory: loading or running fails with its own status, and nothing is left behind. */
static void running_out_of_memory_is_said(void **state) {
    (void)state;
    hlv_context *ctx = make_context(1);
    hlv_text_encoder *encoder = open_golden(ctx, "wide_heads", HLA_F32);
    int64_t loaded = hlv_context_current_bytes(ctx);
    const int32_t ids[MOST] = {5};
    float *out = malloc((size_t)MOST * 24 * sizeof *out);
    for (int64_t room = 1; room <= 4096 * 16; room *= 16) {
        assert_int_equal(hlv_context_set_memory_limit(ctx, loaded + room), HLV_OK);
        assert_int_equal(hlv_text_encoder_forward(encoder, out, ids, MOST), HLV_ERROR_MEMORY);
        assert_int_not_equal(strlen(hlv_context_error(ctx)), 0);
        assert_int_equal(hlv_context_current_bytes(ctx), loaded);
    }
    assert_int_equal(hlv_context_set_memory_limit(ctx, 0), HLV_OK);
    assert_int_equal(hlv_text_encoder_forward(encoder, out, ids, MOST), HLV_OK);
    hlv_text_encoder_free(encoder);
    for (int64_t limit = 1; limit < loaded; limit += loaded / 8) {
        assert_int_equal(hlv_context_set_memory_limit(ctx, limit), HLV_OK);
        assert_int_equal(hlv_text_encoder_open(ctx, GOLDEN "encoder_wide_heads", HLA_F32, &encoder), HLV_ERROR_MEMORY);
        assert_null(encoder);
        assert_int_equal(hlv_context_current_bytes(ctx), 0);
    }
    free(out);
    hlv_context_free(ctx);
}

/* A copy of a golden file into a fresh directory. */
static void copy_file(const char *from, const char *directory, const char *name) {
    char path[4096];
    size_t size;
    char *data = golden_bytes(from, &size);
    (void)snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(data);
}

static void a_checkpoint_that_does_not_fit_is_refused(void **state) {
    (void)state;
    hlv_context *ctx = make_context(1);
    char directory[] = "/tmp/hlv_text_XXXXXX", command[4096];
    assert_non_null(mkdtemp(directory));
    copy_file("encoder_wide_heads/config.json", directory, "config.json");
    copy_file("encoder_bf16/model.safetensors", directory, "model.safetensors");
    hlv_text_encoder *encoder = (hlv_text_encoder *)(uintptr_t)1;
    assert_int_equal(hlv_text_encoder_open(ctx, directory, HLA_F32, &encoder), HLV_ERROR_FORMAT);
    assert_null(encoder);
    assert_non_null(strstr(hlv_context_error(ctx), "encoder.block.2.layer.1.DenseReluDense.wo.weight"));
    assert_non_null(strstr(hlv_context_error(ctx), "shared.weight"));
    assert_int_equal(hlv_context_current_bytes(ctx), 0);
    (void)snprintf(command, sizeof command, "rm -r %s", directory);
    assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c): a path made here */
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(outputs_are_those_of_the_reference),
        cmocka_unit_test(bf16_products_stay_near),
        cmocka_unit_test(threads_do_not_change_a_bit),
        cmocka_unit_test(wrong_ids_are_refused),
        cmocka_unit_test(running_out_of_memory_is_said),
        cmocka_unit_test(a_checkpoint_that_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
