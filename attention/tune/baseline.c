/* Values for baseline (SSE2), from one core of an AMD Zen 5, gcc 12: non-negative least squares over the best times of
 * both forms at T = 256 ... 2304, ranks 2x8 ... 2x64, 8x32, 64 and 256, V = 16 ... 128. Predicted over measured time:
 * 0.9 to 1.15. Arithmetic is so slow here that packing and making features hide behind it: their costs vanish in the
 * noise.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_baseline = {
    .state_feature = 5,
    .state_token = 0,
    .quadratic_score = 0,
    .quadratic_token = 0,
    .quadratic_slowdown = 1.0,
};
