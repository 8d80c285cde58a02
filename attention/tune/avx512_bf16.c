/* Values for AVX512-BF16, whose multiply-add is half as long as that of AVX-512. The quadratic form beside it is the
 * AVX-512 one: its values are those of avx512.c in units half as large.
 */
#include "attention/tune/tune.h"

const hla_tune hla_tune_avx512_bf16 = {
    .state_feature = 45,
    .state_token = 20,
    .quadratic_score = 12,
    .quadratic_token = 24,
    .quadratic_slowdown = 3,
};
