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
