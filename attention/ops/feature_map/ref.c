/* Feature maps in double precision, one row at a time: the oracle the kernels are compared with. */
#include "attention/ops/feature_map/kernel.h"

#include <math.h>
#include <omp.h>

static double largest_of(const double *row, int64_t rank) {
    double largest = -INFINITY;
    for (int64_t r = 0; r < rank; r++) {
        if (row[r] > largest) largest = row[r];
    }
    return largest;
}

static void relu(double *row, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        row[r] = (row[r] < 0 ? 0 : row[r]) + (double)problem->floor;
}

static void elu1(double *row, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        row[r] = row[r] > 0 ? row[r] + 1 : exp(row[r]);
}

static void softplus(double *row, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        row[r] = row[r] > 0 ? row[r] + log1p(exp(-row[r])) : log1p(exp(row[r]));
}

static void exponential(double *row, const hla_feature_map_problem *problem) {
    double shift = problem->is_query ? largest_of(row, problem->rank) : (double)problem->shift;
    for (int64_t r = 0; r < problem->rank; r++)
        row[r] = exp(row[r] - shift);
}

static void softmax(double *row, const hla_feature_map_problem *problem) {
    double largest = largest_of(row, problem->rank), sum = 0;
    for (int64_t r = 0; r < problem->rank; r++)
        sum += row[r] = exp(row[r] - largest);
    for (int64_t r = 0; r < problem->rank; r++)
        row[r] /= sum;
}

static void square(double *row, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        row[r] *= row[r];
}

static void identity(double *row, const hla_feature_map_problem *problem) {
    (void)row, (void)problem;
}

/* out_i = bias_i + sum_x weight[i,x] in_x */
static void project(double *out, const float *weight, const float *bias, const double *in, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; i++) {
        double sum = bias ? (double)bias[i] : 0;
        for (int64_t x = 0; x < dim; x++)
            sum += (double)weight[i * dim + x] * in[x];
        out[i] = sum;
    }
}

static const float *head_of(const float *array, int64_t h, int64_t size) {
    return array ? array + h * size : NULL;
}

double hla_feature_map_reference_turned(const hla_feature_map_problem *problem, int64_t t, const float *x, int64_t i) {
    if (!problem->rope) return (double)x[i];
    int64_t first = i - i % 2;
    const float *turn = problem->rope + t * problem->dim + first;
    double cosine = (double)turn[0], sine = (double)turn[1], a = (double)x[first], b = (double)x[first + 1];
    return i == first ? cosine * a - sine * b : sine * a + cosine * b;
}

void hla_feature_map_reference_projection(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h, double *u,
                                          double *hidden_out, double *z, float *x) {
    const hla_feature_map_weights *weights = &call->weights;
    int64_t dim = call->problem.dim, rank = call->problem.rank;
    hla_load_floats(x, hla_tensor_row(call->x, b, t, h), call->x->dtype, dim, call->x->stride[3]);
    for (int64_t i = 0; i < dim; i++)
        hidden_out[i] = hla_feature_map_reference_turned(&call->problem, t, x, i);
    if (weights->hidden_weight) {
        project(z, head_of(weights->hidden_weight, h, dim * dim), head_of(weights->hidden_bias, h, dim), hidden_out,
                dim, dim);
        for (int64_t i = 0; i < dim; i++)
            hidden_out[i] += z[i] < 0 ? 0 : z[i];
    }
    project(u, head_of(weights->weight, h, rank * dim), head_of(weights->bias, h, rank), hidden_out, rank, dim);
}

void hla_feature_map_reference_row(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h, double *row,
                                   double *x, double *hidden, float *input) {
    static void (*const activate[HLA_ACTIVATIONS])(double *, const hla_feature_map_problem *) = {
        relu, elu1, softplus, exponential, softmax, square, identity};
    hla_feature_map_reference_projection(call, b, t, h, row, x, hidden, input);
    activate[call->problem.activation](row, &call->problem);
}

/* Scratch of all threads. */
typedef struct scratch {
    double *row, *x, *hidden; /* [threads][R], [threads][D], [threads][D] */
    float *input;             /* [threads][D] */
} scratch;

static scratch carve(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    size_t n = (size_t)threads;
    return (scratch){.row = hla_arena_take(arena, problem->rank, n * sizeof(double)),
                     .x = hla_arena_take(arena, problem->dim, n * sizeof(double)),
                     .hidden = hla_arena_take(arena, problem->dim, n * sizeof(double)),
                     .input = hla_arena_take(arena, problem->dim, n * sizeof(float))};
}

static void measure(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static hla_status run(const hla_feature_map_call *call) {
    const hla_feature_map_problem *problem = &call->problem;
    hla_arena arena = {.base = call->workspace};
    scratch all = carve(&arena, problem, call->threads);
    int64_t rows = problem->batch * problem->tokens * problem->heads;
#pragma omp parallel for num_threads(hla_team_size(call->threads, rows, 1)) schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        int64_t h = i % problem->heads, t = i / problem->heads % problem->tokens;
        int64_t b = i / problem->heads / problem->tokens, me = omp_get_thread_num();
        double *row = all.row + me * problem->rank;
        hla_feature_map_reference_row(call, b, t, h, row, all.x + me * problem->dim, all.hidden + me * problem->dim,
                                      all.input + me * problem->dim);
        hla_store_row(call->out, b, t, h, row);
    }
    return HLA_OK;
}

const hla_feature_map_entry hla_feature_map_reference = {
    .kernel = {.name = "reference", .isa = HLA_ISA_BASELINE},
    .measure = measure,
    .run = run,
    .measure_backward = hla_feature_map_reference_measure_backward,
    .run_backward = hla_feature_map_reference_run_backward,
};
