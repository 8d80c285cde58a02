/* What causal, packed, grouped and stateful mean, by properties that relate one to another. */
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

static hla_context *make_context(int threads) {
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = threads;
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, &options), HLA_OK);
    return context;
}

static void run_or_fail(hla_context *context, hadamard_data *data, const char *kernel) {
    hla_status status = hadamard_run(context, data, kernel);
    if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
}

static void backward_or_fail(hla_context *context, hadamard_data *data, const char *kernel) {
    hla_status status = hadamard_run_backward(context, data, kernel);
    if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
}

/* Calls check for every kernel that runs here, or for those only that take states. */
static void each_kernel(void (*check)(hla_context *context, const char *kernel, bool stateful), bool stateful_only) {
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        bool stateful = info.form == HLA_FORM_STATE || i == 0;
        if (hadamard_takes_all(&info) && (stateful || !stateful_only)) check(context, info.name, stateful);
    }
    hla_context_free(context);
}

/* Tokens first ... first + count - 1 of a view. */
static hla_tensor tokens_of(hla_tensor view, int64_t first, int64_t count) {
    view.data = (char *)view.data + first * view.stride[1] * (int64_t)hla_dtype_size(view.dtype);
    view.shape[1] = count;
    return view;
}

/* Makes `part` a problem about some of the tokens of `whole`; its output begins at token 0 of its own. */
static void select_tokens(hadamard_data *part, const hadamard_data *whole, int64_t query, int64_t queries, int64_t key,
                          int64_t keys) {
    part->problem.queries = queries, part->problem.keys = keys;
    for (int p = 0; p < part->problem.factors; p++) {
        part->q[p].view = tokens_of(whole->q[p].view, query, queries);
        part->k[p].view = tokens_of(whole->k[p].view, key, keys);
    }
    part->v.view = tokens_of(whole->v.view, key, keys);
    part->output[OUT].view.shape[1] = queries;
}

/* Fails unless ||found - wanted|| <= 1e-6 ||wanted||, some roundings, for the numbers of two views of one shape. */
static void same_numbers(const hla_tensor *found, const hla_tensor *wanted, const char *kernel, const char *what) {
    const int64_t *shape = found->shape;
    double difference = 0, norm = 0;
    for (int64_t b = 0; b < shape[0]; b++) {
        for (int64_t t = 0; t < shape[1]; t++) {
            for (int64_t h = 0; h < shape[2]; h++) {
                for (int64_t x = 0; x < shape[3]; x++) {
                    double right = get(wanted, b, t, h, x), error = get(found, b, t, h, x) - right;
                    difference += error * error;
                    norm += right * right;
                }
            }
        }
    }
    if (!(sqrt(difference) <= 1e-6 * sqrt(norm)))
        fail_msg("%s: %s: off by %.3g of %.3g", kernel, what, sqrt(difference), sqrt(norm));
}

static bool same_bits(const hla_tensor *a, const hla_tensor *b) {
    const int64_t *shape = a->shape;
    for (int64_t i = 0; i < shape[0] * shape[1] * shape[2] * shape[3]; i++) {
        int64_t x = i % shape[3], h = i / shape[3] % shape[2], t = i / shape[3] / shape[2] % shape[1];
        int64_t batch = i / shape[3] / shape[2] / shape[1];
        if (!(get(a, batch, t, h, x) == get(b, batch, t, h, x))) return false;
    }
    return true;
}

/* ---- causal ---- */

static const hadamard_case causal_case = {2, 2, 300, 300, 18, 2, {5, 7}, LAYOUT_PADDED, CAUSAL};

static void scale_tokens(const hla_tensor *tensor, int64_t first, double factor) {
    for (int64_t b = 0; b < tensor->shape[0]; b++) {
        for (int64_t t = first; t < tensor->shape[1]; t++) {
            for (int64_t h = 0; h < tensor->shape[2]; h++) {
                for (int64_t x = 0; x < tensor->shape[3]; x++)
                    set(tensor, b, t, h, x, factor * get(tensor, b, t, h, x));
            }
        }
    }
}

/* No bit of rows 0 ... first - 1 depends on token `first` and later ones, and row `first` does. */
static void check_later_tokens(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    static const int64_t firsts[] = {1, 127, 128, 200, 299};
    hadamard_data before = hadamard_make(&causal_case, HLA_F32, true, 80);
    run_or_fail(context, &before, kernel);
    for (size_t i = 0; i < sizeof firsts / sizeof firsts[0]; i++) {
        hadamard_data after = hadamard_make(&causal_case, HLA_F32, true, 80);
        scale_tokens(&after.k[0].view, firsts[i], 100);
        scale_tokens(&after.q[1].view, firsts[i] + 1, 7);
        scale_tokens(&after.v.view, firsts[i], -3);
        run_or_fail(context, &after, kernel);
        hla_tensor a = tokens_of(before.output[OUT].view, 0, firsts[i]),
                   b = tokens_of(after.output[OUT].view, 0, firsts[i]);
        if (!same_bits(&a, &b)) fail_msg("%s: rows before token %d see it", kernel, (int)firsts[i]);
        a = tokens_of(before.output[OUT].view, firsts[i], 1), b = tokens_of(after.output[OUT].view, firsts[i], 1);
        if (same_bits(&a, &b)) fail_msg("%s: row %d does not see its own token", kernel, (int)firsts[i]);
        hadamard_free(&after);
    }
    hadamard_free(&before);
}

static void test_later_tokens(void **unused) {
    (void)unused;
    each_kernel(check_later_tokens, false);
}

/* Row i is the last row of the bidirectional result over tokens 0 ... i. */
static void check_prefixes(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    static const int64_t counts[] = {1, 2, 127, 128, 129, 256, 300};
    hadamard_data whole = hadamard_make(&causal_case, HLA_F32, true, 81);
    run_or_fail(context, &whole, kernel);
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        hadamard_data prefix = hadamard_make(&causal_case, HLA_F32, true, 81);
        prefix.problem.causal = false;
        select_tokens(&prefix, &whole, 0, counts[i], 0, counts[i]);
        run_or_fail(context, &prefix, kernel);
        hla_tensor row = tokens_of(whole.output[OUT].view, counts[i] - 1, 1);
        hla_tensor last = tokens_of(prefix.output[OUT].view, counts[i] - 1, 1);
        same_numbers(&row, &last, kernel, "a causal row against its prefix");
        hadamard_free(&prefix);
    }
    hadamard_free(&whole);
}

static void test_prefixes(void **unused) {
    (void)unused;
    each_kernel(check_prefixes, false);
}

/* ---- states ---- */

/* One call over a sequence is two calls over its parts, the second of which starts from the first one's final state. */
static void check_split(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    static const hadamard_case c = {2, 4, 300, 300, 9, 2, {5, 6}, LAYOUT_BTHD, STATEFUL | CAUSAL | GROUPED};
    static const int64_t cuts[] = {1, 128, 170, 299};
    hadamard_data whole = hadamard_make(&c, HLA_F32, true, 82);
    run_or_fail(context, &whole, kernel);
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        hadamard_data part = hadamard_make(&c, HLA_F32, true, 82);
        select_tokens(&part, &whole, 0, cuts[i], 0, cuts[i]);
        run_or_fail(context, &part, kernel);
        hla_tensor rows = tokens_of(whole.output[OUT].view, 0, cuts[i]);
        same_numbers(&part.output[OUT].view, &rows, kernel, "the first part of a sequence");
        memcpy(part.initial_state.view.data, part.output[FINAL_STATE].view.data, part.initial_state.span);
        select_tokens(&part, &whole, cuts[i], 300 - cuts[i], cuts[i], 300 - cuts[i]);
        run_or_fail(context, &part, kernel);
        rows = tokens_of(whole.output[OUT].view, cuts[i], 300 - cuts[i]);
        same_numbers(&part.output[OUT].view, &rows, kernel, "the second part of a sequence");
        same_numbers(&part.output[FINAL_STATE].view, &whole.output[FINAL_STATE].view, kernel,
                     "the state after both parts");
        hadamard_free(&part);
    }
    hadamard_free(&whole);
}

static void test_split(void **unused) {
    (void)unused;
    each_kernel(check_split, true);
}

/* Bidirectional: states of two parts of the keys add up, and a query that starts from the sum and sees no keys reads
 * the same as from all keys. */
static void check_merge(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    static const hadamard_case c = {1, 2, 20, 230, 9, 3, {3, 5, 4}, LAYOUT_BHTD, STATEFUL};
    hadamard_data whole = hadamard_make(&c, HLA_F32, true, 83), part = hadamard_make(&c, HLA_F32, true, 83);
    hadamard_data other = hadamard_make(&c, HLA_F32, true, 83);
    memset(other.initial_state.view.data, 0, other.initial_state.span);
    run_or_fail(context, &whole, kernel);
    select_tokens(&part, &whole, 0, 20, 0, 90);
    select_tokens(&other, &whole, 0, 20, 90, 140);
    run_or_fail(context, &part, kernel);
    run_or_fail(context, &other, kernel);
    float *sum = part.output[FINAL_STATE].view.data, *more = other.output[FINAL_STATE].view.data;
    for (int64_t e = 0; e < hadamard_count(&part.output[FINAL_STATE]); e++)
        sum[e] += more[e];
    same_numbers(&part.output[FINAL_STATE].view, &whole.output[FINAL_STATE].view, kernel, "the sum of two states");
    memcpy(other.initial_state.view.data, sum, other.initial_state.span);
    select_tokens(&other, &whole, 0, 20, 0, 0);
    run_or_fail(context, &other, kernel);
    same_numbers(&other.output[OUT].view, &whole.output[OUT].view, kernel, "queries of a state");
    hadamard_free(&whole);
    hadamard_free(&part);
    hadamard_free(&other);
}

static void test_merge(void **unused) {
    (void)unused;
    each_kernel(check_merge, true);
}

/* final_state may be initial_state itself, and out may be left out. */
static void check_in_place(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    for (unsigned causal = 0; causal <= CAUSAL; causal += CAUSAL) {
        const hadamard_case c = {2, 2, 140, 280, 20, 2, {16, 17}, LAYOUT_BTHD, STATEFUL | causal};
        hadamard_data data = hadamard_make(&c, HLA_F32, true, 84);
        run_or_fail(context, &data, kernel);
        double *out = hadamard_copy(&data.output[OUT]), *state = hadamard_copy(&data.output[FINAL_STATE]);
        hla_hadamard_plan *plan = NULL;
        assert_int_equal(hla_hadamard_plan_create(context, &data.problem, &plan), HLA_OK);
        size_t size = hla_hadamard_plan_workspace(plan);
        void *workspace = aligned_alloc(64, size + 64);
        assert_non_null(workspace);
        const hla_tensor q[] = {data.q[0].view, data.q[1].view}, k[] = {data.k[0].view, data.k[1].view};
        float *place = data.initial_state.view.data;
        const hla_hadamard_inputs inputs = {
            .q_features = q, .k_features = k, .v = &data.v.view, .initial_state = place};
        poison(&data.output[FINAL_STATE]);
        hla_status status =
            hla_hadamard_forward(plan, NULL, data.output[FINAL_STATE].view.data, &inputs, workspace, size);
        if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
        double *alone = hadamard_copy(&data.output[FINAL_STATE]);
        poison(&data.output[OUT]);
        status = hla_hadamard_forward(plan, &data.output[OUT].view, place, &inputs, workspace, size);
        if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
        double *out_again = hadamard_copy(&data.output[OUT]), *in_place = hadamard_copy(&data.initial_state);
        size_t state_bytes = (size_t)hadamard_count(&data.initial_state) * sizeof *state;
        if (memcmp(state, alone, state_bytes) != 0) fail_msg("%s: without out the state has other bits", kernel);
        if (memcmp(state, in_place, state_bytes) != 0) fail_msg("%s: in place the state has other bits", kernel);
        if (memcmp(out, out_again, (size_t)hadamard_count(&data.output[OUT]) * sizeof *out) != 0)
            fail_msg("%s: out has other bits when the state is updated in place", kernel);
        double *copies[] = {out, state, alone, out_again, in_place};
        for (size_t i = 0; i < sizeof copies / sizeof copies[0]; i++)
            free(copies[i]);
        free(workspace);
        hla_hadamard_plan_free(plan);
        hadamard_free(&data);
    }
}

static void test_in_place(void **unused) {
    (void)unused;
    each_kernel(check_in_place, true);
}

/* ---- packed and grouped ---- */

static void check_packed_mode(hla_context *context, const char *kernel, unsigned modes) {
    hadamard_case c = {1, 4, 300, 290, 9, 2, {5, 6}, LAYOUT_BHTD, modes | PACKED};
    hadamard_data whole = hadamard_make(&c, HLA_F32, true, 85);
    c.modes = modes;
    run_or_fail(context, &whole, kernel);
    for (int64_t n = 0; n < whole.problem.sequences; n++) {
        hadamard_data one = hadamard_make(&c, HLA_F32, true, 85);
        int64_t query = whole.query_starts[n], queries = whole.query_starts[n + 1] - query;
        int64_t key = whole.key_starts[n], keys = whole.key_starts[n + 1] - key;
        /* a call has at least one query: any will do where only the state is compared */
        select_tokens(&one, &whole, queries > 0 ? query : 0, queries > 0 ? queries : 1, key, keys);
        hla_tensor state = {0};
        if (modes & STATEFUL) {
            size_t bytes = one.initial_state.span;
            memcpy(one.initial_state.view.data, (char *)whole.initial_state.view.data + (size_t)n * bytes, bytes);
            state = one.output[FINAL_STATE].view;
            state.data = (char *)whole.output[FINAL_STATE].view.data + (size_t)n * bytes;
        }
        run_or_fail(context, &one, kernel);
        hla_tensor rows = tokens_of(whole.output[OUT].view, query, queries);
        if (queries > 0) same_numbers(&rows, &one.output[OUT].view, kernel, "a packed sequence");
        if (modes & STATEFUL) same_numbers(&state, &one.output[FINAL_STATE].view, kernel, "a packed sequence's state");
        hadamard_free(&one);
    }
    hadamard_free(&whole);
}

static void check_packed(hla_context *context, const char *kernel, bool stateful) {
    check_packed_mode(context, kernel, 0);
    check_packed_mode(context, kernel, CAUSAL | GROUPED);
    if (stateful) check_packed_mode(context, kernel, STATEFUL);
    if (stateful) check_packed_mode(context, kernel, STATEFUL | CAUSAL);
}

static void test_packed(void **unused) {
    (void)unused;
    each_kernel(check_packed, false);
}

/* One key head for all is the same as each head having a copy of it, here by stride zero. */
static void check_grouped(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    for (unsigned causal = 0; causal <= CAUSAL; causal += CAUSAL) {
        const hadamard_case c = {2, 3, 140, 150, 9, 2, {5, 6}, LAYOUT_BHTD, GROUPED | causal};
        hadamard_data grouped = hadamard_make(&c, HLA_F32, true, 86);
        run_or_fail(context, &grouped, kernel);
        double *out = hadamard_copy(&grouped.output[OUT]);
        grouped.problem.kv_heads = 0;
        guarded *const arrays[] = {&grouped.k[0], &grouped.k[1], &grouped.v};
        for (int i = 0; i < 3; i++)
            arrays[i]->view.shape[2] = 3, arrays[i]->view.stride[2] = 0;
        run_or_fail(context, &grouped, kernel);
        double *repeated = hadamard_copy(&grouped.output[OUT]);
        for (int64_t e = 0; e < hadamard_count(&grouped.output[OUT]); e++) {
            double error = fabs(out[e] - repeated[e]); /* values lie in [-1,1] */
            if (!(error <= 1e-6)) fail_msg("%s: repeated heads differ by %.3g", kernel, error);
        }
        free(out);
        free(repeated);
        hadamard_free(&grouped);
    }
}

static void test_grouped(void **unused) {
    (void)unused;
    each_kernel(check_grouped, false);
}

/* ---- scaling ---- */

/* A factor of 4 moved from one factor's keys to the other's changes no bit, forward; gradients scale with it. */
static void check_scaling(hla_context *context, const char *kernel, bool stateful) {
    (void)stateful;
    static const hadamard_case c = {1, 2, 140, 150, 9, 2, {5, 6}, LAYOUT_BTHD, CAUSAL};
    hadamard_data data = hadamard_make_backward(&c, HLA_F32, true, 87);
    hadamard_data scaled = hadamard_make_backward(&c, HLA_F32, true, 87);
    scale_tokens(&scaled.k[0].view, 0, 4);
    scale_tokens(&scaled.k[1].view, 0, 0.25);
    run_or_fail(context, &data, kernel);
    run_or_fail(context, &scaled, kernel);
    if (!same_bits(&data.output[OUT].view, &scaled.output[OUT].view)) fail_msg("%s: out changes", kernel);
    backward_or_fail(context, &data, kernel);
    backward_or_fail(context, &scaled, kernel);
    scale_tokens(&scaled.output[DK].view, 0, 4);
    scale_tokens(&scaled.output[DK + 1].view, 0, 0.25);
    for (int i = DV; i < HADAMARD_OUTPUTS; i++) {
        const guarded *a = &data.output[i], *b = &scaled.output[i];
        if (a->pages && !same_bits(&a->view, &b->view)) fail_msg("%s: output %d changes", kernel, i);
    }
    hadamard_free(&data);
    hadamard_free(&scaled);
}

static void test_scaling(void **unused) {
    (void)unused;
    each_kernel(check_scaling, false);
}

/* ---- sizes ---- */

/* A million causal tokens of ones, in bfloat16: out_i is the mean of values 0 ... i, and, un-normalised with scale 1/T,
 * dv_j is R (T - j) / T. */
static void test_long_sums(void **unused) {
    (void)unused;
    enum { T = 1 << 20, R = 2, V = 2 };
    static const uint16_t one = 0x3f80; /* 1 in bfloat16 */
    uint16_t *values = malloc(2 * T * V * sizeof *values), *results = values + T * V;
    assert_non_null(values);
    for (int64_t i = 0; i < T; i++)
        values[2 * i] = one, values[2 * i + 1] = i % 2 ? one : 0x4000 /* 2 */;
    hla_tensor ones = {(void *)(uintptr_t)&one, HLA_BF16, {1, T, 1, R}, {0, 0, 0, 0}}, d_out = ones;
    hla_tensor v = hla_tensor_bthd(values, HLA_BF16, 1, T, 1, V), out = v;
    out.data = results;
    uint16_t *gradients = malloc(2 * T * R * sizeof *gradients);
    assert_non_null(gradients);
    hla_tensor dq = hla_tensor_bthd(gradients, HLA_BF16, 1, T, 1, R), dk = dq;
    dk.data = gradients + T * R;
    hla_context *context = make_context(2);
    for (int backward = 0; backward <= 1; backward++) {
        hla_hadamard_problem problem;
        hla_hadamard_problem_init(&problem);
        problem.queries = problem.keys = T, problem.value_dim = V, problem.rank[0] = R, problem.dtype = HLA_BF16;
        problem.causal = true, problem.form = HLA_FORM_STATE;
        problem.normalised = !backward, problem.scale = 1.0f / T;
        hla_hadamard_plan *plan = NULL;
        assert_int_equal(hla_hadamard_plan_create(context, &problem, &plan), HLA_OK);
        size_t size = backward ? hla_hadamard_plan_backward_workspace(plan) : hla_hadamard_plan_workspace(plan);
        void *workspace = aligned_alloc(64, size);
        assert_non_null(workspace);
        const hla_hadamard_inputs inputs = {.q_features = &ones, .k_features = &ones, .v = &v};
        const hla_hadamard_gradients wanted = {.dq_features = &dq, .dk_features = &dk, .dv = &out};
        hla_status status = backward ? hla_hadamard_backward(plan, &wanted, &d_out, NULL, &inputs, workspace, size)
                                     : hla_hadamard_forward(plan, &out, NULL, &inputs, workspace, size);
        if (status != HLA_OK) fail_msg("%s", hla_context_error(context));
        for (int64_t t = 0; t < T; t += 4093) {
            double right = backward ? R * (double)(T - t) / T : (t % 2 ? 1.5 : 1.5 + 0.5 / (double)(t + 1));
            double error = fabs(get(&out, 0, t, 0, 1) / right - 1);
            if (!(error <= 1e-2)) fail_msg("backward %d, token %d: off by %.3g", backward, (int)t, error);
        }
        free(workspace);
        hla_hadamard_plan_free(plan);
    }
    free(values);
    free(gradients);
    hla_context_free(context);
}

/* Elements 2^31 and more apart: tokens of all arrays of a backward pass interleaved in one sparse mapping. */
static void check_far_apart(hla_context *context, const char *kernel, float *memory) {
    enum { T = 4, X = 16, ARRAYS = 7 }; /* q, k, v, d_out, dq, dk, dv */
    float near_memory[ARRAYS][T * X];
    hla_tensor near[ARRAYS], far[ARRAYS];
    random_state state = {88};
    for (int i = 0; i < ARRAYS; i++) {
        near[i] = hla_tensor_bthd(near_memory[i], HLA_F32, 1, T, 1, X);
        far[i] = hla_tensor_bthd(memory + i * X, HLA_F32, 1, T, 1, X);
        far[i].stride[1] = INT64_C(1) << 30;
        for (int64_t e = 0; e < T * X; e++) {
            double value = i < 4 ? uniform(&state) : (double)NAN;
            set(&near[i], 0, e / X, 0, e % X, value);
            set(&far[i], 0, e / X, 0, e % X, value);
        }
    }
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.queries = problem.keys = T, problem.value_dim = X, problem.rank[0] = X, problem.kernel = kernel;
    problem.causal = true;
    hla_hadamard_plan *plan = NULL;
    assert_int_equal(hla_hadamard_plan_create(context, &problem, &plan), HLA_OK);
    size_t size = hla_hadamard_plan_backward_workspace(plan);
    void *workspace = aligned_alloc(64, size);
    assert_non_null(workspace);
    const hla_tensor *const views[] = {near, far};
    for (int i = 0; i < 2; i++) {
        const hla_tensor *a = views[i];
        const hla_hadamard_inputs inputs = {.q_features = &a[0], .k_features = &a[1], .v = &a[2]};
        const hla_hadamard_gradients gradients = {.dq_features = &a[4], .dk_features = &a[5], .dv = &a[6]};
        hla_status status = hla_hadamard_backward(plan, &gradients, &a[3], NULL, &inputs, workspace, size);
        if (status != HLA_OK) fail_msg("%s: %s", kernel, hla_context_error(context));
    }
    for (int i = 4; i < ARRAYS; i++) {
        if (!same_bits(&near[i], &far[i])) fail_msg("%s: gradient %d differs where strides are large", kernel, i - 4);
    }
    free(workspace);
    hla_hadamard_plan_free(plan);
}

static void test_far_apart(void **unused) {
    (void)unused;
    size_t bytes = ((size_t)3 << 30) * sizeof(float) + 4096;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    float *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) skip(); /* no 12 GB of addresses */
    hla_context *context = make_context(2);
    hla_kernel_info info;
    for (int i = 0; hla_hadamard_kernel(NULL, i, &info); i++) {
        if (hadamard_takes_all(&info)) check_far_apart(context, info.name, memory);
    }
    hla_context_free(context);
    munmap(memory, bytes);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_later_tokens), cmocka_unit_test(test_prefixes), cmocka_unit_test(test_split),
        cmocka_unit_test(test_merge),        cmocka_unit_test(test_in_place), cmocka_unit_test(test_packed),
        cmocka_unit_test(test_grouped),      cmocka_unit_test(test_scaling),  cmocka_unit_test(test_long_sums),
        cmocka_unit_test(test_far_apart),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
