/* Values for baseline (SSE2), from one core of an AMD Zen 5, gcc 12: non-negative least squares of the relative error
 * over the best times of both forms at H = 4, T = 128 ... 2048, V = 64 and 128, ranks 2x8 ... 2x64, 8x32, 3x8, 3x10 and
 * 256, bidirectional and causal. Predicted over measured time: 0.84 to 1.04 in four of five. Arithmetic is so slow here
 * that making features hides behind it.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_baseline = {
    .state_feature = 0,
    .state_odd_feature = 0.5,
    .state_token = 16,
    .quadratic_score = 1,
    .quadratic_token = 10,
    .quadratic_slowdown = 1.18,
};
