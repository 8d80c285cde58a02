/* Memory that runs out: the n-th allocation inside the library fails, for every n, in each call of the interface that
 * allocates. The status is HLA_ERROR_MEMORY, with a sentence where there is a context, nothing is handed out,
 * everything that had been allocated is freed again, and outputs are untouched. The linker's --wrap leads the library's
 * allocations here. */
#include "hla/hla.h"
#include "tests/attention/maps_support.h"

static struct {
    bool watching; /* only while the library is called */
    int until;     /* allocations that still succeed; then one fails; negative: all succeed */
    int made, live;
} heap;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__real_realloc(void *block, size_t size);
void __real_free(void *block);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);
void *__wrap_realloc(void *block, size_t size);
void __wrap_free(void *block);

/* Counts an allocation; true if it is the one to fail. */
static bool fails(void) {
    if (!heap.watching) return false;
    heap.made++;
    return heap.until >= 0 && heap.until-- == 0;
}

static void *kept(void *block) {
    if (heap.watching && block) heap.live++;
    return block;
}

void *__wrap_malloc(size_t size) {
    return fails() ? NULL : kept(__real_malloc(size));
}

void *__wrap_calloc(size_t count, size_t size) {
    return fails() ? NULL : kept(__real_calloc(count, size));
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return fails() ? NULL : kept(__real_aligned_alloc(alignment, size));
}

void *__wrap_realloc(void *block, size_t size) {
    if (fails()) return NULL;
    return block ? __real_realloc(block, size) : kept(__real_realloc(block, size));
}

void __wrap_free(void *block) {
    if (heap.watching && block) heap.live--;
    __real_free(block);
}

enum { TOKENS = 5, HEADS = 2, WIDTH = 3, COUNT = TOKENS * HEADS * WIDTH };

static hla_context *context; /* NULL in the case that creates one */
static hla_state *original;  /* what call_clone clones */
static float in[COUNT], weight[HEADS * WIDTH * WIDTH], out[COUNT];

/* A call, and the release of what it made; *made tells whether it handed something out. */
typedef hla_status call(bool *made);

static hla_status call_context(bool *made) {
    hla_context *created = (hla_context *)in;
    hla_status status = hla_context_create(&created, NULL);
    *made = created != NULL;
    hla_context_free(created);
    return status;
}

static hla_status call_hadamard_plan(bool *made) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = HEADS, problem.queries = problem.keys = TOKENS, problem.value_dim = problem.rank[0] = WIDTH;
    hla_hadamard_plan *plan = (hla_hadamard_plan *)in;
    hla_status status = hla_hadamard_plan_create(context, &problem, &plan);
    *made = plan != NULL;
    hla_hadamard_plan_free(plan);
    return status;
}

static hla_status call_softmax_plan(bool *made) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 1, problem.heads = HEADS, problem.queries = problem.keys = TOKENS;
    problem.dim = problem.value_dim = WIDTH;
    hla_softmax_plan *plan = (hla_softmax_plan *)in;
    hla_status status = hla_softmax_plan_create(context, &problem, &plan);
    *made = plan != NULL;
    hla_softmax_plan_free(plan);
    return status;
}

static hla_status call_feature_map(bool *made) {
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = 1, problem.heads = HEADS, problem.tokens = TOKENS, problem.dim = problem.rank = WIDTH;
    hla_tensor x = hla_tensor_bthd(in, HLA_F32, 1, TOKENS, HEADS, WIDTH), y = x;
    y.data = out;
    hla_feature_map_weights weights = {.weight = weight};
    memset(out, 0xff, sizeof out);
    hla_status status = hla_feature_map_forward(context, &problem, &y, &x, &weights);
    *made = isfinite(out[0]);
    return status;
}

/* Created, and given more tokens than a first call had. */
static hla_status call_state(bool *made) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = HEADS, problem.value_dim = problem.rank[0] = WIDTH;
    hla_state *state = (hla_state *)in;
    hla_status status = hla_state_create(context, &problem, &state);
    hla_tensor rows = hla_tensor_bthd(in, HLA_F32, 1, TOKENS, HEADS, WIDTH), first = rows, result = rows;
    first.shape[1] = 1, result.data = out;
    memset(out, 0xff, sizeof out);
    if (status == HLA_OK) status = hla_state_append(state, &first, &first);
    if (status == HLA_OK) status = hla_state_step(state, &result, &rows, &rows, &rows);
    *made = isfinite(out[0]);
    hla_state_free(state);
    return status;
}

static hla_status call_clone(bool *made) {
    hla_state *clone = (hla_state *)in;
    hla_status status = hla_state_clone(context, original, &clone);
    *made = clone != NULL;
    hla_state_free(clone);
    return status;
}

static const struct allocating {
    const char *name;
    call *run;
    bool with_context;
} calls[] = {
    {"hla_context_create", call_context, false},          {"hla_hadamard_plan_create", call_hadamard_plan, true},
    {"hla_softmax_plan_create", call_softmax_plan, true}, {"hla_feature_map_forward", call_feature_map, true},
    {"hla_state_create, append, step", call_state, true}, {"hla_state_clone", call_clone, true},
};

/* Runs it with the n-th allocation failing (none if n is negative); returns how many it made. */
static int check(const struct allocating *c, int n) {
    bool made = false;
    heap.until = n, heap.made = heap.live = 0, heap.watching = true;
    hla_status status = c->run(&made);
    heap.watching = false;
    bool failed = n >= 0 && heap.made > n;
    const char *sentence = hla_context_error(context);
    if (heap.live != 0) fail_msg("%s, allocation %d: %d blocks are left", c->name, n, heap.live);
    if (status != (failed ? HLA_ERROR_MEMORY : HLA_OK))
        fail_msg("%s, allocation %d: status %d", c->name, n, (int)status);
    if (made == failed) fail_msg("%s, allocation %d: %s handed out", c->name, n, made ? "something" : "nothing");
    if (failed && c->with_context && !strstr(sentence, "memory")) fail_msg("%s: \"%s\"", c->name, sentence);
    return heap.made;
}

static void test_every_allocation_fails_once(void **state) {
    (void)state;
    hla_context *owner = context_with(1, false);
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = HEADS, problem.value_dim = problem.rank[0] = WIDTH;
    assert_int_equal(hla_state_create(owner, &problem, &original), HLA_OK);
    for (size_t i = 0; i < sizeof calls / sizeof calls[0]; i++) {
        context = calls[i].with_context ? context_with(1, false) : NULL;
        int count = check(&calls[i], -1);
        if (count < 1) fail_msg("%s allocates nothing: the wrapping does not work", calls[i].name);
        for (int n = 0; n < count; n++)
            check(&calls[i], n);
        check(&calls[i], -1); /* as good as new */
        hla_context_free(context);
        context = NULL;
    }
    hla_state_free(original);
    hla_context_free(owner);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_allocation_fails_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
