/* Values for AVX-512, from one core of an AMD Zen 5, gcc 12: non-negative least squares over the best times of both
 * forms at T = 256 ... 2304, ranks 2x8 ... 2x64, 8x32, 64 and 256, V = 16 ... 128. Predicted over measured time: 0.8
 * to 1.1. The tile is fast enough for everything beside it to show: a feature costs as much as 45 multiply-adds, and
 * tiles of R_p = 8 ... 32 steps leave the quadratic form two thirds of the long tiles' speed.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_avx512 = {
    .state_feature = 45,
    .state_token = 20,
    .quadratic_score = 6,
    .quadratic_token = 12,
    .quadratic_slowdown = 1.5,
};
