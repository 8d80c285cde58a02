/* Values for NVIDIA GPUs: products run at the same rate in both forms, features are made in registers beside them. */
#include "attention/tune/tune.h"

const hla_tune hla_tune_cuda = {
    .state_feature = 0,
    .state_token = 16,
    .quadratic_score = 4,
    .quadratic_token = 0,
    .quadratic_slowdown = 2,
};
