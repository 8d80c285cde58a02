/* Decoding token by token: each step adds one key and value to a state of fixed size and asks it with one query.
 * Whatever the length, a step costs the same. At the end the rows are compared with one causal pass over the whole
 * sequence. cc streaming.c $(pkg-config --cflags --libs hla) -lm -o streaming && ./streaming */
#include "hla/hla.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 300, H = 2, R = 8, V = 32, STATE = H * R * R * (V + 1) };

/* The sequence: [T,H,X] arrays, two factors. */
static float a[2][T * H * R], c[2][T * H * R], v[T * H * V], stepwise[T * H * V], whole[T * H * V];

static void fill(float *numbers, int count, float low) { /* numbers in [low, low + 1) */
    for (int i = 0; i < count; i++)
        numbers[i] = low + (float)rand() / ((float)RAND_MAX + 1);
}

/* A plan for calls over that many tokens, each seeing the state that the call before left. */
static hla_hadamard_plan *make_plan(hla_context *ctx, int tokens) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = H, problem.queries = problem.keys = tokens, problem.value_dim = V;
    problem.factors = 2, problem.rank[0] = problem.rank[1] = R;
    problem.causal = true, problem.stateful = true;
    hla_hadamard_plan *plan = NULL;
    hla_hadamard_plan_create(ctx, &problem, &plan);
    return plan;
}

/* out rows first ... first + tokens - 1; state is read, and replaced by the state after these tokens. */
static hla_status attend(const hla_hadamard_plan *plan, float *out, int first, int tokens, float *state,
                         void *workspace) {
    hla_tensor q[2], k[2];
    for (int p = 0; p < 2; p++) {
        q[p] = hla_tensor_bthd(a[p] + first * H * R, HLA_F32, 1, tokens, H, R);
        k[p] = hla_tensor_bthd(c[p] + first * H * R, HLA_F32, 1, tokens, H, R);
    }
    hla_tensor values = hla_tensor_bthd(v + first * H * V, HLA_F32, 1, tokens, H, V);
    hla_tensor rows = hla_tensor_bthd(out + first * H * V, HLA_F32, 1, tokens, H, V);
    hla_hadamard_inputs inputs = {.q_features = q, .k_features = k, .v = &values, .initial_state = state};
    return hla_hadamard_forward(plan, &rows, state, &inputs, workspace, hla_hadamard_plan_workspace(plan));
}

int main(void) {
    for (int p = 0; p < 2; p++)
        fill(a[p], T * H * R, 0), fill(c[p], T * H * R, 0);
    fill(v, T * H * V, -0.5f);

    hla_context *ctx = NULL;
    if (hla_context_create(&ctx, NULL) != HLA_OK) return 1;
    hla_hadamard_plan *one = make_plan(ctx, 1), *all = make_plan(ctx, T);
    float *state = calloc(STATE, sizeof *state), *state_of_all = calloc(STATE, sizeof *state);
    void *workspace = aligned_alloc(64, hla_hadamard_plan_workspace(one));
    void *workspace_of_all = aligned_alloc(64, hla_hadamard_plan_workspace(all));
    double error = one && all && state && state_of_all ? 0 : INFINITY;

    for (int t = 0; error == 0 && t < T; t++)
        if (attend(one, stepwise, t, 1, state, workspace) != HLA_OK) error = INFINITY;
    if (error == 0 && attend(all, whole, 0, T, state_of_all, workspace_of_all) != HLA_OK) error = INFINITY;
    if (error != 0) fprintf(stderr, "%s\n", hla_context_error(ctx));

    for (int i = 0; i < T * H * V; i++)
        error = fmax(error, fabs((double)stepwise[i] - (double)whole[i]));
    printf("%d steps on a state of %zu kB: at most %.1e away from one causal pass\n", T, STATE * sizeof(float) / 1024,
           error);

    free(state), free(state_of_all), free(workspace), free(workspace_of_all);
    hla_hadamard_plan_free(one), hla_hadamard_plan_free(all);
    hla_context_free(ctx);
    return error <= 1e-5 ? 0 : 1;
}
