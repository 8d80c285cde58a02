/* Plans of the Hadamard operator: checks the problem, chooses form and kernel by cost, explains itself. */
#include "attention/ops/hadamard/plan.h"
#include "attention/ops/hadamard/fold.h"
#include "attention/tune/tune.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

void hla_hadamard_problem_init(hla_hadamard_problem *problem) {
    if (!problem) return;
    *problem = (hla_hadamard_problem){
        .struct_size = sizeof *problem,
        .batch = 1,
        .heads = 1,
        .factors = 1,
        .dtype = HLA_F32,
        .normalised = true,
        .epsilon = 1e-6f,
        .scale = 1,
        .form = HLA_FORM_AUTO,
    };
}

/* ---- checks of the problem ---- */

static hla_status check_sizes(hla_context *context, const hla_hadamard_problem *problem) {
    const hla_named_size sizes[] = {
        {"batch", problem->batch, 1},         {"heads", problem->heads, 1},         {"queries", problem->queries, 1},
        {"keys", problem->keys, 0},           {"value_dim", problem->value_dim, 1}, {"kv_heads", problem->kv_heads, 0},
        {"sequences", problem->sequences, 0},
    };
    hla_status status = hla_check_sizes(context, sizes, sizeof sizes / sizeof sizes[0]);
    if (status != HLA_OK) return status;
    if (problem->kv_heads > 0 && problem->heads % problem->kv_heads != 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.kv_heads is %" PRId64 ", wanted a divisor of problem.heads, %" PRId64,
                        problem->kv_heads, problem->heads);
    }
    if (problem->sequences > 0 && problem->batch != 1) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.batch is %" PRId64 ", wanted 1 with packed sequences (problem.sequences)",
                        problem->batch);
    }
    return HLA_OK;
}

static hla_status check_ranks(hla_context *context, const hla_hadamard_problem *problem) {
    if (problem->factors < 1 || problem->factors > HLA_MAX_FACTORS) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.factors is %d, wanted 1 to %d", problem->factors,
                        HLA_MAX_FACTORS);
    }
    for (int p = 0; p < problem->factors; p++) {
        if (problem->rank[p] < 1 || problem->rank[p] > HLA_MAX_RANK) {
            return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.rank[%d] is %" PRId64 ", wanted 1 to %d", p,
                            problem->rank[p], HLA_MAX_RANK);
        }
    }
    return HLA_OK;
}

static hla_status check_options(hla_context *context, const hla_hadamard_problem *problem) {
    hla_status status = hla_check_dtype(context, problem->dtype);
    if (status != HLA_OK) return status;
    if ((unsigned)problem->form > HLA_FORM_QUADRATIC) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.form is %d, which is no hla_form", (int)problem->form);
    }
    if (problem->stateful && problem->form == HLA_FORM_QUADRATIC) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "problem.stateful needs the state form, problem.form forces the other");
    }
    status = hla_check_offset(context, "epsilon", problem->epsilon);
    if (status == HLA_OK) status = hla_check_number(context, "scale", problem->scale);
    return status;
}

/* The tensors' bytes must fit in 64-bit offsets, and so must every count of heads x tokens the kernels loop over. */
static hla_status check_products(hla_context *context, const hla_hadamard_problem *problem) {
    int64_t tokens = problem->queries > problem->keys ? problem->queries : problem->keys;
    int64_t width = problem->value_dim > HLA_MAX_RANK ? problem->value_dim : HLA_MAX_RANK;
    size_t bytes = sizeof(float);
    bool fits = hla_size_multiply(&bytes, hla_hadamard_sequence_count(problem)) &&
                hla_size_multiply(&bytes, problem->heads) && hla_size_multiply(&bytes, tokens) &&
                hla_size_multiply(&bytes, width);
    if (fits && bytes <= PTRDIFF_MAX) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT,
                    "problem.batch (or sequences) x heads x tokens x width (%" PRId64 " x %" PRId64 " x %" PRId64
                    " x %" PRId64 ") overflows 64-bit sizes",
                    hla_hadamard_sequence_count(problem), problem->heads, tokens, width);
}

/* Likewise the bytes of the states that calls may give and take. */
static hla_status check_state_size(hla_context *context, const hla_hadamard_problem *problem) {
    size_t bytes = sizeof(float);
    bool fits = hla_size_multiply(&bytes, hla_hadamard_sequence_count(problem)) &&
                hla_size_multiply(&bytes, problem->heads) && hla_size_multiply(&bytes, problem->value_dim + 1);
    for (int p = 0; p < problem->factors; p++)
        fits = fits && hla_size_multiply(&bytes, problem->rank[p]);
    if (!problem->stateful || (fits && bytes <= PTRDIFF_MAX)) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "problem.stateful: the states' size overflows 64-bit sizes");
}

static hla_status check_problem(hla_context *context, const hla_hadamard_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    hla_status status =
        hla_check_struct(context, "problem", problem->struct_size, sizeof *problem, "hla_hadamard_problem_init");
    if (status == HLA_OK) status = check_sizes(context, problem);
    if (status == HLA_OK) status = check_ranks(context, problem);
    if (status == HLA_OK) status = check_options(context, problem);
    if (status == HLA_OK) status = check_products(context, problem);
    if (status == HLA_OK) status = check_state_size(context, problem);
    return status;
}

/* ---- cost ---- */

enum {
    WIDEST_VECTOR = 16, /* floats; inner ranks of whole vectors have the fast loops */
    CAUSAL_BLOCK = 128  /* tokens whose pairs the causal state form handles through scores */
};

typedef struct cost {
    double flops; /* 2 per multiply-add of the formula: what is reported */
    double work;  /* multiply-adds of the register tile that take as long: what is compared */
} cost;

static double state_rank(const hla_hadamard_problem *problem) {
    double product = 1;
    for (int p = 0; p < problem->factors; p++)
        product *= (double)problem->rank[p];
    return product;
}

/* Pairs of a query and a key that it sees; packed sequences are taken to be alike. */
static double pair_count(const hla_hadamard_problem *problem) {
    double sequences = problem->sequences > 0 ? (double)problem->sequences : 1;
    double queries = (double)problem->queries / sequences, keys = (double)problem->keys / sequences;
    double pairs = queries * keys;
    if (problem->causal)
        pairs = queries <= keys ? queries * (queries + 1) / 2 : keys * (keys + 1) / 2 + (queries - keys) * keys;
    return sequences * (double)problem->batch * (double)problem->heads * pairs;
}

static double rank_sum(const hla_hadamard_problem *problem) {
    double sum = 0;
    for (int p = 0; p < problem->factors; p++)
        sum += (double)problem->rank[p];
    return sum;
}

/* Multiply-adds' worth of `pairs` scores and their products with the values. */
static double score_work(const hla_hadamard_problem *problem, const hla_tune *tune, double pairs) {
    double width = rank_sum(problem) + (double)problem->value_dim;
    return pairs * (tune->quadratic_slowdown * width + problem->factors * tune->quadratic_score);
}

/* Causal queries go through the scores of their own block of keys too, half of which they see. */
static cost state_cost(const hla_hadamard_problem *problem, const hla_tune *tune) {
    double heads = (double)problem->batch * (double)problem->heads, rank = state_rank(problem);
    double kv_heads = (double)problem->batch * (double)problem->kv_heads;
    double tokens = heads * (double)problem->queries + kv_heads * (double)problem->keys;
    double value_dim = (double)problem->value_dim;
    fold folded = make_fold(problem);
    double width = (double)folded.outer + (double)folded.inner + value_dim;
    double feature = folded.inner % WIDEST_VECTOR == 0 ? tune->state_feature : tune->state_odd_feature;
    double block = problem->queries < CAUSAL_BLOCK ? (double)problem->queries : CAUSAL_BLOCK;
    double own_block = problem->causal ? heads * (double)problem->queries * (block + 1) / 2 : 0;
    return (cost){2 * tokens * rank * (value_dim + 1),
                  tokens * (rank * (value_dim + feature) + width * tune->state_token) +
                      score_work(problem, tune, own_block)};
}

static cost quadratic_cost(const hla_hadamard_problem *problem, const hla_tune *tune) {
    double heads = (double)problem->batch * (double)problem->heads;
    double tokens = heads * ((double)problem->queries + (double)problem->keys);
    double pairs = pair_count(problem), width = rank_sum(problem) + (double)problem->value_dim;
    return (cost){2 * pairs * (width + 1), score_work(problem, tune, pairs) + tokens * width * tune->quadratic_token};
}

/* ---- the plan ---- */

/* Fills plan->workspace; false when that many bytes cannot be addressed. */
static bool measure_workspace(hla_hadamard_plan *plan) {
    hla_arena arena = {0};
    plan->entry->measure(&arena, &plan->problem, plan->threads);
    plan->workspace = arena.used;
    return !arena.overflow;
}

/* The backward pass may need more than can be addressed where the forward does not: it is refused when called. */
static void choose_backward(hla_hadamard_plan *plan) {
    plan->backward = hla_hadamard_backward_of(plan->entry);
    hla_arena arena = {0};
    plan->backward->measure(&arena, &plan->problem, plan->threads);
    plan->backward_workspace = arena.overflow ? SIZE_MAX : arena.used;
    hla_arena kept = {0};
    if (plan->backward->keep) plan->backward->keep(&kept, &plan->problem);
    plan->kept_workspace = kept.used;
}

static double rate_of(const hla_hadamard_entry *entry) {
    return entry->rate > 0 ? entry->rate : 1;
}

/* The cheaper form, compared at the speed of the best instruction set here, which both forms are written for, and at
 * their entries' rates. (A state that cannot be addressed never is the cheaper one: its tensors could not be either.)
 */
static hla_status choose_form(hla_hadamard_plan *plan) {
    const hla_hadamard_entry *state, *quadratic;
    hla_status status = hla_hadamard_choose(plan->context, &plan->problem, HLA_FORM_STATE, &state);
    if (status != HLA_OK) return status;
    status = hla_hadamard_choose(plan->context, &plan->problem, HLA_FORM_QUADRATIC, &quadratic);
    if (status != HLA_OK) return status;
    if (!state || !quadratic) {
        (void)hla_fail(plan->context, HLA_ERROR_UNSUPPORTED, "no kernel runs on %s",
                       hla_context_device_name(plan->context));
        return HLA_ERROR_UNSUPPORTED;
    }
    const hla_tune *tune = hla_tune_of(state->kernel.isa);
    bool cheaper = plan->problem.stateful || state_cost(&plan->problem, tune).work / rate_of(state) <=
                                                 quadratic_cost(&plan->problem, tune).work / rate_of(quadratic);
    plan->entry = cheaper ? state : quadratic;
    plan->other_rate = rate_of(cheaper ? quadratic : state);
    return HLA_OK;
}

static hla_status choose_kernel(hla_hadamard_plan *plan, bool *forced) {
    hla_hadamard_problem *problem = &plan->problem;
    hla_status status = hla_hadamard_choose(plan->context, problem, problem->form, &plan->entry);
    if (status != HLA_OK) return status;
    *forced = plan->entry != NULL;
    if (!plan->entry) status = choose_form(plan);
    if (status != HLA_OK) return status;
    if (*forced) plan->other_rate = rate_of(plan->entry);
    if (problem->stateful && plan->entry->form == HLA_FORM_QUADRATIC && plan->entry != &hla_hadamard_reference) {
        return hla_fail(plan->context, HLA_ERROR_ARGUMENT,
                        "problem.stateful needs a kernel of the state form, \"%s\" is not", plan->entry->kernel.name);
    }
    choose_backward(plan);
    if (!measure_workspace(plan)) {
        return hla_fail(plan->context, HLA_ERROR_UNSUPPORTED,
                        "the workspace of kernel %s cannot be addressed: state rank %.0f, %" PRId64
                        " keys, value_dim %" PRId64,
                        plan->entry->kernel.name, state_rank(problem), problem->keys, problem->value_dim);
    }
    return HLA_OK;
}

static void write_explanation(hla_hadamard_plan *plan, bool forced) {
    const hla_hadamard_problem *problem = &plan->problem;
    const hla_tune *tune = hla_tune_of(plan->entry->kernel.isa);
    cost state = state_cost(problem, tune), quadratic = quadratic_cost(problem, tune);
    bool is_state = plan->entry->form == HLA_FORM_STATE;
    cost taken = is_state ? state : quadratic, other = is_state ? quadratic : state;
    snprintf(plan->explain, sizeof plan->explain,
             "%s form%s, kernel %s, %.3g GFLOP against %.3g in %s form; expected to take %.2g times as long as that. "
             "State rank %.0f, %d %s%s, workspace %.3g MB.",
             is_state ? "state" : "quadratic", forced ? " (forced)" : "", plan->entry->kernel.name, taken.flops * 1e-9,
             other.flops * 1e-9, is_state ? "quadratic" : "state",
             other.work > 0 ? taken.work / rate_of(plan->entry) / (other.work / plan->other_rate) : 1.0,
             state_rank(problem), plan->threads, plan->context->cuda ? "multiprocessor" : "thread",
             plan->threads == 1 ? "" : "s", (double)plan->workspace * 1e-6);
}

hla_status hla_hadamard_plan_create(hla_context *context, const hla_hadamard_problem *problem,
                                    hla_hadamard_plan **plan) {
    if (!plan) return hla_fail(context, HLA_ERROR_ARGUMENT, "plan is NULL");
    *plan = NULL;
    if (!context) return HLA_ERROR_ARGUMENT;
    hla_status status = check_problem(context, problem);
    if (status != HLA_OK) return status;
    hla_hadamard_plan *created = calloc(1, sizeof *created);
    if (!created) return hla_fail(context, HLA_ERROR_MEMORY, "out of memory for a plan");
    created->context = context;
    created->problem = *problem;
    if (problem->kv_heads == 0) created->problem.kv_heads = problem->heads;
    created->threads = context->cuda ? context->device.processors : context->threads;
    bool forced;
    status = choose_kernel(created, &forced);
    if (status != HLA_OK) {
        free(created);
        return status;
    }
    write_explanation(created, forced);
    created->problem.kernel = NULL;
    *plan = created;
    return HLA_OK;
}

void hla_hadamard_plan_free(hla_hadamard_plan *plan) {
    free(plan);
}

size_t hla_hadamard_plan_workspace(const hla_hadamard_plan *plan) {
    return plan ? plan->workspace : 0;
}

hla_form hla_hadamard_plan_form(const hla_hadamard_plan *plan) {
    return plan ? plan->entry->form : HLA_FORM_AUTO;
}

const char *hla_hadamard_plan_kernel(const hla_hadamard_plan *plan) {
    return plan ? plan->entry->kernel.name : "";
}

const char *hla_hadamard_plan_explain(const hla_hadamard_plan *plan) {
    return plan ? plan->explain : "";
}

size_t hla_hadamard_plan_backward_workspace(const hla_hadamard_plan *plan) {
    return plan ? plan->backward_workspace : 0;
}

size_t hla_hadamard_plan_kept_workspace(const hla_hadamard_plan *plan) {
    return plan ? plan->kept_workspace : 0;
}
