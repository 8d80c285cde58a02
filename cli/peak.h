/* cli/peak.h - the arithmetic peak of this machine, measured: independent chains of multiply-adds that never leave the
 * registers. A benchmark calls it right before and right after each timing, because clocks change with load. */
#ifndef HLA_CLI_PEAK_H
#define HLA_CLI_PEAK_H

#include "hla/core.h"

typedef enum peak_unit {
    PEAK_BASELINE,    /* 4 floats, a multiplication and an addition: what any machine of the architecture has */
    PEAK_AVX2,        /* 8 floats, fused multiply-add */
    PEAK_AVX512,      /* 16 floats, fused multiply-add */
    PEAK_AVX512_BF16, /* 16 sums of two products of bfloat16 */
    PEAK_NEON         /* 4 floats, fused multiply-add */
} peak_unit;

const char *peak_name(peak_unit unit); /* such as "AVX-512 FMA" */
bool peak_runs(peak_unit unit);

/* The unit that a kernel named after its instruction set should keep busy; NULL: the widest one of this machine. The
 * 16-bit dot product counts only for bfloat16 and only where the machine has it. */
peak_unit peak_of(const char *kernel, hla_dtype dtype);

/* Operations a second of that many threads, a multiply-add counting two; takes a few milliseconds. */
double peak_measure(peak_unit unit, int threads);

#endif
