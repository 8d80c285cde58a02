/* video/weights/safetensors.h - one .safetensors file: mapped, its header read and every number in it checked.
 *
 * The format: 8 bytes, little-endian, the header's length n; n bytes of JSON
 *     {"__metadata__": {"key": "value"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
 * and then the data, which the tensors fill without overlap, without holes and to the last byte. A file that breaks any
 * of these rules is refused whole, as the reference implementation refuses it. */
#ifndef HLV_SAFETENSORS_H
#define HLV_SAFETENSORS_H

#include "video/weights/weights.h"

#include <jansson.h>

typedef struct hlv_safetensors {
    hlv_context *ctx;
    char *path;
    const uint8_t *bytes; /* of the whole file */
    size_t size;
    void *mapping;       /* NULL: the bytes are the caller's */
    json_t *header;      /* the tensors' names point into it */
    json_t *metadata;    /* within header; NULL if none */
    hlv_weight *tensors; /* in the order of their data */
    int64_t count;
} hlv_safetensors;

hlv_status hlv_safetensors_open(hlv_context *ctx, const char *path, hlv_safetensors **file);
/* The same from memory, which must live as long as *file. path is for sentences. */
hlv_status hlv_safetensors_parse(hlv_context *ctx, const char *path, const uint8_t *bytes, size_t size,
                                 hlv_safetensors **file);
void hlv_safetensors_free(hlv_safetensors *file); /* NULL is fine */

char *hlv_copy_text(hlv_context *ctx, const char *text); /* from hlv_alloc; NULL when out of memory */

/* "[2, 3]" into text, cut at size. */
void hlv_shape_text(char *text, size_t size, int ndim, const int64_t *shape);

#endif
