/* video/vae/stream.c - a clip through a network, a chunk at a time. Three buffers take turns as input, result and
 * scratch; each causal convolution keeps the last frames that it saw. All memory is taken when the stream is made, for
 * the largest chunk, so it does not grow with the clip. */
#include "hla/softmax.h"
#include "video/vae/layers.h"

#include <stdlib.h>
#include <string.h>

#define MAX_CHUNK 256 /* frames: 2 to the number of stages */

/* The last two input frames of one causal convolution, older first; zeros at the start of a clip. */
typedef struct history {
    float *frame[2];
    int64_t floats; /* a frame */
} history;

typedef struct layer_state {
    history history[2]; /* of the layer's first and second causal convolution */
} layer_state;

struct vae_stream {
    hlv_context *ctx;
    const vae_network *network;
    int64_t height, width; /* of the input */
    bool started;          /* the first chunk has passed */
    float *buffer[3];
    float *past; /* all histories */
    layer_state *states;
    hla_softmax_plan *attention;
    void *attention_workspace;
};

/* What a layer turns a chunk into. first: the clip's first chunk, whose one frame is neither doubled nor merged in
 * time. */
static void step_shape(const vae_layer *layer, vae_chunk *c, bool first) {
    c->channels = layer->out;
    if (layer->kind == VAE_UPSAMPLE) {
        c->height *= 2, c->width *= 2;
        if (layer->conv[1] && !first) c->frames *= 2;
    }
    if (layer->kind == VAE_DOWNSAMPLE) {
        c->height /= 2, c->width /= 2;
        if (layer->conv[1] && !first) c->frames /= 2;
    }
}

/* Floats that a layer needs in its largest buffer; c is its input. */
static int64_t layer_floats(const vae_layer *layer, const vae_chunk *c) {
    vae_chunk after = *c;
    step_shape(layer, &after, false);
    const int64_t before_pixels = c->height * c->width, after_pixels = after.height * after.width;
    int64_t floats = c->frames * before_pixels * (layer->in > layer->out ? layer->in : layer->out);
    if (layer->kind == VAE_UPSAMPLE && after.frames * before_pixels * layer->in > floats)
        floats = after.frames * before_pixels * layer->in;
    if (layer->kind == VAE_ATTENTION && 3 * before_pixels * layer->in > floats) floats = 3 * before_pixels * layer->in;
    if (layer->kind == VAE_DOWNSAMPLE && c->frames * after_pixels * layer->out > floats)
        floats = c->frames * after_pixels * layer->out;
    if (after.frames * after_pixels * layer->out > floats) floats = after.frames * after_pixels * layer->out;
    return floats;
}

/* Sizes of the histories a layer keeps; c is its input. */
static void layer_histories(const vae_layer *layer, const vae_chunk *c, layer_state *state) {
    const int64_t pixels = c->height * c->width;
    const bool time = layer->conv[1];
    const int64_t first[] = {
        [VAE_CONV] = pixels * layer->in,
        [VAE_RESNET] = pixels * layer->in,
        [VAE_ATTENTION] = 0,
        [VAE_UPSAMPLE] = time ? pixels * layer->in : 0,
        [VAE_DOWNSAMPLE] = time ? (c->height / 2) * (c->width / 2) * layer->out : 0,
        [VAE_HEAD] = pixels * layer->in,
    };
    state->history[0].floats = first[layer->kind];
    state->history[1].floats = layer->kind == VAE_RESNET ? pixels * layer->out : 0;
}

/* Walks the network with the largest chunk: each layer's histories, and the size of the buffers and of all histories.
 */
static void measure(vae_stream *s, int64_t frames, int64_t *buffer, int64_t *past) {
    vae_chunk c = {.frames = frames, .height = s->height, .width = s->width};
    *buffer = *past = 0;
    for (int i = 0; i < s->network->count; i++) {
        const vae_layer *layer = &s->network->layers[i];
        const int64_t floats = layer_floats(layer, &c);
        *buffer = floats > *buffer ? floats : *buffer;
        layer_histories(layer, &c, &s->states[i]);
        /* Two frames of each; a sum that does not fit becomes one that no allocation grants. */
        if (__builtin_add_overflow(*past, 2 * (s->states[i].history[0].floats + s->states[i].history[1].floats), past))
            *past = INT64_MAX / 2;
        step_shape(layer, &c, false);
    }
}

static void place_histories(vae_stream *s) {
    float *next = s->past;
    for (int i = 0; i < 2 * s->network->count; i++) {
        history *h = &s->states[i / 2].history[i % 2];
        for (int j = 0; j < 2; j++, next += h->floats)
            h->frame[j] = next;
    }
}

/* The plan of the one attention layer, over the pixels of a frame. */
static hlv_status plan_attention(vae_stream *s, int64_t pixels, int64_t channels) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = problem.heads = 1;
    problem.queries = problem.keys = pixels;
    problem.dim = problem.value_dim = channels;
    problem.dtype = HLA_F32;
    hla_context *hla = hlv_context_hla(s->ctx);
    if (!hla) return HLV_ERROR_MEMORY;
    hla_status status = hla_softmax_plan_create(hla, &problem, &s->attention);
    if (status != HLA_OK) return hlv_fail_hla(s->ctx, status);
    size_t bytes = hla_softmax_plan_workspace(s->attention);
    s->attention_workspace = bytes ? hlv_alloc(s->ctx, bytes) : NULL;
    return bytes && !s->attention_workspace ? HLV_ERROR_MEMORY : HLV_OK;
}

static hlv_status plan_layers(vae_stream *s) {
    vae_chunk c = {.frames = 1, .height = s->height, .width = s->width};
    hlv_status status = HLV_OK;
    for (int i = 0; i < s->network->count && status == HLV_OK; i++) {
        const vae_layer *layer = &s->network->layers[i];
        if (layer->kind == VAE_ATTENTION) status = plan_attention(s, c.height * c.width, layer->in);
        step_shape(layer, &c, true);
    }
    return status;
}

static hlv_status reserve(vae_stream *s, int64_t frames) {
    s->states = calloc((size_t)s->network->count, sizeof *s->states);
    if (!s->states)
        return hlv_fail(s->ctx, HLV_ERROR_MEMORY, "out of memory for the VAE's %d layers", s->network->count);
    int64_t buffer, past;
    measure(s, frames, &buffer, &past);
    for (int i = 0; i < 3; i++)
        if (!(s->buffer[i] = hlv_alloc_floats(s->ctx, buffer))) return HLV_ERROR_MEMORY;
    if (!(s->past = hlv_alloc_floats(s->ctx, past))) return HLV_ERROR_MEMORY;
    memset(s->past, 0, (size_t)past * sizeof *s->past);
    place_histories(s);
    return plan_layers(s);
}

hlv_status hlv_vae_stream_create(hlv_context *ctx, const vae_network *network, int64_t frames, int64_t height,
                                 int64_t width, vae_stream **stream) {
    *stream = NULL;
    vae_stream *s = calloc(1, sizeof *s);
    if (!s)
        return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for a clip of %lldx%lld", (long long)width,
                        (long long)height);
    s->ctx = ctx;
    s->network = network;
    s->height = height, s->width = width;
    hlv_status status = reserve(s, frames);
    if (status != HLV_OK) {
        hlv_vae_stream_free(s);
        return status;
    }
    *stream = s;
    return HLV_OK;
}

void hlv_vae_stream_free(vae_stream *s) {
    if (!s) return;
    for (int i = 0; i < 3; i++)
        hlv_free(s->ctx, s->buffer[i]);
    hlv_free(s->ctx, s->past);
    hlv_free(s->ctx, s->attention_workspace);
    hla_softmax_plan_free(s->attention);
    free(s->states);
    free(s);
}

/* The chunk's frames with the last two before them: list [2 + frames]. */
static void with_past(const float **list, const history *h, const float *x, int64_t frames) {
    list[0] = h->frame[0];
    list[1] = h->frame[1];
    for (int64_t f = 0; f < frames; f++)
        list[2 + f] = x + f * h->floats;
}

/* Keeps the last two frames of the past and the chunk. */
static void remember(history *h, const float *x, int64_t frames) {
    const size_t bytes = (size_t)h->floats * sizeof *x;
    if (frames == 1) {
        float *older = h->frame[0];
        h->frame[0] = h->frame[1];
        h->frame[1] = older;
    } else {
        memcpy(h->frame[0], x + (frames - 2) * h->floats, bytes);
    }
    memcpy(h->frame[1], x + (frames - 1) * h->floats, bytes);
}

/* y [frames, ...] = or += the causal convolution of x [frames, ...]. */
static hlv_status causal(const hlv_conv *conv, history *h, float *y, const float *x, const vae_chunk *c,
                         bool accumulate) {
    const float *list[MAX_CHUNK + 2];
    with_past(list, h, x, c->frames);
    hlv_status status =
        hlv_conv_run(conv, y, list, c->frames + 2, c->height, c->width, (hlv_conv_flags){.accumulate = accumulate});
    if (status == HLV_OK) remember(h, x, c->frames);
    return status;
}

/* A spatial convolution of each frame by itself. */
static hlv_status each_frame(const hlv_conv *conv, float *y, const float *x, const vae_chunk *c, bool upsample) {
    const float *list[MAX_CHUNK];
    for (int64_t f = 0; f < c->frames; f++)
        list[f] = x + f * c->height * c->width * hlv_conv_in(conv);
    return hlv_conv_run(conv, y, list, c->frames, c->height, c->width, (hlv_conv_flags){.upsample = upsample});
}

/* Two of the stream's buffers that are not c->x. */
static void other_buffers(const vae_stream *s, const vae_chunk *c, float *other[2]) {
    other[0] = s->buffer[c->x == s->buffer[0] ? 1 : 0];
    other[1] = s->buffer[c->x == s->buffer[2] ? 1 : 2];
}

static int64_t chunk_pixels(const vae_chunk *c) {
    return c->frames * c->height * c->width;
}

/* Every layer reads c->x and leaves its result in another buffer, or in place; sizes are updated by the caller. */
typedef hlv_status layer_fn(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c);

static hlv_status run_conv(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c) {
    float *other[2];
    other_buffers(s, c, other);
    hlv_status status = causal(layer->conv[0], &state->history[0], other[0], c->x, c, false);
    c->x = other[0];
    return status;
}

static hlv_status run_head(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c) {
    hlv_l2_norm(s->ctx, c->x, c->x, chunk_pixels(c), layer->in, layer->gamma[0], true);
    return run_conv(s, layer, state, c);
}

/* x + conv2(silu(norm2(conv1(silu(norm1 x))))), or the shortcut of x in place of x. */
static hlv_status run_resnet(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c) {
    float *other[2];
    other_buffers(s, c, other);
    float *normed = other[0], *inner = other[1], *result = c->x;
    hlv_l2_norm(s->ctx, normed, c->x, chunk_pixels(c), layer->in, layer->gamma[0], true);
    hlv_status status = causal(layer->conv[0], &state->history[0], inner, normed, c, false);
    if (status == HLV_OK && layer->conv[2]) {
        result = normed;
        status = each_frame(layer->conv[2], result, c->x, c, false);
    }
    if (status != HLV_OK) return status;
    hlv_l2_norm(s->ctx, inner, inner, chunk_pixels(c), layer->out, layer->gamma[1], true);
    status = causal(layer->conv[1], &state->history[1], result, inner, c, true);
    c->x = result;
    return status;
}

/* Attention of one frame x [pixels, C], added to x. qkv [pixels, 3C], scratch [pixels, C]. */
static hlv_status attend(vae_stream *s, const vae_layer *layer, float *x, float *qkv, float *scratch, int64_t pixels) {
    const int64_t C = layer->in;
    hlv_l2_norm(s->ctx, scratch, x, pixels, C, layer->gamma[0], false);
    hlv_status status = hlv_linear_forward(layer->qkv, qkv, 3 * C, scratch, C, pixels);
    if (status != HLV_OK) return status;
    hla_tensor out = hla_tensor_bthd(scratch, HLA_F32, 1, pixels, 1, C), part[3];
    for (int i = 0; i < 3; i++) {
        part[i] = hla_tensor_bthd(qkv + i * C, HLA_F32, 1, pixels, 1, C);
        part[i].stride[1] = 3 * C;
    }
    hla_status attended = hla_softmax_forward(s->attention, &out, &part[0], &part[1], &part[2], NULL, NULL,
                                              s->attention_workspace, hla_softmax_plan_workspace(s->attention));
    if (attended != HLA_OK) return hlv_fail_hla(s->ctx, attended);
    status = hlv_linear_forward(layer->proj, qkv, C, scratch, C, pixels);
    if (status == HLV_OK) hlv_residual(s->ctx, x, qkv, pixels, C, NULL);
    return status;
}

static hlv_status run_attention(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c) {
    (void)state;
    float *other[2];
    other_buffers(s, c, other);
    const int64_t pixels = c->height * c->width;
    hlv_status status = HLV_OK;
    for (int64_t f = 0; f < c->frames && status == HLV_OK; f++)
        status = attend(s, layer, c->x + f * pixels * layer->in, other[0], other[1], pixels);
    return status;
}

/* Two frames from each: the even one by conv[1], the odd one by conv[2]. */
static hlv_status double_frames(const vae_layer *layer, history *h, float *y, const vae_chunk *c) {
    const float *list[MAX_CHUNK + 2];
    with_past(list, h, c->x, c->frames);
    hlv_status status = HLV_OK;
    for (int64_t f = 0; f < 2 * c->frames && status == HLV_OK; f++)
        status = hlv_conv_run(layer->conv[1 + f % 2], y + f * h->floats, list + f / 2, 3, c->height, c->width,
                              (hlv_conv_flags){0});
    if (status == HLV_OK) remember(h, c->x, c->frames);
    return status;
}

static hlv_status run_upsample(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c) {
    float *other[2];
    other_buffers(s, c, other);
    vae_chunk doubled = *c;
    if (layer->conv[1] && s->started) {
        hlv_status status = double_frames(layer, &state->history[0], other[0], c);
        if (status != HLV_OK) return status;
        doubled.x = other[0];
        doubled.frames *= 2;
    }
    hlv_status status = each_frame(layer->conv[0], other[1], doubled.x, &doubled, true);
    c->x = other[1];
    return status;
}

/* The first frame passes in time; later ones merge in threes (x_2k-2, x_2k-1, x_2k), so one frame of the past is seen.
 */
static hlv_status run_downsample(vae_stream *s, const vae_layer *layer, layer_state *state, vae_chunk *c) {
    float *other[2];
    other_buffers(s, c, other);
    hlv_status status = each_frame(layer->conv[0], other[0], c->x, c, false);
    c->x = other[0];
    if (status != HLV_OK || !layer->conv[1]) return status;
    history *h = &state->history[0];
    const float *list[MAX_CHUNK + 2];
    with_past(list, h, c->x, c->frames);
    if (s->started) {
        status = hlv_conv_run(layer->conv[1], other[1], list + 1, c->frames + 1, c->height / 2, c->width / 2,
                              (hlv_conv_flags){0});
        c->x = other[1];
    }
    if (status == HLV_OK) memcpy(h->frame[1], list[1 + c->frames], (size_t)h->floats * sizeof(float));
    return status;
}

hlv_status hlv_vae_stream_push(vae_stream *s, const float *x, int64_t frames, vae_chunk *result) {
    static layer_fn *const run[] = {
        [VAE_CONV] = run_conv,         [VAE_RESNET] = run_resnet,         [VAE_ATTENTION] = run_attention,
        [VAE_UPSAMPLE] = run_upsample, [VAE_DOWNSAMPLE] = run_downsample, [VAE_HEAD] = run_head,
    };
    /* The first layer, a plain convolution, only reads. */
    vae_chunk c = {.x = (float *)x, .frames = frames, .height = s->height, .width = s->width};
    c.channels = s->network->layers[0].in;
    hlv_status status = HLV_OK;
    for (int i = 0; i < s->network->count && status == HLV_OK; i++) {
        const vae_layer *layer = &s->network->layers[i];
        if (hlv_cancelled(s->ctx)) return HLV_ERROR_CANCELLED;
        status = run[layer->kind](s, layer, &s->states[i], &c);
        step_shape(layer, &c, !s->started);
    }
    s->started = true;
    *result = c;
    return status;
}
