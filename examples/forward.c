/* Hadamard attention over a sequence: features of queries and keys go in, one output row a query comes out.
 *     cc forward.c $(pkg-config --cflags --libs hla) -lm -o forward && ./forward
 * At the end one row is computed again from the definition. */
#include "hla/hla.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 2048, H = 4, R = 16, V = 64 };

static float *random_array(size_t count, float low) { /* numbers in [low, low + 1) */
    float *numbers = malloc(count * sizeof *numbers);
    for (size_t i = 0; numbers && i < count; i++)
        numbers[i] = low + (float)rand() / ((float)RAND_MAX + 1);
    return numbers;
}

/* o_i = sum_j A_ij v_j / (sum_j A_ij + epsilon), A_ij = (a_i^1 . c_j^1) (a_i^2 . c_j^2): how far row i, head h of out
 * is from it. */
static double row_error(const float *out, float *const a[2], float *const c[2], const float *v, int i, int h) {
    double sum[V] = {0}, denominator = 1e-6, error = 0;
    for (int j = 0; j < T; j++) {
        double score = 1;
        for (int p = 0; p < 2; p++) {
            double dot = 0;
            for (int r = 0; r < R; r++)
                dot += (double)a[p][(i * H + h) * R + r] * (double)c[p][(j * H + h) * R + r];
            score *= dot;
        }
        denominator += score;
        for (int x = 0; x < V; x++)
            sum[x] += score * (double)v[(j * H + h) * V + x];
    }
    for (int x = 0; x < V; x++)
        error = fmax(error, fabs(sum[x] / denominator - (double)out[(i * H + h) * V + x]));
    return error;
}

int main(void) {
    hla_context *ctx = NULL;
    if (hla_context_create(&ctx, NULL) != HLA_OK) return 1;

    /* What is to be computed; the plan chooses how, and says so. */
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = H, problem.queries = problem.keys = T, problem.value_dim = V;
    problem.factors = 2, problem.rank[0] = problem.rank[1] = R;
    hla_hadamard_plan *plan = NULL;
    if (hla_hadamard_plan_create(ctx, &problem, &plan) != HLA_OK) {
        fprintf(stderr, "%s\n", hla_context_error(ctx));
        return 1;
    }
    puts(hla_hadamard_plan_explain(plan));

    /* Arrays [B,T,H,X] of your own; features are positive, so that no denominator is zero. */
    float *a[2], *c[2], *v = random_array((size_t)T * H * V, -0.5f), *o = malloc((size_t)T * H * V * sizeof *o);
    hla_tensor q[2], k[2];
    for (int p = 0; p < 2; p++) {
        a[p] = random_array((size_t)T * H * R, 0), c[p] = random_array((size_t)T * H * R, 0);
        q[p] = hla_tensor_bthd(a[p], HLA_F32, 1, T, H, R), k[p] = hla_tensor_bthd(c[p], HLA_F32, 1, T, H, R);
    }
    hla_tensor out = hla_tensor_bthd(o, HLA_F32, 1, T, H, V), values = hla_tensor_bthd(v, HLA_F32, 1, T, H, V);
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size);

    hla_hadamard_inputs inputs = {.q_features = q, .k_features = k, .v = &values};
    hla_status status = hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size);
    double error = INFINITY;
    if (status != HLA_OK) {
        fprintf(stderr, "%s\n", hla_context_error(ctx));
    } else {
        error = row_error(o, a, c, v, T - 1, H - 1);
        printf("last row: %.1e away from the definition\n", error);
    }

    for (int p = 0; p < 2; p++)
        free(a[p]), free(c[p]);
    free(v), free(o), free(workspace);
    hla_hadamard_plan_free(plan);
    hla_context_free(ctx);
    return error <= 1e-5 ? 0 : 1;
}
