/* attention/core/internal.h - what the operators of libhla share and users do not see: the context's insides, error
 * sentences, element types, checks of arguments, and carving a workspace.
 *
 * A check returns HLA_OK or records one sentence that names the argument, what was found and what was wanted.
 */
#ifndef HLA_CORE_INTERNAL_H
#define HLA_CORE_INTERNAL_H

#include "attention/core/convert.h"
#include "hla/core.h"

#include <string.h>

struct hla_cuda_backend;

/* A GPU, filled in by the backend. */
typedef struct hla_cuda_device {
    int ordinal;
    int capability; /* 10 major + minor */
    int processors; /* multiprocessors */
    char name[96];
} hla_cuda_device;

struct hla_context {
    int threads; /* at least 1 */
    bool check_finite;
    const struct hla_cuda_backend *cuda; /* NULL: the context computes on the CPU */
    hla_cuda_device device;              /* with cuda */
    void *stream;                        /* a cudaStream_t, or NULL as long as none was set */
    char error[512];
};

/* Records the sentence in the context (which may be NULL) and returns status, so that callers write
 * `return hla_fail(context, HLA_ERROR_ARGUMENT, "...", ...)`. */
hla_status hla_fail(hla_context *context, hla_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* That address, not NULL, is memory of the device that the context computes on. */
hla_status hla_check_address(hla_context *context, const char *name, const void *address);

/* That a call can be queued: on a GPU, that a stream was set. Makes that GPU the current one. */
hla_status hla_check_stream(hla_context *context);

/* ---- element types ---- */

bool hla_dtype_valid(hla_dtype dtype);

const char *hla_dtype_name(hla_dtype dtype); /* "float32", "bfloat16", "float16", "unknown" */

/* ---- sizes ---- */

/* total *= factor, total += term; false (total unspecified) when the operand is negative or the result does not fit. */
bool hla_size_multiply(size_t *total, int64_t factor);
bool hla_size_add(size_t *total, int64_t term);

static inline int64_t hla_smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t hla_larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* n up to the next multiple of unit */
static inline int64_t hla_round_up(int64_t n, int64_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Threads worth starting for outer x inner units of work, both at least 1. */
static inline int hla_team_size(int threads, int64_t outer, int64_t inner) {
    return outer >= threads ? threads : (int)hla_smaller(threads, outer * inner);
}

/* ---- problems ---- */

/* Far above any use; below it no product of a size and a tile constant leaves 64 bits. */
#define HLA_MAX_SIZE (INT64_C(1) << 40)

typedef struct hla_named_size {
    const char *name; /* of a member of the problem */
    int64_t value, least;
} hla_named_size;

hla_status hla_check_sizes(hla_context *context, const hla_named_size *sizes, int count); /* least ... HLA_MAX_SIZE */

/* That a struct the caller filled is as long as this library's; init: the function that should have been called. */
hla_status hla_check_struct(hla_context *context, const char *name, size_t size, size_t wanted, const char *init);

hla_status hla_check_dtype(hla_context *context, hla_dtype dtype);
hla_status hla_check_number(hla_context *context, const char *name, float value); /* finite */
hla_status hla_check_offset(hla_context *context, const char *name, float value); /* finite, at least 0 */

/* ---- tensor views ---- */

/* Address of element [b,t,h,0]. */
static inline void *hla_tensor_row(const hla_tensor *tensor, int64_t b, int64_t t, int64_t h) {
    int64_t offset = b * tensor->stride[0] + t * tensor->stride[1] + h * tensor->stride[2];
    return (char *)tensor->data + offset * hla_element_size(tensor->dtype);
}

/* Rounds out[b,t,h,:] from doubles; for the references. */
void hla_store_row(const hla_tensor *out, int64_t b, int64_t t, int64_t h, const double *row);

/* The view itself, its dtype, its shape [b,t,h,x], data not NULL (unless empty) and aligned to an element, and every
 * offset within 64 bits. Inputs may have any strides, zero (broadcast) and negative included. */
hla_status hla_check_tensor(hla_context *context, const char *name, const hla_tensor *tensor, hla_dtype dtype,
                            int64_t b, int64_t t, int64_t h, int64_t x);

/* In addition, that no two elements of the view share memory. Wants nested strides: in order of size each stride
 * steps over all of the smaller axes. */
hla_status hla_check_output(hla_context *context, const char *name, const hla_tensor *tensor, hla_dtype dtype,
                            int64_t b, int64_t t, int64_t h, int64_t x);

/* That an output shares no memory with an input; both have passed their checks. Views with the same strides may be
 * interleaved in one buffer (slices of a packed QKV array); otherwise the address ranges must be apart. */
hla_status hla_check_disjoint(hla_context *context, const char *output_name, const hla_tensor *output,
                              const char *input_name, const hla_tensor *input);

/* If the context asks for it: that no element is NaN or infinite, else HLA_ERROR_NOT_FINITE with the first one's index.
 * lengths: NULL, or for each batch entry how many of its tokens count. */
hla_status hla_check_finite(hla_context *context, const char *name, const hla_tensor *tensor, const int64_t *lengths);

/* key_lengths: NULL or batch numbers in 0 ... keys. */
hla_status hla_check_key_lengths(hla_context *context, const int64_t *key_lengths, int64_t batch, int64_t keys);

/* ---- workspace ---- */

#define HLA_ALIGNMENT 64

/* Carves 64-byte-aligned pieces from one block. With base NULL it only measures: take() returns NULL and used grows,
 * so that one function describes the layout for plan creation (size) and for execution (pointers). */
typedef struct hla_arena {
    char *base;
    size_t used;
    bool overflow; /* a size did not fit; used is then meaningless */
} hla_arena;

void *hla_arena_take(hla_arena *arena, int64_t count, size_t element_size);

/* That the caller's workspace is there, aligned to HLA_ALIGNMENT and holds at least needed bytes. */
hla_status hla_check_workspace(hla_context *context, const void *workspace, size_t size, size_t needed);

#endif
