/* Two contexts at once, each in a thread of its own: every operator gives the bits it gives alone, and an error's
 * sentence stays with its context. */
#include "hla/hla.h"
#include "tests/attention/maps_support.h"

#include <pthread.h>

enum { TOKENS = 150, HEADS = 2, WIDTH = 24, ROUNDS = 20, COUNT = TOKENS * HEADS * WIDTH };

/* One user of the library. */
typedef struct user {
    hla_context *context;
    float in[COUNT], weight[HEADS * WIDTH * WIDTH];
    float attended[2][COUNT], mapped[COUNT]; /* Hadamard and softmax; features */
    char error[64];
    bool good;
} user;

static bool run_hadamard(user *u, const hla_tensor *in) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = HEADS, problem.queries = problem.keys = TOKENS, problem.value_dim = WIDTH;
    problem.factors = 2, problem.rank[0] = problem.rank[1] = WIDTH;
    hla_hadamard_plan *plan = NULL;
    if (hla_hadamard_plan_create(u->context, &problem, &plan) != HLA_OK) return false;
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size);
    hla_tensor features[2] = {*in, *in}, out = hla_tensor_bthd(u->attended[0], HLA_F32, 1, TOKENS, HEADS, WIDTH);
    const hla_hadamard_inputs inputs = {.q_features = features, .k_features = features, .v = in};
    bool good = hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size) == HLA_OK;
    free(workspace);
    hla_hadamard_plan_free(plan);
    return good;
}

static bool run_softmax(user *u, const hla_tensor *in) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 1, problem.heads = HEADS, problem.queries = problem.keys = TOKENS;
    problem.dim = problem.value_dim = WIDTH;
    hla_softmax_plan *plan = NULL;
    if (hla_softmax_plan_create(u->context, &problem, &plan) != HLA_OK) return false;
    size_t size = hla_softmax_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size);
    hla_tensor out = hla_tensor_bthd(u->attended[1], HLA_F32, 1, TOKENS, HEADS, WIDTH);
    bool good = hla_softmax_forward(plan, &out, in, in, in, NULL, NULL, workspace, size) == HLA_OK;
    free(workspace);
    hla_softmax_plan_free(plan);
    return good;
}

static bool run_map(user *u, const hla_tensor *in) {
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = 1, problem.heads = HEADS, problem.tokens = TOKENS, problem.dim = problem.rank = WIDTH;
    problem.activation = HLA_ACTIVATION_SOFTPLUS;
    hla_tensor out = hla_tensor_bthd(u->mapped, HLA_F32, 1, TOKENS, HEADS, WIDTH);
    hla_feature_map_weights weights = {.weight = u->weight};
    return hla_feature_map_forward(u->context, &problem, &out, in, &weights) == HLA_OK;
}

/* An error of the user's own: the sentence names its u->error. */
static bool run_error(user *u) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = problem.heads = problem.queries = problem.dim = problem.value_dim = 1, problem.kernel = u->error;
    hla_softmax_plan *plan;
    return hla_softmax_plan_create(u->context, &problem, &plan) == HLA_ERROR_ARGUMENT &&
           strstr(hla_context_error(u->context), u->error);
}

static void *use(void *pointer) {
    user *u = pointer;
    hla_tensor in = hla_tensor_bthd(u->in, HLA_F32, 1, TOKENS, HEADS, WIDTH);
    for (int round = 0; round < ROUNDS; round++) {
        memset(u->attended, 0xff, sizeof u->attended);
        memset(u->mapped, 0xff, sizeof u->mapped);
        u->good = u->good && run_hadamard(u, &in) && run_softmax(u, &in) && run_map(u, &in) && run_error(u);
    }
    return NULL;
}

static user *user_make(int number) {
    user *u = calloc(1, sizeof *u);
    assert_non_null(u);
    uint64_t seed = 1000 + (uint64_t)number;
    for (int i = 0; i < COUNT; i++)
        u->in[i] = (float)random_unit(&seed);
    for (int i = 0; i < HEADS * WIDTH * WIDTH; i++)
        u->weight[i] = (float)random_normal(&seed);
    snprintf(u->error, sizeof u->error, "kernel-of-user-%d", number);
    u->context = context_with(1, false);
    u->good = true;
    return u;
}

static void test_two_contexts_at_once(void **state) {
    (void)state;
    user *alone[2], *together[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        alone[i] = user_make(i), together[i] = user_make(i);
        use(alone[i]);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use, together[i]), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    for (int i = 0; i < 2; i++) {
        assert_true(alone[i]->good && together[i]->good);
        for (int j = 0; j < COUNT; j++)
            assert_true(isfinite(alone[i]->attended[0][j] + alone[i]->attended[1][j] + alone[i]->mapped[j]));
        assert_memory_equal(alone[i]->attended, together[i]->attended, sizeof alone[i]->attended);
        assert_memory_equal(alone[i]->mapped, together[i]->mapped, sizeof alone[i]->mapped);
    }
    assert_memory_not_equal(alone[0]->attended, alone[1]->attended, sizeof alone[0]->attended);
    for (int i = 0; i < 2; i++) {
        hla_context_free(alone[i]->context), hla_context_free(together[i]->context);
        free(alone[i]), free(together[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_two_contexts_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
