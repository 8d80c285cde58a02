/* attention/ops/softmax/cuda/tiled.h - softmax attention on any NVIDIA GPU, for what no faster kernel takes: every
 * type, size and stride. What its host code tells the kernels; C and CUDA C++.
 */
#ifndef HLA_OPS_SOFTMAX_CUDA_TILED_H
#define HLA_OPS_SOFTMAX_CUDA_TILED_H

#include "attention/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hla_softmax_tiled {
    hla_cuda_view q, k, v, out; /* out: backward, its gradient d_out */
    hla_cuda_view dq, dk, dv;   /* backward */
    hla_dtype dtype;
    int64_t batch, heads, shared, queries, keys, dim, value_dim; /* shared: query heads of a key head */
    const int64_t *key_lengths;                                  /* [B] on the device, or NULL */
    const float *key_bias;                                       /* [Tk] or NULL */
    float *statistics; /* [B,H,Tq,2], backward: the logarithm of a row's sum of exponentials, and d_out . out */
    float scale;
    bool causal;
    int processors;
} hla_softmax_tiled;

/* Each returns a cudaError_t. */
int hla_softmax_tiled_forward(const hla_softmax_tiled *problem, void *stream);
int hla_softmax_tiled_backward(const hla_softmax_tiled *problem, void *stream);

#ifdef __cplusplus
}
#else
#include "attention/ops/softmax/kernel.h"
extern const hla_softmax_entry hla_softmax_tiled_cuda, hla_softmax_cudnn; /* the latter where cuDNN's headers are */
#endif
#endif
