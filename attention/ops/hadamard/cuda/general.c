/* Calls on a GPU by the general kernels: queues them (general.h) as the layout cuts the work (general_layout.h).
 *
 * A round builds the states of its units and adds them up; causal, it also reads them, each chunk that of the chunks
 * before it. So memory is bounded, whatever the numbers of tokens, sequences and heads.
 */
#include "attention/ops/hadamard/cuda/general.h"
#include "attention/cuda/cuda.h"
#include "attention/ops/hadamard/cuda/general_call.h"
#include "attention/ops/hadamard/cuda/general_layout.h"

#include <cuda_runtime_api.h>

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
    hla_general_layout l;
    hla_general_shape shape;
    hla_general_side queries, keys;
} run;

static void take_factors(hla_cuda_view *views, const hla_tensor *tensors, const hla_hadamard_problem *problem) {
    for (int p = 0; p < problem->factors; p++)
        views[HLA_MAX_FACTORS - problem->factors + p] = hla_cuda_view_of(&tensors[p]);
}

/* rows: of the queries, d_out in a backward pass */
static run make_run(const hla_hadamard_call *call, const hla_tensor *rows, hla_general_layout l) {
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

/* ---- what keeps float16 in range ---- */

/* float16 holds numbers from 6e-5, below which they lose digits, up to 65504. A sum over many keys may pass that. */
float hla_cuda_hadamard_sigma(const hla_hadamard_problem *problem) {
    float sigma = 1;
    for (int64_t keys = 1; problem->dtype == HLA_F16 && keys < problem->keys; keys *= 2)
        sigma /= 2;
    return sigma;
}

/* A sum of T gradients is some sqrt(T) of them where they differ in sign and T where they agree. */
static float sigma_of_queries(const hla_hadamard_problem *problem) {
    float sigma = 1;
    int64_t queries = problem->queries * (problem->heads / problem->kv_heads);
    for (int64_t count = 1; problem->dtype == HLA_F16 && count < queries; count *= 4)
        sigma /= 2;
    return sigma;
}

/* Weights are one over sums of as many keys as a query sees. Causal, those of the first are not to be too large. */
static float weight_scale_of(const hla_hadamard_problem *problem) {
    enum { MOST = 4096 };
    if (!problem->normalised) return 1;
    float scale = 1 / hla_cuda_hadamard_sigma(problem);
    return problem->causal && scale > MOST ? MOST : scale;
}

/* How the states of d are read on tensor cores, and pairs beside them. */
static hla_general_reading reading_of(const run *r, const direction *d) {
    const hla_hadamard_problem *problem = r->call->problem;
    hla_general_reading reading = {.rounded = r->l.rounded,
                                   .sigma = hla_cuda_hadamard_sigma(problem),
                                   .score_scale = problem->dtype == HLA_F16 ? 0.25f : 1,
                                   .weight_scale = weight_scale_of(problem)};
    reading.pair_scale = reading.score_scale;
    if (d->queries) {
        reading.sigma = sigma_of_queries(problem) * reading.weight_scale;
        reading.pair_scale *= reading.weight_scale;
    }
    return reading;
}

/* ---- passes ---- */

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
                                   .sigma = d->queries ? sigma_of_queries(r->call->problem)
                                                       : hla_cuda_hadamard_sigma(r->call->problem)};
    const bool in_one = r->l.mma && r->shape.causal && !d->queries; /* keys are summed in the order of the scan */
    const hla_general_running running = {
        .carry = r->l.carry, .rounded = in_one ? r->l.rounded : NULL, .sigma = scan.sigma};
    if (in_one) return check(r, hla_general_mma_launch_build(&build, &running, stream));
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

static hla_status launch_query(const run *r, const direction *d, const hla_general_query *query) {
    const hla_general_reading reading = reading_of(r, d);
    void *stream = r->call->context->stream;
    return check(r, r->l.mma ? hla_general_mma_launch_query(query, &reading, stream)
                             : hla_general_launch_query(query, stream));
}

static hla_status launch_out(const run *r, const direction *d, hla_general_sight sight) {
    const hla_hadamard_problem *problem = r->call->problem;
    const hla_general_query query = {.sight = sight,
                                     .out = hla_cuda_view_of(r->call->out),
                                     .normalised = problem->normalised,
                                     .epsilon = problem->epsilon,
                                     .scale = problem->scale};
    return launch_query(r, d, &query);
}

static hla_status read_out(const run *r, const direction *d, hla_general_units units) {
    return launch_out(r, d, sight_of(r, d, units));
}

static hla_status launch_gradient(const run *r, const direction *d, hla_general_sight sight,
                                  const hla_tensor *gradients) {
    const hla_hadamard_problem *problem = r->call->problem;
    hla_general_gradient gradient = {.sight = sight,
                                     .scratch = r->l.scratch_blocks > 0 ? r->l.scratch : NULL,
                                     .scratch_size = r->l.scratch_size,
                                     .blocks = r->l.scratch_blocks};
    take_factors(gradient.gradients, gradients, problem);
    void *stream = r->call->context->stream;
    if (!r->l.mma) return check(r, hla_general_launch_gradient(&gradient, stream));
    const hla_general_reading reading = reading_of(r, d);
    float scale = problem->normalised ? (d->queries ? 1 : 1 / reading.weight_scale) : problem->scale;
    return check(r, hla_general_mma_launch_gradient(&gradient, &reading, scale, stream));
}

/* The queries' y, then the gradients of their features. */
static hla_status read_queries(const run *r, const direction *d, hla_general_units units) {
    hla_general_sight sight = sight_of(r, d, units);
    if (r->call->problem->normalised) {
        hla_general_query query = {
            .sight = sight, .epsilon = r->call->problem->epsilon, .weights = r->l.weights, .records = r->l.records};
        query.sight.self.weights = NULL;
        query.sight.self.records = NULL;
        hla_status status = launch_query(r, d, &query);
        if (status != HLA_OK) return status;
    }
    return launch_gradient(r, d, sight, r->call->gradients.dq_features);
}

/* The gradients of values, then those of the keys' features. */
static hla_status read_keys(const run *r, const direction *d, hla_general_units units) {
    hla_general_sight sight = sight_of(r, d, units);
    const hla_hadamard_problem *problem = r->call->problem;
    const hla_general_query query = {.sight = sight,
                                     .out = hla_cuda_view_of(r->call->gradients.dv),
                                     .scale = r->l.mma && !problem->normalised ? problem->scale : 1};
    hla_status status = launch_query(r, d, &query);
    if (status != HLA_OK) return status;
    return launch_gradient(r, d, sight, r->call->gradients.dk_features);
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
    const direction none = {0};
    return launch_out(
        r, &none,
        (hla_general_sight){.shape = r->shape, .self = r->queries, .other = r->keys, .units = tiles, .pairs = true});
}

void hla_cuda_hadamard_general_measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    (void)hla_general_lay_out(arena, problem, false, false);
}

hla_status hla_cuda_hadamard_general_run(const hla_hadamard_call *call) {
    hla_arena arena = {.base = call->workspace};
    run r = make_run(call, NULL, hla_general_lay_out(&arena, call->problem, false, false));
    return on_device(&r, forward_wave);
}

static void measure_backward(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    (void)hla_general_lay_out(arena, problem, true, false);
}

static hla_status run_backward(const hla_hadamard_call *call, bool mma) {
    hla_arena arena = {.base = call->workspace};
    run r = make_run(call, call->out, hla_general_lay_out(&arena, call->problem, true, mma));
    if (call->problem->normalised) r.queries.weights = r.l.weights, r.queries.records = mma ? r.l.records : NULL;
    return on_device(&r, backward_wave);
}

static hla_status run_float_backward(const hla_hadamard_call *call) {
    return run_backward(call, false);
}

static void measure_quadratic(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    hla_general_layout l;
    hla_general_take_starts(&l, arena, problem);
}

static hla_status run_pairs(const hla_hadamard_call *call, bool mma) {
    hla_arena arena = {.base = call->workspace};
    hla_general_layout l = {
        .mma = mma, .sequences = hla_hadamard_sequence_count(call->problem), .kvs = call->problem->kv_heads};
    hla_general_take_starts(&l, &arena, call->problem);
    run r = make_run(call, NULL, l);
    return on_device(&r, quadratic_wave);
}

static hla_status run_quadratic(const hla_hadamard_call *call) {
    return run_pairs(call, false);
}

/* ---- on tensor cores: calls in 16 bits without states ---- */

enum {
    MANY_PAIRS = 65536
}; /* keys that tensor cores add up for a query in quadratic form: they cut where others round */

static bool mma_takes(const hla_hadamard_problem *problem) {
    if (problem->dtype == HLA_F32 || problem->stateful) return false;
    for (int p = 0; p < problem->factors; p++)
        if (problem->rank[p] % 8 != 0) return false;
    return problem->value_dim % 16 == 0 && problem->value_dim <= 128 &&
           hla_hadamard_state_rank(problem) < INT32_MAX / 2 &&
           hla_general_mma_fits(hla_general_rank_sum(problem), problem->value_dim);
}

/* Rows are contiguous and begin at multiples of so many bytes. */
static bool aligned(const hla_tensor *tensor, int64_t bytes) {
    bool fits = (uintptr_t)tensor->data % (uintptr_t)bytes == 0 && tensor->stride[3] == 1;
    for (int axis = 0; axis < 3; axis++)
        fits = fits && (tensor->shape[axis] <= 1 || tensor->stride[axis] * 2 % bytes == 0);
    return fits;
}

static bool mma_takes_call(const hla_hadamard_call *call, bool backward) {
    bool fits = aligned(call->in.v, 16) && (!call->out || aligned(call->out, backward ? 16 : 4));
    for (int p = 0; p < call->problem->factors; p++)
        fits = fits && aligned(&call->in.q_features[p], 16) && aligned(&call->in.k_features[p], 16);
    const hla_hadamard_gradients *gradients = &call->gradients;
    for (int p = 0; backward && p < call->problem->factors; p++)
        fits = fits && aligned(&gradients->dq_features[p], 4) && aligned(&gradients->dk_features[p], 4);
    return fits && (!backward || aligned(gradients->dv, 4));
}

static bool quadratic_mma_takes(const hla_hadamard_problem *problem) {
    return mma_takes(problem) && problem->keys <= MANY_PAIRS;
}

/* Calls whose tensors are not aligned go to the float32 kernels. */
static void measure_both(hla_arena *arena, const hla_hadamard_problem *problem, bool backward) {
    hla_arena general = {0};
    (void)hla_general_lay_out(arena, problem, backward, true);
    (void)hla_general_lay_out(&general, problem, backward, false);
    if (general.used > arena->used) (void)hla_arena_take(arena, (int64_t)(general.used - arena->used), 1);
    arena->overflow = arena->overflow || general.overflow;
}

static void measure_mma(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    (void)threads;
    measure_both(arena, problem, false);
}

static void measure_mma_backward(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    if (mma_takes(problem))
        measure_both(arena, problem, true);
    else
        measure_backward(arena, problem, threads);
}

static hla_status run_mma(const hla_hadamard_call *call) {
    if (!mma_takes_call(call, false)) return hla_cuda_hadamard_general_run(call);
    hla_arena arena = {.base = call->workspace};
    run r = make_run(call, NULL, hla_general_lay_out(&arena, call->problem, false, true));
    return on_device(&r, forward_wave);
}

static hla_status run_mma_backward(const hla_hadamard_call *call) {
    return run_backward(call, mma_takes(call->problem) && mma_takes_call(call, true));
}

static hla_status run_quadratic_mma(const hla_hadamard_call *call) {
    return run_pairs(call, mma_takes_call(call, false));
}

#define MMA_TAKES                                                                                                      \
    "problems without states in bfloat16 or float16, with ranks that are multiples of 8 and sum up to at most some "   \
    "200, and value_dim a multiple of 16 up to 128"

static const hla_hadamard_backward_entry backward_state = {.measure = measure_backward, .run = run_float_backward};

const hla_hadamard_backward_entry hla_cuda_hadamard_backward_mma = {.measure = measure_mma_backward,
                                                                    .run = run_mma_backward};

const hla_hadamard_entry hla_cuda_hadamard_quadratic = {
    .kernel = {.name = "quadratic_cuda", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_QUADRATIC,
    .measure = measure_quadratic,
    .run = run_quadratic,
    .backward = &backward_state,
};

const hla_hadamard_entry hla_cuda_hadamard_state = {
    .kernel = {.name = "state_cuda", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_STATE,
    .measure = hla_cuda_hadamard_general_measure,
    .run = hla_cuda_hadamard_general_run,
    .backward = &backward_state,
};

const hla_hadamard_entry hla_cuda_hadamard_quadratic_mma = {
    .kernel = {.name = "quadratic_mma", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_QUADRATIC,
    .measure = measure_quadratic,
    .run = run_quadratic_mma,
    .backward = &hla_cuda_hadamard_backward_mma,
    .takes = quadratic_mma_takes,
    .taken = MMA_TAKES ", of at most 65,536 keys",
    .rate = 10,
};

const hla_hadamard_entry hla_cuda_hadamard_state_mma = {
    .kernel = {.name = "state_mma", .isa = HLA_ISA_CUDA, .capability = 80},
    .form = HLA_FORM_STATE,
    .measure = measure_mma,
    .run = run_mma,
    .backward = &hla_cuda_hadamard_backward_mma,
    .takes = mma_takes,
    .taken = MMA_TAKES,
    .rate = 10,
};
