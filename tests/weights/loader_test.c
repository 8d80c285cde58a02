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

typedef struct heard {
    char text[4096];
    int count;
} heard;

static void hear(void *user, hlv_log_level level, const char *sentence) {
    heard *h = user;
    assert_int_equal(level, HLV_LOG_WARNING);
    h->count++;
    if (strlen(h->text) + strlen(sentence) + 2 < sizeof h->text) strcat(strcat(h->text, sentence), "\n");
}

static void long_lists_are_cut(void **state) {
    const fixture *f = *state;
    heard h = {.count = 0};
    hlv_context_set_log(f->ctx, hear, &h);
    hlv_weights *weights = make(f, "base.safetensors", base_tensors, 3);
    hlv_loader *loader = NULL;
    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    for (int i = 0; i < 25; i++)
        assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "part.%d.bias", i));
    check_failure(f, hlv_loader_finish(loader), HLV_ERROR_FORMAT,
                  "25 tensors are missing: 'part.0.bias', 'part.1.bias'", "'part.19.bias' and 5 more");
    assert_null(strstr(hlv_context_error(f->ctx), "part.20"));
    assert_int_equal(h.count, 5);
    assert_non_null(strstr(h.text, "base.safetensors: 'part.20.bias' is missing\n"));
    assert_non_null(strstr(h.text, "base.safetensors: 'part.24.bias' is missing\n"));

    assert_int_equal(hlv_loader_create(f->ctx, weights, NULL, &loader), HLV_OK);
    char name[2000];
    memset(name, 'n', sizeof name - 1);
    name[sizeof name - 1] = '\0';
    for (int i = 0; i < 1000; i++)
        assert_null(hlv_loader_get(loader, 1, (int64_t[]){2}, "%d%s", i, name));
    check_failure(f, hlv_loader_finish(loader), HLV_ERROR_FORMAT, "1000 tensors are missing: '0nnn", " more");
    hlv_weights_free(weights);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(found_tensors_fit),
        CASE(overrides_come_first),
        CASE(all_faults_are_named),
        CASE(long_lists_are_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
