/* Gradients of feature maps on a GPU: each activation, dtype and memory layout against the double reference with the
 * CPU's gate; the same bits twice and whatever else is wanted; long sums. */
#include "tests/attention/cuda/maps_device.h"
#include "tests/attention/feature_map_backward_cases.h"

static hla_context *gpu;

static const shape tiled[] = {
    {1, 1000, 3, 128, 64, false, true, false}, {2, 333, 2, 128, 32, true, true, true},
    {3, 50, 2, 40, 24, false, true, true},     {1, 65, 4, 64, 8, true, false, false},
    {2, 37, 1, 72, 104, true, true, false},    {1, 4011, 2, 128, 16, false, false, true},
    {1, 129, 300, 32, 16, false, true, false},
};

enum { ALL = (1 << GRADIENTS) - 1 };

/* Runs one kernel for the gradients whose bits are set in wanted and returns them, having checked that nothing else was
 * written. */
static gradients run(setting *s, const char *kernel, unsigned wanted) {
    hla_feature_map_problem problem = s->problem;
    const hla_feature_map_problem *p = &problem;
    array out[GRADIENTS] = {array_poisoned(LAYOUT_BTHD, HLA_F32, 1, p->heads, p->rank, p->dim),
                            array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, p->heads, p->rank),
                            array_poisoned(LAYOUT_BTHD, HLA_F32, 1, p->heads, p->dim, p->dim),
                            array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, p->heads, p->dim),
                            array_poisoned(s->layout, p->dtype, p->batch, p->tokens, p->heads, p->dim)};
    device_array found[GRADIENTS], weights[WEIGHTS], x = device_array_of(&s->x), d_out = device_array_of(&s->d_out);
    device_array rope = device_array_of(&s->rope);
    float *data[WEIGHTS];
    for (int i = 0; i < GRADIENTS; i++)
        found[i] = device_array_of(&out[i]);
    for (int i = 0; i < WEIGHTS; i++) {
        weights[i] = device_array_of(&s->weights[i]);
        data[i] = wanted >> i & 1 && exists(s, i) ? found[i].view.data : NULL;
    }
    const hla_feature_map_weights given = {weights[0].view.data, weights[1].view.data, weights[2].view.data,
                                           weights[3].view.data};
    const hla_feature_map_weight_gradients dweights = {data[0], data[1], data[2], data[3]};
    size_t size;
    problem.kernel = kernel, problem.rope = rope.view.data;
    assert_int_equal(hla_feature_map_backward_workspace(gpu, p, &size), HLA_OK);
    array poison = array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, 1, (int64_t)size / 4);
    void *workspace = device_copy(poison.block, size);
    hla_status status = hla_feature_map_backward(gpu, p, wanted >> 4 & 1 ? &found[4].view : NULL, &dweights,
                                                 &d_out.view, &x.view, &given, workspace, size);
    if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(gpu));
    device_wait(gpu);
    gradients g = gradients_make(s);
    for (int i = 0; i < GRADIENTS; i++) {
        device_array_fetch(&out[i], &found[i]);
        if (wanted >> i & 1 && exists(s, i)) {
            free(g.values[i]);
            g.values[i] = values_of(&out[i].view);
            assert_gaps_untouched(&out[i]);
        }
        assert_untouched(&out[i]);
        array_free(&out[i]);
        device_free(found[i].block);
        if (i < WEIGHTS) device_free(weights[i].block);
    }
    array_free(&poison);
    device_free(workspace), device_free(x.block), device_free(d_out.block), device_free(rope.block);
    return g;
}

static void expect_same(const gradients *a, const gradients *b, unsigned wanted, const char *what) {
    for (int i = 0; i < GRADIENTS; i++) {
        if (!(wanted >> i & 1)) continue;
        if (memcmp(a->values[i], b->values[i], (size_t)a->count[i] * sizeof(double)) != 0) {
            fail_msg("%s: %s has other bits", what, gradient_names[i]);
        }
    }
}

static void check_kernels(setting *s, const char *what) {
    gradients truth = oracle(s), naive = naive_float(s);
    hla_feature_map_kernel_info info;
    int ran = 0;
    for (int kernel = 0; hla_feature_map_kernel(gpu, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        gradients g = run(s, info.name, ALL), again = run(s, info.name, ALL);
        expect_same(&g, &again, ALL, what);
        for (int i = 0; i < GRADIENTS; i++) {
            if (!exists(s, i)) continue;
            /* Six roundings at least: of a few numbers the naive formula can get more right by luck. Shape 8's 18 sums
             * of exp, for example, are off by 2.4e-7 as the naive formula adds them, by 3.8 to 6.1e-7 in blocks of 32
             * tokens with an exponential that is right to a last place. */
            double naive_error = fmax(relative_error(naive.values[i], truth.values[i], g.count[i]), 6 * 0x1p-24);
            double error = relative_error(g.values[i], truth.values[i], g.count[i]);
            if (!passes_gate(error, naive_error, i == 4 ? s->problem.dtype : HLA_F32)) {
                fail_msg("%s, %s, %s: error %g, naive %g", info.name, what, gradient_names[i], error, naive_error);
            }
        }
        gradients_free(&g), gradients_free(&again);
        ran++;
    }
    assert_true(ran > 0);
    gradients_free(&truth), gradients_free(&naive);
}

static void check_shape(const shape *sizes, size_t number, int variant) {
    hla_dtype dtype = (hla_dtype)(variant % 3);
    hla_activation activation = (hla_activation)(variant / 3 % HLA_ACTIVATIONS);
    array_layout layout = (array_layout)(variant / 3 / HLA_ACTIVATIONS);
    setting s;
    char what[128];
    setting_make(&s, sizes, activation, dtype, layout, 20261124);
    snprintf(what, sizeof what, "shape %zu (D %d, R %d), %s, %s, layout %d", number, (int)sizes->d, (int)sizes->r,
             hla_activation_name(activation), hla_dtype_name(dtype), (int)layout);
    check_kernels(&s, what);
    setting_free(&s);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int variant = 0; variant < 3 * LAYOUTS * HLA_ACTIVATIONS; variant++)
            check_shape(&shapes[i], i, variant);
    }
}

static void test_tiles_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof tiled / sizeof tiled[0]; i++) {
        for (int activation = 0; activation < HLA_ACTIVATIONS; activation++)
            check_shape(&tiled[i], i, 3 * activation + (int)(i + (size_t)activation) % 3);
    }
}

/* What else is wanted changes no gradient. */
static void test_any_choice_of_gradients(void **state) {
    (void)state;
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(gpu, kernel, &info); kernel++) {
        setting s;
        setting_make(&s, &tiled[1], HLA_ACTIVATION_SOFTMAX, HLA_BF16, LAYOUT_BTHD, 3);
        gradients all = run(&s, info.name, ALL);
        for (unsigned wanted = 0; wanted < ALL; wanted++) {
            gradients some = run(&s, info.name, wanted);
            expect_same(&all, &some, wanted, info.name);
            gradients_free(&some);
        }
        gradients_free(&all);
        setting_free(&s);
    }
}

/* A million equal terms: sums in order would lose the tail. */
static void test_long_sums(void **state) {
    (void)state;
    const int64_t tokens = 1 << 20;
    const float numbers[3] = {1, 1, 0.1f}; /* x, weight, slope */
    float *memory = device_copy(numbers, sizeof numbers), found[2] = {NAN, NAN}, *gradient = device_copy(found, 8);
    hla_tensor x = hla_tensor_bthd(memory, HLA_F32, 1, tokens, 1, 1), d_out = x;
    x.stride[0] = x.stride[1] = d_out.stride[0] = d_out.stride[1] = 0;
    d_out.data = memory + 2;
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = problem.heads = problem.dim = problem.rank = 1, problem.tokens = tokens;
    const hla_feature_map_weights weights = {.weight = memory + 1};
    const hla_feature_map_weight_gradients wanted = {.weight = gradient, .bias = gradient + 1};
    size_t size;
    void *workspace;
    assert_int_equal(hla_feature_map_backward_workspace(gpu, &problem, &size), HLA_OK);
    assert_int_equal(cudaMalloc(&workspace, size), cudaSuccess);
    hla_status status = hla_feature_map_backward(gpu, &problem, NULL, &wanted, &d_out, &x, &weights, workspace, size);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu));
    device_wait(gpu);
    assert_int_equal(cudaMemcpy(found, gradient, sizeof found, cudaMemcpyDeviceToHost), cudaSuccess);
    double truth = (double)tokens * (double)numbers[2];
    for (int i = 0; i < 2; i++) {
        if (!(fabs((double)found[i] / truth - 1) <= 2e-6))
            fail_msg("%s off by %g", gradient_names[i], (double)found[i] / truth - 1);
    }
    device_free(workspace), device_free(memory), device_free(gradient);
}

int main(void) {
    unsetenv("HLA_FEATURE_MAP_KERNEL");
    gpu = device_context();
    if (!gpu) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_tiles_pass_the_gate),
        cmocka_unit_test(test_any_choice_of_gradients),
        cmocka_unit_test(test_long_sums),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_context_free(gpu);
    return failed;
}
