/* The device that a context computes on: finds the backend for NVIDIA GPUs, and asks it. */
#include "attention/cuda/backend.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static const char library_name[] = "libhla_cuda.so.0";

/* The library at HLA_CUDA_LIBRARY, else beside the code that this is part of, else where the loader finds it. It stays
 * loaded for the life of the process, as the driver's objects do. */
static void *load(void) {
    const char *path = getenv("HLA_CUDA_LIBRARY");
    if (path && *path) return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    Dl_info self;
    char beside[4096];
    if (dladdr((const void *)library_name, &self) && strrchr(self.dli_fname, '/')) {
        int folder = (int)(strrchr(self.dli_fname, '/') - self.dli_fname);
        int length = snprintf(beside, sizeof beside, "%.*s/%s", folder, self.dli_fname, library_name);
        void *library = length < (int)sizeof beside ? dlopen(beside, RTLD_NOW | RTLD_LOCAL) : NULL;
        if (library) return library;
    }
    return dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
}

/* NULL, with the reason in the context, if there is none that this library can use. */
static const hla_cuda_backend *find_backend(hla_context *context) {
    void *library = load();
    if (!library) {
        (void)hla_fail(context, HLA_ERROR_UNSUPPORTED, "the CUDA backend was not found: %.300s", dlerror());
        return NULL;
    }
    void *symbol = dlsym(library, HLA_CUDA_ENTRY);
    if (!symbol) {
        (void)hla_fail(context, HLA_ERROR_UNSUPPORTED, "the CUDA backend is no libhla_cuda: %.300s", dlerror());
        return NULL;
    }
    hla_cuda_backend_getter *get;
    memcpy(&get, &symbol, sizeof get); /* ISO C has no cast from data to function */
    const hla_cuda_backend *backend = get();
    if (strcmp(backend->version, hla_version()) == 0) return backend;
    (void)hla_fail(context, HLA_ERROR_UNSUPPORTED, "the CUDA backend is of version %.32s, libhla of %.32s",
                   backend->version, hla_version());
    return NULL;
}

hla_status hla_context_use_cuda(hla_context *context, int device) {
    if (!context) return HLA_ERROR_ARGUMENT;
    if (device < 0) return hla_fail(context, HLA_ERROR_ARGUMENT, "device is %d, wanted at least 0", device);
    if (context->check_finite) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED,
                        "the context checks inputs for NaN (check_finite), which on a GPU would have to wait for them");
    }
    const hla_cuda_backend *backend = find_backend(context);
    if (!backend) return HLA_ERROR_UNSUPPORTED;
    hla_status status = backend->open(context, device);
    if (status == HLA_OK) context->cuda = backend, context->stream = NULL;
    return status;
}

hla_status hla_context_set_stream(hla_context *context, void *stream) {
    if (!context) return HLA_ERROR_ARGUMENT;
    if (!context->cuda) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "the context computes on the CPU: hla_context_use_cuda comes first");
    }
    if (!stream) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "stream is NULL; the default stream is named cudaStreamLegacy or cudaStreamPerThread");
    }
    context->stream = stream;
    return HLA_OK;
}

const char *hla_context_device_name(const hla_context *context) {
    if (!context) return "";
    return context->cuda ? context->device.name : "CPU";
}

hla_status hla_check_address(hla_context *context, const char *name, const void *address) {
    return context && context->cuda ? context->cuda->check_address(context, name, address) : HLA_OK;
}

hla_status hla_check_stream(hla_context *context) {
    if (!context->cuda) return HLA_OK;
    if (context->stream) return context->cuda->select(context);
    return hla_fail(context, HLA_ERROR_ARGUMENT,
                    "no stream is set: hla_context_set_stream comes before the first call");
}
