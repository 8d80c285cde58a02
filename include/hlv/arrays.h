/* hlv/arrays.h - plain arrays from and to files: NumPy's .npy and .safetensors, as float32 in C order.
 *
 *     hlv_array_file *file = NULL;
 *     hlv_array q = {0};
 *     if (hlv_array_file_open(ctx, "q.npy", &file) != HLV_OK) ...
 *     if (hlv_array_read(file, "q", &q) != HLV_OK) ...
 *     hlv_array_file_close(file);
 *     hlv_array_write(ctx, "out.npy", "out", &q);
 *     hlv_array_free(ctx, &q);
 */
#ifndef HLV_ARRAYS_H
#define HLV_ARRAYS_H

#include "hlv/context.h"

#ifdef __cplusplus
extern "C" {
#endif

#define HLV_ARRAY_MAX_DIMS 8

typedef struct hlv_array {
    int ndim;
    int64_t shape[HLV_ARRAY_MAX_DIMS];
    int64_t count; /* elements: the product of shape */
    float *data;   /* row-major, 64-byte aligned, owned; hlv_array_free */
} hlv_array;

/* A .npy file ('<f2', '<f4' or '<f8', C order) holds one array, found under any name; a .safetensors file holds F32,
 * F16 or BF16 tensors under their own. The ending decides. Every bound is checked. */
typedef struct hlv_array_file hlv_array_file;
HLV_API hlv_status hlv_array_file_open(hlv_context *context, const char *path, hlv_array_file **file);
HLV_API void hlv_array_file_close(hlv_array_file *file); /* NULL is fine; arrays read from it stay */
HLV_API bool hlv_array_file_has(const hlv_array_file *file, const char *name);

/* A copy of one array, converted to float32. On an error array is left empty. */
HLV_API hlv_status hlv_array_read(const hlv_array_file *file, const char *name, hlv_array *array);

/* Room for an array of this shape, not zeroed; shape holds ndim sizes, each 0 or more. */
HLV_API hlv_status hlv_array_create(hlv_context *context, int ndim, const int64_t *shape, hlv_array *array);
HLV_API void hlv_array_free(hlv_context *context, hlv_array *array); /* an empty one is fine */

/* Writes float32 to a .npy file, or to a .safetensors file that holds it under `name`. The file appears only when it is
 * whole. */
HLV_API hlv_status hlv_array_write(hlv_context *context, const char *path, const char *name, const hlv_array *array);

/* Whether hlv_array_write could write this path: its ending, its directory. To be asked before computing. */
HLV_API hlv_status hlv_array_check(hlv_context *context, const char *path);

#ifdef __cplusplus
}
#endif
#endif
