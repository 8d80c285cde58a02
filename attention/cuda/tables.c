#include "attention/cuda/tables.h"

const hla_hadamard_entry *const hla_cuda_hadamard_table[] = {NULL};
const hla_feature_map_entry *const hla_cuda_feature_map_table[] = {NULL};
const hla_softmax_entry *const hla_cuda_softmax_table[] = {NULL};
