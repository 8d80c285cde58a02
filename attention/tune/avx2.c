/* Values for AVX2, from one core of an AMD Zen 5, gcc 12: non-negative least squares of the relative error over the
 * best times of both forms at H = 4, T = 128 ... 2048, V = 64 and 128, ranks 2x8 ... 2x64, 8x32, 3x8, 3x10 and 256,
 * bidirectional and causal. Predicted over measured time: 0.84 to 1.06 in four of five. Half the vector width of
 * AVX-512: all that is done beside the arithmetic weighs half as much.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_avx2 = {
    .state_feature = 2,
    .state_odd_feature = 6,
    .state_token = 20,
    .quadratic_score = 2,
    .quadratic_token = 14,
    .quadratic_slowdown = 1.2,
};
