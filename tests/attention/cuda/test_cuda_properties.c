/* What holds of every kernel on a GPU beside being right: the same bits again, on two streams at once and from a
 * captured graph; sums over a million tokens; tensors that reach beyond 2^31 elements. */
#include "tests/attention/cuda/device.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void must(const device *gpu, hla_status status) {
    if (status != HLA_OK) fail_msg("%s", hla_context_error(gpu->context));
}

/* A plan, or NULL where the kernel does not take the problem. */
static hla_hadamard_plan *plan_of(device *gpu, hla_hadamard_problem *problem, const char *kernel) {
    hla_hadamard_plan *plan = NULL;
    problem->kernel = kernel;
    hla_status status = hla_hadamard_plan_create(gpu->context, problem, &plan);
    if (status != HLA_ERROR_UNSUPPORTED) must(gpu, status);
    return plan;
}

/* ---- the same bits ---- */

static const hadamard_case repeated[] = {
    {1, 3, 500, 3000, 64, 2, {32, 32}, LAYOUT_BTHD, 0},
    {1, 2, 900, 900, 128, 2, {32, 32}, LAYOUT_BTHD, CAUSAL},
    {1, 4, 700, 800, 20, 3, {5, 6, 7}, LAYOUT_PADDED, CAUSAL | GROUPED | PACKED},
    {2, 2, 300, 400, 64, 2, {64, 16}, LAYOUT_BHTD, STATEFUL | LENGTHS},
};
enum { REPEATED = sizeof repeated / sizeof repeated[0] };

/* A problem on the device with what both passes need and left behind: [forward, backward]. */
typedef struct job {
    hadamard_data data;
    hla_hadamard_plan *plan;
    device_data arrays;
    void *workspace[2];
    size_t size[2];
    double *first[HADAMARD_OUTPUTS];
} job;

/* False where the kernel does not take the case. Without the answer in double, which is not needed. */
static bool job_open(device *gpu, job *j, const hadamard_case *c, hla_dtype dtype, const char *kernel) {
    *j = (job){.data = hadamard_make_backward(c, dtype, true, 7)};
    j->plan = plan_of(gpu, &j->data.problem, kernel);
    if (!j->plan) {
        hadamard_free(&j->data);
        return false;
    }
    device_upload_all(gpu, &j->arrays, &j->data);
    j->size[0] = hla_hadamard_plan_workspace(j->plan), j->size[1] = hla_hadamard_plan_backward_workspace(j->plan);
    for (int i = 0; i < 2; i++)
        j->workspace[i] = device_take(gpu, j->size[i]);
    return true;
}

static void job_queue(device *gpu, const job *j) {
    for (int backward = 0; backward < 2; backward++)
        must(gpu, device_queue(&j->arrays, j->plan, backward, j->workspace[backward], j->size[backward]));
}

/* Poisons the outputs, so that what is found there was written since. */
static void job_poison(device *gpu, const job *j) {
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        if (!j->data.output[i].pages) continue;
        must(gpu, hla_device_queue_fill(gpu->context, j->arrays.output[i].data, 0xff, j->data.output[i].span));
    }
    must(gpu, hla_device_synchronise(gpu->context));
}

/* The first time keeps the outputs, later ones compare with them. */
static void job_compare(device *gpu, job *j, const char *what) {
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        if (!j->data.output[i].pages) continue;
        device_download(gpu, &j->data.output[i], &j->arrays.output[i], "an output");
        double *found = hadamard_copy(&j->data.output[i]);
        char name[32];
        hadamard_output_name(name, (hadamard_output)i);
        size_t bytes = (size_t)hadamard_count(&j->data.output[i]) * sizeof *found;
        if (j->first[i] && memcmp(j->first[i], found, bytes) != 0)
            fail_msg("%s, %s: other bits in %s", j->data.problem.kernel, what, name);
        for (int64_t e = 0; e < hadamard_count(&j->data.output[i]); e++)
            assert_true(isfinite(found[e]));
        free(j->first[i]);
        j->first[i] = found;
    }
}

static void job_close(job *j) {
    for (int i = 0; i < HADAMARD_OUTPUTS; i++)
        free(j->first[i]);
    hla_hadamard_plan_free(j->plan);
    hadamard_free(&j->data);
}

typedef void action(device *gpu, job *j);

/* For every kernel that takes one of the cases, in bfloat16 and float32. */
static void each_job(device *gpu, action *act) {
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(gpu->context, i, &info); i++) {
        for (int c = 0; c < REPEATED && info.runs_here; c++) {
            for (int dtype = HLA_F32; dtype <= HLA_BF16; dtype++) {
                job j;
                bool any = info.form == HLA_FORM_STATE || !(repeated[c].modes & STATEFUL);
                device_reset(gpu);
                if (!any || !job_open(gpu, &j, &repeated[c], (hla_dtype)dtype, info.name)) continue;
                act(gpu, &j);
                job_close(&j);
            }
        }
    }
}

static void repeat(device *gpu, job *j) {
    for (int time = 0; time < 3; time++) {
        job_poison(gpu, j);
        job_queue(gpu, j);
        must(gpu, hla_device_synchronise(gpu->context));
        job_compare(gpu, j, "again");
    }
}

static void test_same_bits(void **state) {
    each_job(*state, repeat);
}

/* ---- graphs ---- */

static void capture(device *gpu, job *j) {
    cudaGraph_t graph;
    cudaGraphExec_t made;
    job_queue(gpu, j);
    must(gpu, hla_device_synchronise(gpu->context));
    job_compare(gpu, j, "directly");
    job_poison(gpu, j);
    assert_int_equal(cudaStreamBeginCapture(gpu->stream, cudaStreamCaptureModeGlobal), cudaSuccess);
    job_queue(gpu, j);
    assert_int_equal(cudaStreamEndCapture(gpu->stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&made, graph, 0), cudaSuccess);
    int64_t *const numbers[] = {j->data.key_lengths, j->data.query_starts, j->data.key_starts};
    for (int i = 0; i < 3; i++) { /* captured by value */
        if (numbers[i]) numbers[i][1] += 1;
    }
    for (int time = 0; time < 2; time++) {
        job_poison(gpu, j);
        assert_int_equal(cudaGraphLaunch(made, gpu->stream), cudaSuccess);
        must(gpu, hla_device_synchronise(gpu->context));
        job_compare(gpu, j, "from a graph");
    }
    assert_int_equal(cudaGraphExecDestroy(made), cudaSuccess);
    assert_int_equal(cudaGraphDestroy(graph), cudaSuccess);
}

static void test_graph(void **state) {
    each_job(*state, capture);
}

/* ---- what the backward pass reads of the forward's workspace ---- */

/* A copy of what is worth keeping, with the rest of both workspaces poisoned, gives the same gradients as none. */
static void keep(device *gpu, job *j) {
    size_t kept = hla_hadamard_plan_kept_workspace(j->plan);
    void *copy = device_take(gpu, kept);
    assert_true(kept <= j->size[0]);
    job_poison(gpu, j);
    job_queue(gpu, j);
    must(gpu, hla_device_synchronise(gpu->context));
    job_compare(gpu, j, "directly");
    job_poison(gpu, j);
    must(gpu, device_queue(&j->arrays, j->plan, false, j->workspace[0], j->size[0]));
    must(gpu, hla_device_queue_copy(gpu->context, copy, j->workspace[0], kept));
    for (int i = 0; i < 2; i++)
        must(gpu, hla_device_queue_fill(gpu->context, j->workspace[i], 0xff, j->size[i]));
    j->arrays.inputs.forward_workspace = copy;
    must(gpu, device_queue(&j->arrays, j->plan, true, j->workspace[1], j->size[1]));
    must(gpu, hla_device_synchronise(gpu->context));
    job_compare(gpu, j, "with a kept state");
}

static void test_kept_state(void **state) {
    each_job(*state, keep);
}

/* ---- two contexts on two streams ---- */

static void test_two_contexts(void **state) {
    device *gpu = *state, other;
    assert_true(device_open(&other, gpu->size));
    device *const gpus[2] = {gpu, &other};
    job jobs[2];
    for (int i = 0; i < 2; i++) {
        device_reset(gpus[i]);
        assert_true(job_open(gpus[i], &jobs[i], &repeated[i], HLA_BF16, NULL));
        job_queue(gpus[i], &jobs[i]);
        must(gpus[i], hla_device_synchronise(gpus[i]->context));
        job_compare(gpus[i], &jobs[i], "alone");
        job_poison(gpus[i], &jobs[i]);
    }
    for (int time = 0; time < 10; time++) {
        for (int i = 0; i < 2; i++)
            job_queue(gpus[i], &jobs[i]);
    }
    for (int i = 0; i < 2; i++) {
        must(gpus[i], hla_device_synchronise(gpus[i]->context));
        job_compare(gpus[i], &jobs[i], "beside another context");
        job_close(&jobs[i]);
    }
    device_close(&other);
}

/* ---- a million tokens ---- */

/* All bytes 0x3c: a number a little above 0.01 in float32 and bfloat16, and above 1 in float16. */
enum { PATTERN = 0x3c };

static double pattern(hla_dtype dtype) {
    uint32_t bits = 0x3c3c3c3c;
    const hla_tensor one = hla_tensor_bthd(&bits, dtype, 1, 1, 1, 1);
    return get(&one, 0, 0, 0, 0);
}

static hla_tensor filled(device *gpu, hla_dtype dtype, int64_t t, int64_t x) {
    size_t bytes = (size_t)(t * x) * hla_dtype_size(dtype);
    hla_tensor view = hla_tensor_bthd(device_take(gpu, bytes), dtype, 1, t, 1, x);
    must(gpu, hla_device_queue_fill(gpu->context, view.data, PATTERN, bytes));
    return view;
}

/* Row i of out when all features and values are c: the number of keys that it sees, times A c, or c normalised. */
static void check_rows(device *gpu, const hla_hadamard_problem *problem, const hla_tensor *out, double score) {
    static const double tolerance[] = {1e-5, 1e-2, 2e-3};
    int64_t count = problem->queries * problem->value_dim;
    size_t bytes = (size_t)count * hla_dtype_size(problem->dtype);
    hla_tensor view = *out;
    view.data = malloc(bytes);
    assert_non_null(view.data);
    must(gpu, hla_device_copy(gpu->context, view.data, out->data, bytes));
    double c = pattern(problem->dtype), worst = 0;
    for (int64_t i = 0; i < problem->queries; i++) {
        double keys = (double)(problem->causal ? i + 1 : problem->keys), sum = keys * score;
        double wanted = problem->normalised ? c * sum / (sum + (double)problem->epsilon) : c * sum * problem->scale;
        for (int64_t x = 0; x < problem->value_dim; x += 17) {
            double error = fabs(get(&view, 0, i, 0, x) - wanted) / wanted;
            worst = error <= worst ? worst : error;
        }
    }
    free(view.data);
    printf("%s, dtype %d, causal %d, normalised %d: %.2g\n", problem->kernel, (int)problem->dtype, problem->causal,
           problem->normalised, worst);
    if (!(worst <= tolerance[problem->dtype])) fail_msg("a million tokens: error %.3g", worst);
}

static void check_million(device *gpu, hla_dtype dtype, bool causal, bool normalised, const char *kernel) {
    enum { TOKENS = 1 << 20 };
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.factors = 2, problem.rank[0] = problem.rank[1] = 32, problem.value_dim = 64;
    problem.keys = TOKENS, problem.queries = causal ? TOKENS : 64;
    problem.dtype = dtype, problem.causal = causal, problem.normalised = normalised;
    problem.scale = 0x1p-20f;
    hla_hadamard_plan *plan = plan_of(gpu, &problem, kernel);
    if (!plan) return;
    device_reset(gpu);
    const hla_tensor q[] = {filled(gpu, dtype, problem.queries, 32), filled(gpu, dtype, problem.queries, 32)};
    const hla_tensor k[] = {filled(gpu, dtype, TOKENS, 32), filled(gpu, dtype, TOKENS, 32)};
    const hla_tensor v = filled(gpu, dtype, TOKENS, 64), out = filled(gpu, dtype, problem.queries, 64);
    const hla_hadamard_inputs inputs = {.q_features = q, .k_features = k, .v = &v};
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = device_take(gpu, size);
    must(gpu, hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size));
    double c = pattern(dtype), dot = 32 * c * c;
    problem.kernel = kernel;
    check_rows(gpu, &problem, &out, dot * dot);
    hla_hadamard_plan_free(plan);
}

static void test_million_tokens(void **state) {
    device *gpu = *state;
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(gpu->context, i, &info); i++) {
        for (int variant = 0; variant < 12 && info.runs_here; variant++) {
            bool causal = variant % 2, normalised = variant / 2 % 2;
            if (causal && info.form == HLA_FORM_QUADRATIC) continue; /* 2^39 pairs */
            check_million(gpu, (hla_dtype)(variant / 4), causal, normalised, info.name);
        }
    }
}

/* ---- beyond 2^31 elements ---- */

/* Three tokens whose rows lie 2^30 elements apart against the same problem close together: the same bits. */
static void check_far(device *gpu, const char *kernel) {
    enum { TOKENS = 3, RANK = 32, WIDTH = 64 };
    const int64_t distance = (int64_t)1 << 30;
    const size_t bytes = (size_t)(2 * distance + 4 * WIDTH) * 2;
    static const hadamard_case c = {1, 1, TOKENS, TOKENS, WIDTH, 2, {RANK, RANK}, LAYOUT_BTHD, 0};
    void *memory = NULL;
    if (hla_device_allocate(gpu->context, bytes, &memory) != HLA_OK) {
        printf("left out: %s\n", hla_context_error(gpu->context));
        return;
    }
    job j;
    device_reset(gpu);
    if (job_open(gpu, &j, &c, HLA_BF16, kernel)) {
        job_queue(gpu, &j);
        must(gpu, hla_device_synchronise(gpu->context));
        job_compare(gpu, &j, "close together");
        hla_tensor *const far[] = {&j.arrays.q[0], &j.arrays.k[1], &j.arrays.v, &j.arrays.output[OUT]};
        const hla_tensor out = j.arrays.output[OUT];
        for (int i = 0; i < 4; i++) {
            char *place = (char *)memory + (size_t)i * 2 * WIDTH;
            for (int64_t t = 0; t < TOKENS; t++) {
                const char *row = (const char *)far[i]->data + t * far[i]->stride[1] * 2;
                must(gpu, hla_device_copy(gpu->context, place + t * distance * 2, row, (size_t)far[i]->shape[3] * 2));
            }
            far[i]->data = place;
            far[i]->stride[0] = TOKENS * distance, far[i]->stride[1] = distance;
        }
        must(gpu, device_queue(&j.arrays, j.plan, false, j.workspace[0], j.size[0]));
        for (int64_t t = 0; t < TOKENS; t++) {
            must(gpu, hla_device_copy(gpu->context, (char *)out.data + t * WIDTH * 2,
                                      (char *)j.arrays.output[OUT].data + t * distance * 2, WIDTH * 2));
        }
        j.arrays.output[OUT] = out;
        job_compare(gpu, &j, "2^30 elements apart");
        job_close(&j);
    }
    hla_device_free(gpu->context, memory);
}

/* 2^32 numbers of v and k, all of them the same few: tokens and heads with stride 0. */
static void check_broadcast(device *gpu, const char *kernel) {
    enum { TOKENS = 1 << 21, HEADS = 16, WIDTH = 128 };
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.heads = HEADS, problem.rank[0] = 4, problem.value_dim = WIDTH;
    problem.keys = TOKENS, problem.queries = 2;
    hla_hadamard_plan *plan = plan_of(gpu, &problem, kernel);
    if (!plan) return;
    device_reset(gpu);
    hla_tensor q = filled(gpu, HLA_F32, 2, 4), k = filled(gpu, HLA_F32, 1, 4), v = filled(gpu, HLA_F32, 1, WIDTH);
    q.shape[2] = HEADS, q.stride[2] = 0;
    k.shape[1] = v.shape[1] = TOKENS, k.shape[2] = v.shape[2] = HEADS;
    k.stride[1] = v.stride[1] = k.stride[2] = v.stride[2] = 0;
    hla_tensor out = filled(gpu, HLA_F32, 2, HEADS * WIDTH);
    out = hla_tensor_bthd(out.data, HLA_F32, 1, 2, HEADS, WIDTH);
    const hla_hadamard_inputs inputs = {.q_features = &q, .k_features = &k, .v = &v};
    size_t size = hla_hadamard_plan_workspace(plan);
    void *workspace = device_take(gpu, size);
    must(gpu, hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size));
    float found[2 * HEADS * WIDTH];
    must(gpu, hla_device_copy(gpu->context, found, out.data, sizeof found));
    double c = pattern(HLA_F32), sum = TOKENS * 4 * c * c, wanted = c * sum / (sum + (double)problem.epsilon);
    for (int i = 0; i < 2 * HEADS * WIDTH; i++)
        assert_true(fabs((double)found[i] - wanted) <= 1e-5 * wanted);
    hla_hadamard_plan_free(plan);
}

static void test_beyond_32_bits(void **state) {
    device *gpu = *state;
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(gpu->context, i, &info); i++) {
        if (!info.runs_here) continue;
        check_far(gpu, info.name);
        check_broadcast(gpu, info.name);
    }
}

int main(void) {
    unsetenv("HLA_KERNEL");
    device gpu;
    if (!device_open(&gpu, (size_t)3 << 29)) return DEVICE_SKIPPED;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(test_same_bits, &gpu),      cmocka_unit_test_prestate(test_graph, &gpu),
        cmocka_unit_test_prestate(test_two_contexts, &gpu),   cmocka_unit_test_prestate(test_million_tokens, &gpu),
        cmocka_unit_test_prestate(test_beyond_32_bits, &gpu), cmocka_unit_test_prestate(test_kept_state, &gpu),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    device_close(&gpu);
    return failed;
}
