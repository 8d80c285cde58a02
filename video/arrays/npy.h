/* video/arrays/npy.h - NumPy's array file (NEP 1, versions 1 to 3): a magic, a header that is a Python dictionary, the
 * data. */
#ifndef HLV_NPY_H
#define HLV_NPY_H

#include "hlv/arrays.h"
#include "video/core/context.h"

hlv_status hlv_npy_read(hlv_context *ctx, const char *path, hlv_array *array);
hlv_status hlv_npy_write(hlv_context *ctx, const char *path, const hlv_array *array);

#endif
