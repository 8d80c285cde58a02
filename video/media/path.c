/* video/media/path.c - names of part files and of numbered pictures, and whether a path can be written at all. */
#include "video/media/media.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_NUMBER_WIDTH 9

/* Bytes of path up to and with the last slash. */
static size_t directory_length(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? 0 : (size_t)(slash - path) + 1;
}

char *hlv_part_name(const hlv_video_writer *writer, int64_t part) {
    size_t directory = directory_length(writer->path);
    size_t size = directory + 64;
    char *name = malloc(size);
    if (name != NULL)
        snprintf(name, size, "%.*s.hla-%" PRIx64 "-%" PRId64 ".part", (int)directory, writer->path, writer->tag, part);
    return name;
}

char *hlv_target_name(const hlv_video_writer *writer, int64_t part) {
    return writer->format->sequence ? hlv_pattern_expand(writer->path, part) : strdup(writer->path);
}

/* The length of the conversion at text ("%d", "%03d", "%%"), 0 if it is none of these; *width its digits, -1 for "%%".
 */
static size_t conversion(const char *text, int *width) {
    *width = 0;
    if (text[1] == '%') {
        *width = -1;
        return 2;
    }
    if (text[1] == 'd') return 2;
    if (text[1] != '0' || text[2] < '1' || text[2] > '0' + MAX_NUMBER_WIDTH || text[3] != 'd') return 0;
    *width = text[2] - '0';
    return 4;
}

bool hlv_pattern_valid(const char *pattern) {
    int numbers = 0, width;
    size_t name = directory_length(pattern);
    for (const char *next = strchr(pattern, '%'); next != NULL; next = strchr(next, '%')) {
        size_t length = conversion(next, &width);
        if (length == 0 || (width >= 0 && (size_t)(next - pattern) < name)) return false;
        numbers += width >= 0;
        next += length;
    }
    return numbers == 1;
}

char *hlv_pattern_expand(const char *pattern, int64_t number) {
    size_t size = strlen(pattern) + 32;
    char *name = malloc(size);
    if (name == NULL) return NULL;
    size_t used = 0;
    while (*pattern != '\0') {
        int width = -1;
        size_t length = *pattern == '%' ? conversion(pattern, &width) : 1;
        if (width >= 0)
            used += (size_t)snprintf(name + used, size - used, "%0*" PRId64, width, number);
        else
            name[used++] = *pattern;
        pattern += length;
    }
    name[used] = '\0';
    return name;
}

static hlv_status check_target(hlv_context *ctx, const char *path) {
    struct stat info;
    if (stat(path, &info) != 0) return HLV_OK;
    if (S_ISDIR(info.st_mode)) return hlv_fail(ctx, HLV_ERROR_IO, "cannot write '%s': it is a directory", path);
    if (!S_ISREG(info.st_mode))
        return hlv_fail(ctx, HLV_ERROR_IO, "cannot write '%s': it exists and is not a regular file", path);
    return HLV_OK;
}

hlv_status hlv_path_check(hlv_context *ctx, const char *path, bool sequence) {
    size_t length = directory_length(path);
    char *directory = length > 0 ? strndup(path, length) : strdup(".");
    if (directory == NULL) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory while checking '%s'", path);
    struct stat info;
    hlv_status status = HLV_OK;
    if (stat(directory, &info) == 0 && !S_ISDIR(info.st_mode))
        status = hlv_fail(ctx, HLV_ERROR_IO, "cannot write '%s': '%s' is not a directory", path, directory);
    else if (access(directory, W_OK | X_OK) != 0)
        status = hlv_fail(ctx, HLV_ERROR_IO, "cannot write '%s': directory '%s': %s", path, directory, strerror(errno));
    free(directory);
    if (status == HLV_OK && !sequence) status = check_target(ctx, path);
    return status;
}
