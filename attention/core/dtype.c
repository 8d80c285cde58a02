/* Element types: sizes and names. */
#include "attention/core/internal.h"

bool hla_dtype_valid(hla_dtype dtype) {
    return dtype == HLA_F32 || dtype == HLA_BF16 || dtype == HLA_F16;
}

size_t hla_dtype_size(hla_dtype dtype) {
    if (!hla_dtype_valid(dtype)) return 0;
    return dtype == HLA_F32 ? sizeof(float) : sizeof(uint16_t);
}

const char *hla_dtype_name(hla_dtype dtype) {
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    return hla_dtype_valid(dtype) ? names[dtype] : "unknown";
}
