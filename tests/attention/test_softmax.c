/* Every softmax kernel, dtype and memory layout against the double reference, and the reference against equation 1 of
 * the paper written out here. */
#include "attention/ops/softmax/kernel.h"
#include "tests/attention/maps_support.h"

typedef struct shape {
    int64_t b, h, tq, tk, d, v;
    double score_scale; /* standard deviation of q and k */
    int bias, lengths;
    bool causal;
    int64_t kv_heads; /* 0: h */
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, 0, 0, false, 0},
    {1, 1, 1, 2, 3, 5, 1, 0, 0, false, 0},
    {2, 3, 7, 5, 3, 1, 1, 1, 1, false, 0},
    {1, 2, 13, 0, 4, 3, 1, 0, 0, false, 0},
    {1, 4, 97, 20, 64, 64, 1, 0, 0, false, 0},
    {2, 2, 33, 8, 64, 64, 1, 1, 1, false, 0},
    {1, 1, 98, 300, 64, 64, 1, 0, 0, false, 0},
    {1, 1, 65, 257, 65, 33, 1, 1, 0, false, 0},
    {1, 1, 30, 512, 128, 128, 1, 0, 0, false, 0},
    {1, 1, 17, 270, 256, 256, 1, 0, 0, false, 0},
    {3, 1, 1, 70, 16, 16, 1, 0, 1, false, 0},
    {2, 2, 10, 31, 1, 48, 2, 1, 1, false, 0},
    {1, 1, 195, 520, 8, 17, 4, 0, 0, false, 0},
    /* causal, with more queries than keys and the other way round; grouped heads */
    {1, 1, 1, 1, 4, 4, 1, 0, 0, true, 0},
    {1, 2, 301, 301, 33, 20, 1, 0, 0, true, 0},
    {2, 2, 300, 70, 16, 9, 1, 1, 1, true, 0},
    {1, 3, 40, 530, 8, 8, 2, 0, 0, true, 1},
    {2, 6, 35, 67, 16, 12, 1, 1, 1, false, 2},
    {1, 4, 100, 100, 24, 40, 1, 0, 0, true, 4},
    {2, 2, 9, 0, 3, 4, 1, 0, 0, true, 1},
};

/* One problem with its inputs. */
typedef struct setting {
    hla_softmax_problem problem;
    array q, k, v, out;
    float *bias;
    int64_t lengths[4];
    hla_softmax_call call;
} setting;

static void setting_make(setting *s, const shape *sizes, hla_dtype dtype, array_layout layout) {
    uint64_t seed = 20261124;
    memset(s, 0, sizeof *s);
    const int64_t key_heads = sizes->kv_heads ? sizes->kv_heads : sizes->h;
    hla_softmax_problem_init(&s->problem);
    s->problem.causal = sizes->causal, s->problem.kv_heads = sizes->kv_heads;
    s->problem.batch = sizes->b, s->problem.heads = sizes->h, s->problem.queries = sizes->tq;
    s->problem.keys = sizes->tk, s->problem.dim = sizes->d, s->problem.value_dim = sizes->v, s->problem.dtype = dtype;
    s->q = array_random(layout, dtype, sizes->b, sizes->tq, sizes->h, sizes->d, sizes->score_scale, &seed);
    s->k = array_random(layout, dtype, sizes->b, sizes->tk, key_heads, sizes->d, sizes->score_scale, &seed);
    s->v = array_random(layout, dtype, sizes->b, sizes->tk, key_heads, sizes->v, 1, &seed);
    s->out = array_poisoned(layout, dtype, sizes->b, sizes->tq, sizes->h, sizes->v);
    s->bias = sizes->bias ? floats_random(sizes->tk, 2, &seed) : NULL;
    for (int64_t b = 0; b < sizes->b; b++)
        s->lengths[b] = b == 0 ? sizes->tk * 2 / 3 : b == 1 ? 0 : sizes->tk;
    s->call = (hla_softmax_call){.problem = s->problem,
                                 .out = &s->out.view,
                                 .q = &s->q.view,
                                 .k = &s->k.view,
                                 .v = &s->v.view,
                                 .key_lengths = sizes->lengths ? s->lengths : NULL,
                                 .key_bias = s->bias,
                                 .threads = 2};
    s->call.problem.scale = (float)(1 / sqrt((double)sizes->d));
}

static void setting_free(setting *s) {
    array_free(&s->q), array_free(&s->k), array_free(&s->v), array_free(&s->out);
    free(s->bias);
}

static int64_t output_count(const setting *s) {
    return s->problem.batch * s->problem.queries * s->problem.heads * s->problem.value_dim;
}

/* The double reference's whole output. */
static double *oracle(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    double *out = calloc((size_t)output_count(s), sizeof *out), *scores = calloc((size_t)p->keys + 1, sizeof *scores);
    float *query = calloc((size_t)p->dim, sizeof *query),
          *values = calloc((size_t)(p->dim + p->value_dim), sizeof *values);
    assert_true(out && scores && query && values);
    double *row = out;
    for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++, row += p->value_dim) {
        hla_softmax_reference_row(&s->call, r / p->heads / p->queries, r / p->heads % p->queries, r % p->heads, row,
                                  scores, query, values);
    }
    free(scores), free(query), free(values);
    return out;
}

/* Equation 1 as it stands, without maximum or tiles: out = (sum_j exp(s_j) v_j) / (sum_j exp(s_j)), in the given type.
 * Everything after the inputs is computed in that type; key lengths drop keys. */
#define DEFINE_NAIVE(name, real, exponential)                                                                          \
    static double *name(const setting *s) {                                                                            \
        const hla_softmax_problem *p = &s->problem;                                                                    \
        double *out = calloc((size_t)output_count(s), sizeof *out), *place = out;                                      \
        assert_non_null(out);                                                                                          \
        for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++, place += p->value_dim) {                        \
            int64_t b = r / p->heads / p->queries, i = r / p->heads % p->queries, h = r % p->heads;                    \
            int64_t keys = s->call.key_lengths ? s->call.key_lengths[b] : p->keys;                                     \
            int64_t kh = p->kv_heads ? h * p->kv_heads / p->heads : h;                                                 \
            keys = p->causal && keys > i + 1 ? i + 1 : keys;                                                           \
            real *weights = calloc((size_t)keys + 1, sizeof *weights), total = 0;                                      \
            assert_non_null(weights);                                                                                  \
            for (int64_t j = 0; j < keys; j++) {                                                                       \
                real dot = 0;                                                                                          \
                for (int64_t x = 0; x < p->dim; x++)                                                                   \
                    dot += (real)get(&s->q.view, b, i, h, x) * (real)get(&s->k.view, b, j, kh, x);                     \
                weights[j] = exponential(dot * (real)s->call.problem.scale + (s->bias ? (real)s->bias[j] : 0));        \
                total += weights[j];                                                                                   \
            }                                                                                                          \
            for (int64_t x = 0; x < p->value_dim && keys > 0; x++) {                                                   \
                real sum = 0;                                                                                          \
                for (int64_t j = 0; j < keys; j++)                                                                     \
                    sum += weights[j] * (real)get(&s->v.view, b, j, kh, x);                                            \
                place[x] = (double)(sum / total);                                                                      \
            }                                                                                                          \
            free(weights);                                                                                             \
        }                                                                                                              \
        return out;                                                                                                    \
    }

DEFINE_NAIVE(naive_double, double, exp)
DEFINE_NAIVE(naive_float, float, expf)

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
