/* Gradients of the feature maps: the double reference against finite differences in double; every kernel, activation,
 * dtype and layout against the reference; the same bits for any number of threads and any choice of gradients. */
#include "tests/attention/feature_map_backward_cases.h"

/* ---- finite differences ---- */

/* sum of d_out times output, in double; *margin: how far the closest kink of a relu or of a maximum is. */
static double loss(const setting *s, double *margin) {
    const hla_feature_map_problem *p = &s->problem;
    double *row = calloc((size_t)p->rank, sizeof *row), *x = calloc((size_t)p->dim, sizeof *x), sum = 0;
    double *z = calloc((size_t)p->dim, sizeof *z);
    float *input = calloc((size_t)p->dim, sizeof *input);
    assert_true(row && x && z && input);
    *margin = INFINITY;
    for (int64_t i = 0; i < p->batch * p->tokens * p->heads; i++) {
        int64_t h = i % p->heads, t = i / p->heads % p->tokens, b = i / p->heads / p->tokens;
        hla_feature_map_reference_projection(&s->call, b, t, h, row, x, z, input);
        double first = -INFINITY, second = -INFINITY;
        for (int64_t r = 0; r < p->rank; r++) {
            *margin = fmin(*margin, fabs(row[r]));
            second = fmax(second, fmin(first, row[r]));
            first = fmax(first, row[r]);
        }
        *margin = fmin(*margin, first - second);
        for (int64_t j = 0; s->call.weights.hidden_weight && j < p->dim; j++)
            *margin = fmin(*margin, fabs(z[j]));
        hla_feature_map_reference_row(&s->call, b, t, h, row, x, z, input);
        for (int64_t r = 0; r < p->rank; r++)
            sum += row[r] * (double)get(&s->d_out.view, b, t, h, r);
    }
    free(row), free(x), free(z), free(input);
    return sum;
}

/* dL/d(element), by differences of fourth order: inputs are multiples of 2^-12, so that steps of 2^-9 are exact. */
static double difference(const setting *s, float *element) {
    const float step = 0x1p-9f, kept = *element;
    double at[4], margin;
    for (int i = 0; i < 4; i++) {
        *element = kept + step * (float)(i < 2 ? i - 2 : i - 1);
        at[i] = loss(s, &margin);
    }
    *element = kept;
    return (8 * (at[2] - at[1]) - (at[3] - at[0])) / (12 * (double)step);
}

static void round_to_grid(array *a) {
    FOR_EACH_ELEMENT(&a->view, b, t, h, x)
    set(&a->view, b, t, h, x, roundf(get(&a->view, b, t, h, x) * 0x1p12f) * 0x1p-12f);
}

/* A problem without a kink near: none of its differences crosses one. */
static void make_smooth(setting *s, const shape *n, hla_activation activation) {
    double margin = 0;
    for (uint64_t seed = 1; !(margin > 0.03); seed++) {
        if (seed > 1) setting_free(s);
        setting_make(s, n, activation, HLA_F32, LAYOUT_BTHD, seed);
        round_to_grid(&s->x);
        if (s->rope.view.data) round_to_grid(&s->rope);
        for (int i = 0; i < WEIGHTS; i++) {
            if (s->weights[i].view.data) round_to_grid(&s->weights[i]);
        }
        loss(s, &margin);
        assert_true(seed < 10000);
    }
}

static void test_reference_against_finite_differences(void **state) {
    (void)state;
    static const shape small[] = {
        {1, 2, 2, 3, 4, false, true, false}, {2, 1, 1, 4, 3, true, true, true}, {1, 2, 1, 2, 3, true, false, true}};
    for (int trial = 0; trial < 3 * HLA_ACTIVATIONS; trial++) {
        setting s;
        hla_activation activation = (hla_activation)(trial / 3);
        make_smooth(&s, &small[trial % 3], activation);
        gradients g = oracle(&s);
        array *inputs[GRADIENTS] = {&s.weights[0], &s.weights[1], &s.weights[2], &s.weights[3], &s.x};
        for (int i = 0; i < GRADIENTS; i++) {
            int64_t at = 0;
            if (!inputs[i]->view.data) continue;
            FOR_EACH_ELEMENT(&inputs[i]->view, b, t, h, x) {
                double found = g.values[i][at++],
                       wanted = difference(&s, element_address(&inputs[i]->view, b, t, h, x));
                if (!(fabs(found - wanted) <= 1e-8 * (1 + fabs(wanted)))) {
                    fail_msg("%s, shape %d: %s is %.12g, by differences %.12g", hla_activation_name(activation),
                             trial % 3, gradient_names[i], found, wanted);
                }
            }
            assert_int_equal(at, g.count[i]);
        }
        gradients_free(&g);
        setting_free(&s);
    }
}

/* relu has slope 0 at 0; the first of equal largest features takes the maximum's gradient. */
static void test_conventions_at_kinks(void **state) {
    (void)state;
    for (int is_exp = 0; is_exp < 2; is_exp++) {
        setting s;
        setting_make(&s, &(shape){1, 1, 1, 2, 2, false, true, false}, is_exp ? HLA_ACTIVATION_EXP : HLA_ACTIVATION_RELU,
                     HLA_F32, LAYOUT_BTHD, 5);
        for (int i = 0; i < 2; i++) /* both features are the same: 0 */
            memset(s.weights[i].block, 0, s.weights[i].bytes);
        hla_feature_map_kernel_info info;
        for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
            if (!info.runs_here) continue;
            float db[2] = {NAN, NAN}, e0 = get(&s.d_out.view, 0, 0, 0, 0), e1 = get(&s.d_out.view, 0, 0, 0, 1);
            hla_context *context = context_with(1, false);
            s.problem.kernel = info.name;
            size_t size;
            assert_int_equal(hla_feature_map_backward_workspace(context, &s.problem, &size), HLA_OK);
            void *workspace = aligned_alloc(HLA_ALIGNMENT, size);
            assert_non_null(workspace);
            hla_feature_map_weight_gradients wanted = {.bias = db};
            assert_int_equal(hla_feature_map_backward(context, &s.problem, NULL, &wanted, &s.d_out.view, &s.x.view,
                                                      &s.call.weights, workspace, size),
                             HLA_OK);
            assert_true(db[0] == (is_exp ? e0 - (e0 + e1) : 0));
            assert_true(db[1] == (is_exp ? e1 : 0));
            free(workspace);
            hla_context_free(context);
        }
        setting_free(&s);
    }
}

/* ---- the kernels ---- */

/* Runs one kernel for the gradients whose bits are set in wanted and returns them, having checked that nothing else was
 * written. */
static gradients run(setting *s, const char *kernel, int threads, unsigned wanted) {
    const hla_feature_map_problem *p = &s->problem;
    hla_context *context = context_with(threads, false);
    s->problem.kernel = kernel;
    array out[GRADIENTS] = {array_poisoned(LAYOUT_BTHD, HLA_F32, 1, p->heads, p->rank, p->dim),
                            array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, p->heads, p->rank),
                            array_poisoned(LAYOUT_BTHD, HLA_F32, 1, p->heads, p->dim, p->dim),
                            array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, p->heads, p->dim),
                            array_poisoned(s->layout, p->dtype, p->batch, p->tokens, p->heads, p->dim)};
    float *data[WEIGHTS];
    for (int i = 0; i < WEIGHTS; i++)
        data[i] = wanted >> i & 1 && exists(s, i) ? out[i].view.data : NULL;
    hla_feature_map_weight_gradients dweights = {data[0], data[1], data[2], data[3]};
    size_t size;
    assert_int_equal(hla_feature_map_backward_workspace(context, p, &size), HLA_OK);
    array workspace = array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, 1, (int64_t)size / 4);
    assert_int_equal(size % HLA_ALIGNMENT, 0);
    hla_status status = hla_feature_map_backward(context, p, wanted >> 4 & 1 ? &out[4].view : NULL, &dweights,
                                                 &s->d_out.view, &s->x.view, &s->call.weights, workspace.block, size);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(context));
    gradients g = gradients_make(s);
    for (int i = 0; i < GRADIENTS; i++) {
        if (wanted >> i & 1 && exists(s, i)) {
            free(g.values[i]);
            g.values[i] = values_of(&out[i].view);
            assert_gaps_untouched(&out[i]);
        }
        assert_untouched(&out[i]);
        array_free(&out[i]);
    }
    array_free(&workspace);
    hla_context_free(context);
    return g;
}

enum { ALL = (1 << GRADIENTS) - 1 };

static void check_kernels(setting *s, const char *what) {
    gradients truth = oracle(s), naive = naive_float(s);
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        gradients g = run(s, info.name, 1, ALL);
        for (int i = 0; i < GRADIENTS; i++) {
            if (!exists(s, i)) continue;
            /* six roundings at least: an element is several steps away from the inputs, and of a handful of elements (18
             * sums in shape 8) the naive formula can get all right by luck */
            double naive_error = fmax(relative_error(naive.values[i], truth.values[i], g.count[i]), 0x1.8p-22);
            double error = relative_error(g.values[i], truth.values[i], g.count[i]);
            if (!passes_gate(error, naive_error, i == 4 ? s->problem.dtype : HLA_F32)) {
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
        for (int variant = 0; variant < 3 * LAYOUTS * HLA_ACTIVATIONS; variant++) {
            hla_dtype dtype = (hla_dtype)(variant % 3);
            hla_activation activation = (hla_activation)(variant / 3 % HLA_ACTIVATIONS);
            array_layout layout = (array_layout)(variant / 3 / HLA_ACTIVATIONS);
            setting s;
            setting_make(&s, &shapes[i], activation, dtype, layout, 20261124);
            char what[128];
            snprintf(what, sizeof what, "shape %zu, %s, %s, layout %d", i, hla_activation_name(activation),
                     hla_dtype_name(dtype), (int)layout);
            check_kernels(&s, what);
            setting_free(&s);
        }
    }
}

static void expect_same(const gradients *a, const gradients *b, unsigned wanted, const char *what) {
    for (int i = 0; i < GRADIENTS; i++) {
        if (!(wanted >> i & 1)) continue;
        if (memcmp(a->values[i], b->values[i], (size_t)a->count[i] * sizeof(double)) != 0) {
            fail_msg("%s: %s has other bits", what, gradient_names[i]);
        }
    }
}

/* Neither the number of threads nor what else is wanted changes a gradient. */
static void test_same_bits(void **state) {
    (void)state;
    static const shape sizes[] = {{2, 301, 3, 32, 24, true, true, true},
                                  {1, 2, 1, 3, 2, false, true, false},
                                  {1, 2500, 1, 8, 5, true, true, false}};
    for (int i = 0; i < 3; i++) {
        setting s;
        setting_make(&s, &sizes[i], i == 1 ? HLA_ACTIVATION_EXP : HLA_ACTIVATION_SOFTMAX, HLA_F32, LAYOUT_BTHD, 3);
        hla_feature_map_kernel_info info;
        for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
            if (!info.runs_here) continue;
            gradients one = run(&s, info.name, 1, ALL);
            for (int threads = 2; threads <= 7; threads += threads == 3 ? 4 : 1) {
                gradients more = run(&s, info.name, threads, ALL);
                expect_same(&one, &more, ALL, info.name);
                gradients_free(&more);
            }
            for (unsigned wanted = 0; i < 2 && wanted < ALL; wanted++) {
                gradients some = run(&s, info.name, 2, wanted);
                expect_same(&one, &some, wanted, info.name);
                gradients_free(&some);
            }
            gradients_free(&one);
        }
        setting_free(&s);
    }
}

/* A million equal terms: sums in order would lose the tail. */
static void test_long_sums(void **state) {
    (void)state;
    const int64_t tokens = 1 << 20;
    const float one = 1, weight = 1, slope = 0.1f;
    hla_tensor x = hla_tensor_bthd(&one, HLA_F32, 1, tokens, 1, 1), d_out = x;
    x.stride[0] = x.stride[1] = d_out.stride[0] = d_out.stride[1] = 0;
    d_out.data = (void *)&slope;
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = problem.heads = problem.dim = problem.rank = 1, problem.tokens = tokens;
    const hla_feature_map_weights weights = {.weight = &weight};
    hla_context *context = context_with(2, false);
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        size_t size, of_fewer;
        problem.kernel = info.name, problem.tokens = 5000;
        assert_int_equal(hla_feature_map_backward_workspace(context, &problem, &of_fewer), HLA_OK);
        problem.tokens = tokens;
        assert_int_equal(hla_feature_map_backward_workspace(context, &problem, &size), HLA_OK);
        assert_int_equal(size, of_fewer); /* whatever the number of tokens */
        void *workspace = aligned_alloc(HLA_ALIGNMENT, size);
        assert_non_null(workspace);
        float dw = NAN, db = NAN;
        const hla_feature_map_weight_gradients wanted = {.weight = &dw, .bias = &db};
        assert_int_equal(
            hla_feature_map_backward(context, &problem, NULL, &wanted, &d_out, &x, &weights, workspace, size), HLA_OK);
        double truth = (double)tokens * (double)slope;
        if (!(fabs((double)dw / truth - 1) <= 2e-6))
            fail_msg("%s: dweight off by %g", info.name, (double)dw / truth - 1);
        if (!(fabs((double)db / truth - 1) <= 2e-6)) fail_msg("%s: dbias off by %g", info.name, (double)db / truth - 1);
        free(workspace);
    }
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_FEATURE_MAP_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_against_finite_differences),
        cmocka_unit_test(test_conventions_at_kinks),
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_long_sums),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
