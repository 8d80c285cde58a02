/* Asking for tensors: what is missing or does not fit is named, all in one sentence. */
#include "support.h"

#include "video/core/context.h"

#include <stdio.h>
#include <string.h>

static hlv_weights *make(const fixture *f, const char *name, const hlv_tensor_out *tensors, int count) {
    char path[256];
    path_in(f, name, path);
    assert_int_equal(hlv_safetensors_write(f->ctx, path, tensors, count, NULL, 0), HLV_OK);
    hlv_weights *weights = NULL;
    assert_int_equal(hlv_weights_open(f->ctx, path, &weights), HLV_OK);
    return weights;
}

static const float numbers[6] = {1, 2, 3, 4, 5, 6};
static const hlv_tensor_out base_tensors[] = {
    {"blocks.0.weight", HLA_F32, 2, {2, 3}, numbers},
    {"blocks.0.bias", HLA_F32, 1, {2}, numbers},
    {"extra", HLA_F32, 1, {1}, numbers},
};

static void found_tensors_fit(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = make(f, "base.safetensors", base_tensors, 3);
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    const hlv_weight *weight = hlv_loader_get(loader, 2, (int64_t[]){2, 3}, "blocks.%d.weight", 0);
    assert_ptr_equal(weight, hlv_weights_find(weights, "blocks.0.weight"));
    assert_non_null(hlv_loader_get(loader, 2, (int64_t[]){-1, 3}, "blocks.%d.%s", 0, "weight")); /* any first size */
    assert_true(hlv_loader_has(loader, "extra"));
    assert_false(hlv_loader_has(loader, "other"));
    assert_int_equal(hlv_loader_finish(loader), HLV_OK);
    assert_int_equal(hlv_loader_finish(NULL), HLV_OK);
    hlv_weights_free(weights);
    hlv_weights_free(NULL);
}

static void overrides_come_first(void **state) {
    const fixture *f = *state;
    static const float other[2] = {7, 8};
    const hlv_tensor_out tensors[] = {{"blocks.0.bias", HLA_F32, 1, {2}, other},
                                      {"blocks.0.map", HLA_F32, 1, {1}, other}};
    hlv_weights *weights = make(f, "base.safetensors", base_tensors, 3);
    hlv_weights *overrides = make(f, "over.safetensors", tensors, 2);
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, overrides, &loader), HLV_OK);
    float values[2] = {0, 0};
    hlv_weight_to_f32(hlv_loader_get(loader, 1, (int64_t[]){2}, "blocks.0.bias"), values);
    assert_true(values[0] == 7 && values[1] == 8);
    assert_non_null(hlv_loader_get(loader, 1, (int64_t[]){1}, "blocks.0.map"));
    assert_non_null(hlv_loader_get(loader, 2, (int64_t[]){2, 3}, "blocks.0.weight"));
    assert_int_equal(hlv_loader_finish(loader), HLV_OK);
    hlv_weights_free(weights);
    hlv_weights_free(overrides);
}

static void all_faults_are_named(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = make(f, "base.safetensors", base_tensors, 3);
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "first.bias"));
    assert_null(hlv_loader_get(loader, 2, (int64_t[]){3, 2}, "blocks.0.weight"));
    assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "second.bias"));
    assert_null(hlv_loader_get(loader, 2, (int64_t[]){2, 1}, "blocks.0.bias"));
    check_failure(
        f, hlv_loader_finish(loader), HLV_ERROR_FORMAT,
        "base.safetensors: 2 tensors are missing: 'first.bias', 'second.bias'; ",
        "2 tensors do not fit the config: 'blocks.0.weight' has shape [2, 3] instead of [3, 2], 'blocks.0.bias' "
        "has shape [2] instead of [2, 1]");
    hlv_weights_free(weights);
}

static void every_missing_name_is_told(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = make(f, "base.safetensors", base_tensors, 3);
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    for (int i = 0; i < 825; i++) /* as many as the published transformer has */
        assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "part.%d.bias", i));
    check_failure(f, hlv_loader_finish(loader), HLV_ERROR_FORMAT,
                  "base.safetensors: 825 tensors are missing: 'part.0.bias', ", ", 'part.824.bias'");
    char name[32];
    for (int i = 0; i < 825; i++) {
        snprintf(name, sizeof name, "'part.%d.bias'", i);
        assert_non_null(strstr(hlv_context_error(f->ctx), name));
    }
    check_failure(f, hlv_fail(f->ctx, HLV_ERROR_IO, "%s and more", hlv_context_error(f->ctx)), HLV_ERROR_IO,
                  "825 tensors", "'part.824.bias' and more");
    check_failure(f, hlv_fail(f->ctx, HLV_ERROR_IO, "short"), HLV_ERROR_IO, "short", "");
    assert_string_equal(hlv_context_error(f->ctx), "short");

    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    char longest[2000]; /* beyond what a name may have: cut, not overrun */
    memset(longest, 'n', sizeof longest - 1);
    longest[sizeof longest - 1] = '\0';
    assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "%s", longest));
    check_failure(f, hlv_loader_finish(loader), HLV_ERROR_FORMAT, "1 tensor is missing: 'nnnn", "nnn'");
    hlv_weights_free(weights);
}

/* A tensor of the overrides that nothing asks for is no override. */
static void unused_overrides_are_named(void **state) {
    const fixture *f = *state;
    const hlv_tensor_out tensors[] = {{"blocks.0.bias", HLA_F32, 1, {2}, numbers},
                                      {"blocks.0.bais", HLA_F32, 1, {2}, numbers},
                                      {"blocks.9.map", HLA_F32, 1, {1}, numbers}};
    hlv_weights *weights = make(f, "base.safetensors", base_tensors, 3);
    hlv_weights *overrides = make(f, "over.safetensors", tensors, 3);
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, overrides, &loader), HLV_OK);
    assert_non_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "blocks.0.bias"));
    assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "blocks.0.map"));
    check_failure(f, hlv_loader_finish(loader), HLV_ERROR_FORMAT,
                  "over.safetensors: 1 tensor is missing: 'blocks.0.map'; ",
                  "2 tensors are in the latter that the config has no use for: 'blocks.0.bais', 'blocks.9.map'");
    hlv_weights_free(weights);
    hlv_weights_free(overrides);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(found_tensors_fit),          CASE(overrides_come_first),       CASE(all_faults_are_named),
        CASE(every_missing_name_is_told), CASE(unused_overrides_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
