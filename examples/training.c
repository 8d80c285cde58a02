/* Fits Hadamard attention to a softmax attention layer: feature maps, forward, backward, Adam. The layer's output on
 * random queries, keys and values is the target; the maps of queries and keys, two factors each, are what is learned.
 *     cc training.c $(pkg-config --cflags --libs hla) -lm -o training && ./training */
#include "hla/hla.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 192, H = 2, D = 16, R = 16, P = 2, STEPS = 120, MAPS = 2 * P, WEIGHTS = H * R * D };

/* One feature map and what Adam remembers of it: maps 0 ... P - 1 are those of the queries, the others those of the
 * keys. */
typedef struct map {
    float weight[WEIGHTS], gradient[WEIGHTS], mean[WEIGHTS], square[WEIGHTS];
    float features[T * H * R], d_features[T * H * R];
    hla_tensor rows, d_rows; /* views of features and d_features */
} map;

typedef struct layer {
    hla_context *ctx;
    hla_feature_map_problem map_problem;
    hla_hadamard_plan *plan;
    void *workspace;
    size_t size;
    map maps[MAPS];
    float q[T * H * D], k[T * H * D], v[T * H * D], target[T * H * D], out[T * H * D], d_out[T * H * D], d_v[T * H * D];
} layer;

static float normal(void) {
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += rand() / (RAND_MAX + 1.0);
    return (float)sum;
}

static void fill(float *numbers, int count, float scale) {
    for (int i = 0; i < count; i++)
        numbers[i] = scale * normal();
}

static hla_tensor view(const float *array, int width) {
    return hla_tensor_bthd(array, HLA_F32, 1, T, H, width);
}

/* What the layer should give: softmax attention. */
static hla_status make_target(layer *l) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 1, problem.heads = H, problem.queries = problem.keys = T, problem.dim = problem.value_dim = D;
    hla_softmax_plan *plan = NULL;
    hla_status status = hla_softmax_plan_create(l->ctx, &problem, &plan);
    if (status != HLA_OK) return status;
    hla_tensor q = view(l->q, D), k = view(l->k, D), v = view(l->v, D), target = view(l->target, D);
    size_t size = hla_softmax_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size);
    status = hla_softmax_forward(plan, &target, &q, &k, &v, NULL, NULL, workspace, size);
    free(workspace);
    hla_softmax_plan_free(plan);
    return status;
}

/* Plans, and one workspace that is large enough for each call of a step. */
static hla_status make_plans(layer *l) {
    hla_feature_map_problem_init(&l->map_problem);
    l->map_problem.batch = 1, l->map_problem.heads = H, l->map_problem.tokens = T;
    l->map_problem.dim = D, l->map_problem.rank = R, l->map_problem.activation = HLA_ACTIVATION_SOFTPLUS;
    hla_status status = hla_feature_map_backward_workspace(l->ctx, &l->map_problem, &l->size);
    if (status != HLA_OK) return status;
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = H, problem.queries = problem.keys = T, problem.value_dim = D;
    problem.factors = P, problem.rank[0] = problem.rank[1] = R;
    status = hla_hadamard_plan_create(l->ctx, &problem, &l->plan);
    if (status != HLA_OK) return status;
    size_t forward = hla_hadamard_plan_workspace(l->plan), backward = hla_hadamard_plan_backward_workspace(l->plan);
    if (l->size < forward) l->size = forward;
    if (l->size < backward) l->size = backward;
    l->workspace = aligned_alloc(64, l->size);
    return l->workspace ? HLA_OK : HLA_ERROR_MEMORY;
}

/* Features of all maps, then out; d_out becomes the gradient of the loss, which is the mean squared error. */
static hla_status forward(layer *l, const hla_hadamard_inputs *inputs, double *loss) {
    for (int m = 0; m < MAPS; m++) {
        hla_tensor x = view(m < P ? l->q : l->k, D);
        hla_feature_map_weights weights = {.weight = l->maps[m].weight};
        hla_status status = hla_feature_map_forward(l->ctx, &l->map_problem, &l->maps[m].rows, &x, &weights);
        if (status != HLA_OK) return status;
    }
    hla_tensor out = view(l->out, D);
    hla_status status = hla_hadamard_forward(l->plan, &out, NULL, inputs, l->workspace, l->size);
    *loss = 0;
    for (int i = 0; i < T * H * D; i++) {
        float difference = l->out[i] - l->target[i];
        *loss += (double)(difference * difference) / (T * H * D);
        l->d_out[i] = 2 * difference / (T * H * D);
    }
    return status;
}

/* Through attention to the features, through the maps to their weights. Values are not learned here. */
static hla_status backward(layer *l, const hla_hadamard_inputs *inputs) {
    hla_tensor d_rows[MAPS], d_v = view(l->d_v, D), d_out = view(l->d_out, D);
    for (int m = 0; m < MAPS; m++)
        d_rows[m] = l->maps[m].d_rows;
    hla_hadamard_gradients gradients = {.dq_features = d_rows, .dk_features = d_rows + P, .dv = &d_v};
    hla_status status = hla_hadamard_backward(l->plan, &gradients, &d_out, NULL, inputs, l->workspace, l->size);
    for (int m = 0; status == HLA_OK && m < MAPS; m++) {
        hla_tensor x = view(m < P ? l->q : l->k, D);
        hla_feature_map_weights weights = {.weight = l->maps[m].weight};
        hla_feature_map_weight_gradients wanted = {.weight = l->maps[m].gradient};
        status = hla_feature_map_backward(l->ctx, &l->map_problem, NULL, &wanted, &d_rows[m], &x, &weights,
                                          l->workspace, l->size);
    }
    return status;
}

static void adam(map *m, int step) {
    const double rate = 0.02, keep_mean = 0.9, keep_square = 0.99;
    for (int i = 0; i < WEIGHTS; i++) {
        double g = (double)m->gradient[i];
        m->mean[i] = (float)(keep_mean * (double)m->mean[i] + (1 - keep_mean) * g);
        m->square[i] = (float)(keep_square * (double)m->square[i] + (1 - keep_square) * g * g);
        double mean = (double)m->mean[i] / (1 - pow(keep_mean, step));
        double square = (double)m->square[i] / (1 - pow(keep_square, step));
        m->weight[i] -= (float)(rate * mean / (sqrt(square) + 1e-12));
    }
}

static hla_status train(layer *l, double *first, double *last) {
    hla_tensor rows[MAPS], v = view(l->v, D);
    for (int m = 0; m < MAPS; m++)
        rows[m] = l->maps[m].rows;
    hla_hadamard_inputs inputs = {.q_features = rows, .k_features = rows + P, .v = &v};
    for (int step = 1; step <= STEPS; step++) {
        hla_status status = forward(l, &inputs, last);
        if (status == HLA_OK) status = backward(l, &inputs);
        if (status != HLA_OK) return status;
        if (step == 1) *first = *last;
        if (step == 1 || step % 20 == 0) printf("step %3d: loss %.5f\n", step, *last);
        for (int m = 0; m < MAPS; m++)
            adam(&l->maps[m], step);
    }
    return HLA_OK;
}

int main(void) {
    layer *l = calloc(1, sizeof *l);
    if (!l || hla_context_create(&l->ctx, NULL) != HLA_OK) return 1;
    fill(l->q, T * H * D, 1), fill(l->k, T * H * D, 1), fill(l->v, T * H * D, 1);
    for (int m = 0; m < MAPS; m++) {
        fill(l->maps[m].weight, WEIGHTS, 0.25f);
        l->maps[m].rows = view(l->maps[m].features, R), l->maps[m].d_rows = view(l->maps[m].d_features, R);
    }
    double first = 0, last = INFINITY;
    hla_status status = make_target(l);
    if (status == HLA_OK) status = make_plans(l);
    if (status == HLA_OK) status = train(l, &first, &last);
    if (status != HLA_OK) fprintf(stderr, "%s\n", hla_context_error(l->ctx));
    free(l->workspace);
    hla_hadamard_plan_free(l->plan);
    hla_context_free(l->ctx);
    free(l);
    return status == HLA_OK && last < 0.5 * first ? 0 : 1;
}
