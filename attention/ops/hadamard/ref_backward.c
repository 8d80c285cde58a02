/* The oracle's gradients, naively, in double. With g_i the gradient of out_i, sums over the pairs that see each other:
 *
 *     dn_i = w_i g_i       dd_i = -w_i (g_i . out_i)       w_i = 1 / (d_i + epsilon)      normalised
 *     dn_i = scale g_i     dd_i = 0                                                       un-normalised
 *     dA_ij = dn_i . v_j + dd_i             dv_j = sum_i A_ij dn_i
 *     da_i^p = sum_j dA_ij (prod_{p' != p} a_i^p' . c_j^p') c_j^p          dc_j^p likewise with a_i^p
 *
 * The initial state acts like a key whose phi (x) (v, 1) it is, the gradient of the final state like a query.
 */
#include "attention/ops/hadamard/ref.h"

typedef struct plan {
    double *row_gradients; /* [N][H][Tq][V+1]: dn_i and dd_i */
    char *scratch;
} plan;

static plan carve_plan(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    int64_t rows = hla_hadamard_sequence_count(problem) * problem->heads;
    if (__builtin_mul_overflow(rows, problem->queries, &rows)) arena->overflow = true;
    if (__builtin_mul_overflow(rows, problem->value_dim + 1, &rows)) arena->overflow = true;
    plan p;
    p.row_gradients = hla_arena_take(arena, rows, sizeof(double));
    p.scratch = hla_arena_take(arena, scratch_bytes(arena, problem, true), (size_t)threads);
    return p;
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    carve_plan(arena, problem, threads);
}

static double *row_gradient(const hla_hadamard_call *call, const plan *p, int64_t n, int64_t h, int64_t i) {
    const hla_hadamard_problem *problem = call->problem;
    return p->row_gradients + ((n * problem->heads + h) * problem->queries + i) * (problem->value_dim + 1);
}

static void make_row_gradient(const hla_hadamard_call *call, const plan *p, const scratch *own, int64_t n, int64_t h,
                              int64_t i) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t width = problem->value_dim;
    double *sums = own->row, *to = row_gradient(call, p, n, h, i);
    sum_row(call, own, sums, n, h, i);
    double denominator = sums[width] + (double)problem->epsilon, product = 0;
    double factor = denominator != 0 ? 1 / denominator : 0;
    if (!problem->normalised) factor = (double)problem->scale;
    for (int64_t x = 0; x < width; x++) {
        double g = element(call->out, sequence.b, sequence.query_first + i, h, x);
        product += g * sums[x];
        to[x] = factor * g;
    }
    to[width] = problem->normalised ? -factor * factor * product : 0;
}

static double value(const hla_hadamard_call *call, int64_t b, int64_t t, int64_t kv, int64_t x) {
    return x < call->problem->value_dim ? element(call->in.v, b, t, kv, x) : 1;
}

/* dA of a query's row gradient and a key */
static double score_gradient(const hla_hadamard_call *call, const double *row, int64_t b, int64_t key, int64_t kv) {
    double sum = 0;
    for (int64_t x = 0; x <= call->problem->value_dim; x++)
        sum += row[x] * value(call, b, key, kv, x);
    return sum;
}

static void clear_factors(const scratch *own, const hla_hadamard_problem *problem) {
    for (int p = 0; p < problem->factors; p++) {
        for (int64_t r = 0; r < problem->rank[p]; r++)
            own->da[p][r] = 0;
    }
}

static void query_gradient(const hla_hadamard_call *call, const plan *p, const scratch *own, int64_t n, int64_t h,
                           int64_t i) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t kv = h / (problem->heads / problem->kv_heads), token = sequence.query_first + i;
    const double *row = row_gradient(call, p, n, h, i);
    clear_factors(own, problem);
    for (int64_t j = 0; j < hla_hadamard_visible(problem, &sequence, i); j++) {
        int64_t key = sequence.key_first + j;
        double gradient = score_gradient(call, row, sequence.b, key, kv);
        for (int f = 0; f < problem->factors; f++) {
            double weight = gradient * score(call, f, sequence.b, token, h, key, kv);
            for (int64_t r = 0; r < problem->rank[f]; r++)
                own->da[f][r] += weight * element(&call->in.k_features[f], sequence.b, key, kv, r);
        }
    }
    if (call->in.initial_state) {
        const float *state = call->in.initial_state + state_offset(problem, n, kv);
        for (int64_t f = 0; f < hla_hadamard_state_rank(problem); f++) {
            own->features[f] = 0;
            for (int64_t x = 0; x <= problem->value_dim; x++)
                own->features[f] += row[x] * (double)state[f * (problem->value_dim + 1) + x];
        }
        contract(own->da, own->features, call->in.q_features, problem, sequence.b, token, h);
    }
    for (int f = 0; f < problem->factors; f++)
        hla_store_row(&call->gradients.dq_features[f], sequence.b, token, h, own->da[f]);
}

/* dv and dc of one key of the sequence. */
static void key_gradient(const hla_hadamard_call *call, const plan *p, const scratch *own, int64_t n, int64_t kv,
                         int64_t j) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t group = problem->heads / problem->kv_heads, key = sequence.key_first + j, width = problem->value_dim;
    double *dv = own->row;
    clear_factors(own, problem);
    for (int64_t x = 0; x <= width; x++)
        dv[x] = 0;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        for (int64_t i = 0; i < sequence.queries; i++) {
            if (j >= hla_hadamard_visible(problem, &sequence, i)) continue;
            const double *row = row_gradient(call, p, n, h, i);
            int64_t token = sequence.query_first + i;
            double weight = score(call, -1, sequence.b, token, h, key, kv);
            for (int64_t x = 0; x < width; x++)
                dv[x] += weight * row[x];
            double gradient = score_gradient(call, row, sequence.b, key, kv);
            for (int f = 0; f < problem->factors; f++) {
                double product = gradient * score(call, f, sequence.b, token, h, key, kv);
                for (int64_t r = 0; r < problem->rank[f]; r++)
                    own->da[f][r] += product * element(&call->in.q_features[f], sequence.b, token, h, r);
            }
        }
    }
    if (call->d_final_state) {
        const float *state = call->d_final_state + state_offset(problem, n, kv);
        expand(own->features, call->in.k_features, problem->factors, sequence.b, key, kv);
        for (int64_t f = 0; f < hla_hadamard_state_rank(problem); f++) {
            own->feature_sums[f] = 0;
            for (int64_t x = 0; x <= width; x++) {
                double s = (double)state[f * (width + 1) + x];
                dv[x] += own->features[f] * s;
                own->feature_sums[f] += s * value(call, sequence.b, key, kv, x);
            }
        }
        contract(own->da, own->feature_sums, call->in.k_features, problem, sequence.b, key, kv);
    }
    for (int f = 0; f < problem->factors; f++)
        hla_store_row(&call->gradients.dk_features[f], sequence.b, key, kv, own->da[f]);
    hla_store_row(call->gradients.dv, sequence.b, key, kv, dv);
}

/* Keys beyond a length have no gradient. */
static void clear_key(const hla_hadamard_call *call, const scratch *own, int64_t b, int64_t kv, int64_t j) {
    clear_factors(own, call->problem);
    for (int64_t x = 0; x < call->problem->value_dim; x++)
        own->row[x] = 0;
    for (int f = 0; f < call->problem->factors; f++)
        hla_store_row(&call->gradients.dk_features[f], b, j, kv, own->da[f]);
    hla_store_row(call->gradients.dv, b, j, kv, own->row);
}

/* d_initial_state: the final state's gradient passes through, and every query adds phi_i (x) (dn_i, dd_i). */
static void state_gradient(const hla_hadamard_call *call, const plan *p, int64_t n, int64_t kv, int64_t f,
                           const scratch *own) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t group = problem->heads / problem->kv_heads, width = problem->value_dim;
    int64_t offset = state_offset(problem, n, kv) + f * (width + 1);
    double *sums = own->row;
    for (int64_t x = 0; x <= width; x++)
        sums[x] = call->d_final_state ? (double)call->d_final_state[offset + x] : 0;
    for (int64_t h = kv * group; h < (kv + 1) * group; h++) {
        for (int64_t i = 0; i < sequence.queries; i++) {
            const double *row = row_gradient(call, p, n, h, i);
            double feature = 1;
            int64_t rest = f;
            for (int q = problem->factors - 1; q >= 0; q--) {
                feature *=
                    element(&call->in.q_features[q], sequence.b, sequence.query_first + i, h, rest % problem->rank[q]);
                rest /= problem->rank[q];
            }
            for (int64_t x = 0; x <= width; x++)
                sums[x] += feature * row[x];
        }
    }
    for (int64_t x = 0; x <= width; x++)
        call->gradients.d_initial_state[offset + x] = (float)sums[x];
}

static hla_status run(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    int64_t sequences = hla_hadamard_sequence_count(problem), rank = hla_hadamard_state_rank(problem);
    int64_t heads = sequences * problem->heads, states = sequences * problem->kv_heads;
    hla_arena arena = {.base = call->workspace};
    plan p = carve_plan(&arena, problem, call->threads);
#pragma omp parallel num_threads(hla_team_size(call->threads, heads, hla_larger(problem->queries, rank)))
    {
        scratch own = scratch_of_thread(problem, true, p.scratch);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads; unit++) {
            int64_t n = unit / problem->heads, h = unit % problem->heads;
            for (int64_t i = 0; i < hla_hadamard_sequence(call, n).queries; i++) {
                make_row_gradient(call, &p, &own, n, h, i);
                query_gradient(call, &p, &own, n, h, i);
            }
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < states; unit++) {
            int64_t n = unit / problem->kv_heads, kv = unit % problem->kv_heads;
            int64_t keys = hla_hadamard_sequence(call, n).keys;
            for (int64_t j = 0; j < keys; j++)
                key_gradient(call, &p, &own, n, kv, j);
            for (int64_t j = keys; problem->sequences == 0 && j < problem->keys; j++)
                clear_key(call, &own, n, kv, j);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < (call->gradients.d_initial_state ? states * rank : 0); unit++) {
            int64_t state = unit / rank;
            state_gradient(call, &p, state / problem->kv_heads, state % problem->kv_heads, unit % rank, &own);
        }
    }
    return HLA_OK;
}

const hla_hadamard_backward_entry hla_hadamard_backward_reference = {.measure = measure, .run = run};
