/* The backward pass, in state form. With hats for vectors that carry the denominator's column,
 *
 *     ghat_i = [w_i g_i ; -w_i (g_i . out_i)]     w_i = 1 / (d_i + epsilon)      or [scale g_i ; 0] un-normalised
 *     S = sum_j phi_j (x) [v_j ; 1]               G = sum_i phi_i (x) ghat_i
 *     dphi_i = S ghat_i                           dphi_j = G [v_j ; 1]           dv_j = phi_j . G, first V columns
 *
 * where sums go over what a token sees or is seen by.
 *
 * First pass: S is made as in the forward pass; each query block is contracted with it, which gives d_i and g_i . n_i
 * on the way, and from these w_i and ghat_i. G is summed from them, and the second pass contracts it with the keys. In
 * a causal sequence S grows from block to block, and in the second pass, which goes backwards, so does G; pairs within
 * a block are handled through their scores.
 *
 * Partial sums of feature ranges are added in order, and ranges depend on the problem alone: the result has the same
 * bits for any number of threads.
 */
#include "attention/ops/hadamard/gradient.h"
#include "attention/ops/hadamard/spans.h"

#include <omp.h>

typedef struct plan {
    const hla_hadamard_problem *problem;
    geometry g;
    spans cut;
    int64_t weight_tokens;     /* queries a head whose weights are kept: of a span, or, causal, all */
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
    float *sums; /* like one piece of the partial sums */
} own_memory;

static own_memory carve_own(hla_arena *arena, const plan *p) {
    own_memory own = {.block = carve_scratch(arena, &p->g), .gradient = carve_gradient(arena, &p->g)};
    own.sums = hla_arena_take(arena, p->partial.size, sizeof(float));
    return own;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem, .g = make_geometry(problem)};
    /* queries: sums of u and of z; keys: sums of u and the values' gradient */
    int64_t piece = fold_size(&p.g) + hla_larger(fold_size(&p.g), value_size(&p.g));
    p.weight_tokens = problem->causal ? problem->queries : SPAN_BLOCKS * TOKENS;
    int64_t state = p.g.state_size < INT64_MAX / 4 ? 2 * (p.g.state_size + p.g.sum_size) : INT64_MAX;
    p.cut = cut_spans(&p.g, state, piece, 0);
    p.forward = take_states(arena, &p.g, &p.cut);
    p.backward = problem->causal ? p.forward : take_states(arena, &p.g, &p.cut);
    int64_t weights = saturating_product(p.cut.wave * p.cut.group, p.weight_tokens);
    p.weights = hla_arena_take(arena, weights, sizeof(float));
    p.products = hla_arena_take(arena, weights, sizeof(float));
    p.partial = take_partials(arena, &p.cut, piece);
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

static void load_range(const plan *p, const head_pair *pair, const state_range *range, const float *callers) {
    const float *from = callers ? callers + caller_state(&p->g, pair) : NULL;
    load_state(&p->g, range->state, range->sums, from, range->first, range->last);
}

/* Adds a block of tokens to the range; those up to token `end`, at most another block, are asked for meanwhile. */
static void add_rows(const plan *p, own_memory *own, const state_range *range, const token_rows *rows, int64_t end) {
    int64_t next = rows->first + rows->count;
    own->block.next =
        plan_ahead(&p->g, rows, next, hla_smaller(next + TOKENS, end), build_steps(&p->g, range->last - range->first));
    pack_build(&p->g, &own->block, rows);
    build_block(&p->g, &own->block, range->state, range->sums, 0, range->first, range->last, rows);
}

static int64_t block_count(int64_t tokens, int64_t first) {
    return hla_larger(0, hla_smaller(TOKENS, tokens - first));
}

/* ---- first pass: queries ---- */

/* Contracts the queries of one block with a range of S. */
static void contract_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                             const state_range *range, int64_t token, int64_t block) {
    int64_t count = block_count(pair->sequence.queries, token);
    for (int64_t member = 0; count > 0 && member < p->cut.group; member++) {
        token_rows rows = gradient_rows(p, call, pair, member, token, count);
        float *to = partial_of(&p->cut, &p->partial, pair, member, range->index, block);
        memset(to, 0, (size_t)(2 * fold_size(&p->g)) * sizeof(float));
        fold_sums z_sums = place_fold(&p->g, to + fold_size(&p->g));
        pack_lanes(&p->g, &own->gradient, &rows);
        contract_block(&p->g, &own->gradient, range->state, range->sums, range->first, range->last, count,
                       place_fold(&p->g, to), &z_sums, NULL);
    }
}

/* own->sums = the sum over ranges of `floats` numbers of a block, in order. */
static void add_partials(const plan *p, own_memory *own, const head_pair *pair, int64_t member, int64_t block,
                         int64_t floats, bool any) {
    memset(own->sums, 0, (size_t)floats * sizeof(float));
    for (int64_t range = 0; any && range < p->cut.ranges; range++)
        add_floats(own->sums, partial_of(&p->cut, &p->partial, pair, member, range, block), floats);
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

/* Adds up a query block's ranges, and its own block's keys where causal; writes da, keeps the weights. */
static void finish_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                           int64_t member, int64_t token, int64_t block) {
    int64_t count = block_count(pair->sequence.queries, token);
    if (count == 0) return;
    token_rows rows = gradient_rows(p, call, pair, member, token, count);
    pack_lanes(&p->g, &own->gradient, &rows);
    add_partials(p, own, pair, member, block, 2 * fold_size(&p->g), !p->problem->causal || has_past(call, token));
    int64_t keys = p->problem->causal ? block_count(pair->sequence.keys, token) : 0;
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
    write_folded(&p->g, place_fold(&p->g, own->sums), own->gradient.features, call->gradients.dq_features, &rows);
}

/* ---- second pass: keys ---- */

static void contract_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                          const state_range *range, int64_t token, int64_t block) {
    int64_t count = block_count(pair->sequence.keys, token);
    if (count == 0) return;
    token_rows rows = key_rows(call, pair, token, count);
    float *to = partial_of(&p->cut, &p->partial, pair, 0, range->index, block), *values = to + fold_size(&p->g);
    memset(to, 0, (size_t)(fold_size(&p->g) + value_size(&p->g)) * sizeof(float));
    pack_lanes(&p->g, &own->gradient, &rows);
    contract_block(&p->g, &own->gradient, range->state, range->sums, range->first, range->last, count,
                   place_fold(&p->g, to), NULL, values);
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

static void finish_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                        int64_t token, int64_t block) {
    int64_t count = block_count(pair->sequence.keys, token);
    if (count == 0) return;
    token_rows rows = key_rows(call, pair, token, count);
    add_partials(p, own, pair, 0, block, fold_size(&p->g) + value_size(&p->g), true);
    if (p->problem->causal) {
        pack_lanes(&p->g, &own->gradient, &rows);
        for (int64_t member = 0; member < p->cut.group; member++)
            add_own_block(p, call, own, pair, member, token, count);
    }
    write_folded(&p->g, place_fold(&p->g, own->sums), own->gradient.features, call->gradients.dk_features, &rows);
    write_values(&p->g, own->sums + fold_size(&p->g), call->gradients.dv, &rows);
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

/* ---- the passes, called by all threads of a team for the pairs of one wave ---- */

/* Work on one range of one pair's S or G, for the blocks of a span or for all. */
typedef void range_work(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                        const state_range *range, int64_t span);

static void for_ranges(const plan *p, const states *of, const hla_hadamard_call *call, own_memory *own, int64_t wave,
                       int64_t span, range_work *work) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * p->cut.ranges; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / p->cut.ranges);
        state_range range = range_of(p, of, &pair, unit % p->cut.ranges);
        work(p, call, own, &pair, &range, span);
    }
}

static void load_initial(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                         const state_range *range, int64_t span) {
    (void)own, (void)span;
    load_range(p, pair, range, call->in.initial_state);
}

static void load_final_gradient(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                const state_range *range, int64_t span) {
    (void)own, (void)span;
    load_range(p, pair, range, call->d_final_state);
}

static void store_initial_gradient(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                   const state_range *range, int64_t span) {
    (void)own, (void)span;
    float *to = call->gradients.d_initial_state;
    if (to) store_state(&p->g, to + caller_state(&p->g, pair), range->state, range->sums, range->first, range->last);
}

static void add_keys_of_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                              const state_range *range, int64_t token) {
    int64_t count = block_count(pair->sequence.keys, token);
    if (count == 0) return;
    token_rows rows = key_rows(call, pair, token, count);
    add_rows(p, own, range, &rows, pair->sequence.key_first + pair->sequence.keys);
}

static void add_queries_of_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                 const state_range *range, int64_t token) {
    int64_t count = block_count(pair->sequence.queries, token);
    for (int64_t member = 0; count > 0 && member < p->cut.group; member++) {
        token_rows rows = weighed_rows(p, call, pair, member, token, count);
        add_rows(p, own, range, &rows, pair->sequence.query_first + pair->sequence.queries);
    }
}

static void add_all_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                         const state_range *range, int64_t span) {
    (void)span;
    for (int64_t token = 0; token < pair->sequence.keys; token += TOKENS)
        add_keys_of_block(p, call, own, pair, range, token);
}

static void add_queries_of_span(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                const state_range *range, int64_t span) {
    for (int64_t block = 0; block < SPAN_BLOCKS; block++)
        add_queries_of_block(p, call, own, pair, range, (span * SPAN_BLOCKS + block) * TOKENS);
}

static void scan_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                         const state_range *range, int64_t span) {
    for (int64_t block = 0; block < SPAN_BLOCKS; block++) {
        int64_t token = (span * SPAN_BLOCKS + block) * TOKENS;
        if (!p->problem->causal || has_past(call, token)) contract_queries(p, call, own, pair, range, token, block);
        if (p->problem->causal) add_keys_of_block(p, call, own, pair, range, token);
    }
}

static void scan_keys_backwards(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                const state_range *range, int64_t span) {
    for (int64_t block = SPAN_BLOCKS - 1; block >= 0; block--) {
        int64_t token = (span * SPAN_BLOCKS + block) * TOKENS;
        contract_keys(p, call, own, pair, range, token, block);
        if (p->problem->causal) add_queries_of_block(p, call, own, pair, range, token);
    }
}

static void finish_queries_of_span(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave,
                                   int64_t span) {
    int64_t blocks = p->cut.group * SPAN_BLOCKS;
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * blocks; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / blocks);
        int64_t block = unit % SPAN_BLOCKS, token = (span * SPAN_BLOCKS + block) * TOKENS;
        finish_queries(p, call, own, &pair, unit % blocks / SPAN_BLOCKS, token, block);
    }
}

static void finish_keys_of_span(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave,
                                int64_t span) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * SPAN_BLOCKS; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / SPAN_BLOCKS);
        int64_t block = unit % SPAN_BLOCKS;
        finish_keys(p, call, own, &pair, (span * SPAN_BLOCKS + block) * TOKENS, block);
    }
}

/* Without causality S is that of all keys, and G grows beside the first pass, so that weights are kept of one span
 * only. */
static void run_bidirectional(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    int64_t queries = wave_blocks(&p->cut, call, wave, true, false),
            keys = wave_blocks(&p->cut, call, wave, false, true);
    for_ranges(p, &p->forward, call, own, wave, 0, load_initial);
    for_ranges(p, &p->forward, call, own, wave, 0, add_all_keys);
    for_ranges(p, &p->backward, call, own, wave, 0, load_final_gradient);
    for (int64_t span = 0; span * SPAN_BLOCKS < queries; span++) {
        for_ranges(p, &p->forward, call, own, wave, span, scan_queries);
        finish_queries_of_span(p, call, own, wave, span);
        for_ranges(p, &p->backward, call, own, wave, span, add_queries_of_span);
    }
    for (int64_t span = 0; span * SPAN_BLOCKS < keys; span++) {
        for_ranges(p, &p->backward, call, own, wave, span, scan_keys_backwards);
        finish_keys_of_span(p, call, own, wave, span);
    }
    for_ranges(p, &p->backward, call, own, wave, 0, store_initial_gradient);
}

static void run_causal(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    int64_t queries = wave_blocks(&p->cut, call, wave, true, false), all = wave_blocks(&p->cut, call, wave, true, true);
    for_ranges(p, &p->forward, call, own, wave, 0, load_initial);
    for (int64_t span = 0; span * SPAN_BLOCKS < queries; span++) {
        for_ranges(p, &p->forward, call, own, wave, span, scan_queries);
        finish_queries_of_span(p, call, own, wave, span);
    }
    for_ranges(p, &p->backward, call, own, wave, 0, load_final_gradient);
    for (int64_t span = (all + SPAN_BLOCKS - 1) / SPAN_BLOCKS - 1; span >= 0; span--) {
        for_ranges(p, &p->backward, call, own, wave, span, scan_keys_backwards);
        finish_keys_of_span(p, call, own, wave, span);
    }
    for_ranges(p, &p->backward, call, own, wave, 0, store_initial_gradient);
}

static void clear_wave(const plan *p, const hla_hadamard_call *call, int64_t wave) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t slot = 0; slot < wave_pairs(&p->cut, wave); slot++) {
        head_pair pair = pair_of(&p->cut, call, wave, slot);
        clear_keys(call, &pair);
    }
}

/* ---- whole ---- */

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static hla_status run(const hla_hadamard_call *call) {
    hla_arena arena = {.base = call->workspace};
    plan carved = carve(&arena, call->problem, call->threads);
    const plan *p = &carved;
#pragma omp parallel num_threads(                                                                                      \
    hla_team_size(call->threads, p->cut.wave * p->cut.group, hla_larger(p->cut.ranges, SPAN_BLOCKS)))
    {
        own_memory own = own_of_thread(p);
        for (int64_t wave = 0; wave < p->cut.waves; wave++) {
            (call->problem->causal ? run_causal : run_bidirectional)(p, call, &own, wave);
            clear_wave(p, call, wave);
        }
    }
    return HLA_OK;
}

extern const hla_hadamard_backward_entry HLA_ISA_NAME(hla_hadamard_backward_state);
const hla_hadamard_backward_entry HLA_ISA_NAME(hla_hadamard_backward_state) = {measure, run};
