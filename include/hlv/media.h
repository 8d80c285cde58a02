/* hlv/media.h - frames to files: MP4 and WebM through the ffmpeg program, GIF, animated PNG, Y4M and single PNGs
 * without.
 *
 *     hlv_video_writer *writer = NULL;
 *     hlv_video_writer_open(ctx, "rocket.mp4", &(hlv_video_info){.width = 128, .height = 128, .fps = 16}, &writer);
 *     for (...) hlv_video_writer_frame(writer, rgb);
 *     hlv_video_writer_close(writer, true);
 */
#ifndef HLV_MEDIA_H
#define HLV_MEDIA_H

#include "hlv/context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hlv_video_info {
    int width, height; /* pixels */
    double fps;        /* frames a second */
    /* Written into the file where its format can: prompt, seed, model, settings as key/value strings. */
    const char *const *metadata; /* metadata_count pairs: key, value, key, value, ... */
    int metadata_count;
} hlv_video_info;

typedef struct hlv_video_writer hlv_video_writer;

/* The format follows the extension: .mp4 .webm (need ffmpeg) .gif .png/.apng (animated) .y4m; a path holding "%" and
 * ending in .png, such as "frame-%03d.png", writes single PNGs. Checked before anything is computed: see
 * hlv_video_check. The file appears under its name only after a successful close; a failure leaves nothing behind. */
HLV_API hlv_status hlv_video_check(hlv_context *context,
                                   const char *path); /* can this path be written on this machine? */
HLV_API hlv_status hlv_video_writer_open(hlv_context *context, const char *path, const hlv_video_info *info,
                                         hlv_video_writer **writer);
HLV_API hlv_status hlv_video_writer_frame(hlv_video_writer *writer, const uint8_t *rgb); /* height*width*3 bytes */
HLV_API hlv_status hlv_video_writer_close(hlv_video_writer *writer, bool keep);          /* frees writer in any case */

#ifdef __cplusplus
}
#endif
#endif
