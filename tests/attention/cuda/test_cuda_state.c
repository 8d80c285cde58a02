/* The streaming state on a GPU against the definition (state_cases.h): scripts that mix few and many tokens, the state
 * as a whole, saving and loading across devices, the same bits twice, a step in a CUDA graph. */
#include "tests/attention/cuda/device.h"
#include "tests/attention/state_cases.h"

#include <cuda_runtime_api.h>

static device gpu;

/* Beside the CPU's cases: ranges of rows that vectors of four fit and do not fit, many query heads a key head, values
 * wider than a block of threads. */
static const state_case more_cases[] = {
    {2, 4, 2, 128, 2, {32, 32}}, {1, 8, 1, 64, 2, {64, 16}}, {2, 12, 1, 100, 2, {9, 31}},
    {1, 2, 0, 600, 1, {20}},     {1, 2, 2, 511, 2, {12, 4}}, {3, 1, 1, 3, 3, {8, 8, 4}},
};

static void expect_ok(hla_status status, const char *what) {
    if (status != HLA_OK) fail_msg("%s: %s", what, hla_context_error(gpu.context));
}

static hla_state *make_state(const hla_hadamard_problem *problem) {
    hla_state *state = NULL;
    expect_ok(hla_state_create(gpu.context, problem, &state), "create");
    return state;
}

/* A copy of the state's numbers, the caller frees. */
static float *numbers_of(hla_state *state, size_t *count) {
    const float *data = hla_state_data(state, count);
    float *copy = malloc(*count * sizeof *copy);
    assert_non_null(copy);
    expect_ok(hla_device_copy(gpu.context, copy, data, *count * sizeof *copy), "copy");
    return copy;
}

/* Many tokens of 16 bits go through kernels that may round each phi to that type. */
static void check_state(const model *m, hla_state *state, const char *what) {
    static const double bounds[] = {[HLA_F32] = 2e-6, [HLA_BF16] = 4e-3, [HLA_F16] = 5e-4};
    size_t count;
    float *found = numbers_of(state, &count);
    check_numbers(m, found, count, bounds[m->problem.dtype], what);
    free(found);
}

/* Tokens on the device. */
typedef struct device_tokens {
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, out;
} device_tokens;

static device_tokens upload(const hla_hadamard_problem *problem, const tokens *fresh) {
    device_tokens made = {.v = device_upload(&gpu, &fresh->v), .out = device_upload(&gpu, &fresh->out)};
    for (int p = 0; p < problem->factors; p++) {
        made.q[p] = device_upload(&gpu, &fresh->q[p]);
        made.k[p] = device_upload(&gpu, &fresh->k[p]);
    }
    return made;
}

static hla_status do_call(hla_state *state, call kind, const device_tokens *on) {
    if (kind == APPEND) return hla_state_append(state, on->k, &on->v);
    if (kind == QUERY) return hla_state_query(state, &on->out, on->q);
    return hla_state_step(state, &on->out, on->q, on->k, &on->v);
}

/* One call on state and model, with fresh tokens, results compared. */
static void play(hla_state *state, model *m, call kind, int64_t count, layout arrangement, random_state *random) {
    static const char *const names[] = {"append", "query", "step"};
    static const double bounds[] = {[HLA_F32] = 3e-6, [HLA_BF16] = 8e-3, [HLA_F16] = 1e-3};
    char what[128];
    const hla_hadamard_problem *problem = &m->problem;
    snprintf(what, sizeof what, "%s of %d, P %d, R %d, V %d, dtype %d, layout %d", names[kind], (int)count,
             problem->factors, (int)m->rank, (int)problem->value_dim, (int)problem->dtype, (int)arrangement);
    device_reset(&gpu);
    tokens fresh = make_tokens(problem, count, arrangement, random);
    device_tokens on = upload(problem, &fresh);
    int64_t before = hla_state_tokens(state);
    expect_ok(do_call(state, kind, &on), what);
    assert_int_equal(hla_state_tokens(state), before + (kind == QUERY ? 0 : count));
    expect_ok(hla_device_synchronise(gpu.context), what);
    device_download(&gpu, &fresh.out, &on.out, what);
    norms sum = {0};
    for (int64_t t = 0; t < count; t++) {
        if (kind != QUERY) model_append(m, &fresh, t);
        if (kind != APPEND) compare_token(&sum, m, &fresh, t);
    }
    check_norms(&sum, bounds[problem->dtype], what);
    check_state(m, state, what);
    if (kind != APPEND) assert_true(gaps_untouched(&fresh.out));
    free_tokens(&fresh);
}

static void play_script(const hla_hadamard_problem *problem, layout arrangement, uint64_t seed) {
    hla_state *state = make_state(problem);
    model m = make_model(problem);
    random_state random = {seed};
    for (size_t i = 0; i < sizeof script / sizeof script[0]; i++)
        play(state, &m, script[i].kind, script[i].count, arrangement, &random);
    free(m.numbers);
    hla_state_free(state);
}

static void play_scripts(const state_case *all, size_t count) {
    static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};
    for (size_t c = 0; c < count; c++) {
        for (size_t d = 0; d < 3; d++) {
            hla_hadamard_problem problem = problem_of(&all[c], dtypes[d], (c + d) % 2 == 0);
            play_script(&problem, (layout)((c + d) % LAYOUT_COUNT), 100 + c);
        }
    }
}

static void test_scripts(void **unused) {
    (void)unused;
    play_scripts(cases, sizeof cases / sizeof cases[0]);
    play_scripts(more_cases, sizeof more_cases / sizeof more_cases[0]);
}

/* Numbers of tokens that the kernel of few takes, up to the first that it does not. */
static void test_few_tokens(void **unused) {
    (void)unused;
    for (size_t c = 0; c < 3; c++) {
        hla_hadamard_problem problem = problem_of(&more_cases[c], HLA_F32, true);
        hla_state *state = make_state(&problem);
        model m = make_model(&problem);
        random_state random = {900 + c};
        for (int64_t count = 1; count <= 65; count += count < 17 ? 1 : 6)
            play(state, &m, count % 4 == 0 ? APPEND : STEP, count, LAYOUT_BTHD, &random);
        free(m.numbers);
        hla_state_free(state);
    }
}

/* ---- the state as a whole ---- */

static void append_fresh(hla_state *state, model *m, int64_t count, random_state *random) {
    device_reset(&gpu);
    tokens fresh = make_tokens(&m->problem, count, LAYOUT_BTHD, random);
    device_tokens on = upload(&m->problem, &fresh);
    expect_ok(hla_state_append(state, on.k, &on.v), "append");
    expect_ok(hla_device_synchronise(gpu.context), "append");
    for (int64_t t = 0; t < count; t++)
        model_append(m, &fresh, t);
    free_tokens(&fresh);
}

static void test_merge_and_clone(void **unused) {
    (void)unused;
    hla_hadamard_problem problem = problem_of(&cases[4], HLA_F32, true);
    model all = make_model(&problem);
    random_state random = {400};
    hla_state *a = make_state(&problem), *b = make_state(&problem), *sum = NULL;
    append_fresh(a, &all, 7, &random);
    append_fresh(b, &all, 30, &random);
    expect_ok(hla_state_clone(gpu.context, a, &sum), "clone");
    expect_ok(hla_state_merge(sum, b), "merge");
    check_state(&all, sum, "merge");
    assert_int_equal(hla_state_tokens(sum), 37);
    assert_int_equal(hla_state_tokens(a), 7);
    hla_state_free(a);
    hla_state_free(b);
    play(sum, &all, STEP, 1, LAYOUT_BTHD, &random);
    expect_ok(hla_state_reset(sum), "reset");
    memset(all.numbers, 0, (size_t)all.count * sizeof *all.numbers);
    check_state(&all, sum, "reset");
    play(sum, &all, STEP, 2, LAYOUT_BTHD, &random);
    hla_state_free(sum);
    free(all.numbers);
}

static void test_decay(void **unused) {
    (void)unused;
    enum { HEADS = 300 }; /* more than one launch takes numbers for */
    const state_case shapes[] = {{2, 4, 4, 24, 2, {6, 7}}, {2, HEADS, HEADS, 5, 1, {9}}};
    float gammas[HEADS];
    random_state random = {500};
    for (int h = 0; h < HEADS; h++)
        gammas[h] = (float)uniform(&random);
    for (int s = 0; s < 2; s++) {
        hla_hadamard_problem problem = problem_of(&shapes[s], HLA_F32, true);
        hla_state *state = make_state(&problem);
        model m = make_model(&problem);
        for (int round = 0; round < 4; round++) {
            play(state, &m, STEP, round == 3 ? 40 : 1, LAYOUT_BTHD, &random);
            const float one = 0.875f;
            bool each = round % 2 == 1;
            expect_ok(each ? hla_state_decay_heads(state, gammas) : hla_state_decay(state, one), "decay");
            model_decay(&m, each ? gammas : &one, each ? shapes[s].kv_heads : 1);
            check_state(&m, state, "decay");
        }
        free(m.numbers);
        hla_state_free(state);
    }
}

/* Saved on the GPU, loaded there and on the CPU, and the way back. */
static void test_save_and_load(void **unused) {
    (void)unused;
    hla_hadamard_problem problem = problem_of(&cases[2], HLA_BF16, true);
    model m = make_model(&problem);
    random_state random = {600};
    hla_state *state = make_state(&problem), *loaded = make_state(&problem), *host = NULL, *moved = NULL;
    append_fresh(state, &m, 5, &random);
    size_t size = hla_state_saved_size(state), count, found_count;
    char *saved = malloc(2 * size);
    assert_non_null(saved);
    expect_ok(hla_state_save(state, saved, size), "save");
    expect_ok(hla_state_load(loaded, saved, size), "load");
    assert_int_equal(hla_state_tokens(loaded), 5);
    check_state(&m, loaded, "loaded");
    hla_context *cpu = NULL;
    assert_int_equal(hla_context_create(&cpu, NULL), HLA_OK);
    assert_int_equal(hla_state_create(cpu, &problem, &host), HLA_OK);
    assert_int_equal(hla_state_load(host, saved, size), HLA_OK);
    float *numbers = numbers_of(state, &count);
    const float *found = hla_state_data(host, &found_count);
    assert_int_equal(count, found_count);
    assert_memory_equal(numbers, found, count * sizeof *found);
    assert_int_equal(hla_state_save(host, saved + size, size), HLA_OK);
    assert_memory_equal(saved, saved + size, size);
    assert_int_equal(hla_state_merge(host, state), HLA_ERROR_ARGUMENT); /* of another device */
    assert_int_equal(hla_state_clone(gpu.context, host, &moved), HLA_OK);
    check_state(&m, moved, "moved to the GPU");
    free(numbers);
    free(saved);
    free(m.numbers);
    hla_state_free(state);
    hla_state_free(loaded);
    hla_state_free(host);
    hla_state_free(moved);
    hla_context_free(cpu);
}

/* The same calls twice, bit for bit; the second time, steps of one token are captured into a graph and run from it,
 * which fails if one allocates or waits. */
static void test_bits_and_graph(void **unused) {
    (void)unused;
    hla_hadamard_problem problem = problem_of(&more_cases[0], HLA_BF16, true);
    random_state random = {700};
    tokens fresh = make_tokens(&problem, 1, LAYOUT_BTHD, &random);
    float *bits[2];
    double *outputs[2];
    size_t count = 0;
    for (int round = 0; round < 2; round++) {
        device_reset(&gpu);
        device_tokens on = upload(&problem, &fresh);
        hla_state *state = make_state(&problem);
        if (round == 0) {
            for (int i = 0; i < 5; i++)
                expect_ok(do_call(state, STEP, &on), "step");
        } else {
            cudaGraph_t graph;
            cudaGraphExec_t runnable;
            assert_int_equal(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
            hla_status status = do_call(state, STEP, &on);
            assert_int_equal(cudaStreamEndCapture(gpu.stream, &graph), cudaSuccess);
            expect_ok(status, "captured step");
            assert_int_equal(cudaGraphInstantiate(&runnable, graph, 0), cudaSuccess);
            for (int i = 0; i < 5; i++)
                assert_int_equal(cudaGraphLaunch(runnable, gpu.stream), cudaSuccess);
            expect_ok(hla_device_synchronise(gpu.context), "graph");
            assert_int_equal(cudaGraphExecDestroy(runnable), cudaSuccess);
            assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
        }
        expect_ok(hla_device_synchronise(gpu.context), "steps");
        device_download(&gpu, &fresh.out, &on.out, "out");
        outputs[round] = hadamard_copy(&fresh.out);
        bits[round] = numbers_of(state, &count);
        hla_state_free(state);
    }
    assert_memory_equal(bits[0], bits[1], count * sizeof **bits);
    assert_memory_equal(outputs[0], outputs[1], (size_t)hadamard_count(&fresh.out) * sizeof **outputs);
    for (int round = 0; round < 2; round++) {
        free(bits[round]);
        free(outputs[round]);
    }
    free_tokens(&fresh);
}

/* An empty state gives zeros, also where a denominator of exactly zero is not rescued by epsilon. */
static void test_empty(void **unused) {
    (void)unused;
    for (int round = 0; round < 4; round++) {
        hla_hadamard_problem problem = problem_of(&cases[2], HLA_F32, round % 2 == 0);
        problem.epsilon = 0;
        hla_state *state = make_state(&problem);
        random_state random = {800};
        device_reset(&gpu);
        tokens fresh = make_tokens(&problem, round < 2 ? 3 : 40, LAYOUT_PADDED, &random);
        device_tokens on = upload(&problem, &fresh);
        expect_ok(do_call(state, QUERY, &on), "query");
        expect_ok(hla_device_synchronise(gpu.context), "query");
        device_download(&gpu, &fresh.out, &on.out, "out");
        double *out = hadamard_copy(&fresh.out);
        for (int64_t i = 0; i < hadamard_count(&fresh.out); i++)
            assert_true(out[i] == 0);
        free(out);
        free_tokens(&fresh);
        hla_state_free(state);
    }
}

static void test_bad_addresses(void **unused) {
    (void)unused;
    hla_hadamard_problem problem = problem_of(&cases[1], HLA_F32, true);
    hla_state *state = make_state(&problem);
    random_state random = {1000};
    device_reset(&gpu);
    tokens fresh = make_tokens(&problem, 1, LAYOUT_BTHD, &random);
    device_tokens on = upload(&problem, &fresh);
    assert_int_equal(hla_state_append(state, on.k, &fresh.v.view), HLA_ERROR_ARGUMENT);
    assert_non_null(strstr(hla_context_error(gpu.context), "v "));
    assert_int_equal(hla_state_tokens(state), 0);
    hla_context *other = NULL;
    hla_state *unqueued = NULL;
    assert_int_equal(hla_context_create(&other, NULL), HLA_OK);
    assert_int_equal(hla_context_use_cuda(other, 0), HLA_OK);
    assert_int_equal(hla_state_create(other, &problem, &unqueued), HLA_OK);
    assert_int_equal(hla_state_append(unqueued, on.k, &on.v), HLA_ERROR_ARGUMENT);
    assert_non_null(strstr(hla_context_error(other), "no stream is set"));
    hla_state_free(unqueued);
    hla_context_free(other);
    expect_ok(do_call(state, STEP, &on), "step"); /* the context still works */
    expect_ok(hla_device_synchronise(gpu.context), "step");
    free_tokens(&fresh);
    hla_state_free(state);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    if (!device_open(&gpu, (size_t)128 << 20)) return DEVICE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scripts), cmocka_unit_test(test_few_tokens),    cmocka_unit_test(test_merge_and_clone),
        cmocka_unit_test(test_decay),   cmocka_unit_test(test_save_and_load), cmocka_unit_test(test_bits_and_graph),
        cmocka_unit_test(test_empty),   cmocka_unit_test(test_bad_addresses),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(&gpu);
    return failed;
}
