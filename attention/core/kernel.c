/* The choice of a kernel: by name, or the fastest that runs here. */
#include "attention/core/kernel.h"

#include <stdlib.h>

bool hla_kernel_runs(const hla_context *context, const hla_kernel *kernel) {
    if (kernel->isa != HLA_ISA_CUDA) return hla_isa_runs(kernel->isa);
    int capability = context && context->cuda ? context->device.capability : 0;
    return capability >= kernel->capability && (kernel->newest == 0 || capability <= kernel->newest);
}

hla_status hla_kernel_forced(hla_context *context, hla_kernel_at *at, const char *problem_kernel, const char *variable,
                             int *index) {
    const char *name = problem_kernel ? problem_kernel : getenv(variable);
    const char *origin = problem_kernel ? "problem.kernel" : variable;
    *index = -1;
    if (!name || (!problem_kernel && !*name)) return HLA_OK;
    const hla_kernel *kernel;
    for (int i = 0; (kernel = at(context, i)) != NULL; i++) {
        if (strcmp(kernel->name, name) != 0) continue;
        if (!hla_kernel_runs(context, kernel)) {
            return hla_fail(context, HLA_ERROR_UNSUPPORTED, "%s is \"%s\", which needs %s; this machine lacks it",
                            origin, name, hla_isa_needs(kernel->isa));
        }
        *index = i;
        return HLA_OK;
    }
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is \"%.64s\", which is no kernel of this operator", origin, name);
}

hla_status hla_kernel_choose(hla_context *context, hla_kernel_at *at, const char *problem_kernel, const char *variable,
                             int *index) {
    hla_status status = hla_kernel_forced(context, at, problem_kernel, variable, index);
    if (status != HLA_OK || *index >= 0) return status;
    for (int i = 0; at(context, i); i++) {
        if (hla_kernel_runs(context, at(context, i))) *index = i;
    }
    if (*index >= 0) return HLA_OK;
    return hla_fail(context, HLA_ERROR_UNSUPPORTED, "this operator has no kernel for %s",
                    hla_context_device_name(context));
}
