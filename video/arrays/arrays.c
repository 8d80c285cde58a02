/* video/arrays/arrays.c - which reader a path asks for, and the arrays themselves. */
#include "video/arrays/npy.h"
#include "video/weights/weights.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct hlv_array_file {
    hlv_context *ctx;
    char *path;
    hlv_weights *weights; /* NULL: a .npy file, read when asked */
};

typedef enum array_format { FORMAT_NONE, FORMAT_NPY, FORMAT_SAFETENSORS } array_format;

static array_format find_format(const char *path) {
    static const struct {
        const char *extension;
        array_format format;
    } table[] = {{".npy", FORMAT_NPY}, {".safetensors", FORMAT_SAFETENSORS}};
    size_t length = path == NULL ? 0 : strlen(path);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        size_t extension = strlen(table[i].extension);
        if (length > extension && strcmp(path + length - extension, table[i].extension) == 0) return table[i].format;
    }
    return FORMAT_NONE;
}

static hlv_status unknown_format(hlv_context *ctx, const char *path) {
    return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "array file '%s': its ending must be .npy or .safetensors",
                    path == NULL ? "" : path);
}

hlv_status hlv_array_file_open(hlv_context *context, const char *path, hlv_array_file **file) {
    if (context == NULL || file == NULL) return HLV_ERROR_ARGUMENT;
    *file = NULL;
    array_format format = find_format(path);
    if (format == FORMAT_NONE) return unknown_format(context, path);
    hlv_array_file *opened = calloc(1, sizeof *opened);
    if (opened == NULL || (opened->path = strdup(path)) == NULL) {
        free(opened);
        return hlv_fail(context, HLV_ERROR_MEMORY, "out of memory while opening '%s'", path);
    }
    opened->ctx = context;
    hlv_status status = HLV_OK;
    if (format == FORMAT_SAFETENSORS) status = hlv_weights_open(context, path, &opened->weights);
    if (format == FORMAT_NPY && access(path, R_OK) != 0)
        status = hlv_fail(context, HLV_ERROR_IO, "cannot read '%s': %s", path, strerror(errno));
    if (status != HLV_OK) {
        hlv_array_file_close(opened);
        return status;
    }
    *file = opened;
    return HLV_OK;
}

void hlv_array_file_close(hlv_array_file *file) {
    if (file == NULL) return;
    if (file->weights != NULL) hlv_weights_free(file->weights);
    free(file->path);
    free(file);
}

bool hlv_array_file_has(const hlv_array_file *file, const char *name) {
    return file != NULL && name != NULL && (file->weights == NULL || hlv_weights_find(file->weights, name) != NULL);
}

hlv_status hlv_array_read(const hlv_array_file *file, const char *name, hlv_array *array) {
    if (file == NULL || name == NULL || array == NULL) return HLV_ERROR_ARGUMENT;
    *array = (hlv_array){0};
    if (file->weights == NULL) return hlv_npy_read(file->ctx, file->path, array);
    const hlv_weight *weight = hlv_weights_find(file->weights, name);
    if (weight == NULL) return hlv_fail(file->ctx, HLV_ERROR_FORMAT, "%s: no tensor named '%s'", file->path, name);
    hlv_status status = hlv_array_create(file->ctx, weight->ndim, weight->shape, array);
    if (status == HLV_OK) hlv_weight_to_f32(weight, array->data);
    return status;
}

hlv_status hlv_array_create(hlv_context *context, int ndim, const int64_t *shape, hlv_array *array) {
    if (context == NULL || array == NULL) return HLV_ERROR_ARGUMENT;
    *array = (hlv_array){0};
    if (ndim < 0 || ndim > HLV_ARRAY_MAX_DIMS || (ndim > 0 && shape == NULL))
        return hlv_fail(context, HLV_ERROR_ARGUMENT, "array of %d axes, wanted 0 to %d", ndim, HLV_ARRAY_MAX_DIMS);
    int64_t count = 1;
    for (int i = 0; i < ndim; i++)
        if (shape[i] < 0 || __builtin_mul_overflow(count, shape[i], &count))
            return hlv_fail(context, HLV_ERROR_ARGUMENT, "array with axis %d of size %lld is negative or too large", i,
                            (long long)shape[i]);
    float *data = hlv_alloc_floats(context, count > 0 ? count : 1);
    if (data == NULL) return HLV_ERROR_MEMORY;
    *array = (hlv_array){.ndim = ndim, .count = count, .data = data};
    if (ndim > 0) memcpy(array->shape, shape, (size_t)ndim * sizeof *shape);
    return HLV_OK;
}

void hlv_array_free(hlv_context *context, hlv_array *array) {
    if (array == NULL) return;
    hlv_free(context, array->data);
    *array = (hlv_array){0};
}

hlv_status hlv_array_check(hlv_context *context, const char *path) {
    if (context == NULL) return HLV_ERROR_ARGUMENT;
    if (find_format(path) == FORMAT_NONE) return unknown_format(context, path);
    const char *slash = strrchr(path, '/');
    char *directory = slash == NULL ? strdup(".") : strndup(path, (size_t)(slash - path) + 1);
    if (directory == NULL) return hlv_fail(context, HLV_ERROR_MEMORY, "out of memory while checking '%s'", path);
    struct stat info;
    hlv_status status = HLV_OK;
    if (access(directory, W_OK | X_OK) != 0)
        status =
            hlv_fail(context, HLV_ERROR_IO, "cannot write '%s': directory '%s': %s", path, directory, strerror(errno));
    else if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        status = hlv_fail(context, HLV_ERROR_IO, "cannot write '%s': it exists and is not a regular file", path);
    free(directory);
    return status;
}

hlv_status hlv_array_write(hlv_context *context, const char *path, const char *name, const hlv_array *array) {
    if (context == NULL || name == NULL || array == NULL || array->data == NULL) return HLV_ERROR_ARGUMENT;
    hlv_status status = hlv_array_check(context, path);
    if (status != HLV_OK) return status;
    if (find_format(path) == FORMAT_NPY) return hlv_npy_write(context, path, array);
    hlv_tensor_out tensor = {.name = name, .dtype = HLA_F32, .ndim = array->ndim, .data = array->data};
    memcpy(tensor.shape, array->shape, sizeof tensor.shape);
    return hlv_safetensors_write(context, path, &tensor, 1, NULL, 0);
}
