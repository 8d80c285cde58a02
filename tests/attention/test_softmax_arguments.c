/* Softmax attention and bad arguments: the status, a sentence that names the argument, and an output left alone. */
#include "attention/simd/isa.h"
#include "hla/softmax.h"
#include "tests/attention/maps_support.h"

static hla_softmax_problem good_problem(void) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 2, problem.heads = 3, problem.queries = 5, problem.keys = 7, problem.dim = 4, problem.value_dim = 6;
    return problem;
}

typedef struct problem_case {
    void (*spoil)(hla_softmax_problem *);
    hla_status status;
    const char *sentence; /* part of it */
} problem_case;

#define SPOIL(name, change)                                                                                            \
    static void name(hla_softmax_problem *p) {                                                                         \
        change;                                                                                                        \
    }
SPOIL(no_struct_size, p->struct_size = 0)
SPOIL(no_batch, p->batch = 0)
SPOIL(negative_heads, p->heads = -1)
SPOIL(no_queries, p->queries = 0)
SPOIL(negative_keys, p->keys = -2)
SPOIL(no_dim, p->dim = 0)
SPOIL(no_value_dim, p->value_dim = 0)
SPOIL(negative_kv_heads, p->kv_heads = -3)
SPOIL(uneven_kv_heads, p->kv_heads = 2)
SPOIL(many_kv_heads, p->kv_heads = 6)
SPOIL(bad_dtype, p->dtype = (hla_dtype)7)
SPOIL(nan_scale, p->scale = NAN)
SPOIL(infinite_scale, p->scale = -INFINITY)
SPOIL(unknown_kernel, p->kernel = "warp")
SPOIL(huge_output, p->batch = p->heads = p->queries = INT64_C(1) << 30)
SPOIL(huge_keys, p->keys = INT64_MAX / 4)
SPOIL(huge_dim, p->dim = INT64_MAX)

static void test_bad_problems(void **state) {
    (void)state;
    static const problem_case cases[] = {
        {no_struct_size, HLA_ERROR_ARGUMENT, "problem.struct_size is 0"},
        {no_batch, HLA_ERROR_ARGUMENT, "problem.batch is 0"},
        {negative_heads, HLA_ERROR_ARGUMENT, "problem.heads is -1"},
        {no_queries, HLA_ERROR_ARGUMENT, "problem.queries is 0"},
        {negative_keys, HLA_ERROR_ARGUMENT, "problem.keys is -2"},
        {no_dim, HLA_ERROR_ARGUMENT, "problem.dim is 0"},
        {no_value_dim, HLA_ERROR_ARGUMENT, "problem.value_dim is 0"},
        {negative_kv_heads, HLA_ERROR_ARGUMENT, "problem.kv_heads is -3"},
        {uneven_kv_heads, HLA_ERROR_ARGUMENT, "problem.kv_heads is 2, wanted 0 or a divisor of problem.heads, 3"},
        {many_kv_heads, HLA_ERROR_ARGUMENT, "problem.kv_heads is 6"},
        {bad_dtype, HLA_ERROR_ARGUMENT, "problem.dtype is 7"},
        {nan_scale, HLA_ERROR_ARGUMENT, "problem.scale is nan"},
        {infinite_scale, HLA_ERROR_ARGUMENT, "problem.scale is -inf"},
        {unknown_kernel, HLA_ERROR_ARGUMENT, "problem.kernel is \"warp\""},
        {huge_output, HLA_ERROR_ARGUMENT, "63-bit"},
        {huge_keys, HLA_ERROR_ARGUMENT, "problem.keys is 2305843009213693951, wanted 0 to 1099511627776"},
        {huge_dim, HLA_ERROR_ARGUMENT, "problem.dim is 9223372036854775807, wanted 1 to 1099511627776"},
    };
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        for (size_t i = 0; info.runs_here && i < sizeof cases / sizeof cases[0]; i++) {
            hla_context *context = context_with(2, false);
            hla_softmax_problem problem = good_problem();
            problem.kernel = info.name;
            cases[i].spoil(&problem);
            hla_softmax_plan *plan = (hla_softmax_plan *)&problem;
            assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), cases[i].status);
            assert_null(plan);
            if (!strstr(hla_context_error(context), cases[i].sentence)) {
                fail_msg("wanted \"%s\" in \"%s\"", cases[i].sentence, hla_context_error(context));
            }
            hla_context_free(context);
        }
    }
}

/* Legal sizes whose packed copies nothing can address. */
static void test_huge_workspaces(void **state) {
    (void)state;
    hla_context *context = context_with(2, false);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here || strcmp(info.name, "reference") == 0) continue; /* which packs nothing */
        for (int many_keys = 0; many_keys < 2; many_keys++) {
            hla_softmax_problem problem = good_problem();
            problem.kernel = info.name;
            *(many_keys ? &problem.keys : &problem.dim) = INT64_C(1) << 40;
            hla_softmax_plan *plan = (hla_softmax_plan *)&problem;
            assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_ERROR_ARGUMENT);
            assert_null(plan);
            assert_non_null(strstr(hla_context_error(context), "workspace does not fit"));
        }
    }
    hla_context_free(context);
}

static void test_null_pointers(void **state) {
    (void)state;
    hla_softmax_problem problem = good_problem();
    hla_softmax_plan *plan = (hla_softmax_plan *)&problem;
    assert_int_equal(hla_softmax_plan_create(NULL, &problem, &plan), HLA_ERROR_ARGUMENT);
    assert_null(plan);
    hla_context *context = context_with(1, false);
    assert_int_equal(hla_softmax_plan_create(context, NULL, &plan), HLA_ERROR_ARGUMENT);
    assert_string_equal(hla_context_error(context), "problem is NULL");
    assert_int_equal(hla_softmax_plan_create(context, &problem, NULL), HLA_ERROR_ARGUMENT);
    assert_string_equal(hla_context_error(context), "plan is NULL");
    assert_int_equal(hla_softmax_forward(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_softmax_plan_workspace(NULL), 0);
    assert_string_equal(hla_softmax_plan_kernel(NULL), "");
    assert_false(hla_softmax_kernel(NULL, 0, NULL));
    hla_softmax_kernel_info info;
    assert_false(hla_softmax_kernel(NULL, -1, &info));
    assert_false(hla_softmax_kernel(NULL, 1000, &info));
    hla_softmax_plan_free(NULL);
    hla_softmax_problem_init(NULL);
    hla_context_free(context);
}

/* Everything hla_softmax_forward is given, to be spoiled in one place. */
typedef struct execution {
    hla_tensor *out, *q, *k, *v;
    int64_t lengths[2];
    float bias[7];
    float *key_bias;
    void *workspace;
    size_t size;
} execution;

typedef struct execution_case {
    void (*spoil)(execution *);
    hla_status status;
    const char *sentence;
} execution_case;

#define SPOIL_EXECUTION(name, change)                                                                                  \
    static void name(execution *e) {                                                                                   \
        change;                                                                                                        \
    }
SPOIL_EXECUTION(no_out, e->out = NULL)
SPOIL_EXECUTION(no_q, e->q = NULL)
SPOIL_EXECUTION(no_k_data, e->k->data = NULL)
SPOIL_EXECUTION(v_of_bf16, e->v->dtype = HLA_BF16)
SPOIL_EXECUTION(q_of_other_shape, e->q->shape[1] = 6)
SPOIL_EXECUTION(k_of_other_shape, e->k->shape[3] = 5)
SPOIL_EXECUTION(v_of_other_shape, e->v->shape[0] = 1)
SPOIL_EXECUTION(out_of_other_shape, e->out->shape[2] = 4)
SPOIL_EXECUTION(out_overlaps_itself, e->out->stride[1] = 0)
SPOIL_EXECUTION(q_is_out, e->q->data = e->out->data)
SPOIL_EXECUTION(v_is_out, e->v->data = e->out->data)
SPOIL_EXECUTION(bias_is_out, e->key_bias = e->out->data)
SPOIL_EXECUTION(far_strides, e->k->stride[0] = INT64_MAX)
SPOIL_EXECUTION(odd_pointer, e->q->data = (char *)e->q->data + 1)
SPOIL_EXECUTION(long_length, e->lengths[1] = 8)
SPOIL_EXECUTION(negative_length, e->lengths[0] = -1)
SPOIL_EXECUTION(no_workspace, e->workspace = NULL)
SPOIL_EXECUTION(small_workspace, e->size--)
SPOIL_EXECUTION(odd_workspace, e->workspace = (char *)e->workspace + 4)
SPOIL_EXECUTION(nan_in_q, set(e->q, 1, 2, 0, 3, NAN))
SPOIL_EXECUTION(infinity_in_v, set(e->v, 0, 6, 2, 5, INFINITY))
SPOIL_EXECUTION(nan_bias, e->bias[6] = NAN)
SPOIL_EXECUTION(infinite_bias, e->bias[2] = INFINITY)

static void test_bad_executions(void **state) {
    (void)state;
    static const execution_case cases[] = {
        {no_out, HLA_ERROR_ARGUMENT, "out is NULL"},
        {no_q, HLA_ERROR_ARGUMENT, "q is NULL"},
        {no_k_data, HLA_ERROR_ARGUMENT, "k.data is NULL"},
        {v_of_bf16, HLA_ERROR_ARGUMENT, "v has dtype bfloat16"},
        {q_of_other_shape, HLA_ERROR_ARGUMENT, "q has shape [2, 6, 3, 4], wanted [2, 5, 3, 4]"},
        {k_of_other_shape, HLA_ERROR_ARGUMENT, "k has shape [2, 7, 3, 5], wanted [2, 7, 3, 4]"},
        {v_of_other_shape, HLA_ERROR_ARGUMENT, "v has shape [1, 7, 3, 6], wanted [2, 7, 3, 6]"},
        {out_of_other_shape, HLA_ERROR_ARGUMENT, "out has shape [2, 5, 4, 6], wanted [2, 5, 3, 6]"},
        {out_overlaps_itself, HLA_ERROR_ARGUMENT, "out overlaps itself"},
        {q_is_out, HLA_ERROR_ARGUMENT, "out overlaps q"},
        {v_is_out, HLA_ERROR_ARGUMENT, "out overlaps v"},
        {bias_is_out, HLA_ERROR_ARGUMENT, "out overlaps key_bias"},
        {far_strides, HLA_ERROR_ARGUMENT, "k has strides"},
        {odd_pointer, HLA_ERROR_ARGUMENT, "q.data is not aligned"},
        {long_length, HLA_ERROR_ARGUMENT, "key_lengths[1] is 8"},
        {negative_length, HLA_ERROR_ARGUMENT, "key_lengths[0] is -1"},
        {no_workspace, HLA_ERROR_WORKSPACE, "workspace is NULL"},
        {small_workspace, HLA_ERROR_WORKSPACE, "workspace holds"},
        {odd_workspace, HLA_ERROR_WORKSPACE, "workspace is not aligned"},
        {nan_in_q, HLA_ERROR_NOT_FINITE, "q holds NaN or infinity at [1, 2, 0, 3]"},
        {infinity_in_v, HLA_ERROR_NOT_FINITE, "v holds NaN or infinity at [0, 6, 2, 5]"},
        {nan_bias, HLA_ERROR_NOT_FINITE, "key_bias[6] is nan"},
        {infinite_bias, HLA_ERROR_NOT_FINITE, "key_bias[2] is inf"},
    };
    hla_context *context = context_with(2, true);
    hla_softmax_problem problem = good_problem();
    hla_softmax_plan *plan = NULL;
    assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_OK);
    size_t size = hla_softmax_plan_workspace(plan), room = (size + 2 * HLA_ALIGNMENT) / HLA_ALIGNMENT * HLA_ALIGNMENT;
    void *workspace = aligned_alloc(HLA_ALIGNMENT, room);
    assert_non_null(workspace);
    for (size_t i = 0; i <= sizeof cases / sizeof cases[0]; i++) {
        uint64_t seed = 1;
        array q = array_random(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 4, 1, &seed);
        array k = array_random(LAYOUT_BTHD, HLA_F32, 2, 7, 3, 4, 1, &seed);
        array v = array_random(LAYOUT_BTHD, HLA_F32, 2, 7, 3, 6, 1, &seed);
        array out = array_poisoned(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 6);
        execution e = {&out.view, &q.view, &k.view, &v.view, {7, 3}, {-INFINITY}, NULL, workspace, size};
        e.key_bias = e.bias;
        bool last = i == sizeof cases / sizeof cases[0]; /* only what does not count is spoiled: must work */
        if (last) set(&k.view, 1, 3, 0, 0, NAN), set(&v.view, 1, 6, 2, 5, INFINITY);
        if (!last) cases[i].spoil(&e);
        hla_status status = hla_softmax_forward(plan, e.out, e.q, e.k, e.v, e.lengths, e.key_bias, e.workspace, e.size);
        assert_int_equal(status, last ? HLA_OK : cases[i].status);
        if (!last) {
            assert_untouched(&out);
            if (!strstr(hla_context_error(context), cases[i].sentence)) {
                fail_msg("wanted \"%s\" in \"%s\"", cases[i].sentence, hla_context_error(context));
            }
        }
        array_free(&q), array_free(&k), array_free(&v), array_free(&out);
    }
    free(workspace);
    hla_softmax_plan_free(plan);
    hla_context_free(context);
}

/* The linker sends the library's calls of hla_isa_runs here (--wrap), so that a test can take vector units away. */
bool __real_hla_isa_runs(hla_isa isa);
bool __wrap_hla_isa_runs(hla_isa isa);
static bool without_vector_units;
bool __wrap_hla_isa_runs(hla_isa isa) {
    return __real_hla_isa_runs(isa) && !(without_vector_units && isa != HLA_ISA_BASELINE);
}

/* Each entry that runs here can be forced, by argument and by environment; one that can't is refused. */
static void test_forced_kernels(void **state) {
    (void)state;
    hla_context *context = context_with(1, false);
    hla_softmax_kernel_info info, last = {0};
    for (int by_environment = 0; by_environment < 2; by_environment++) {
        for (int i = 0; hla_softmax_kernel(NULL, i, &info); i++) {
            hla_softmax_problem problem = good_problem();
            if (by_environment) {
                setenv("HLA_SOFTMAX_KERNEL", info.name, 1);
            } else {
                problem.kernel = info.name;
            }
            hla_softmax_plan *plan = NULL;
            hla_status status = hla_softmax_plan_create(context, &problem, &plan);
            assert_int_equal(status, info.runs_here ? HLA_OK : HLA_ERROR_UNSUPPORTED);
            if (info.runs_here) assert_string_equal(hla_softmax_plan_kernel(plan), info.name);
            if (!info.runs_here) assert_non_null(strstr(hla_context_error(context), info.needs));
            if (info.runs_here) last = info;
            hla_softmax_plan_free(plan);
        }
    }
    hla_softmax_problem problem = good_problem();
    hla_softmax_plan *plan = NULL;
    setenv("HLA_SOFTMAX_KERNEL", "warp", 1);
    assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_ERROR_ARGUMENT);
    assert_non_null(strstr(hla_context_error(context), "HLA_SOFTMAX_KERNEL is \"warp\""));
    for (int empty = 1; empty >= 0; empty--) { /* an empty variable is none */
        if (empty) setenv("HLA_SOFTMAX_KERNEL", "", 1);
        if (!empty) unsetenv("HLA_SOFTMAX_KERNEL");
        assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_OK);
        assert_string_equal(hla_softmax_plan_kernel(plan), last.name); /* the fastest that runs here */
        hla_softmax_plan_free(plan);
    }
    hla_context_free(context);
}

/* A machine that only runs the baseline gets it, and refuses to be forced to more. */
static void test_a_machine_without_vector_units(void **state) {
    (void)state;
    without_vector_units = true;
    hla_context *context = context_with(1, false);
    hla_softmax_problem problem = good_problem();
    hla_softmax_plan *plan = NULL;
    assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_OK);
    assert_string_equal(hla_softmax_plan_kernel(plan), "baseline");
    hla_softmax_plan_free(plan);
    hla_softmax_kernel_info info;
    for (int i = 0; hla_softmax_kernel(NULL, i, &info); i++) {
        assert_int_equal(info.runs_here, info.needs[0] == 0);
        problem.kernel = info.name;
        hla_status status = hla_softmax_plan_create(context, &problem, &plan);
        assert_int_equal(status, info.runs_here ? HLA_OK : HLA_ERROR_UNSUPPORTED);
        if (!info.runs_here) {
            assert_null(plan);
            assert_non_null(strstr(hla_context_error(context), info.needs));
        }
        hla_softmax_plan_free(plan);
    }
    hla_context_free(context);
    without_vector_units = false;
}

int main(void) {
    unsetenv("HLA_SOFTMAX_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_problems),   cmocka_unit_test(test_huge_workspaces),
        cmocka_unit_test(test_null_pointers),  cmocka_unit_test(test_bad_executions),
        cmocka_unit_test(test_forced_kernels), cmocka_unit_test(test_a_machine_without_vector_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
