/* video/nn/linear.c - y = act(x W^T + b) through oneDNN's matrix product.
 *
 * Rows are cut into blocks of 128, the rest into blocks of 32, 8 and 1; columns into panels of 512. One block times one
 * panel is one single-threaded matrix product with dense operands, which is what oneDNN's fastest kernels want; the cut
 * does not depend on the number of threads, so neither does the result. */
#include "video/nn/onednn.h"

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#define PANEL 512
static const int64_t block_rows[] = {128, 32, 8, 1};
#define BLOCK_SIZES ((int)(sizeof block_rows / sizeof block_rows[0]))

/* One matrix product: block_rows[i] rows by a panel's columns. */
typedef struct product {
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t x, weight, bias, y, scratch;
} product;

struct hlv_linear {
    hlv_context *ctx;
    char *name;
    int64_t in, out, panels;
    hlv_act act;
    bool bf16;     /* operands are bf16 */
    bool emulated; /* ... but the machine has no bf16 products: float32 products of operands rounded to bf16 */
    dnnl_engine_t engine;
    product products[2][BLOCK_SIZES]; /* [whole panel, last panel][block size] */
    void **weights;                   /* panels packed for the products */
    float *bias;                      /* [out] or NULL */
    size_t scratch;                   /* most bytes that a product asks for */
};

static int64_t panel_columns(const hlv_linear *l, int64_t panel) {
    return panel + 1 < l->panels ? PANEL : l->out - PANEL * (l->panels - 1);
}

/* Which of products[] serves a panel: a layer of one panel has only "last". */
static int panel_kind(const hlv_linear *l, int64_t panel) {
    return panel + 1 < l->panels ? 0 : 1;
}

/* Makes products[kind][size]; the first size made for a kind lets oneDNN choose the layout of the weights, the others
 * keep it. */
static dnnl_status_t make_product(hlv_linear *l, int kind, int size, int64_t columns, dnnl_data_type_t type) {
    product *p = &l->products[kind][size];
    const dnnl_dims_t x = {block_rows[size], l->in}, w = {l->in, columns}, y = {block_rows[size], columns};
    const dnnl_dims_t b = {1, columns};
    dnnl_memory_desc_t weight;
    dnnl_matmul_desc_t operation;
    dnnl_status_t status = dnnl_memory_desc_init_by_tag(&p->x, 2, x, type, dnnl_ab);
    if (status == dnnl_success) status = dnnl_memory_desc_init_by_tag(&p->y, 2, y, dnnl_f32, dnnl_ab);
    if (status == dnnl_success) status = dnnl_memory_desc_init_by_tag(&p->bias, 2, b, dnnl_f32, dnnl_ab);
    if (status == dnnl_success) status = dnnl_memory_desc_init_by_tag(&weight, 2, w, type, dnnl_format_tag_any);
    if (status == dnnl_success && size > 0) weight = l->products[kind][0].weight;
    if (status == dnnl_success)
        status = dnnl_matmul_desc_init(&operation, &p->x, &weight, l->bias ? &p->bias : NULL, &p->y);
    if (status == dnnl_success) status = hlv_onednn_describe(&p->pd, &operation, l->engine, false);
    if (status == dnnl_success) status = hlv_onednn_create(&p->primitive, p->pd);
    if (status != dnnl_success) return status;
    p->weight = *dnnl_primitive_desc_query_md(p->pd, dnnl_query_weights_md, 0);
    p->scratch = *dnnl_primitive_desc_query_md(p->pd, dnnl_query_scratchpad_md, 0);
    size_t scratch = dnnl_memory_desc_get_size(&p->scratch);
    l->scratch = scratch > l->scratch ? scratch : l->scratch;
    return dnnl_success;
}

static void drop_products(hlv_linear *l) {
    for (int kind = 0; kind < 2; kind++)
        for (int size = 0; size < BLOCK_SIZES; size++) {
            product *p = &l->products[kind][size];
            if (p->primitive) dnnl_primitive_destroy(p->primitive);
            if (p->pd) dnnl_primitive_desc_destroy(p->pd);
        }
    memset(l->products, 0, sizeof l->products);
    l->scratch = 0;
}

static dnnl_status_t make_products(hlv_linear *l, dnnl_data_type_t type) {
    dnnl_status_t status = dnnl_success;
    for (int kind = l->panels > 1 ? 0 : 1; kind < 2 && status == dnnl_success; kind++)
        for (int size = 0; size < BLOCK_SIZES && status == dnnl_success; size++)
            status = make_product(l, kind, size, kind == 0 ? PANEL : panel_columns(l, l->panels - 1), type);
    if (status != dnnl_success) drop_products(l);
    return status;
}

/* bf16 products where the machine has them, else float32 ones, which is said in the log. */
static hlv_status choose_products(hlv_linear *l) {
    dnnl_status_t status = dnnl_unimplemented;
    if (l->bf16) status = make_products(l, dnnl_bf16);
    l->emulated = l->bf16 && status == dnnl_unimplemented;
    if (l->emulated)
        hlv_log(l->ctx, HLV_LOG_DEBUG,
                "%s: no bf16 matrix product on this machine; operands are rounded to bf16 and multiplied in float32",
                l->name);
    if (!l->bf16 || l->emulated) status = make_products(l, dnnl_f32);
    if (status == dnnl_success) return HLV_OK;
    return hlv_onednn_fail(l->ctx, status, l->name, "prepare a matrix product");
}

static hlv_status pack_weights(hlv_linear *l, float *w) {
    if (l->emulated) hlv_bf16_round(w, w, l->in * l->out);
    for (int64_t panel = 0; panel < l->panels; panel++) {
        const dnnl_dims_t dims = {l->in, panel_columns(l, panel)}, strides = {1, l->in};
        dnnl_memory_desc_t plain;
        dnnl_status_t made = dnnl_memory_desc_init_by_strides(&plain, 2, dims, dnnl_f32, strides);
        if (made != dnnl_success) return hlv_onednn_fail(l->ctx, made, l->name, "describe the weights");
        const dnnl_memory_desc_t *to = &l->products[panel_kind(l, panel)][0].weight;
        hlv_status status =
            hlv_onednn_pack(l->ctx, l->engine, &plain, w + panel * PANEL * l->in, to, l->name, &l->weights[panel]);
        if (status != HLV_OK) return status;
    }
    return HLV_OK;
}

/* Everything that needs the layer's sizes; the caller frees the layer on failure. */
static hlv_status fill(hlv_linear *l, const hlv_weight *weight, const hlv_weight *bias) {
    l->weights = calloc((size_t)l->panels, sizeof *l->weights);
    if (!l->weights) return hlv_fail(l->ctx, HLV_ERROR_MEMORY, "%s: out of memory", l->name);
    if (bias && !(l->bias = hlv_weight_load_f32(l->ctx, bias))) return HLV_ERROR_MEMORY;
    dnnl_status_t made = dnnl_engine_create(&l->engine, dnnl_cpu, 0);
    if (made != dnnl_success) return hlv_onednn_fail(l->ctx, made, l->name, "open the processor");
    hlv_status status = choose_products(l);
    if (status != HLV_OK) return status;
    float *plain = hlv_weight_load_f32(l->ctx, weight);
    if (!plain) return HLV_ERROR_MEMORY;
    status = pack_weights(l, plain);
    hlv_free(l->ctx, plain);
    return status;
}

hlv_status hlv_linear_create(hlv_context *ctx, hla_dtype dtype, const hlv_weight *weight, const hlv_weight *bias,
                             hlv_act act, hlv_linear **linear) {
    *linear = NULL;
    if (!weight) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "a linear layer was made without a weight");
    if (dtype != HLA_F32 && dtype != HLA_BF16)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: matrix products are in f32 or bf16, not dtype %d", weight->name,
                        dtype);
    if (weight->ndim < 2 || weight->shape[0] < 1 || weight->count < 1)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: the weight of a linear layer has at least two axes, none empty",
                        weight->name);
    if (bias && bias->count != weight->shape[0])
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: %lld values for the %lld outputs of %s", bias->name,
                        (long long)bias->count, (long long)weight->shape[0], weight->name);
    hlv_linear *l = calloc(1, sizeof *l);
    if (!l || !(l->name = strdup(weight->name))) {
        free(l);
        return hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: out of memory", weight->name);
    }
    l->ctx = ctx;
    l->act = act;
    l->bf16 = dtype == HLA_BF16;
    l->out = weight->shape[0];
    l->in = weight->count / l->out;
    l->panels = (l->out + PANEL - 1) / PANEL;
    int saved = hlv_onednn_enter();
    hlv_status status = fill(l, weight, bias);
    hlv_onednn_leave(saved);
    if (status != HLV_OK) {
        hlv_linear_free(l);
        return status;
    }
    *linear = l;
    return HLV_OK;
}

void hlv_linear_free(hlv_linear *l) {
    if (!l) return;
    drop_products(l);
    for (int64_t panel = 0; l->weights && panel < l->panels; panel++)
        hlv_free(l->ctx, l->weights[panel]);
    free(l->weights);
    hlv_free(l->ctx, l->bias);
    if (l->engine) dnnl_engine_destroy(l->engine);
    free(l->name);
    free(l);
}

int64_t hlv_linear_in(const hlv_linear *l) {
    return l->in;
}

int64_t hlv_linear_out(const hlv_linear *l) {
    return l->out;
}

/* How `rows` rows are cut: count[i] blocks of block_rows[i]. */
typedef struct cut {
    int64_t count[BLOCK_SIZES], blocks;
} cut;

static cut cut_rows(int64_t rows) {
    cut c = {.blocks = 0};
    for (int size = 0; size < BLOCK_SIZES; size++) {
        c.count[size] = rows / block_rows[size];
        rows %= block_rows[size];
        c.blocks += c.count[size];
    }
    return c;
}

/* First row and size of a block. */
static int64_t block_start(const cut *c, int64_t block, int *size) {
    int64_t row = 0;
    for (*size = 0; *size < BLOCK_SIZES - 1 && block >= c->count[*size]; ++*size) {
        block -= c->count[*size];
        row += c->count[*size] * block_rows[*size];
    }
    return row + block * block_rows[*size];
}

/* What one call works on, and one thread's part of it. */
typedef struct job {
    const hlv_linear *l;
    float *y;
    const float *x;
    int64_t ldy, ldx;
    bool gather; /* x is copied or converted into x_block */
    bool direct; /* products go straight to y */
} job;

typedef struct worker {
    dnnl_stream_t stream;
    void *x_block;  /* [128, in], of the products' type */
    float *y_block; /* [128, 512] */
    void *scratch;
    int64_t gathered; /* the first row in x_block, -1 for none */
} worker;

static void gather_rows(const job *j, worker *w, int64_t row, int64_t rows) {
    const hlv_linear *l = j->l;
    for (int64_t r = 0; r < rows; r++) {
        const float *x = j->x + (row + r) * j->ldx;
        if (!l->bf16)
            memcpy((float *)w->x_block + r * l->in, x, (size_t)l->in * sizeof *x);
        else if (l->emulated)
            hlv_bf16_round((float *)w->x_block + r * l->in, x, l->in);
        else
            hlv_bf16_from_f32((uint16_t *)w->x_block + r * l->in, x, l->in);
    }
    w->gathered = row;
}

/* One block of rows times one panel of columns. */
static dnnl_status_t run_item(const job *j, worker *w, int64_t row, int size, int64_t panel) {
    const hlv_linear *l = j->l;
    const product *p = &l->products[panel_kind(l, panel)][size];
    const int64_t rows = block_rows[size], columns = panel_columns(l, panel), column = panel * PANEL;
    if (j->gather && w->gathered != row) gather_rows(j, w, row, rows);
    float *y = j->y + row * j->ldy + column;
    const hlv_onednn_argument arguments[] = {
        {DNNL_ARG_SRC, &p->x, j->gather ? w->x_block : j->x + row * j->ldx},
        {DNNL_ARG_WEIGHTS, &p->weight, l->weights[panel]},
        {DNNL_ARG_BIAS, l->bias ? &p->bias : NULL, l->bias ? l->bias + column : NULL},
        {DNNL_ARG_DST, &p->y, j->direct ? y : w->y_block},
        {DNNL_ARG_SCRATCHPAD, &p->scratch, w->scratch},
    };
    dnnl_status_t status = hlv_onednn_run(p->primitive, l->engine, w->stream, arguments, 5);
    if (status != dnnl_success) return status;
    if (j->direct) {
        hlv_act_serial(y, rows * columns, l->act);
        return status;
    }
    hlv_act_serial(w->y_block, rows * columns, l->act);
    for (int64_t r = 0; r < rows; r++)
        memcpy(y + r * j->ldy, w->y_block + r * columns, (size_t)columns * sizeof *y);
    return status;
}

/* Every block and panel, dealt out to the threads: a block's panels together, so that its rows are gathered once,
 * unless that would leave threads without work. */
static dnnl_status_t run_items(const job *j, int64_t rows, char *memory, size_t x_bytes, size_t y_bytes,
                               size_t stride) {
    const cut c = cut_rows(rows);
    const int threads = hlv_context_threads(j->l->ctx);
    const int64_t together = c.blocks >= 4 * threads ? j->l->panels : 1; /* panels an item */
    const int64_t items = j->l->panels / together;                       /* a block */
    int failed = dnnl_success;
#pragma omp parallel num_threads(threads) reduction(max : failed)
    {
        char *own = memory + (size_t)omp_get_thread_num() * stride;
        worker w = {NULL, own, (float *)(void *)(own + x_bytes), own + x_bytes + y_bytes, -1};
        failed = (int)dnnl_stream_create(&w.stream, j->l->engine, dnnl_stream_default_flags);
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < c.blocks * items; item++) {
            int size = 0;
            const int64_t row = block_start(&c, item / items, &size), first = item % items * together;
            for (int64_t panel = first; panel < first + together && failed == dnnl_success; panel++)
                failed = (int)run_item(j, &w, row, size, panel);
        }
        if (w.stream) dnnl_stream_destroy(w.stream);
    }
    return (dnnl_status_t)failed;
}

static size_t round_up(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

hlv_status hlv_linear_forward(const hlv_linear *l, float *y, int64_t ldy, const float *x, int64_t ldx, int64_t rows) {
    if (rows < 0 || ldx < l->in || ldy < l->out)
        return hlv_fail(l->ctx, HLV_ERROR_ARGUMENT,
                        "%s: %lld rows, %lld floats apart in and %lld out, for %lld inputs and %lld outputs", l->name,
                        (long long)rows, (long long)ldx, (long long)ldy, (long long)l->in, (long long)l->out);
    if (rows == 0) return HLV_OK;
    const job j = {l, y, x, ldy, ldx, .gather = l->bf16 || ldx != l->in, .direct = l->panels == 1 && ldy == l->out};
    const size_t block = (size_t)(rows < block_rows[0] ? rows : block_rows[0]);
    const size_t x_size = l->bf16 && !l->emulated ? sizeof(uint16_t) : sizeof(float);
    const size_t x_bytes = j.gather ? round_up(block * (size_t)l->in * x_size) : 0;
    const size_t y_bytes = j.direct ? 0 : round_up(block * PANEL * sizeof(float));
    const size_t stride = x_bytes + y_bytes + round_up(l->scratch) + 64;
    char *memory = hlv_alloc(l->ctx, stride * (size_t)hlv_context_threads(l->ctx));
    if (!memory) return HLV_ERROR_MEMORY;
    int saved = hlv_onednn_enter();
    dnnl_status_t status = run_items(&j, rows, memory, x_bytes, y_bytes, stride);
    hlv_onednn_leave(saved);
    hlv_free(l->ctx, memory);
    return status == dnnl_success ? HLV_OK : hlv_onednn_fail(l->ctx, status, l->name, "multiply");
}
