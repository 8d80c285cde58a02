/* Bad arguments: each gets its status, a sentence that names it, and an untouched output. And what a plan says. */
#include "attention/simd/isa.h"
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/attention/argument_support.h"

/* ---- the problem ---- */

static hla_hadamard_problem good_problem(void) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = 2, problem.heads = 3, problem.queries = 5, problem.keys = 7, problem.value_dim = 4;
    problem.factors = 2, problem.rank[0] = 3, problem.rank[1] = 6;
    return problem;
}

typedef struct bad_problem {
    const char *named;
    hla_status status;
    void (*spoil)(hla_hadamard_problem *problem);
} bad_problem;

#define SPOIL(name, statement)                                                                                         \
    static void name(hla_hadamard_problem *p) {                                                                        \
        statement;                                                                                                     \
    }
SPOIL(no_struct_size, p->struct_size = 0)
SPOIL(no_batch, p->batch = 0)
SPOIL(negative_heads, p->heads = -1)
SPOIL(no_queries, p->queries = 0)
SPOIL(negative_keys, p->keys = -1)
SPOIL(no_value_dim, p->value_dim = 0)
SPOIL(huge_keys, p->keys = INT64_MAX)
SPOIL(no_factors, p->factors = 0)
SPOIL(many_factors, p->factors = HLA_MAX_FACTORS + 1)
SPOIL(no_rank, p->rank[1] = 0)
SPOIL(large_rank, p->rank[0] = HLA_MAX_RANK + 1)
SPOIL(unknown_dtype, p->dtype = (hla_dtype)17)
SPOIL(unknown_form, p->form = (hla_form)9)
SPOIL(negative_epsilon, p->epsilon = -1)
SPOIL(nan_epsilon, p->epsilon = NAN)
SPOIL(infinite_scale, p->scale = INFINITY)
SPOIL(overflowing, (p->batch = INT64_C(1) << 30, p->heads = INT64_C(1) << 30, p->queries = INT64_C(1) << 30))
SPOIL(unknown_kernel, p->kernel = "state_abacus")
SPOIL(kernel_against_form, (p->kernel = "state_baseline", p->form = HLA_FORM_QUADRATIC))
SPOIL(giant_state, (p->factors = 4, p->rank[0] = p->rank[1] = p->rank[2] = p->rank[3] = 256,
                    p->value_dim = INT64_C(1) << 30, p->form = HLA_FORM_STATE))

static void test_problem(void **unused) {
    (void)unused;
    static const bad_problem table[] = {
        {"problem.struct_size", HLA_ERROR_ARGUMENT, no_struct_size},
        {"problem.batch", HLA_ERROR_ARGUMENT, no_batch},
        {"problem.heads", HLA_ERROR_ARGUMENT, negative_heads},
        {"problem.queries", HLA_ERROR_ARGUMENT, no_queries},
        {"problem.keys", HLA_ERROR_ARGUMENT, negative_keys},
        {"problem.keys", HLA_ERROR_ARGUMENT, huge_keys},
        {"problem.value_dim", HLA_ERROR_ARGUMENT, no_value_dim},
        {"problem.factors", HLA_ERROR_ARGUMENT, no_factors},
        {"problem.factors", HLA_ERROR_ARGUMENT, many_factors},
        {"problem.rank[1]", HLA_ERROR_ARGUMENT, no_rank},
        {"problem.rank[0]", HLA_ERROR_ARGUMENT, large_rank},
        {"problem.dtype", HLA_ERROR_ARGUMENT, unknown_dtype},
        {"problem.form", HLA_ERROR_ARGUMENT, unknown_form},
        {"problem.epsilon", HLA_ERROR_ARGUMENT, negative_epsilon},
        {"problem.epsilon", HLA_ERROR_ARGUMENT, nan_epsilon},
        {"problem.scale", HLA_ERROR_ARGUMENT, infinite_scale},
        {"overflows", HLA_ERROR_ARGUMENT, overflowing},
        {"state_abacus", HLA_ERROR_ARGUMENT, unknown_kernel},
        {"state_baseline", HLA_ERROR_ARGUMENT, kernel_against_form},
        {"workspace", HLA_ERROR_UNSUPPORTED, giant_state},
    };
    hla_context *context = make_context(false);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        hla_hadamard_problem problem = good_problem();
        table[i].spoil(&problem);
        hla_hadamard_plan *plan = (hla_hadamard_plan *)&problem; /* must become NULL */
        expect(context, hla_hadamard_plan_create(context, &problem, &plan), table[i].status, table[i].named);
        assert_null(plan);
    }
    hla_hadamard_problem problem = good_problem();
    hla_hadamard_plan *plan = NULL;
    expect(context, hla_hadamard_plan_create(context, NULL, &plan), HLA_ERROR_ARGUMENT, "problem");
    expect(context, hla_hadamard_plan_create(context, &problem, NULL), HLA_ERROR_ARGUMENT, "plan");
    plan = (hla_hadamard_plan *)&problem;
    assert_int_equal(hla_hadamard_plan_create(NULL, &problem, &plan), HLA_ERROR_ARGUMENT);
    assert_null(plan);
    hla_context_free(context);
}

/* ---- the call ---- */

/* All arguments of one forward call, good until spoiled. */
typedef struct arguments {
    guarded arrays[6]; /* out, q[2], k[2], v */
    hla_tensor out, q[2], k[2], v;
    const hla_tensor *out_pointer, *q_pointer, *k_pointer, *v_pointer;
    int64_t lengths[2];
    char *workspace;
    size_t workspace_size;
} arguments;

#define SPOIL_CALL(name, statement)                                                                                    \
    static void name(arguments *a) {                                                                                   \
        statement;                                                                                                     \
    }
SPOIL_CALL(null_out, a->out_pointer = NULL)
SPOIL_CALL(null_q, a->q_pointer = NULL)
SPOIL_CALL(null_k, a->k_pointer = NULL)
SPOIL_CALL(null_v, a->v_pointer = NULL)
SPOIL_CALL(null_out_data, a->out.data = NULL)
SPOIL_CALL(null_q_data, a->q[1].data = NULL)
SPOIL_CALL(wrong_dtype, a->k[0].dtype = HLA_BF16)
SPOIL_CALL(wrong_tokens, a->v.shape[1] = 6)
SPOIL_CALL(wrong_rank, a->q[0].shape[3] = 4)
SPOIL_CALL(wrong_out, a->out.shape[3] = 5)
SPOIL_CALL(misaligned, a->v.data = (char *)a->v.data - 2)
SPOIL_CALL(huge_stride, a->k[1].stride[1] = INT64_MAX / 2)
SPOIL_CALL(least_stride, a->k[1].stride[0] = INT64_MIN)
SPOIL_CALL(out_stride_zero, a->out.stride[1] = 0)
SPOIL_CALL(out_rows_overlap, a->out.stride[2] = 3)
SPOIL_CALL(out_is_v, a->v.data = a->out.data)
SPOIL_CALL(out_in_q, a->q[1].data = (char *)a->out.data + 4)
SPOIL_CALL(long_length, a->lengths[1] = 8)
SPOIL_CALL(negative_length, a->lengths[0] = -1)
SPOIL_CALL(null_workspace, a->workspace = NULL)
SPOIL_CALL(small_workspace, a->workspace_size--)
SPOIL_CALL(odd_workspace, a->workspace += 4)
SPOIL_CALL(nan_in_q, set(&a->q[0], 1, 2, 1, 0, NAN))
SPOIL_CALL(infinite_k, set(&a->k[1], 0, 6, 2, 5, INFINITY))
SPOIL_CALL(nan_in_v, set(&a->v, 1, 2, 0, 3, NAN))
/* beyond the length of sequence 1, which is 3 */
SPOIL_CALL(nan_in_padding, (set(&a->v, 1, 3, 0, 3, NAN), set(&a->k[0], 1, 6, 1, 0, INFINITY)))

static void fill_ones(const hla_tensor *tensor) {
    for (int64_t b = 0; b < tensor->shape[0]; b++) {
        for (int64_t t = 0; t < tensor->shape[1]; t++) {
            for (int64_t h = 0; h < tensor->shape[2]; h++) {
                for (int64_t x = 0; x < tensor->shape[3]; x++)
                    set(tensor, b, t, h, x, 1);
            }
        }
    }
}

static arguments good_arguments(const hla_hadamard_problem *problem, size_t workspace_size) {
    arguments a = {.lengths = {7, 3}, .workspace_size = workspace_size};
    const int64_t tokens[6] = {problem->queries, problem->queries, problem->queries,
                               problem->keys,    problem->keys,    problem->keys};
    const int64_t width[6] = {problem->value_dim, problem->rank[0], problem->rank[1],
                              problem->rank[0],   problem->rank[1], problem->value_dim};
    hla_tensor *views[6] = {&a.out, &a.q[0], &a.q[1], &a.k[0], &a.k[1], &a.v};
    for (int i = 0; i < 6; i++) {
        a.arrays[i] = guarded_make(HLA_F32, problem->batch, tokens[i], problem->heads, width[i], LAYOUT_BTHD);
        *views[i] = a.arrays[i].view;
        if (i > 0) fill_ones(views[i]);
    }
    a.workspace = aligned_alloc(64, workspace_size + 64);
    assert_non_null(a.workspace);
    return a;
}

/* out as it was poisoned: all bytes one */
static bool untouched(const guarded *array) {
    const unsigned char *bytes = array->view.data;
    for (size_t i = 0; i < array->span; i++) {
        if (bytes[i] != 0xff) return false;
    }
    return true;
}

static hla_status call(hla_context *context, const hla_hadamard_problem *problem, void (*spoil)(arguments *),
                       bool *wrote) {
    hla_hadamard_plan *plan = NULL;
    assert_int_equal(hla_hadamard_plan_create(context, problem, &plan), HLA_OK);
    arguments a = good_arguments(problem, hla_hadamard_plan_workspace(plan));
    a.out_pointer = &a.out, a.q_pointer = a.q, a.k_pointer = a.k, a.v_pointer = &a.v;
    char *allocated = a.workspace;
    if (spoil) spoil(&a);
    const hla_hadamard_inputs inputs = {
        .q_features = a.q_pointer, .k_features = a.k_pointer, .v = a.v_pointer, .key_lengths = a.lengths};
    hla_status status = hla_hadamard_forward(plan, a.out_pointer, NULL, &inputs, a.workspace, a.workspace_size);
    *wrote = !untouched(&a.arrays[0]);
    free(allocated);
    for (int i = 0; i < 6; i++)
        guarded_free(&a.arrays[i]);
    hla_hadamard_plan_free(plan);
    return status;
}

typedef struct bad_call {
    const char *named;
    hla_status status;
    void (*spoil)(arguments *a);
} bad_call;

static void check_calls(hla_context *context, const bad_call *table, size_t count) {
    hla_hadamard_problem problem = good_problem();
    for (size_t i = 0; i < count; i++) {
        bool wrote;
        expect(context, call(context, &problem, table[i].spoil, &wrote), table[i].status, table[i].named);
        if (wrote) fail_msg("out was written although %s is bad", table[i].named);
    }
}

static void test_call(void **unused) {
    (void)unused;
    static const bad_call table[] = {
        {"out is NULL", HLA_ERROR_ARGUMENT, null_out},
        {"q_features is NULL", HLA_ERROR_ARGUMENT, null_q},
        {"k_features is NULL", HLA_ERROR_ARGUMENT, null_k},
        {"v is NULL", HLA_ERROR_ARGUMENT, null_v},
        {"out.data", HLA_ERROR_ARGUMENT, null_out_data},
        {"q_features[1].data", HLA_ERROR_ARGUMENT, null_q_data},
        {"k_features[0] has dtype", HLA_ERROR_ARGUMENT, wrong_dtype},
        {"v has shape [2, 6, 3, 4], wanted [2, 7, 3, 4]", HLA_ERROR_ARGUMENT, wrong_tokens},
        {"q_features[0] has shape", HLA_ERROR_ARGUMENT, wrong_rank},
        {"out has shape", HLA_ERROR_ARGUMENT, wrong_out},
        {"v.data is not aligned", HLA_ERROR_ARGUMENT, misaligned},
        {"k_features[1] has strides", HLA_ERROR_ARGUMENT, huge_stride},
        {"k_features[1] has strides", HLA_ERROR_ARGUMENT, least_stride},
        {"out overlaps itself", HLA_ERROR_ARGUMENT, out_stride_zero},
        {"out overlaps itself", HLA_ERROR_ARGUMENT, out_rows_overlap},
        {"out overlaps v", HLA_ERROR_ARGUMENT, out_is_v},
        {"out overlaps q_features[1]", HLA_ERROR_ARGUMENT, out_in_q},
        {"key_lengths[1] is 8", HLA_ERROR_ARGUMENT, long_length},
        {"key_lengths[0] is -1", HLA_ERROR_ARGUMENT, negative_length},
        {"workspace is NULL", HLA_ERROR_WORKSPACE, null_workspace},
        {"workspace holds", HLA_ERROR_WORKSPACE, small_workspace},
        {"workspace is not aligned", HLA_ERROR_WORKSPACE, odd_workspace},
    };
    hla_context *context = make_context(false);
    check_calls(context, table, sizeof table / sizeof table[0]);
    hla_hadamard_problem problem = good_problem();
    bool wrote = false;
    assert_int_equal(call(context, &problem, NULL, &wrote), HLA_OK);
    assert_true(wrote);
    assert_int_equal(hla_hadamard_forward(NULL, NULL, NULL, NULL, NULL, 0), HLA_ERROR_ARGUMENT);
    hla_context_free(context);
}

static void test_finite(void **unused) {
    (void)unused;
    static const bad_call table[] = {
        {"q_features[0] holds NaN or infinity at [1, 2, 1, 0]", HLA_ERROR_NOT_FINITE, nan_in_q},
        {"k_features[1] holds NaN or infinity at [0, 6, 2, 5]", HLA_ERROR_NOT_FINITE, infinite_k},
        {"v holds NaN or infinity at [1, 2, 0, 3]", HLA_ERROR_NOT_FINITE, nan_in_v},
    };
    hla_context *context = make_context(true);
    check_calls(context, table, sizeof table / sizeof table[0]);
    hla_hadamard_problem problem = good_problem();
    bool wrote = false;
    assert_int_equal(call(context, &problem, nan_in_padding, &wrote), HLA_OK);
    assert_true(wrote);
    hla_context_free(context);
}

/* ---- forced kernels, and what a plan says ---- */

static hla_hadamard_plan *plan_or_fail(hla_context *context, const hla_hadamard_problem *problem) {
    hla_hadamard_plan *plan = NULL;
    if (hla_hadamard_plan_create(context, problem, &plan) != HLA_OK) fail_msg("%s", hla_context_error(context));
    return plan;
}

/* The linker sends the library's calls of hla_isa_runs here (--wrap), so that a test can take vector units away. */
bool __real_hla_isa_runs(hla_isa isa);
bool __wrap_hla_isa_runs(hla_isa isa);
static bool without_vector_units;
bool __wrap_hla_isa_runs(hla_isa isa) {
    return __real_hla_isa_runs(isa) && !(without_vector_units && isa != HLA_ISA_BASELINE);
}

/* A machine that only runs the baseline gets it in both forms, and refuses to be forced to more. */
static void test_a_machine_without_vector_units(void **unused) {
    (void)unused;
    without_vector_units = true;
    hla_context *context = make_context(false);
    hla_hadamard_problem problem = good_problem();
    static const char *const wanted[] = {"quadratic_baseline", "state_baseline", "quadratic_baseline"};
    for (int form = HLA_FORM_AUTO; form <= HLA_FORM_QUADRATIC; form++) {
        problem.form = (hla_form)form;
        hla_hadamard_plan *plan = plan_or_fail(context, &problem);
        assert_string_equal(hla_hadamard_plan_kernel(plan), wanted[form]);
        hla_hadamard_plan_free(plan);
    }
    problem.form = HLA_FORM_AUTO;
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        assert_int_equal(info.runs_here, info.needs[0] == 0);
        problem.kernel = info.name;
        hla_hadamard_plan *plan = NULL;
        expect(context, hla_hadamard_plan_create(context, &problem, &plan),
               info.runs_here ? HLA_OK : HLA_ERROR_UNSUPPORTED, info.runs_here ? "" : info.needs);
        hla_hadamard_plan_free(plan);
    }
    hla_context_free(context);
    without_vector_units = false;
}

static void test_forced_kernels(void **unused) {
    (void)unused;
    hla_context *context = make_context(false);
    hla_hadamard_problem problem = good_problem();
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        assert_non_null(info.needs);
        assert_int_equal(setenv("HLA_KERNEL", info.name, 1), 0);
        hla_hadamard_plan *plan = NULL;
        hla_status status = hla_hadamard_plan_create(context, &problem, &plan);
        if (!info.runs_here) {
            expect(context, status, HLA_ERROR_UNSUPPORTED, info.needs);
            continue;
        }
        if (!hadamard_takes_all(&info)) {
            expect(context, status, HLA_ERROR_UNSUPPORTED, "only takes bidirectional problems in bfloat16");
            continue;
        }
        assert_int_equal(status, HLA_OK);
        assert_string_equal(hla_hadamard_plan_kernel(plan), info.name);
        assert_int_equal(hla_hadamard_plan_form(plan), info.form);
        hla_hadamard_plan_free(plan);
    }
    /* the problem's own wish goes before the environment's */
    problem.kernel = "reference";
    hla_hadamard_plan *plan = plan_or_fail(context, &problem);
    assert_string_equal(hla_hadamard_plan_kernel(plan), "reference");
    hla_hadamard_plan_free(plan);
    problem.kernel = NULL;
    setenv("HLA_KERNEL", "sliderule", 1);
    expect(context, hla_hadamard_plan_create(context, &problem, &plan), HLA_ERROR_ARGUMENT, "HLA_KERNEL");
    unsetenv("HLA_KERNEL");
    assert_false(hla_hadamard_kernel(NULL, -1, &info));
    assert_false(hla_hadamard_kernel(NULL, 0, NULL));
    hla_context_free(context);
}

/* Far from where both forms cost the same, on any machine: the plan must take the linear form for long sequences and
 * the quadratic one for a large state. */
static void test_choice(void **unused) {
    (void)unused;
    hla_context *context = make_context(false);
    hla_hadamard_problem problem = good_problem();
    problem.queries = problem.keys = 100000, problem.value_dim = 64, problem.rank[0] = problem.rank[1] = 16;
    hla_hadamard_plan *plan = plan_or_fail(context, &problem);
    assert_int_equal(hla_hadamard_plan_form(plan), HLA_FORM_STATE);
    hla_hadamard_plan_free(plan);
    problem.queries = problem.keys = 64, problem.rank[0] = problem.rank[1] = 128;
    plan = plan_or_fail(context, &problem);
    assert_int_equal(hla_hadamard_plan_form(plan), HLA_FORM_QUADRATIC);
    hla_hadamard_plan_free(plan);
    problem.form = HLA_FORM_STATE;
    plan = plan_or_fail(context, &problem);
    assert_int_equal(hla_hadamard_plan_form(plan), HLA_FORM_STATE);
    assert_non_null(strstr(hla_hadamard_plan_explain(plan), "forced"));
    hla_hadamard_plan_free(plan);
    hla_context_free(context);
}

static void test_explanation(void **unused) {
    (void)unused;
    hla_context *context = make_context(false);
    hla_hadamard_problem problem = good_problem();
    problem.batch = 1, problem.heads = 12, problem.queries = 8192, problem.keys = 4096, problem.value_dim = 64;
    problem.rank[0] = problem.rank[1] = 32;
    hla_hadamard_plan *plan = plan_or_fail(context, &problem);
    const char *text = hla_hadamard_plan_explain(plan);
    /* 2 (Tq + Tk) R (V + 1) H = 19.6 G, 2 Tq Tk (sum R_p + V + 1) H = 104 G */
    const char *wanted[] = {"state form", hla_hadamard_plan_kernel(plan),
                            "19.6 GFLOP", "104 in quadratic form",
                            "2 threads",  "State rank 1024"};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        if (!strstr(text, wanted[i])) fail_msg("\"%s\" does not say \"%s\"", text, wanted[i]);
    }
    assert_null(strstr(text, "forced"));
    hla_hadamard_plan_free(plan);
    assert_string_equal(hla_hadamard_plan_explain(NULL), "");
    assert_string_equal(hla_hadamard_plan_kernel(NULL), "");
    assert_int_equal(hla_hadamard_plan_workspace(NULL), 0);
    hla_hadamard_plan_free(NULL);
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_problem),
        cmocka_unit_test(test_call),
        cmocka_unit_test(test_finite),
        cmocka_unit_test(test_forced_kernels),
        cmocka_unit_test(test_choice),
        cmocka_unit_test(test_explanation),
        cmocka_unit_test(test_a_machine_without_vector_units),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
