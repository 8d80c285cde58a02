/* The oracle: the definition, naively, in double, one key head after the other.
 *
 *     A_ij = prod_p (a_i^p . c_j^p)      n_i = sum_j A_ij v_j      d_i = sum_j A_ij
 *
 * An initial state adds phi_i . state to both. The backward pass is in ref_backward.c.
 */
#include "attention/ops/hadamard/ref.h"

static void attend_row(const hla_hadamard_call *call, const scratch *own, int64_t n, int64_t h, int64_t i) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    double *sums = own->row;
    sum_row(call, own, sums, n, h, i);
    double denominator = sums[problem->value_dim] + (double)problem->epsilon;
    for (int64_t x = 0; x < problem->value_dim; x++) {
        double value = (double)problem->scale * sums[x];
        if (problem->normalised) value = denominator != 0 ? sums[x] / denominator : 0;
        sums[x] = value;
    }
    hla_store_row(call->out, sequence.b, sequence.query_first + i, h, sums);
}

/* Feature f of the final state of sequence n, key head kv. The caller's initial state may lie in the same place. */
static void sum_feature(const hla_hadamard_call *call, const scratch *own, int64_t n, int64_t kv, int64_t f) {
    const hla_hadamard_problem *problem = call->problem;
    hla_sequence sequence = hla_hadamard_sequence(call, n);
    int64_t width = problem->value_dim, offset = state_offset(problem, n, kv);
    double *sums = own->row;
    for (int64_t x = 0; x <= width; x++)
        sums[x] = call->in.initial_state ? (double)call->in.initial_state[offset + f * (width + 1) + x] : 0;
    for (int64_t j = 0; j < sequence.keys; j++) {
        int64_t key = sequence.key_first + j, rest = f;
        double feature = 1;
        for (int p = problem->factors - 1; p >= 0; p--) {
            feature *= element(&call->in.k_features[p], sequence.b, key, kv, rest % problem->rank[p]);
            rest /= problem->rank[p];
        }
        for (int64_t x = 0; x < width; x++)
            sums[x] += feature * element(call->in.v, sequence.b, key, kv, x);
        sums[width] += feature;
    }
    for (int64_t x = 0; x <= width; x++)
        call->final_state[offset + f * (width + 1) + x] = (float)sums[x];
}

static void measure(hla_arena *arena, const hla_hadamard_problem *problem, int threads) {
    hla_arena_take(arena, scratch_bytes(arena, problem, problem->stateful), (size_t)threads);
}

static hla_status run(const hla_hadamard_call *call) {
    const hla_hadamard_problem *problem = call->problem;
    int64_t sequences = hla_hadamard_sequence_count(problem), rank = hla_hadamard_state_rank(problem);
    int64_t heads = sequences * problem->heads, states = sequences * problem->kv_heads;
#pragma omp parallel num_threads(hla_team_size(call->threads, heads, hla_larger(problem->queries, rank)))
    {
        scratch own = scratch_of_thread(problem, problem->stateful, call->workspace);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < (call->out ? heads : 0); unit++) {
            int64_t n = unit / problem->heads, queries = hla_hadamard_sequence(call, n).queries;
            for (int64_t i = 0; i < queries; i++)
                attend_row(call, &own, n, unit % problem->heads, i);
        }
        /* after all rows: final_state may be initial_state */
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < (call->final_state ? states * rank : 0); unit++) {
            int64_t state = unit / rank;
            sum_feature(call, &own, state / problem->kv_heads, state % problem->kv_heads, unit % rank);
        }
    }
    return HLA_OK;
}

const hla_hadamard_entry hla_hadamard_reference = {
    .kernel = {.name = "reference", .isa = HLA_ISA_BASELINE},
    .form = HLA_FORM_QUADRATIC,
    .measure = measure,
    .run = run,
    .backward = &hla_hadamard_backward_reference,
};
