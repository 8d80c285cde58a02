/* Softmax kernels of a GPU: each type and memory layout against the double reference with the CPU's gate, the same bits
 * twice, CUDA graphs, and what cuDNN does not take. */
#include "tests/attention/cuda/softmax_device.h"
#include "tests/attention/softmax_cases.h"

static hla_context *gpu;

/* Beside the shapes of the CPU's test: what cuDNN takes as well, with widths of models, and tiles that end anywhere. */
static const shape models[] = {
    {1, 2, 64, 64, 64, 64, 1, 0, 0, false, 0},     {2, 1, 100, 130, 64, 64, 1, 0, 0, false, 0},
    {1, 1, 150, 129, 128, 128, 1, 0, 0, false, 0}, {1, 4, 65, 100, 128, 64, 1, 0, 0, false, 2},
    {1, 1, 200, 200, 128, 128, 1, 0, 0, true, 0},  {2, 2, 70, 70, 64, 128, 1, 0, 0, true, 1},
    {1, 1, 20, 300, 72, 80, 1, 0, 0, false, 0},    {2, 1, 70, 90, 128, 128, 1, 1, 1, false, 0},
    {1, 1, 70, 70, 128, 256, 1, 1, 0, true, 0},    {1, 1, 7, 200, 40, 300, 2, 0, 0, false, 0},
};

typedef struct device_setting {
    device_array q, k, v, out;
    float *bias;
} device_setting;

static device_setting to_device(setting *s) {
    memset(s->out.block, 0xff, s->out.bytes);
    return (device_setting){device_array_of(&s->q), device_array_of(&s->k), device_array_of(&s->v),
                            device_array_of(&s->out), device_copy(s->bias, (size_t)s->problem.keys * sizeof(float))};
}

static void device_setting_free(device_setting *made) {
    device_free(made->q.block), device_free(made->k.block), device_free(made->v.block), device_free(made->out.block);
    device_free(made->bias);
}

static void queue(const setting *s, const device_setting *on, const device_plan *plan) {
    hla_status status = hla_softmax_forward(plan->plan, &on->out.view, &on->q.view, &on->k.view, &on->v.view,
                                            s->call.key_lengths, on->bias, plan->workspace.block, plan->size);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu));
}

static double *fetch(setting *s, const device_setting *on) {
    device_wait(gpu);
    device_array_fetch(&s->out, &on->out);
    double *values = values_of(&s->out.view);
    assert_gaps_untouched(&s->out);
    return values;
}

/* Runs one kernel twice and returns its output as doubles, having checked that nothing else was written and, with
 * `same`, whether the bits were the same; NULL if it does not take the problem. */
static double *run(setting *s, const char *kernel, bool *same) {
    device_plan plan;
    if (!device_plan_make(&plan, gpu, &s->problem, kernel, false)) return NULL;
    double *values[2];
    for (int round = 0; round < 2; round++) {
        device_setting on = to_device(s);
        queue(s, &on, &plan);
        values[round] = fetch(s, &on);
        device_setting_free(&on);
    }
    device_plan_free(&plan);
    bool equal = memcmp(values[0], values[1], (size_t)output_count(s) * sizeof *values[0]) == 0;
    if (same) *same = equal;
    free(values[1]);
    return values[0];
}

/* Keys beyond their entry's length must not be read. */
static void poison_beyond_lengths(setting *s) {
    FOR_EACH_ELEMENT(&s->k.view, b, t, h, x)
    if (s->call.key_lengths && t >= s->lengths[b]) set(&s->k.view, b, t, h, x, NAN);
    FOR_EACH_ELEMENT(&s->v.view, b, t, h, x)
    if (s->call.key_lengths && t >= s->lengths[b]) set(&s->v.view, b, t, h, x, NAN);
}

/* All failures are printed before the test fails: time on a GPU may be scarce. */
typedef struct tally {
    int runs[16], failures; /* runs: of each kernel */
} tally;

/* What a shape's results are compared with; layouts hold the same numbers. */
typedef struct expectation {
    double *truth, naive_error;
} expectation;

static expectation expect_of(const shape *sizes, hla_dtype dtype) {
    setting s;
    setting_make(&s, sizes, dtype, LAYOUT_BTHD);
    double *truth = oracle(&s), *naive = naive_float(&s);
    for (int64_t n = 0; n < output_count(&s); n++)
        naive[n] = rounded(naive[n], dtype);
    expectation made = {truth, relative_error(naive, truth, output_count(&s))};
    free(naive);
    setting_free(&s);
    return made;
}

static void check_kernels(const shape *sizes, const expectation *expected, hla_dtype dtype, array_layout layout,
                          tally *sums) {
    setting s;
    setting_make(&s, sizes, dtype, layout);
    poison_beyond_lengths(&s);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(gpu, kernel, &info); kernel++) {
        bool same, prepares = strcmp(info.name, "cudnn") == 0; /* for some tenths of a second */
        if (!info.runs_here || (prepares && layout != LAYOUT_BTHD)) continue;
        double *values = run(&s, info.name, &same);
        if (!values) continue;
        double error = relative_error(values, expected->truth, output_count(&s));
        bool good = passes_gate(error, expected->naive_error, dtype);
        if (!good || !same) {
            printf("%s, B %d, H %d, Tq %d, Tk %d, D %d, V %d, %s, layout %d: error %g, naive %g%s\n", info.name,
                   (int)sizes->b, (int)sizes->h, (int)sizes->tq, (int)sizes->tk, (int)sizes->d, (int)sizes->v,
                   hla_dtype_name(dtype), (int)layout, error, expected->naive_error,
                   same ? "" : "; other bits the second time");
            sums->failures++;
        }
        sums->runs[kernel]++;
        free(values);
    }
    setting_free(&s);
}

static void check_shapes(const shape *list, size_t count) {
    tally sums = {0};
    expectation *expected = calloc(3 * count, sizeof *expected);
    assert_non_null(expected);
#pragma omp parallel for schedule(dynamic, 1)
    for (size_t i = 0; i < 3 * count; i++)
        expected[i] = expect_of(&list[i / 3], (hla_dtype)(i % 3));
    for (size_t i = 0; i < 3 * count; i++) {
        for (int layout = 0; layout < LAYOUTS; layout++)
            check_kernels(&list[i / 3], &expected[i], (hla_dtype)(i % 3), (array_layout)layout, &sums);
        free(expected[i].truth);
    }
    free(expected);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(gpu, kernel, &info); kernel++) {
        printf("%s took %d of %d\n", info.name, sums.runs[kernel], (int)count * 3 * LAYOUTS);
        if (sums.runs[kernel] == 0) printf("%s: %s\n", info.name, hla_context_error(gpu));
        if (strcmp(info.name, "tiled_cuda") == 0) assert_int_equal(sums.runs[kernel], (int)count * 3 * LAYOUTS);
    }
    if (sums.failures > 0) fail_msg("%d results are off", sums.failures);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    check_shapes(shapes, sizeof shapes / sizeof shapes[0]);
}

static void test_models_shapes_pass_the_gate(void **state) {
    (void)state;
    check_shapes(models, sizeof models / sizeof models[0]);
}

/* Forward calls never fail for want of a kernel: the plan falls back. */
static void test_the_plan_chooses(void **state) {
    (void)state;
    for (size_t i = 6; i < sizeof models / sizeof models[0]; i++) {
        for (int dtype = HLA_F32; dtype <= HLA_BF16; dtype++) {
            setting s;
            setting_make(&s, &models[i], (hla_dtype)dtype, LAYOUT_BTHD);
            double *values = run(&s, NULL, NULL);
            assert_non_null(values);
            free(values);
            setting_free(&s);
        }
    }
}

/* A captured call does the same again, on the memory's contents of then. */
static void test_graphs(void **state) {
    (void)state;
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(gpu, kernel, &info); kernel++) {
        setting s;
        device_plan plan;
        cudaGraph_t graph;
        cudaGraphExec_t runnable;
        setting_make(&s, &models[2], HLA_BF16, LAYOUT_BTHD);
        if (info.runs_here && device_plan_make(&plan, gpu, &s.problem, info.name, false)) {
            device_setting on = to_device(&s);
            assert_int_equal(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
            queue(&s, &on, &plan);
            assert_int_equal(cudaStreamEndCapture(gpu->stream, &graph), cudaSuccess);
            assert_int_equal(cudaGraphInstantiate(&runnable, graph, 0), cudaSuccess);
            assert_int_equal(cudaGraphLaunch(runnable, gpu->stream), cudaSuccess);
            double *captured = fetch(&s, &on), *direct = run(&s, info.name, NULL);
            assert_memory_equal(captured, direct, (size_t)output_count(&s) * sizeof *direct);
            free(captured), free(direct);
            assert_int_equal(cudaGraphExecDestroy(runnable), cudaSuccess);
            assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
            device_setting_free(&on);
            device_plan_free(&plan);
        }
        setting_free(&s);
    }
}

/* Host memory is refused before anything is queued, and the context goes on. */
static void test_host_memory_is_refused(void **state) {
    (void)state;
    setting s;
    device_plan plan;
    setting_make(&s, &models[0], HLA_F32, LAYOUT_BTHD);
    assert_true(device_plan_make(&plan, gpu, &s.problem, NULL, false));
    device_setting on = to_device(&s);
    hla_status status = hla_softmax_forward(plan.plan, &on.out.view, &s.q.view, &on.k.view, &on.v.view, NULL, NULL,
                                            plan.workspace.block, plan.size);
    assert_int_equal(status, HLA_ERROR_ARGUMENT);
    assert_non_null(strstr(hla_context_error(gpu), "q"));
    queue(&s, &on, &plan);
    free(fetch(&s, &on));
    device_setting_free(&on);
    device_plan_free(&plan);
    setting_free(&s);
}

int main(void) {
    gpu = device_context();
    if (!gpu) return SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_pass_the_gate),  cmocka_unit_test(test_models_shapes_pass_the_gate),
        cmocka_unit_test(test_the_plan_chooses),       cmocka_unit_test(test_graphs),
        cmocka_unit_test(test_host_memory_is_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_context_free(gpu);
    return failed;
}
