/* attention/ops/hadamard/spans.h - how the state form's work is cut: waves of pairs, feature ranges, spans of tokens.
 *
 * A pair is a sequence and a key head, with the group of query heads that attend to it: it owns a state. A wave is as
 * many pairs as their states should take memory at once, whatever the number of sequences. A range is what of a state
 * one thread works on, a multiple of BLOCK features. Causal passes go through the tokens span by span. Where partial
 * sums of ranges are added (causal and backward), ranges depend on the problem alone, never on the number of threads.
 */
#ifndef HLA_OPS_HADAMARD_SPANS_H
#define HLA_OPS_HADAMARD_SPANS_H

#include "attention/ops/hadamard/state.h"

enum {
    SPAN_BLOCKS = 4,       /* blocks of TOKENS a span */
    WAVE_BYTES = 64 << 20, /* of what pairs of a wave take together */
    UNITS = 4              /* units of work wanted at least where ranges do not depend on threads: more ranges mean more
                              packing, and a state in one range needs no partial sums */
};

typedef struct spans {
    int64_t pairs, wave, waves; /* pairs in all and a wave, and waves */
    int64_t group;              /* query heads a key head */
    int64_t range, ranges;      /* features a range, ranges a state */
} spans;

typedef struct head_pair {
    int64_t n, kv, slot; /* sequence, key head, place in the wave */
    hla_sequence sequence;
} head_pair;

/* state_floats: of one pair; block_floats: partial sums of one query head, range and block (0: none are kept); threads:
 * 0 where ranges must not depend on them. */
static spans cut_spans(const geometry *g, int64_t state_floats, int64_t block_floats, int threads) {
    const hla_hadamard_problem *problem = g->problem;
    spans cut = {.group = problem->heads / problem->kv_heads};
    cut.pairs = hla_hadamard_sequence_count(problem) * problem->kv_heads;
    int64_t cached = RANGE_BYTES / (g->value_panels * HLA_TILE_COLUMNS * (int64_t)sizeof(float)) / BLOCK * BLOCK;
    int64_t rank = g->folded.state_rank, wanted = threads > 0 ? threads : (UNITS + cut.pairs - 1) / cut.pairs;
    int64_t shared = threads > 0 && cut.pairs % threads == 0 ? rank : rank / wanted;
    cut.range = hla_smaller(hla_larger(cached, BLOCK), hla_round_up(hla_larger(shared, 1), BLOCK));
    cut.ranges = (rank + cut.range - 1) / cut.range;
    int64_t partial = saturating_product(saturating_product(block_floats, cut.group * SPAN_BLOCKS), cut.ranges);
    if (cut.ranges == 1) partial = 0;
    int64_t floats = state_floats < INT64_MAX - partial ? state_floats + partial : INT64_MAX;
    cut.wave = hla_smaller(cut.pairs, hla_larger(WAVE_BYTES / (int64_t)sizeof(float) / floats, 2));
    cut.waves = (cut.pairs + cut.wave - 1) / cut.wave;
    return cut;
}

HLA_INLINE int64_t wave_pairs(const spans *cut, int64_t wave) {
    return hla_smaller(cut->wave, cut->pairs - wave * cut->wave);
}

HLA_INLINE head_pair pair_of(const spans *cut, const hla_hadamard_call *call, int64_t wave, int64_t slot) {
    int64_t index = wave * cut->wave + slot, n = index / call->problem->kv_heads;
    return (head_pair){n, index % call->problem->kv_heads, slot, hla_hadamard_sequence(call, n)};
}

/* Blocks of TOKENS that the longest sequence of a wave has, in queries or keys; at least 1. */
static int64_t wave_blocks(const spans *cut, const hla_hadamard_call *call, int64_t wave, bool queries, bool keys) {
    int64_t longest = 1;
    for (int64_t slot = 0; slot < wave_pairs(cut, wave); slot++) {
        hla_sequence sequence = pair_of(cut, call, wave, slot).sequence;
        if (queries) longest = hla_larger(longest, sequence.queries);
        if (keys) longest = hla_larger(longest, sequence.keys);
    }
    return (longest + TOKENS - 1) / TOKENS;
}

/* Where the pair's state begins in the caller's [N,Hkv,R,V+1]. */
HLA_INLINE int64_t caller_state(const geometry *g, const head_pair *pair) {
    return (pair->n * g->problem->kv_heads + pair->kv) * g->folded.state_rank * (g->problem->value_dim + 1);
}

/* Whether anything comes before a token of a causal sequence. */
HLA_INLINE bool has_past(const hla_hadamard_call *call, int64_t token) {
    return token > 0 || call->in.initial_state;
}

/* ---- tokens of a pair ---- */

/* Keys first ... first + count - 1 of the pair's sequence, with their values. */
HLA_INLINE token_rows key_rows(const hla_hadamard_call *call, const head_pair *pair, int64_t first, int64_t count) {
    return (token_rows){.factors = call->in.k_features,
                        .values = call->in.v,
                        .b = pair->sequence.b,
                        .h = pair->kv,
                        .first = pair->sequence.key_first + first,
                        .count = count};
}

/* Queries likewise, of query head h; values NULL, or what goes with a query in the backward pass. */
HLA_INLINE token_rows query_rows_of(const hla_hadamard_call *call, const head_pair *pair, int64_t h,
                                    const hla_tensor *values, int64_t first, int64_t count) {
    return (token_rows){.factors = call->in.q_features,
                        .values = values,
                        .b = pair->sequence.b,
                        .h = h,
                        .first = pair->sequence.query_first + first,
                        .count = count};
}

/* ---- states of a wave ---- */

typedef struct states {
    float *state, *sums; /* [wave] S and z */
} states;

HLA_INLINE states take_states(hla_arena *arena, const geometry *g, const spans *cut) {
    states taken;
    taken.state = hla_arena_take(arena, saturating_product(cut->wave, g->state_size), sizeof(float));
    taken.sums = hla_arena_take(arena, saturating_product(cut->wave, g->sum_size), sizeof(float));
    return taken;
}

HLA_INLINE float *state_of(const geometry *g, const states *of, const head_pair *pair) {
    return of->state + pair->slot * g->state_size;
}

HLA_INLINE float *sums_of(const geometry *g, const states *of, const head_pair *pair) {
    return of->sums + pair->slot * g->sum_size;
}

/* ---- partial sums: a piece for each query head, range and block of a span; none where a state is one range ---- */

typedef struct partials {
    float *memory; /* [wave][group][ranges][SPAN_BLOCKS][size] */
    int64_t size;  /* floats of a piece */
} partials;

HLA_INLINE partials take_partials(hla_arena *arena, const spans *cut, int64_t size) {
    int64_t pieces = cut->ranges > 1 ? cut->wave * cut->group * cut->ranges * SPAN_BLOCKS : 0;
    return (partials){hla_arena_take(arena, saturating_product(pieces, size), sizeof(float)), size};
}

/* member: of the group of query heads. */
HLA_INLINE float *partial_of(const spans *cut, const partials *of, const head_pair *pair, int64_t member, int64_t range,
                             int64_t block) {
    int64_t index = ((pair->slot * cut->group + member) * cut->ranges + range) * SPAN_BLOCKS + block;
    return of->memory + index * of->size;
}

/* ---- a chunk: S and z of one range over some of the keys, the level of sums between a block and all ---- */

typedef struct chunk_sums {
    float *state, *sums; /* of cut->range features */
} chunk_sums;

HLA_INLINE chunk_sums take_chunk(hla_arena *arena, const geometry *g, const spans *cut) {
    chunk_sums taken;
    taken.state = hla_arena_take(arena, saturating_product(cut->range / BLOCK, g->block_size), sizeof(float));
    taken.sums = hla_arena_take(arena, cut->range, sizeof(float));
    return taken;
}

HLA_INLINE void clear_chunk(const geometry *g, const spans *cut, const chunk_sums *chunk) {
    /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): a call has a workspace, which the arena carves */
    memset(chunk->state, 0, (size_t)(cut->range / BLOCK * g->block_size) * sizeof(float));
    memset(chunk->sums, 0, (size_t)cut->range * sizeof(float));
}

/* Adds the chunk to features first ... last - 1 of a state, first a multiple of BLOCK. Padding is zero in both. */
HLA_INLINE void add_chunk(const geometry *g, const chunk_sums *chunk, float *state, float *sums, int64_t first,
                          int64_t last) {
    int64_t whole = hla_round_up(last - first, BLOCK);
    add_floats(state_row(g, state, first), chunk->state, whole / BLOCK * g->block_size);
    add_floats(sums + first, chunk->sums, whole);
}

/* ---- adding tokens to a range ---- */

enum {
    CHUNK = 64 * TOKENS /* keys summed before the next level: equal terms lose up to half a bit's worth an addition */
};

/* Adds a block of tokens to features first ... last - 1 of state and sums, which begin with feature `start`; first is a
 * multiple of BLOCK. The block that begins with token `next` is asked for meanwhile, as far as it lies before `end`. */
static void add_block(const geometry *g, scratch *own, float *state, float *sums, int64_t start, int64_t first,
                      int64_t last, const token_rows *rows, int64_t next, int64_t end) {
    pack_build(g, own, rows);
    own->next = plan_ahead(g, rows, next, hla_smaller(next + TOKENS, end), build_steps(g, last - first));
    build_block(g, own, state, sums, start, first, last, rows);
}

/* Adds any number of tokens, block by block. */
static void add_tokens(const geometry *g, scratch *own, float *state, float *sums, int64_t start, int64_t first,
                       int64_t last, const token_rows *rows) {
    int64_t end = rows->first + rows->count;
    for (int64_t done = 0; done < rows->count; done += TOKENS) {
        token_rows block = *rows;
        block.first += done, block.count = hla_smaller(TOKENS, rows->count - done);
        if (rows->scales) block.scales += done, block.sum_weights += done;
        add_block(g, own, state, sums, start, first, last, &block, block.first + TOKENS, end);
    }
}

/* The same by chunks. begun: whether the state holds sums of tokens already; else the first chunk needs no sums of its
 * own. state and sums begin with feature 0. */
static void add_chunks(const geometry *g, const spans *cut, scratch *own, const chunk_sums *chunk, float *state,
                       float *sums, int64_t first, int64_t last, const token_rows *rows, bool begun) {
    for (int64_t done = 0; done < rows->count; done += CHUNK) {
        token_rows part = *rows;
        part.first += done, part.count = hla_smaller(CHUNK, rows->count - done);
        if (rows->scales) part.scales += done, part.sum_weights += done;
        if (!begun && done == 0) {
            add_tokens(g, own, state, sums, 0, first, last, &part);
            continue;
        }
        clear_chunk(g, cut, chunk);
        add_tokens(g, own, chunk->state, chunk->sums, first, first, last, &part);
        add_chunk(g, chunk, state, sums, first, last);
    }
}

#endif
