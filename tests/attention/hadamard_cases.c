#include "tests/attention/hadamard_cases.h"

#include "attention/core/internal.h"

#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

const hadamard_case hadamard_cases[] = {
    /* B, H, Tq, Tk, V, P, ranks, layout, lengths */
    {1, 1, 1, 1, 1, 1, {1}, LAYOUT_BTHD, false},
    {1, 1, 1, 1, 64, 2, {16, 16}, LAYOUT_BTHD, false},
    {1, 1, 7, 7, 8, 1, {7}, LAYOUT_BTHD, false},
    {1, 2, 33, 65, 64, 2, {16, 16}, LAYOUT_BHTD, false},
    {1, 2, 130, 257, 64, 2, {32, 32}, LAYOUT_BTHD, false},
    {2, 3, 129, 127, 40, 2, {8, 8}, LAYOUT_BHTD, true},
    {3, 1, 17, 300, 33, 2, {5, 13}, LAYOUT_PADDED, true},
    {3, 2, 31, 61, 31, 2, {13, 5}, LAYOUT_STRIDED_X, true},
    {2, 2, 19, 140, 65, 3, {6, 6, 6}, LAYOUT_TRANSPOSED, true},
    {1, 3, 65, 129, 96, 3, {10, 10, 10}, LAYOUT_PADDED, false},
    {1, 1, 40, 50, 7, 3, {2, 3, 17}, LAYOUT_BTHD, false},
    {2, 1, 21, 33, 16, 4, {4, 4, 4, 4}, LAYOUT_BHTD, true},
    {1, 2, 9, 200, 48, 4, {1, 7, 2, 9}, LAYOUT_PADDED, false},
    {1, 1, 12, 12, 3, 4, {1, 1, 1, 1}, LAYOUT_STRIDED_X, false},
    {1, 1, 30, 140, 64, 2, {256, 1}, LAYOUT_BTHD, false},
    {1, 1, 30, 140, 5, 2, {2, 256}, LAYOUT_TRANSPOSED, false},
    {1, 2, 20, 130, 9, 1, {256}, LAYOUT_PADDED, false},
    {1, 1, 11, 37, 17, 2, {256, 33}, LAYOUT_BHTD, false},
    {1, 1, 257, 3, 64, 1, {64}, LAYOUT_BTHD, false},
    {1, 1, 5, 1000, 128, 2, {12, 24}, LAYOUT_BTHD, false},
    {1, 1, 3, 9, 255, 2, {9, 11}, LAYOUT_STRIDED_X, false},
    {1, 1, 10, 20, 256, 2, {16, 32}, LAYOUT_BHTD, false},
    {1, 1, 10, 20, 1, 2, {64, 64}, LAYOUT_PADDED, false},
    {2, 2, 6, 0, 10, 2, {4, 6}, LAYOUT_BTHD, false},
    {4, 1, 6, 31, 10, 1, {20}, LAYOUT_BHTD, true},
    {1, 1, 128, 128, 32, 2, {24, 24}, LAYOUT_TRANSPOSED, false},
    {2, 1, 4, 8300, 40, 2, {9, 13}, LAYOUT_BHTD, true}, /* more than one chunk of keys */
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

hadamard_data hadamard_make(const hadamard_case *c, hla_dtype dtype, bool normalised, uint64_t seed) {
    hadamard_data data = {0};
    hla_hadamard_problem_init(&data.problem);
    data.problem.batch = c->batch, data.problem.heads = c->heads;
    data.problem.queries = c->queries, data.problem.keys = c->keys, data.problem.value_dim = c->value_dim;
    data.problem.factors = c->factors, data.problem.dtype = dtype, data.problem.normalised = normalised;
    if (!normalised) data.problem.scale = 0.5f;
    memcpy(data.problem.rank, c->rank, sizeof c->rank);
    if (c->lengths) {
        data.key_lengths = calloc((size_t)c->batch, sizeof *data.key_lengths);
        if (!data.key_lengths) abort();
        for (int64_t b = 0; b < c->batch; b++)
            data.key_lengths[b] = b % 3 == 1 ? 0 : c->keys - b * 7 % (c->keys + 1);
    }
    random_state state = {seed};
    for (int p = 0; p < c->factors; p++) {
        data.q[p] = guarded_make(dtype, c->batch, c->queries, c->heads, c->rank[p], c->layout);
        data.k[p] = guarded_make(dtype, c->batch, c->keys, c->heads, c->rank[p], c->layout);
        double high = normalised ? 1 : 1 / sqrt((double)c->rank[p]), low = normalised ? 0 : -high;
        fill(&data.q[p].view, NULL, low, high, &state);
        fill(&data.k[p].view, data.key_lengths, low, high, &state);
    }
    data.v = guarded_make(dtype, c->batch, c->keys, c->heads, c->value_dim, c->layout);
    data.out = guarded_make(dtype, c->batch, c->queries, c->heads, c->value_dim, c->layout);
    fill(&data.v.view, data.key_lengths, -1, 1, &state);
    size_t count = (size_t)(c->batch * c->queries * c->heads * c->value_dim);
    data.expected = calloc(count, sizeof *data.expected);
    if (!data.expected) abort();
    hadamard_answer(&data);
    return data;
}

void hadamard_free(hadamard_data *data) {
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        guarded_free(&data->q[p]);
        guarded_free(&data->k[p]);
    }
    guarded_free(&data->v);
    guarded_free(&data->out);
    free(data->key_lengths);
    free(data->expected);
    *data = (hadamard_data){0};
}

/* ---- the answer: (prod_p score matrices), rows normalised, times V, written out ---- */

/* Tokens 0 ... tokens - 1 of one head, [tokens][X]. */
static float *copy_head(const hla_tensor *tensor, int64_t b, int64_t h, int64_t tokens) {
    int64_t columns = tensor->shape[3];
    float *rows = calloc((size_t)(tokens * columns + 1), sizeof *rows);
    if (!rows) abort();
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t x = 0; x < columns; x++)
            rows[t * columns + x] = (float)get(tensor, b, t, h, x);
    }
    return rows;
}

/* The inputs of one head as dense arrays. */
typedef struct head_inputs {
    float *q[HLA_MAX_FACTORS], *k[HLA_MAX_FACTORS], *v;
    int64_t keys;
} head_inputs;

/* One row of the formula, in double and, operation by operation the same, in float. sums, naive: V numbers each. */
static void answer_row(const hla_hadamard_problem *problem, const head_inputs *head, int64_t i, double *sums,
                       float *naive) {
    int64_t columns = problem->value_dim;
    double denominator = (double)problem->epsilon, scale = (double)problem->scale;
    float naive_denominator = 0;
    for (int64_t x = 0; x < columns; x++)
        sums[x] = 0, naive[x] = 0;
    for (int64_t j = 0; j < head->keys; j++) {
        double weight = 1;
        float naive_weight = 1;
        for (int p = 0; p < problem->factors; p++) {
            const float *a = head->q[p] + i * problem->rank[p], *c = head->k[p] + j * problem->rank[p];
            double dot = 0;
            float naive_dot = 0;
            for (int64_t r = 0; r < problem->rank[p]; r++) {
                dot += (double)a[r] * (double)c[r];
                naive_dot += a[r] * c[r];
            }
            weight *= dot;
            naive_weight *= naive_dot;
        }
        denominator += weight;
        naive_denominator += naive_weight;
        const float *value = head->v + j * columns;
        for (int64_t x = 0; x < columns; x++) {
            sums[x] += weight * (double)value[x];
            naive[x] += naive_weight * value[x];
        }
    }
    naive_denominator += problem->epsilon;
    for (int64_t x = 0; x < columns; x++) {
        sums[x] = problem->normalised ? (denominator != 0 ? sums[x] / denominator : 0) : scale * sums[x];
        if (!problem->normalised) naive[x] *= problem->scale;
        if (problem->normalised) naive[x] = naive_denominator != 0 ? naive[x] / naive_denominator : 0;
    }
}

static double round_to(hla_dtype dtype, float value) {
    uint32_t storage = 0;
    float rounded;
    hla_store_floats(&storage, dtype, 1, 1, &value);
    hla_load_floats(&rounded, &storage, dtype, 1, 1);
    return (double)rounded;
}

/* Fills expected for one head; adds squares of the naive error and of the answer to norms[2]. */
static void answer_head(hadamard_data *data, const head_inputs *head, int64_t b, int64_t h, double norms[2]) {
    const hla_hadamard_problem *problem = &data->problem;
    int64_t columns = problem->value_dim;
    float *naive = calloc((size_t)columns, sizeof *naive);
    if (!naive) abort();
    for (int64_t i = 0; i < problem->queries; i++) {
        double *row = data->expected + ((b * problem->queries + i) * problem->heads + h) * columns;
        answer_row(problem, head, i, row, naive);
        for (int64_t x = 0; x < columns; x++) {
            double error = round_to(problem->dtype, naive[x]) - row[x];
            norms[0] += error * error;
            norms[1] += row[x] * row[x];
        }
    }
    free(naive);
}

void hadamard_answer(hadamard_data *data) {
    const hla_hadamard_problem *problem = &data->problem;
    double norms[2] = {0, 0};
    for (int64_t b = 0; b < problem->batch; b++) {
        for (int64_t h = 0; h < problem->heads; h++) {
            head_inputs head = {.keys = data->key_lengths ? data->key_lengths[b] : problem->keys};
            for (int p = 0; p < problem->factors; p++) {
                head.q[p] = copy_head(&data->q[p].view, b, h, problem->queries);
                head.k[p] = copy_head(&data->k[p].view, b, h, head.keys);
            }
            head.v = copy_head(&data->v.view, b, h, head.keys);
            answer_head(data, &head, b, h, norms);
            for (int p = 0; p < problem->factors; p++) {
                free(head.q[p]);
                free(head.k[p]);
            }
            free(head.v);
        }
    }
    data->naive_error = norms[1] > 0 ? sqrt(norms[0] / norms[1]) : 0;
}

hla_status hadamard_run(hla_context *context, hadamard_data *data, const char *kernel) {
    poison(&data->out);
    data->problem.kernel = kernel;
    hla_hadamard_plan *plan = NULL;
    hla_status status = hla_hadamard_plan_create(context, &data->problem, &plan);
    if (status != HLA_OK) return status;
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS];
    for (int p = 0; p < data->problem.factors; p++)
        q[p] = data->q[p].view, k[p] = data->k[p].view;
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = size ? aligned_alloc(64, size) : NULL;
    if (size && !workspace) abort();
    if (size) memset(workspace, 0xff, size); /* NaN: nothing may be read that was not written */
    const hla_hadamard_inputs inputs = {
        .q_features = q, .k_features = k, .v = &data->v.view, .key_lengths = data->key_lengths};
    status = hla_hadamard_forward(plan, &data->out.view, NULL, &inputs, workspace, size);
    free(workspace);
    hla_hadamard_plan_free(plan);
    return status;
}

double hadamard_error(const hadamard_data *data) {
    const hla_hadamard_problem *problem = &data->problem;
    double difference = 0, norm = 0;
    const double *expected = data->expected;
    for (int64_t b = 0; b < problem->batch; b++) {
        for (int64_t i = 0; i < problem->queries; i++) {
            for (int64_t h = 0; h < problem->heads; h++) {
                for (int64_t x = 0; x < problem->value_dim; x++, expected++) {
                    double error = get(&data->out.view, b, i, h, x) - *expected;
                    difference += error * error;
                    norm += *expected * *expected;
                }
            }
        }
    }
    return sqrt(norm > 0 ? difference / norm : difference);
}

double hadamard_tolerance(const hadamard_data *data) {
    static const double absolute[] = {1e-5, 1e-2, 2e-3}; /* by dtype */
    /* A few roundings of the dtype: with one key the naive formula can be exact by luck, where another order is not. */
    static const double least[] = {0x1p-22, 0x1p-8, 0x1p-11};
    double tolerance = fmax(2 * data->naive_error, least[data->problem.dtype]);
    return fmin(tolerance, absolute[data->problem.dtype]);
}
