/* bench/attention_gemm.c - Hadamard linear attention against oneDNN's float32 matrix product in the same run.
 *
 *     bench_attention_gemm [--json FILE] [--threads N] [--seconds S] [--kernel NAME]
 *
 * For each shape: every kernel of the table that runs here is checked against the double reference (the gate of
 * docs/OPERATOR.md section 7) and only then timed. The rate counts 4 R V T H floating-point operations, whatever form
 * is used; the ratio is to oneDNN's rate at 2048 x 2048 x 2048. Both take turns, and the best run of each counts.
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

typedef struct matrix_product {
    float *memory; /* A, B, C, n x n each */
    double best;   /* seconds */
} matrix_product;

enum { GEMM_SIZE = 2048 };

static bool gemm_make(matrix_product *product) {
    const size_t count = 3 * (size_t)GEMM_SIZE * GEMM_SIZE;
    *product = (matrix_product){malloc(count * sizeof(float)), INFINITY};
    for (size_t i = 0; product->memory && i < count; i++)
        product->memory[i] = (float)(i % 17) * 0.1f;
    return product->memory != NULL;
}

static void gemm_run(matrix_product *product) {
    const dnnl_dim_t n = GEMM_SIZE;
    float *a = product->memory, *b = a + n * n, *c = b + n * n;
    double before = omp_get_wtime();
    dnnl_sgemm('N', 'N', n, n, n, 1, a, n, b, n, 0, c, n);
    product->best = fmin(product->best, omp_get_wtime() - before);
}

static double gemm_rate(const matrix_product *product) {
    return 2.0 * GEMM_SIZE * GEMM_SIZE * GEMM_SIZE / product->best;
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

/* A planned forward call, ready to be repeated. */
typedef struct job {
    hla_hadamard_plan *plan;
    hla_tensor out, q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v;
    void *workspace;
} job;

static void job_free(job *j) {
    free(j->workspace);
    hla_hadamard_plan_free(j->plan);
}

static bool job_run(job *j) {
    size_t size = hla_hadamard_plan_workspace(j->plan);
    const hla_hadamard_inputs inputs = {.q_features = j->q, .k_features = j->k, .v = &j->v};
    return hla_hadamard_forward(j->plan, &j->out, NULL, &inputs, j->workspace, size) == HLA_OK;
}

/* Every every-th token is a query; out [queries,H,V]. */
static bool job_make(job *j, hla_context *context, const shape *s, const arrays *a, float *out, const char *kernel,
                     int64_t every) {
    *j = (job){0};
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    int64_t queries = s->tokens / every;
    problem.heads = s->heads, problem.queries = queries, problem.keys = s->tokens, problem.value_dim = s->value_dim;
    problem.factors = s->factors, problem.kernel = kernel;
    memcpy(problem.rank, s->rank, sizeof problem.rank);
    if (hla_hadamard_plan_create(context, &problem, &j->plan) != HLA_OK) return false;
    for (int p = 0; p < s->factors; p++) {
        j->q[p] = hla_tensor_bthd(a->q[p], HLA_F32, 1, queries, s->heads, s->rank[p]);
        j->q[p].stride[1] *= every;
        j->k[p] = hla_tensor_bthd(a->k[p], HLA_F32, 1, s->tokens, s->heads, s->rank[p]);
    }
    j->v = hla_tensor_bthd(a->v, HLA_F32, 1, s->tokens, s->heads, s->value_dim);
    j->out = hla_tensor_bthd(out, HLA_F32, 1, queries, s->heads, s->value_dim);
    size_t size = hla_hadamard_plan_workspace(j->plan);
    j->workspace = aligned_alloc(64, size ? size : 64);
    return j->workspace != NULL;
}

enum { CHECKED = 64 }; /* queries a head, evenly spaced, whose results are compared with the reference */

/* ||out - expected|| / ||expected|| over the checked queries; NaN in either comes out as NaN. */
static double relative_error(const shape *s, const float *out, const float *expected) {
    double difference = 0, norm = 0;
    int64_t row = s->heads * s->value_dim, every = s->tokens / CHECKED;
    for (int64_t i = 0; i < CHECKED * row; i++) {
        double wanted = (double)expected[i], d = (double)out[i / row * every * row + i % row] - wanted;
        difference += d * d;
        norm += wanted * wanted;
    }
    return sqrt(difference / norm);
}

static void describe(const shape *s, char *text, size_t size) {
    int length = 0;
    for (int p = 0; p < s->factors; p++) {
        length += snprintf(text + length, size - (size_t)length, "%s%d", p ? "x" : "", (int)s->rank[p]);
    }
}

typedef struct settings {
    hla_context *context;
    const char *kernel; /* only this one, or NULL */
    double seconds;     /* to spend on each measurement */
    FILE *json;         /* or NULL */
    int printed;
} settings;

static void report(settings *set, const shape *s, const char *kernel, double time, double gemm, double error) {
    char ranks[64];
    describe(s, ranks, sizeof ranks);
    double flops = 4.0 * (double)(s->tokens * s->heads * s->value_dim);
    for (int p = 0; p < s->factors; p++) {
        flops *= (double)s->rank[p];
    }
    double rate = flops / time;
    printf("H %d  T %-6d V %-4d ranks %-9s %-20s %8.3f ms %7.1f GFLOP/s  oneDNN %7.1f  ratio %.3f  error %.1e\n",
           (int)s->heads, (int)s->tokens, (int)s->value_dim, ranks, kernel, time * 1e3, rate * 1e-9, gemm * 1e-9,
           rate / gemm, error);
    if (!set->json) return;
    fprintf(set->json,
            "%s\n  {\"heads\": %d, \"tokens\": %d, \"value_dim\": %d, \"ranks\": \"%s\", \"kernel\": \"%s\", "
            "\"threads\": %d, \"seconds\": %.6g, \"gflops\": %.4g, \"gemm_gflops\": %.4g, \"ratio\": %.4g, "
            "\"error\": %.3g}",
            set->printed++ ? "," : "", (int)s->heads, (int)s->tokens, (int)s->value_dim, ranks, kernel,
            hla_context_threads(set->context), time, rate * 1e-9, gemm * 1e-9, rate / gemm, error);
}

/* Checks, then times one kernel in turn with the matrix product. */
static bool measure_kernel(settings *set, const shape *s, const arrays *a, const char *kernel) {
    job attention;
    matrix_product product;
    bool good = gemm_make(&product), made = job_make(&attention, set->context, s, a, a->out, kernel, 1);
    good = good && made && job_run(&attention);
    double error = good ? relative_error(s, a->out, a->expected) : NAN, best = INFINITY, start = omp_get_wtime();
    good = good && error <= 1e-5;
    if (!good) fprintf(stderr, "%s: error %.3g is not below the gate of 1e-5\n", kernel, error);
    while (good && omp_get_wtime() - start < set->seconds) {
        gemm_run(&product);
        double before = omp_get_wtime();
        good = job_run(&attention);
        best = fmin(best, omp_get_wtime() - before);
    }
    if (good) report(set, s, kernel, best, gemm_rate(&product), error);
    free(product.memory);
    job_free(&attention);
    return good;
}

/* Every kernel of the table that runs here. False if a result fails its gate. */
static bool measure_shape(settings *set, const shape *s) {
    arrays a;
    job reference = {0};
    bool good = make_arrays(&a, s) &&
                job_make(&reference, set->context, s, &a, a.expected, "reference", s->tokens / CHECKED) &&
                job_run(&reference);
    job_free(&reference);
    hla_kernel_info info;
    for (int i = 0; good && hla_hadamard_kernel(i, &info); i++) {
        bool wanted = set->kernel ? strcmp(set->kernel, info.name) == 0 : strcmp("reference", info.name) != 0;
        if (wanted && info.runs_here) good = measure_kernel(set, s, &a, info.name);
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

static bool parse(int count, char **arguments, settings *set, hla_context_options *options, const char **json) {
    for (int i = 1; i < count; i += 2) {
        if (i + 1 == count) return false;
        const char *value = arguments[i + 1];
        if (strcmp(arguments[i], "--json") == 0) {
            *json = value;
        } else if (strcmp(arguments[i], "--threads") == 0) {
            options->threads = (int)strtol(value, NULL, 10);
        } else if (strcmp(arguments[i], "--seconds") == 0) {
            set->seconds = strtod(value, NULL);
        } else if (strcmp(arguments[i], "--kernel") == 0) {
            set->kernel = value;
        } else {
            return false;
        }
    }
    return true;
}

int main(int count, char **arguments) {
    settings set = {.seconds = 0.5};
    const char *json = NULL;
    hla_context_options options;
    hla_context_options_init(&options);
    if (!parse(count, arguments, &set, &options, &json)) {
        fprintf(stderr, "usage: bench_attention_gemm [--json FILE] [--threads N] [--seconds S] [--kernel NAME]\n");
        return 2;
    }
    set.json = json ? fopen(json, "w") : NULL;
    if (hla_context_create(&set.context, &options) != HLA_OK || (json && !set.json)) {
        fprintf(stderr, "cannot start: bad --threads, or the file of --json cannot be written\n");
        return 1;
    }
    omp_set_num_threads(hla_context_threads(set.context)); /* what oneDNN takes */
    char machine[128];
    read_machine(machine, sizeof machine);
    printf("%s, %d threads\n", machine, hla_context_threads(set.context));
    if (set.json) fprintf(set.json, "{\"machine\": \"%s\", \"runs\": [", machine);
    bool good = true;
    for (size_t i = 0; good && i < sizeof shapes / sizeof shapes[0]; i++) {
        good = measure_shape(&set, &shapes[i]);
    }
    if (set.json) {
        fprintf(set.json, "\n]}\n");
        good = fclose(set.json) == 0 && good;
    }
    hla_context_free(set.context);
    return good ? 0 : 1;
}
