#include "tests/pipeline/support.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

hlv_context *open_context(int threads) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    assert_int_equal(hlv_context_set_threads(ctx, threads), HLV_OK);
    return ctx;
}

void check_ok(hlv_context *ctx, hlv_status status) {
    if (status != HLV_OK) fail_msg("%s: %s", hlv_status_name(status), hlv_context_error(ctx));
}

static hlv_model *open_with(hlv_context *ctx, const char *name, const char *adapter, hla_dtype dtype) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    hlv_model_options options;
    hlv_model_options_init(&options);
    options.directory = path;
    options.adapter = adapter;
    options.dtype = dtype;
    hlv_model *model = NULL;
    check_ok(ctx, hlv_model_open(ctx, &options, &model));
    return model;
}

hlv_model *open_model(hlv_context *ctx, const char *name, hla_dtype dtype) {
    return open_with(ctx, name, NULL, dtype);
}

hlv_model *open_converted(hlv_context *ctx, const char *name, const char *adapter) {
    return open_with(ctx, name, adapter, HLA_F32);
}

scratch make_scratch(void) {
    scratch folder = {"/tmp/hlv_pipeline_XXXXXX"};
    assert_non_null(mkdtemp(folder.path));
    return folder;
}

static int each_file(const scratch *folder, bool erase) {
    DIR *directory = opendir(folder->path);
    assert_non_null(directory);
    int count = 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (erase) unlinkat(dirfd(directory), entry->d_name, 0);
        count++;
    }
    closedir(directory);
    return count;
}

int count_files(const scratch *folder) {
    return each_file(folder, false);
}

void remove_scratch(const scratch *folder) {
    each_file(folder, true);
    assert_int_equal(rmdir(folder->path), 0);
}

const char *in_scratch(const scratch *folder, const char *name) {
    static char paths[4][160];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder->path, name);
    return path;
}

unsigned char *read_bytes(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s cannot be opened", path);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*size + 1);
    assert_non_null(bytes);
    assert_int_equal(fread(bytes, 1, *size, file), *size);
    fclose(file);
    return bytes;
}

void assert_same_files(const char *a, const char *b) {
    size_t size_a, size_b;
    unsigned char *bytes_a = read_bytes(a, &size_a), *bytes_b = read_bytes(b, &size_b);
    assert_int_equal(size_a, size_b);
    assert_true(size_a > 0);
    assert_memory_equal(bytes_a, bytes_b, size_a);
    free(bytes_a);
    free(bytes_b);
}

float *read_tensor(hlv_context *ctx, const char *path, const char *name, int64_t *count) {
    hlv_weights *file = NULL;
    check_ok(ctx, hlv_weights_open(ctx, path, &file));
    const hlv_weight *weight = hlv_weights_find(file, name);
    assert_non_null(weight);
    float *values = malloc((size_t)weight->count * sizeof(float));
    assert_non_null(values);
    hlv_weight_to_f32(weight, values);
    *count = weight->count;
    hlv_weights_free(file);
    return values;
}

double relative_error(const float *got, const float *want, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    return sqrt(difference / norm);
}

static unsigned long big_endian(const unsigned char *bytes) {
    return (unsigned long)bytes[0] << 24 | (unsigned long)bytes[1] << 16 | (unsigned long)bytes[2] << 8 | bytes[3];
}

static int paeth(int a, int b, int c) {
    int p = a + b - c, pa = abs(p - a), pb = abs(p - b), pc = abs(p - c);
    return pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
}

/* Undoes the filter of each row in place; rows: height rows of 1 + stride bytes. */
static void unfilter(unsigned char *rows, int height, int stride) {
    for (int y = 0; y < height; y++) {
        unsigned char *row = rows + (size_t)y * (size_t)(stride + 1) + 1, *above = row - stride - 1;
        for (int i = 0; i < stride; i++) {
            int a = i >= 3 ? row[i - 3] : 0, b = y ? above[i] : 0, c = y && i >= 3 ? above[i - 3] : 0;
            const int predicted[5] = {0, a, b, (a + b) / 2, paeth(a, b, c)};
            assert_true(row[-1] < 5);
            row[i] = (unsigned char)(row[i] + predicted[row[-1]]);
        }
    }
}

unsigned char *read_png(const char *path, int *width, int *height) {
    size_t size, used = 0;
    unsigned char *bytes = read_bytes(path, &size), *packed = malloc(size);
    assert_non_null(packed);
    assert_true(size > 33 && !memcmp(bytes, "\x89PNG\r\n\x1a\n", 8));
    *width = (int)big_endian(bytes + 16), *height = (int)big_endian(bytes + 20);
    assert_memory_equal(bytes + 24, "\x08\x02\0\0\0", 5); /* 8 bits, RGB, no interlace */
    for (size_t at = 8; at + 12 <= size; at += 12 + big_endian(bytes + at)) {
        if (memcmp(bytes + at + 4, "IDAT", 4) != 0) continue;
        memcpy(packed + used, bytes + at + 8, big_endian(bytes + at));
        used += big_endian(bytes + at);
    }
    const size_t stride = (size_t)*width * 3;
    uLongf length = (uLongf)*height * (stride + 1);
    unsigned char *rows = malloc(length), *pixels = malloc(length);
    assert_true(rows && pixels);
    assert_int_equal(uncompress(rows, &length, packed, used), Z_OK);
    unfilter(rows, *height, *width * 3);
    for (size_t y = 0; y < (size_t)*height; y++)
        memcpy(pixels + y * stride, rows + y * (stride + 1) + 1, stride);
    free(bytes), free(packed), free(rows);
    return pixels;
}
