#include "video/weights/safetensors.h"

#include "video/weights/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "safetensors data is little-endian and is used where it lies"
#endif

#define LENGTH_BYTES 8

typedef struct dtype_info {
    const char *name;
    int bits;
    bool usable;
    hla_dtype dtype;
} dtype_info;

static const dtype_info dtypes[] = {
    {"F32", 32, true, HLA_F32},     {"F16", 16, true, HLA_F16},     {"BF16", 16, true, HLA_BF16},
    {"F64", 64, false, HLA_F32},    {"C64", 64, false, HLA_F32},    {"I64", 64, false, HLA_F32},
    {"U64", 64, false, HLA_F32},    {"I32", 32, false, HLA_F32},    {"U32", 32, false, HLA_F32},
    {"I16", 16, false, HLA_F32},    {"U16", 16, false, HLA_F32},    {"I8", 8, false, HLA_F32},
    {"U8", 8, false, HLA_F32},      {"BOOL", 8, false, HLA_F32},    {"F8_E4M3", 8, false, HLA_F32},
    {"F8_E5M2", 8, false, HLA_F32}, {"F8_E8M0", 8, false, HLA_F32}, {"F6_E2M3", 6, false, HLA_F32},
    {"F6_E3M2", 6, false, HLA_F32}, {"F4", 4, false, HLA_F32},
};

char *hlv_copy_text(hlv_context *ctx, const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = hlv_alloc(ctx, bytes);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

void hlv_shape_text(char *text, size_t size, int ndim, const int64_t *shape) {
    size_t used = (size_t)snprintf(text, size, "[");
    for (int i = 0; i < ndim && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < size) snprintf(text + used, size - used, "]");
}

static hlv_status read_dtype(hlv_safetensors *file, hlv_weight *tensor, const json_t *entry, int *bits) {
    const json_t *dtype = json_object_get(entry, "dtype");
    if (!json_is_string(dtype))
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT, "%s: tensor '%.200s': its dtype is %s, and must be a string",
                        file->path, tensor->name, hlv_json_kind(dtype));
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtypes[i].name, json_string_value(dtype)) != 0) continue;
        tensor->dtype = dtypes[i].dtype;
        tensor->dtype_name = dtypes[i].name;
        tensor->usable = dtypes[i].usable;
        *bits = dtypes[i].bits;
        return HLV_OK;
    }
    return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                    "%s: tensor '%.200s': its dtype is '%.40s', which the safetensors format does not have", file->path,
                    tensor->name, json_string_value(dtype));
}

static hlv_status read_shape(hlv_safetensors *file, hlv_weight *tensor, const json_t *entry) {
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape))
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT, "%s: tensor '%.200s': its shape is %s, and must be an array",
                        file->path, tensor->name, hlv_json_kind(shape));
    if (json_array_size(shape) > HLV_MAX_DIMS)
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                        "%s: tensor '%.200s': its shape has %zu axes, and at most %d can be read", file->path,
                        tensor->name, json_array_size(shape), HLV_MAX_DIMS);
    tensor->ndim = (int)json_array_size(shape);
    tensor->count = 1;
    for (int i = 0; i < tensor->ndim; i++) {
        const json_t *axis = json_array_get(shape, (size_t)i);
        if (!json_is_integer(axis) || json_integer_value(axis) < 0)
            return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                            "%s: tensor '%.200s': axis %d of its shape is %s, and must be an integer of 0 or more",
                            file->path, tensor->name, i, json_is_integer(axis) ? "negative" : hlv_json_kind(axis));
        tensor->shape[i] = json_integer_value(axis);
        if (__builtin_mul_overflow(tensor->count, tensor->shape[i], &tensor->count))
            return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                            "%s: tensor '%.200s': the product of its shape does not fit 64 bits", file->path,
                            tensor->name);
    }
    return HLV_OK;
}

/* The place of the data, which begins at `data` and has data_size bytes in all. */
static hlv_status read_offsets(hlv_safetensors *file, hlv_weight *tensor, const json_t *entry, int bits,
                               const uint8_t *data, int64_t data_size) {
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *second = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second))
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                        "%s: tensor '%.200s': its data_offsets must be an array of two integers", file->path,
                        tensor->name);
    int64_t begin = json_integer_value(first), end = json_integer_value(second);
    if (begin < 0 || end < begin || end > data_size)
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                        "%s: tensor '%.200s': its data_offsets are [%lld, %lld], and must lie in order within the %lld "
                        "bytes of data the file has",
                        file->path, tensor->name, (long long)begin, (long long)end, (long long)data_size);
    int64_t total_bits = 0;
    bool overflow = __builtin_mul_overflow(tensor->count, (int64_t)bits, &total_bits);
    if (overflow || total_bits % 8 != 0 || total_bits / 8 != end - begin) {
        char shape[160];
        hlv_shape_text(shape, sizeof shape, tensor->ndim, tensor->shape);
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                        "%s: tensor '%.200s': its data_offsets span %lld bytes, and %s of shape %s is not of that size",
                        file->path, tensor->name, (long long)(end - begin), tensor->dtype_name, shape);
    }
    tensor->data = data + begin;
    tensor->bytes = end - begin;
    return HLV_OK;
}

static hlv_status read_tensor(hlv_safetensors *file, hlv_weight *tensor, const json_t *entry, const uint8_t *data,
                              int64_t data_size) {
    if (!json_is_object(entry))
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT, "%s: tensor '%.200s': its entry is %s, and must be an object",
                        file->path, tensor->name, hlv_json_kind(entry));
    int bits = 0;
    hlv_status status = read_dtype(file, tensor, entry, &bits);
    if (status == HLV_OK) status = read_shape(file, tensor, entry);
    if (status == HLV_OK) status = read_offsets(file, tensor, entry, bits, data, data_size);
    return status;
}

static hlv_status check_metadata(hlv_safetensors *file, json_t *metadata) {
    if (!json_is_object(metadata))
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT, "%s: '__metadata__' is %s, and must be an object of strings",
                        file->path, hlv_json_kind(metadata));
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                            "%s: '__metadata__' entry '%.200s' is %s, and must be a string", file->path, key,
                            hlv_json_kind(value));
    }
    file->metadata = metadata;
    return HLV_OK;
}

static int by_place(const void *a, const void *b) {
    const hlv_weight *left = a, *right = b;
    const uint8_t *x = left->data, *y = right->data;
    if (x != y) return x < y ? -1 : 1;
    return (left->bytes > right->bytes) - (left->bytes < right->bytes);
}

/* Sorts the tensors by place and demands that they fill the data: no overlap, no hole, nothing behind. */
static hlv_status check_cover(hlv_safetensors *file, const uint8_t *data, int64_t data_size) {
    if (file->count) qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_place);
    int64_t end = 0;
    for (int64_t i = 0; i < file->count; i++) {
        const hlv_weight *tensor = &file->tensors[i];
        int64_t begin = (const uint8_t *)tensor->data - data;
        if (begin < end)
            return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                            "%s: tensor '%.200s': its data begins at %lld, within tensor '%.200s', which ends at %lld",
                            file->path, tensor->name, (long long)begin, file->tensors[i - 1].name, (long long)end);
        if (begin > end)
            return hlv_fail(file->ctx, HLV_ERROR_FORMAT,
                            "%s: tensor '%.200s': its data begins at %lld, and must follow at %lld without a hole",
                            file->path, tensor->name, (long long)begin, (long long)end);
        end = begin + tensor->bytes;
    }
    if (end != data_size)
        return hlv_fail(file->ctx, HLV_ERROR_FORMAT, "%s: has %lld bytes of data, and its tensors account for %lld",
                        file->path, (long long)data_size, (long long)end);
    return HLV_OK;
}

static hlv_status read_tensors(hlv_safetensors *file, const uint8_t *data, int64_t data_size) {
    json_t *metadata = json_object_get(file->header, "__metadata__");
    hlv_status status = metadata ? check_metadata(file, metadata) : HLV_OK;
    if (status != HLV_OK) return status;
    size_t entries = json_object_size(file->header);
    file->tensors = hlv_alloc(file->ctx, entries * sizeof *file->tensors);
    if (!file->tensors) return HLV_ERROR_MEMORY;
    const char *name;
    json_t *entry;
    json_object_foreach(file->header, name, entry) {
        if (entry == metadata) continue;
        hlv_weight *tensor = &file->tensors[file->count];
        *tensor = (hlv_weight){.name = name, .file = file->path};
        status = read_tensor(file, tensor, entry, data, data_size);
        if (status != HLV_OK) return status;
        file->count++;
    }
    return check_cover(file, data, data_size);
}

static hlv_status read_header(hlv_safetensors *file) {
    hlv_context *ctx = file->ctx;
    if (!file->bytes || file->size < LENGTH_BYTES)
        return hlv_fail(ctx, HLV_ERROR_FORMAT,
                        "%s: has %zu bytes, and a safetensors file begins with %d for the header's length", file->path,
                        file->size, LENGTH_BYTES);
    uint64_t length;
    memcpy(&length, file->bytes, LENGTH_BYTES);
    if (length > HLV_JSON_MAX_BYTES)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: its header claims %llu bytes, and at most %d are allowed",
                        file->path, (unsigned long long)length, HLV_JSON_MAX_BYTES);
    if (length > file->size - LENGTH_BYTES)
        return hlv_fail(ctx, HLV_ERROR_FORMAT,
                        "%s: its header claims %llu bytes, and the file has only %zu after the length: it is cut off "
                        "or no safetensors file",
                        file->path, (unsigned long long)length, file->size - LENGTH_BYTES);
    hlv_status status =
        hlv_json_parse(ctx, file->path, (const char *)file->bytes + LENGTH_BYTES, (size_t)length, &file->header);
    if (status != HLV_OK) return status;
    size_t begin = LENGTH_BYTES + (size_t)length;
    return read_tensors(file, file->bytes + begin, (int64_t)(file->size - begin));
}

static hlv_status create(hlv_context *ctx, const char *path, hlv_safetensors **file) {
    *file = hlv_alloc(ctx, sizeof **file);
    if (!*file) return HLV_ERROR_MEMORY;
    **file = (hlv_safetensors){.ctx = ctx, .path = hlv_copy_text(ctx, path)};
    return (*file)->path ? HLV_OK : HLV_ERROR_MEMORY;
}

void hlv_safetensors_free(hlv_safetensors *file) {
    if (!file) return;
    hlv_context *ctx = file->ctx;
    json_decref(file->header);
    if (file->mapping) munmap(file->mapping, file->size);
    hlv_free(ctx, file->tensors);
    hlv_free(ctx, file->path);
    hlv_free(ctx, file);
}

hlv_status hlv_safetensors_parse(hlv_context *ctx, const char *path, const uint8_t *bytes, size_t size,
                                 hlv_safetensors **file) {
    hlv_status status = create(ctx, path, file);
    if (status == HLV_OK) {
        (*file)->bytes = bytes;
        (*file)->size = size;
        status = read_header(*file);
    }
    if (status != HLV_OK) {
        hlv_safetensors_free(*file);
        *file = NULL;
    }
    return status;
}

static hlv_status map_file(hlv_safetensors *file, int descriptor) {
    struct stat info;
    if (fstat(descriptor, &info) != 0)
        return hlv_fail(file->ctx, HLV_ERROR_IO, "%s: cannot be read: %s", file->path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return hlv_fail(file->ctx, HLV_ERROR_IO, "%s: is not a regular file", file->path);
    file->size = (size_t)info.st_size;
    if (file->size == 0) return HLV_OK; /* nothing to map; read_header says what is missing */
    void *bytes = mmap(NULL, file->size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (bytes == MAP_FAILED)
        return hlv_fail(file->ctx, errno == ENOMEM ? HLV_ERROR_MEMORY : HLV_ERROR_IO, "%s: cannot be mapped: %s",
                        file->path, strerror(errno));
    file->bytes = bytes;
    file->mapping = bytes;
    return HLV_OK;
}

hlv_status hlv_safetensors_open(hlv_context *ctx, const char *path, hlv_safetensors **file) {
    *file = NULL;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0) return hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    hlv_status status = create(ctx, path, file);
    if (status == HLV_OK) status = map_file(*file, descriptor);
    close(descriptor); /* the mapping stays */
    if (status == HLV_OK) status = read_header(*file);
    if (status != HLV_OK) {
        hlv_safetensors_free(*file);
        *file = NULL;
    }
    return status;
}
