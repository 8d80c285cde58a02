/* Every kernel of the table that runs here, over a table of shapes, against the definition in double. */
#include "tests/attention/hadamard_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};

static void check_kernel(hla_context *context, hadamard_data *data, const char *kernel, int index) {
    hla_status status = hadamard_run(context, data, kernel);
    if (status != HLA_OK) fail_msg("case %d, %s: %s", index, kernel, hla_context_error(context));
    double error = hadamard_error(data), tolerance = hadamard_tolerance(data);
    if (!(error <= tolerance)) {
        fail_msg("case %d, %s, dtype %d, normalised %d: error %.3g, wanted %.3g (naive %.3g)", index, kernel,
                 (int)data->problem.dtype, data->problem.normalised, error, tolerance, data->naive_error);
    }
    if (!gaps_untouched(&data->out)) fail_msg("case %d, %s: wrote between the elements of out", index, kernel);
}

static void check_case(hla_context *context, int index, hla_dtype dtype, bool normalised) {
    hadamard_data data = hadamard_make(&hadamard_cases[index], dtype, normalised, 1000u + (uint64_t)index);
    hla_kernel_info info;
    int ran = 0;
    for (int i = 0; hla_hadamard_kernel(i, &info); i++) {
        if (!info.runs_here) continue;
        check_kernel(context, &data, info.name, index);
        ran++;
    }
    assert_true(ran >= 3); /* reference and the baseline forms run anywhere */
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
