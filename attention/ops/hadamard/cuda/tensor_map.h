/* attention/ops/hadamard/cuda/tensor_map.h - descriptions of tensors for Hopper's copy engine. CUDA C++, host side. */
#ifndef HLA_OPS_HADAMARD_CUDA_TENSOR_MAP_H
#define HLA_OPS_HADAMARD_CUDA_TENSOR_MAP_H

#include "attention/cuda/cuda.h"

#include <cuda.h>

typedef struct hla_tensor_map_extent {
    int64_t x, h, t, b;
} hla_tensor_map_extent;

/* 16-bit numbers, copied in boxes of box_x numbers of box_t tokens of one head; coordinates are x, h, t, b, and what
 * lies outside reads as zero. Rows of a box, 16 to 128 bytes, are swizzled by their length. Returns a cudaError_t. */
int hla_tensor_map(CUtensorMap *map, const hla_cuda_view *view, const hla_tensor_map_extent *extent, bool half,
                   int box_x, int box_t);

/* The same of contiguous rows of `width` numbers; coordinates are x, row. */
int hla_rows_map(CUtensorMap *map, const void *data, int64_t width, int64_t rows, bool half, int box_x, int box_rows);

#endif
