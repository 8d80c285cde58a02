/* The kernel table of the Hadamard operator, and the choice among its entries. */
#include "attention/ops/hadamard/kernel.h"

#include <stdlib.h>

extern const hla_hadamard_entry hla_hadamard_reference;
extern const hla_hadamard_entry hla_hadamard_quadratic_baseline, hla_hadamard_state_baseline;
#if defined(__x86_64__)
extern const hla_hadamard_entry hla_hadamard_quadratic_avx2, hla_hadamard_state_avx2;
extern const hla_hadamard_entry hla_hadamard_quadratic_avx512, hla_hadamard_state_avx512;
#endif

static const hla_hadamard_entry *const kernels[] = {
    &hla_hadamard_reference,      &hla_hadamard_quadratic_baseline, &hla_hadamard_state_baseline,
#if defined(__x86_64__)
    &hla_hadamard_quadratic_avx2, &hla_hadamard_state_avx2,         &hla_hadamard_quadratic_avx512,
    &hla_hadamard_state_avx512,
#endif
};
enum { KERNEL_COUNT = sizeof kernels / sizeof kernels[0] };

const hla_hadamard_entry *hla_hadamard_kernel_at(int i) {
    return i >= 0 && i < KERNEL_COUNT ? kernels[i] : NULL;
}

bool hla_hadamard_kernel(int i, hla_kernel_info *info) {
    const hla_hadamard_entry *kernel = hla_hadamard_kernel_at(i);
    if (!kernel || !info) return false;
    *info = (hla_kernel_info){kernel->name, kernel->form, hla_isa_runs(kernel->isa), hla_isa_needs(kernel->isa)};
    return true;
}

static const char *form_name(hla_form form) {
    return form == HLA_FORM_STATE ? "state" : "quadratic";
}

/* source: who forced it, "problem.kernel" or "HLA_KERNEL" */
static hla_status find_forced(hla_context *context, const char *source, const char *name, hla_form form,
                              const hla_hadamard_entry **kernel) {
    for (int i = 0; i < KERNEL_COUNT; i++) {
        if (strcmp(kernels[i]->name, name) != 0) continue;
        if (!hla_isa_runs(kernels[i]->isa)) {
            return hla_fail(context, HLA_ERROR_UNSUPPORTED,
                            "%s asks for kernel %s, which needs %s; this machine lacks it", source, name,
                            hla_isa_needs(kernels[i]->isa));
        }
        if (form != HLA_FORM_AUTO && form != kernels[i]->form) {
            return hla_fail(context, HLA_ERROR_ARGUMENT, "%s asks for kernel %s, but problem.form asks for the %s form",
                            source, name, form_name(form));
        }
        *kernel = kernels[i];
        return HLA_OK;
    }
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s asks for kernel \"%.64s\", which is not in the kernel table",
                    source, name);
}

hla_status hla_hadamard_choose(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry **kernel) {
    *kernel = NULL;
    if (problem->kernel) return find_forced(context, "problem.kernel", problem->kernel, form, kernel);
    const char *variable = getenv("HLA_KERNEL");
    if (variable && *variable) return find_forced(context, "HLA_KERNEL", variable, form, kernel);
    for (int i = KERNEL_COUNT - 1; i > 0 && form != HLA_FORM_AUTO && !*kernel; i--) {
        if (kernels[i]->form == form && hla_isa_runs(kernels[i]->isa)) *kernel = kernels[i];
    }
    return HLA_OK;
}
