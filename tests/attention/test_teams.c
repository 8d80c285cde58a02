/* Teams of threads beside each other: two contexts that each use several threads, at once from two threads of the
 * program, and a context for each thread of an outer OpenMP region. Results have the bits of one thread. */
#include "hla/hla.h"
#include "tests/attention/maps_support.h"

#include <omp.h>
#include <pthread.h>

enum { TOKENS = 90, HEADS = 3, WIDTH = 12, ROUNDS = 10, COUNT = TOKENS * HEADS * WIDTH };

typedef struct job {
    const float *in;
    int threads;
    float out[COUNT], d_in[3][COUNT]; /* attention, and its gradients: queries, keys, values */
    bool good;
} job;

static void run(job *j, hla_context *context) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = HEADS, problem.queries = problem.keys = TOKENS, problem.value_dim = WIDTH;
    problem.rank[0] = WIDTH, problem.causal = true;
    hla_hadamard_plan *plan = NULL;
    j->good = hla_hadamard_plan_create(context, &problem, &plan) == HLA_OK;
    if (!j->good) return;
    size_t size = hla_hadamard_plan_workspace(plan), backward = hla_hadamard_plan_backward_workspace(plan);
    if (size < backward) size = backward;
    void *workspace = aligned_alloc(64, size);
    hla_tensor in = hla_tensor_bthd(j->in, HLA_F32, 1, TOKENS, HEADS, WIDTH), out = in, d_in[3] = {in, in, in};
    out.data = j->out;
    for (int i = 0; i < 3; i++)
        d_in[i].data = j->d_in[i];
    hla_hadamard_inputs inputs = {.q_features = &in, .k_features = &in, .v = &in};
    hla_hadamard_gradients gradients = {.dq_features = &d_in[0], .dk_features = &d_in[1], .dv = &d_in[2]};
    j->good = workspace && hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size) == HLA_OK &&
              hla_hadamard_backward(plan, &gradients, &out, NULL, &inputs, workspace, size) == HLA_OK;
    free(workspace);
    hla_hadamard_plan_free(plan);
}

static void *use(void *pointer) {
    job *j = pointer;
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = j->threads;
    hla_context *context = NULL;
    j->good = hla_context_create(&context, &options) == HLA_OK;
    for (int round = 0; j->good && round < ROUNDS; round++)
        run(j, context);
    hla_context_free(context);
    return NULL;
}

static job *job_make(const float *in, int threads) {
    job *j = calloc(1, sizeof *j);
    assert_non_null(j);
    j->in = in, j->threads = threads;
    memset(j->out, 0xff, sizeof j->out), memset(j->d_in, 0xff, sizeof j->d_in);
    return j;
}

static void expect_same(job *j, const job *truth) {
    assert_true(j->good);
    for (int i = 0; i < COUNT; i++)
        assert_true(isfinite(j->out[i] + j->d_in[0][i] + j->d_in[1][i] + j->d_in[2][i]));
    assert_memory_equal(j->out, truth->out, sizeof j->out);
    assert_memory_equal(j->d_in, truth->d_in, sizeof j->d_in);
    free(j);
}

typedef struct shared {
    float *in;
    job *truth;
} shared;

static int make(void **state) {
    static shared all;
    uint64_t seed = 7;
    all.in = floats_random(COUNT, 0.1, &seed);
    for (int i = 0; i < COUNT; i++)
        all.in[i] = fabsf(all.in[i]) + 0.01f; /* features: positive denominators */
    all.truth = job_make(all.in, 1);
    use(all.truth);
    *state = &all;
    return all.truth->good ? 0 : -1;
}

static int drop(void **state) {
    shared *all = *state;
    free(all->in), free(all->truth);
    return 0;
}

static void test_two_teams_at_once(void **state) {
    shared *all = *state;
    job *jobs[2] = {job_make(all->in, 3), job_make(all->in, 2)};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use, jobs[i]), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        expect_same(jobs[i], all->truth);
    }
}

static void test_inside_an_outer_region(void **state) {
    shared *all = *state;
    for (int levels = 1; levels <= 2; levels++) { /* 2: teams within the team are really started */
        job *jobs[3] = {job_make(all->in, 2), job_make(all->in, 1), job_make(all->in, 2)};
        omp_set_max_active_levels(levels);
#pragma omp parallel for num_threads(3) schedule(static, 1)
        for (int i = 0; i < 3; i++)
            use(jobs[i]);
        for (int i = 0; i < 3; i++)
            expect_same(jobs[i], all->truth);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_teams_at_once),
        cmocka_unit_test(test_inside_an_outer_region),
    };
    return cmocka_run_group_tests(tests, make, drop);
}
