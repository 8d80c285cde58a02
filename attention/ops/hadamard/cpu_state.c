/* State form, linear in T: the forward pass. Per batch and head
 *
 *     S[f][x] = sum_j phi_j[f] v_j[x]     z[f] = sum_j phi_j[f]       phi_j = c_j^1 (x) ... (x) c_j^P, R numbers
 *     n_i[x] = sum_f phi_i[f] S[f][x]     d_i = sum_f phi_i[f] z[f]   phi_i likewise of a_i
 *
 * Bidirectional: S of all keys, cut by head and feature range, then the queries, cut by head and block. Causal: span by
 * span of tokens, each feature range goes through the span's blocks, first querying the keys before the block, then
 * adding the block's own; then each block adds up its ranges and, through scores, the keys of its own block.
 *
 * Each number of S is summed over token blocks in order by whoever owns it, and partial sums are added in order, so the
 * result has the same bits for any number of threads.
 */
#include "attention/ops/hadamard/quadratic.h"
#include "attention/ops/hadamard/query.h"
#include "attention/ops/hadamard/spans.h"

#include <omp.h>

typedef struct plan {
    const hla_hadamard_problem *problem;
    geometry g;
    spans cut;
    states pairs;         /* of the wave */
    partials partial;     /* causal: n, then d by lanes */
    char *scratch;        /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} plan;

/* Of one thread. */
typedef struct own_memory {
    scratch block;
    chunk_sums chunk;   /* bidirectional */
    score_block scores; /* causal */
    float *packed;      /* causal: a key block */
} own_memory;

static own_memory carve_own(hla_arena *arena, const plan *p) {
    const hla_hadamard_problem *problem = p->problem;
    own_memory own = {.block = carve_scratch(arena, &p->g)};
    if (problem->causal) {
        own.scores = carve_score_block(arena, problem);
        own.packed = hla_arena_take(arena, key_block_size(problem), sizeof(float));
        own.scores.sums = own.block.values;
        own.scores.denominators = own.block.denominators;
    } else {
        own.chunk = take_chunk(arena, &p->g, &p->cut);
    }
    return own;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem, .g = make_geometry(problem)};
    int64_t piece = saturating_product(p.g.value_panels * HLA_TILE_COLUMNS + HLA_VECTOR_WIDTH, TOKENS);
    int64_t state = p.g.state_size < INT64_MAX / 2 ? p.g.state_size + p.g.sum_size : INT64_MAX;
    p.cut = cut_spans(&p.g, state, problem->causal ? piece : 0, problem->causal ? 0 : threads);
    p.pairs = take_states(arena, &p.g, &p.cut);
    if (problem->causal) p.partial = take_partials(arena, &p.cut, piece);
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

static void load_initial(const plan *p, const hla_hadamard_call *call, const head_pair *pair, int64_t first,
                         int64_t last) {
    const float *from = call->in.initial_state;
    if (from) from += caller_state(&p->g, pair);
    load_state(&p->g, state_of(&p->g, &p->pairs, pair), sums_of(&p->g, &p->pairs, pair), from, first, last);
}

static void store_final(const plan *p, const hla_hadamard_call *call, const head_pair *pair, int64_t first,
                        int64_t last) {
    if (!call->final_state) return;
    store_state(&p->g, call->final_state + caller_state(&p->g, pair), state_of(&p->g, &p->pairs, pair),
                sums_of(&p->g, &p->pairs, pair), first, last);
}

/* ---- bidirectional ---- */

/* S and z of features first ... last - 1 (first a multiple of BLOCK), summed over all keys of a pair. */
static void build_range(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                        int64_t first, int64_t last) {
    const token_rows keys = key_rows(call, pair, 0, pair->sequence.keys);
    load_initial(p, call, pair, first, last);
    add_chunks(&p->g, &p->cut, &own->block, &own->chunk, state_of(&p->g, &p->pairs, pair),
               sums_of(&p->g, &p->pairs, pair), first, last, &keys, false);
    store_final(p, call, pair, first, last);
}

/* One query block; rows of the one at `next` are asked for meanwhile. */
static void query_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair, int64_t h,
                        int64_t first, int64_t next) {
    const geometry *g = &p->g;
    int64_t queries = pair->sequence.queries, token = pair->sequence.query_first;
    token_rows rows = query_rows_of(call, pair, h, NULL, first, hla_smaller(TOKENS, queries - first));
    if (pair->sequence.keys == 0 && !call->in.initial_state) {
        write_zeros(call, rows.b, h, rows.first, rows.count);
        return;
    }
    pack_query(g, &own->block, &rows);
    own->block.next = plan_ahead(g, &rows, token + next, token + hla_smaller(next + TOKENS, queries),
                                 query_steps(g, g->folded.state_rank, rows.count));
    plan_writes(&own->block.next, NULL, 0, call->out, &rows);
    result_rows to = result_of(call, &rows, HLA_F32);
    query_rows(g, &own->block, state_of(&p->g, &p->pairs, pair), sums_of(&p->g, &p->pairs, pair), 0,
               g->folded.state_rank, rows.count, &to);
    write_rows(call, own->block.values + to.rows * HLA_TILE_COLUMNS, TOKENS,
               own->block.denominators + to.rows * HLA_VECTOR_WIDTH, rows.b, h, rows.first + to.rows,
               rows.count - to.rows);
}

/* Called by all threads of a team, for the pairs of one wave. */
static void run_bidirectional(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    const spans *cut = &p->cut;
    int64_t pairs = wave_pairs(cut, wave);
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < pairs * cut->ranges; unit++) {
        head_pair pair = pair_of(cut, call, wave, unit / cut->ranges);
        int64_t first = unit % cut->ranges * cut->range;
        build_range(p, call, own, &pair, first, hla_smaller(first + cut->range, p->g.folded.state_rank));
    }
    if (!call->out) return;
    int64_t blocks = wave_blocks(cut, call, wave, true, false);
    int64_t team = omp_get_num_threads(); /* each thread's next block is about that far */
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < pairs * cut->group * blocks; unit++) {
        head_pair pair = pair_of(cut, call, wave, unit / blocks / cut->group);
        int64_t h = pair.kv * cut->group + unit / blocks % cut->group, first = unit % blocks * TOKENS;
        if (first < pair.sequence.queries) query_block(p, call, own, &pair, h, first, first + team * TOKENS);
    }
}

/* ---- causal ---- */

/* A block of tokens of a pair. */
typedef struct token_block {
    int64_t token, queries, keys; /* first token, and how many of each there are in the block */
} token_block;

static token_block block_at(const hla_hadamard_call *call, const head_pair *pair, int64_t token) {
    int64_t queries = hla_smaller(TOKENS, pair->sequence.queries - token);
    int64_t keys = hla_smaller(TOKENS, pair->sequence.keys - token);
    return (token_block){token, call->out ? hla_larger(queries, 0) : 0, hla_larger(keys, 0)};
}

/* n and d of a block's queries over features first ... last - 1 of what came before the block, into `target`. */
static void query_past(const plan *p, const hla_hadamard_call *call, scratch *target, const head_pair *pair,
                       int64_t member, const token_block *block, int64_t first, int64_t last, bool written) {
    const geometry *g = &p->g;
    token_rows rows = query_rows_of(call, pair, pair->kv * p->cut.group + member, NULL, block->token, block->queries);
    int64_t next = rows.first + TOKENS, end = pair->sequence.query_first + pair->sequence.queries;
    pack_query(g, target, &rows);
    target->next =
        plan_ahead(g, &rows, next, hla_smaller(next + TOKENS, end), query_steps(g, last - first, block->queries));
    if (written) plan_writes(&target->next, NULL, 0, call->out, &rows);
    query_rows(g, target, state_of(g, &p->pairs, pair), sums_of(g, &p->pairs, pair), first, last, block->queries, NULL);
}

/* Adds a block's keys to features first ... last - 1. */
static void add_keys(const plan *p, const hla_hadamard_call *call, scratch *own, const head_pair *pair,
                     const token_block *block, int64_t first, int64_t last) {
    const geometry *g = &p->g;
    token_rows rows = key_rows(call, pair, block->token, block->keys);
    add_block(g, own, state_of(g, &p->pairs, pair), sums_of(g, &p->pairs, pair), 0, first, last, &rows,
              rows.first + TOKENS, pair->sequence.key_first + pair->sequence.keys);
}

/* Adds the keys of the queries' own block, packed, to own->block, and writes the result. */
static void finish_queries(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                           int64_t member, const token_block *block) {
    int64_t h = pair->kv * p->cut.group + member, b = pair->sequence.b;
    int64_t row = pair->sequence.query_first + block->token;
    if (block->keys > 0) {
        pack_query_block(&own->scores, call, b, h, row, block->queries);
        attend_block(&own->scores, own->packed, block->keys, true);
    }
    write_rows(call, own->block.values, TOKENS, own->block.denominators, b, h, row, block->queries);
}

static void pack_keys(const hla_hadamard_call *call, own_memory *own, const head_pair *pair, const token_block *block) {
    if (block->keys > 0 && block->queries > 0)
        pack_key_block(own->packed, call, pair->sequence.b, pair->kv, pair->sequence.key_first + block->token,
                       block->keys);
}

static void clear_sums(const plan *p, const scratch *own) {
    memset(own->values, 0, (size_t)(p->g.value_panels * TOKENS * HLA_TILE_COLUMNS) * sizeof(float));
    memset(own->denominators, 0, TOKENS * HLA_VECTOR_WIDTH * sizeof(float));
}

/* A state in one range: the pair's blocks one after the other. */
static void scan_pair(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair) {
    int64_t rank = p->g.folded.state_rank, tokens = hla_larger(pair->sequence.queries, pair->sequence.keys);
    load_initial(p, call, pair, 0, rank);
    for (int64_t token = 0; token < tokens; token += TOKENS) {
        token_block block = block_at(call, pair, token);
        pack_keys(call, own, pair, &block);
        for (int64_t member = 0; block.queries > 0 && member < p->cut.group; member++) {
            if (has_past(call, token)) {
                query_past(p, call, &own->block, pair, member, &block, 0, rank, true);
            } else {
                clear_sums(p, &own->block);
            }
            finish_queries(p, call, own, pair, member, &block);
        }
        if (block.keys > 0) add_keys(p, call, &own->block, pair, &block, 0, rank);
    }
    store_final(p, call, pair, 0, rank);
}

/* Goes through the span's blocks with one feature range: what the queries see of the keys before their block, then the
 * block's keys join S. */
static void scan_range(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                       int64_t span, int64_t range) {
    int64_t first = range * p->cut.range, last = hla_smaller(first + p->cut.range, p->g.folded.state_rank);
    if (span == 0) load_initial(p, call, pair, first, last);
    for (int64_t i = 0; i < SPAN_BLOCKS; i++) {
        token_block block = block_at(call, pair, (span * SPAN_BLOCKS + i) * TOKENS);
        bool queried = block.queries > 0 && has_past(call, block.token);
        for (int64_t member = 0; queried && member < p->cut.group; member++) {
            scratch target = own->block;
            target.values = partial_of(&p->cut, &p->partial, pair, member, range, i);
            target.denominators = target.values + p->partial.size - TOKENS * HLA_VECTOR_WIDTH;
            query_past(p, call, &target, pair, member, &block, first, last, false);
        }
        if (block.keys > 0) add_keys(p, call, &own->block, pair, &block, first, last);
    }
    if ((span + 1) * SPAN_BLOCKS * TOKENS >= pair->sequence.keys) store_final(p, call, pair, first, last);
}

/* Adds up what scan_range left of a query block, and the keys of its own block. */
static void finish_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                         int64_t member, int64_t span, int64_t i) {
    token_block block = block_at(call, pair, (span * SPAN_BLOCKS + i) * TOKENS);
    if (block.queries == 0) return;
    int64_t lanes = TOKENS * HLA_VECTOR_WIDTH, sums = p->partial.size - lanes;
    clear_sums(p, &own->block);
    for (int64_t range = 0; has_past(call, block.token) && range < p->cut.ranges; range++) {
        const float *from = partial_of(&p->cut, &p->partial, pair, member, range, i);
        add_floats(own->block.values, from, sums);
        add_floats(own->block.denominators, from + sums, lanes);
    }
    pack_keys(call, own, pair, &block);
    finish_queries(p, call, own, pair, member, &block);
}

static void run_spans(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    const spans *cut = &p->cut;
    int64_t pairs = wave_pairs(cut, wave);
    int64_t blocks_in_all = wave_blocks(cut, call, wave, true, true);
    for (int64_t span = 0; span * SPAN_BLOCKS < blocks_in_all; span++) {
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < pairs * cut->ranges; unit++) {
            head_pair pair = pair_of(cut, call, wave, unit / cut->ranges);
            scan_range(p, call, own, &pair, span, unit % cut->ranges);
        }
        if (!call->out) continue;
        int64_t blocks = cut->group * SPAN_BLOCKS;
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < pairs * blocks; unit++) {
            head_pair pair = pair_of(cut, call, wave, unit / blocks);
            finish_block(p, call, own, &pair, unit % blocks / SPAN_BLOCKS, span, unit % SPAN_BLOCKS);
        }
    }
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

/* ---- whole ---- */

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static hla_status run(const hla_hadamard_call *call) {
    hla_arena arena = {.base = call->workspace};
    plan carved = carve(&arena, call->problem, call->threads);
    const plan *p = &carved;
#pragma omp parallel num_threads(hla_team_size(call->threads, p->cut.wave * p->cut.group,                              \
                                               hla_larger(p->cut.ranges, call->problem->queries / TOKENS + 1)))
    {
        own_memory own = own_of_thread(p);
        for (int64_t wave = 0; wave < p->cut.waves; wave++)
            (call->problem->causal ? run_causal : run_bidirectional)(p, call, &own, wave);
    }
    return HLA_OK;
}

extern const hla_hadamard_backward_entry HLA_ISA_NAME(hla_hadamard_backward_state); /* cpu_backward.c */
extern const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_state);
const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_state) = {
    .kernel = {.name = "state_" HLA_ISA_STRING, .isa = HLA_ISA_VALUE},
    .form = HLA_FORM_STATE,
    .measure = measure,
    .run = run,
    .backward = &HLA_ISA_NAME(hla_hadamard_backward_state),
};
