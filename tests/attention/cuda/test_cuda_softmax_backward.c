/* Gradients of softmax attention on a GPU: each type and memory layout against the double reference with the CPU's
 * gate, and the same bits twice. */
#include "tests/attention/cuda/softmax_device.h"
#include "tests/attention/softmax_gradient_cases.h"

static hla_context *gpu;

/* Beside the shapes of the CPU's test: several tiles and chunks of columns. */
static const shape tiled[] = {
    {1, 4, 150, 200, 128, 128, 1, false, false, false, 2},
    {2, 2, 193, 193, 64, 130, 1, true, true, true, 0},
    {1, 2, 65, 64, 257, 129, 1, false, false, false, 1},
};

/* Runs one kernel and returns its gradients, having checked that nothing else was written. */
static gradients run(setting *s, const char *kernel) {
    const hla_softmax_problem *p = &s->problem;
    const int64_t heads = hla_softmax_key_heads(p);
    device_plan plan;
    gradients g = gradients_make(s);
    if (!device_plan_make(&plan, gpu, p, kernel, true)) {
        gradients_free(&g);
        return (gradients){0};
    }
    array out[GRADIENTS] = {array_poisoned(s->layout, p->dtype, p->batch, p->queries, p->heads, p->dim),
                            array_poisoned(s->layout, p->dtype, p->batch, p->keys, heads, p->dim),
                            array_poisoned(s->layout, p->dtype, p->batch, p->keys, heads, p->value_dim)};
    array *in[] = {&s->d_out, &s->q, &s->k, &s->v};
    device_array to[GRADIENTS], from[4];
    for (int i = 0; i < GRADIENTS; i++)
        to[i] = device_array_of(&out[i]);
    for (int i = 0; i < 4; i++)
        from[i] = device_array_of(in[i]);
    float *bias = device_copy(s->bias, (size_t)p->keys * sizeof(float));
    hla_status status =
        hla_softmax_backward(plan.plan, &to[0].view, &to[1].view, &to[2].view, &from[0].view, &from[1].view,
                             &from[2].view, &from[3].view, s->call.key_lengths, bias, plan.workspace.block, plan.size);
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu));
    device_wait(gpu);
    for (int i = 0; i < GRADIENTS; i++) {
        device_array_fetch(&out[i], &to[i]);
        free(g.values[i]);
        g.values[i] = values_of(&out[i].view);
        assert_gaps_untouched(&out[i]);
        array_free(&out[i]);
        device_free(to[i].block);
    }
    for (int i = 0; i < 4; i++)
        device_free(from[i].block);
    device_free(bias);
    device_plan_free(&plan);
    return g;
}

static int check_kernel(setting *s, const char *kernel, const char *what, const gradients *truth,
                        const gradients *naive) {
    int failures = 0;
    gradients g = run(s, kernel), again = g.values[0] ? run(s, kernel) : g;
    for (int i = 0; i < GRADIENTS && g.values[0]; i++) {
        /* eight roundings at least, as on the CPU */
        double naive_error = fmax(relative_error(naive->values[i], truth->values[i], g.count[i]), 0x1p-22);
        double error = relative_error(g.values[i], truth->values[i], g.count[i]);
        bool good = passes_gate(error, naive_error, s->problem.dtype);
        bool same = memcmp(g.values[i], again.values[i], (size_t)g.count[i] * sizeof(double)) == 0;
        if (good && same) continue;
        failures++;
        printf("%s, %s, %s: error %g, naive %g%s\n", kernel, what, gradient_names[i], error, naive_error,
               same ? "" : "; other bits the second time");
    }
    if (g.values[0]) gradients_free(&again);
    gradients_free(&g);
    return failures;
}

static void check_shapes(const shape *list, size_t count) {
    int failures = 0;
    for (size_t i = 0; i < count; i++) {
        for (int variant = 0; variant < 3 * LAYOUTS; variant++) {
            setting s;
            char what[128];
            setting_make(&s, &list[i], (hla_dtype)(variant % 3), (array_layout)(variant / 3));
            gradients truth = oracle(&s), naive = naive_float(&s);
            snprintf(what, sizeof what, "shape %zu, %s, layout %d", i, hla_dtype_name(s.problem.dtype), variant / 3);
            hla_softmax_kernel_info info;
            for (int kernel = 0; hla_softmax_kernel(gpu, kernel, &info); kernel++)
                if (info.runs_here) failures += check_kernel(&s, info.name, what, &truth, &naive);
            gradients_free(&truth), gradients_free(&naive);
            setting_free(&s);
        }
    }
    if (failures > 0) fail_msg("%d gradients are off", failures);
}

static void test_kernels_pass_the_gate(void **state) {
    (void)state;
    check_shapes(shapes, sizeof shapes / sizeof shapes[0]);
}

static void test_tiles_pass_the_gate(void **state) {
    (void)state;
    check_shapes(tiled, sizeof tiled / sizeof tiled[0]);
}

int main(void) {
    gpu = device_context();
    if (!gpu) return SKIPPED;
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_kernels_pass_the_gate),
                                       cmocka_unit_test(test_tiles_pass_the_gate)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_context_free(gpu);
    return failed;
}
