#include "attention/tune/tune.h"

const hla_tune *hla_tune_of(hla_isa isa) {
    static const hla_tune *const tunes[] = {
        [HLA_ISA_BASELINE] = &hla_tune_baseline,       [HLA_ISA_AVX2] = &hla_tune_avx2,
        [HLA_ISA_AVX512] = &hla_tune_avx512,           [HLA_ISA_NEON] = &hla_tune_neon,
        [HLA_ISA_AVX512_BF16] = &hla_tune_avx512_bf16, [HLA_ISA_CUDA] = &hla_tune_cuda};
    return tunes[isa];
}
