/* video/pipeline/resume.c - the state of sampling in a file after every step, and going on from it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "video/pipeline/run.h"
#include "video/sampler/sampler.h"
#include "video/weights/weights.h"

#define TENSORS 4

static const char *const NAMES[TENSORS] = {"latents", "estimate", "older", "input"};

/* What a step leaves to the next one; NULL where the solver has no such array. */
static void tensors_of(const hlv_run *run, hlv_solver *solver, float *tensors[TENSORS]) {
    const hlv_solver_memory memory = hlv_solver_memory_of(solver);
    tensors[0] = run->latents, tensors[1] = memory.estimate, tensors[2] = memory.older, tensors[3] = memory.input;
}

/* ---- going on ---- */

static const char *value_of(const hlv_run *run, const char *key) {
    for (int i = 0; i < run->metadata_count; i++)
        if (strcmp(run->metadata[2 * i], key) == 0) return run->metadata[2 * i + 1];
    return NULL;
}

/* The file is of this very clip: prompt, seed, model and settings are the same. */
static hlv_status check_same(const hlv_run *run, const hlv_weights *file) {
    const char *const *keys = hlv_latents_keys();
    for (int i = 0; i < HLV_METADATA_KEYS; i++) {
        const char *kept = hlv_weights_metadata(file, keys[i]), *own = value_of(run, keys[i]);
        if (kept == own || (kept && own && strcmp(kept, own) == 0)) continue;
        return hlv_fail(
            run->ctx, HLV_ERROR_ARGUMENT,
            "resume: %s is of another clip: its %s is '%s', this one's '%s'; give another file or remove it",
            run->options.resume, keys[i], kept ? kept : "", own ? own : "");
    }
    return HLV_OK;
}

static hlv_status read_number(const hlv_run *run, const hlv_weights *file, const char *key, int most, int *number) {
    const char *text = hlv_weights_metadata(file, key);
    char *end = NULL;
    long value = text ? strtol(text, &end, 10) : -1;
    if (!text || end == text || *end || value < 0 || value > most)
        return hlv_fail(run->ctx, HLV_ERROR_FORMAT, "resume: %s: %s is '%s', wanted a number from 0 to %d",
                        run->options.resume, key, text ? text : "missing", most);
    *number = (int)value;
    return HLV_OK;
}

hlv_status hlv_resume_find(hlv_run *run) {
    const char *path = run->options.resume;
    if (!path || (access(path, F_OK) != 0 && errno == ENOENT)) return HLV_OK;
    hlv_weights *file = NULL;
    hlv_status status = hlv_weights_open(run->ctx, path, &file);
    if (status == HLV_OK) status = check_same(run, file);
    if (status == HLV_OK) status = read_number(run, file, "step", run->options.steps, &run->kept_steps);
    if (status == HLV_OK) status = read_number(run, file, "order", HLV_MAX_ORDER, &run->kept_order);
    hlv_weights_free(file);
    if (status == HLV_OK)
        hlv_log(run->ctx, HLV_LOG_INFO, "going on after step %d of %d", run->kept_steps, run->options.steps);
    return status;
}

hlv_status hlv_resume_read(hlv_run *run, hlv_solver *solver) {
    float *tensors[TENSORS];
    tensors_of(run, solver, tensors);
    hlv_status status = hlv_solver_resume(solver, run->kept_steps, run->kept_order);
    for (int i = 0; status == HLV_OK && i < TENSORS; i++)
        if (tensors[i]) status = hlv_latents_read(run, run->options.resume, NAMES[i], NULL, tensors[i]);
    return status;
}

/* ---- keeping ---- */

static hlv_status write_state(hlv_run *run, hlv_solver *solver, int steps) {
    float *data[TENSORS];
    tensors_of(run, solver, data);
    hlv_tensor_out tensors[TENSORS];
    int count = 0;
    for (int i = 0; i < TENSORS; i++)
        if (data[i])
            tensors[count++] = (hlv_tensor_out){.name = NAMES[i],
                                                .dtype = HLA_F32,
                                                .ndim = 4,
                                                .shape = {run->C, run->F, run->Y, run->X},
                                                .data = data[i]};
    char number[2][16];
    snprintf(number[0], sizeof number[0], "%d", steps);
    snprintf(number[1], sizeof number[1], "%d", hlv_solver_memory_of(solver).order);
    const char *metadata[2 * (HLV_METADATA_KEYS + 2)];
    memcpy(metadata, run->metadata, sizeof(char *) * 2 * (size_t)run->metadata_count);
    const char *const last[] = {"step", number[0], "order", number[1]};
    memcpy(metadata + 2 * run->metadata_count, last, sizeof last);
    return hlv_safetensors_write(run->ctx, run->options.resume, tensors, count, metadata, run->metadata_count + 2);
}

void hlv_resume_keep(hlv_run *run, hlv_solver *solver, int steps) {
    if (run->options.resume && write_state(run, solver, steps) != HLV_OK)
        hlv_log(run->ctx, HLV_LOG_WARNING, "step %d is not kept: %s", steps, hlv_context_error(run->ctx));
}

void hlv_resume_remove(hlv_run *run) {
    if (run->options.resume && unlink(run->options.resume) != 0 && errno != ENOENT)
        hlv_log(run->ctx, HLV_LOG_WARNING, "cannot remove %s: %s", run->options.resume, strerror(errno));
}
