/* tests/attention/cross/cmocka.h - as much of cmocka as the tests of attention use, for a machine that has no build of
 * it: cross-compiled tests include this header in its place. Tests run in order, and the first failure ends the
 * program with status 1.
 */
#ifndef HLA_TESTS_CROSS_CMOCKA_H
#define HLA_TESTS_CROSS_CMOCKA_H

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(function)                                                                                     \
    { #function, function }
#define cmocka_run_group_tests(tests, set_up, tear_down)                                                               \
    cross_run_tests(tests, sizeof(tests) / sizeof(tests)[0], set_up, tear_down)

jmp_buf cross_skipped __attribute__((weak)); /* one for all sources of a program */
#define skip() longjmp(cross_skipped, 1)

static inline void cross_run_test(const struct CMUnitTest *test, void **state) {
    fprintf(stderr, "[ RUN      ] %s\n", test->name);
    if (setjmp(cross_skipped) != 0) {
        fprintf(stderr, "[  SKIPPED ]\n");
        return;
    }
    test->run(state);
    fprintf(stderr, "[       OK ]\n");
}

static inline int cross_run_tests(const struct CMUnitTest *tests, size_t count, int (*set_up)(void **),
                                  int (*tear_down)(void **)) {
    void *group = NULL;
    if (set_up && set_up(&group) != 0) return 1;
    for (size_t i = 0; i < count; i++) {
        void *state = group;
        cross_run_test(&tests[i], &state);
    }
    return tear_down && tear_down(&group) != 0;
}

#define fail_msg(...)                                                                                                  \
    do {                                                                                                               \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fprintf(stderr, "\n");                                                                                         \
        exit(1);                                                                                                       \
    } while (0)

#define assert_true(condition)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) fail_msg("%s is false", #condition);                                                         \
    } while (0)
#define assert_false(condition) assert_true(!(condition))
#define assert_null(pointer) assert_true((pointer) == NULL)
#define assert_non_null(pointer) assert_true((pointer) != NULL)
#define assert_ptr_equal(a, b) assert_true((const void *)(a) == (const void *)(b))

/* Both sides are compared as cmocka does: converted to one unsigned 64-bit type. */
static inline void cross_compare(uintmax_t a, uintmax_t b, int equal, const char *what, const char *file, int line) {
    if ((a == b) == equal) return;
    fprintf(stderr, "%s:%d: %s: %jd and %jd\n", file, line, what, (intmax_t)a, (intmax_t)b);
    exit(1);
}
#define assert_int_equal(a, b) cross_compare((uintmax_t)(a), (uintmax_t)(b), 1, #a " == " #b, __FILE__, __LINE__)
#define assert_int_not_equal(a, b) cross_compare((uintmax_t)(a), (uintmax_t)(b), 0, #a " != " #b, __FILE__, __LINE__)

#define assert_string_equal(a, b)                                                                                      \
    do {                                                                                                               \
        const char *left_ = (a), *right_ = (b);                                                                        \
        if (strcmp(left_, right_) != 0) fail_msg("\"%s\" is not \"%s\"", left_, right_);                               \
    } while (0)
#define assert_memory_equal(a, b, size) assert_true(memcmp(a, b, size) == 0)
#define assert_memory_not_equal(a, b, size) assert_true(memcmp(a, b, size) != 0)

#endif
