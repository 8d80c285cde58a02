/* Backward pass of softmax attention and bad arguments: the status, a sentence that names the argument, and outputs
 * left alone. */
#include "hla/softmax.h"
#include "tests/attention/maps_support.h"

/* Everything hla_softmax_backward is given, to be spoiled in one place. Heads: 4 of queries, 2 of keys. */
typedef struct execution {
    hla_tensor *dq, *dk, *dv, *d_out, *q, *k, *v;
    int64_t lengths[2];
    float bias[7];
    float *key_bias;
    char *workspace;
    size_t size;
} execution;

typedef struct execution_case {
    void (*spoil)(execution *);
    hla_status status;
    const char *sentence; /* part of it */
} execution_case;

#define SPOIL(name, change)                                                                                            \
    static void name(execution *e) {                                                                                   \
        change;                                                                                                        \
    }
SPOIL(no_dq, e->dq = NULL)
SPOIL(no_dk, e->dk = NULL)
SPOIL(no_dv_data, e->dv->data = NULL)
SPOIL(no_d_out, e->d_out = NULL)
SPOIL(no_q, e->q = NULL)
SPOIL(no_k_data, e->k->data = NULL)
SPOIL(no_v, e->v = NULL)
SPOIL(dq_of_bf16, e->dq->dtype = HLA_BF16)
SPOIL(v_of_f16, e->v->dtype = HLA_F16)
SPOIL(dq_of_other_shape, e->dq->shape[1] = 6)
SPOIL(dk_of_query_heads, e->dk->shape[2] = 4)
SPOIL(dv_of_other_shape, e->dv->shape[3] = 4)
SPOIL(d_out_of_other_shape, e->d_out->shape[3] = 4)
SPOIL(q_of_other_shape, e->q->shape[0] = 1)
SPOIL(k_of_query_heads, e->k->shape[2] = 4)
SPOIL(v_of_other_shape, e->v->shape[1] = 8)
SPOIL(dk_overlaps_itself, e->dk->stride[1] = 0)
SPOIL(dq_is_q, e->dq->data = e->q->data)
SPOIL(dk_is_d_out, e->dk->data = e->d_out->data)
SPOIL(dv_is_v, e->dv->data = e->v->data)
SPOIL(dk_is_dq, e->dk->data = e->dq->data)
SPOIL(dv_is_dk, e->dv->data = e->dk->data)
SPOIL(bias_is_dv, e->key_bias = e->dv->data)
SPOIL(odd_pointer, e->dv->data = (char *)e->dv->data + 1)
SPOIL(far_strides, e->d_out->stride[0] = INT64_MAX)
SPOIL(long_length, e->lengths[1] = 8)
SPOIL(negative_length, e->lengths[0] = -1)
SPOIL(no_workspace, e->workspace = NULL)
SPOIL(small_workspace, e->size--)
SPOIL(odd_workspace, e->workspace += 4)
SPOIL(nan_in_d_out, set(e->d_out, 1, 4, 3, 5, NAN))
SPOIL(infinity_in_q, set(e->q, 0, 2, 3, 1, INFINITY))
SPOIL(nan_in_k, set(e->k, 1, 2, 1, 3, NAN))
SPOIL(nan_in_v, set(e->v, 0, 6, 0, 0, NAN))
SPOIL(nan_bias, e->bias[6] = NAN)

static const execution_case cases[] = {
    {no_dq, HLA_ERROR_ARGUMENT, "dq is NULL"},
    {no_dk, HLA_ERROR_ARGUMENT, "dk is NULL"},
    {no_dv_data, HLA_ERROR_ARGUMENT, "dv.data is NULL"},
    {no_d_out, HLA_ERROR_ARGUMENT, "d_out is NULL"},
    {no_q, HLA_ERROR_ARGUMENT, "q is NULL"},
    {no_k_data, HLA_ERROR_ARGUMENT, "k.data is NULL"},
    {no_v, HLA_ERROR_ARGUMENT, "v is NULL"},
    {dq_of_bf16, HLA_ERROR_ARGUMENT, "dq has dtype bfloat16"},
    {v_of_f16, HLA_ERROR_ARGUMENT, "v has dtype float16"},
    {dq_of_other_shape, HLA_ERROR_ARGUMENT, "dq has shape [2, 6, 4, 4], wanted [2, 5, 4, 4]"},
    {dk_of_query_heads, HLA_ERROR_ARGUMENT, "dk has shape [2, 7, 4, 4], wanted [2, 7, 2, 4]"},
    {dv_of_other_shape, HLA_ERROR_ARGUMENT, "dv has shape [2, 7, 2, 4], wanted [2, 7, 2, 6]"},
    {d_out_of_other_shape, HLA_ERROR_ARGUMENT, "d_out has shape [2, 5, 4, 4], wanted [2, 5, 4, 6]"},
    {q_of_other_shape, HLA_ERROR_ARGUMENT, "q has shape [1, 5, 4, 4], wanted [2, 5, 4, 4]"},
    {k_of_query_heads, HLA_ERROR_ARGUMENT, "k has shape [2, 7, 4, 4], wanted [2, 7, 2, 4]"},
    {v_of_other_shape, HLA_ERROR_ARGUMENT, "v has shape [2, 8, 2, 6], wanted [2, 7, 2, 6]"},
    {dk_overlaps_itself, HLA_ERROR_ARGUMENT, "dk overlaps itself"},
    {dq_is_q, HLA_ERROR_ARGUMENT, "dq overlaps q"},
    {dk_is_d_out, HLA_ERROR_ARGUMENT, "dk overlaps d_out"},
    {dv_is_v, HLA_ERROR_ARGUMENT, "dv overlaps v"},
    {dk_is_dq, HLA_ERROR_ARGUMENT, "dk overlaps dq"},
    {dv_is_dk, HLA_ERROR_ARGUMENT, "dv overlaps dk"},
    {bias_is_dv, HLA_ERROR_ARGUMENT, "dv overlaps key_bias"},
    {odd_pointer, HLA_ERROR_ARGUMENT, "dv.data is not aligned"},
    {far_strides, HLA_ERROR_ARGUMENT, "d_out has strides"},
    {long_length, HLA_ERROR_ARGUMENT, "key_lengths[1] is 8"},
    {negative_length, HLA_ERROR_ARGUMENT, "key_lengths[0] is -1"},
    {no_workspace, HLA_ERROR_WORKSPACE, "workspace is NULL"},
    {small_workspace, HLA_ERROR_WORKSPACE, "workspace holds"},
    {odd_workspace, HLA_ERROR_WORKSPACE, "workspace is not aligned"},
    {nan_in_d_out, HLA_ERROR_NOT_FINITE, "d_out holds NaN or infinity at [1, 4, 3, 5]"},
    {infinity_in_q, HLA_ERROR_NOT_FINITE, "q holds NaN or infinity at [0, 2, 3, 1]"},
    {nan_in_k, HLA_ERROR_NOT_FINITE, "k holds NaN or infinity at [1, 2, 1, 3]"},
    {nan_in_v, HLA_ERROR_NOT_FINITE, "v holds NaN or infinity at [0, 6, 0, 0]"},
    {nan_bias, HLA_ERROR_NOT_FINITE, "key_bias[6] is nan"},
};
enum { CASES = sizeof cases / sizeof cases[0], OUTPUTS = 3 };

/* case NULL: only what does not count is spoiled, which must work. */
static void check_case(hla_context *context, const hla_softmax_plan *plan, const execution_case *one) {
    uint64_t seed = 1;
    array q = array_random(LAYOUT_BTHD, HLA_F32, 2, 5, 4, 4, 1, &seed);
    array k = array_random(LAYOUT_BTHD, HLA_F32, 2, 7, 2, 4, 1, &seed);
    array v = array_random(LAYOUT_BTHD, HLA_F32, 2, 7, 2, 6, 1, &seed);
    array d_out = array_random(LAYOUT_BTHD, HLA_F32, 2, 5, 4, 6, 1, &seed);
    array out[OUTPUTS] = {array_poisoned(LAYOUT_BTHD, HLA_F32, 2, 5, 4, 4),
                          array_poisoned(LAYOUT_BTHD, HLA_F32, 2, 7, 2, 4),
                          array_poisoned(LAYOUT_BTHD, HLA_F32, 2, 7, 2, 6)};
    size_t size = hla_softmax_plan_backward_workspace(plan);
    void *workspace = aligned_alloc(HLA_ALIGNMENT, size + HLA_ALIGNMENT);
    assert_non_null(workspace);
    hla_tensor dq = out[0].view, dk = out[1].view, dv = out[2].view;
    execution e = {&dq,  &dk,       &dv, &d_out.view, &q.view, &k.view, &v.view, {7, 3}, {0, -INFINITY},
                   NULL, workspace, size};
    e.key_bias = e.bias;
    if (!one) set(&k.view, 1, 3, 0, 0, NAN), set(&v.view, 1, 6, 1, 5, INFINITY);
    if (one) one->spoil(&e);
    hla_status status = hla_softmax_backward(plan, e.dq, e.dk, e.dv, e.d_out, e.q, e.k, e.v, e.lengths, e.key_bias,
                                             e.workspace, e.size);
    assert_int_equal(status, one ? one->status : HLA_OK);
    for (int i = 0; i < OUTPUTS; i++) {
        if (one) assert_untouched(&out[i]);
        array_free(&out[i]);
    }
    if (one && !strstr(hla_context_error(context), one->sentence)) {
        fail_msg("wanted \"%s\" in \"%s\"", one->sentence, hla_context_error(context));
    }
    free(workspace);
    array_free(&q), array_free(&k), array_free(&v), array_free(&d_out);
}

static hla_softmax_problem good_problem(void) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 2, problem.heads = 4, problem.kv_heads = 2, problem.queries = 5, problem.keys = 7;
    problem.dim = 4, problem.value_dim = 6;
    return problem;
}

static void test_bad_arguments(void **state) {
    (void)state;
    hla_context *context = context_with(2, true);
    hla_softmax_problem problem = good_problem();
    hla_softmax_plan *plan = NULL;
    assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_OK);
    for (size_t i = 0; i < CASES; i++)
        check_case(context, plan, &cases[i]);
    check_case(context, plan, NULL);
    hla_softmax_plan_free(plan);
    hla_context_free(context);
    assert_int_equal(hla_softmax_backward(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0),
                     HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_softmax_plan_backward_workspace(NULL), 0);
}

/* Legal sizes whose packed copies nothing can address: many query heads of one key head. */
static void test_huge_workspaces(void **state) {
    (void)state;
    hla_context *context = context_with(2, false);
    hla_softmax_kernel_info info;
    for (int kernel = 0; hla_softmax_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here || strcmp(info.name, "reference") == 0) continue; /* which packs nothing */
        hla_softmax_problem problem = good_problem();
        problem.kernel = info.name, problem.heads = INT64_C(1) << 40, problem.kv_heads = 1, problem.value_dim = 1;
        hla_softmax_plan *plan = (hla_softmax_plan *)&problem;
        assert_int_equal(hla_softmax_plan_create(context, &problem, &plan), HLA_ERROR_ARGUMENT);
        assert_null(plan);
        assert_non_null(strstr(hla_context_error(context), "workspace does not fit"));
    }
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_SOFTMAX_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_huge_workspaces),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
