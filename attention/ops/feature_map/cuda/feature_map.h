/* attention/ops/feature_map/cuda/feature_map.h - what the host code of the feature maps on a GPU hands to its kernels.
 * C and CUDA C++.
 */
#ifndef HLA_OPS_FEATURE_MAP_CUDA_FEATURE_MAP_H
#define HLA_OPS_FEATURE_MAP_CUDA_FEATURE_MAP_H

#include "attention/cuda/cuda.h"
#include "hla/feature_map.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One call. A view whose data is NULL is not there. */
typedef struct hla_cuda_map {
    int64_t batch, heads, tokens;
    int dim, rank, dtype, activation; /* hla_dtype, hla_activation */
    bool is_query;
    float floor, shift;
    hla_cuda_view out, x, dx; /* backward: out is d_out */
    const float *weight, *bias, *hidden_weight, *hidden_bias, *rope;
    hla_feature_map_weight_gradients gradients;
    /* Backward: sums over tokens of one head's weight gradients [R][D], [R], [D][D], [D], size numbers in all, for each
     * of the chunks that a head's blocks of tokens are cut into: [2][heads][chunks][size], totals, and the run that is
     * being summed. */
    float *sums;
    int64_t chunks, size;
    int processors;
} hla_cuda_map;

/* Shared memory that every supported GPU gives a block of threads, in bytes. */
#define HLA_CUDA_MAP_SHARED (99 << 10)

/* Whether one token fits into shared memory, which is all that the kernels in float32 ask of a shape. */
bool hla_cuda_map_fits(int64_t dim, int64_t rank, bool backward);

/* Each queues the call's work on the stream and returns a cudaError_t. The first two take every call that fits. */
int hla_cuda_map_forward(const hla_cuda_map *map, void *stream);
int hla_cuda_map_backward(const hla_cuda_map *map, void *stream);

/* Last part of a backward pass: the wanted gradients of the weights from the totals of all chunks. */
int hla_cuda_map_finish_backward(const hla_cuda_map *map, void *stream);

/* Tensor cores: 16-bit x and out whose rows are contiguous and aligned, R and D multiples of 8, at most 128. */
bool hla_cuda_map_mma_takes(const hla_cuda_map *map);
int hla_cuda_map_mma_forward(const hla_cuda_map *map, void *stream);

/* The same of the gradients, without a hidden layer, R at most 64. */
bool hla_cuda_map_mma_takes_backward(const hla_cuda_map *map);
int hla_cuda_map_mma_backward(const hla_cuda_map *map, void *stream);

#ifdef __cplusplus
}
#endif
#endif
