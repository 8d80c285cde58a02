/* Writing .safetensors files: all or nothing under the final name. */
#include "video/weights/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_ALIGNMENT 8
#define MAX_PIECE (1 << 30) /* bytes of one write */
#define MAX_ATTEMPTS 100    /* at a name for the temporary file */
#define TEMPORARY_SUFFIX 48 /* bytes of ".part-PID-N" */

static const char *dtype_name(hla_dtype dtype) {
    static const char *const names[] = {[HLA_F32] = "F32", [HLA_BF16] = "BF16", [HLA_F16] = "F16"};
    return names[dtype];
}

/* Bytes of a tensor's data, or a sentence about what is wrong with its description. */
static hlv_status tensor_bytes(hlv_context *ctx, const char *path, const hlv_tensor_out *tensor, int64_t *bytes) {
    const char *name = tensor->name ? tensor->name : "";
    if (!*name || strcmp(name, "__metadata__") == 0)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: a tensor to write is named '%s'", path, name);
    if (tensor->ndim < 0 || tensor->ndim > HLV_MAX_DIMS || !hla_dtype_size(tensor->dtype))
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: tensor '%s' to write has %d axes and dtype %d", path, name,
                        tensor->ndim, (int)tensor->dtype);
    *bytes = (int64_t)hla_dtype_size(tensor->dtype);
    for (int i = 0; i < tensor->ndim; i++)
        if (tensor->shape[i] < 0 || __builtin_mul_overflow(*bytes, tensor->shape[i], bytes))
            return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: tensor '%s' to write has a negative or too large shape", path,
                            name);
    if (*bytes && !tensor->data)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: tensor '%s' to write has no data", path, name);
    return HLV_OK;
}

/* "__metadata__" into the header; false if a text is not UTF-8 or memory ran out. */
static bool add_metadata(json_t *root, const char *const *metadata, int metadata_count) {
    if (!metadata_count) return true;
    json_t *pairs = json_object();
    if (json_object_set_new(root, "__metadata__", pairs) != 0) return false;
    const char *const *end = metadata + 2 * (size_t)metadata_count;
    for (const char *const *pair = metadata; pair < end; pair += 2)
        if (json_object_set_new(pairs, pair[0], json_string(pair[1])) != 0) return false;
    return true;
}

/* A tensor whose data begin at *offset into the header; *offset moves behind it. */
static bool add_tensor(json_t *root, const hlv_tensor_out *tensor, int64_t bytes, int64_t *offset) {
    int64_t end = 0;
    if (json_object_get(root, tensor->name) || __builtin_add_overflow(*offset, bytes, &end)) return false;
    json_t *shape = json_array();
    for (int i = 0; i < tensor->ndim; i++)
        if (json_array_append_new(shape, json_integer(tensor->shape[i])) != 0) {
            json_decref(shape);
            return false;
        }
    json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype_name(tensor->dtype), "shape", shape, "data_offsets",
                              (json_int_t)*offset, (json_int_t)end);
    *offset = end;
    return json_object_set_new(root, tensor->name, entry) == 0;
}

/* The header as a tree; NULL with a sentence on failure. */
static json_t *build_header(hlv_context *ctx, const char *path, const hlv_tensor_out *tensors, int count,
                            const char *const *metadata, int metadata_count) {
    json_t *root = json_object();
    hlv_status status = HLV_OK;
    if (!root || !add_metadata(root, metadata, metadata_count))
        status =
            hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%s: a metadata entry to write is not UTF-8, or memory ran out", path);
    int64_t offset = 0;
    for (int i = 0; i < count && status == HLV_OK; i++) {
        int64_t bytes = 0;
        status = tensor_bytes(ctx, path, &tensors[i], &bytes);
        if (status == HLV_OK && !add_tensor(root, &tensors[i], bytes, &offset))
            status =
                hlv_fail(ctx, HLV_ERROR_ARGUMENT,
                         "%s: tensor '%s' cannot be written: its name is there twice or not UTF-8, or it is too large",
                         path, tensors[i].name);
    }
    if (status == HLV_OK) return root;
    json_decref(root);
    return NULL;
}

static hlv_status write_all(hlv_context *ctx, const char *path, int file, const void *bytes, int64_t size) {
    const char *from = bytes;
    while (size > 0) {
        ssize_t put = write(file, from, (size_t)(size < MAX_PIECE ? size : MAX_PIECE));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0)
            return hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be written: %s", path, strerror(put < 0 ? errno : ENOSPC));
        from += put;
        size -= put;
    }
    return HLV_OK;
}

static hlv_status write_content(hlv_context *ctx, const char *path, int file, const char *header,
                                const hlv_tensor_out *tensors, int count) {
    static const char spaces[] = "        "; /* the data begins at a multiple of HEADER_ALIGNMENT */
    uint64_t length = strlen(header);
    uint64_t padding = (HEADER_ALIGNMENT - length % HEADER_ALIGNMENT) % HEADER_ALIGNMENT;
    uint64_t padded = length + padding; /* little-endian, as safetensors.c demands of the machine */
    hlv_status status = write_all(ctx, path, file, &padded, sizeof padded);
    if (status == HLV_OK) status = write_all(ctx, path, file, header, (int64_t)length);
    if (status == HLV_OK) status = write_all(ctx, path, file, spaces, (int64_t)padding);
    for (int i = 0; i < count && status == HLV_OK; i++) {
        int64_t bytes = 0;
        status = tensor_bytes(ctx, path, &tensors[i], &bytes);
        if (status == HLV_OK) status = write_all(ctx, path, file, tensors[i].data, bytes);
    }
    if (status == HLV_OK && fsync(file) != 0)
        status = hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be written: %s", path, strerror(errno));
    return status;
}

/* Creates a file of a new name beside the target; -1 with a sentence on failure. */
static int create_temporary(hlv_context *ctx, const char *path, char *temporary, size_t size) {
    int file = -1;
    for (int i = 0; i < MAX_ATTEMPTS && file < 0; i++) {
        snprintf(temporary, size, "%s.part-%ld-%d", path, (long)getpid(), i);
        file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (file < 0 && errno != EEXIST) break;
    }
    if (file < 0) hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be created: %s", path, strerror(errno));
    return file;
}

static hlv_status write_file(hlv_context *ctx, const char *path, const char *header, const hlv_tensor_out *tensors,
                             int count) {
    struct stat info;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be written: it is not a regular file", path);
    size_t size = strlen(path) + TEMPORARY_SUFFIX;
    char *temporary = hlv_alloc(ctx, size);
    if (!temporary) return HLV_ERROR_MEMORY;
    int file = create_temporary(ctx, path, temporary, size);
    hlv_status status = file < 0 ? HLV_ERROR_IO : write_content(ctx, path, file, header, tensors, count);
    if (file >= 0 && close(file) != 0 && status == HLV_OK)
        status = hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be written: %s", path, strerror(errno));
    if (status == HLV_OK && rename(temporary, path) != 0)
        status = hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be written: %s", path, strerror(errno));
    if (file >= 0 && status != HLV_OK) unlink(temporary);
    hlv_free(ctx, temporary);
    return status;
}

hlv_status hlv_safetensors_write(hlv_context *ctx, const char *path, const hlv_tensor_out *tensors, int count,
                                 const char *const *metadata, int metadata_count) {
    json_t *root = build_header(ctx, path, tensors, count, metadata, metadata_count);
    if (!root) return HLV_ERROR_ARGUMENT;
    char *header = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!header) return hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: out of memory for its header", path);
    hlv_status status = write_file(ctx, path, header, tensors, count);
    free(header);
    return status;
}
