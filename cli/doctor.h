/* cli/doctor.h - what `hla doctor` asks of the GPUs. */
#ifndef HLA_CLI_DOCTOR_H
#define HLA_CLI_DOCTOR_H

#include "cli/operator.h"

/* The self-check: one small problem with odd sizes, two factors. */
typedef struct small_problem {
    hla_hadamard_problem problem;
    operand q[2], k[2], v, out;
    float *expected;
} small_problem;

#define MAX_GPUS 8

typedef struct gpu_info {
    hla_context *context; /* computes on it */
    void *stream;
    char name[128];
    size_t memory; /* bytes */
} gpu_info;

/* The GPUs that libhla can use, at most MAX_GPUS. Without any, why (320 bytes) says so in a sentence. */
int open_gpus(gpu_info gpus[MAX_GPUS], char *why);
void close_gpus(gpu_info *gpus, int count);

/* Runs problem.kernel on the GPU into small->out. */
hla_status compute_on_gpu(const gpu_info *gpu, small_problem *small);

#endif
