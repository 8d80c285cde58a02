/* hla/core.h - what every operator of libhla shares: status, context, tensor view.
 *
 *     hla_context *ctx = NULL;
 *     if (hla_context_create(&ctx, NULL) != HLA_OK) return 1;
 *     hla_tensor q = hla_tensor_bthd(data, HLA_F32, B, T, H, D);
 *     ...
 *     fprintf(stderr, "%s\n", hla_context_error(ctx));
 *     hla_context_free(ctx);
 *
 * Letters (fixed for the whole project): B batch, H heads, Tq and Tk query and key tokens, D width of a query/key
 * head, V width of a value head, P factors, R_p rank of factor p, R = R_1 ... R_P the state rank.
 */
#ifndef HLA_CORE_H
#define HLA_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define HLA_API
#else
#define HLA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers are stable: they never change meaning between versions. */
typedef enum hla_status {
    HLA_OK = 0,
    HLA_ERROR_ARGUMENT = 1,    /* a null pointer, size, stride, rank, enum value ... out of range */
    HLA_ERROR_MEMORY = 2,      /* out of memory */
    HLA_ERROR_UNSUPPORTED = 3, /* legal, but this build or machine cannot do it */
    HLA_ERROR_WORKSPACE = 4,   /* workspace missing or too small */
    HLA_ERROR_NOT_FINITE = 5   /* input checking is on and an input holds NaN or infinity */
} hla_status;

/* A short name of a status, never NULL: "ok", "argument", ... */
HLA_API const char *hla_status_name(hla_status status);

typedef enum hla_dtype { HLA_F32 = 0, HLA_BF16 = 1, HLA_F16 = 2 } hla_dtype;

HLA_API size_t hla_dtype_size(hla_dtype dtype); /* bytes of one element; 0 for an unknown value */

/* A context holds the number of threads and the last error sentence. No process-wide state: two contexts may be used
 * at once from two threads; one context must not. */
typedef struct hla_context hla_context;

typedef struct hla_context_options {
    size_t struct_size; /* set by hla_context_options_init */
    int threads;        /* 0: as many as OpenMP would use */
    bool check_finite;  /* scan inputs (keys beyond key_lengths aside) for NaN and infinity before each call */
} hla_context_options;

/* Defaults, and struct_size; NULL is fine. */
HLA_API void hla_context_options_init(hla_context_options *options);
HLA_API hla_status hla_context_create(hla_context **context,
                                      const hla_context_options *options); /* options may be NULL */
HLA_API void hla_context_free(hla_context *context);                       /* NULL is fine */
HLA_API const char *hla_context_error(const hla_context *context);         /* sentence of the last error, "" if none */
HLA_API int hla_context_threads(const hla_context *context);               /* at least 1; 0 for NULL */

/* ---- NVIDIA GPUs ----
 *
 *     hla_context_use_cuda(ctx, 0);
 *     hla_context_set_stream(ctx, stream);
 *
 * From then on plans and objects made with the context compute on that GPU: tensors, states, weights and workspaces are
 * device memory (or managed), aligned as on the CPU; arrays of lengths and offsets stay in host memory. A call queues
 * its work on the stream that was set last, allocates nothing, does not wait, and may be captured into a CUDA graph
 * (lengths and offsets are captured by value); that GPU is the thread's current one afterwards. Plans made before stay
 * what they are. The backend is a library of its own, libhla_cuda, looked for where libhla lies and then where the
 * loader looks, or at the path in the environment variable HLA_CUDA_LIBRARY; nothing but these calls needs it. */

/* device: as cudaSetDevice counts. HLA_ERROR_UNSUPPORTED without the library, a driver, that device or a kernel for it,
 * and with check_finite, which would have to wait; the context then is as before. */
HLA_API hla_status hla_context_use_cuda(hla_context *context, int device);

/* stream: a cudaStream_t of the device, not NULL: the default stream is named by cudaStreamLegacy or
 * cudaStreamPerThread, so that it is not taken by mistake. */
HLA_API hla_status hla_context_set_stream(hla_context *context, void *stream);

/* "CPU", or the GPU's name and compute capability, "NVIDIA H100 80GB HBM3 (9.0)"; "" for NULL */
HLA_API const char *hla_context_device_name(const hla_context *context);

/* A view of memory the caller owns. Four logical axes, strides in elements (64-bit, may be any order, so [B,T,H,X]
 * and [B,H,T,X] arrays both work in place). Axes are always named in the order b, t, h, x. Maps to DLPack one to one.
 */
typedef struct hla_tensor {
    void *data;
    hla_dtype dtype;
    int64_t shape[4];
    int64_t stride[4];
} hla_tensor;

/* The view of a contiguous [B,T,H,X] array. Checks nothing: calls check the views they get. */
HLA_API hla_tensor hla_tensor_bthd(const void *data, hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x);
/* The view of a contiguous [B,H,T,X] array. */
HLA_API hla_tensor hla_tensor_bhtd(const void *data, hla_dtype dtype, int64_t b, int64_t t, int64_t h, int64_t x);

/* "0.1.0": of the library that runs, which may be newer than the header. */
HLA_API const char *hla_version(void);

#ifdef __cplusplus
}
#endif
#endif
