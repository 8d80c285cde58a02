/* video/nn/norm.c - row-wise norms, residual sums and activations in place. A row is summed by one thread in one order.
 */
#include "video/nn/nn.h"
#include "video/nn/vector.h"

#include <math.h>

/* Rows a thread takes at a time: about 16 KB of input, so that small rows don't cost a call each. */
static int64_t rows_per_block(int64_t dim) {
    return dim >= 4096 ? 1 : (4096 + dim - 1) / (dim > 0 ? dim : 1);
}

HLV_INLINE float sum_squares(const float *x, int64_t dim) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < dim; i++)
        sum += x[i] * x[i];
    return sum;
}

/* y = ((x - mean) / sqrt(var + eps)) * (one + weight) + bias; weight and bias may be NULL; one is 0 or 1. */
HLV_VECTOR static void layer_norm_rows(float *y, const float *x, int64_t rows, int64_t dim, const float *weight,
                                       const float *bias, float one, float eps) {
    for (int64_t row = 0; row < rows; row++, x += dim, y += dim) {
        float sum = 0.0f, squares = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < dim; i++)
            sum += x[i];
        float mean = sum / (float)dim;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < dim; i++)
            squares += (x[i] - mean) * (x[i] - mean);
        float scale = 1.0f / sqrtf(squares / (float)dim + eps);
#pragma omp simd
        for (int64_t i = 0; i < dim; i++)
            y[i] = (x[i] - mean) * scale;
        if (weight) {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++)
                y[i] *= one + weight[i];
        }
        if (bias) {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++)
                y[i] += bias[i];
        }
    }
}

/* y = x * factor(row) * gamma, factor given by the sum of squares: rms or l2. */
typedef struct row_scale {
    const float *gamma; /* [dim] or NULL */
    float eps;          /* rms */
    float least, root;  /* l2: the least norm, sqrt(dim) */
    bool l2, silu;
} row_scale;

HLV_INLINE float row_factor(const row_scale *s, float squares, int64_t dim) {
    if (!s->l2) return 1.0f / sqrtf(squares / (float)dim + s->eps);
    float norm = sqrtf(squares);
    return s->root / (norm > s->least ? norm : s->least);
}

HLV_VECTOR static void scale_rows(float *y, const float *x, int64_t rows, int64_t dim, const row_scale *s) {
    const float *gamma = s->gamma;
    float *const first = y;
    for (int64_t row = 0; row < rows; row++, x += dim, y += dim) {
        const float factor = row_factor(s, sum_squares(x, dim), dim);
        if (gamma) {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++)
                y[i] = x[i] * factor * gamma[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++)
                y[i] = x[i] * factor;
        }
    }
    if (!s->silu) return;
        /* In a pass of its own over the block, still in the first cache: rows may be shorter than a vector. */
#pragma omp simd
    for (int64_t i = 0; i < rows * dim; i++)
        first[i] = hlv_silu(first[i]);
}

HLV_VECTOR static void residual_rows(float *x, const float *y, int64_t rows, int64_t dim, const float *gate) {
    for (int64_t row = 0; row < rows; row++, x += dim, y += dim) {
        if (gate) {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++)
                x[i] += gate[i] * y[i];
        } else {
#pragma omp simd
            for (int64_t i = 0; i < dim; i++)
                x[i] += y[i];
        }
    }
}

HLV_VECTOR static void act_silu(float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        x[i] = hlv_silu(x[i]);
}

HLV_VECTOR static void act_gelu_tanh(float *x, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        x[i] = hlv_gelu_tanh(x[i]);
}

void hlv_act_serial(float *x, int64_t count, hlv_act act) {
    if (act == HLV_ACT_SILU) act_silu(x, count);
    if (act == HLV_ACT_GELU_TANH) act_gelu_tanh(x, count);
}

static void layer_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *weight,
                       const float *bias, float one, float eps) {
    int64_t block = rows_per_block(dim);
#pragma omp parallel for num_threads(hlv_context_threads(ctx)) schedule(static)
    for (int64_t row = 0; row < rows; row += block)
        layer_norm_rows(y + row * dim, x + row * dim, rows - row < block ? rows - row : block, dim, weight, bias, one,
                        eps);
}

void hlv_layer_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *weight,
                    const float *bias, float eps) {
    layer_norm(ctx, y, x, rows, dim, weight, bias, 0.0f, eps);
}

void hlv_modulate(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *shift,
                  const float *scale, float eps) {
    layer_norm(ctx, y, x, rows, dim, scale, shift, 1.0f, eps);
}

static void scale_all(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const row_scale *s) {
    int64_t block = rows_per_block(dim);
#pragma omp parallel for num_threads(hlv_context_threads(ctx)) schedule(static)
    for (int64_t row = 0; row < rows; row += block)
        scale_rows(y + row * dim, x + row * dim, rows - row < block ? rows - row : block, dim, s);
}

void hlv_rms_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *gamma,
                  float eps) {
    row_scale s = {.gamma = gamma, .eps = eps};
    scale_all(ctx, y, x, rows, dim, &s);
}

void hlv_l2_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *gamma, bool silu) {
    row_scale s = {.gamma = gamma, .least = 1e-12f, .root = (float)sqrt((double)dim), .l2 = true, .silu = silu};
    scale_all(ctx, y, x, rows, dim, &s);
}

void hlv_residual(hlv_context *ctx, float *x, const float *y, int64_t rows, int64_t dim, const float *gate) {
    int64_t block = rows_per_block(dim);
#pragma omp parallel for num_threads(hlv_context_threads(ctx)) schedule(static)
    for (int64_t row = 0; row < rows; row += block)
        residual_rows(x + row * dim, y + row * dim, rows - row < block ? rows - row : block, dim, gate);
}

void hlv_act_inplace(hlv_context *ctx, float *x, int64_t count, hlv_act act) {
    const int64_t block = 4096;
#pragma omp parallel for num_threads(hlv_context_threads(ctx)) schedule(static)
    for (int64_t i = 0; i < count; i += block)
        hlv_act_serial(x + i, count - i < block ? count - i : block, act);
}
