/* A plug-in of another version, which libhla has to refuse before it does anything with it. */
#include "attention/cuda/backend.h"

HLA_API const hla_cuda_backend *hla_cuda_backend_get(void);

const hla_cuda_backend *hla_cuda_backend_get(void) {
    static const hla_cuda_backend backend = {.version = "0.0.1-other"};
    return &backend;
}
