/* attention/ops/feature_map/internal.h - what dispatch.c, the reference and the kernels of the feature maps share. */
#ifndef HLA_FEATURE_MAP_INTERNAL_H
#define HLA_FEATURE_MAP_INTERNAL_H

#include "attention/core/internal.h"
#include "attention/simd/isa.h"
#include "hla/feature_map.h"

enum { HLA_ACTIVATIONS = HLA_ACTIVATION_IDENTITY + 1 };

/* One execution; everything in it has been checked. */
typedef struct hla_feature_map_call {
    hla_feature_map_problem problem;
    const hla_tensor *out; /* [B,T,H,R] */
    const hla_tensor *x;   /* [B,T,H,D] */
    hla_feature_map_weights weights;
    int threads;
} hla_feature_map_call;

/* One entry of the kernel table. workspace() adds the kernel's pieces to the arena, which only measures; forward()
 * carves the same pieces again. */
typedef struct hla_feature_map_entry {
    const char *name;
    hla_isa isa;
    void (*workspace)(const hla_feature_map_problem *problem, int threads, hla_arena *arena);
    void (*forward)(const hla_feature_map_call *call, void *workspace);
} hla_feature_map_entry;

/* The oracle: row out[b,t,h,:] in double. row: R doubles; x and hidden: D doubles of scratch each, input: D floats. */
void hla_feature_map_reference_row(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h, double *row,
                                   double *x, double *hidden, float *input);

void hla_feature_map_reference_workspace(const hla_feature_map_problem *problem, int threads, hla_arena *arena);
void hla_feature_map_reference_forward(const hla_feature_map_call *call, void *workspace);

/* The entry points of cpu.c, one pair an instruction set. */
void hla_feature_map_workspace_baseline(const hla_feature_map_problem *problem, int threads, hla_arena *arena);
void hla_feature_map_forward_baseline(const hla_feature_map_call *call, void *workspace);
void hla_feature_map_workspace_avx2(const hla_feature_map_problem *problem, int threads, hla_arena *arena);
void hla_feature_map_forward_avx2(const hla_feature_map_call *call, void *workspace);
void hla_feature_map_workspace_avx512(const hla_feature_map_problem *problem, int threads, hla_arena *arena);
void hla_feature_map_forward_avx512(const hla_feature_map_call *call, void *workspace);

#endif
