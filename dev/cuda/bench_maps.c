/* Times the feature maps and the streaming state on a GPU, as shares of a copy's bandwidth in the same run.
 *
 *     cc -O2 -I include dev/cuda/bench_maps.c -L BUILD -lhla -lm -o bench_maps
 *     LD_LIBRARY_PATH=BUILD ./bench_maps
 *
 * Bytes are those that have to move: inputs read once, outputs written once, a state both. A sample is eight calls in a
 * row, which go through so much memory that the second-level cache holds nothing of what they need; medians of 21.
 */
#include "hla/hla.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 21, CALLS = 8 };

typedef struct bench {
    hla_context *context;
    void *stream, *start, *end;
    double copy; /* bytes a second */
} bench;

static void must(const bench *b, hla_status status) {
    if (status == HLA_OK) return;
    fprintf(stderr, "%s\n", hla_context_error(b->context));
    exit(status == HLA_ERROR_UNSUPPORTED ? 77 : 1);
}

static void *device_memory(const bench *b, size_t bytes) {
    void *memory;
    must(b, hla_device_allocate(b->context, bytes, &memory));
    must(b, hla_device_queue_fill(b->context, memory, 0, bytes));
    return memory;
}

/* Uniform numbers of [-scale, scale) in bfloat16 or float32. */
static void *device_numbers(const bench *b, size_t count, hla_dtype dtype, float scale) {
    size_t bytes = count * hla_dtype_size(dtype);
    unsigned char *host = malloc(bytes);
    uint32_t random = 12345;
    if (!host) exit(1);
    for (size_t i = 0; i < count; i++) {
        random = random * 1664525u + 1013904223u;
        float value = ((float)(random >> 8) * 0x1p-23f - 1) * scale;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t narrow = (uint16_t)(bits >> 16);
        if (dtype == HLA_F32) {
            memcpy(host + 4 * i, &value, 4);
        } else {
            memcpy(host + 2 * i, &narrow, 2);
        }
    }
    void *memory = device_memory(b, bytes);
    must(b, hla_device_copy(b->context, memory, host, bytes));
    free(host);
    return memory;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of call(argument, i), i = 0, 1, ... */
static double median(const bench *b, hla_status (*call)(void *, int), void *argument) {
    double seconds[SAMPLES];
    for (int i = 0; i < CALLS; i++)
        must(b, call(argument, i));
    must(b, hla_device_synchronise(b->context));
    for (int i = 0; i < SAMPLES; i++) {
        must(b, hla_device_event_record(b->context, b->start));
        for (int n = 0; n < CALLS; n++)
            must(b, call(argument, n));
        must(b, hla_device_event_record(b->context, b->end));
        must(b, hla_device_event_seconds(b->context, b->start, b->end, &seconds[i]));
    }
    qsort(seconds, SAMPLES, sizeof *seconds, by_size);
    return seconds[SAMPLES / 2] / CALLS;
}

static void report(const bench *b, const char *what, double seconds, double bytes) {
    printf("%-44s %8.1f us %7.0f GB/s %4.0f %% of copy\n", what, seconds * 1e6, bytes / seconds * 1e-9,
           100 * bytes / seconds / b->copy);
    fflush(stdout);
}

typedef struct copy_call {
    hla_context *context;
    void *to, *from;
    size_t bytes;
} copy_call;

static hla_status run_copy(void *argument, int i) {
    (void)i;
    const copy_call *call = argument;
    return hla_device_queue_copy(call->context, call->to, call->from, call->bytes);
}

static void measure_copy(bench *b) {
    copy_call call = {.context = b->context, .bytes = (size_t)512 << 20};
    call.to = device_memory(b, call.bytes), call.from = device_memory(b, call.bytes);
    double seconds = median(b, run_copy, &call);
    b->copy = 2 * (double)call.bytes / seconds;
    report(b, "copy of 512 MiB", seconds, 2 * (double)call.bytes);
    hla_device_free(b->context, call.to), hla_device_free(b->context, call.from);
}

/* ---- feature maps ---- */

typedef struct map_call {
    hla_context *context;
    hla_feature_map_problem problem;
    hla_feature_map_weights weights;
    hla_feature_map_weight_gradients gradients;
    hla_tensor out, x, dx;
    void *workspace;
    size_t size;
} map_call;

static hla_status run_map(void *argument, int i) {
    (void)i;
    const map_call *call = argument;
    return hla_feature_map_forward(call->context, &call->problem, &call->out, &call->x, &call->weights);
}

static hla_status run_map_backward(void *argument, int i) {
    (void)i;
    const map_call *call = argument;
    return hla_feature_map_backward(call->context, &call->problem, &call->dx, &call->gradients, &call->out, &call->x,
                                    &call->weights, call->workspace, call->size);
}

typedef struct map_case {
    int64_t rank;
    hla_activation activation;
    bool rope, hidden;
    const char *kernel;
} map_case;

/* Wan2.1-1.3B at 832 x 480 x 81. */
static void measure_map(const bench *b, const map_case *c) {
    const int64_t T = 32760, H = 12, D = 128;
    map_call call = {.context = b->context};
    hla_feature_map_problem *p = &call.problem;
    hla_feature_map_problem_init(p);
    p->batch = 1, p->heads = H, p->tokens = T, p->dim = D, p->rank = c->rank;
    p->dtype = HLA_BF16, p->activation = c->activation, p->kernel = c->kernel;
    const size_t inputs = (size_t)(T * H * D), outputs = (size_t)(T * H * c->rank);
    call.x = hla_tensor_bthd(device_numbers(b, inputs, HLA_BF16, 1), HLA_BF16, 1, T, H, D);
    call.out = hla_tensor_bthd(device_numbers(b, outputs, HLA_BF16, 1), HLA_BF16, 1, T, H, c->rank);
    call.dx = hla_tensor_bthd(device_memory(b, 2 * inputs), HLA_BF16, 1, T, H, D);
    call.weights.weight = device_numbers(b, (size_t)(H * D * c->rank), HLA_F32, 0.1f);
    call.weights.bias = device_numbers(b, (size_t)(H * c->rank), HLA_F32, 0.1f);
    if (c->hidden) call.weights.hidden_weight = device_numbers(b, (size_t)(H * D * D), HLA_F32, 0.1f);
    if (c->rope) p->rope = device_numbers(b, (size_t)(T * D), HLA_F32, 1);
    call.gradients.weight = device_memory(b, (size_t)(H * D * c->rank) * 4);
    call.gradients.bias = device_memory(b, (size_t)(H * c->rank) * 4);
    if (c->hidden) call.gradients.hidden_weight = device_memory(b, (size_t)(H * D * D) * 4);
    must(b, hla_feature_map_backward_workspace(b->context, p, &call.size));
    call.workspace = device_memory(b, call.size);
    char what[96];
    const char *extra = c->rope && c->hidden ? ", RoPE, hidden" : c->rope ? ", RoPE" : c->hidden ? ", hidden" : "";
    const double table = c->rope ? (double)(T * D * 4) : 0;
    snprintf(what, sizeof what, "map R %d, %s%s%s%s", (int)c->rank, hla_activation_name(c->activation), extra,
             c->kernel ? ", " : "", c->kernel ? c->kernel : "");
    report(b, what, median(b, run_map, &call), 2 * (double)(inputs + outputs) + table);
    snprintf(what, sizeof what, "backward of it");
    report(b, what, median(b, run_map_backward, &call), 2 * (double)(2 * inputs + outputs) + table);
    const void *all[] = {call.x.data,
                         call.out.data,
                         call.dx.data,
                         call.weights.weight,
                         call.weights.bias,
                         call.weights.hidden_weight,
                         p->rope,
                         call.gradients.weight,
                         call.gradients.bias,
                         call.gradients.hidden_weight,
                         call.workspace};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        hla_device_free(b->context, (void *)all[i]);
}

/* ---- the state ---- */

enum { MOST_STATES = 8 };

/* Several states, of 400 MB together, take turns. */
typedef struct state_call {
    hla_state *state[MOST_STATES];
    int states;
    hla_tensor out, q[2], k[2], v;
    int kind; /* 0: step, 1: append, 2: query */
} state_call;

static hla_status run_state(void *argument, int i) {
    state_call *call = argument;
    hla_state *state = call->state[i % call->states];
    if (call->kind == 1) return hla_state_append(state, call->k, &call->v);
    if (call->kind == 2) return hla_state_query(state, &call->out, call->q);
    return hla_state_step(state, &call->out, call->q, call->k, &call->v);
}

static void measure_state(const bench *b, int64_t batch, int64_t heads, int64_t kv_heads, int64_t rank, int64_t V,
                          int64_t tokens) {
    static const char *const kinds[] = {"step", "append", "query"};
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = batch, problem.heads = heads, problem.kv_heads = kv_heads, problem.value_dim = V;
    problem.factors = 2, problem.rank[0] = problem.rank[1] = rank, problem.dtype = HLA_BF16;
    state_call call = {0};
    size_t count = 0;
    for (size_t bytes = 0; call.states < MOST_STATES && bytes < (size_t)400e6; bytes += count * sizeof(float)) {
        must(b, hla_state_create(b->context, &problem, &call.state[call.states]));
        hla_state_data(call.state[call.states++], &count);
    }
    void *features = device_numbers(b, (size_t)(batch * tokens * heads * rank), HLA_BF16, 0.5f);
    void *values = device_numbers(b, (size_t)(batch * tokens * heads * V), HLA_BF16, 1);
    void *out = device_memory(b, (size_t)(batch * tokens * heads * V) * 2);
    for (int p = 0; p < 2; p++) {
        call.q[p] = hla_tensor_bthd(features, HLA_BF16, batch, tokens, heads, rank);
        call.k[p] = hla_tensor_bthd(features, HLA_BF16, batch, tokens, kv_heads, rank);
    }
    call.v = hla_tensor_bthd(values, HLA_BF16, batch, tokens, kv_heads, V);
    call.out = hla_tensor_bthd(out, HLA_BF16, batch, tokens, heads, V);
    for (call.kind = 0; call.kind < 3; call.kind++) {
        char what[96];
        snprintf(what, sizeof what, "%s of %d, B %d, H %d/%d, 2 x %d, V %d", kinds[call.kind], (int)tokens, (int)batch,
                 (int)heads, (int)kv_heads, (int)rank, (int)V);
        report(b, what, median(b, run_state, &call), (call.kind == 2 ? 4 : 8) * (double)count);
    }
    for (int i = 0; i < call.states; i++)
        hla_state_free(call.state[i]);
    hla_device_free(b->context, features), hla_device_free(b->context, values), hla_device_free(b->context, out);
}

int main(void) {
    static const map_case maps[] = {
        {16, HLA_ACTIVATION_RELU, false, false, NULL},      {32, HLA_ACTIVATION_RELU, false, false, NULL},
        {64, HLA_ACTIVATION_RELU, false, false, NULL},      {128, HLA_ACTIVATION_RELU, false, false, NULL},
        {64, HLA_ACTIVATION_SOFTPLUS, false, false, NULL},  {64, HLA_ACTIVATION_SOFTMAX, false, false, NULL},
        {64, HLA_ACTIVATION_RELU, true, false, NULL},       {32, HLA_ACTIVATION_RELU, true, false, NULL},
        {64, HLA_ACTIVATION_RELU, false, true, NULL},       {64, HLA_ACTIVATION_RELU, true, true, NULL},
        {64, HLA_ACTIVATION_RELU, false, false, "float32"},
    };
    bench b = {0};
    if (hla_context_create(&b.context, NULL) != HLA_OK) return 1;
    must(&b, hla_context_use_cuda(b.context, 0));
    must(&b, hla_device_stream_create(b.context, &b.stream));
    must(&b, hla_context_set_stream(b.context, b.stream));
    must(&b, hla_device_event_create(b.context, &b.start));
    must(&b, hla_device_event_create(b.context, &b.end));
    printf("%s\n", hla_context_device_name(b.context));
    measure_copy(&b);
    measure_state(&b, 1, 128, 128, 64, 128, 1);
    measure_state(&b, 1, 128, 128, 32, 128, 1);
    measure_state(&b, 1, 128, 128, 16, 128, 1);
    measure_state(&b, 32, 12, 12, 32, 64, 1);
    measure_state(&b, 1, 12, 12, 64, 128, 1);
    measure_state(&b, 16, 64, 8, 32, 128, 1);
    measure_state(&b, 1, 128, 128, 64, 128, 16);
    measure_state(&b, 1, 128, 128, 64, 128, 64);
    measure_state(&b, 1, 128, 128, 64, 128, 65);
    for (size_t i = 0; i < sizeof maps / sizeof maps[0]; i++)
        measure_map(&b, &maps[i]);
    hla_device_event_free(b.context, b.start), hla_device_event_free(b.context, b.end);
    hla_device_stream_free(b.context, b.stream);
    hla_context_free(b.context);
    return 0;
}
