/* Sizes that must not wrap. */
#include "attention/core/internal.h"

bool hla_size_multiply(size_t *total, int64_t factor) {
    return factor >= 0 && !__builtin_mul_overflow(*total, (uint64_t)factor, total);
}

bool hla_size_add(size_t *total, int64_t term) {
    return term >= 0 && !__builtin_add_overflow(*total, (uint64_t)term, total);
}
