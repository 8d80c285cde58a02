/* Quadratic form, in tiles (quadratic.h): first all keys are packed, block by block, then each query block walks over
 * the key blocks that it sees.
 *
 * Key blocks are summed in order whichever thread does it: the result has the same bits for any number of threads.
 */
#include "attention/ops/hadamard/quadratic.h"

#include <omp.h>

enum { CHUNK = 64 * KEYS /* keys summed, block by block, before the next level */ };

typedef struct plan {
    const hla_hadamard_problem *problem;
    int64_t key_blocks, query_blocks; /* of all sequences, at most */
    int64_t block_size;
    float *keys;          /* [Hkv][key_blocks] packed blocks */
    char *scratch;        /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} plan;

/* Of one thread. */
typedef struct scratch {
    score_block block;          /* sums over one chunk of keys */
    float *sums, *denominators; /* over all */
} scratch;

/* Blocks of `size` tokens that sequences of together `tokens` tokens need at most. */
static int64_t block_count(const hla_hadamard_problem *problem, int64_t tokens, int64_t size) {
    if (problem->sequences > 0) return tokens / size + problem->sequences;
    return problem->batch * ((tokens + size - 1) / size);
}

/* Where the blocks of a sequence begin that starts with token `first`: sequences never share a block. */
static int64_t first_block(const hla_hadamard_problem *problem, int64_t n, int64_t first, int64_t tokens,
                           int64_t size) {
    if (problem->sequences > 0) return first / size + n;
    return n * ((tokens + size - 1) / size);
}

/* The sequence that a block belongs to: the last that begins at or before it. */
static int64_t sequence_of(const hla_hadamard_problem *problem, const int64_t *starts, int64_t block, int64_t tokens,
                           int64_t size) {
    if (problem->sequences == 0) return block / ((tokens + size - 1) / size);
    int64_t low = 0, high = problem->sequences;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        bool before = first_block(problem, middle, starts[middle], tokens, size) <= block;
        low = before ? middle : low;
        high = before ? high : middle;
    }
    return low;
}

static scratch carve_scratch(hla_arena *arena, const hla_hadamard_problem *problem) {
    int64_t sums = saturating_product(panel_count(problem->value_dim), QUERIES * HLA_TILE_COLUMNS);
    scratch own = {.block = carve_score_block(arena, problem)};
    own.block.sums = hla_arena_take(arena, sums, sizeof(float));
    own.block.denominators = hla_arena_take(arena, QUERIES * HLA_VECTOR_WIDTH, sizeof(float));
    own.sums = hla_arena_take(arena, sums, sizeof(float));
    own.denominators = hla_arena_take(arena, QUERIES * HLA_VECTOR_WIDTH, sizeof(float));
    return own;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem};
    p.key_blocks = block_count(problem, problem->keys, KEYS);
    p.query_blocks = block_count(problem, problem->queries, QUERIES);
    p.block_size = key_block_size(problem);
    int64_t blocks = saturating_product(problem->kv_heads, p.key_blocks);
    p.keys = hla_arena_take(arena, saturating_product(blocks, p.block_size), sizeof(float));
    hla_arena measured = {0};
    carve_scratch(&measured, problem);
    arena->overflow |= measured.overflow;
    p.scratch_size = (int64_t)measured.used;
    p.scratch = hla_arena_take(arena, p.scratch_size, (size_t)threads);
    return p;
}

static scratch scratch_of_thread(const plan *p) {
    hla_arena mine = {.base = p->scratch + omp_get_thread_num() * p->scratch_size};
    return carve_scratch(&mine, p->problem);
}

static void pack_keys(const plan *p, const hla_hadamard_call *call, int64_t kv, int64_t unit) {
    int64_t n = sequence_of(p->problem, call->in.key_starts, unit, p->problem->keys, KEYS);
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t first = (unit - first_block(p->problem, n, sequence.key_first, p->problem->keys, KEYS)) * KEYS;
    int64_t count = hla_smaller(KEYS, sequence.keys - first);
    float *to = p->keys + (kv * p->key_blocks + unit) * p->block_size;
    if (count > 0) pack_key_block(to, call, sequence.b, kv, sequence.key_first + first, count);
}

/* Sums of the first `rows` queries = 0, or += those of a chunk. */
static void clear_sums(const hla_hadamard_problem *problem, float *sums, float *denominators, int64_t rows) {
    for (int64_t panel = 0; panel < panel_count(problem->value_dim); panel++)
        memset(sums + panel * QUERIES * HLA_TILE_COLUMNS, 0, (size_t)(rows * HLA_TILE_COLUMNS) * sizeof *sums);
    memset(denominators, 0, (size_t)(rows * HLA_VECTOR_WIDTH) * sizeof *denominators);
}
static void add_sums(const scratch *own, const hla_hadamard_problem *problem, int64_t rows) {
    for (int64_t panel = 0; panel < panel_count(problem->value_dim); panel++) {
        int64_t first = panel * QUERIES * HLA_TILE_COLUMNS;
        add_floats(own->sums + first, own->block.sums + first, rows * HLA_TILE_COLUMNS);
    }
    add_floats(own->denominators, own->block.denominators, rows * HLA_VECTOR_WIDTH);
}

/* Queries first ... first + count - 1 of a sequence, whose packed keys begin at `keys`. */
static void attend(const plan *p, const hla_hadamard_call *call, scratch *own, const hla_sequence *sequence,
                   const float *keys, int64_t h, int64_t first, int64_t count) {
    int64_t token = sequence->query_first + first, rows = hla_round_up(count, HLA_TILE_ROWS);
    int64_t visible = hla_hadamard_visible(p->problem, sequence, first + count - 1);
    if (visible == 0) {
        write_zeros(call, sequence->b, h, token, count);
        return;
    }
    pack_query_block(&own->block, call, sequence->b, h, token, count);
    clear_sums(p->problem, own->sums, own->denominators, rows);
    for (int64_t chunk = 0; chunk < visible; chunk += CHUNK) {
        clear_sums(p->problem, own->block.sums, own->block.denominators, rows);
        for (int64_t key = chunk; key < hla_smaller(visible, chunk + CHUNK); key += KEYS) {
            bool diagonal = p->problem->causal && key == first;
            attend_block(&own->block, keys + key / KEYS * p->block_size, hla_smaller(KEYS, visible - key), diagonal);
        }
        add_sums(own, p->problem, rows);
    }
    write_rows(call, own->sums, QUERIES, own->denominators, sequence->b, h, token, count);
}

static void query_block(const plan *p, const hla_hadamard_call *call, scratch *own, int64_t h, int64_t unit) {
    int64_t n = sequence_of(p->problem, call->in.query_starts, unit, p->problem->queries, QUERIES);
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t first = (unit - first_block(p->problem, n, sequence.query_first, p->problem->queries, QUERIES)) * QUERIES;
    int64_t count = hla_smaller(QUERIES, sequence.queries - first);
    if (count <= 0) return;
    int64_t kv = h / (p->problem->heads / p->problem->kv_heads);
    int64_t block = first_block(p->problem, n, sequence.key_first, p->problem->keys, KEYS);
    attend(p, call, own, &sequence, p->keys + (kv * p->key_blocks + block) * p->block_size, h, first, count);
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static hla_status run(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_arena arena = {.base = call->workspace};
    plan carved = carve(&arena, problem, call->threads);
    const plan *p = &carved;
#pragma omp parallel num_threads(                                                                                      \
    hla_team_size(call->threads, problem->heads, hla_larger(p->key_blocks, p->query_blocks)))
    {
        scratch own = scratch_of_thread(p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < problem->kv_heads * p->key_blocks; unit++)
            pack_keys(p, call, unit / p->key_blocks, unit % p->key_blocks);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < problem->heads * p->query_blocks; unit++)
            query_block(p, call, &own, unit / p->query_blocks, unit % p->query_blocks);
    }
    return HLA_OK;
}

extern const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_quadratic);
const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_quadratic) = {
    .kernel = {.name = "quadratic_" HLA_ISA_STRING, .isa = HLA_ISA_VALUE},
    .form = HLA_FORM_QUADRATIC,
    .measure = measure,
    .run = run,
};
