/* cli/attend.c - hla attend: the operator on arrays from files. */
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/model.h"
#include "cli/operator.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAME 256

typedef struct attend_settings {
    cli_common common;
    text_list q, k;
    const char *v, *maps, *output, *kernel;
    int activation, form, dtype;
    double floor, epsilon, scale;
    bool unnormalised, softmax, explain;
} attend_settings;

static const char *const activations[] = {"relu", "elu1", "softplus", "exp", "softmax", "square", "identity", NULL};
static const char *const forms[] = {"auto", "state", "quadratic", NULL}; /* places as in hla_form */

static const cli_option table[] = {
    {"q", 0, OPTION_LIST, offsetof(attend_settings, q), "FILE",
     "queries [T,H,D] or [B,T,H,D]; without --maps the query features of a factor, once for each factor", 0, 0, NULL},
    {"k", 0, OPTION_LIST, offsetof(attend_settings, k), "FILE", "keys, or key features, in the same way", 0, 0, NULL},
    {"v", 0, OPTION_TEXT, offsetof(attend_settings, v), "FILE", "values [T,H,V] or [B,T,H,V]", 0, 0, NULL},
    {"output", 'o', OPTION_TEXT, offsetof(attend_settings, output), "FILE",
     "result [T,H,V] or [B,T,H,V], .npy or .safetensors (tensor \"out\"), float32", 0, 0, NULL},
    {"maps", 0, OPTION_TEXT, offsetof(attend_settings, maps), "FILE[:PREFIX]",
     "feature maps: query_map.P.weight [H,R,D], key_map.P.weight and, if present, .bias [H,R], .hidden.weight [H,D,D], "
     ".hidden.bias [H,D], for P = 0, 1 ...; PREFIX such as blocks.0.attn1 picks them out of hla/model.safetensors; "
     "what hla/config.json "
     "says of the block (activation, floor, normalised, scale, epsilon) is given by the options",
     0, 0, NULL},
    {"activation", 0, OPTION_CHOICE, offsetof(attend_settings, activation), NULL,
     "of the maps (default: relu); exp shifts queries by their own maximum, keys not", 0, 0, activations},
    {"floor", 0, OPTION_NUMBER, offsetof(attend_settings, floor), "X", "added to relu features (default: 0.001)", 0,
     1e6, NULL},
    {"unnormalised", 0, OPTION_FLAG, offsetof(attend_settings, unnormalised), NULL,
     "without the denominator: scale * sum_j A_ij v_j", 0, 0, NULL},
    {"scale", 0, OPTION_NUMBER, offsetof(attend_settings, scale), "X",
     "of the unnormalised result (default: 1), or of softmax's scores (default: 1/sqrt(D))", -1e30, 1e30, NULL},
    {"epsilon", 0, OPTION_NUMBER, offsetof(attend_settings, epsilon), "X", "added to the denominator (default: 1e-6)",
     0, 1e30, NULL},
    {"softmax", 0, OPTION_FLAG, offsetof(attend_settings, softmax), NULL,
     "softmax attention of q, k and v instead, as the baseline", 0, 0, NULL},
    {"form", 0, OPTION_CHOICE, offsetof(attend_settings, form), NULL,
     "how to compute: auto takes the cheaper, both give the same result", 0, 0, forms},
    {"kernel", 0, OPTION_TEXT, offsetof(attend_settings, kernel), "NAME",
     "one kernel of `hla doctor`'s list (default: the best)", 0, 0, NULL},
    {"dtype", 0, OPTION_CHOICE, offsetof(attend_settings, dtype), NULL,
     "type that features, values and result are rounded to; sums are f32 or better (default: f32)", 0, 0, dtype_names},
    {"explain", 0, OPTION_FLAG, offsetof(attend_settings, explain), NULL, "say what was chosen and why", 0, 0, NULL},
    {0}};

static int run(int argc, char **argv);

const cli_command attend_command = {"attend",
                                    "Computes the attention, or softmax attention, on arrays.",
                                    "--q FILE --k FILE --v FILE [--maps FILE] -o FILE [options]",
                                    table,
                                    "Arrays are .npy ('<f4', '<f2' or '<f8', C order) or .safetensors (F32, F16 or\n"
                                    "BF16). From a .safetensors file the tensor q, k or v is taken, or the one named\n"
                                    "after a colon: acts.safetensors:layer3.q\n"
                                    "\n"
                                    "  A_ij = product over the factors of (query features i . key features j)\n"
                                    "  out_i = sum_j A_ij v_j / (sum_j A_ij + epsilon)\n"
                                    "\n"
                                    "Examples:\n"
                                    "  hla attend --q q.npy --k k.npy --v v.npy --maps maps.safetensors -o out.npy\n"
                                    "  hla attend --q q.npy --k k.npy --v v.npy -o out.npy --explain \\\n"
                                    "      --maps models/hla-tiny/hla/model.safetensors:blocks.0.attn1\n"
                                    "With the features given, two factors:\n"
                                    "  hla attend --q a1.npy --q a2.npy --k c1.npy --k c2.npy --v v.npy -o out.npy\n"
                                    "Softmax attention of the tensors q, k and v of one file:\n"
                                    "  hla attend --q x.safetensors --k x.safetensors --v x.safetensors \\\n"
                                    "      --softmax -o out.safetensors\n",
                                    run};

/* All that a run holds; freed by one function. */
typedef struct attend_state {
    cli_session session;
    hla_context *hla;
    hlv_array_file *maps;
    operand q[HLA_MAX_FACTORS], k[HLA_MAX_FACTORS], v, out; /* q and k: features, or the raw ones for softmax */
    int factors;
    int out_axes; /* of the output array: as many as v's */
    attention_run run;
} attend_state;

static void free_state(attend_state *state) {
    hlv_context *ctx = state->session.ctx;
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        operand_free(ctx, &state->q[p]);
        operand_free(ctx, &state->k[p]);
    }
    operand_free(ctx, &state->v);
    operand_free(ctx, &state->out);
    hlv_array_file_close(state->maps);
}

static hlv_status fail(attend_state *state, const char *format, ...) __attribute__((format(printf, 2, 3)));

static hlv_status fail(attend_state *state, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(state->session.message, sizeof state->session.message, format, args);
    va_end(args);
    state->session.sentence = state->session.message;
    return HLV_ERROR_FORMAT;
}

/* "x.safetensors:name" into a malloc'ed path and the name; name stays as it is where there is none. */
static char *split_spec(const char *spec, const char **name) {
    static const char ending[] = ".safetensors:";
    const char *colon = strstr(spec, ending);
    if (colon == NULL) return strdup(spec);
    colon += sizeof ending - 2;
    *name = colon + 1;
    return strndup(spec, (size_t)(colon - spec));
}

/* Reads an array of 3 or 4 axes; shape gets B, T, H, X. */
static hlv_status read_array(attend_state *state, const char *spec, const char *name, hlv_array *array,
                             int64_t shape[4]) {
    char *path = split_spec(spec, &name);
    hlv_array_file *file = NULL;
    hlv_status status =
        path == NULL ? fail(state, "out of memory") : hlv_array_file_open(state->session.ctx, path, &file);
    if (status == HLV_OK) status = hlv_array_read(file, name, array);
    hlv_array_file_close(file);
    free(path);
    if (status != HLV_OK) return status;
    if (array->ndim != 3 && array->ndim != 4)
        return fail(state, "%s: array with %d axes, wanted [T,H,X] or [B,T,H,X]", spec, array->ndim);
    shape[0] = array->ndim == 4 ? array->shape[0] : 1;
    for (int i = 0; i < 3; i++)
        shape[1 + i] = array->shape[array->ndim - 3 + i];
    if (array->count == 0)
        return fail(state, "%s: array is empty: [%lld,%lld,%lld,%lld]", spec, (long long)shape[0], (long long)shape[1],
                    (long long)shape[2], (long long)shape[3]);
    return HLV_OK;
}

/* An array as an operand of the wanted type. */
static hlv_status read_operand(attend_state *state, const attend_settings *settings, const char *spec, const char *name,
                               operand *made) {
    hlv_array array = {0};
    int64_t shape[4];
    hlv_status status = read_array(state, spec, name, &array, shape);
    if (status == HLV_OK) status = operand_create(state->session.ctx, (hla_dtype)settings->dtype, shape, made);
    if (status == HLV_OK) {
        operand_from_floats(made, array.data);
        state->out_axes = array.ndim;
    }
    hlv_array_free(state->session.ctx, &array);
    return status;
}

static hlv_status read_features(attend_state *state, const attend_settings *settings) {
    hlv_status status = HLV_OK;
    state->factors = settings->q.count;
    for (int p = 0; p < state->factors && status == HLV_OK; p++) {
        status = read_operand(state, settings, settings->q.items[p], "q", &state->q[p]);
        if (status == HLV_OK) status = read_operand(state, settings, settings->k.items[p], "k", &state->k[p]);
    }
    return status;
}

/* One tensor of a map, with its shape checked; array stays empty when it is optional and absent. */
static hlv_status read_map_part(attend_state *state, const char *map, const char *part, bool needed,
                                const int64_t *shape, int ndim, hlv_array *array) {
    char name[MAX_NAME + 32];
    snprintf(name, sizeof name, "%s.%s", map, part);
    if (!needed && !hlv_array_file_has(state->maps, name)) return HLV_OK;
    hlv_status status = hlv_array_read(state->maps, name, array);
    if (status != HLV_OK) return status;
    bool good = array->ndim == ndim;
    for (int i = 0; good && i < ndim; i++)
        good = shape[i] < 0 || array->shape[i] == shape[i];
    return good ? HLV_OK
                : fail(state, "--maps: tensor '%s' does not have the shape that %lld heads of width %lld need", name,
                       (long long)shape[0], (long long)shape[ndim - 1]);
}

/* features = act(W x + b), the map's tensors named map.weight and so on. */
static hlv_status apply_map(attend_state *state, const attend_settings *settings, const char *map, const operand *x,
                            bool is_query, operand *features) {
    enum { WEIGHT, BIAS, HIDDEN_WEIGHT, HIDDEN_BIAS, PARTS };
    static const char *const names[PARTS] = {"weight", "bias", "hidden.weight", "hidden.bias"};
    hlv_context *ctx = state->session.ctx;
    hlv_array parts[PARTS] = {{0}};
    int64_t H = x->view.shape[2], D = x->view.shape[3];
    hlv_status status = read_map_part(state, map, names[WEIGHT], true, (int64_t[]){H, -1, D}, 3, &parts[WEIGHT]);
    int64_t R = status == HLV_OK ? parts[WEIGHT].shape[1] : 0;
    if (status == HLV_OK) status = read_map_part(state, map, names[BIAS], false, (int64_t[]){H, R}, 2, &parts[BIAS]);
    if (status == HLV_OK)
        status = read_map_part(state, map, names[HIDDEN_WEIGHT], false, (int64_t[]){H, D, D}, 3, &parts[HIDDEN_WEIGHT]);
    if (status == HLV_OK)
        status = read_map_part(state, map, names[HIDDEN_BIAS], false, (int64_t[]){H, D}, 2, &parts[HIDDEN_BIAS]);
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = x->view.shape[0];
    problem.tokens = x->view.shape[1];
    problem.heads = H;
    problem.dim = D;
    problem.rank = R;
    problem.dtype = x->view.dtype;
    problem.activation = (hla_activation)settings->activation;
    problem.floor = (float)settings->floor;
    problem.is_query = is_query;
    if (status == HLV_OK)
        status = operand_create(ctx, problem.dtype, (int64_t[]){problem.batch, problem.tokens, H, R}, features);
    if (status == HLV_OK) {
        hla_feature_map_weights weights = {parts[WEIGHT].data, parts[BIAS].data, parts[HIDDEN_WEIGHT].data,
                                           parts[HIDDEN_BIAS].data};
        hla_status done = hla_feature_map_forward(state->hla, &problem, &features->view, &x->view, &weights);
        if (done != HLA_OK) status = fail(state, "--maps: %s: %s", map, hla_context_error(state->hla));
    }
    for (int i = 0; i < PARTS; i++)
        hlv_array_free(ctx, &parts[i]);
    return status;
}

static hlv_status compute_features(attend_state *state, const attend_settings *settings, const operand *q,
                                   const operand *k) {
    const char *prefix = "";
    char *path = split_spec(settings->maps, &prefix), query_map[MAX_NAME], key_map[MAX_NAME];
    if (path == NULL) return fail(state, "out of memory");
    hlv_status status = strlen(prefix) > MAX_NAME / 2
                            ? fail(state, "--maps: the prefix is longer than %d bytes", MAX_NAME / 2)
                            : hlv_array_file_open(state->session.ctx, path, &state->maps);
    free(path);
    for (int p = 0; status == HLV_OK && p <= HLA_MAX_FACTORS; p++) {
        char probe[MAX_NAME + 16];
        const char *dot = prefix[0] != '\0' ? "." : "";
        snprintf(query_map, sizeof query_map, "%s%squery_map.%d", prefix, dot, p);
        snprintf(key_map, sizeof key_map, "%s%skey_map.%d", prefix, dot, p);
        snprintf(probe, sizeof probe, "%s.weight", query_map);
        if (p > 0 && !hlv_array_file_has(state->maps, probe)) break;
        if (p == HLA_MAX_FACTORS) return fail(state, "--maps: more than %d factors", HLA_MAX_FACTORS);
        status = apply_map(state, settings, query_map, q, true, &state->q[p]);
        if (status == HLV_OK) status = apply_map(state, settings, key_map, k, false, &state->k[p]);
        state->factors = p + 1;
    }
    return status;
}

static hlv_status read_and_map(attend_state *state, const attend_settings *settings) {
    operand q = {0}, k = {0};
    hlv_status status = read_operand(state, settings, settings->q.items[0], "q", &q);
    if (status == HLV_OK) status = read_operand(state, settings, settings->k.items[0], "k", &k);
    if (status == HLV_OK) status = compute_features(state, settings, &q, &k);
    operand_free(state->session.ctx, &q);
    operand_free(state->session.ctx, &k);
    return status;
}

/* Shapes that the files alone decide; the operator checks the rest. */
static hlv_status check_shapes(attend_state *state) {
    const int64_t *q = state->q[0].view.shape, *k = state->k[0].view.shape, *v = state->v.view.shape;
    if (q[0] != k[0] || q[0] != v[0] || q[2] != k[2] || q[2] != v[2] || k[1] != v[1])
        return fail(
            state,
            "shapes do not fit: q [%lld,%lld,%lld,..], k [%lld,%lld,%lld,..], v [%lld,%lld,%lld,..]: wanted one B and "
            "H for all, one T for k and v",
            (long long)q[0], (long long)q[1], (long long)q[2], (long long)k[0], (long long)k[1], (long long)k[2],
            (long long)v[0], (long long)v[1], (long long)v[2]);
    for (int p = 0; p < state->factors; p++) {
        const int64_t *a = state->q[p].view.shape, *c = state->k[p].view.shape;
        if (a[3] != c[3] || memcmp(a, q, 3 * sizeof *a) != 0 || memcmp(c, k, 3 * sizeof *c) != 0)
            return fail(state, "factor %d: query and key features need one width, and the B, T and H of factor 1",
                        p + 1);
    }
    return HLV_OK;
}

static hlv_status attend_hadamard(attend_state *state, const attend_settings *settings) {
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = state->q[0].view.shape[0];
    problem.heads = state->q[0].view.shape[2];
    problem.queries = state->q[0].view.shape[1];
    problem.keys = state->k[0].view.shape[1];
    problem.value_dim = state->v.view.shape[3];
    problem.factors = state->factors;
    for (int p = 0; p < state->factors; p++)
        problem.rank[p] = state->q[p].view.shape[3];
    problem.dtype = (hla_dtype)settings->dtype;
    problem.normalised = !settings->unnormalised;
    problem.epsilon = (float)settings->epsilon;
    problem.scale = isnan(settings->scale) ? 1.0f : (float)settings->scale;
    problem.form = (hla_form)settings->form;
    problem.kernel = settings->kernel;
    hlv_status status =
        run_hadamard(&state->session, state->hla, &problem, &state->out, state->q, state->k, &state->v, 1, &state->run);
    bool features = status == HLV_ERROR_FORMAT && strncmp(state->session.sentence, "k_features", 10) == 0;
    if (!features || settings->maps == NULL || settings->activation != HLA_ACTIVATION_EXP) return status;
    return fail(state, "%s: exp(W k + b) overflows above 88, since keys are not shifted",
                hla_context_error(state->hla));
}

static hlv_status attend_softmax(attend_state *state, const attend_settings *settings) {
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = state->q[0].view.shape[0];
    problem.heads = state->q[0].view.shape[2];
    problem.queries = state->q[0].view.shape[1];
    problem.keys = state->k[0].view.shape[1];
    problem.dim = state->q[0].view.shape[3];
    problem.value_dim = state->v.view.shape[3];
    problem.dtype = (hla_dtype)settings->dtype;
    problem.scale = isnan(settings->scale) ? 0.0f : (float)settings->scale;
    problem.kernel = settings->kernel;
    return run_softmax(&state->session, state->hla, &problem, &state->out, &state->q[0], &state->k[0], &state->v, 1,
                       &state->run);
}

/* The result with as many axes as the values had. */
static hlv_status write_result(attend_state *state, const attend_settings *settings) {
    hlv_array array = {0};
    hlv_status status =
        hlv_array_create(state->session.ctx, state->out_axes, state->out.view.shape + 4 - state->out_axes, &array);
    if (status == HLV_OK) {
        operand_to_floats(array.data, &state->out);
        status = hlv_array_write(state->session.ctx, settings->output, "out", &array);
    }
    hlv_array_free(state->session.ctx, &array);
    return status;
}

static void report(const attend_state *state, const attend_settings *settings) {
    const int64_t *shape = state->out.view.shape;
    const attention_run *done = &state->run;
    const char *attention = settings->softmax ? "softmax" : "hadamard";
    if (!state->session.json) {
        printf("%s: [", settings->output);
        for (int i = 4 - state->out_axes; i < 4; i++)
            printf("%lld%s", (long long)shape[i], i < 3 ? "," : "");
        printf("], %s, kernel %s, %.3g ms\n", attention, done->kernel, 1e3 * done->seconds);
        if (settings->explain) printf("%s\n", done->explain);
        return;
    }
    json_writer out = {.out = stdout};
    json_open(&out, NULL, '{');
    json_text(&out, "output", settings->output);
    json_open(&out, "shape", '[');
    for (int i = 4 - state->out_axes; i < 4; i++)
        json_whole(&out, NULL, shape[i]);
    json_close(&out, ']');
    json_text(&out, "attention", attention);
    json_whole(&out, "factors", settings->softmax ? 0 : state->factors);
    json_text(&out, "form", forms[done->form]);
    json_text(&out, "kernel", done->kernel);
    json_text(&out, "explain", done->explain);
    json_text(&out, "dtype", dtype_names[settings->dtype]);
    json_whole(&out, "threads", hla_context_threads(state->hla));
    json_number(&out, "seconds", done->seconds);
    json_close(&out, '}');
}

static hlv_status attend(attend_state *state, const attend_settings *settings) {
    hlv_status status = hlv_array_check(state->session.ctx, settings->output);
    if (status == HLV_OK)
        status = settings->maps != NULL ? read_and_map(state, settings) : read_features(state, settings);
    if (status == HLV_OK) status = read_operand(state, settings, settings->v, "v", &state->v);
    if (status == HLV_OK) status = check_shapes(state);
    if (status != HLV_OK) return status;
    const int64_t *q = state->q[0].view.shape;
    status = operand_create(state->session.ctx, (hla_dtype)settings->dtype,
                            (int64_t[]){q[0], q[1], q[2], state->v.view.shape[3]}, &state->out);
    if (status == HLV_OK)
        status = settings->softmax ? attend_softmax(state, settings) : attend_hadamard(state, settings);
    if (status == HLV_OK && session_interrupted()) {
        state->session.sentence = "interrupted: nothing was written";
        return HLV_ERROR_CANCELLED;
    }
    if (status == HLV_OK) status = write_result(state, settings);
    if (status == HLV_OK) report(state, settings);
    return status;
}

/* Wrong combinations of options: STATUS_GO_ON if there are none. */
static int check(const attend_settings *settings) {
    const cli_command *command = &attend_command;
    if (settings->q.count == 0 || settings->k.count == 0 || settings->v == NULL)
        return wrong_usage(command, "--q, --k and --v are needed");
    if (settings->output == NULL) return wrong_usage(command, "no output: give -o FILE, .npy or .safetensors");
    if (settings->q.count != settings->k.count)
        return wrong_usage(command, "--q is given %d times and --k %d times: one pair for each factor",
                           settings->q.count, settings->k.count);
    if (settings->q.count > HLA_MAX_FACTORS)
        return wrong_usage(command, "--q is given %d times, wanted at most %d factors", settings->q.count,
                           HLA_MAX_FACTORS);
    if (settings->q.count > 1 && (settings->maps != NULL || settings->softmax))
        return wrong_usage(command, "with --maps or --softmax there is one --q and one --k");
    if (settings->maps != NULL && settings->softmax)
        return wrong_usage(command, "--softmax uses no feature maps: leave --maps out");
    if (settings->softmax && (settings->unnormalised || settings->form != HLA_FORM_AUTO))
        return wrong_usage(command, "--unnormalised and --form are for Hadamard attention, not for --softmax");
    return STATUS_GO_ON;
}

static int run(int argc, char **argv) {
    attend_settings settings = {.floor = 1e-3, .epsilon = 1e-6, .scale = NAN};
    text_list words;
    int exit_status = parse_options(&attend_command, argc, argv, &settings, &words, 0);
    if (exit_status == STATUS_GO_ON) exit_status = check(&settings);
    attend_state state = {0};
    if (exit_status == STATUS_GO_ON) exit_status = session_open(&state.session, &attend_command, &settings.common);
    if (exit_status != STATUS_GO_ON) return exit_status;
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = settings.common.threads;
    options.check_finite = true; /* files hold anything, and exp overflows */
    hlv_status status =
        hla_context_create(&state.hla, &options) == HLA_OK ? attend(&state, &settings) : fail(&state, "out of memory");
    free_state(&state);
    exit_status = session_close(&state.session, status);
    hla_context_free(state.hla);
    return exit_status;
}
