/* The context: error sentences, counted memory and its limit, callbacks, threads. */
#include "support.h"

#include "video/core/context.h"

#include <stdio.h>
#include <string.h>

static void memory_is_counted_and_aligned(void **state) {
    fixture *f = *state;
    hlv_context_peak_bytes(f->ctx, true);
    void *small = hlv_alloc(f->ctx, 1);
    float *floats = hlv_alloc_floats(f->ctx, 1000);
    assert_non_null(small);
    assert_non_null(floats);
    assert_int_equal((uintptr_t)small % 64, 0);
    assert_int_equal((uintptr_t)floats % 64, 0);
    memset(floats, 0xff, 4000);
    int64_t both = hlv_context_current_bytes(f->ctx);
    assert_in_range(both, 4001, 4001 + 4 * 64);
    hlv_free(f->ctx, small);
    hlv_free(f->ctx, floats);
    hlv_free(f->ctx, NULL);
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
    assert_int_equal(hlv_context_peak_bytes(f->ctx, true), both);
    assert_int_equal(hlv_context_peak_bytes(f->ctx, false), 0);
}

static void memory_limit_is_kept(void **state) {
    fixture *f = *state;
    assert_int_equal(hlv_context_set_memory_limit(f->ctx, 4096), HLV_OK);
    void *first = hlv_alloc(f->ctx, 2048);
    assert_non_null(first);
    assert_null(hlv_alloc(f->ctx, 2048));
    check_failure(f, HLV_ERROR_MEMORY, HLV_ERROR_MEMORY, "out of memory: 2048 bytes", "limit of 4096");
    hlv_free(f->ctx, first);
    void *second = hlv_alloc(f->ctx, 2048); /* the refused block was not counted */
    assert_non_null(second);
    hlv_free(f->ctx, second);
    assert_int_equal(hlv_context_set_memory_limit(f->ctx, 0), HLV_OK);
    check_failure(f, hlv_context_set_memory_limit(f->ctx, -1), HLV_ERROR_ARGUMENT, "memory limit", "-1");
}

static void absurd_sizes_are_refused(void **state) {
    fixture *f = *state;
    assert_null(hlv_alloc(f->ctx, SIZE_MAX));
    assert_null(hlv_alloc(f->ctx, SIZE_MAX - 100));
    assert_null(hlv_alloc(f->ctx, ((size_t)1 << 46) + 1));
    assert_null(hlv_alloc_floats(f->ctx, -1));
    assert_null(hlv_alloc_floats(f->ctx, INT64_MAX));
    assert_null(hlv_alloc_floats(f->ctx, INT64_MAX / 4));
    check_failure(f, HLV_ERROR_MEMORY, HLV_ERROR_MEMORY, "out of memory", "floats");
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
}

static void sentences_may_quote_the_last_one(void **state) {
    fixture *f = *state;
    assert_string_equal(hlv_context_error(f->ctx), "");
    assert_int_equal(hlv_fail(f->ctx, HLV_ERROR_IO, "a\nb\x1b[1m"), HLV_ERROR_IO);
    assert_string_equal(hlv_context_error(f->ctx), "a b [1m"); /* control characters are blanked */
    hlv_fail(f->ctx, HLV_ERROR_IO, "first: %s", hlv_context_error(f->ctx));
    assert_string_equal(hlv_context_error(f->ctx), "first: a b [1m");
    char text[10000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    hlv_fail(f->ctx, HLV_ERROR_IO, "%s", text);
    assert_string_equal(hlv_context_error(f->ctx), text);
    hlv_fail(f->ctx, HLV_ERROR_IO, "again: %s", hlv_context_error(f->ctx));
    assert_int_equal(strncmp(hlv_context_error(f->ctx), "again: xxx", 10), 0);
    assert_string_equal(hlv_context_error(f->ctx) + 7, text);
    hlv_fail(f->ctx, HLV_ERROR_IO, "short");
    assert_string_equal(hlv_context_error(f->ctx), "short");
}

static void threads_are_checked(void **state) {
    fixture *f = *state;
    int all = hlv_context_threads(f->ctx);
    assert_true(all >= 1);
    assert_int_equal(hlv_context_set_threads(f->ctx, 3), HLV_OK);
    assert_int_equal(hlv_context_threads(f->ctx), 3);
    hla_context *three = hlv_context_hla(f->ctx);
    assert_non_null(three);
    assert_int_equal(hla_context_threads(three), 3);
    assert_int_equal(hlv_context_set_threads(f->ctx, 1), HLV_OK);
    hla_context *one = hlv_context_hla(f->ctx);
    assert_int_equal(hla_context_threads(one), 1);
    assert_int_equal(hla_context_threads(three), 3); /* still alive: plans keep it */
    assert_int_equal(hlv_context_set_threads(f->ctx, 3), HLV_OK);
    assert_ptr_equal(hlv_context_hla(f->ctx), three);
    check_failure(f, hlv_context_set_threads(f->ctx, -2), HLV_ERROR_ARGUMENT, "threads", "-2");
    check_failure(f, hlv_context_set_threads(f->ctx, 1 << 20), HLV_ERROR_ARGUMENT, "threads", "1048576");
    assert_int_equal(hlv_context_threads(f->ctx), 3);
    assert_int_equal(hlv_context_set_threads(f->ctx, 0), HLV_OK);
    assert_int_equal(hlv_context_threads(f->ctx), all);
}

typedef struct seen {
    char sentence[64], stage[16];
    int64_t done, total;
    hlv_log_level level;
    bool stop;
} seen;

static void note_log(void *user, hlv_log_level level, const char *sentence) {
    seen *s = user;
    s->level = level;
    snprintf(s->sentence, sizeof s->sentence, "%s", sentence);
}

static void note_progress(void *user, const char *stage, int64_t done, int64_t total) {
    seen *s = user;
    snprintf(s->stage, sizeof s->stage, "%s", stage);
    s->done = done;
    s->total = total;
}

static bool ask(void *user) {
    return ((const seen *)user)->stop;
}

static void callbacks_are_called(void **state) {
    fixture *f = *state;
    seen s = {.stop = false};
    hlv_log(f->ctx, HLV_LOG_WARNING, "nobody listens");
    hlv_progress(f->ctx, "load", 1, 2);
    assert_false(hlv_cancelled(f->ctx));
    hlv_context_set_log(f->ctx, note_log, &s);
    hlv_context_set_progress(f->ctx, note_progress, &s);
    hlv_context_set_cancel(f->ctx, ask, &s);
    hlv_log(f->ctx, HLV_LOG_INFO, "%d of %s", 7, "nine");
    assert_string_equal(s.sentence, "7 of nine");
    assert_int_equal(s.level, HLV_LOG_INFO);
    hlv_progress(f->ctx, "sample", 3, 25);
    assert_string_equal(s.stage, "sample");
    assert_int_equal(s.done, 3);
    assert_int_equal(s.total, 25);
    assert_false(hlv_cancelled(f->ctx));
    s.stop = true;
    assert_true(hlv_cancelled(f->ctx));
}

/* The example that opens hlv/context.h. */
static void header_example_works(void **state) {
    (void)state;
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    assert_int_equal(hlv_context_set_threads(ctx, 2), HLV_OK);
    assert_string_equal(hlv_context_error(ctx), "");
    hlv_context_free(ctx);
    hlv_context_free(NULL);
    assert_int_equal(hlv_context_create(NULL), HLV_ERROR_ARGUMENT);
}

static void statuses_have_names(void **state) {
    (void)state;
    for (int i = 0; i <= HLV_ERROR_CANCELLED; i++)
        for (int j = 0; j < i; j++)
            assert_string_not_equal(hlv_status_name((hlv_status)i), hlv_status_name((hlv_status)j));
    assert_string_equal(hlv_status_name((hlv_status)99), "unknown");
    assert_string_equal(hlv_status_name((hlv_status)-1), "unknown");
}

static void failures_of_libhla_are_carried_over(void **state) {
    fixture *f = *state;
    check_failure(f, hlv_fail_hla(f->ctx, HLA_ERROR_UNSUPPORTED), HLV_ERROR_UNSUPPORTED, "attention", "unsupported");
    assert_int_equal(hlv_fail_hla(f->ctx, HLA_OK), HLV_OK);
    assert_int_equal(hlv_fail_hla(f->ctx, HLA_ERROR_MEMORY), HLV_ERROR_MEMORY);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(memory_is_counted_and_aligned),
        CASE(memory_limit_is_kept),
        CASE(absurd_sizes_are_refused),
        CASE(sentences_may_quote_the_last_one),
        CASE(threads_are_checked),
        CASE(callbacks_are_called),
        CASE(header_example_works),
        CASE(statuses_have_names),
        CASE(failures_of_libhla_are_carried_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
