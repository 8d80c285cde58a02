/* attention/ops/hadamard/cuda/stream.h - what the host code of a streaming state on a GPU hands to its kernels. C and
 * CUDA C++.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_STREAM_H
#define HLA_OPS_HADAMARD_CUDA_STREAM_H

#include "attention/cuda/cuda.h"
#include "hla/hadamard.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One call for few tokens: as hla_stream_call. A view whose data is NULL is not there. */
typedef struct hla_cuda_stream {
    int64_t batch, heads, kv_heads, value_dim, tokens;
    int64_t rank;         /* R */
    int64_t rows, ranges; /* a block of threads takes a range of that many rows of a pair (batch entry, key head) */
    uint32_t factor_rank[HLA_MAX_FACTORS];
    int factors, dtype; /* hla_dtype */
    bool normalised;
    float epsilon, scale;
    float *state; /* [B,Hkv,R,V+1] */
    hla_cuda_view out, v, q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS];
    unsigned *arrived; /* [B Hkv], zero between calls: ranges of a pair that are done */
    float *partial;    /* [B Hkv][ranges][tokens][heads / kv_heads][V+1] */
} hla_cuda_stream;

/* Each queues its work on the stream and returns a cudaError_t. */
int hla_cuda_stream_run(const hla_cuda_stream *call, void *stream);

/* to [batch][heads][size] times gamma [heads], which lies in host memory */
int hla_cuda_stream_scale(float *to, const float *gamma, int64_t batch, int64_t heads, int64_t size, void *stream);

/* to += from */
int hla_cuda_stream_add(float *to, const float *from, int64_t count, void *stream);

#ifdef __cplusplus
}
#endif
#endif
