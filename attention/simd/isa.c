/* Probes the instruction sets of isa.h. The compiler's support library asks CPUID and, by XGETBV, the system. */
#include "attention/simd/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>

/* clang 14's support library does not know the bit. The system saves what AVX-512 needs, or neither is there. */
static bool has_avx512_bf16(void) {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 5 & 1u) != 0;
}
#endif

bool hla_isa_runs(hla_isa isa) {
    if (isa == HLA_ISA_BASELINE) return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (isa == HLA_ISA_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (isa == HLA_ISA_AVX512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
    if (isa == HLA_ISA_AVX512_BF16) return hla_isa_runs(HLA_ISA_AVX512) && has_avx512_bf16();
#elif defined(__aarch64__)
    if (isa == HLA_ISA_NEON) return true;
#endif
    return false;
}

const char *hla_isa_needs(hla_isa isa) {
    static const char *const needs[] = {[HLA_ISA_BASELINE] = "",
                                        [HLA_ISA_AVX2] = "AVX2, FMA",
                                        [HLA_ISA_AVX512] = "AVX-512 F, BW, DQ, VL",
                                        [HLA_ISA_NEON] = "AArch64 NEON",
                                        [HLA_ISA_AVX512_BF16] = "AVX-512 F, BW, DQ, VL, BF16",
                                        [HLA_ISA_CUDA] = "an NVIDIA GPU"};
    return needs[isa];
}
