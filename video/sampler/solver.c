/* video/sampler/solver.c - sigmas, UniPC (order 1 and 2, bh2, predicting x0) and Euler, for flow matching.
 *
 * Sources: Zhao, Bai, Rao, Zhou, Lu, "UniPC", arXiv 2302.04867 (predictor eq. 9, corrector eq. 8, B(h) = e^h - 1); the
 * sigma grid and the order of each step as in diffusers' UniPCMultistepScheduler with use_flow_sigmas.
 * Notation: alpha = 1 - sigma, lambda = ln(alpha / sigma), m_i the estimate of the clean latents at step i. */
#include <math.h>
#include <stdlib.h>

#include "video/sampler/sampler.h"

#define HLV_MAX_STEPS 100000

/* Where lambda must stay finite the first sigma is kept this far below 1. */
static const double SIGMA_MARGIN = 1e-6;

struct hlv_solver {
    hlv_context *ctx;
    hlv_sampler kind;
    int steps, next_step;
    int max_order, previous_order; /* UniPC: order of the last predictor */
    int64_t count;
    double *sigma;    /* [steps+1], rounded to float32 as the reference stores them; the last is 0 */
    double *timestep; /* [steps] */
    float *estimate;  /* [count] m_i */
    float *older;     /* [count] m_{i-1}; UniPC only */
    float *input;     /* [count] x that the last predictor started from; UniPC only */
};

/* One linear combination of the last inputs and estimates: x = x*input + m*m_i + older*m_{i-1} + oldest*m_{i-2}. */
typedef struct combination {
    double x, m, older, oldest;
} combination;

static double lambda_of(double sigma) {
    return log1p(-sigma) - log(sigma);
}

static hlv_status check_arguments(hlv_context *ctx, hlv_sampler kind, const hlv_scheduler_config *config, int steps,
                                  double shift) {
    if (kind != HLV_SAMPLER_UNIPC && kind != HLV_SAMPLER_EULER)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "sampler: unknown value %d, wanted unipc or euler", (int)kind);
    if (steps < 1 || steps > HLV_MAX_STEPS)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "steps: found %d, wanted 1 to %d", steps, HLV_MAX_STEPS);
    if (!(shift > 0) || !isfinite(shift))
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "shift: found %g, wanted a finite number above 0", shift);
    if (config->solver_order < 1 || config->solver_order > HLV_MAX_ORDER)
        return hlv_fail(ctx, HLV_ERROR_UNSUPPORTED, "scheduler: solver_order %d, wanted 1 or 2", config->solver_order);
    if (config->num_train_timesteps < 1)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "scheduler: num_train_timesteps %d, wanted at least 1",
                        config->num_train_timesteps);
    return HLV_OK;
}

/* u_i falls evenly from 1 towards 1/T (T training steps), sigma = s u / (1 + (s-1) u). UniPC's model sees whole
 * timesteps, as the reference; Euler's the real number. */
static void fill_grid(hlv_solver *solver, int train_timesteps, double shift) {
    const int n = solver->steps;
    double step = (1.0 - 1.0 / train_timesteps) / n;
    for (int i = 0; i < n; i++) {
        double u = 1.0 - i * step, sigma = shift * u / (1.0 + (shift - 1.0) * u);
        if (i == 0 && fabs(sigma - 1.0) < SIGMA_MARGIN) sigma -= SIGMA_MARGIN;
        solver->sigma[i] = (double)(float)sigma;
        double t = sigma * train_timesteps;
        solver->timestep[i] = solver->kind == HLV_SAMPLER_UNIPC ? floor(t) : t;
    }
    solver->sigma[n] = 0.0;
}

hlv_status hlv_solver_create(hlv_context *ctx, hlv_sampler kind, const hlv_scheduler_config *config, int steps,
                             double shift, int64_t count, hlv_solver **out) {
    *out = NULL;
    hlv_status status = check_arguments(ctx, kind, config, steps, shift);
    if (status != HLV_OK) return status;
    hlv_solver *solver = calloc(1, sizeof *solver);
    if (!solver) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for the solver");
    solver->ctx = ctx, solver->kind = kind, solver->steps = steps, solver->count = count;
    solver->max_order = config->solver_order;
    solver->sigma = calloc((size_t)steps + 1, sizeof(double));
    solver->timestep = calloc((size_t)steps, sizeof(double));
    solver->estimate = hlv_alloc_floats(ctx, count);
    if (kind == HLV_SAMPLER_UNIPC) {
        solver->older = hlv_alloc_floats(ctx, count);
        solver->input = hlv_alloc_floats(ctx, count);
    }
    bool buffers = solver->estimate && (kind != HLV_SAMPLER_UNIPC || (solver->older && solver->input));
    if (!solver->sigma || !solver->timestep || !buffers) {
        if (buffers) hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for a grid of %d steps", steps);
        hlv_solver_free(solver);
        return HLV_ERROR_MEMORY;
    }
    fill_grid(solver, config->num_train_timesteps, shift);
    for (int64_t i = 0; i < count; i++) { /* multiplied by 0 before they are known, so they must be finite */
        solver->estimate[i] = 0.0f;
        if (solver->older) solver->older[i] = solver->input[i] = 0.0f;
    }
    *out = solver;
    return HLV_OK;
}

void hlv_solver_free(hlv_solver *solver) {
    if (!solver) return;
    hlv_free(solver->ctx, solver->estimate);
    hlv_free(solver->ctx, solver->older);
    hlv_free(solver->ctx, solver->input);
    free(solver->sigma);
    free(solver->timestep);
    free(solver);
}

double hlv_solver_timestep(const hlv_solver *solver, int step) {
    return solver->timestep[step];
}

double hlv_solver_sigma(const hlv_solver *solver, int step) {
    return solver->sigma[step];
}

const float *hlv_solver_estimate(const hlv_solver *solver) {
    return solver->estimate;
}

hlv_solver_memory hlv_solver_memory_of(hlv_solver *solver) {
    return (hlv_solver_memory){solver->estimate, solver->older, solver->input, solver->previous_order};
}

hlv_status hlv_solver_resume(hlv_solver *solver, int step, int order) {
    /* The order rises with the steps, from 1 on. */
    bool known = solver->kind == HLV_SAMPLER_UNIPC && step > 0;
    if (step < 0 || step > solver->steps || order > (step < solver->max_order ? step : solver->max_order) ||
        order < (known ? 1 : 0))
        return hlv_fail(solver->ctx, HLV_ERROR_ARGUMENT, "solver: cannot go on after step %d of %d with order %d", step,
                        solver->steps, order);
    solver->next_step = step, solver->previous_order = order;
    return HLV_OK;
}

/* x at step i, corrected with the estimate m_i found there. order is that of the predictor which led here. */
static combination corrector(const hlv_solver *solver, int i, int order) {
    double sigma = solver->sigma[i], from = solver->sigma[i - 1], alpha = 1.0 - sigma;
    double h = lambda_of(sigma) - lambda_of(from), g = -h, B = expm1(g), aB = alpha * B;
    if (order == 1) return (combination){.x = sigma / from, .m = -0.5 * aB, .older = -0.5 * aB};
    double r = (lambda_of(solver->sigma[i - 2]) - lambda_of(from)) / h;
    double f1 = B / g - 1.0, f2 = f1 / g - 0.5, b1 = f1 / B, b2 = 2.0 * f2 / B;
    double c0 = (b1 - b2) / (1.0 - r), c1 = b1 - c0; /* solves c0 + c1 = b1, r c0 + c1 = b2 */
    return (combination){.x = sigma / from, .m = -aB * c1, .older = -aB * (1.0 - c0 / r - c1), .oldest = -aB * c0 / r};
}

/* x at step i+1 from the corrected x at step i. Into sigma 0 every order is the same: x becomes m_i. */
static combination predictor(const hlv_solver *solver, int i, int order) {
    double sigma = solver->sigma[i + 1], from = solver->sigma[i], alpha = 1.0 - sigma;
    if (sigma == 0.0) return (combination){.m = 1.0};
    double h = lambda_of(sigma) - lambda_of(from), aB = alpha * expm1(-h);
    if (order == 1) return (combination){.x = sigma / from, .m = -aB};
    double r = (lambda_of(solver->sigma[i - 1]) - lambda_of(from)) / h;
    return (combination){.x = sigma / from, .m = -aB * (1.0 - 0.5 / r), .older = -0.5 * aB / r};
}

static void unipc_step(hlv_solver *solver, int i, float *x, const float *velocity) {
    const int left = solver->steps - i;
    int order = solver->max_order < i + 1 ? solver->max_order : i + 1; /* warm-up */
    if (order > left) order = left;
    /* Without a step to correct, the corrected x is x itself. */
    const bool correct = i > 0;
    combination c = correct ? corrector(solver, i, solver->previous_order) : (combination){0};
    combination p = predictor(solver, i, order);
    const double sigma = solver->sigma[i];
    float *m_new = solver->older, *m_old = solver->estimate; /* m_i replaces m_{i-2} element by element */
    for (int64_t j = 0; j < solver->count; j++) {
        double now = x[j], m = now - sigma * velocity[j], m1 = m_old[j], m2 = m_new[j];
        if (correct) now = c.x * solver->input[j] + c.m * m + c.older * m1 + c.oldest * m2;
        solver->input[j] = (float)now;
        x[j] = (float)(p.x * now + p.m * m + p.older * m1);
        m_new[j] = (float)m;
    }
    solver->estimate = m_new, solver->older = m_old;
    solver->previous_order = order;
}

static void euler_step(hlv_solver *solver, int i, float *x, const float *velocity) {
    const double sigma = solver->sigma[i], step = solver->sigma[i + 1] - sigma;
    for (int64_t j = 0; j < solver->count; j++) {
        solver->estimate[j] = (float)(x[j] - sigma * velocity[j]);
        x[j] = (float)(x[j] + step * velocity[j]);
    }
}

hlv_status hlv_solver_step(hlv_solver *solver, int step, float *x, const float *velocity) {
    if (step != solver->next_step || step >= solver->steps)
        return hlv_fail(solver->ctx, HLV_ERROR_ARGUMENT, "solver: step %d asked for, but step %d of %d comes next",
                        step, solver->next_step, solver->steps);
    (solver->kind == HLV_SAMPLER_UNIPC ? unipc_step : euler_step)(solver, step, x, velocity);
    solver->next_step++;
    return HLV_OK;
}

void hlv_guide(float *v_pos, const float *v_neg, double guidance, int64_t count) {
    const float g = (float)guidance;
    for (int64_t i = 0; i < count; i++)
        v_pos[i] = v_neg[i] + g * (v_pos[i] - v_neg[i]);
}
