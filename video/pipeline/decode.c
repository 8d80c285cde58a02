/* video/pipeline/decode.c - latents to frames to a file, frame by frame; and the preview picture. */
#include <stdlib.h>
#include <string.h>

#include "hlv/media.h"
#include "video/pipeline/run.h"

/* Where decoded frames go. */
typedef struct frame_sink {
    hlv_run *run;
    hlv_video_writer *writer;
    uint8_t *rgb; /* one frame */
    double write_seconds;
    int64_t done, total; /* latent frames, for the progress; total 0: a preview, which reports none */
} frame_sink;

/* [-1,1] to 0..255: to [0,1], clamped, times 255, cut off, each in float32, as the reference does it. NaN gives 0. */
static uint8_t to_byte(float y) {
    float unit = y * 0.5f + 0.5f;
    if (!(unit > 0.0f)) return 0;
    return (uint8_t)((unit < 1.0f ? unit : 1.0f) * 255.0f);
}

static void report(const frame_sink *sink) {
    if (sink->total) hlv_progress(sink->run->ctx, "decode", sink->done, sink->total);
}

/* The frames of one latent frame. */
static hlv_status take_frames(void *user, const float *frames, int64_t first, int64_t count, int64_t height,
                              int64_t width) {
    frame_sink *sink = user;
    (void)first;
    hlv_context *ctx = sink->run->ctx;
    const int64_t size = height * width * 3;
    for (int64_t i = 0; i < count; i++) {
        if (hlv_cancelled(ctx)) return hlv_fail(ctx, HLV_ERROR_CANCELLED, "cancelled while decoding");
        for (int64_t j = 0; j < size; j++)
            sink->rgb[j] = to_byte(frames[i * size + j]);
        double start = hlv_seconds();
        hlv_status status = hlv_video_writer_frame(sink->writer, sink->rgb);
        sink->write_seconds += hlv_seconds() - start;
        if (status != HLV_OK) return status;
    }
    sink->done++;
    report(sink);
    return HLV_OK;
}

static hlv_status open_vae(hlv_run *run) {
    if (run->vae) return HLV_OK;
    char *path = hlv_model_path(run->model, "vae");
    if (!path) return HLV_ERROR_MEMORY;
    double start = hlv_seconds();
    hlv_status status = hlv_vae_open(run->ctx, path, run->model->dtype, HLV_VAE_DECODER, &run->vae);
    run->result.load_seconds += hlv_seconds() - start;
    free(path);
    return status;
}

/* Decodes F latent frames into the file; nothing is left of it unless all went well. */
static hlv_status write_clip(hlv_run *run, frame_sink *sink, const char *path, const float *latents, int64_t F) {
    const hlv_video_info info = {.width = run->options.width,
                                 .height = run->options.height,
                                 .fps = run->options.fps,
                                 .metadata = (const char *const *)run->metadata,
                                 .metadata_count = run->metadata_count};
    sink->rgb = hlv_alloc(run->ctx, (size_t)info.width * (size_t)info.height * 3);
    if (!sink->rgb) return HLV_ERROR_MEMORY;
    hlv_status status = hlv_video_writer_open(run->ctx, path, &info, &sink->writer);
    if (status == HLV_OK) {
        status = hlv_vae_decode(run->vae, latents, F, run->Y, run->X, take_frames, sink);
        double start = hlv_seconds();
        hlv_status closed = hlv_video_writer_close(sink->writer, status == HLV_OK);
        sink->write_seconds += hlv_seconds() - start;
        if (status == HLV_OK) status = closed;
    }
    hlv_free(run->ctx, sink->rgb);
    return status;
}

hlv_status hlv_run_decode(hlv_run *run) {
    hlv_status status = open_vae(run);
    if (status != HLV_OK) return status;
    frame_sink sink = {.run = run, .total = run->F};
    const double start = hlv_seconds();
    report(&sink);
    status = write_clip(run, &sink, run->options.output, run->latents, run->F);
    run->result.write_seconds = sink.write_seconds;
    run->result.decode_seconds = hlv_seconds() - start - sink.write_seconds;
    return status;
}

static hlv_status write_preview(hlv_run *run, const float *estimate) {
    const int64_t frame = run->Y * run->X;
    hlv_status status = open_vae(run);
    if (status != HLV_OK) return status;
    float *first = hlv_alloc_floats(run->ctx, run->C * frame); /* [C,1,Y,X] */
    if (!first) return HLV_ERROR_MEMORY;
    for (int64_t c = 0; c < run->C; c++)
        memcpy(first + c * frame, estimate + c * run->F * frame, (size_t)frame * sizeof(float));
    frame_sink sink = {.run = run};
    status = write_clip(run, &sink, run->options.preview, first, 1);
    hlv_free(run->ctx, first);
    return status;
}

hlv_status hlv_run_preview(hlv_run *run, const float *estimate) {
    hlv_status status = write_preview(run, estimate);
    if (status == HLV_OK || status == HLV_ERROR_CANCELLED) return status;
    hlv_log(run->ctx, HLV_LOG_WARNING, "no preview: %s", hlv_context_error(run->ctx));
    return HLV_OK;
}
