/* The kernel table of the Hadamard operator, and the choice among its entries. */
#include "attention/ops/hadamard/kernel.h"

static bool any(const hla_hadamard_problem *problem) {
    (void)problem;
    return true;
}

#if defined(__x86_64__)
/* A state is float32 and, however its keys are split, the same up to that: not with features rounded to bfloat16. */
static bool bidirectional_bf16(const hla_hadamard_problem *problem) {
    return problem->dtype == HLA_BF16 && !problem->causal && !problem->stateful;
}
#endif

static const struct {
    const hla_hadamard_entry *entry;
    bool (*takes)(const hla_hadamard_problem *problem);
    const char *taken; /* in words */
} table[] = {
    {&hla_hadamard_reference, any, "any"},
    {&hla_hadamard_quadratic_baseline, any, "any"},
    {&hla_hadamard_state_baseline, any, "any"},
#if defined(__x86_64__)
    {&hla_hadamard_quadratic_avx2, any, "any"},
    {&hla_hadamard_state_avx2, any, "any"},
    {&hla_hadamard_quadratic_avx512, any, "any"},
    {&hla_hadamard_state_avx512, any, "any"},
    {&hla_hadamard_state_avx512_bf16, bidirectional_bf16, "bidirectional problems in bfloat16 without states"},
#elif defined(__aarch64__)
    {&hla_hadamard_quadratic_neon, any, "any"}, {&hla_hadamard_state_neon, any, "any"},
#endif
};
enum { TABLE_SIZE = sizeof table / sizeof table[0] };

static const hla_kernel *kernel_at(int i) {
    return i >= 0 && i < TABLE_SIZE ? &table[i].entry->kernel : NULL;
}

bool hla_hadamard_kernel(int i, hla_kernel_info *info) {
    const hla_kernel *kernel = kernel_at(i);
    if (!kernel || !info) return false;
    *info =
        (hla_kernel_info){kernel->name, table[i].entry->form, hla_isa_runs(kernel->isa), hla_isa_needs(kernel->isa)};
    return true;
}

/* *entry = that of the table at `index`, which the problem or the environment names. */
static hla_status force(hla_context *context, const hla_hadamard_problem *problem, hla_form form, int index,
                        const hla_hadamard_entry **entry) {
    const char *origin = problem->kernel ? "problem.kernel" : "HLA_KERNEL";
    *entry = table[index].entry;
    if (!table[index].takes(problem)) {
        return hla_fail(context, HLA_ERROR_UNSUPPORTED, "%s is \"%s\", which only takes %s", origin,
                        (*entry)->kernel.name, table[index].taken);
    }
    if (form == HLA_FORM_AUTO || form == (*entry)->form) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "%s is \"%s\", but problem.form asks for the %s form", origin,
                    (*entry)->kernel.name, form == HLA_FORM_STATE ? "state" : "quadratic");
}

hla_status hla_hadamard_choose(hla_context *context, const hla_hadamard_problem *problem, hla_form form,
                               const hla_hadamard_entry **entry) {
    int index;
    *entry = NULL;
    hla_status status = hla_kernel_forced(context, kernel_at, problem->kernel, "HLA_KERNEL", &index);
    if (status != HLA_OK) return status;
    if (index >= 0) return force(context, problem, form, index, entry);
    /* entry 0, the reference, only runs when forced */
    for (int i = 1; i < TABLE_SIZE && form != HLA_FORM_AUTO; i++) {
        if (table[i].entry->form == form && hla_isa_runs(table[i].entry->kernel.isa) && table[i].takes(problem))
            *entry = table[i].entry;
    }
    return HLA_OK;
}

const hla_hadamard_entry *hla_hadamard_state_of(hla_isa isa) {
    for (int i = 1; i < TABLE_SIZE; i++) {
        if (table[i].entry->form == HLA_FORM_STATE && table[i].entry->kernel.isa == isa) return table[i].entry;
    }
    return NULL; /* never: each instruction set has both forms */
}
