/* Every softmax kernel, dtype and memory layout against the double reference, and the reference against equation 1 of
 * the paper written out here. */
#include "tests/attention/softmax_cases.h"

static void test_reference_is_the_definition(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        setting s;
        setting_make(&s, &shapes[i], HLA_F32, LAYOUT_BTHD);
        double *reference = oracle(&s), *definition = naive_double(&s);
        double error = relative_error(reference, definition, output_count(&s));
        if (!(error <= 1e-12)) fail_msg("shape %zu: the reference is off by %g", i, error);
        free(reference), free(definition);
        setting_free(&s);
    }
}

/* Runs one kernel and returns its output as doubles, having checked that nothing else was written. */
static double *run(setting *s, const char *kernel, int threads) {
    hla_context *context = context_with(threads, false);
    s->problem.kernel = kernel;
    hla_softmax_plan *plan = NULL;
    assert_int_equal(hla_softmax_plan_create(context, &s->problem, &plan), HLA_OK);
    if (kernel) assert_string_equal(hla_softmax_plan_kernel(plan), kernel);
    size_t size = hla_softmax_plan_workspace(plan);
    assert_int_equal(size % HLA_ALIGNMENT, 0);
    void *workspace = aligned_alloc(HLA_ALIGNMENT, size + HLA_ALIGNMENT);
    assert_non_null(workspace);
    memset(workspace, 0xff, size + HLA_ALIGNMENT); /* NaN wherever a kernel forgets to write first */
    memset(s->out.block, 0xff, s->out.bytes);
    hla_status status = hla_softmax_forward(plan, &s->out.view, &s->q.view, &s->k.view, &s->v.view, s->call.key_lengths,
                                            s->bias, workspace, size);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(context));
    double *values = values_of(&s->out.view);
    assert_gaps_untouched(&s->out);
    for (size_t i = size; i < size + HLA_ALIGNMENT; i++)
        assert_int_equal(((unsigned char *)workspace)[i], 0xff);
    free(workspace);
    hla_softmax_plan_free(plan);
    hla_context_free(context);
    return values;
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int variant = 0; variant < 3 * LAYOUTS; variant++) {
            hla_dtype dtype = (hla_dtype)(variant % 3);
            setting s;
            setting_make(&s, &shapes[i], dtype, (array_layout)(variant / 3));
            double *truth = oracle(&s), *naive = naive_float(&s);
            for (int64_t n = 0; n < output_count(&s); n++)
                naive[n] = rounded(naive[n], dtype);
            double naive_error = relative_error(naive, truth, output_count(&s));
            hla_softmax_kernel_info info;
            for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
                if (!info.runs_here) continue;
                double *values = run(&s, info.name, 1);
                double error = relative_error(values, truth, output_count(&s));
                if (!passes_gate(error, naive_error, dtype)) {
                    fail_msg("%s, shape %zu, %s, layout %d: error %g, naive %g", info.name, i, hla_dtype_name(dtype),
                             variant / 3, error, naive_error);
                }
                free(values);
            }
            free(truth), free(naive);
            setting_free(&s);
        }
    }
}

/* So many keys that the packed copies of six heads don't fit the kernel's buffer at once. */
static void test_heads_in_several_groups_and_long_sums(void **state) {
    (void)state;
    static const shape sizes = {2, 3, 2, 70001, 1, 1, 1, 0, 0, false, 0};
    setting s;
    setting_make(&s, &sizes, HLA_F32, LAYOUT_BHTD);
    double *truth = oracle(&s), *naive = naive_float(&s);
    double naive_error = relative_error(naive, truth, output_count(&s));
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *values = run(&s, info.name, 1);
        double error = relative_error(values, truth, output_count(&s));
        if (!passes_gate(error, naive_error, HLA_F32)) {
            fail_msg("%s: error %g, naive %g", info.name, error, naive_error);
        }
        free(values);
    }
    free(truth), free(naive);
    setting_free(&s);
}

static void check_threads(const shape *sizes) {
    setting s;
    setting_make(&s, sizes, HLA_F32, LAYOUT_BTHD);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *one = run(&s, info.name, 1);
        for (int threads = 2; threads <= 7; threads += threads == 3 ? 4 : 1) {
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
    /* so many queries that one thread works in large blocks of them, and seven in small ones; and too few for all */
    check_threads(&(shape){2, 3, 800, 270, 8, 9, 2, 1, 0, false, 0});
    check_threads(&(shape){1, 4, 800, 270, 8, 9, 2, 0, 0, true, 2});
    check_threads(&(shape){1, 1, 2, 5, 3, 4, 1, 0, 0, false, 0});
}

/* q, k and v as slices of one packed [B,T,3,H,D] array, as models have it. */
static void test_slices_of_a_packed_array(void **state) {
    (void)state;
    static const shape sizes = {1, 2, 40, 40, 16, 16, 1, 0, 0, false, 0};
    setting s;
    setting_make(&s, &sizes, HLA_F32, LAYOUT_BTHD);
    double *expected = run(&s, NULL, 2);
    array packed = array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 40, 3 * 2, 16);
    array *parts[] = {&s.q, &s.k, &s.v};
    for (int part = 0; part < 3; part++) {
        hla_tensor view = packed.view;
        view.shape[2] = 2, view.data = (float *)packed.view.data + part * 2 * 16;
        FOR_EACH_ELEMENT(&view, b, t, h, x)
        set(&view, b, t, h, x, get(&parts[part]->view, b, t, h, x));
        parts[part]->view = view;
    }
    double *values = run(&s, NULL, 2);
    assert_memory_equal(values, expected, (size_t)output_count(&s) * sizeof *values);
    free(values), free(expected);
    array_free(&packed);
    setting_free(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_is_the_definition),
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_heads_in_several_groups_and_long_sums),
        cmocka_unit_test(test_any_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(test_slices_of_a_packed_array),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
