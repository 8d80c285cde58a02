/* Softmax attention for cuDNN. Source of the graph: the cuDNN backend interface's documentation of fused flash
 * attention; axes of its tensors are batch, head, token, width. */
#include "attention/ops/softmax/cuda/cudnn_graph.h"

cudnnBackendDescriptor_t hla_cudnn_create(hla_cudnn_builder *builder, cudnnBackendDescriptorType_t type) {
    cudnnBackendDescriptor_t descriptor = NULL;
    if (builder->status != CUDNN_STATUS_SUCCESS) return NULL;
    if (builder->count == (int)(sizeof builder->made / sizeof builder->made[0])) {
        builder->status = CUDNN_STATUS_INTERNAL_ERROR;
        return NULL;
    }
    builder->status = builder->cudnn->create(type, &descriptor);
    if (builder->status == CUDNN_STATUS_SUCCESS) builder->made[builder->count++] = descriptor;
    return descriptor;
}

void hla_cudnn_set(hla_cudnn_builder *builder, cudnnBackendDescriptor_t descriptor,
                   cudnnBackendAttributeName_t attribute, cudnnBackendAttributeType_t type, int64_t count,
                   const void *values) {
    if (builder->status == CUDNN_STATUS_SUCCESS)
        builder->status = builder->cudnn->set(descriptor, attribute, type, count, values);
}

static void link_to(hla_cudnn_builder *builder, cudnnBackendDescriptor_t descriptor,
                    cudnnBackendAttributeName_t attribute, cudnnBackendDescriptor_t other) {
    hla_cudnn_set(builder, descriptor, attribute, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &other);
}

void hla_cudnn_finalize(hla_cudnn_builder *builder, cudnnBackendDescriptor_t descriptor) {
    if (builder->status == CUDNN_STATUS_SUCCESS) builder->status = builder->cudnn->finalize(descriptor);
}

void hla_cudnn_destroy(hla_cudnn_builder *builder) {
    while (builder->count > 0)
        (void)builder->cudnn->destroy(builder->made[--builder->count]);
}

typedef struct tensor_shape {
    int64_t size[4], stride[4];
} tensor_shape;

typedef enum tensor_kind { KIND_ARGUMENT, KIND_BY_VALUE, KIND_VIRTUAL } tensor_kind;

static cudnnBackendDescriptor_t tensor(hla_cudnn_builder *builder, int64_t number, cudnnDataType_t type,
                                       const tensor_shape *shape, tensor_kind kind) {
    cudnnBackendDescriptor_t made = hla_cudnn_create(builder, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t alignment = 16;
    bool is_virtual = kind == KIND_VIRTUAL, by_value = kind == KIND_BY_VALUE;
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &number);
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, shape->size);
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, shape->stride);
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment);
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    hla_cudnn_set(builder, made, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    hla_cudnn_finalize(builder, made);
    return made;
}

/* A contiguous [B,T,H,X] array. */
static tensor_shape array_shape(int64_t batch, int64_t tokens, int64_t heads, int64_t width) {
    return (tensor_shape){{batch, heads, tokens, width}, {tokens * heads * width, width, heads * width, 1}};
}

/* Scores [B,H,Tq,Tk], or with columns 1 what a row of them is reduced to. */
static tensor_shape scores_shape(const hla_softmax_problem *problem, int64_t columns) {
    int64_t rows = problem->queries, heads = problem->heads;
    return (tensor_shape){{problem->batch, heads, rows, columns}, {heads * rows * columns, rows * columns, columns, 1}};
}

static const tensor_shape number_shape = {{1, 1, 1, 1}, {1, 1, 1, 1}};

/* The nodes of a graph: operations, and the numbers of the tensors between them. */
typedef struct node_list {
    cudnnBackendDescriptor_t nodes[16];
    int count;
    int64_t next_number;
} node_list;

static void add_node(hla_cudnn_builder *builder, node_list *list, cudnnBackendDescriptor_t node) {
    hla_cudnn_finalize(builder, node);
    list->nodes[list->count++] = node;
}

static void add_product(hla_cudnn_builder *builder, node_list *list, cudnnBackendDescriptor_t c,
                        cudnnBackendDescriptor_t a, cudnnBackendDescriptor_t b) {
    cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t kind = hla_cudnn_create(builder, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    hla_cudnn_set(builder, kind, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    hla_cudnn_finalize(builder, kind);
    cudnnBackendDescriptor_t node = hla_cudnn_create(builder, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    link_to(builder, node, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    link_to(builder, node, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    link_to(builder, node, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    link_to(builder, node, CUDNN_ATTR_OPERATION_MATMUL_DESC, kind);
    add_node(builder, list, node);
}

/* y = mode(x, b), or one of x and b by t; b and t may be NULL. axis: of an index, else -1. */
static void add_pointwise_into(hla_cudnn_builder *builder, node_list *list, cudnnPointwiseMode_t mode,
                               cudnnDataType_t precision, cudnnBackendDescriptor_t y, cudnnBackendDescriptor_t x,
                               cudnnBackendDescriptor_t b, cudnnBackendDescriptor_t t, int64_t axis) {
    cudnnBackendDescriptor_t kind = hla_cudnn_create(builder, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    hla_cudnn_set(builder, kind, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    hla_cudnn_set(builder, kind, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision);
    if (axis >= 0) hla_cudnn_set(builder, kind, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, 1, &axis);
    hla_cudnn_finalize(builder, kind);
    cudnnBackendDescriptor_t node = hla_cudnn_create(builder, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    link_to(builder, node, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, kind);
    link_to(builder, node, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    if (b) link_to(builder, node, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    if (t) link_to(builder, node, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, t);
    link_to(builder, node, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_node(builder, list, node);
}

/* The same into a new tensor between nodes. */
static cudnnBackendDescriptor_t add_pointwise(hla_cudnn_builder *builder, node_list *list, cudnnPointwiseMode_t mode,
                                              cudnnDataType_t type, const tensor_shape *shape,
                                              cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t b,
                                              cudnnBackendDescriptor_t t, int64_t axis) {
    bool whole = type == CUDNN_DATA_INT32 || type == CUDNN_DATA_BOOLEAN;
    cudnnBackendDescriptor_t y = tensor(builder, list->next_number++, type, shape, KIND_VIRTUAL);
    add_pointwise_into(builder, list, mode, whole ? type : CUDNN_DATA_FLOAT, y, x, b, t, axis);
    return y;
}

static cudnnBackendDescriptor_t add_reduction(hla_cudnn_builder *builder, node_list *list, cudnnReduceTensorOp_t mode,
                                              const tensor_shape *shape, cudnnBackendDescriptor_t x) {
    cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t y = tensor(builder, list->next_number++, CUDNN_DATA_FLOAT, shape, KIND_VIRTUAL);
    cudnnBackendDescriptor_t kind = hla_cudnn_create(builder, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    hla_cudnn_set(builder, kind, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, 1, &mode);
    hla_cudnn_set(builder, kind, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    hla_cudnn_finalize(builder, kind);
    cudnnBackendDescriptor_t node = hla_cudnn_create(builder, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    link_to(builder, node, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    link_to(builder, node, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    link_to(builder, node, CUDNN_ATTR_OPERATION_REDUCTION_DESC, kind);
    add_node(builder, list, node);
    return y;
}

/* The graph's arguments, in the places of their numbers less 1. */
static void make_arguments(hla_cudnn_builder *builder, const hla_softmax_problem *problem, bool whole,
                           cudnnBackendDescriptor_t arguments[HLA_CUDNN_TENSORS]) {
    cudnnDataType_t type = problem->dtype == HLA_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
    int64_t B = problem->batch, key_heads = hla_softmax_key_heads(problem);
    tensor_shape q = array_shape(B, problem->queries, problem->heads, problem->dim);
    tensor_shape k = array_shape(B, problem->keys, key_heads, problem->dim), turned = k;
    tensor_shape v = array_shape(B, problem->keys, key_heads, problem->value_dim);
    tensor_shape out = array_shape(B, problem->queries, problem->heads, problem->value_dim);
    tensor_shape row = scores_shape(problem, 1);
    turned.size[2] = k.size[3], turned.size[3] = k.size[2]; /* [B,Hkv,D,Tk], the right operand of a product */
    turned.stride[2] = k.stride[3], turned.stride[3] = k.stride[2];
    const tensor_shape *const shapes[] = {&q, whole ? &k : &turned, &v, &out, &number_shape, &row, &number_shape};
    for (int i = 0; i < hla_cudnn_arguments(problem, whole); i++) {
        bool number = shapes[i] == &number_shape;
        arguments[i] = tensor(builder, i + 1, i < HLA_CUDNN_OUT ? type : CUDNN_DATA_FLOAT, shapes[i],
                              number ? KIND_BY_VALUE : KIND_ARGUMENT);
    }
}

/* Scores of keys after the query become the number MASKED. */
static cudnnBackendDescriptor_t add_mask(hla_cudnn_builder *builder, node_list *list, const tensor_shape *shape,
                                         cudnnBackendDescriptor_t scores, cudnnBackendDescriptor_t masked) {
    cudnnBackendDescriptor_t row =
        add_pointwise(builder, list, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, shape, scores, NULL, NULL, 2);
    cudnnBackendDescriptor_t column =
        add_pointwise(builder, list, CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, shape, scores, NULL, NULL, 3);
    cudnnBackendDescriptor_t seen =
        add_pointwise(builder, list, CUDNN_POINTWISE_CMP_GE, CUDNN_DATA_BOOLEAN, shape, row, column, NULL, -1);
    return add_pointwise(builder, list, CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, shape, scores, masked, seen,
                         -1);
}

/* S = Q K^T, P = exp(scale S - max) / sum, out = P V, and max + log sum */
static void add_steps(hla_cudnn_builder *builder, const hla_softmax_problem *problem, node_list *list) {
    cudnnBackendDescriptor_t arguments[HLA_CUDNN_TENSORS];
    cudnnDataType_t type = problem->dtype == HLA_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_HALF;
    tensor_shape square = scores_shape(problem, problem->keys), column = scores_shape(problem, 1);
    make_arguments(builder, problem, false, arguments);
    cudnnBackendDescriptor_t products = tensor(builder, list->next_number++, CUDNN_DATA_FLOAT, &square, KIND_VIRTUAL);
    add_product(builder, list, products, arguments[HLA_CUDNN_Q - 1], arguments[HLA_CUDNN_K - 1]);
    cudnnBackendDescriptor_t scores = add_pointwise(builder, list, CUDNN_POINTWISE_MUL, CUDNN_DATA_FLOAT, &square,
                                                    products, arguments[HLA_CUDNN_SCALE - 1], NULL, -1);
    if (problem->causal) scores = add_mask(builder, list, &square, scores, arguments[HLA_CUDNN_MASKED - 1]);
    cudnnBackendDescriptor_t largest = add_reduction(builder, list, CUDNN_REDUCE_TENSOR_MAX, &column, scores);
    cudnnBackendDescriptor_t below =
        add_pointwise(builder, list, CUDNN_POINTWISE_SUB, CUDNN_DATA_FLOAT, &square, scores, largest, NULL, -1);
    cudnnBackendDescriptor_t weights =
        add_pointwise(builder, list, CUDNN_POINTWISE_EXP, CUDNN_DATA_FLOAT, &square, below, NULL, NULL, -1);
    cudnnBackendDescriptor_t sum = add_reduction(builder, list, CUDNN_REDUCE_TENSOR_ADD, &column, weights);
    cudnnBackendDescriptor_t logarithm =
        add_pointwise(builder, list, CUDNN_POINTWISE_LOG, CUDNN_DATA_FLOAT, &column, sum, NULL, NULL, -1);
    add_pointwise_into(builder, list, CUDNN_POINTWISE_ADD, CUDNN_DATA_FLOAT, arguments[HLA_CUDNN_STATISTICS - 1],
                       largest, logarithm, NULL, -1);
    cudnnBackendDescriptor_t shares =
        add_pointwise(builder, list, CUDNN_POINTWISE_DIV, type, &square, weights, sum, NULL, -1);
    add_product(builder, list, arguments[HLA_CUDNN_OUT - 1], shares, arguments[HLA_CUDNN_V - 1]);
}

static void add_whole(hla_cudnn_builder *builder, const hla_softmax_problem *problem, node_list *list) {
    cudnnBackendDescriptor_t arguments[HLA_CUDNN_TENSORS];
    make_arguments(builder, problem, true, arguments);
    cudnnBackendDescriptor_t node = hla_cudnn_create(builder, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    link_to(builder, node, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, arguments[HLA_CUDNN_Q - 1]);
    link_to(builder, node, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, arguments[HLA_CUDNN_K - 1]);
    link_to(builder, node, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, arguments[HLA_CUDNN_V - 1]);
    link_to(builder, node, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, arguments[HLA_CUDNN_OUT - 1]);
    link_to(builder, node, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, arguments[HLA_CUDNN_SCALE - 1]);
    add_node(builder, list, node);
}

cudnnBackendDescriptor_t hla_cudnn_attention(hla_cudnn_builder *builder, const hla_softmax_problem *problem,
                                             bool whole) {
    node_list list = {.next_number = HLA_CUDNN_TENSORS + 1};
    if (whole)
        add_whole(builder, problem, &list);
    else
        add_steps(builder, problem, &list);
    cudnnBackendDescriptor_t graph = hla_cudnn_create(builder, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    hla_cudnn_set(builder, graph, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &builder->handle);
    hla_cudnn_set(builder, graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, list.count, list.nodes);
    hla_cudnn_finalize(builder, graph);
    return graph;
}

/* A plan of one configuration, NULL if cuDNN cannot make it after all. */
static cudnnBackendDescriptor_t try_plan(hla_cudnn_builder *builder, cudnnBackendDescriptor_t configuration) {
    hla_cudnn_builder attempt = {.cudnn = builder->cudnn, .handle = builder->handle};
    cudnnBackendDescriptor_t plan = hla_cudnn_create(&attempt, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    hla_cudnn_set(&attempt, plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &attempt.handle);
    link_to(&attempt, plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configuration);
    hla_cudnn_finalize(&attempt, plan);
    if (attempt.status != CUDNN_STATUS_SUCCESS) {
        hla_cudnn_destroy(&attempt);
        return NULL;
    }
    builder->made[builder->count++] = plan;
    return plan;
}

cudnnBackendDescriptor_t hla_cudnn_plan(hla_cudnn_builder *builder, cudnnBackendDescriptor_t graph) {
    enum { PROPOSALS = 4 };
    cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    cudnnBackendDescriptor_t proposals[PROPOSALS], plan = NULL;
    cudnnBackendDescriptor_t heuristic = hla_cudnn_create(builder, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    link_to(builder, heuristic, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    hla_cudnn_set(builder, heuristic, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    hla_cudnn_finalize(builder, heuristic);
    for (int i = 0; i < PROPOSALS; i++)
        proposals[i] = hla_cudnn_create(builder, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    int64_t found = 0;
    if (builder->status == CUDNN_STATUS_SUCCESS)
        builder->status = builder->cudnn->get(heuristic, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                              PROPOSALS, &found, proposals);
    for (int i = 0; i < found && i < PROPOSALS && !plan && builder->status == CUDNN_STATUS_SUCCESS; i++)
        plan = try_plan(builder, proposals[i]);
    if (!plan && builder->status == CUDNN_STATUS_SUCCESS) builder->status = CUDNN_STATUS_NOT_SUPPORTED;
    return plan;
}
