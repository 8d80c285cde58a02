/* Forward on a GPU: every kernel of its table against the definition in double. */
#include "tests/attention/cuda/every_case.h"

static void test_small_cases(void **state) {
    check_cases(*state, hadamard_cases, hadamard_case_count, "small", false);
}

static void test_device_cases(void **state) {
    check_cases(*state, device_cases, DEVICE_CASES, "large", false);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    device gpu;
    if (!device_open(&gpu, (size_t)1 << 29)) return DEVICE_SKIPPED;
    const struct CMUnitTest tests[] = {cmocka_unit_test_prestate(test_small_cases, &gpu),
                                       cmocka_unit_test_prestate(test_device_cases, &gpu)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(&gpu);
    return failed;
}
