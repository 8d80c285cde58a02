/* Softmax attention by cuDNN: bfloat16 and float16 on contiguous arrays without lengths or a bias. What it does not
 * take goes to the kernel of tiled.cu. The plan is made when ours is; execution only names addresses. */
#include "attention/cuda/backend.h"
#include "attention/cuda/cuda.h"
#include "attention/ops/softmax/cuda/cudnn_graph.h"
#include "attention/ops/softmax/cuda/tiled.h"

#include <dlfcn.h>
#include <float.h>
#include <stdlib.h>

/* What plan creation leaves for execution. */
typedef struct prepared_plan {
    hla_cudnn cudnn;
    hla_cudnn_builder builder;
    cudnnBackendDescriptor_t plan;
    int64_t bytes, statistics; /* workspace: cuDNN's, and numbers behind it */
    int arguments;
} prepared_plan;

/* It stays loaded for the life of the process. */
static bool find_functions(hla_cudnn *cudnn, void *library) {
    const struct {
        const char *name;
        void *place;
    } functions[] = {
        {"cudnnCreate", &cudnn->create_handle},           {"cudnnDestroy", &cudnn->destroy_handle},
        {"cudnnSetStream", &cudnn->set_stream},           {"cudnnGetErrorString", &cudnn->error_string},
        {"cudnnBackendCreateDescriptor", &cudnn->create}, {"cudnnBackendDestroyDescriptor", &cudnn->destroy},
        {"cudnnBackendSetAttribute", &cudnn->set},        {"cudnnBackendGetAttribute", &cudnn->get},
        {"cudnnBackendFinalize", &cudnn->finalize},       {"cudnnBackendExecute", &cudnn->execute}};
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *symbol = dlsym(library, functions[i].name);
        if (!symbol) return false;
        memcpy(functions[i].place, &symbol, sizeof symbol); /* ISO C has no cast from data to function */
    }
    return true;
}

/* What cuDNN's fused attention takes; its own word on it comes with the plan. */
static bool takes(const hla_softmax_problem *problem) {
    enum { UNIT = 8, WIDEST = 128 };
    return problem->dtype != HLA_F32 && problem->dim % UNIT == 0 && problem->dim <= WIDEST &&
           problem->value_dim % UNIT == 0 && problem->value_dim <= WIDEST && problem->keys > 0 &&
           problem->queries <= INT32_MAX && problem->keys <= INT32_MAX && problem->batch <= INT32_MAX &&
           problem->heads <= INT32_MAX && (!problem->causal || problem->queries == problem->keys);
}

static bool make_plan(prepared_plan *made, const hla_softmax_problem *problem, bool whole) {
    int64_t count = 0;
    made->builder = (hla_cudnn_builder){.cudnn = &made->cudnn, .handle = made->builder.handle};
    made->arguments = hla_cudnn_arguments(problem, whole);
    made->statistics = whole ? 0 : problem->batch * problem->heads * problem->queries;
    made->plan = hla_cudnn_plan(&made->builder, hla_cudnn_attention(&made->builder, problem, whole));
    if (made->builder.status == CUDNN_STATUS_SUCCESS)
        made->builder.status = made->cudnn.get(made->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64,
                                               1, &count, &made->bytes);
    if (made->builder.status == CUDNN_STATUS_SUCCESS) return true;
    hla_cudnn_destroy(&made->builder);
    return false;
}

static void destroy(void *prepared) {
    prepared_plan *made = prepared;
    if (!made) return;
    hla_cudnn_destroy(&made->builder);
    if (made->builder.handle) (void)made->cudnn.destroy_handle(made->builder.handle);
    free(made);
}

static hla_status create(hla_context *context, const hla_softmax_problem *problem, void **prepared) {
    if (!takes(problem)) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED,
                        "cudnn takes bfloat16 and float16, widths that are multiples of 8 up to 128, at least a key "
                        "and, causal, as many keys as queries");
    }
    void *library = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
    if (!library) return hla_fail(context, HLA_ERROR_UNSUPPORTED, "cuDNN was not found: %.300s", dlerror());
    prepared_plan *made = calloc(1, sizeof *made);
    if (!made) return hla_fail(context, HLA_ERROR_MEMORY, "out of memory for a plan of cuDNN");
    if (!find_functions(&made->cudnn, library)) {
        free(made);
        return hla_fail(context, HLA_ERROR_UNSUPPORTED, "cuDNN lacks the backend interface of version 9");
    }
    hla_status selected = context->cuda->select(context); /* a handle is of the current device */
    if (selected != HLA_OK) {
        free(made);
        return selected;
    }
    cudnnStatus_t status = made->cudnn.create_handle(&made->builder.handle);
    if (status != CUDNN_STATUS_SUCCESS) {
        hla_status failed = hla_fail(context, HLA_ERROR_UNSUPPORTED, "cuDNN does not work on %s: %s",
                                     context->device.name, made->cudnn.error_string(status));
        made->builder.handle = NULL;
        destroy(made);
        return failed;
    }
    if ((problem->causal || !make_plan(made, problem, true)) && !make_plan(made, problem, false)) {
        status = made->builder.status;
        hla_status failed = hla_fail(context, HLA_ERROR_UNSUPPORTED, "cuDNN makes no plan for the problem: %s",
                                     made->cudnn.error_string(status));
        destroy(made);
        return failed;
    }
    *prepared = made;
    return HLA_OK;
}

/* The part of the workspace that is cuDNN's, behind that of the tiled kernel. */
static void *measure_plan(hla_arena *arena, const prepared_plan *made, float **statistics) {
    void *scratch = hla_arena_take(arena, made->bytes, 1);
    *statistics = hla_arena_take(arena, made->statistics, sizeof(float));
    return scratch;
}

static void measure_prepared(hla_arena *arena, const void *prepared) {
    float *statistics;
    (void)measure_plan(arena, prepared, &statistics);
}

/* The plan knows contiguous arrays only, and reads them 16 bytes at a time. */
static bool is_array(const hla_tensor *tensor) {
    int64_t step = 1;
    static const int order[] = {3, 2, 1, 0};
    for (int i = 0; i < 4; i++) {
        int axis = order[i];
        if (tensor->shape[axis] != 1 && tensor->stride[axis] != step) return false;
        step *= tensor->shape[axis];
    }
    return (uintptr_t)tensor->data % 16 == 0;
}

static hla_status execute(const hla_softmax_call *call, const prepared_plan *made, void *scratch, float *statistics) {
    float scale = call->problem.scale, masked = -FLT_MAX;
    const int64_t numbers[HLA_CUDNN_TENSORS] = {HLA_CUDNN_Q,     HLA_CUDNN_K,          HLA_CUDNN_V,     HLA_CUDNN_OUT,
                                                HLA_CUDNN_SCALE, HLA_CUDNN_STATISTICS, HLA_CUDNN_MASKED};
    void *addresses[HLA_CUDNN_TENSORS] = {call->q->data, call->k->data, call->v->data, call->out->data,
                                          &scale,        statistics,    &masked};
    hla_cudnn_builder pack = {.cudnn = &made->cudnn};
    pack.status = made->cudnn.set_stream(made->builder.handle, call->context->stream);
    cudnnBackendDescriptor_t values = hla_cudnn_create(&pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    hla_cudnn_set(&pack, values, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, made->arguments, numbers);
    hla_cudnn_set(&pack, values, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, made->arguments,
                  addresses);
    hla_cudnn_set(&pack, values, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &scratch);
    hla_cudnn_finalize(&pack, values);
    if (pack.status == CUDNN_STATUS_SUCCESS)
        pack.status = made->cudnn.execute(made->builder.handle, made->plan, values);
    hla_cudnn_destroy(&pack);
    if (pack.status == CUDNN_STATUS_SUCCESS) return HLA_OK;
    return hla_fail(call->context, HLA_ERROR_UNSUPPORTED, "cuDNN did not run: %s",
                    made->cudnn.error_string(pack.status));
}

static hla_status run(const hla_softmax_call *call) {
    const prepared_plan *made = call->prepared;
    bool arrays = is_array(call->q) && is_array(call->k) && is_array(call->v) && is_array(call->out);
    if (call->key_lengths || call->key_bias || !arrays) return hla_softmax_tiled_cuda.run(call);
    hla_arena arena = {.base = call->workspace};
    float *statistics;
    hla_softmax_tiled_cuda.measure(&arena, &call->problem, call->threads);
    void *scratch = measure_plan(&arena, made, &statistics);
    return execute(call, made, scratch, statistics);
}

static void measure(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    hla_softmax_tiled_cuda.measure(arena, problem, threads);
}

static void measure_backward(hla_arena *arena, const hla_softmax_problem *problem, int threads) {
    hla_softmax_tiled_cuda.measure_backward(arena, problem, threads);
}

static hla_status run_backward(const hla_softmax_call *call) {
    return hla_softmax_tiled_cuda.run_backward(call);
}

static const hla_softmax_preparation preparation = {create, measure_prepared, destroy};

const hla_softmax_entry hla_softmax_cudnn = {
    .kernel = {"cudnn", HLA_ISA_CUDA, 80, 0},
    .measure = measure,
    .run = run,
    .measure_backward = measure_backward,
    .run_backward = run_backward,
    .preparation = &preparation,
};
