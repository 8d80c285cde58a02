/* Softmax attention in tiles; compiled once per instruction set.
 *
 * Keys and values of a group of heads are packed once, into panels of HLA_TILE_COLUMNS columns. Then each block of
 * queries walks the keys tile by tile: scores of a strip of HLA_TILE_ROWS queries (kept in the first-level cache),
 * running maximum and sum, weights, weights times values. A strip's result depends on nothing but its own queries and
 * the tile size, so neither the number of threads nor the order of blocks changes a bit of it.
 */
#include "attention/ops/softmax/cpu.h"

#include <float.h>
#include <math.h>
#include <omp.h>

enum {
    /* Queries that share one pass over the keys. 96 keep that pass below what the cache delivers; 384, where there are
     * enough queries for all threads, below what memory delivers (10 % faster at T = 32,760, D = 128). */
    SMALL_BLOCK = 96,
    LARGE_BLOCK = 384,
    KEY_TILE = 256,       /* K and V tiles (128 KB at D = V = 64) stay in the second-level cache, scores in the first */
    GROUP_BYTES = 8 << 20 /* packed keys and values of the heads worked on together */
};

/* Sizes of one call. Per head of a group: keys [Tk/COLUMNS][D][COLUMNS], values [V/COLUMNS][Tk][COLUMNS], bias [Tk];
 * Tk and V rounded up to COLUMNS. Per thread: query [BLOCK][D], sums [BLOCK][V], scores [ROWS][KEY_TILE],
 * maximum [BLOCK], total [BLOCK][WIDTH] (a sum of weights per lane, added up at the end), vector [max(D,V)]. */
typedef struct layout {
    int64_t dim, value_dim;             /* D, V */
    int64_t keys_padded, values_padded; /* Tk, V rounded up */
    int64_t block, blocks;              /* queries in a block, blocks in a query head */
    int64_t heads;                      /* batch * key heads */
    int64_t shared;                     /* query heads of a key head */
    int64_t group;                      /* key heads packed at a time */
    float *keys, *values, *bias;        /* packed, group times */
    float *scratch;                     /* [threads][scratch_floats] */
    int64_t scratch_floats;
} layout;

/* Pointers into one thread's scratch. */
typedef struct scratch {
    float *query, *sums, *scores, *maximum, *total, *vector;
} scratch;

static scratch carve_scratch(const layout *sizes, void *base, size_t *used) {
    hla_arena arena = {.base = base};
    size_t block = (size_t)sizes->block;
    int64_t longest = sizes->dim > sizes->values_padded ? sizes->dim : sizes->values_padded;
    scratch pieces = {.query = hla_arena_take(&arena, sizes->dim, block * sizeof(float)),
                      .sums = hla_arena_take(&arena, sizes->values_padded, block * sizeof(float)),
                      .scores = hla_arena_take(&arena, KEY_TILE, HLA_TILE_ROWS * sizeof(float)),
                      .maximum = hla_arena_take(&arena, sizes->block, sizeof(float)),
                      .total = hla_arena_take(&arena, sizes->block, HLA_VECTOR_WIDTH * sizeof(float)),
                      .vector = hla_arena_take(&arena, longest, sizeof(float))};
    if (used) *used = arena.used;
    return pieces;
}

/* Enough heads at a time to give every thread a few blocks, more while their packed copies stay in the cache. */
static int64_t heads_in_group(const layout *sizes, int threads) {
    int64_t units = sizes->blocks * sizes->shared, enough = (4 * (int64_t)threads + units - 1) / units;
    int64_t head_bytes = sizes->keys_padded * (sizes->dim + sizes->values_padded + 1) * (int64_t)sizeof(float);
    int64_t fitting = head_bytes > 0 ? GROUP_BYTES / head_bytes : sizes->heads;
    return hla_smaller(enough > fitting ? enough : fitting, sizes->heads);
}

/* Widths beyond 2^24 and more than 2^34 keys are refused (as overflow), so that no product below wraps. */
static layout lay_out(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    const int64_t most_width = (int64_t)1 << 24, most_keys = (int64_t)1 << 34;
    layout sizes = {.dim = problem->dim,
                    .value_dim = problem->value_dim,
                    .heads = problem->batch * hla_softmax_key_heads(problem),
                    .shared = hla_softmax_shared(problem)};
    if (problem->dim > most_width || problem->value_dim > most_width || problem->keys > most_keys) {
        arena->overflow = true;
        return sizes;
    }
    sizes.keys_padded = hla_round_up(problem->keys, HLA_TILE_COLUMNS);
    sizes.values_padded = hla_round_up(problem->value_dim, HLA_TILE_COLUMNS);
    bool many = problem->queries / LARGE_BLOCK >= 8 * (int64_t)threads / (problem->batch * problem->heads) + 1;
    sizes.block = many ? LARGE_BLOCK : SMALL_BLOCK;
    sizes.blocks = (problem->queries - 1) / sizes.block + 1;
    sizes.group = heads_in_group(&sizes, threads);
    size_t group_bytes = (size_t)sizes.group * sizeof(float), used;
    sizes.keys = hla_arena_take(arena, sizes.keys_padded * sizes.dim, group_bytes);
    sizes.values = hla_arena_take(arena, sizes.keys_padded * sizes.values_padded, group_bytes);
    sizes.bias = hla_arena_take(arena, sizes.keys_padded, group_bytes);
    carve_scratch(&sizes, NULL, &used);
    sizes.scratch_floats = (int64_t)(used / sizeof(float));
    sizes.scratch = hla_arena_take(arena, threads, used);
    return sizes;
}

static void measure(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    lay_out(arena, problem, threads);
}

/* Packs keys first ... first + COLUMNS - 1 of a head: K transposed, zero beyond the last key; bias in units of ln 2,
 * minus infinity beyond the last key; V as it is, its padding columns zero. */
static void pack_keys(const hla_softmax_call *call, const layout *sizes, int64_t slot, int64_t b, int64_t h,
                      int64_t first, float *vector) {
    const hla_tensor *k = call->k, *v = call->v;
    int64_t count = hla_smaller(hla_softmax_keys(call, b) - first, HLA_TILE_COLUMNS);
    if (count <= 0) return;
    float *keys = sizes->keys + (slot * sizes->keys_padded + first) * sizes->dim;
    float *bias = sizes->bias + slot * sizes->keys_padded + first;
    if (count < HLA_TILE_COLUMNS) memset(keys, 0, (size_t)sizes->dim * HLA_TILE_COLUMNS * sizeof *keys);
    for (int64_t j = 0; j < HLA_TILE_COLUMNS; j++) {
        float given = call->key_bias && j < count ? call->key_bias[first + j] : 0;
        bias[j] = j < count ? given * (float)M_LOG2E : -INFINITY;
    }
    for (int64_t j = 0; j < count; j++) {
        hla_load_floats(vector, hla_tensor_row(k, b, first + j, h), k->dtype, sizes->dim, k->stride[3]);
        for (int64_t x = 0; x < sizes->dim; x++)
            keys[x * HLA_TILE_COLUMNS + j] = vector[x];
        hla_load_floats(vector, hla_tensor_row(v, b, first + j, h), v->dtype, sizes->value_dim, v->stride[3]);
        memset(vector + sizes->value_dim, 0, (size_t)(sizes->values_padded - sizes->value_dim) * sizeof *vector);
        float *values = sizes->values + slot * sizes->keys_padded * sizes->values_padded;
        for (int64_t x = 0; x < sizes->values_padded; x += HLA_TILE_COLUMNS)
            memcpy(values + x * sizes->keys_padded + (first + j) * HLA_TILE_COLUMNS, vector + x,
                   HLA_TILE_COLUMNS * sizeof *vector);
    }
}

/* Loads a block's queries, times scale / ln 2 (weights are powers of two); rows beyond count, up to a whole strip, are
 * zero. Resets maximum, total and sums. */
static void start_block(const hla_softmax_call *call, const layout *sizes, const scratch *own, int64_t b, int64_t h,
                        int64_t first, int64_t count) {
    const hla_tensor *q = call->q;
    float scale = (float)((double)call->problem.scale * M_LOG2E);
    for (int64_t i = 0; i < count; i++) {
        float *row = own->query + i * sizes->dim;
        hla_load_floats(row, hla_tensor_row(q, b, first + i, h), q->dtype, sizes->dim, q->stride[3]);
        for (int64_t x = 0; x < sizes->dim; x++)
            row[x] *= scale;
    }
    int64_t rows = hla_round_up(count, HLA_TILE_ROWS);
    memset(own->query + count * sizes->dim, 0, (size_t)((rows - count) * sizes->dim) * sizeof(float));
    for (int64_t i = 0; i < rows; i++)
        own->maximum[i] = -FLT_MAX; /* finite, so that a row of masked keys gives weights 0, not NaN */
    memset(own->total, 0, (size_t)(rows * HLA_VECTOR_WIDTH) * sizeof(float));
    memset(own->sums, 0, (size_t)(rows * sizes->values_padded) * sizeof(float));
}

/* scores [ROWS][padded] = strip of queries times a tile of keys. */
static void strip_scores(float *scores, const float *query, const float *keys, int64_t dim, int64_t count) {
    for (int64_t j = 0; j < count; j += HLA_TILE_COLUMNS) {
        if (count - j > HLA_VECTOR_WIDTH) {
            hla_tile(scores + j, KEY_TILE, query, dim, 1, keys + j * dim, dim, 2, HLA_TILE_STORE);
        } else {
            hla_tile(scores + j, KEY_TILE, query, dim, 1, keys + j * dim, dim, 1, HLA_TILE_STORE);
        }
    }
}

/* Causal: row i of a strip sees the first visible + i keys of the tile; the scores of the others become minus infinity.
 */
static void mask_strip(float *scores, int64_t visible, int64_t count) {
    int64_t padded = hla_round_up(count, HLA_VECTOR_WIDTH);
    for (int64_t i = 0; i < HLA_TILE_ROWS; i++) {
        for (int64_t j = hla_larger(visible + i, 0); j < padded; j++)
            scores[i * KEY_TILE + j] = -INFINITY;
    }
}

/* Adds the bias to one row of scores, padded to whole vectors, where there is one; returns the largest. */
static float row_largest(float *scores, const float *bias, int64_t padded) {
    hla_vector largest = hla_vector_set(-FLT_MAX);
    for (int64_t j = 0; j < padded; j += HLA_VECTOR_WIDTH) {
        hla_vector x = hla_vector_load(scores + j);
        if (bias) {
            x = hla_vector_add(x, hla_vector_load(bias + j));
            hla_vector_store(scores + j, x);
        }
        largest = hla_vector_larger(x, largest);
    }
    return hla_vector_largest(largest);
}

/* One row of scores becomes weights 2^(score - maximum), which are added to total, lane by lane. */
static void row_weights(float *scores, float maximum, int64_t padded, float *total) {
    hla_vector sum = hla_vector_zero(), shift = hla_vector_set(maximum);
    for (int64_t j = 0; j < padded; j += HLA_VECTOR_WIDTH) {
        hla_vector weight = hla_vector_exp2(hla_vector_subtract(hla_vector_load(scores + j), shift));
        hla_vector_store(scores + j, weight);
        sum = hla_vector_add(sum, weight);
    }
    hla_vector_store(total, hla_vector_add(hla_vector_load(total), sum));
}

/* Scores to weights against the new running maximum; what was summed under the old one is scaled down to it. */
static void strip_weights(float *scores, const float *bias, int64_t count, float *maximum, float *total, float *sums,
                          int64_t values_padded) {
    int64_t padded = hla_round_up(count, HLA_VECTOR_WIDTH);
    for (int64_t i = 0; i < HLA_TILE_ROWS; i++) {
        float *row = scores + i * KEY_TILE, *sum = sums + i * values_padded, *lanes = total + i * HLA_VECTOR_WIDTH;
        float largest = row_largest(row, bias, padded);
        if (largest > maximum[i]) {
            hla_vector factor = hla_vector_exp2(hla_vector_set(maximum[i] - largest));
            for (int64_t x = 0; x < values_padded; x += HLA_VECTOR_WIDTH)
                hla_vector_store(sum + x, hla_vector_multiply(hla_vector_load(sum + x), factor));
            hla_vector_store(lanes, hla_vector_multiply(hla_vector_load(lanes), factor));
            maximum[i] = largest;
        }
        row_weights(row, maximum[i], padded, lanes);
    }
}

/* sums [ROWS][V] += weights times a tile of values. */
static void strip_values(float *sums, const float *weights, const float *values, int64_t count, const layout *sizes) {
    for (int64_t x = 0; x < sizes->value_dim; x += HLA_TILE_COLUMNS) {
        const float *panel = values + x * sizes->keys_padded;
        if (sizes->value_dim - x > HLA_VECTOR_WIDTH) {
            hla_tile(sums + x, sizes->values_padded, weights, KEY_TILE, 1, panel, count, 2, HLA_TILE_ADD);
        } else {
            hla_tile(sums + x, sizes->values_padded, weights, KEY_TILE, 1, panel, count, 1, HLA_TILE_ADD);
        }
    }
}

/* out = sums / total; a row whose keys are none or all masked has total 0 and sums 0, and stays 0. */
static void finish_block(const hla_softmax_call *call, const layout *sizes, const scratch *own, int64_t b, int64_t h,
                         int64_t first, int64_t count) {
    const hla_tensor *out = call->out;
    for (int64_t i = 0; i < count; i++) {
        float *row = own->sums + i * sizes->values_padded;
        float sum = hla_vector_sum(hla_vector_load(own->total + i * HLA_VECTOR_WIDTH));
        float factor = sum == 0 ? 0 : 1 / sum;
        for (int64_t x = 0; x < sizes->value_dim; x++)
            row[x] *= factor;
        hla_store_floats(hla_tensor_row(out, b, first + i, h), out->dtype, sizes->value_dim, out->stride[3], row);
    }
}

static void attend_block(const hla_softmax_call *call, const layout *sizes, const scratch *own, int64_t slot, int64_t b,
                         int64_t h, int64_t first) {
    int64_t keys = hla_softmax_keys(call, b), queries = hla_smaller(call->problem.queries - first, sizes->block);
    start_block(call, sizes, own, b, h, first, queries);
    const float *head_keys = sizes->keys + slot * sizes->keys_padded * sizes->dim;
    const float *head_values = sizes->values + slot * sizes->keys_padded * sizes->values_padded;
    const float *head_bias = sizes->bias + slot * sizes->keys_padded;
    const bool causal = call->problem.causal;
    if (causal) keys = hla_smaller(keys, first + queries);
    for (int64_t tile = 0; tile < keys; tile += KEY_TILE) {
        int64_t count = hla_smaller(keys - tile, KEY_TILE);
        const float *bias = call->key_bias || count % HLA_VECTOR_WIDTH != 0 ? head_bias + tile : NULL;
        for (int64_t i = 0; i < queries; i += HLA_TILE_ROWS) {
            int64_t visible = first + i + 1 - tile; /* if causal, keys of the tile that the strip's first query sees */
            int64_t used = causal ? hla_smaller(count, visible + HLA_TILE_ROWS - 1) : count;
            if (used <= 0) continue;
            float *sums = own->sums + i * sizes->values_padded;
            strip_scores(own->scores, own->query + i * sizes->dim, head_keys + tile * sizes->dim, sizes->dim, used);
            if (causal) mask_strip(own->scores, visible, used);
            strip_weights(own->scores, bias, used, own->maximum + i, own->total + i * HLA_VECTOR_WIDTH, sums,
                          sizes->values_padded);
            strip_values(sums, own->scores, head_values + tile * HLA_TILE_COLUMNS, used, sizes);
        }
    }
    finish_block(call, sizes, own, b, h, first, queries);
}

static hla_status run(const hla_softmax_call *call) {
    hla_arena arena = {.base = call->workspace};
    const layout sizes = lay_out(&arena, &call->problem, call->threads);
    const int64_t heads = hla_softmax_key_heads(&call->problem), panels = sizes.keys_padded / HLA_TILE_COLUMNS;
    const int64_t units = sizes.blocks * sizes.shared; /* of a key head */
#pragma omp parallel num_threads(hla_team_size(call->threads, sizes.group, hla_larger(panels, units)))
    {
        const scratch own = carve_scratch(&sizes, sizes.scratch + omp_get_thread_num() * sizes.scratch_floats, NULL);
        for (int64_t first = 0; first < sizes.heads; first += sizes.group) {
            int64_t group = hla_smaller(sizes.heads - first, sizes.group);
#pragma omp for schedule(static)
            for (int64_t unit = 0; unit < group * panels; unit++) {
                int64_t slot = unit / panels, head = first + slot;
                pack_keys(call, &sizes, slot, head / heads, head % heads, unit % panels * HLA_TILE_COLUMNS, own.vector);
            }
#pragma omp for schedule(dynamic)
            for (int64_t unit = 0; unit < group * units; unit++) {
                int64_t slot = unit / units, head = first + slot, rest = unit % units;
                int64_t block = sizes.blocks - 1 - rest % sizes.blocks; /* if causal, the longest first */
                attend_block(call, &sizes, &own, slot, head / heads, head % heads * sizes.shared + rest / sizes.blocks,
                             block * sizes.block);
            }
        }
    }
    return HLA_OK;
}

extern const hla_softmax_entry HLA_ISA_NAME(hla_softmax);
const hla_softmax_entry HLA_ISA_NAME(hla_softmax) = {
    .kernel = {.name = HLA_ISA_STRING, .isa = HLA_ISA_VALUE},
    .measure = measure,
    .run = run,
    .measure_backward = HLA_ISA_NAME(hla_softmax_measure_backward),
    .run_backward = HLA_ISA_NAME(hla_softmax_run_backward),
};
