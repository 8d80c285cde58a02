/* hla_context_use_cuda where it has to say no: without the backend's library, with another one or one of another
 * version, and (mostly) without a GPU. Each time the context says why and still computes on the CPU. */
#include "tests/attention/hadamard_cases.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/attention/argument_support.h"

static const hadamard_case small = {2, 2, 9, 11, 5, 2, {3, 4}, LAYOUT_BTHD, STATEFUL};

/* Both passes on the CPU, with what the context has become. */
static void computes_on_cpu(hla_context *context) {
    assert_string_equal(hla_context_device_name(context), "CPU");
    expect(context, hla_context_set_stream(context, context), HLA_ERROR_ARGUMENT, "computes on the CPU");
    hadamard_data data = hadamard_make_backward(&small, HLA_F32, true, 1);
    assert_int_equal(hadamard_run(context, &data, NULL), HLA_OK);
    assert_int_equal(hadamard_run_backward(context, &data, NULL), HLA_OK);
    hadamard_check(&data, OUT, HADAMARD_OUTPUTS, "on the CPU");
    hadamard_free(&data);
    hla_kernel_info info;
    assert_true(hla_hadamard_kernel(context, 0, &info));
    assert_string_equal(info.name, "reference");
}

/* path: for HLA_CUDA_LIBRARY */
static void check_library(const char *path, const char *sentence) {
    hla_context *context = make_context(false);
    assert_int_equal(setenv("HLA_CUDA_LIBRARY", path, 1), 0);
    expect(context, hla_context_use_cuda(context, 0), HLA_ERROR_UNSUPPORTED, sentence);
    computes_on_cpu(context);
    hla_context_free(context);
}

static void test_no_library(void **unused) {
    (void)unused;
    check_library("/nowhere/libhla_cuda.so.0", "the CUDA backend was not found: /nowhere/libhla_cuda.so.0");
}

static void test_another_library(void **unused) {
    (void)unused;
    check_library("libm.so.6", "the CUDA backend is no libhla_cuda");
}

static void test_another_version(void **unused) {
    (void)unused;
    check_library(HLA_OTHER_BACKEND, "the CUDA backend is of version 0.0.1-other, libhla of ");
}

/* The library where it would be found without being named: there is none, or no GPU, or it works. */
static void test_found_or_not(void **unused) {
    (void)unused;
    hla_context *context = make_context(false);
    unsetenv("HLA_CUDA_LIBRARY");
    hla_status status = hla_context_use_cuda(context, 0);
    if (status != HLA_OK) {
        assert_int_equal(status, HLA_ERROR_UNSUPPORTED);
        assert_true(strlen(hla_context_error(context)) > 20);
        computes_on_cpu(context);
    }
    hla_context_free(context);
}

static void test_arguments(void **unused) {
    (void)unused;
    hla_context *context = make_context(false), *careful = make_context(true);
    assert_int_equal(hla_context_use_cuda(NULL, 0), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_context_set_stream(NULL, context), HLA_ERROR_ARGUMENT);
    assert_string_equal(hla_context_device_name(NULL), "");
    expect(context, hla_context_use_cuda(context, -1), HLA_ERROR_ARGUMENT, "device is -1, wanted at least 0");
    expect(careful, hla_context_use_cuda(careful, 0), HLA_ERROR_UNSUPPORTED, "check_finite");
    computes_on_cpu(context);
    computes_on_cpu(careful);
    hla_context_free(context);
    hla_context_free(careful);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_library),      cmocka_unit_test(test_another_library),
        cmocka_unit_test(test_another_version), cmocka_unit_test(test_found_or_not),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
