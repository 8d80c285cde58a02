/* Values for AVX512-BF16, from one core of an AMD Zen 5, gcc 12: non-negative least squares of the relative error over
 * the best times of the state form in bfloat16 and of the quadratic form in AVX-512, which takes bfloat16 too, at H =
 * 4, T = 128 ... 2048, V = 64 and 128, ranks 2x8 ... 2x64, 8x32, 3x8, 3x10 and 256. Predicted over measured time: 0.93
 * to 1.07 in four of five. A multiply-add is half as long as that of AVX-512.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_avx512_bf16 = {
    .state_feature = 11,
    .state_odd_feature = 41,
    .state_token = 33,
    .quadratic_score = 7,
    .quadratic_token = 48,
    .quadratic_slowdown = 2,
};
