/* Reading what the safetensors library, PyTorch and diffusers wrote, against PyTorch's own reading of it. */
#include "support.h"

#include "video/core/context.h"
#include "video/weights/names.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static hlv_weights *open_golden(const fixture *f, const char *name) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    hlv_weights *weights = NULL;
    if (hlv_weights_open(f->ctx, path, &weights) != HLV_OK) fail_msg("%s", hlv_context_error(f->ctx));
    return weights;
}

/* Equal bits, or both not a number (a conversion may quiet a signalling one). */
static void check_same(const float *found, const float *wanted, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (isnan(found[i]) && isnan(wanted[i])) continue;
        if (memcmp(&found[i], &wanted[i], sizeof *found) != 0)
            fail_msg("element %lld is %a, not %a", (long long)i, (double)found[i], (double)wanted[i]);
    }
}

static void check_conversion(const fixture *f, const hlv_weights *weights, const char *name, int64_t count) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s.f32", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    float *wanted = malloc((size_t)count * sizeof *wanted);
    assert_non_null(wanted);
    assert_int_equal(fread(wanted, sizeof *wanted, (size_t)count, file), count);
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
    const hlv_weight *weight = hlv_weights_find(weights, name);
    assert_non_null(weight);
    assert_int_equal(weight->count, count);
    float *found = hlv_weight_load_f32(f->ctx, weight);
    assert_non_null(found);
    check_same(found, wanted, count);
    hlv_free(f->ctx, found);
    free(wanted);
}

static void every_dtype_is_read(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = open_golden(f, "dtypes.safetensors");
    assert_int_equal(hlv_weights_count(weights), 8);
    check_conversion(f, weights, "half", 65536); /* all there are */
    check_conversion(f, weights, "brain", 2048 + 14);
    const hlv_weight *half = hlv_weights_find(weights, "half");
    assert_int_equal(half->dtype, HLA_F16);
    assert_int_equal(half->ndim, 2);
    assert_int_equal(half->shape[1], 256);
    assert_int_equal(hlv_weights_find(weights, "brain")->dtype, HLA_BF16);
    const hlv_weight *scalar = hlv_weights_find(weights, "scalar");
    assert_int_equal(scalar->ndim, 0);
    float value = NAN;
    hlv_weight_to_f32(scalar, &value);
    assert_true(value == 2.5f);
    assert_int_equal(hlv_weights_find(weights, "empty")->count, 0);
    hlv_weights_free(weights);
}

static void other_dtypes_are_only_listed(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = open_golden(f, "dtypes.safetensors");
    assert_null(hlv_weights_find(weights, "index"));
    const hlv_weight *index = hlv_weights_find_any(weights, "index");
    assert_non_null(index);
    assert_false(index->usable);
    assert_string_equal(index->dtype_name, "I64");
    assert_int_equal(index->bytes, 48);
    assert_string_equal(hlv_weights_find_any(weights, "mask")->dtype_name, "BOOL");
    assert_null(hlv_weights_find_any(weights, "absent"));
    assert_null(hlv_weights_at(weights, -1));
    assert_null(hlv_weights_at(weights, 8));
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    assert_null(hlv_loader_get(loader, 1, (int64_t[]){6}, "index"));
    check_failure(f, hlv_loader_finish(loader), HLV_ERROR_FORMAT, "'index' has dtype I64", "dtypes.safetensors");
    hlv_weights_free(weights);
}

static void metadata_is_read(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = open_golden(f, "dtypes.safetensors");
    assert_string_equal(hlv_weights_metadata(weights, "note"), "Grüße");
    assert_string_equal(hlv_weights_metadata(weights, "format"), "pt");
    assert_null(hlv_weights_metadata(weights, "absent"));
    const char *key = NULL, *value = NULL;
    assert_int_equal(hlv_weights_metadata_at(weights, 1, &key, &value), 2);
    assert_string_equal(value, hlv_weights_metadata(weights, key));
    hlv_weights_free(weights);
}

/* A line of make_weights.py's manifest: name, axes, sizes, first, last, sum. */
static void check_line(const fixture *f, const hlv_weights *weights, char *line) {
    const char *name = strtok(line, " ");
    const hlv_weight *weight = hlv_weights_find(weights, name);
    if (!weight) fail_msg("'%s' is missing", name);
    assert_int_equal(weight->ndim, atoi(strtok(NULL, " ")));
    for (int i = 0; i < weight->ndim; i++)
        assert_int_equal(weight->shape[i], atoll(strtok(NULL, " ")));
    double first = atof(strtok(NULL, " ")), last = atof(strtok(NULL, " ")), sum = atof(strtok(NULL, " "));
    float *values = hlv_weight_load_f32(f->ctx, weight);
    assert_non_null(values);
    double found = 0, magnitude = 0;
    for (int64_t i = 0; i < weight->count; i++) {
        found += (double)values[i];
        magnitude += fabs((double)values[i]);
    }
    assert_true((double)values[0] == first);
    assert_true((double)values[weight->count - 1] == last);
    assert_true(fabs(found - sum) <= 1e-12 * magnitude);
    hlv_free(f->ctx, values);
}

static void check_manifest(const fixture *f, const hlv_weights *weights, const char *manifest) {
    FILE *file = fopen(manifest, "r");
    assert_non_null(file);
    char line[512];
    int64_t lines = 0;
    for (; fgets(line, sizeof line, file); lines++)
        check_line(f, weights, line);
    fclose(file);
    assert_in_range(lines, 50, 200);
    assert_int_equal(hlv_weights_count(weights), lines);
}

static void diffusers_checkpoints_are_read(void **state) {
    const fixture *f = *state;
    hlv_weights *shards = open_golden(f, "transformer"); /* an index and four files */
    check_manifest(f, shards, GOLDEN "transformer.txt");
    int64_t bytes = 0;
    assert_int_equal(hlv_weights_files(shards, &bytes), 4);
    assert_in_range(bytes, 60000, 120000);
    hlv_weights_free(shards);
    hlv_weights *single = open_golden(f, "transformer_bf16");
    check_manifest(f, single, GOLDEN "transformer_bf16.txt");
    hlv_weights_free(single);
    single = open_golden(f, "transformer_bf16/diffusion_pytorch_model.safetensors");
    check_manifest(f, single, GOLDEN "transformer_bf16.txt");
    hlv_weights_free(single);
}

static void check_pairs(const char *path, hlv_name_style style, int expected) {
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    char original[256], wanted[256], prefixed[300], renamed[300];
    int lines = 0;
    for (; fscanf(file, "%255s %255s", original, wanted) == 2; lines++) {
        if (!hlv_names_rename(style, original, renamed, sizeof renamed)) strcpy(renamed, original);
        assert_string_equal(renamed, wanted);
        snprintf(prefixed, sizeof prefixed, "model.diffusion_model.%s", original);
        assert_true(hlv_names_rename(style, prefixed, renamed, sizeof renamed));
        assert_string_equal(renamed, wanted);
    }
    fclose(file);
    assert_int_equal(lines, expected);
}

static void names_agree_with_diffusers(void **state) {
    (void)state;
    check_pairs(GOLDEN "names_transformer.txt", HLV_NAMES_WAN_TRANSFORMER, 15 + 2 * 27);
    check_pairs(GOLDEN "names_vae.txt", HLV_NAMES_WAN_VAE, 194);
    assert_int_equal(hlv_names_detect("head.modulation"), HLV_NAMES_WAN_TRANSFORMER);
    assert_int_equal(hlv_names_detect("model.diffusion_model.head.modulation"), HLV_NAMES_WAN_TRANSFORMER);
    assert_int_equal(hlv_names_detect("decoder.middle.0.residual.0.gamma"), HLV_NAMES_WAN_VAE);
    assert_int_equal(hlv_names_detect("scale_shift_table"), HLV_NAMES_AS_THEY_ARE);
    char renamed[32];
    assert_false(hlv_names_rename(HLV_NAMES_AS_THEY_ARE, "head.modulation", renamed, sizeof renamed));
    assert_false(hlv_names_rename(HLV_NAMES_WAN_TRANSFORMER, "blocks.x.modulation", renamed, sizeof renamed));
    assert_false(hlv_names_rename(HLV_NAMES_WAN_TRANSFORMER, "blocks.0.modulation", renamed, 8)); /* no room */
}

static void original_names_are_turned_at_opening(void **state) {
    const fixture *f = *state;
    char path[256];
    path_in(f, "original.safetensors", path);
    float data[4] = {1, 2, 3, 4};
    hlv_tensor_out tensors[] = {
        {"model.diffusion_model.blocks.11.self_attn.o.weight", HLA_F32, 2, {2, 2}, data},
        {"model.diffusion_model.head.modulation", HLA_F32, 1, {4}, data},
        {"model.diffusion_model.patch_embedding.bias", HLA_F32, 1, {4}, data},
    };
    assert_int_equal(hlv_safetensors_write(f->ctx, path, tensors, 3, NULL, 0), HLV_OK);
    hlv_weights *weights = NULL;
    assert_int_equal(hlv_weights_open(f->ctx, path, &weights), HLV_OK);
    assert_non_null(hlv_weights_find(weights, "blocks.11.attn1.to_out.0.weight"));
    assert_non_null(hlv_weights_find(weights, "scale_shift_table"));
    assert_non_null(hlv_weights_find(weights, "patch_embedding.bias"));
    hlv_weights_free(weights);

    tensors[1].name = "head.modulation"; /* the same tensor under both spellings */
    tensors[2].name = "scale_shift_table";
    assert_int_equal(hlv_safetensors_write(f->ctx, path, tensors, 3, NULL, 0), HLV_OK);
    check_failure(f, hlv_weights_open(f->ctx, path, &weights), HLV_ERROR_FORMAT, "original.safetensors",
                  "'scale_shift_table' is there twice");
    assert_null(weights);
}

/* With every limit from nothing to enough, opening either works or says that memory ran out, and holds nothing. */
static void running_out_of_memory_is_survived(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = NULL;
    int refused = 0;
    for (int64_t limit = 64;; limit += 192) {
        assert_int_equal(hlv_context_set_memory_limit(f->ctx, limit), HLV_OK);
        hlv_status status = hlv_weights_open(f->ctx, GOLDEN "transformer", &weights);
        if (status == HLV_OK) break;
        refused++;
        assert_null(weights);
        check_failure(f, status, HLV_ERROR_MEMORY, "out of memory", "limit");
        assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
    }
    assert_true(refused > 20);
    hlv_context_set_memory_limit(f->ctx, hlv_context_current_bytes(f->ctx) + 64);
    assert_null(hlv_weight_load_f32(f->ctx, hlv_weights_find(weights, "blocks.0.ffn.net.2.weight")));
    check_failure(f, HLV_ERROR_MEMORY, HLV_ERROR_MEMORY, "out of memory", "limit");
    assert_null(hlv_weight_load_f32(f->ctx, NULL));
    hlv_weights_free(weights);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(every_dtype_is_read),
        CASE(other_dtypes_are_only_listed),
        CASE(metadata_is_read),
        CASE(diffusers_checkpoints_are_read),
        CASE(names_agree_with_diffusers),
        CASE(original_names_are_turned_at_opening),
        CASE(running_out_of_memory_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
