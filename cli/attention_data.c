/* cli/attention_data.c - inputs of `hla bench attention`, and the gate: a few rows computed again by the reference. */
#include "cli/attention_bench.h"

#include <math.h>
#include <string.h>

enum { MOST_ROWS = 64, FEWEST_ROWS = 8, PAIRS = 1 << 18 }; /* of the gate: rows, and rows times keys */

const char *const bench_dtype_names[] = {"f32", "bf16", "f16", NULL};

/* Gradients of queries and keys are sums over g . (v_j - out_i), where most of v_j cancels, and with it the digits:
 * float32 gradients get five times the bound of docs/OPERATOR.md, section 7. */
double gate_limit(const bench_case *problem) {
    static const double limits[] = {[HLA_F32] = 1e-5, [HLA_BF16] = 1e-2, [HLA_F16] = 2e-3};
    return limits[problem->dtype] * (problem->backward && problem->dtype == HLA_F32 ? 5 : 1);
}

/* Round to nearest even; the bench's numbers are normal or zero and below 65504. */
static uint16_t to_half(float value, hla_dtype dtype) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (dtype == HLA_BF16) return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    uint32_t sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size < 0x38800000) return (uint16_t)sign; /* below 2^-14 */
    size -= 0x38000000;                           /* the exponent's bias: 127 - 15 */
    return (uint16_t)(sign | (size + 0xfff + (size >> 13 & 1)) >> 13);
}

static float from_half(uint16_t half, hla_dtype dtype) {
    if (dtype == HLA_F16) {
        int exponent = half >> 10 & 31, fraction = half & 1023;
        if (exponent == 31) return fraction != 0 ? NAN : half & 0x8000 ? -INFINITY : INFINITY;
        double size = exponent > 0 ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        return (float)(half & 0x8000 ? -size : size);
    }
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int64_t place(const hla_tensor *view, int64_t b, int64_t t, int64_t h, int64_t x) {
    return b * view->stride[0] + t * view->stride[1] + h * view->stride[2] + x * view->stride[3];
}

static float read_at(const hla_tensor *view, int64_t at) {
    return view->dtype == HLA_F32 ? ((const float *)view->data)[at]
                                  : from_half(((const uint16_t *)view->data)[at], view->dtype);
}

static void write_at(const hla_tensor *view, int64_t at, float value) {
    if (view->dtype == HLA_F32)
        ((float *)view->data)[at] = value;
    else
        ((uint16_t *)view->data)[at] = to_half(value, view->dtype);
}

hla_tensor narrow(const hla_tensor *view, int64_t first, int64_t count, int64_t step) {
    hla_tensor part = *view;
    part.data = (char *)view->data + first * view->stride[1] * (int64_t)hla_dtype_size(view->dtype);
    part.shape[1] = count;
    part.stride[1] *= step;
    return part;
}

static float next(uint32_t *seed) {
    *seed = *seed * 1664525u + 1013904223u;
    return (float)(*seed >> 8) * 0x1p-24f;
}

/* low ... high; what falls below 0 becomes `floor`, as after relu. Pieces have a seed each, whoever fills them. */
static void fill(const operand *made, uint32_t seed, float low, float high, bool relu) {
    enum { PIECE = 1 << 16 };
    int64_t count = made->array.count;
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < count; first += PIECE) {
        uint32_t state = seed + (uint32_t)(first / PIECE) * 2654435761u;
        for (int64_t i = first; i < count && i < first + PIECE; i++) {
            float value = low + (high - low) * next(&state);
            write_at(&made->view, i, relu && value < 1e-3f ? 1e-3f : value);
        }
    }
}

/* A feature of factor x mod P, or a number of softmax's key. */
static float key_at(const bench_data *data, bench_function function, int parts, int64_t b, int64_t t, int64_t h,
                    int64_t x) {
    const hla_tensor *keys = &data->inputs[function][1][x % parts].view;
    return read_at(keys, place(keys, b, t, h, x / parts % keys->shape[3]));
}

/* Values go with the keys of each function, as a model's do. So a wrong weight shows in the result, and the gradients
 * of queries, sums of products with v_j - out_i, have a sum that does not vanish beside its terms as the tokens grow;
 * of unrelated values only the rounding would remain. */
static void fill_values(const bench_data *data, int factors) {
    const hla_tensor *v = &data->v.view;
#pragma omp parallel for collapse(2) schedule(static)
    for (int64_t b = 0; b < v->shape[0]; b++)
        for (int64_t t = 0; t < v->shape[1]; t++) {
            uint32_t seed = 7 + (uint32_t)(b * v->shape[1] + t) * 2654435761u;
            for (int64_t h = 0; h < v->shape[2]; h++)
                for (int64_t x = 0; x < v->shape[3]; x++) {
                    float value = 0.5f * key_at(data, FUNCTION_HADAMARD, factors, b, t, h, x) +
                                  0.5f * key_at(data, FUNCTION_LINEAR, 1, b, t, h, x) +
                                  0.25f * key_at(data, FUNCTION_SOFTMAX, 1, b, t, h, x);
                    write_at(v, place(v, b, t, h, x), value + 0.25f * next(&seed));
                }
        }
}

static hlv_status create(cli_session *session, const bench_case *largest, int64_t width, operand *made) {
    const int64_t shape[4] = {largest->batch, largest->tokens, largest->heads, width};
    hlv_status status = operand_create(session->ctx, largest->dtype, shape, made);
    if (status == HLV_OK) memset(made->array.data, 0, (size_t)made->array.count * sizeof(float));
    return status;
}

static hlv_status create_function(cli_session *session, const bench_case *largest, bench_function function,
                                  bench_data *data) {
    int parts;
    int64_t width[HLA_MAX_FACTORS];
    hlv_status status = HLV_OK;
    bool features = function != FUNCTION_SOFTMAX;
    function_ranks(largest, function, &parts, width);
    for (int side = 0; side < 2; side++)
        for (int p = 0; p < parts && status == HLV_OK; p++) {
            operand *input = &data->inputs[function][side][p];
            status = create(session, largest, width[p], input);
            if (status == HLV_OK)
                fill(input, (uint32_t)(100 * (int)function + 10 * side + p), features ? -1 : -1.5f, features ? 1 : 1.5f,
                     features);
            if (status == HLV_OK && largest->backward)
                status = create(session, largest, width[p], &data->gradients[function][side][p]);
        }
    return status;
}

hlv_status data_create(cli_session *session, const bench_case *largest, bench_data *data) {
    hlv_status status = HLV_OK;
    *data = (bench_data){0};
    for (int function = 0; function < FUNCTION_COUNT && status == HLV_OK; function++)
        status = create_function(session, largest, (bench_function)function, data);
    operand *const wide[] = {&data->v, &data->out, &data->dv, &data->d_out, &data->d_out_of_rows};
    for (size_t i = 0; i < (largest->backward ? 5 : 2) && status == HLV_OK; i++)
        status = create(session, largest, largest->value_dim, wide[i]);
    if (status == HLV_OK) fill_values(data, largest->factors);
    if (status == HLV_OK && largest->backward) fill(&data->d_out, 9, -1, 1, false);
    return status;
}

void data_free(cli_session *session, bench_data *data) {
    for (int function = 0; function < FUNCTION_COUNT; function++)
        for (int side = 0; side < 2; side++)
            for (int p = 0; p < HLA_MAX_FACTORS; p++) {
                operand_free(session->ctx, &data->inputs[function][side][p]);
                operand_free(session->ctx, &data->gradients[function][side][p]);
            }
    operand *const wide[] = {&data->v, &data->out, &data->dv, &data->d_out, &data->d_out_of_rows};
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++)
        operand_free(session->ctx, wide[i]);
}

bench_views data_views(const bench_data *data, const bench_case *problem, bench_function function) {
    bench_views views = {0};
    int64_t width[HLA_MAX_FACTORS], T = problem->tokens;
    function_ranks(problem, function, &views.parts, width);
    for (int p = 0; p < views.parts; p++) {
        views.q[p] = narrow(&data->inputs[function][0][p].view, 0, T, 1);
        views.k[p] = narrow(&data->inputs[function][1][p].view, 0, T, 1);
        if (!problem->backward) continue;
        views.dq[p] = narrow(&data->gradients[function][0][p].view, 0, T, 1);
        views.dk[p] = narrow(&data->gradients[function][1][p].view, 0, T, 1);
    }
    views.v = narrow(&data->v.view, 0, T, 1);
    views.out = narrow(&data->out.view, 0, T, 1);
    if (!problem->backward) return views;
    views.dv = narrow(&data->dv.view, 0, T, 1);
    views.d_out = narrow(&data->d_out.view, 0, T, 1);
    return views;
}

int list_outputs(const bench_views *views, bool backward, const hla_tensor *list[MAX_OUTPUTS], int *of_queries) {
    int count = 0;
    *of_queries = backward ? views->parts : 1;
    if (!backward) list[count++] = &views->out;
    for (int p = 0; backward && p < views->parts; p++)
        list[count++] = &views->dq[p];
    for (int p = 0; backward && p < views->parts; p++)
        list[count++] = &views->dk[p];
    if (backward) list[count++] = &views->dv;
    return count;
}

/* What the reference writes for `rows` queries and the first `keys` keys: the bench's own outputs, which are
 * overwritten later. */
static bench_views reference_views(const bench_views *all, int64_t first, int64_t rows, int64_t step, int64_t keys,
                                   bool backward) {
    bench_views part = *all;
    for (int p = 0; p < all->parts; p++) {
        part.q[p] = narrow(&all->q[p], first, rows, step);
        part.k[p] = narrow(&all->k[p], 0, keys, 1);
        if (backward) part.dq[p] = narrow(&all->dq[p], 0, rows, 1);
        if (backward) part.dk[p] = narrow(&all->dk[p], 0, keys, 1);
    }
    part.v = narrow(&all->v, 0, keys, 1);
    part.out = narrow(&all->out, 0, rows, 1);
    if (backward) part.dv = narrow(&all->dv, 0, keys, 1);
    if (backward) part.d_out = narrow(&all->d_out, first, rows, step);
    return part;
}

static void add_view(const hla_tensor *to, const hla_tensor *from) {
    for (int64_t b = 0; b < from->shape[0]; b++)
        for (int64_t t = 0; t < from->shape[1]; t++)
            for (int64_t h = 0; h < from->shape[2]; h++)
                for (int64_t x = 0; x < from->shape[3]; x++) {
                    float *sum = (float *)to->data + place(to, b, t, h, x);
                    *sum += read_at(from, place(from, b, t, h, x));
                }
}

/* Queries first, first + step ...: the reference's results are added to what is expected from row `row` on. */
static hlv_status add_reference(cli_session *session, hla_context *hla, const bench_method *method,
                                const bench_case *problem, const bench_views *part, const bench_gate *gate,
                                int64_t row) {
    bench_call call;
    const hla_tensor *outputs[MAX_OUTPUTS];
    int of_queries;
    bench_case all_keys = *problem;
    all_keys.causal = false;
    hlv_status status = call_open(session, hla, method, &all_keys, part, "reference", &call);
    if (status != HLV_OK) return status;
    status = call_run(session, hla, &call);
    int count = list_outputs(part, problem->backward, outputs, &of_queries);
    for (int i = 0; i < count && status == HLV_OK; i++) {
        hla_tensor to = narrow(&gate->expected[i].view, i < of_queries ? row : 0, outputs[i]->shape[1], 1);
        add_view(&to, outputs[i]);
    }
    call_close(session, &call);
    return status;
}

static void copy_gate_rows(const bench_gate *gate, const bench_data *data) {
    const hla_tensor *from = &data->d_out.view, *to = &data->d_out_of_rows.view;
    memset(to->data, 0, (size_t)data->d_out_of_rows.array.count * sizeof(float));
    for (int64_t b = 0; b < to->shape[0]; b++)
        for (int64_t i = 1; i <= gate->rows; i++)
            for (int64_t h = 0; h < to->shape[2]; h++)
                for (int64_t x = 0; x < to->shape[3]; x++) {
                    int64_t at = place(to, b, i * gate->step - 1, h, x);
                    write_at(to, at, read_at(from, at));
                }
}

/* Causal: a query and the keys up to it are a problem of their own, without a mask. */
hlv_status gate_open(cli_session *session, hla_context *hla, const bench_method *method, const bench_case *problem,
                     bench_data *data, bench_gate *gate) {
    const hla_tensor *outputs[MAX_OUTPUTS];
    int of_queries;
    int64_t T = problem->tokens, rows = PAIRS / T;
    rows = rows < FEWEST_ROWS ? FEWEST_ROWS : rows > MOST_ROWS ? MOST_ROWS : rows;
    rows = rows < T ? rows : T;
    *gate = (bench_gate){.rows = rows, .step = T / rows};
    bench_views all = data_views(data, problem, method->function);
    gate->outputs = list_outputs(&all, problem->backward, outputs, &of_queries);
    hlv_status status = HLV_OK;
    for (int i = 0; i < gate->outputs && status == HLV_OK; i++) {
        const int64_t shape[4] = {problem->batch, i < of_queries ? rows : T, problem->heads, outputs[i]->shape[3]};
        status = operand_create(session->ctx, HLA_F32, shape, &gate->expected[i]);
        if (status == HLV_OK)
            memset(gate->expected[i].array.data, 0, (size_t)gate->expected[i].array.count * sizeof(float));
    }
    for (int64_t row = 0; row < (problem->causal ? rows : 1) && status == HLV_OK; row++) {
        int64_t first = (row + 1) * gate->step - 1;
        bench_views part = reference_views(&all, first, problem->causal ? 1 : rows, gate->step,
                                           problem->causal ? first + 1 : T, problem->backward);
        status = add_reference(session, hla, method, problem, &part, gate, row);
    }
    if (status == HLV_OK && problem->backward) copy_gate_rows(gate, data);
    return status;
}

void gate_close(cli_session *session, bench_gate *gate) {
    for (int i = 0; i < MAX_OUTPUTS; i++)
        operand_free(session->ctx, &gate->expected[i]);
}

static double view_error(const hla_tensor *got, const hla_tensor *wanted) {
    double difference = 0, norm = 0;
#pragma omp parallel for collapse(2) schedule(static) reduction(+ : difference, norm)
    for (int64_t b = 0; b < wanted->shape[0]; b++)
        for (int64_t t = 0; t < wanted->shape[1]; t++)
            for (int64_t h = 0; h < wanted->shape[2]; h++)
                for (int64_t x = 0; x < wanted->shape[3]; x++) {
                    double want = (double)read_at(wanted, place(wanted, b, t, h, x));
                    double off = (double)read_at(got, place(got, b, t, h, x)) - want;
                    difference += off * off;
                    norm += want * want;
                }
    return sqrt(difference / norm);
}

/* All bits set are a NaN of each type. Tokens of a view lie behind each other within a batch entry. */
static void poison(const hla_tensor *view) {
    for (int64_t b = 0; b < view->shape[0]; b++)
        memset((char *)view->data + b * view->stride[0] * (int64_t)hla_dtype_size(view->dtype), 0xff,
               (size_t)(view->shape[1] * view->stride[1]) * hla_dtype_size(view->dtype));
}

double gate_error(const bench_gate *gate, const bench_views *views, bool backward) {
    const hla_tensor *outputs[MAX_OUTPUTS];
    int of_queries, count = list_outputs(views, backward, outputs, &of_queries);
    double error = 0;
    for (int i = 0; i < count; i++) {
        hla_tensor got = *outputs[i];
        if (i < of_queries) got = narrow(outputs[i], gate->step - 1, gate->rows, gate->step);
        double found = view_error(&got, &gate->expected[i].view);
        if (!isnan(error) && !(found <= error)) error = found; /* a NaN stays */
    }
    return error;
}

hlv_status gate_check(cli_session *session, hla_context *hla, bench_call *call, const bench_gate *gate,
                      const bench_data *data, double *error) {
    const hla_tensor *outputs[MAX_OUTPUTS];
    int of_queries, count = list_outputs(&call->views, call->backward, outputs, &of_queries);
    hla_tensor d_out = call->views.d_out;
    for (int i = 0; i < count; i++)
        poison(outputs[i]);
    if (call->backward) call->views.d_out = narrow(&data->d_out_of_rows.view, 0, call->views.q[0].shape[1], 1);
    hlv_status status = call_run(session, hla, call);
    call->views.d_out = d_out;
    if (status == HLV_OK) *error = gate_error(gate, &call->views, call->backward);
    return status;
}
