/* Patterns and rates: text in, text out. */
#include "video/media/media.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_patterns(void **state) {
    (void)state;
    static const struct {
        const char *pattern, *expanded; /* number 7; NULL: refused */
    } table[] = {
        {"f-%d.png", "f-7.png"},
        {"f-%03d.png", "f-007.png"},
        {"%09d.png", "000000007.png"},
        {"5%%-%d.png", "5%-7.png"},
        {"dir/f%d.png", "dir/f7.png"},
        {"f.png", NULL},
        {"f-%s.png", NULL},
        {"f-%n.png", NULL},
        {"f-%d-%d.png", NULL},
        {"f-%3d.png", NULL},
        {"f-%0d.png", NULL},
        {"f-%010d.png", NULL},
        {"f-%-3d.png", NULL},
        {"f-%*d.png", NULL},
        {"f-%ld.png", NULL},
        {"f-%1$d.png", NULL},
        {"f-%", NULL},
        {"f-%0", NULL},
        {"f-%03", NULL},
        {"f-%%d.png", NULL},
        {"dir%d/f.png", NULL},
        {"dir%d/f%d.png", NULL},
        {"f-%x.png", NULL},
        {"f-%.3d.png", NULL},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (hlv_pattern_valid(table[i].pattern) != (table[i].expanded != NULL))
            fail_msg("pattern '%s'", table[i].pattern);
        if (table[i].expanded == NULL) continue;
        char *name = hlv_pattern_expand(table[i].pattern, 7);
        assert_string_equal(name, table[i].expanded);
        free(name);
    }
    char *name = hlv_pattern_expand("%02d.png", 12345);
    assert_string_equal(name, "12345.png");
    free(name);
}

static void test_rates(void **state) {
    (void)state;
    static const struct {
        double fps;
        unsigned limit, numerator, denominator;
    } table[] = {{16, 65535, 16, 1},
                 {1000, 65535, 1000, 1},
                 {0.5, 65535, 1, 2},
                 {12.5, 65535, 25, 2},
                 {30000.0 / 1001, 65535, 30000, 1001},
                 {24000.0 / 1001, 1000000, 24000, 1001},
                 {0.01, 65535, 1, 100}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        unsigned numerator, denominator;
        hlv_rate_fraction(table[i].fps, table[i].limit, &numerator, &denominator);
        assert_int_equal(numerator, table[i].numerator);
        assert_int_equal(denominator, table[i].denominator);
    }
    unsigned numerator, denominator;
    hlv_rate_fraction(23.97612345678, 65535, &numerator, &denominator);
    assert_true(numerator <= 65535 && denominator <= 65535);
    assert_true(fabs((double)numerator / denominator - 23.97612345678) < 1e-6);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_patterns), cmocka_unit_test(test_rates)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
