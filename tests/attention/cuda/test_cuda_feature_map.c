/* Feature-map kernels of a GPU: each activation, dtype and memory layout against the double reference with the CPU's
 * gate; the same bits twice; CUDA graphs; bad addresses. */
#include "tests/attention/cuda/maps_device.h"
#include "tests/attention/feature_map_cases.h"

static hla_context *gpu;

/* Beside the shapes of the CPU's test: whole and half-filled tiles of the tensor cores' kernel, more tokens than one
 * round of all its warps takes. */
static const shape tiled[] = {
    {1, 1000, 3, 128, 64, false, true, false}, {2, 333, 2, 128, 32, true, true, true},
    {3, 50, 2, 40, 24, false, true, true},     {1, 65, 4, 64, 8, true, false, false},
    {2, 37, 1, 72, 104, true, true, false},    {1, 20011, 1, 128, 16, false, false, true},
    {1, 129, 300, 32, 56, false, true, false}, {1, 77, 1, 128, 128, true, true, true},
};

/* Everything a call needs, on the device. */
typedef struct device_setting {
    device_array x, out;
    hla_feature_map_problem problem;
    hla_feature_map_weights weights;
} device_setting;

static device_setting to_device(const setting *s) {
    const hla_feature_map_problem *p = &s->problem;
    const size_t heads = (size_t)p->heads * sizeof(float), dim = (size_t)p->dim, rank = (size_t)p->rank;
    device_setting made = {.x = device_array_of(&s->x), .out = device_array_of(&s->out), .problem = *p};
    made.problem.rope = device_copy(s->rope, (size_t)p->tokens * dim * sizeof(float));
    made.weights = (hla_feature_map_weights){
        device_copy(s->weight, heads * rank * dim), device_copy(s->bias, heads * rank),
        device_copy(s->hidden_weight, heads * dim * dim), device_copy(s->hidden_bias, heads * dim)};
    return made;
}

static void device_setting_free(device_setting *made) {
    device_free(made->x.block), device_free(made->out.block), device_free(made->problem.rope);
    device_free(made->weights.weight), device_free(made->weights.bias);
    device_free(made->weights.hidden_weight), device_free(made->weights.hidden_bias);
}

/* Runs one kernel and returns its output as doubles, having checked that nothing else was written. */
static double *run(setting *s, const char *kernel) {
    memset(s->out.block, 0xff, s->out.bytes);
    device_setting made = to_device(s);
    made.problem.kernel = kernel;
    hla_status status = hla_feature_map_forward(gpu, &made.problem, &made.out.view, &made.x.view, &made.weights);
    if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(gpu));
    device_wait(gpu);
    device_array_fetch(&s->out, &made.out);
    device_setting_free(&made);
    double *values = values_of(&s->out.view);
    assert_gaps_untouched(&s->out);
    return values;
}

/* All kernels on one problem, twice. */
static void check_kernels(setting *s, const char *what) {
    double *truth = oracle(s), *naive = naive_float(s);
    for (int64_t n = 0; n < output_count(s); n++)
        naive[n] = rounded(naive[n], s->problem.dtype);
    double naive_error = relative_error(naive, truth, output_count(s));
    hla_feature_map_kernel_info info;
    int ran = 0;
    for (int kernel = 0; hla_feature_map_kernel(gpu, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        double *values = run(s, info.name), *again = run(s, info.name);
        double error = relative_error(values, truth, output_count(s));
        if (!passes_gate(error, naive_error, s->problem.dtype)) {
            fail_msg("%s, %s: error %g, naive %g", info.name, what, error, naive_error);
        }
        if (memcmp(values, again, (size_t)output_count(s) * sizeof *values) != 0) {
            fail_msg("%s, %s: other bits the second time", info.name, what);
        }
        free(values), free(again);
        ran++;
    }
    assert_true(ran > 0);
    free(truth), free(naive);
}

static void check_shape(const shape *sizes, size_t number, hla_activation activation, hla_dtype dtype,
                        array_layout layout) {
    setting s;
    char what[128];
    setting_make(&s, sizes, activation, dtype, layout);
    snprintf(what, sizeof what, "shape %zu (D %d, R %d), %s, %s, layout %d", number, (int)sizes->d, (int)sizes->r,
             hla_activation_name(activation), hla_dtype_name(dtype), (int)layout);
    check_kernels(&s, what);
    setting_free(&s);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        for (int variant = 0; variant < 3 * LAYOUTS * HLA_ACTIVATIONS; variant++)
            check_shape(&shapes[i], i, (hla_activation)(variant / 3 % HLA_ACTIVATIONS), (hla_dtype)(variant % 3),
                        (array_layout)(variant / 3 / HLA_ACTIVATIONS));
    }
}

static void test_tiles_pass_the_gate(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof tiled / sizeof tiled[0]; i++) {
        for (int variant = 0; variant < 2 * HLA_ACTIVATIONS; variant++)
            check_shape(&tiled[i], i, (hla_activation)(variant / 2), variant % 2 ? HLA_F16 : HLA_BF16,
                        variant % 3 ? LAYOUT_BTHD : LAYOUT_BHTD);
    }
}

/* Weights outside of float16's range, and ones that would be subnormal there. */
static void test_scales_of_weights(void **state) {
    (void)state;
    for (int sign = -1; sign <= 1; sign += 2) {
        setting s;
        setting_make(&s, &tiled[0], HLA_ACTIVATION_IDENTITY, HLA_F16, LAYOUT_BTHD);
        for (int64_t i = 0; i < s.problem.heads * s.problem.rank * s.problem.dim; i++)
            s.weight[i] = ldexpf(s.weight[i], 20 * sign);
        FOR_EACH_ELEMENT(&s.x.view, b, t, h, x)
        set(&s.x.view, b, t, h, x, ldexpf(get(&s.x.view, b, t, h, x), -10 * sign));
        for (int64_t i = 0; i < s.problem.heads * s.problem.rank; i++)
            s.bias[i] = ldexpf(s.bias[i], 10 * sign);
        check_kernels(&s, sign > 0 ? "weights of 2^20" : "weights of 2^-20");
        setting_free(&s);
    }
}

static void test_nan_shows(void **state) {
    (void)state;
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(gpu, kernel, &info); kernel++) {
        for (int activation = 0; activation < HLA_ACTIVATIONS; activation++) {
            setting s;
            setting_make(&s, &(shape){1, 5, 1, 16, 16, false, true, false}, (hla_activation)activation, HLA_BF16,
                         LAYOUT_BTHD);
            set(&s.x.view, 0, 2, 0, 3, NAN);
            double *values = run(&s, info.name);
            for (int i = 0; i < 5 * 16; i++)
                assert_true(i / 16 == 2 ? isnan(values[i]) : isfinite(values[i]));
            free(values);
            setting_free(&s);
        }
    }
}

/* A captured call does the same again, on the memory's contents of then. */
static void test_graph(void **state) {
    (void)state;
    setting s;
    setting_make(&s, &tiled[0], HLA_ACTIVATION_RELU, HLA_BF16, LAYOUT_BTHD);
    device_setting made = to_device(&s);
    cudaGraph_t graph;
    cudaGraphExec_t runnable;
    assert_int_equal(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    hla_status status = hla_feature_map_forward(gpu, &made.problem, &made.out.view, &made.x.view, &made.weights);
    assert_int_equal(cudaStreamEndCapture(gpu->stream, &graph), cudaSuccess);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu));
    assert_int_equal(cudaGraphInstantiate(&runnable, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphLaunch(runnable, gpu->stream), cudaSuccess);
    device_wait(gpu);
    device_array_fetch(&s.out, &made.out);
    double *captured = values_of(&s.out.view), *direct = run(&s, NULL);
    assert_memory_equal(captured, direct, (size_t)output_count(&s) * sizeof *direct);
    free(captured), free(direct);
    assert_int_equal(cudaGraphExecDestroy(runnable), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
    device_setting_free(&made);
    setting_free(&s);
}

static void expect_refusal(hla_context *context, const device_setting *made, const char *named) {
    hla_status status =
        hla_feature_map_forward(context, &made->problem, &made->out.view, &made->x.view, &made->weights);
    assert_int_equal(status, HLA_ERROR_ARGUMENT);
    if (!strstr(hla_context_error(context), named)) fail_msg("\"%s\" in %s", named, hla_context_error(context));
}

static void test_bad_addresses(void **state) {
    (void)state;
    setting s;
    setting_make(&s, &tiled[1], HLA_ACTIVATION_RELU, HLA_BF16, LAYOUT_BTHD);
    device_setting made = to_device(&s), spoiled = made;
    spoiled.x.view.data = s.x.view.data;
    expect_refusal(gpu, &spoiled, "x ");
    spoiled = made, spoiled.weights.hidden_bias = s.hidden_bias;
    expect_refusal(gpu, &spoiled, "weights.hidden_bias ");
    spoiled = made, spoiled.problem.rope = s.rope;
    expect_refusal(gpu, &spoiled, "problem.rope ");
    hla_context *other = context_with(1, false);
    assert_int_equal(hla_context_use_cuda(other, 0), HLA_OK);
    expect_refusal(other, &made, "no stream is set");
    hla_context_free(other);
    free(run(&s, NULL)); /* the context still works */
    device_setting_free(&made);
    setting_free(&s);
}

/* Tokens 2^30 elements apart: the third lies beyond offsets of 32 bits. */
static void test_far_tokens(void **state) {
    (void)state;
    enum { T = 3, D = 64, R = 16 };
    const int64_t apart = (int64_t)1 << 30;
    setting s;
    setting_make(&s, &(shape){1, T, 1, D, R, false, true, false}, HLA_ACTIVATION_RELU, HLA_BF16, LAYOUT_BTHD);
    device_setting made = to_device(&s);
    uint16_t *far = NULL;
    assert_int_equal(cudaMalloc((void **)&far, ((T - 1) * (size_t)apart + D + R) * sizeof *far), cudaSuccess);
    const uint16_t *rows = made.x.view.data;
    for (int64_t t = 0; t < T; t++)
        assert_int_equal(cudaMemcpy(far + t * apart, rows + t * D, D * sizeof *far, cudaMemcpyDeviceToDevice),
                         cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    hla_tensor x = made.x.view, out = made.out.view;
    x.data = far, out.data = far + D;
    x.stride[0] = out.stride[0] = T * apart, x.stride[1] = out.stride[1] = apart;
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(gpu, kernel, &info); kernel++) {
        double *near = run(&s, info.name);
        made.problem.kernel = info.name;
        hla_status status = hla_feature_map_forward(gpu, &made.problem, &out, &x, &made.weights);
        if (status != HLA_OK) fail_msg("%s: %s", info.name, hla_context_error(gpu));
        device_wait(gpu);
        for (int64_t t = 0; t < T; t++) {
            uint16_t row[R];
            assert_int_equal(cudaMemcpy(row, far + t * apart + D, sizeof row, cudaMemcpyDeviceToHost), cudaSuccess);
            for (int r = 0; r < R; r++)
                assert_true((double)hla_bf16_to_f32(row[r]) == near[t * R + r]);
        }
        free(near);
    }
    device_free(far);
    device_setting_free(&made);
    setting_free(&s);
}

int main(void) {
    unsetenv("HLA_FEATURE_MAP_KERNEL");
    gpu = device_context();
    if (!gpu) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_pass_the_gate),
        cmocka_unit_test(test_tiles_pass_the_gate),
        cmocka_unit_test(test_scales_of_weights),
        cmocka_unit_test(test_nan_shows),
        cmocka_unit_test(test_graph),
        cmocka_unit_test(test_far_tokens),
        cmocka_unit_test(test_bad_addresses),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_context_free(gpu);
    return failed;
}
