/* tests/attention/maps_support.h - arrays in several layouts, random numbers and the error gate, for the tests of
 * softmax attention and of the feature maps. */
#ifndef HLA_TESTS_MAPS_SUPPORT_H
#define HLA_TESTS_MAPS_SUPPORT_H

#include "attention/core/internal.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

/* A view and the block it looks into, which lies between two pages that may not be touched and ends at the second. */
typedef struct array {
    hla_tensor view;
    unsigned char *block;
    size_t bytes;
    void *pages;
    size_t mapped;
} array;

/* How an array lies in memory; SPREAD leaves a gap after every element, and more after each row. */
typedef enum array_layout { LAYOUT_BTHD, LAYOUT_BHTD, LAYOUT_SPREAD, LAYOUTS } array_layout;

/* Memory for an array, between guards. */
static inline void array_map(array *a) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), usable = (a->bytes + page - 1) / page * page;
    a->mapped = usable + 2 * page;
    a->pages = mmap(NULL, a->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(a->pages != MAP_FAILED);
    char *start = (char *)a->pages + page;
    assert_true(usable == 0 || mprotect(start, usable, PROT_READ | PROT_WRITE) == 0);
    a->block = (unsigned char *)start + usable - a->bytes;
}

/* An array whose every byte is 0xff: NaN in every dtype, and a pattern that shows what was written. */
static inline array array_poisoned(array_layout layout, hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x) {
    array made = {.view = layout == LAYOUT_BHTD ? hla_tensor_bhtd(NULL, dtype, b, t, h, x)
                                                : hla_tensor_bthd(NULL, dtype, b, t, h, x)};
    int64_t elements = b * t * h * x;
    if (layout == LAYOUT_SPREAD) {
        int64_t row = 2 * x + 3;
        int64_t stride[4] = {t * h * row, h * row, row, 2};
        memcpy(made.view.stride, stride, sizeof stride);
        elements = b * t * h * row;
    }
    made.bytes = (size_t)elements * hla_dtype_size(dtype);
    array_map(&made);
    memset(made.block, 0xff, made.bytes);
    made.view.data = made.block;
    return made;
}

static inline void array_free(array *a) {
    if (a->pages) munmap(a->pages, a->mapped);
    *a = (array){0};
}

static inline void *element_address(const hla_tensor *view, int64_t b, int64_t t, int64_t h, int64_t x) {
    char *row = hla_tensor_row(view, b, t, h);
    return row + x * view->stride[3] * (int64_t)hla_dtype_size(view->dtype);
}

static inline float get(const hla_tensor *view, int64_t b, int64_t t, int64_t h, int64_t x) {
    float value;
    hla_load_floats(&value, element_address(view, b, t, h, x), view->dtype, 1, 1);
    return value;
}

static inline void set(const hla_tensor *view, int64_t b, int64_t t, int64_t h, int64_t x, float value) {
    hla_store_floats(element_address(view, b, t, h, x), view->dtype, 1, 1, &value);
}

/* Visits every element of a view in the order b, t, h, x. */
#define FOR_EACH_ELEMENT(view, b, t, h, x)                                                                             \
    for (int64_t b = 0; b < (view)->shape[0]; b++)                                                                     \
        for (int64_t t = 0; t < (view)->shape[1]; t++)                                                                 \
            for (int64_t h = 0; h < (view)->shape[2]; h++)                                                             \
                for (int64_t x = 0; x < (view)->shape[3]; x++)

/* ---- random numbers: SplitMix64, seeded by each test ---- */

static inline double random_unit(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

static inline double random_normal(uint64_t *state) {
    double radius = sqrt(-2 * log(1 - random_unit(state)));
    return radius * cos(6.283185307179586 * random_unit(state));
}

static inline array array_random(array_layout layout, hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x,
                                 double scale, uint64_t *state) {
    array made = array_poisoned(layout, dtype, b, t, h, x);
    FOR_EACH_ELEMENT(&made.view, i, j, k, l)
    set(&made.view, i, j, k, l, (float)(scale * random_normal(state)));
    return made;
}

static inline float *floats_random(int64_t count, double scale, uint64_t *state) {
    float *values = malloc((size_t)count * sizeof *values + 1);
    assert_non_null(values);
    for (int64_t i = 0; i < count; i++)
        values[i] = (float)(scale * random_normal(state));
    return values;
}

/* ---- what the tests ask of an output ---- */

/* Nothing but the view's own elements has been written: every other byte is still 0xff. Spoils the view. */
static inline void assert_gaps_untouched(array *a) {
    size_t size = hla_dtype_size(a->view.dtype);
    FOR_EACH_ELEMENT(&a->view, b, t, h, x)
    memset(element_address(&a->view, b, t, h, x), 0xff, size);
    for (size_t i = 0; i < a->bytes; i++)
        assert_int_equal(a->block[i], 0xff);
}

static inline void assert_untouched(const array *a) {
    for (size_t i = 0; i < a->bytes; i++)
        assert_int_equal(a->block[i], 0xff);
}

/* Values as doubles, contiguous in the order b, t, h, x. */
static inline double *values_of(const hla_tensor *view) {
    double *values =
        malloc((size_t)(view->shape[0] * view->shape[1] * view->shape[2] * view->shape[3]) * sizeof(double) + 1);
    assert_non_null(values);
    double *next = values;
    FOR_EACH_ELEMENT(view, b, t, h, x)
    *next++ = (double)get(view, b, t, h, x);
    return values;
}

/* ||values - truth|| / ||truth||, NaN if anything is not finite; the plain norm of values where truth is all zero. */
static inline double relative_error(const double *values, const double *truth, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!isfinite(values[i])) return NAN;
        difference += (values[i] - truth[i]) * (values[i] - truth[i]);
        norm += truth[i] * truth[i];
    }
    return norm > 0 ? sqrt(difference / norm) : sqrt(difference);
}

/* Rounds a value to dtype and back. */
static inline double rounded(double value, hla_dtype dtype) {
    float narrow = (float)value;
    uint16_t storage[2];
    hla_store_floats(storage, dtype, 1, 1, &narrow);
    hla_load_floats(&narrow, storage, dtype, 1, 1);
    return (double)narrow;
}

/* The gate of docs/OPERATOR.md section 7: at most twice the error of the naive float32 evaluation, and at most the
 * dtype's limit. With a handful of elements the naive error can be zero by luck (a single key, a power of two), so the
 * first bound is never taken below two roundings of the result. */
static inline bool passes_gate(double error, double naive_error, hla_dtype dtype) {
    static const double limit[] = {1e-5, 1e-2, 2e-3}, rounding[] = {0x1p-24, 0x1p-8, 0x1p-11};
    double bound = 2 * naive_error > 2 * rounding[dtype] ? 2 * naive_error : 2 * rounding[dtype];
    return error <= bound && error <= limit[dtype];
}

static inline hla_context *context_with(int threads, bool check_finite) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = threads, options.check_finite = check_finite;
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    return context;
}

#endif
