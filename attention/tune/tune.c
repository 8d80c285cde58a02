#include "attention/tune/tune.h"

const hla_tune *hla_tune_of(hla_isa isa) {
    static const hla_tune *const tunes[] = {&hla_tune_baseline, &hla_tune_avx2, &hla_tune_avx512};
    return tunes[isa];
}
