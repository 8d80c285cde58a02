/* attention/ops/hadamard/gradient.h - the products of the backward pass, on blocks of tokens. Included by sources
 * compiled once per instruction set.
 *
 * With y_t the vector that goes with a token (the gradient of a query's output, the value of a key) and S the state of
 * the other side, the gradient of the token's features is u_t[f] = sum_x S[f][x] y_t[x], and with phi_t[f] = outer_t[o]
 * inner_t[i], f = o * R_inner + i,
 *
 *     douter_t[o] = sum_i u_t[f] inner_t[i]        dinner_t[i] = sum_o u_t[f] outer_t[o]
 *
 * Here tokens lie in the lanes of vectors: a panel holds HLA_TILE_COLUMNS tokens, [panel][row][HLA_TILE_COLUMNS] with a
 * row for each feature or column of y. A panel of u is made by the register tile, with S as its broadcast operand, and
 * is contracted at once.
 */
#ifndef HLA_OPS_HADAMARD_GRADIENT_H
#define HLA_OPS_HADAMARD_GRADIENT_H

#include "attention/ops/hadamard/state.h"

enum { PANELS = TOKENS / HLA_TILE_COLUMNS };

/* Tokens in lanes; those past the last one are zero. */
typedef struct lane_tokens {
    float *outer, *inner, *values; /* [PANELS][R_outer, R_inner, V][COLUMNS] */
} lane_tokens;

/* Tokens in rows; rows up to a whole register tile past the last one are zero. */
typedef struct row_tokens {
    float *outer, *inner, *values; /* [TOKENS][R_outer, R_inner, V] and some floats that may be read */
} row_tokens;

/* Sums over features for the tokens of a block, in lanes; numbers of rows are padded to whole register tiles. */
typedef struct fold_sums {
    float *outer, *inner; /* [PANELS][R_outer, R_inner][COLUMNS] */
} fold_sums;

/* Of one thread. */
typedef struct gradient_scratch {
    lane_tokens lane;
    row_tokens row;
    float *features;                                   /* one token's outer or inner row, and one of y */
    float *gradients, *products;                       /* u and phi, [BLOCK][COLUMNS] */
    float *outer_scores, *inner_scores, *value_scores; /* [TOKENS][COLUMNS] */
} gradient_scratch;

HLA_INLINE int64_t whole_tiles(int64_t rows) {
    return hla_round_up(rows, HLA_TILE_ROWS);
}

/* Floats of a fold_sums. */
HLA_INLINE int64_t fold_size(const geometry *g) {
    return (whole_tiles(g->folded.outer) + whole_tiles(g->folded.inner)) * TOKENS;
}

HLA_INLINE fold_sums place_fold(const geometry *g, float *memory) {
    return (fold_sums){memory, memory + whole_tiles(g->folded.outer) * TOKENS};
}

/* Floats of the values' gradient of a block, [PANELS][V up to whole panels][COLUMNS]. */
HLA_INLINE int64_t value_size(const geometry *g) {
    return g->value_panels * HLA_TILE_COLUMNS * TOKENS;
}

static float *take(hla_arena *arena, int64_t rows, int64_t columns) {
    return hla_arena_take(arena, saturating_product(rows, columns), sizeof(float));
}

static gradient_scratch carve_gradient(hla_arena *arena, const geometry *g) {
    int64_t outer = g->folded.outer, inner = g->folded.inner, width = g->problem->value_dim;
    gradient_scratch own;
    own.lane = (lane_tokens){take(arena, outer, TOKENS), take(arena, inner, TOKENS), take(arena, width, TOKENS)};
    own.row.outer = take(arena, outer, TOKENS + HLA_TILE_ROWS);
    own.row.inner = take(arena, inner, TOKENS + HLA_TILE_ROWS);
    own.row.values = take(arena, width, TOKENS + HLA_TILE_ROWS);
    own.features = take(arena, 1, hla_larger(hla_larger(outer, inner), width));
    own.gradients = take(arena, BLOCK, HLA_TILE_COLUMNS);
    own.products = take(arena, BLOCK, HLA_TILE_COLUMNS);
    own.outer_scores = take(arena, TOKENS, HLA_TILE_COLUMNS);
    own.inner_scores = take(arena, TOKENS, HLA_TILE_COLUMNS);
    own.value_scores = take(arena, TOKENS, HLA_TILE_COLUMNS);
    return own;
}

/* ---- packing ---- */

/* The Kronecker products of factors order[first] ... order[last - 1], of rank `rank`, into lanes; rows: where products
 * of several factors are made first, [TOKENS][rank]. */
static void pack_lane_factors(const geometry *g, float *lanes, float *rows, int64_t rank, int first, int last,
                              const token_rows *from) {
    if (last - first == 1) {
        pack_lane_rows(lanes, &from->factors[g->folded.order[first]], from->b, from->h, from->first, from->count);
        return;
    }
    const hla_tensor made = {rows, HLA_F32, {1, from->count, 1, rank}, {0, rank, 0, 1}};
    for (int64_t t = 0; t < from->count; t++)
        expand_row(rows + t * rank, &g->folded, first, last, from->factors, from->b, from->first + t, from->h);
    pack_lane_rows(lanes, &made, 0, 0, 0, from->count);
}

/* Overwrites own->row where a factor is a product of several. */
static void pack_lanes(const geometry *g, const gradient_scratch *own, const token_rows *from) {
    const fold *folded = &g->folded;
    pack_lane_factors(g, own->lane.outer, own->row.outer, folded->outer, 0, folded->split, from);
    pack_lane_factors(g, own->lane.inner, own->row.inner, folded->inner, folded->split, folded->factors, from);
    pack_lane_rows(own->lane.values, from->values, from->b, from->h, from->first, from->count);
}

/* from->scales multiply the values. */
static void pack_rows(const geometry *g, const gradient_scratch *own, const token_rows *from) {
    int64_t outer = g->folded.outer, inner = g->folded.inner, width = g->problem->value_dim, count = from->count;
    for (int64_t t = 0; t < count; t++) {
        int64_t token = from->first + t;
        float *values = own->row.values + t * width;
        expand_row(own->row.outer + t * outer, &g->folded, 0, g->folded.split, from->factors, from->b, token, from->h);
        expand_row(own->row.inner + t * inner, &g->folded, g->folded.split, g->folded.factors, from->factors, from->b,
                   token, from->h);
        load_row(values, from->values, from->b, token, from->h, 0, width);
        for (int64_t x = 0; from->scales && x < width; x++)
            values[x] *= from->scales[t];
    }
    memset(own->row.outer + count * outer, 0, (size_t)(HLA_TILE_ROWS * outer) * sizeof(float));
    memset(own->row.inner + count * inner, 0, (size_t)(HLA_TILE_ROWS * inner) * sizeof(float));
    memset(own->row.values + count * width, 0, (size_t)(HLA_TILE_ROWS * width) * sizeof(float));
}

/* ---- products with a state ---- */

/* u[i][.] = sum_x S[i][x] y[x][.] for the features i of a register tile, or z[i] + that. state: S of the first feature
 * in its feature block; values [width][COLUMNS]. */
static void contract_tile(float *restrict u, const float *restrict state, const float *restrict z,
                          const float *restrict values, int64_t width) {
    hla_vector sum[HLA_TILE_ROWS][2];
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++)
        sum[i][0] = sum[i][1] = z ? hla_vector_set(z[i]) : hla_vector_zero();
    for (int64_t first = 0; first < width; first += HLA_TILE_COLUMNS, state += BLOCK * HLA_TILE_COLUMNS) {
        int64_t steps = hla_smaller(HLA_TILE_COLUMNS, width - first);
        HLA_UNROLL(4)
        for (int64_t x = 0; x < steps; x++, values += HLA_TILE_COLUMNS) {
            hla_vector left = hla_vector_load(values), right = hla_vector_load(values + HLA_VECTOR_WIDTH);
            HLA_UNROLL(8)
            for (int i = 0; i < HLA_TILE_ROWS; i++) {
                hla_vector s = hla_vector_set(state[i * HLA_TILE_COLUMNS + x]);
                sum[i][0] = hla_vector_multiply_add(s, left, sum[i][0]);
                sum[i][1] = hla_vector_multiply_add(s, right, sum[i][1]);
            }
        }
    }
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++) {
        hla_vector_store(u + i * HLA_TILE_COLUMNS, sum[i][0]);
        hla_vector_store(u + i * HLA_TILE_COLUMNS + HLA_VECTOR_WIDTH, sum[i][1]);
    }
}

/* Adds to the sums of one panel what features first ... first + count - 1 contribute, whose gradients are u
 * [count][COLUMNS] or, u being NULL, z[f] for all tokens. */
HLA_INLINE void fold_gradients(const geometry *g, const float *u, const float *z, int64_t first, int64_t count,
                               const float *outer, const float *inner, float *outer_sums, float *inner_sums) {
    int64_t o = first / g->folded.inner, i = first % g->folded.inner;
    for (int64_t done = 0; done < count; o++, i = 0) {
        int64_t width = hla_smaller(g->folded.inner - i, count - done);
        float *outer_sum = outer_sums + o * HLA_TILE_COLUMNS;
        for (int64_t lane = 0; lane < HLA_TILE_COLUMNS; lane += HLA_VECTOR_WIDTH) {
            hla_vector x = hla_vector_load(outer + o * HLA_TILE_COLUMNS + lane);
            hla_vector sum = hla_vector_zero();
            for (int64_t k = 0; k < width; k++) {
                int64_t at = (i + k) * HLA_TILE_COLUMNS + lane;
                hla_vector gradient =
                    u ? hla_vector_load(u + (done + k) * HLA_TILE_COLUMNS + lane) : hla_vector_set(z[done + k]);
                sum = hla_vector_multiply_add(gradient, hla_vector_load(inner + at), sum);
                hla_tile_finish(inner_sums + at, hla_vector_multiply(gradient, x), HLA_TILE_ADD);
            }
            hla_tile_finish(outer_sum + lane, sum, HLA_TILE_ADD);
        }
        done += width;
    }
}

/* phi of features first ... first + count - 1 for the tokens of one panel, [count][COLUMNS] */
static void multiply_lanes(const geometry *g, float *restrict phi, const float *restrict outer,
                           const float *restrict inner, int64_t first, int64_t count) {
    int64_t o = first / g->folded.inner, i = first % g->folded.inner;
    for (int64_t f = 0; f < count; f++) {
        for (int64_t lane = 0; lane < HLA_TILE_COLUMNS; lane += HLA_VECTOR_WIDTH) {
            hla_vector x = hla_vector_load(outer + o * HLA_TILE_COLUMNS + lane);
            hla_vector y = hla_vector_load(inner + i * HLA_TILE_COLUMNS + lane);
            hla_vector_store(phi + f * HLA_TILE_COLUMNS + lane, hla_vector_multiply(x, y));
        }
        if (++i == g->folded.inner) i = 0, o++;
    }
}

/* Rows are columns of y, steps are features. */
static void value_tile(float *c, const float *state, const float *phi, int64_t features) {
    hla_tile(c, HLA_TILE_COLUMNS, state, 1, HLA_TILE_COLUMNS, phi, features, 2, HLA_TILE_ADD);
}

/* Register tiles, those of the values aside, of one contract_block. */
HLA_INLINE int64_t contract_steps(int64_t features, int64_t tokens) {
    return (features + HLA_TILE_ROWS - 1) / HLA_TILE_ROWS * panel_count(tokens);
}

/* What a block of packed lanes gets from features first ... last - 1 of a state (first a multiple of BLOCK), added to
 * `sums`, and
 *     queries (values NULL)   to z_sums the same with u_t[f] = z[f]
 *     keys (z_sums NULL)      u_t[f] = z[f] + ..., and values[x] = sum_f phi_t[f] S[f][x] */
static void contract_block(const geometry *g, const gradient_scratch *own, ahead *next, float *state, const float *z,
                           int64_t first, int64_t last, int64_t tokens, fold_sums sums, const fold_sums *z_sums,
                           float *values) {
    int64_t outer = g->folded.outer, inner = g->folded.inner, width = g->problem->value_dim;
    int64_t outer_rows = whole_tiles(outer), inner_rows = whole_tiles(inner),
            padded = g->value_panels * HLA_TILE_COLUMNS;
    for (int64_t f = first; f < last; f += BLOCK) {
        int64_t features = hla_smaller(BLOCK, last - f);
        float *block = state_row(g, state, f);
        for (int64_t panel = 0; panel < panel_count(tokens); panel++) {
            const float *lane_outer = own->lane.outer + panel * outer * HLA_TILE_COLUMNS;
            const float *lane_inner = own->lane.inner + panel * inner * HLA_TILE_COLUMNS;
            const float *lane_values = own->lane.values + panel * width * HLA_TILE_COLUMNS;
            int64_t outer_at = panel * outer_rows * HLA_TILE_COLUMNS, inner_at = panel * inner_rows * HLA_TILE_COLUMNS;
            for (int64_t row = 0; row < features; row += HLA_TILE_ROWS) {
                fetch_ahead(next);
                contract_tile(own->gradients + row * HLA_TILE_COLUMNS, block + row * HLA_TILE_COLUMNS,
                              z_sums ? NULL : z + f + row, lane_values, width);
            }
            fold_gradients(g, own->gradients, NULL, f, features, lane_outer, lane_inner, sums.outer + outer_at,
                           sums.inner + inner_at);
            if (z_sums) {
                fold_gradients(g, NULL, z + f, f, features, lane_outer, lane_inner, z_sums->outer + outer_at,
                               z_sums->inner + inner_at);
                continue;
            }
            multiply_lanes(g, own->products, lane_outer, lane_inner, f, features);
            for (int64_t x = 0; x < padded; x += HLA_TILE_ROWS) {
                const float *column = block + x / HLA_TILE_COLUMNS * BLOCK * HLA_TILE_COLUMNS + x % HLA_TILE_COLUMNS;
                value_tile(values + (panel * padded + x) * HLA_TILE_COLUMNS, column, own->products, features);
            }
        }
    }
}

/* ---- pairs within a block of a causal sequence: lanes against rows ---- */

/* Rows are tokens, steps are features or columns of y. */
static void pair_tile(float *c, const float *row, int64_t width, const float *lane) {
    hla_tile(c, HLA_TILE_COLUMNS, row, width, 1, lane, width, 2, HLA_TILE_STORE);
}

/* Rows are features or columns of y, steps are tokens; weights [tokens][COLUMNS]. */
static void pair_sum_tile(float *c, const float *row, int64_t width, const float *weights, int64_t tokens) {
    hla_tile(c, HLA_TILE_COLUMNS, row, 1, width, weights, tokens, 2, HLA_TILE_ADD);
}

/* Scores of rows first ... last - 1 against one panel of lanes: products of outer features, of inner features, of y.
 * Feature scores of pairs that do not see each other become zero: rows are keys, which lanes see up to their own
 * position, or (rows_later) queries, which see lanes from that on. first is a multiple of HLA_TILE_ROWS. */
static void score_pairs(const geometry *g, const gradient_scratch *own, int64_t panel, int64_t first, int64_t last,
                        bool rows_later) {
    int64_t outer = g->folded.outer, inner = g->folded.inner, width = g->problem->value_dim;
    for (int64_t row = first; row < last; row += HLA_TILE_ROWS) {
        int64_t at = row * HLA_TILE_COLUMNS;
        pair_tile(own->outer_scores + at, own->row.outer + row * outer, outer,
                  own->lane.outer + panel * outer * HLA_TILE_COLUMNS);
        pair_tile(own->inner_scores + at, own->row.inner + row * inner, inner,
                  own->lane.inner + panel * inner * HLA_TILE_COLUMNS);
        pair_tile(own->value_scores + at, own->row.values + row * width, width,
                  own->lane.values + panel * width * HLA_TILE_COLUMNS);
    }
    for (int64_t row = first; row < last; row++) {
        int64_t same = row - panel * HLA_TILE_COLUMNS; /* the lane at the row's own position */
        int64_t from = rows_later ? same + 1 : 0, to = rows_later ? HLA_TILE_COLUMNS : same;
        for (int64_t lane = hla_larger(from, 0); lane < hla_smaller(to, HLA_TILE_COLUMNS); lane++)
            own->outer_scores[row * HLA_TILE_COLUMNS + lane] = own->inner_scores[row * HLA_TILE_COLUMNS + lane] = 0;
    }
}

/* Adds the pairs' part of d and of sum_f phi u, one vector of each for the panel's left and right lanes. */
static void sum_pairs(const gradient_scratch *own, int64_t first, int64_t last, float *denominators, float *products) {
    for (int64_t lane = 0; lane < HLA_TILE_COLUMNS; lane += HLA_VECTOR_WIDTH) {
        hla_vector d = hla_vector_load(denominators + lane), n = hla_vector_load(products + lane);
        for (int64_t row = first; row < last; row++) {
            int64_t at = row * HLA_TILE_COLUMNS + lane;
            hla_vector score =
                hla_vector_multiply(hla_vector_load(own->outer_scores + at), hla_vector_load(own->inner_scores + at));
            d = hla_vector_add(d, score);
            n = hla_vector_multiply_add(score, hla_vector_load(own->value_scores + at), n);
        }
        hla_vector_store(denominators + lane, d);
        hla_vector_store(products + lane, n);
    }
}

/* Replaces the scores by what multiplies the rows: with dA the gradient of a pair's score (in value_scores),
 *     inner_scores = dA outer        outer_scores = dA inner        value_scores = outer inner, the score itself */
static void weigh_pairs(const gradient_scratch *own, int64_t first, int64_t last) {
    for (int64_t at = first * HLA_TILE_COLUMNS; at < last * HLA_TILE_COLUMNS; at += HLA_VECTOR_WIDTH) {
        hla_vector outer = hla_vector_load(own->outer_scores + at), inner = hla_vector_load(own->inner_scores + at);
        hla_vector gradient = hla_vector_load(own->value_scores + at);
        hla_vector_store(own->outer_scores + at, hla_vector_multiply(gradient, inner));
        hla_vector_store(own->inner_scores + at, hla_vector_multiply(gradient, outer));
        hla_vector_store(own->value_scores + at, hla_vector_multiply(outer, inner));
    }
}

/* Adds to one panel's sums what the weighed pairs give the lanes; values may be NULL. */
static void add_pairs(const geometry *g, const gradient_scratch *own, int64_t first, int64_t last, float *outer_sums,
                      float *inner_sums, float *values) {
    int64_t outer = g->folded.outer, inner = g->folded.inner, width = g->problem->value_dim, tokens = last - first;
    int64_t at = first * HLA_TILE_COLUMNS;
    for (int64_t o = 0; o < outer; o += HLA_TILE_ROWS)
        pair_sum_tile(outer_sums + o * HLA_TILE_COLUMNS, own->row.outer + first * outer + o, outer,
                      own->outer_scores + at, tokens);
    for (int64_t i = 0; i < inner; i += HLA_TILE_ROWS)
        pair_sum_tile(inner_sums + i * HLA_TILE_COLUMNS, own->row.inner + first * inner + i, inner,
                      own->inner_scores + at, tokens);
    for (int64_t x = 0; values && x < width; x += HLA_TILE_ROWS)
        pair_sum_tile(values + x * HLA_TILE_COLUMNS, own->row.values + first * width + x, width, own->value_scores + at,
                      tokens);
}

/* ---- writing ---- */

/* row[r] = lanes[t / COLUMNS][r][t % COLUMNS], where a panel has `rows` rows */
HLA_INLINE void gather(float *restrict row, const float *restrict from, int64_t rows, int64_t count, int64_t t) {
    const float *column = from + t / HLA_TILE_COLUMNS * rows * HLA_TILE_COLUMNS + t % HLA_TILE_COLUMNS;
    for (int64_t r = 0; r < count; r++)
        row[r] = column[r * HLA_TILE_COLUMNS];
}

/* The gradients of factors order[first] ... order[last - 1] of a token from that of their Kronecker product, row: each
 * is row contracted with the others. */
static void write_factors(const geometry *g, const float *row, int first, int last, const hla_tensor *gradients,
                          const hla_tensor *factors, int64_t b, int64_t t, int64_t h) {
    float own[HLA_MAX_FACTORS][HLA_MAX_RANK], sums[HLA_MAX_FACTORS][HLA_MAX_RANK] = {{0}};
    const int *order = g->folded.order;
    int64_t length = 1;
    for (int p = first; p < last; p++) {
        int64_t rank = g->problem->rank[order[p]];
        load_row(own[p], &factors[order[p]], b, t, h, 0, rank);
        length *= rank;
    }
    for (int64_t f = 0; f < length; f++) {
        int64_t index[HLA_MAX_FACTORS] = {0}, rest = f;
        for (int p = last - 1; p >= first; p--) {
            index[p] = rest % g->problem->rank[order[p]];
            rest /= g->problem->rank[order[p]];
        }
        for (int p = first; p < last; p++) {
            float product = row[f];
            for (int other = first; other < last; other++)
                product *= other == p ? 1 : own[other][index[other]];
            sums[p][index[p]] += product;
        }
    }
    for (int p = first; p < last; p++) {
        const hla_tensor *gradient = &gradients[order[p]];
        hla_store_floats(hla_tensor_row(gradient, b, t, h), gradient->dtype, gradient->shape[3], gradient->stride[3],
                         sums[p]);
    }
}

/* Gradients of all factors of a block of tokens, from those of the folded ones; row: scratch of R_outer or R_inner. */
static void write_folded(const geometry *g, fold_sums sums, float *row, const hla_tensor *gradients,
                         const token_rows *tokens) {
    const fold *folded = &g->folded;
    const struct {
        const float *sums;
        int64_t rank;
        int first, last;
    } sides[] = {{sums.outer, folded->outer, 0, folded->split},
                 {sums.inner, folded->inner, folded->split, folded->factors}};
    for (int side = 0; side < 2; side++) {
        int first = sides[side].first, last = sides[side].last;
        int64_t rank = sides[side].rank, rows = whole_tiles(rank);
        if (last - first == 1) {
            write_lane_rows(&gradients[folded->order[first]], tokens->b, tokens->h, tokens->first, tokens->count,
                            sides[side].sums, rows);
            continue;
        }
        for (int64_t t = 0; t < tokens->count && first < last; t++) {
            gather(row, sides[side].sums, rows, rank, t);
            write_factors(g, row, first, last, gradients, tokens->factors, tokens->b, tokens->first + t, tokens->h);
        }
    }
}

static void write_values(const geometry *g, const float *values, const hla_tensor *gradient, const token_rows *tokens) {
    write_lane_rows(gradient, tokens->b, tokens->h, tokens->first, tokens->count, values,
                    g->value_panels * HLA_TILE_COLUMNS);
}

#endif
