/* video/nn/conv.c - convolution over [frames, height, width, channels] through oneDNN.
 *
 * A kernel of kt frames is the sum of kt two-dimensional convolutions, each but the first added to the result. An
 * output frame is cut into bands of rows: rows of one frame lie together, so a band is a dense image to oneDNN, whose
 * padding above and below says where the band lies. One band of one frame is the work of one thread; the cut depends on
 * the image's size alone. Measured, this is as fast as oneDNN's three-dimensional convolution, needs no copy and lets
 * frames lie apart. */
#include "video/nn/onednn.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* About what one frame's band should take: two of them and the weights fit a core's cache. */
#define BAND_BYTES 131072
#define BAND_ROWS 4    /* least rows of a band: below, the rows read around it weigh too much */
#define MAX_KERNEL 16  /* along each axis */
#define MAX_SIDE 65536 /* pixels: keeps every product of sizes far from overflow */
#define MAX_KINDS 12   /* of bands: padding within a few rows of the edge makes more than the usual four */

/* What oneDNN needs for a band: all bands but the first and the last few are of one kind. */
typedef struct band_kind {
    int64_t rows, in_rows, above, below; /* output rows, input rows present, zero rows around them */
    dnnl_primitive_desc_t pd[2];         /* [add to y] */
    dnnl_primitive_t primitive[2];
    dnnl_memory_desc_t x, y, scratch[2];
    int layout; /* of its weights: an index into the plan's */
} band_kind;

/* Weights in one of oneDNN's layouts, one frame's kernel each. */
typedef struct packing {
    dnnl_memory_desc_t desc;
    void *weights[MAX_KERNEL];
} packing;

/* The cut of one image size, with the memory the threads work in. */
typedef struct plan {
    int64_t height, width; /* as the convolution sees them: after upsampling */
    int64_t out_height, out_width;
    int64_t band_rows, bands;
    int kinds;
    band_kind kind[MAX_KINDS];
    /* Kinds may want their weights in different layouts, and oneDNN's fast kernels take no other. layout[0] is the
     * layer's own. */
    int layouts;
    packing layout[MAX_KINDS + 1];
    size_t scratch; /* most bytes that a primitive asks for */
    char *memory;
    size_t memory_bytes;
} plan;

struct hlv_conv {
    hlv_context *ctx;
    char *name;
    int64_t in, out, kt, ky, kx;
    hlv_conv_options options;
    bool bf16, emulated; /* as in hlv_linear */
    dnnl_engine_t engine;
    dnnl_data_type_t type;
    dnnl_memory_desc_t bias_desc;
    packing packing; /* in the layout for a band of typical size */
    float *bias;     /* [2, out]: the bias, zeros */
    plan *plan;      /* of the size last seen */
};

/* Describes and makes one primitive of a band; weight may have an open layout, and says the chosen one on return. */
static dnnl_status_t make_primitive(const hlv_conv *c, band_kind *k, int64_t width, int64_t out_width, bool sum,
                                    dnnl_memory_desc_t *weight) {
    const dnnl_dims_t x = {1, c->in, k->in_rows, width}, y = {1, c->out, k->rows, out_width};
    const dnnl_dims_t strides = {c->options.stride_y, c->options.stride_x};
    const dnnl_dims_t before = {k->above, c->options.pad_left}, after = {k->below, c->options.pad_right};
    dnnl_convolution_desc_t operation;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&k->x, 4, x, c->type, dnnl_nhwc);
    if (status == dnnl_success) status = dnnl_memory_desc_init_by_tag(&k->y, 4, y, dnnl_f32, dnnl_nhwc);
    if (status == dnnl_success)
        status = dnnl_convolution_forward_desc_init(&operation, dnnl_forward_inference, dnnl_convolution_direct, &k->x,
                                                    weight, &c->bias_desc, &k->y, strides, before, after);
    if (status == dnnl_success) status = hlv_onednn_describe(&k->pd[sum], &operation, c->engine, sum);
    if (status == dnnl_success) status = hlv_onednn_create(&k->primitive[sum], k->pd[sum]);
    if (status != dnnl_success) return status;
    *weight = *dnnl_primitive_desc_query_md(k->pd[sum], dnnl_query_weights_md, 0);
    k->scratch[sum] = *dnnl_primitive_desc_query_md(k->pd[sum], dnnl_query_scratchpad_md, 0);
    return status;
}

static void drop_primitives(band_kind *k) {
    for (int sum = 0; sum < 2; sum++) {
        if (k->primitive[sum]) dnnl_primitive_destroy(k->primitive[sum]);
        if (k->pd[sum]) dnnl_primitive_desc_destroy(k->pd[sum]);
        k->primitive[sum] = NULL;
        k->pd[sum] = NULL;
    }
}

static void drop_plan(hlv_conv *c) {
    if (!c->plan) return;
    for (int i = 0; i < c->plan->kinds; i++)
        drop_primitives(&c->plan->kind[i]);
    for (int i = 1; i < c->plan->layouts; i++)
        for (int64_t t = 0; t < c->kt; t++)
            hlv_free(c->ctx, c->plan->layout[i].weights[t]);
    hlv_free(c->ctx, c->plan->memory);
    free(c->plan);
    c->plan = NULL;
}

/* The layout that oneDNN likes the weights in, asked for a band of typical size. */
static dnnl_status_t choose_layout(hlv_conv *c, dnnl_data_type_t type) {
    band_kind k = {.rows = BAND_ROWS};
    const int64_t out_width = 64; /* wider than any padding */
    k.in_rows = (k.rows - 1) * c->options.stride_y + c->ky;
    int64_t width = (out_width - 1) * c->options.stride_x + c->kx - c->options.pad_left - c->options.pad_right;
    const dnnl_dims_t w = {c->out, c->in, c->ky, c->kx};
    c->type = type;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&c->packing.desc, 4, w, type, dnnl_format_tag_any);
    if (status == dnnl_success) status = make_primitive(c, &k, width, out_width, true, &c->packing.desc);
    drop_primitives(&k);
    return status;
}

static hlv_status pack_weights(hlv_conv *c, float *w) {
    if (c->emulated) hlv_bf16_round(w, w, c->out * c->in * c->kt * c->ky * c->kx);
    const int64_t plane = c->ky * c->kx;
    const dnnl_dims_t dims = {c->out, c->in, c->ky, c->kx}, strides = {c->in * c->kt * plane, c->kt * plane, c->kx, 1};
    dnnl_memory_desc_t plain;
    dnnl_status_t made = dnnl_memory_desc_init_by_strides(&plain, 4, dims, dnnl_f32, strides);
    if (made != dnnl_success) return hlv_onednn_fail(c->ctx, made, c->name, "describe the weights");
    for (int64_t t = 0; t < c->kt; t++) {
        hlv_status status = hlv_onednn_pack(c->ctx, c->engine, &plain, w + t * plane, &c->packing.desc, c->name,
                                            &c->packing.weights[t]);
        if (status != HLV_OK) return status;
    }
    return HLV_OK;
}

/* Bias and zeros, weights in oneDNN's layout; bf16 where the machine can, else float32, which is said in the log. */
static hlv_status fill(hlv_conv *c, const hlv_weight *weight, const hlv_weight *bias) {
    if (!(c->bias = hlv_alloc_floats(c->ctx, 2 * c->out))) return HLV_ERROR_MEMORY;
    memset(c->bias, 0, (size_t)(2 * c->out) * sizeof *c->bias);
    if (bias) hlv_weight_to_f32(bias, c->bias);
    const dnnl_dims_t out = {c->out};
    dnnl_status_t made = dnnl_engine_create(&c->engine, dnnl_cpu, 0);
    if (made == dnnl_success) made = dnnl_memory_desc_init_by_tag(&c->bias_desc, 1, out, dnnl_f32, dnnl_a);
    if (made != dnnl_success) return hlv_onednn_fail(c->ctx, made, c->name, "open the processor");
    made = dnnl_unimplemented;
    if (c->bf16) made = choose_layout(c, dnnl_bf16);
    c->emulated = c->bf16 && made == dnnl_unimplemented;
    if (c->emulated)
        hlv_log(c->ctx, HLV_LOG_DEBUG,
                "%s: no bf16 convolution on this machine; operands are rounded to bf16 and multiplied in float32",
                c->name);
    if (!c->bf16 || c->emulated) made = choose_layout(c, dnnl_f32);
    if (made != dnnl_success) return hlv_onednn_fail(c->ctx, made, c->name, "prepare a convolution");
    float *plain = hlv_weight_load_f32(c->ctx, weight);
    if (!plain) return HLV_ERROR_MEMORY;
    hlv_status status = pack_weights(c, plain);
    hlv_free(c->ctx, plain);
    return status;
}

static bool options_fit(const hlv_conv_options *o) {
    const int values[] = {o->stride_t, o->stride_y, o->stride_x, o->pad_top, o->pad_bottom, o->pad_left, o->pad_right};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++)
        if (values[i] < 0 || values[i] > MAX_KERNEL) return false;
    return true;
}

static hlv_status check(hlv_context *ctx, hla_dtype dtype, const hlv_weight *weight, const hlv_weight *bias,
                        const hlv_conv_options *options) {
    if (!weight) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "a convolution was made without a weight");
    if (dtype != HLA_F32 && dtype != HLA_BF16)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: convolutions are in f32 or bf16, not dtype %d", weight->name,
                        dtype);
    bool fits = (weight->ndim == 4 || weight->ndim == 5) && weight->count > 0;
    for (int i = 2; fits && i < weight->ndim; i++)
        fits = weight->shape[i] <= MAX_KERNEL;
    if (!fits)
        return hlv_fail(ctx, HLV_ERROR_FORMAT,
                        "%s: the weight of a convolution is [O,I,kt,ky,kx] or [O,I,ky,kx], not empty, kernels up to %d",
                        weight->name, MAX_KERNEL);
    if (bias && bias->count != weight->shape[0])
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: %lld values for the %lld outputs of %s", bias->name,
                        (long long)bias->count, (long long)weight->shape[0], weight->name);
    if (options && !options_fit(options))
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: strides and padding are from 0 to %d", weight->name, MAX_KERNEL);
    return HLV_OK;
}

hlv_status hlv_conv_create(hlv_context *ctx, hla_dtype dtype, const hlv_weight *weight, const hlv_weight *bias,
                           const hlv_conv_options *options, hlv_conv **conv) {
    *conv = NULL;
    hlv_status status = check(ctx, dtype, weight, bias, options);
    if (status != HLV_OK) return status;
    hlv_conv *c = calloc(1, sizeof *c);
    if (!c || !(c->name = strdup(weight->name))) {
        free(c);
        return hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: out of memory", weight->name);
    }
    const int64_t *kernel = weight->shape + weight->ndim - 2;
    c->ctx = ctx;
    c->bf16 = dtype == HLA_BF16;
    c->out = weight->shape[0], c->in = weight->shape[1];
    c->kt = weight->ndim == 5 ? weight->shape[2] : 1, c->ky = kernel[0], c->kx = kernel[1];
    if (options) c->options = *options;
    int *strides[] = {&c->options.stride_t, &c->options.stride_y, &c->options.stride_x};
    for (int i = 0; i < 3; i++)
        *strides[i] = *strides[i] ? *strides[i] : 1;
    int saved = hlv_onednn_enter();
    status = fill(c, weight, bias);
    hlv_onednn_leave(saved);
    if (status != HLV_OK) {
        hlv_conv_free(c);
        return status;
    }
    *conv = c;
    return HLV_OK;
}

void hlv_conv_free(hlv_conv *c) {
    if (!c) return;
    drop_plan(c);
    for (int64_t t = 0; t < c->kt; t++)
        hlv_free(c->ctx, c->packing.weights[t]);
    hlv_free(c->ctx, c->bias);
    if (c->engine) dnnl_engine_destroy(c->engine);
    free(c->name);
    free(c);
}

int64_t hlv_conv_in(const hlv_conv *c) {
    return c->in;
}

int64_t hlv_conv_out(const hlv_conv *c) {
    return c->out;
}

/* A band's rows: output rows from `row`, the input rows they see that exist, from *first, and how many don't. */
static band_kind band_at(const hlv_conv *c, const plan *p, int64_t band, int64_t *row, int64_t *first) {
    band_kind k = {.rows = p->band_rows};
    *row = band * p->band_rows;
    if (*row + k.rows > p->out_height) k.rows = p->out_height - *row;
    int64_t start = *row * c->options.stride_y - c->options.pad_top;
    int64_t end = start + (k.rows - 1) * c->options.stride_y + c->ky; /* one past the last */
    *first = start < 0 ? 0 : start;
    k.above = *first - start;
    k.below = end > p->height ? end - p->height : 0;
    k.in_rows = end - k.below - *first;
    return k;
}

/* The plan's kind equal to k, or NULL. */
static band_kind *find_kind(plan *p, const band_kind *k) {
    for (int i = 0; i < p->kinds; i++) {
        const band_kind *have = &p->kind[i];
        if (have->rows == k->rows && have->in_rows == k->in_rows && have->above == k->above && have->below == k->below)
            return &p->kind[i];
    }
    return NULL;
}

/* The plan's kinds of bands, without primitives. */
static bool list_kinds(const hlv_conv *c, plan *p) {
    for (int64_t band = 0; band < p->bands; band++) {
        int64_t row, first;
        const band_kind wanted = band_at(c, p, band, &row, &first);
        if (find_kind(p, &wanted)) continue;
        if (p->kinds == MAX_KINDS || wanted.in_rows < 1) return false;
        p->kind[p->kinds++] = wanted;
    }
    return true;
}

static bool is_reference(const_dnnl_primitive_desc_t pd) {
    const char *name = "";
    dnnl_status_t status = dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name);
    return status == dnnl_success && strncmp(name, "ref", 3) == 0;
}

/* The plan's index of a layout, into which the weights are packed if they aren't yet; -1 on failure. */
static int find_layout(const hlv_conv *c, plan *p, const dnnl_memory_desc_t *desc) {
    for (int i = 0; i < p->layouts; i++)
        if (dnnl_memory_desc_equal(&p->layout[i].desc, desc)) return i;
    packing *made = &p->layout[p->layouts++]; /* from here on freed with the plan */
    made->desc = *desc;
    for (int64_t t = 0; t < c->kt; t++)
        if (hlv_onednn_pack(c->ctx, c->engine, &c->packing.desc, c->packing.weights[t], desc, c->name,
                            &made->weights[t]))
            return -1;
    return p->layouts - 1;
}

/* Both primitives of a kind of band. *slow is set if oneDNN has only its plain loops for it. */
static hlv_status make_kind(const hlv_conv *c, plan *p, band_kind *k, bool *slow) {
    const dnnl_dims_t w = {c->out, c->in, c->ky, c->kx};
    dnnl_memory_desc_t weight;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&weight, 4, w, c->type, dnnl_format_tag_any);
    for (int sum = 1; sum >= 0 && status == dnnl_success; sum--) { /* the more demanding one chooses the layout */
        status = make_primitive(c, k, p->width, p->out_width, sum, &weight);
        if (status != dnnl_success) break;
        size_t scratch = dnnl_memory_desc_get_size(&k->scratch[sum]);
        p->scratch = scratch > p->scratch ? scratch : p->scratch;
        *slow = *slow || is_reference(k->pd[sum]);
    }
    if (status != dnnl_success) return hlv_onednn_fail(c->ctx, status, c->name, "prepare a convolution of this size");
    k->layout = find_layout(c, p, &weight);
    return k->layout < 0 ? HLV_ERROR_MEMORY : HLV_OK;
}

/* Sizes of the cut of an image. */
static void cut_image(const hlv_conv *c, plan *p, int64_t height, int64_t width) {
    const hlv_conv_options *o = &c->options;
    p->height = height, p->width = width;
    p->out_height = (height + o->pad_top + o->pad_bottom - c->ky) / o->stride_y + 1;
    p->out_width = (width + o->pad_left + o->pad_right - c->kx) / o->stride_x + 1;
    int64_t row_floats = p->out_width * (c->in > c->out ? c->in : c->out), quarter = (p->out_height + 3) / 4;
    p->band_rows = BAND_BYTES / (row_floats * (int64_t)sizeof(float));
    p->band_rows = p->band_rows > quarter ? quarter : p->band_rows;
    p->band_rows = p->band_rows < BAND_ROWS ? BAND_ROWS : p->band_rows;
    p->bands = (p->out_height + p->band_rows - 1) / p->band_rows;
}

/* Makes the plan of an image size current. */
static hlv_status make_plan(hlv_conv *c, int64_t height, int64_t width) {
    if (c->plan && c->plan->height == height && c->plan->width == width) return HLV_OK;
    drop_plan(c);
    plan *p = calloc(1, sizeof *p);
    if (!p) {
        hlv_fail(c->ctx, HLV_ERROR_MEMORY, "%s: out of memory", c->name);
        return HLV_ERROR_MEMORY;
    }
    c->plan = p;
    p->layout[p->layouts++] = c->packing;
    cut_image(c, p, height, width);
    bool slow = false;
    hlv_status status = HLV_OK;
    if (!list_kinds(c, p))
        status = hlv_onednn_fail(c->ctx, dnnl_invalid_arguments, c->name, "cut an image of this size");
    for (int i = 0; i < p->kinds && status == HLV_OK; i++)
        status = make_kind(c, p, &p->kind[i], &slow);
    if (status != HLV_OK) drop_plan(c);
    if (status == HLV_OK && slow)
        hlv_log(c->ctx, HLV_LOG_WARNING, "%s: oneDNN has no fast convolution for %lldx%lld on this machine", c->name,
                (long long)width, (long long)height);
    return status;
}

/* One call, and one thread's part of it. */
typedef struct job {
    const hlv_conv *c;
    float *y;
    const float *const *frames;
    hlv_conv_flags flags;
    bool gather; /* bands are copied, doubled or converted before the convolution sees them */
    size_t gather_bytes, stride;
} job;

typedef struct worker {
    dnnl_stream_t stream;
    void *band;
    float *row; /* one row of pixels, doubled */
    void *scratch;
} worker;

static size_t round_up(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* dst [2 width, channels] from src [width, channels]. */
static void double_row(float *dst, const float *src, int64_t width, int64_t channels) {
    for (int64_t x = 0; x < width; x++, src += channels, dst += 2 * channels) {
        memcpy(dst, src, (size_t)channels * sizeof *dst);
        memcpy(dst + channels, src, (size_t)channels * sizeof *dst);
    }
}

/* A band of a frame as the convolution wants it. */
static const void *gather_band(const job *j, worker *w, const float *frame, int64_t first, int64_t rows) {
    const hlv_conv *c = j->c;
    const int64_t count = c->plan->width * c->in; /* floats a row */
    if (!j->gather) return frame + first * count;
    for (int64_t r = 0; r < rows; r++) {
        const float *source = frame + (first + r) * count;
        float *target = (float *)w->band + r * count;
        if (j->flags.upsample) {
            float *doubled = c->bf16 ? w->row : target;
            double_row(doubled, frame + (first + r) / 2 * (count / 2), c->plan->width / 2, c->in);
            source = doubled;
        }
        if (c->emulated)
            hlv_bf16_round(target, source, count);
        else if (c->bf16)
            hlv_bf16_from_f32((uint16_t *)w->band + r * count, source, count);
    }
    return w->band;
}

/* One band of one output frame: the sum over the kernel's frames. */
static dnnl_status_t run_band(const job *j, worker *w, int64_t frame, int64_t band) {
    const hlv_conv *c = j->c;
    plan *p = c->plan;
    int64_t row, first;
    const band_kind wanted = band_at(c, p, band, &row, &first);
    const band_kind *k = find_kind(p, &wanted);
    const packing *layout = &p->layout[k->layout];
    float *y = j->y + (frame * p->out_height + row) * p->out_width * c->out;
    dnnl_status_t status = dnnl_success;
    for (int64_t t = 0; t < c->kt && status == dnnl_success; t++) {
        const bool sum = t > 0 || j->flags.accumulate;
        const float *source = j->frames[frame * c->options.stride_t + t];
        const hlv_onednn_argument arguments[] = {
            {DNNL_ARG_SRC, &k->x, gather_band(j, w, source, first, k->in_rows)},
            {DNNL_ARG_WEIGHTS, &layout->desc, layout->weights[t]},
            {DNNL_ARG_BIAS, &c->bias_desc, t == 0 ? c->bias : c->bias + c->out},
            {DNNL_ARG_DST, &k->y, y},
            {DNNL_ARG_SCRATCHPAD, &k->scratch[sum], w->scratch},
        };
        status = hlv_onednn_run(k->primitive[sum], c->engine, w->stream, arguments, 5);
    }
    return status;
}

static dnnl_status_t run_bands(const job *j, int64_t frames) {
    const plan *p = j->c->plan;
    int failed = dnnl_success;
#pragma omp parallel num_threads(hlv_context_threads(j->c->ctx)) reduction(max : failed)
    {
        char *own = p->memory + (size_t)omp_get_thread_num() * j->stride;
        worker w = {NULL, own, (float *)(void *)(own + j->gather_bytes), own + j->stride - round_up(p->scratch)};
        failed = (int)dnnl_stream_create(&w.stream, j->c->engine, dnnl_stream_default_flags);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < frames * p->bands; item++)
            if (failed == dnnl_success) failed = (int)run_band(j, &w, item / p->bands, item % p->bands);
        if (w.stream) dnnl_stream_destroy(w.stream);
    }
    return (dnnl_status_t)failed;
}

/* Sets the job's sizes and sees to it that the plan has memory for every thread. */
static hlv_status reserve(hlv_conv *c, job *j) {
    plan *p = c->plan;
    size_t row = (size_t)(p->width * c->in) * sizeof(float), most = 0;
    for (int i = 0; i < p->kinds; i++)
        most = (size_t)p->kind[i].in_rows > most ? (size_t)p->kind[i].in_rows : most;
    j->gather = c->bf16 || j->flags.upsample;
    j->gather_bytes = j->gather ? round_up(most * row) : 0;
    size_t row_bytes = c->bf16 && j->flags.upsample ? round_up(row) : 0;
    j->stride = j->gather_bytes + row_bytes + round_up(p->scratch) + 64;
    size_t bytes = j->stride * (size_t)hlv_context_threads(c->ctx);
    if (bytes <= p->memory_bytes) return HLV_OK;
    hlv_free(c->ctx, p->memory);
    p->memory_bytes = 0;
    if (!(p->memory = hlv_alloc(c->ctx, bytes))) return HLV_ERROR_MEMORY;
    p->memory_bytes = bytes;
    return HLV_OK;
}

hlv_status hlv_conv_run(const hlv_conv *conv, float *y, const float *const *frames, int64_t count, int64_t height,
                        int64_t width, hlv_conv_flags flags) {
    hlv_conv *c = (hlv_conv *)conv; /* the plan is a cache */
    const hlv_conv_options *o = &c->options;
    const int64_t times = flags.upsample ? 2 : 1;
    bool fits = count >= c->kt && height >= 1 && width >= 1 && height <= MAX_SIDE / times && width <= MAX_SIDE / times;
    fits = fits && height * times + o->pad_top + o->pad_bottom >= c->ky;
    fits = fits && width * times + o->pad_left + o->pad_right >= c->kx;
    if (!fits)
        return hlv_fail(c->ctx, HLV_ERROR_ARGUMENT,
                        "%s: a kernel of %lldx%lldx%lld does not fit %lld frames of %lldx%lld", c->name,
                        (long long)c->kt, (long long)c->ky, (long long)c->kx, (long long)count, (long long)height,
                        (long long)width);
    job j = {.c = c, .y = y, .frames = frames, .flags = flags};
    int saved = hlv_onednn_enter();
    hlv_status status = make_plan(c, height * times, width * times);
    if (status == HLV_OK) status = reserve(c, &j);
    if (status == HLV_OK) {
        dnnl_status_t ran = run_bands(&j, (count - c->kt) / o->stride_t + 1);
        if (ran != dnnl_success) status = hlv_onednn_fail(c->ctx, ran, c->name, "convolve");
    }
    hlv_onednn_leave(saved);
    return status;
}

hlv_status hlv_conv_forward(const hlv_conv *c, float *y, const float *x, int64_t frames, int64_t height,
                            int64_t width) {
    const float **each = frames > 0 ? malloc((size_t)frames * sizeof *each) : NULL;
    if (frames > 0 && !each) return hlv_fail(c->ctx, HLV_ERROR_MEMORY, "%s: out of memory", c->name);
    for (int64_t f = 0; f < frames; f++)
        each[f] = x + f * height * width * c->in;
    hlv_status status = hlv_conv_run(c, y, each, frames, height, width, (hlv_conv_flags){0});
    free(each);
    return status;
}
