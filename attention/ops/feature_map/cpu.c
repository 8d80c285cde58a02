/* Feature maps: projection, activation and, if there is one, the hidden layer, for a block of tokens at a time while
 * it lies in the first-level cache; compiled once per instruction set.
 *
 * A block's result depends on nothing but its own tokens, so the number of threads changes no bit of it.
 */
#include "attention/ops/feature_map/cpu.h"
#include "attention/simd/exp.h"

#include <float.h>
#include <math.h>
#include <omp.h>

/* Weights packed for hla_tile: weight [H][R/COLUMNS][D][COLUMNS] and bias [H][R], hidden weight and bias likewise;
 * R and D rounded up to COLUMNS. Per thread: x [BLOCK][D], hidden [BLOCK][D], features [BLOCK][R]. */
typedef struct layout {
    int64_t dim, rank, dim_padded, rank_padded;
    int64_t blocks; /* of tokens, in one batch entry */
    float *weight, *bias, *hidden_weight, *hidden_bias;
    float *x, *hidden, *features; /* [threads] times */
} layout;

/* Widths beyond 2^24 are refused (as overflow), so that no product below wraps. */
static layout lay_out(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    const int64_t most_width = (int64_t)1 << 24, all = threads;
    layout sizes = {.dim = problem->dim, .rank = problem->rank};
    if (problem->dim > most_width || problem->rank > most_width) {
        arena->overflow = true;
        return sizes;
    }
    int64_t dim = sizes.dim_padded = hla_round_up(problem->dim, HLA_TILE_COLUMNS);
    int64_t rank = sizes.rank_padded = hla_round_up(problem->rank, HLA_TILE_COLUMNS);
    sizes.blocks = (problem->tokens - 1) / TOKEN_BLOCK + 1;
    sizes.weight = hla_arena_take(arena, problem->heads, (size_t)(rank * sizes.dim) * sizeof(float));
    sizes.bias = hla_arena_take(arena, problem->heads, (size_t)rank * sizeof(float));
    sizes.hidden_weight = hla_arena_take(arena, problem->heads, (size_t)(dim * sizes.dim) * sizeof(float));
    sizes.hidden_bias = hla_arena_take(arena, problem->heads, (size_t)dim * sizeof(float));
    sizes.x = hla_arena_take(arena, all, (size_t)dim * TOKEN_BLOCK * sizeof(float));
    sizes.hidden = hla_arena_take(arena, all, (size_t)dim * TOKEN_BLOCK * sizeof(float));
    sizes.features = hla_arena_take(arena, all, (size_t)rank * TOKEN_BLOCK * sizeof(float));
    return sizes;
}

static void measure(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    lay_out(arena, problem, threads);
}

static void pack_head(const hla_feature_map_call *call, const layout *sizes, int64_t h) {
    const hla_feature_map_weights *weights = &call->weights;
    int64_t dim = sizes->dim, rank = sizes->rank;
    /* a padding feature at minus infinity counts neither in a maximum nor in a sum of exponentials */
    hla_activation activation = call->problem.activation;
    float pad = activation == HLA_ACTIVATION_EXP || activation == HLA_ACTIVATION_SOFTMAX ? -INFINITY : 0;
    pack(sizes->weight + h * sizes->rank_padded * dim, sizes->bias + h * sizes->rank_padded,
         weights->weight + h * rank * dim, weights->bias ? weights->bias + h * rank : NULL, rank, dim, pad);
    if (!weights->hidden_weight) return;
    pack(sizes->hidden_weight + h * sizes->dim_padded * dim, sizes->hidden_bias + h * sizes->dim_padded,
         weights->hidden_weight + h * dim * dim, weights->hidden_bias ? weights->hidden_bias + h * dim : NULL, dim, dim,
         0);
}

/* Activations of one row: u = row + bias, padded to whole vectors. hla_vector_larger is called so that NaN stays. */

typedef hla_vector elementwise(hla_vector u, hla_vector floor);

HLA_INLINE hla_vector relu_of(hla_vector u, hla_vector floor) {
    return hla_vector_add(hla_vector_larger(hla_vector_zero(), u), floor);
}

HLA_INLINE hla_vector elu1_of(hla_vector u, hla_vector floor) {
    (void)floor;
    hla_vector zero = hla_vector_zero(), negative = hla_vector_exp(hla_vector_smaller(zero, u)); /* 1 where u > 0 */
    return hla_vector_add(hla_vector_larger(zero, u), negative);
}

HLA_INLINE hla_vector softplus_of(hla_vector u, hla_vector floor) {
    (void)floor;
    hla_vector z = hla_vector_exp(hla_vector_smaller(hla_vector_negate(u), u));
    return hla_vector_add(hla_vector_larger(hla_vector_zero(), u), hla_vector_log1p_unit(z));
}

HLA_INLINE hla_vector square_of(hla_vector u, hla_vector floor) {
    (void)floor;
    return hla_vector_multiply(u, u);
}

/* row = f(row + bias); called with a constant f, which is inlined. */
HLA_INLINE void map_row(float *row, const float *bias, int64_t padded, float floor, elementwise *f) {
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH) {
        hla_vector u = hla_vector_add(hla_vector_load(row + r), hla_vector_load(bias + r));
        hla_vector_store(row + r, f(u, hla_vector_set(floor)));
    }
}

static void relu(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    map_row(row, bias, padded, problem->floor, relu_of);
}

static void elu1(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    map_row(row, bias, padded, problem->floor, elu1_of);
}

static void softplus(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    map_row(row, bias, padded, problem->floor, softplus_of);
}

static void square(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    map_row(row, bias, padded, problem->floor, square_of);
}

/* row += bias; returns the largest. */
static float add_bias(float *row, const float *bias, int64_t padded) {
    hla_vector largest = hla_vector_set(-FLT_MAX);
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH) {
        hla_vector u = hla_vector_add(hla_vector_load(row + r), hla_vector_load(bias + r));
        hla_vector_store(row + r, u);
        largest = hla_vector_larger(u, largest);
    }
    return hla_vector_largest(largest);
}

/* row = exp(row - shift); returns the sum. */
static float shifted_exp(float *row, float shift, int64_t padded) {
    hla_vector sum = hla_vector_zero();
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH) {
        hla_vector y = hla_vector_exp(hla_vector_subtract(hla_vector_load(row + r), hla_vector_set(shift)));
        hla_vector_store(row + r, y);
        sum = hla_vector_add(sum, y);
    }
    return hla_vector_sum(sum);
}

static void exponential(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    float largest = add_bias(row, bias, padded);
    shifted_exp(row, problem->is_query ? largest : problem->shift, padded);
}

static void softmax(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    float largest = add_bias(row, bias, padded);
    hla_vector factor = hla_vector_set(1 / shifted_exp(row, largest, padded));
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH)
        hla_vector_store(row + r, hla_vector_multiply(hla_vector_load(row + r), factor));
}

static void identity(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    add_bias(row, bias, padded);
}

typedef void activation_function(float *row, const float *bias, int64_t padded, const hla_feature_map_problem *problem);
static activation_function *const activations[HLA_ACTIVATIONS] = {relu,    elu1,   softplus, exponential,
                                                                  softmax, square, identity};

/* One row: hidden = x + relu(hidden + bias). The columns that pad dim to whole vectors are never used. */
static void finish_hidden(float *hidden, const float *x, const float *bias, int64_t dim) {
    for (int64_t i = 0; i < dim; i += HLA_VECTOR_WIDTH) {
        hla_vector u = hla_vector_add(hla_vector_load(hidden + i), hla_vector_load(bias + i));
        hla_vector sum = hla_vector_add(hla_vector_load(x + i), hla_vector_larger(hla_vector_zero(), u));
        hla_vector_store(hidden + i, sum);
    }
}

/* One block of tokens of one head. */
static void map_block(const hla_feature_map_call *call, const layout *sizes, int64_t b, int64_t h, int64_t first) {
    const hla_tensor *in = call->x, *out = call->out;
    const int64_t dim = sizes->dim, row = sizes->dim_padded, rank_row = sizes->rank_padded, me = omp_get_thread_num();
    float *x = sizes->x + me * TOKEN_BLOCK * row, *hidden = sizes->hidden + me * TOKEN_BLOCK * row;
    float *features = sizes->features + me * TOKEN_BLOCK * rank_row;
    int64_t tokens = hla_smaller(call->problem.tokens - first, TOKEN_BLOCK);
    int64_t strips = hla_round_up(tokens, HLA_TILE_ROWS);
    for (int64_t t = 0; t < tokens; t++)
        hla_load_floats(x + t * row, hla_tensor_row(in, b, first + t, h), in->dtype, dim, in->stride[3]);
    turn_rows(x, row, &call->problem, first, tokens, 1);
    memset(x + tokens * row, 0, (size_t)((strips - tokens) * row) * sizeof *x);
    if (call->weights.hidden_weight) {
        project(hidden, row, x, row, sizes->hidden_weight + h * row * dim, dim, dim, tokens, HLA_TILE_STORE);
        for (int64_t t = 0; t < strips; t++)
            finish_hidden(hidden + t * row, x + t * row, sizes->hidden_bias + h * row, dim);
        x = hidden;
    }
    project(features, rank_row, x, row, sizes->weight + h * rank_row * dim, sizes->rank, dim, tokens, HLA_TILE_STORE);
    for (int64_t t = 0; t < tokens; t++) {
        activations[call->problem.activation](features + t * rank_row, sizes->bias + h * rank_row,
                                              hla_round_up(sizes->rank, HLA_VECTOR_WIDTH), &call->problem);
        hla_store_floats(hla_tensor_row(out, b, first + t, h), out->dtype, sizes->rank, out->stride[3],
                         features + t * rank_row);
    }
}

static hla_status run(const hla_feature_map_call *call) {
    hla_arena arena = {.base = call->workspace};
    const layout sizes = lay_out(&arena, &call->problem, call->threads);
    const int64_t heads = call->problem.heads, units = call->problem.batch * sizes.blocks * heads;
#pragma omp parallel num_threads(hla_team_size(call->threads, units, 1))
    {
#pragma omp for schedule(static)
        for (int64_t h = 0; h < heads; h++) {
            pack_head(call, &sizes, h);
        }
        /* heads fastest: in [B,T,H,D] they lie side by side */
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < units; unit++) {
            map_block(call, &sizes, unit / heads / sizes.blocks, unit % heads,
                      unit / heads % sizes.blocks * TOKEN_BLOCK);
        }
    }
    return HLA_OK;
}

extern const hla_feature_map_entry HLA_ISA_NAME(hla_feature_map);
const hla_feature_map_entry HLA_ISA_NAME(hla_feature_map) = {
    .kernel = {.name = HLA_ISA_STRING, .isa = HLA_ISA_VALUE},
    .measure = measure,
    .run = run,
    .measure_backward = HLA_ISA_NAME(hla_feature_map_measure_backward),
    .run_backward = HLA_ISA_NAME(hla_feature_map_run_backward),
};
