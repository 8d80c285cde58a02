#include "tests/media/frames.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static uint32_t hash(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

void make_picture(uint8_t *rgb, picture kind, int width, int height, int i) {
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < 3; c++) {
                uint32_t noise = hash((uint32_t)(((i * 1031 + y) * 1031 + x) * 3 + c));
                double wave = 127.5 + 100 * sin(0.05 * (x + 2 * c + 3 * i)) * cos(0.04 * (y - c));
                int few = (x / 3 + y / 5 + i + c * 7) % 6 * 51;
                *rgb++ = kind == PICTURE_NOISE ? (uint8_t)noise : kind == PICTURE_SMOOTH ? (uint8_t)wave : (uint8_t)few;
            }
}

char *make_scratch(void) {
    char *directory = strdup("/tmp/hlv-media-XXXXXX");
    assert_non_null(directory);
    assert_non_null(mkdtemp(directory));
    return directory;
}

static struct dirent *next_file(DIR *files) {
    struct dirent *file = readdir(files);
    while (file != NULL && (strcmp(file->d_name, ".") == 0 || strcmp(file->d_name, "..") == 0))
        file = readdir(files);
    return file;
}

int count_files(const char *directory) {
    DIR *files = opendir(directory);
    assert_non_null(files);
    int count = 0;
    while (next_file(files) != NULL)
        count++;
    closedir(files);
    return count;
}

void remove_scratch(char *directory) {
    DIR *files = opendir(directory);
    assert_non_null(files);
    for (struct dirent *file = next_file(files); file != NULL; file = next_file(files)) {
        char path[512];
        join(path, sizeof path, directory, file->d_name);
        unlink(path);
    }
    closedir(files);
    assert_int_equal(rmdir(directory), 0);
    free(directory);
}

void join(char *out, size_t size, const char *directory, const char *name) {
    int length = snprintf(out, size, "%s/%s", directory, name);
    assert_true(length > 0 && (size_t)length < size);
}

char *run_program(size_t *size, const char *format, ...) {
    char command[2048];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(command, sizeof command, format, args);
    va_end(args);
    assert_true(length > 0 && (size_t)length < sizeof command);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t used = 0, room = 1 << 16;
    char *text = malloc(room);
    assert_non_null(text);
    for (size_t got; (got = fread(text + used, 1, room - used - 1, pipe)) > 0;) {
        used += got;
        if (room - used < room / 2) {
            room *= 2;
            char *larger = realloc(text, room);
            assert_non_null(larger);
            text = larger;
        }
    }
    text[used] = '\0';
    if (pclose(pipe) != 0) fail_msg("failed: %s", command);
    if (size != NULL) *size = used;
    return text;
}

uint8_t *decode(const char *path, size_t *size) {
    return (uint8_t *)run_program(
        size, "ffmpeg -v error -i '%s' -fps_mode passthrough -f rawvideo -pix_fmt rgb24 - </dev/null", path);
}

double psnr(const uint8_t *a, const uint8_t *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)(a[i] - b[i]) * (a[i] - b[i]);
    return 10 * log10(255.0 * 255.0 / (sum / (double)count + 1e-12));
}

hlv_status write_video(hlv_context *ctx, const char *path, const hlv_video_info *info, picture kind, int frames) {
    hlv_video_writer *writer = NULL;
    hlv_status status = hlv_video_writer_open(ctx, path, info, &writer);
    if (status != HLV_OK) {
        assert_null(writer);
        return status;
    }
    uint8_t *rgb = malloc((size_t)info->width * (size_t)info->height * 3);
    assert_non_null(rgb);
    for (int i = 0; i < frames && status == HLV_OK; i++) {
        make_picture(rgb, kind, info->width, info->height, i);
        status = hlv_video_writer_frame(writer, rgb);
    }
    free(rgb);
    hlv_status closed = hlv_video_writer_close(writer, true);
    assert_true(status == HLV_OK || closed == status);
    return closed;
}
