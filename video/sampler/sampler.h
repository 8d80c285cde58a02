/* video/sampler/sampler.h - noise, sigmas and the solvers that walk from noise to latents. */
#ifndef HLV_SAMPLER_H
#define HLV_SAMPLER_H

#include "hlv/generate.h"
#include "video/core/context.h"
#include "video/weights/config.h"

/* Standard normal numbers from a counter-based generator: element i depends on seed and i alone. */
void hlv_noise(float *out, int64_t count, uint64_t seed);

/* A solver over n steps of a flow-matching model: velocity v = eps - x0. */
typedef struct hlv_solver hlv_solver;
hlv_status hlv_solver_create(hlv_context *ctx, hlv_sampler kind, const hlv_scheduler_config *config, int steps,
                             double shift, int64_t count, hlv_solver **solver);
void hlv_solver_free(hlv_solver *solver);
double hlv_solver_timestep(const hlv_solver *solver, int step);
double hlv_solver_sigma(const hlv_solver *solver, int step);
/* x (count floats) is advanced from step to step+1, given the model's velocity at x. Steps in order from 0. */
hlv_status hlv_solver_step(hlv_solver *solver, int step, float *x, const float *velocity);
/* What a solver carries from one step to the next, in place: the estimate and, UniPC only, the one before it and the x
 * that the last step started from (Euler: NULL); the order of the last step. */
enum { HLV_MAX_ORDER = 2 };
typedef struct hlv_solver_memory {
    float *estimate, *older, *input; /* [count] */
    int order;
} hlv_solver_memory;
hlv_solver_memory hlv_solver_memory_of(hlv_solver *solver);
/* Goes on at a step, its memory filled with what a solver of the same arguments carried there. */
hlv_status hlv_solver_resume(hlv_solver *solver, int step, int order);
/* The latest estimate of the clean latents, for previews. */
const float *hlv_solver_estimate(const hlv_solver *solver);

/* v = v_neg + g (v_pos - v_neg), into v_pos. */
void hlv_guide(float *v_pos, const float *v_neg, double guidance, int64_t count);

#endif
