#include "attention/tune/tune.h"

const hla_tune hla_tune_avx2 = {
    .state_feature = 8,
    .state_token = 16,
    .quadratic_score = 4,
    .quadratic_token = 32,
    .quadratic_slowdown = 1.2,
};
