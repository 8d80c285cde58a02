/* Cleaned prompts against ftfy and html as WanPipeline calls them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tests/text/golden.h"
#include "video/text/text.h"

static void cleaning_is_that_of_the_reference(void **state) {
    (void)state;
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    json_t *cases = golden_json("clean.json");
    assert_true(json_array_size(cases) > 600);
    int wrong = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const char *text = json_string_value(json_array_get(json_array_get(cases, i), 0));
        const char *wanted = json_string_value(json_array_get(json_array_get(cases, i), 1));
        char *found = NULL;
        assert_int_equal(hlv_prompt_clean(ctx, text, &found), HLV_OK);
        if (strcmp(found, wanted) != 0) {
            print_message("\"%s\"\n  wanted \"%s\"\n  found  \"%s\"\n", text, wanted, found);
            wrong++;
        }
        free(found);
    }
    assert_int_equal(wrong, 0);
    json_decref(cases);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cleaning_is_that_of_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
