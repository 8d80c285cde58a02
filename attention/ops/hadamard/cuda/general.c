/* Calls on a GPU by the general kernels: lays the workspace out, cuts the work, queues the kernels (general.h).
 *
 * A wave is as many sequences and key heads as may hold their states (not causal) and their queries' weights (backward)
 * at once. In a wave the units of all sequences follow each other, and a round takes as many of them as have a slot:
 * it builds their states and adds them up; causal, it also reads them, each chunk that of the chunks before it. So
 * memory is bounded, whatever the numbers of tokens, sequences and heads; all cuts depend on the problem only.
 */
#include "attention/ops/hadamard/cuda/general.h"
#include "attention/cuda/cuda.h"
#include "attention/ops/hadamard/cuda/general_call.h"

#include <cuda_runtime_api.h>

/* Bytes, each of which may be exceeded by what a single sequence of one key head needs. */
enum {
    SLOT_BYTES = 24 << 20, /* the round's units; on tensor cores, where a round takes less time, */
    MMA_SLOT_BYTES = 48 << 20,
    STATE_BYTES = 64 << 20,  /* the wave's states, if they are no more than all states */
    WEIGHT_BYTES = 24 << 20, /* the wave's weights of queries */
    SCRATCH_BYTES = 16 << 20 /* sums of the gradient kernel */
};

enum {
    BLOCKS = 1024,     /* enough to keep any GPU busy */
    SHORT_SPAN = 256,  /* tokens */
    SPANS = 128,       /* of a sequence at most */
    LONG_CHUNK = 1024, /* tokens */
    LONG_SPAN = 16384, /* tokens that tensor cores add up by themselves: they cut where others round */
    MANY_PAIRS = 65536 /* keys that they add up for a query in quadratic form */
};

/* How a problem is cut, and its workspace. */
typedef struct layout {
    bool mma;                                         /* build and query run on tensor cores */
    bool overflow;                                    /* it cannot be addressed */
    int64_t state_size;                               /* floats of a state: R (V + 1) */
    int64_t kvs, sequences;                           /* of a wave */
    int64_t span, slots;                              /* tokens of a unit, units of a round */
    int64_t scratch_size, scratch_blocks;             /* of the gradient kernel */
    int64_t *query_starts, *key_starts, *key_lengths; /* device copies */
    float *states, *slot_states, *carry, *weights, *scratch;
    uint16_t *rounded; /* mma: the states that are read */
} layout;

/* a * b, or INT64_MAX */
static int64_t product(int64_t a, int64_t b) {
    int64_t result;
    return __builtin_mul_overflow(a, b, &result) ? INT64_MAX : result;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high) {
    return hla_larger(low, hla_smaller(value, high));
}

static int64_t rank_sum(const hla_hadamard_problem *problem) {
    int64_t sum = 0;
    for (int p = 0; p < problem->factors; p++)
        sum += problem->rank[p];
    return sum;
}

/* Tokens of a unit. Causal: the pairs within a chunk are to cost some part of what the state costs. Otherwise: short
 * enough for many blocks. */
static int64_t choose_span(const hla_hadamard_problem *problem, int64_t state_size, bool mma) {
    const int64_t tile = mma ? HLA_GENERAL_MMA_TILE : HLA_GENERAL_TILE;
    if (problem->causal) {
        int64_t even = state_size / (rank_sum(problem) + problem->value_dim) / (mma ? 2 : 1);
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
static void choose_wave(layout *l, const hla_hadamard_problem *problem, bool backward) {
    const bool running = l->mma && problem->causal; /* slots hold what is read, in 16 bits */
    const int64_t state_bytes = hla_larger(running ? 2 * hla_hadamard_state_rank(problem) * (problem->value_dim + 8)
                                                   : product(l->state_size, sizeof(float)),
                                           1);
    const int64_t sequences = hla_hadamard_sequence_count(problem);
    const int64_t slot_bytes = l->mma ? MMA_SLOT_BYTES : SLOT_BYTES;
    int64_t weight_bytes = 0; /* of a key head and one sequence, or all packed ones */
    if (backward && problem->normalised)
        weight_bytes = product(product(problem->queries, problem->heads / problem->kv_heads), 2 * sizeof(float));
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

static void take_starts(layout *l, hla_arena *arena, const hla_hadamard_problem *problem) {
    bool packed = problem->sequences > 0;
    l->query_starts = hla_arena_take(arena, packed ? problem->sequences + 1 : 0, sizeof(int64_t));
    l->key_starts = hla_arena_take(arena, packed ? problem->sequences + 1 : 0, sizeof(int64_t));
    l->key_lengths = hla_arena_take(arena, packed ? 0 : problem->batch, sizeof(int64_t));
}

static void take_state(layout *l, hla_arena *arena, const hla_hadamard_problem *problem) {
    int64_t states = problem->causal ? 0 : product(l->sequences, l->kvs);
    l->states = hla_arena_take(arena, product(states, l->state_size), sizeof(float));
    int64_t slots = l->mma && problem->causal ? 0 : product(l->slots, l->kvs);
    l->slot_states = hla_arena_take(arena, product(slots, l->state_size), sizeof(float));
    l->carry = hla_arena_take(arena, problem->causal ? product(l->kvs, l->state_size) : 0, sizeof(float));
    int64_t rounded = product(hla_hadamard_state_rank(problem), problem->value_dim + 8);
    int64_t read = problem->causal ? product(l->slots, l->kvs) : states;
    l->rounded = hla_arena_take(arena, l->mma ? product(read, rounded) : 0, sizeof(uint16_t));
}

static void take_gradient(layout *l, hla_arena *arena, const hla_hadamard_problem *problem) {
    int64_t heads = product(l->kvs, problem->heads / problem->kv_heads);
    int64_t rows = product(heads, product(problem->sequences > 0 ? 1 : l->sequences, problem->queries));
    l->weights = hla_arena_take(arena, problem->normalised ? product(rows, 2) : 0, sizeof(float));
    bool fits = hla_general_gradient_fits(rank_sum(problem));
    l->scratch_size = hla_general_gradient_size(rank_sum(problem));
    l->scratch_blocks = fits ? 0 : SCRATCH_BYTES / hla_larger(l->scratch_size * (int64_t)sizeof(float), 1);
    l->scratch = hla_arena_take(arena, l->scratch_blocks * l->scratch_size, sizeof(float));
}

static layout lay_out(hla_arena *arena, const hla_hadamard_problem *problem, bool backward, bool mma) {
    layout l = {.mma = mma, .state_size = product(hla_hadamard_state_rank(problem), problem->value_dim + 1)};
    take_starts(&l, arena, problem);
    if (product(l.state_size, sizeof(float)) == INT64_MAX) {
        arena->overflow = true;
        return l;
    }
    l.span = choose_span(problem, l.state_size, mma);
    choose_wave(&l, problem, backward);
    take_state(&l, arena, problem);
    if (backward) take_gradient(&l, arena, problem);
    return l;
}

/* ---- units, as general.cuh numbers them ---- */

static int64_t units_before(const hla_hadamard_call *call, const hla_general_units *units, int64_t n) {
    const hla_hadamard_problem *problem = call->problem;
    if (problem->sequences == 0) {
        int64_t queries = units->of_queries ? problem->queries : 0, keys = units->of_keys ? problem->keys : 0;
        int64_t tokens = hla_larger(queries, keys);
        return n * (tokens > 0 ? (tokens - 1) / units->length + 1 : 1);
    }
    int64_t tokens = (units->of_queries ? call->in.query_starts[n] : 0) + (units->of_keys ? call->in.key_starts[n] : 0);
    return tokens / units->length + n;
}

static hla_general_units units_of_wave(const hla_hadamard_call *call, const hla_general_shape *wave, int64_t length,
                                       bool of_queries, bool of_keys) {
    hla_general_units units = {.length = length, .of_queries = of_queries, .of_keys = of_keys};
    units.first = units_before(call, &units, wave->first_sequence);
    units.count = units_before(call, &units, wave->first_sequence + wave->sequences) - units.first;
    return units;
}

/* ---- kernels ---- */

/* One call: its layout, both sides, and the shape with the wave that is worked on. */
typedef struct run {
    const hla_hadamard_call *call;
    layout l;
    hla_general_shape shape;
    hla_general_side queries, keys;
} run;

static void take_factors(hla_cuda_view *views, const hla_tensor *tensors, const hla_hadamard_problem *problem) {
    for (int p = 0; p < problem->factors; p++)
        views[HLA_MAX_FACTORS - problem->factors + p] = hla_cuda_view_of(&tensors[p]);
}

/* rows: of the queries, d_out in a backward pass */
static run make_run(const hla_hadamard_call *call, const hla_tensor *rows, layout l) {
    const hla_hadamard_problem *problem = call->problem;
    run r = {.call = call,
             .l = l,
             .queries = {.queries = true, .rows = hla_cuda_view_of(rows), .factor = problem->scale},
             .keys = {.rows = hla_cuda_view_of(call->in.v), .factor = 1, .last = 1}};
    take_factors(r.queries.features, call->in.q_features, problem);
    take_factors(r.keys.features, call->in.k_features, problem);
    r.shape = (hla_general_shape){.dtype = problem->dtype,
                                  .causal = problem->causal,
                                  .packed = problem->sequences > 0,
                                  .first_factor = HLA_MAX_FACTORS - problem->factors,
                                  .features = hla_hadamard_state_rank(problem),
                                  .value_dim = problem->value_dim,
                                  .queries = problem->queries,
                                  .keys = problem->keys,
                                  .kv_heads = problem->kv_heads,
                                  .group = problem->heads / problem->kv_heads,
                                  .query_starts = l.query_starts,
                                  .key_starts = l.key_starts,
                                  .key_lengths = call->in.key_lengths ? l.key_lengths : NULL,
                                  .sequences = hla_hadamard_sequence_count(problem),
                                  .kvs = problem->kv_heads};
    for (int p = 0; p < HLA_MAX_FACTORS; p++)
        r.shape.rank[p] = p < r.shape.first_factor ? 1 : problem->rank[p - r.shape.first_factor];
    return r;
}

static hla_status check(const run *r, int error) {
    return hla_cuda_check(r->call->context, error, "a kernel of Hadamard attention could not be queued");
}

static hla_status upload(const run *r) {
    const hla_hadamard_inputs *in = &r->call->in;
    const hla_hadamard_problem *problem = r->call->problem;
    void *stream = r->call->context->stream;
    int error = 0;
    if (problem->sequences > 0) {
        error = hla_cuda_upload(r->l.query_starts, in->query_starts, problem->sequences + 1, stream);
        if (error == 0) error = hla_cuda_upload(r->l.key_starts, in->key_starts, problem->sequences + 1, stream);
    } else if (in->key_lengths) {
        error = hla_cuda_upload(r->l.key_lengths, in->key_lengths, problem->batch, stream);
    }
    return check(r, error);
}

/* Tokens of a block that reads. */
static int64_t tile_of(const run *r) {
    return r->l.mma ? HLA_GENERAL_MMA_TILE : HLA_GENERAL_TILE;
}

/* Which side's states are made, in which order, and what they start from and leave. */
typedef struct direction {
    bool queries; /* their sums, from the last; else those of the keys, from the first */
    const float *initial;
    float *final;
} direction;

/* The sums of units, to their slots and, added up, to where their readers look. */
static hla_status sum_units(const run *r, const direction *d, hla_general_units units) {
    void *stream = r->call->context->stream;
    const hla_general_build build = {.shape = r->shape,
                                     .side = d->queries ? r->queries : r->keys,
                                     .units = units,
                                     .slots = r->l.slot_states,
                                     .whole = d->final != NULL};
    const hla_general_scan scan = {.shape = r->shape,
                                   .units = units,
                                   .queries = d->queries,
                                   .reverse = d->queries,
                                   .whole = d->final != NULL,
                                   .slots = r->l.slot_states,
                                   .states = r->l.states,
                                   .carry = r->l.carry,
                                   .initial = d->initial,
                                   .final = d->final,
                                   .rounded = r->l.mma ? r->l.rounded : NULL,
                                   .sigma = hla_cuda_hadamard_sigma(r->call->problem)};
    const bool causal = r->shape.causal;
    const hla_general_running running = {
        .carry = r->l.carry, .rounded = causal ? r->l.rounded : NULL, .sigma = scan.sigma};
    if (r->l.mma && causal) return check(r, hla_general_mma_launch_build(&build, &running, stream));
    int error =
        r->l.mma ? hla_general_mma_launch_build(&build, &running, stream) : hla_general_launch_build(&build, stream);
    if (error == 0) error = hla_general_launch_scan(&scan, stream);
    return check(r, error);
}

/* Queues what reads the states; units: those whose chunks' states are at hand (causal), or tiles of the wave. */
typedef hla_status reader(const run *r, const direction *d, hla_general_units units);

/* Sums the states of a wave and has them read. read: NULL if only the final state is wanted. */
static hla_status pass(const run *r, const direction *d, reader *read) {
    bool causal = r->shape.causal;
    hla_general_units all = units_of_wave(r->call, &r->shape, r->l.span, causal || d->queries, causal || !d->queries);
    for (int64_t done = 0; done < all.count; done += r->l.slots) {
        hla_general_units units = all;
        units.count = hla_smaller(r->l.slots, all.count - done);
        units.first = d->queries ? all.first + all.count - done - units.count : all.first + done;
        hla_status status = sum_units(r, d, units);
        if (status == HLA_OK && causal && read) status = read(r, d, units);
        if (status != HLA_OK) return status;
    }
    if (causal || !read) return HLA_OK;
    return read(r, d, units_of_wave(r->call, &r->shape, tile_of(r), !d->queries, d->queries));
}

/* What the tokens that read d's states see. */
static hla_general_sight sight_of(const run *r, const direction *d, hla_general_units units) {
    return (hla_general_sight){.shape = r->shape,
                               .self = d->queries ? r->keys : r->queries,
                               .other = d->queries ? r->queries : r->keys,
                               .units = units,
                               .states = r->shape.causal ? r->l.slot_states : r->l.states,
                               .empty_start = r->shape.causal && !d->initial,
                               .pairs = r->shape.causal,
                               .chunk = r->shape.causal ? r->l.span : 0};
}

/* In float16 products of scores are wanted between 6e-5 and 65504. */
static float pair_scale_of(const hla_hadamard_problem *problem) {
    return problem->dtype == HLA_F16 ? 0.25f : 1;
}

static hla_status launch_out(const run *r, hla_general_sight sight) {
    const hla_hadamard_problem *problem = r->call->problem;
    const hla_general_query query = {.sight = sight,
                                     .out = hla_cuda_view_of(r->call->out),
                                     .normalised = problem->normalised,
                                     .epsilon = problem->epsilon,
                                     .scale = problem->scale};
    void *stream = r->call->context->stream;
    if (!r->l.mma) return check(r, hla_general_launch_query(&query, stream));
    return check(r, hla_general_mma_launch_query(&query, r->l.rounded, hla_cuda_hadamard_sigma(problem),
                                                 pair_scale_of(problem), stream));
}

static hla_status read_out(const run *r, const direction *d, hla_general_units units) {
    return launch_out(r, sight_of(r, d, units));
}

static hla_status launch_gradient(const run *r, hla_general_sight sight, const hla_tensor *gradients) {
    hla_general_gradient gradient = {.sight = sight,
                                     .scratch = r->l.scratch_blocks > 0 ? r->l.scratch : NULL,
                                     .scratch_size = r->l.scratch_size,
                                     .blocks = r->l.scratch_blocks};
    take_factors(gradient.gradients, gradients, r->call->problem);
    return check(r, hla_general_launch_gradient(&gradient, r->call->context->stream));
}

/* The queries' y, then the gradients of their features. */
static hla_status read_queries(const run *r, const direction *d, hla_general_units units) {
    hla_general_sight sight = sight_of(r, d, units);
    if (r->call->problem->normalised) {
        hla_general_query query = {.sight = sight, .epsilon = r->call->problem->epsilon, .weights = r->l.weights};
        query.sight.self.weights = NULL;
        hla_status status = check(r, hla_general_launch_query(&query, r->call->context->stream));
        if (status != HLA_OK) return status;
    }
    return launch_gradient(r, sight, r->call->gradients.dq_features);
}

/* The gradients of values, then those of the keys' features. */
static hla_status read_keys(const run *r, const direction *d, hla_general_units units) {
    hla_general_sight sight = sight_of(r, d, units);
    const hla_general_query query = {.sight = sight, .out = hla_cuda_view_of(r->call->gradients.dv), .scale = 1};
    hla_status status = check(r, hla_general_launch_query(&query, r->call->context->stream));
    if (status != HLA_OK) return status;
    return launch_gradient(r, sight, r->call->gradients.dk_features);
}

/* ---- calls ---- */

typedef hla_status wave_action(const run *r);

static hla_status each_wave(run *r, wave_action *act) {
    const hla_general_shape whole = r->shape;
    for (int64_t n = 0; n < whole.sequences; n += r->l.sequences) {
        for (int64_t kv = 0; kv < whole.kvs; kv += r->l.kvs) {
            r->shape.first_sequence = n;
            r->shape.sequences = hla_smaller(r->l.sequences, whole.sequences - n);
            r->shape.first_kv = kv;
            r->shape.kvs = hla_smaller(r->l.kvs, whole.kvs - kv);
            hla_status status = act(r);
            if (status != HLA_OK) return status;
        }
    }
    return HLA_OK;
}

/* Kernels go to the device that is current in this thread, which may be another one. */
static hla_status on_device(run *r, wave_action *act) {
    hla_context *context = r->call->context;
    int current;
    cudaError_t error = cudaGetDevice(&current);
    if (error == cudaSuccess && current != context->device.ordinal) error = cudaSetDevice(context->device.ordinal);
    if (error != cudaSuccess) return hla_cuda_check(context, (int)error, "the GPU cannot be made the current one");
    hla_status status = upload(r);
    if (status == HLA_OK) status = each_wave(r, act);
    if (current != context->device.ordinal) (void)cudaSetDevice(current);
    return status;
}

static hla_status forward_wave(const run *r) {
    const direction keys = {.initial = r->call->in.initial_state, .final = r->call->final_state};
    return pass(r, &keys, r->call->out ? read_out : NULL);
}

static hla_status backward_wave(const run *r) {
    const direction keys = {.initial = r->call->in.initial_state};
    const direction queries = {
        .queries = true, .initial = r->call->d_final_state, .final = r->call->gradients.d_initial_state};
    hla_status status = pass(r, &keys, read_queries);
    return status == HLA_OK ? pass(r, &queries, read_keys) : status;
}

/* No state: all pairs through their scores. */
static hla_status quadratic_wave(const run *r) {
    hla_general_units tiles = units_of_wave(r->call, &r->shape, tile_of(r), true, false);
    return launch_out(
        r, (hla_general_sight){.shape = r->shape, .self = r->queries, .other = r->keys, .units = tiles, .pairs = true});
}

void hla_cuda_hadamard_general_measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    (void)lay_out(arena, problem, false, false);
}

hla_status hla_cuda_hadamard_general_run(const hla_hadamard_call *call) {
    hla_arena arena = {.base = call->workspace};
    run r = make_run(call, NULL, lay_out(&arena, call->problem, false, false));
    return on_device(&r, forward_wave);
}

void hla_cuda_hadamard_general_measure_backward(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    (void)lay_out(arena, problem, true, false);
}

hla_status hla_cuda_hadamard_general_run_backward(const hla_hadamard_call *call) {
    hla_arena arena = {.base = call->workspace};
    run r = make_run(call, call->out, lay_out(&arena, call->problem, true, false));
    if (call->problem->normalised) r.queries.weights = r.l.weights;
    return on_device(&r, backward_wave);
}

static void measure_quadratic(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    layout l;
    take_starts(&l, arena, problem);
}

static hla_status run_pairs(const hla_hadamard_call *call, bool mma) {
    hla_arena arena = {.base = call->workspace};
    layout l = {.mma = mma, .sequences = hla_hadamard_sequence_count(call->problem), .kvs = call->problem->kv_heads};
    take_starts(&l, &arena, call->problem);
    run r = make_run(call, NULL, l);
    return on_device(&r, quadratic_wave);
}

static hla_status run_quadratic(const hla_hadamard_call *call) {
    return run_pairs(call, false);
}

/* ---- on tensor cores: forward calls in 16 bits ---- */

float hla_cuda_hadamard_sigma(const hla_hadamard_problem *problem) {
    float sigma = 1;
    for (int64_t keys = 1; problem->dtype == HLA_F16 && keys < problem->keys; keys *= 2)
        sigma /= 2;
    return sigma;
}

static bool mma_takes(const hla_hadamard_problem *problem) {
    if (problem->dtype == HLA_F32 || problem->stateful) return false;
    for (int p = 0; p < problem->factors; p++)
        if (problem->rank[p] % 8 != 0) return false;
    return problem->value_dim % 16 == 0 && problem->value_dim <= 128 &&
           hla_hadamard_state_rank(problem) < INT32_MAX / 2 &&
           hla_general_mma_fits(rank_sum(problem), problem->value_dim);
}

/* Rows are contiguous and begin at multiples of so many bytes. */
static bool aligned(const hla_tensor *tensor, int64_t bytes) {
    bool fits = (uintptr_t)tensor->data % (uintptr_t)bytes == 0 && tensor->stride[3] == 1;
    for (int axis = 0; axis < 3; axis++)
        fits = fits && (tensor->shape[axis] <= 1 || tensor->stride[axis] * 2 % bytes == 0);
    return fits;
}

static bool mma_takes_call(const hla_hadamard_call *call) {
    bool fits = aligned(call->in.v, 16) && (!call->out || aligned(call->out, 4));
    for (int p = 0; p < call->problem->factors; p++)
        fits = fits && aligned(&call->in.q_features[p], 16) && aligned(&call->in.k_features[p], 16);
    return fits;
}

static bool quadratic_mma_takes(const hla_hadamard_problem *problem) {
    return mma_takes(problem) && problem->keys <= MANY_PAIRS;
}

static void measure_mma(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    hla_arena general = {0};
    (void)lay_out(arena, problem, false, true);
    hla_cuda_hadamard_general_measure(&general, problem, threads);
    if (general.used > arena->used) (void)hla_arena_take(arena, (int64_t)(general.used - arena->used), 1);
    arena->overflow = arena->overflow || general.overflow;
}

static hla_status run_mma(const hla_hadamard_call *call) {
    if (!mma_takes_call(call)) return hla_cuda_hadamard_general_run(call);
    hla_arena arena = {.base = call->workspace};
    run r = make_run(call, NULL, lay_out(&arena, call->problem, false, true));
    return on_device(&r, forward_wave);
}

static hla_status run_quadratic_mma(const hla_hadamard_call *call) {
    return run_pairs(call, mma_takes_call(call));
}

#define MMA_TAKES                                                                                                      \
    "problems without states in bfloat16 or float16, with ranks that are multiples of 8 and sum up to at most some "   \
    "200, and value_dim a multiple of 16 up to 128"

const hla_hadamard_backward_entry hla_cuda_hadamard_backward_state = {
    .measure = hla_cuda_hadamard_general_measure_backward, .run = hla_cuda_hadamard_general_run_backward};

const hla_hadamard_entry hla_cuda_hadamard_quadratic = {
    .kernel = {.name = "quadratic_cuda", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_QUADRATIC,
    .measure = measure_quadratic,
    .run = run_quadratic,
    .backward = &hla_cuda_hadamard_backward_state,
};

const hla_hadamard_entry hla_cuda_hadamard_state = {
    .kernel = {.name = "state_cuda", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_STATE,
    .measure = hla_cuda_hadamard_general_measure,
    .run = hla_cuda_hadamard_general_run,
    .backward = &hla_cuda_hadamard_backward_state,
};

const hla_hadamard_entry hla_cuda_hadamard_quadratic_mma = {
    .kernel = {.name = "quadratic_mma", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_QUADRATIC,
    .measure = measure_quadratic,
    .run = run_quadratic_mma,
    .backward = &hla_cuda_hadamard_backward_state,
    .takes = quadratic_mma_takes,
    .taken = MMA_TAKES ", of at most 65,536 keys",
    .rate = 10,
};

const hla_hadamard_entry hla_cuda_hadamard_state_mma = {
    .kernel = {.name = "state_mma", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_STATE,
    .measure = measure_mma,
    .run = run_mma,
    .backward = &hla_cuda_hadamard_backward_state,
    .takes = mma_takes,
    .taken = MMA_TAKES,
    .rate = 10,
};
