#include "tests/attention/hadamard_cases.h"

#include "attention/core/internal.h"

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

const hadamard_case hadamard_cases[] = {
    /* B, H, Tq, Tk, V, P, ranks, layout, modes */
    {1, 1, 1, 1, 1, 1, {1}, LAYOUT_BTHD, 0},
    {1, 1, 1, 1, 64, 2, {16, 16}, LAYOUT_BTHD, 0},
    {1, 1, 7, 7, 8, 1, {7}, LAYOUT_BTHD, 0},
    {1, 2, 33, 65, 64, 2, {16, 16}, LAYOUT_BHTD, 0},
    {1, 2, 130, 257, 64, 2, {32, 32}, LAYOUT_BTHD, 0},
    {2, 3, 129, 127, 40, 2, {8, 8}, LAYOUT_BHTD, LENGTHS},
    {3, 1, 17, 300, 33, 2, {5, 13}, LAYOUT_PADDED, LENGTHS},
    {3, 2, 31, 61, 31, 2, {13, 5}, LAYOUT_STRIDED_X, LENGTHS},
    {2, 2, 19, 140, 65, 3, {6, 6, 6}, LAYOUT_TRANSPOSED, LENGTHS},
    {1, 3, 65, 129, 96, 3, {10, 10, 10}, LAYOUT_PADDED, 0},
    {1, 1, 40, 50, 7, 3, {2, 3, 17}, LAYOUT_BTHD, 0},
    {2, 1, 21, 33, 16, 4, {4, 4, 4, 4}, LAYOUT_BHTD, LENGTHS},
    {1, 2, 9, 200, 48, 4, {1, 7, 2, 9}, LAYOUT_PADDED, 0},
    {1, 1, 12, 12, 3, 4, {1, 1, 1, 1}, LAYOUT_STRIDED_X, 0},
    {1, 1, 30, 140, 64, 2, {256, 1}, LAYOUT_BTHD, 0},
    {1, 1, 30, 140, 5, 2, {2, 256}, LAYOUT_TRANSPOSED, 0},
    {1, 2, 20, 130, 9, 1, {256}, LAYOUT_PADDED, 0},
    {1, 1, 11, 37, 17, 2, {256, 33}, LAYOUT_BHTD, 0},
    {1, 1, 257, 3, 64, 1, {64}, LAYOUT_BTHD, 0},
    {1, 1, 5, 1000, 128, 2, {12, 24}, LAYOUT_BTHD, 0},
    {1, 1, 3, 9, 255, 2, {9, 11}, LAYOUT_STRIDED_X, 0},
    {1, 1, 10, 20, 256, 2, {16, 32}, LAYOUT_BHTD, 0},
    {1, 1, 10, 20, 1, 2, {64, 64}, LAYOUT_PADDED, 0},
    {2, 2, 6, 0, 10, 2, {4, 6}, LAYOUT_BTHD, 0},
    {4, 1, 6, 31, 10, 1, {20}, LAYOUT_BHTD, LENGTHS},
    {1, 1, 128, 128, 32, 2, {24, 24}, LAYOUT_TRANSPOSED, 0},
    {2, 1, 4, 8300, 40, 2, {9, 13}, LAYOUT_BHTD, LENGTHS}, /* more than one chunk of keys */
    {1, 1, 3, 8300, 5, 2, {8, 16}, LAYOUT_BTHD, 0},        /* the same where the state rank fills its blocks */
    /* causal: around one block of 128 tokens, a span of 512, two spans */
    {1, 1, 1, 1, 1, 2, {2, 3}, LAYOUT_BTHD, CAUSAL},
    {1, 2, 127, 127, 17, 2, {5, 7}, LAYOUT_BHTD, CAUSAL},
    {2, 1, 128, 128, 16, 1, {13}, LAYOUT_PADDED, CAUSAL},
    {1, 2, 129, 129, 33, 3, {3, 5, 4}, LAYOUT_STRIDED_X, CAUSAL | GROUPED},
    {1, 1, 511, 511, 5, 1, {9}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 513, 513, 9, 2, {4, 3}, LAYOUT_TRANSPOSED, CAUSAL},
    {1, 1, 1100, 1100, 3, 2, {3, 4}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 300, 140, 12, 2, {6, 4}, LAYOUT_PADDED, CAUSAL},
    {1, 1, 150, 290, 12, 2, {4, 6}, LAYOUT_BTHD, CAUSAL},
    {3, 2, 140, 150, 10, 2, {4, 5}, LAYOUT_BHTD, CAUSAL | LENGTHS},
    {1, 1, 6, 0, 4, 1, {3}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 20, 20, 200, 1, {200}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 140, 140, 128, 2, {16, 24}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 9, 10, 64, 2, {64, 64}, LAYOUT_BHTD, CAUSAL},                        /* several feature ranges */
    {1, 2, 530, 540, 9, 2, {20, 20}, LAYOUT_BTHD, CAUSAL | GROUPED | STATEFUL}, /* the same over two spans */
    /* grouped */
    {1, 2, 8300, 3, 5, 2, {3, 4}, LAYOUT_BTHD, GROUPED}, /* more than one chunk of queries */
    {2, 4, 21, 130, 17, 2, {7, 9}, LAYOUT_BTHD, GROUPED},
    {3, 3, 19, 33, 24, 3, {2, 5, 3}, LAYOUT_PADDED, GROUPED | LENGTHS},
    /* packed */
    {1, 2, 150, 300, 20, 2, {6, 5}, LAYOUT_BTHD, PACKED},
    {1, 4, 1, 1, 3, 1, {4}, LAYOUT_BHTD, PACKED | GROUPED},
    {1, 2, 600, 500, 6, 2, {3, 5}, LAYOUT_STRIDED_X, PACKED | CAUSAL | GROUPED},
    {1, 1, 40, 0, 6, 1, {5}, LAYOUT_BTHD, PACKED},
    /* stateful */
    {1, 1, 1, 1, 1, 1, {1}, LAYOUT_BTHD, STATEFUL},
    {2, 2, 37, 141, 17, 2, {12, 9}, LAYOUT_BHTD, STATEFUL | LENGTHS},
    {1, 4, 129, 129, 16, 2, {5, 7}, LAYOUT_PADDED, STATEFUL | CAUSAL | GROUPED},
    {1, 1, 6, 0, 10, 2, {4, 6}, LAYOUT_BTHD, STATEFUL},
    {1, 1, 7, 0, 5, 2, {3, 6}, LAYOUT_BTHD, STATEFUL | CAUSAL},
    {1, 2, 90, 70, 12, 3, {3, 4, 5}, LAYOUT_TRANSPOSED, STATEFUL | PACKED},
    {1, 2, 530, 540, 4, 2, {4, 3}, LAYOUT_BTHD, STATEFUL | PACKED | CAUSAL | GROUPED},
    {2, 3, 12, 9, 7, 4, {3, 2, 4, 3}, LAYOUT_STRIDED_X, STATEFUL | CAUSAL | GROUPED | LENGTHS},
    {1, 1, 3, 4, 65, 2, {64, 17}, LAYOUT_BTHD, STATEFUL | CAUSAL},
    {1, 1, 4, 1030, 4, 2, {5, 8}, LAYOUT_BTHD, STATEFUL}, /* more keys than queries: the state goes on */
    {1, 1, 5, 700, 4, 2, {8, 3}, LAYOUT_BTHD, STATEFUL | CAUSAL},
    {1, 1, 700, 5, 4, 2, {3, 8}, LAYOUT_BTHD, STATEFUL | CAUSAL},
};
const int hadamard_case_count = sizeof hadamard_cases / sizeof hadamard_cases[0];

/* ---- memory ---- */

/* Strides for the axes from the fastest to the slowest, each followed by a gap. */
static void fill_strides(hla_tensor *view, const int order[4], int64_t first, int64_t gap) {
    int64_t stride = first;
    for (int i = 0; i < 4; i++) {
        view->stride[order[i]] = stride;
        stride = stride * (view->shape[order[i]] > 0 ? view->shape[order[i]] : 1) + gap;
    }
}

guarded guarded_make(hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x, layout arrangement) {
    static const struct {
        int order[4]; /* axes (b 0, t 1, h 2, x 3), fastest first */
        int64_t first, gap;
    } layouts[LAYOUT_COUNT] = {
        {{3, 2, 1, 0}, 1, 0}, {{3, 1, 2, 0}, 1, 0}, {{3, 2, 1, 0}, 1, 3}, {{3, 1, 2, 0}, 2, 0}, {{1, 2, 0, 3}, 1, 0},
    };
    guarded array = {.view = {.dtype = dtype, .shape = {b, t, h, x}}};
    fill_strides(&array.view, layouts[arrangement].order, layouts[arrangement].first, layouts[arrangement].gap);
    int64_t last = 0;
    for (int axis = 0; axis < 4; axis++) {
        if (array.view.shape[axis] > 0) last += (array.view.shape[axis] - 1) * array.view.stride[axis];
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    array.span = (size_t)(last + 1) * hla_dtype_size(dtype);
    size_t usable = (array.span + page - 1) / page * page;
    array.bytes = usable + 2 * page;
    array.pages = mmap(NULL, array.bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (array.pages == MAP_FAILED || mprotect((char *)array.pages + page, usable, PROT_READ | PROT_WRITE) != 0) abort();
    array.view.data = (char *)array.pages + page + usable - array.span;
    poison(&array);
    return array;
}

void guarded_free(guarded *array) {
    if (array->pages) munmap(array->pages, array->bytes);
    *array = (guarded){0};
}

/* All bytes one: a NaN in every element type. */
void poison(guarded *array) {
    memset(array->view.data, 0xff, array->span);
}

static char *address(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t x) {
    int64_t offset = b * tensor->stride[0] + t * tensor->stride[1] + h * tensor->stride[2] + x * tensor->stride[3];
    return (char *)tensor->data + offset * (int64_t)hla_dtype_size(tensor->dtype);
}

double get(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t x) {
    float value;
    hla_load_floats(&value, address(tensor, b, t, h, x), tensor->dtype, 1, 1);
    return (double)value;
}

void set(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t x, double value) {
    float rounded = (float)value;
    hla_store_floats(address(tensor, b, t, h, x), tensor->dtype, 1, 1, &rounded);
}

bool gaps_untouched(const guarded *array) {
    const int64_t *shape = array->view.shape;
    size_t size = hla_dtype_size(array->view.dtype);
    char *copy = malloc(array->span);
    if (!copy) return false;
    memcpy(copy, array->view.data, array->span);
    hla_tensor view = array->view;
    view.data = copy;
    for (int64_t b = 0; b < shape[0]; b++) {
        for (int64_t t = 0; t < shape[1]; t++) {
            for (int64_t h = 0; h < shape[2]; h++) {
                for (int64_t x = 0; x < shape[3]; x++)
                    memset(address(&view, b, t, h, x), 0xff, size);
            }
        }
    }
    bool untouched = true;
    for (size_t i = 0; i < array->span; i++)
        untouched = untouched && (unsigned char)copy[i] == 0xff;
    free(copy);
    return untouched;
}

/* ---- data ---- */

double uniform(random_state *state) {
    state->bits = state->bits * 6364136223846793005u + 1442695040888963407u;
    return (double)(state->bits >> 11) * 0x1p-53;
}

static void fill(const hla_tensor *tensor, const int64_t *lengths, double low, double high, random_state *state) {
    const int64_t *shape = tensor->shape;
    for (int64_t b = 0; b < shape[0]; b++) {
        for (int64_t t = 0; t < (lengths ? lengths[b] : shape[1]); t++) {
            for (int64_t h = 0; h < shape[2]; h++) {
                for (int64_t x = 0; x < shape[3]; x++)
                    set(tensor, b, t, h, x, low + (high - low) * uniform(state));
            }
        }
    }
}

/* ---- problems ---- */

void fill_uniform(const hla_tensor *tensor, double low, double high, random_state *state) {
    fill(tensor, NULL, low, high, state);
}

static int64_t *numbers(int64_t count) {
    int64_t *array = calloc((size_t)count, sizeof *array);
    if (!array) abort();
    return array;
}

static int64_t *make_starts(const int sixteenths[6], int64_t tokens) {
    int64_t *starts = numbers(7);
    for (int n = 0, sum = 0; n < 6; n++) {
        sum += sixteenths[n];
        starts[n + 1] = tokens * sum / 16;
    }
    return starts;
}

static void set_problem(hadamard_data *data, const hadamard_case *c, hla_dtype dtype, bool normalised) {
    hla_hadamard_problem *problem = &data->problem;
    hla_hadamard_problem_init(problem);
    problem->batch = c->batch, problem->heads = c->heads;
    problem->queries = c->queries, problem->keys = c->keys, problem->value_dim = c->value_dim;
    problem->factors = c->factors, problem->dtype = dtype, problem->normalised = normalised;
    if (!normalised) problem->scale = 0.5f;
    memcpy(problem->rank, c->rank, sizeof c->rank);
    problem->causal = c->modes & CAUSAL, problem->stateful = c->modes & STATEFUL;
    if (c->modes & GROUPED) problem->kv_heads = c->heads % 2 == 0 ? c->heads / 2 : 1;
    if (c->modes & LENGTHS) {
        data->key_lengths = numbers(c->batch);
        for (int64_t b = 0; b < c->batch; b++)
            data->key_lengths[b] = b % 3 == 1 ? 0 : c->keys - b * 7 % (c->keys + 1);
    }
    if (!(c->modes & PACKED)) return;
    static const int query_shares[6] = {5, 0, 1, 3, 0, 7}, key_shares[6] = {4, 2, 0, 6, 0, 4};
    problem->sequences = 6;
    data->query_starts = make_starts(query_shares, c->queries);
    data->key_starts = make_starts(key_shares, c->keys);
}

/* Views [N,Hkv,R,V+1] with values in (-1,1) x size; the last column, a sum of features, is positive if wanted. */
static guarded make_states(const hadamard_data *data, double size, bool positive, random_state *state) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t sequences = problem->sequences > 0 ? problem->sequences : problem->batch, rank = 1;
    for (int p = 0; p < problem->factors; p++)
        rank *= problem->rank[p];
    guarded array = guarded_make(HLA_F32, sequences, problem->kv_heads > 0 ? problem->kv_heads : problem->heads, rank,
                                 problem->value_dim + 1, LAYOUT_BTHD);
    fill(&array.view, NULL, -size, size, state);
    hla_tensor sums = array.view;
    sums.shape[3] = 1, sums.data = (float *)sums.data + problem->value_dim;
    if (positive) fill(&sums, NULL, 0, size, state);
    return array;
}

/* Sizes so that no part of a gradient hides the others. */
static void make_gradients(hadamard_data *data, const hadamard_case *c, random_state *state) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t kv_heads = data->v.view.shape[2];
    /* like half a key's score: rows that see one key would otherwise have a gradient of rounding errors only */
    data->problem.epsilon = 0.5f;
    for (int p = 0; p < c->factors; p++)
        data->problem.epsilon *= (float)c->rank[p] / 4;
    data->d_out = guarded_make(problem->dtype, c->batch, c->queries, c->heads, c->value_dim, c->layout);
    fill(&data->d_out.view, NULL, -1, 1, state);
    for (int p = 0; p < c->factors; p++) {
        data->output[DQ + p] = guarded_make(problem->dtype, c->batch, c->queries, c->heads, c->rank[p], c->layout);
        data->output[DK + p] = guarded_make(problem->dtype, c->batch, c->keys, kv_heads, c->rank[p], c->layout);
    }
    data->output[DV] = guarded_make(problem->dtype, c->batch, c->keys, kv_heads, c->value_dim, c->layout);
    if (!problem->stateful) return;
    data->output[D_INITIAL_STATE] = make_states(data, 0, false, state);
    double rank = (double)data->initial_state.view.shape[2], tokens = (double)(c->keys + 1);
    double size = problem->normalised ? 1 / sqrt(rank * tokens) : sqrt(tokens / rank) / 6;
    data->d_final_state = make_states(data, size, false, state);
}

static hadamard_data make(const hadamard_case *c, hla_dtype dtype, bool normalised, bool backward, uint64_t seed) {
    hadamard_data data = {0};
    set_problem(&data, c, dtype, normalised);
    int64_t kv_heads = data.problem.kv_heads > 0 ? data.problem.kv_heads : c->heads;
    random_state state = {seed};
    for (int p = 0; p < c->factors; p++) {
        data.q[p] = guarded_make(dtype, c->batch, c->queries, c->heads, c->rank[p], c->layout);
        data.k[p] = guarded_make(dtype, c->batch, c->keys, kv_heads, c->rank[p], c->layout);
        double high = normalised ? 1 : 1 / sqrt((double)c->rank[p]), low = normalised ? 0 : -high;
        fill(&data.q[p].view, NULL, low, high, &state);
        fill(&data.k[p].view, data.key_lengths, low, high, &state);
    }
    data.v = guarded_make(dtype, c->batch, c->keys, kv_heads, c->value_dim, c->layout);
    fill(&data.v.view, data.key_lengths, -1, 1, &state);
    data.output[OUT] = guarded_make(dtype, c->batch, c->queries, c->heads, c->value_dim, c->layout);
    if (data.problem.stateful) {
        data.initial_state = make_states(&data, 4, normalised, &state); /* as if some ten keys came before */
        data.output[FINAL_STATE] = make_states(&data, 0, false, &state);
    }
    if (backward) make_gradients(&data, c, &state);
    hadamard_answer(&data);
    return data;
}

hadamard_data hadamard_make(const hadamard_case *c, hla_dtype dtype, bool normalised, uint64_t seed) {
    return make(c, dtype, normalised, false, seed);
}

hadamard_data hadamard_make_backward(const hadamard_case *c, hla_dtype dtype, bool normalised, uint64_t seed) {
    return make(c, dtype, normalised, true, seed);
}

void hadamard_free(hadamard_data *data) {
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        guarded_free(&data->q[p]);
        guarded_free(&data->k[p]);
    }
    guarded *const inputs[] = {&data->v, &data->initial_state, &data->d_out, &data->d_final_state};
    for (size_t i = 0; i < sizeof inputs / sizeof inputs[0]; i++)
        guarded_free(inputs[i]);
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        guarded_free(&data->output[i]);
        free(data->expected[i]);
    }
    free(data->key_lengths);
    free(data->query_starts);
    free(data->key_starts);
    *data = (hadamard_data){0};
}

/* ---- calls ---- */

static float *state_data(const guarded *array) {
    return array->pages ? array->view.data : NULL;
}

static hla_status run(hla_context *context, hadamard_data *data, const char *kernel, bool backward) {
    data->problem.kernel = kernel;
    hla_hadamard_plan *plan = NULL;
    hla_status status = hla_hadamard_plan_create(context, &data->problem, &plan);
    if (status != HLA_OK) return status;
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], dq[HLA_MAX_FACTORS], dk[HLA_MAX_FACTORS];
    for (int p = 0; p < data->problem.factors; p++) {
        q[p] = data->q[p].view, k[p] = data->k[p].view;
        dq[p] = data->output[DQ + p].view, dk[p] = data->output[DK + p].view;
    }
    for (int i = backward ? DV : OUT; i < (backward ? HADAMARD_OUTPUTS : DV); i++) {
        bool in_place = data->output[i].pages == data->d_final_state.pages;
        if (data->output[i].pages && !in_place) poison(&data->output[i]);
    }
    size_t size = backward ? hla_hadamard_plan_backward_workspace(plan) : hla_hadamard_plan_workspace(plan);
    /* between guard pages, and NaN: nothing may be read that was not written */
    guarded workspace = {0};
    if (size) workspace = guarded_make(HLA_F32, 1, 1, 1, (int64_t)(size / sizeof(float)), LAYOUT_BTHD);
    const hla_hadamard_inputs inputs = {.q_features = q,
                                        .k_features = k,
                                        .v = &data->v.view,
                                        .key_lengths = data->key_lengths,
                                        .query_starts = data->query_starts,
                                        .key_starts = data->key_starts,
                                        .initial_state = state_data(&data->initial_state)};
    const hla_hadamard_gradients gradients = {dq, dk, &data->output[DV].view,
                                              state_data(&data->output[D_INITIAL_STATE])};
    if (backward)
        status = hla_hadamard_backward(plan, &gradients, &data->d_out.view, state_data(&data->d_final_state), &inputs,
                                       workspace.view.data, size);
    else
        status = hla_hadamard_forward(plan, &data->output[OUT].view, state_data(&data->output[FINAL_STATE]), &inputs,
                                      workspace.view.data, size);
    guarded_free(&workspace);
    hla_hadamard_plan_free(plan);
    return status;
}

hla_status hadamard_run(hla_context *context, hadamard_data *data, const char *kernel) {
    return run(context, data, kernel, false);
}

hla_status hadamard_run_backward(hla_context *context, hadamard_data *data, const char *kernel) {
    return run(context, data, kernel, true);
}

bool hadamard_takes_all(const hla_kernel_info *info) {
    return info->runs_here && strcmp(info->name, "state_avx512_bf16") != 0;
}

bool hadamard_takes(const hadamard_data *data, const hla_kernel_info *info) {
    const hla_hadamard_problem *problem = &data->problem;
    bool special = problem->dtype == HLA_BF16 && !problem->causal && !problem->stateful;
    if (!special && !hadamard_takes_all(info)) return false;
    bool any = info->form == HLA_FORM_STATE || strcmp(info->name, "reference") == 0;
    return info->runs_here && (any || !data->problem.stateful);
}
