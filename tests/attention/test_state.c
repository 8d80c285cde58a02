/* The streaming state against the definition: a state in double that is summed token by token, and read by the formula.
 * Each script of calls mixes few and many tokens, so that both ways through the library meet. */
#include "tests/attention/state_cases.h"

static hla_context *make_context(int threads) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = threads;
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    return context;
}

static void expect_ok(hla_context *context, hla_status status, const char *what) {
    if (status != HLA_OK) fail_msg("%s: %s", what, hla_context_error(context));
}

static hla_state *make_state(hla_context *context, const hla_hadamard_problem *problem) {
    hla_state *state = NULL;
    expect_ok(context, hla_state_create(context, problem, &state), "create");
    return state;
}

static void check_state(const model *m, hla_state *state, const char *what) {
    size_t count;
    const float *found = hla_state_data(state, &count);
    check_numbers(m, found, count, 2e-6, what);
}

/* ---- scripts ---- */

/* One call on state and model, with fresh tokens, results compared. */
static void play(hla_context *context, hla_state *state, model *m, call kind, int64_t count, layout arrangement,
                 random_state *random) {
    static const char *const names[] = {"append", "query", "step"};
    char what[96];
    const hla_hadamard_problem *problem = &m->problem;
    snprintf(what, sizeof what, "%s of %d, P %d, V %d, %s, layout %d", names[kind], (int)count, problem->factors,
             (int)problem->value_dim, problem->kernel ? problem->kernel : "", (int)arrangement);
    tokens fresh = make_tokens(problem, count, arrangement, random);
    const hla_tensor *q = fresh.q_view, *k = fresh.k_view, *v = &fresh.v.view, *out = &fresh.out.view;
    int64_t before = hla_state_tokens(state);
    hla_status status = kind == APPEND  ? hla_state_append(state, k, v)
                        : kind == QUERY ? hla_state_query(state, out, q)
                                        : hla_state_step(state, out, q, k, v);
    expect_ok(context, status, what);
    assert_int_equal(hla_state_tokens(state), before + (kind == QUERY ? 0 : count));
    norms sum = {0};
    for (int64_t t = 0; t < count; t++) {
        if (kind != QUERY) model_append(m, &fresh, t);
        if (kind != APPEND) compare_token(&sum, m, &fresh, t);
    }
    check_norms(&sum, output_bound(problem->dtype), what);
    check_state(m, state, what);
    if (kind != APPEND) assert_true(gaps_untouched(&fresh.out));
    free_tokens(&fresh);
}

static void play_script(hla_context *context, const hla_hadamard_problem *problem, layout arrangement, uint64_t seed) {
    hla_state *state = make_state(context, problem);
    model m = make_model(problem);
    random_state random = {seed};
    for (size_t i = 0; i < sizeof script / sizeof script[0]; i++)
        play(context, state, &m, script[i].kind, script[i].count, arrangement, &random);
    free(m.numbers);
    hla_state_free(state);
}

static void test_scripts(void **unused) {
    (void)unused;
    static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};
    hla_context *context = make_context(2);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        for (int d = 0; d < 3; d++) {
            hla_hadamard_problem problem = problem_of(&cases[c], dtypes[d], (c + (size_t)d) % 2 == 0);
            play_script(context, &problem, (layout)((c + (size_t)d) % LAYOUT_COUNT), 100 + c);
        }
    }
    hla_context_free(context);
}

/* Each kernel that takes states, and the kernel of few tokens that goes with it. */
static void test_kernels(void **unused) {
    (void)unused;
    hla_context *context = make_context(2);
    hla_kernel_info info;
    int played = 0;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (!hadamard_takes_all(&info) || (info.form != HLA_FORM_STATE && strcmp(info.name, "reference") != 0))
            continue;
        for (size_t c = 1; c < 6; c++) {
            hla_hadamard_problem problem = problem_of(&cases[c], HLA_F32, c % 2 == 0);
            problem.kernel = info.name;
            play_script(context, &problem, (layout)(c % LAYOUT_COUNT), 200 + c);
        }
        played++;
    }
    assert_true(played >= 2);
    hla_context_free(context);
}

/* A prompt decoded token by token is the causal forward pass. */
static void test_causal(void **unused) {
    (void)unused;
    enum { T = 70 };
    hla_context *context = make_context(2);
    hla_hadamard_problem problem = problem_of(&cases[2], HLA_F32, true);
    random_state random = {300};
    tokens all = make_tokens(&problem, T, LAYOUT_BTHD, &random);
    guarded stepped = guarded_make(HLA_F32, problem.batch, T, problem.heads, problem.value_dim, LAYOUT_BHTD);
    hla_state *state = make_state(context, &problem);
    for (int64_t t = 0; t < T; t++) {
        hla_tensor views[2 * HLA_MAX_FACTORS + 2];
        memcpy(views, all.q_view, sizeof all.q_view);
        memcpy(views + HLA_MAX_FACTORS, all.k_view, sizeof all.k_view);
        hla_tensor *v = &views[2 * HLA_MAX_FACTORS], *out = v + 1;
        *v = all.v.view, *out = stepped.view;
        for (size_t i = 0; i < sizeof views / sizeof views[0]; i++) {
            if (!views[i].data) continue; /* a factor that is not there */
            views[i].data = (float *)views[i].data + t * views[i].stride[1];
            views[i].shape[1] = 1;
        }
        expect_ok(context, hla_state_step(state, out, views, views + HLA_MAX_FACTORS, v), "step");
    }
    problem.queries = problem.keys = T, problem.causal = true;
    hla_hadamard_plan *plan = NULL;
    expect_ok(context, hla_hadamard_plan_create(context, &problem, &plan), "plan");
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size);
    hla_hadamard_inputs inputs = {.q_features = all.q_view, .k_features = all.k_view, .v = &all.v.view};
    expect_ok(context, hla_hadamard_forward(plan, &all.out.view, NULL, &inputs, workspace, size), "forward");
    norms sum = {0};
    double *expected = hadamard_copy(&all.out), *found = hadamard_copy(&stepped);
    for (int64_t i = 0; i < hadamard_count(&all.out); i++) {
        sum.error += (expected[i] - found[i]) * (expected[i] - found[i]);
        sum.truth += expected[i] * expected[i];
    }
    check_norms(&sum, 2e-6, "steps against the causal forward pass");
    free(expected);
    free(found);
    free(workspace);
    hla_hadamard_plan_free(plan);
    hla_state_free(state);
    guarded_free(&stepped);
    free_tokens(&all);
    hla_context_free(context);
}

/* ---- the state as a whole ---- */

static void test_merge(void **unused) {
    (void)unused;
    hla_context *context = make_context(2);
    hla_hadamard_problem problem = problem_of(&cases[4], HLA_BF16, true);
    model all = make_model(&problem);
    hla_state *part[2], *sum[2];
    random_state random = {400};
    for (int i = 0; i < 2; i++) {
        part[i] = make_state(context, &problem);
        tokens fresh = make_tokens(&problem, i ? 30 : 7, LAYOUT_BTHD, &random);
        expect_ok(context, hla_state_append(part[i], fresh.k_view, &fresh.v.view), "append");
        for (int64_t t = 0; t < fresh.count; t++)
            model_append(&all, &fresh, t);
        free_tokens(&fresh);
    }
    for (int i = 0; i < 2; i++) {
        expect_ok(context, hla_state_clone(context, part[i], &sum[i]), "clone");
        expect_ok(context, hla_state_merge(sum[i], part[1 - i]), "merge");
        check_state(&all, sum[i], "merge");
        assert_int_equal(hla_state_tokens(sum[i]), 37);
    }
    size_t count;
    const float *data = hla_state_data(sum[0], &count);
    assert_memory_equal(data, hla_state_data(sum[1], NULL), count * sizeof *data); /* it commutes */
    assert_int_equal(hla_state_tokens(part[0]), 7);
    play(context, sum[0], &all, QUERY, 2, LAYOUT_BTHD, &random);
    play(context, sum[0], &all, STEP, 1, LAYOUT_BTHD, &random);
    for (int i = 0; i < 2; i++) {
        hla_state_free(part[i]);
        hla_state_free(sum[i]);
    }
    free(all.numbers);
    hla_context_free(context);
}

/* sum_j gamma^(T - j) phi_j v_j, with a number for each head too; 0 empties, 1 keeps. */
static void test_decay(void **unused) {
    (void)unused;
    static const float gammas[] = {0.875f, 0.3f, 1, 0};
    hla_context *context = make_context(2);
    const state_case shapes[] = {{2, 4, 4, 24, 2, {6, 7}}, {1, 2, 2, 128, 2, {32, 32}}}; /* one, many pieces */
    for (int s = 0; s < 2; s++) {
        hla_hadamard_problem problem = problem_of(&shapes[s], HLA_F32, true);
        hla_state *state = make_state(context, &problem);
        model m = make_model(&problem);
        random_state random = {500};
        for (int round = 0; round < 6; round++) {
            play(context, state, &m, STEP, round == 3 ? 40 : 1, LAYOUT_BTHD, &random);
            bool each = round % 2 == 1;
            hla_status status = each ? hla_state_decay_heads(state, gammas) : hla_state_decay(state, gammas[round / 4]);
            expect_ok(context, status, "decay");
            model_decay(&m, each ? gammas : &gammas[round / 4], each ? shapes[s].kv_heads : 1);
            check_state(&m, state, "decay");
        }
        size_t count;
        expect_ok(context, hla_state_decay(state, 0), "decay");
        const float *data = hla_state_data(state, &count);
        for (size_t i = 0; i < count; i++)
            assert_true(data[i] == 0);
        free(m.numbers);
        hla_state_free(state);
    }
    hla_context_free(context);
}

static void test_clone_and_reset(void **unused) {
    (void)unused;
    hla_context *context = make_context(1), *other = make_context(2);
    hla_hadamard_problem problem = problem_of(&cases[3], HLA_F16, false);
    hla_state *state = make_state(context, &problem), *clone = NULL;
    model m = make_model(&problem), copy = make_model(&problem);
    random_state random = {600};
    play(context, state, &m, STEP, 4, LAYOUT_BTHD, &random);
    expect_ok(other, hla_state_clone(other, state, &clone), "clone");
    memcpy(copy.numbers, m.numbers, (size_t)m.count * sizeof *m.numbers);
    assert_int_equal(hla_state_tokens(clone), 4);
    play(context, state, &m, STEP, 1, LAYOUT_BTHD, &random);
    play(other, clone, &copy, STEP, 30, LAYOUT_BTHD, &random);
    expect_ok(context, hla_state_reset(state), "reset");
    memset(m.numbers, 0, (size_t)m.count * sizeof *m.numbers);
    assert_int_equal(hla_state_tokens(state), 0);
    play(context, state, &m, STEP, 2, LAYOUT_BTHD, &random);
    hla_state_free(state); /* before the clone */
    hla_context_free(context);
    play(other, clone, &copy, STEP, 1, LAYOUT_BTHD, &random);
    assert_true(hla_state_memory(clone) > (size_t)copy.count * sizeof(float));
    expect_ok(other, hla_state_set_tokens(clone, 9), "set_tokens");
    assert_int_equal(hla_state_tokens(clone), 9);
    hla_state_free(clone);
    hla_state_free(NULL);
    hla_context_free(other);
    free(m.numbers);
    free(copy.numbers);
}

/* What all-reduce does: numbers written from outside count. */
static void test_data(void **unused) {
    (void)unused;
    hla_context *context = make_context(1);
    hla_hadamard_problem problem = problem_of(&cases[1], HLA_F32, true);
    hla_state *state = make_state(context, &problem);
    model m = make_model(&problem);
    random_state random = {650};
    size_t count;
    float *data = hla_state_data(state, &count);
    for (size_t i = 0; i < count; i++)
        m.numbers[i] = (double)(data[i] = (float)uniform(&random) + 1);
    play(context, state, &m, QUERY, 3, LAYOUT_BHTD, &random);
    play(context, state, &m, QUERY, 33, LAYOUT_BHTD, &random);
    play(context, state, &m, STEP, 1, LAYOUT_BHTD, &random);
    free(m.numbers);
    hla_state_free(state);
    hla_context_free(context);
}

/* An empty state gives zeros, also where a denominator of exactly zero is not rescued by epsilon. */
static void test_empty(void **unused) {
    (void)unused;
    hla_context *context = make_context(2);
    for (int round = 0; round < 4; round++) {
        hla_hadamard_problem problem = problem_of(&cases[2], HLA_F32, round % 2 == 0);
        problem.epsilon = 0;
        hla_state *state = make_state(context, &problem);
        random_state random = {700};
        tokens fresh = make_tokens(&problem, round < 2 ? 3 : 40, LAYOUT_PADDED, &random);
        expect_ok(context, hla_state_query(state, &fresh.out.view, fresh.q_view), "query");
        double *out = hadamard_copy(&fresh.out);
        for (int64_t i = 0; i < hadamard_count(&fresh.out); i++)
            assert_true(out[i] == 0);
        free(out);
        free_tokens(&fresh);
        hla_state_free(state);
    }
    hla_context_free(context);
}

/* Plays steps of 1, 3 and 50 tokens and a decay; returns the last output and the state, *numbers in all. */
static float *play_for_bits(int threads, const hla_hadamard_problem *problem, size_t *numbers) {
    static const int64_t counts[] = {1, 3, 50, 1};
    hla_context *context = make_context(threads);
    hla_state *state = make_state(context, problem), *merged = NULL;
    random_state random = {800};
    size_t count;
    hla_state_data(state, &count);
    size_t outputs = (size_t)(problem->batch * problem->heads * problem->value_dim);
    float *bits = calloc(count + outputs, sizeof *bits);
    assert_non_null(bits);
    for (int i = 0; i < 4; i++) {
        tokens fresh = make_tokens(problem, counts[i], LAYOUT_BTHD, &random);
        hla_status status = hla_state_step(state, &fresh.out.view, fresh.q_view, fresh.k_view, &fresh.v.view);
        expect_ok(context, status, "step");
        expect_ok(context, hla_state_decay(state, 0.9f), "decay");
        if (i == 3) memcpy(bits + count, fresh.out.view.data, outputs * sizeof *bits);
        free_tokens(&fresh);
    }
    expect_ok(context, hla_state_clone(context, state, &merged), "clone");
    expect_ok(context, hla_state_merge(merged, state), "merge");
    memcpy(bits, hla_state_data(merged, NULL), count * sizeof *bits);
    hla_state_free(state);
    hla_state_free(merged);
    hla_context_free(context);
    *numbers = count + outputs;
    return bits;
}

static void test_threads(void **unused) {
    (void)unused;
    const state_case shapes[] = {{1, 1, 0, 128, 2, {48, 64}}, {2, 6, 3, 65, 2, {30, 35}}}; /* both above 1 MB */
    for (int s = 0; s < 2; s++) {
        hla_hadamard_problem problem = problem_of(&shapes[s], HLA_F32, true);
        size_t numbers;
        float *one = play_for_bits(1, &problem, &numbers);
        for (int threads = 2; threads <= 5; threads++) {
            float *more = play_for_bits(threads, &problem, &numbers);
            if (memcmp(one, more, numbers * sizeof *one) != 0) fail_msg("%d threads give other bits than 1", threads);
            free(more);
        }
        free(one);
    }
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scripts), cmocka_unit_test(test_kernels), cmocka_unit_test(test_causal),
        cmocka_unit_test(test_merge),   cmocka_unit_test(test_decay),   cmocka_unit_test(test_clone_and_reset),
        cmocka_unit_test(test_data),    cmocka_unit_test(test_empty),   cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
