/* Gradients of the feature maps, a block of tokens at a time while it lies in the first-level cache; compiled once per
 * instruction set.
 *
 * The forward activations are computed again. Gradients of weights are sums over all tokens: each head's blocks of
 * tokens are cut into a number of chunks that depends on nothing but the problem; a chunk's blocks are added up in
 * order, and the chunks' sums in order at the end, so that any number of threads gives the same bits. Sums have four
 * levels (tokens of a block in registers, blocks of a run, runs of a chunk, chunks), so that a million equal terms
 * still add up.
 */
#include "attention/ops/feature_map/cpu.h"
#include "attention/simd/exp.h"

#include <float.h>
#include <math.h>
#include <omp.h>

enum {
    LEAST_UNITS = 32, /* heads times chunks: enough for that many threads, few enough to keep their sums small */
    RUN = 64          /* blocks added up before they go to the chunk's sums */
};

/* Sums of one head's weight gradients: weight [R][D], bias [R], hidden_weight [D][D], hidden_bias [D], with R and D
 * rounded up to COLUMNS; the hidden ones last, because without a hidden layer they are left alone. */
typedef struct sums {
    float *weight, *bias, *hidden_weight, *hidden_bias;
    int64_t floats; /* in use, from weight on */
} sums;

/* Weights packed for hla_tile, per head: weight and hidden_weight in panels of COLUMNS rows, transposed, for the
 * forward products; weight_rows and hidden_rows in panels of COLUMNS columns, as they stand, for the backward ones.
 * Per thread: x, hidden, z, dx [BLOCK][D], u, e [BLOCK][R], panels [D/COLUMNS][BLOCK][COLUMNS], and sums of a run. */
typedef struct layout {
    int64_t dim, rank, dim_padded, rank_padded;
    int64_t blocks, all_blocks; /* of tokens, in one batch entry, in all */
    int64_t chunks;             /* of a head's blocks */
    int64_t sums_floats;        /* of one chunk */
    float *weight, *bias, *hidden_weight, *hidden_bias, *weight_rows, *hidden_rows;
    float *sums; /* [heads][chunks] times */
    float *x, *hidden, *z, *dx, *u, *e, *panels, *run;
} layout;

/* Widths beyond 2^24 are refused (as overflow), so that no product below wraps. */
static layout lay_out(hla_arena *arena, const hla_feature_map_problem *problem, int threads) {
    const int64_t most_width = (int64_t)1 << 24, all = threads, heads = problem->heads;
    layout sizes = {.dim = problem->dim, .rank = problem->rank};
    if (problem->dim > most_width || problem->rank > most_width) {
        arena->overflow = true;
        return sizes;
    }
    int64_t dim = sizes.dim_padded = hla_round_up(problem->dim, HLA_TILE_COLUMNS);
    int64_t rank = sizes.rank_padded = hla_round_up(problem->rank, HLA_TILE_COLUMNS);
    sizes.blocks = (problem->tokens - 1) / TOKEN_BLOCK + 1;
    int64_t chunks = (LEAST_UNITS - 1) / hla_smaller(heads, LEAST_UNITS) + 1;
    if (__builtin_mul_overflow(sizes.blocks, problem->batch, &sizes.all_blocks)) arena->overflow = true;
    sizes.chunks = hla_smaller(chunks, sizes.all_blocks);
    sizes.sums_floats = (rank + dim) * (dim + 1);
    const size_t block = TOKEN_BLOCK * sizeof(float);
    sizes.weight = hla_arena_take(arena, heads, (size_t)(rank * sizes.dim) * sizeof(float));
    sizes.bias = hla_arena_take(arena, heads, (size_t)rank * sizeof(float));
    sizes.hidden_weight = hla_arena_take(arena, heads, (size_t)(dim * sizes.dim) * sizeof(float));
    sizes.hidden_bias = hla_arena_take(arena, heads, (size_t)dim * sizeof(float));
    sizes.weight_rows = hla_arena_take(arena, heads, (size_t)(dim * sizes.rank) * sizeof(float));
    sizes.hidden_rows = hla_arena_take(arena, heads, (size_t)(dim * sizes.dim) * sizeof(float));
    sizes.sums = hla_arena_take(arena, heads * sizes.chunks, (size_t)sizes.sums_floats * sizeof(float));
    sizes.x = hla_arena_take(arena, all, (size_t)dim * block);
    sizes.hidden = hla_arena_take(arena, all, (size_t)dim * block);
    sizes.z = hla_arena_take(arena, all, (size_t)dim * block);
    sizes.dx = hla_arena_take(arena, all, (size_t)dim * block);
    sizes.u = hla_arena_take(arena, all, (size_t)rank * block);
    sizes.e = hla_arena_take(arena, all, (size_t)rank * block);
    sizes.panels = hla_arena_take(arena, all, (size_t)dim * block);
    sizes.run = hla_arena_take(arena, all, (size_t)sizes.sums_floats * sizeof(float));
    return sizes;
}

void HLA_ISA_NAME(hla_feature_map_measure_backward)(hla_arena *arena, const hla_feature_map_problem *problem,
                                                    int threads) {
    lay_out(arena, problem, threads);
}

static sums sums_at(const hla_feature_map_call *call, const layout *sizes, float *base) {
    int64_t dim = sizes->dim_padded, rank = sizes->rank_padded;
    return (sums){.weight = base,
                  .bias = base + rank * dim,
                  .hidden_weight = base + rank * (dim + 1),
                  .hidden_bias = base + rank * (dim + 1) + dim * dim,
                  .floats = call->weights.hidden_weight ? sizes->sums_floats : rank * (dim + 1)};
}

/* Pointers into one thread's scratch. */
typedef struct scratch {
    float *x, *hidden, *z, *dx, *u, *e, *panels;
    sums run;
} scratch;

static scratch scratch_of(const hla_feature_map_call *call, const layout *sizes, int64_t me) {
    int64_t wide = me * TOKEN_BLOCK * sizes->dim_padded, narrow = me * TOKEN_BLOCK * sizes->rank_padded;
    scratch own = {.x = sizes->x + wide,
                   .hidden = sizes->hidden + wide,
                   .z = sizes->z + wide,
                   .dx = sizes->dx + wide,
                   .u = sizes->u + narrow,
                   .e = sizes->e + narrow,
                   .panels = sizes->panels + wide,
                   .run = sums_at(call, sizes, sizes->run + me * sizes->sums_floats)};
    /* the columns that pad D to a whole panel stay zero */
    memset(own.x, 0, (size_t)(TOKEN_BLOCK * sizes->dim_padded) * sizeof(float));
    memset(own.hidden, 0, (size_t)(TOKEN_BLOCK * sizes->dim_padded) * sizeof(float));
    return own;
}

/* One head's matrix [rows,dim] into panels of COLUMNS columns; missing columns are zero. */
static void pack_rows(float *panels, const float *matrix, int64_t rows, int64_t dim) {
    for (int64_t x = 0; x < dim; x += HLA_TILE_COLUMNS) {
        int64_t width = hla_smaller(dim - x, HLA_TILE_COLUMNS);
        for (int64_t i = 0; i < rows; i++, panels += HLA_TILE_COLUMNS) {
            memcpy(panels, matrix + i * dim + x, (size_t)width * sizeof *panels);
            memset(panels + width, 0, (size_t)(HLA_TILE_COLUMNS - width) * sizeof *panels);
        }
    }
}

static void pack_head(const hla_feature_map_call *call, const layout *sizes, int64_t h) {
    const hla_feature_map_weights *weights = &call->weights;
    const int64_t dim = sizes->dim, rank = sizes->rank;
    /* a padding feature at minus infinity counts neither in a maximum nor in a sum of exponentials */
    hla_activation activation = call->problem.activation;
    float pad = activation == HLA_ACTIVATION_EXP || activation == HLA_ACTIVATION_SOFTMAX ? -INFINITY : 0;
    const float *weight = weights->weight + h * rank * dim;
    pack(sizes->weight + h * sizes->rank_padded * dim, sizes->bias + h * sizes->rank_padded, weight,
         weights->bias ? weights->bias + h * rank : NULL, rank, dim, pad);
    pack_rows(sizes->weight_rows + h * sizes->dim_padded * rank, weight, rank, dim);
    if (!weights->hidden_weight) return;
    const float *hidden_weight = weights->hidden_weight + h * dim * dim;
    pack(sizes->hidden_weight + h * sizes->dim_padded * dim, sizes->hidden_bias + h * sizes->dim_padded, hidden_weight,
         weights->hidden_bias ? weights->hidden_bias + h * dim : NULL, dim, dim, 0);
    pack_rows(sizes->hidden_rows + h * sizes->dim_padded * dim, hidden_weight, dim, dim);
}

/* Derivatives of one row: u = row + bias; e = dL/dy, zero in the padding, becomes dL/du. */

/* x where u > 0, else 0. */
HLA_INLINE hla_vector where_positive(hla_vector u, hla_vector x) {
    typedef int32_t bits __attribute__((vector_size(4 * HLA_VECTOR_WIDTH)));
    return (hla_vector)((bits)(u > hla_vector_zero()) & (bits)x);
}

typedef hla_vector elementwise(hla_vector e, hla_vector u, hla_vector shift);

HLA_INLINE hla_vector relu_of(hla_vector e, hla_vector u, hla_vector shift) {
    (void)shift;
    return where_positive(u, e);
}

HLA_INLINE hla_vector elu1_of(hla_vector e, hla_vector u, hla_vector shift) {
    (void)shift;
    return hla_vector_multiply(e, hla_vector_exp(hla_vector_smaller(hla_vector_zero(), u)));
}

HLA_INLINE hla_vector softplus_of(hla_vector e, hla_vector u, hla_vector shift) {
    (void)shift;
    return hla_vector_divide(e, hla_vector_add(hla_vector_set(1), hla_vector_exp(hla_vector_negate(u))));
}

HLA_INLINE hla_vector exponential_of(hla_vector e, hla_vector u, hla_vector shift) {
    return hla_vector_multiply(e, hla_vector_exp(hla_vector_subtract(u, shift)));
}

HLA_INLINE hla_vector square_of(hla_vector e, hla_vector u, hla_vector shift) {
    (void)shift;
    return hla_vector_multiply(e, hla_vector_add(u, u));
}

/* e = f(e, u + bias, shift); returns the sum. Called with a constant f, which is inlined. */
HLA_INLINE float map_row(float *e, const float *u, const float *bias, int64_t padded, float shift, elementwise *f) {
    hla_vector sum = hla_vector_zero();
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH) {
        hla_vector biased = hla_vector_add(hla_vector_load(u + r), hla_vector_load(bias + r));
        hla_vector du = f(hla_vector_load(e + r), biased, hla_vector_set(shift));
        hla_vector_store(e + r, du);
        sum = hla_vector_add(sum, du);
    }
    return hla_vector_sum(sum);
}

static float largest_of(const float *u, const float *bias, int64_t padded) {
    hla_vector largest = hla_vector_set(-FLT_MAX);
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH)
        largest = hla_vector_larger(hla_vector_add(hla_vector_load(u + r), hla_vector_load(bias + r)), largest);
    return hla_vector_largest(largest);
}

static void relu(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    map_row(e, u, bias, padded, 0, relu_of);
}

static void elu1(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    map_row(e, u, bias, padded, 0, elu1_of);
}

static void softplus(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    map_row(e, u, bias, padded, 0, softplus_of);
}

static void square(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    map_row(e, u, bias, padded, 0, square_of);
}

static void identity(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)e, (void)u, (void)bias, (void)padded, (void)problem;
}

/* A query's shift is its own largest u, whose gradient is -sum_r y_r e_r; the first such feature takes it. */
static void exponential(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    float shift = problem->is_query ? largest_of(u, bias, padded) : problem->shift;
    float sum = map_row(e, u, bias, padded, shift, exponential_of);
    if (!problem->is_query) return;
    int64_t place = 0;
    while (place < problem->rank && u[place] + bias[place] != shift)
        place++;
    if (place < problem->rank) e[place] -= sum;
}

/* y_r (e_r - sum_s y_s e_s), y = softmax(u), which replaces u. */
static void softmax(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem) {
    (void)problem;
    hla_vector shift = hla_vector_set(largest_of(u, bias, padded)), total = hla_vector_zero(), sum = hla_vector_zero();
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH) {
        hla_vector biased = hla_vector_add(hla_vector_load(u + r), hla_vector_load(bias + r));
        hla_vector y = hla_vector_exp(hla_vector_subtract(biased, shift));
        hla_vector_store(u + r, y);
        total = hla_vector_add(total, y);
        sum = hla_vector_multiply_add(y, hla_vector_load(e + r), sum);
    }
    float factor = 1 / hla_vector_sum(total);
    hla_vector mean = hla_vector_set(hla_vector_sum(sum) * factor);
    for (int64_t r = 0; r < padded; r += HLA_VECTOR_WIDTH) {
        hla_vector y = hla_vector_multiply(hla_vector_load(u + r), hla_vector_set(factor));
        hla_vector_store(e + r, hla_vector_multiply(y, hla_vector_subtract(hla_vector_load(e + r), mean)));
    }
}

typedef void derivative(float *e, float *u, const float *bias, int64_t padded, const hla_feature_map_problem *problem);
static derivative *const derivatives[HLA_ACTIVATIONS] = {relu, elu1, softplus, exponential, softmax, square, identity};

/* Rows first ... first + tokens - 1 of head h as floats; rows up to a whole strip, and columns up to padded, zero. */
static void load_block(float *rows, int64_t row, int64_t padded, const hla_tensor *in, int64_t b, int64_t h,
                       int64_t first, int64_t tokens) {
    int64_t width = in->shape[3], strips = hla_round_up(tokens, HLA_TILE_ROWS);
    for (int64_t t = 0; t < tokens; t++) {
        hla_load_floats(rows + t * row, hla_tensor_row(in, b, first + t, h), in->dtype, width, in->stride[3]);
        memset(rows + t * row + width, 0, (size_t)(padded - width) * sizeof *rows);
    }
    memset(rows + tokens * row, 0, (size_t)((strips - tokens) * row) * sizeof *rows);
}

/* z += bias, hidden = x + relu(z) */
static void finish_hidden(float *hidden, float *z, const float *x, const float *bias, int64_t row, int64_t dim,
                          int64_t tokens) {
    for (int64_t t = 0; t < tokens; t++) {
        for (int64_t i = t * row; i < t * row + dim; i += HLA_VECTOR_WIDTH) {
            hla_vector u = hla_vector_add(hla_vector_load(z + i), hla_vector_load(bias + i - t * row));
            hla_vector relu_u = hla_vector_larger(hla_vector_zero(), u);
            hla_vector_store(z + i, u);
            hla_vector_store(hidden + i, hla_vector_add(hla_vector_load(x + i), relu_u));
        }
    }
}

/* weight [rows][D] += a^T in and bias [rows] += a's sum, over the tokens of a block; a [tokens][a_row], in [tokens][D],
 * which is copied into panels. */
static void add_outer(float *weight, float *bias, const float *a, int64_t a_row, const float *in, float *panels,
                      int64_t rows, const layout *sizes, int64_t tokens) {
    const int64_t row = sizes->dim_padded, dim = sizes->dim;
    for (int64_t x = 0; x < dim; x += HLA_TILE_COLUMNS) {
        for (int64_t t = 0; t < tokens; t++)
            memcpy(panels + t * HLA_TILE_COLUMNS, in + t * row + x, HLA_TILE_COLUMNS * sizeof *panels);
        for (int64_t r = 0; r < rows; r += HLA_TILE_ROWS) {
            float *c = weight + r * row + x;
            if (dim - x > HLA_VECTOR_WIDTH) {
                hla_tile(c, row, a + r, 1, a_row, panels, tokens, 2, HLA_TILE_ADD);
            } else {
                hla_tile(c, row, a + r, 1, a_row, panels, tokens, 1, HLA_TILE_ADD);
            }
        }
    }
    for (int64_t r = 0; r < rows; r += HLA_VECTOR_WIDTH) {
        hla_vector sum = hla_vector_zero();
        for (int64_t t = 0; t < tokens; t++)
            sum = hla_vector_add(sum, hla_vector_load(a + t * a_row + r));
        hla_vector_store(bias + r, hla_vector_add(hla_vector_load(bias + r), sum));
    }
}

/* From du = e: dx of a block, and what it gives to the hidden layer's gradients. */
static void differentiate_input(const hla_feature_map_call *call, const layout *sizes, const scratch *own, int64_t b,
                                int64_t h, int64_t first, int64_t tokens) {
    const hla_feature_map_weight_gradients *wanted = &call->gradients;
    const int64_t dim = sizes->dim, row = sizes->dim_padded, rank = sizes->rank;
    const hla_tensor *dx = call->dx;
    project(own->dx, row, own->e, sizes->rank_padded, sizes->weight_rows + h * row * rank, dim, rank, tokens,
            HLA_TILE_STORE);
    if (call->weights.hidden_weight) {
        for (int64_t t = 0; t < tokens; t++) {
            for (int64_t i = t * row; i < t * row + dim; i += HLA_VECTOR_WIDTH)
                hla_vector_store(own->z + i, where_positive(hla_vector_load(own->z + i), hla_vector_load(own->dx + i)));
        }
        if (wanted->hidden_weight || wanted->hidden_bias) {
            add_outer(own->run.hidden_weight, own->run.hidden_bias, own->z, row, own->x, own->panels, dim, sizes,
                      tokens);
        }
        if (dx) project(own->dx, row, own->z, row, sizes->hidden_rows + h * row * dim, dim, dim, tokens, HLA_TILE_ADD);
    }
    if (dx) turn_rows(own->dx, row, &call->problem, first, tokens, -1);
    for (int64_t t = 0; dx && t < tokens; t++)
        hla_store_floats(hla_tensor_row(dx, b, first + t, h), dx->dtype, dim, dx->stride[3], own->dx + t * row);
}

/* One block of tokens of one head; weight gradients are added to own->run. */
static void differentiate_block(const hla_feature_map_call *call, const layout *sizes, const scratch *own, int64_t b,
                                int64_t h, int64_t first) {
    const hla_feature_map_weight_gradients *wanted = &call->gradients;
    const int64_t dim = sizes->dim, row = sizes->dim_padded, rank = sizes->rank, rank_row = sizes->rank_padded;
    const int64_t tokens = hla_smaller(call->problem.tokens - first, TOKEN_BLOCK);
    const int64_t features = hla_round_up(rank, HLA_VECTOR_WIDTH);
    const float *bias = sizes->bias + h * rank_row, *hidden = own->x;
    load_block(own->x, row, dim, call->x, b, h, first, tokens);
    turn_rows(own->x, row, &call->problem, first, tokens, 1);
    load_block(own->e, rank_row, features, call->out, b, h, first, tokens);
    if (call->weights.hidden_weight) {
        project(own->z, row, own->x, row, sizes->hidden_weight + h * row * dim, dim, dim, tokens, HLA_TILE_STORE);
        finish_hidden(own->hidden, own->z, own->x, sizes->hidden_bias + h * row, row, dim,
                      hla_round_up(tokens, HLA_TILE_ROWS));
        hidden = own->hidden;
    }
    project(own->u, rank_row, hidden, row, sizes->weight + h * rank_row * dim, rank, dim, tokens, HLA_TILE_STORE);
    for (int64_t t = 0; t < tokens; t++) {
        derivatives[call->problem.activation](own->e + t * rank_row, own->u + t * rank_row, bias, features,
                                              &call->problem);
    }
    if (wanted->weight || wanted->bias)
        add_outer(own->run.weight, own->run.bias, own->e, rank_row, hidden, own->panels, rank, sizes, tokens);
    if (call->dx || wanted->hidden_weight || wanted->hidden_bias)
        differentiate_input(call, sizes, own, b, h, first, tokens);
}

/* to += from, floats a multiple of the vector width; from becomes zero. */
static void move_sums(float *to, float *from, int64_t floats) {
    for (int64_t i = 0; i < floats; i += HLA_VECTOR_WIDTH) {
        hla_vector_store(to + i, hla_vector_add(hla_vector_load(to + i), hla_vector_load(from + i)));
        hla_vector_store(from + i, hla_vector_zero());
    }
}

static void differentiate_chunk(const hla_feature_map_call *call, const layout *sizes, const scratch *own, int64_t h,
                                int64_t chunk) {
    float *total = sizes->sums + (h * sizes->chunks + chunk) * sizes->sums_floats;
    int64_t each = sizes->all_blocks / sizes->chunks, more = sizes->all_blocks % sizes->chunks;
    int64_t first = chunk * each + hla_smaller(chunk, more), end = first + each + (chunk < more);
    memset(total, 0, (size_t)own->run.floats * sizeof *total);
    memset(own->run.weight, 0, (size_t)own->run.floats * sizeof *total);
    for (int64_t i = first; i < end; i++) {
        differentiate_block(call, sizes, own, i / sizes->blocks, h, i % sizes->blocks * TOKEN_BLOCK);
        if ((i - first) % RUN == RUN - 1) move_sums(total, own->run.weight, own->run.floats);
    }
    move_sums(total, own->run.weight, own->run.floats);
}

/* gradient [H][rows][width] of head h from sums whose rows lie sums_row apart. */
static void store_head(float *gradient, int64_t h, const float *from, int64_t sums_row, int64_t rows, int64_t width) {
    for (int64_t i = 0; gradient && i < rows; i++)
        memcpy(gradient + (h * rows + i) * width, from + i * sums_row, (size_t)width * sizeof *from);
}

/* The sums of all chunks of a head, in their order. */
static void finish_head(const hla_feature_map_call *call, const layout *sizes, int64_t h) {
    const int64_t dim = sizes->dim, row = sizes->dim_padded, rank = sizes->rank;
    float *base = sizes->sums + h * sizes->chunks * sizes->sums_floats;
    const sums total = sums_at(call, sizes, base);
    for (int64_t chunk = 1; chunk < sizes->chunks; chunk++)
        move_sums(base, base + chunk * sizes->sums_floats, total.floats);
    store_head(call->gradients.weight, h, total.weight, row, rank, dim);
    store_head(call->gradients.bias, h, total.bias, 0, 1, rank);
    store_head(call->gradients.hidden_weight, h, total.hidden_weight, row, dim, dim);
    store_head(call->gradients.hidden_bias, h, total.hidden_bias, 0, 1, dim);
}

hla_status HLA_ISA_NAME(hla_feature_map_run_backward)(const hla_feature_map_call *call) {
    hla_arena arena = {.base = call->workspace};
    const layout sizes = lay_out(&arena, &call->problem, call->threads);
    const int64_t heads = call->problem.heads, units = heads * sizes.chunks;
#pragma omp parallel num_threads(hla_team_size(call->threads, units, 1))
    {
        const scratch own = scratch_of(call, &sizes, omp_get_thread_num());
#pragma omp for schedule(static)
        for (int64_t h = 0; h < heads; h++) {
            pack_head(call, &sizes, h);
        }
        /* heads fastest: in [B,T,H,D] they lie side by side */
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < units; unit++) {
            differentiate_chunk(call, &sizes, &own, unit % heads, unit / heads);
        }
#pragma omp for schedule(static)
        for (int64_t h = 0; h < heads; h++) {
            finish_head(call, &sizes, h);
        }
    }
    return HLA_OK;
}
