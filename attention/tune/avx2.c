/* Values for AVX2, from one core of an AMD Zen 5, gcc 12: non-negative least squares over the best times of both forms
 * at T = 256 ... 2304, ranks 2x8 ... 2x64, 8x32, 64 and 256, V = 16 ... 128. Predicted over measured time: 0.95
 * to 1.06. Half the vector width of AVX-512: making features weighs less beside the arithmetic, and what the quadratic
 * form does to its scores hides behind it.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_avx2 = {
    .state_feature = 14,
    .state_token = 6,
    .quadratic_score = 0,
    .quadratic_token = 0,
    .quadratic_slowdown = 1.15,
};
