/* The independent answer to a case, and how far a result is from it. */
#include "attention/core/internal.h"
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#define REAL double
#define NAMED(name) name##_double
#include "tests/attention/hadamard_formula.h"
#undef REAL
#undef NAMED
#define REAL float
#define NAMED(name) name##_float
#include "tests/attention/hadamard_formula.h"
#undef REAL
#undef NAMED

int64_t hadamard_count(const guarded *array) {
    const int64_t *shape = array->view.shape;
    return array->pages ? shape[0] * shape[1] * shape[2] * shape[3] : 0;
}

double *hadamard_copy(const guarded *array) {
    const int64_t *shape = array->view.shape;
    double *values = calloc((size_t)hadamard_count(array) + 1, sizeof *values), *next = values;
    if (!values) abort();
    for (int64_t b = 0; array->pages && b < shape[0]; b++) {
        for (int64_t t = 0; t < shape[1]; t++) {
            for (int64_t h = 0; h < shape[2]; h++) {
                for (int64_t x = 0; x < shape[3]; x++)
                    *next++ = get(&array->view, b, t, h, x);
            }
        }
    }
    return values;
}

static float *to_floats(const double *values, int64_t count) {
    float *floats = calloc((size_t)count + 1, sizeof *floats);
    if (!floats) abort();
    for (int64_t i = 0; i < count; i++)
        floats[i] = (float)values[i];
    return floats;
}

static double round_to(hla_dtype dtype, float value) {
    uint32_t storage = 0;
    float rounded;
    hla_store_floats(&storage, dtype, 1, 1, &value);
    hla_load_floats(&rounded, &storage, dtype, 1, 1);
    return (double)rounded;
}

static double naive_error(const double *expected, const float *naive, int64_t count, hla_dtype dtype) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        double error = round_to(dtype, naive[i]) - expected[i];
        difference += error * error;
        norm += expected[i] * expected[i];
    }
    return norm > 0 ? sqrt(difference / norm) : 0;
}

/* An input in both precisions, or NULLs. */
static void copy_input(double **exact, float **naive, const guarded *array) {
    *exact = NULL, *naive = NULL;
    if (!array->pages) return;
    *exact = hadamard_copy(array);
    *naive = to_floats(*exact, hadamard_count(array));
}

void hadamard_answer(hadamard_data *data) {
    arrays_double exact = {&data->problem, data->key_lengths, data->query_starts, data->key_starts, .v = NULL};
    arrays_float naive = {&data->problem, data->key_lengths, data->query_starts, data->key_starts, .v = NULL};
    for (int p = 0; p < HLA_MAX_FACTORS; p++) {
        copy_input(&exact.q[p], &naive.q[p], &data->q[p]);
        copy_input(&exact.k[p], &naive.k[p], &data->k[p]);
    }
    copy_input(&exact.v, &naive.v, &data->v);
    copy_input(&exact.initial_state, &naive.initial_state, &data->initial_state);
    copy_input(&exact.d_out, &naive.d_out, &data->d_out);
    copy_input(&exact.d_final_state, &naive.d_final_state, &data->d_final_state);
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        free(data->expected[i]);
        data->expected[i] = NULL;
        if (!data->output[i].pages) continue;
        size_t count = (size_t)hadamard_count(&data->output[i]) + 1;
        exact.output[i] = data->expected[i] = calloc(count, sizeof(double));
        naive.output[i] = calloc(count, sizeof(float));
        if (!exact.output[i] || !naive.output[i]) abort();
    }
    formula_double(&exact);
    formula_float(&naive);
    for (int i = 0; i < HADAMARD_OUTPUTS; i++) {
        const guarded *array = &data->output[i];
        if (!array->pages) continue;
        data->naive_error[i] = naive_error(exact.output[i], naive.output[i], hadamard_count(array), array->view.dtype);
        free(naive.output[i]);
    }
    double *doubles[] = {exact.v, exact.initial_state, exact.d_out, exact.d_final_state};
    float *floats[] = {naive.v, naive.initial_state, naive.d_out, naive.d_final_state};
    for (int i = 0; i < 4; i++) {
        free(doubles[i]), free(exact.q[i]), free(exact.k[i]);
        free(floats[i]), free(naive.q[i]), free(naive.k[i]);
    }
}

double hadamard_error(const hadamard_data *data, hadamard_output output) {
    const double *expected = data->expected[output];
    double *found = hadamard_copy(&data->output[output]), difference = 0, norm = 0;
    for (int64_t i = 0; i < hadamard_count(&data->output[output]); i++) {
        double error = found[i] - expected[i];
        difference += error * error;
        norm += expected[i] * expected[i];
    }
    free(found);
    return sqrt(norm > 0 ? difference / norm : difference);
}

double hadamard_tolerance(const hadamard_data *data, hadamard_output output) {
    static const double absolute[] = {1e-5, 1e-2, 2e-3}; /* by dtype */
    /* A few roundings of the dtype: with one key the naive formula can be exact by luck, where another order is not. */
    static const double least[] = {0x1p-22, 0x1p-8, 0x1p-11};
    hla_dtype dtype = data->output[output].view.dtype;
    /* In float32 the gradient of a single token goes through some four times as many roundings as out does; in 16 bits
     * the last one outweighs them. */
    double rounding = output >= DV && dtype == HLA_F32 ? 4 * least[dtype] : least[dtype];
    double tolerance = fmax(2 * data->naive_error[output], rounding);
    return fmin(tolerance, absolute[dtype]);
}

void hadamard_output_name(char *name, hadamard_output output) {
    static const char *const names[] = {"out", "final_state", "dv", "d_initial_state"};
    if (output < DQ)
        snprintf(name, 32, "%s", names[output]);
    else
        snprintf(name, 32, "%s[%d]", output < DK ? "dq_features" : "dk_features",
                 (int)(output < DK ? output - DQ : output - DK));
}

void hadamard_check(const hadamard_data *data, hadamard_output first, hadamard_output last, const char *label) {
    for (hadamard_output i = first; i < last; i++) {
        if (!data->output[i].pages) continue;
        char name[32];
        hadamard_output_name(name, i);
        double error = hadamard_error(data, i), tolerance = hadamard_tolerance(data, i);
        if (!(error <= tolerance)) {
            fail_msg("%s, %s, dtype %d, normalised %d, %s: error %.3g, wanted %.3g (naive %.3g)", label,
                     data->problem.kernel, (int)data->problem.dtype, data->problem.normalised, name, error, tolerance,
                     data->naive_error[i]);
        }
        if (!gaps_untouched(&data->output[i]))
            fail_msg("%s, %s: wrote between the elements of %s", label, data->problem.kernel, name);
    }
}
