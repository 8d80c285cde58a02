/* cli/doctor.c - hla doctor: what this machine is, what was found on it, which kernels run, and whether they compute
 * right. */
#include "cli/doctor.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/machine.h"
#include "cli/model.h"

#include <link.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ERROR_LIMIT 1e-5 /* relative, fp32, against the double-precision reference */

static const cli_option table[] = {{0}};

static int run(int argc, char **argv);

const cli_command doctor_command = {"doctor",
                                    "Shows what this machine has, checks kernels and model.",
                                    "[options]",
                                    table,
                                    "Shown are processor, memory, libraries, video formats, the default model and\n"
                                    "the kernels, of the CPU and of NVIDIA GPUs. Each Hadamard kernel this machine\n"
                                    "runs computes a small problem, which is compared with the double-precision\n"
                                    "reference. HLA_KERNEL=NAME makes every command use one Hadamard kernel;\n"
                                    "HLA_SOFTMAX_KERNEL and HLA_FEATURE_MAP_KERNEL do the same for the other\n"
                                    "operators.\n"
                                    "\n"
                                    "What is missing or wrong is said at the end. Exit status 1 if something is\n"
                                    "wrong: a kernel's result, a kernel asked for that is none, a model that cannot\n"
                                    "be opened. A missing ffmpeg or default model is no error.\n",
                                    run};

/* What one kernel of a table can do here. error: relative, NaN if it was not run. */
typedef struct kernel_row {
    const char *operator_name, *name, *form, *needs;
    bool runs_here;
    double error;
    bool checked; /* it was to compute something */
    int device;   /* 0: the CPU, else a GPU's number plus 1 */
} kernel_row;

#define MAX_ROWS 160
#define MAX_REMARKS 16
typedef struct findings {
    machine_info machine;
    int threads;
    kernel_row rows[MAX_ROWS];
    int row_count;
    gpu_info gpus[MAX_GPUS];
    int gpu_count;
    char without_gpu[320]; /* why there is none */
    char *model;
    bool can_write[4]; /* as extensions */
    char libraries[8][256];
    int library_count;
    char remarks[MAX_REMARKS][640]; /* what is missing or wrong */
    int remark_count;
    bool wrong; /* one of them is an error */
} findings;

static const char *const extensions[4] = {"mp4", "webm", "gif", "png"};

static void remark(findings *found, bool wrong, const char *format, ...) __attribute__((format(printf, 3, 4)));

static void remark(findings *found, bool wrong, const char *format, ...) {
    va_list args;
    found->wrong = found->wrong || wrong;
    if (found->remark_count == MAX_REMARKS) return;
    va_start(args, format);
    vsnprintf(found->remarks[found->remark_count++], sizeof found->remarks[0], format, args);
    va_end(args);
}

/* The same numbers each time, in 0..1. */
static void fill(operand *to, uint32_t seed) {
    for (int64_t i = 0; i < to->array.count; i++) {
        seed = seed * 1664525u + 1013904223u;
        to->array.data[i] = (float)(seed >> 8) / 0x1p24f;
    }
}

static hlv_status create_problem(hlv_context *ctx, small_problem *small) {
    enum { B = 2, TQ = 37, TK = 53, H = 3, V = 21 };
    static const int64_t rank[2] = {9, 5};
    hla_hadamard_problem_init(&small->problem);
    small->problem.batch = B;
    small->problem.heads = H;
    small->problem.queries = TQ;
    small->problem.keys = TK;
    small->problem.value_dim = V;
    small->problem.factors = 2;
    hlv_status status = operand_create(ctx, HLA_F32, (int64_t[]){B, TK, H, V}, &small->v);
    if (status == HLV_OK) status = operand_create(ctx, HLA_F32, (int64_t[]){B, TQ, H, V}, &small->out);
    for (int p = 0; p < 2 && status == HLV_OK; p++) {
        small->problem.rank[p] = rank[p];
        status = operand_create(ctx, HLA_F32, (int64_t[]){B, TQ, H, rank[p]}, &small->q[p]);
        if (status == HLV_OK) status = operand_create(ctx, HLA_F32, (int64_t[]){B, TK, H, rank[p]}, &small->k[p]);
        if (status == HLV_OK) {
            fill(&small->q[p], (uint32_t)(1 + p));
            fill(&small->k[p], (uint32_t)(3 + p));
        }
    }
    if (status == HLV_OK) fill(&small->v, 5);
    return status;
}

static void free_problem(hlv_context *ctx, small_problem *small) {
    for (int p = 0; p < 2; p++) {
        operand_free(ctx, &small->q[p]);
        operand_free(ctx, &small->k[p]);
    }
    operand_free(ctx, &small->v);
    operand_free(ctx, &small->out);
    free(small->expected);
}

/* Runs one kernel into small->out, which is filled with NaN before. */
static bool compute(cli_session *session, hla_context *hla, small_problem *small, const hla_kernel_info *kernel) {
    attention_run done;
    small->problem.kernel = kernel->name;
    small->problem.form = kernel->form;
    for (int64_t i = 0; i < small->out.array.count; i++)
        small->out.array.data[i] = NAN;
    hlv_status status =
        run_hadamard(session, hla, &small->problem, &small->out, small->q, small->k, &small->v, 1, &done);
    session->sentence = NULL;
    return status == HLV_OK;
}

/* Whether a kernel takes float32 problems at all: one for bfloat16 only is listed and left to the tests. */
static bool takes_float32(hla_context *hla, small_problem *small, const hla_kernel_info *kernel) {
    hla_hadamard_plan *plan = NULL;
    small->problem.kernel = kernel->name;
    small->problem.form = kernel->form;
    hla_status status = hla_hadamard_plan_create(hla, &small->problem, &plan);
    hla_hadamard_plan_free(plan);
    return status != HLA_ERROR_UNSUPPORTED;
}

/* The kernels that a context's device runs compute the small problem; the CPU's first one is the reference. */
static void check_kernels(cli_session *session, hla_context *hla, findings *found, small_problem *small, int device) {
    static const char *const form_names[] = {"auto", "state", "quadratic"};
    hla_kernel_info kernel;
    bool ready = small->expected != NULL;
    for (int i = 0; hla_hadamard_kernel(hla, i, &kernel) && found->row_count < MAX_ROWS; i++) {
        kernel_row *row = &found->rows[found->row_count++];
        *row = (kernel_row){"hadamard", kernel.name, form_names[kernel.form], kernel.needs, kernel.runs_here, NAN,
                            false,      device};
        if (!kernel.runs_here || (ready && !takes_float32(hla, small, &kernel))) continue;
        row->checked = true;
        bool computed = ready && (device > 0 ? compute_on_gpu(&found->gpus[device - 1], small) == HLA_OK
                                             : compute(session, hla, small, &kernel));
        if (computed) {
            if (i == 0 && device == 0)
                memcpy(small->expected, small->out.array.data,
                       (size_t)small->out.array.count * sizeof *small->expected);
            row->error = relative_error(small->out.array.data, small->expected, small->out.array.count);
        }
        if (!(row->error <= ERROR_LIMIT))
            remark(found, true, "kernel %s computes wrong on this machine: please report it", row->name);
    }
}

/* The other tables are listed; their kernels are checked by the tests. */
static void list_kernels(const hla_context *hla, findings *found, int device) {
    hla_softmax_kernel_info softmax;
    hla_feature_map_kernel_info map;
    for (int i = 0; hla_softmax_kernel(hla, i, &softmax) && found->row_count < MAX_ROWS; i++)
        found->rows[found->row_count++] =
            (kernel_row){"softmax", softmax.name, "", softmax.needs, softmax.runs_here, NAN, false, device};
    for (int i = 0; hla_feature_map_kernel(hla, i, &map) && found->row_count < MAX_ROWS; i++)
        found->rows[found->row_count++] =
            (kernel_row){"feature map", map.name, "", map.needs, map.runs_here, NAN, false, device};
}

/* The CPU's kernels, then those of each GPU. */
static void go_through_kernels(cli_session *session, hla_context *hla, findings *found) {
    small_problem small = {0};
    if (create_problem(session->ctx, &small) == HLV_OK)
        small.expected = malloc((size_t)small.out.array.count * sizeof *small.expected);
    found->gpu_count = open_gpus(found->gpus, found->without_gpu);
    for (int device = 0; device <= found->gpu_count; device++) {
        hla_context *on = device == 0 ? hla : found->gpus[device - 1].context;
        check_kernels(session, on, found, &small, device);
        list_kernels(on, found, device);
    }
    free_problem(session->ctx, &small);
}

/* A kernel that the environment asks for must be in the list and run here. */
static void check_forced(findings *found) {
    static const struct {
        const char *variable, *operator_name;
    } variables[] = {
        {"HLA_KERNEL", "hadamard"}, {"HLA_SOFTMAX_KERNEL", "softmax"}, {"HLA_FEATURE_MAP_KERNEL", "feature map"}};
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++) {
        const char *name = getenv(variables[i].variable);
        bool good = name == NULL || name[0] == '\0';
        for (int r = 0; r < found->row_count && !good; r++)
            good = found->rows[r].runs_here && strcmp(found->rows[r].operator_name, variables[i].operator_name) == 0 &&
                   strcmp(found->rows[r].name, name) == 0;
        if (!good)
            remark(found, true, "%s is '%s', which is not a %s kernel that runs here", variables[i].variable, name,
                   variables[i].operator_name);
    }
}

/* Shared libraries whose names tell their versions once links are followed. */
static int note_library(struct dl_phdr_info *info, size_t size, void *user) {
    static const char *const names[] = {"libhla.", "libhlv.", "libdnnl", "libjansson", "libgomp", "libomp", "libz."};
    findings *found = user;
    (void)size;
    const char *slash = info->dlpi_name != NULL ? strrchr(info->dlpi_name, '/') : NULL;
    for (size_t i = 0; slash != NULL && i < sizeof names / sizeof names[0]; i++) {
        if (strncmp(slash + 1, names[i], strlen(names[i])) != 0 || found->library_count == 8) continue;
        char *real = realpath(info->dlpi_name, NULL);
        snprintf(found->libraries[found->library_count++], sizeof found->libraries[0], "%s",
                 real != NULL ? real : info->dlpi_name);
        free(real);
    }
    return 0;
}

/* Each format is tried in the directory for temporary files. */
static void try_formats(cli_session *session, findings *found) {
    const char *directory = getenv("TMPDIR");
    for (int i = 0; i < 4; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/hla-doctor.%s", directory != NULL ? directory : "/tmp", extensions[i]);
        found->can_write[i] = hlv_video_check(session->ctx, path) == HLV_OK;
        if (!found->can_write[i])
            remark(found, false, "no .%s can be written: %s", extensions[i], hlv_context_error(session->ctx));
    }
}

/* Opening reads and checks every config, no weights. */
static void try_model(cli_session *session, findings *found) {
    hlv_model_options options;
    hlv_model *model = NULL;
    found->model = find_default_model();
    if (found->model == NULL) {
        remark(found, false, "%s", no_default_model);
        return;
    }
    hlv_model_options_init(&options);
    options.directory = found->model;
    if (hlv_model_open(session->ctx, &options, &model) != HLV_OK)
        remark(found, true, "the default model cannot be opened: %s", hlv_context_error(session->ctx));
    hlv_model_free(model);
}

static void report_json(const findings *found) {
    json_writer out = {.out = stdout};
    json_open(&out, NULL, '{');
    json_text(&out, "version", hla_version());
    machine_json(&out, &found->machine, found->threads);
    json_whole(&out, "memory_available_bytes", found->machine.available);
    json_text(&out, "default_model", found->model);
    json_open(&out, "libraries", '[');
    for (int i = 0; i < found->library_count; i++)
        json_text(&out, NULL, found->libraries[i]);
    json_close(&out, ']');
    json_open(&out, "formats", '{');
    for (int i = 0; i < 4; i++)
        json_bool(&out, extensions[i], found->can_write[i]);
    json_close(&out, '}');
    json_open(&out, "gpus", '[');
    for (int i = 0; i < found->gpu_count; i++) {
        json_open(&out, NULL, '{');
        json_text(&out, "name", found->gpus[i].name);
        json_whole(&out, "memory_bytes", (int64_t)found->gpus[i].memory);
        json_close(&out, '}');
    }
    json_close(&out, ']');
    json_text(&out, "without_gpu", found->gpu_count == 0 ? found->without_gpu : NULL);
    json_text(&out, "forced_kernel", getenv("HLA_KERNEL"));
    json_open(&out, "kernels", '[');
    for (int i = 0; i < found->row_count; i++) {
        const kernel_row *row = &found->rows[i];
        json_open(&out, NULL, '{');
        json_text(&out, "operator", row->operator_name);
        json_text(&out, "name", row->name);
        json_text(&out, "device", row->device == 0 ? "CPU" : found->gpus[row->device - 1].name);
        json_text(&out, "form", row->form[0] != '\0' ? row->form : NULL);
        json_text(&out, "needs", row->needs);
        json_bool(&out, "runs_here", row->runs_here);
        json_number(&out, "relative_error", row->error);
        json_close(&out, '}');
    }
    json_close(&out, ']');
    json_open(&out, "remarks", '[');
    for (int i = 0; i < found->remark_count; i++)
        json_text(&out, NULL, found->remarks[i]);
    json_close(&out, ']');
    json_bool(&out, "good", !found->wrong);
    json_close(&out, '}');
}

static void report_kernel(const kernel_row *row) {
    printf("  %-12s %-22s %-10s ", row->operator_name, row->name, row->form);
    if (!row->runs_here)
        printf("needs %s\n", row->needs);
    else if (isnan(row->error))
        printf("%s\n", row->checked ? "FAILED" : "runs");
    else
        printf("%s, error %.1e\n", row->error <= ERROR_LIMIT ? "runs" : "WRONG", row->error);
}

static void report_text(const findings *found) {
    const machine_info *machine = &found->machine;
    printf("hla %s\n\nMachine\n  processor    %s\n  instructions %s\n", hla_version(), machine->processor,
           machine->instructions[0] != '\0' ? machine->instructions : "none that matter here");
    printf("  cores        %d, computing with %d threads\n", machine->cores, found->threads);
    printf("  memory       %.1f GiB, %.1f GiB available\n\nLibraries\n", (double)machine->memory / 0x1p30,
           (double)machine->available / 0x1p30);
    for (int i = 0; i < found->library_count; i++)
        printf("  %s\n", found->libraries[i]);
    printf("\nVideo formats\n");
    for (int i = 0; i < 4; i++)
        printf("  %-12s %s\n", extensions[i], found->can_write[i] ? "yes" : "no");
    printf("\nDefault model\n  %s\n\nDevices\n  cpu          yes\n", found->model != NULL ? found->model : "none");
    if (found->gpu_count == 0) printf("  cuda         no: %s\n", found->without_gpu);
    for (int i = 0; i < found->gpu_count; i++)
        printf("  cuda %-7d %s, %.1f GiB\n", i, found->gpus[i].name, (double)found->gpus[i].memory / 0x1p30);
    printf("\nKernels, the last that runs is chosen for its form%s%s\n",
           getenv("HLA_KERNEL") != NULL ? "; HLA_KERNEL forces " : "",
           getenv("HLA_KERNEL") != NULL ? getenv("HLA_KERNEL") : "");
    for (int i = 0; i < found->row_count; i++) {
        const kernel_row *row = &found->rows[i];
        if (row->device > 0 && row->device != found->rows[i - 1].device)
            printf(" on %s\n", found->gpus[row->device - 1].name);
        report_kernel(row);
    }
    printf("\n%s", found->remark_count == 0 ? "All is well.\n" : "");
    for (int i = 0; i < found->remark_count; i++)
        printf("%s\n", found->remarks[i]);
}

static int run(int argc, char **argv) {
    cli_common settings = {0};
    text_list words;
    int exit_status = parse_options(&doctor_command, argc, argv, &settings, &words, 0);
    cli_session session;
    if (exit_status == STATUS_GO_ON) exit_status = session_open(&session, &doctor_command, &settings);
    if (exit_status != STATUS_GO_ON) return exit_status;
    hla_context_options options;
    hla_context *hla = NULL;
    hla_context_options_init(&options);
    options.threads = settings.threads;
    if (hla_context_create(&hla, &options) != HLA_OK) {
        session.sentence = "out of memory";
        return session_close(&session, HLV_ERROR_MEMORY);
    }
    findings found = {.threads = hlv_context_threads(session.ctx)};
    read_machine(&found.machine);
    dl_iterate_phdr(note_library, &found);
    try_formats(&session, &found);
    try_model(&session, &found);
    go_through_kernels(&session, hla, &found);
    check_forced(&found);
    if (settings.json)
        report_json(&found);
    else
        report_text(&found);
    exit_status = session_close(&session, HLV_OK);
    if (found.wrong && exit_status == STATUS_DONE) exit_status = STATUS_FAILED;
    close_gpus(found.gpus, found.gpu_count);
    hla_context_free(hla);
    free(found.model);
    return exit_status;
}
