/* Quadratic form, in tiles: per batch and head
 *
 *     A_ij = prod_p (a_i^p . c_j^p)      n_i = sum_j A_ij v_j      d_i = sum_j A_ij
 *
 * First all keys are packed into blocks, factors transposed, each block once. Then each query block walks over the key
 * blocks: for a few queries at a time the scores of the first factor are stored, those of the others multiplied into
 * them, and the tile is consumed at once by the product with the values. No more than GROUP x KEYS scores exist.
 *
 * Key blocks are summed in order whichever thread does it: the result has the same bits for any number of threads.
 */
#include "attention/ops/hadamard/cpu.h"

#include <omp.h>

enum {
    KEYS = 128,                         /* keys a block */
    CHUNK = 64 * KEYS,                  /* keys summed, block by block, before the next level */
    QUERIES = 128,                      /* queries a unit of work */
    GROUP = 16,                         /* queries that share a key panel while it is in the first-level cache */
    SCORE_ROW = KEYS + HLA_VECTOR_WIDTH /* off a power of two, so that rows do not compete for cache sets */
};

/* Of one thread. */
typedef struct scratch {
    float *queries;                         /* factor after factor: [QUERIES / HLA_TILE_ROWS][R_p][HLA_TILE_ROWS] */
    float *scores;                          /* [GROUP][SCORE_ROW] */
    float *sums;                            /* [panel of V][QUERIES][HLA_TILE_COLUMNS] */
    float *denominators;                    /* [QUERIES][HLA_VECTOR_WIDTH] */
    float *chunk_sums, *chunk_denominators; /* the same over one chunk of keys */
} scratch;

typedef struct plan {
    const hla_hadamard_problem *problem;
    int64_t rank_sum; /* sum_p R_p */
    int64_t value_panels;
    int64_t key_blocks; /* a head */
    int64_t block_size; /* floats a key block: per factor [key panel][R_p][COLUMNS], then [panel of V][KEYS][COLUMNS] */
    float *keys;        /* [B*H][key_blocks] blocks */
    char *scratch;      /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} plan;

static scratch carve_scratch(hla_arena *arena, const plan *p) {
    scratch own;
    own.queries = hla_arena_take(arena, p->rank_sum * QUERIES, sizeof(float));
    own.scores = hla_arena_take(arena, GROUP * SCORE_ROW, sizeof(float));
    own.sums = hla_arena_take(arena, saturating_product(p->value_panels, QUERIES * HLA_TILE_COLUMNS), sizeof(float));
    own.denominators = hla_arena_take(arena, QUERIES * HLA_VECTOR_WIDTH, sizeof(float));
    own.chunk_sums =
        hla_arena_take(arena, saturating_product(p->value_panels, QUERIES * HLA_TILE_COLUMNS), sizeof(float));
    own.chunk_denominators = hla_arena_take(arena, QUERIES * HLA_VECTOR_WIDTH, sizeof(float));
    return own;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem};
    for (int f = 0; f < problem->factors; f++)
        p.rank_sum += problem->rank[f];
    p.value_panels = panel_count(problem->value_dim);
    p.key_blocks = (problem->keys + KEYS - 1) / KEYS;
    p.block_size = saturating_product(p.rank_sum + p.value_panels * HLA_TILE_COLUMNS, KEYS);
    int64_t blocks = saturating_product(problem->batch * problem->heads, p.key_blocks);
    p.keys = hla_arena_take(arena, saturating_product(blocks, p.block_size), sizeof(float));
    hla_arena measured = {0};
    carve_scratch(&measured, &p);
    arena->overflow |= measured.overflow;
    p.scratch_size = (int64_t)measured.used;
    p.scratch = hla_arena_take(arena, p.scratch_size, (size_t)threads);
    return p;
}

static scratch scratch_of_thread(const plan *p) {
    hla_arena mine = {.base = p->scratch + omp_get_thread_num() * p->scratch_size};
    return carve_scratch(&mine, p);
}

/* to[t / width][r][t % width] = element r of row first + t, for t < count; zero for the other t < hla_round_up(count,
 * width) */
static void pack_transposed(float *restrict to, int64_t width, const hla_tensor *factor, int64_t b, int64_t h,
                            int64_t first, int64_t count) {
    int64_t rank = factor->shape[3];
    for (int64_t t = 0; t < hla_round_up(count, width); t++) {
        float row[HLA_MAX_RANK];
        if (t < count) {
            load_row(row, factor, b, first + t, h, 0, rank);
        } else {
            memset(row, 0, (size_t)rank * sizeof *row);
        }
        float *column = to + t / width * rank * width + t % width;
        for (int64_t r = 0; r < rank; r++)
            column[r * width] = row[r];
    }
}

static void pack_key_block(const plan *p, const hla_hadamard_call *call, int64_t head, int64_t block) {
    int64_t b = head / p->problem->heads, h = head % p->problem->heads;
    int64_t first = block * KEYS, count = hla_smaller(KEYS, hla_hadamard_key_count(call, b) - first);
    if (count <= 0) return;
    float *to = p->keys + (head * p->key_blocks + block) * p->block_size;
    for (int f = 0; f < p->problem->factors; f++) {
        pack_transposed(to, HLA_TILE_COLUMNS, &call->in.k_features[f], b, h, first, count);
        to += p->problem->rank[f] * KEYS;
    }
    pack_values(to, KEYS, call->in.v, b, h, first, count);
}

/* Scores of one factor: rows are queries, steps are features. */
static void score_store(float *c, const float *queries, const float *keys, int64_t rank) {
    hla_tile(c, SCORE_ROW, queries, 1, HLA_TILE_ROWS, keys, rank, 2, HLA_TILE_STORE);
}
static void score_multiply(float *c, const float *queries, const float *keys, int64_t rank) {
    hla_tile(c, SCORE_ROW, queries, 1, HLA_TILE_ROWS, keys, rank, 2, HLA_TILE_MULTIPLY);
}

/* Product with the values: rows are queries, steps are keys. */
static void value_half(float *sums, const float *scores, const float *values, int64_t keys) {
    hla_tile(sums, HLA_TILE_COLUMNS, scores, SCORE_ROW, 1, values, keys, 1, HLA_TILE_ADD);
}
static void value_full(float *sums, const float *scores, const float *values, int64_t keys) {
    hla_tile(sums, HLA_TILE_COLUMNS, scores, SCORE_ROW, 1, values, keys, 2, HLA_TILE_ADD);
}

/* own->scores[rows][keys] for queries row ... row + rows - 1 against one packed block; columns past keys, up to a whole
 * panel, become zero because the packed keys are. */
static void score_group(const plan *p, const scratch *own, const float *block, int64_t row, int64_t rows,
                        int64_t keys) {
    const float *queries = own->queries;
    for (int f = 0; f < p->problem->factors; f++) {
        int64_t rank = p->problem->rank[f];
        for (int64_t panel = 0; panel < panel_count(keys); panel++) {
            for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
                float *scores = own->scores + t * SCORE_ROW + panel * HLA_TILE_COLUMNS;
                const float *from = block + panel * rank * HLA_TILE_COLUMNS;
                (f == 0 ? score_store : score_multiply)(scores, queries + (row + t) * rank, from, rank);
            }
        }
        block += rank * KEYS;
        queries += rank * QUERIES;
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

/* Adds one key block's part to the chunk's sums of queries row ... row + rows - 1. */
static void attend_group(const plan *p, const scratch *own, const float *block, int64_t row, int64_t rows,
                         int64_t keys) {
    score_group(p, own, block, row, rows, keys);
    for (int64_t t = 0; t < rows; t++) {
        sum_scores(own->chunk_denominators + (row + t) * HLA_VECTOR_WIDTH, own->scores + t * SCORE_ROW, keys);
    }
    const float *values = block + p->rank_sum * KEYS;
    for (int64_t panel = 0; panel < p->value_panels; panel++, values += KEYS * HLA_TILE_COLUMNS) {
        bool full = panel_vectors(panel, p->problem->value_dim) == 2;
        for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
            float *sums = own->chunk_sums + (panel * QUERIES + row + t) * HLA_TILE_COLUMNS;
            (full ? value_full : value_half)(sums, own->scores + t * SCORE_ROW, values, keys);
        }
    }
}

/* The chunk's sums over keys first ... last - 1, for all queries of the block. */
static void attend_chunk(const plan *p, const scratch *own, int64_t head, int64_t queries, int64_t first,
                         int64_t last) {
    for (int64_t key = first; key < last; key += KEYS) {
        const float *block = p->keys + (head * p->key_blocks + key / KEYS) * p->block_size;
        for (int64_t row = 0; row < queries; row += GROUP) {
            attend_group(p, own, block, row, hla_smaller(GROUP, queries - row), hla_smaller(KEYS, last - key));
        }
    }
}

static void query_block(const plan *p, const hla_hadamard_call *call, const scratch *own, int64_t head, int64_t first) {
    int64_t b = head / p->problem->heads, h = head % p->problem->heads, keys = hla_hadamard_key_count(call, b);
    int64_t count = hla_smaller(QUERIES, p->problem->queries - first), padded = hla_round_up(count, HLA_TILE_ROWS);
    if (keys == 0) {
        write_zeros(call, b, h, first, count);
        return;
    }
    float *queries = own->queries;
    for (int f = 0; f < p->problem->factors; f++) {
        pack_transposed(queries, HLA_TILE_ROWS, &call->in.q_features[f], b, h, first, count);
        queries += p->problem->rank[f] * QUERIES;
    }
    int64_t sum_count = p->value_panels * QUERIES * HLA_TILE_COLUMNS, lane_count = QUERIES * HLA_VECTOR_WIDTH;
    memset(own->sums, 0, (size_t)sum_count * sizeof(float));
    memset(own->denominators, 0, (size_t)lane_count * sizeof(float));
    for (int64_t chunk = 0; chunk < keys; chunk += CHUNK) {
        memset(own->chunk_sums, 0, (size_t)sum_count * sizeof(float));
        memset(own->chunk_denominators, 0, (size_t)lane_count * sizeof(float));
        attend_chunk(p, own, head, padded, chunk, hla_smaller(keys, chunk + CHUNK));
        add_floats(own->sums, own->chunk_sums, sum_count);
        add_floats(own->denominators, own->chunk_denominators, lane_count);
    }
    write_rows(call, own->sums, QUERIES, own->denominators, b, h, first, count);
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static void run(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_arena arena = {.base = call->workspace};
    plan carved = carve(&arena, problem, call->threads);
    const plan *p = &carved;
    int64_t heads = problem->batch * problem->heads;
    int64_t query_blocks = (problem->queries + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(hla_team_size(call->threads, heads, hla_larger(p->key_blocks, query_blocks)))
    {
        scratch own = scratch_of_thread(p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads * p->key_blocks; unit++) {
            pack_key_block(p, call, unit / p->key_blocks, unit % p->key_blocks);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads * query_blocks; unit++) {
            query_block(p, call, &own, unit / query_blocks, unit % query_blocks * QUERIES);
        }
    }
}

extern const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_quadratic);
const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_quadratic) = {
    {"quadratic_" HLA_ISA_STRING, HLA_ISA_VALUE}, HLA_FORM_QUADRATIC, measure, run, NULL, NULL};
