/* Gradients of softmax attention: the double reference against finite differences in double; every kernel, dtype and
 * layout against the reference; the same bits for any number of threads; and properties. */
#include "attention/ops/softmax/kernel.h"
#include "tests/attention/maps_support.h"

typedef struct shape {
    int64_t b, h, tq, tk, d, v;
    double score_scale; /* standard deviation of q and k */
    bool bias, lengths, causal;
    int64_t kv_heads; /* 0: h */
} shape;

static const shape shapes[] = {
    {1, 1, 1, 1, 1, 1, 1, false, false, false, 0},      {1, 1, 1, 2, 3, 5, 1, false, false, false, 0},
    {2, 3, 7, 5, 3, 1, 1, true, true, false, 0},        {1, 2, 13, 0, 4, 3, 1, false, false, false, 0},
    {1, 4, 97, 20, 64, 64, 1, false, false, false, 0},  {1, 1, 98, 300, 64, 64, 1, false, false, false, 0},
    {1, 1, 65, 257, 65, 33, 1, true, false, false, 0},  {1, 1, 30, 140, 128, 128, 1, false, false, false, 0},
    {1, 1, 17, 70, 256, 256, 1, false, false, true, 0}, {3, 1, 1, 70, 16, 16, 1, false, true, false, 0},
    {1, 1, 195, 520, 8, 17, 3, false, false, false, 0}, {1, 1, 301, 301, 33, 20, 1, false, false, true, 0},
    {2, 2, 300, 70, 16, 9, 1, true, true, true, 0},     {1, 3, 40, 530, 8, 8, 2, false, false, true, 1},
    {2, 6, 35, 67, 16, 12, 1, true, true, false, 2},    {2, 4, 100, 100, 24, 40, 1, false, true, true, 2},
    {2, 2, 9, 0, 3, 4, 1, false, false, true, 1},
};

enum { GRADIENTS = 3 };
static const char *const gradient_names[GRADIENTS] = {"dq", "dk", "dv"};

/* One problem with its inputs. */
typedef struct setting {
    hla_softmax_problem problem;
    array q, k, v, d_out;
    float *bias;
    int64_t lengths[4];
    array_layout layout;
    hla_softmax_call call;
} setting;

static void setting_make(setting *s, const shape *n, hla_dtype dtype, array_layout layout) {
    uint64_t seed = 20261124;
    memset(s, 0, sizeof *s);
    const int64_t key_heads = n->kv_heads ? n->kv_heads : n->h;
    hla_softmax_problem *p = &s->problem;
    hla_softmax_problem_init(p);
    p->batch = n->b, p->heads = n->h, p->kv_heads = n->kv_heads, p->queries = n->tq, p->keys = n->tk;
    p->dim = n->d, p->value_dim = n->v, p->dtype = dtype, p->causal = n->causal;
    s->layout = layout;
    s->q = array_random(layout, dtype, n->b, n->tq, n->h, n->d, n->score_scale, &seed);
    s->k = array_random(layout, dtype, n->b, n->tk, key_heads, n->d, n->score_scale, &seed);
    s->v = array_random(layout, dtype, n->b, n->tk, key_heads, n->v, 1, &seed);
    s->d_out = array_random(layout, dtype, n->b, n->tq, n->h, n->v, 1, &seed);
    s->bias = n->bias ? floats_random(n->tk, 1, &seed) : NULL;
    if (n->bias) s->bias[n->tk / 2] = -INFINITY;
    for (int64_t b = 0; b < n->b; b++)
        s->lengths[b] = b == 0 ? n->tk * 2 / 3 : b == 1 ? 0 : n->tk;
    for (int64_t b = 0; n->lengths && b < n->b; b++) { /* keys beyond must not be read */
        for (int64_t t = s->lengths[b]; t < n->tk; t++) {
            for (int64_t h = 0; h < key_heads; h++)
                set(&s->k.view, b, t, h, 0, NAN), set(&s->v.view, b, t, h, 0, NAN);
        }
    }
    s->call = (hla_softmax_call){.problem = *p,
                                 .out = &s->d_out.view,
                                 .q = &s->q.view,
                                 .k = &s->k.view,
                                 .v = &s->v.view,
                                 .key_lengths = n->lengths ? s->lengths : NULL,
                                 .key_bias = s->bias,
                                 .threads = 2};
    s->call.problem.scale = (float)(1 / sqrt((double)n->d));
}

static void setting_free(setting *s) {
    array_free(&s->q), array_free(&s->k), array_free(&s->v), array_free(&s->d_out);
    free(s->bias);
}

/* dq [B,Tq,H,D], dk [B,Tk,Hkv,D], dv [B,Tk,Hkv,V] */
typedef struct gradients {
    double *values[GRADIENTS];
    int64_t count[GRADIENTS];
} gradients;

static gradients gradients_make(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    int64_t key_rows = p->batch * p->keys * hla_softmax_key_heads(p);
    gradients g = {.count = {p->batch * p->queries * p->heads * p->dim, key_rows * p->dim, key_rows * p->value_dim}};
    for (int i = 0; i < GRADIENTS; i++) {
        g.values[i] = calloc((size_t)g.count[i] + 1, sizeof(double));
        assert_non_null(g.values[i]);
    }
    return g;
}

static void gradients_free(gradients *g) {
    for (int i = 0; i < GRADIENTS; i++)
        free(g->values[i]);
}

static gradients oracle(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    gradients g = gradients_make(s);
    int64_t key_heads = hla_softmax_key_heads(p), queries = p->batch * p->queries * p->heads;
    double *statistics = calloc((size_t)queries * 2, sizeof(double));
    double *scores = calloc((size_t)p->keys * 2 + 1, sizeof(double));
    float *rows = calloc((size_t)(p->dim + p->value_dim) * 2, sizeof(float));
    assert_true(statistics && scores && rows);
    for (int64_t r = 0; r < queries; r++) {
        hla_softmax_reference_query_gradient(&s->call, r / p->heads / p->queries, r / p->heads % p->queries,
                                             r % p->heads, g.values[0] + r * p->dim, statistics + 2 * r, scores, rows);
    }
    for (int64_t r = 0; r < p->batch * p->keys * key_heads; r++) {
        hla_softmax_reference_key_gradient(&s->call, r / key_heads / p->keys, r / key_heads % p->keys, r % key_heads,
                                           g.values[1] + r * p->dim, g.values[2] + r * p->value_dim, statistics, rows);
    }
    free(statistics), free(scores), free(rows);
    return g;
}

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

/* ---- the formulas of hla/softmax.h in float, with the whole matrix of weights ---- */

static float dot(const hla_tensor *a, int64_t b, int64_t i, int64_t h, const hla_tensor *c, int64_t j, int64_t g) {
    float sum = 0;
    for (int64_t x = 0; x < a->shape[3]; x++)
        sum += get(a, b, i, h, x) * get(c, b, j, g, x);
    return sum;
}

/* to[x] += factor row[x], in float. */
static void add_row(float *to, float factor, const hla_tensor *from, int64_t b, int64_t t, int64_t h) {
    for (int64_t x = 0; x < from->shape[3]; x++)
        to[x] += factor * get(from, b, t, h, x);
}

static void naive_row(const setting *s, int64_t b, int64_t i, int64_t h, float *const sums[GRADIENTS]) {
    const hla_softmax_problem *p = &s->problem;
    const float scale = s->call.problem.scale;
    int64_t heads = hla_softmax_key_heads(p), g = h * heads / p->heads;
    int64_t keys = s->call.key_lengths ? s->lengths[b] : p->keys;
    keys = p->causal && keys > i + 1 ? i + 1 : keys;
    float weight[1024], product[1024], total = 0, delta = 0;
    assert_true(keys <= 1024);
    for (int64_t j = 0; j < keys; j++) {
        weight[j] = expf(scale * dot(s->call.q, b, i, h, s->call.k, j, g) + (s->bias ? s->bias[j] : 0));
        total += weight[j];
    }
    for (int64_t j = 0; j < keys; j++) {
        weight[j] = total > 0 ? weight[j] / total : 0;
        product[j] = dot(s->call.out, b, i, h, s->call.v, j, g);
        delta += weight[j] * product[j];
    }
    for (int64_t j = 0; j < keys; j++) {
        float ds = weight[j] * (product[j] - delta);
        int64_t key = (b * p->keys + j) * heads + g;
        add_row(sums[0] + ((b * p->queries + i) * p->heads + h) * p->dim, scale * ds, s->call.k, b, j, g);
        add_row(sums[1] + key * p->dim, scale * ds, s->call.q, b, i, h);
        add_row(sums[2] + key * p->value_dim, weight[j], s->call.out, b, i, h);
    }
}

static gradients naive_float(const setting *s) {
    const hla_softmax_problem *p = &s->problem;
    gradients g = gradients_make(s);
    float *sums[GRADIENTS];
    for (int i = 0; i < GRADIENTS; i++) {
        sums[i] = calloc((size_t)g.count[i] + 1, sizeof(float));
        assert_non_null(sums[i]);
    }
    for (int64_t r = 0; r < p->batch * p->queries * p->heads; r++)
        naive_row(s, r / p->heads / p->queries, r / p->heads % p->queries, r % p->heads, sums);
    for (int i = 0; i < GRADIENTS; i++) {
        for (int64_t n = 0; n < g.count[i]; n++)
            g.values[i][n] = rounded((double)sums[i][n], p->dtype);
        free(sums[i]);
    }
    return g;
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
