/* attention/ops/hadamard/plan.h - a plan of the Hadamard operator: made in plan.c, used in calls.c. */
#ifndef HLA_OPS_HADAMARD_PLAN_H
#define HLA_OPS_HADAMARD_PLAN_H

#include "attention/ops/hadamard/kernel.h"

struct hla_hadamard_plan {
    hla_context *context;
    hla_hadamard_problem problem; /* problem.kernel is not kept, kv_heads never 0 */
    const hla_hadamard_entry *entry;
    const hla_hadamard_backward_entry *backward; /* of entry, or of the state form beside it */
    int threads;                                 /* of a GPU: multiprocessors */
    size_t workspace, backward_workspace;        /* bytes; the second is SIZE_MAX if it cannot be addressed */
    double other_rate;                           /* of the entry of the other form that was passed over */
    size_t kept_workspace;                       /* of workspace, what backward reads */
    char explain[384];
};

#endif
