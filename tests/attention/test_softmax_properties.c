/* Softmax attention by its mathematical properties, for every kernel that runs here. */
#include "hla/softmax.h"
#include "tests/attention/maps_support.h"

typedef struct sizes {
    int64_t b, h, tq, tk, d, v;
} sizes;

typedef struct inputs {
    array q, k, v;
} inputs;

static inputs inputs_random(const sizes *n, double score_scale, uint64_t seed) {
    return (inputs){.q = array_random(LAYOUT_BTHD, HLA_F32, n->b, n->tq, n->h, n->d, score_scale, &seed),
                    .k = array_random(LAYOUT_BTHD, HLA_F32, n->b, n->tk, n->h, n->d, score_scale, &seed),
                    .v = array_random(LAYOUT_BTHD, HLA_F32, n->b, n->tk, n->h, n->v, 1, &seed)};
}

static void inputs_free(inputs *in) {
    array_free(&in->q), array_free(&in->k), array_free(&in->v);
}

/* Contiguous output [B,Tq,H,V] of one kernel, in doubles. */
static double *attend(const char *kernel, const inputs *in, const int64_t *key_lengths, const float *key_bias,
                      float scale) {
    const hla_tensor *q = &in->q.view, *v = &in->v.view;
    hla_context *context = context_with(1, false);
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = q->shape[0], problem.heads = q->shape[2], problem.queries = q->shape[1];
    problem.keys = v->shape[1], problem.dim = q->shape[3], problem.value_dim = v->shape[3];
    problem.kernel = kernel, problem.scale = scale;
    hla_softmax_plan *plan = NULL;
    assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_OK);
    size_t size = hla_softmax_plan_workspace(plan);
    void *workspace = aligned_alloc(HLA_ALIGNMENT, size + HLA_ALIGNMENT);
    assert_non_null(workspace);
    array out = array_poisoned(LAYOUT_BTHD, HLA_F32, q->shape[0], q->shape[1], q->shape[2], v->shape[3]);
    assert_int_equal(hla_softmax_forward(plan, &out.view, q, &in->k.view, v, key_lengths, key_bias, workspace, size),
                     HLA_OK);
    double *values = values_of(&out.view);
    array_free(&out);
    free(workspace);
    hla_softmax_plan_free(plan);
    hla_context_free(context);
    return values;
}

static void fill(array *a, float value) {
    FOR_EACH_ELEMENT(&a->view, b, t, h, x)
    set(&a->view, b, t, h, x, value);
}

#define FOR_EACH_KERNEL(info)                                                                                          \
    hla_softmax_kernel_info info;                                                                                      \
    for (int number = 0; hla_softmax_kernel(NULL, number, &info); number++)                                            \
        if (info.runs_here)

static void test_rows_sum_to_one(void **state) {
    (void)state;
    const sizes n = {2, 2, 50, 300, 16, 9};
    inputs in = inputs_random(&n, 2, 1);
    fill(&in.v, 1);
    FOR_EACH_KERNEL(info) {
        double *out = attend(info.name, &in, NULL, NULL, 0);
        for (int64_t i = 0; i < n.b * n.tq * n.h * n.v; i++)
            if (!(fabs(out[i] - 1) <= 1e-6)) fail_msg("%s: a row of weights sums to %.9g", info.name, out[i]);
        free(out);
    }
    inputs_free(&in);
}

/* A scale of one's own is a factor of the queries; 0 stands for 1/sqrt(D), here 1/4. */
static void test_scale(void **state) {
    (void)state;
    const sizes n = {1, 2, 21, 90, 16, 9};
    const int64_t count = n.b * n.tq * n.h * n.v;
    inputs in = inputs_random(&n, 1, 7), scaled = inputs_random(&n, 1, 7);
    FOR_EACH_ELEMENT(&in.q.view, b, t, h, x)
    set(&scaled.q.view, b, t, h, x, 3 * get(&in.q.view, b, t, h, x));
    FOR_EACH_KERNEL(info) {
        double *usual = attend(info.name, &in, NULL, NULL, 0), *quarter = attend(info.name, &in, NULL, NULL, 0.25f);
        double *larger = attend(info.name, &in, NULL, NULL, 0.75f), *factor = attend(info.name, &scaled, NULL, NULL, 0);
        assert_memory_equal(usual, quarter, (size_t)count * sizeof *usual);
        double error = relative_error(larger, factor, count), distance = relative_error(larger, usual, count);
        if (!(error <= 2e-6 && distance > 0.1)) fail_msg("%s: error %g, distance %g", info.name, error, distance);
        free(usual), free(quarter), free(larger), free(factor);
    }
    inputs_free(&in), inputs_free(&scaled);
}

/* The same number added to every score changes nothing. */
static void test_a_shift_of_all_scores_cancels(void **state) {
    (void)state;
    const sizes n = {1, 2, 33, 270, 16, 24};
    inputs in = inputs_random(&n, 1, 2);
    float bias[270];
    FOR_EACH_KERNEL(info) {
        double *plain = attend(info.name, &in, NULL, NULL, 0);
        for (int step = -2; step <= 2; step++) {
            float shift = 25 * (float)step;
            for (int j = 0; j < 270; j++)
                bias[j] = shift;
            double *shifted = attend(info.name, &in, NULL, bias, 0);
            /* adding 50 rounds a score to 2^-19, about 2e-6 */
            double error = relative_error(shifted, plain, n.b * n.tq * n.h * n.v);
            if (!(error <= 4e-6)) fail_msg("%s: shift %g changes the output by %g", info.name, (double)shift, error);
            free(shifted);
        }
        free(plain);
    }
    inputs_free(&in);
}

/* A key with bias ln n is n identical keys. */
static void test_bias_counts_repeated_keys(void **state) {
    (void)state;
    enum { KEYS = 5, REPEATED = 1 + 2 + 3 + 4 + 90 };
    static const int64_t times[KEYS] = {1, 2, 3, 4, 90};
    const sizes n = {2, 2, 19, KEYS, 8, 11};
    inputs in = inputs_random(&n, 1, 3);
    inputs repeated = in;
    repeated.k = array_poisoned(LAYOUT_BTHD, HLA_F32, n.b, REPEATED, n.h, n.d);
    repeated.v = array_poisoned(LAYOUT_BTHD, HLA_F32, n.b, REPEATED, n.h, n.v);
    float bias[KEYS];
    int64_t place = 0;
    for (int64_t j = 0; j < KEYS; j++) {
        bias[j] = logf((float)times[j]);
        for (int64_t copy = 0; copy < times[j]; copy++, place++) {
            for (int64_t i = 0; i < n.b * n.h; i++) {
                memcpy(hla_tensor_row(&repeated.k.view, i / n.h, place, i % n.h),
                       hla_tensor_row(&in.k.view, i / n.h, j, i % n.h), (size_t)n.d * sizeof(float));
                memcpy(hla_tensor_row(&repeated.v.view, i / n.h, place, i % n.h),
                       hla_tensor_row(&in.v.view, i / n.h, j, i % n.h), (size_t)n.v * sizeof(float));
            }
        }
    }
    FOR_EACH_KERNEL(info) {
        double *weighted = attend(info.name, &in, NULL, bias, 0), *plain = attend(info.name, &repeated, NULL, NULL, 0);
        double error = relative_error(weighted, plain, n.b * n.tq * n.h * n.v);
        if (!(error <= 1e-6)) fail_msg("%s: bias ln n and n keys differ by %g", info.name, error);
        free(weighted), free(plain);
    }
    array_free(&repeated.k), array_free(&repeated.v);
    inputs_free(&in);
}

/* Scores of +-10^4: each row is the value of its best key, wherever that key stands, and nothing overflows. */
static void test_extreme_scores(void **state) {
    (void)state;
    const sizes n = {1, 1, 40, 300, 1, 3};
    inputs in = inputs_random(&n, 1, 4);
    for (int64_t i = 0; i < n.tq; i++)
        set(&in.q.view, 0, i, 0, 0, i % 2 ? 100.f : -100.f);
    for (int64_t j = 0; j < n.tk; j++) /* from -100 to 100, in an order that moves the maximum between tiles */
        set(&in.k.view, 0, j, 0, 0, (float)((j * 77 + 150) % n.tk) / 299 * 200 - 100);
    FOR_EACH_KERNEL(info) {
        double *out = attend(info.name, &in, NULL, NULL, 1);
        for (int64_t i = 0; i < n.tq; i++) {
            int64_t best = 0;
            for (int64_t j = 0; j < n.tk; j++) {
                if (get(&in.q.view, 0, i, 0, 0) * get(&in.k.view, 0, j, 0, 0) >
                    get(&in.q.view, 0, i, 0, 0) * get(&in.k.view, 0, best, 0, 0))
                    best = j;
            }
            for (int64_t x = 0; x < n.v; x++) {
                double wanted = (double)get(&in.v.view, 0, best, 0, x), found = out[i * n.v + x];
                if (!(fabs(found - wanted) <= 1e-6 * fabs(wanted))) {
                    fail_msg("%s: query %d gives %g, wanted %g", info.name, (int)i, found, wanted);
                }
            }
        }
        free(out);
    }
    inputs_free(&in);
}

/* Keys beyond the length are not even read: they may hold NaN. */
static void test_keys_beyond_the_length_are_not_read(void **state) {
    (void)state;
    const sizes n = {3, 2, 20, 270, 8, 12};
    const int64_t lengths[] = {261, 0, 5};
    inputs in = inputs_random(&n, 1, 5);
    inputs poisoned = inputs_random(&n, 1, 5);
    for (int64_t b = 0; b < n.b; b++) {
        for (int64_t j = lengths[b]; j < n.tk; j++) {
            for (int64_t h = 0; h < n.h; h++) {
                memset(hla_tensor_row(&poisoned.k.view, b, j, h), 0xff, (size_t)n.d * sizeof(float));
                memset(hla_tensor_row(&poisoned.v.view, b, j, h), 0xff, (size_t)n.v * sizeof(float));
            }
        }
    }
    FOR_EACH_KERNEL(info) {
        double *clean = attend(info.name, &in, lengths, NULL, 0), *out = attend(info.name, &poisoned, lengths, NULL, 0);
        int64_t one = n.tq * n.h * n.v;
        assert_memory_equal(out, clean, (size_t)(n.b * one) * sizeof *out);
        for (int64_t i = 0; i < n.b * one; i++)
            assert_true(isfinite(out[i]));
        for (int64_t i = one; i < 2 * one; i++)
            assert_true(out[i] == 0); /* batch entry 1 has no keys */
        free(clean), free(out);
    }
    inputs_free(&in), inputs_free(&poisoned);
}

/* Minus infinity as bias takes a key out; with every key out the rows are zero. */
static void test_minus_infinity_masks_a_key(void **state) {
    (void)state;
    const sizes n = {1, 2, 21, 300, 8, 12};
    inputs in = inputs_random(&n, 1, 6);
    float mask[300], low[300];
    const int64_t length = 130;
    for (int64_t j = 0; j < 300; j++)
        mask[j] = j < length ? 0 : -INFINITY, low[j] = -INFINITY;
    FOR_EACH_KERNEL(info) {
        double *masked = attend(info.name, &in, NULL, mask, 0), *cut = attend(info.name, &in, &length, NULL, 0);
        double error = relative_error(masked, cut, n.tq * n.h * n.v);
        if (!(error <= 1e-6)) fail_msg("%s: masked and cut keys differ by %g", info.name, error);
        double *nothing = attend(info.name, &in, NULL, low, 0);
        for (int64_t i = 0; i < n.tq * n.h * n.v; i++)
            assert_true(nothing[i] == 0);
        free(masked), free(cut), free(nothing);
    }
    inputs_free(&in);
}

/* NaN in a query is not hidden, and stays in its own row. */
static void test_nan_shows(void **state) {
    (void)state;
    const sizes n = {1, 1, 20, 40, 8, 4};
    inputs in = inputs_random(&n, 1, 7);
    set(&in.q.view, 0, 3, 0, 5, NAN);
    FOR_EACH_KERNEL(info) {
        double *out = attend(info.name, &in, NULL, NULL, 0);
        for (int64_t i = 0; i < n.tq * n.v; i++)
            assert_int_equal(isnan(out[i]) != 0, i / n.v == 3);
        free(out);
    }
    inputs_free(&in);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_sum_to_one),
        cmocka_unit_test(test_scale),
        cmocka_unit_test(test_a_shift_of_all_scores_cancels),
        cmocka_unit_test(test_bias_counts_repeated_keys),
        cmocka_unit_test(test_extreme_scores),
        cmocka_unit_test(test_keys_beyond_the_length_are_not_read),
        cmocka_unit_test(test_minus_infinity_masks_a_key),
        cmocka_unit_test(test_nan_shows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
