/* The streaming state for few tokens: one pass over the array, whose rows are the features. Compiled once per
 * instruction set.
 *
 *     append   S[f][x] += phi[f] v[x]          x = 0 ... V, v[V] = 1
 *     query    n[x] = sum_f phi[f] S[f][x]     the denominator is n[V]
 *
 * The rows are cut into ranges that do not depend on the number of threads. Within a range a block of rows that fits
 * the first-level cache meets all tokens, in order, before the next one: memory is read and written once, however many
 * tokens there are. Queries leave partial sums for each range, which are added in order at the end.
 */
#include "attention/ops/hadamard/cpu.h"
#include "attention/ops/hadamard/stream.h"

#include <omp.h>

enum {
    ROWS = 32,                /* a block: 16 KB at V = 128; sums of that length are added up by the next level */
    RANGE_BYTES = 256 << 10,  /* of a range, at most */
    PARALLEL_BYTES = 1 << 20, /* of state; below that, waking other threads takes longer than it saves */
    COLUMNS = 8               /* vectors of a row kept in registers */
};

typedef struct layout {
    int64_t width, row; /* V + 1, and rounded up */
    int64_t factor_row; /* sum of ranks, rounded up */
    int64_t rank;       /* R */
    int64_t group;      /* query heads a key head */
    int64_t pairs;      /* batch entries x key heads */
    int64_t range, ranges;
    float *partial;       /* [pairs][ranges][tokens][group][row] */
    char *scratch;        /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} layout;

/* Of one thread: the tokens of one key head in float. */
typedef struct own_memory {
    float *k; /* [tokens][factor_row], one factor after the other */
    float *v; /* [tokens][row] */
    float *q; /* [tokens][group][factor_row] */
} own_memory;

static own_memory carve_own(hla_arena *arena, const layout *sizes, int64_t tokens) {
    own_memory own;
    own.k = hla_arena_take(arena, saturating_product(tokens, sizes->factor_row), sizeof(float));
    own.v = hla_arena_take(arena, saturating_product(tokens, sizes->row), sizeof(float));
    own.q = hla_arena_take(arena, saturating_product(tokens * sizes->group, sizes->factor_row), sizeof(float));
    return own;
}

/* A power of two of ranges: threads are, most often. */
static void cut_ranges(layout *sizes) {
    int64_t bytes = saturating_product(sizes->rank * sizes->width, sizeof(float));
    int64_t ranges = 1;
    while (bytes / ranges > RANGE_BYTES && ranges * ROWS < sizes->rank)
        ranges *= 2;
    sizes->range = hla_round_up((sizes->rank + ranges - 1) / ranges, ROWS);
    sizes->ranges = (sizes->rank + sizes->range - 1) / sizes->range;
}

static layout lay_out(hla_arena *arena, const hla_hadamard_problem *problem, int64_t tokens, int threads) {
    const int64_t unit = HLA_ALIGNMENT / sizeof(float);
    layout sizes = {.width = problem->value_dim + 1, .rank = hla_hadamard_state_rank(problem)};
    sizes.row = hla_round_up(sizes.width, unit);
    for (int p = 0; p < problem->factors; p++)
        sizes.factor_row += problem->rank[p];
    sizes.factor_row = hla_round_up(sizes.factor_row, unit);
    sizes.group = problem->heads / problem->kv_heads;
    sizes.pairs = problem->batch * problem->kv_heads;
    cut_ranges(&sizes);
    int64_t rows = saturating_product(problem->batch * problem->heads, saturating_product(sizes.ranges, tokens));
    sizes.partial = hla_arena_take(arena, saturating_product(rows, sizes.row), sizeof(float));
    hla_arena measured = {0};
    carve_own(&measured, &sizes, tokens);
    arena->overflow |= measured.overflow;
    sizes.scratch_size = (int64_t)measured.used;
    sizes.scratch = hla_arena_take(arena, sizes.scratch_size, (size_t)threads);
    return sizes;
}

/* ---- a block of rows ---- */

/* phi[0 ... count) = features first ... first + count - 1; factors one after the other, the last one fastest. */
static void expand(float *restrict phi, const float *restrict factors, const hla_hadamard_problem *problem,
                   int64_t first, int64_t count) {
    int last = problem->factors - 1;
    const float *row[HLA_MAX_FACTORS] = {0};
    for (int p = 0; p <= last; p++) {
        row[p] = factors;
        factors += problem->rank[p];
    }
    int64_t digit[HLA_MAX_FACTORS] = {0};
    for (int p = last; p >= 0; p--) {
        digit[p] = first % problem->rank[p];
        first /= problem->rank[p];
    }
    for (int64_t done = 0, width; done < count; done += width) {
        float product = 1;
        for (int p = 0; p < last; p++)
            product *= row[p][digit[p]];
        const float *fastest = row[last] + digit[last];
        width = hla_smaller(problem->rank[last] - digit[last], count - done);
        for (int64_t i = 0; i < width; i++)
            phi[done + i] = product * fastest[i];
        digit[last] = 0;
        for (int p = last - 1; p >= 0 && ++digit[p] == problem->rank[p]; p--)
            digit[p] = 0;
    }
}

/* state[r][x] += phi[r] v[x] for `vectors` vectors of columns, a constant */
HLA_INLINE void append_columns(float *restrict state, int64_t width, const float *restrict v, const float *restrict phi,
                               int64_t rows, int vectors) {
    hla_vector value[COLUMNS];
    HLA_UNROLL(8)
    for (int i = 0; i < vectors; i++)
        value[i] = hla_vector_load(v + i * HLA_VECTOR_WIDTH);
    for (int64_t r = 0; r < rows; r++, state += width) {
        hla_vector x = hla_vector_set(phi[r]);
        HLA_UNROLL(8)
        for (int i = 0; i < vectors; i++) {
            float *to = state + i * HLA_VECTOR_WIDTH;
            hla_vector_store(to, hla_vector_multiply_add(x, value[i], hla_vector_load(to)));
        }
    }
}

static void append_block(float *restrict state, int64_t width, const float *restrict v, const float *restrict phi,
                         int64_t rows) {
    int64_t x = 0;
    for (; x + COLUMNS * HLA_VECTOR_WIDTH <= width; x += COLUMNS * HLA_VECTOR_WIDTH)
        append_columns(state + x, width, v + x, phi, rows, COLUMNS);
    if (x + 4 * HLA_VECTOR_WIDTH <= width) {
        append_columns(state + x, width, v + x, phi, rows, 4);
        x += 4 * HLA_VECTOR_WIDTH;
    }
    for (; x + HLA_VECTOR_WIDTH <= width; x += HLA_VECTOR_WIDTH)
        append_columns(state + x, width, v + x, phi, rows, 1);
    for (int64_t r = 0; r < rows && x < width; r++) {
        for (int64_t column = x; column < width; column++)
            state[r * width + column] += phi[r] * v[column];
    }
}

/* sums[x] += sum_r phi[r] state[r][x] likewise */
HLA_INLINE void query_columns(float *restrict sums, const float *restrict state, int64_t width,
                              const float *restrict phi, int64_t rows, int vectors) {
    hla_vector sum[COLUMNS];
    HLA_UNROLL(8)
    for (int i = 0; i < vectors; i++)
        sum[i] = hla_vector_zero();
    for (int64_t r = 0; r < rows; r++, state += width) {
        hla_vector x = hla_vector_set(phi[r]);
        HLA_UNROLL(8)
        for (int i = 0; i < vectors; i++)
            sum[i] = hla_vector_multiply_add(x, hla_vector_load(state + i * HLA_VECTOR_WIDTH), sum[i]);
    }
    HLA_UNROLL(8)
    for (int i = 0; i < vectors; i++) {
        float *to = sums + i * HLA_VECTOR_WIDTH;
        hla_vector_store(to, hla_vector_add(hla_vector_load(to), sum[i]));
    }
}

/* One column, in four sums that do not wait for each other. */
static float query_column(const float *restrict state, int64_t width, const float *restrict phi, int64_t rows) {
    float sum[4] = {0};
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) {
        for (int i = 0; i < 4; i++)
            sum[i] += phi[r + i] * state[(r + i) * width];
    }
    for (; r < rows; r++)
        sum[r % 4] += phi[r] * state[r * width];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void query_block(float *restrict sums, const float *restrict state, int64_t width, const float *restrict phi,
                        int64_t rows) {
    int64_t x = 0;
    for (; x + COLUMNS * HLA_VECTOR_WIDTH <= width; x += COLUMNS * HLA_VECTOR_WIDTH)
        query_columns(sums + x, state + x, width, phi, rows, COLUMNS);
    if (x + 4 * HLA_VECTOR_WIDTH <= width) {
        query_columns(sums + x, state + x, width, phi, rows, 4);
        x += 4 * HLA_VECTOR_WIDTH;
    }
    for (; x + HLA_VECTOR_WIDTH <= width; x += HLA_VECTOR_WIDTH)
        query_columns(sums + x, state + x, width, phi, rows, 1);
    for (; x < width; x++)
        sums[x] += query_column(state + x, width, phi, rows);
}

/* ---- a range of one key head ---- */

/* to = the factors of token t, head h, one after the other */
static void load_factors(float *to, const hla_tensor *features, const hla_hadamard_problem *problem, int64_t b,
                         int64_t t, int64_t h) {
    for (int p = 0; p < problem->factors; p++) {
        load_row(to, &features[p], b, t, h, 0, problem->rank[p]);
        to += problem->rank[p];
    }
}

static void load_tokens(const hla_stream_call *call, const layout *sizes, const own_memory *own, int64_t b,
                        int64_t kv) {
    const hla_hadamard_problem *problem = call->problem;
    for (int64_t t = 0; t < call->tokens; t++) {
        if (call->k_features) {
            float *v = own->v + t * sizes->row;
            load_factors(own->k + t * sizes->factor_row, call->k_features, problem, b, t, kv);
            load_row(v, call->v, b, t, kv, 0, problem->value_dim);
            v[problem->value_dim] = 1;
        }
        for (int64_t member = 0; call->q_features && member < sizes->group; member++) {
            float *q = own->q + (t * sizes->group + member) * sizes->factor_row;
            load_factors(q, call->q_features, problem, b, t, kv * sizes->group + member);
        }
    }
}

static float *partial_of(const hla_stream_call *call, const layout *sizes, int64_t pair, int64_t range, int64_t t,
                         int64_t member) {
    int64_t unit = (pair * sizes->ranges + range) * call->tokens + t;
    return sizes->partial + (unit * sizes->group + member) * sizes->row;
}

static void run_range(const hla_stream_call *call, const layout *sizes, const own_memory *own, int64_t pair,
                      int64_t range) {
    const hla_hadamard_problem *problem = call->problem;
    int64_t width = sizes->width, first = range * sizes->range, last = hla_smaller(first + sizes->range, sizes->rank);
    float *sums = partial_of(call, sizes, pair, range, 0, 0);
    load_tokens(call, sizes, own, pair / problem->kv_heads, pair % problem->kv_heads);
    if (call->q_features) memset(sums, 0, (size_t)(call->tokens * sizes->group * sizes->row) * sizeof *sums);
    for (int64_t f = first; f < last; f += ROWS) {
        int64_t rows = hla_smaller(ROWS, last - f);
        float phi[ROWS], *state = call->state + (pair * sizes->rank + f) * width;
        for (int64_t t = 0; t < call->tokens; t++) {
            if (call->k_features) {
                expand(phi, own->k + t * sizes->factor_row, problem, f, rows);
                append_block(state, width, own->v + t * sizes->row, phi, rows);
            }
            for (int64_t unit = t * sizes->group; call->q_features && unit < (t + 1) * sizes->group; unit++) {
                expand(phi, own->q + unit * sizes->factor_row, problem, f, rows);
                query_block(sums + unit * sizes->row, state, width, phi, rows);
            }
        }
    }
}

/* ---- whole ---- */

/* out[b,t,h,:] from the partial sums of all ranges, which are overwritten */
static void finish_row(const hla_stream_call *call, const layout *sizes, int64_t pair, int64_t t, int64_t member) {
    const hla_hadamard_problem *problem = call->problem;
    float *sums = partial_of(call, sizes, pair, 0, t, member);
    for (int64_t range = 1; range < sizes->ranges; range++) {
        const float *more = partial_of(call, sizes, pair, range, t, member);
        for (int64_t x = 0; x < sizes->width; x++)
            sums[x] += more[x];
    }
    float denominator = sums[problem->value_dim] + problem->epsilon;
    for (int64_t x = 0; x < problem->value_dim; x++) {
        float normalised = denominator != 0 ? sums[x] / denominator : 0;
        sums[x] = problem->normalised ? normalised : problem->scale * sums[x];
    }
    int64_t h = pair % problem->kv_heads * sizes->group + member;
    hla_store_floats(hla_tensor_row(call->out, pair / problem->kv_heads, t, h), problem->dtype, problem->value_dim,
                     call->out->stride[3], sums);
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int64_t tokens, int threads) {
    lay_out(arena, problem, tokens, threads);
}

static void run_unit(const hla_stream_call *call, const layout *sizes, int64_t unit, int thread) {
    hla_arena mine = {.base = sizes->scratch + thread * sizes->scratch_size};
    own_memory own = carve_own(&mine, sizes, call->tokens);
    run_range(call, sizes, &own, unit / sizes->ranges, unit % sizes->ranges);
}

static hla_status run(const hla_stream_call *call) {
    hla_arena arena = {.base = call->workspace};
    layout sizes = lay_out(&arena, call->problem, call->tokens, call->threads);
    int64_t units = sizes.pairs * sizes.ranges;
    int team = (int)hla_smaller(call->threads, units);
    if (team == 1 || units * sizes.range * sizes.width < PARALLEL_BYTES / (int64_t)sizeof(float)) {
        for (int64_t unit = 0; unit < units; unit++)
            run_unit(call, &sizes, unit, 0);
    } else {
        /* static: a thread meets the same part of the state in every call, in its own cache */
#pragma omp parallel for num_threads(team) schedule(static)
        for (int64_t unit = 0; unit < units; unit++)
            run_unit(call, &sizes, unit, omp_get_thread_num());
    }
    for (int64_t row = 0; call->out && row < sizes.pairs * call->tokens * sizes.group; row++) {
        int64_t pair = row / sizes.group / call->tokens;
        finish_row(call, &sizes, pair, row / sizes.group % call->tokens, row % sizes.group);
    }
    return HLA_OK;
}

extern const hla_stream_entry HLA_ISA_NAME(hla_stream);
const hla_stream_entry HLA_ISA_NAME(hla_stream) = {
    .isa = HLA_ISA_VALUE, .most_tokens = HLA_STREAM_TOKENS, .measure = measure, .run = run};
