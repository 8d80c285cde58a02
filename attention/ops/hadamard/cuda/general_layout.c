/* How calls of the general kernels are cut, and the layout of their workspace (general_layout.h). */
#include "attention/ops/hadamard/cuda/general_layout.h"

/* Bytes, each of which may be exceeded by what a single sequence of one key head needs. */
enum {
    SLOT_BYTES = 24 << 20, /* the round's units; on tensor cores, where a round takes less time, */
    MMA_SLOT_BYTES = 48 << 20,
    MMA_BACKWARD_BYTES = 96 << 20, /* and backward, where slots are in float32 and in 16 bits */
    STATE_BYTES = 64 << 20,        /* the wave's states, if they are no more than all states */
    WEIGHT_BYTES = 24 << 20,       /* the wave's weights of queries */
    SCRATCH_BYTES = 16 << 20       /* sums of the gradient kernel */
};

enum {
    BLOCKS = 1024,     /* enough to keep any GPU busy */
    SHORT_SPAN = 256,  /* tokens */
    SPANS = 128,       /* of a sequence at most */
    LONG_CHUNK = 1024, /* tokens */
    LONG_SPAN = 16384, /* tokens that tensor cores add up by themselves: they cut where others round */
};

/* a * b, or INT64_MAX */
static int64_t product(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return hla_larger(low, hla_smaller(value, high));
}

int64_t hla_general_rank_sum(const hla_hadamard_problem *problem) {
    int64_t sum = 0;
    for (int p = 0; p < problem->factors; p++)
        sum += problem->rank[p];
    return sum;
}

/* Tokens of a unit. Causal: the pairs within a chunk are to cost some part of what the state costs. Otherwise: short
 * enough for many blocks. */
static int64_t choose_span(const hla_hadamard_problem *problem, int64_t state_size, bool backward, bool mma) {
    const int64_t tile = mma ? HLA_GENERAL_MMA_TILE : HLA_GENERAL_TILE;
    if (problem->causal) {
        int64_t even =
            state_size / (hla_general_rank_sum(problem) + problem->value_dim) / (mma ? (backward ? 4 : 2) : 1);
        return clamp(hla_round_up(even, tile), tile, LONG_CHUNK);
    }
    int64_t tokens = hla_larger(1, hla_larger(problem->queries, problem->keys));
    int64_t tiles =
        ((hla_hadamard_state_rank(problem) - 1) / tile + 1) * (mma ? 1 : (problem->value_dim - 1) / tile + 1);
    int64_t pairs = product(hla_hadamard_sequence_count(problem), problem->kv_heads);
    int64_t spans = clamp(BLOCKS / hla_smaller(BLOCKS, product(tiles, pairs)), 1, SPANS);
    int64_t span = hla_round_up(hla_larger((tokens - 1) / spans + 1, SHORT_SPAN), tile);
    return mma ? hla_smaller(span, LONG_SPAN) : span;
}

/* The wave: as many of all pairs of a sequence and a key head as the limits allow. */
static void choose_wave(hla_general_layout *l, const hla_hadamard_problem *problem, bool backward) {
    const bool rounded = l->mma && problem->causal; /* slots hold what is read, in 16 bits; backward that too */
    int64_t state_bytes = rounded && !backward ? 0 : product(l->state_size, sizeof(float));
    if (rounded) state_bytes += 2 * hla_hadamard_state_rank(problem) * (problem->value_dim + 8);
    state_bytes = hla_larger(state_bytes, 1);
    const int64_t sequences = hla_hadamard_sequence_count(problem);
    const int64_t slot_bytes = !l->mma ? SLOT_BYTES : backward ? MMA_BACKWARD_BYTES : MMA_SLOT_BYTES;
    int64_t weight_bytes = 0; /* of a key head and one sequence, or all packed ones */
    if (backward && problem->normalised)
        weight_bytes = product(product(problem->queries, problem->heads / problem->kv_heads),
                               l->mma ? sizeof(hla_general_record) : 2 * sizeof(float));
    l->kvs = hla_smaller(slot_bytes / state_bytes, WEIGHT_BYTES / hla_larger(weight_bytes, 1));
    l->kvs = clamp(l->kvs, 1, problem->kv_heads);
    int64_t waves = hla_larger((problem->kv_heads - 1) / l->kvs + 1, 1);
    l->kvs = (problem->kv_heads - 1) / waves + 1; /* of equal size */
    l->sequences = sequences;
    if (!problem->causal)
        l->sequences = hla_smaller(l->sequences, STATE_BYTES / hla_larger(product(state_bytes, l->kvs), 1));
    if (problem->sequences == 0)
        l->sequences = hla_smaller(l->sequences, WEIGHT_BYTES / hla_larger(product(weight_bytes, l->kvs), 1));
    l->sequences = hla_larger(l->sequences, 1);
    l->slots = clamp(slot_bytes / hla_larger(product(state_bytes, l->kvs), 1), 1, INT64_C(1) << 20);
    int64_t tokens = hla_larger(problem->queries, problem->keys);
    if (problem->sequences > 0) tokens = problem->queries + problem->keys;
    int64_t units = product(l->sequences, problem->sequences > 0 ? 1 : tokens / l->span + 1);
    if (problem->sequences > 0) units = sequences + tokens / l->span;
    l->slots = hla_smaller(l->slots, units);
}

void hla_general_take_starts(hla_general_layout *l, hla_arena *arena, const hla_hadamard_problem *problem) {
    bool packed = problem->sequences > 0;
    l->query_starts = hla_arena_take(arena, packed ? problem->sequences + 1 : 0, sizeof(int64_t));
    l->key_starts = hla_arena_take(arena, packed ? problem->sequences + 1 : 0, sizeof(int64_t));
    l->key_lengths = hla_arena_take(arena, packed ? 0 : problem->batch, sizeof(int64_t));
}

static void take_state(hla_general_layout *l, hla_arena *arena, const hla_hadamard_problem *problem, bool backward) {
    int64_t states = problem->causal ? 0 : product(l->sequences, l->kvs);
    l->states = hla_arena_take(arena, product(states, l->state_size), sizeof(float));
    int64_t slots = l->mma && problem->causal && !backward ? 0 : product(l->slots, l->kvs);
    l->slot_states = hla_arena_take(arena, product(slots, l->state_size), sizeof(float));
    l->carry = hla_arena_take(arena, problem->causal ? product(l->kvs, l->state_size) : 0, sizeof(float));
    int64_t rounded = product(hla_hadamard_state_rank(problem), problem->value_dim + 8);
    int64_t read = problem->causal ? product(l->slots, l->kvs) : states;
    l->rounded = hla_arena_take(arena, l->mma ? product(read, rounded) : 0, sizeof(uint16_t));
}

static void take_gradient(hla_general_layout *l, hla_arena *arena, const hla_hadamard_problem *problem) {
    int64_t heads = product(l->kvs, problem->heads / problem->kv_heads);
    int64_t rows = product(heads, product(problem->sequences > 0 ? 1 : l->sequences, problem->queries));
    if (!problem->normalised) rows = 0;
    l->weights = hla_arena_take(arena, l->mma ? 0 : product(rows, 2), sizeof(float));
    l->records = hla_arena_take(arena, l->mma ? rows : 0, sizeof(hla_general_record));
    if (l->mma) return;
    bool fits = hla_general_gradient_fits(hla_general_rank_sum(problem));
    l->scratch_size = hla_general_gradient_size(hla_general_rank_sum(problem));
    l->scratch_blocks = fits ? 0 : SCRATCH_BYTES / hla_larger(l->scratch_size * (int64_t)sizeof(float), 1);
    l->scratch = hla_arena_take(arena, l->scratch_blocks * l->scratch_size, sizeof(float));
}

hla_general_layout hla_general_lay_out(hla_arena *arena, const hla_hadamard_problem *problem, bool backward, bool mma) {
    hla_general_layout l = {.mma = mma,
                            .state_size = product(hla_hadamard_state_rank(problem), problem->value_dim + 1)};
    hla_general_take_starts(&l, arena, problem);
    if (product(l.state_size, sizeof(float)) == INT64_MAX) {
        arena->overflow = true;
        return l;
    }
    l.span = choose_span(problem, l.state_size, backward, mma);
    choose_wave(&l, problem, backward);
    take_state(&l, arena, problem, backward);
    if (backward) take_gradient(&l, arena, problem);
    return l;
}
