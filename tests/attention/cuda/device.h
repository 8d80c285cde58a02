/* tests/attention/cuda/device.h - the arrays of hadamard_cases.h on a GPU, and calls on them.
 *
 * Device memory comes from one block, all bytes of which are one (NaN) until something is written, with a margin around
 * each piece that has to stay so. Arrays are copied with what lies between their elements.
 */
#ifndef HLA_TESTS_CUDA_DEVICE_H
#define HLA_TESTS_CUDA_DEVICE_H

#include "hla/device.h"
#include "tests/attention/hadamard_cases.h"

enum { DEVICE_SKIPPED = 77 }; /* as ctest knows it */

typedef struct device {
    hla_context *context;
    void *stream;
    char *memory;
    size_t size, used;
} device;

/* Opens GPU 0 with a stream of its own and `size` bytes of memory; or says why it is skipped, and returns false. */
bool device_open(device *gpu, size_t size);
void device_close(device *gpu);

/* Forgets all pieces. */
void device_reset(device *gpu);

/* A poisoned piece, aligned to 256 bytes. */
void *device_take(device *gpu, size_t bytes);

/* Whether both margins of a piece are untouched. */
bool device_margins_untouched(device *gpu, const void *piece, size_t bytes);

/* The same array on the device, or a view without data if array is empty. */
hla_tensor device_upload(device *gpu, const guarded *array);

/* Its bytes, gaps included, back; fails the test if something around it was written. name: for the message. */
void device_download(device *gpu, const guarded *array, const hla_tensor *view, const char *name);

/* All arrays of a problem on the device, outputs poisoned. */
typedef struct device_data {
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, initial_state, d_out, d_final_state;
    hla_tensor output[HADAMARD_OUTPUTS];
    hla_hadamard_inputs inputs;
    hla_hadamard_gradients gradients;
} device_data;

/* to must stay where it is: its members point to each other. */
void device_upload_all(device *gpu, device_data *to, const hadamard_data *data);

/* A call of the plan on them, queued. workspace: device memory. */
hla_status device_queue(const device_data *arrays, const hla_hadamard_plan *plan, bool backward, void *workspace,
                        size_t size);

/* Plan, upload, run, wait, download. HLA_ERROR_UNSUPPORTED: the kernel does not take the problem. Fails the test if
 * anything beside the outputs and the workspace was written. */
hla_status device_run(device *gpu, hadamard_data *data, const char *kernel, bool backward);

/* Whether a kernel of the device's table is to be tried on the problem: those of the quadratic form take no states. */
bool device_takes(const hadamard_data *data, const hla_kernel_info *info);

#endif
