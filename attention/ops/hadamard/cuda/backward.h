/* attention/ops/hadamard/cuda/backward.h - what the backward pass on Hopper has beside the parts in hopper.h. Host
 * side; C and CUDA C++.
 *
 * With g = d_out, w_i = 1 / (d_i + epsilon) and s_i = g_i . out_i, and S, z from the keys:
 *
 *     gradient, of queries    d_q_features; w and -w s of each query and head
 *     gram                    z of Ghat = sum_i (f1_a f2_b) (-w s)_i
 *     build (hopper.h)        Ghat = sum_i (f1_a f2_b) w_i g_i, its z given
 *     gradient, of keys       d_k_features from Ghat
 *     query (hopper.h)        dv from Ghat
 *
 * In float16, where S and z carry sigma, w is 1 / (sigma (d + epsilon)), so that w f1 is a number of ordinary size;
 * what is made of it is multiplied by sigma in the end.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_BACKWARD_H
#define HLA_OPS_HADAMARD_CUDA_BACKWARD_H

#include "attention/ops/hadamard/cuda/hopper.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Whose features have their gradients computed, from x = d_out (queries) or v (keys), with
 * P_a = sum_b f2_b (S x)_ab,  Q_b = sum_a f1_a (S x)_ab,  Z_a = sum_b f2_b z_ab,  Y_b = sum_a f1_a z_ab:
 *     QUERIES    w (P - s Z), w (Q - s Y);  1/w = sum_a f1_a Z_a + epsilon,  s = w sum_a f1_a P_a;  0 where 1/w is 0
 *     KEYS       scale (P + Z), scale (Q + Y)
 *     PLAIN      scale P, scale Q: both sides un-normalised */
typedef enum hla_gradient_mode { HLA_GRADIENT_QUERIES, HLA_GRADIENT_KEYS, HLA_GRADIENT_PLAIN } hla_gradient_mode;

typedef struct hla_gradient_call {
    hla_hopper_side side; /* features, x in rows; units are tiles */
    hla_cuda_view d1, d2; /* the features' gradients */
    int64_t states;
    const void *s, *z_split; /* as in hla_hopper_state */
    hla_gradient_mode mode;
    bool clear_after; /* rows of the T axis at and beyond a sequence's count become zero (batched sequences only) */
    float epsilon;    /* times sigma */
    float scale;
    float *weight, *moment; /* QUERIES: w and -w s, [B][heads][T] */
} hla_gradient_call;

int hla_gradient(const hla_hopper_shape *shape, const hla_gradient_call *call, void *stream);

/* z_ab = scale * sum_t c_t f1_a f2_b, or without c; f1 may be the product of two features, a = (a', a''). Rows of
 * features as in hla_hopper_addressable. */
typedef struct hla_gram_call {
    hla_cuda_view f1, f1_inner, f2;    /* [B,T,heads,rank]; f1_inner.data NULL: f1 alone */
    int64_t rank1, rank1_inner, rank2; /* multiples of 8; rank1_inner: 8 or 16, or 1 without f1_inner, rank1 then up to
                                          64; rank2: 8, 16, 32, 64 or 128 */
    int64_t tokens, heads, group;
    const hla_hopper_span *spans; /* as in hla_hopper_side, units are not looked at */
    int64_t sequences;
    const float *c; /* NULL, or [B][heads][T] */
    float scale;
    bool half;
    int processors;
    float *z;       /* [states][rank1 rank1_inner rank2] */
    float *partial; /* hla_gram_partial() floats */
} hla_gram_call;

int64_t hla_gram_parts(int64_t states, int64_t rank, int processors); /* that a state's tokens are divided into */
int64_t hla_gram_partial(int64_t states, int64_t rank, int processors);
int hla_gram(const hla_gram_call *call, void *stream);

#ifdef __cplusplus
}
#endif
#endif
