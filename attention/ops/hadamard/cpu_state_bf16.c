/* State form with products of bfloat16 and float32 sums: the bidirectional forward pass of bfloat16 problems
 * without states.
 *
 *     S[f][x] = sum_j phi_j[f] v_j[x]     z[f] = sum_j phi_j[f]       phi_j rounded to bfloat16
 *     n_i[x] = sum_f phi_i[f] S[f][x]     d_i = sum_f phi_i[f] z[f]   phi_i and S too, or neither: rounds_query
 *
 * Features and values are bfloat16 already; what is rounded beside the result is phi, which of two factors has twice
 * the digits, and S. Work is cut as in cpu_state.c, and the result has the same bits for any number of threads.
 */
#pragma GCC diagnostic ignored "-Wunused-function" /* of state.h only the query is wanted, not building in float32 */
#include "attention/ops/hadamard/state_bf16.h"

#include "attention/ops/hadamard/spans.h"

#include <omp.h>

enum { LEAST_RANK = 32 };

typedef struct plan {
    const hla_hadamard_problem *problem;
    geometry g;
    spans cut;
    bool rounds_query;
    states pairs;         /* of the wave */
    char *scratch;        /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} plan;

/* Of one thread. */
typedef struct own_memory {
    pair_scratch pairs;
    scratch block;    /* of the query */
    chunk_sums chunk; /* only with more than CHUNK keys */
} own_memory;

/* Each rounding, of phi_j, S, phi_i and the result, costs as much as the next where all terms have their signs by
 * chance: four of them are twice the error of the last alone, which is the gate. Weights of a normalised problem are
 * sums of R terms of one sign, where errors by chance cancel. phi of one factor is not rounded. Elsewhere the query is
 * made of float32 products, and the keys, half the work, of bfloat16 ones. */
static bool rounds_query(const geometry *g) {
    return g->folded.factors == 1 || (g->problem->normalised && g->folded.state_rank >= LEAST_RANK);
}

static own_memory carve_own(hla_arena *arena, const plan *p) {
    own_memory own = {.pairs = carve_pair_scratch(arena, &p->g), .block = carve_scratch(arena, &p->g)};
    if (p->problem->keys > CHUNK) own.chunk = take_chunk(arena, &p->g, &p->cut);
    return own;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem, .g = make_geometry(problem)};
    int64_t state = p.g.state_size < INT64_MAX / 2 ? p.g.state_size + p.g.sum_size : INT64_MAX;
    p.rounds_query = rounds_query(&p.g);
    p.cut = cut_spans(&p.g, state, 0, threads);
    p.pairs = take_states(arena, &p.g, &p.cut);
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

/* Adds keys chunk ... chunk + CHUNK - 1 of a pair to features first ... last - 1 of state and sums, which begin with
 * feature `start`. */
static void build_chunk(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                        int64_t chunk, float *state, float *sums, int64_t start, int64_t first, int64_t last) {
    const geometry *g = &p->g;
    int64_t keys = pair->sequence.keys, token = pair->sequence.key_first;
    for (int64_t key = chunk; key < hla_smaller(keys, chunk + CHUNK); key += PAIR_TOKENS) {
        token_rows rows = key_rows(call, pair, key, hla_smaller(PAIR_TOKENS, keys - key));
        pack_pairs(g, &own->pairs, &rows);
        int64_t next = key + PAIR_TOKENS;
        ahead following = plan_ahead(g, &rows, token + next, token + hla_smaller(next + PAIR_TOKENS, keys),
                                     build_steps(g, last - first));
        build_pair_block(g, &own->pairs, &following, state, sums, start, first, last, (rows.count + 1) / 2);
    }
}

/* S and z of features first ... last - 1 (first a multiple of BLOCK), summed over all keys of a pair, and rounded if
 * they are queried so. */
static void build_range(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair,
                        int64_t first, int64_t last) {
    const geometry *g = &p->g;
    float *state = state_of(&p->g, &p->pairs, pair), *sums = sums_of(&p->g, &p->pairs, pair);
    load_state(g, state, sums, NULL, first, last);
    build_chunk(p, call, own, pair, 0, state, sums, 0, first, last);
    for (int64_t chunk = CHUNK; chunk < pair->sequence.keys; chunk += CHUNK) {
        clear_chunk(g, &p->cut, &own->chunk);
        build_chunk(p, call, own, pair, chunk, own->chunk.state, own->chunk.sums, first, first, last);
        add_chunk(g, &own->chunk, state, sums, first, last);
    }
    if (p->rounds_query) round_state(g, state_row(g, state, first), sums + first, last - first);
}

/* One query block; rows of the one at `next` are asked for meanwhile. */
static void query_block(const plan *p, const hla_hadamard_call *call, own_memory *own, const head_pair *pair, int64_t h,
                        int64_t first, int64_t next) {
    const geometry *g = &p->g;
    int64_t queries = pair->sequence.queries, token = pair->sequence.query_first;
    token_rows rows = query_rows_of(call, pair, h, NULL, first, hla_smaller(TOKENS, queries - first));
    if (pair->sequence.keys == 0) {
        write_zeros(call, rows.b, h, rows.first, rows.count);
        return;
    }
    pack_pair_query(g, &own->block, &rows);
    own->block.next = plan_ahead(g, &rows, token + next, token + hla_smaller(next + TOKENS, queries),
                                 query_steps(g, g->folded.state_rank, rows.count));
    plan_writes(&own->block.next, NULL, 0, call->out, &rows);
    result_rows to = result_of(call, &rows, HLA_BF16);
    if (!p->rounds_query) to.rows = 0;
    if (p->rounds_query) {
        query_pairs(g, &own->pairs, &own->block, state_of(&p->g, &p->pairs, pair), sums_of(&p->g, &p->pairs, pair),
                    rows.count, &to);
    } else {
        query_rows(g, &own->block, state_of(&p->g, &p->pairs, pair), sums_of(&p->g, &p->pairs, pair), 0,
                   g->folded.state_rank, rows.count, NULL);
    }
    write_pair_rows(call, &own->block, &rows, to.rows);
}

/* Called by all threads of a team. */
static void run_wave(const plan *p, const hla_hadamard_call *call, own_memory *own, int64_t wave) {
    const spans *cut = &p->cut;
    int64_t pairs = wave_pairs(cut, wave);
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < pairs * cut->ranges; unit++) {
        head_pair pair = pair_of(cut, call, wave, unit / cut->ranges);
        int64_t first = unit % cut->ranges * cut->range;
        build_range(p, call, own, &pair, first, hla_smaller(first + cut->range, p->g.folded.state_rank));
    }
    int64_t blocks = wave_blocks(cut, call, wave, true, false);
    int64_t team = omp_get_num_threads(); /* each thread's next block is about that far */
#pragma omp for schedule(dynamic, 1)
    for (int64_t unit = 0; unit < pairs * cut->group * blocks; unit++) {
        head_pair pair = pair_of(cut, call, wave, unit / blocks / cut->group);
        int64_t h = pair.kv * cut->group + unit / blocks % cut->group, first = unit % blocks * TOKENS;
        if (first < pair.sequence.queries) query_block(p, call, own, &pair, h, first, first + team * TOKENS);
    }
}

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
            run_wave(p, call, &own, wave);
    }
    return HLA_OK;
}

extern const hla_hadamard_backward_entry hla_hadamard_backward_state_avx512; /* cpu_backward.c */
/* A state is float32 and, however its keys are split, the same up to that: not with features rounded to bfloat16. */
static bool takes(const hla_hadamard_problem *problem) {
    return problem->dtype == HLA_BF16 && !problem->causal && !problem->stateful;
}

const hla_hadamard_entry hla_hadamard_state_avx512_bf16 = {
    .kernel = {.name = "state_avx512_bf16", .isa = HLA_ISA_AVX512_BF16},
    .form = HLA_FORM_STATE,
    .measure = measure,
    .run = run,
    .backward = &hla_hadamard_backward_state_avx512,
    .takes = takes,
    .taken = "bidirectional problems in bfloat16 without states",
};
