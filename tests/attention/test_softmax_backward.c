/* Gradients of softmax attention: the double reference against finite differences in double; every kernel, dtype and
 * layout against the reference; the same bits for any number of threads; and properties. */
#include "tests/attention/softmax_gradient_cases.h"

/* ---- finite differences ---- */

/* sum of d_out times output, in double */
static double loss(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    double row[16], scores[16], sum = 0;
    float query[16], values[16];
    assert_true(p->keys <= 16 && p->dim <= 16 && p->value_dim <= 16);
    for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++) {
        int64_t b = r / p->heads / p->queries, i = r / p->heads % p->queries, h = r % p->heads;
        hla_softmax_reference_row(&s->call, b, i, h, row, scores, query, values);
        for (int64_t x = 0; x < p->value_dim; x++)
            sum += row[x] * (double)get(&s->d_out.view, b, i, h, x);
    }
    return sum;
}

/* dL/d(element), by differences of fourth order: inputs are multiples of 2^-12, so that steps of 2^-9 are exact. */
static double difference(const setting *s, float *element) {
    const float step = 0x1p-9f, kept = *element;
    double at[4];
    for (int i = 0; i < 4; i++) {
        *element = kept + step * (float)(i < 2 ? i - 2 : i - 1);
        at[i] = loss(s);
    }
    *element = kept;
    return (8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * (double)step);
}

static void round_to_grid(array *a) {
    FOR_EACH_ELEMENT(&a->view, b, t, h, x)
    set(&a->view, b, t, h, x, roundf(get(&a->view, b, t, h, x) * 0x1p12f) * 0x1p-12f);
}

static void test_reference_against_finite_differences(void **state) {
    (void)state;
    static const shape small[] = {{1, 1, 2, 3, 2, 2, 1, false, false, false, 0},
                                  {3, 2, 3, 6, 3, 4, 1, true, true, false, 0},
                                  {1, 4, 5, 4, 2, 3, 1, true, false, true, 2},
                                  {2, 3, 3, 5, 4, 1, 1, false, true, true, 1}};
    for (size_t n = 0; n < sizeof small / sizeof small[0]; n++) {
        setting s;
        setting_make(&s, &small[n], HLA_F32, LAYOUT_BTHD);
        array *inputs[GRADIENTS] = {&s.q, &s.k, &s.v};
        for (int i = 0; i < GRADIENTS; i++)
            round_to_grid(inputs[i]);
        gradients g = oracle(&s);
        for (int i = 0; i < GRADIENTS; i++) {
            int64_t at = 0;
            FOR_EACH_ELEMENT(&inputs[i]->view, b, t, h, x) {
                double found = g.values[i][at++],
                       wanted = difference(&s, element_address(&inputs[i]->view, b, t, h, x));
                if (!(fabs(found - wanted) <= 1e-9 * (1 + fabs(wanted)))) {
                    fail_msg("shape %zu: %s is %.12g, by differences %.12g", n, gradient_names[i], found, wanted);
                }
            }
            assert_int_equal(at, g.count[i]);
        }
        gradients_free(&g);
        setting_free(&s);
    }
}

/* ---- the kernels ---- */

/* Runs one kernel and returns its gradients, having checked that nothing else was written. */
static gradients run(setting *s, const char *kernel, int threads) {
    const hla_softmax_problem *p = &s->problem;
    hla_context *context = context_with(threads, false);
    s->problem.kernel = kernel;
    hla_softmax_plan *plan = NULL;
    assert_int_equal(hla_softmax_plan_create(context, p, &plan), HLA_OK);
    size_t size = hla_softmax_plan_backward_workspace(plan);
    array workspace = array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, 1, (int64_t)size / 4);
    assert_int_equal(size % HLA_ALIGNMENT, 0);
    const int64_t heads = hla_softmax_key_heads(p);
    array out[GRADIENTS] = {array_poisoned(s->layout, p->dtype, p->batch, p->queries, p->heads, p->dim),
                            array_poisoned(s->layout, p->dtype, p->batch, p->keys, heads, p->dim),
                            array_poisoned(s->layout, p->dtype, p->batch, p->keys, heads, p->value_dim)};
    hla_status status =
        hla_softmax_backward(plan, &out[0].view, &out[1].view, &out[2].view, &s->d_out.view, &s->q.view, &s->k.view,
                             &s->v.view, s->call.key_lengths, s->bias, workspace.block, size);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(context));
    gradients g = gradients_make(s);
    for (int i = 0; i < GRADIENTS; i++) {
        free(g.values[i]);
        g.values[i] = values_of(&out[i].view);
        assert_gaps_untouched(&out[i]);
        array_free(&out[i]);
    }
    array_free(&workspace);
    hla_softmax_plan_free(plan);
    hla_context_free(context);
    return g;
}

static void check_kernels(setting *s, const char *what) {
    gradients truth = oracle(s), naive = naive_float(s);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        gradients g = run(s, info.name, 1);
        for (int i = 0; i < GRADIENTS; i++) {
            /* Eight roundings at least. With one key, p is 1 and ds is the difference of two equal numbers: the naive
             * formula finds exactly 0, the tiles a few roundings of g . v. */
            double naive_error = fmax(relative_error(naive.values[i], truth.values[i], g.count[i]), 0x1p-22);
            double error = relative_error(g.values[i], truth.values[i], g.count[i]);
            if (!passes_gate(error, naive_error, s->problem.dtype)) {
                fail_msg("%s, %s, %s: error %g, naive %g", info.name, what, gradient_names[i], error, naive_error);
            }
        }
        gradients_free(&g);
    }
    gradients_free(&truth), gradients_free(&naive);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int variant = 0; variant < 3 * LAYOUTS; variant++) {
            setting s;
            setting_make(&s, &shapes[i], (hla_dtype)(variant % 3), (array_layout)(variant / 3));
            char what[128];
            snprintf(what, sizeof what, "shape %zu, %s, layout %d", i, hla_dtype_name(s.problem.dtype), variant / 3);
            check_kernels(&s, what);
            setting_free(&s);
        }
    }
}

static void check_threads(const shape *sizes) {
    setting s;
    setting_make(&s, sizes, HLA_F32, LAYOUT_BTHD);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        gradients one = run(&s, info.name, 1);
        for (int threads = 2; threads <= 7; threads += threads == 3 ? 4 : 1) {
            gradients more = run(&s, info.name, threads);
            for (int i = 0; i < GRADIENTS; i++) {
                if (memcmp(one.values[i], more.values[i], (size_t)one.count[i] * sizeof(double)) != 0) {
                    fail_msg("%s: %s of %d threads has other bits than of one", info.name, gradient_names[i], threads);
                }
            }
            gradients_free(&more);
        }
        gradients_free(&one);
    }
    setting_free(&s);
}

/* Several sweeps of blocks of keys in flight; grouped heads; fewer blocks of queries than of keys; too few for all. */
static void test_any_number_of_threads_gives_the_same_bits(void **state) {
    (void)state;
    check_threads(&(shape){1, 1, 900, 2400, 4, 5, 1, true, false, false, 0});
    check_threads(&(shape){2, 4, 260, 530, 8, 9, 1, false, true, true, 2});
    check_threads(&(shape){3, 1, 20, 1100, 3, 3, 1, false, false, false, 0});
    check_threads(&(shape){1, 1, 2, 5, 3, 4, 1, false, false, false, 0});
}

/* Large scores: no exponent overflows, and the gradients are the reference's. */
static void test_extreme_scores(void **state) {
    (void)state;
    setting s;
    setting_make(&s, &(shape){1, 1, 40, 300, 8, 8, 12, false, false, false, 0}, HLA_F32, LAYOUT_BTHD);
    gradients truth = oracle(&s);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        gradients g = run(&s, info.name, 2);
        for (int i = 0; i < GRADIENTS; i++) {
            /* scores of some 1,000 carry a rounding of 6e-5, which is what a weight is then off by */
            double error = relative_error(g.values[i], truth.values[i], g.count[i]);
            if (!(error <= 1e-4)) fail_msg("%s: %s is off by %g", info.name, gradient_names[i], error);
        }
        gradients_free(&g);
    }
    gradients_free(&truth);
    setting_free(&s);
}

int main(void) {
    unsetenv("HLA_SOFTMAX_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_against_finite_differences),
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_any_number_of_threads_gives_the_same_bits),
        cmocka_unit_test(test_extreme_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
