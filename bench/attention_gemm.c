/* bench/attention_gemm.c - Hadamard linear attention against oneDNN's float32 matrix product in the same run.
 *
 *     bench_attention_gemm [--json FILE] [--threads N] [--seconds S]
 *
 * For each shape: every kernel of the table that runs here is checked against the double reference (the gate of
 * operator.md section 7) and only then timed. The rate counts 4 R V T H floating-point operations, whatever form is
 * used; the ratio is to oneDNN's rate at 2048 x 2048 x 2048, timed just before and after. Best of several runs.
 */
#include "hla/hla.h"

#include <dnnl.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    int64_t heads, tokens, value_dim;
    int factors;
    int64_t rank[HLA_MAX_FACTORS];
} shape;

static const shape shapes[] = {
    {4, 8192, 64, 2, {32, 32}},  {4, 2304, 64, 2, {16, 16}}, {1, 8192, 64, 2, {32, 32}},
    {2, 8192, 128, 2, {64, 64}}, {4, 4096, 64, 1, {256}},    {4, 4096, 64, 3, {10, 10, 10}},
};

typedef struct arrays {
    float *q[HLA_MAX_FACTORS], *k[HLA_MAX_FACTORS], *v, *out, *expected;
    int64_t out_count;
} arrays;

static double gemm_rate(double seconds) {
    const dnnl_dim_t n = 2048;
    float *memory = malloc(sizeof(float) * 3 * (size_t)(n * n));
    if (!memory) return 0;
    for (dnnl_dim_t i = 0; i < 3 * n * n; i++)
        memory[i] = (float)(i % 17) * 0.1f;
    double best = INFINITY, start = omp_get_wtime();
    while (omp_get_wtime() - start < seconds) {
        double before = omp_get_wtime();
        dnnl_sgemm('N', 'N', n, n, n, 1, memory, n, memory + n * n, n, 0, memory + 2 * n * n, n);
        best = fmin(best, omp_get_wtime() - before);
    }
    free(memory);
    return 2.0 * (double)(n * n * n) / best;
}

static float *random_floats(int64_t count, uint64_t *state) {
    float *values = aligned_alloc(64, ((size_t)count * sizeof(float) + 63) / 64 * 64);
    for (int64_t i = 0; values && i < count; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        values[i] = (float)(*state >> 40) * 0x1p-24f;
    }
    return values;
}

static void free_arrays(arrays *a) {
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        free(a->q[p]);
        free(a->k[p]);
    }
    free(a->v);
    free(a->out);
    free(a->expected);
}

static bool make_arrays(arrays *a, const shape *s) {
    uint64_t state = 1;
    int64_t rows = s->tokens * s->heads;
    bool complete = true;
    *a = (arrays){.out_count = rows * s->value_dim};
    for (int p = 0; p < s->factors; p++) {
        a->q[p] = random_floats(rows * s->rank[p], &state);
        a->k[p] = random_floats(rows * s->rank[p], &state);
        complete = complete && a->q[p] && a->k[p];
    }
    a->v = random_floats(a->out_count, &state);
    a->out = random_floats(a->out_count, &state);
    a->expected = random_floats(a->out_count, &state);
    return complete && a->v && a->out && a->expected;
}

/* Runs one kernel (NULL: the plan's choice) into out; returns the best time of as many runs as fit in seconds, or a
 * negative number. queries: how many of the tokens are queries. */
static double run_kernel(hla_context *context, const shape *s, const arrays *a, float *out, const char *kernel,
                         int64_t queries, double seconds, char *name, size_t name_size) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = s->heads, problem.queries = queries, problem.keys = s->tokens, problem.value_dim = s->value_dim;
    problem.factors = s->factors, problem.kernel = kernel;
    memcpy(problem.rank, s->rank, sizeof problem.rank);
    hla_hadamard_plan *plan = NULL;
    if (hla_hadamard_plan_create(context, &problem, &plan) != HLA_OK) return -1;
    if (name) snprintf(name, name_size, "%s", hla_hadamard_plan_kernel(plan));
    hla_tensor q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS];
    for (int p = 0; p < s->factors; p++) {
        q[p] = hla_tensor_bthd(a->q[p], HLA_F32, 1, queries, s->heads, s->rank[p]);
        k[p] = hla_tensor_bthd(a->k[p], HLA_F32, 1, s->tokens, s->heads, s->rank[p]);
    }
    hla_tensor v = hla_tensor_bthd(a->v, HLA_F32, 1, s->tokens, s->heads, s->value_dim);
    hla_tensor to = hla_tensor_bthd(out, HLA_F32, 1, queries, s->heads, s->value_dim);
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = aligned_alloc(64, size ? size : 64);
    double best = INFINITY, start = omp_get_wtime();
    do {
        double before = omp_get_wtime();
        if (hla_hadamard_forward(plan, &to, q, k, &v, NULL, workspace, size) != HLA_OK) best = -1;
        best = fmin(best, omp_get_wtime() - before);
    } while (best > 0 && omp_get_wtime() - start < seconds);
    free(workspace);
    hla_hadamard_plan_free(plan);
    return best;
}

/* ||out - expected|| / ||expected||; NaN in either comes out as NaN. */
static double relative_error(const float *out, const float *expected, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double d = (double)out[i] - (double)expected[i];
        difference += d * d;
        norm += (double)expected[i] * (double)expected[i];
    }
    return sqrt(difference / norm);
}

static void describe(const shape *s, char *text, size_t size) {
    int length = 0;
    for (int p = 0; p < s->factors; p++) {
        length += snprintf(text + length, size - (size_t)length, "%s%d", p ? "x" : "", (int)s->rank[p]);
    }
}

/* Measures the plan's choice and the kernels of the best instruction set. Returns false if a result fails its gate. */
static bool measure_shape(hla_context *context, const shape *s, double seconds, FILE *json, bool *first) {
    enum { CHECKED = 64 };
    arrays a;
    if (!make_arrays(&a, s)) {
        free_arrays(&a);
        return false;
    }
    bool good = run_kernel(context, s, &a, a.expected, "reference", CHECKED, 0, NULL, 0) >= 0;
    char ranks[64], name[64];
    describe(s, ranks, sizeof ranks);
    hla_kernel_info info;
    double flops = 4.0 * (double)(s->tokens * s->heads * s->value_dim);
    for (int p = 0; p < s->factors; p++)
        flops *= (double)s->rank[p];
    for (int i = 0; good && hla_hadamard_kernel(i, &info); i++) {
        if (!info.runs_here || strcmp(info.name, "reference") == 0) continue;
        double gemm = gemm_rate(seconds);
        double time = run_kernel(context, s, &a, a.out, info.name, s->tokens, seconds, name, sizeof name);
        gemm = fmax(gemm, gemm_rate(seconds));
        double error = relative_error(a.out, a.expected, CHECKED * s->heads * s->value_dim);
        good = time > 0 && error <= 1e-5;
        if (!good) {
            fprintf(stderr, "%s at %s: error %.3g is above the gate of 1e-5\n", info.name, ranks, error);
            break;
        }
        printf("H %d  T %-6d V %-4d ranks %-9s %-20s %8.3f ms %7.1f GFLOP/s  oneDNN %7.1f  ratio %.3f  error %.1e\n",
               (int)s->heads, (int)s->tokens, (int)s->value_dim, ranks, info.name, time * 1e3, flops / time * 1e-9,
               gemm * 1e-9, flops / time / gemm, error);
        if (!json) continue;
        fprintf(json,
                "%s\n  {\"heads\": %d, \"tokens\": %d, \"value_dim\": %d, \"ranks\": \"%s\", \"kernel\": \"%s\", "
                "\"threads\": %d, \"seconds\": %.6g, \"gflops\": %.4g, \"gemm_gflops\": %.4g, \"ratio\": %.4g, "
                "\"error\": %.3g}",
                *first ? "" : ",", (int)s->heads, (int)s->tokens, (int)s->value_dim, ranks, info.name,
                hla_context_threads(context), time, flops / time * 1e-9, gemm * 1e-9, flops / time / gemm, error);
        *first = false;
    }
    free_arrays(&a);
    return good;
}

static void read_machine(char *text, size_t size) {
    snprintf(text, size, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256], found[128];
    while (file && fgets(line, sizeof line, file)) {
        if (sscanf(line, "model name : %127[^\n\"\\]", found) == 1) snprintf(text, size, "%s", found);
    }
    if (file) fclose(file);
}

int main(int count, char **arguments) {
    const char *json_path = NULL;
    double seconds = 0.2;
    hla_context_options options;
    hla_context_options_init(&options);
    for (int i = 1; i < count; i += 2) {
        bool known = i + 1 < count;
        if (known && strcmp(arguments[i], "--json") == 0) {
            json_path = arguments[i + 1];
        } else if (known && strcmp(arguments[i], "--threads") == 0) {
            options.threads = (int)strtol(arguments[i + 1], NULL, 10);
        } else if (known && strcmp(arguments[i], "--seconds") == 0) {
            seconds = strtod(arguments[i + 1], NULL);
        } else {
            fprintf(stderr, "usage: bench_attention_gemm [--json FILE] [--threads N] [--seconds S]\n");
            return 2;
        }
    }
    hla_context *context = NULL;
    FILE *json = json_path ? fopen(json_path, "w") : NULL;
    if (hla_context_create(&context, &options) != HLA_OK || (json_path && !json)) {
        fprintf(stderr, "cannot start: bad --threads, or --json FILE cannot be written\n");
        hla_context_free(context);
        return 1;
    }
    omp_set_num_threads(hla_context_threads(context)); /* what oneDNN takes */
    char machine[128];
    read_machine(machine, sizeof machine);
    printf("%s, %d threads\n", machine, hla_context_threads(context));
    if (json) fprintf(json, "{\"machine\": \"%s\", \"runs\": [", machine);
    bool good = true, first = true;
    for (size_t i = 0; good && i < sizeof shapes / sizeof shapes[0]; i++) {
        good = measure_shape(context, &shapes[i], seconds, json, &first);
    }
    if (json) {
        fprintf(json, "\n]}\n");
        good = fclose(json) == 0 && good;
    }
    hla_context_free(context);
    return good ? 0 : 1;
}
