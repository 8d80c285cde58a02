/* video/media/output.c - a part file being written: the first error is remembered, so that encoders need not ask at
 * each byte. */
#include "video/media/media.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

hlv_status hlv_output_open(hlv_video_writer *writer, int64_t part, hlv_output *output) {
    *output = (hlv_output){0};
    char *name = hlv_part_name(writer, part);
    if (name == NULL) return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    free(name);
    if (fd < 0) return hlv_fail(writer->ctx, HLV_ERROR_IO, "cannot write '%s': %s", writer->path, strerror(errno));
    if (writer->parts <= part) writer->parts = part + 1;
    output->file = fdopen(fd, "wb");
    if (output->file == NULL) {
        close(fd);
        return hlv_fail(writer->ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", writer->path);
    }
    return HLV_OK;
}

void hlv_output_bytes(hlv_output *output, const void *bytes, size_t count) {
    if (output->error == 0 && count > 0 && fwrite(bytes, 1, count, output->file) != count)
        output->error = errno != 0 ? errno : EIO;
}

void hlv_output_byte(hlv_output *output, unsigned value) {
    uint8_t byte = (uint8_t)value;
    hlv_output_bytes(output, &byte, 1);
}

void hlv_output_le16(hlv_output *output, unsigned value) {
    hlv_output_byte(output, value & 0xff);
    hlv_output_byte(output, value >> 8 & 0xff);
}

void hlv_output_seek(hlv_output *output, long position) {
    if (output->error == 0 && fseek(output->file, position, SEEK_SET) != 0) output->error = errno != 0 ? errno : EIO;
}

hlv_status hlv_output_status(hlv_video_writer *writer, const hlv_output *output) {
    if (output->error == 0) return HLV_OK;
    return hlv_fail(writer->ctx, HLV_ERROR_IO, "cannot write '%s': %s", writer->path, strerror(output->error));
}

hlv_status hlv_output_close(hlv_video_writer *writer, hlv_output *output) {
    if (output->file == NULL) return HLV_OK;
    if (fflush(output->file) != 0 && output->error == 0) output->error = errno;
    if (fclose(output->file) != 0 && output->error == 0) output->error = errno;
    output->file = NULL;
    return hlv_output_status(writer, output);
}
