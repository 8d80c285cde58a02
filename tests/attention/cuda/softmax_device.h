/* tests/attention/cuda/softmax_device.h - softmax plans on a GPU, for its tests. */
#ifndef HLA_TESTS_CUDA_SOFTMAX_DEVICE_H
#define HLA_TESTS_CUDA_SOFTMAX_DEVICE_H

#include "hla/softmax.h"
#include "tests/attention/cuda/maps_device.h"

/* A plan by that kernel and poisoned workspace for it; false if the kernel is one that takes only some problems, and
 * not this one. */
typedef struct device_plan {
    hla_softmax_plan *plan;
    array poison; /* as much host memory, and 64 bytes more, that has to stay as it is */
    device_array workspace;
    size_t size;
} device_plan;

static inline bool device_plan_make(device_plan *made, hla_context *gpu, const hla_softmax_problem *problem,
                                    const char *kernel, bool backward) {
    hla_softmax_problem forced = *problem;
    forced.kernel = kernel;
    memset(made, 0, sizeof *made);
    hla_status status = hla_softmax_plan_create(gpu, &forced, &made->plan);
    if (status == HLA_ERROR_UNSUPPORTED && kernel && strcmp(kernel, "cudnn") == 0) return false;
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu));
    if (kernel) assert_string_equal(hla_softmax_plan_kernel(made->plan), kernel);
    made->size = backward ? hla_softmax_plan_backward_workspace(made->plan) : hla_softmax_plan_workspace(made->plan);
    assert_int_equal(made->size % HLA_ALIGNMENT, 0);
    made->poison = array_poisoned(LAYOUT_BTHD, HLA_F32, 1, 1, 1, (int64_t)(made->size + HLA_ALIGNMENT) / 4);
    made->workspace = device_array_of(&made->poison);
    return true;
}

static inline void device_plan_free(device_plan *made) {
    device_array_fetch(&made->poison, &made->workspace);
    for (size_t i = made->size; i < made->size + HLA_ALIGNMENT; i++)
        assert_int_equal(made->poison.block[i], 0xff);
    device_free(made->workspace.block);
    array_free(&made->poison);
    hla_softmax_plan_free(made->plan);
}

#endif
