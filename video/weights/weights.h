/* video/weights/weights.h - tensors of a checkpoint, mapped read-only: one .safetensors file, or a Diffusers component
 * directory with one file or shards and an index. Every offset, shape, dtype and name is checked at opening. */
#ifndef HLV_WEIGHTS_H
#define HLV_WEIGHTS_H

#include "video/core/context.h"

#define HLV_MAX_DIMS 8

typedef struct hlv_weight {
    const char *name;
    const char *file; /* where it was found, for error sentences */
    hla_dtype dtype;  /* F32, F16 or BF16 */
    int ndim;
    int64_t shape[HLV_MAX_DIMS];
    int64_t count;          /* elements */
    const void *data;       /* row-major; may be unaligned */
    int64_t bytes;          /* in the file */
    const char *dtype_name; /* as the file says: "F32", "I64", ... */
    bool usable;            /* dtype is F32, F16 or BF16: only such tensors are found, others are only listed */
} hlv_weight;

typedef struct hlv_weights hlv_weights;

/* path: a file, or a directory holding diffusion_pytorch_model.safetensors, model.safetensors, or an index of shards
 * (looked for in this order). Tensors of a shard that the index does not place there are ignored. Names of the original
 * Wan repositories are turned into those of diffusers (names.h). */
hlv_status hlv_weights_open(hlv_context *ctx, const char *path, hlv_weights **weights);
void hlv_weights_free(hlv_weights *weights);
int64_t hlv_weights_count(const hlv_weights *weights);
const hlv_weight *hlv_weights_at(const hlv_weights *weights, int64_t i);
const hlv_weight *hlv_weights_find(const hlv_weights *weights, const char *name);     /* NULL if absent or unusable */
const hlv_weight *hlv_weights_find_any(const hlv_weights *weights, const char *name); /* NULL if absent */
const char *hlv_weights_path(const hlv_weights *weights);                             /* as given at opening */
const char *hlv_weights_metadata(const hlv_weights *weights, const char *key);        /* "__metadata__" entry or NULL */
/* How many metadata entries there are in all; key and value are those of entry i, if there is one. */
int64_t hlv_weights_metadata_at(const hlv_weights *weights, int64_t i, const char **key, const char **value);
int64_t hlv_weights_files(const hlv_weights *weights, int64_t *bytes); /* number of files, and their bytes in all */

/* Looks up `weights` after `overrides` (may be NULL). A missing name or a wrong shape is noted and NULL is returned;
 * after all have been asked for, hlv_loader_finish fails with every missing and every mis-shaped tensor named in one
 * sentence, and every override that was not asked for: its name may be misspelt, or it belongs to another model.
 * `name` may be a printf format. Shape follows as ndim and that many int64_t; -1 accepts any size on that axis. */
typedef struct hlv_loader hlv_loader;
hlv_status hlv_loader_create(hlv_context *ctx, const hlv_weights *weights, const hlv_weights *overrides,
                             hlv_loader **loader);
const hlv_weight *hlv_loader_get(hlv_loader *loader, int ndim, const int64_t *shape, const char *name, ...)
    __attribute__((format(printf, 4, 5)));
bool hlv_loader_has(const hlv_loader *loader, const char *name);
hlv_status hlv_loader_finish(hlv_loader *loader); /* frees loader in any case */

/* Copies a tensor to float32. out holds weight->count floats. */
void hlv_weight_to_f32(const hlv_weight *weight, float *out);
/* The same into fresh memory of the context; NULL on failure. weight NULL (already noted as missing) gives NULL. */
float *hlv_weight_load_f32(hlv_context *ctx, const hlv_weight *weight);

/* Writing, through a temporary name and a rename so that no half-written file is ever seen. metadata: count pairs. */
typedef struct hlv_tensor_out {
    const char *name;
    hla_dtype dtype;
    int ndim;
    int64_t shape[HLV_MAX_DIMS];
    const void *data; /* contiguous */
} hlv_tensor_out;
hlv_status hlv_safetensors_write(hlv_context *ctx, const char *path, const hlv_tensor_out *tensors, int count,
                                 const char *const *metadata, int metadata_count);

#endif
