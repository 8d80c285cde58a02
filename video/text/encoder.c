/* The UMT5 encoder: x = shared[ids]; each layer x += o(attention(R(x))), x += wo(gelu(wi_0 R(x)) * wi_1 R(x)); R(x) at
 * last. R is the RMS norm without mean. Source: Chung et al., "UniMax", arXiv 2304.09151, on T5 (Raffel et al., arXiv
 * 1910.10683): scores are q.k plus a learned bias of the bucket of the distance, not divided by sqrt(d); each layer has
 * its own biases. */
#include "video/text/text.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* One layer's weights as found in the checkpoint, and then as they are used. */
enum { MATRIX_Q, MATRIX_K, MATRIX_V, MATRIX_O, MATRIX_WI_0, MATRIX_WI_1, MATRIX_WO, MATRIX_COUNT };
enum { VECTOR_ATTENTION_NORM, VECTOR_FEED_NORM, VECTOR_BIAS, VECTOR_COUNT };

typedef struct layer {
    hlv_linear *matrices[MATRIX_COUNT];
    float *vectors[VECTOR_COUNT]; /* [d_model], [d_model], [buckets, heads] */
} layer;

struct hlv_text_encoder {
    hlv_context *ctx;
    hlv_text_config config;
    hlv_weights *weights;        /* stays open: embedding rows are read straight from the file */
    const hlv_weight *embedding; /* [vocab_size, d_model] */
    layer *layers;               /* num_layers */
    float *final_norm;           /* [d_model] */
};

typedef struct layer_weights {
    const hlv_weight *matrices[MATRIX_COUNT], *vectors[VECTOR_COUNT];
} layer_weights;

static void find_layer(hlv_loader *loader, const hlv_text_config *c, int n, layer_weights *found) {
    const int64_t D = c->d_model, F = c->d_ff, inner = (int64_t)c->num_heads * c->d_kv;
    const struct {
        const char *name;
        int64_t shape[2];
    } matrices[MATRIX_COUNT] = {
        [MATRIX_Q] = {"layer.0.SelfAttention.q", {inner, D}},
        [MATRIX_K] = {"layer.0.SelfAttention.k", {inner, D}},
        [MATRIX_V] = {"layer.0.SelfAttention.v", {inner, D}},
        [MATRIX_O] = {"layer.0.SelfAttention.o", {D, inner}},
        [MATRIX_WI_0] = {"layer.1.DenseReluDense.wi_0", {F, D}},
        [MATRIX_WI_1] = {"layer.1.DenseReluDense.wi_1", {F, D}},
        [MATRIX_WO] = {"layer.1.DenseReluDense.wo", {D, F}},
    };
    for (int m = 0; m < MATRIX_COUNT; m++)
        found->matrices[m] =
            hlv_loader_get(loader, 2, matrices[m].shape, "encoder.block.%d.%s.weight", n, matrices[m].name);
    const int64_t bias[] = {c->relative_attention_num_buckets, c->num_heads};
    found->vectors[VECTOR_ATTENTION_NORM] =
        hlv_loader_get(loader, 1, &D, "encoder.block.%d.layer.0.layer_norm.weight", n);
    found->vectors[VECTOR_FEED_NORM] = hlv_loader_get(loader, 1, &D, "encoder.block.%d.layer.1.layer_norm.weight", n);
    found->vectors[VECTOR_BIAS] =
        hlv_loader_get(loader, 2, bias, "encoder.block.%d.layer.0.SelfAttention.relative_attention_bias.weight", n);
}

static hlv_status make_layer(hlv_context *ctx, hla_dtype dtype, const layer_weights *found, layer *out) {
    for (int m = 0; m < MATRIX_COUNT; m++) {
        hlv_act act = m == MATRIX_WI_0 ? HLV_ACT_GELU_TANH : HLV_ACT_NONE;
        hlv_status status = hlv_linear_create(ctx, dtype, found->matrices[m], NULL, act, &out->matrices[m]);
        if (status != HLV_OK) return status;
    }
    for (int v = 0; v < VECTOR_COUNT; v++) {
        out->vectors[v] = hlv_weight_load_f32(ctx, found->vectors[v]);
        if (!out->vectors[v]) return HLV_ERROR_MEMORY;
    }
    return HLV_OK;
}

/* Finds all tensors first, so that every missing one is named, then makes the layers. */
static hlv_status load(hlv_text_encoder *encoder, hla_dtype dtype) {
    hlv_context *ctx = encoder->ctx;
    const hlv_text_config *c = &encoder->config;
    const int64_t embedding[] = {c->vocab_size, c->d_model}, D = c->d_model;
    hlv_loader *loader = NULL;
    layer_weights *found = calloc((size_t)c->num_layers + 1, sizeof *found);
    encoder->layers = calloc((size_t)c->num_layers + 1, sizeof *encoder->layers);
    hlv_status status = HLV_OK;
    if (!found || !encoder->layers) status = hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory for %d layers", c->num_layers);
    if (status == HLV_OK) status = hlv_loader_create(ctx, encoder->weights, NULL, &loader);
    if (status == HLV_OK) {
        bool renamed =
            !hlv_loader_has(loader, "shared.weight") && hlv_loader_has(loader, "encoder.embed_tokens.weight");
        encoder->embedding =
            hlv_loader_get(loader, 2, embedding, "%s", renamed ? "encoder.embed_tokens.weight" : "shared.weight");
        const hlv_weight *norm = hlv_loader_get(loader, 1, &D, "encoder.final_layer_norm.weight");
        for (int n = 0; n < c->num_layers; n++)
            find_layer(loader, c, n, &found[n]);
        status = hlv_loader_finish(loader);
        if (status == HLV_OK) {
            encoder->final_norm = hlv_weight_load_f32(ctx, norm);
            if (!encoder->final_norm) status = HLV_ERROR_MEMORY;
        }
    }
    for (int n = 0; n < c->num_layers && status == HLV_OK; n++) {
        hlv_progress(ctx, "load", n, c->num_layers);
        if (hlv_cancelled(ctx))
            status = hlv_fail(ctx, HLV_ERROR_CANCELLED, "cancelled while the text encoder was loading");
        else
            status = make_layer(ctx, dtype, &found[n], &encoder->layers[n]);
    }
    if (status == HLV_OK) hlv_progress(ctx, "load", c->num_layers, c->num_layers);
    free(found);
    return status;
}

hlv_status hlv_text_encoder_open(hlv_context *ctx, const char *encoder_dir, hla_dtype dtype,
                                 hlv_text_encoder **encoder) {
    *encoder = calloc(1, sizeof **encoder);
    if (!*encoder) return hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory for the text encoder");
    (*encoder)->ctx = ctx;
    hlv_status status = hlv_text_config_read(ctx, encoder_dir, &(*encoder)->config);
    if (status == HLV_OK) status = hlv_weights_open(ctx, encoder_dir, &(*encoder)->weights);
    if (status == HLV_OK) status = load(*encoder, dtype);
    if (status != HLV_OK) {
        hlv_text_encoder_free(*encoder);
        *encoder = NULL;
    }
    return status;
}

void hlv_text_encoder_free(hlv_text_encoder *encoder) {
    if (!encoder) return;
    for (int n = 0; encoder->layers && n < encoder->config.num_layers; n++) {
        for (int m = 0; m < MATRIX_COUNT; m++)
            hlv_linear_free(encoder->layers[n].matrices[m]);
        for (int v = 0; v < VECTOR_COUNT; v++)
            hlv_free(encoder->ctx, encoder->layers[n].vectors[v]);
    }
    free(encoder->layers);
    hlv_free(encoder->ctx, encoder->final_norm);
    hlv_weights_free(encoder->weights);
    free(encoder);
}

const hlv_text_config *hlv_text_encoder_config(const hlv_text_encoder *encoder) {
    return &encoder->config;
}

/* The bucket of a key `distance` tokens after the query. Of the buckets of each direction half are for one distance
 * each, half grow logarithmically up to max_distance; in float32, as the reference computes them. */
static int bucket_of(const hlv_text_config *c, int64_t distance) {
    int side = c->relative_attention_num_buckets / 2, exact = side / 2;
    int first = distance > 0 ? side : 0;
    int64_t far = distance < 0 ? -distance : distance;
    if (far < exact) return first + (int)far;
    float ratio = logf((float)far / (float)exact) / (float)log((double)c->relative_attention_max_distance / exact);
    int bucket = exact + (int)(ratio * (float)(side - exact));
    return first + (bucket < side - 1 ? bucket : side - 1);
}

/* What one text needs while it runs through the layers; L = count tokens, I = heads * d_kv. */
typedef struct scratch {
    float *y;         /* [L, d_model] normed input, or a layer's output */
    float *q, *k, *v; /* [L, I] */
    float *k_t;       /* [I, L] */
    float *mixed;     /* [L, I] */
    float *gate, *up; /* [L, d_ff] */
    float *scores;    /* [threads, L] */
    int *buckets;     /* [2L - 1], of the distances -(L-1) to L-1 */
} scratch;

static hlv_status make_scratch(hlv_context *ctx, const hlv_text_config *c, int64_t L, scratch *s) {
    int64_t inner = (int64_t)c->num_heads * c->d_kv;
    const struct {
        float **out;
        int64_t width;
    } wanted[] = {{&s->y, c->d_model}, {&s->q, inner},    {&s->k, inner},
                  {&s->v, inner},      {&s->k_t, inner},  {&s->mixed, inner},
                  {&s->gate, c->d_ff}, {&s->up, c->d_ff}, {&s->scores, hlv_context_threads(ctx)}};
    *s = (scratch){0};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].out = wanted[i].width <= INT64_MAX / L ? hlv_alloc_floats(ctx, wanted[i].width * L) : NULL;
        if (!*wanted[i].out) return HLV_ERROR_MEMORY;
    }
    s->buckets = hlv_alloc(ctx, (size_t)(2 * L - 1) * sizeof *s->buckets);
    if (!s->buckets) return HLV_ERROR_MEMORY;
    for (int64_t i = 0; i < 2 * L - 1; i++)
        s->buckets[i] = bucket_of(c, i - (L - 1));
    return HLV_OK;
}

static void free_scratch(hlv_context *ctx, scratch *s) {
    float *const all[] = {s->y, s->q, s->k, s->v, s->k_t, s->mixed, s->gate, s->up, s->scores};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        hlv_free(ctx, all[i]);
    hlv_free(ctx, s->buckets);
}

/* scores [L] in place to probabilities. */
static void softmax(float *scores, int64_t L) {
    float most = -INFINITY, sum = 0;
    for (int64_t j = 0; j < L; j++)
        most = fmaxf(most, scores[j]);
    for (int64_t j = 0; j < L; j++) {
        scores[j] = expf(scores[j] - most);
        sum += scores[j];
    }
    for (int64_t j = 0; j < L; j++)
        scores[j] /= sum;
}

/* One query of one head: out [d_kv] from q [d_kv], the head's keys k_t [d_kv, L] and values v (rows of `inner`), and
 * bias, which points at the head's column of the table, rows of `heads`. */
static void attend(float *out, const float *q, const float *k_t, const float *v, const float *bias, const int *buckets,
                   float *scores, const hlv_text_config *c, int64_t L) {
    const int64_t inner = (int64_t)c->num_heads * c->d_kv;
    for (int64_t j = 0; j < L; j++)
        scores[j] = bias[(int64_t)buckets[j] * c->num_heads];
    for (int64_t d = 0; d < c->d_kv; d++)
        for (int64_t j = 0; j < L; j++)
            scores[j] += q[d] * k_t[d * L + j];
    softmax(scores, L);
    memset(out, 0, (size_t)c->d_kv * sizeof *out);
    for (int64_t j = 0; j < L; j++)
        for (int64_t d = 0; d < c->d_kv; d++)
            out[d] += scores[j] * v[j * inner + d];
}

/* mixed [L, I]: all heads. Each query of each head is one thread's, so that the result does not depend on their number.
 */
static void attention(const hlv_text_encoder *encoder, const layer *l, const scratch *s, int64_t L) {
    const hlv_text_config *c = &encoder->config;
    const int64_t H = c->num_heads, D = c->d_kv, inner = H * D;
#pragma omp parallel for num_threads(hlv_context_threads(encoder->ctx)) schedule(static)
    for (int64_t d = 0; d < inner; d++)
        for (int64_t j = 0; j < L; j++)
            s->k_t[d * L + j] = s->k[j * inner + d];
#pragma omp parallel for num_threads(hlv_context_threads(encoder->ctx)) schedule(static)
    for (int64_t n = 0; n < H * L; n++) {
        int64_t h = n / L, i = n % L;
        attend(s->mixed + i * inner + h * D, s->q + i * inner + h * D, s->k_t + h * D * L, s->v + h * D,
               l->vectors[VECTOR_BIAS] + h, s->buckets + (L - 1 - i), s->scores + omp_get_thread_num() * L, c, L);
    }
}

static hlv_status self_attention(const hlv_text_encoder *encoder, const layer *l, float *x, const scratch *s,
                                 int64_t L) {
    const hlv_text_config *c = &encoder->config;
    const int64_t inner = (int64_t)c->num_heads * c->d_kv, D = c->d_model;
    float *const parts[] = {s->q, s->k, s->v};
    hlv_rms_norm(encoder->ctx, s->y, x, L, D, l->vectors[VECTOR_ATTENTION_NORM], (float)c->layer_norm_epsilon);
    for (int m = MATRIX_Q; m <= MATRIX_V; m++) {
        hlv_status status = hlv_linear_forward(l->matrices[m], parts[m], inner, s->y, D, L);
        if (status != HLV_OK) return status;
    }
    attention(encoder, l, s, L);
    hlv_status status = hlv_linear_forward(l->matrices[MATRIX_O], s->y, D, s->mixed, inner, L);
    if (status == HLV_OK) hlv_residual(encoder->ctx, x, s->y, L, D, NULL);
    return status;
}

static hlv_status feed_forward(const hlv_text_encoder *encoder, const layer *l, float *x, const scratch *s, int64_t L) {
    const hlv_text_config *c = &encoder->config;
    const int64_t F = c->d_ff, D = c->d_model;
    hlv_rms_norm(encoder->ctx, s->y, x, L, D, l->vectors[VECTOR_FEED_NORM], (float)c->layer_norm_epsilon);
    hlv_status status = hlv_linear_forward(l->matrices[MATRIX_WI_0], s->gate, F, s->y, D, L);
    if (status == HLV_OK) status = hlv_linear_forward(l->matrices[MATRIX_WI_1], s->up, F, s->y, D, L);
    if (status != HLV_OK) return status;
#pragma omp parallel for num_threads(hlv_context_threads(encoder->ctx)) schedule(static)
    for (int64_t i = 0; i < L * F; i++)
        s->gate[i] *= s->up[i];
    status = hlv_linear_forward(l->matrices[MATRIX_WO], s->y, D, s->gate, F, L);
    if (status == HLV_OK) hlv_residual(encoder->ctx, x, s->y, L, D, NULL);
    return status;
}

/* x [count, d_model]: the rows of the embedding, converted from wherever they lie in the mapped file. */
static void embed(const hlv_text_encoder *encoder, float *x, const int32_t *ids, int count) {
    const int64_t D = encoder->config.d_model;
    for (int i = 0; i < count; i++) {
        hlv_weight row = *encoder->embedding;
        row.ndim = 1;
        row.shape[0] = row.count = D;
        row.data = (const char *)row.data + (size_t)ids[i] * (size_t)D * hla_dtype_size(row.dtype);
        hlv_weight_to_f32(&row, x + i * D);
    }
}

hlv_status hlv_text_encoder_forward(const hlv_text_encoder *encoder, float *out, const int32_t *ids, int count) {
    hlv_context *ctx = encoder->ctx;
    const hlv_text_config *c = &encoder->config;
    if (!out || !ids || count < 1)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the text encoder needs at least one token; there are %d", count);
    for (int i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= c->vocab_size)
            return hlv_fail(
                ctx, HLV_ERROR_ARGUMENT,
                "token %d has the id %d, and the text encoder's vocab_size is %d: tokenizer and text encoder "
                "do not belong together",
                i, ids[i], c->vocab_size);
    scratch s;
    hlv_status status = make_scratch(ctx, c, count, &s);
    if (status == HLV_OK) embed(encoder, out, ids, count);
    for (int n = 0; n < c->num_layers && status == HLV_OK; n++) {
        if (hlv_cancelled(ctx)) status = hlv_fail(ctx, HLV_ERROR_CANCELLED, "cancelled while the prompt was encoded");
        if (status == HLV_OK) status = self_attention(encoder, &encoder->layers[n], out, &s, count);
        if (status == HLV_OK) status = feed_forward(encoder, &encoder->layers[n], out, &s, count);
    }
    if (status == HLV_OK)
        hlv_rms_norm(ctx, out, out, count, c->d_model, encoder->final_norm, (float)c->layer_norm_epsilon);
    free_scratch(ctx, &s);
    return status;
}
