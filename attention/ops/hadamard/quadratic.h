/* attention/ops/hadamard/quadratic.h - one block of queries against one block of keys through their scores. Included by
 * sources compiled once per instruction set.
 *
 *     A_ij = prod_p (a_i^p . c_j^p)      n_i += sum_j A_ij v_j      d_i += sum_j A_ij
 *
 * For a few queries at a time the scores of the first factor are stored, those of the others multiplied into them, and
 * the tile is consumed at once by the product with the values. No more than SCORE_GROUP x KEYS scores exist.
 */
#ifndef HLA_OPS_HADAMARD_QUADRATIC_H
#define HLA_OPS_HADAMARD_QUADRATIC_H

#include "attention/ops/hadamard/cpu.h"

enum {
    KEYS = 128,                         /* keys a block */
    QUERIES = 128,                      /* queries a block */
    SCORE_GROUP = 16,                   /* queries that share a key panel while it is in the first-level cache */
    SCORE_ROW = KEYS + HLA_VECTOR_WIDTH /* off a power of two, so that rows do not compete for cache sets */
};

/* A block of queries and what is summed for it. */
typedef struct score_block {
    const hla_hadamard_problem *problem;
    int64_t rank_sum;    /* sum_p R_p */
    int64_t count;       /* queries */
    float *queries;      /* factor after factor: [QUERIES][R_p]; rows up to a whole tile are zero */
    float *scores;       /* [SCORE_GROUP][SCORE_ROW] */
    float *sums;         /* n: [panel of V][QUERIES][HLA_TILE_COLUMNS] */
    float *denominators; /* d by lanes: [QUERIES][HLA_VECTOR_WIDTH] */
} score_block;

HLA_INLINE int64_t rank_sum(const hla_hadamard_problem *problem) {
    int64_t sum = 0;
    for (int p = 0; p < problem->factors; p++)
        sum += problem->rank[p];
    return sum;
}

/* Floats of a packed key block: per factor [key panel][R_p][COLUMNS], then [panel of V][KEYS][COLUMNS]. */
HLA_INLINE int64_t key_block_size(const hla_hadamard_problem *problem) {
    int64_t values = panel_count(problem->value_dim) * HLA_TILE_COLUMNS;
    return saturating_product(rank_sum(problem) + values, KEYS);
}

/* Queries and scores of a block; sums and denominators are the caller's to place. */
static score_block carve_score_block(hla_arena *arena, const hla_hadamard_problem *problem) {
    score_block block = {.problem = problem, .rank_sum = rank_sum(problem)};
    block.queries = hla_arena_take(arena, block.rank_sum * QUERIES, sizeof(float));
    block.scores = hla_arena_take(arena, SCORE_GROUP * SCORE_ROW, sizeof(float));
    return block;
}

/* Keys first ... first + count - 1 of the token axis into one block. */
static void pack_key_block(float *to, const hla_hadamard_call *call, int64_t b, int64_t kv, int64_t first,
                           int64_t count) {
    for (int p = 0; p < call->problem->factors; p++) {
        pack_lane_rows(to, &call->in.k_features[p], b, kv, first, count);
        to += call->problem->rank[p] * KEYS;
    }
    pack_values(to, KEYS, call->in.v, b, kv, first, count);
}

static void pack_query_block(score_block *block, const hla_hadamard_call *call, int64_t b, int64_t h, int64_t first,
                             int64_t count) {
    float *queries = block->queries;
    int64_t padded = hla_round_up(count, HLA_TILE_ROWS);
    block->count = count;
    for (int p = 0; p < call->problem->factors; p++) {
        int64_t rank = call->problem->rank[p];
        for (int64_t t = 0; t < count; t++)
            load_row(queries + t * rank, &call->in.q_features[p], b, first + t, h, 0, rank);
        memset(queries + count * rank, 0, (size_t)((padded - count) * rank) * sizeof *queries);
        queries += rank * QUERIES;
    }
}

/* Scores of one factor: rows are queries, steps are features. */
static void score_store(float *c, const float *queries, const float *keys, int64_t rank) {
    hla_tile(c, SCORE_ROW, queries, rank, 1, keys, rank, 2, HLA_TILE_STORE);
}
static void score_multiply(float *c, const float *queries, const float *keys, int64_t rank) {
    hla_tile(c, SCORE_ROW, queries, rank, 1, keys, rank, 2, HLA_TILE_MULTIPLY);
}

/* Product with the values: rows are queries, steps are keys. */
static void value_half(float *sums, const float *scores, const float *values, int64_t keys) {
    hla_tile(sums, HLA_TILE_COLUMNS, scores, SCORE_ROW, 1, values, keys, 1, HLA_TILE_ADD);
}
static void value_full(float *sums, const float *scores, const float *values, int64_t keys) {
    hla_tile(sums, HLA_TILE_COLUMNS, scores, SCORE_ROW, 1, values, keys, 2, HLA_TILE_ADD);
}

/* block->scores[rows][keys] for queries row ... row + rows - 1 against packed keys; columns past keys, up to a whole
 * panel, are those of the packed keys, zero past the last one. */
static void score_group(const score_block *block, const float *packed, int64_t row, int64_t rows, int64_t keys) {
    const float *queries = block->queries;
    for (int p = 0; p < block->problem->factors; p++) {
        int64_t rank = block->problem->rank[p];
        for (int64_t panel = 0; panel < panel_count(keys); panel++) {
            for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
                float *scores = block->scores + t * SCORE_ROW + panel * HLA_TILE_COLUMNS;
                const float *from = packed + panel * rank * HLA_TILE_COLUMNS;
                (p == 0 ? score_store : score_multiply)(scores, queries + (row + t) * rank, from, rank);
            }
        }
        packed += rank * KEYS;
        queries += rank * QUERIES;
    }
}

/* Query row + t sees keys 0 ... row + t of its own block. */
static void mask_group(const score_block *block, int64_t row, int64_t rows, int64_t keys) {
    for (int64_t t = 0; t < rows; t++) {
        for (int64_t j = row + t + 1; j < panel_count(keys) * HLA_TILE_COLUMNS; j++)
            block->scores[t * SCORE_ROW + j] = 0;
    }
}

static void sum_scores(float *lanes, const float *scores, int64_t keys) {
    hla_vector even = hla_vector_zero(), odd = hla_vector_zero();
    for (int64_t panel = 0; panel < panel_count(keys); panel++, scores += HLA_TILE_COLUMNS) {
        even = hla_vector_add(even, hla_vector_load(scores));
        odd = hla_vector_add(odd, hla_vector_load(scores + HLA_VECTOR_WIDTH));
    }
    hla_tile_finish(lanes, hla_vector_add(even, odd), HLA_TILE_ADD);
}

/* Adds a packed key block's part to all sums of the query block. diagonal: both blocks begin at the same position of a
 * causal sequence. */
static void attend_block(const score_block *block, const float *packed, int64_t key_count, bool diagonal) {
    for (int64_t row = 0; row < block->count; row += SCORE_GROUP) {
        int64_t rows = hla_round_up(hla_smaller(SCORE_GROUP, block->count - row), HLA_TILE_ROWS);
        int64_t keys = diagonal ? hla_smaller(key_count, row + rows) : key_count;
        score_group(block, packed, row, rows, keys);
        if (diagonal) mask_group(block, row, rows, keys);
        for (int64_t t = 0; t < rows; t++)
            sum_scores(block->denominators + (row + t) * HLA_VECTOR_WIDTH, block->scores + t * SCORE_ROW, keys);
        const float *values = packed + block->rank_sum * KEYS;
        for (int64_t panel = 0; panel < panel_count(block->problem->value_dim); panel++) {
            bool full = panel_vectors(panel, block->problem->value_dim) == 2;
            for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
                float *sums = block->sums + (panel * QUERIES + row + t) * HLA_TILE_COLUMNS;
                (full ? value_full : value_half)(sums, block->scores + t * SCORE_ROW, values, keys);
            }
            values += KEYS * HLA_TILE_COLUMNS;
        }
    }
}

#endif
