/* attention/simd/isa.h - instruction sets that kernels are compiled for, and whether this machine runs them.
 *
 * A new set is one value here, one row in isa.c, one branch in vector.h, one line in
 * CMakeLists.txt, and its entries in each operator's kernel table.
 */
#ifndef HLA_SIMD_ISA_H
#define HLA_SIMD_ISA_H

#include <stdbool.h>

typedef enum hla_isa {
    HLA_ISA_BASELINE = 0, /* whatever the compiler assumes of any machine of this architecture */
    HLA_ISA_AVX2 = 1,
    HLA_ISA_AVX512 = 2,
    HLA_ISA_NEON = 3,
    HLA_ISA_AVX512_BF16 = 4, /* AVX-512 with dot products of bfloat16: kernels of bfloat16 only */
    HLA_ISA_CUDA = 5         /* no instruction set of this processor: kernels of libhla_cuda, for the context's GPU */
} hla_isa;

/* Whether processor and operating system (which must save the registers) both support it. */
bool hla_isa_runs(hla_isa isa);

const char *hla_isa_needs(hla_isa isa); /* "AVX2, FMA"; "" for the baseline */

#endif
