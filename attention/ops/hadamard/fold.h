/* attention/ops/hadamard/fold.h - how the state form folds P factors into two. */
#ifndef HLA_OPS_HADAMARD_FOLD_H
#define HLA_OPS_HADAMARD_FOLD_H

#include "hla/hadamard.h"

/* The factors in order of rank, the first `split` of them folded into the outer one. Sorting keeps the inner one wide
 * (a vector of phi then comes from one multiplication), the split keeps the sum of both ranks small. */
typedef struct fold {
    int order[HLA_MAX_FACTORS];
    int factors, split;
    int64_t outer, inner; /* ranks */
    int64_t state_rank;
} fold;

static inline int64_t fold_rank_product(const hla_hadamard_problem *problem, const int *order, int first, int last) {
    int64_t product = 1;
    for (int p = first; p < last; p++)
        product *= problem->rank[order[p]];
    return product;
}

static inline fold make_fold(const hla_hadamard_problem *problem) {
    fold folded = {.factors = problem->factors};
    for (int p = 0; p < problem->factors; p++) {
        int place = p;
        for (; place > 0 && problem->rank[folded.order[place - 1]] > problem->rank[p]; place--) {
            folded.order[place] = folded.order[place - 1];
        }
        folded.order[place] = p;
    }
    for (int split = 0; split < folded.factors; split++) {
        int64_t outer = fold_rank_product(problem, folded.order, 0, split);
        int64_t inner = fold_rank_product(problem, folded.order, split, folded.factors);
        if (split > 0 && outer + inner >= folded.outer + folded.inner) continue;
        folded.split = split, folded.outer = outer, folded.inner = inner;
    }
    folded.state_rank = folded.outer * folded.inner;
    return folded;
}

#endif
