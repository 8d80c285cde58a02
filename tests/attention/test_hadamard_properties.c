/* What the operator means, tested by mathematics rather than by a table of numbers. */
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

static hla_context *make_context(int threads) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = threads;
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    return context;
}

static void run_or_fail(hla_context *context, hadamard_data *data, const char *kernel) {
    hla_status status = hadamard_run(context, data, kernel);
    if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
}

/* Calls check for every kernel that runs here. */
static void each_kernel(void (*check)(hla_context *context, const char *kernel)) {
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (hadamard_takes_all(&info)) check(context, info.name);
    }
    hla_context_free(context);
}

static double *matrix(int64_t rows, int64_t columns) {
    double *values = calloc((size_t)(rows * columns), sizeof *values);
    assert_non_null(values);
    return values;
}

/* The paper's point: the operator is a Hadamard product of P linear-attention score matrices, rows normalised, times V,
 * here with every one of those matrices written out. */
static void check_product_of_scores(hla_context *context, const char *kernel) {
    enum { T = 45, P = 3, V = 18 };
    const hadamard_case c = {1, 1, T, T, V, P, {6, 11, 4}, LAYOUT_BTHD, 0};
    hadamard_data data = hadamard_make(&c, HLA_F32, true, 7);
    double *product = matrix(T, T), *scores = matrix(T, T);
    for (int64_t e = 0; e < T * T; e++)
        product[e] = 1;
    for (int p = 0; p < P; p++) {
        for (int64_t e = 0; e < T * T; e++) {
            scores[e] = 0;
            for (int64_t r = 0; r < c.rank[p]; r++) {
                scores[e] += get(&data.q[p].view, 0, e / T, 0, r) * get(&data.k[p].view, 0, e % T, 0, r);
            }
        }
        for (int64_t e = 0; e < T * T; e++)
            product[e] *= scores[e];
    }
    run_or_fail(context, &data, kernel);
    for (int64_t i = 0; i < T; i++) {
        double row_sum = (double)data.problem.epsilon;
        for (int64_t j = 0; j < T; j++)
            row_sum += product[i * T + j];
        for (int64_t x = 0; x < V; x++) {
            double expected = 0;
            for (int64_t j = 0; j < T; j++)
                expected += product[i * T + j] / row_sum * get(&data.v.view, 0, j, 0, x);
            /* values lie in [-1,1] and weights sum to 1: an absolute error of some roundings of 1 */
            double error = fabs(get(&data.output[OUT].view, 0, i, 0, x) - expected);
            if (!(error <= 1e-6)) fail_msg("%s: [%d,%d] off by %.3g", kernel, (int)i, (int)x, error);
        }
    }
    free(product);
    free(scores);
    hadamard_free(&data);
}

static void test_product_of_scores(void **unused) {
    (void)unused;
    each_kernel(check_product_of_scores);
}

/* P = 1 is plain linear attention: a state S = sum_j c_j v_j^T, a normaliser z = sum_j c_j, out = a S / (a . z). */
static void check_linear_attention(hla_context *context, const char *kernel) {
    enum { TQ = 20, TK = 70, R = 24, V = 33 };
    const hadamard_case c = {1, 1, TQ, TK, V, 1, {R}, LAYOUT_BHTD, 0};
    hadamard_data data = hadamard_make(&c, HLA_F32, true, 8);
    double *state = matrix(R, V), *normaliser = matrix(R, 1);
    for (int64_t j = 0; j < TK; j++) {
        for (int64_t r = 0; r < R; r++) {
            double feature = get(&data.k[0].view, 0, j, 0, r);
            normaliser[r] += feature;
            for (int64_t x = 0; x < V; x++)
                state[r * V + x] += feature * get(&data.v.view, 0, j, 0, x);
        }
    }
    run_or_fail(context, &data, kernel);
    for (int64_t i = 0; i < TQ; i++) {
        double denominator = (double)data.problem.epsilon;
        for (int64_t r = 0; r < R; r++)
            denominator += get(&data.q[0].view, 0, i, 0, r) * normaliser[r];
        for (int64_t x = 0; x < V; x++) {
            double expected = 0;
            for (int64_t r = 0; r < R; r++)
                expected += get(&data.q[0].view, 0, i, 0, r) * state[r * V + x];
            double error = fabs(get(&data.output[OUT].view, 0, i, 0, x) - expected / denominator);
            if (!(error <= 1e-6)) fail_msg("%s: [%d,%d] off by %.3g", kernel, (int)i, (int)x, error);
        }
    }
    free(state);
    free(normaliser);
    hadamard_free(&data);
}

static void test_linear_attention(void **unused) {
    (void)unused;
    each_kernel(check_linear_attention);
}

static const hadamard_case property_case = {2, 2, 37, 141, 34, 2, {12, 9}, LAYOUT_PADDED, 0};

/* Calls change for each element of v, in order. */
static void fill_values(hadamard_data *data, double (*value)(int64_t index, double old)) {
    int64_t index = 0;
    const int64_t *shape = data->v.view.shape;
    for (int64_t b = 0; b < shape[0]; b++) {
        for (int64_t t = 0; t < shape[1]; t++) {
            for (int64_t h = 0; h < shape[2]; h++) {
                for (int64_t x = 0; x < shape[3]; x++, index++) {
                    set(&data->v.view, b, t, h, x, value(index, get(&data->v.view, b, t, h, x)));
                }
            }
        }
    }
}

static double other_values(int64_t index, double old) {
    (void)old;
    return sin((double)index);
}

/* 2 v + w, w being other_values rounded to float as they were when set */
static double combined_values(int64_t index, double old) {
    return 2 * old + (double)(float)sin((double)index);
}

static double *copy_output(const hadamard_data *data) {
    return hadamard_copy(&data->output[OUT]);
}

static int64_t output_count(const hadamard_data *data) {
    return hadamard_count(&data->output[OUT]);
}

static void check_linearity(hla_context *context, const char *kernel) {
    hadamard_data data = hadamard_make(&property_case, HLA_F32, true, 9);
    hadamard_data other = hadamard_make(&property_case, HLA_F32, true, 9);
    hadamard_data sum = hadamard_make(&property_case, HLA_F32, true, 9);
    fill_values(&other, other_values);
    fill_values(&sum, combined_values);
    run_or_fail(context, &data, kernel);
    run_or_fail(context, &other, kernel);
    run_or_fail(context, &sum, kernel);
    double *a = copy_output(&data), *b = copy_output(&other), *both = copy_output(&sum);
    for (int64_t i = 0; i < output_count(&data); i++) {
        double error = fabs(2 * a[i] + b[i] - both[i]);
        if (!(error <= 2e-6)) fail_msg("%s: f(2v + w) differs from 2f(v) + f(w) by %.3g", kernel, error);
    }
    free(a);
    free(b);
    free(both);
    hadamard_free(&data);
    hadamard_free(&other);
    hadamard_free(&sum);
}

static void test_linearity(void **unused) {
    (void)unused;
    each_kernel(check_linearity);
}

/* Rows of the tensor in reverse order of tokens. */
static void reverse_tokens(hla_tensor *tensor) {
    int64_t last = (tensor->shape[1] - 1) * tensor->stride[1];
    tensor->data = (char *)tensor->data + last * (int64_t)hla_dtype_size(tensor->dtype);
    tensor->stride[1] = -tensor->stride[1];
}

/* The order of the keys does not matter; tried with negative strides, which the kernels take as they are. */
static void check_permutation(hla_context *context, const char *kernel) {
    hadamard_data data = hadamard_make(&property_case, HLA_F32, true, 10);
    run_or_fail(context, &data, kernel);
    double *before = copy_output(&data);
    reverse_tokens(&data.k[0].view);
    reverse_tokens(&data.k[1].view);
    reverse_tokens(&data.v.view);
    run_or_fail(context, &data, kernel);
    double *after = copy_output(&data);
    for (int64_t i = 0; i < output_count(&data); i++) {
        double error = fabs(before[i] - after[i]);
        if (!(error <= 1e-6)) fail_msg("%s: reversed keys change the result by %.3g", kernel, error);
    }
    free(before);
    free(after);
    hadamard_free(&data);
}

static void test_permutation(void **unused) {
    (void)unused;
    each_kernel(check_permutation);
}

/* The same bits for 1, 2 and 3 threads, with fewer and with more heads than threads. */
static void test_threads(void **unused) {
    (void)unused;
    static const hadamard_case cases[] = {
        {1, 1, 300, 530, 64, 2, {32, 16}, LAYOUT_BTHD, 0},
        {1, 3, 150, 300, 40, 2, {20, 20}, LAYOUT_BHTD, 0},
        {2, 3, 140, 270, 24, 3, {5, 6, 7}, LAYOUT_BTHD, LENGTHS},
    };
    hla_context *contexts[] = {make_context(1), make_context(2), make_context(3)};
    hla_kernel_info info;
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        hadamard_data data = hadamard_make(&cases[c], HLA_F32, true, 11);
        for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
            if (!hadamard_takes_all(&info)) continue;
            run_or_fail(contexts[0], &data, info.name);
            double *one = copy_output(&data);
            for (int threads = 2; threads <= 3; threads++) {
                run_or_fail(contexts[threads - 1], &data, info.name);
                double *more = copy_output(&data);
                size_t bytes = (size_t)output_count(&data) * sizeof *one;
                if (memcmp(one, more, bytes) != 0)
                    fail_msg("%s: %d threads give other bits than 1", info.name, threads);
                free(more);
            }
            free(one);
        }
        hadamard_free(&data);
    }
    for (int i = 0; i < 3; i++)
        hla_context_free(contexts[i]);
}

/* Without any weight the result is zero, never NaN: features all zero, with epsilon zero as well. */
static void check_zero_denominator(hla_context *context, const char *kernel) {
    hadamard_data data = hadamard_make(&property_case, HLA_F32, true, 12);
    data.problem.epsilon = 0;
    for (int64_t b = 0; b < property_case.batch; b++) {
        for (int64_t h = 0; h < property_case.heads; h++) {
            for (int64_t r = 0; r < property_case.rank[0]; r++)
                set(&data.q[0].view, b, 5, h, r, 0);
        }
    }
    run_or_fail(context, &data, kernel);
    for (int64_t x = 0; x < property_case.value_dim; x++) {
        assert_true(get(&data.output[OUT].view, 1, 5, 1, x) == 0);
        assert_true(isfinite(get(&data.output[OUT].view, 1, 6, 1, x)));
    }
    hadamard_free(&data);
}

static void test_zero_denominator(void **unused) {
    (void)unused;
    each_kernel(check_zero_denominator);
}

/* A million equal keys: sums keep their tail. All features 1 and values alternating 1, 2 have the mean 1.5 exactly, and
 * a sum of the same weights in plain float order would stop growing at 2^24. One key row is broadcast by stride zero.
 */
static void test_long_sums(void **unused) {
    (void)unused;
    enum { T = 1 << 20, R = 8, V = 2 };
    float ones[R] = {1, 1, 1, 1, 1, 1, 1, 1}, out_values[V];
    float *values = malloc(sizeof(float) * T * V);
    assert_non_null(values);
    for (int64_t i = 0; i < T; i++)
        values[2 * i] = 0.1f, values[2 * i + 1] = i % 2 ? 1 : 2;
    hla_context *context = make_context(2);
    static const hla_form forms[] = {HLA_FORM_STATE, HLA_FORM_QUADRATIC};
    for (int f = 0; f < 2; f++) {
        hla_hadamard_problem problem;
        hla_hadamard_problem_init(&problem);
        problem.queries = 1, problem.keys = T, problem.value_dim = V;
        problem.factors = 2, problem.rank[0] = problem.rank[1] = R, problem.form = forms[f];
        hla_hadamard_plan *plan = NULL;
        assert_int_equal(hla_hadamard_plan_create(context, &problem, &plan), HLA_OK);
        size_t size = hla_hadamard_plan_workspace(plan);
        void *workspace = aligned_alloc(64, size);
        hla_tensor query = hla_tensor_bthd(ones, HLA_F32, 1, 1, 1, R), key = hla_tensor_bthd(ones, HLA_F32, 1, T, 1, R);
        key.stride[1] = 0;
        const hla_tensor q[] = {query, query}, k[] = {key, key};
        hla_tensor v = hla_tensor_bthd(values, HLA_F32, 1, T, 1, V),
                   out = hla_tensor_bthd(out_values, HLA_F32, 1, 1, 1, V);
        out_values[0] = out_values[1] = NAN;
        const hla_hadamard_inputs inputs = {.q_features = q, .k_features = k, .v = &v};
        assert_int_equal(hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size), HLA_OK);
        double first = fabs((double)out_values[0] / (double)0.1f - 1), second = fabs((double)out_values[1] / 1.5 - 1);
        if (!(first <= 1e-5) || !(second <= 1e-5)) fail_msg("form %d: off by %.3g and %.3g", f, first, second);
        free(workspace);
        hla_hadamard_plan_free(plan);
    }
    free(values);
    hla_context_free(context);
}

/* Elements 2^31 and more apart: tokens of all four arrays interleaved in one sparse mapping, out among them. */
static void check_far_apart(const char *kernel, hla_context *context, float *memory) {
    enum { T = 4, X = 16 };
    float near_memory[4][T * X];
    hla_tensor near[4], far[4]; /* q, k, v, out */
    random_state state = {13};
    for (int i = 0; i < 4; i++) {
        near[i] = hla_tensor_bthd(near_memory[i], HLA_F32, 1, T, 1, X);
        far[i] = hla_tensor_bthd(memory + i * X, HLA_F32, 1, T, 1, X);
        far[i].stride[1] = INT64_C(1) << 30;
        for (int64_t e = 0; e < T * X; e++) {
            float value = i < 3 ? (float)uniform(&state) : NAN;
            near_memory[i][e] = memory[i * X + e / X * far[i].stride[1] + e % X] = value;
        }
    }
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.queries = problem.keys = T, problem.value_dim = X, problem.rank[0] = X, problem.kernel = kernel;
    hla_hadamard_plan *plan = NULL;
    assert_int_equal(hla_hadamard_plan_create(context, &problem, &plan), HLA_OK);
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size);
    const hla_hadamard_inputs near_inputs = {.q_features = &near[0], .k_features = &near[1], .v = &near[2]};
    const hla_hadamard_inputs far_inputs = {.q_features = &far[0], .k_features = &far[1], .v = &far[2]};
    assert_int_equal(hla_hadamard_forward(plan, &near[3], NULL, &near_inputs, workspace, size), HLA_OK);
    hla_status status = hla_hadamard_forward(plan, &far[3], NULL, &far_inputs, workspace, size);
    if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
    for (int64_t e = 0; e < T * X; e++) {
        assert_true(memory[3 * X + e / X * far[3].stride[1] + e % X] == near_memory[3][e]);
    }
    free(workspace);
    hla_hadamard_plan_free(plan);
}

static void test_far_apart(void **unused) {
    (void)unused;
    size_t bytes = ((size_t)3 << 30) * sizeof(float) + 4096;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    float *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) skip(); /* no 12 GB of addresses */
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (hadamard_takes_all(&info)) check_far_apart(info.name, context, memory);
    }
    hla_context_free(context);
    munmap(memory, bytes);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_product_of_scores), cmocka_unit_test(test_linear_attention),
        cmocka_unit_test(test_linearity),         cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_threads),           cmocka_unit_test(test_zero_denominator),
        cmocka_unit_test(test_long_sums),         cmocka_unit_test(test_far_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
