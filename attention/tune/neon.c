/* Values for NEON, estimated: there was no AArch64 machine to measure on, and an emulator says nothing about time. They
 * are those of AVX2 at half the width: from AVX-512 to AVX2 each halving of the vectors made a multiply-add about twice
 * as slow beside the packing and the features, whose costs in multiply-adds fell to a half or a third.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_neon = {
    .state_feature = 1,
    .state_odd_feature = 3,
    .state_token = 10,
    .quadratic_score = 1,
    .quadratic_token = 7,
    .quadratic_slowdown = 1.2,
};
