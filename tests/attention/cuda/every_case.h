/* tests/attention/cuda/every_case.h - every kernel of the GPU's table, over both tables of cases, all types, normalised
 * and not: the forward or the backward pass. Answers are computed by all cores.
 */
#ifndef HLA_TESTS_CUDA_EVERY_CASE_H
#define HLA_TESTS_CUDA_EVERY_CASE_H

#include "tests/attention/cuda/device.h"
#include "tests/attention/cuda/hadamard_device_cases.h"
#include "tests/attention/cuda/rounded.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BATCH = 48, VARIANTS = 6 };

/* Variant: the type, and normalised or not. */
static inline hadamard_data variant_of(const hadamard_case *c, int variant, bool backward, uint64_t seed) {
    static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};
    hla_dtype dtype = dtypes[variant / 2];
    return backward ? hadamard_make_backward(c, dtype, variant % 2 == 0, seed)
                    : hadamard_make(c, dtype, variant % 2 == 0, seed);
}

/* What a table's cases came to. All failures are printed before the test fails: time on a GPU may be scarce. */
typedef struct tally {
    int runs[64]; /* [kernel of the table] */
    int failures;
} tally;

/* Twice what the formula costs in the precision of the kernel's matrix products, within the absolute bound: a kernel of
 * the fast path rounds products of features, which the pairwise formula does not have. */
static inline double tolerance_of_products(const hadamard_data *data, hadamard_output output, double tolerance) {
    static const double absolute[] = {0, 1e-2, 2e-3}; /* by dtype */
    double errors[HADAMARD_OUTPUTS];
    if (output == OUT)
        errors[OUT] = rounded_error(data);
    else
        rounded_gradient_errors(data, errors);
    return fmax(tolerance, fmin(2 * errors[output], absolute[data->problem.dtype]));
}

static inline bool rounds_products(const hadamard_data *data) {
    return data->problem.dtype != HLA_F32 && !data->problem.stateful &&
           (strstr(data->problem.kernel, "sm90") || strstr(data->problem.kernel, "mma"));
}

static inline void judge(const hadamard_data *data, hadamard_output output, const char *label, tally *sums) {
    if (!data->output[output].pages) return;
    char name[32];
    hadamard_output_name(name, output);
    double error = hadamard_error(data, output), tolerance = hadamard_tolerance(data, output);
    if (!(error <= tolerance) && rounds_products(data)) tolerance = tolerance_of_products(data, output, tolerance);
    bool untouched = gaps_untouched(&data->output[output]);
    if (error <= tolerance && untouched) return;
    sums->failures++;
    printf("%s, %s, dtype %d, normalised %d, %s: error %.3g, wanted %.3g (naive %.3g)%s\n", label, data->problem.kernel,
           (int)data->problem.dtype, data->problem.normalised, name, error, tolerance, data->naive_error[output],
           untouched ? "" : "; wrote between the elements");
}

static inline void check_every_kernel(device *gpu, hadamard_data *data, bool backward, const char *label, tally *sums) {
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(gpu->context, i, &info); i++) {
        if (!device_takes(data, &info)) continue;
        hla_status status = device_run(gpu, data, info.name, backward);
        if (status == HLA_ERROR_UNSUPPORTED) {
            assert_non_null(strstr(hla_context_error(gpu->context), "which only takes"));
            continue;
        }
        if (status != HLA_OK) fail_msg("%s, %s: %s", label, info.name, hla_context_error(gpu->context));
        for (int o = backward ? DV : OUT; o < (backward ? HADAMARD_OUTPUTS : DV); o++)
            judge(data, (hadamard_output)o, label, sums);
        sums->runs[i]++;
    }
}

/* What the tests get. */
typedef struct every_case {
    device gpu;
    int step; /* 1: all variants of all cases; n: each n-th, for tools that slow a GPU down (the program's argument) */
} every_case;

static inline void check_cases(every_case *test, const hadamard_case *cases, int count, const char *table,
                               bool backward) {
    tally sums = {0};
    int all = (count * VARIANTS - 1) / test->step + 1;
    for (int first = 0; first < all; first += BATCH) {
        hadamard_data data[BATCH];
        int batch = all - first < BATCH ? all - first : BATCH;
#pragma omp parallel for schedule(dynamic, 1)
        for (int i = 0; i < batch; i++) {
            int variant = (first + i) * test->step, index = variant / VARIANTS;
            data[i] =
                variant_of(&cases[index], variant % VARIANTS, backward, (backward ? 2000u : 1000u) + (uint64_t)index);
        }
        for (int i = 0; i < batch; i++) {
            char label[64];
            snprintf(label, sizeof label, "%s case %d", table, (first + i) * test->step / VARIANTS);
            check_every_kernel(&test->gpu, &data[i], backward, label, &sums);
            hadamard_free(&data[i]);
        }
    }
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(test->gpu.context, i, &info); i++) {
        printf("%s: %s took %d of %d\n", table, info.name, sums.runs[i], all);
        if (strcmp(info.name, "state_cuda") == 0) assert_int_equal(sums.runs[i], all);
    }
    if (sums.failures > 0) fail_msg("%d outputs of %s cases are off", sums.failures, table);
}

/* The program: both tests on a GPU, or DEVICE_SKIPPED. */
static inline int run_every_case(const struct CMUnitTest *tests, size_t count, every_case *test, int argc,
                                 char *const argv[]) {
    unsetenv("HLA_KERNEL");
    test->step = argc > 1 && atoi(argv[1]) > 1 ? atoi(argv[1]) : 1;
    if (!device_open(&test->gpu, (size_t)1 << 29)) return DEVICE_SKIPPED;
    int failed = _cmocka_run_group_tests("every case", tests, count, NULL, NULL);
    device_close(&test->gpu);
    return failed;
}

#endif
