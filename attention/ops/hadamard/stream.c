/* The streaming state: an array that tokens are appended to and that queries read. Few tokens are worked on in the
 * array itself (stream_cpu.c), many by the state form's kernel, from the array and to it. On a GPU array and workspace
 * are its memory, and calls queue their work. */
#include "attention/ops/hadamard/stream.h"
#include "attention/cuda/backend.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- making one ---- */

/* In order of preference, the last that runs is best. */
static const hla_stream_entry *const table[] = {
    &hla_stream_baseline,
#if defined(__x86_64__)
    &hla_stream_avx2,
    &hla_stream_avx512,
#elif defined(__aarch64__)
    &hla_stream_neon,
#endif
};

/* The entry of an instruction set, or the best one here if that set has none of its own; the GPU's there. */
static const hla_stream_entry *entry_of(const hla_state *state, hla_isa isa) {
    if (state->cuda) return state->cuda->stream;
    const hla_stream_entry *best = table[0];
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i]->isa == isa) return table[i];
        if (hla_isa_runs(table[i]->isa)) best = table[i];
    }
    return best;
}

/* Makes state->plan one for that many tokens; on an error it stays what it was. */
static hla_status make_plan(hla_state *state, int64_t queries, int64_t keys, bool causal) {
    if (state->plan) {
        const hla_hadamard_problem *last = &state->plan->problem;
        if (last->queries == queries && last->keys == keys && last->causal == causal) return HLA_OK;
    }
    hla_hadamard_problem problem = state->problem;
    problem.queries = queries, problem.keys = keys, problem.causal = causal;
    hla_hadamard_plan *plan;
    hla_status status = hla_hadamard_plan_create(state->context, &problem, &plan);
    if (status != HLA_OK) return status;
    hla_hadamard_plan_free(state->plan);
    state->plan = plan;
    return HLA_OK;
}

/* Memory of the state's GPU, all zero (as its kernels want their workspace). */
static hla_status allocate_on_gpu(const hla_state *state, size_t bytes, void **memory) {
    hla_status status = state->cuda->allocate(state->context, bytes, memory);
    if (status == HLA_OK) status = state->cuda->clear(state->context, *memory, bytes);
    if (status == HLA_OK || !*memory) return status;
    state->cuda->release(state->context, *memory);
    *memory = NULL;
    return status;
}

/* Of data or workspace; a GPU's is released when its queued work is done. */
static void release(const hla_state *state, void *memory) {
    if (state->cuda) {
        state->cuda->release(state->context, memory);
    } else {
        free(memory);
    }
}

static hla_status grow_workspace(hla_state *state, size_t size) {
    if (size <= state->workspace_size) return HLA_OK;
    void *larger = NULL;
    if (state->cuda) {
        hla_status status = allocate_on_gpu(state, size, &larger);
        if (status != HLA_OK) return status;
    } else {
        larger = aligned_alloc(HLA_ALIGNMENT, size); /* arenas are whole multiples of the alignment */
    }
    if (!larger) return hla_fail(state->context, HLA_ERROR_MEMORY, "out of memory for a workspace of %zu bytes", size);
    release(state, state->workspace);
    state->workspace = larger, state->workspace_size = size;
    return HLA_OK;
}

static hla_status grow_for_few(hla_state *state, int64_t tokens) {
    hla_arena arena = {0};
    state->few->measure(&arena, &state->problem, tokens, state->context->threads);
    if (!arena.overflow) return grow_workspace(state, arena.used);
    return hla_fail(state->context, HLA_ERROR_UNSUPPORTED, "the workspace of %" PRId64 " tokens cannot be addressed",
                    tokens);
}

static hla_status allocate_data(hla_state *state) {
    const hla_hadamard_problem *problem = &state->problem;
    size_t count = 1, bytes = sizeof(float);
    bool fits = hla_size_multiply(&count, problem->batch) && hla_size_multiply(&count, problem->kv_heads) &&
                hla_size_multiply(&count, hla_hadamard_state_rank(problem)) &&
                hla_size_multiply(&count, problem->value_dim + 1) && count <= PTRDIFF_MAX &&
                hla_size_multiply(&bytes, (int64_t)count) && bytes <= PTRDIFF_MAX;
    if (!fits) {
        return hla_fail(state->context, HLA_ERROR_UNSUPPORTED,
                        "the state, batch x kv_heads x R x (value_dim + 1) = %" PRId64 " x %" PRId64 " x %" PRId64
                        " x %" PRId64 " floats, cannot be addressed",
                        problem->batch, problem->kv_heads, hla_hadamard_state_rank(problem), problem->value_dim + 1);
    }
    state->count = count;
    if (state->cuda) {
        void *memory = NULL;
        hla_status status = allocate_on_gpu(state, bytes, &memory);
        state->data = memory;
        return status;
    }
    state->data = calloc(count, sizeof(float));
    if (state->data) return HLA_OK;
    return hla_fail(state->context, HLA_ERROR_MEMORY, "out of memory for a state of %zu bytes", bytes);
}

static hla_status check_problem(hla_context *context, const hla_hadamard_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    hla_status status =
        hla_check_struct(context, "problem", problem->struct_size, sizeof *problem, "hla_hadamard_problem_init");
    if (status != HLA_OK || problem->sequences == 0) return status;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.sequences is %" PRId64 ", wanted 0: a state has a batch axis",
                    problem->sequences);
}

/* Everything of a new state but the struct itself. The first plan checks the problem and chooses the kernel. */
static hla_status set_up(hla_state *state, const hla_hadamard_problem *problem) {
    state->problem = *problem;
    state->problem.stateful = true;
    hla_status status = make_plan(state, 1, 1, false);
    if (status != HLA_OK) return status;
    const hla_kernel *kernel = &state->plan->entry->kernel;
    state->problem = state->plan->problem;
    if (!state->cuda || problem->kernel) state->problem.kernel = kernel->name;
    state->few = state->plan->entry == &hla_hadamard_reference ? NULL : entry_of(state, kernel->isa);
    status = allocate_data(state);
    if (status != HLA_OK) return status;
    return state->few ? grow_for_few(state, 1) : grow_workspace(state, state->plan->workspace);
}

hla_status hla_state_create(hla_context *context, const hla_hadamard_problem *problem, hla_state **state) {
    if (!state) return hla_fail(context, HLA_ERROR_ARGUMENT, "state is NULL");
    *state = NULL;
    if (!context) return HLA_ERROR_ARGUMENT;
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    hla_state *created = calloc(1, sizeof *created);
    if (!created) return hla_fail(context, HLA_ERROR_MEMORY, "out of memory for a state");
    created->context = context, created->cuda = context->cuda;
    status = set_up(created, problem);
    if (status != HLA_OK || !created->data) {
        hla_state_free(created);
        return status;
    }
    *state = created;
    return HLA_OK;
}

void hla_state_free(hla_state *state) {
    if (!state) return;
    hla_hadamard_plan_free(state->plan);
    release(state, state->data);
    release(state, state->workspace);
    free(state);
}

hla_status hla_state_clone(hla_context *context, const hla_state *state, hla_state **clone) {
    if (!clone) return hla_fail(context, HLA_ERROR_ARGUMENT, "clone is NULL");
    *clone = NULL;
    if (!state) return hla_fail(context, HLA_ERROR_ARGUMENT, "state is NULL");
    hla_state *created = NULL;
    hla_hadamard_problem problem = state->problem;
    if (context && context->cuda != state->cuda) problem.kernel = NULL; /* that of another device */
    hla_status status = hla_state_create(context, &problem, &created);
    if (!created) return status;
    const hla_cuda_backend *cuda = created->cuda ? created->cuda : state->cuda;
    size_t bytes = state->count * sizeof *state->data;
    if (cuda) {
        status = cuda->copy(context, created->data, state->data, bytes);
    } else {
        memcpy(created->data, state->data, bytes);
    }
    if (status != HLA_OK) {
        hla_state_free(created);
        return status;
    }
    created->tokens = state->tokens;
    *clone = created;
    return HLA_OK;
}

/* ---- tokens: checks ---- */

/* That the state's context computes where the state lies, and work can be queued there. */
static hla_status check_place(const hla_state *state) {
    if (state->cuda != state->context->cuda) {
        return hla_fail(state->context, HLA_ERROR_ARGUMENT,
                        "the state was made before its context changed to another device");
    }
    hla_status status = hla_check_stream(state->context);
    return status == HLA_OK ? hla_check_address(state->context, "the state's data", state->data) : status;
}

static hla_tensor data_view(const hla_state *state) {
    return hla_tensor_bthd(state->data, HLA_F32, 1, 1, 1, (int64_t)state->count);
}

/* The token axis of a tensor that gives it. */
static hla_status count_tokens(const hla_state *state, const char *name, const hla_tensor *tensor, int64_t *tokens) {
    if (!tensor) return hla_fail(state->context, HLA_ERROR_ARGUMENT, "%s is NULL", name);
    *tokens = tensor->shape[1];
    if (*tokens >= 0 && *tokens <= HLA_MAX_SIZE) return HLA_OK;
    return hla_fail(state->context, HLA_ERROR_ARGUMENT, "%s has %" PRId64 " tokens, wanted 0 to %" PRId64, name,
                    *tokens, HLA_MAX_SIZE);
}

/* out: NULL if nothing is written but the state */
static hla_status check_input(const hla_state *state, const char *name, const hla_tensor *tensor, int64_t tokens,
                              int64_t heads, int64_t width, const hla_tensor *out) {
    const hla_hadamard_problem *problem = &state->problem;
    hla_status status =
        hla_check_tensor(state->context, name, tensor, problem->dtype, problem->batch, tokens, heads, width);
    if (status != HLA_OK) return status;
    hla_tensor data = data_view(state);
    status = hla_check_disjoint(state->context, "the state's data", &data, name, tensor);
    if (status == HLA_OK && out) status = hla_check_disjoint(state->context, "out", out, name, tensor);
    if (status == HLA_OK) status = hla_check_finite(state->context, name, tensor, NULL);
    return status;
}

static hla_status check_features(const hla_state *state, const char *name, const hla_tensor *features, int64_t tokens,
                                 int64_t heads, const hla_tensor *out) {
    static const char *const element[2][HLA_MAX_FACTORS] = {
        {"k_features[0]", "k_features[1]", "k_features[2]", "k_features[3]"},
        {"q_features[0]", "q_features[1]", "q_features[2]", "q_features[3]"}};
    if (!features) return hla_fail(state->context, HLA_ERROR_ARGUMENT, "%s is NULL", name);
    hla_status status = HLA_OK;
    for (int p = 0; p < state->problem.factors && status == HLA_OK; p++) {
        const char *factor = element[name[0] == 'q'][p];
        status = check_input(state, factor, &features[p], tokens, heads, state->problem.rank[p], out);
    }
    return status;
}

static hla_status check_out(const hla_state *state, const hla_tensor *out, int64_t tokens) {
    const hla_hadamard_problem *problem = &state->problem;
    hla_status status = hla_check_output(state->context, "out", out, problem->dtype, problem->batch, tokens,
                                         problem->heads, problem->value_dim);
    if (status != HLA_OK) return status;
    hla_tensor data = data_view(state);
    return hla_check_disjoint(state->context, "out", out, "the state's data", &data);
}

static hla_status check_keys(const hla_state *state, const hla_tensor *k_features, const hla_tensor *v, int64_t tokens,
                             const hla_tensor *out) {
    const hla_hadamard_problem *problem = &state->problem;
    hla_status status = check_features(state, "k_features", k_features, tokens, problem->kv_heads, out);
    if (status == HLA_OK) status = check_input(state, "v", v, tokens, problem->kv_heads, problem->value_dim, out);
    return status;
}

/* ---- tokens: work ---- */

static hla_status run_few(hla_state *state, const hla_tensor *out, const hla_tensor *q_features,
                          const hla_tensor *k_features, const hla_tensor *v, int64_t tokens) {
    hla_status status = grow_for_few(state, tokens);
    if (status != HLA_OK) return status;
    const hla_stream_call call = {.context = state->context,
                                  .problem = &state->problem,
                                  .threads = state->context->threads,
                                  .tokens = tokens,
                                  .state = state->data,
                                  .out = out,
                                  .q_features = q_features,
                                  .k_features = k_features,
                                  .v = v,
                                  .workspace = state->workspace};
    return state->few->run(&call);
}

static hla_status run_many(hla_state *state, const hla_tensor *out, const hla_tensor *q_features,
                           const hla_tensor *k_features, const hla_tensor *v, int64_t tokens) {
    hla_status status = make_plan(state, out ? tokens : 1, v ? tokens : 0, out && v);
    if (status == HLA_OK) status = grow_workspace(state, state->plan->workspace);
    if (status != HLA_OK) return status;
    const hla_tensor absent[HLA_MAX_FACTORS] = {0}; /* of a call that only appends, or only asks */
    const hla_hadamard_call call = {.context = state->context,
                                    .problem = &state->plan->problem,
                                    .threads = state->plan->threads,
                                    .out = out,
                                    .final_state = v ? state->data : NULL,
                                    .in = {.q_features = q_features ? q_features : absent,
                                           .k_features = k_features ? k_features : absent,
                                           .v = v ? v : absent,
                                           .initial_state = state->data},
                                    .workspace = state->workspace};
    return state->plan->entry->run(&call);
}

/* Arguments checked; out and q_features are NULL together, k_features and v likewise. */
static hla_status run(hla_state *state, const hla_tensor *out, const hla_tensor *q_features,
                      const hla_tensor *k_features, const hla_tensor *v, int64_t tokens) {
    if (tokens == 0) return HLA_OK;
    bool few = state->few && tokens <= state->few->most_tokens;
    hla_status status = (few ? run_few : run_many)(state, out, q_features, k_features, v, tokens);
    if (status == HLA_OK && v && __builtin_add_overflow(state->tokens, tokens, &state->tokens))
        state->tokens = INT64_MAX;
    return status;
}

hla_status hla_state_append(hla_state *state, const hla_tensor *k_features, const hla_tensor *v) {
    if (!state) return HLA_ERROR_ARGUMENT;
    int64_t tokens = 0;
    hla_status status = check_place(state);
    if (status == HLA_OK) status = count_tokens(state, "v", v, &tokens);
    if (status == HLA_OK) status = check_keys(state, k_features, v, tokens, NULL);
    return status == HLA_OK ? run(state, NULL, NULL, k_features, v, tokens) : status;
}

hla_status hla_state_query(hla_state *state, const hla_tensor *out, const hla_tensor *q_features) {
    if (!state) return HLA_ERROR_ARGUMENT;
    int64_t tokens = 0;
    hla_status status = check_place(state);
    if (status == HLA_OK) status = count_tokens(state, "out", out, &tokens);
    if (status == HLA_OK) status = check_out(state, out, tokens);
    if (status == HLA_OK) status = check_features(state, "q_features", q_features, tokens, state->problem.heads, out);
    return status == HLA_OK ? run(state, out, q_features, NULL, NULL, tokens) : status;
}

hla_status hla_state_step(hla_state *state, const hla_tensor *out, const hla_tensor *q_features,
                          const hla_tensor *k_features, const hla_tensor *v) {
    if (!state) return HLA_ERROR_ARGUMENT;
    int64_t tokens = 0;
    hla_status status = check_place(state);
    if (status == HLA_OK) status = count_tokens(state, "out", out, &tokens);
    if (status == HLA_OK) status = check_out(state, out, tokens);
    if (status == HLA_OK) status = check_features(state, "q_features", q_features, tokens, state->problem.heads, out);
    if (status == HLA_OK) status = check_keys(state, k_features, v, tokens, out);
    return status == HLA_OK ? run(state, out, q_features, k_features, v, tokens) : status;
}

/* ---- the state as a whole ---- */

enum { PIECE = 1 << 16 }; /* floats a thread takes at a time: 256 KB; less than two such are not worth a team */

/* Calls piece(to, from, count, gamma) for all of the state; what it does to a number depends on no other. gammas: how
 * many numbers gamma holds, one for all heads or one for each. */
static void each_piece(const hla_state *state, const float *from, const float *gamma, int64_t gammas,
                       void (*piece)(float *to, const float *from, size_t count, float gamma)) {
    size_t head = (size_t)(hla_hadamard_state_rank(&state->problem) * (state->problem.value_dim + 1));
    size_t head_pieces = (head + PIECE - 1) / PIECE, pieces = state->count / head * head_pieces;
    int team = (int)hla_smaller(state->context->threads, (int64_t)(state->count / PIECE) + 1);
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
    for (size_t i = 0; i < pieces; i++) {
        size_t pair = i / head_pieces, first = i % head_pieces * PIECE, left = head - first;
        size_t at = pair * head + first, count = left < PIECE ? left : PIECE;
        piece(state->data + at, from ? from + at : NULL, count, gamma ? gamma[pair % (size_t)gammas] : 1);
    }
}

static void add_piece(float *to, const float *from, size_t count, float gamma) {
    (void)gamma;
    for (size_t i = 0; i < count; i++)
        to[i] += from[i];
}

static void scale_piece(float *to, const float *from, size_t count, float gamma) {
    (void)from;
    for (size_t i = 0; i < count; i++)
        to[i] *= gamma;
}

static hla_status add(hla_state *state, const float *from) {
    if (!state->cuda) {
        each_piece(state, from, NULL, 0, add_piece);
        return HLA_OK;
    }
    hla_status status = check_place(state);
    if (status == HLA_OK) status = hla_check_address(state->context, "from's data", from);
    return status == HLA_OK ? state->few->add(state, from) : status;
}

static hla_status scale(hla_state *state, const float *gamma, int64_t heads) {
    if (!state->cuda) {
        each_piece(state, NULL, gamma, heads, scale_piece);
        return HLA_OK;
    }
    hla_status status = check_place(state);
    return status == HLA_OK ? state->few->scale(state, gamma, heads) : status;
}

hla_status hla_state_reset(hla_state *state) {
    if (!state) return HLA_ERROR_ARGUMENT;
    size_t bytes = state->count * sizeof *state->data;
    if (state->cuda) {
        hla_status status = check_place(state);
        if (status == HLA_OK) status = state->cuda->utilities->queue_fill(state->context, state->data, 0, bytes);
        if (status != HLA_OK) return status;
    } else {
        memset(state->data, 0, bytes);
    }
    state->tokens = 0;
    return HLA_OK;
}

static hla_status check_same(const hla_state *state, const hla_state *from) {
    const hla_hadamard_problem *a = &state->problem, *b = &from->problem;
    const struct {
        const char *name;
        int64_t to, from;
    } sizes[] = {
        {"batch", a->batch, b->batch},
        {"kv_heads", a->kv_heads, b->kv_heads},
        {"value_dim", a->value_dim, b->value_dim},
        {"factors", a->factors, b->factors},
        {"rank[0]", a->rank[0], b->rank[0]},
        {"rank[1]", a->rank[1], b->rank[1]},
        {"rank[2]", a->rank[2], b->rank[2]},
        {"rank[3]", a->rank[3], b->rank[3]},
    };
    size_t count = sizeof sizes / sizeof sizes[0] - HLA_MAX_FACTORS + (size_t)a->factors;
    for (size_t i = 0; i < count; i++) {
        if (sizes[i].to == sizes[i].from) continue;
        return hla_fail(state->context, HLA_ERROR_ARGUMENT,
                        "the state to merge from has %s %" PRId64 ", wanted %" PRId64 " as in the state merged into",
                        sizes[i].name, sizes[i].from, sizes[i].to);
    }
    return HLA_OK;
}

hla_status hla_state_merge(hla_state *state, const hla_state *from) {
    if (!state) return HLA_ERROR_ARGUMENT;
    if (!from) return hla_fail(state->context, HLA_ERROR_ARGUMENT, "from is NULL");
    if (from == state) {
        return hla_fail(state->context, HLA_ERROR_ARGUMENT,
                        "from is the state merged into, wanted one of other tokens");
    }
    if (from->cuda != state->cuda) {
        return hla_fail(state->context, HLA_ERROR_ARGUMENT, "from lies on another device than the state merged into");
    }
    hla_status status = check_same(state, from);
    if (status == HLA_OK) status = add(state, from->data);
    if (status != HLA_OK) return status;
    if (__builtin_add_overflow(state->tokens, from->tokens, &state->tokens)) state->tokens = INT64_MAX;
    return HLA_OK;
}

hla_status hla_state_decay_heads(hla_state *state, const float *gamma) {
    if (!state) return HLA_ERROR_ARGUMENT;
    if (!gamma) return hla_fail(state->context, HLA_ERROR_ARGUMENT, "gamma is NULL");
    for (int64_t h = 0; h < state->problem.kv_heads; h++) {
        if (gamma[h] >= 0 && gamma[h] <= 1) continue;
        return hla_fail(state->context, HLA_ERROR_ARGUMENT, "gamma[%" PRId64 "] is %g, wanted 0 to 1", h,
                        (double)gamma[h]);
    }
    return scale(state, gamma, state->problem.kv_heads);
}

hla_status hla_state_decay(hla_state *state, float gamma) {
    if (!state) return HLA_ERROR_ARGUMENT;
    if (!(gamma >= 0 && gamma <= 1)) {
        return hla_fail(state->context, HLA_ERROR_ARGUMENT, "gamma is %g, wanted 0 to 1", (double)gamma);
    }
    return scale(state, &gamma, 1);
}

int64_t hla_state_tokens(const hla_state *state) {
    return state ? state->tokens : 0;
}

hla_status hla_state_set_tokens(hla_state *state, int64_t tokens) {
    if (!state) return HLA_ERROR_ARGUMENT;
    if (tokens < 0) {
        return hla_fail(state->context, HLA_ERROR_ARGUMENT, "tokens is %" PRId64 ", wanted at least 0", tokens);
    }
    state->tokens = tokens;
    return HLA_OK;
}

float *hla_state_data(hla_state *state, size_t *count) {
    if (count) *count = state ? state->count : 0;
    return state ? state->data : NULL;
}

size_t hla_state_memory(const hla_state *state) {
    return state ? sizeof *state + sizeof *state->plan + state->count * sizeof *state->data + state->workspace_size : 0;
}
