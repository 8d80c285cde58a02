/* video/nn/onednn.c - see onednn.h. */
#include "video/nn/onednn.h"
#include "video/nn/vector.h"

#include <omp.h>
#include <string.h>
#include <sys/mman.h>

#define ROOM_FOR_CODE ((size_t)32 << 20) /* bytes; more than the kernels of any one primitive here */

int hlv_onednn_enter(void) {
    int saved = omp_get_max_threads();
    omp_set_num_threads(1);
    return saved;
}

void hlv_onednn_leave(int saved) {
    omp_set_num_threads(saved);
}

hlv_status hlv_onednn_fail(hlv_context *ctx, dnnl_status_t status, const char *name, const char *action) {
    static const char *const sentences[] = {
        [dnnl_success] = "succeeded",
        [dnnl_out_of_memory] = "ran out of memory",
        [dnnl_invalid_arguments] = "refused the arguments",
        [dnnl_unimplemented] = "has no implementation for this machine",
        [dnnl_iterator_ends] = "has no further implementation",
        [dnnl_runtime_error] = "failed at run time",
        [dnnl_not_required] = "was not needed",
    };
    size_t known = sizeof sentences / sizeof sentences[0];
    const char *sentence = (size_t)status < known && sentences[status] ? sentences[status] : "failed";
    hlv_status kind = status == dnnl_out_of_memory   ? HLV_ERROR_MEMORY
                      : status == dnnl_unimplemented ? HLV_ERROR_UNSUPPORTED
                                                     : HLV_ERROR_ARGUMENT;
    return hlv_fail(ctx, kind, "%s: oneDNN %s when asked to %s", name, sentence, action);
}

static dnnl_status_t add_sum(dnnl_primitive_attr_t attributes) {
    dnnl_post_ops_t operations = NULL;
    dnnl_status_t status = dnnl_post_ops_create(&operations);
    if (status == dnnl_success) status = dnnl_post_ops_append_sum(operations, 1.0f);
    if (status == dnnl_success) status = dnnl_primitive_attr_set_post_ops(attributes, operations); /* copies */
    if (operations) dnnl_post_ops_destroy(operations);
    return status;
}

dnnl_status_t hlv_onednn_describe(dnnl_primitive_desc_t *pd, const_dnnl_op_desc_t operation, dnnl_engine_t engine,
                                  bool sum) {
    *pd = NULL;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_status_t status = dnnl_primitive_attr_create(&attributes);
    if (status != dnnl_success) return status;
    status = dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user);
    if (status == dnnl_success && sum) status = add_sum(attributes);
    if (status == dnnl_success) status = dnnl_primitive_desc_create(pd, operation, attributes, engine, NULL);
    dnnl_primitive_attr_destroy(attributes);
    return status;
}

dnnl_status_t hlv_onednn_create(dnnl_primitive_t *primitive, const_dnnl_primitive_desc_t pd) {
    void *room = mmap(NULL, ROOM_FOR_CODE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    *primitive = NULL;
    if (room == MAP_FAILED) return dnnl_out_of_memory;
    munmap(room, ROOM_FOR_CODE);
    return dnnl_primitive_create(primitive, pd);
}

dnnl_status_t hlv_onednn_run(dnnl_primitive_t primitive, dnnl_engine_t engine, dnnl_stream_t stream,
                             const hlv_onednn_argument *arguments, int count) {
    dnnl_exec_arg_t given[HLV_ONEDNN_MAX_ARGUMENTS] = {{0}};
    int made = 0;
    dnnl_status_t status = count <= HLV_ONEDNN_MAX_ARGUMENTS ? dnnl_success : dnnl_invalid_arguments;
    for (int i = 0; i < count && status == dnnl_success; i++) {
        if (!arguments[i].desc) continue;
        /* The C interface takes inputs through pointers to non-const too. */
        void *data = (void *)arguments[i].data;
        given[made].arg = arguments[i].argument;
        status = dnnl_memory_create(&given[made].memory, arguments[i].desc, engine, data);
        if (status == dnnl_success) made++;
    }
    if (status == dnnl_success) status = dnnl_primitive_execute(primitive, stream, made, given);
    if (status == dnnl_success) status = dnnl_stream_wait(stream);
    for (int i = 0; i < made; i++)
        dnnl_memory_destroy(given[i].memory);
    return status;
}

/* Runs one reorder. */
static dnnl_status_t reorder(dnnl_engine_t engine, const dnnl_memory_desc_t *from, const void *source,
                             const dnnl_memory_desc_t *to, void *target) {
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_stream_t stream = NULL;
    const hlv_onednn_argument arguments[] = {{DNNL_ARG_FROM, from, source}, {DNNL_ARG_TO, to, target}};
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(&pd, from, engine, to, engine, NULL);
    if (status == dnnl_success) status = hlv_onednn_create(&primitive, pd);
    if (status == dnnl_success) status = dnnl_stream_create(&stream, engine, dnnl_stream_default_flags);
    if (status == dnnl_success) status = hlv_onednn_run(primitive, engine, stream, arguments, 2);
    if (stream) dnnl_stream_destroy(stream);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return status;
}

hlv_status hlv_onednn_pack(hlv_context *ctx, dnnl_engine_t engine, const dnnl_memory_desc_t *from, const void *data,
                           const dnnl_memory_desc_t *to, const char *name, void **packed) {
    *packed = hlv_alloc(ctx, dnnl_memory_desc_get_size(to));
    if (!*packed) return HLV_ERROR_MEMORY;
    dnnl_status_t status = reorder(engine, from, data, to, *packed);
    if (status == dnnl_success) return HLV_OK;
    hlv_free(ctx, *packed);
    *packed = NULL;
    return hlv_onednn_fail(ctx, status, name, "pack the weights");
}

/* The upper half of the float nearest to x, ties to even; NaN stays NaN. */
HLV_INLINE uint32_t bf16_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded;
}

HLV_VECTOR static void to_bf16(uint16_t *dst, const float *src, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++)
        dst[i] = (uint16_t)bf16_bits(src[i]);
}

HLV_VECTOR static void round_to_bf16(float *dst, const float *src, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = bf16_bits(src[i]) << 16;
        memcpy(&dst[i], &bits, sizeof bits);
    }
}

void hlv_bf16_from_f32(uint16_t *dst, const float *src, int64_t count) {
    to_bf16(dst, src, count);
}

void hlv_bf16_round(float *dst, const float *src, int64_t count) {
    round_to_bf16(dst, src, count);
}
