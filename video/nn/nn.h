/* video/nn/nn.h - layers: linear and convolution through oneDNN, norms and activations of our own. Activations are
 * float32, channels last. With HLA_BF16 the operands of matrix products and convolutions are bf16, sums stay float32.
 * Nothing here depends on the number of threads: work is cut into pieces of fixed size, each done by one thread. A
 * layer is run by one caller at a time, who spreads the work over the context's threads. */
#ifndef HLV_NN_H
#define HLV_NN_H

#include "video/weights/weights.h"

typedef enum hlv_act { HLV_ACT_NONE = 0, HLV_ACT_GELU_TANH = 1, HLV_ACT_SILU = 2 } hlv_act;

/* y[rows,out] = act(x[rows,in] W^T + b), W [out,in] row-major as PyTorch stores it. The layer keeps its own packed copy
 * of the weights. bias may be NULL. The weight may have more axes ([D,C,1,2,2]): all after the first count as `in`. */
typedef struct hlv_linear hlv_linear;
hlv_status hlv_linear_create(hlv_context *ctx, hla_dtype dtype, const hlv_weight *weight, const hlv_weight *bias,
                             hlv_act act, hlv_linear **linear);
/* ldx, ldy: floats between rows. x and y must not overlap. */
hlv_status hlv_linear_forward(const hlv_linear *linear, float *y, int64_t ldy, const float *x, int64_t ldx,
                              int64_t rows);
int64_t hlv_linear_in(const hlv_linear *linear);
int64_t hlv_linear_out(const hlv_linear *linear);
void hlv_linear_free(hlv_linear *linear);

/* Convolution over [frames, height, width, channels], W [O,I,kt,ky,kx] or [O,I,ky,kx]. No padding in time: the caller
 * puts the kt-1 frames of history in front (causal). Spatial zero padding and strides are given here. */
typedef struct hlv_conv hlv_conv;
typedef struct hlv_conv_options {
    int stride_t, stride_y, stride_x; /* 0 counts as 1 */
    int pad_top, pad_bottom, pad_left, pad_right;
} hlv_conv_options;
hlv_status hlv_conv_create(hlv_context *ctx, hla_dtype dtype, const hlv_weight *weight, const hlv_weight *bias,
                           const hlv_conv_options *options, hlv_conv **conv);
/* y [frames_out, height_out, width_out, O]; frames_out = (frames - kt) / stride_t + 1. */
hlv_status hlv_conv_forward(const hlv_conv *conv, float *y, const float *x, int64_t frames, int64_t height,
                            int64_t width);
/* The same over frames that lie apart, each [height, width, channels]. accumulate: y += instead of y =. upsample: the
 * convolution sees every pixel twice in both directions (nearest neighbour), height and width being those of the frames
 * given. */
typedef struct hlv_conv_flags {
    bool accumulate, upsample;
} hlv_conv_flags;
hlv_status hlv_conv_run(const hlv_conv *conv, float *y, const float *const *frames, int64_t count, int64_t height,
                        int64_t width, hlv_conv_flags flags);
int64_t hlv_conv_in(const hlv_conv *conv);
int64_t hlv_conv_out(const hlv_conv *conv);
void hlv_conv_free(hlv_conv *conv);

/* Row-wise, rows of `dim` floats; y may be x. threads come from ctx. gamma/weight/bias/scale/shift may be NULL.
 * layer_norm: ((x - mean) / sqrt(var + eps)) * weight + bias, biased variance.
 * modulate:   layer_norm without affine, then * (1 + scale) + shift, one scale and shift row for all rows.
 * rms_norm:   x / sqrt(mean(x^2) + eps) * gamma.
 * l2_norm:    x / max(||x||_2, 1e-12) * sqrt(dim) * gamma   (the VAE's), followed by SiLU if silu is true. */
void hlv_layer_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *weight,
                    const float *bias, float eps);
void hlv_modulate(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *shift,
                  const float *scale, float eps);
void hlv_rms_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *gamma, float eps);
void hlv_l2_norm(hlv_context *ctx, float *y, const float *x, int64_t rows, int64_t dim, const float *gamma, bool silu);
void hlv_act_inplace(hlv_context *ctx, float *x, int64_t count, hlv_act act);
void hlv_act_serial(float *x, int64_t count, hlv_act act); /* the same by the calling thread alone */
/* x[r] += gate * y[r], gate a row of dim floats or NULL for 1. */
void hlv_residual(hlv_context *ctx, float *x, const float *y, int64_t rows, int64_t dim, const float *gate);

#endif
