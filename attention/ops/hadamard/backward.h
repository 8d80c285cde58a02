/* attention/ops/hadamard/backward.h - what the backward pass (cpu_backward.c) does with one block of tokens: contract
 * it with a state, and make gradients of the sums. Included by sources compiled once per instruction set.
 */
#ifndef HLA_OPS_HADAMARD_BACKWARD_H
#define HLA_OPS_HADAMARD_BACKWARD_H

#include "attention/ops/hadamard/gradient.h"
#include "attention/ops/hadamard/spans.h"

#include <omp.h>

typedef struct plan {
    const hla_hadamard_problem *problem;
    geometry g;
    spans cut;
    int64_t weight_tokens;     /* queries a head whose weights are kept: of a chunk, or, causal, all */
    int64_t piece;             /* floats of what is summed for a block of tokens */
    states forward, backward;  /* S and G; in a causal sequence G takes the place of S */
    float *weights, *products; /* [wave][group][weight_tokens]: w_i, and -w_i (g_i . out_i) */
    partials partial;
    char *scratch;        /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} plan;

/* Of one thread. */
typedef struct own_memory {
    scratch block;
    gradient_scratch gradient;
    chunk_sums chunk; /* bidirectional */
    float *sums;      /* a piece */
} own_memory;

static own_memory carve_own(hla_arena *arena, const plan *p) {
    own_memory own = {.block = carve_scratch(arena, &p->g), .gradient = carve_gradient(arena, &p->g)};
    own.sums = hla_arena_take(arena, p->piece, sizeof(float));
    if (!p->problem->causal) own.chunk = take_chunk(arena, &p->g, &p->cut);
    return own;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem, .g = make_geometry(problem)};
    bool causal = problem->causal;
    /* queries: sums of u and of z; keys: sums of u and the values' gradient */
    p.piece = fold_size(&p.g) + hla_larger(fold_size(&p.g), value_size(&p.g));
    p.weight_tokens = causal ? problem->queries : hla_smaller(CHUNK, hla_round_up(problem->queries, TOKENS));
    int64_t state = p.g.state_size < INT64_MAX / 4 ? 2 * (p.g.state_size + p.g.sum_size) : INT64_MAX;
    p.cut = cut_spans(&p.g, state, causal ? p.piece : 0, causal ? 0 : threads);
    p.forward = take_states(arena, &p.g, &p.cut);
    p.backward = causal ? p.forward : take_states(arena, &p.g, &p.cut);
    int64_t weights = saturating_product(p.cut.wave * p.cut.group, p.weight_tokens);
    p.weights = hla_arena_take(arena, weights, sizeof(float));
    p.products = hla_arena_take(arena, weights, sizeof(float));
    if (causal) p.partial = take_partials(arena, &p.cut, p.piece);
    hla_arena measured = {0};
    carve_own(&measured, &p);
    arena->overflow |= measured.overflow;
    p.scratch_size = (int64_t)measured.used;
    p.scratch = hla_arena_take(arena, p.scratch_size, (size_t)threads);
    return p;
}

static own_memory own_of_thread(const plan *p) {
    hla_arena mine = {.base = p->scratch + omp_get_thread_num() * p->scratch_size};
    return carve_own(&mine, p);
}

/* Where the weights of a query head's token are kept. */
static int64_t weight_place(const plan *p, const head_pair *pair, int64_t member, int64_t token) {
    return (pair->slot * p->cut.group + member) * p->weight_tokens + token % p->weight_tokens;
}

/* Queries with the gradient of their output, not yet weighed. */
static token_rows gradient_rows(const plan *p, const hla_hadamard_call *call, const head_pair *pair, int64_t member,
                                int64_t first, int64_t count) {
    return query_rows_of(call, pair, pair->kv * p->cut.group + member, call->out, first, count);
}

static token_rows weighed_rows(const plan *p, const hla_hadamard_call *call, const head_pair *pair, int64_t member,
                               int64_t first, int64_t count) {
    token_rows rows = gradient_rows(p, call, pair, member, first, count);
    int64_t place = weight_place(p, pair, member, first);
    rows.scales = p->weights + place, rows.sum_weights = p->products + place;
    return rows;
}

/* What one unit of work of a range is: features first ... last - 1 of the pair's state. */
typedef struct state_range {
    float *state, *sums;
    int64_t index, first, last;
} state_range;

static state_range range_of(const plan *p, const states *of, const head_pair *pair, int64_t range) {
    int64_t first = range * p->cut.range;
    return (state_range){state_of(&p->g, of, pair), sums_of(&p->g, of, pair), range, first,
                         hla_smaller(first + p->cut.range, p->g.folded.state_rank)};
}

/* Features are all of the pair's. */
static state_range whole_state(const plan *p, const states *of, const head_pair *pair) {
    return (state_range){state_of(&p->g, of, pair), sums_of(&p->g, of, pair), 0, 0, p->g.folded.state_rank};
}

static void load_range(const plan *p, const head_pair *pair, const state_range *range, const float *callers) {
    const float *from = callers ? callers + caller_state(&p->g, pair) : NULL;
    load_state(&p->g, range->state, range->sums, from, range->first, range->last);
}

/* Adds a block of tokens to the range; the one that begins with `next` before `end` is asked for meanwhile. */
static void add_rows(const plan *p, own_memory *own, const state_range *range, const token_rows *rows, int64_t next,
                     int64_t end) {
    add_block(&p->g, &own->block, range->state, range->sums, 0, range->first, range->last, rows, next, end);
}

/* Adds tokens by chunks; begun: whether the range holds sums of tokens already. */
static void add_rows_by_chunks(const plan *p, own_memory *own, const state_range *range, const token_rows *rows,
                               bool begun) {
    add_chunks(&p->g, &p->cut, &own->block, &own->chunk, range->state, range->sums, range->first, range->last, rows,
               begun);
}

static int64_t block_count(int64_t tokens, int64_t first) {
    return hla_larger(0, hla_smaller(TOKENS, tokens - first));
}

/* ---- first pass: queries ---- */

/* Contracts the queries of one block with a range of S, into the piece `to`; leaves them packed in lanes. written:
 * whether this thread is going to write their gradients next. */
static void contract_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                             const state_range *range, const token_rows *rows, float *to, bool written) {
    const geometry *g = &p->g;
    int64_t next = rows->first + TOKENS, end = pair->sequence.query_first + pair->sequence.queries;
    memset(to, 0, (size_t)(2 * fold_size(g)) * sizeof(float));
    fold_sums z_sums = place_fold(g, to + fold_size(g));
    pack_lanes(g, &own->gradient, rows);
    ahead following = plan_ahead(g, rows, next, hla_smaller(next + TOKENS, end),
                                 contract_steps(range->last - range->first, rows->count));
    if (written) plan_writes(&following, call->gradients.dq_features, p->problem->factors, NULL, rows);
    contract_block(g, &own->gradient, &following, range->state, range->sums, range->first, range->last, rows->count,
                   place_fold(g, to), &z_sums, NULL);
}

/* From d and g . n of one panel's tokens: the weights, kept; and sums = w sums - w (g . out) z_sums. */
static void weigh_panel(const plan *p, own_memory *own, int64_t panel, const float *denominators, const float *products,
                        float *weights, float *weighed) {
    const hla_hadamard_problem *problem = p->problem;
    for (int64_t lane = 0; lane < HLA_TILE_COLUMNS; lane++) {
        float denominator = denominators[lane] + problem->epsilon, weight = denominator != 0 ? 1 / denominator : 0;
        weights[lane] = problem->normalised ? weight : problem->scale;
        weighed[lane] = problem->normalised ? -weight * weight * products[lane] : 0;
    }
    const int64_t rows[] = {whole_tiles(p->g.folded.outer), whole_tiles(p->g.folded.inner)};
    fold_sums sums = place_fold(&p->g, own->sums), z_sums = place_fold(&p->g, own->sums + fold_size(&p->g));
    float *const to[] = {sums.outer, sums.inner}, *const from[] = {z_sums.outer, z_sums.inner};
    for (int side = 0; side < 2; side++) {
        int64_t first = panel * rows[side] * HLA_TILE_COLUMNS;
        for (int64_t at = first; at < first + rows[side] * HLA_TILE_COLUMNS; at += HLA_VECTOR_WIDTH) {
            hla_vector weight = hla_vector_load(weights + at % HLA_TILE_COLUMNS);
            hla_vector product = hla_vector_load(weighed + at % HLA_TILE_COLUMNS);
            hla_vector value = hla_vector_multiply(weight, hla_vector_load(to[side] + at));
            value = hla_vector_multiply_add(product, hla_vector_load(from[side] + at), value);
            hla_vector_store(to[side] + at, value);
        }
    }
}

/* d and g . n of one panel from its sums: sum_o outer[o] sums[o]. */
static void sum_products(const plan *p, const own_memory *own, int64_t panel, const float *sums, float *to) {
    int64_t outer = p->g.folded.outer;
    const float *lane_outer = own->gradient.lane.outer + panel * outer * HLA_TILE_COLUMNS;
    const float *panel_sums = sums + panel * whole_tiles(outer) * HLA_TILE_COLUMNS;
    for (int64_t lane = 0; lane < HLA_TILE_COLUMNS; lane += HLA_VECTOR_WIDTH) {
        hla_vector sum = hla_vector_zero();
        for (int64_t o = 0; o < outer; o++) {
            sum = hla_vector_multiply_add(hla_vector_load(lane_outer + o * HLA_TILE_COLUMNS + lane),
                                          hla_vector_load(panel_sums + o * HLA_TILE_COLUMNS + lane), sum);
        }
        hla_vector_store(to + lane, sum);
    }
}

/* value_scores of rows first ... last - 1: dA = weight X + product, by lanes. */
static void score_gradients_by_lane(const gradient_scratch *own, int64_t first, int64_t last, const float *weights,
                                    const float *weighed) {
    for (int64_t at = first * HLA_TILE_COLUMNS; at < last * HLA_TILE_COLUMNS; at += HLA_VECTOR_WIDTH) {
        hla_vector weight = hla_vector_load(weights + at % HLA_TILE_COLUMNS);
        hla_vector product = hla_vector_load(weighed + at % HLA_TILE_COLUMNS);
        hla_vector_store(own->value_scores + at,
                         hla_vector_multiply_add(weight, hla_vector_load(own->value_scores + at), product));
    }
}

static void finish_panel(const plan *p, own_memory *own, int64_t panel, int64_t keys, float *weights, float *weighed) {
    const geometry *g = &p->g;
    float denominators[HLA_TILE_COLUMNS], products[HLA_TILE_COLUMNS];
    int64_t last = hla_smaller(keys, (panel + 1) * HLA_TILE_COLUMNS);
    sum_products(p, own, panel, own->sums + fold_size(g), denominators);
    sum_products(p, own, panel, own->sums, products);
    if (last > 0) {
        score_pairs(g, &own->gradient, panel, 0, last, false);
        sum_pairs(&own->gradient, 0, last, denominators, products);
    }
    weigh_panel(p, own, panel, denominators, products, weights, weighed);
    if (last <= 0) return;
    score_gradients_by_lane(&own->gradient, 0, last, weights, weighed);
    weigh_pairs(&own->gradient, 0, last);
    fold_sums sums = place_fold(g, own->sums);
    add_pairs(g, &own->gradient, 0, last, sums.outer + panel * whole_tiles(g->folded.outer) * HLA_TILE_COLUMNS,
              sums.inner + panel * whole_tiles(g->folded.inner) * HLA_TILE_COLUMNS, NULL);
}

/* From own->sums of a query block over all features, the queries being packed in lanes: adds its own block's keys where
 * causal; writes da, keeps the weights. */
static void finish_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                           int64_t member, int64_t token, const token_rows *rows) {
    int64_t count = rows->count, keys = p->problem->causal ? block_count(pair->sequence.keys, token) : 0;
    if (keys > 0) {
        token_rows key = key_rows(call, pair, token, keys);
        pack_rows(&p->g, &own->gradient, &key);
    }
    int64_t place = weight_place(p, pair, member, token);
    for (int64_t panel = 0; panel < panel_count(count); panel++) {
        float weights[HLA_TILE_COLUMNS], weighed[HLA_TILE_COLUMNS];
        int64_t first = panel * HLA_TILE_COLUMNS;
        size_t bytes = (size_t)hla_smaller(HLA_TILE_COLUMNS, count - first) * sizeof(float);
        finish_panel(p, own, panel, keys, weights, weighed);
        memcpy(p->weights + place + first, weights, bytes);
        memcpy(p->products + place + first, weighed, bytes);
    }
    write_folded(&p->g, place_fold(&p->g, own->sums), own->gradient.features, call->gradients.dq_features, rows);
}

/* ---- second pass: keys ---- */

static void contract_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                          const state_range *range, const token_rows *rows, float *to, bool written) {
    const geometry *g = &p->g;
    bool causal = p->problem->causal;
    int64_t next = causal ? rows->first - TOKENS : rows->first + TOKENS; /* the second pass goes backwards there */
    int64_t end = pair->sequence.key_first + pair->sequence.keys;
    memset(to, 0, (size_t)(fold_size(g) + value_size(g)) * sizeof(float));
    pack_lanes(g, &own->gradient, rows);
    ahead following = plan_ahead(g, rows, hla_larger(next, pair->sequence.key_first), hla_smaller(next + TOKENS, end),
                                 contract_steps(range->last - range->first, rows->count));
    if (written) plan_writes(&following, call->gradients.dk_features, p->problem->factors, call->gradients.dv, rows);
    contract_block(g, &own->gradient, &following, range->state, range->sums, range->first, range->last, rows->count,
                   place_fold(g, to), NULL, to + fold_size(g));
}

/* dA = X + product, by rows: the rows' values are weighed already. */
static void score_gradients_by_row(const gradient_scratch *own, int64_t first, int64_t last, const float *products) {
    for (int64_t row = first; row < last; row++) {
        hla_vector product = hla_vector_set(products[row]);
        for (int64_t lane = 0; lane < HLA_TILE_COLUMNS; lane += HLA_VECTOR_WIDTH) {
            float *score = own->value_scores + row * HLA_TILE_COLUMNS + lane;
            hla_vector_store(score, hla_vector_add(hla_vector_load(score), product));
        }
    }
}

/* Adds what the queries of the keys' own block give them. */
static void add_own_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                          int64_t member, int64_t token, int64_t keys) {
    const geometry *g = &p->g;
    int64_t queries = block_count(pair->sequence.queries, token);
    if (queries == 0) return;
    token_rows rows = weighed_rows(p, call, pair, member, token, queries);
    pack_rows(g, &own->gradient, &rows);
    fold_sums sums = place_fold(g, own->sums);
    int64_t width = g->value_panels * HLA_TILE_COLUMNS;
    for (int64_t panel = 0; panel < panel_count(keys); panel++) {
        int64_t first = panel * HLA_TILE_COLUMNS;
        if (first >= queries) break;
        score_pairs(g, &own->gradient, panel, first, queries, true);
        score_gradients_by_row(&own->gradient, first, queries, rows.sum_weights);
        weigh_pairs(&own->gradient, first, queries);
        add_pairs(g, &own->gradient, first, queries,
                  sums.outer + panel * whole_tiles(g->folded.outer) * HLA_TILE_COLUMNS,
                  sums.inner + panel * whole_tiles(g->folded.inner) * HLA_TILE_COLUMNS,
                  own->sums + fold_size(g) + panel * width * HLA_TILE_COLUMNS);
    }
}

/* From own->sums of a key block over all features, the keys being packed in lanes. */
static void finish_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                        int64_t token, const token_rows *rows) {
    for (int64_t member = 0; p->problem->causal && member < p->cut.group; member++)
        add_own_block(p, call, own, pair, member, token, rows->count);
    write_folded(&p->g, place_fold(&p->g, own->sums), own->gradient.features, call->gradients.dk_features, rows);
    write_values(&p->g, own->sums + fold_size(&p->g), call->gradients.dv, rows);
}

/* Keys beyond a sequence's length have no gradient. */
static void clear_keys(const hla_hadamard_call *call, const head_pair *pair) {
    const hla_hadamard_problem *problem = call->problem;
    for (int64_t t = pair->sequence.keys; problem->sequences == 0 && t < problem->keys; t++) {
        for (int p = 0; p <= problem->factors; p++) {
            const hla_tensor *gradient = p < problem->factors ? &call->gradients.dk_features[p] : call->gradients.dv;
            const float zero = 0;
            char *row = hla_tensor_row(gradient, pair->sequence.b, t, pair->kv);
            int64_t step = gradient->stride[3] * hla_element_size(gradient->dtype);
            for (int64_t x = 0; x < gradient->shape[3]; x++)
                hla_store_floats(row + x * step, gradient->dtype, 1, 1, &zero);
        }
    }
}

#endif
