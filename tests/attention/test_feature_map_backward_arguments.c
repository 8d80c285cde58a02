/* Backward pass of the feature maps and bad arguments: the status, a sentence that names the argument, and outputs left
 * alone. */
#include "hla/feature_map.h"
#include "tests/attention/maps_support.h"

/* Everything hla_feature_map_backward is given, to be spoiled in one place. */
typedef struct execution {
    hla_feature_map_problem *problem;
    hla_tensor *dx, *d_out, *x;
    hla_feature_map_weight_gradients *dweights;
    hla_feature_map_weights *weights;
    float *weight, *hidden_bias;
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
SPOIL(no_problem, e->problem = NULL)
SPOIL(no_struct_size, e->problem->struct_size = 8)
SPOIL(no_tokens, e->problem->tokens = 0)
SPOIL(bad_activation, e->problem->activation = (hla_activation)7)
SPOIL(unknown_kernel, e->problem->kernel = "warp")
SPOIL(no_d_out, e->d_out = NULL)
SPOIL(no_x, e->x = NULL)
SPOIL(no_dx_data, e->dx->data = NULL)
SPOIL(d_out_of_f16, e->d_out->dtype = HLA_F16)
SPOIL(dx_of_bf16, e->dx->dtype = HLA_BF16)
SPOIL(d_out_of_other_shape, e->d_out->shape[3] = 5)
SPOIL(x_of_other_shape, e->x->shape[1] = 6)
SPOIL(dx_of_other_shape, e->dx->shape[2] = 4)
SPOIL(dx_overlaps_itself, e->dx->stride[2] = 1)
SPOIL(dx_is_x, e->dx->data = e->x->data)
SPOIL(dx_is_d_out, e->dx->data = e->d_out->data)
SPOIL(dx_is_weight, e->dx->data = e->weight)
SPOIL(dx_is_dweight, e->dx->data = e->dweights->weight)
SPOIL(dweight_is_weight, e->dweights->weight = e->weight)
SPOIL(dhidden_bias_is_hidden_bias, e->dweights->hidden_bias = e->hidden_bias)
SPOIL(dbias_is_x, e->dweights->bias = e->x->data)
SPOIL(dbias_is_dweight, e->dweights->bias = e->dweights->weight + 71)
SPOIL(dhidden_is_dweight, e->dweights->hidden_weight = e->dweights->weight)
SPOIL(odd_dweight, e->dweights->weight = (float *)(void *)((char *)e->dweights->weight + 1))
SPOIL(no_weights, e->weights = NULL)
SPOIL(no_weight, e->weights->weight = NULL)
SPOIL(lone_hidden_bias, e->weights->hidden_weight = NULL)
SPOIL(lone_dhidden, e->weights->hidden_weight = e->weights->hidden_bias = NULL)
SPOIL(lone_dhidden_bias, e->weights->hidden_weight = e->weights->hidden_bias = e->dweights->hidden_weight = NULL)
SPOIL(nan_in_x, set(e->x, 1, 4, 2, 3, NAN))
SPOIL(infinity_in_d_out, set(e->d_out, 0, 1, 2, 3, INFINITY))
SPOIL(nan_in_weight, e->weight[71] = NAN)
SPOIL(no_workspace, e->workspace = NULL)
SPOIL(small_workspace, e->size--)
SPOIL(odd_workspace, e->workspace += 4)

static const execution_case cases[] = {
    {no_problem, HLA_ERROR_ARGUMENT, "problem is NULL"},
    {no_struct_size, HLA_ERROR_ARGUMENT, "problem.struct_size is 8"},
    {no_tokens, HLA_ERROR_ARGUMENT, "problem.tokens is 0"},
    {bad_activation, HLA_ERROR_ARGUMENT, "problem.activation is 7"},
    {unknown_kernel, HLA_ERROR_ARGUMENT, "problem.kernel is \"warp\""},
    {no_d_out, HLA_ERROR_ARGUMENT, "d_out is NULL"},
    {no_x, HLA_ERROR_ARGUMENT, "x is NULL"},
    {no_dx_data, HLA_ERROR_ARGUMENT, "dx.data is NULL"},
    {d_out_of_f16, HLA_ERROR_ARGUMENT, "d_out has dtype float16"},
    {dx_of_bf16, HLA_ERROR_ARGUMENT, "dx has dtype bfloat16"},
    {d_out_of_other_shape, HLA_ERROR_ARGUMENT, "d_out has shape [2, 5, 3, 5], wanted [2, 5, 3, 6]"},
    {x_of_other_shape, HLA_ERROR_ARGUMENT, "x has shape [2, 6, 3, 4], wanted [2, 5, 3, 4]"},
    {dx_of_other_shape, HLA_ERROR_ARGUMENT, "dx has shape [2, 5, 4, 4], wanted [2, 5, 3, 4]"},
    {dx_overlaps_itself, HLA_ERROR_ARGUMENT, "dx overlaps itself"},
    {dx_is_x, HLA_ERROR_ARGUMENT, "dx overlaps x"},
    {dx_is_d_out, HLA_ERROR_ARGUMENT, "dx overlaps d_out"},
    {dx_is_weight, HLA_ERROR_ARGUMENT, "dx overlaps weights.weight"},
    {dx_is_dweight, HLA_ERROR_ARGUMENT, "dx overlaps dweights.weight"},
    {dweight_is_weight, HLA_ERROR_ARGUMENT, "dweights.weight overlaps weights.weight"},
    {dhidden_bias_is_hidden_bias, HLA_ERROR_ARGUMENT, "dweights.hidden_bias overlaps weights.hidden_bias"},
    {dbias_is_x, HLA_ERROR_ARGUMENT, "dweights.bias overlaps x"},
    {dbias_is_dweight, HLA_ERROR_ARGUMENT, "dweights.bias overlaps dweights.weight"},
    {dhidden_is_dweight, HLA_ERROR_ARGUMENT, "dweights.hidden_weight overlaps dweights.weight"},
    {odd_dweight, HLA_ERROR_ARGUMENT, "dweights.weight.data is not aligned"},
    {no_weights, HLA_ERROR_ARGUMENT, "weights is NULL"},
    {no_weight, HLA_ERROR_ARGUMENT, "weights.weight is NULL"},
    {lone_hidden_bias, HLA_ERROR_ARGUMENT, "weights.hidden_bias is given without weights.hidden_weight"},
    {lone_dhidden, HLA_ERROR_ARGUMENT, "dweights.hidden_weight is given without weights.hidden_weight"},
    {lone_dhidden_bias, HLA_ERROR_ARGUMENT, "dweights.hidden_bias is given without weights.hidden_weight"},
    {nan_in_x, HLA_ERROR_NOT_FINITE, "x holds NaN or infinity at [1, 4, 2, 3]"},
    {infinity_in_d_out, HLA_ERROR_NOT_FINITE, "d_out holds NaN or infinity at [0, 1, 2, 3]"},
    {nan_in_weight, HLA_ERROR_NOT_FINITE, "weights.weight holds NaN or infinity"},
    {no_workspace, HLA_ERROR_WORKSPACE, "workspace is NULL"},
    {small_workspace, HLA_ERROR_WORKSPACE, "workspace holds"},
    {odd_workspace, HLA_ERROR_WORKSPACE, "workspace is not aligned"},
};
enum { CASES = sizeof cases / sizeof cases[0], OUTPUTS = 5 };

static void check_case(hla_context *context, const execution_case *one) {
    uint64_t seed = 1;
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = 2, problem.tokens = 5, problem.heads = 3, problem.dim = 4, problem.rank = 6;
    array x = array_random(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 4, 1, &seed);
    array d_out = array_random(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 6, 1, &seed);
    array w = array_random(LAYOUT_BTHD, HLA_F32, 1, 3, 6, 4, 1, &seed);
    array b = array_random(LAYOUT_BTHD, HLA_F32, 1, 1, 3, 6, 1, &seed);
    array u = array_random(LAYOUT_BTHD, HLA_F32, 1, 3, 4, 4, 1, &seed);
    array c = array_random(LAYOUT_BTHD, HLA_F32, 1, 1, 3, 4, 1, &seed);
    array out[OUTPUTS] = {
        array_poisoned(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 4), array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 3, 6, 4),
        array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, 3, 6), array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 3, 4, 4),
        array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, 3, 4)};
    hla_feature_map_weights weights = {w.view.data, b.view.data, u.view.data, c.view.data};
    hla_feature_map_weight_gradients dweights = {out[1].view.data, out[2].view.data, out[3].view.data,
                                                 out[4].view.data};
    size_t size;
    assert_int_equal(hla_feature_map_backward_workspace(context, &problem, &size), HLA_OK);
    void *workspace = aligned_alloc(HLA_ALIGNMENT, size + HLA_ALIGNMENT);
    assert_non_null(workspace);
    hla_tensor dx = out[0].view;
    execution e = {&problem, &dx, &d_out.view, &x.view, &dweights, &weights, w.view.data, c.view.data, workspace, size};
    if (one) one->spoil(&e);
    hla_status status =
        hla_feature_map_backward(context, e.problem, e.dx, e.dweights, e.d_out, e.x, e.weights, e.workspace, e.size);
    assert_int_equal(status, one ? one->status : HLA_OK);
    for (int i = 0; i < OUTPUTS; i++) {
        if (one) assert_untouched(&out[i]);
        array_free(&out[i]);
    }
    if (one && !strstr(hla_context_error(context), one->sentence)) {
        fail_msg("wanted \"%s\" in \"%s\"", one->sentence, hla_context_error(context));
    }
    free(workspace);
    array_free(&x), array_free(&d_out), array_free(&w), array_free(&b), array_free(&u), array_free(&c);
}

static void test_bad_arguments(void **state) {
    (void)state;
    hla_context *context = context_with(2, true);
    for (size_t i = 0; i < CASES; i++)
        check_case(context, &cases[i]);
    check_case(context, NULL);
    assert_int_equal(hla_feature_map_backward(NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0), HLA_ERROR_ARGUMENT);
    hla_context_free(context);
}

static void test_bad_workspace_queries(void **state) {
    (void)state;
    hla_context *context = context_with(1, false);
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    size_t bytes = 77;
    assert_int_equal(hla_feature_map_backward_workspace(NULL, &problem, &bytes), HLA_ERROR_ARGUMENT);
    assert_int_equal(bytes, 0);
    assert_int_equal(hla_feature_map_backward_workspace(context, &problem, NULL), HLA_ERROR_ARGUMENT);
    assert_string_equal(hla_context_error(context), "bytes is NULL");
    assert_int_equal(hla_feature_map_backward_workspace(context, NULL, &bytes), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_feature_map_backward_workspace(context, &problem, &bytes), HLA_ERROR_ARGUMENT);
    assert_non_null(strstr(hla_context_error(context), "problem.batch is 0"));
    hla_feature_map_kernel_info info;
    for (int i = 0; hla_feature_map_kernel(NULL, i, &info); i++) {
        if (!info.runs_here) continue;
        problem.batch = problem.heads = problem.tokens = problem.rank = 1, problem.dim = INT64_C(1) << 40;
        problem.kernel = info.name, bytes = 77;
        assert_int_equal(hla_feature_map_backward_workspace(context, &problem, &bytes), HLA_ERROR_ARGUMENT);
        assert_non_null(strstr(hla_context_error(context), "workspace does not fit"));
        assert_int_equal(bytes, 0);
    }
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_FEATURE_MAP_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_bad_workspace_queries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
