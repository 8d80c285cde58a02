/* Gradients on a GPU: the backward pass of every kernel of its table against the derivative in double. */
#include "tests/attention/cuda/every_case.h"

static void test_small_cases(void **state) {
    check_cases(*state, hadamard_cases, hadamard_case_count, "small", true);
}

static void test_device_cases(void **state) {
    check_cases(*state, device_cases, DEVICE_CASES, "large", true);
}

int main(int argc, char *argv[]) {
    every_case test;
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_small_cases, &test),
                                       cmocka_unit_test_prestate(test_device_cases, &test)};
    return run_every_case(tests, sizeof tests / sizeof tests[0], &test, argc, argv);
}
