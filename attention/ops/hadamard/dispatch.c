/* The kernel table of the Hadamard operator, and the choice among its entries. */
#include "attention/cuda/backend.h"
#include "attention/ops/hadamard/kernel.h"

static const hla_hadamard_entry *const table[] = {
    &hla_hadamard_reference,      &hla_hadamard_quadratic_baseline, &hla_hadamard_state_baseline,
#if defined(__x86_64__)
    &hla_hadamard_quadratic_avx2, &hla_hadamard_state_avx2,         &hla_hadamard_quadratic_avx512,
    &hla_hadamard_state_avx512,   &hla_hadamard_state_avx512_bf16,
#elif defined(__aarch64__)
    &hla_hadamard_quadratic_neon, &hla_hadamard_state_neon,
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

static const hla_hadamard_entry *entry_at(const hla_context *context, int i) {
    if (!context || !context->cuda) return i >= 0 && i < TABLE_SIZE ? table[i] : NULL;
    int last = 0; /* of the GPU's table */
    while (last < i && context->cuda->hadamard[last])
        last++;
    return i >= 0 && last == i ? context->cuda->hadamard[i] : NULL;
}

static const hla_kernel *kernel_at(const hla_context *context, int i) {
    const hla_hadamard_entry *entry = entry_at(context, i);
    return entry ? &entry->kernel : NULL;
}

bool hla_hadamard_kernel(const hla_context *context, int i, hla_kernel_info *info) {
    const hla_hadamard_entry *entry = entry_at(context, i);
    if (!entry || !info) return false;
    const hla_kernel *kernel = &entry->kernel;
    *info = (hla_kernel_info){kernel->name, entry->form, hla_kernel_runs(context, kernel), hla_isa_needs(kernel->isa)};
    return true;
}

static bool takes(const hla_hadamard_entry *entry, const hla_hadamard_problem *problem) {
    return !entry->takes || entry->takes(problem);
}

/* Whether the forced entry fits the problem. */
static hla_status check_forced(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry *entry) {
    const char *origin = problem->kernel ? "problem.kernel" : "HLA_KERNEL";
    if (!takes(entry, problem)) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED, "%s is \"%s\", which only takes %s", origin, entry->kernel.name,
                        entry->taken);
    }
    if (form == HLA_FORM_AUTO || form == entry->form) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is \"%s\", but problem.form asks for the %s form", origin,
                    entry->kernel.name, form == HLA_FORM_STATE ? "state" : "quadratic");
}

hla_status hla_hadamard_choose(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry **entry) {
    int index;
    *entry = NULL;
    hla_status status = hla_kernel_forced(context, kernel_at, problem->kernel, "HLA_KERNEL", &index);
    if (status != HLA_OK) return status;
    *entry = entry_at(context, index); /* NULL for -1: none was asked for */
    if (*entry) return check_forced(context, problem, form, *entry);
    const hla_hadamard_entry *candidate;
    for (int i = 0; form != HLA_FORM_AUTO && (candidate = entry_at(context, i)) != NULL; i++) {
        if (candidate == &hla_hadamard_reference) continue; /* only runs when forced */
        if (candidate->form == form && hla_kernel_runs(context, &candidate->kernel) && takes(candidate, problem))
            *entry = candidate;
    }
    return HLA_OK;
}

const hla_hadamard_backward_entry *hla_hadamard_backward_of(const hla_hadamard_entry *entry) {
    for (int i = 1; i < TABLE_SIZE && !entry->backward; i++) {
        if (table[i]->form == HLA_FORM_STATE && table[i]->kernel.isa == entry->kernel.isa) entry = table[i];
    }
    return entry->backward; /* never NULL: each instruction set has both forms */
}
