/* video/media/png.c - PNG and animated PNG, 8-bit RGB (W3C PNG, third edition). An animation of one frame is a plain
 * PNG; so the first frame's data waits until it is known whether a second one comes. */
#include "video/media/media.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define FILTERS 5
#define ZLIB_LEVEL 6
#define ACTL_POSITION (8 + 25) /* after the signature and IHDR */

typedef struct png_state {
    hlv_output output;
    uint8_t *filtered;   /* height * (1 + 3*width): a filter byte and the row */
    uint8_t *candidates; /* FILTERS * 3*width */
    uint8_t *packed;     /* packed_room bytes: one frame's zlib stream */
    size_t packed_room, packed_size;
    unsigned sequence; /* of the animation's chunks */
} png_state;

static hlv_status create_state(hlv_video_writer *writer) {
    png_state *state = calloc(1, sizeof *state);
    if (state == NULL) return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    writer->state = state;
    size_t row = 3 * (size_t)writer->width, filtered = (row + 1) * (size_t)writer->height;
    state->packed_room = compressBound((uLong)filtered);
    state->filtered = hlv_alloc(writer->ctx, filtered);
    state->candidates = hlv_alloc(writer->ctx, FILTERS * row);
    state->packed = hlv_alloc(writer->ctx, state->packed_room);
    return state->filtered != NULL && state->candidates != NULL && state->packed != NULL ? HLV_OK : HLV_ERROR_MEMORY;
}

static void release(hlv_video_writer *writer) {
    png_state *state = writer->state;
    if (state == NULL) return;
    hlv_output_close(writer, &state->output);
    hlv_free(writer->ctx, state->filtered);
    hlv_free(writer->ctx, state->candidates);
    hlv_free(writer->ctx, state->packed);
    free(state);
}

static int paeth(int left, int up, int corner) {
    int guess = left + up - corner;
    int dl = abs(guess - left), du = abs(guess - up), dc = abs(guess - corner);
    return dl <= du && dl <= dc ? left : du <= dc ? up : corner;
}

/* out[i] = row[i] - prediction of the filter; above is NULL for the first row. */
static void filter_row(uint8_t *out, const uint8_t *row, const uint8_t *above, size_t count, int filter) {
    for (size_t i = 0; i < count; i++) {
        int left = i >= 3 ? row[i - 3] : 0, up = above != NULL ? above[i] : 0;
        int corner = i >= 3 && above != NULL ? above[i - 3] : 0;
        int prediction[FILTERS] = {0, left, up, (left + up) / 2, 0};
        out[i] = (uint8_t)(row[i] - (filter == 4 ? paeth(left, up, corner) : prediction[filter]));
    }
}

/* Each row takes the filter with the smallest sum of absolute differences, the usual heuristic. */
static void filter_frame(const hlv_video_writer *writer, const uint8_t *rgb) {
    png_state *state = writer->state;
    size_t count = 3 * (size_t)writer->width;
    for (int y = 0; y < writer->height; y++) {
        const uint8_t *row = rgb + (size_t)y * count, *above = y > 0 ? row - count : NULL;
        uint64_t best_sum = UINT64_MAX;
        int best = 0;
        for (int filter = 0; filter < FILTERS; filter++) {
            uint8_t *candidate = state->candidates + (size_t)filter * count;
            filter_row(candidate, row, above, count, filter);
            uint64_t sum = 0;
            for (size_t i = 0; i < count; i++)
                sum += (uint64_t)abs((int8_t)candidate[i]);
            if (sum < best_sum) {
                best_sum = sum;
                best = filter;
            }
        }
        uint8_t *out = state->filtered + (size_t)y * (count + 1);
        out[0] = (uint8_t)best;
        memcpy(out + 1, state->candidates + (size_t)best * count, count);
    }
}

static hlv_status pack_frame(hlv_video_writer *writer, const uint8_t *rgb) {
    png_state *state = writer->state;
    filter_frame(writer, rgb);
    uLongf size = state->packed_room;
    uLong filtered = (3 * (uLong)writer->width + 1) * (uLong)writer->height;
    if (compress2(state->packed, &size, state->filtered, filtered, ZLIB_LEVEL) != Z_OK)
        return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while compressing a frame of '%s'", writer->path);
    state->packed_size = size;
    return HLV_OK;
}

static void put_be32(uint8_t *out, uint32_t value) {
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(value >> (24 - 8 * i));
}

/* A chunk of up to two pieces: length, type, data, CRC. */
static void write_chunk(hlv_output *output, const char *type, const void *first, size_t first_size, const void *second,
                        size_t second_size) {
    uint8_t word[4];
    uLong crc = crc32(0, (const Bytef *)type, 4);
    put_be32(word, (uint32_t)(first_size + second_size));
    hlv_output_bytes(output, word, 4);
    hlv_output_bytes(output, type, 4);
    if (first_size > 0) crc = crc32_z(crc, first, first_size);
    if (second_size > 0) crc = crc32_z(crc, second, second_size);
    hlv_output_bytes(output, first, first_size);
    hlv_output_bytes(output, second, second_size);
    put_be32(word, (uint32_t)crc);
    hlv_output_bytes(output, word, 4);
}

/* ASCII goes into tEXt, which every reader knows; anything else into iTXt, which is UTF-8. */
static void write_text(hlv_output *output, const char *key, const char *value) {
    bool ascii = true;
    for (const char *c = value; *c != '\0'; c++)
        ascii = ascii && (signed char)*c > 0;
    char head[79 + 5] = {0};
    size_t length = (size_t)snprintf(head, sizeof head - 4, "%s", key); /* 79 bytes at most: check_info */
    write_chunk(output, ascii ? "tEXt" : "iTXt", head, length + (ascii ? 1 : 5), value, strlen(value));
}

static void write_actl(hlv_output *output, int64_t frames) {
    uint8_t data[8];
    put_be32(data, (uint32_t)frames);
    put_be32(data + 4, 0); /* for ever */
    write_chunk(output, "acTL", data, sizeof data, NULL, 0);
}

static void write_head(hlv_video_writer *writer, bool animated) {
    static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    png_state *state = writer->state;
    uint8_t header[13] = {[8] = 8, [9] = 2}; /* 8 bits, RGB, no interlace */
    put_be32(header, (uint32_t)writer->width);
    put_be32(header + 4, (uint32_t)writer->height);
    hlv_output_bytes(&state->output, signature, sizeof signature);
    write_chunk(&state->output, "IHDR", header, sizeof header, NULL, 0);
    if (animated) write_actl(&state->output, 0); /* the number is filled in at the end */
    for (int i = 0; i < writer->metadata_count; i++)
        write_text(&state->output, writer->metadata[2 * i], writer->metadata[2 * i + 1]);
}

static void write_fctl(hlv_video_writer *writer) {
    png_state *state = writer->state;
    unsigned rate, scale;
    hlv_rate_fraction(writer->fps, UINT16_MAX, &rate, &scale);
    uint8_t data[26] = {0}; /* whole frame, no disposal, source replaces */
    put_be32(data, state->sequence++);
    put_be32(data + 4, (uint32_t)writer->width);
    put_be32(data + 8, (uint32_t)writer->height);
    put_be32(data + 20, scale << 16 | rate); /* a frame lasts scale/rate seconds */
    write_chunk(&state->output, "fcTL", data, sizeof data, NULL, 0);
}

static void write_first(hlv_video_writer *writer, bool animated) {
    png_state *state = writer->state;
    write_head(writer, animated);
    if (animated) write_fctl(writer);
    write_chunk(&state->output, "IDAT", state->packed, state->packed_size, NULL, 0);
}

static hlv_status begin(hlv_video_writer *writer) {
    hlv_status status = create_state(writer);
    if (status != HLV_OK) return status;
    png_state *state = writer->state;
    return hlv_output_open(writer, 0, &state->output);
}

static hlv_status frame(hlv_video_writer *writer, const uint8_t *rgb) {
    png_state *state = writer->state;
    if (writer->frames == 1) write_first(writer, true);
    hlv_status status = pack_frame(writer, rgb);
    if (status != HLV_OK || writer->frames == 0) return status;
    uint8_t sequence[4];
    write_fctl(writer);
    put_be32(sequence, state->sequence++);
    write_chunk(&state->output, "fdAT", sequence, sizeof sequence, state->packed, state->packed_size);
    return hlv_output_status(writer, &state->output);
}

static hlv_status end(hlv_video_writer *writer) {
    png_state *state = writer->state;
    if (writer->frames == 1) write_first(writer, false);
    write_chunk(&state->output, "IEND", NULL, 0, NULL, 0);
    if (writer->frames > 1) {
        hlv_output_seek(&state->output, ACTL_POSITION);
        write_actl(&state->output, writer->frames);
    }
    return hlv_output_close(writer, &state->output);
}

const hlv_video_encoder hlv_apng_encoder = {begin, frame, end, release};

static hlv_status sequence_begin(hlv_video_writer *writer) {
    return create_state(writer);
}

static hlv_status sequence_frame(hlv_video_writer *writer, const uint8_t *rgb) {
    png_state *state = writer->state;
    hlv_status status = pack_frame(writer, rgb);
    if (status == HLV_OK) status = hlv_output_open(writer, writer->frames, &state->output);
    if (status != HLV_OK) return status;
    write_first(writer, false);
    write_chunk(&state->output, "IEND", NULL, 0, NULL, 0);
    return hlv_output_close(writer, &state->output);
}

static hlv_status sequence_end(hlv_video_writer *writer) {
    (void)writer;
    return HLV_OK;
}

const hlv_video_encoder hlv_png_sequence_encoder = {sequence_begin, sequence_frame, sequence_end, release};
