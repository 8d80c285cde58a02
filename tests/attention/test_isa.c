/* Which kernel runs: in every operator that of the best instruction set this machine has, which the operating system is
 * asked for here in another way than the library does; each by its name; none that the machine lacks. */
#include "attention/core/kernel.h"
#include "hla/hla.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* Best first. flags: as /proc/cpuinfo has them. */
typedef struct instruction_set {
    const char *name;
    hla_isa isa;
    const char *flags[8];
} instruction_set;

static const instruction_set sets[] = {
#if defined(__x86_64__)
    {"avx512", HLA_ISA_AVX512, {"avx512f", "avx512bw", "avx512dq", "avx512vl"}},
    {"avx2", HLA_ISA_AVX2, {"avx2", "fma"}},
#elif defined(__aarch64__)
    {"neon", HLA_ISA_NEON, {"asimd"}},
#endif
    {"baseline", HLA_ISA_BASELINE, {NULL}},
};
enum { SETS = sizeof sets / sizeof sets[0] };

#if defined(__aarch64__)
/* Of the processor that the kernel speaks for: an emulator passes its host's /proc/cpuinfo through. */
static bool machine_has(const char *flag) {
    return strcmp(flag, "asimd") == 0 && (getauxval(AT_HWCAP) & HWCAP_ASIMD) != 0;
}
#else
static bool machine_has(const char *flag) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    assert_non_null(file);
    char *line = NULL;
    size_t capacity = 0;
    bool found = false;
    while (!found && getline(&line, &capacity, file) > 0) {
        if (strncmp(line, "flags", 5) != 0) continue;
        for (char *rest = line, *word; !found && (word = strtok_r(rest, " \t\n", &rest)) != NULL;)
            found = strcmp(word, flag) == 0;
        break;
    }
    free(line);
    fclose(file);
    return found;
}
#endif

static bool machine_runs(const instruction_set *set) {
    for (int i = 0; set->flags[i]; i++) {
        if (!machine_has(set->flags[i])) return false;
    }
    return true;
}

/* The linker sends the library's calls here (--wrap): a test takes instruction sets away from this machine, and reads
 * which entry of a table was chosen where no plan tells. */
static bool taken_away[8];
bool __real_hla_isa_runs(hla_isa isa);
bool __wrap_hla_isa_runs(hla_isa isa);
bool __wrap_hla_isa_runs(hla_isa isa) {
    return __real_hla_isa_runs(isa) && !taken_away[isa];
}

static int chosen;
hla_status __real_hla_kernel_choose(hla_context *context, hla_kernel_at *at, const char *kernel, const char *variable,
                                    int *index);
hla_status __wrap_hla_kernel_choose(hla_context *context, hla_kernel_at *at, const char *kernel, const char *variable,
                                    int *index);
hla_status __wrap_hla_kernel_choose(hla_context *context, hla_kernel_at *at, const char *kernel, const char *variable,
                                    int *index) {
    hla_status status = __real_hla_kernel_choose(context, at, kernel, variable, index);
    chosen = *index;
    return status;
}

/* ---- the operators, each asked which kernel it runs a small problem with ---- */

typedef char kernel_name[64];

static hla_status hadamard_kernel(hla_context *context, hla_form form, hla_dtype dtype, const char *kernel,
                                  kernel_name ran) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = problem.heads = 1, problem.queries = problem.keys = 5, problem.value_dim = 3;
    problem.factors = 2, problem.rank[0] = problem.rank[1] = 4;
    problem.dtype = dtype, problem.form = form, problem.kernel = kernel;
    hla_hadamard_plan *plan = NULL;
    hla_status status = hla_hadamard_plan_create(context, &problem, &plan);
    snprintf(ran, sizeof(kernel_name), "%s", hla_hadamard_plan_kernel(plan));
    hla_hadamard_plan_free(plan);
    return status;
}

static hla_status state_kernel(hla_context *context, hla_dtype dtype, const char *kernel, kernel_name ran) {
    return hadamard_kernel(context, HLA_FORM_STATE, dtype, kernel, ran);
}

static hla_status quadratic_kernel(hla_context *context, hla_dtype dtype, const char *kernel, kernel_name ran) {
    return hadamard_kernel(context, HLA_FORM_QUADRATIC, dtype, kernel, ran);
}

static hla_status softmax_kernel(hla_context *context, hla_dtype dtype, const char *kernel, kernel_name ran) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = problem.heads = 1, problem.queries = problem.keys = 5, problem.dim = problem.value_dim = 3;
    problem.dtype = dtype, problem.kernel = kernel;
    hla_softmax_plan *plan = NULL;
    hla_status status = hla_softmax_plan_create(context, &problem, &plan);
    snprintf(ran, sizeof(kernel_name), "%s", hla_softmax_plan_kernel(plan));
    hla_softmax_plan_free(plan);
    return status;
}

static hla_status feature_map_kernel(hla_context *context, hla_dtype dtype, const char *kernel, kernel_name ran) {
    enum { DIM = 3, RANK = 4 };
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = problem.heads = problem.tokens = 1, problem.dim = DIM, problem.rank = RANK;
    problem.dtype = dtype, problem.kernel = kernel;
    float x[DIM] = {0}, y[RANK] = {0}, weight[RANK * DIM] = {0};
    hla_tensor in = hla_tensor_bthd(x, dtype, 1, 1, 1, DIM), out = hla_tensor_bthd(y, dtype, 1, 1, 1, RANK);
    hla_feature_map_weights weights = {.weight = weight};
    hla_feature_map_kernel_info info = {.name = ""};
    hla_status status = hla_feature_map_forward(context, &problem, &out, &in, &weights);
    if (status == HLA_OK) assert_true(hla_feature_map_kernel(NULL, chosen, &info));
    snprintf(ran, sizeof(kernel_name), "%s", info.name);
    return status;
}

static const struct {
    const char *prefix; /* of its kernels' names */
    hla_status (*kernel)(hla_context *context, hla_dtype dtype, const char *kernel, kernel_name ran);
} operators[] = {
    {"state_", state_kernel}, {"quadratic_", quadratic_kernel}, {"", softmax_kernel}, {"", feature_map_kernel}};
enum { OPERATORS = sizeof operators / sizeof operators[0] };

static const hla_dtype dtypes[] = {HLA_F32, HLA_BF16, HLA_F16};

static void full_name(kernel_name name, int which, const instruction_set *set) {
    snprintf(name, sizeof(kernel_name), "%s%s", operators[which].prefix, set->name);
}

static hla_context *make_context(void) {
    hla_context *context = NULL;
    assert_int_equal(hla_context_create(&context, NULL), HLA_OK);
    return context;
}

/* The one kernel beside the sets: bidirectional bfloat16 without states. */
static const instruction_set bf16 = {
    "avx512_bf16", HLA_ISA_AVX512_BF16, {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}};

static bool bf16_is_best(int which, hla_dtype dtype, const instruction_set *best) {
    bool fits = strcmp(operators[which].prefix, "state_") == 0 && dtype == HLA_BF16;
    return fits && best->isa == HLA_ISA_AVX512 && machine_runs(&bf16) && !taken_away[bf16.isa];
}

/* ---- tests ---- */

static void expect_unforced(hla_context *context, const instruction_set *best) {
    for (int which = 0; which < OPERATORS; which++) {
        for (int i = 0; i < 3; i++) {
            kernel_name wanted, ran;
            full_name(wanted, which, bf16_is_best(which, dtypes[i], best) ? &bf16 : best);
            assert_int_equal(operators[which].kernel(context, dtypes[i], NULL, ran), HLA_OK);
            assert_string_equal(ran, wanted);
        }
    }
}

static void test_the_best_set_of_this_machine_runs(void **unused) {
    (void)unused;
    hla_context *context = make_context();
    const instruction_set *best = sets;
    while (!machine_runs(best))
        best++;
    expect_unforced(context, best);
    hla_context_free(context);
}

/* From the best set downwards each is taken away in turn, and the next takes its place. */
static void test_the_next_set_steps_in(void **unused) {
    (void)unused;
    hla_context *context = make_context();
    const instruction_set *whole = sets;
    while (!machine_runs(whole))
        whole++;
    taken_away[bf16.isa] = true;
    expect_unforced(context, whole);
    for (int i = 0; i + 1 < SETS; i++) {
        taken_away[sets[i].isa] = true;
        const instruction_set *best = &sets[i + 1];
        while (!machine_runs(best))
            best++;
        expect_unforced(context, best);
    }
    memset(taken_away, 0, sizeof taken_away);
    hla_context_free(context);
}

static void expect_refused(hla_context *context, int which, const instruction_set *set) {
    kernel_name name, ran;
    full_name(name, which, set);
    assert_int_equal(operators[which].kernel(context, HLA_F32, name, ran), HLA_ERROR_UNSUPPORTED);
    assert_string_equal(ran, "");
    const char *sentence = hla_context_error(context);
    if (!strstr(sentence, name) || !strstr(sentence, hla_isa_needs(set->isa))) fail_msg("\"%s\"", sentence);
}

static void test_a_named_kernel_runs_or_is_refused(void **unused) {
    (void)unused;
    hla_context *context = make_context();
    for (int which = 0; which < OPERATORS; which++) {
        for (int i = 0; i < SETS; i++) {
            kernel_name name, ran;
            full_name(name, which, &sets[i]);
            if (machine_runs(&sets[i])) {
                assert_int_equal(operators[which].kernel(context, HLA_F32, name, ran), HLA_OK);
                assert_string_equal(ran, name);
            }
            taken_away[sets[i].isa] = sets[i].isa != HLA_ISA_BASELINE;
            if (taken_away[sets[i].isa]) expect_refused(context, which, &sets[i]);
            taken_away[sets[i].isa] = false;
        }
    }
    hla_context_free(context);
}

static void test_an_unknown_name_is_refused(void **unused) {
    (void)unused;
    hla_context *context = make_context();
    for (int which = 0; which < OPERATORS; which++) {
        kernel_name ran;
        assert_int_equal(operators[which].kernel(context, HLA_F32, "mmx", ran), HLA_ERROR_ARGUMENT);
        assert_string_equal(ran, "");
        if (!strstr(hla_context_error(context), "\"mmx\"")) fail_msg("\"%s\"", hla_context_error(context));
    }
    hla_context_free(context);
}

/* The tables list no set that this test does not know, and say truly what runs here. */
static void test_tables_and_machine_agree(void **unused) {
    (void)unused;
    hla_kernel_info info;
    for (int i = 1; hla_hadamard_kernel(NULL, i, &info); i++) {
        const char *suffix = strchr(info.name, '_');
        assert_non_null(suffix);
        const instruction_set *set = strcmp(bf16.name, suffix + 1) == 0 ? &bf16 : NULL;
        for (int known = 0; known < SETS; known++) {
            if (strcmp(sets[known].name, suffix + 1) == 0) set = &sets[known];
        }
        if (!set) fail_msg("%s is of an instruction set without a row in this test", info.name);
        assert_int_equal(info.runs_here, machine_runs(set));
    }
}

int main(void) {
    static const char *const variables[] = {"HLA_KERNEL", "HLA_SOFTMAX_KERNEL", "HLA_FEATURE_MAP_KERNEL"};
    for (int i = 0; i < 3; i++)
        unsetenv(variables[i]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_best_set_of_this_machine_runs), cmocka_unit_test(test_the_next_set_steps_in),
        cmocka_unit_test(test_a_named_kernel_runs_or_is_refused), cmocka_unit_test(test_an_unknown_name_is_refused),
        cmocka_unit_test(test_tables_and_machine_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
