/* Checks of what the problems of all operators have in common. */
#include "attention/core/internal.h"

#include <inttypes.h>
#include <math.h>

hla_status hla_check_struct(hla_context *context, const char *name, size_t size, size_t wanted, const char *init) {
    if (size >= wanted) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s.struct_size is %zu, wanted %zu: call %s first", name, size, wanted,
                    init);
}

hla_status hla_check_sizes(hla_context *context, const hla_named_size *sizes, int count) {
    for (int i = 0; i < count; i++) {
        if (sizes[i].value >= sizes[i].least && sizes[i].value <= HLA_MAX_SIZE) continue;
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.%s is %" PRId64 ", wanted %" PRId64 " to %" PRId64,
                        sizes[i].name, sizes[i].value, sizes[i].least, HLA_MAX_SIZE);
    }
    return HLA_OK;
}

hla_status hla_check_dtype(hla_context *context, hla_dtype dtype) {
    if (hla_dtype_valid(dtype)) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.dtype is %d, which is no hla_dtype", (int)dtype);
}

hla_status hla_check_number(hla_context *context, const char *name, float value) {
    if (isfinite(value)) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.%s is %g, wanted a finite number", name, (double)value);
}

hla_status hla_check_offset(hla_context *context, const char *name, float value) {
    if (isfinite(value) && value >= 0) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.%s is %g, wanted a finite number of at least 0", name,
                    (double)value);
}

hla_status hla_check_workspace(hla_context *context, const void *workspace, size_t size, size_t needed) {
    if (needed == 0) return HLA_OK;
    if (!workspace) {
        return hla_fail(context, HLA_ERROR_WORKSPACE, "workspace is NULL, the plan needs %zu bytes", needed);
    }
    if (size < needed) {
        return hla_fail(context, HLA_ERROR_WORKSPACE, "workspace holds %zu bytes, the plan needs %zu", size, needed);
    }
    if ((uintptr_t)workspace % HLA_ALIGNMENT != 0) {
        return hla_fail(context, HLA_ERROR_WORKSPACE, "workspace is not aligned to %d bytes", HLA_ALIGNMENT);
    }
    return hla_check_address(context, "workspace", workspace);
}
