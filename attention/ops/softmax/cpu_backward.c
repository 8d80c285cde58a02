/* Gradients of softmax attention in tiles; compiled once per instruction set.
 *
 * For a group of key heads at a time, keys, values, queries and d_out are packed. A first pass over the keys gives each
 * query the logarithm of its sum of weights and delta = g . out. A second pass visits every pair of a block of queries
 * and a block of keys once: scores and g . v make the weights p and the gradients ds of the scores, which go to dv, dk
 * and dq. Sums of dk and dv belong to a block of keys, those of dq to a block of queries. So that pairs can be worked
 * on at once without sharing a sum, IN_FLIGHT blocks of keys walk the blocks of queries together, each one block ahead
 * of the next; every sum then has an order that depends on nothing but the problem.
 */
#include "attention/ops/softmax/cpu.h"

#include <float.h>
#include <math.h>
#include <omp.h>

enum {
    QUERY_BLOCK = 96,
    KEY_TILE =
        256,       /* weights and their gradients (2 x 96 KB) and the keys' five tiles stay in the second-level cache */
    IN_FLIGHT = 8, /* blocks of keys worked on at once */
    GROUP_BYTES = 8 << 20 /* packed copies of the heads worked on together */
};

/* Sizes of one call. D, V, Tk are rounded up to COLUMNS where "padded". Per key head of a group ("slot"), N being the
 * blocks of all query heads that share it:
 *   key_columns [Tk/COLUMNS][D][COLUMNS], value_columns [Tk/COLUMNS][V][COLUMNS], key_rows [D/COLUMNS][Tk][COLUMNS],
 *   bias [Tk], query_rows [N][D/COLUMNS][BLOCK][COLUMNS], gradient_rows [N][V/COLUMNS][BLOCK][COLUMNS],
 *   dq [N][BLOCK][D], logarithm and delta [N][BLOCK], dk [IN_FLIGHT][TILE][D], dv [IN_FLIGHT][TILE][V].
 * Per thread: query [BLOCK][D], gradient [BLOCK][V], scores and products [BLOCK][TILE], maximum [BLOCK], total and
 * weighted [BLOCK][WIDTH] (sums per lane), vector [max(D,V)]. */
typedef struct layout {
    int64_t dim, value_dim, dim_padded, values_padded, keys_padded;
    int64_t block, blocks;        /* queries in a block, blocks in a query head */
    int64_t slots, shared, group; /* batch * key heads, query heads of each, slots packed at a time */
    int64_t all_blocks;           /* N: blocks * shared */
    int64_t key_blocks, in_flight;
    float *key_columns, *value_columns, *key_rows, *bias, *query_rows, *gradient_rows, *dq, *logarithm, *delta, *dk,
        *dv;
    float *scratch; /* [threads][scratch_floats] */
    int64_t scratch_floats;
} layout;

/* Pointers into one thread's scratch. */
typedef struct scratch {
    float *query, *gradient, *scores, *products, *maximum, *total, *weighted, *vector;
} scratch;

static scratch carve_scratch(const layout *sizes, void *base, size_t *used) {
    hla_arena arena = {.base = base};
    size_t block = (size_t)sizes->block * sizeof(float);
    int64_t longest = hla_larger(sizes->dim_padded, sizes->values_padded);
    scratch pieces = {.query = hla_arena_take(&arena, sizes->dim_padded, block),
                      .gradient = hla_arena_take(&arena, sizes->values_padded, block),
                      .scores = hla_arena_take(&arena, KEY_TILE, block),
                      .products = hla_arena_take(&arena, KEY_TILE, block),
                      .maximum = hla_arena_take(&arena, 1, block),
                      .total = hla_arena_take(&arena, HLA_VECTOR_WIDTH, block),
                      .weighted = hla_arena_take(&arena, HLA_VECTOR_WIDTH, block),
                      .vector = hla_arena_take(&arena, longest, sizeof(float))};
    if (used) *used = arena.used;
    return pieces;
}

/* The blocks of keys in flight, of equal number in each sweep; at most as many as there are blocks of queries. */
static int64_t blocks_in_flight(const layout *sizes) {
    int64_t most = hla_larger(1, hla_smaller(IN_FLIGHT, hla_smaller(sizes->key_blocks, sizes->all_blocks)));
    int64_t sweeps = (sizes->key_blocks + most - 1) / most;
    return sweeps > 0 ? (sizes->key_blocks + sweeps - 1) / sweeps : 1;
}

/* Enough slots at a time to give every thread two pairs, more while their packed copies stay in the cache. */
static int64_t slots_in_group(const layout *sizes, int threads) {
    int64_t enough = (2 * (int64_t)threads + sizes->in_flight - 1) / sizes->in_flight;
    int64_t bytes = (sizes->keys_padded * (2 * sizes->dim_padded + sizes->value_dim + 1) +
                     sizes->all_blocks * sizes->block * (2 * sizes->dim_padded + sizes->values_padded + 2)) *
                    (int64_t)sizeof(float);
    return hla_smaller(hla_larger(enough, GROUP_BYTES / bytes), sizes->slots);
}

/* Widths beyond 2^24, more than 2^33 keys and more than 2^33 queries of a key head are refused (as overflow), so that
 * no product below wraps. */
static layout lay_out(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    const int64_t most_width = (int64_t)1 << 24, most_keys = (int64_t)1 << 33;
    layout sizes = {.dim = problem->dim,
                    .value_dim = problem->value_dim,
                    .slots = problem->batch * hla_softmax_key_heads(problem),
                    .shared = hla_softmax_shared(problem)};
    if (problem->dim > most_width || problem->value_dim > most_width || problem->keys > most_keys ||
        hla_round_up(problem->queries, QUERY_BLOCK) > most_keys / sizes.shared) {
        arena->overflow = true;
        return sizes;
    }
    sizes.dim_padded = hla_round_up(problem->dim, HLA_TILE_COLUMNS);
    sizes.values_padded = hla_round_up(problem->value_dim, HLA_TILE_COLUMNS);
    sizes.keys_padded = hla_round_up(problem->keys, HLA_TILE_COLUMNS);
    sizes.block = hla_smaller(QUERY_BLOCK, hla_round_up(problem->queries, HLA_TILE_ROWS));
    sizes.blocks = (problem->queries - 1) / sizes.block + 1;
    sizes.all_blocks = sizes.blocks * sizes.shared;
    sizes.key_blocks = (problem->keys + KEY_TILE - 1) / KEY_TILE;
    sizes.in_flight = blocks_in_flight(&sizes);
    sizes.group = slots_in_group(&sizes, threads);
    size_t group_bytes = (size_t)sizes.group * sizeof(float), used;
    int64_t queries = sizes.all_blocks * sizes.block, tiles = sizes.in_flight * KEY_TILE;
    sizes.key_columns = hla_arena_take(arena, sizes.keys_padded * sizes.dim, group_bytes);
    sizes.value_columns = hla_arena_take(arena, sizes.keys_padded * sizes.value_dim, group_bytes);
    sizes.key_rows = hla_arena_take(arena, sizes.keys_padded * sizes.dim_padded, group_bytes);
    sizes.bias = hla_arena_take(arena, sizes.keys_padded, group_bytes);
    sizes.query_rows = hla_arena_take(arena, queries * sizes.dim_padded, group_bytes);
    sizes.gradient_rows = hla_arena_take(arena, queries * sizes.values_padded, group_bytes);
    sizes.dq = hla_arena_take(arena, queries * sizes.dim_padded, group_bytes);
    sizes.logarithm = hla_arena_take(arena, queries, group_bytes);
    sizes.delta = hla_arena_take(arena, queries, group_bytes);
    sizes.dk = hla_arena_take(arena, tiles * sizes.dim_padded, group_bytes);
    sizes.dv = hla_arena_take(arena, tiles * sizes.values_padded, group_bytes);
    carve_scratch(&sizes, NULL, &used);
    sizes.scratch_floats = (int64_t)(used / sizeof(float));
    sizes.scratch = hla_arena_take(arena, threads, used);
    return sizes;
}

void HLA_ISA_NAME(hla_softmax_measure_backward)(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    lay_out(arena, problem, threads);
}

/* One head of the group: pointers to its packed arrays. */
typedef struct head {
    int64_t b, key_head, keys; /* keys that count */
    float *key_columns, *value_columns, *key_rows, *bias, *query_rows, *gradient_rows, *dq, *logarithm, *delta, *dk,
        *dv;
} head;

static head head_at(const hla_softmax_call *call, const layout *sizes, int64_t first, int64_t slot) {
    const int64_t key_heads = hla_softmax_key_heads(&call->problem), b = (first + slot) / key_heads;
    const int64_t keys = slot * sizes->keys_padded, queries = slot * sizes->all_blocks * sizes->block;
    const int64_t tiles = slot * sizes->in_flight * KEY_TILE;
    return (head){.b = b,
                  .key_head = (first + slot) % key_heads,
                  .keys = hla_softmax_keys(call, b),
                  .key_columns = sizes->key_columns + keys * sizes->dim,
                  .value_columns = sizes->value_columns + keys * sizes->value_dim,
                  .key_rows = sizes->key_rows + keys * sizes->dim_padded,
                  .bias = sizes->bias + keys,
                  .query_rows = sizes->query_rows + queries * sizes->dim_padded,
                  .gradient_rows = sizes->gradient_rows + queries * sizes->values_padded,
                  .dq = sizes->dq + queries * sizes->dim_padded,
                  .logarithm = sizes->logarithm + queries,
                  .delta = sizes->delta + queries,
                  .dk = sizes->dk + tiles * sizes->dim_padded,
                  .dv = sizes->dv + tiles * sizes->values_padded};
}

/* Row [b,t,h] as floats, zero up to padded. */
static void load_row(float *row, const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t padded) {
    int64_t width = tensor->shape[3];
    hla_load_floats(row, hla_tensor_row(tensor, b, t, h), tensor->dtype, width, tensor->stride[3]);
    memset(row + width, 0, (size_t)(padded - width) * sizeof *row);
}

/* A row into panels of COLUMNS columns whose rows are rows apart. */
static void to_panels(float *panels, const float *row, int64_t rows, int64_t padded) {
    for (int64_t x = 0; x < padded; x += HLA_TILE_COLUMNS)
        memcpy(panels + x * rows, row + x, HLA_TILE_COLUMNS * sizeof *row);
}

/* Packs keys first ... first + COLUMNS - 1 of a head; those beyond the last are zero, with a bias of minus infinity. */
static void pack_keys(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t first,
                      float *vector) {
    const int64_t dim = sizes->dim, value_dim = sizes->value_dim;
    float *keys = own->key_columns + first * dim, *values = own->value_columns + first * value_dim;
    if (first >= own->keys) return;
    for (int64_t j = 0; j < HLA_TILE_COLUMNS; j++) {
        float *row = own->key_rows + (first + j) * HLA_TILE_COLUMNS;
        bool real = first + j < own->keys;
        float given = call->key_bias && real ? call->key_bias[first + j] : 0;
        own->bias[first + j] = real ? given * (float)M_LOG2E : -INFINITY;
        memset(vector, 0, (size_t)hla_larger(sizes->dim_padded, sizes->values_padded) * sizeof *vector);
        if (real) load_row(vector, call->v, own->b, first + j, own->key_head, value_dim);
        for (int64_t x = 0; x < value_dim; x++)
            values[x * HLA_TILE_COLUMNS + j] = vector[x];
        memset(vector, 0, (size_t)sizes->dim_padded * sizeof *vector);
        if (real) load_row(vector, call->k, own->b, first + j, own->key_head, dim);
        for (int64_t x = 0; x < dim; x++)
            keys[x * HLA_TILE_COLUMNS + j] = vector[x];
        to_panels(row, vector, sizes->keys_padded, sizes->dim_padded);
    }
}

/* A block of queries: of query head h, from query first on. */
typedef struct query_block {
    int64_t h, first, count, rows; /* rows: count rounded up to whole strips */
    float *query_rows, *gradient_rows, *dq, *logarithm, *delta;
} query_block;

static query_block block_at(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t index) {
    int64_t first = index % sizes->blocks * sizes->block,
            count = hla_smaller(call->problem.queries - first, sizes->block);
    int64_t start = index * sizes->block;
    return (query_block){.h = own->key_head * sizes->shared + index / sizes->blocks,
                         .first = first,
                         .count = count,
                         .rows = hla_round_up(count, HLA_TILE_ROWS),
                         .query_rows = own->query_rows + start * sizes->dim_padded,
                         .gradient_rows = own->gradient_rows + start * sizes->values_padded,
                         .dq = own->dq + start * sizes->dim_padded,
                         .logarithm = own->logarithm + start,
                         .delta = own->delta + start};
}

/* Packs the block's queries, times scale / ln 2 (weights are powers of two), and d_out, both also as they stand into
 * the thread's scratch; rows up to a whole strip are zero. Clears dq. */
static void pack_queries(const hla_softmax_call *call, const layout *sizes, const head *own, const query_block *block,
                         const scratch *mine) {
    const float scale = (float)((double)call->problem.scale * M_LOG2E);
    for (int64_t i = 0; i < block->rows; i++) {
        float *query = mine->query + i * sizes->dim_padded, *gradient = mine->gradient + i * sizes->values_padded;
        if (i < block->count) {
            load_row(query, call->q, own->b, block->first + i, block->h, sizes->dim_padded);
            load_row(gradient, call->out, own->b, block->first + i, block->h, sizes->values_padded);
        } else {
            memset(query, 0, (size_t)sizes->dim_padded * sizeof *query);
            memset(gradient, 0, (size_t)sizes->values_padded * sizeof *gradient);
        }
        for (int64_t x = 0; x < sizes->dim; x++)
            query[x] *= scale;
        to_panels(block->query_rows + i * HLA_TILE_COLUMNS, query, sizes->block, sizes->dim_padded);
        to_panels(block->gradient_rows + i * HLA_TILE_COLUMNS, gradient, sizes->block, sizes->values_padded);
    }
    memset(block->dq, 0, (size_t)(block->rows * sizes->dim_padded) * sizeof(float));
}

/* Rows of panels back to [rows][padded]. */
static void from_panels(float *to, const float *panels, int64_t rows, const layout *sizes, int64_t padded) {
    for (int64_t x = 0; x < padded; x += HLA_TILE_COLUMNS) {
        for (int64_t i = 0; i < rows; i++)
            memcpy(to + i * padded + x, panels + (x * sizes->block + i * HLA_TILE_COLUMNS),
                   HLA_TILE_COLUMNS * sizeof *to);
    }
}

/* What of a block of queries and a tile of keys matters: rows begin ... rows - 1 see some of the first count keys. */
typedef struct extent {
    int64_t begin, rows, count, padded; /* padded: count rounded up to COLUMNS */
    int64_t visible;                    /* causal: keys of the tile that row 0 sees, may be negative */
    bool causal;
} extent;

static extent extent_of(const hla_softmax_call *call, const head *own, const query_block *block, int64_t tile) {
    extent part = {.rows = block->rows,
                   .count = hla_smaller(own->keys - tile, KEY_TILE),
                   .visible = block->first + 1 - tile,
                   .causal = call->problem.causal};
    if (part.causal) {
        part.begin = part.visible < 1 ? (1 - part.visible) / HLA_TILE_ROWS * HLA_TILE_ROWS : 0;
        part.count = hla_smaller(part.count, part.visible + block->count - 1);
    }
    part.padded = part.count > 0 ? hla_round_up(part.count, HLA_TILE_COLUMNS) : 0;
    return part;
}

/* out [BLOCK][TILE] = rows [BLOCK][row] times columns of a tile, steps products each. */
static void multiply_columns(float *out, const float *rows, int64_t row, const float *columns, int64_t steps,
                             const extent *part) {
    for (int64_t j = 0; j < part->padded; j += HLA_TILE_COLUMNS) {
        for (int64_t i = part->begin; i < part->rows; i += HLA_TILE_ROWS) {
            hla_tile(out + i * KEY_TILE + j, KEY_TILE, rows + i * row, row, 1, columns + j * steps, steps, 2,
                     HLA_TILE_STORE);
        }
    }
}

/* Scores in units of ln 2, and g . v. */
static void scores_and_products(const layout *sizes, const head *own, const scratch *mine, int64_t tile,
                                const extent *part) {
    multiply_columns(mine->scores, mine->query, sizes->dim_padded, own->key_columns + tile * sizes->dim, sizes->dim,
                     part);
    multiply_columns(mine->products, mine->gradient, sizes->values_padded, own->value_columns + tile * sizes->value_dim,
                     sizes->value_dim, part);
}

/* One row of scores: plus the bias, minus infinity for keys the row does not see; returns the largest. */
static float finish_scores(float *scores, const float *bias, int64_t row, const extent *part) {
    hla_vector largest = hla_vector_set(-FLT_MAX);
    for (int64_t j = hla_larger(part->visible + row, 0); part->causal && j < part->padded; j++)
        scores[j] = -INFINITY;
    for (int64_t j = 0; j < part->padded; j += HLA_VECTOR_WIDTH) {
        hla_vector x = hla_vector_add(hla_vector_load(scores + j), hla_vector_load(bias + j));
        hla_vector_store(scores + j, x);
        largest = hla_vector_larger(x, largest);
    }
    return hla_vector_largest(largest);
}

/* Adds a tile's weights, and weights times products, of one row to lane sums kept relative to a running maximum. */
static void gather_row(const float *scores, const float *products, float largest, int64_t padded, float *maximum,
                       float *total, float *weighted) {
    if (largest > *maximum) {
        hla_vector factor = hla_vector_exp2(hla_vector_set(*maximum - largest));
        hla_vector_store(total, hla_vector_multiply(hla_vector_load(total), factor));
        hla_vector_store(weighted, hla_vector_multiply(hla_vector_load(weighted), factor));
        *maximum = largest;
    }
    hla_vector sum = hla_vector_zero(), product = hla_vector_zero(), shift = hla_vector_set(*maximum);
    for (int64_t j = 0; j < padded; j += HLA_VECTOR_WIDTH) {
        hla_vector weight = hla_vector_exp2(hla_vector_subtract(hla_vector_load(scores + j), shift));
        sum = hla_vector_add(sum, weight);
        product = hla_vector_multiply_add(weight, hla_vector_load(products + j), product);
    }
    hla_vector_store(total, hla_vector_add(hla_vector_load(total), sum));
    hla_vector_store(weighted, hla_vector_add(hla_vector_load(weighted), product));
}

/* First pass of one block of queries: logarithm (base 2) of the sum of weights, and delta = sum_j p_ij g_i . v_j, which
 * is g_i . out_i. A row without weights gets a logarithm so large that all its weights come out as zero. */
static void gather_block(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t index,
                         const scratch *mine) {
    const query_block block = block_at(call, sizes, own, index);
    pack_queries(call, sizes, own, &block, mine);
    for (int64_t i = 0; i < block.rows; i++)
        mine->maximum[i] = -FLT_MAX;
    memset(mine->total, 0, (size_t)(block.rows * HLA_VECTOR_WIDTH) * sizeof(float));
    memset(mine->weighted, 0, (size_t)(block.rows * HLA_VECTOR_WIDTH) * sizeof(float));
    for (int64_t tile = 0; tile < own->keys; tile += KEY_TILE) {
        const extent part = extent_of(call, own, &block, tile);
        if (part.count <= 0) break;
        scores_and_products(sizes, own, mine, tile, &part);
        for (int64_t i = part.begin; i < part.rows; i++) {
            float *scores = mine->scores + i * KEY_TILE;
            float largest = finish_scores(scores, own->bias + tile, i, &part);
            gather_row(scores, mine->products + i * KEY_TILE, largest, part.padded, mine->maximum + i,
                       mine->total + i * HLA_VECTOR_WIDTH, mine->weighted + i * HLA_VECTOR_WIDTH);
        }
    }
    for (int64_t i = 0; i < block.rows; i++) {
        float total = hla_vector_sum(hla_vector_load(mine->total + i * HLA_VECTOR_WIDTH));
        float weighted = hla_vector_sum(hla_vector_load(mine->weighted + i * HLA_VECTOR_WIDTH));
        bool none = total == 0 || i >= block.count;
        block.logarithm[i] = none ? FLT_MAX : (float)((double)mine->maximum[i] + log2((double)total));
        block.delta[i] = none ? 0 : weighted / total;
    }
}

/* scores become weights p, products become ds = p (g . v - delta). */
static void weigh_rows(const query_block *block, const head *own, const scratch *mine, int64_t tile,
                       const extent *part) {
    for (int64_t i = part->begin; i < part->rows; i++) {
        float *scores = mine->scores + i * KEY_TILE, *products = mine->products + i * KEY_TILE;
        finish_scores(scores, own->bias + tile, i, part);
        hla_vector shift = hla_vector_set(block->logarithm[i]), delta = hla_vector_set(block->delta[i]);
        for (int64_t j = 0; j < part->padded; j += HLA_VECTOR_WIDTH) {
            hla_vector weight = hla_vector_exp2(hla_vector_subtract(hla_vector_load(scores + j), shift));
            hla_vector product = hla_vector_subtract(hla_vector_load(products + j), delta);
            hla_vector_store(scores + j, weight);
            hla_vector_store(products + j, hla_vector_multiply(weight, product));
        }
    }
}

/* sums [TILE][padded] += weights^T times panels of rows, over the rows of a block; weights [BLOCK][TILE]. */
static void add_to_keys(float *sums, const float *weights, const float *panels, const layout *sizes, int64_t width,
                        int64_t padded, const extent *part) {
    const int64_t steps = part->rows - part->begin;
    for (int64_t j = 0; j < part->count; j += HLA_TILE_ROWS) {
        const float *a = weights + part->begin * KEY_TILE + j;
        for (int64_t x = 0; x < width; x += HLA_TILE_COLUMNS) {
            const float *b = panels + x * sizes->block + part->begin * HLA_TILE_COLUMNS;
            if (width - x > HLA_VECTOR_WIDTH) {
                hla_tile(sums + j * padded + x, padded, a, 1, KEY_TILE, b, steps, 2, HLA_TILE_ADD);
            } else {
                hla_tile(sums + j * padded + x, padded, a, 1, KEY_TILE, b, steps, 1, HLA_TILE_ADD);
            }
        }
    }
}

/* dq [BLOCK][D] += ds times a tile of keys. */
static void add_to_queries(float *dq, const float *ds, const float *key_rows, const layout *sizes, const extent *part) {
    const int64_t row = sizes->dim_padded;
    for (int64_t x = 0; x < sizes->dim; x += HLA_TILE_COLUMNS) {
        const float *b = key_rows + x * sizes->keys_padded;
        for (int64_t i = part->begin; i < part->rows; i += HLA_TILE_ROWS) {
            if (sizes->dim - x > HLA_VECTOR_WIDTH) {
                hla_tile(dq + i * row + x, row, ds + i * KEY_TILE, KEY_TILE, 1, b, part->count, 2, HLA_TILE_ADD);
            } else {
                hla_tile(dq + i * row + x, row, ds + i * KEY_TILE, KEY_TILE, 1, b, part->count, 1, HLA_TILE_ADD);
            }
        }
    }
}

/* Second pass of one block of queries and one block of keys, whose sums dk and dv are at place. */
static void differentiate_pair(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t index,
                               int64_t tile, int64_t place, const scratch *mine) {
    const query_block block = block_at(call, sizes, own, index);
    const extent part = extent_of(call, own, &block, tile);
    if (part.count <= 0) return;
    from_panels(mine->query, block.query_rows, block.rows, sizes, sizes->dim_padded);
    from_panels(mine->gradient, block.gradient_rows, block.rows, sizes, sizes->values_padded);
    scores_and_products(sizes, own, mine, tile, &part);
    weigh_rows(&block, own, mine, tile, &part);
    add_to_keys(own->dv + place * KEY_TILE * sizes->values_padded, mine->scores, block.gradient_rows, sizes,
                sizes->value_dim, sizes->values_padded, &part);
    add_to_keys(own->dk + place * KEY_TILE * sizes->dim_padded, mine->products, block.query_rows, sizes, sizes->dim,
                sizes->dim_padded, &part);
    add_to_queries(block.dq, mine->products, own->key_rows + tile * HLA_TILE_COLUMNS, sizes, &part);
}

static void clear_keys(const layout *sizes, const head *own, int64_t place) {
    memset(own->dk + place * KEY_TILE * sizes->dim_padded, 0, (size_t)(KEY_TILE * sizes->dim_padded) * sizeof(float));
    memset(own->dv + place * KEY_TILE * sizes->values_padded, 0,
           (size_t)(KEY_TILE * sizes->values_padded) * sizeof(float));
}

/* row times factor, rounded into [b,t,h] */
static void store_row(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, float *row, float factor) {
    for (int64_t x = 0; x < tensor->shape[3]; x++)
        row[x] *= factor;
    hla_store_floats(hla_tensor_row(tensor, b, t, h), tensor->dtype, tensor->shape[3], tensor->stride[3], row);
}

/* The packed queries carry scale / ln 2, so dk needs ln 2. */
static void store_keys(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t tile,
                       int64_t place) {
    int64_t count = hla_smaller(call->problem.keys - tile, KEY_TILE);
    for (int64_t j = 0; j < count; j++) {
        int64_t row = place * KEY_TILE + j;
        store_row(call->dk, own->b, tile + j, own->key_head, own->dk + row * sizes->dim_padded, (float)M_LN2);
        store_row(call->dv, own->b, tile + j, own->key_head, own->dv + row * sizes->values_padded, 1);
    }
}

static void store_queries(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t index) {
    const query_block block = block_at(call, sizes, own, index);
    for (int64_t i = 0; i < block.count; i++)
        store_row(call->dq, own->b, block.first + i, block.h, block.dq + i * sizes->dim_padded, call->problem.scale);
}

/* One block of keys against one of the in_flight segments of the blocks of queries. */
static void differentiate_segment(const hla_softmax_call *call, const layout *sizes, const head *own, int64_t segment,
                                  int64_t tile, int64_t place, const scratch *mine) {
    int64_t each = sizes->all_blocks / sizes->in_flight, more = sizes->all_blocks % sizes->in_flight;
    int64_t first = segment * each + hla_smaller(segment, more), end = first + each + (segment < more);
    for (int64_t index = first; index < end; index++)
        differentiate_pair(call, sizes, own, index, tile, place, mine);
}

/* The second pass of a group, by all threads: blocks of keys in flight sweep by sweep, step by step. In a step, each is
 * at another segment of the blocks of queries, so that the units of a step share no sums. */
static void differentiate_group(const hla_softmax_call *call, const layout *sizes, int64_t first, int64_t group,
                                const scratch *mine) {
    const int64_t steps = sizes->in_flight;
    for (int64_t sweep = 0; sweep < sizes->key_blocks; sweep += sizes->in_flight) {
        int64_t flying = hla_smaller(sizes->in_flight, sizes->key_blocks - sweep);
        for (int64_t step = 0; step < steps; step++) {
#pragma omp for schedule(dynamic)
            for (int64_t unit = 0; unit < group * flying; unit++) {
                const head own = head_at(call, sizes, first, unit / flying);
                int64_t place = unit % flying, tile = (sweep + place) * KEY_TILE;
                if (step == 0) clear_keys(sizes, &own, place);
                differentiate_segment(call, sizes, &own, (place + step) % steps, tile, place, mine);
                if (step == steps - 1) store_keys(call, sizes, &own, tile, place);
            }
        }
    }
}

hla_status HLA_ISA_NAME(hla_softmax_run_backward)(const hla_softmax_call *call) {
    hla_arena arena = {.base = call->workspace};
    const layout sizes = lay_out(&arena, &call->problem, call->threads);
    const int64_t panels = sizes.keys_padded / HLA_TILE_COLUMNS;
#pragma omp parallel num_threads(hla_team_size(call->threads, sizes.group, hla_larger(panels, sizes.all_blocks)))
    {
        const scratch mine = carve_scratch(&sizes, sizes.scratch + omp_get_thread_num() * sizes.scratch_floats, NULL);
        for (int64_t first = 0; first < sizes.slots; first += sizes.group) {
            int64_t group = hla_smaller(sizes.slots - first, sizes.group);
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < group * panels; unit++) {
                const head own = head_at(call, &sizes, first, unit / panels);
                pack_keys(call, &sizes, &own, unit % panels * HLA_TILE_COLUMNS, mine.vector);
            }
#pragma omp for schedule(dynamic)
            for (int64_t unit = 0; unit < group * sizes.all_blocks; unit++) {
                const head own = head_at(call, &sizes, first, unit / sizes.all_blocks);
                gather_block(call, &sizes, &own, unit % sizes.all_blocks, &mine);
            }
            differentiate_group(call, &sizes, first, group, &mine);
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < group * sizes.all_blocks; unit++) {
                const head own = head_at(call, &sizes, first, unit / sizes.all_blocks);
                store_queries(call, &sizes, &own, unit % sizes.all_blocks);
            }
        }
    }
    return HLA_OK;
}
