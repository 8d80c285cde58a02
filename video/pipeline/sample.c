/* video/pipeline/sample.c - from noise to latents: the transformer and the solver in turn. */
#include <math.h>

#include "video/pipeline/run.h"
#include "video/sampler/sampler.h"

/* What lives as long as the loop. */
typedef struct sampling {
    const hlv_dit *dit;
    hlv_dit_prompt *prompts[HLV_PROMPTS];
    hlv_dit_session *session;
    hlv_solver *solver;
    float *velocity, *unguided; /* [C,F,Y,X]; unguided NULL without guidance */
    double preview_seconds;
} sampling;

static hlv_status prepare_prompts(hlv_run *run, sampling *s) {
    hlv_status status = HLV_OK;
    for (int i = 0; status == HLV_OK && i < HLV_PROMPTS; i++) {
        if (!run->text[i]) continue;
        status = hlv_dit_prompt_create(s->dit, run->text[i], run->text_count[i], HLV_TEXT_TOKENS, &s->prompts[i]);
        hlv_free(run->ctx, run->text[i]);
        run->text[i] = NULL;
    }
    return status;
}

static hlv_status prepare(hlv_run *run, sampling *s) {
    const hlv_generate_options *o = &run->options;
    double start = hlv_seconds();
    hlv_status status = hlv_model_transformer(run->model, &s->dit);
    run->result.load_seconds += hlv_seconds() - start;
    if (status == HLV_OK) status = prepare_prompts(run, s);
    if (status == HLV_OK) status = hlv_dit_session_create(s->dit, run->F, run->Y, run->X, &s->session);
    if (status == HLV_OK)
        status =
            hlv_solver_create(run->ctx, o->sampler, &run->model->scheduler, o->steps, o->shift, run->count, &s->solver);
    if (status != HLV_OK) return status;
    run->result.tokens = hlv_dit_session_tokens(s->session);
    hlv_log(run->ctx, HLV_LOG_INFO, "%lld tokens, %d of %d blocks with Hadamard attention",
            (long long)run->result.tokens, hlv_dit_hadamard_blocks(s->dit), run->model->transformer.num_layers);
    s->velocity = hlv_alloc_floats(run->ctx, run->count);
    if (run->guided) s->unguided = hlv_alloc_floats(run->ctx, run->count);
    return s->velocity && (s->unguided || !run->guided) ? HLV_OK : HLV_ERROR_MEMORY;
}

/* From noise, or where an earlier call was stopped. */
static hlv_status start(hlv_run *run, sampling *s) {
    if (run->kept_steps > 0) return hlv_resume_read(run, s->solver);
    if (run->options.initial_latents)
        return hlv_latents_read(run, run->options.initial_latents, "latents", "noise", run->latents);
    hlv_noise(run->latents, run->count, run->options.seed);
    return HLV_OK;
}

static hlv_status preview(hlv_run *run, sampling *s, int step) {
    if (!run->options.preview || (step + 1) % run->options.preview_every) return HLV_OK;
    double start = hlv_seconds();
    hlv_status status = hlv_run_preview(run, hlv_solver_estimate(s->solver));
    s->preview_seconds += hlv_seconds() - start;
    return status;
}

static hlv_status take_step(hlv_run *run, sampling *s, int step) {
    if (hlv_cancelled(run->ctx)) return hlv_fail(run->ctx, HLV_ERROR_CANCELLED, "cancelled while sampling");
    const double t = hlv_solver_timestep(s->solver, step);
    hlv_status status = hlv_dit_forward(s->session, s->velocity, run->latents, t, s->prompts[HLV_POSITIVE]);
    if (status == HLV_OK && run->guided) {
        status = hlv_dit_forward(s->session, s->unguided, run->latents, t, s->prompts[HLV_NEGATIVE]);
        if (status == HLV_OK) hlv_guide(s->velocity, s->unguided, run->options.guidance, run->count);
    }
    return status == HLV_OK ? hlv_solver_step(s->solver, step, run->latents, s->velocity) : status;
}

static hlv_status check_finite(const hlv_run *run) {
    for (int64_t i = 0; i < run->count; i++)
        if (!isfinite(run->latents[i]))
            return hlv_fail(run->ctx, HLV_ERROR_FORMAT,
                            "the sampled latents are not finite: the weights are damaged, or guidance %g is too large",
                            run->options.guidance);
    return HLV_OK;
}

static hlv_status loop(hlv_run *run, sampling *s) {
    const int steps = run->options.steps;
    const double begin = hlv_seconds();
    const int first = run->kept_steps;
    hlv_status status = start(run, s);
    hlv_progress(run->ctx, "sample", first, steps);
    int done = first;
    while (status == HLV_OK && done < steps) {
        status = take_step(run, s, done);
        if (status == HLV_OK) hlv_resume_keep(run, s->solver, done + 1);
        if (status == HLV_OK) status = preview(run, s, done);
        if (status == HLV_OK) hlv_progress(run->ctx, "sample", ++done, steps);
    }
    if (done > first) run->result.seconds_per_step = (hlv_seconds() - begin - s->preview_seconds) / (done - first);
    return status == HLV_OK ? check_finite(run) : status;
}

hlv_status hlv_run_sample(hlv_run *run) {
    const double start = hlv_seconds(), loaded_before = run->result.load_seconds;
    sampling s = {0};
    hlv_status status = prepare(run, &s);
    if (status == HLV_OK) status = loop(run, &s);
    hlv_free(run->ctx, s.velocity);
    hlv_free(run->ctx, s.unguided);
    hlv_solver_free(s.solver);
    hlv_dit_session_free(s.session);
    for (int i = 0; i < HLV_PROMPTS; i++)
        hlv_dit_prompt_free(s.prompts[i]);
    run->result.sample_seconds = hlv_seconds() - start - (run->result.load_seconds - loaded_before);
    return status;
}
