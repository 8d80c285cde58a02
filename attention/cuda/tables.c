#include "attention/cuda/tables.h"
#include "attention/ops/hadamard/cuda/general_call.h"
#include "attention/ops/hadamard/cuda/hopper_call.h"
#include "attention/ops/softmax/cuda/tiled.h"

const hla_hadamard_entry *const hla_cuda_hadamard_table[] = {
    &hla_cuda_hadamard_quadratic,
    &hla_cuda_hadamard_state,
    &hla_cuda_hadamard_quadratic_mma,
    &hla_cuda_hadamard_state_mma,
#if defined(HLA_CUDA_SM90)
    &hla_hadamard_state_sm90,
#endif
    NULL,
};
const hla_feature_map_entry *const hla_cuda_feature_map_table[] = {&hla_cuda_feature_map_float32,
                                                                   &hla_cuda_feature_map_mma, NULL};
const hla_softmax_entry *const hla_cuda_softmax_table[] = {
    &hla_softmax_tiled_cuda,
#if defined(HLA_CUDNN)
    &hla_softmax_cudnn,
#endif
    NULL,
};
