/* attention/ops/hadamard/state_bf16.h - the two products of the state form in pairs of bfloat16, with float32 sums.
 * Included by the source compiled for AVX512-BF16.
 *
 *     build   S[f][x] += sum_t phi_t[f] v_t[x]     z[f] += sum_t phi_t[f]     pairs along the tokens
 *     query   n_t[x] = sum_f phi_t[f] S[f][x]      d_t = sum_f phi_t[f] z[f]  pairs along the features
 *
 * As in state.h and query.h, whose folding, layout of S and loops these are, phi is made a panel at a time. It is
 * rounded to bfloat16 there, and z and d are float32 sums of the rounded numbers: numerator and denominator then weigh
 * each key alike. For the query S is rounded too, once, after the last key; z is not.
 */
#ifndef HLA_OPS_HADAMARD_STATE_BF16_H
#define HLA_OPS_HADAMARD_STATE_BF16_H

#include "attention/ops/hadamard/query.h"
#include "attention/simd/bf16.h"

enum {
    PAIRS = 64, /* token pairs a block: value panel (8 KB), phi panel (8 KB) and inner factor share a 48 KB cache */
    PAIR_TOKENS = 2 * PAIRS,
    PAIR_STEPS = BLOCK / 2, /* feature pairs a block of S */
    PAIR_GROUP = 32,        /* tokens a phi panel of the query */
    PAIR_QUERY_ROW = PAIR_STEPS + HLA_VECTOR_WIDTH,
    TWO_VECTORS = 2 * HLA_VECTOR_WIDTH
};

/* Of one thread. */
typedef struct pair_scratch {
    float *outer;     /* building: [PAIRS][R_outer] pairs of floats */
    float *inner;     /* building: [PAIRS][pair_inner_row] pairs of floats */
    float *row;       /* [2][max(R_outer, pair_inner_row)]: rows being expanded */
    uint32_t *panel;  /* building: [PAIRS][FEATURES]; querying: [PAIR_GROUP][PAIR_QUERY_ROW] */
    uint32_t *values; /* [panel of V][PAIRS][HLA_TILE_COLUMNS] */
} pair_scratch;

/* Pairs of a row of inner features: by whole vectors none are overread where the rank is a number of these. */
HLA_INLINE int64_t pair_inner_row(const geometry *g) {
    return g->folded.inner % HLA_VECTOR_WIDTH == 0 ? g->folded.inner : g->inner_row;
}

static pair_scratch carve_pair_scratch(hla_arena *arena, const geometry *g) {
    pair_scratch own = {0};
    int64_t outer_row = hla_round_up(g->folded.outer, HLA_VECTOR_WIDTH);
    int64_t panel = hla_larger(PAIRS * FEATURES, PAIR_GROUP * PAIR_QUERY_ROW);
    own.outer = hla_arena_take(arena, saturating_product(outer_row, PAIR_TOKENS), sizeof(float));
    own.inner = hla_arena_take(arena, saturating_product(pair_inner_row(g), PAIR_TOKENS), sizeof(float));
    own.row = hla_arena_take(arena, saturating_product(hla_larger(outer_row, pair_inner_row(g)), 2), sizeof(float));
    own.panel = hla_arena_take(arena, panel, sizeof(uint32_t));
    own.values = hla_arena_take(arena, saturating_product(g->value_panels, PAIRS * HLA_TILE_COLUMNS), sizeof(uint32_t));
    return own;
}

/* ---- build ---- */

/* Where elements of token t of a row view begin, if they lie side by side. */
HLA_INLINE const uint16_t *dense_row(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h) {
    return hla_tensor_row(tensor, b, t, h);
}

/* The first `count` of 16 elements, zeros behind them. */
HLA_INLINE __m256i load_elements(const uint16_t *from, int64_t count) {
    if (count >= HLA_VECTOR_WIDTH) return _mm256_loadu_si256((const __m256i *)(const void *)from);
    return _mm256_maskz_loadu_epi16(hla_lanes(count), from);
}

/* `count` elements of two tokens, or of one and zeros. */
HLA_INLINE hla_pairs join_rows(const uint16_t *x, const uint16_t *y, int64_t count, bool both) {
    return hla_pairs_join(load_elements(x, count), both ? load_elements(y, count) : _mm256_setzero_si256());
}

/* to[r] = (row of token t, row of token t + 1)[r], pairs of floats, of factors order[first] ... order[last - 1];
 * both: whether there is a second token, else zeros. to may be overwritten up to a whole vector of pairs. */
HLA_INLINE void pack_pair_row(const geometry *g, const pair_scratch *own, float *to, int first, int last,
                              const token_rows *rows, int64_t t, bool both) {
    const hla_tensor *factor = &rows->factors[g->folded.order[first]];
    int64_t rank = last == g->folded.split ? g->folded.outer : g->folded.inner;
    if (last - first == 1 && factor->stride[3] == 1) {
        const uint16_t *x = dense_row(factor, rows->b, t, rows->h);
        const uint16_t *y = both ? dense_row(factor, rows->b, t + 1, rows->h) : x;
        for (int64_t r = 0; r < rank; r += HLA_VECTOR_WIDTH) {
            hla_pairs pairs = join_rows(x + r, y + r, rank - r, both);
            hla_vector_store(to + 2 * r, hla_widen_bf16(_mm512_castsi512_si256(pairs)));
            hla_vector_store(to + 2 * r + HLA_VECTOR_WIDTH, hla_widen_bf16(_mm512_extracti64x4_epi64(pairs, 1)));
        }
        return;
    }
    float *even = own->row, *odd = even + hla_round_up(rank, HLA_VECTOR_WIDTH);
    expand_row(even, &g->folded, first, last, rows->factors, rows->b, t, rows->h);
    memset(odd, 0, (size_t)rank * sizeof *odd);
    if (both) expand_row(odd, &g->folded, first, last, rows->factors, rows->b, t + 1, rows->h);
    for (int64_t r = 0; r < rank; r++)
        to[2 * r] = even[r], to[2 * r + 1] = odd[r];
}

/* Row `pair` of the value panels: tokens t and t + 1. */
HLA_INLINE void pack_pair_values(const geometry *g, const pair_scratch *own, int64_t pair, const token_rows *rows,
                                 int64_t t, bool both) {
    const hla_tensor *v = rows->values;
    int64_t columns = g->problem->value_dim, stride = v->stride[3];
    const uint16_t *x = dense_row(v, rows->b, t, rows->h);
    const uint16_t *y = both ? dense_row(v, rows->b, t + 1, rows->h) : x;
    uint32_t *to = own->values + pair * HLA_TILE_COLUMNS;
    for (int64_t start = 0; start < columns; start += HLA_TILE_COLUMNS, to += PAIRS * HLA_TILE_COLUMNS) {
        if (stride == 1) {
            for (int half = 0; half < HLA_TILE_COLUMNS; half += HLA_VECTOR_WIDTH) {
                int64_t column = start + half;
                if (column < columns)
                    hla_pairs_store(to + half, join_rows(x + column, y + column, columns - column, both));
            }
            continue;
        }
        for (int64_t i = 0; i < HLA_TILE_COLUMNS; i++) {
            int64_t column = start + i, at = column * stride;
            to[i] = column < columns ? x[at] | (both ? (uint32_t)y[at] << 16 : 0) : 0;
        }
    }
}

HLA_INLINE void pack_pair(const geometry *g, const pair_scratch *own, int64_t pair, const token_rows *rows, bool both) {
    int64_t t = rows->first + 2 * pair, tail = pair_inner_row(g) - g->folded.inner;
    float *outer = own->outer + pair * 2 * g->folded.outer, *inner = own->inner + pair * 2 * pair_inner_row(g);
    pack_pair_row(g, own, outer, 0, g->folded.split, rows, t, both);
    pack_pair_row(g, own, inner, g->folded.split, g->folded.factors, rows, t, both);
    memset(inner + 2 * g->folded.inner, 0, (size_t)(2 * tail) * sizeof *inner);
    pack_pair_values(g, own, pair, rows, t, both);
}

/* At most PAIR_TOKENS tokens. */
static void pack_pairs(const geometry *g, const pair_scratch *own, const token_rows *rows) {
    for (int64_t pair = 0; pair < rows->count / 2; pair++)
        pack_pair(g, own, pair, rows, true);
    if (rows->count % 2 != 0) pack_pair(g, own, rows->count / 2, rows, false);
}

/* panel[pair][0 ... width) = outer[pair] * inner[pair][0 ... width) of both tokens, rounded */
HLA_INLINE void multiply_pairs(const geometry *g, uint32_t *restrict panel, const float *restrict outer,
                               const float *restrict inner, int64_t pairs, int64_t width) {
    for (int64_t pair = 0; pair < pairs; pair++, panel += FEATURES) {
        int64_t both;
        memcpy(&both, outer + pair * 2 * g->folded.outer, sizeof both);
        hla_vector x = _mm512_castsi512_ps(_mm512_set1_epi64(both));
        const float *from = inner + pair * 2 * pair_inner_row(g);
        for (int64_t i = 0; i < width; i += HLA_VECTOR_WIDTH, from += TWO_VECTORS) {
            hla_vector low = hla_vector_multiply(x, hla_vector_load(from));
            hla_vector high = hla_vector_multiply(x, hla_vector_load(from + HLA_VECTOR_WIDTH));
            hla_pairs phi = hla_pairs_round(low, high);
            if (width - i >= HLA_VECTOR_WIDTH) {
                hla_pairs_store(panel + i, phi);
            } else {
                _mm512_mask_storeu_epi32(panel + i, hla_lanes(width - i), phi);
            }
        }
    }
}

/* own->panel = phi of features first ... first + count - 1; zeros up to FEATURES. */
static void make_pair_panel(const geometry *g, const pair_scratch *own, int64_t first, int64_t count, int64_t pairs) {
    int64_t o = first / g->folded.inner, i = first % g->folded.inner;
    for (int64_t done = 0, width; done < count; done += width, o++, i = 0) {
        width = hla_smaller(g->folded.inner - i, count - done);
        uint32_t *panel = own->panel + done;
        const float *outer = own->outer + 2 * o, *inner = own->inner + 2 * i;
        if (width == FEATURES) {
            multiply_pairs(g, panel, outer, inner, pairs, FEATURES);
        } else if (width == HLA_VECTOR_WIDTH) {
            multiply_pairs(g, panel, outer, inner, pairs, HLA_VECTOR_WIDTH);
        } else {
            multiply_pairs(g, panel, outer, inner, pairs, width);
        }
    }
    for (int64_t pair = 0; pair < pairs && count < FEATURES; pair++)
        memset(own->panel + pair * FEATURES + count, 0, (size_t)(FEATURES - count) * sizeof *own->panel);
}

/* z[0 ... count) += column sums of the panel, in whole vectors. */
static void sum_pair_panel(float *sums, const uint32_t *panel, int64_t count, int64_t pairs) {
    const hla_pairs ones = hla_pairs_set(0x3f803f80u);
    for (int64_t c = 0; c < count; c += HLA_VECTOR_WIDTH) {
        hla_vector even = hla_vector_zero(), odd = hla_vector_zero();
        for (int64_t pair = 0; pair + 1 < pairs; pair += 2) {
            even = hla_pairs_dot(hla_pairs_load(panel + pair * FEATURES + c), ones, even);
            odd = hla_pairs_dot(hla_pairs_load(panel + (pair + 1) * FEATURES + c), ones, odd);
        }
        if (pairs % 2 != 0) even = hla_pairs_dot(hla_pairs_load(panel + (pairs - 1) * FEATURES + c), ones, even);
        hla_tile_finish(sums + c, hla_vector_add(even, odd), HLA_TILE_ADD);
    }
}

/* The register tile with A = phi of the state panel: rows are features, steps are token pairs. */
static void build_pairs_half(float *c, const uint32_t *a, const uint32_t *b, int64_t steps) {
    hla_tile_pairs(c, HLA_TILE_COLUMNS, a, 1, FEATURES, b, steps, 1, HLA_TILE_ADD);
}
static void build_pairs_full(float *c, const uint32_t *a, const uint32_t *b, int64_t steps) {
    hla_tile_pairs(c, HLA_TILE_COLUMNS, a, 1, FEATURES, b, steps, 2, HLA_TILE_ADD);
}

/* Adds the tokens of pack_pairs to S and z of features first ... last - 1; state and sums begin with feature `start`.
 * first is a multiple of FEATURES. */
static void build_pair_block(const geometry *g, const pair_scratch *own, ahead *next, float *state, float *sums,
                             int64_t start, int64_t first, int64_t last, int64_t pairs) {
    for (int64_t f = first; f < last; f += FEATURES) {
        int64_t count = hla_smaller(FEATURES, last - f);
        make_pair_panel(g, own, f, count, pairs);
        sum_pair_panel(sums + f - start, own->panel, count, pairs);
        for (int64_t panel = 0; panel < g->value_panels; panel++) {
            bool full = panel_vectors(panel, g->problem->value_dim) == 2;
            float *to = state_row(g, state, f - start) + panel * BLOCK * HLA_TILE_COLUMNS;
            const uint32_t *values = own->values + panel * PAIRS * HLA_TILE_COLUMNS;
            for (int64_t row = 0; row < count; row += HLA_TILE_ROWS) {
                fetch_ahead(next);
                (full ? build_pairs_full : build_pairs_half)(to + row * HLA_TILE_COLUMNS, own->panel + row, values,
                                                             pairs);
            }
        }
    }
}

/* ---- rounding S ---- */

/* In place: each panel of a feature block becomes [PAIR_STEPS][HLA_TILE_COLUMNS] pairs of features in its first half,
 * and z of each 32 features the even ones, then the odd ones, as the query meets them. state and sums begin with
 * feature `first` of a range, a multiple of BLOCK. */
static void round_state(const geometry *g, float *state, float *sums, int64_t features) {
    const hla_pairs even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const hla_pairs odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    int64_t blocks = (features + BLOCK - 1) / BLOCK;
    for (int64_t panel = 0; panel < blocks * g->value_panels; panel++) {
        float *from = state + panel * BLOCK * HLA_TILE_COLUMNS;
        uint32_t *to = (uint32_t *)(void *)from;
        for (int64_t step = 0; step < PAIR_STEPS; step++, from += 2 * HLA_TILE_COLUMNS, to += HLA_TILE_COLUMNS) {
            __m256i x[4];
            for (int i = 0; i < 4; i++)
                x[i] = hla_round_bf16(hla_vector_load(from + i * HLA_VECTOR_WIDTH));
            hla_pairs_store(to, hla_pairs_join(x[0], x[2]));
            hla_pairs_store(to + HLA_VECTOR_WIDTH, hla_pairs_join(x[1], x[3]));
        }
    }
    for (float *z = sums; z < sums + blocks * BLOCK; z += TWO_VECTORS) {
        hla_vector low = hla_vector_load(z), high = hla_vector_load(z + HLA_VECTOR_WIDTH);
        hla_vector_store(z, _mm512_permutex2var_ps(low, even, high));
        hla_vector_store(z + HLA_VECTOR_WIDTH, _mm512_permutex2var_ps(low, odd, high));
    }
}

/* ---- query ---- */

HLA_INLINE void load_dense(float *to, const uint16_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i += HLA_VECTOR_WIDTH)
        hla_vector_store(to + i, hla_widen_bf16(_mm256_loadu_si256((const __m256i *)(const void *)(from + i))));
}

/* As pack_query, in short where both folded factors are single ones that lie side by side, by whole vectors. */
static void pack_pair_query(const geometry *g, const scratch *own, const token_rows *rows) {
    const fold *folded = &g->folded;
    const hla_tensor *outer = &rows->factors[folded->order[0]], *inner = &rows->factors[folded->order[1]];
    if (folded->factors != 2 || outer->stride[3] != 1 || inner->stride[3] != 1 ||
        folded->outer % HLA_VECTOR_WIDTH != 0 || folded->inner % HLA_VECTOR_WIDTH != 0) {
        pack_query(g, own, rows);
        return;
    }
    int64_t padded = hla_round_up(rows->count, HLA_TILE_ROWS);
    for (int64_t t = 0; t < rows->count; t++) {
        load_dense(own->outer + t * folded->outer, dense_row(outer, rows->b, rows->first + t, rows->h), folded->outer);
        load_dense(own->inner + t * g->inner_row, dense_row(inner, rows->b, rows->first + t, rows->h), folded->inner);
    }
    for (int64_t t = rows->count; t < padded; t++) {
        memset(own->outer + t * folded->outer, 0, (size_t)folded->outer * sizeof(float));
        memset(own->inner + t * g->inner_row, 0, (size_t)folded->inner * sizeof(float));
    }
}

/* phi of 32 features, rounded to pairs; *denominator += phi . z by lanes, z as round_state leaves it. */
HLA_INLINE void finish_pairs(uint32_t *restrict phi, hla_vector low, hla_vector high, const float *restrict sums,
                             hla_vector denominator[2]) {
    hla_pairs pairs = hla_pairs_round(low, high);
    hla_pairs_store(phi, pairs);
    denominator[0] = hla_vector_multiply_add(hla_pairs_first(pairs), hla_vector_load(sums), denominator[0]);
    denominator[1] =
        hla_vector_multiply_add(hla_pairs_second(pairs), hla_vector_load(sums + HLA_VECTOR_WIDTH), denominator[1]);
}

/* phi of a whole block where the inner rank is a number of whole vectors; a constant where that lets the loop be
 * unrolled. */
HLA_INLINE void make_whole_pair_row(uint32_t *restrict phi, const float *restrict outer, const float *restrict inner,
                                    int64_t inner_rank, int64_t first, const float *restrict sums,
                                    hla_vector denominator[2]) {
    int64_t o = first / inner_rank, i = BLOCK % inner_rank == 0 ? 0 : first % inner_rank;
    HLA_UNROLL(4)
    for (int64_t f = 0; f < BLOCK; f += TWO_VECTORS) {
        hla_vector x[2];
        for (int half = 0; half < 2; half++) {
            x[half] = hla_vector_multiply(hla_vector_set(outer[o]), hla_vector_load(inner + i));
            i += HLA_VECTOR_WIDTH;
            if (i == inner_rank) i = 0, o++;
        }
        finish_pairs(phi + f / 2, x[0], x[1], sums + f, denominator);
    }
}

/* phi[0 ... count) from feature `first` on, zeros up to a whole vector of pairs. */
HLA_INLINE void make_any_pair_row(uint32_t *restrict phi, const float *restrict outer, const float *restrict inner,
                                  int64_t inner_rank, int64_t first, int64_t count, const float *restrict sums,
                                  hla_vector denominator[2]) {
    float row[BLOCK + TWO_VECTORS];
    int64_t o = first / inner_rank, i = first % inner_rank;
    for (int64_t done = 0, width; done < count; done += width, o++, i = 0) {
        width = hla_smaller(inner_rank - i, count - done);
        hla_vector x = hla_vector_set(outer[o]);
        for (int64_t j = 0; j < width; j += HLA_VECTOR_WIDTH)
            hla_vector_store(row + done + j, hla_vector_multiply(x, hla_vector_load(inner + i + j)));
    }
    hla_vector_store(row + count, hla_vector_zero());
    hla_vector_store(row + count + HLA_VECTOR_WIDTH, hla_vector_zero());
    for (int64_t f = 0; f < count; f += TWO_VECTORS)
        finish_pairs(phi + f / 2, hla_vector_load(row + f), hla_vector_load(row + f + HLA_VECTOR_WIDTH), sums + f,
                     denominator);
}

/* pairs->panel = phi of features first ... first + count - 1 (one feature block) for tokens row ... row + rows - 1, and
 * its share of the denominators, sums being z of feature `first`. */
static void make_pair_query_panel(const geometry *g, const pair_scratch *pairs, const scratch *own, const float *sums,
                                  int64_t first, int64_t count, int64_t row, int64_t rows, bool add) {
    int64_t rank = g->folded.inner;
    for (int64_t t = 0; t < rows; t++) {
        uint32_t *phi = pairs->panel + t * PAIR_QUERY_ROW;
        float *lanes = own->denominators + (row + t) * HLA_VECTOR_WIDTH;
        const float *outer = own->outer + (row + t) * g->folded.outer, *inner = own->inner + (row + t) * g->inner_row;
        hla_vector denominator[2] = {add ? hla_vector_load(lanes) : hla_vector_zero(), hla_vector_zero()};
        if (rank == 16 && count == BLOCK) {
            make_whole_pair_row(phi, outer, inner, 16, first, sums, denominator);
        } else if (rank == 32 && count == BLOCK) {
            make_whole_pair_row(phi, outer, inner, 32, first, sums, denominator);
        } else if (rank == 64 && count == BLOCK) {
            make_whole_pair_row(phi, outer, inner, 64, first, sums, denominator);
        } else {
            make_any_pair_row(phi, outer, inner, rank, first, count, sums, denominator);
        }
        hla_vector_store(lanes, hla_vector_add(denominator[0], denominator[1]));
    }
}

/* The register tile with A = phi of the query panel: rows are tokens, steps are feature pairs. */
#define PAIR_QUERY_TILE(name, vectors, op)                                                                             \
    static void name(float *c, const uint32_t *a, const uint32_t *b, int64_t steps) {                                  \
        hla_tile_pairs(c, HLA_TILE_COLUMNS, a, PAIR_QUERY_ROW, 1, b, steps, vectors, op);                              \
    }
PAIR_QUERY_TILE(query_pairs_store_half, 1, HLA_TILE_STORE)
PAIR_QUERY_TILE(query_pairs_store_full, 2, HLA_TILE_STORE)
PAIR_QUERY_TILE(query_pairs_add_half, 1, HLA_TILE_ADD)
PAIR_QUERY_TILE(query_pairs_add_full, 2, HLA_TILE_ADD)
typedef void pair_tile(float *c, const uint32_t *a, const uint32_t *b, int64_t steps);
static pair_tile *const pair_query_tiles[2][2] = {{query_pairs_store_half, query_pairs_store_full},
                                                  {query_pairs_add_half, query_pairs_add_full}};

/* query_write for a bfloat16 result. */
static void query_pairs_write(uint16_t *restrict out, int64_t out_row, const float *restrict before,
                              const uint32_t *restrict phi, const uint32_t *restrict state, int64_t steps,
                              const float *restrict factors) {
    hla_vector sum[HLA_TILE_ROWS][2];
    hla_tile_pair_sums(sum, phi, PAIR_QUERY_ROW, 1, state, steps, 2);
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++) {
        hla_vector factor = hla_vector_set(factors[i]);
        HLA_UNROLL(2)
        for (int half = 0; half < 2; half++) {
            const float *from = before + i * HLA_TILE_COLUMNS + half * HLA_VECTOR_WIDTH;
            if (before) sum[i][half] = hla_vector_add(hla_vector_load(from), sum[i][half]);
            sum[i][half] = hla_vector_multiply(sum[i][half], factor);
        }
        hla_pairs_store((uint32_t *)(void *)(out + i * out_row), hla_pairs_round(sum[i][0], sum[i][1]));
    }
}

/* own->values (op)= phi . S of one feature block for tokens row ... row + rows - 1, whose phi is in pairs->panel; or,
 * to being given, the last block finishes what rows it can. */
static void query_pair_group(const geometry *g, const pair_scratch *pairs, scratch *own, const float *state, bool add,
                             int64_t row, int64_t rows, int64_t steps, const result_rows *to) {
    float factors[PAIR_GROUP + HLA_VECTOR_WIDTH];
    int64_t whole = result_factors(to, factors, own, row, rows);
    for (int64_t panel = 0; panel < g->value_panels; panel++) {
        pair_tile *tile = pair_query_tiles[add][panel_vectors(panel, g->problem->value_dim) - 1];
        const uint32_t *from = (const uint32_t *)(const void *)(state + panel * BLOCK * HLA_TILE_COLUMNS);
        float *sums = own->values + (panel * TOKENS + row) * HLA_TILE_COLUMNS;
        for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
            const uint32_t *phi = pairs->panel + t * PAIR_QUERY_ROW;
            fetch_ahead(&own->next);
            if (t < whole) {
                query_pairs_write((uint16_t *)to->out + (row + t) * to->step + panel * HLA_TILE_COLUMNS, to->step,
                                  add ? sums + t * HLA_TILE_COLUMNS : NULL, phi, from, steps, factors + t);
            } else {
                tile(sums + t * HLA_TILE_COLUMNS, phi, from, steps);
            }
        }
    }
}

/* own->values and own->denominators = n and d of the tokens of pack_pair_query, over S and z of round_state; the first
 * to->rows tokens are written at once instead. */
static void query_pairs(const geometry *g, const pair_scratch *pairs, scratch *own, float *state, const float *sums,
                        int64_t tokens, const result_rows *to) {
    int64_t padded = hla_round_up(tokens, HLA_TILE_ROWS), last = g->folded.state_rank;
    for (int64_t f = 0; f < last; f += BLOCK) {
        int64_t features = hla_smaller(BLOCK, last - f);
        for (int64_t row = 0; row < padded; row += PAIR_GROUP) {
            int64_t rows = hla_smaller(PAIR_GROUP, padded - row);
            make_pair_query_panel(g, pairs, own, sums + f, f, features, row, rows, f > 0);
            query_pair_group(g, pairs, own, state_row(g, state, f), f > 0, row, rows, (features + 1) / 2,
                             f + BLOCK < last ? NULL : to);
        }
    }
}

HLA_INLINE void store_elements(uint16_t *to, __m256i x, int64_t count) {
    if (count >= HLA_VECTOR_WIDTH) {
        _mm256_storeu_si256((__m256i *)(void *)to, x);
    } else {
        _mm256_mask_storeu_epi16(to, hla_lanes(count), x);
    }
}

/* write_rows for bfloat16 side by side, from row `first` of the block on. */
static void write_pair_rows(const hla_hadamard_call *call, const scratch *own, const token_rows *rows, int64_t first) {
    const hla_hadamard_problem *problem = call->problem;
    const hla_tensor *out = call->out;
    if (out->stride[3] != 1) {
        write_rows(call, own->values + first * HLA_TILE_COLUMNS, TOKENS, own->denominators + first * HLA_VECTOR_WIDTH,
                   rows->b, rows->h, rows->first + first, rows->count - first);
        return;
    }
    float factors[HLA_VECTOR_WIDTH];
    for (int64_t t = first; t < rows->count; t++) {
        if ((t - first) % HLA_VECTOR_WIDTH == 0)
            output_factors(problem, factors, own->denominators + t * HLA_VECTOR_WIDTH, rows->count - t);
        hla_vector factor = hla_vector_set(factors[(t - first) % HLA_VECTOR_WIDTH]);
        uint16_t *to = hla_tensor_row(out, rows->b, rows->first + t, rows->h);
        for (int64_t x = 0; x < problem->value_dim; x += HLA_VECTOR_WIDTH) {
            const float *from = own->values + (x / HLA_TILE_COLUMNS * TOKENS + t) * HLA_TILE_COLUMNS;
            hla_vector value = hla_vector_multiply(factor, hla_vector_load(from + x % HLA_TILE_COLUMNS));
            store_elements(to + x, hla_round_bf16(value), problem->value_dim - x);
        }
    }
}

#endif
