/* Feature maps and bad arguments: the status, a sentence that names the argument, and an output left alone. */
#include "attention/simd/isa.h"
#include "hla/feature_map.h"
#include "tests/attention/maps_support.h"

/* Everything hla_feature_map_forward is given, to be spoiled in one place. */
typedef struct execution {
    hla_feature_map_problem *problem;
    hla_tensor *out, *x;
    hla_feature_map_weights *weights;
    float *weight, *bias, *hidden_weight, *hidden_bias;
} execution;

typedef struct execution_case {
    void (*spoil)(execution *);
    hla_status status;
    const char *sentence;
} execution_case;

#define SPOIL(name, change)                                                                                            \
    static void name(execution *e) {                                                                                   \
        change;                                                                                                        \
    }
SPOIL(no_problem, e->problem = NULL)
SPOIL(no_struct_size, e->problem->struct_size = 8)
SPOIL(no_batch, e->problem->batch = 0)
SPOIL(negative_heads, e->problem->heads = -3)
SPOIL(no_tokens, e->problem->tokens = 0)
SPOIL(no_dim, e->problem->dim = 0)
SPOIL(negative_rank, e->problem->rank = -1)
SPOIL(bad_dtype, e->problem->dtype = (hla_dtype)3)
SPOIL(bad_activation, e->problem->activation = (hla_activation)7)
SPOIL(negative_activation, e->problem->activation = (hla_activation)-1)
SPOIL(nan_floor, e->problem->floor = NAN)
SPOIL(negative_floor, e->problem->floor = -1)
SPOIL(infinite_shift, e->problem->shift = INFINITY)
SPOIL(unknown_kernel, e->problem->kernel = "warp")
SPOIL(no_out, e->out = NULL)
SPOIL(no_x, e->x = NULL)
SPOIL(no_x_data, e->x->data = NULL)
SPOIL(x_of_f16, e->x->dtype = HLA_F16)
SPOIL(x_of_other_shape, e->x->shape[3] = 5)
SPOIL(out_of_other_shape, e->out->shape[1] = 6)
SPOIL(out_overlaps_itself, e->out->stride[2] = 1)
SPOIL(x_is_out, e->x->data = e->out->data)
SPOIL(odd_pointer, e->x->data = (char *)e->x->data + 2)
SPOIL(odd_dim, e->problem->dim = 3; e->problem->rope = e->weight)
SPOIL(rope_is_out, e->problem->rope = e->out->data)
SPOIL(nan_in_rope, e->weight[19] = NAN; e->problem->rope = e->weight; e->weights->weight = e->weight + 20)
SPOIL(no_weights, e->weights = NULL)
SPOIL(no_weight, e->weights->weight = NULL)
SPOIL(lone_hidden_bias, e->weights->hidden_weight = NULL)
SPOIL(weight_is_out, e->weights->weight = e->out->data)
SPOIL(bias_is_out, e->weights->bias = e->out->data)
SPOIL(hidden_weight_is_out, e->weights->hidden_weight = e->out->data)
SPOIL(hidden_bias_is_out, e->weights->hidden_bias = e->out->data)
SPOIL(nan_in_x, set(e->x, 1, 4, 2, 3, NAN))
SPOIL(nan_in_weight, e->weight[71] = NAN)
SPOIL(infinite_bias, e->bias[7] = INFINITY)
SPOIL(nan_in_hidden_weight, e->hidden_weight[16] = NAN)
SPOIL(nan_in_hidden_bias, e->hidden_bias[5] = NAN)

static const execution_case cases[] = {
    {no_problem, HLA_ERROR_ARGUMENT, "problem is NULL"},
    {no_struct_size, HLA_ERROR_ARGUMENT, "problem.struct_size is 8"},
    {no_batch, HLA_ERROR_ARGUMENT, "problem.batch is 0"},
    {negative_heads, HLA_ERROR_ARGUMENT, "problem.heads is -3"},
    {no_tokens, HLA_ERROR_ARGUMENT, "problem.tokens is 0"},
    {no_dim, HLA_ERROR_ARGUMENT, "problem.dim is 0"},
    {negative_rank, HLA_ERROR_ARGUMENT, "problem.rank is -1"},
    {bad_dtype, HLA_ERROR_ARGUMENT, "problem.dtype is 3"},
    {bad_activation, HLA_ERROR_ARGUMENT, "problem.activation is 7"},
    {negative_activation, HLA_ERROR_ARGUMENT, "problem.activation is -1"},
    {nan_floor, HLA_ERROR_ARGUMENT, "problem.floor is nan"},
    {negative_floor, HLA_ERROR_ARGUMENT, "problem.floor is -1"},
    {infinite_shift, HLA_ERROR_ARGUMENT, "problem.shift is inf"},
    {unknown_kernel, HLA_ERROR_ARGUMENT, "problem.kernel is \"warp\""},
    {no_out, HLA_ERROR_ARGUMENT, "out is NULL"},
    {no_x, HLA_ERROR_ARGUMENT, "x is NULL"},
    {no_x_data, HLA_ERROR_ARGUMENT, "x.data is NULL"},
    {x_of_f16, HLA_ERROR_ARGUMENT, "x has dtype float16"},
    {x_of_other_shape, HLA_ERROR_ARGUMENT, "x has shape [2, 5, 3, 5], wanted [2, 5, 3, 4]"},
    {out_of_other_shape, HLA_ERROR_ARGUMENT, "out has shape [2, 6, 3, 6], wanted [2, 5, 3, 6]"},
    {out_overlaps_itself, HLA_ERROR_ARGUMENT, "out overlaps itself"},
    {x_is_out, HLA_ERROR_ARGUMENT, "out overlaps x"},
    {odd_pointer, HLA_ERROR_ARGUMENT, "x.data is not aligned"},
    {odd_dim, HLA_ERROR_ARGUMENT, "problem.dim is 3, wanted an even number with problem.rope"},
    {rope_is_out, HLA_ERROR_ARGUMENT, "out overlaps problem.rope"},
    {nan_in_rope, HLA_ERROR_NOT_FINITE, "problem.rope holds NaN or infinity"},
    {no_weights, HLA_ERROR_ARGUMENT, "weights is NULL"},
    {no_weight, HLA_ERROR_ARGUMENT, "weights.weight is NULL"},
    {lone_hidden_bias, HLA_ERROR_ARGUMENT, "weights.hidden_bias is given without weights.hidden_weight"},
    {weight_is_out, HLA_ERROR_ARGUMENT, "out overlaps weights.weight"},
    {bias_is_out, HLA_ERROR_ARGUMENT, "out overlaps weights.bias"},
    {hidden_weight_is_out, HLA_ERROR_ARGUMENT, "out overlaps weights.hidden_weight"},
    {hidden_bias_is_out, HLA_ERROR_ARGUMENT, "out overlaps weights.hidden_bias"},
    {nan_in_x, HLA_ERROR_NOT_FINITE, "x holds NaN or infinity at [1, 4, 2, 3]"},
    {nan_in_weight, HLA_ERROR_NOT_FINITE, "weights.weight holds NaN or infinity"},
    {infinite_bias, HLA_ERROR_NOT_FINITE, "weights.bias holds NaN or infinity"},
    {nan_in_hidden_weight, HLA_ERROR_NOT_FINITE, "weights.hidden_weight holds NaN or infinity"},
    {nan_in_hidden_bias, HLA_ERROR_NOT_FINITE, "weights.hidden_bias holds NaN or infinity"},
};
enum { CASES = sizeof cases / sizeof cases[0] };

static void test_bad_arguments(void **state) {
    (void)state;
    hla_context *context = context_with(2, true);
    for (size_t i = 0; i <= CASES; i++) {
        uint64_t seed = 1;
        hla_feature_map_problem problem;
        hla_feature_map_problem_init(&problem);
        problem.batch = 2, problem.tokens = 5, problem.heads = 3, problem.dim = 4, problem.rank = 6;
        array x = array_random(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 4, 1, &seed);
        array out = array_poisoned(LAYOUT_BTHD, HLA_F32, 2, 5, 3, 6);
        /* [3,6,4], [3,6], [3,4,4], [3,4] */
        float *weight = floats_random(92, 1, &seed), *bias = floats_random(18, 1, &seed);
        float *hidden_weight = floats_random(48, 1, &seed), *hidden_bias = floats_random(12, 1, &seed);
        hla_feature_map_weights weights = {weight, bias, hidden_weight, hidden_bias};
        execution e = {&problem, &out.view, &x.view, &weights, weight, bias, hidden_weight, hidden_bias};
        bool last = i == CASES; /* nothing spoiled: must work */
        if (!last) cases[i].spoil(&e);
        hla_status status = hla_feature_map_forward(context, e.problem, e.out, e.x, e.weights);
        assert_int_equal(status, last ? HLA_OK : cases[i].status);
        if (!last) {
            assert_untouched(&out);
            if (!strstr(hla_context_error(context), cases[i].sentence)) {
                fail_msg("wanted \"%s\" in \"%s\"", cases[i].sentence, hla_context_error(context));
            }
        }
        array_free(&x), array_free(&out);
        free(weight), free(bias), free(hidden_weight), free(hidden_bias);
    }
    assert_int_equal(hla_feature_map_forward(NULL, NULL, NULL, NULL, NULL), HLA_ERROR_ARGUMENT);
    hla_feature_map_problem_init(NULL);
    hla_context_free(context);
}

/* A view of one element repeated 2^40 times is a legal input, but no memory holds its packed weights. */
static void test_widths_beyond_memory(void **state) {
    (void)state;
    hla_feature_map_kernel_info info;
    for (int kernel = 0; hla_feature_map_kernel(NULL, kernel, &info); kernel++) {
        if (!info.runs_here) continue;
        hla_context *context = context_with(1, false);
        hla_feature_map_problem problem;
        hla_feature_map_problem_init(&problem);
        float one = 1, result = NAN;
        problem.batch = problem.tokens = problem.heads = problem.rank = 1, problem.dim = (int64_t)1 << 58;
        problem.kernel = info.name;
        hla_tensor x = hla_tensor_bthd(&one, HLA_F32, 1, 1, 1, problem.dim);
        hla_tensor out = hla_tensor_bthd(&result, HLA_F32, 1, 1, 1, 1);
        x.stride[3] = 0;
        hla_feature_map_weights weights = {.weight = (const float *)(uintptr_t)4096};
        hla_status status = hla_feature_map_forward(context, &problem, &out, &x, &weights);
        assert_true(status == HLA_ERROR_ARGUMENT || status == HLA_ERROR_MEMORY);
        assert_true(isnan(result) && strlen(hla_context_error(context)) > 0);
        hla_context_free(context);
    }
}

/* The linker sends the library's calls of hla_isa_runs here (--wrap), so that a test can take vector units away. */
bool __real_hla_isa_runs(hla_isa isa);
bool __wrap_hla_isa_runs(hla_isa isa);
static bool without_vector_units;
bool __wrap_hla_isa_runs(hla_isa isa) {
    return __real_hla_isa_runs(isa) && !(without_vector_units && isa != HLA_ISA_BASELINE);
}

/* Each entry that runs here can be forced, by argument and by environment; one that can't is refused. */
static void check_forced_kernels(void) {
    hla_context *context = context_with(1, false);
    float x[1] = {3}, weight[1] = {2}, out[1];
    hla_tensor in = hla_tensor_bthd(x, HLA_F32, 1, 1, 1, 1), result = hla_tensor_bthd(out, HLA_F32, 1, 1, 1, 1);
    hla_feature_map_weights weights = {.weight = weight};
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = problem.tokens = problem.heads = problem.dim = problem.rank = 1;
    problem.activation = HLA_ACTIVATION_SQUARE;
    hla_feature_map_kernel_info info;
    for (int i = 0; hla_feature_map_kernel(NULL, i, &info); i++) {
        for (int by_environment = 0; by_environment < 2; by_environment++) {
            problem.kernel = by_environment ? NULL : info.name;
            if (by_environment) setenv("HLA_FEATURE_MAP_KERNEL", info.name, 1);
            out[0] = NAN;
            hla_status status = hla_feature_map_forward(context, &problem, &result, &in, &weights);
            assert_int_equal(status, info.runs_here ? HLA_OK : HLA_ERROR_UNSUPPORTED);
            if (info.runs_here) assert_true(out[0] == 36);
            if (!info.runs_here) assert_non_null(strstr(hla_context_error(context), info.needs));
        }
    }
    problem.kernel = NULL;
    setenv("HLA_FEATURE_MAP_KERNEL", "warp", 1);
    assert_int_equal(hla_feature_map_forward(context, &problem, &result, &in, &weights), HLA_ERROR_ARGUMENT);
    assert_non_null(strstr(hla_context_error(context), "HLA_FEATURE_MAP_KERNEL is \"warp\""));
    unsetenv("HLA_FEATURE_MAP_KERNEL");
    assert_false(hla_feature_map_kernel(NULL, 0, NULL));
    assert_false(hla_feature_map_kernel(NULL, -1, &info));
    assert_false(hla_feature_map_kernel(NULL, 1000, &info));
    hla_context_free(context);
}

static void test_forced_kernels(void **state) {
    (void)state;
    check_forced_kernels();
    without_vector_units = true;
    check_forced_kernels();
    hla_feature_map_kernel_info info;
    for (int i = 0; hla_feature_map_kernel(NULL, i, &info); i++)
        assert_int_equal(info.runs_here, info.needs[0] == 0);
    without_vector_units = false;
}

int main(void) {
    unsetenv("HLA_FEATURE_MAP_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_widths_beyond_memory),
        cmocka_unit_test(test_forced_kernels),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
