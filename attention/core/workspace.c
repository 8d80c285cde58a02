/* Carving a caller's workspace into aligned pieces. */
#include "attention/core/internal.h"

void *hla_arena_take(hla_arena *arena, int64_t count, size_t element_size) {
    size_t bytes = element_size, start = arena->used;
    bool fits = hla_size_multiply(&bytes, count) && hla_size_add(&bytes, HLA_ALIGNMENT - 1);
    bytes &= ~(size_t)(HLA_ALIGNMENT - 1);
    /* PTRDIFF_MAX rather than SIZE_MAX: no object can be larger */
    if (!fits || bytes > PTRDIFF_MAX || start > PTRDIFF_MAX - bytes) {
        arena->overflow = true;
        return NULL;
    }
    arena->used = start + bytes;
    return arena->base ? arena->base + start : NULL;
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
    return HLA_OK;
}
