/* Gradients of the feature maps in double precision, one row at a time: the oracle of the backward pass. */
#include "attention/ops/feature_map/kernel.h"

#include <math.h>
#include <omp.h>

/* e = dL/dy becomes dL/du = act'(u) e, in place. */
typedef void derivative(double *e, const double *u, const hla_feature_map_problem *problem);

static void relu(double *e, const double *u, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        e[r] = u[r] > 0 ? e[r] : 0;
}

static void elu1(double *e, const double *u, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        e[r] *= u[r] > 0 ? 1 : exp(u[r]);
}

static void softplus(double *e, const double *u, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        e[r] /= 1 + exp(-u[r]);
}

static int64_t place_of_largest(const double *u, int64_t rank) {
    int64_t place = 0;
    for (int64_t r = 1; r < rank; r++) {
        if (u[r] > u[place]) place = r;
    }
    return place;
}

/* y_r = exp(u_r - shift); where the shift is the row's maximum u_m, u_m also receives -sum_r y_r e_r. */
static void exponential(double *e, const double *u, const hla_feature_map_problem *problem) {
    int64_t place = place_of_largest(u, problem->rank);
    double shift = problem->is_query ? u[place] : (double)problem->shift, sum = 0;
    for (int64_t r = 0; r < problem->rank; r++)
        sum += e[r] *= exp(u[r] - shift);
    if (problem->is_query) e[place] -= sum;
}

/* y_r (e_r - sum_s y_s e_s) */
static void softmax(double *e, const double *u, const hla_feature_map_problem *problem) {
    double largest = u[place_of_largest(u, problem->rank)], total = 0, sum = 0;
    for (int64_t r = 0; r < problem->rank; r++) {
        total += exp(u[r] - largest);
        sum += exp(u[r] - largest) * e[r];
    }
    for (int64_t r = 0; r < problem->rank; r++)
        e[r] = exp(u[r] - largest) / total * (e[r] - sum / total);
}

static void square(double *e, const double *u, const hla_feature_map_problem *problem) {
    for (int64_t r = 0; r < problem->rank; r++)
        e[r] *= 2 * u[r];
}

static void identity(double *e, const double *u, const hla_feature_map_problem *problem) {
    (void)e, (void)u, (void)problem;
}

/* out [dim] += weight^T e, weight [rows,dim] */
static void add_transposed(double *out, const float *weight, const double *e, int64_t rows, int64_t dim) {
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t x = 0; x < dim; x++)
            out[x] += (double)weight[i * dim + x] * e[i];
    }
}

/* The gradient of a turned row becomes that of the row. */
static void turn_back(double *dx, const float *table, int64_t dim) {
    for (int64_t i = 0; i < dim; i += 2) {
        double cosine = (double)table[i], sine = (double)table[i + 1], a = dx[i], b = dx[i + 1];
        dx[i] = cosine * a + sine * b;
        dx[i + 1] = cosine * b - sine * a;
    }
}

/* From dh = dx: what the hidden layer's gradients receive, and dx. */
static void differentiate_hidden(const hla_feature_map_call *call, int64_t t, int64_t h, double *dx,
                                 const hla_feature_map_sums *sums, double *z, const float *input) {
    const int64_t dim = call->problem.dim;
    for (int64_t i = 0; i < dim; i++) {
        z[i] = z[i] > 0 ? dx[i] : 0; /* now dz */
        sums->hidden_bias[i] += z[i];
        for (int64_t x = 0; x < dim; x++)
            sums->hidden_weight[i * dim + x] += z[i] * hla_feature_map_reference_turned(&call->problem, t, input, x);
    }
    add_transposed(dx, call->weights.hidden_weight + h * dim * dim, z, dim, dim);
}

void hla_feature_map_reference_backward_row(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h,
                                            double *dx, const hla_feature_map_sums *sums, double *scratch,
                                            float *input) {
    static derivative *const derive[HLA_ACTIVATIONS] = {relu, elu1, softplus, exponential, softmax, square, identity};
    const hla_feature_map_problem *problem = &call->problem;
    const hla_feature_map_weights *weights = &call->weights;
    const int64_t dim = problem->dim, rank = problem->rank;
    double *u = scratch, *e = u + rank, *hidden = e + rank, *z = hidden + dim;
    float *d_out = input + dim;
    hla_feature_map_reference_projection(call, b, t, h, u, hidden, z, input);
    hla_load_floats(d_out, hla_tensor_row(call->out, b, t, h), call->out->dtype, rank, call->out->stride[3]);
    for (int64_t r = 0; r < rank; r++)
        e[r] = (double)d_out[r];
    derive[problem->activation](e, u, problem);
    for (int64_t r = 0; r < rank; r++) {
        sums->bias[r] += e[r];
        for (int64_t x = 0; x < dim; x++)
            sums->weight[r * dim + x] += e[r] * hidden[x];
    }
    for (int64_t x = 0; x < dim; x++)
        dx[x] = 0;
    add_transposed(dx, weights->weight + h * rank * dim, e, rank, dim);
    if (weights->hidden_weight) differentiate_hidden(call, t, h, dx, sums, z, input);
    if (problem->rope) turn_back(dx, problem->rope + t * dim, dim);
}

/* What one thread needs. */
typedef struct scratch {
    hla_feature_map_sums sums;
    double *dx, *rows; /* [D], [2R + 2D] */
    float *input;      /* [R + D] */
} scratch;

static scratch carve(hla_arena *arena, const hla_feature_map_problem *problem) {
    int64_t dim = problem->dim, rank = problem->rank;
    return (scratch){.sums = {.weight = hla_arena_take(arena, rank * dim, sizeof(double)),
                              .bias = hla_arena_take(arena, rank, sizeof(double)),
                              .hidden_weight = hla_arena_take(arena, dim * dim, sizeof(double)),
                              .hidden_bias = hla_arena_take(arena, dim, sizeof(double))},
                     .dx = hla_arena_take(arena, dim, sizeof(double)),
                     .rows = hla_arena_take(arena, 2 * (rank + dim), sizeof(double)),
                     .input = hla_arena_take(arena, rank + dim, sizeof(float))};
}

void hla_feature_map_reference_measure_backward(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    const int64_t most_width = (int64_t)1 << 24; /* so that no product of two widths wraps */
    hla_arena one = {.overflow = problem->dim > most_width || problem->rank > most_width};
    if (!one.overflow) carve(&one, problem);
    arena->overflow = arena->overflow || one.overflow;
    if (!one.overflow) hla_arena_take(arena, threads, one.used);
}

static void clear(double *sums, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        sums[i] = 0;
}

static void store(float *gradient, const double *sums, int64_t h, int64_t size) {
    for (int64_t i = 0; gradient && i < size; i++)
        gradient[h * size + i] = (float)sums[i];
}

/* One head, alone, so that its sums have one order. */
static void differentiate_head(const hla_feature_map_call *call, const scratch *own, int64_t h) {
    const hla_feature_map_problem *problem = &call->problem;
    const int64_t dim = problem->dim, rank = problem->rank;
    clear(own->sums.weight, rank * dim);
    clear(own->sums.bias, rank);
    clear(own->sums.hidden_weight, dim * dim);
    clear(own->sums.hidden_bias, dim);
    for (int64_t i = 0; i < problem->batch * problem->tokens; i++) {
        int64_t b = i / problem->tokens, t = i % problem->tokens;
        hla_feature_map_reference_backward_row(call, b, t, h, own->dx, &own->sums, own->rows, own->input);
        if (call->dx) hla_store_row(call->dx, b, t, h, own->dx);
    }
    store(call->gradients.weight, own->sums.weight, h, rank * dim);
    store(call->gradients.bias, own->sums.bias, h, rank);
    store(call->gradients.hidden_weight, own->sums.hidden_weight, h, dim * dim);
    store(call->gradients.hidden_bias, own->sums.hidden_bias, h, dim);
}

hla_status hla_feature_map_reference_run_backward(const hla_feature_map_call *call) {
    hla_arena measured = {0};
    carve(&measured, &call->problem);
#pragma omp parallel num_threads(hla_team_size(call->threads, call->problem.heads, 1))
    {
        hla_arena arena = {.base = (char *)call->workspace + (size_t)omp_get_thread_num() * measured.used};
        const scratch own = carve(&arena, &call->problem);
#pragma omp for schedule(static)
        for (int64_t h = 0; h < call->problem.heads; h++) {
            differentiate_head(call, &own, h);
        }
    }
    return HLA_OK;
}
