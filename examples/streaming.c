/* Decoding token by token: a prompt is taken in at once, then each step adds one key and value to a state of fixed size
 * and asks it with one query. Whatever the length, a step costs the same. At the end the rows are compared with one
 * causal pass over the whole sequence. cc streaming.c $(pkg-config --cflags --libs hla) -lm -o streaming && ./streaming
 */
#include "hla/hla.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { T = 300, PROMPT = 100, H = 2, R = 8, V = 32 };

/* The sequence: [T,H,X] arrays, two factors. */
static float a[2][T * H * R], c[2][T * H * R], v[T * H * V], stepwise[T * H * V], whole[T * H * V];

static void fill(float *numbers, int count, float low) { /* numbers in [low, low + 1) */
    for (int i = 0; i < count; i++)
        numbers[i] = low + (float)rand() / ((float)RAND_MAX + 1);
}

static hla_hadamard_problem make_problem(void) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = H, problem.value_dim = V, problem.factors = 2, problem.rank[0] = problem.rank[1] = R;
    problem.queries = problem.keys = T, problem.causal = true; /* of the pass over all; a state ignores them */
    return problem;
}

/* Views of tokens first ... first + tokens - 1. */
typedef struct views {
    hla_tensor q[2], k[2], v, out;
} views;

static views tokens_at(float *out, int first, int tokens) {
    views at;
    for (int p = 0; p < 2; p++) {
        at.q[p] = hla_tensor_bthd(a[p] + first * H * R, HLA_F32, 1, tokens, H, R);
        at.k[p] = hla_tensor_bthd(c[p] + first * H * R, HLA_F32, 1, tokens, H, R);
    }
    at.v = hla_tensor_bthd(v + first * H * V, HLA_F32, 1, tokens, H, V);
    at.out = hla_tensor_bthd(out + first * H * V, HLA_F32, 1, tokens, H, V);
    return at;
}

static hla_status step(hla_state *state, int first, int tokens) {
    views at = tokens_at(stepwise, first, tokens);
    return hla_state_step(state, &at.out, at.q, at.k, &at.v);
}

static hla_status decode(hla_state *state) {
    hla_status status = step(state, 0, PROMPT);
    for (int t = PROMPT; status == HLA_OK && t < T; t++)
        status = step(state, t, 1);
    return status;
}

static hla_status attend_to_all(hla_context *ctx, const hla_hadamard_problem *problem) {
    hla_hadamard_plan *plan = NULL;
    hla_status status = hla_hadamard_plan_create(ctx, problem, &plan);
    if (status != HLA_OK) return status;
    size_t bytes = hla_hadamard_plan_workspace(plan);
    void *workspace = bytes > 0 ? aligned_alloc(64, bytes) : NULL;
    views all = tokens_at(whole, 0, T);
    hla_hadamard_inputs inputs = {.q_features = all.q, .k_features = all.k, .v = &all.v};
    status = hla_hadamard_forward(plan, &all.out, NULL, &inputs, workspace, bytes);
    free(workspace);
    hla_hadamard_plan_free(plan);
    return status;
}

int main(void) {
    for (int p = 0; p < 2; p++)
        fill(a[p], T * H * R, 0), fill(c[p], T * H * R, 0);
    fill(v, T * H * V, -0.5f);

    hla_context *ctx = NULL;
    hla_state *state = NULL;
    if (hla_context_create(&ctx, NULL) != HLA_OK) return 1;
    hla_hadamard_problem problem = make_problem();
    hla_status status = hla_state_create(ctx, &problem, &state);
    if (status == HLA_OK) status = decode(state);
    if (status == HLA_OK) status = attend_to_all(ctx, &problem);
    if (status != HLA_OK) fprintf(stderr, "%s\n", hla_context_error(ctx));

    double error = status == HLA_OK ? 0 : INFINITY;
    for (int i = 0; i < T * H * V; i++)
        error = fmax(error, fabs((double)stepwise[i] - (double)whole[i]));
    size_t numbers = 0;
    hla_state_data(state, &numbers);
    printf("%lld tokens in a state of %zu kB: at most %.1e away from one causal pass\n",
           (long long)hla_state_tokens(state), numbers * sizeof(float) / 1024, error);

    hla_state_free(state);
    hla_context_free(ctx);
    return error <= 1e-5 ? 0 : 1;
}
