/* Causal attention on the fast path for Hopper: rounds of snapshots (rounds_sm90.h). */
#include "attention/ops/hadamard/cuda/rounds_sm90.h"

enum { SNAPSHOT_BYTES = 64 << 20 }; /* of a round, unless a single one of all heads is larger */

static int64_t units_of(int64_t tokens, int64_t unit) {
    return (tokens + unit - 1) / unit;
}

/* ---- limits ---- */

/* Pairs within a chunk are to cost about a sixth of what the state costs: shorter chunks would cost more in snapshots
 * than they save. A token's pairs take chunk (R_1 + R_2 + V) multiply-adds, building and reading its state 2 R V. */
static int64_t choose_chunk(const hla_hadamard_problem *problem) {
    int64_t state = 2 * hla_hadamard_state_rank(problem) * problem->value_dim;
    int64_t pair = problem->rank[0] + problem->rank[1] + problem->value_dim;
    int64_t tiles = (state / (3 * pair) + HLA_HOPPER_TILE / 2) / HLA_HOPPER_TILE;
    return HLA_HOPPER_TILE * hla_larger(tiles, 1);
}

/* As many tiles as the snapshots allow, and of these as many as give each multiprocessor equally many. */
static void choose_limits(hla_hopper_rounds *rounds, const hla_hadamard_problem *problem, int processors) {
    int64_t bytes = hla_hadamard_state_rank(problem) * problem->value_dim * (int64_t)sizeof(uint16_t);
    rounds->chunk = choose_chunk(problem);
    rounds->snapshots = hla_larger(SNAPSHOT_BYTES / (bytes * problem->kv_heads), 1);
    rounds->tiles = rounds->snapshots * (rounds->chunk / HLA_HOPPER_TILE);
    int64_t turns = rounds->tiles * problem->heads / processors;
    if (turns > 0) rounds->tiles = hla_larger(turns * processors / problem->heads, 1);
}

/* More than there can be of rounds and sequences. A round ends where tiles or snapshots are used up; a sequence cut
 * there may need a snapshot more. */
static int64_t span_limit(const hla_hopper_rounds *rounds, const hla_hadamard_problem *problem) {
    int64_t sequences = hla_hadamard_sequence_count(problem), tokens = problem->batch * problem->queries;
    int64_t full = (tokens / HLA_HOPPER_TILE + sequences) / rounds->tiles;
    int64_t ended = (tokens / rounds->chunk + sequences + full) / rounds->snapshots;
    return sequences + 2 * (full + ended + 1);
}

void hla_hopper_take_rounds(hla_hopper_rounds *rounds, hla_arena *arena, const hla_hadamard_problem *problem,
                            int processors) {
    hla_hopper_shape shape = hla_hopper_shape_of(problem, processors);
    int64_t rank = hla_hadamard_state_rank(problem), width = problem->value_dim;
    choose_limits(rounds, problem, processors);
    int64_t spans = span_limit(rounds, problem);
    rounds->keys = hla_arena_take(arena, spans, sizeof(hla_hopper_span));
    rounds->queries = hla_arena_take(arena, spans, sizeof(hla_hopper_span));
    int64_t most = problem->batch * problem->queries / rounds->chunk + hla_hadamard_sequence_count(problem);
    int64_t count = problem->kv_heads * hla_smaller(rounds->snapshots, most);
    hla_hopper_state *state = &rounds->state;
    *state = (hla_hopper_state){.snapshots = {.every = rounds->chunk / HLA_HOPPER_CHUNK}};
    state->s = hla_arena_take(arena, count * rank * width, sizeof(uint16_t));
    state->z_split = hla_arena_take(arena, 2 * count * rank, sizeof(uint16_t));
    state->snapshots.carry = hla_arena_take(arena, problem->kv_heads * rank * width, sizeof(float));
    state->snapshots.z_carry = hla_arena_take(arena, problem->kv_heads * rank, sizeof(float));
    state->partial = hla_arena_take(arena, hla_hopper_state_partial(&shape), sizeof(float));
    state->z_partial = hla_arena_take(arena, hla_hopper_z_partial(&shape, count), sizeof(float));
}

/* ---- cutting ---- */

/* Where cutting has come to: the next place, and what is left of the round. */
typedef struct cutter {
    const hla_hadamard_call *call;
    const hla_hopper_rounds *rounds;
    int64_t sequence, place;
    int64_t tiles, snapshots;
} cutter;

/* Places of a sequence that a round takes. */
typedef struct stretch {
    hla_sequence tokens; /* queries and keys there */
    int64_t places;
    bool begins, ends; /* the sequence */
} stretch;

/* The next stretch of the round; false if the round is full or nothing is left. */
static bool next_stretch(cutter *at, stretch *found) {
    const hla_hadamard_call *call = at->call;
    const int64_t sequences = hla_hadamard_sequence_count(call->problem);
    while (at->sequence < sequences && at->place == hla_hadamard_sequence(call, at->sequence).queries)
        at->sequence++, at->place = 0;
    if (at->sequence == sequences) return false;
    const hla_sequence sequence = hla_hadamard_sequence(call, at->sequence);
    int64_t places = hla_smaller(at->tiles * HLA_HOPPER_TILE, at->snapshots * at->rounds->chunk);
    places = hla_smaller(places, sequence.queries - at->place);
    if (places == 0) return false;
    int64_t keys = hla_smaller(sequence.keys - at->place, places);
    *found = (stretch){.tokens = {sequence.b, sequence.query_first + at->place, places, sequence.key_first + at->place,
                                  hla_larger(keys, 0)},
                       .places = places,
                       .begins = at->place == 0,
                       .ends = at->place + places == sequence.queries};
    at->place += places;
    at->tiles -= units_of(places, HLA_HOPPER_TILE);
    at->snapshots -= units_of(places, at->rounds->chunk);
    return true;
}

static void begin_round(cutter *at) {
    at->tiles = at->rounds->tiles, at->snapshots = at->rounds->snapshots;
}

/* ---- spans ---- */

/* Numbers on their way to the device, some at a time. */
typedef struct sender {
    const hla_hadamard_call *call;
    hla_hopper_span batch[96];
    int64_t filled;
    hla_hopper_span *to;
} sender;

static hla_status flush(sender *s) {
    int error = hla_cuda_upload((int64_t *)s->to, (const int64_t *)s->batch,
                                s->filled * (int64_t)(sizeof *s->batch / sizeof(int64_t)), s->call->context->stream);
    s->to += s->filled, s->filled = 0;
    return hla_cuda_check(s->call->context, error, "cannot pass the sequences to the GPU");
}

static hla_status send(sender *s, hla_hopper_span span) {
    s->batch[s->filled++] = span;
    return s->filled == sizeof s->batch / sizeof *s->batch ? flush(s) : HLA_OK;
}

/* All rounds' stretches, as the state kernel sees them or the query kernel. */
static hla_status send_spans(const hla_hadamard_call *call, const hla_hopper_rounds *rounds, bool keys) {
    sender s = {.call = call, .to = keys ? rounds->keys : rounds->queries};
    cutter at = {.call = call, .rounds = rounds};
    hla_status status = HLA_OK;
    bool more = true;
    while (status == HLA_OK && more) {
        stretch next;
        hla_hopper_span total = {0};
        begin_round(&at);
        for (more = false; status == HLA_OK && next_stretch(&at, &next); more = true) {
            const hla_sequence *tokens = &next.tokens;
            hla_hopper_span span = total;
            span.b = tokens->b;
            span.first = keys ? tokens->key_first : tokens->query_first;
            span.count = keys ? tokens->keys : tokens->queries;
            total.units += units_of(next.places, keys ? HLA_HOPPER_CHUNK : HLA_HOPPER_TILE);
            total.snapshots += units_of(next.places, rounds->chunk);
            status = send(&s, span);
        }
        if (status == HLA_OK && more) status = send(&s, total);
    }
    return status == HLA_OK && s.filled > 0 ? flush(&s) : status;
}

/* ---- rounds ---- */

/* A round as the kernels take it. */
typedef struct round {
    hla_hopper_side keys, queries;
    hla_hopper_state state;
} round;

/* Cuts the next round, whose spans begin at number `first`; false if nothing is left. */
static bool next_round(cutter *at, round *next, int64_t first) {
    const hla_hadamard_call *call = at->call;
    const hla_hopper_rounds *rounds = at->rounds;
    const int64_t kv_heads = call->problem->kv_heads;
    begin_round(at);
    const int64_t tiles = at->tiles, snapshots = at->snapshots;
    int64_t sequences = 0, chunks = 0;
    hla_hopper_snapshots taken = rounds->state.snapshots;
    for (stretch found; next_stretch(at, &found); sequences++) {
        if (sequences == 0) taken.continues = !found.begins;
        taken.goes_on = !found.ends;
        chunks += units_of(found.places, HLA_HOPPER_CHUNK);
    }
    taken.count = (snapshots - at->snapshots) * kv_heads;
    next->keys = hla_hopper_side_of(call, true, call->in.v);
    next->keys.spans = rounds->keys + first, next->keys.sequences = sequences, next->keys.units = chunks;
    next->queries = hla_hopper_side_of(call, false, call->out);
    next->queries.spans = rounds->queries + first, next->queries.sequences = sequences;
    next->queries.units = tiles - at->tiles;
    next->state = rounds->state;
    next->state.states = sequences * kv_heads, next->state.snapshots = taken;
    return sequences > 0;
}

hla_status hla_hopper_run_rounds(const hla_hadamard_call *call, const hla_hopper_rounds *rounds) {
    const hla_hadamard_problem *problem = call->problem;
    const hla_hopper_shape shape = hla_hopper_shape_of(problem, call->threads);
    const hla_hopper_query_options options = {
        .normalised = problem->normalised, .epsilon = problem->epsilon, .scale = problem->scale};
    hla_status status = send_spans(call, rounds, true);
    if (status == HLA_OK) status = send_spans(call, rounds, false);
    cutter at = {.call = call, .rounds = rounds};
    int64_t first = 0;
    for (round next; status == HLA_OK && next_round(&at, &next, first); first += next.keys.sequences + 1) {
        int error = hla_hopper_build(&shape, &next.keys, &next.state, call->context->stream);
        if (!error)
            error = hla_hopper_query(&shape, &next.queries, &next.keys, &next.state, &options, call->context->stream);
        status = hla_cuda_check(call->context, error, "cannot compute a round of tokens");
    }
    return status;
}
