/* `hla attend` from a shell against the formula in double precision, written down here once more. */
#include "hlv/arrays.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { TQ = 7, TK = 11, H = 3, D = 6, V = 5, P = 2 };
static const int64_t rank[P] = {4, 3};

typedef struct fixture {
    hlv_context *ctx;
    char scratch[64];
    hlv_array q, k, v, query_weight[P], query_bias[P], key_weight[P], hidden, features[2][P];
} fixture;

static void make(fixture *f, hlv_array *array, int ndim, const int64_t *shape, uint32_t seed) {
    assert_int_equal(hlv_array_create(f->ctx, ndim, shape, array), HLV_OK);
    for (int64_t i = 0; i < array->count; i++) {
        seed = seed * 1664525u + 1013904223u;
        array->data[i] = (float)(seed >> 8) / 0x1p23f - 1;
    }
}

static const char *in_scratch(const fixture *f, const char *name, char path[128]) {
    snprintf(path, 128, "%s/%s", f->scratch, name);
    return path;
}

static void save(fixture *f, const char *name, const hlv_array *array) {
    char path[128];
    assert_int_equal(hlv_array_write(f->ctx, in_scratch(f, name, path), "x", array), HLV_OK);
}

static void save_scaled(fixture *f, const char *name, const hlv_array *array, float scale) {
    hlv_array scaled;
    make(f, &scaled, array->ndim, array->shape, 0);
    for (int64_t i = 0; i < array->count; i++)
        scaled.data[i] = scale * array->data[i];
    save(f, name, &scaled);
    hlv_array_free(f->ctx, &scaled);
}

/* A .safetensors file of several F32 tensors, put together by hand. */
static void save_maps(fixture *f, const char *name, const char *prefix) {
    const struct {
        const char *name;
        const hlv_array *array;
    } tensors[] = {{"query_map.0.weight", &f->query_weight[0]}, {"query_map.0.bias", &f->query_bias[0]},
                   {"key_map.0.weight", &f->key_weight[0]},     {"query_map.1.weight", &f->query_weight[1]},
                   {"query_map.1.bias", &f->query_bias[1]},     {"key_map.1.weight", &f->key_weight[1]},
                   {"key_map.1.hidden.weight", &f->hidden}};
    char header[2048] = "{", path[128];
    size_t used = 1;
    int64_t offset = 0;
    for (size_t i = 0; i < 7; i++) {
        const hlv_array *array = tensors[i].array;
        used += (size_t)snprintf(header + used, sizeof header - used, "%s\"%s%s\":{\"dtype\":\"F32\",\"shape\":[",
                                 i > 0 ? "," : "", prefix, tensors[i].name);
        for (int j = 0; j < array->ndim; j++)
            used += (size_t)snprintf(header + used, sizeof header - used, "%s%lld", j > 0 ? "," : "",
                                     (long long)array->shape[j]);
        used += (size_t)snprintf(header + used, sizeof header - used, "],\"data_offsets\":[%lld,%lld]}",
                                 (long long)offset, (long long)offset + 4 * (long long)array->count);
        offset += 4 * array->count;
    }
    header[used++] = '}';
    while (used % 8 != 0)
        header[used++] = ' ';
    uint64_t size = used;
    FILE *file = fopen(in_scratch(f, name, path), "wb");
    assert_non_null(file);
    fwrite(&size, 8, 1, file);
    fwrite(header, 1, used, file);
    for (size_t i = 0; i < 7; i++)
        fwrite(tensors[i].array->data, 4, (size_t)tensors[i].array->count, file);
    assert_int_equal(fclose(file), 0);
}

/* features[t,h,r] = max(W_h[r] . x + b, 0) + 1e-3; x first x + relu(U x) where there is a hidden layer. */
static void map_features(hlv_array *out, const hlv_array *x, const hlv_array *weight, const hlv_array *bias,
                         const hlv_array *hidden) {
    int64_t R = weight->shape[1];
    for (int64_t th = 0; th < x->shape[0] * H; th++) {
        const float *row = x->data + th * D;
        int64_t h = th % H;
        double y[D];
        for (int i = 0; i < D; i++) {
            double sum = 0;
            for (int j = 0; hidden != NULL && j < D; j++)
                sum += (double)hidden->data[(h * D + i) * D + j] * row[j];
            y[i] = row[i] + fmax(sum, 0);
        }
        for (int64_t r = 0; r < R; r++) {
            double sum = bias != NULL ? bias->data[h * R + r] : 0;
            for (int j = 0; j < D; j++)
                sum += (double)weight->data[(h * R + r) * D + j] * y[j];
            out->data[th * R + r] = (float)(fmax(sum, 0) + 1e-3);
        }
    }
}

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    assert_int_equal(hlv_context_create(&f->ctx), HLV_OK);
    strcpy(f->scratch, "/tmp/hla-attend-XXXXXX");
    assert_non_null(mkdtemp(f->scratch));
    make(f, &f->q, 3, (int64_t[]){TQ, H, D}, 1);
    make(f, &f->k, 3, (int64_t[]){TK, H, D}, 2);
    make(f, &f->v, 3, (int64_t[]){TK, H, V}, 3);
    make(f, &f->hidden, 3, (int64_t[]){H, D, D}, 4);
    for (int p = 0; p < P; p++) {
        make(f, &f->query_weight[p], 3, (int64_t[]){H, rank[p], D}, 10 + (uint32_t)p);
        make(f, &f->query_bias[p], 2, (int64_t[]){H, rank[p]}, 20 + (uint32_t)p);
        make(f, &f->key_weight[p], 3, (int64_t[]){H, rank[p], D}, 30 + (uint32_t)p);
        make(f, &f->features[0][p], 3, (int64_t[]){TQ, H, rank[p]}, 0);
        make(f, &f->features[1][p], 3, (int64_t[]){TK, H, rank[p]}, 0);
        map_features(&f->features[0][p], &f->q, &f->query_weight[p], &f->query_bias[p], NULL);
        map_features(&f->features[1][p], &f->k, &f->key_weight[p], NULL, p == 1 ? &f->hidden : NULL);
    }
    save(f, "q.npy", &f->q);
    save(f, "k.npy", &f->k);
    save(f, "v.npy", &f->v);
    save_scaled(f, "huge.npy", &f->k, 1e4f);
    save_scaled(f, "nan.npy", &f->k, NAN);
    save(f, "a1.npy", &f->features[0][0]);
    save(f, "a2.safetensors", &f->features[0][1]);
    save(f, "c1.npy", &f->features[1][0]);
    save(f, "c2.npy", &f->features[1][1]);
    save_maps(f, "maps.safetensors", "");
    save_maps(f, "all.safetensors", "blocks.3.attn1.");
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    char command[160];
    snprintf(command, sizeof command, "rm -r '%s'", f->scratch);
    assert_int_equal(system(command), 0);
    hlv_array *const all[] = {&f->q, &f->k, &f->v, &f->hidden};
    for (size_t i = 0; i < 4; i++)
        hlv_array_free(f->ctx, all[i]);
    for (int p = 0; p < P; p++) {
        hlv_array_free(f->ctx, &f->query_weight[p]);
        hlv_array_free(f->ctx, &f->query_bias[p]);
        hlv_array_free(f->ctx, &f->key_weight[p]);
        hlv_array_free(f->ctx, &f->features[0][p]);
        hlv_array_free(f->ctx, &f->features[1][p]);
    }
    hlv_context_free(f->ctx);
    free(f);
    return 0;
}

/* Runs `hla attend ARGS` in the scratch directory; what it says goes to said.txt there. The exit status. */
static int attend(const fixture *f, const char *args) {
    char command[1024];
    int length =
        snprintf(command, sizeof command, "cd '%s' && '%s' attend %s >said.txt 2>&1", f->scratch, HLA_PROGRAM, args);
    assert_true(length > 0 && (size_t)length < sizeof command);
    int status = system(command);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static double score(const fixture *f, int64_t i, int64_t j, int64_t h) {
    double product = 1;
    for (int p = 0; p < P; p++) {
        double sum = 0;
        for (int64_t r = 0; r < rank[p]; r++)
            sum += (double)f->features[0][p].data[(i * H + h) * rank[p] + r] *
                   f->features[1][p].data[(j * H + h) * rank[p] + r];
        product *= sum;
    }
    return product;
}

static double softmax_score(const fixture *f, int64_t i, int64_t j, int64_t h) {
    double sum = 0;
    for (int d = 0; d < D; d++)
        sum += (double)f->q.data[(i * H + h) * D + d] * f->k.data[(j * H + h) * D + d];
    return exp(sum / sqrt(D));
}

typedef enum formula { NORMALISED, UNNORMALISED_TWICE, SOFTMAX } formula;

/* Compares the file with the definition; ||got - want|| / ||want||. */
static void assert_result(const fixture *f, const char *name, formula kind, double limit) {
    char path[128];
    hlv_array_file *file = NULL;
    hlv_array got = {0};
    assert_int_equal(hlv_array_file_open(f->ctx, in_scratch(f, name, path), &file), HLV_OK);
    assert_int_equal(hlv_array_read(file, "out", &got), HLV_OK);
    hlv_array_file_close(file);
    assert_int_equal(got.ndim, 3);
    assert_memory_equal(got.shape, ((int64_t[]){TQ, H, V}), sizeof(int64_t[3]));
    double off = 0, norm = 0;
    for (int64_t i = 0; i < TQ; i++)
        for (int64_t h = 0; h < H; h++)
            for (int64_t x = 0; x < V; x++) {
                double n = 0, d = 0;
                for (int64_t j = 0; j < TK; j++) {
                    double a = kind == SOFTMAX ? softmax_score(f, i, j, h) : score(f, i, j, h);
                    n += a * f->v.data[(j * H + h) * V + x];
                    d += a;
                }
                double want = kind == UNNORMALISED_TWICE ? 2 * n : kind == SOFTMAX ? n / d : n / (d + 1e-6);
                double difference = got.data[(i * H + h) * V + x] - want;
                off += difference * difference;
                norm += want * want;
            }
    hlv_array_free(f->ctx, &got);
    if (!(sqrt(off / norm) <= limit))
        fail_msg("%s: relative error %g, wanted at most %g", name, sqrt(off / norm), limit);
}

static void assert_said(const fixture *f, const char *part) {
    char path[128], text[4096] = "";
    FILE *file = fopen(in_scratch(f, "said.txt", path), "r");
    assert_non_null(file);
    size_t size = fread(text, 1, sizeof text - 1, file);
    text[size] = '\0';
    fclose(file);
    if (strstr(text, part) == NULL) fail_msg("wanted '%s' in: %s", part, text);
}

static void test_features_given(void **state) {
    static const char *const forms[] = {"auto", "state", "quadratic"};
    for (int i = 0; i < 3; i++) {
        char args[256];
        snprintf(args, sizeof args,
                 "--q a1.npy --q a2.safetensors:x --k c1.npy --k c2.npy --v v.npy -o out.npy --form %s --threads 2",
                 forms[i]);
        assert_int_equal(attend(*state, args), 0);
        assert_result(*state, "out.npy", NORMALISED, 1e-6);
    }
    assert_said(*state, "kernel quadratic");
}

static void test_maps(void **state) {
    assert_int_equal(
        attend(*state, "--q q.npy --k k.npy --v v.npy --maps maps.safetensors -o out.safetensors --explain"), 0);
    assert_result(*state, "out.safetensors", NORMALISED, 1e-5);
    assert_int_equal(
        attend(*state, "--q q.npy --k k.npy --v v.npy --maps all.safetensors:blocks.3.attn1 -o out.npy --json"), 0);
    assert_result(*state, "out.npy", NORMALISED, 1e-5);
    assert_said(*state, "\"factors\": 2");
}

static void test_variants(void **state) {
    const char *features = "--q a1.npy --q a2.safetensors:x --k c1.npy --k c2.npy --v v.npy -o out.npy";
    char args[256];
    snprintf(args, sizeof args, "%s --unnormalised --scale 2", features);
    assert_int_equal(attend(*state, args), 0);
    assert_result(*state, "out.npy", UNNORMALISED_TWICE, 1e-6);
    snprintf(args, sizeof args, "%s --dtype bf16", features);
    assert_int_equal(attend(*state, args), 0);
    assert_result(*state, "out.npy", NORMALISED, 1e-2);
    snprintf(args, sizeof args, "%s --kernel reference", features);
    assert_int_equal(attend(*state, args), 0);
    assert_result(*state, "out.npy", NORMALISED, 1e-6);
    assert_int_equal(attend(*state, "--q q.npy --k k.npy --v v.npy --softmax -o out.npy"), 0);
    assert_result(*state, "out.npy", SOFTMAX, 1e-6);
}

/* Each gives its exit status and a sentence, and leaves no output. */
static void test_bad_input(void **state) {
    static const struct {
        const char *args;
        int status;
        const char *part;
    } table[] = {
        {"--q q.npy --k k.npy --v v.npy", 2, "no output"},
        {"--q q.npy --v v.npy -o bad.npy", 2, "--q, --k and --v"},
        {"--q a1.npy --q a2.safetensors:x --k c1.npy --v v.npy -o bad.npy", 2, "--q is given 2 times and --k 1"},
        {"--q q.npy --q q.npy --k k.npy --k k.npy --v v.npy --softmax -o bad.npy", 2, "one --q"},
        {"--q q.npy --k k.npy --v v.npy --softmax --maps maps.safetensors -o bad.npy", 2, "no feature maps"},
        {"--q none.npy --k k.npy --v v.npy -o bad.npy", 1, "none.npy"},
        {"--q a2.safetensors:y --k k.npy --v v.npy -o bad.npy", 1, "no tensor named 'y'"},
        {"--q a2.safetensors --k k.npy --v v.npy -o bad.npy", 1, "no tensor named 'q'"},
        {"--q q.npy --k v.npy --v v.npy -o bad.npy", 1, "one width"},
        {"--q q.npy --k k.npy --v q.npy -o bad.npy", 1, "shapes do not fit"},
        {"--q q.npy --k k.npy --v v.npy --maps v.npy -o bad.npy", 1, "does not have the shape"},
        {"--q q.npy --k k.npy --v v.npy --maps all.safetensors -o bad.npy", 1, "query_map.0.weight"},
        {"--q a1.npy --k c1.npy --v v.npy --maps maps.safetensors -o bad.npy", 1, "does not have the shape"},
        {"--q q.npy --k k.npy --v v.npy -o bad.txt", 2, "bad.txt"},
        {"--q q.npy --k k.npy --v v.npy -o no/bad.npy", 1, "no/bad.npy"},
        {"--q q.npy --k k.npy --v v.npy -o bad.npy --kernel fastest", 2, "fastest"},
        {"--q q.npy --k k.npy --v v.npy -o bad.npy --form linear", 2, "auto, state, quadratic"},
        {"--q q.npy --k k.npy --v v.npy -o bad.npy --memory-limit 100", 1, "memory"},
        {"--q q.npy --k huge.npy --v v.npy --maps maps.safetensors --activation exp -o bad.npy", 1, "overflows"},
        {"--q q.npy --k nan.npy --v v.npy --maps maps.safetensors -o bad.npy", 1, "key_map.0: x holds NaN"},
        {"--q q.npy --k nan.npy --v v.npy --softmax -o bad.npy", 1, "k holds NaN"},
    };
    const fixture *f = *state;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        int status = attend(f, table[i].args);
        if (status != table[i].status)
            fail_msg("exit status %d, wanted %d: %s", status, table[i].status, table[i].args);
        assert_said(f, table[i].part);
        char path[128];
        assert_int_not_equal(access(in_scratch(f, "bad.npy", path), F_OK), 0);
        assert_int_not_equal(access(in_scratch(f, "bad.txt", path), F_OK), 0);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_features_given), cmocka_unit_test(test_maps),
                                       cmocka_unit_test(test_variants), cmocka_unit_test(test_bad_input)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
