/* attention/ops/hadamard/query.h - contracting a state (state.h) with a block of tokens. Included by sources compiled
 * once per instruction set.
 *
 *     n_t[x] = sum_f phi_t[f] S[f][x]      d_t = sum_f phi_t[f] z[f]
 *
 * Like building, a matrix product whose operand phi is made a panel at a time, right before the register tile reads it.
 */
#ifndef HLA_OPS_HADAMARD_QUERY_H
#define HLA_OPS_HADAMARD_QUERY_H

#include "attention/ops/hadamard/state.h"

enum {
    GROUP = 32, /* tokens a phi panel, [GROUP][QUERY_ROW]: no larger than that of the state */
    QUERY_ROW = BLOCK + HLA_VECTOR_WIDTH
};

/* Rows up to a whole register tile exist; those past count are zero. */
static void pack_query(const geometry *g, const scratch *own, const token_rows *rows) {
    int64_t count = rows->count, padded = hla_round_up(count, HLA_TILE_ROWS);
    memset(own->outer + count * g->folded.outer, 0, (size_t)((padded - count) * g->folded.outer) * sizeof(float));
    memset(own->inner + count * g->inner_row, 0, (size_t)((padded - count) * g->inner_row) * sizeof(float));
    pack_factors(g, own, rows);
}

/* phi[0 ... count) from feature `first` on, zeros up to the next whole vector; returns denominator + phi . z by lanes.
 * inner_rank is a constant where that lets the loop be unrolled. */
HLA_INLINE hla_vector make_query_row(float *restrict phi, const float *restrict outer, const float *restrict inner,
                                     int64_t inner_rank, int64_t first, int64_t count, const float *restrict sums,
                                     hla_vector denominator) {
    int64_t o = first / inner_rank, i = first % inner_rank;
    for (int64_t done = 0, width; done < count; done += width, o++, i = 0) {
        width = hla_smaller(inner_rank - i, count - done);
        hla_vector x = hla_vector_set(outer[o]);
        for (int64_t j = 0; j < width; j += HLA_VECTOR_WIDTH) {
            hla_vector_store(phi + done + j, hla_vector_multiply(x, hla_vector_load(inner + i + j)));
        }
    }
    hla_vector_store(phi + count, hla_vector_zero());
    for (int64_t f = 0; f < count; f += HLA_VECTOR_WIDTH)
        denominator = hla_vector_multiply_add(hla_vector_load(phi + f), hla_vector_load(sums + f), denominator);
    return denominator;
}

/* The same for a whole block and inner ranks that are whole vectors and divide it. */
HLA_INLINE hla_vector make_whole_row(float *restrict phi, const float *restrict outer, const float *restrict inner,
                                     int64_t inner_rank, const float *restrict sums, hla_vector denominator) {
    hla_vector odd = hla_vector_zero();
    for (int64_t f = 0; f < BLOCK; f += 2 * HLA_VECTOR_WIDTH) {
        int64_t next = f + HLA_VECTOR_WIDTH;
        hla_vector x =
            hla_vector_multiply(hla_vector_set(outer[f / inner_rank]), hla_vector_load(inner + f % inner_rank));
        hla_vector y =
            hla_vector_multiply(hla_vector_set(outer[next / inner_rank]), hla_vector_load(inner + next % inner_rank));
        denominator = hla_vector_multiply_add(x, hla_vector_load(sums + f), denominator);
        odd = hla_vector_multiply_add(y, hla_vector_load(sums + next), odd);
        hla_vector_store(phi + f, x);
        hla_vector_store(phi + next, y);
    }
    return hla_vector_add(denominator, odd);
}

/* own->panel = phi of features first ... first + count - 1 (one feature block) for tokens row ... row + rows - 1, and
 * its share of the denominators, sums being z of feature `first`. */
static void make_query_panel(const geometry *g, const scratch *own, const float *sums, int64_t first, int64_t count,
                             int64_t row, int64_t rows, bool add) {
    for (int64_t t = 0; t < rows; t++) {
        float *phi = own->panel + t * QUERY_ROW, *lanes = own->denominators + (row + t) * HLA_VECTOR_WIDTH;
        const float *outer = own->outer + (row + t) * g->folded.outer, *inner = own->inner + (row + t) * g->inner_row;
        hla_vector before = add ? hla_vector_load(lanes) : hla_vector_zero();
        hla_vector after;
        const float *block_outer = outer + first / g->folded.inner;
        if (g->folded.inner == 16 && count == BLOCK) {
            after = make_whole_row(phi, block_outer, inner, 16, sums, before);
        } else if (g->folded.inner == 32 && count == BLOCK) {
            after = make_whole_row(phi, block_outer, inner, 32, sums, before);
        } else if (g->folded.inner == 64 && count == BLOCK) {
            after = make_whole_row(phi, block_outer, inner, 64, sums, before);
        } else {
            after = make_query_row(phi, outer, inner, g->folded.inner, first, count, sums, before);
        }
        hla_vector_store(lanes, after);
    }
}

/* The register tile with A = phi of the query panel: rows are tokens, steps are features. */
#define QUERY_TILE(name, vectors, op)                                                                                  \
    static void name(float *c, const float *a, const float *b, int64_t steps) {                                        \
        hla_tile(c, HLA_TILE_COLUMNS, a, QUERY_ROW, 1, b, steps, vectors, op);                                         \
    }
QUERY_TILE(query_store_half, 1, HLA_TILE_STORE)
QUERY_TILE(query_store_full, 2, HLA_TILE_STORE)
QUERY_TILE(query_add_half, 1, HLA_TILE_ADD)
QUERY_TILE(query_add_full, 2, HLA_TILE_ADD)
typedef void tile_function(float *c, const float *a, const float *b, int64_t steps);
static tile_function *const query_tiles[2][2] = {{query_store_half, query_store_full},
                                                 {query_add_half, query_add_full}};

/* Where finished rows of a block go, if they may be written by whole panels. Writing them as the tiles end hides its
 * waiting for memory behind the arithmetic of those that follow. */
typedef struct result_rows {
    const hla_hadamard_problem *problem;
    void *out;    /* row of the block's first token, of the dtype that the kernel's tiles end in */
    int64_t step; /* elements from token to token */
    int64_t rows; /* that are whole register tiles */
} result_rows;

static result_rows result_of(const hla_hadamard_call *call, const token_rows *rows, hla_dtype dtype) {
    const hla_tensor *out = call->out;
    bool whole = out->dtype == dtype && out->stride[3] == 1 && out->shape[3] % HLA_TILE_COLUMNS == 0;
    return (result_rows){call->problem, hla_tensor_row(out, rows->b, rows->first, rows->h), out->stride[1],
                         whole ? rows->count / HLA_TILE_ROWS * HLA_TILE_ROWS : 0};
}

/* out = factors (before + phi . S) for a register tile of tokens; before: sums of earlier feature blocks, or NULL. */
static void query_write(float *restrict out, int64_t out_row, const float *restrict before, const float *restrict phi,
                        const float *restrict state, int64_t features, const float *restrict factors) {
    hla_vector sum[HLA_TILE_ROWS][2];
    hla_tile_sums(sum, phi, QUERY_ROW, 1, state, features, 2);
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++) {
        hla_vector factor = hla_vector_set(factors[i]);
        HLA_UNROLL(2)
        for (int half = 0; half < 2; half++) {
            int64_t x = half * HLA_VECTOR_WIDTH;
            if (before) sum[i][half] = hla_vector_add(hla_vector_load(before + i * HLA_TILE_COLUMNS + x), sum[i][half]);
            hla_vector_store(out + i * out_row + x, hla_vector_multiply(sum[i][half], factor));
        }
    }
}

/* What of a group's rows is written at once (none where to is NULL), and what with. */
HLA_INLINE int64_t result_factors(const result_rows *to, float *factors, const scratch *own, int64_t row,
                                  int64_t rows) {
    int64_t whole = to ? hla_larger(hla_smaller(rows, to->rows - row), 0) : 0;
    for (int64_t t = 0; t < whole; t += HLA_VECTOR_WIDTH)
        output_factors(to->problem, factors + t, own->denominators + (row + t) * HLA_VECTOR_WIDTH, whole - t);
    return whole;
}

/* own->values (op)= phi . S of one feature block for tokens row ... row + rows - 1, whose phi is in own->panel; or, to
 * being given, the last block finishes what rows it can. */
static void query_group(const geometry *g, scratch *own, const float *state, bool add, int64_t row, int64_t rows,
                        int64_t features, const result_rows *to) {
    float factors[GROUP + HLA_VECTOR_WIDTH];
    int64_t whole = result_factors(to, factors, own, row, rows);
    for (int64_t panel = 0; panel < g->value_panels; panel++) {
        tile_function *tile = query_tiles[add][panel_vectors(panel, g->problem->value_dim) - 1];
        const float *from = state + panel * BLOCK * HLA_TILE_COLUMNS;
        float *sums = own->values + (panel * TOKENS + row) * HLA_TILE_COLUMNS;
        for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
            const float *phi = own->panel + t * QUERY_ROW;
            fetch_ahead(&own->next);
            if (t < whole) {
                query_write((float *)to->out + (row + t) * to->step + panel * HLA_TILE_COLUMNS, to->step,
                            add ? sums + t * HLA_TILE_COLUMNS : NULL, phi, from, features, factors + t);
            } else {
                tile(sums + t * HLA_TILE_COLUMNS, phi, from, features);
            }
        }
    }
}

/* Register tiles of one query_rows. */
HLA_INLINE int64_t query_steps(const geometry *g, int64_t features, int64_t tokens) {
    return (features + BLOCK - 1) / BLOCK * g->value_panels * (hla_round_up(tokens, HLA_TILE_ROWS) / HLA_TILE_ROWS);
}

/* own->values and own->denominators = n and d of the tokens of pack_query, over features first ... last - 1 of S and z
 * (first a multiple of BLOCK); state and sums begin with feature 0. to: NULL, or where the first to->rows tokens are
 * written at once instead. */
static void query_rows(const geometry *g, scratch *own, float *state, const float *sums, int64_t first, int64_t last,
                       int64_t tokens, const result_rows *to) {
    int64_t padded = hla_round_up(tokens, HLA_TILE_ROWS);
    for (int64_t f = first; f < last; f += BLOCK) {
        int64_t features = hla_smaller(BLOCK, last - f);
        for (int64_t row = 0; row < padded; row += GROUP) {
            int64_t rows = hla_smaller(GROUP, padded - row);
            make_query_panel(g, own, sums + f, f, features, row, rows, f > first);
            query_group(g, own, state_row(g, state, f), f > first, row, rows, features, f + BLOCK < last ? NULL : to);
        }
    }
}

#endif
