/* attention/ops/feature_map/kernel.h - what dispatch.c, the reference and the kernels of the feature maps share. */
#ifndef HLA_OPS_FEATURE_MAP_KERNEL_H
#define HLA_OPS_FEATURE_MAP_KERNEL_H

#include "attention/core/kernel.h"
#include "hla/feature_map.h"

enum { HLA_ACTIVATIONS = HLA_ACTIVATION_IDENTITY + 1 };

/* One execution; everything in it has been checked. */
typedef struct hla_feature_map_call {
    hla_context *context;
    hla_feature_map_problem problem;
    const hla_tensor *out; /* [B,T,H,R]; backward: its gradient d_out */
    const hla_tensor *x;   /* [B,T,H,D] */
    hla_feature_map_weights weights;
    const hla_tensor *dx; /* [B,T,H,D] or NULL; backward only */
    hla_feature_map_weight_gradients gradients;
    int threads; /* of a GPU: multiprocessors */
    void *workspace;
} hla_feature_map_call;

/* One entry of the kernel table. */
typedef struct hla_feature_map_entry {
    hla_kernel kernel;
    /* Takes from the arena what run will need (arena->base NULL: only measures). */
    void (*measure)(hla_arena *arena, const hla_feature_map_problem *problem, int threads);
    hla_status (*run)(const hla_feature_map_call *call);
    /* The same of the backward pass. */
    void (*measure_backward)(hla_arena *arena, const hla_feature_map_problem *problem, int threads);
    hla_status (*run_backward)(const hla_feature_map_call *call);
} hla_feature_map_entry;

extern const hla_feature_map_entry hla_feature_map_reference, hla_feature_map_baseline;
#if defined(__x86_64__)
extern const hla_feature_map_entry hla_feature_map_avx2, hla_feature_map_avx512;
#elif defined(__aarch64__)
extern const hla_feature_map_entry hla_feature_map_neon;
#endif

/* The oracle: row out[b,t,h,:] in double. row: R doubles; x and hidden: D doubles of scratch each, input: D floats. */
void hla_feature_map_reference_row(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h, double *row,
                                   double *x, double *hidden, float *input);

/* x[i] of token t, a row of D floats, after RoPE if the problem has it. */
double hla_feature_map_reference_turned(const hla_feature_map_problem *problem, int64_t t, const float *x, int64_t i);

/* Before the activation: u = W h + b (R doubles); also leaves h, z = U x + c (with a hidden layer), and x, before RoPE,
 * as floats. */
void hla_feature_map_reference_projection(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h, double *u,
                                          double *hidden_out, double *z, float *x);

/* Sums over tokens of one head's weight gradients in double: [R,D], [R], [D,D], [D]. */
typedef struct hla_feature_map_sums {
    double *weight, *bias, *hidden_weight, *hidden_bias;
} hla_feature_map_sums;

/* The oracle of the backward pass: row dx[b,t,h,:] in double; what the row gives to the weight gradients is added to
 * sums (the hidden ones only with a hidden layer). scratch: 2R + 2D doubles, input: R + D floats. */
void hla_feature_map_reference_backward_row(const hla_feature_map_call *call, int64_t b, int64_t t, int64_t h,
                                            double *dx, const hla_feature_map_sums *sums, double *scratch,
                                            float *input);
void hla_feature_map_reference_measure_backward(hla_arena *arena, const hla_feature_map_problem *problem, int threads);
hla_status hla_feature_map_reference_run_backward(const hla_feature_map_call *call);

#endif
