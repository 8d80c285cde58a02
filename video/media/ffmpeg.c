/* video/media/ffmpeg.c - MP4 and WebM: raw RGB frames into the ffmpeg program. Odd widths and heights are made even by
 * repeating the last column and row: 4:2:0 needs even sizes, and it is the only sampling that every player shows. */
#include "video/media/media.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MAX_VALUE_BYTES 16384 /* of a metadata value: a command line has a limit */
#define PROBE_SIDE 64

static const char without_ffmpeg[] = "formats that need no ffmpeg: .gif .png .apng .y4m frame-%03d.png";

typedef struct ffmpeg_state {
    hlv_process process;
    uint8_t *padded; /* one frame of even size, NULL when the frames are even already */
} ffmpeg_state;

/* A growing, NULL-terminated list of owned strings; failed once memory was short. */
typedef struct arguments {
    char **list;
    size_t count;
    bool failed;
} arguments;

static void add_owned(arguments *args, char *text) {
    char **list = text == NULL ? NULL : realloc(args->list, (args->count + 2) * sizeof *list);
    if (list == NULL) {
        args->failed = true;
        free(text);
        return;
    }
    args->list = list;
    args->list[args->count++] = text;
    args->list[args->count] = NULL;
}

static void add(arguments *args, const char *text) {
    add_owned(args, strdup(text));
}

static void add_all(arguments *args, const char *const *texts) {
    for (; *texts != NULL; texts++)
        add(args, *texts);
}

static void free_arguments(arguments *args) {
    for (size_t i = 0; i < args->count; i++)
        free(args->list[i]);
    free(args->list);
}

/* key=value, a long value cut at a character. */
static char *metadata_argument(const char *key, const char *value) {
    size_t length = strlen(value);
    if (length > MAX_VALUE_BYTES) {
        length = MAX_VALUE_BYTES;
        while (length > 0 && ((unsigned char)value[length] & 0xc0) == 0x80)
            length--;
    }
    size_t size = strlen(key) + length + 2;
    char *argument = malloc(size);
    if (argument != NULL) snprintf(argument, size, "%s=%.*s", key, (int)length, value);
    return argument;
}

static void add_input(arguments *args, char *program, int width, int height, double fps) {
    /* Without -xerror ffmpeg 5.1 ends with status 0 when the disk is full. */
    static const char *const before[] = {"-hide_banner", "-nostdin", "-xerror", "-loglevel",   "error", "-f",
                                         "rawvideo",     "-pix_fmt", "rgb24",   "-video_size", NULL};
    char text[64];
    unsigned numerator, denominator;
    add_owned(args, program);
    add_all(args, before);
    snprintf(text, sizeof text, "%dx%d", width, height);
    add(args, text);
    hlv_rate_fraction(fps, 1000000, &numerator, &denominator);
    snprintf(text, sizeof text, "%u/%u", numerator, denominator);
    add(args, "-framerate");
    add(args, text);
    add(args, "-i");
    add(args, "pipe:0");
}

/* "file:" keeps a name with a colon or a leading dash from being taken for a protocol or an option. */
static void add_output(arguments *args, const char *name) {
    size_t size = strlen(name) + 8;
    char *text = malloc(size);
    if (text != NULL) snprintf(text, size, "file:%s", name);
    add(args, "-n");
    add_owned(args, text);
}

static hlv_status missing(hlv_context *ctx, const char *path) {
    return hlv_fail(ctx, HLV_ERROR_UNSUPPORTED, "'%s' needs the ffmpeg program, which is not on PATH; %s", path,
                    without_ffmpeg);
}

/* Starts ffmpeg with these arguments, which are freed. */
static hlv_status start(hlv_context *ctx, const char *path, hlv_process *process, arguments *args) {
    hlv_status status = HLV_OK;
    if (args->failed)
        status = hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory while starting ffmpeg for '%s'", path);
    else if (!hlv_process_start(process, args->list))
        status = hlv_fail(ctx, HLV_ERROR_IO, "cannot start '%s' for '%s': %s", args->list[0], path, strerror(errno));
    free_arguments(args);
    return status;
}

/* The sentence of an ffmpeg that stopped: how it ended, and its own last line. */
static hlv_status stopped(hlv_context *ctx, const char *path, hlv_process *process, int exit_status) {
    char line[HLV_COMPLAINT_BYTES], how[64];
    hlv_process_last_line(process, line, sizeof line);
    if (WIFSIGNALED(exit_status))
        snprintf(how, sizeof how, "was ended by signal %d", WTERMSIG(exit_status));
    else if (WEXITSTATUS(exit_status) != 0)
        snprintf(how, sizeof how, "stopped with exit status %d", WEXITSTATUS(exit_status));
    else
        snprintf(how, sizeof how, "stopped before it had read all frames");
    return hlv_fail(ctx, HLV_ERROR_IO, "ffmpeg %s while writing '%s'%s%s", how, path, line[0] != '\0' ? ": " : "",
                    line);
}

static hlv_status cancelled(hlv_context *ctx, const char *path) {
    return hlv_fail(ctx, HLV_ERROR_CANCELLED, "cancelled: '%s' was not written", path);
}

static hlv_status feed(hlv_context *ctx, const char *path, hlv_process *process, const uint8_t *bytes, size_t count) {
    hlv_status status = hlv_process_feed(ctx, process, bytes, count);
    if (status == HLV_ERROR_IO) {
        int exit_status;
        status = hlv_process_finish(ctx, process, &exit_status);
        if (status == HLV_OK) return stopped(ctx, path, process, exit_status);
    }
    return status == HLV_ERROR_CANCELLED ? cancelled(ctx, path) : status;
}

static hlv_status finish(hlv_context *ctx, const char *path, hlv_process *process) {
    int exit_status;
    hlv_status status = hlv_process_finish(ctx, process, &exit_status);
    if (status != HLV_OK) return cancelled(ctx, path);
    return exit_status == 0 ? HLV_OK : stopped(ctx, path, process, exit_status);
}

hlv_status hlv_ffmpeg_probe(hlv_context *ctx, const char *path, const hlv_video_format *format) {
    static const char *const nowhere[] = {"-f", "null", "-", NULL};
    char *program = hlv_find_program("ffmpeg");
    if (program == NULL) return missing(ctx, path);
    arguments args = {0};
    add_input(&args, program, PROBE_SIDE, PROBE_SIDE, 16);
    for (const char *const *option = format->ffmpeg_options; strcmp(*option, "-f") != 0; option++)
        add(&args, *option);
    add_all(&args, nowhere);
    hlv_process process = {.input = -1, .complaint = -1};
    uint8_t frame[PROBE_SIDE * PROBE_SIDE * 3] = {0};
    hlv_status status = start(ctx, path, &process, &args);
    if (status == HLV_OK) status = feed(ctx, path, &process, frame, sizeof frame);
    if (status == HLV_OK) status = finish(ctx, path, &process);
    hlv_process_stop(&process);
    return status;
}

static int even(int size) {
    return size + size % 2;
}

static hlv_status begin(hlv_video_writer *writer) {
    char *program = hlv_find_program("ffmpeg");
    if (program == NULL) return missing(writer->ctx, writer->path);
    ffmpeg_state *state = calloc(1, sizeof *state);
    char *part = hlv_part_name(writer, 0);
    if (state == NULL || part == NULL) {
        free(state);
        free(part);
        free(program);
        return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    }
    state->process = (hlv_process){.input = -1, .complaint = -1};
    writer->state = state;
    int width = even(writer->width), height = even(writer->height);
    arguments args = {0};
    add_input(&args, program, width, height, writer->fps);
    for (int i = 0; i < writer->metadata_count; i++) {
        add(&args, "-metadata");
        add_owned(&args, metadata_argument(writer->metadata[2 * i], writer->metadata[2 * i + 1]));
    }
    add_all(&args, writer->format->ffmpeg_options);
    add_output(&args, part);
    free(part);
    writer->parts = 1;
    if (width != writer->width || height != writer->height) {
        state->padded = hlv_alloc(writer->ctx, (size_t)width * (size_t)height * 3);
        if (state->padded == NULL) {
            free_arguments(&args);
            return HLV_ERROR_MEMORY;
        }
    }
    return start(writer->ctx, writer->path, &state->process, &args);
}

static void pad(uint8_t *out, const uint8_t *rgb, int width, int height) {
    size_t row = 3 * (size_t)width, out_row = 3 * (size_t)even(width);
    for (int y = 0; y < even(height); y++) {
        const uint8_t *from = rgb + row * (size_t)(y < height ? y : height - 1);
        uint8_t *to = out + out_row * (size_t)y;
        memcpy(to, from, row);
        memcpy(to + out_row - 3, from + row - 3, 3);
    }
}

static hlv_status frame(hlv_video_writer *writer, const uint8_t *rgb) {
    ffmpeg_state *state = writer->state;
    if (state->padded != NULL) {
        pad(state->padded, rgb, writer->width, writer->height);
        rgb = state->padded;
    }
    return feed(writer->ctx, writer->path, &state->process, rgb,
                3 * (size_t)even(writer->width) * (size_t)even(writer->height));
}

static hlv_status end(hlv_video_writer *writer) {
    ffmpeg_state *state = writer->state;
    hlv_status status = finish(writer->ctx, writer->path, &state->process);
    if (status != HLV_OK) return status;
    char *part = hlv_part_name(writer, 0);
    struct stat info;
    bool written = part != NULL && stat(part, &info) == 0 && info.st_size > 0;
    free(part);
    return written ? HLV_OK : hlv_fail(writer->ctx, HLV_ERROR_IO, "ffmpeg ended without writing '%s'", writer->path);
}

static void release(hlv_video_writer *writer) {
    ffmpeg_state *state = writer->state;
    if (state == NULL) return;
    hlv_process_stop(&state->process);
    hlv_free(writer->ctx, state->padded);
    free(state);
}

const hlv_video_encoder hlv_ffmpeg_encoder = {begin, frame, end, release};
