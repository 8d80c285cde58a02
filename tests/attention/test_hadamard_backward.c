/* Gradients: the reference against finite differences in double, every kernel against the derivative written out. */
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REAL double
#define NAMED(name) name##_double
#include "tests/attention/hadamard_formula.h"
#undef REAL
#undef NAMED

static hla_context *make_context(int threads) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = threads;
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    return context;
}

static void backward_or_fail(hla_context *context, hadamard_data *data, const char *kernel, const char *label) {
    hla_status status = hadamard_run_backward(context, data, kernel);
    if (status != HLA_OK) fail_msg("%s, %s: %s", label, kernel, hla_context_error(context));
}

/* ---- finite differences ---- */

/* One of each mode, and all of them. */
static const hadamard_case tiny[] = {
    {1, 1, 3, 4, 2, 1, {3}, LAYOUT_BTHD, 0},
    {2, 2, 3, 4, 3, 2, {2, 3}, LAYOUT_BHTD, LENGTHS},
    {1, 2, 3, 2, 2, 3, {2, 1, 3}, LAYOUT_BTHD, GROUPED},
    {1, 1, 2, 3, 2, 4, {2, 1, 2, 2}, LAYOUT_PADDED, 0},
    {1, 2, 4, 5, 2, 2, {3, 2}, LAYOUT_BTHD, CAUSAL},
    {1, 2, 7, 8, 2, 2, {2, 2}, LAYOUT_BTHD, PACKED},
    {1, 1, 3, 4, 2, 2, {2, 3}, LAYOUT_BTHD, STATEFUL},
    {2, 2, 3, 4, 2, 2, {3, 2}, LAYOUT_STRIDED_X, STATEFUL | CAUSAL | GROUPED | LENGTHS},
    {1, 2, 8, 9, 2, 3, {2, 3, 2}, LAYOUT_BTHD, STATEFUL | CAUSAL | GROUPED | PACKED},
};

/* The loss sum out g + sum final_state G, by the forward formula in double; d_out is not seen by it. */
static double loss(const arrays_double *inputs, const hadamard_data *data, const double *g, const double *G) {
    arrays_double forward = *inputs;
    forward.d_out = forward.d_final_state = NULL;
    memset(forward.output, 0, sizeof forward.output);
    double sum = 0;
    const double *weights[] = {g, G};
    for (int i = OUT; i <= FINAL_STATE; i++) {
        int64_t count = hadamard_count(&data->output[i]);
        if (count == 0) continue;
        forward.output[i] = calloc((size_t)count, sizeof(double));
        if (!forward.output[i]) abort();
    }
    formula_double(&forward);
    for (int i = OUT; i <= FINAL_STATE; i++) {
        for (int64_t e = 0; e < hadamard_count(&data->output[i]); e++)
            sum += forward.output[i][e] * weights[i][e];
        free(forward.output[i]);
    }
    return sum;
}

/* Compares an output of the backward pass with central differences over the input it belongs to. */
static void check_differences(const arrays_double *inputs, const hadamard_data *data, hadamard_output output,
                              double *input, const double *g, const double *G, int index) {
    const double step = 1e-4;
    double *found = hadamard_copy(&data->output[output]), difference = 0, norm = 0;
    for (int64_t e = 0; e < hadamard_count(&data->output[output]); e++) {
        double kept = input[e];
        input[e] = kept + step;
        double above = loss(inputs, data, g, G);
        input[e] = kept - step;
        double below = loss(inputs, data, g, G);
        input[e] = kept;
        double error = found[e] - (above - below) / (2 * step);
        difference += error * error;
        norm += found[e] * found[e];
    }
    free(found);
    char name[32];
    hadamard_output_name(name, output);
    /* the float result's rounding, and the differences' own error of step^2 */
    if (!(sqrt(difference) <= 1e-6 * sqrt(norm)) || !(sqrt(norm) > 1e-5))
        fail_msg("tiny case %d, %s: off by %.3g of %.3g", index, name, sqrt(difference), sqrt(norm));
}

/* Keys beyond a length are NaN, and stay unread. */
static double *copy_or_null(const guarded *array) {
    return array->pages ? hadamard_copy(array) : NULL;
}

static void check_tiny(hla_context *context, int index, bool normalised) {
    hadamard_data data = hadamard_make_backward(&tiny[index], HLA_F32, normalised, 40u + (uint64_t)index);
    char label[32];
    snprintf(label, sizeof label, "tiny case %d", index);
    backward_or_fail(context, &data, "reference", label);
    arrays_double inputs = {&data.problem, data.key_lengths, data.query_starts, data.key_starts,
                            .v = copy_or_null(&data.v)};
    inputs.initial_state = copy_or_null(&data.initial_state);
    double *g = hadamard_copy(&data.d_out), *G = hadamard_copy(&data.d_final_state);
    for (int p = 0; p < data.problem.factors; p++) {
        inputs.q[p] = hadamard_copy(&data.q[p]);
        inputs.k[p] = hadamard_copy(&data.k[p]);
    }
    check_differences(&inputs, &data, DV, inputs.v, g, G, index);
    if (data.problem.stateful) check_differences(&inputs, &data, D_INITIAL_STATE, inputs.initial_state, g, G, index);
    for (int p = 0; p < data.problem.factors; p++) {
        check_differences(&inputs, &data, DQ + (hadamard_output)p, inputs.q[p], g, G, index);
        check_differences(&inputs, &data, DK + (hadamard_output)p, inputs.k[p], g, G, index);
    }
    for (int p = 0; p < data.problem.factors; p++) {
        free(inputs.q[p]);
        free(inputs.k[p]);
    }
    free(inputs.v);
    free(inputs.initial_state);
    free(g);
    free(G);
    hadamard_free(&data);
}

static void test_finite_differences(void **unused) {
    (void)unused;
    hla_context *context = make_context(1);
    for (int index = 0; index < (int)(sizeof tiny / sizeof tiny[0]); index++) {
        check_tiny(context, index, true);
        check_tiny(context, index, false);
    }
    hla_context_free(context);
}

/* ---- every kernel ---- */

/* The reference takes seconds where there are many pairs of tokens or features. */
static bool small_enough(const hadamard_case *c, const hla_kernel_info *info) {
    int64_t rank = 1;
    for (int p = 0; p < c->factors; p++)
        rank *= c->rank[p];
    int64_t work = c->queries * c->keys + (c->modes & STATEFUL ? (c->queries + c->keys) * rank : 0);
    return info->form == HLA_FORM_STATE || work * c->batch * c->heads <= 20000;
}

static void check_case(hla_context *context, int index, hla_dtype dtype, bool normalised) {
    const hadamard_case *c = &hadamard_cases[index];
    hadamard_data data = hadamard_make_backward(c, dtype, normalised, 2000u + (uint64_t)index);
    char label[32];
    snprintf(label, sizeof label, "case %d", index);
    hla_kernel_info info;
    int ran = 0;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        bool own = info.form == HLA_FORM_STATE || i == 0; /* others borrow that of a state kernel */
        if (!own || !hadamard_takes(&data, &info) || !small_enough(c, &info)) continue;
        backward_or_fail(context, &data, info.name, label);
        hadamard_check(&data, DV, HADAMARD_OUTPUTS, label);
        ran++;
    }
    assert_true(ran >= 1); /* the baseline runs anywhere */
    hadamard_free(&data);
}

static void test_all_kernels(void **unused) {
    (void)unused;
    static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};
    hla_context *context = make_context(1); /* more give the same bits, as test_threads shows */
    for (int index = 0; index < hadamard_case_count; index++) {
        for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
            check_case(context, index, dtypes[d], true);
            check_case(context, index, dtypes[d], false);
        }
    }
    hla_context_free(context);
}

/* ---- properties ---- */

/* Quadratic kernels borrow the state kernel of their instruction set. */
static void test_quadratic_kernels(void **unused) {
    (void)unused;
    static const hadamard_case c = {2, 2, 37, 141, 34, 2, {12, 9}, LAYOUT_PADDED, CAUSAL | LENGTHS};
    hla_context *context = make_context(2);
    hadamard_data data = hadamard_make_backward(&c, HLA_F32, true, 60);
    hla_kernel_info info;
    for (int i = 1; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (!hadamard_takes_all(&info) || info.form == HLA_FORM_STATE) continue;
        backward_or_fail(context, &data, info.name, "quadratic");
        hadamard_check(&data, DV, HADAMARD_OUTPUTS, "quadratic");
    }
    hadamard_free(&data);
    hla_context_free(context);
}

/* The same bits for 1, 2 and 3 threads, out and states too, with fewer and with more heads than threads. */
static void check_threads(const hadamard_case *c, const char *kernel, hla_context *const contexts[3]) {
    hadamard_data data = hadamard_make_backward(c, HLA_F32, true, 61);
    double *one[HADAMARD_OUTPUTS] = {NULL};
    for (int threads = 1; threads <= 3; threads++) {
        hla_status status = hadamard_run(contexts[threads - 1], &data, kernel);
        if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(contexts[threads - 1]));
        backward_or_fail(contexts[threads - 1], &data, kernel, "threads");
        for (hadamard_output i = OUT; i < HADAMARD_OUTPUTS; i++) {
            if (!data.output[i].pages) continue;
            double *found = hadamard_copy(&data.output[i]);
            char name[32];
            hadamard_output_name(name, i);
            if (threads > 1 && memcmp(one[i], found, (size_t)hadamard_count(&data.output[i]) * sizeof *found) != 0)
                fail_msg("%s: %d threads give other bits than 1 in %s", kernel, threads, name);
            if (threads > 1) free(found);
            if (threads == 1) one[i] = found;
        }
    }
    for (int i = 0; i < HADAMARD_OUTPUTS; i++)
        free(one[i]);
    hadamard_free(&data);
}

static void test_threads(void **unused) {
    (void)unused;
    static const hadamard_case cases[] = {
        {1, 1, 300, 530, 20, 2, {32, 16}, LAYOUT_BTHD, 0},
        {1, 1, 600, 600, 20, 2, {20, 20}, LAYOUT_BTHD, CAUSAL},
        {2, 3, 140, 270, 24, 3, {5, 6, 7}, LAYOUT_BTHD, LENGTHS},
        {1, 4, 300, 330, 12, 2, {6, 9}, LAYOUT_BTHD, STATEFUL | CAUSAL | GROUPED | PACKED},
        {1, 1, 40, 30, 64, 2, {64, 64}, LAYOUT_BTHD, STATEFUL},
        {1, 2, 8300, 20, 5, 2, {3, 4}, LAYOUT_BTHD, GROUPED},
    };
    hla_context *const contexts[3] = {make_context(1), make_context(2), make_context(3)};
    hla_kernel_info info;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int i = 1; hla_hadamard_kernel(NULL, i, &info); i++) {
            if (hadamard_takes_all(&info) && info.form == HLA_FORM_STATE) check_threads(&cases[c], info.name, contexts);
        }
    }
    static const hadamard_case small = {2, 2, 9, 11, 3, 2, {3, 4}, LAYOUT_BTHD, STATEFUL | CAUSAL};
    check_threads(&small, "reference", contexts);
    for (int i = 0; i < 3; i++)
        hla_context_free(contexts[i]);
}

/* d_initial_state may be d_final_state itself: the same bits come out. */
static void test_gradient_in_place(void **unused) {
    (void)unused;
    static const hadamard_case cases[] = {
        {2, 3, 140, 150, 10, 2, {20, 20}, LAYOUT_BHTD, STATEFUL},
        {2, 2, 140, 150, 10, 2, {5, 6}, LAYOUT_BHTD, STATEFUL | CAUSAL | GROUPED},
        {1, 1, 30, 40, 64, 2, {64, 64}, LAYOUT_BHTD, STATEFUL | CAUSAL}, /* several feature ranges */
    };
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
            hadamard_data data = hadamard_make_backward(&cases[c], HLA_F32, true, 64);
            if (hadamard_takes(&data, &info) && small_enough(&cases[c], &info)) {
                backward_or_fail(context, &data, info.name, "apart");
                double *apart = hadamard_copy(&data.output[D_INITIAL_STATE]);
                guarded gradient = data.output[D_INITIAL_STATE];
                data.output[D_INITIAL_STATE] = data.d_final_state;
                backward_or_fail(context, &data, info.name, "in place");
                double *in_place = hadamard_copy(&data.output[D_INITIAL_STATE]);
                data.output[D_INITIAL_STATE] = gradient;
                if (memcmp(apart, in_place, (size_t)hadamard_count(&gradient) * sizeof *apart) != 0)
                    fail_msg("%s, case %d: another gradient in place", info.name, (int)c);
                free(apart);
                free(in_place);
            }
            hadamard_free(&data);
        }
    }
    hla_context_free(context);
}

/* Gradients are linear in (d_out, d_final_state): twice those, which rounds nothing, is twice the gradients. */
static void test_linearity(void **unused) {
    (void)unused;
    static const hadamard_case c = {1, 2, 140, 150, 10, 2, {5, 6}, LAYOUT_BHTD, STATEFUL | CAUSAL};
    hla_context *context = make_context(2);
    hla_kernel_info info;
    hadamard_data data = hadamard_make_backward(&c, HLA_F32, true, 62);
    for (int i = 1; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (!hadamard_takes(&data, &info)) continue;
        double *once[HADAMARD_OUTPUTS] = {NULL};
        for (int factor = 1; factor <= 2; factor++) {
            guarded *const scaled[] = {&data.d_out, &data.d_final_state};
            for (int s = 0; s < 2; s++) {
                float *values = scaled[s]->view.data;
                for (int64_t e = 0; e < hadamard_count(scaled[s]); e++)
                    values[e] *= factor == 1 ? 0.5f : 2.0f;
            }
            backward_or_fail(context, &data, info.name, "linearity");
            for (int o = DV; o < HADAMARD_OUTPUTS; o++) {
                double *found = hadamard_copy(&data.output[o]);
                for (int64_t e = 0; factor == 2 && e < hadamard_count(&data.output[o]); e++)
                    assert_true(found[e] == 2 * once[o][e]);
                if (factor == 2) free(found);
                if (factor == 1) once[o] = found;
            }
        }
        for (int o = DV; o < HADAMARD_OUTPUTS; o++)
            free(once[o]);
    }
    hadamard_free(&data);
    hla_context_free(context);
}

/* A state's gradient is wanted although there is no initial state, which then counts as zero. */
static void test_no_initial_state(void **unused) {
    (void)unused;
    static const hadamard_case c = {2, 2, 30, 40, 10, 2, {5, 6}, LAYOUT_BTHD, STATEFUL};
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (unsigned causal = 0; causal <= CAUSAL; causal += CAUSAL) {
        hadamard_case mode = c;
        mode.modes |= causal;
        hadamard_data data = hadamard_make_backward(&mode, HLA_F32, true, 63);
        guarded_free(&data.initial_state);
        guarded_free(&data.d_final_state);
        hadamard_answer(&data);
        for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
            if (!hadamard_takes(&data, &info)) continue;
            backward_or_fail(context, &data, info.name, "no initial state");
            hadamard_check(&data, DV, HADAMARD_OUTPUTS, "no initial state");
        }
        hadamard_free(&data);
    }
    hla_context_free(context);
}

/* A row whose denominator is exactly zero has no gradient, and gives none to the keys: no NaN either. */
static void test_zero_denominator(void **unused) {
    (void)unused;
    static const hadamard_case c = {1, 2, 140, 150, 10, 2, {5, 6}, LAYOUT_BTHD, 0};
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (unsigned causal = 0; causal <= CAUSAL; causal += CAUSAL) {
        hadamard_case mode = c;
        mode.modes |= causal;
        hadamard_data data = hadamard_make_backward(&mode, HLA_F32, true, 64);
        data.problem.epsilon = 0;
        for (int64_t r = 0; r < c.rank[0]; r++)
            set(&data.q[0].view, 0, 130, 1, r, 0);
        hadamard_answer(&data);
        for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
            if (!hadamard_takes(&data, &info)) continue;
            backward_or_fail(context, &data, info.name, "zero denominator");
            hadamard_check(&data, DV, HADAMARD_OUTPUTS, "zero denominator");
            for (int64_t r = 0; r < c.rank[0]; r++)
                assert_true(get(&data.output[DQ].view, 0, 130, 1, r) == 0);
        }
        hadamard_free(&data);
    }
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_all_kernels),
        cmocka_unit_test(test_quadratic_kernels),  cmocka_unit_test(test_threads),
        cmocka_unit_test(test_gradient_in_place),  cmocka_unit_test(test_linearity),
        cmocka_unit_test(test_no_initial_state),   cmocka_unit_test(test_zero_denominator),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
