/* Token ids against the `tokenizers` and `sentencepiece` libraries, and what damaged tokenizer files do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tests/text/golden.h"
#include "video/text/text.h"

#define MOST 2048

static hlv_context *make_context(void) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    return ctx;
}

static hlv_tokenizer *open_golden(hlv_context *ctx, const char *name) {
    size_t size, length = strlen(name);
    char *data = golden_bytes(name, &size);
    bool json = strcmp(name + length - 5, ".json") == 0;
    hlv_tokenizer *tokenizer = NULL;
    hlv_status status =
        hlv_tokenizer_from_memory(ctx, json ? HLV_TOKENIZER_JSON : HLV_TOKENIZER_SENTENCEPIECE, data, size, &tokenizer);
    if (status != HLV_OK) fail_msg("%s: %s", name, hlv_context_error(ctx));
    free(data);
    return tokenizer;
}

static void print_ids(const char *label, const int32_t *ids, size_t count) {
    print_message("  %s", label);
    for (size_t i = 0; i < count; i++)
        print_message(" %d", ids[i]);
    print_message("\n");
}

/* Whether the ids of one text are those recorded; both are printed if not. */
static bool same_ids(const hlv_tokenizer *tokenizer, const char *text, const json_t *wanted, const char *name) {
    int32_t ids[MOST], expected[MOST];
    int count = -1;
    bool truncated = true;
    memset(ids, 0x77, sizeof ids);
    size_t wanted_count = json_array_size(wanted);
    for (size_t i = 0; i < wanted_count && i < MOST; i++)
        expected[i] = (int32_t)json_integer_value(json_array_get(wanted, i));
    if (hlv_tokenizer_encode(tokenizer, text, MOST, ids, &count, &truncated) == HLV_OK && !truncated &&
        (size_t)count == wanted_count && memcmp(ids, expected, wanted_count * sizeof *ids) == 0)
        return true;
    print_message("%s: \"%s\"\n", name, text);
    print_ids("wanted", expected, wanted_count);
    print_ids("found ", ids, count > 0 ? (size_t)count : 0);
    return false;
}

static void ids_are_those_of_the_reference(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    json_t *golden = golden_json("ids.json");
    const json_t *texts = json_object_get(golden, "texts");
    assert_true(json_array_size(texts) >= 200);
    const char *name;
    json_t *all;
    int files = 0, wrong = 0;
    json_object_foreach(json_object_get(golden, "ids"), name, all) {
        hlv_tokenizer *tokenizer = open_golden(ctx, name);
        assert_int_equal(json_array_size(all), json_array_size(texts));
        for (size_t i = 0; i < json_array_size(texts); i++)
            wrong += !same_ids(tokenizer, json_string_value(json_array_get(texts, i)), json_array_get(all, i), name);
        hlv_tokenizer_free(tokenizer);
        files++;
    }
    assert_int_equal(files, 7);
    assert_int_equal(wrong, 0);
    json_decref(golden);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ids_are_those_of_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
