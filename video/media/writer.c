/* video/media/writer.c - the public video writer: which format a path asks for, part files, and the rename at the end.
 */
#include "video/media/media.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

/* crf 18 and 24: no visible loss in H.264 and VP9. Colours are converted by BT.709 and marked so, because unmarked
 * files are guessed at differently by different players. use_metadata_tags keeps keys that MP4 has no atom for. */
/* clang-format off */
static const char *const mp4_options[] = {
    "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-c:v", "libx264", "-preset", "medium", "-crf", "18",
    "-pix_fmt", "yuv420p", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709",
    "-color_range", "tv", "-movflags", "+faststart+use_metadata_tags", "-f", "mp4", NULL};
static const char *const webm_options[] = {
    "-vf", "scale=out_color_matrix=bt709:out_range=tv", "-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0",
    "-deadline", "good", "-cpu-used", "4", "-row-mt", "1", "-pix_fmt", "yuv420p", "-colorspace", "bt709",
    "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv", "-f", "webm", NULL};
/* clang-format on */

static const hlv_video_format formats[] = {
    {".mp4", &hlv_ffmpeg_encoder, mp4_options, false}, {".webm", &hlv_ffmpeg_encoder, webm_options, false},
    {".gif", &hlv_gif_encoder, NULL, false},           {".png", &hlv_apng_encoder, NULL, false},
    {".apng", &hlv_apng_encoder, NULL, false},         {".y4m", &hlv_y4m_encoder, NULL, false},
};
static const hlv_video_format png_sequence = {".png", &hlv_png_sequence_encoder, NULL, true};

/* NULL, and a sentence, when the path asks for none. */
static const hlv_video_format *find_format(hlv_context *ctx, const char *path) {
    if (path == NULL || path[0] == '\0') {
        hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the output path is empty");
        return NULL;
    }
    const char *slash = strrchr(path, '/');
    const char *name = slash == NULL ? path : slash + 1;
    size_t length = strlen(name);
    const hlv_video_format *format = NULL;
    for (size_t i = 0; i < sizeof formats / sizeof formats[0] && format == NULL; i++) {
        size_t extension = strlen(formats[i].extension);
        if (length > extension && strcasecmp(name + length - extension, formats[i].extension) == 0)
            format = &formats[i];
    }
    if (format == NULL)
        hlv_fail(ctx, HLV_ERROR_ARGUMENT,
                 "output '%s': its ending must be one of .mp4 .webm .gif .png .apng .y4m, or a pattern such as "
                 "frame-%%03d.png",
                 path);
    if (format == NULL || strcmp(format->extension, ".png") != 0 || strchr(name, '%') == NULL) return format;
    if (hlv_pattern_valid(path)) return &png_sequence;
    hlv_fail(ctx, HLV_ERROR_ARGUMENT,
             "output '%s': a name with %% must hold exactly one %%d or %%0Nd (N from 1 to 9) in its last part, as in "
             "frame-%%03d.png",
             path);
    return NULL;
}

hlv_status hlv_video_check(hlv_context *context, const char *path) {
    if (context == NULL) return HLV_ERROR_ARGUMENT;
    const hlv_video_format *format = find_format(context, path);
    if (format == NULL) return HLV_ERROR_ARGUMENT;
    hlv_status status = hlv_path_check(context, path, format->sequence);
    if (status == HLV_OK && format->ffmpeg_options != NULL) status = hlv_ffmpeg_probe(context, path, format);
    return status;
}

void hlv_rate_fraction(double fps, unsigned limit, unsigned *numerator, unsigned *denominator) {
    double best = INFINITY;
    *numerator = 1;
    *denominator = 1;
    for (unsigned d = 1; d <= limit && fps * d < limit + 0.5; d++) {
        double n = fmax(1.0, round(fps * d));
        double error = fabs(n / d - fps);
        if (error < best) {
            best = error;
            *numerator = (unsigned)n;
            *denominator = d;
        }
        if (best <= 1e-9 * fps) return;
    }
}

static hlv_status check_info(hlv_context *ctx, const char *path, const hlv_video_info *info) {
    if (info == NULL) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "output '%s': no size and frame rate given", path);
    if (info->width < 1 || info->height < 1 || info->width > HLV_MAX_PIXELS_A_SIDE ||
        info->height > HLV_MAX_PIXELS_A_SIDE)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "output '%s': size %dx%d is outside 1 to %d a side", path, info->width,
                        info->height, HLV_MAX_PIXELS_A_SIDE);
    if (!(info->fps >= 0.01 && info->fps <= 1000))
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "output '%s': %g frames a second is outside 0.01 to 1000", path,
                        info->fps);
    if (info->metadata_count < 0 || (info->metadata_count > 0 && info->metadata == NULL))
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "output '%s': metadata is missing or its count is negative", path);
    for (int i = 0; i < 2 * info->metadata_count; i++) {
        const char *text = info->metadata[i];
        if (text == NULL || (i % 2 == 0 && (text[0] == '\0' || strlen(text) > 79 || strpbrk(text, "=\n\r") != NULL)))
            return hlv_fail(ctx, HLV_ERROR_ARGUMENT,
                            "output '%s': metadata entry %d is NULL or its key is not 1 to 79 bytes without '='", path,
                            i / 2);
    }
    return HLV_OK;
}

static bool copy_info(hlv_video_writer *writer, const char *path, const hlv_video_info *info) {
    writer->path = strdup(path);
    writer->width = info->width;
    writer->height = info->height;
    writer->fps = info->fps;
    writer->metadata = calloc(2 * (size_t)info->metadata_count + 1, sizeof *writer->metadata);
    if (writer->path == NULL || writer->metadata == NULL) return false;
    writer->metadata_count = info->metadata_count;
    for (int i = 0; i < 2 * info->metadata_count; i++)
        if ((writer->metadata[i] = strdup(info->metadata[i])) == NULL) return false;
    return true;
}

static void remove_parts(hlv_video_writer *writer) {
    for (int64_t i = 0; i < writer->parts; i++) {
        char *part = hlv_part_name(writer, i);
        if (part != NULL) unlink(part);
        free(part);
    }
}

static void free_writer(hlv_video_writer *writer) {
    for (int i = 0; writer->metadata != NULL && i < 2 * writer->metadata_count; i++)
        free(writer->metadata[i]);
    free(writer->metadata);
    free(writer->path);
    free(writer);
}

/* A number no other writer of this machine is likely to have; O_EXCL settles the rest. */
static uint64_t make_tag(const hlv_video_writer *writer) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t tag = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    return (tag ^ (uint64_t)(uintptr_t)writer << 17) * 0x9e3779b97f4a7c15u + (uint64_t)getpid();
}

hlv_status hlv_video_writer_open(hlv_context *context, const char *path, const hlv_video_info *info,
                                 hlv_video_writer **writer) {
    if (context == NULL || writer == NULL) return HLV_ERROR_ARGUMENT;
    *writer = NULL;
    const hlv_video_format *format = find_format(context, path);
    if (format == NULL) return HLV_ERROR_ARGUMENT;
    hlv_status status = check_info(context, path, info);
    if (status == HLV_OK) status = hlv_path_check(context, path, format->sequence);
    if (status != HLV_OK) return status;
    hlv_video_writer *made = calloc(1, sizeof *made);
    if (made == NULL || !copy_info(made, path, info)) {
        if (made != NULL) free_writer(made);
        return hlv_fail(context, HLV_ERROR_MEMORY, "out of memory while opening '%s'", path);
    }
    made->ctx = context;
    made->format = format;
    made->tag = make_tag(made);
    status = format->encoder->begin(made);
    if (status != HLV_OK) {
        format->encoder->release(made);
        remove_parts(made);
        free_writer(made);
        return status;
    }
    *writer = made;
    return HLV_OK;
}

hlv_status hlv_video_writer_frame(hlv_video_writer *writer, const uint8_t *rgb) {
    if (writer == NULL) return HLV_ERROR_ARGUMENT;
    if (writer->failed != HLV_OK) return writer->failed;
    if (rgb == NULL)
        return hlv_fail(writer->ctx, HLV_ERROR_ARGUMENT, "output '%s': frame %lld is NULL", writer->path,
                        (long long)writer->frames);
    writer->failed = writer->format->encoder->frame(writer, rgb);
    writer->frames++;
    return writer->failed;
}

/* Renames part i to target i. When one fails, the targets made before it are removed again. */
static hlv_status publish(hlv_video_writer *writer) {
    hlv_status status = HLV_OK;
    int64_t done = 0;
    for (; done < writer->parts && status == HLV_OK; done++) {
        char *part = hlv_part_name(writer, done), *target = hlv_target_name(writer, done);
        if (part == NULL || target == NULL)
            status = hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while closing '%s'", writer->path);
        else if (rename(part, target) != 0)
            status = hlv_fail(writer->ctx, HLV_ERROR_IO, "cannot write '%s': %s", target, strerror(errno));
        free(part);
        free(target);
    }
    for (int64_t i = 0; status != HLV_OK && i < done - 1; i++) {
        char *target = hlv_target_name(writer, i);
        if (target != NULL) unlink(target);
        free(target);
    }
    return status;
}

hlv_status hlv_video_writer_close(hlv_video_writer *writer, bool keep) {
    if (writer == NULL) return HLV_OK;
    hlv_status status = writer->failed;
    if (keep && status == HLV_OK && writer->frames == 0)
        status = hlv_fail(writer->ctx, HLV_ERROR_ARGUMENT, "output '%s': no frames were written", writer->path);
    if (keep && status == HLV_OK) status = writer->format->encoder->end(writer);
    writer->format->encoder->release(writer);
    if (keep && status == HLV_OK) status = publish(writer);
    if (!keep || status != HLV_OK) remove_parts(writer);
    free_writer(writer);
    return keep ? status : HLV_OK;
}
