#include "video/arrays/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "\x93NUMPY"
#define MAGIC_SIZE 6
#define MAX_HEADER 65536 /* more than any array of 8 axes needs */
#define ALIGNMENT 64
#define CONVERT_AT_ONCE 4096 /* elements */

typedef struct npy_header {
    size_t element; /* bytes: 2, 4 or 8 */
    int ndim;
    int64_t shape[HLV_ARRAY_MAX_DIMS];
} npy_header;

/* A place in the header text; never moves past the terminating zero. */
typedef struct cursor {
    const char *at;
} cursor;

static void skip_space(cursor *c) {
    while (*c->at == ' ' || *c->at == '\t' || *c->at == '\n')
        c->at++;
}

static bool take(cursor *c, const char *text) {
    skip_space(c);
    size_t length = strlen(text);
    if (strncmp(c->at, text, length) != 0) return false;
    c->at += length;
    return true;
}

/* A quoted string without escapes, up to size - 1 bytes. */
static bool take_string(cursor *c, char *out, size_t size) {
    skip_space(c);
    char quote = *c->at;
    if (quote != '\'' && quote != '"') return false;
    const char *end = strchr(c->at + 1, quote);
    if (end == NULL || (size_t)(end - c->at) > size) return false;
    size_t length = (size_t)(end - c->at) - 1;
    memcpy(out, c->at + 1, length);
    out[length] = '\0';
    c->at = end + 1;
    return true;
}

static bool take_size(cursor *c, int64_t *size) {
    skip_space(c);
    if (*c->at < '0' || *c->at > '9') return false;
    *size = 0;
    for (; *c->at >= '0' && *c->at <= '9'; c->at++)
        if (__builtin_mul_overflow(*size, 10, size) || __builtin_add_overflow(*size, *c->at - '0', size)) return false;
    return true;
}

/* (), (3,) or (3, 4, 5). */
static bool take_shape(cursor *c, npy_header *header) {
    if (!take(c, "(")) return false;
    header->ndim = 0;
    while (!take(c, ")")) {
        if (header->ndim == HLV_ARRAY_MAX_DIMS || !take_size(c, &header->shape[header->ndim])) return false;
        header->ndim++;
        if (!take(c, ",")) {
            if (header->ndim == 1) return false; /* (3) is a number in Python */
            return take(c, ")");
        }
    }
    return true;
}

enum { SEEN_DESCR = 1, SEEN_ORDER = 2, SEEN_SHAPE = 4, SEEN_ALL = 7 };

/* The dictionary with exactly the keys descr, fortran_order and shape. False: not understood. */
static bool parse_header(const char *text, npy_header *header, char *descr, size_t descr_size, bool *fortran) {
    cursor c = {text};
    unsigned seen = 0;
    if (!take(&c, "{")) return false;
    while (!take(&c, "}")) {
        char key[32];
        unsigned bit;
        bool good;
        if (!take_string(&c, key, sizeof key) || !take(&c, ":")) return false;
        if (strcmp(key, "descr") == 0) {
            bit = SEEN_DESCR;
            good = take_string(&c, descr, descr_size);
        } else if (strcmp(key, "fortran_order") == 0) {
            bit = SEEN_ORDER;
            *fortran = take(&c, "True");
            good = *fortran || take(&c, "False");
        } else {
            bit = SEEN_SHAPE;
            good = strcmp(key, "shape") == 0 && take_shape(&c, header);
        }
        if (!good || (seen & bit) != 0) return false;
        seen |= bit;
        take(&c, ",");
    }
    skip_space(&c);
    return seen == SEEN_ALL && *c.at == '\0';
}

static hlv_status truncated(hlv_context *ctx, const char *path) {
    return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: the file ends within its header", path);
}

/* Reads magic, version and header text; the file then stands at the data. */
static hlv_status read_header(hlv_context *ctx, const char *path, FILE *file, npy_header *header) {
    uint8_t start[MAGIC_SIZE + 2], length[4] = {0};
    if (fread(start, 1, sizeof start, file) != sizeof start) return truncated(ctx, path);
    if (memcmp(start, MAGIC, MAGIC_SIZE) != 0)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: not a .npy file: it does not begin with \\x93NUMPY", path);
    int version = start[MAGIC_SIZE];
    if (version < 1 || version > 3)
        return hlv_fail(ctx, HLV_ERROR_UNSUPPORTED, "%s: .npy version %d, wanted 1, 2 or 3", path, version);
    size_t length_size = version == 1 ? 2 : 4;
    if (fread(length, 1, length_size, file) != length_size) return truncated(ctx, path);
    size_t size = length[0] | (size_t)length[1] << 8 | (size_t)length[2] << 16 | (size_t)length[3] << 24;
    if (size > MAX_HEADER)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: header of %zu bytes, wanted at most %d", path, size, MAX_HEADER);
    char *text = calloc(size + 1, 1), descr[16] = "";
    if (text == NULL) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory while reading '%s'", path);
    bool fortran = false, whole = fread(text, 1, size, file) == size;
    bool good = whole && strlen(text) == size && parse_header(text, header, descr, sizeof descr, &fortran);
    free(text);
    if (!whole) return truncated(ctx, path);
    if (!good)
        return hlv_fail(ctx, HLV_ERROR_FORMAT,
                        "%s: header is not a dictionary of descr, fortran_order and shape with at most "
                        "%d axes",
                        path, HLV_ARRAY_MAX_DIMS);
    if (fortran)
        return hlv_fail(ctx, HLV_ERROR_UNSUPPORTED,
                        "%s: array in Fortran order, wanted C order (numpy.ascontiguousarray)", path);
    if (strcmp(descr, "<f2") != 0 && strcmp(descr, "<f4") != 0 && strcmp(descr, "<f8") != 0)
        return hlv_fail(ctx, HLV_ERROR_UNSUPPORTED, "%s: element type '%s', wanted '<f4', '<f2' or '<f8'", path, descr);
    header->element = (size_t)(descr[2] - '0');
    return HLV_OK;
}

/* IEEE half precision to single. */
static float from_half(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 31, fraction = half & 1023;
    float value;
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24 */
        value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void to_float(float *out, const void *in, size_t count, size_t element) {
    for (size_t i = 0; i < count; i++) {
        uint16_t half = 0;
        double number = 0;
        if (element == sizeof half) {
            memcpy(&half, (const char *)in + i * element, element);
            out[i] = from_half(half);
        } else {
            memcpy(&number, (const char *)in + i * element, element);
            out[i] = (float)number;
        }
    }
}

static bool read_data(FILE *file, const npy_header *header, hlv_array *array) {
    size_t count = (size_t)array->count;
    if (header->element == sizeof(float)) return fread(array->data, sizeof(float), count, file) == count;
    char buffer[CONVERT_AT_ONCE * sizeof(double)];
    for (size_t done = 0; done < count;) {
        size_t some = count - done < CONVERT_AT_ONCE ? count - done : CONVERT_AT_ONCE;
        if (fread(buffer, header->element, some, file) != some) return false;
        to_float(array->data + done, buffer, some, header->element);
        done += some;
    }
    return true;
}

/* The size is compared with the file's before anything is allocated. */
static hlv_status read_array(hlv_context *ctx, const char *path, FILE *file, hlv_array *array) {
    npy_header header = {0};
    hlv_status status = read_header(ctx, path, file, &header);
    if (status != HLV_OK) return status;
    int64_t bytes = (int64_t)header.element;
    for (int i = 0; i < header.ndim; i++)
        if (__builtin_mul_overflow(bytes, header.shape[i], &bytes))
            return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: shape is too large", path);
    struct stat info;
    off_t start = ftello(file);
    if (start < 0 || fstat(fileno(file), &info) != 0)
        return hlv_fail(ctx, HLV_ERROR_IO, "cannot read '%s': %s", path, strerror(errno));
    if (info.st_size - start != bytes)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: %lld bytes of data, wanted %lld for its shape", path,
                        (long long)(info.st_size - start), (long long)bytes);
    status = hlv_array_create(ctx, header.ndim, header.shape, array);
    if (status == HLV_OK && !read_data(file, &header, array)) {
        hlv_array_free(ctx, array);
        status = hlv_fail(ctx, HLV_ERROR_IO, "cannot read '%s': it became shorter while it was read", path);
    }
    return status;
}

hlv_status hlv_npy_read(hlv_context *ctx, const char *path, hlv_array *array) {
    FILE *file = fopen(path, "rbe");
    struct stat info;
    if (file == NULL || fstat(fileno(file), &info) != 0) {
        int error = errno;
        if (file != NULL) fclose(file);
        return hlv_fail(ctx, HLV_ERROR_IO, "cannot read '%s': %s", path, strerror(error));
    }
    hlv_status status = S_ISREG(info.st_mode)
                            ? read_array(ctx, path, file, array)
                            : hlv_fail(ctx, HLV_ERROR_IO, "cannot read '%s': not a regular file", path);
    fclose(file);
    return status;
}

/* Version 1.0: the whole header is a multiple of 64 bytes and ends with a newline. */
static size_t make_header(char *out, size_t size, const hlv_array *array) {
    size_t used = MAGIC_SIZE + 4;
    memcpy(out, MAGIC "\1\0", MAGIC_SIZE + 2);
    used += (size_t)snprintf(out + used, size - used, "{'descr': '<f4', 'fortran_order': False, 'shape': (");
    for (int i = 0; i < array->ndim; i++)
        used += (size_t)snprintf(out + used, size - used, "%lld,", (long long)array->shape[i]);
    used += (size_t)snprintf(out + used, size - used, "), }");
    while ((used + 1) % ALIGNMENT != 0)
        out[used++] = ' ';
    out[used++] = '\n';
    size_t length = used - MAGIC_SIZE - 4;
    out[MAGIC_SIZE + 2] = (char)(length & 0xff);
    out[MAGIC_SIZE + 3] = (char)(length >> 8);
    return used;
}

hlv_status hlv_npy_write(hlv_context *ctx, const char *path, const hlv_array *array) {
    char header[512];
    size_t size = strlen(path) + 32, header_size = make_header(header, sizeof header, array);
    char *part = malloc(size);
    if (part == NULL) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory while writing '%s'", path);
    snprintf(part, size, "%s.%ld.part", path, (long)getpid());
    int fd = open(part, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "wb");
    bool good = file != NULL && fwrite(header, 1, header_size, file) == header_size &&
                fwrite(array->data, sizeof(float), (size_t)array->count, file) == (size_t)array->count;
    int error = good ? 0 : errno;
    if (file != NULL && fclose(file) != 0 && good) {
        good = false;
        error = errno;
    } else if (file == NULL && fd >= 0) {
        close(fd);
    }
    if (good && rename(part, path) != 0) {
        good = false;
        error = errno;
    }
    if (!good && fd >= 0) unlink(part);
    free(part);
    return good ? HLV_OK : hlv_fail(ctx, HLV_ERROR_IO, "cannot write '%s': %s", path, strerror(error));
}
