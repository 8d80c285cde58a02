/* attention/ops/softmax/cuda/cudnn_graph.h - softmax attention as a graph of cuDNN's backend interface, and the plan
 * that cuDNN makes of it. cuDNN is looked for when a plan is made; nothing links to it.
 */
#ifndef HLA_OPS_SOFTMAX_CUDA_CUDNN_GRAPH_H
#define HLA_OPS_SOFTMAX_CUDA_CUDNN_GRAPH_H

#include "attention/ops/softmax/kernel.h"

#include <cudnn.h>

/* The functions of cuDNN that are used. */
typedef struct hla_cudnn {
    cudnnStatus_t (*create_handle)(cudnnHandle_t *);
    cudnnStatus_t (*destroy_handle)(cudnnHandle_t);
    cudnnStatus_t (*set_stream)(cudnnHandle_t, cudaStream_t);
    const char *(*error_string)(cudnnStatus_t);
    cudnnStatus_t (*create)(cudnnBackendDescriptorType_t, cudnnBackendDescriptor_t *);
    cudnnStatus_t (*destroy)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*set)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                         const void *);
    cudnnStatus_t (*get)(cudnnBackendDescriptor_t, cudnnBackendAttributeName_t, cudnnBackendAttributeType_t, int64_t,
                         int64_t *, void *);
    cudnnStatus_t (*finalize)(cudnnBackendDescriptor_t);
    cudnnStatus_t (*execute)(cudnnHandle_t, cudnnBackendDescriptor_t, cudnnBackendDescriptor_t);
} hla_cudnn;

/* Numbers by which a plan's tensors are named when it runs; a graph has the first ones of them. */
enum {
    HLA_CUDNN_Q = 1,
    HLA_CUDNN_K,
    HLA_CUDNN_V,
    HLA_CUDNN_OUT,
    HLA_CUDNN_SCALE,      /* a number */
    HLA_CUDNN_STATISTICS, /* float32 [B,H,Tq], written: the logarithm of each row's sum */
    HLA_CUDNN_MASKED,     /* a number: the score of keys that are not seen */
    HLA_CUDNN_TENSORS = HLA_CUDNN_MASKED
};

/* Descriptors that are made one after the other. The first status that is no success stays, and nothing is done after
 * it. */
typedef struct hla_cudnn_builder {
    const hla_cudnn *cudnn;
    cudnnHandle_t handle;
    cudnnStatus_t status;
    cudnnBackendDescriptor_t made[64];
    int count;
} hla_cudnn_builder;

cudnnBackendDescriptor_t hla_cudnn_create(hla_cudnn_builder *builder, cudnnBackendDescriptorType_t type);
void hla_cudnn_set(hla_cudnn_builder *builder, cudnnBackendDescriptor_t descriptor,
                   cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, int64_t count,
                   const void *values);
void hla_cudnn_finalize(hla_cudnn_builder *builder, cudnnBackendDescriptor_t descriptor);
void hla_cudnn_destroy(hla_cudnn_builder *builder); /* all that was made */

/* How many tensors the graph has. whole: it is one node, which knows no causal mask; else the products and the softmax
 * between them, node by node, which cuDNN recognises as attention if the statistics are written. */
static inline int hla_cudnn_arguments(const hla_softmax_problem *problem, bool whole) {
    return whole ? HLA_CUDNN_SCALE : problem->causal ? HLA_CUDNN_MASKED : HLA_CUDNN_STATISTICS;
}

/* The operation graph of a problem whose tensors are contiguous [B,T,H,X] arrays. */
cudnnBackendDescriptor_t hla_cudnn_attention(hla_cudnn_builder *builder, const hla_softmax_problem *problem,
                                             bool whole);

/* The first plan that cuDNN can make for the graph, of those that its heuristics propose. */
cudnnBackendDescriptor_t hla_cudnn_plan(hla_cudnn_builder *builder, cudnnBackendDescriptor_t graph);

#endif
