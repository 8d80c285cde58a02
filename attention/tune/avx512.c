/* Values for AVX-512, from one core of an AMD Zen 5, gcc 12: non-negative least squares of the relative error over the
 * best times of both forms at H = 4, T = 128 ... 2048, V = 32 ... 128, ranks 2x8 ... 2x64, 8x32, 48x16, 3x8, 3x10 and
 * 256, bidirectional and causal. Predicted over measured time: 0.84 to 1.09 in four of five; the form chosen is at most
 * 8 % slower than the other, but for 48x16 at V = 32 (26 %).
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_avx512 = {
    .state_feature = 6,
    .state_odd_feature = 18,
    .state_token = 36,
    .quadratic_score = 5,
    .quadratic_token = 27,
    .quadratic_slowdown = 1.16,
};
