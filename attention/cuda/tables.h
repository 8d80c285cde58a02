/* attention/cuda/tables.h - the kernels of libhla_cuda, a table an operator (tables.c). */
#ifndef HLA_CUDA_TABLES_H
#define HLA_CUDA_TABLES_H

#include "attention/ops/feature_map/kernel.h"
#include "attention/ops/hadamard/kernel.h"
#include "attention/ops/softmax/kernel.h"

enum { HLA_CUDA_LEAST_CAPABILITY = 80 };

/* A cudaError_t: whether kernels of this build can be loaded on that GPU, which becomes the current one. */
int hla_cuda_kernels_run(int ordinal);

extern const struct hla_cuda_utilities hla_cuda_utilities_table;
extern const struct hla_stream_entry hla_cuda_stream_entry;
extern const hla_feature_map_entry hla_cuda_feature_map_float32, hla_cuda_feature_map_mma;

/* Each ends with NULL; in order of preference, the last that runs and takes the problem is best. */
extern const hla_hadamard_entry *const hla_cuda_hadamard_table[];
extern const hla_feature_map_entry *const hla_cuda_feature_map_table[];
extern const hla_softmax_entry *const hla_cuda_softmax_table[];

#endif
