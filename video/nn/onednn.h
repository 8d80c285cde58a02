/* video/nn/onednn.h - how the layers use oneDNN: every primitive is made for and run by exactly one thread, with a
 * scratchpad that the caller gives, so that results depend on no thread count and primitives can be shared by threads.
 *
 * oneDNN's OpenMP runtime asks omp_get_max_threads(), a setting of the calling task that parallel regions inherit. So
 * both creating and executing happen between enter and leave:
 *
 *     int saved = hlv_onednn_enter();
 *     #pragma omp parallel num_threads(threads)
 *     ...
 *     hlv_onednn_leave(saved);
 */
#ifndef HLV_NN_ONEDNN_H
#define HLV_NN_ONEDNN_H

#include "video/nn/nn.h"

#include <oneapi/dnnl/dnnl.h>

/* From here on oneDNN sees one thread; returns the setting to give back to leave. Parallel regions need num_threads().
 */
int hlv_onednn_enter(void);
void hlv_onednn_leave(int saved);

/* A sentence that names the layer ("transformer block 3 weight ..."), what was tried and oneDNN's status. */
hlv_status hlv_onednn_fail(hlv_context *ctx, dnnl_status_t status, const char *name, const char *action);

/* The first primitive descriptor of an operation with a caller-given scratchpad; sum: its result is added to what dst
 * holds. */
dnnl_status_t hlv_onednn_describe(dnnl_primitive_desc_t *pd, const_dnnl_op_desc_t operation, dnnl_engine_t engine,
                                  bool sum);

/* dnnl_primitive_create, which in oneDNN 2.6 ends the program where its code generator gets no memory: whether there is
 * some is tried before. */
dnnl_status_t hlv_onednn_create(dnnl_primitive_t *primitive, const_dnnl_primitive_desc_t pd);

/* A copy of memory `data` laid out as `from`, in the layout and type of `to` (which differs or not), in memory
 * of the context. name: for the error sentence. */
hlv_status hlv_onednn_pack(hlv_context *ctx, dnnl_engine_t engine, const dnnl_memory_desc_t *from, const void *data,
                           const dnnl_memory_desc_t *to, const char *name, void **packed);

/* One argument of a run: DNNL_ARG_..., its layout and its memory. An entry with desc NULL is left out. */
typedef struct hlv_onednn_argument {
    int argument;
    const dnnl_memory_desc_t *desc;
    const void *data;
} hlv_onednn_argument;
#define HLV_ONEDNN_MAX_ARGUMENTS 6

/* Runs a primitive in the calling thread and waits for it. Safe from several threads at once, each with its own stream.
 */
dnnl_status_t hlv_onednn_run(dnnl_primitive_t primitive, dnnl_engine_t engine, dnnl_stream_t stream,
                             const hlv_onednn_argument *arguments, int count);

/* dst = round to nearest even bf16 of src. */
void hlv_bf16_from_f32(uint16_t *dst, const float *src, int64_t count);

/* value rounded to bf16, still a float: what a bf16 operand is worth where the processor cannot multiply bf16. */
void hlv_bf16_round(float *dst, const float *src, int64_t count);

#endif
