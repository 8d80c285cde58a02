/* video/media/gif.c - animated GIF (GIF89a): a palette of its own for each frame, LZW, endless loop, metadata as a
 * comment. */
#include "video/media/media.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BITS 12
#define MAX_CODES (1 << MAX_BITS)
#define BLOCK 255        /* data bytes a sub-block can hold */
#define SHORTEST_DELAY 2 /* hundredths of a second; viewers slow shorter ones down to a tenth of a second */
#define TABLE_SLOTS (1 << 14)

/* Codes as they are made: slot of (prefix code, next byte) -> code. */
typedef struct lzw {
    hlv_output *output;
    uint32_t key[TABLE_SLOTS]; /* prefix << 8 | byte, plus one; 0: empty */
    uint16_t code[TABLE_SLOTS];
    uint32_t bits;
    int bit_count, width;
    uint8_t block[BLOCK];
    unsigned block_size;
} lzw;

typedef struct gif_state {
    hlv_output output;
    hlv_palette *palette;
    uint8_t *indices;
    lzw coder;
} gif_state;

static void flush_block(lzw *coder) {
    if (coder->block_size > 0) {
        hlv_output_byte(coder->output, coder->block_size);
        hlv_output_bytes(coder->output, coder->block, coder->block_size);
    }
    coder->block_size = 0;
}

static void put_code(lzw *coder, unsigned code) {
    coder->bits |= (uint32_t)code << coder->bit_count;
    coder->bit_count += coder->width;
    while (coder->bit_count >= 8) {
        coder->block[coder->block_size++] = (uint8_t)coder->bits;
        coder->bits >>= 8;
        coder->bit_count -= 8;
        if (coder->block_size == BLOCK) flush_block(coder);
    }
}

static void flush_bits(lzw *coder) {
    if (coder->bit_count > 0) {
        coder->block[coder->block_size++] = (uint8_t)coder->bits;
        coder->bits = 0;
        coder->bit_count = 0;
    }
    flush_block(coder);
    hlv_output_byte(coder->output, 0);
}

/* The slot that holds the key, or the empty one where it belongs. */
static unsigned find_slot(const lzw *coder, uint32_t key) {
    unsigned slot = key * 2654435761u >> 18;
    while (coder->key[slot] != 0 && coder->key[slot] != key + 1)
        slot = (slot + 1) % TABLE_SLOTS;
    return slot;
}

/* Variable-width LZW with a clear code whenever the table is full. depth: bits of an index, 2 to 8. */
static void compress_indices(lzw *coder, hlv_output *output, const uint8_t *indices, size_t count, int depth) {
    unsigned clear = 1u << depth, next = clear + 2, prefix = indices[0];
    memset(coder, 0, sizeof *coder);
    coder->output = output;
    coder->width = depth + 1;
    hlv_output_byte(output, (unsigned)depth);
    put_code(coder, clear);
    for (size_t i = 1; i < count; i++) {
        uint32_t key = (uint32_t)prefix << 8 | indices[i];
        unsigned slot = find_slot(coder, key);
        if (coder->key[slot] != 0) {
            prefix = coder->code[slot];
            continue;
        }
        put_code(coder, prefix);
        prefix = indices[i];
        if (next < MAX_CODES) {
            coder->key[slot] = key + 1;
            coder->code[slot] = (uint16_t)next;
            coder->width += next == 1u << coder->width;
            next++;
        } else {
            put_code(coder, clear);
            memset(coder->key, 0, sizeof coder->key);
            coder->width = depth + 1;
            next = clear + 2;
        }
    }
    put_code(coder, prefix);
    coder->width += next == 1u << coder->width && coder->width < MAX_BITS; /* the reader has one code more by now */
    put_code(coder, clear + 1);
    flush_bits(coder);
}

/* One comment of lines "key: value", UTF-8, in sub-blocks. */
static hlv_status write_comment(const hlv_video_writer *writer, hlv_output *output) {
    size_t length = 0, used = 0;
    for (int i = 0; i < 2 * writer->metadata_count; i++)
        length += strlen(writer->metadata[i]) + 2;
    if (length == 0) return HLV_OK;
    char *text = malloc(length);
    if (text == NULL) return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    for (int i = 0; i < 2 * writer->metadata_count; i++) {
        size_t part = strlen(writer->metadata[i]);
        memcpy(text + used, writer->metadata[i], part);
        used += part;
        text[used++] = i % 2 == 0 ? ':' : '\n';
        if (i % 2 == 0) text[used++] = ' ';
    }
    hlv_output_bytes(output, "\x21\xfe", 2);
    for (size_t i = 0; i < used; i += BLOCK) {
        size_t part = used - i < BLOCK ? used - i : BLOCK;
        hlv_output_byte(output, (unsigned)part);
        hlv_output_bytes(output, text + i, part);
    }
    hlv_output_byte(output, 0);
    free(text);
    return HLV_OK;
}

static hlv_status begin(hlv_video_writer *writer) {
    gif_state *state = calloc(1, sizeof *state);
    if (state == NULL) return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    writer->state = state;
    state->palette = hlv_palette_create(writer->ctx);
    state->indices = hlv_alloc(writer->ctx, (size_t)writer->width * (size_t)writer->height);
    if (state->palette == NULL || state->indices == NULL) return HLV_ERROR_MEMORY;
    hlv_status status = hlv_output_open(writer, 0, &state->output);
    if (status != HLV_OK) return status;
    if (writer->fps > 100.0 / SHORTEST_DELAY)
        hlv_log(writer->ctx, HLV_LOG_WARNING, "'%s' plays at %d frames a second: GIF knows no faster rate",
                writer->path, 100 / SHORTEST_DELAY);
    hlv_output *output = &state->output;
    hlv_output_bytes(output, "GIF89a", 6);
    hlv_output_le16(output, (unsigned)writer->width);
    hlv_output_le16(output, (unsigned)writer->height);
    hlv_output_bytes(output, "\x70\0\0", 3);                               /* 8 bits a colour, no global palette */
    hlv_output_bytes(output, "\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0", 19); /* for ever */
    status = write_comment(writer, output);
    return status == HLV_OK ? hlv_output_status(writer, output) : status;
}

/* Frame i lasts from round(100 i / fps) to round(100 (i+1) / fps) hundredths, so that rounding does not add up. */
static unsigned delay(const hlv_video_writer *writer) {
    double start = round(100.0 * (double)writer->frames / writer->fps);
    double length = round(100.0 * (double)(writer->frames + 1) / writer->fps) - start;
    return (unsigned)fmin(fmax(length, SHORTEST_DELAY), UINT16_MAX);
}

static hlv_status frame(hlv_video_writer *writer, const uint8_t *rgb) {
    gif_state *state = writer->state;
    hlv_output *output = &state->output;
    uint8_t colours[256 * 3] = {0};
    int count = hlv_palette_map(state->palette, colours, state->indices, rgb, writer->width, writer->height);
    int depth = 2; /* the least that LZW allows */
    while (1 << depth < count)
        depth++;
    hlv_output_bytes(output, "\x21\xf9\x04\x04", 4); /* leave the frame in place */
    hlv_output_le16(output, delay(writer));
    hlv_output_bytes(output, "\0\0\x2c\0\0\0\0", 7); /* no transparency; an image at 0, 0 */
    hlv_output_le16(output, (unsigned)writer->width);
    hlv_output_le16(output, (unsigned)writer->height);
    hlv_output_byte(output, 0x80u | (unsigned)(depth - 1));
    hlv_output_bytes(output, colours, (size_t)3 << depth);
    compress_indices(&state->coder, output, state->indices, (size_t)writer->width * (size_t)writer->height, depth);
    return hlv_output_status(writer, output);
}

static hlv_status end(hlv_video_writer *writer) {
    gif_state *state = writer->state;
    hlv_output_byte(&state->output, 0x3b);
    return hlv_output_close(writer, &state->output);
}

static void release(hlv_video_writer *writer) {
    gif_state *state = writer->state;
    if (state == NULL) return;
    hlv_output_close(writer, &state->output);
    hlv_palette_free(writer->ctx, state->palette);
    hlv_free(writer->ctx, state->indices);
    free(state);
}

const hlv_video_encoder hlv_gif_encoder = {begin, frame, end, release};
