/* Bad arguments of packed and stateful problems and of the backward pass: each gets its status, a sentence that names
 * it, and untouched outputs. */
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/attention/argument_support.h"

/* ---- the problem ---- */

typedef struct bad_problem {
    const char *named;
    hla_status status;
    void (*spoil)(hla_hadamard_problem *problem);
} bad_problem;

#define SPOIL_PROBLEM(name, statement)                                                                                 \
    static void name(hla_hadamard_problem *p) {                                                                        \
        statement;                                                                                                     \
    }
SPOIL_PROBLEM(no_divisor, p->kv_heads = 4)
SPOIL_PROBLEM(more_kv_heads, p->kv_heads = 12)
SPOIL_PROBLEM(negative_kv_heads, p->kv_heads = -1)
SPOIL_PROBLEM(negative_sequences, p->sequences = -1)
SPOIL_PROBLEM(huge_sequences, p->sequences = INT64_MAX)
SPOIL_PROBLEM(packed_batch, (p->sequences = 3, p->batch = 2))
SPOIL_PROBLEM(stateful_form, (p->stateful = true, p->form = HLA_FORM_QUADRATIC))
SPOIL_PROBLEM(stateful_kernel, (p->stateful = true, p->kernel = "quadratic_baseline"))
SPOIL_PROBLEM(giant_causal_state,
              (p->causal = true, p->form = HLA_FORM_STATE, p->factors = 4,
               p->rank[0] = p->rank[1] = p->rank[2] = p->rank[3] = 256, p->value_dim = INT64_C(1) << 30))
SPOIL_PROBLEM(giant_states, (p->stateful = true, p->factors = 4, p->kernel = "reference",
                             p->rank[0] = p->rank[1] = p->rank[2] = p->rank[3] = 256, p->value_dim = INT64_C(1) << 30))

static hla_hadamard_problem good_problem(void) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = 6, problem.queries = 5, problem.keys = 7, problem.value_dim = 4;
    problem.factors = 2, problem.rank[0] = 3, problem.rank[1] = 6;
    return problem;
}

static void test_problem(void **unused) {
    (void)unused;
    static const bad_problem table[] = {
        {"problem.kv_heads is 4, wanted a divisor of problem.heads, 6", HLA_ERROR_ARGUMENT, no_divisor},
        {"problem.kv_heads is 12", HLA_ERROR_ARGUMENT, more_kv_heads},
        {"problem.kv_heads is -1", HLA_ERROR_ARGUMENT, negative_kv_heads},
        {"problem.sequences is -1", HLA_ERROR_ARGUMENT, negative_sequences},
        {"problem.sequences", HLA_ERROR_ARGUMENT, huge_sequences},
        {"problem.batch is 2, wanted 1", HLA_ERROR_ARGUMENT, packed_batch},
        {"problem.stateful needs the state form", HLA_ERROR_ARGUMENT, stateful_form},
        {"\"quadratic_baseline\" is not", HLA_ERROR_ARGUMENT, stateful_kernel},
        {"workspace", HLA_ERROR_UNSUPPORTED, giant_causal_state},
        {"problem.stateful: the states' size", HLA_ERROR_ARGUMENT, giant_states},
    };
    hla_context *context = make_context(false);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        hla_hadamard_problem problem = good_problem();
        table[i].spoil(&problem);
        hla_hadamard_plan *plan = (hla_hadamard_plan *)&problem; /* must become NULL */
        expect(context, hla_hadamard_plan_create(context, &problem, &plan), table[i].status, table[i].named);
        assert_null(plan);
    }
    hla_context_free(context);
}

/* The plan of a quadratic kernel whose backward pass, always in state form, cannot be addressed: refused when called.
 */
static void test_unaddressable_backward(void **unused) {
    (void)unused;
    hla_context *context = make_context(false);
    hla_hadamard_problem problem = good_problem();
    giant_causal_state(&problem);
    problem.form = HLA_FORM_QUADRATIC;
    hla_hadamard_plan *plan = NULL;
    if (hla_hadamard_plan_create(context, &problem, &plan) != HLA_OK) fail_msg("%s", hla_context_error(context));
    assert_true(hla_hadamard_plan_backward_workspace(plan) == SIZE_MAX);
    const hla_hadamard_inputs inputs = {0};
    const hla_hadamard_gradients gradients = {0};
    expect(context, hla_hadamard_backward(plan, &gradients, NULL, NULL, &inputs, NULL, 0), HLA_ERROR_UNSUPPORTED,
           "backward pass cannot be addressed");
    hla_hadamard_plan_free(plan);
    assert_int_equal(hla_hadamard_plan_backward_workspace(NULL), 0);
    assert_int_equal(hla_hadamard_plan_kept_workspace(NULL), 0);
    hla_context_free(context);
}

/* ---- calls ---- */

/* All arguments of a forward or a backward call, good until spoiled. */
typedef struct arguments {
    hadamard_data data;
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], dq[HLA_MAX_FACTORS], dk[HLA_MAX_FACTORS];
    hla_tensor v, out, dv, d_out;
    hla_hadamard_inputs in;
    const hla_hadamard_inputs *in_pointer;
    hla_hadamard_gradients gradients;
    const hla_hadamard_gradients *gradients_pointer;
    const hla_tensor *out_pointer, *d_out_pointer;
    float *final_state;
    const float *d_final_state;
    int64_t lengths[1], *starts;
    char *workspace;
    size_t workspace_size;
} arguments;

static float *state_of(const guarded *array) {
    return array->pages ? array->view.data : NULL;
}

static void set_arguments(arguments *a, const hla_hadamard_plan *plan, bool backward) {
    hadamard_data *data = &a->data;
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        a->q[p] = data->q[p].view, a->k[p] = data->k[p].view;
        a->dq[p] = data->output[DQ + p].view, a->dk[p] = data->output[DK + p].view;
    }
    a->v = data->v.view, a->out = data->output[OUT].view;
    a->dv = data->output[DV].view, a->d_out = data->d_out.view;
    a->in = (hla_hadamard_inputs){.q_features = a->q,
                                  .k_features = a->k,
                                  .v = &a->v,
                                  .query_starts = data->query_starts,
                                  .key_starts = data->key_starts,
                                  .initial_state = state_of(&data->initial_state)};
    a->gradients = (hla_hadamard_gradients){a->dq, a->dk, &a->dv, state_of(&data->output[D_INITIAL_STATE])};
    a->in_pointer = &a->in, a->gradients_pointer = &a->gradients;
    a->out_pointer = &a->out, a->d_out_pointer = &a->d_out;
    a->final_state = state_of(&data->output[FINAL_STATE]);
    a->d_final_state = state_of(&data->d_final_state);
    a->lengths[0] = data->problem.keys, a->starts = data->key_starts;
    a->workspace_size = backward ? hla_hadamard_plan_backward_workspace(plan) : hla_hadamard_plan_workspace(plan);
    a->workspace = aligned_alloc(64, a->workspace_size + 64);
    assert_non_null(a->workspace);
}

/* All outputs as they were poisoned: all bytes one. */
static bool untouched(const hadamard_data *data) {
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        const unsigned char *bytes = data->output[i].view.data;
        for (size_t e = 0; e < data->output[i].span; e++) {
            if (bytes[e] != 0xff) return false;
        }
    }
    return true;
}

typedef struct bad_call {
    const char *named;
    hla_status status;
    void (*spoil)(arguments *a);
} bad_call;

static hla_status call(hla_context *context, unsigned modes, bool backward, void (*spoil)(arguments *a), bool *wrote) {
    const hadamard_case c = {1, 2, 16, 32, 3, 2, {2, 3}, LAYOUT_BTHD, modes};
    arguments a = {.data = hadamard_make_backward(&c, HLA_F32, true, 70)};
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        if (a.data.output[i].pages) poison(&a.data.output[i]);
    }
    hla_hadamard_plan *plan = NULL;
    assert_int_equal(hla_hadamard_plan_create(context, &a.data.problem, &plan), HLA_OK);
    set_arguments(&a, plan, backward);
    char *allocated = a.workspace;
    if (spoil) spoil(&a);
    hla_status status = backward ? hla_hadamard_backward(plan, a.gradients_pointer, a.d_out_pointer, a.d_final_state,
                                                         a.in_pointer, a.workspace, a.workspace_size)
                                 : hla_hadamard_forward(plan, a.out_pointer, a.final_state, a.in_pointer, a.workspace,
                                                        a.workspace_size);
    *wrote = !untouched(&a.data);
    free(allocated);
    hla_hadamard_plan_free(plan);
    hadamard_free(&a.data);
    return status;
}

static void check_calls(unsigned modes, bool backward, bool check_finite, const bad_call *table, size_t count) {
    hla_context *context = make_context(check_finite);
    bool wrote;
    for (size_t i = 0; i < count; i++) {
        expect(context, call(context, modes, backward, table[i].spoil, &wrote), table[i].status, table[i].named);
        if (wrote) fail_msg("an output was written although %s", table[i].named);
    }
    expect(context, call(context, modes, backward, NULL, &wrote), HLA_OK, "");
    assert_true(wrote);
    hla_context_free(context);
}
#define CHECK_CALLS(modes, backward, finite, table)                                                                    \
    check_calls(modes, backward, finite, table, sizeof(table) / sizeof(table)[0])

#define SPOIL(name, statement)                                                                                         \
    static void name(arguments *a) {                                                                                   \
        statement;                                                                                                     \
    }
/* both directions */
SPOIL(null_inputs, a->in_pointer = NULL)
SPOIL(packed_lengths, a->in.key_lengths = a->lengths)
SPOIL(null_query_starts, a->in.query_starts = NULL)
SPOIL(null_key_starts, a->in.key_starts = NULL)
SPOIL(starts_above_zero, a->starts[0] = 1)
SPOIL(starts_falling, a->starts[3] = a->starts[2] - 1)
SPOIL(starts_beyond, a->starts[4] = 33)
SPOIL(starts_short, a->starts[6] = 31)
SPOIL(unasked_starts, a->in.query_starts = a->lengths)
SPOIL(unasked_initial, a->in.initial_state = state_of(&a->data.v))
SPOIL(odd_initial, a->in.initial_state = (const float *)(const void *)((const char *)a->in.initial_state + 2))
SPOIL(nan_initial, ((float *)a->data.initial_state.view.data)[4] = NAN)
SPOIL(null_workspace, a->workspace = NULL)
SPOIL(small_workspace, a->workspace_size--)
SPOIL(odd_workspace, a->workspace += 4)
/* forward */
SPOIL(nothing_wanted, (a->out_pointer = NULL, a->final_state = NULL))
SPOIL(unasked_final, a->final_state = state_of(&a->data.output[DV]))
SPOIL(odd_final, a->final_state = (float *)(void *)((char *)a->final_state + 2))
SPOIL(final_in_initial, (a->final_state = (float *)(uintptr_t)a->in.initial_state + 4))
SPOIL(final_in_out, a->out.data = a->final_state)
SPOIL(final_in_v, a->v.data = a->final_state)
SPOIL(final_in_q, a->q[1].data = a->final_state + 1)
SPOIL(final_in_k, a->k[0].data = a->final_state)
SPOIL(initial_in_out, a->in.initial_state = a->out.data)
/* backward */
SPOIL(null_gradients, a->gradients_pointer = NULL)
SPOIL(null_dq, a->gradients.dq_features = NULL)
SPOIL(null_dk, a->gradients.dk_features = NULL)
SPOIL(null_dv, a->gradients.dv = NULL)
SPOIL(null_d_out, a->d_out_pointer = NULL)
SPOIL(null_dk_data, a->dk[1].data = NULL)
SPOIL(wrong_dq, a->dq[0].shape[3] = 1)
SPOIL(wrong_dv, a->dv.shape[1] = 31)
SPOIL(wrong_d_out, a->d_out.shape[1] = 15)
SPOIL(dtype_of_d_out, a->d_out.dtype = HLA_F16)
SPOIL(dtype_of_dk, a->dk[0].dtype = HLA_BF16)
SPOIL(flat_dv, a->dv.stride[1] = 0)
SPOIL(flat_dq, a->dq[1].stride[2] = 0)
SPOIL(dk_in_dq, a->dk[0].data = a->dq[0].data)
SPOIL(dq_twice, a->dq[1].data = a->dq[0].data)
SPOIL(dv_in_dk, a->dv.data = a->dk[1].data)
SPOIL(dv_in_v, a->dv.data = a->v.data)
SPOIL(dq_in_k, a->dq[0].data = a->k[1].data)
SPOIL(dk_in_q, a->dk[1].data = a->q[0].data)
SPOIL(dv_in_d_out, a->d_out.data = a->dv.data)
SPOIL(unasked_d_final, a->d_final_state = state_of(&a->data.v))
SPOIL(unasked_d_initial, a->gradients.d_initial_state = state_of(&a->data.output[OUT]))
SPOIL(d_initial_is_initial, a->in.initial_state = a->gradients.d_initial_state)
SPOIL(d_initial_in_initial, a->in.initial_state = a->gradients.d_initial_state + 1)
SPOIL(d_initial_in_d_final, a->d_final_state = a->gradients.d_initial_state + 1)
SPOIL(d_initial_in_dq, a->dq[0].data = a->gradients.d_initial_state)
SPOIL(d_initial_in_v, a->v.data = a->gradients.d_initial_state)
SPOIL(d_initial_in_d_out, a->d_out.data = a->gradients.d_initial_state)
SPOIL(d_final_in_dv, a->d_final_state = a->dv.data)
SPOIL(nan_d_out, set(&a->d_out, 0, 3, 1, 2, NAN))
SPOIL(nan_v, set(&a->v, 0, 31, 0, 1, INFINITY))
SPOIL(nan_q, set(&a->q[1], 0, 15, 1, 2, NAN))
SPOIL(nan_d_final, ((float *)a->data.d_final_state.view.data)[2] = INFINITY)

static void test_packed(void **unused) {
    (void)unused;
    static const bad_call table[] = {
        {"key_lengths cannot be used", HLA_ERROR_ARGUMENT, packed_lengths},
        {"query_starts is NULL", HLA_ERROR_ARGUMENT, null_query_starts},
        {"key_starts is NULL", HLA_ERROR_ARGUMENT, null_key_starts},
        {"key_starts[0] is 1, wanted 0", HLA_ERROR_ARGUMENT, starts_above_zero},
        {"key_starts[3] is 11, wanted 12 to 32", HLA_ERROR_ARGUMENT, starts_falling},
        {"key_starts[4] is 33, wanted 12 to 32", HLA_ERROR_ARGUMENT, starts_beyond},
        {"key_starts[6] is 31, wanted 32", HLA_ERROR_ARGUMENT, starts_short},
    };
    for (int backward = 0; backward <= 1; backward++) {
        CHECK_CALLS(PACKED, backward, false, table);
        CHECK_CALLS(PACKED | CAUSAL | STATEFUL, backward, false, table);
    }
}

static void test_forward(void **unused) {
    (void)unused;
    static const bad_call plain[] = {
        {"inputs is NULL", HLA_ERROR_ARGUMENT, null_inputs},
        {"query_starts is given, but problem.sequences is 0", HLA_ERROR_ARGUMENT, unasked_starts},
        {"initial_state is given, but problem.stateful is false", HLA_ERROR_ARGUMENT, unasked_initial},
        {"final_state is given, but problem.stateful is false", HLA_ERROR_ARGUMENT, unasked_final},
    };
    static const bad_call stateful[] = {
        {"out is NULL, and so is final_state", HLA_ERROR_ARGUMENT, nothing_wanted},
        {"initial_state.data is not aligned", HLA_ERROR_ARGUMENT, odd_initial},
        {"final_state.data is not aligned", HLA_ERROR_ARGUMENT, odd_final},
        {"final_state overlaps initial_state", HLA_ERROR_ARGUMENT, final_in_initial},
        {"out overlaps final_state", HLA_ERROR_ARGUMENT, final_in_out},
        {"final_state overlaps v", HLA_ERROR_ARGUMENT, final_in_v},
        {"final_state overlaps q_features", HLA_ERROR_ARGUMENT, final_in_q},
        {"final_state overlaps k_features", HLA_ERROR_ARGUMENT, final_in_k},
        {"out overlaps initial_state", HLA_ERROR_ARGUMENT, initial_in_out},
        {"workspace holds", HLA_ERROR_WORKSPACE, small_workspace},
    };
    static const bad_call finite[] = {{"initial_state holds NaN", HLA_ERROR_NOT_FINITE, nan_initial}};
    CHECK_CALLS(0, false, false, plain);
    CHECK_CALLS(STATEFUL, false, false, stateful);
    CHECK_CALLS(STATEFUL | CAUSAL, false, true, finite);
}

static void test_backward(void **unused) {
    (void)unused;
    static const bad_call plain[] = {
        {"inputs is NULL", HLA_ERROR_ARGUMENT, null_inputs},
        {"gradients is NULL", HLA_ERROR_ARGUMENT, null_gradients},
        {"dq_features is NULL", HLA_ERROR_ARGUMENT, null_dq},
        {"dk_features is NULL", HLA_ERROR_ARGUMENT, null_dk},
        {"dv is NULL", HLA_ERROR_ARGUMENT, null_dv},
        {"d_out is NULL", HLA_ERROR_ARGUMENT, null_d_out},
        {"dk_features[1].data is NULL", HLA_ERROR_ARGUMENT, null_dk_data},
        {"dq_features[0] has shape", HLA_ERROR_ARGUMENT, wrong_dq},
        {"dv has shape", HLA_ERROR_ARGUMENT, wrong_dv},
        {"d_out has shape", HLA_ERROR_ARGUMENT, wrong_d_out},
        {"d_out has dtype float16", HLA_ERROR_ARGUMENT, dtype_of_d_out},
        {"dk_features[0] has dtype bfloat16", HLA_ERROR_ARGUMENT, dtype_of_dk},
        {"dv overlaps itself", HLA_ERROR_ARGUMENT, flat_dv},
        {"dq_features[1] overlaps itself", HLA_ERROR_ARGUMENT, flat_dq},
        {"dk_features[0] overlaps dq_features[0]", HLA_ERROR_ARGUMENT, dk_in_dq},
        {"dq_features[1] overlaps dq_features[0]", HLA_ERROR_ARGUMENT, dq_twice},
        {"dv overlaps dk_features[1]", HLA_ERROR_ARGUMENT, dv_in_dk},
        {"dv overlaps v", HLA_ERROR_ARGUMENT, dv_in_v},
        {"dq_features[0] overlaps k_features[1]", HLA_ERROR_ARGUMENT, dq_in_k},
        {"dk_features[1] overlaps q_features[0]", HLA_ERROR_ARGUMENT, dk_in_q},
        {"dv overlaps d_out", HLA_ERROR_ARGUMENT, dv_in_d_out},
        {"query_starts is given, but problem.sequences is 0", HLA_ERROR_ARGUMENT, unasked_starts},
        {"initial_state is given, but problem.stateful is false", HLA_ERROR_ARGUMENT, unasked_initial},
        {"d_final_state is given, but problem.stateful is false", HLA_ERROR_ARGUMENT, unasked_d_final},
        {"d_initial_state is given, but problem.stateful is false", HLA_ERROR_ARGUMENT, unasked_d_initial},
        {"workspace is NULL", HLA_ERROR_WORKSPACE, null_workspace},
        {"workspace holds", HLA_ERROR_WORKSPACE, small_workspace},
        {"workspace is not aligned", HLA_ERROR_WORKSPACE, odd_workspace},
    };
    static const bad_call stateful[] = {
        {"initial_state.data is not aligned", HLA_ERROR_ARGUMENT, odd_initial},
        {"d_initial_state overlaps initial_state", HLA_ERROR_ARGUMENT, d_initial_is_initial},
        {"d_initial_state overlaps initial_state", HLA_ERROR_ARGUMENT, d_initial_in_initial},
        {"d_initial_state overlaps d_final_state", HLA_ERROR_ARGUMENT, d_initial_in_d_final},
        {"dq_features[0] overlaps d_initial_state", HLA_ERROR_ARGUMENT, d_initial_in_dq},
        {"d_initial_state overlaps v", HLA_ERROR_ARGUMENT, d_initial_in_v},
        {"d_initial_state overlaps d_out", HLA_ERROR_ARGUMENT, d_initial_in_d_out},
        {"dv overlaps d_final_state", HLA_ERROR_ARGUMENT, d_final_in_dv},
    };
    static const bad_call finite[] = {
        {"d_out holds NaN or infinity at [0, 3, 1, 2]", HLA_ERROR_NOT_FINITE, nan_d_out},
        {"v holds NaN or infinity at [0, 31, 0, 1]", HLA_ERROR_NOT_FINITE, nan_v},
        {"q_features[1] holds NaN or infinity at [0, 15, 1, 2]", HLA_ERROR_NOT_FINITE, nan_q},
        {"initial_state holds NaN", HLA_ERROR_NOT_FINITE, nan_initial},
        {"d_final_state holds NaN", HLA_ERROR_NOT_FINITE, nan_d_final},
    };
    CHECK_CALLS(0, true, false, plain);
    CHECK_CALLS(STATEFUL | GROUPED, true, false, stateful);
    CHECK_CALLS(STATEFUL, true, true, finite);
    assert_int_equal(hla_hadamard_backward(NULL, NULL, NULL, NULL, NULL, NULL, 0), HLA_ERROR_ARGUMENT);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_problem),  cmocka_unit_test(test_unaddressable_backward),
        cmocka_unit_test(test_packed),   cmocka_unit_test(test_forward),
        cmocka_unit_test(test_backward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
