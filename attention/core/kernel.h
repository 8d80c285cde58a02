/* attention/core/kernel.h - what the kernel tables of all operators have in common, and the choice of an entry. */
#ifndef HLA_CORE_KERNEL_H
#define HLA_CORE_KERNEL_H

#include "attention/core/internal.h"
#include "attention/simd/isa.h"

/* The first member of an operator's table entry. */
typedef struct hla_kernel {
    const char *name;
    hla_isa isa;    /* HLA_ISA_CUDA in the tables of libhla_cuda */
    int capability; /* HLA_ISA_CUDA: the least compute capability, 10 major + minor */
    int newest;     /* HLA_ISA_CUDA: the greatest one, 0 for no limit */
} hla_kernel;

/* Entry i of an operator's table for the context's device (NULL: the CPU), NULL past either end. Entry 0 of the CPU's
 * is the reference; later entries are faster. */
typedef const hla_kernel *hla_kernel_at(const hla_context *context, int i);

/* Whether the context's device executes it. */
bool hla_kernel_runs(const hla_context *context, const hla_kernel *kernel);

/* *index: the entry that the problem or else the environment variable asks for; -1 if neither does. An error if the
 * table does not hold it or this machine does not run it. */
hla_status hla_kernel_forced(hla_context *context, hla_kernel_at *at, const char *problem_kernel, const char *variable,
                             int *index);

/* *index: the forced entry, else the last that runs here. */
hla_status hla_kernel_choose(hla_context *context, hla_kernel_at *at, const char *problem_kernel, const char *variable,
                             int *index);

#endif
