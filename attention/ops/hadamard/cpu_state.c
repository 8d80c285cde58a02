/* State form, linear in T: per batch and head
 *
 *     S[f][x] = sum_j phi_j[f] v_j[x]     z[f] = sum_j phi_j[f]          phi_j = c_j^1 (x) ... (x) c_j^P, R numbers
 *     n_i[x] = sum_f phi_i[f] S[f][x]     d_i = sum_f phi_i[f] z[f]      phi_i likewise of a_i
 *
 * Both are matrix products with phi as an operand, and phi is never stored: the factors are folded into two, an outer
 * and an inner one, phi[o * R_inner + i] = outer[o] * inner[i], and a small panel of phi that stays in the first-level
 * cache is made right before the register tile reads it.
 *
 * The work is cut by batch, head, feature range and query block. Each number of S is summed over token blocks in order
 * by whoever owns it, so the result has the same bits for any number of threads; feature ranges are as wide as the
 * second-level cache allows, narrower only to give each thread one.
 */
#include "attention/ops/hadamard/cpu.h"

#include <omp.h>

enum {
    TOKENS = 128,  /* keys a block: its value panel (16 KB) and phi panel (24 KB) share a 48 KB cache */
    FEATURES = 32, /* features a phi panel of the state */
    BLOCK = 128,   /* features a phi panel of the query; a panel of S of that height is 16 KB */
    QUERIES = 128, /* queries a block: what a read of S is shared by */
    GROUP = 16,    /* queries a phi panel */
    STATE_ROW = FEATURES + HLA_VECTOR_WIDTH, /* a row is written by whole vectors and may overshoot */
    QUERY_ROW = BLOCK + HLA_VECTOR_WIDTH,
    RANGE_BYTES = 512 << 10, /* of S that one pass over the keys keeps in the second-level cache */
    CACHE_LINE = 64,
    CHUNK = 64 * TOKENS /* keys summed before the next level: equal terms lose up to half a bit's worth per addition */
};

/* The factors in order of rank, the first `split` of them folded into the outer one. Sorting keeps the inner one wide
 * (a vector of phi then comes from one multiplication), the split keeps the sum of both ranks small. */
typedef struct fold {
    int order[HLA_MAX_FACTORS];
    int factors, split;
    int64_t outer, inner; /* ranks */
    int64_t state_rank;
} fold;

static int64_t rank_product(const hla_hadamard_problem *problem, const int *order, int first, int last) {
    int64_t product = 1;
    for (int p = first; p < last; p++)
        product *= problem->rank[order[p]];
    return product;
}

static fold make_fold(const hla_hadamard_problem *problem) {
    fold folded = {.factors = problem->factors};
    for (int p = 0; p < problem->factors; p++) {
        int place = p;
        for (; place > 0 && problem->rank[folded.order[place - 1]] > problem->rank[p]; place--) {
            folded.order[place] = folded.order[place - 1];
        }
        folded.order[place] = p;
    }
    for (int split = 0; split < folded.factors; split++) {
        int64_t outer = rank_product(problem, folded.order, 0, split);
        int64_t inner = rank_product(problem, folded.order, split, folded.factors);
        if (split > 0 && outer + inner >= folded.outer + folded.inner) continue;
        folded.split = split, folded.outer = outer, folded.inner = inner;
    }
    folded.state_rank = folded.outer * folded.inner;
    return folded;
}

/* Tokens of a head that are wanted next, asked of memory a few at a time while others are computed with. */
typedef struct ahead {
    const hla_tensor *factors, *values; /* values: NULL for queries */
    int factor_count;
    int64_t b, h, token, last; /* token ... last - 1 are still to be asked for */
    int64_t per_step;
} ahead;

/* Of one thread. */
typedef struct scratch {
    ahead next;
    float *outer;        /* keys: [R_outer][TOKENS]; queries: [QUERIES][R_outer] */
    float *inner;        /* [TOKENS or QUERIES][inner_row], rows padded to be read by whole vectors */
    float *row;          /* max(R_outer, R_inner): a row being expanded */
    float *panel;        /* [TOKENS][STATE_ROW] or [GROUP][QUERY_ROW] of phi */
    float *values;       /* keys: [panel of V][TOKENS][COLUMNS]; queries: the sums [panel of V][QUERIES][COLUMNS] */
    float *denominators; /* [QUERIES][HLA_VECTOR_WIDTH] */
    float *chunk_state;  /* S of one range and one chunk of keys; only with more than CHUNK keys */
    float *chunk_sums;   /* z likewise */
} scratch;

typedef struct plan {
    const hla_hadamard_problem *problem;
    fold folded;
    int64_t inner_row;
    int64_t value_panels;
    int64_t block_size;   /* floats of S a feature block: [panel of V][BLOCK][COLUMNS] */
    int64_t state_size;   /* floats of S a head: [feature block][panel of V][BLOCK][COLUMNS] */
    int64_t sum_size;     /* floats of z a head */
    int64_t range;        /* features a unit of work builds, a multiple of FEATURES */
    int64_t query_blocks; /* a head */
    float *state;         /* [B*H] S */
    float *sums;          /* [B*H] z */
    char *scratch;        /* [threads][scratch_size] */
    int64_t scratch_size; /* bytes */
} plan;

static scratch carve_scratch(hla_arena *arena, const plan *p) {
    scratch own = {0};
    own.outer = hla_arena_take(arena, saturating_product(p->folded.outer, TOKENS), sizeof(float));
    own.inner = hla_arena_take(arena, saturating_product(p->inner_row, TOKENS), sizeof(float));
    own.row =
        hla_arena_take(arena, p->folded.outer > p->folded.inner ? p->folded.outer : p->folded.inner, sizeof(float));
    own.panel = hla_arena_take(arena, TOKENS * STATE_ROW, sizeof(float));
    own.values = hla_arena_take(arena, saturating_product(p->value_panels, TOKENS * HLA_TILE_COLUMNS), sizeof(float));
    own.denominators = hla_arena_take(arena, QUERIES * HLA_VECTOR_WIDTH, sizeof(float));
    int64_t range = p->problem->keys > CHUNK ? hla_round_up(p->range, BLOCK) : 0;
    own.chunk_state = hla_arena_take(arena, saturating_product(range / BLOCK, p->block_size), sizeof(float));
    own.chunk_sums = hla_arena_take(arena, range, sizeof(float));
    return own;
}

/* Features a unit of work builds. */
static int64_t range_length(const plan *p, int64_t heads, int threads) {
    int64_t cached = RANGE_BYTES / (p->value_panels * HLA_TILE_COLUMNS * (int64_t)sizeof(float));
    int64_t shared = heads % threads == 0 ? p->folded.state_rank : (p->folded.state_rank + threads - 1) / threads;
    int64_t length = hla_round_up(hla_smaller(cached, shared), FEATURES);
    return length > 0 ? length : FEATURES;
}

static plan carve(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    plan p = {.problem = problem, .folded = make_fold(problem)};
    int64_t heads = problem->batch * problem->heads;
    p.inner_row = hla_round_up(p.folded.inner, HLA_VECTOR_WIDTH) + HLA_VECTOR_WIDTH;
    p.value_panels = panel_count(problem->value_dim);
    p.block_size = p.value_panels * BLOCK * HLA_TILE_COLUMNS;
    int64_t blocks = hla_round_up(p.folded.state_rank, BLOCK) / BLOCK;
    p.state_size = saturating_product(blocks, p.block_size);
    p.sum_size = blocks * BLOCK;
    p.range = range_length(&p, heads, threads);
    p.query_blocks = (problem->queries + QUERIES - 1) / QUERIES;
    p.state = hla_arena_take(arena, saturating_product(heads, p.state_size), sizeof(float));
    p.sums = hla_arena_take(arena, saturating_product(heads, p.sum_size), sizeof(float));
    hla_arena measured = {0};
    carve_scratch(&measured, &p);
    arena->overflow |= measured.overflow;
    p.scratch_size = (int64_t)measured.used;
    p.scratch = hla_arena_take(arena, p.scratch_size, (size_t)threads);
    return p;
}

static scratch scratch_of_thread(const plan *p) {
    hla_arena mine = {.base = p->scratch + omp_get_thread_num() * p->scratch_size};
    return carve_scratch(&mine, p);
}

/* Where S of a feature begins, in memory that begins with a whole feature block. */
HLA_INLINE float *state_row(const plan *p, float *state, int64_t feature) {
    return state + feature / BLOCK * p->block_size + feature % BLOCK * HLA_TILE_COLUMNS;
}

/* Grown from the back in place, last factor fastest. */
static void expand_factors(float *row, const fold *folded, int first, int last, const hla_tensor *factors, int64_t b,
                           int64_t t, int64_t h) {
    int64_t length = 1;
    row[0] = 1;
    for (int p = first; p < last; p++) {
        float next[HLA_MAX_RANK];
        const hla_tensor *factor = &factors[folded->order[p]];
        int64_t rank = factor->shape[3];
        load_row(next, factor, b, t, h, 0, rank);
        for (int64_t i = length - 1; i >= 0; i--) {
            float x = row[i];
            for (int64_t r = 0; r < rank; r++) {
                row[i * rank + r] = x * next[r];
            }
        }
        length *= rank;
    }
}

/* row[] = Kronecker product of factors order[first] ... order[last - 1] of token [b,t,h]; an empty product is 1. */
HLA_INLINE void expand_row(float *row, const fold *folded, int first, int last, const hla_tensor *factors, int64_t b,
                           int64_t t, int64_t h) {
    if (last - first == 1) {
        const hla_tensor *factor = &factors[folded->order[first]];
        load_row(row, factor, b, t, h, 0, factor->shape[3]);
    } else {
        expand_factors(row, folded, first, last, factors, b, t, h);
    }
}

HLA_INLINE void pack_inner_row(const plan *p, float *to, const hla_tensor *factors, int64_t b, int64_t t, int64_t h) {
    expand_row(to, &p->folded, p->folded.split, p->folded.factors, factors, b, t, h);
    for (int64_t i = p->folded.inner; i < p->inner_row; i++)
        to[i] = 0;
}

/* ---- reading ahead ---- */

static ahead plan_ahead(const plan *p, const hla_tensor *factors, const hla_tensor *values, int64_t head, int64_t first,
                        int64_t last, int64_t steps) {
    int64_t tokens = hla_larger(last - first, 0);
    return (ahead){factors, values, p->folded.factors,           head / p->problem->heads, head % p->problem->heads,
                   first,   last,   (tokens + steps - 1) / steps};
}

/* Always inlined: gcc takes a function that does nothing but prefetch for one without effect and drops its calls. */
HLA_INLINE void fetch_row(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h) {
    const char *row = hla_tensor_row(tensor, b, t, h);
    int64_t bytes = tensor->stride[3] == 1 ? tensor->shape[3] * hla_element_size(tensor->dtype) : 0;
    for (int64_t line = 0; line < bytes; line += CACHE_LINE)
        __builtin_prefetch(row + line, 0, 2); /* to read, into the second-level cache */
}

/* One step, of which there is one before each register tile: a few rows then cost nothing, and a whole block at once
 * would wait as long as reading it. */
HLA_INLINE void fetch_ahead(ahead *next) {
    for (int64_t end = hla_smaller(next->token + next->per_step, next->last); next->token < end; next->token++) {
        for (int p = 0; p < next->factor_count; p++)
            fetch_row(&next->factors[p], next->b, next->token, next->h);
        if (next->values) fetch_row(next->values, next->b, next->token, next->h);
    }
}

/* ---- state ---- */

static void pack_keys(const plan *p, const hla_hadamard_call *call, const scratch *own, int64_t b, int64_t h,
                      int64_t first, int64_t count) {
    for (int64_t t = 0; t < count; t++) {
        expand_row(own->row, &p->folded, 0, p->folded.split, call->in.k_features, b, first + t, h);
        for (int64_t o = 0; o < p->folded.outer; o++)
            own->outer[o * TOKENS + t] = own->row[o];
        pack_inner_row(p, own->inner + t * p->inner_row, call->in.k_features, b, first + t, h);
    }
    pack_values(own->values, TOKENS, call->in.v, b, h, first, count);
}

/* panel[t][0 ... width) = outer[t] * inner[t][0 ... width), in whole vectors */
HLA_INLINE void multiply_segment(float *restrict panel, const float *restrict outer, const float *restrict inner,
                                 int64_t inner_row, int64_t tokens, int64_t width) {
    for (int64_t t = 0; t < tokens; t++, panel += STATE_ROW, inner += inner_row) {
        hla_vector x = hla_vector_set(outer[t]);
        for (int64_t i = 0; i < width; i += HLA_VECTOR_WIDTH) {
            hla_vector_store(panel + i, hla_vector_multiply(x, hla_vector_load(inner + i)));
        }
    }
}

/* own->panel = phi of features first ... first + count - 1; zeros up to the next whole vector. Where the inner index
 * wraps, a new segment starts, and its writes cover what the one before wrote too much. */
static void make_key_panel(const plan *p, const scratch *own, int64_t first, int64_t count, int64_t tokens) {
    int64_t o = first / p->folded.inner, i = first % p->folded.inner;
    for (int64_t done = 0, width; done < count; done += width, o++, i = 0) {
        width = hla_smaller(p->folded.inner - i, count - done);
        float *panel = own->panel + done;
        const float *outer = own->outer + o * TOKENS, *inner = own->inner + i;
        if (width == FEATURES) {
            multiply_segment(panel, outer, inner, p->inner_row, tokens, FEATURES);
        } else if (width == HLA_VECTOR_WIDTH) {
            multiply_segment(panel, outer, inner, p->inner_row, tokens, HLA_VECTOR_WIDTH);
        } else {
            multiply_segment(panel, outer, inner, p->inner_row, tokens, width);
        }
    }
    for (int64_t t = 0; t < tokens && count < FEATURES; t++) {
        hla_vector_store(own->panel + t * STATE_ROW + count, hla_vector_zero());
    }
}

/* z[0 ... FEATURES) op= column sums of the panel, in whole vectors. Two columns and two tokens at a time keep the
 * adders busy. */
static void sum_panel(float *sums, const float *panel, int64_t count, int64_t tokens, bool store) {
    for (int64_t c = 0; c < count; c += HLA_VECTOR_WIDTH) {
        hla_vector even = hla_vector_zero(), odd = hla_vector_zero();
        int64_t t = 0;
        for (; t + 1 < tokens; t += 2) {
            even = hla_vector_add(even, hla_vector_load(panel + t * STATE_ROW + c));
            odd = hla_vector_add(odd, hla_vector_load(panel + (t + 1) * STATE_ROW + c));
        }
        if (t < tokens) even = hla_vector_add(even, hla_vector_load(panel + t * STATE_ROW + c));
        hla_tile_finish(sums + c, hla_vector_add(even, odd), store ? HLA_TILE_STORE : HLA_TILE_ADD);
    }
}

/* The register tile with A = phi of the state panel: rows are features, steps are tokens. */
#define STATE_TILE(name, vectors, op)                                                                                  \
    static void name(float *c, const float *a, const float *b, int64_t steps) {                                        \
        hla_tile(c, HLA_TILE_COLUMNS, a, 1, STATE_ROW, b, steps, vectors, op);                                         \
    }
STATE_TILE(state_store_half, 1, HLA_TILE_STORE)
STATE_TILE(state_store_full, 2, HLA_TILE_STORE)
STATE_TILE(state_add_half, 1, HLA_TILE_ADD)
STATE_TILE(state_add_full, 2, HLA_TILE_ADD)
typedef void tile_function(float *c, const float *a, const float *b, int64_t steps);
static tile_function *const state_tiles[2][2] = {{state_store_half, state_store_full},
                                                 {state_add_half, state_add_full}};

/* state, sums (op)= S and z of one block of keys, packed in own, for features first ... last - 1; state and sums begin
 * with feature `start`. */
static void add_tokens(const plan *p, scratch *own, float *state, float *sums, int64_t start, int64_t first,
                       int64_t last, int64_t tokens, bool store) {
    for (int64_t f = first; f < last; f += FEATURES) {
        int64_t count = hla_smaller(FEATURES, last - f);
        make_key_panel(p, own, f, count, tokens);
        sum_panel(sums + f - start, own->panel, count, tokens, store);
        for (int64_t panel = 0; panel < p->value_panels; panel++) {
            tile_function *tile = state_tiles[!store][panel_vectors(panel, p->problem->value_dim) - 1];
            float *to = state_row(p, state, f - start) + panel * BLOCK * HLA_TILE_COLUMNS;
            const float *values = own->values + panel * TOKENS * HLA_TILE_COLUMNS;
            for (int64_t row = 0; row < count; row += HLA_TILE_ROWS) {
                fetch_ahead(&own->next);
                tile(to + row * HLA_TILE_COLUMNS, own->panel + row, values, tokens);
            }
        }
    }
}

/* Adds the chunk's S and z of features first ... last - 1 to the head's. */
static void add_chunk(const plan *p, const scratch *own, float *state, float *sums, int64_t first, int64_t last) {
    for (int64_t f = first; f < last; f += FEATURES) {
        int64_t rows = hla_round_up(hla_smaller(FEATURES, last - f), HLA_TILE_ROWS);
        for (int64_t panel = 0; panel < p->value_panels; panel++) {
            int64_t offset = panel * BLOCK * HLA_TILE_COLUMNS;
            float *to = state_row(p, state, f) + offset, *from = state_row(p, own->chunk_state, f - first) + offset;
            /* half panels have a right half that was never written */
            int64_t width = panel_vectors(panel, p->problem->value_dim) * HLA_VECTOR_WIDTH;
            for (int64_t row = 0; row < rows; row++) {
                add_floats(to + row * HLA_TILE_COLUMNS, from + row * HLA_TILE_COLUMNS, width);
            }
        }
    }
    add_floats(sums + first, own->chunk_sums, hla_round_up(last - first, HLA_VECTOR_WIDTH));
}

/* S and z of features first ... last - 1 (first a multiple of FEATURES), summed over all keys of a head. */
static void build_range(const plan *p, const hla_hadamard_call *call, scratch *own, int64_t head, int64_t first,
                        int64_t last) {
    int64_t b = head / p->problem->heads, h = head % p->problem->heads, keys = hla_hadamard_key_count(call, b);
    float *state = p->state + head * p->state_size, *sums = p->sums + head * p->sum_size;
    int64_t steps = (last - first + HLA_TILE_ROWS - 1) / HLA_TILE_ROWS * p->value_panels; /* register tiles a block */
    for (int64_t chunk = 0; chunk < keys; chunk += CHUNK) {
        int64_t end = hla_smaller(keys, chunk + CHUNK);
        for (int64_t key = chunk; key < end; key += TOKENS) {
            int64_t tokens = hla_smaller(TOKENS, end - key);
            pack_keys(p, call, own, b, h, key, tokens);
            int64_t next = key + tokens;
            own->next =
                plan_ahead(p, call->in.k_features, call->in.v, head, next, hla_smaller(next + TOKENS, keys), steps);
            if (chunk == 0) {
                add_tokens(p, own, state, sums, 0, first, last, tokens, key == 0);
            } else {
                add_tokens(p, own, own->chunk_state, own->chunk_sums, first, first, last, tokens, key == chunk);
            }
        }
        if (chunk > 0) add_chunk(p, own, state, sums, first, last);
    }
}

/* ---- query ---- */

/* Rows up to a whole register tile exist; those past count are zero. */
static void pack_queries(const plan *p, const hla_hadamard_call *call, const scratch *own, int64_t b, int64_t h,
                         int64_t first, int64_t count) {
    int64_t rows = hla_round_up(count, HLA_TILE_ROWS);
    memset(own->outer + count * p->folded.outer, 0, (size_t)((rows - count) * p->folded.outer) * sizeof(float));
    memset(own->inner + count * p->inner_row, 0, (size_t)((rows - count) * p->inner_row) * sizeof(float));
    for (int64_t t = 0; t < count; t++) {
        float *outer = own->outer + t * p->folded.outer;
        expand_row(outer, &p->folded, 0, p->folded.split, call->in.q_features, b, first + t, h);
        pack_inner_row(p, own->inner + t * p->inner_row, call->in.q_features, b, first + t, h);
    }
}

/* phi[0 ... count) from feature `first` on, zeros up to the next whole vector; returns denominator + phi . z by lanes.
 * inner_rank is a constant where that lets the loop be unrolled. */
HLA_INLINE hla_vector make_query_row(float *restrict phi, const float *restrict outer, const float *restrict inner,
                                     int64_t inner_rank, int64_t first, int64_t count, const float *restrict sums,
                                     hla_vector denominator) {
    int64_t o = first / inner_rank, i = first % inner_rank;
    for (int64_t done = 0, width; done < count; done += width, o++, i = 0) {
        width = hla_smaller(inner_rank - i, count - done);
        hla_vector x = hla_vector_set(outer[o]);
        for (int64_t j = 0; j < width; j += HLA_VECTOR_WIDTH) {
            hla_vector_store(phi + done + j, hla_vector_multiply(x, hla_vector_load(inner + i + j)));
        }
    }
    hla_vector_store(phi + count, hla_vector_zero());
    hla_vector odd = hla_vector_zero();
    int64_t f = 0;
    for (; f + HLA_VECTOR_WIDTH < count; f += 2 * HLA_VECTOR_WIDTH) {
        denominator = hla_vector_multiply_add(hla_vector_load(phi + f), hla_vector_load(sums + f), denominator);
        hla_vector next = hla_vector_load(phi + f + HLA_VECTOR_WIDTH);
        odd = hla_vector_multiply_add(next, hla_vector_load(sums + f + HLA_VECTOR_WIDTH), odd);
    }
    if (f < count)
        denominator = hla_vector_multiply_add(hla_vector_load(phi + f), hla_vector_load(sums + f), denominator);
    return hla_vector_add(denominator, odd);
}

/* own->panel = phi of feature block `first` for queries row ... row + rows - 1, and its share of the denominators. */
static void make_query_panel(const plan *p, const scratch *own, int64_t head, int64_t first, int64_t count, int64_t row,
                             int64_t rows) {
    const float *sums = p->sums + head * p->sum_size + first;
    for (int64_t t = 0; t < rows; t++) {
        float *phi = own->panel + t * QUERY_ROW, *lanes = own->denominators + (row + t) * HLA_VECTOR_WIDTH;
        const float *outer = own->outer + (row + t) * p->folded.outer, *inner = own->inner + (row + t) * p->inner_row;
        hla_vector before = first > 0 ? hla_vector_load(lanes) : hla_vector_zero();
        hla_vector after;
        if (p->folded.inner == 16 && count == BLOCK) {
            after = make_query_row(phi, outer, inner, 16, first, BLOCK, sums, before);
        } else if (p->folded.inner == 32 && count == BLOCK) {
            after = make_query_row(phi, outer, inner, 32, first, BLOCK, sums, before);
        } else {
            after = make_query_row(phi, outer, inner, p->folded.inner, first, count, sums, before);
        }
        hla_vector_store(lanes, after);
    }
}

/* The register tile with A = phi of the query panel: rows are queries, steps are features. */
#define QUERY_TILE(name, vectors, op)                                                                                  \
    static void name(float *c, const float *a, const float *b, int64_t steps) {                                        \
        hla_tile(c, HLA_TILE_COLUMNS, a, QUERY_ROW, 1, b, steps, vectors, op);                                         \
    }
QUERY_TILE(query_store_half, 1, HLA_TILE_STORE)
QUERY_TILE(query_store_full, 2, HLA_TILE_STORE)
QUERY_TILE(query_add_half, 1, HLA_TILE_ADD)
QUERY_TILE(query_add_full, 2, HLA_TILE_ADD)
static tile_function *const query_tiles[2][2] = {{query_store_half, query_store_full},
                                                 {query_add_half, query_add_full}};

/* own->values (op)= phi . S of one feature block for queries row ... row + rows - 1, whose phi is in own->panel. */
static void query_group(const plan *p, scratch *own, const float *state, bool add, int64_t row, int64_t rows,
                        int64_t features) {
    for (int64_t panel = 0; panel < p->value_panels; panel++) {
        tile_function *tile = query_tiles[add][panel_vectors(panel, p->problem->value_dim) - 1];
        const float *from = state + panel * BLOCK * HLA_TILE_COLUMNS;
        float *sums = own->values + (panel * QUERIES + row) * HLA_TILE_COLUMNS;
        for (int64_t t = 0; t < rows; t += HLA_TILE_ROWS) {
            fetch_ahead(&own->next);
            tile(sums + t * HLA_TILE_COLUMNS, own->panel + t * QUERY_ROW, from, features);
        }
    }
}

/* Query block `unit`; rows of block `next` (which may be past the last) are asked for meanwhile. */
static void query_block(const plan *p, const hla_hadamard_call *call, scratch *own, int64_t unit, int64_t next) {
    int64_t head = unit / p->query_blocks, first = unit % p->query_blocks * QUERIES, queries = p->problem->queries;
    int64_t b = head / p->problem->heads, h = head % p->problem->heads;
    int64_t count = hla_smaller(QUERIES, queries - first), padded = hla_round_up(count, HLA_TILE_ROWS);
    if (hla_hadamard_key_count(call, b) == 0) {
        write_zeros(call, b, h, first, count);
        return;
    }
    pack_queries(p, call, own, b, h, first, count);
    int64_t next_head = next / p->query_blocks, start = next % p->query_blocks * QUERIES;
    int64_t end = next_head < p->problem->batch * p->problem->heads ? hla_smaller(start + QUERIES, queries) : start;
    int64_t steps = p->sum_size / BLOCK * p->value_panels * (padded / HLA_TILE_ROWS); /* register tiles a block */
    own->next = plan_ahead(p, call->in.q_features, NULL, next_head, start, end, steps);
    float *state = p->state + head * p->state_size;
    for (int64_t f = 0; f < p->folded.state_rank; f += BLOCK) {
        int64_t features = hla_smaller(BLOCK, p->folded.state_rank - f);
        for (int64_t row = 0; row < padded; row += GROUP) {
            int64_t rows = hla_smaller(GROUP, padded - row);
            make_query_panel(p, own, head, f, features, row, rows);
            query_group(p, own, state_row(p, state, f), f > 0, row, rows, features);
        }
    }
    write_rows(call, own->values, QUERIES, own->denominators, b, h, first, count);
}

/* ---- whole ---- */

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve(arena, problem, threads);
}

static void run(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    hla_arena arena = {.base = call->workspace};
    plan carved = carve(&arena, problem, call->threads);
    const plan *p = &carved;
    int64_t heads = problem->batch * problem->heads;
    int64_t ranges = (p->folded.state_rank + p->range - 1) / p->range;
#pragma omp parallel num_threads(hla_team_size(call->threads, heads, hla_larger(ranges, p->query_blocks)))
    {
        scratch own = scratch_of_thread(p);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads * ranges; unit++) {
            int64_t first = unit % ranges * p->range, last = hla_smaller(first + p->range, p->folded.state_rank);
            build_range(p, call, &own, unit / ranges, first, last);
        }
        int64_t team = omp_get_num_threads(); /* each thread's next block is about that many further */
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads * p->query_blocks; unit++) {
            query_block(p, call, &own, unit, unit + team);
        }
    }
}

extern const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_state);
const hla_hadamard_entry HLA_ISA_NAME(hla_hadamard_state) = {
    {"state_" HLA_ISA_STRING, HLA_ISA_VALUE}, HLA_FORM_STATE, measure, run, NULL, NULL};
