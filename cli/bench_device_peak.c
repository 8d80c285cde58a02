/* cli/bench_device_peak.c - what the GPU can do: a matrix product by cuBLASLt and a copy. cuBLASLt is looked for when
 * the benchmark runs; the few of its declarations that are needed, which have not changed since version 11, stand here.
 */
#include "cli/bench_device.h"

#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 8192, WARM_UP = 3, CALLS = 5 };
#define WORKSPACE_BYTES ((size_t)32 << 20)
#define COPY_BYTES ((size_t)1 << 30)

enum { COMPUTE_F32 = 68, TYPE_F32 = 0, TYPE_BF16 = 14, PREFERENCE_WORKSPACE_BYTES = 1 }; /* as in cuBLASLt's headers */

typedef struct product_algorithm {
    uint64_t data[8];
} product_algorithm;

typedef struct product_heuristic {
    product_algorithm algorithm;
    size_t workspace;
    int status;
    float waves;
    int reserved[4];
} product_heuristic;

/* Handles are pointers, a status of 0 is success. */
typedef struct product_library {
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*create_product)(void **product, int compute, int scale);
    int (*destroy_product)(void *product);
    int (*create_layout)(void **layout, int type, uint64_t rows, uint64_t columns, int64_t stride);
    int (*destroy_layout)(void *layout);
    int (*create_preference)(void **preference);
    int (*destroy_preference)(void *preference);
    int (*set_preference)(void *preference, int attribute, const void *value, size_t size);
    int (*propose)(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted,
                   product_heuristic *results, int *found);
    int (*multiply)(void *handle, void *product, const void *alpha, const void *a, void *a_layout, const void *b,
                    void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,
                    const product_algorithm *algorithm, void *workspace, size_t workspace_size, void *stream);
} product_library;

struct device_product {
    product_library library;
    void *handle, *product, *layout, *preference;
    product_heuristic proposal;
    void *in, *out, *workspace;
};

static bool find_functions(product_library *functions, void *library) {
    const struct {
        const char *name;
        void *place;
    } table[] = {{"cublasLtCreate", &functions->create},
                 {"cublasLtDestroy", &functions->destroy},
                 {"cublasLtMatmulDescCreate", &functions->create_product},
                 {"cublasLtMatmulDescDestroy", &functions->destroy_product},
                 {"cublasLtMatrixLayoutCreate", &functions->create_layout},
                 {"cublasLtMatrixLayoutDestroy", &functions->destroy_layout},
                 {"cublasLtMatmulPreferenceCreate", &functions->create_preference},
                 {"cublasLtMatmulPreferenceDestroy", &functions->destroy_preference},
                 {"cublasLtMatmulPreferenceSetAttribute", &functions->set_preference},
                 {"cublasLtMatmulAlgoGetHeuristic", &functions->propose},
                 {"cublasLtMatmul", &functions->multiply}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        void *symbol = dlsym(library, table[i].name);
        if (symbol == NULL) return false;
        memcpy(table[i].place, &symbol, sizeof symbol); /* ISO C has no cast from data to function */
    }
    return true;
}

static bool find_library(product_library *functions) {
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (library != NULL && find_functions(functions, library)) return true;
    }
    return false;
}

/* Random bfloat16 numbers between 1 and 2 with both signs: zeros would take less power, and clocks would be higher. */
static hla_status fill_matrix(bench_device *device, void *matrix) {
    size_t count = (size_t)SIZE * SIZE;
    uint16_t *numbers = malloc(count * sizeof *numbers);
    uint64_t seed = 1;
    if (numbers == NULL) return HLA_ERROR_MEMORY;
    for (size_t i = 0; i < count; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        numbers[i] = (uint16_t)((seed >> 48 & 0x807f) | 0x3f80);
    }
    hla_status status = hla_device_copy(device->gpu, matrix, numbers, count * sizeof *numbers);
    free(numbers);
    return status;
}

static bool plan_product(device_product *made) {
    const product_library *library = &made->library;
    size_t workspace = WORKSPACE_BYTES;
    int found = 0;
    return library->create(&made->handle) == 0 && library->create_product(&made->product, COMPUTE_F32, TYPE_F32) == 0 &&
           library->create_layout(&made->layout, TYPE_BF16, SIZE, SIZE, SIZE) == 0 &&
           library->create_preference(&made->preference) == 0 &&
           library->set_preference(made->preference, PREFERENCE_WORKSPACE_BYTES, &workspace, sizeof workspace) == 0 &&
           library->propose(made->handle, made->product, made->layout, made->layout, made->layout, made->layout,
                            made->preference, 1, &made->proposal, &found) == 0 &&
           found == 1;
}

hlv_status device_product_create(cli_session *session, bench_device *device, device_product **product,
                                 const char **why) {
    size_t bytes = (size_t)SIZE * SIZE * sizeof(uint16_t);
    *product = NULL;
    *why = NULL;
    device_product *made = calloc(1, sizeof *made);
    if (made == NULL) {
        session->sentence = "out of memory";
        return HLV_ERROR_MEMORY;
    }
    if (!find_library(&made->library)) {
        free(made);
        *why = "libcublasLt was not found: no matrix product to compare with";
        return HLV_OK;
    }
    if (!plan_product(made)) {
        device_product_free(device, made);
        *why = "cuBLASLt does not work here: no matrix product to compare with";
        return HLV_OK;
    }
    hla_status status = hla_device_allocate(device->gpu, bytes, &made->in);
    if (status == HLA_OK) status = hla_device_allocate(device->gpu, bytes, &made->out);
    if (status == HLA_OK) status = hla_device_allocate(device->gpu, WORKSPACE_BYTES, &made->workspace);
    if (status == HLA_OK) status = fill_matrix(device, made->in);
    if (status == HLA_OK) {
        *product = made;
        return HLV_OK;
    }
    device_product_free(device, made);
    return fail_operator(session, device->gpu, status);
}

void device_product_free(bench_device *device, device_product *product) {
    if (product == NULL) return;
    const product_library *library = &product->library;
    hla_device_free(device->gpu, product->in);
    hla_device_free(device->gpu, product->out);
    hla_device_free(device->gpu, product->workspace);
    if (product->preference != NULL) (void)library->destroy_preference(product->preference);
    if (product->layout != NULL) (void)library->destroy_layout(product->layout);
    if (product->product != NULL) (void)library->destroy_product(product->product);
    if (product->handle != NULL) (void)library->destroy(product->handle);
    free(product);
}

static hla_status multiply(bench_device *device, void *user) {
    device_product *product = user;
    const float one = 1, zero = 0;
    int failed =
        product->library.multiply(product->handle, product->product, &one, product->in, product->layout, product->in,
                                  product->layout, &zero, product->out, product->layout, product->out, product->layout,
                                  &product->proposal.algorithm, product->workspace, WORKSPACE_BYTES, device->stream);
    return failed == 0 ? HLA_OK : HLA_ERROR_UNSUPPORTED;
}

/* Of CALLS calls after a few others, the median's seconds. */
static hlv_status time_median(cli_session *session, bench_device *device, device_work *work, void *user,
                              double *seconds) {
    double samples[CALLS];
    hlv_status status = device_time(session, device, work, user, WARM_UP, seconds);
    for (int i = 0; i < CALLS && status == HLV_OK; i++)
        status = device_time(session, device, work, user, 1, &samples[i]);
    if (status == HLV_OK) *seconds = bench_median(samples, CALLS);
    return status;
}

hlv_status device_product_measure(cli_session *session, bench_device *device, device_product *product,
                                  double *operations_a_second) {
    double seconds = 0;
    *operations_a_second = NAN;
    if (product == NULL) return HLV_OK;
    hlv_status status = time_median(session, device, multiply, product, &seconds);
    if (status == HLV_OK) *operations_a_second = 2.0 * SIZE * SIZE * SIZE / seconds;
    return status;
}

static hla_status copy(bench_device *device, void *user) {
    return hla_device_queue_copy(device->gpu, (char *)user + COPY_BYTES, user, COPY_BYTES);
}

hlv_status device_copy_measure(cli_session *session, bench_device *device, double *bytes_a_second) {
    void *memory;
    double seconds = 0;
    hla_status allocated = hla_device_allocate(device->gpu, 2 * COPY_BYTES, &memory);
    if (allocated != HLA_OK) return fail_operator(session, device->gpu, allocated);
    hlv_status status = time_median(session, device, copy, memory, &seconds);
    hla_device_free(device->gpu, memory);
    *bytes_a_second = 2.0 * (double)COPY_BYTES / seconds;
    return status;
}
