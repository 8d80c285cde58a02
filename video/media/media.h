/* video/media/media.h - the inside of the video writer: one table of formats, part files, and the pieces they share. */
#ifndef HLV_MEDIA_INTERNAL_H
#define HLV_MEDIA_INTERNAL_H

#include "hlv/media.h"
#include "video/core/context.h"
#include "video/media/process.h"

#include <stdio.h>

#define HLV_MAX_PIXELS_A_SIDE 16384

/* One way to write frames. `begin` may leave writer->state; `end` completes the part files; `release` runs last and in
 * any case, also after a failed begin, and must cope with a NULL state. */
typedef struct hlv_video_encoder {
    hlv_status (*begin)(hlv_video_writer *writer);
    hlv_status (*frame)(hlv_video_writer *writer, const uint8_t *rgb);
    hlv_status (*end)(hlv_video_writer *writer);
    void (*release)(hlv_video_writer *writer);
} hlv_video_encoder;

/* A format: how a path is recognised, who encodes it, and what the ffmpeg program is told (NULL: not used). */
typedef struct hlv_video_format {
    const char *extension;
    const hlv_video_encoder *encoder;
    const char *const *ffmpeg_options; /* encoder and container, NULL-terminated */
    bool sequence;                     /* one file a frame, path holds one %d */
} hlv_video_format;

extern const hlv_video_encoder hlv_ffmpeg_encoder, hlv_gif_encoder, hlv_apng_encoder, hlv_png_sequence_encoder,
    hlv_y4m_encoder;

struct hlv_video_writer {
    hlv_context *ctx;
    const hlv_video_format *format;
    char *path;
    int width, height;
    double fps;
    char **metadata; /* 2 * metadata_count strings: key, value, ... */
    int metadata_count;
    int64_t frames; /* handed over so far */
    hlv_status failed;
    void *state; /* the encoder's own */

    /* Everything is written to part files beside the target and renamed at close: part i becomes target i. */
    uint64_t tag;
    int64_t parts; /* how many part files may exist */
};

/* path.c: names. All return malloc'ed strings, NULL when memory is short. */
char *hlv_part_name(const hlv_video_writer *writer, int64_t part);
char *hlv_target_name(const hlv_video_writer *writer, int64_t part);
bool hlv_pattern_valid(const char *pattern);                   /* exactly one %d or %0Nd in the file name; %% is a % */
char *hlv_pattern_expand(const char *pattern, int64_t number); /* pattern must be valid */
hlv_status hlv_path_check(hlv_context *ctx, const char *path, bool sequence);

/* output.c: a part file being written. Errors are remembered, and reported by close. Multi-byte numbers go out in the
 * order named. */
typedef struct hlv_output {
    FILE *file;
    int error; /* the first errno */
} hlv_output;
hlv_status hlv_output_open(hlv_video_writer *writer, int64_t part, hlv_output *output);
void hlv_output_bytes(hlv_output *output, const void *bytes, size_t count);
void hlv_output_byte(hlv_output *output, unsigned value);
void hlv_output_le16(hlv_output *output, unsigned value);
void hlv_output_seek(hlv_output *output, long position);
hlv_status hlv_output_status(hlv_video_writer *writer, const hlv_output *output); /* the sentence of the first error */
hlv_status hlv_output_close(hlv_video_writer *writer, hlv_output *output);        /* flushes; a closed one is fine */

/* writer.c: fps as a fraction with both parts at most `limit`: exact for whole rates and for n*1000/1001. */
void hlv_rate_fraction(double fps, unsigned limit, unsigned *numerator, unsigned *denominator);

/* palette.c: at most 256 colours for one frame and the index of each pixel. Up to 256 distinct colours are kept
 * exactly; more are cut by variance, and an ordered dither hides the steps. */
typedef struct hlv_palette hlv_palette;
hlv_palette *hlv_palette_create(hlv_context *ctx);
void hlv_palette_free(hlv_context *ctx, hlv_palette *palette);
/* colours: 256*3 bytes; indices: width*height bytes; returns the number of colours. */
int hlv_palette_map(hlv_palette *palette, uint8_t *colours, uint8_t *indices, const uint8_t *rgb, int width,
                    int height);

/* ffmpeg.c: encodes one small frame to nowhere, so that a missing program or codec is found before hours of computing.
 */
hlv_status hlv_ffmpeg_probe(hlv_context *ctx, const char *path, const hlv_video_format *format);

#endif
