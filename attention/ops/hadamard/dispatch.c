/* The kernel table of the Hadamard operator, and the choice among its entries. */
#include "attention/ops/hadamard/kernel.h"

static const hla_hadamard_entry *const table[] = {
    &hla_hadamard_reference,      &hla_hadamard_quadratic_baseline, &hla_hadamard_state_baseline,
#if defined(__x86_64__)
    &hla_hadamard_quadratic_avx2, &hla_hadamard_state_avx2,         &hla_hadamard_quadratic_avx512,
    &hla_hadamard_state_avx512,
#elif defined(__aarch64__)
    &hla_hadamard_quadratic_neon, &hla_hadamard_state_neon,
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

static const hla_kernel *kernel_at(int i) {
    return i >= 0 && i < TABLE_SIZE ? &table[i]->kernel : NULL;
}

bool hla_hadamard_kernel(int i, hla_kernel_info *info) {
    const hla_kernel *kernel = kernel_at(i);
    if (!kernel || !info) return false;
    *info = (hla_kernel_info){kernel->name, table[i]->form, hla_isa_runs(kernel->isa), hla_isa_needs(kernel->isa)};
    return true;
}

hla_status hla_hadamard_choose(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry **entry) {
    int index;
    *entry = NULL;
    hla_status status = hla_kernel_forced(context, kernel_at, problem->kernel, "HLA_KERNEL", &index);
    if (status != HLA_OK) return status;
    if (index >= 0) {
        *entry = table[index];
        if (form == HLA_FORM_AUTO || form == table[index]->form) return HLA_OK;
        return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is \"%s\", but problem.form asks for the %s form",
                        problem->kernel ? "problem.kernel" : "HLA_KERNEL", table[index]->kernel.name,
                        form == HLA_FORM_STATE ? "state" : "quadratic");
    }
    /* entry 0, the reference, only runs when forced */
    for (int i = 1; i < TABLE_SIZE && form != HLA_FORM_AUTO; i++) {
        if (table[i]->form == form && hla_isa_runs(table[i]->kernel.isa)) *entry = table[i];
    }
    return HLA_OK;
}

const hla_hadamard_entry *hla_hadamard_state_of(hla_isa isa) {
    for (int i = 1; i < TABLE_SIZE; i++) {
        if (table[i]->form == HLA_FORM_STATE && table[i]->kernel.isa == isa) return table[i];
    }
    return NULL; /* never: each instruction set has both forms */
}
