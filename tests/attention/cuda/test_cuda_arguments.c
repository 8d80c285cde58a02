/* Bad devices, streams and addresses, and too little memory: each gets a status and a sentence, and the context still
 * works. */
#include "tests/attention/cuda/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/attention/argument_support.h"

static const hadamard_case small = {1, 2, 70, 90, 20, 2, {6, 5}, LAYOUT_BTHD, STATEFUL};

/* The GPU and a small problem on it, with both passes' workspace. */
typedef struct bench {
    device gpu;
    hadamard_data data;
    hla_hadamard_plan *plan;
    device_data arrays;
    void *workspace;
    size_t size;
} bench;

static hla_status queue(const bench *b, bool backward) {
    return device_queue(&b->arrays, b->plan, backward, b->workspace, b->size);
}

/* Both passes, by the case's own check. */
static void still_works(bench *b) {
    hla_status status = HLA_OK;
    for (int backward = 0; backward < 2 && status == HLA_OK; backward++) {
        status = queue(b, backward);
        if (status == HLA_OK) status = hla_device_synchronise(b->gpu.context);
    }
    if (status != HLA_OK) fail_msg("after the error: %s", hla_context_error(b->gpu.context));
    for (int i = OUT; i < HADAMARD_OUTPUTS; i++) {
        if (!b->data.output[i].pages) continue;
        poison(&b->data.output[i]);
        device_download(&b->gpu, &b->data.output[i], &b->arrays.output[i], "an output");
    }
    hadamard_check(&b->data, OUT, HADAMARD_OUTPUTS, "after the error");
}

/* On a context of the CPU, and on one that computes on a GPU already and stays there. */
static void test_device(void **state) {
    bench *b = *state;
    hla_context *context = make_context(false), *careful = make_context(true);
    expect(context, hla_context_use_cuda(context, 4096), HLA_ERROR_UNSUPPORTED, "device is 4096, this machine has");
    expect(context, hla_context_use_cuda(context, -1), HLA_ERROR_ARGUMENT, "device is -1");
    expect(careful, hla_context_use_cuda(careful, 0), HLA_ERROR_UNSUPPORTED, "check_finite");
    assert_string_equal(hla_context_device_name(context), "CPU");
    hadamard_data data = hadamard_make(&small, HLA_F32, true, 1);
    assert_int_equal(hadamard_run(context, &data, NULL), HLA_OK);
    hadamard_check(&data, OUT, DV, "on the CPU");
    hadamard_free(&data);
    hla_context_free(context);
    hla_context_free(careful);
    expect(b->gpu.context, hla_context_use_cuda(b->gpu.context, 4096), HLA_ERROR_UNSUPPORTED, "device is 4096");
    still_works(b);
}

static void test_stream(void **state) {
    bench *b = *state;
    hla_context *context = make_context(false);
    expect(context, hla_context_set_stream(context, b->gpu.stream), HLA_ERROR_ARGUMENT, "computes on the CPU");
    assert_int_equal(hla_context_use_cuda(context, 0), HLA_OK);
    hla_hadamard_plan *plan = NULL, *own = b->plan;
    assert_int_equal(hla_hadamard_plan_create(context, &b->data.problem, &plan), HLA_OK);
    for (int backward = 0; backward < 2; backward++) {
        expect(context, device_queue(&b->arrays, plan, backward, b->workspace, b->size), HLA_ERROR_ARGUMENT,
               "no stream is set");
    }
    expect(context, hla_context_set_stream(context, NULL), HLA_ERROR_ARGUMENT, "stream is NULL");
    assert_int_equal(hla_context_set_stream(context, b->gpu.stream), HLA_OK);
    b->plan = plan;
    still_works(b);
    b->plan = own;
    hla_hadamard_plan_free(plan);
    hla_context_free(context);
}

/* Replaces an address of the call by one of the host, for one call of each pass that reads or writes it. */
static void check_host_address(bench *b, const char *name, void *address, bool forward, bool backward) {
    void *device_address, *host_address = b->data.v.view.data;
    memcpy(&device_address, address, sizeof device_address);
    memcpy(address, &host_address, sizeof host_address);
    char sentence[64];
    snprintf(sentence, sizeof sentence, "%s lies in host memory", name);
    if (forward) expect(b->gpu.context, queue(b, false), HLA_ERROR_ARGUMENT, sentence);
    if (backward) expect(b->gpu.context, queue(b, true), HLA_ERROR_ARGUMENT, sentence);
    memcpy(address, &device_address, sizeof device_address);
}

static void test_host_addresses(void **state) {
    bench *b = *state;
    device_data *arrays = &b->arrays;
    check_host_address(b, "q_features[1]", &arrays->q[1].data, true, true);
    check_host_address(b, "k_features[0]", &arrays->k[0].data, true, true);
    check_host_address(b, "v", &arrays->v.data, true, true);
    check_host_address(b, "initial_state", &arrays->inputs.initial_state, true, true);
    check_host_address(b, "out", &arrays->output[OUT].data, true, false);
    check_host_address(b, "final_state", &arrays->output[FINAL_STATE].data, true, false);
    check_host_address(b, "d_out", &arrays->d_out.data, false, true);
    check_host_address(b, "d_final_state", &arrays->d_final_state.data, false, true);
    check_host_address(b, "dq_features[0]", &arrays->output[DQ].data, false, true);
    check_host_address(b, "dk_features[1]", &arrays->output[DK + 1].data, false, true);
    check_host_address(b, "dv", &arrays->output[DV].data, false, true);
    check_host_address(b, "d_initial_state", &arrays->gradients.d_initial_state, false, true);
    check_host_address(b, "workspace", &b->workspace, true, true);
    still_works(b);
}

static void test_workspace(void **state) {
    bench *b = *state;
    hla_context *context = b->gpu.context;
    for (int backward = 0; backward < 2; backward++) {
        size_t needed = backward ? hla_hadamard_plan_backward_workspace(b->plan) : hla_hadamard_plan_workspace(b->plan);
        expect(context, device_queue(&b->arrays, b->plan, backward, b->workspace, needed - 1), HLA_ERROR_WORKSPACE,
               "workspace");
        expect(context, device_queue(&b->arrays, b->plan, backward, (char *)b->workspace + 4, b->size),
               HLA_ERROR_WORKSPACE, "workspace");
        expect(context, device_queue(&b->arrays, b->plan, backward, NULL, b->size), HLA_ERROR_WORKSPACE, "workspace");
    }
    still_works(b);
}

static void test_memory(void **state) {
    bench *b = *state;
    void *memory = b;
    hla_status status = hla_device_allocate(b->gpu.context, (size_t)1 << 50, &memory);
    expect(b->gpu.context, status, HLA_ERROR_MEMORY, "memory");
    assert_null(memory);
    still_works(b);
}

/* Each device has its own kernels. */
static void test_kernel_names(void **state) {
    (void)state;
    hla_context *context = make_context(false);
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.queries = problem.keys = 3, problem.value_dim = 2, problem.rank[0] = 4;
    problem.kernel = "state_cuda";
    hla_hadamard_plan *plan = NULL;
    expect(context, hla_hadamard_plan_create(context, &problem, &plan), HLA_ERROR_ARGUMENT, "no kernel of this");
    assert_int_equal(hla_context_use_cuda(context, 0), HLA_OK);
    assert_int_equal(hla_hadamard_plan_create(context, &problem, &plan), HLA_OK);
    hla_hadamard_plan_free(plan);
    problem.kernel = "state_avx2";
    expect(context, hla_hadamard_plan_create(context, &problem, &plan), HLA_ERROR_ARGUMENT, "no kernel of this");
    hla_context_free(context);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    bench b = {0};
    if (!device_open(&b.gpu, (size_t)1 << 28)) return DEVICE_SKIPPED;
    b.data = hadamard_make_backward(&small, HLA_F32, true, 1);
    if (hla_hadamard_plan_create(b.gpu.context, &b.data.problem, &b.plan) != HLA_OK) abort();
    device_upload_all(&b.gpu, &b.arrays, &b.data);
    size_t forward = hla_hadamard_plan_workspace(b.plan), backward = hla_hadamard_plan_backward_workspace(b.plan);
    b.size = forward > backward ? forward : backward;
    b.workspace = device_take(&b.gpu, b.size);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_device, &b),         cmocka_unit_test_prestate(test_stream, &b),
        cmocka_unit_test_prestate(test_host_addresses, &b), cmocka_unit_test_prestate(test_workspace, &b),
        cmocka_unit_test_prestate(test_memory, &b),         cmocka_unit_test_prestate(test_kernel_names, &b),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    hla_hadamard_plan_free(b.plan);
    hadamard_free(&b.data);
    device_close(&b.gpu);
    return failed;
}
