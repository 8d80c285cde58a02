/* attention/ops/hadamard/state.h - the two products of the state form, on blocks of tokens. Included by sources
 * compiled once per instruction set.
 *
 *     build   S[f][x] += sum_t phi_t[f] y_t[x]     z[f] += sum_t phi_t[f] s_t
 *     query   n_t[x] = sum_f phi_t[f] S[f][x]      d_t = sum_f phi_t[f] z[f]
 *
 * Both are matrix products with phi, the Kronecker product of a token's factors, as an operand, and phi is never
 * stored: the factors are folded into two, an outer and an inner one, phi[o * R_inner + i] = outer[o] * inner[i], and a
 * small panel of phi that stays in the first-level cache is made right before the register tile reads it.
 *
 * S lies in feature blocks of BLOCK features, each [panel of V][BLOCK][HLA_TILE_COLUMNS]; z beside it.
 */
#ifndef HLA_OPS_HADAMARD_STATE_H
#define HLA_OPS_HADAMARD_STATE_H

#include "attention/ops/hadamard/cpu.h"
#include "attention/ops/hadamard/fold.h"

enum {
    TOKENS = 128,  /* tokens a block: a value panel (16 KB) and a phi panel (24 KB) share a 48 KB cache */
    FEATURES = 32, /* features a phi panel of the state */
    BLOCK = 128,   /* features a block of S; a panel of that height is 16 KB */
    STATE_ROW = FEATURES + HLA_VECTOR_WIDTH, /* a row is written by whole vectors and may overshoot */
    RANGE_BYTES = 512 << 10,                 /* of S that one pass over the tokens keeps in the second-level cache */
    CACHE_LINE = 64
};

/* Sizes that follow from a problem. */
typedef struct geometry {
    const hla_hadamard_problem *problem;
    fold folded;
    int64_t inner_row; /* floats of a padded row of inner features, read by whole vectors */
    int64_t value_panels;
    int64_t block_size; /* floats of S a feature block */
    int64_t state_size; /* floats of S a head */
    int64_t sum_size; /* floats of z a head: features up to a whole block, and what the tiles of gradient.h overread */
} geometry;

static geometry make_geometry(const hla_hadamard_problem *problem) {
    geometry g = {.problem = problem, .folded = make_fold(problem)};
    g.inner_row = hla_round_up(g.folded.inner, HLA_VECTOR_WIDTH) + HLA_VECTOR_WIDTH;
    g.value_panels = panel_count(problem->value_dim);
    g.block_size = g.value_panels * BLOCK * HLA_TILE_COLUMNS;
    int64_t blocks = hla_round_up(g.folded.state_rank, BLOCK) / BLOCK;
    g.state_size = saturating_product(blocks, g.block_size);
    g.sum_size = hla_round_up(g.folded.state_rank + HLA_TILE_ROWS * (g.folded.inner + 1), BLOCK);
    return g;
}

/* Tokens of one head: their factors, what is summed with them, and how. */
typedef struct token_rows {
    const hla_tensor *factors; /* P views */
    const hla_tensor *values;  /* y, [.,.,.,V]; NULL where only queried */
    int64_t b, h;
    int64_t first, count;     /* on the token axis; at most TOKENS where packed */
    const float *scales;      /* [count], multiply y_t; NULL: 1 */
    const float *sum_weights; /* [count], s_t; NULL: 1 */
} token_rows;

/* Rows to be asked of memory. */
typedef struct row_queue {
    const hla_tensor *factors, *values; /* values may be NULL, factors where there are none */
    int factor_count;
    int64_t token, last; /* token ... last - 1 are still to be asked for */
} row_queue;

/* What is wanted next, asked of memory a few rows at a time while others are computed with. */
typedef struct ahead {
    row_queue read;  /* the next block of tokens */
    row_queue write; /* where the results of this one go */
    int64_t b, h, per_step;
} ahead;

/* Of one thread. */
typedef struct scratch {
    ahead next;
    float *outer;        /* [TOKENS][R_outer] */
    float *inner;        /* [TOKENS][inner_row] */
    float *panel;        /* [TOKENS][STATE_ROW] of phi; querying: see query.h */
    float *values;       /* building: y, [panel of V][TOKENS][COLUMNS]; querying: n likewise */
    float *denominators; /* querying: d by lanes, [TOKENS][HLA_VECTOR_WIDTH] */
} scratch;

static scratch carve_scratch(hla_arena *arena, const geometry *g) {
    scratch own = {0};
    own.outer = hla_arena_take(arena, saturating_product(g->folded.outer, TOKENS), sizeof(float));
    own.inner = hla_arena_take(arena, saturating_product(g->inner_row, TOKENS), sizeof(float));
    own.panel = hla_arena_take(arena, TOKENS * STATE_ROW, sizeof(float));
    own.values = hla_arena_take(arena, saturating_product(g->value_panels, TOKENS * HLA_TILE_COLUMNS), sizeof(float));
    own.denominators = hla_arena_take(arena, TOKENS * HLA_VECTOR_WIDTH, sizeof(float));
    return own;
}

/* Where S of a feature begins, in memory that begins with a whole feature block. */
HLA_INLINE float *state_row(const geometry *g, float *state, int64_t feature) {
    return state + feature / BLOCK * g->block_size + feature % BLOCK * HLA_TILE_COLUMNS;
}

/* ---- features of a token ---- */

/* Grown from the back in place, last factor fastest. */
static void expand_factors(float *row, const fold *folded, int first, int last, const hla_tensor *factors, int64_t b,
                           int64_t t, int64_t h) {
    int64_t length = 1;
    row[0] = 1;
    for (int p = first; p < last; p++) {
        float next[HLA_MAX_RANK];
        const hla_tensor *factor = &factors[folded->order[p]];
        int64_t rank = factor->shape[3];
        load_row(next, factor, b, t, h, 0, rank);
        for (int64_t i = length - 1; i >= 0; i--) {
            float x = row[i];
            for (int64_t r = 0; r < rank; r++) {
                row[i * rank + r] = x * next[r];
            }
        }
        length *= rank;
    }
}

/* row[] = Kronecker product of factors order[first] ... order[last - 1] of token [b,t,h]; an empty product is 1. */
HLA_INLINE void expand_row(float *row, const fold *folded, int first, int last, const hla_tensor *factors, int64_t b,
                           int64_t t, int64_t h) {
    if (last - first == 1) {
        const hla_tensor *factor = &factors[folded->order[first]];
        load_row(row, factor, b, t, h, 0, factor->shape[3]);
    } else {
        expand_factors(row, folded, first, last, factors, b, t, h);
    }
}

HLA_INLINE void pack_inner_row(const geometry *g, float *to, const hla_tensor *factors, int64_t b, int64_t t,
                               int64_t h) {
    expand_row(to, &g->folded, g->folded.split, g->folded.factors, factors, b, t, h);
    for (int64_t i = g->folded.inner; i < g->inner_row; i++)
        to[i] = 0;
}

/* rows[t][0 ... rank) = factor of token first + t, where it is float32, contiguous and whole vectors long; else false.
 */
static bool copy_factor(float *rows, int64_t row, const hla_tensor *factor, const token_rows *tokens) {
    int64_t rank = factor->shape[3], step = factor->stride[1];
    if (factor->dtype != HLA_F32 || factor->stride[3] != 1 || rank % HLA_VECTOR_WIDTH != 0) return false;
    const float *from = hla_tensor_row(factor, tokens->b, tokens->first, tokens->h);
    for (int64_t t = 0; t < tokens->count; t++, rows += row, from += step) {
        for (int64_t r = 0; r < rank; r += HLA_VECTOR_WIDTH)
            hla_vector_store(rows + r, hla_vector_load(from + r));
    }
    return true;
}

/* own->outer and own->inner of a block of tokens. */
static void pack_factors(const geometry *g, const scratch *own, const token_rows *rows) {
    const fold *folded = &g->folded;
    bool copied = folded->factors == 2 && folded->split == 1 && folded->inner % HLA_VECTOR_WIDTH == 0 &&
                  copy_factor(own->outer, folded->outer, &rows->factors[folded->order[0]], rows) &&
                  copy_factor(own->inner, g->inner_row, &rows->factors[folded->order[1]], rows);
    for (int64_t t = 0; !copied && t < rows->count; t++) {
        float *outer = own->outer + t * folded->outer;
        expand_row(outer, folded, 0, folded->split, rows->factors, rows->b, rows->first + t, rows->h);
        pack_inner_row(g, own->inner + t * g->inner_row, rows->factors, rows->b, rows->first + t, rows->h);
    }
}

/* ---- reading ahead ---- */

/* Tokens first ... last - 1 of a head, at most a block, asked for in as many steps. */
static ahead plan_ahead(const geometry *g, const token_rows *rows, int64_t first, int64_t last, int64_t steps) {
    return (ahead){.read = {rows->factors, rows->values, g->folded.factors, first, last},
                   .b = rows->b,
                   .h = rows->h,
                   .per_step = (TOKENS + steps - 1) / steps};
}

/* And the rows that this block's tokens are going to be written to. */
static void plan_writes(ahead *next, const hla_tensor *factors, int factor_count, const hla_tensor *values,
                        const token_rows *rows) {
    next->write = (row_queue){factors, values, factor_count, rows->first, rows->first + rows->count};
}

/* Always inlined: gcc takes a function that does nothing but prefetch for one without effect and drops its calls. */
HLA_INLINE void fetch_row(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, bool write) {
    const char *row = hla_tensor_row(tensor, b, t, h);
    int64_t bytes = tensor->stride[3] == 1 ? tensor->shape[3] * hla_element_size(tensor->dtype) : 0;
    for (int64_t line = 0; line < bytes; line += CACHE_LINE) {
        if (write) {
            __builtin_prefetch(row + line, 1, 2);
        } else {
            __builtin_prefetch(row + line, 0, 2); /* into the second-level cache */
        }
    }
}

HLA_INLINE void fetch_rows(row_queue *queue, const ahead *next, bool write) {
    for (int64_t end = hla_smaller(queue->token + next->per_step, queue->last); queue->token < end; queue->token++) {
        for (int p = 0; p < queue->factor_count; p++)
            fetch_row(&queue->factors[p], next->b, queue->token, next->h, write);
        if (queue->values) fetch_row(queue->values, next->b, queue->token, next->h, write);
    }
}

/* One step, of which there is one before each register tile: a few rows then cost nothing, and a whole block at once
 * would wait as long as reading it. */
HLA_INLINE void fetch_ahead(ahead *next) {
    fetch_rows(&next->read, next, false);
    fetch_rows(&next->write, next, true);
}

/* ---- build ---- */

static void scale_values(const geometry *g, const scratch *own, const float *scales, int64_t count) {
    for (int64_t panel = 0; panel < g->value_panels; panel++) {
        float *row = own->values + panel * TOKENS * HLA_TILE_COLUMNS;
        for (int64_t t = 0; t < count; t++, row += HLA_TILE_COLUMNS) {
            for (int64_t x = 0; x < HLA_TILE_COLUMNS; x += HLA_VECTOR_WIDTH)
                hla_vector_store(row + x, hla_vector_multiply(hla_vector_set(scales[t]), hla_vector_load(row + x)));
        }
    }
}

static void pack_build(const geometry *g, const scratch *own, const token_rows *rows) {
    pack_factors(g, own, rows);
    pack_values(own->values, TOKENS, rows->values, rows->b, rows->h, rows->first, rows->count);
    if (rows->scales) scale_values(g, own, rows->scales, rows->count);
}

/* panel[t][0 ... width) = outer[t][0] * inner[t][0 ... width), in whole vectors */
HLA_INLINE void multiply_segment(const geometry *g, float *restrict panel, const float *restrict outer,
                                 const float *restrict inner, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; t++, panel += STATE_ROW, outer += g->folded.outer, inner += g->inner_row) {
        hla_vector x = hla_vector_set(*outer);
        for (int64_t i = 0; i < width; i += HLA_VECTOR_WIDTH) {
            hla_vector_store(panel + i, hla_vector_multiply(x, hla_vector_load(inner + i)));
        }
    }
}

/* own->panel = phi of features first ... first + count - 1; zeros up to the next whole vector. Where the inner index
 * wraps, a new segment starts, and its writes cover what the one before wrote too much. */
static void make_key_panel(const geometry *g, const scratch *own, int64_t first, int64_t count, int64_t tokens) {
    int64_t o = first / g->folded.inner, i = first % g->folded.inner;
    for (int64_t done = 0, width; done < count; done += width, o++, i = 0) {
        width = hla_smaller(g->folded.inner - i, count - done);
        float *panel = own->panel + done;
        const float *outer = own->outer + o, *inner = own->inner + i;
        multiply_segment(g, panel, outer, inner, tokens, width);
    }
    for (int64_t t = 0; t < tokens && count < FEATURES; t++) {
        hla_vector_store(own->panel + t * STATE_ROW + count, hla_vector_zero());
    }
}

/* A token's row of a panel, added to sum. inner_rank is a constant. */
HLA_INLINE void make_panel_row(float *restrict panel, const float *restrict outer, const float *restrict inner,
                               int64_t inner_rank, hla_vector *sum) {
    HLA_UNROLL(8)
    for (int f = 0; f < FEATURES; f += HLA_VECTOR_WIDTH) {
        hla_vector x = hla_vector_set(outer[f / inner_rank]), y = hla_vector_load(inner + f % inner_rank);
        hla_vector product = hla_vector_multiply(x, y);
        sum[f / HLA_VECTOR_WIDTH] = hla_vector_add(sum[f / HLA_VECTOR_WIDTH], product);
        hla_vector_store(panel + f, product);
    }
}

/* A whole panel at once, and its column sums added to z, for inner ranks that are whole vectors and divide FEATURES or
 * are divided by it. Even and odd tokens have sums of their own, so that two chains of additions hide their latency. */
HLA_INLINE void make_whole_panel(const geometry *g, const scratch *own, int64_t inner_rank, int64_t first,
                                 int64_t tokens, float *sums) {
    enum { VECTORS = FEATURES / HLA_VECTOR_WIDTH };
    int64_t outer_row = g->folded.outer, inner_row = g->inner_row, t = 0;
    const float *outer = own->outer + first / inner_rank, *inner = own->inner + first % inner_rank;
    float *panel = own->panel;
    hla_vector even[VECTORS], odd[VECTORS];
    HLA_UNROLL(8)
    for (int v = 0; v < VECTORS; v++)
        even[v] = odd[v] = hla_vector_zero();
    for (; t + 1 < tokens; t += 2, outer += 2 * outer_row, inner += 2 * inner_row, panel += 2 * STATE_ROW) {
        make_panel_row(panel, outer, inner, inner_rank, even);
        make_panel_row(panel + STATE_ROW, outer + outer_row, inner + inner_row, inner_rank, odd);
    }
    if (t < tokens) make_panel_row(panel, outer, inner, inner_rank, even);
    HLA_UNROLL(8)
    for (int v = 0; v < VECTORS; v++)
        hla_tile_finish(sums + v * HLA_VECTOR_WIDTH, hla_vector_add(even[v], odd[v]), HLA_TILE_ADD);
}

/* z[0 ... count) += column sums of the panel, in whole vectors. Two tokens at a time keep the adders busy. */
static void sum_panel(float *sums, const float *panel, int64_t count, int64_t tokens) {
    for (int64_t c = 0; c < count; c += HLA_VECTOR_WIDTH) {
        hla_vector even = hla_vector_zero(), odd = hla_vector_zero();
        int64_t t = 0;
        for (; t + 1 < tokens; t += 2) {
            even = hla_vector_add(even, hla_vector_load(panel + t * STATE_ROW + c));
            odd = hla_vector_add(odd, hla_vector_load(panel + (t + 1) * STATE_ROW + c));
        }
        if (t < tokens) even = hla_vector_add(even, hla_vector_load(panel + t * STATE_ROW + c));
        hla_tile_finish(sums + c, hla_vector_add(even, odd), HLA_TILE_ADD);
    }
}

/* The same with a weight a token. */
static void sum_weighted_panel(float *sums, const float *panel, int64_t count, int64_t tokens, const float *weights) {
    for (int64_t c = 0; c < count; c += HLA_VECTOR_WIDTH) {
        hla_vector sum = hla_vector_zero();
        for (int64_t t = 0; t < tokens; t++)
            sum = hla_vector_multiply_add(hla_vector_set(weights[t]), hla_vector_load(panel + t * STATE_ROW + c), sum);
        hla_tile_finish(sums + c, sum, HLA_TILE_ADD);
    }
}

/* own->panel = phi of features first ... first + count - 1, and its sums added to z, which begins there too. */
static void make_panel(const geometry *g, const scratch *own, int64_t first, int64_t count, const token_rows *rows,
                       float *sums) {
    bool whole = count == FEATURES && !rows->sum_weights;
    if (whole && g->folded.inner == 16) {
        make_whole_panel(g, own, 16, first, rows->count, sums);
    } else if (whole && g->folded.inner == 32) {
        make_whole_panel(g, own, 32, first, rows->count, sums);
    } else if (whole && g->folded.inner == 64) {
        make_whole_panel(g, own, 64, first, rows->count, sums);
    } else {
        make_key_panel(g, own, first, count, rows->count);
        if (rows->sum_weights) {
            sum_weighted_panel(sums, own->panel, count, rows->count, rows->sum_weights);
        } else {
            sum_panel(sums, own->panel, count, rows->count);
        }
    }
}

/* The register tile with A = phi of the state panel: rows are features, steps are tokens. */
static void build_half(float *c, const float *a, const float *b, int64_t steps) {
    hla_tile(c, HLA_TILE_COLUMNS, a, 1, STATE_ROW, b, steps, 1, HLA_TILE_ADD);
}
static void build_full(float *c, const float *a, const float *b, int64_t steps) {
    hla_tile(c, HLA_TILE_COLUMNS, a, 1, STATE_ROW, b, steps, 2, HLA_TILE_ADD);
}

/* Register tiles of one build_block. */
HLA_INLINE int64_t build_steps(const geometry *g, int64_t features) {
    return (features + HLA_TILE_ROWS - 1) / HLA_TILE_ROWS * g->value_panels;
}

/* Adds the tokens of pack_build to S and z of features first ... last - 1; state and sums begin with feature `start`.
 * first is a multiple of FEATURES. */
static void build_block(const geometry *g, scratch *own, float *state, float *sums, int64_t start, int64_t first,
                        int64_t last, const token_rows *rows) {
    for (int64_t f = first; f < last; f += FEATURES) {
        int64_t count = hla_smaller(FEATURES, last - f);
        make_panel(g, own, f, count, rows, sums + f - start);
        for (int64_t panel = 0; panel < g->value_panels; panel++) {
            bool full = panel_vectors(panel, g->problem->value_dim) == 2;
            float *to = state_row(g, state, f - start) + panel * BLOCK * HLA_TILE_COLUMNS;
            const float *values = own->values + panel * TOKENS * HLA_TILE_COLUMNS;
            for (int64_t row = 0; row < count; row += HLA_TILE_ROWS) {
                fetch_ahead(&own->next);
                (full ? build_full : build_half)(to + row * HLA_TILE_COLUMNS, own->panel + row, values, rows->count);
            }
        }
    }
}

/* ---- the caller's states, [R][V+1] with factor 1 slowest ---- */

/* Where feature f of the folded order begins in the caller's array. */
static int64_t caller_feature(const geometry *g, int64_t feature) {
    int64_t index[HLA_MAX_FACTORS] = {0}, place = 0;
    for (int p = g->folded.factors - 1; p >= 0; p--) {
        int64_t rank = g->problem->rank[g->folded.order[p]];
        index[g->folded.order[p]] = feature % rank;
        feature /= rank;
    }
    for (int p = 0; p < g->folded.factors; p++)
        place = place * g->problem->rank[p] + index[p];
    return place * (g->problem->value_dim + 1);
}

/* S and z of features first ... last - 1 = the caller's, or zero for NULL. All of the feature blocks' padding is zeroed
 * too: first is a multiple of BLOCK, last one or R. */
static void load_state(const geometry *g, float *state, float *sums, const float *from, int64_t first, int64_t last) {
    int64_t width = g->problem->value_dim, end = last == g->folded.state_rank ? g->sum_size : last;
    memset(state_row(g, state, first), 0,
           (size_t)((hla_round_up(last, BLOCK) - first) / BLOCK * g->block_size) * sizeof(float));
    memset(sums + first, 0, (size_t)(end - first) * sizeof(float));
    for (int64_t f = first; from && f < last; f++) {
        const float *row = from + caller_feature(g, f);
        float *to = state_row(g, state, f);
        for (int64_t x = 0; x < width; x++)
            to[x / HLA_TILE_COLUMNS * BLOCK * HLA_TILE_COLUMNS + x % HLA_TILE_COLUMNS] = row[x];
        sums[f] = row[width];
    }
}

static void store_state(const geometry *g, float *to, float *state, const float *sums, int64_t first, int64_t last) {
    int64_t width = g->problem->value_dim;
    for (int64_t f = first; f < last; f++) {
        float *row = to + caller_feature(g, f);
        const float *from = state_row(g, state, f);
        for (int64_t x = 0; x < width; x++)
            row[x] = from[x / HLA_TILE_COLUMNS * BLOCK * HLA_TILE_COLUMNS + x % HLA_TILE_COLUMNS];
        row[width] = sums[f];
    }
}

#endif
