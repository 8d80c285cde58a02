/* Every kernel of the table that runs here, over a table of shapes, against the definition in double. */
#include "tests/attention/hadamard_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};

static void check_case(hla_context *context, int index, hla_dtype dtype, bool normalised) {
    hadamard_data data = hadamard_make(&hadamard_cases[index], dtype, normalised, 1000u + (uint64_t)index);
    char label[32];
    snprintf(label, sizeof label, "case %d", index);
    hla_kernel_info info;
    int ran = 0;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (!hadamard_takes(&data, &info)) continue;
        hla_status status = hadamard_run(context, &data, info.name);
        if (status != HLA_OK) fail_msg("%s, %s: %s", label, info.name, hla_context_error(context));
        hadamard_check(&data, OUT, DV, label);
        ran++;
    }
    assert_true(ran >= (data.problem.stateful ? 2 : 3)); /* reference and the baseline forms run anywhere */
    hadamard_free(&data);
}

static void test_all_kernels(void **unused) {
    (void)unused;
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = 1; /* more give the same bits, as test_hadamard_properties shows */
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    for (int index = 0; index < hadamard_case_count; index++) {
        for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
            check_case(context, index, dtypes[d], true);
            check_case(context, index, dtypes[d], false);
        }
    }
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_kernels)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
