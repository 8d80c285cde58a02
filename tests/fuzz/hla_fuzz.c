/* Bytes as calls of libhla: descriptors with any sizes, strides, types, options and pointers, forward and backward.
 * A call must return, with a sentence for what it refuses. One that is accepted must write inside its outputs only; the
 * arrays are blocks of exactly the size that a view spans, so that AddressSanitizer sees any step beyond. */
#include "hla/hla.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What is left of the input; zeros after its end. */
typedef struct bytes {
    const uint8_t *at;
    size_t left;
} bytes;

static uint8_t byte(bytes *in) {
    if (in->left == 0) return 0;
    in->left--;
    return *in->at++;
}

/* Mostly a small size; at times zero, negative, or anything of 64 bits. */
static int64_t size(bytes *in) {
    uint8_t b = byte(in);
    if (b < 240) return 1 + b % 9;
    if (b < 250) return 10 * (b - 239) + 1;
    if (b == 250) return 0;
    if (b == 251) return -1;
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++)
        bits = bits << 8 | byte(in);
    return (int64_t)bits;
}

static float number(bytes *in) {
    static const float odd[] = {0, -1, NAN, INFINITY, -INFINITY, 1e38f, 1e-38f, 1e-6f};
    uint8_t b = byte(in);
    return b < 32 ? odd[b % 8] : (float)(b - 32) / 64;
}

static bool rarely(bytes *in) {
    return byte(in) >= 248;
}

/* ---- arrays ---- */

enum {
    ARRAYS = 64,
    LIMIT = 1 << 14,
    WORKSPACE = 1 << 21
}; /* elements of an array, bytes of a workspace that are really made */

/* Everything an input makes, freed together. */
typedef struct arena {
    void *blocks[ARRAYS];
    int count;
    bool refused; /* an array would have been too large: then nothing is called */
} arena;

static void *block(arena *a, size_t bytes_wanted) {
    if (a->count == ARRAYS) abort();
    void *made = malloc(bytes_wanted ? bytes_wanted : 1);
    if (!made) abort();
    return a->blocks[a->count++] = made;
}

static void *aligned_block(arena *a, size_t bytes_wanted) {
    if (a->count == ARRAYS) abort();
    void *made = aligned_alloc(64, bytes_wanted ? bytes_wanted : 64);
    if (!made) abort();
    memset(made, 0xff, bytes_wanted);
    return a->blocks[a->count++] = made;
}

static void release(arena *a) {
    for (int i = 0; i < a->count; i++)
        free(a->blocks[i]);
}

/* Elements from the first to the last of a view, 0 if it has none, -1 if they are more than LIMIT or reach backwards.
 */
static int64_t span(const hla_tensor *view) {
    int64_t last = 0;
    for (int axis = 0; axis < 4; axis++) {
        if (view->shape[axis] == 0) return 0;
        if (view->shape[axis] < 0 || view->shape[axis] > LIMIT || view->stride[axis] < 0 || view->stride[axis] > LIMIT)
            return -1;
        last += (view->shape[axis] - 1) * view->stride[axis];
        if (last >= LIMIT) return -1;
    }
    return last + 1;
}

/* The view that is wanted, now and then with something wrong about it, over a block of its span filled from the input.
 * A view that the block cannot hold gets a pointer it must not follow, and a shape that is refused. */
static hla_tensor tensor(bytes *in, arena *a, hla_dtype dtype, const int64_t shape[4]) {
    uint8_t kind = byte(in);
    hla_tensor view = kind & 1 ? hla_tensor_bhtd(NULL, dtype, shape[0], shape[1], shape[2], shape[3])
                               : hla_tensor_bthd(NULL, dtype, shape[0], shape[1], shape[2], shape[3]);
    if (kind >= 224) view.stride[kind % 4] = size(in);
    if (kind >= 240) view.shape[kind % 4] = size(in);
    if (kind >= 252) view.dtype = (hla_dtype)(int8_t)byte(in);
    int64_t elements = span(&view);
    if (elements < 0) {
        a->refused = true;
        return view;
    }
    size_t width = hla_dtype_size(view.dtype) ? hla_dtype_size(view.dtype) : 1;
    uint8_t *data = block(a, (size_t)elements * width);
    uint8_t seed = byte(in);
    for (int64_t i = 0; i < elements; i++) {
        float value = (float)((seed + 37 * i) % 64) / 64;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (width == 4) memcpy(data + 4 * i, &bits, 4);
        if (width == 2) data[2 * i] = (uint8_t)(bits >> 16), data[2 * i + 1] = (uint8_t)(bits >> 24);
        if (width == 1) data[i] = seed;
    }
    view.data = rarely(in) ? NULL : data;
    return view;
}

static float *floats(bytes *in, arena *a, int64_t count) {
    if (count < 0 || count > 4 * LIMIT) {
        a->refused = true;
        return NULL;
    }
    if (rarely(in)) return NULL;
    float *made = block(a, (size_t)count * sizeof(float)), value = number(in);
    for (int64_t i = 0; i < count; i++)
        made[i] = value;
    return made;
}

/* A product of sizes, -1 once it is out of hand. */
static int64_t product(int64_t x, int64_t y) {
    return x < 0 || y < 0 || x > 8 * LIMIT || y > 8 * LIMIT ? -1 : x * y;
}

static int64_t *lengths(bytes *in, arena *a, int64_t count, bool offsets) {
    if (count < 0 || count > LIMIT) {
        a->refused = true;
        return NULL;
    }
    int64_t *made = block(a, (size_t)count * sizeof *made), sum = 0;
    for (int64_t i = 0; i < count; i++) {
        made[i] = offsets ? sum : size(in) - 1;
        if (offsets) sum += byte(in) % 8;
    }
    return made;
}

/* ---- calls ---- */

static void checked(const hla_context *ctx, hla_status status) {
    if (status == HLA_OK) return;
    if (status < HLA_OK || status > HLA_ERROR_NOT_FINITE) abort();
    if (!hla_context_error(ctx)[0]) abort();
}

static const char *kernel(bytes *in, const char *(*name)(int i)) {
    uint8_t b = byte(in);
    return b < 128 ? NULL : b == 255 ? "no such kernel" : name(b % 16);
}

static const char *hadamard_kernel(int i) {
    hla_kernel_info info;
    return hla_hadamard_kernel(NULL, i, &info) ? info.name : NULL;
}

static const char *softmax_kernel(int i) {
    hla_softmax_kernel_info info;
    return hla_softmax_kernel(NULL, i, &info) ? info.name : NULL;
}

static const char *map_kernel(int i) {
    hla_feature_map_kernel_info info;
    return hla_feature_map_kernel(NULL, i, &info) ? info.name : NULL;
}

static hla_dtype dtype(bytes *in) {
    uint8_t b = byte(in);
    return b < 250 ? (hla_dtype)(b % 3) : (hla_dtype)(int8_t)b;
}

static void use_hadamard(bytes *in, arena *a, hla_context *ctx) {
    hla_hadamard_problem p;
    hla_hadamard_problem_init(&p);
    uint8_t flags = byte(in);
    p.batch = size(in), p.heads = size(in), p.queries = size(in), p.keys = size(in), p.value_dim = size(in);
    p.factors = rarely(in) ? (int)size(in) : 1 + byte(in) % 3;
    for (int f = 0; f < HLA_MAX_FACTORS; f++)
        p.rank[f] = size(in);
    p.dtype = dtype(in), p.form = (hla_form)(rarely(in) ? 9 : byte(in) % 3);
    p.causal = flags & 1, p.stateful = flags & 2, p.normalised = flags & 4;
    if (flags & 8) p.kv_heads = size(in);
    if (flags & 16) p.sequences = size(in), p.batch = 1;
    p.epsilon = number(in), p.scale = number(in), p.kernel = kernel(in, hadamard_kernel);
    if (rarely(in)) p.struct_size = byte(in);
    hla_hadamard_plan *plan = NULL;
    hla_status status = hla_hadamard_plan_create(ctx, rarely(in) ? NULL : &p, &plan);
    checked(ctx, status);
    if (status != HLA_OK || plan == NULL) {
        if (plan || status == HLA_OK) abort();
        return;
    }
    if (!*hla_hadamard_plan_explain(plan) || !*hla_hadamard_plan_kernel(plan)) abort();

    int64_t kv = p.kv_heads ? p.kv_heads : p.heads, sequences = p.sequences ? p.sequences : p.batch, rank = 1;
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], dq[HLA_MAX_FACTORS], dk[HLA_MAX_FACTORS];
    for (int f = 0; f < p.factors; f++) {
        const int64_t queries[4] = {p.batch, p.queries, p.heads, p.rank[f]}, keys[4] = {p.batch, p.keys, kv, p.rank[f]};
        q[f] = tensor(in, a, p.dtype, queries), k[f] = tensor(in, a, p.dtype, keys);
        dq[f] = tensor(in, a, p.dtype, queries), dk[f] = tensor(in, a, p.dtype, keys);
        rank = product(rank, p.rank[f]);
    }
    const int64_t outs[4] = {p.batch, p.queries, p.heads, p.value_dim}, values[4] = {p.batch, p.keys, kv, p.value_dim};
    hla_tensor out = tensor(in, a, p.dtype, outs), d_out = tensor(in, a, p.dtype, outs);
    hla_tensor v = tensor(in, a, p.dtype, values), dv = tensor(in, a, p.dtype, values);
    hla_hadamard_inputs inputs = {.q_features = rarely(in) ? NULL : q, .k_features = rarely(in) ? NULL : k, .v = &v};
    if (flags & 32) inputs.key_lengths = lengths(in, a, p.batch, false);
    if (p.sequences) inputs.query_starts = lengths(in, a, product(sequences, 1) + 1, true);
    if (p.sequences)
        inputs.key_starts = flags & 64 ? inputs.query_starts : lengths(in, a, product(sequences, 1) + 1, true);
    int64_t state = product(product(product(sequences, kv), rank), p.value_dim + 1);
    float *states[2] = {NULL, NULL};
    for (int i = 0; p.stateful && i < 2; i++)
        states[i] = floats(in, a, state);
    inputs.initial_state = states[0];
    hla_hadamard_gradients gradients = {dq, dk, &dv, p.stateful ? floats(in, a, state) : NULL};

    size_t forward = hla_hadamard_plan_workspace(plan), backward = hla_hadamard_plan_backward_workspace(plan);
    bool null_workspace = rarely(in);
    if (!a->refused && forward <= WORKSPACE && backward <= WORKSPACE) {
        void *workspace = null_workspace ? NULL : aligned_block(a, forward);
        void *second = null_workspace ? NULL : aligned_block(a, backward);
        status = hla_hadamard_forward(plan, &out, states[1], &inputs, workspace, forward);
        checked(ctx, status);
        checked(ctx, hla_hadamard_backward(plan, &gradients, &d_out, states[1], &inputs, second, backward));
    }
    hla_hadamard_plan_free(plan);
}

static void use_softmax(bytes *in, arena *a, hla_context *ctx) {
    hla_softmax_problem p;
    hla_softmax_problem_init(&p);
    uint8_t flags = byte(in);
    p.batch = size(in), p.heads = size(in), p.queries = size(in), p.keys = size(in), p.dim = size(in);
    p.value_dim = size(in), p.dtype = dtype(in), p.scale = number(in), p.kernel = kernel(in, softmax_kernel);
    p.causal = flags & 4;
    if (flags & 8) p.kv_heads = size(in);
    hla_softmax_plan *plan = NULL;
    hla_status status = hla_softmax_plan_create(ctx, &p, &plan);
    checked(ctx, status);
    if (status != HLA_OK) return;
    int64_t kv = p.kv_heads ? p.kv_heads : p.heads;
    const int64_t queries[4] = {p.batch, p.queries, p.heads, p.dim}, keys[4] = {p.batch, p.keys, kv, p.dim};
    const int64_t outs[4] = {p.batch, p.queries, p.heads, p.value_dim}, values[4] = {p.batch, p.keys, kv, p.value_dim};
    hla_tensor q = tensor(in, a, p.dtype, queries), k = tensor(in, a, p.dtype, keys),
               v = tensor(in, a, p.dtype, values);
    hla_tensor dq = tensor(in, a, p.dtype, queries), dk = tensor(in, a, p.dtype, keys),
               dv = tensor(in, a, p.dtype, values);
    hla_tensor out = tensor(in, a, p.dtype, outs), d_out = tensor(in, a, p.dtype, outs);
    int64_t *counts = flags & 1 ? lengths(in, a, p.batch, false) : NULL;
    float *bias = flags & 2 ? floats(in, a, p.keys) : NULL;
    size_t forward = hla_softmax_plan_workspace(plan), backward = hla_softmax_plan_backward_workspace(plan);
    if (!a->refused && forward <= WORKSPACE && backward <= WORKSPACE) {
        void *workspace = aligned_block(a, forward), *second = aligned_block(a, backward);
        checked(ctx, hla_softmax_forward(plan, &out, &q, &k, &v, counts, bias, workspace, forward));
        checked(ctx, hla_softmax_backward(plan, &dq, &dk, &dv, &d_out, &q, &k, &v, counts, bias, second, backward));
    }
    hla_softmax_plan_free(plan);
}

static void use_map(bytes *in, arena *a, hla_context *ctx) {
    hla_feature_map_problem p;
    hla_feature_map_problem_init(&p);
    uint8_t flags = byte(in);
    p.batch = size(in), p.heads = size(in), p.tokens = size(in), p.dim = size(in), p.rank = size(in);
    p.dtype = dtype(in), p.activation = (hla_activation)(byte(in) % 8), p.floor = number(in), p.shift = number(in);
    p.is_query = flags & 1, p.kernel = kernel(in, map_kernel);
    const int64_t features[4] = {p.batch, p.tokens, p.heads, p.rank}, inputs[4] = {p.batch, p.tokens, p.heads, p.dim};
    hla_tensor out = tensor(in, a, p.dtype, features), x = tensor(in, a, p.dtype, inputs),
               dx = tensor(in, a, p.dtype, inputs);
    int64_t square = product(product(p.heads, p.dim), p.dim), across = product(product(p.heads, p.rank), p.dim);
    hla_feature_map_weights w = {.weight = floats(in, a, across), .bias = floats(in, a, product(p.heads, p.rank))};
    hla_feature_map_weight_gradients dw = {.weight = floats(in, a, across),
                                           .bias = floats(in, a, product(p.heads, p.rank))};
    if (flags & 2) {
        w.hidden_weight = floats(in, a, square), w.hidden_bias = floats(in, a, product(p.heads, p.dim));
        dw.hidden_weight = floats(in, a, square), dw.hidden_bias = floats(in, a, product(p.heads, p.dim));
    }
    size_t needed = 0;
    hla_status status = hla_feature_map_backward_workspace(ctx, &p, &needed);
    checked(ctx, status);
    if (a->refused) return;
    checked(ctx, hla_feature_map_forward(ctx, &p, &out, &x, &w));
    if (status != HLA_OK || needed > WORKSPACE) return;
    void *workspace = aligned_block(a, needed);
    checked(ctx, hla_feature_map_backward(ctx, &p, &dx, &dw, &out, &x, &w, workspace, needed));
}

/* A state and calls upon it in any order; at last it is saved, loaded with a byte changed, and loaded whole. */
static void use_state(bytes *in, arena *a, hla_context *ctx) {
    hla_hadamard_problem p;
    hla_hadamard_problem_init(&p);
    uint8_t flags = byte(in);
    p.batch = size(in), p.heads = size(in), p.value_dim = size(in), p.factors = 1 + byte(in) % 3;
    for (int f = 0; f < p.factors; f++)
        p.rank[f] = size(in);
    p.dtype = dtype(in), p.normalised = flags & 1, p.kernel = kernel(in, hadamard_kernel);
    if (flags & 2) p.kv_heads = size(in);
    int64_t kv = p.kv_heads ? p.kv_heads : p.heads, count = product(product(p.batch, kv), p.value_dim + 1);
    bool legal = p.batch > 0 && p.heads > 0 && kv > 0 && p.value_dim > 0;
    for (int f = 0; f < p.factors; f++)
        count = product(count, p.rank[f]), legal = legal && p.rank[f] > 0;
    if (legal && (count < 0 || count > 4 * LIMIT)) return; /* would be made, if it takes gigabytes */
    hla_state *state = NULL, *clone = NULL;
    hla_status status = hla_state_create(ctx, &p, &state);
    checked(ctx, status);
    for (int calls = byte(in) % 4; status == HLA_OK && calls > 0; calls--) {
        int64_t tokens = size(in);
        hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS];
        for (int f = 0; f < p.factors; f++) {
            const int64_t queries[4] = {p.batch, tokens, p.heads, p.rank[f]},
                          keys[4] = {p.batch, tokens, kv, p.rank[f]};
            q[f] = tensor(in, a, p.dtype, queries), k[f] = tensor(in, a, p.dtype, keys);
        }
        const int64_t outs[4] = {p.batch, tokens, p.heads, p.value_dim}, values[4] = {p.batch, tokens, kv, p.value_dim};
        hla_tensor out = tensor(in, a, p.dtype, outs), v = tensor(in, a, p.dtype, values);
        if (a->refused) break;
        uint8_t kind = byte(in) % 8;
        if (kind == 0) checked(ctx, hla_state_append(state, k, &v));
        if (kind == 1) checked(ctx, hla_state_query(state, &out, q));
        if (kind == 2 || kind >= 6) checked(ctx, hla_state_step(state, &out, q, k, &v));
        if (kind == 3) checked(ctx, hla_state_decay(state, number(in)));
        if (kind == 4 && !clone) checked(ctx, hla_state_clone(ctx, state, &clone));
        if (kind == 5) checked(ctx, hla_state_merge(state, byte(in) & 1 ? state : clone));
    }
    size_t length = hla_state_saved_size(state);
    if (status == HLA_OK && length <= WORKSPACE) {
        uint8_t *saved = block(a, length);
        checked(ctx, hla_state_save(state, saved, length));
        size_t at = (size_t)(byte(in) << 8 | byte(in)) % length;
        saved[at] ^= 0x40;
        if (hla_state_load(state, saved, length) == HLA_OK) abort();
        saved[at] ^= 0x40;
        checked(ctx, hla_state_load(state, saved, rarely(in) ? length - 1 : length));
        checked(ctx, hla_state_saved_problem(ctx, saved, length, &p));
    }
    hla_state_free(state), hla_state_free(clone);
}

/* The input itself as a saved state. */
static void use_saved(bytes *in, arena *a, hla_context *ctx) {
    hla_hadamard_problem p;
    uint8_t *copy = block(a, in->left); /* of exactly this size */
    memcpy(copy, in->at, in->left);
    checked(ctx, hla_state_saved_problem(ctx, copy, in->left, &p));
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t length) {
    bytes in = {input, length};
    arena a = {.count = 0};
    uint8_t first = byte(&in);
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = 1, options.check_finite = first & 1;
    hla_context *ctx = NULL;
    if (hla_context_create(&ctx, &options) != HLA_OK) abort();
    static void (*const uses[])(bytes *, arena *, hla_context *) = {use_hadamard, use_softmax, use_map, use_state,
                                                                    use_saved};
    uses[(first >> 1) % 5](&in, &a, ctx);
    release(&a);
    hla_context_free(ctx);
    return 0;
}
