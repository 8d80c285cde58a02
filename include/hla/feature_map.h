/* hla/feature_map.h - per-head feature maps phi and psi: from a query or key vector to the features of one factor, and
 * the gradients of such a map.
 *
 *     hla_feature_map_problem problem;
 *     hla_feature_map_problem_init(&problem);
 *     problem.batch = 1, problem.heads = H, problem.tokens = T, problem.dim = D, problem.rank = 16;
 *     problem.activation = HLA_ACTIVATION_RELU;
 *     hla_feature_map_weights weights = {.weight = w, .bias = b};
 *     hla_feature_map_forward(ctx, &problem, &out, &x, &weights);
 *
 *     h = x                                   or, with one hidden layer,  h = x + relu(U x + c)
 *     y = act(W h + b)
 *
 * With problem.rope, x first is turned by its token's position (rotary position embedding: Su et al., "RoFormer", arXiv
 * 2104.09864): each pair (x[2i], x[2i+1]) becomes (c x[2i] - s x[2i+1], s x[2i] + c x[2i+1]), where c and s are the
 * cosine and sine that the table has for token and pair.
 */
#ifndef HLA_FEATURE_MAP_H
#define HLA_FEATURE_MAP_H

#include "hla/core.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum hla_activation {
    HLA_ACTIVATION_RELU = 0,     /* max(u, 0) + floor */
    HLA_ACTIVATION_ELU1 = 1,     /* elu(u) + 1 */
    HLA_ACTIVATION_SOFTPLUS = 2, /* log(1 + exp(u)) */
    HLA_ACTIVATION_EXP = 3,      /* exp(u - m): m is the row's maximum for queries, problem.shift for keys */
    HLA_ACTIVATION_SOFTMAX = 4,  /* softmax over the R features */
    HLA_ACTIVATION_SQUARE = 5,   /* u^2 */
    HLA_ACTIVATION_IDENTITY = 6  /* u: signed, so only for un-normalised attention or a guarded denominator */
} hla_activation;

/* "relu", "elu1", "softplus", "exp", "softmax", "square", "identity"; false, and nothing written, for another name. */
HLA_API bool hla_activation_from_name(const char *name, hla_activation *activation);
HLA_API const char *hla_activation_name(hla_activation activation); /* never NULL; "unknown" outside the enum */

typedef struct hla_feature_map_problem {
    size_t struct_size;                      /* set by hla_feature_map_problem_init */
    int64_t batch, heads, tokens, dim, rank; /* all at least 1 */
    hla_dtype dtype;                         /* of x and out; weights are float32 */
    hla_activation activation;
    float floor;        /* relu only; default 1e-3 */
    bool is_query;      /* exp only: subtract the row's own maximum instead of shift */
    float shift;        /* exp keys only: a constant for all tokens of a head; cancels in n/d */
    const char *kernel; /* force an entry of the kernel table by name; NULL: best this machine runs.
                           The environment variable HLA_FEATURE_MAP_KERNEL does the same. */
    const float *rope;  /* NULL (default), or [T,D/2,2], contiguous: for each token and pair a cosine and a sine, the
                           same in all batch entries and heads; owned by the caller, read by each call. D is even */
} hla_feature_map_problem;

/* Defaults, and struct_size; NULL is fine. */
HLA_API void hla_feature_map_problem_init(hla_feature_map_problem *problem);

typedef struct hla_feature_map_weights {
    const float *weight;        /* W [H,R,D], contiguous */
    const float *bias;          /* b [H,R], or NULL for none */
    const float *hidden_weight; /* U [H,D,D], or NULL for no hidden layer */
    const float *hidden_bias;   /* c [H,D], or NULL */
} hla_feature_map_weights;

/* Tensors, weights, their gradients and the table of RoPE are memory of the context's device. A GPU takes problems a
 * token of which fits into a multiprocessor's memory (4 dim + 2 rank up to 22,900), else HLA_ERROR_UNSUPPORTED. */

/* out [B,T,H,R], x [B,T,H,D]; both of problem.dtype, any strides, owned by the caller. The result does not depend on
 * the number of threads, bit for bit. out must not overlap x. On an error nothing has been written. */
HLA_API hla_status hla_feature_map_forward(hla_context *context, const hla_feature_map_problem *problem,
                                           const hla_tensor *out, const hla_tensor *x,
                                           const hla_feature_map_weights *weights);

/* Gradients of the weights, shaped like the weights, contiguous, owned by the caller. NULL: not wanted. */
typedef struct hla_feature_map_weight_gradients {
    float *weight;        /* dW [H,R,D] */
    float *bias;          /* db [H,R]; may be asked for without a bias: the gradient at zero */
    float *hidden_weight; /* dU [H,D,D]; the hidden gradients only with weights.hidden_weight */
    float *hidden_bias;   /* dc [H,D] */
} hla_feature_map_weight_gradients;

/* Gradients of a loss whose gradient with respect to the output is d_out [B,T,H,R]: dx [B,T,H,D] and, summed over all
 * tokens in float32, those of the weights. With e = d_out,
 *
 *     du = act'(u) e     dW = sum du h^T     db = sum du     dh = W^T du
 *     dx = dh            or, with the hidden layer and z = U x + c,
 *     dz = dh where z > 0, else 0            dU = sum dz x^T     dc = sum dz     dx = dh + U^T dz
 *
 * where x stands for the turned x if there is problem.rope, whose gradient is turned back (by the transposed matrix of
 * each pair) to give dx.
 *
 * relu has the slope 0 at 0. exp for queries is differentiated as it is computed: the row's maximum is subtracted, so
 * the feature that holds it (the first such) also receives -sum_r y_r e_r; in normalised attention, where the shift
 * cancels, that sum is zero up to rounding.
 *
 * d_out, x and dx are of problem.dtype, with any strides, owned by the caller. dx or dweights may be NULL: not wanted.
 * Every gradient that is wanted is overwritten, not added to. Nothing is kept from the forward pass. The outputs must
 * not overlap each other or an input. The result has the same bits for any number of threads. workspace: at least the
 * bytes that hla_feature_map_backward_workspace tells, aligned to 64; nothing is allocated. On an error nothing has
 * been written. */
HLA_API hla_status hla_feature_map_backward(hla_context *context, const hla_feature_map_problem *problem,
                                            const hla_tensor *dx, const hla_feature_map_weight_gradients *dweights,
                                            const hla_tensor *d_out, const hla_tensor *x,
                                            const hla_feature_map_weights *weights, void *workspace,
                                            size_t workspace_size);

/* *bytes: the workspace of hla_feature_map_backward for this problem and the context's threads; it does not grow with
 * the number of tokens. On an error *bytes is 0. */
HLA_API hla_status hla_feature_map_backward_workspace(hla_context *context, const hla_feature_map_problem *problem,
                                                      size_t *bytes);

/* An entry of the kernel table. */
typedef struct hla_feature_map_kernel_info {
    const char *name;  /* "reference", "avx512", ... */
    bool runs_here;    /* this machine can execute it */
    const char *needs; /* the instruction sets it needs, "" for baseline */
} hla_feature_map_kernel_info;

/* The kernel table of the context's device (NULL: of the CPU), for tests, benchmarks and `hla doctor`: entry i, or
 * false past the end. */
HLA_API bool hla_feature_map_kernel(const hla_context *context, int i, hla_feature_map_kernel_info *info);

#ifdef __cplusplus
}
#endif
#endif
