/* The plug-in's frame: opens a GPU, checks addresses, owns memory for objects, and lists the operators' kernels. */
#include "attention/cuda/backend.h"
#include "attention/cuda/cuda.h"
#include "attention/cuda/tables.h"

#include <cuda_runtime_api.h>
#include <stdio.h>

hla_status hla_cuda_check(hla_context *context, int error, const char *action) {
    if (error == cudaSuccess) return HLA_OK;
    hla_status status = error == cudaErrorMemoryAllocation ? HLA_ERROR_MEMORY : HLA_ERROR_UNSUPPORTED;
    return hla_fail(context, status, "%s: %s", action, cudaGetErrorString((cudaError_t)error));
}

static hla_status open_device(hla_context *context, int ordinal) {
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess) return hla_cuda_check(context, (int)error, "no NVIDIA GPU can be used");
    if (ordinal >= count) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED, "device is %d, this machine has %d NVIDIA GPU%s", ordinal,
                        count, count == 1 ? "" : "s");
    }
    struct cudaDeviceProp properties;
    error = cudaGetDeviceProperties(&properties, ordinal);
    if (error != cudaSuccess) return hla_cuda_check(context, (int)error, "cannot ask the GPU for its properties");
    int capability = 10 * properties.major + properties.minor;
    if (capability < HLA_CUDA_LEAST_CAPABILITY) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED,
                        "device %d, %.64s, has compute capability %d.%d, kernels need at least %d.%d", ordinal,
                        properties.name, properties.major, properties.minor, HLA_CUDA_LEAST_CAPABILITY / 10,
                        HLA_CUDA_LEAST_CAPABILITY % 10);
    }
    error = (cudaError_t)hla_cuda_kernels_run(ordinal);
    if (error != cudaSuccess) return hla_cuda_check(context, (int)error, "the GPU runs no kernel of libhla_cuda");
    context->device =
        (hla_cuda_device){.ordinal = ordinal, .capability = capability, .processors = properties.multiProcessorCount};
    snprintf(context->device.name, sizeof context->device.name, "%.64s (%d.%d)", properties.name, properties.major,
             properties.minor);
    return HLA_OK;
}

static hla_status select_device(hla_context *context) {
    return hla_cuda_check(context, (int)cudaSetDevice(context->device.ordinal), "cannot use the GPU");
}

static hla_status check_address(hla_context *context, const char *name, const void *address) {
    struct cudaPointerAttributes attributes;
    cudaError_t error = cudaPointerGetAttributes(&attributes, address);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is no address that CUDA knows: %s", name,
                        cudaGetErrorString(error));
    }
    if (attributes.type == cudaMemoryTypeManaged) return HLA_OK;
    if (attributes.type != cudaMemoryTypeDevice) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s lies in host memory, wanted memory of %s", name,
                        context->device.name);
    }
    if (attributes.device == context->device.ordinal) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s lies on device %d, the context computes on device %d", name,
                    attributes.device, context->device.ordinal);
}

static hla_status allocate(hla_context *context, size_t bytes, void **memory) {
    *memory = NULL;
    hla_status status = select_device(context);
    if (status != HLA_OK) return status;
    cudaError_t error = cudaMalloc(memory, bytes);
    if (error == cudaSuccess) return HLA_OK;
    (void)cudaGetLastError();
    return hla_fail(context, HLA_ERROR_MEMORY, "%s has no %zu bytes of memory left: %s", context->device.name, bytes,
                    cudaGetErrorString(error));
}

static void release(hla_context *context, void *memory) {
    (void)context;
    (void)cudaFree(memory);
}

static hla_status clear(hla_context *context, void *memory, size_t bytes) {
    cudaError_t error = cudaSetDevice(context->device.ordinal);
    if (error == cudaSuccess) error = cudaMemset(memory, 0, bytes);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    return hla_cuda_check(context, (int)error, "cannot clear memory of the GPU");
}

static hla_status copy(hla_context *context, void *to, const void *from, size_t bytes) {
    cudaError_t error = cudaSetDevice(context->device.ordinal);
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    if (error == cudaSuccess) error = cudaMemcpy(to, from, bytes, cudaMemcpyDefault);
    /* from pageable memory it returns as soon as that has been read; streams that do not wait for the default one may
     * overtake the rest */
    if (error == cudaSuccess) error = cudaDeviceSynchronize();
    return hla_cuda_check(context, (int)error, "cannot copy between host and GPU");
}

static const hla_cuda_backend backend = {
    .version = HLA_VERSION,
    .open = open_device,
    .select = select_device,
    .check_address = check_address,
    .allocate = allocate,
    .release = release,
    .clear = clear,
    .copy = copy,
    .utilities = &hla_cuda_utilities_table,
    .hadamard = hla_cuda_hadamard_table,
    .feature_map = hla_cuda_feature_map_table,
    .softmax = hla_cuda_softmax_table,
    .stream = &hla_cuda_stream_entry,
};

HLA_API const hla_cuda_backend *hla_cuda_backend_get(void);
const hla_cuda_backend *hla_cuda_backend_get(void) {
    return &backend;
}
