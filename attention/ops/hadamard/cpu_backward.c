/* The backward pass, in state form. With hats for vectors that carry the denominator's column,
 *
 *     ghat_i = [w_i g_i ; -w_i (g_i . out_i)]     w_i = 1 / (d_i + epsilon)      or [scale g_i ; 0] un-normalised
 *     S = sum_j phi_j (x) [v_j ; 1]               G = sum_i phi_i (x) ghat_i
 *     dphi_i = S ghat_i                           dphi_j = G [v_j ; 1]           dv_j = phi_j . G, first V columns
 *
 * where sums go over what a token sees or is seen by.
 *
 * First pass: S is made as in the forward pass; each query block is contracted with it, which gives d_i and g_i . n_i
 * on the way, and from these w_i and ghat_i. G is summed from them, and the second pass contracts it with the keys.
 *
 * Bidirectional: S and G are cut by head and feature range, blocks of queries and of keys are contracted with all of
 * them. Causal: S grows from block to block, and in the second pass, which goes backwards, so does G; pairs within a
 * block are handled through their scores. Where a state has several ranges these go through a span of blocks side by
 * side, and their partial sums are added in order.
 *
 * Each number has one owner, who adds in order, and causal ranges depend on the problem alone: the result has the same
 * bits for any number of threads.
 */
#include "attention/ops/hadamard/backward.h"

/* ---- the passes, called by all threads of a team for the pairs of one wave ---- */

/* Work on one range of one pair's S or G, for the tokens of a span or for all. */
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

/* ---- bidirectional ---- */

static void add_all_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                         const state_range *range, int64_t span) {
    (void)span;
    const token_rows rows = key_rows(call, pair, 0, pair->sequence.keys);
    load_range(p, pair, range, call->in.initial_state);
    add_rows_by_chunks(p, own, range, &rows, false);
}

static void add_queries_of_chunk(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                 const state_range *range, int64_t chunk) {
    int64_t first = chunk * CHUNK, count = hla_smaller(CHUNK, pair->sequence.queries - first);
    for (int64_t member = 0; count > 0 && member < p->cut.group; member++) {
        token_rows rows = weighed_rows(p, call, pair, member, first, count);
        add_rows_by_chunks(p, own, range, &rows, chunk > 0 || member > 0);
    }
}

static void contract_queries_of_chunk(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave,
                                      int64_t chunk) {
    int64_t blocks = CHUNK / TOKENS, units = p->cut.group * blocks;
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * units; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / units);
        int64_t member = unit % units / blocks, token = chunk * CHUNK + unit % blocks * TOKENS;
        token_rows rows = gradient_rows(p, call, &pair, member, token, block_count(pair.sequence.queries, token));
        if (rows.count == 0) continue;
        state_range range = whole_state(p, &p->forward, &pair);
        contract_queries(p, call, own, &pair, &range, &rows, own->sums, true);
        finish_queries(p, call, own, &pair, member, token, &rows);
    }
}

static void contract_all_keys(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    int64_t blocks = wave_blocks(&p->cut, call, wave, false, true);
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * blocks; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / blocks);
        int64_t token = unit % blocks * TOKENS;
        token_rows rows = key_rows(call, &pair, token, block_count(pair.sequence.keys, token));
        if (rows.count == 0) continue;
        state_range range = whole_state(p, &p->backward, &pair);
        contract_keys(p, call, own, &pair, &range, &rows, own->sums, true);
        finish_keys(p, call, own, &pair, token, &rows);
    }
}

/* S is that of all keys, and G grows beside the first pass, so that weights are kept of one chunk only. */
static void run_bidirectional(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    int64_t queries = wave_blocks(&p->cut, call, wave, true, false) * TOKENS;
    for_ranges(p, &p->forward, call, own, wave, 0, add_all_keys);
    for_ranges(p, &p->backward, call, own, wave, 0, load_final_gradient);
    for (int64_t chunk = 0; chunk * CHUNK < queries; chunk++) {
        contract_queries_of_chunk(p, call, own, wave, chunk);
        for_ranges(p, &p->backward, call, own, wave, chunk, add_queries_of_chunk);
    }
    contract_all_keys(p, call, own, wave);
    for_ranges(p, &p->backward, call, own, wave, 0, store_initial_gradient);
}

/* ---- causal ---- */

static void add_keys_of_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                              const state_range *range, int64_t token) {
    const token_rows rows = key_rows(call, pair, token, block_count(pair->sequence.keys, token));
    if (rows.count > 0)
        add_rows(p, own, range, &rows, rows.first + TOKENS, pair->sequence.key_first + pair->sequence.keys);
}

static void add_queries_of_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                 const state_range *range, int64_t token) {
    int64_t count = block_count(pair->sequence.queries, token);
    for (int64_t member = 0; count > 0 && member < p->cut.group; member++) {
        token_rows rows = weighed_rows(p, call, pair, member, token, count);
        add_rows(p, own, range, &rows, hla_larger(rows.first - TOKENS, pair->sequence.query_first), rows.first);
    }
}

/* A state in one range: the queries of a block, then its keys. */
static void scan_query_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                             const state_range *range, int64_t token) {
    int64_t count = block_count(pair->sequence.queries, token);
    for (int64_t member = 0; count > 0 && member < p->cut.group; member++) {
        token_rows rows = gradient_rows(p, call, pair, member, token, count);
        contract_queries(p, call, own, pair, range, &rows, own->sums, true);
        finish_queries(p, call, own, pair, member, token, &rows);
    }
    add_keys_of_block(p, call, own, pair, range, token);
}

static void scan_key_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                           const state_range *range, int64_t token) {
    token_rows rows = key_rows(call, pair, token, block_count(pair->sequence.keys, token));
    if (rows.count > 0) {
        contract_keys(p, call, own, pair, range, &rows, own->sums, true);
        finish_keys(p, call, own, pair, token, &rows);
    }
    add_queries_of_block(p, call, own, pair, range, token);
}

static void scan_pair(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair) {
    state_range range = whole_state(p, &p->forward, pair);
    int64_t queries = pair->sequence.queries, all = hla_larger(queries, pair->sequence.keys);
    load_initial(p, call, own, pair, &range, 0);
    for (int64_t token = 0; token < queries; token += TOKENS)
        scan_query_block(p, call, own, pair, &range, token);
    load_final_gradient(p, call, own, pair, &range, 0);
    for (int64_t token = hla_round_up(all, TOKENS) - TOKENS; token >= 0; token -= TOKENS)
        scan_key_block(p, call, own, pair, &range, token);
    store_initial_gradient(p, call, own, pair, &range, 0);
}

/* Several ranges: each by itself goes through a span of blocks and leaves partial sums, then blocks add these up. */
static void scan_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                         const state_range *range, int64_t span) {
    for (int64_t block = 0; block < SPAN_BLOCKS; block++) {
        int64_t token = (span * SPAN_BLOCKS + block) * TOKENS, count = block_count(pair->sequence.queries, token);
        for (int64_t member = 0; count > 0 && member < p->cut.group; member++) {
            token_rows rows = gradient_rows(p, call, pair, member, token, count);
            float *to = partial_of(&p->cut, &p->partial, pair, member, range->index, block);
            contract_queries(p, call, own, pair, range, &rows, to, false);
        }
        add_keys_of_block(p, call, own, pair, range, token);
    }
}

static void scan_keys_backwards(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                                const state_range *range, int64_t span) {
    for (int64_t block = SPAN_BLOCKS - 1; block >= 0; block--) {
        int64_t token = (span * SPAN_BLOCKS + block) * TOKENS;
        token_rows rows = key_rows(call, pair, token, block_count(pair->sequence.keys, token));
        float *to = partial_of(&p->cut, &p->partial, pair, 0, range->index, block);
        if (rows.count > 0) contract_keys(p, call, own, pair, range, &rows, to, false);
        add_queries_of_block(p, call, own, pair, range, token);
    }
}

/* own->sums = the sum over ranges of `floats` numbers of a block, in order. */
static void add_partials(const plan *p, own_memory *own, const head_pair *pair, int64_t member, int64_t block,
                         int64_t floats) {
    memset(own->sums, 0, (size_t)floats * sizeof(float));
    for (int64_t range = 0; range < p->cut.ranges; range++)
        add_floats(own->sums, partial_of(&p->cut, &p->partial, pair, member, range, block), floats);
}

static void finish_queries_of_span(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave,
                                   int64_t span) {
    int64_t blocks = p->cut.group * SPAN_BLOCKS;
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * blocks; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / blocks);
        int64_t member = unit % blocks / SPAN_BLOCKS, block = unit % SPAN_BLOCKS;
        int64_t token = (span * SPAN_BLOCKS + block) * TOKENS;
        token_rows rows = gradient_rows(p, call, &pair, member, token, block_count(pair.sequence.queries, token));
        if (rows.count == 0) continue;
        pack_lanes(&p->g, &own->gradient, &rows);
        add_partials(p, own, &pair, member, block, 2 * fold_size(&p->g));
        finish_queries(p, call, own, &pair, member, token, &rows);
    }
}

static void finish_keys_of_span(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave,
                                int64_t span) {
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < wave_pairs(&p->cut, wave) * SPAN_BLOCKS; unit++) {
        head_pair pair = pair_of(&p->cut, call, wave, unit / SPAN_BLOCKS);
        int64_t block = unit % SPAN_BLOCKS, token = (span * SPAN_BLOCKS + block) * TOKENS;
        token_rows rows = key_rows(call, &pair, token, block_count(pair.sequence.keys, token));
        if (rows.count == 0) continue;
        pack_lanes(&p->g, &own->gradient, &rows);
        add_partials(p, own, &pair, 0, block, fold_size(&p->g) + value_size(&p->g));
        finish_keys(p, call, own, &pair, token, &rows);
    }
}

static void run_spans(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
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

static void run_causal(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    if (p->cut.ranges > 1) {
        run_spans(p, call, own, wave);
        return;
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t slot = 0; slot < wave_pairs(&p->cut, wave); slot++) {
        head_pair pair = pair_of(&p->cut, call, wave, slot);
        scan_pair(p, call, own, &pair);
    }
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
#pragma omp parallel num_threads(hla_team_size(call->threads, p->cut.wave * p->cut.group,                              \
                                               hla_larger(p->cut.ranges, call->problem->keys / TOKENS + 1)))
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
const hla_hadamard_backward_entry HLA_ISA_NAME(hla_hadamard_backward_state) = {.measure = measure, .run = run};
