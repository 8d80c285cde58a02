/* Every feature-map kernel, activation, dtype and memory layout against the double reference, and the reference against
 * the formulas of hla/feature_map.h written out here. */
#include "tests/attention/feature_map_cases.h"

static void test_reference_is_the_definition(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int activation = 0; activation < HLA_ACTIVATIONS; activation++) {
            setting s;
            setting_make(&s, &shapes[i], (hla_activation)activation, HLA_F32, LAYOUT_BTHD);
            double *reference = oracle(&s), *definition = naive_double(&s);
            double error = relative_error(reference, definition, output_count(&s));
            if (!(error <= 1e-12)) {
                fail_msg("shape %zu, %s: the reference is off by %g", i,
                         hla_activation_name((hla_activation)activation), error);
            }
            free(reference), free(definition);
            setting_free(&s);
        }
    }
}

/* Runs one kernel and returns its output as doubles, having checked that nothing else was written. */
static double *run(setting *s, const char *kernel, int threads) {
    hla_context *context = context_with(threads, false);
    s->problem.kernel = kernel;
    memset(s->out.block, 0xff, s->out.bytes);
    hla_status status = hla_feature_map_forward(context, &s->problem, &s->out.view, &s->x.view, &s->call.weights);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(context));
    hla_context_free(context);
    double *values = values_of(&s->out.view);
    assert_gaps_untouched(&s->out);
    return values;
}

/* All kernels on one problem. */
static void check_kernels(setting *s, const char *what) {
    double *truth = oracle(s), *naive = naive_float(s);
    for (int64_t n = 0; n < output_count(s); n++)
        naive[n] = rounded(naive[n], s->problem.dtype);
    double naive_error = relative_error(naive, truth, output_count(s));
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *values = run(s, info.name, 1);
        double error = relative_error(values, truth, output_count(s));
        if (!passes_gate(error, naive_error, s->problem.dtype)) {
            fail_msg("%s, %s: error %g, naive %g", info.name, what, error, naive_error);
        }
        free(values);
    }
    free(truth), free(naive);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int activation = 0; activation < HLA_ACTIVATIONS; activation++) {
            for (int variant = 0; variant < 3 * LAYOUTS; variant++) {
                setting s;
                setting_make(&s, &shapes[i], (hla_activation)activation, (hla_dtype)(variant % 3),
                             (array_layout)(variant / 3));
                char what[128];
                snprintf(what, sizeof what, "shape %zu, %s, %s, layout %d", i,
                         hla_activation_name((hla_activation)activation), hla_dtype_name((hla_dtype)(variant % 3)),
                         variant / 3);
                check_kernels(&s, what);
                setting_free(&s);
            }
        }
    }
}

static void check_threads(const shape *sizes, hla_activation activation) {
    setting s;
    setting_make(&s, sizes, activation, HLA_F32, LAYOUT_BTHD);
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *one = run(&s, info.name, 1);
        for (int threads = 2; threads <= 3; threads++) {
            double *more = run(&s, info.name, threads);
            if (memcmp(one, more, (size_t)output_count(&s) * sizeof *one) != 0) {
                fail_msg("%s: %d threads give other bits than one", info.name, threads);
            }
            free(more);
        }
        free(one);
    }
    setting_free(&s);
}

static void test_any_number_of_threads_gives_the_same_bits(void **state) {
    (void)state;
    const shape many = {2, 101, 3, 32, 24, true, true, true}, few = {1, 2, 1, 3, 2, false, true, false};
    check_threads(&many, HLA_ACTIVATION_RELU);
    check_threads(&many, HLA_ACTIVATION_SOFTMAX);
    check_threads(&few, HLA_ACTIVATION_EXP);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_is_the_definition),
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_any_number_of_threads_gives_the_same_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
