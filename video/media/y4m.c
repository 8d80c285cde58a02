/* video/media/y4m.c - YUV4MPEG2: uncompressed, so that any tool can read it. 4:4:4, so that odd sizes and fine edges
 * survive; the limited range and the BT.601 matrix are what readers assume of a Y4M file, which has no field to name a
 * matrix. */
#include "video/media/media.h"

#include <stdlib.h>

typedef struct y4m_state {
    hlv_output output;
    uint8_t *planes; /* Y, Cb, Cr, each height*width */
} y4m_state;

static hlv_status begin(hlv_video_writer *writer) {
    y4m_state *state = calloc(1, sizeof *state);
    if (state == NULL) return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    writer->state = state;
    state->planes = hlv_alloc(writer->ctx, (size_t)writer->width * (size_t)writer->height * 3);
    if (state->planes == NULL) return HLV_ERROR_MEMORY;
    hlv_status status = hlv_output_open(writer, 0, &state->output);
    if (status != HLV_OK) return status;
    unsigned numerator, denominator;
    hlv_rate_fraction(writer->fps, 1000000, &numerator, &denominator);
    char header[128];
    int length = snprintf(header, sizeof header, "YUV4MPEG2 W%d H%d F%u:%u Ip A1:1 C444 XCOLORRANGE=LIMITED\n",
                          writer->width, writer->height, numerator, denominator);
    hlv_output_bytes(&state->output, header, (size_t)length);
    return hlv_output_status(writer, &state->output);
}

/* ITU-R BT.601: Y in 16..235, Cb and Cr in 16..240 around 128. */
static void convert(uint8_t *y, uint8_t *cb, uint8_t *cr, const uint8_t *rgb, size_t pixels) {
    for (size_t i = 0; i < pixels; i++) {
        double r = rgb[3 * i], g = rgb[3 * i + 1], b = rgb[3 * i + 2];
        double luma = 0.299 * r + 0.587 * g + 0.114 * b;
        y[i] = (uint8_t)(16.5 + luma * (219.0 / 255));
        cb[i] = (uint8_t)(128.5 + (b - luma) * (224.0 / 255 / 1.772));
        cr[i] = (uint8_t)(128.5 + (r - luma) * (224.0 / 255 / 1.402));
    }
}

static hlv_status frame(hlv_video_writer *writer, const uint8_t *rgb) {
    y4m_state *state = writer->state;
    size_t pixels = (size_t)writer->width * (size_t)writer->height;
    convert(state->planes, state->planes + pixels, state->planes + 2 * pixels, rgb, pixels);
    hlv_output_bytes(&state->output, "FRAME\n", 6);
    hlv_output_bytes(&state->output, state->planes, 3 * pixels);
    return hlv_output_status(writer, &state->output);
}

static hlv_status end(hlv_video_writer *writer) {
    y4m_state *state = writer->state;
    return hlv_output_close(writer, &state->output);
}

static void release(hlv_video_writer *writer) {
    y4m_state *state = writer->state;
    if (state == NULL) return;
    hlv_output_close(writer, &state->output);
    hlv_free(writer->ctx, state->planes);
    free(state);
}

const hlv_video_encoder hlv_y4m_encoder = {begin, frame, end, release};
