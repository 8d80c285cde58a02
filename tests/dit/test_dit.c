/* The transformer against diffusers' WanTransformer3DModel (tests/golden/make_dit.py): softmax and Hadamard blocks,
 * several configs; the same bits on any number of threads; and what bad input gets. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "video/dit/dit.h"
#include "video/dit/rope.h"

#define GOLDEN HLA_TEST_ROOT "/tests/golden/dit/"

static hlv_context *open_context(int threads) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    assert_int_equal(hlv_context_set_threads(ctx, threads), HLV_OK);
    return ctx;
}

/* Fails with the library's own sentence. */
static void check_ok(hlv_context *ctx, hlv_status status) {
    if (status != HLV_OK) fail_msg("%s: %s", hlv_status_name(status), hlv_context_error(ctx));
}

static hlv_dit *open_dit(hlv_context *ctx, const char *name, hlv_attention attention, hla_dtype dtype) {
    char transformer[512], adapter[512];
    snprintf(transformer, sizeof transformer, GOLDEN "%s/transformer", name);
    snprintf(adapter, sizeof adapter, GOLDEN "%s/hla", name);
    bool has_adapter = access(adapter, F_OK) == 0;
    hlv_dit *dit = NULL;
    check_ok(ctx, hlv_dit_open(ctx, transformer, has_adapter ? adapter : NULL, attention, dtype, &dit));
    return dit;
}

typedef struct example {
    float *latents, *text, *velocity;
    int64_t F, Y, X, count, real_tokens, text_tokens;
    double timestep;
} example;

static const hlv_weight *find(const hlv_weights *file, int c, const char *what) {
    char name[64];
    snprintf(name, sizeof name, "%d.%s", c, what);
    return hlv_weights_find(file, name);
}

static float *copy_of(const hlv_weight *weight) {
    assert_non_null(weight);
    float *values = malloc((size_t)weight->count * sizeof(float) + 1);
    assert_non_null(values);
    hlv_weight_to_f32(weight, values);
    return values;
}

static double number(const hlv_weights *file, int c, const char *what) {
    float *value = copy_of(find(file, c, what));
    double result = value[0];
    free(value);
    return result;
}

static bool read_example(const hlv_weights *file, int c, example *out) {
    const hlv_weight *latents = find(file, c, "latents"), *text = find(file, c, "text");
    if (!latents) return false;
    *out =
        (example){.latents = copy_of(latents), .text = copy_of(text), .velocity = copy_of(find(file, c, "velocity"))};
    out->F = latents->shape[1], out->Y = latents->shape[2], out->X = latents->shape[3], out->count = latents->count;
    out->real_tokens = text->shape[0];
    out->timestep = number(file, c, "timestep");
    out->text_tokens = (int64_t)number(file, c, "text_tokens");
    return true;
}

static void free_example(example *e) {
    free(e->latents), free(e->text), free(e->velocity);
}

static hlv_weights *open_examples(hlv_context *ctx, const char *name) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s/cases.safetensors", name);
    hlv_weights *file = NULL;
    check_ok(ctx, hlv_weights_open(ctx, path, &file));
    return file;
}

static float *poisoned(int64_t count) {
    float *values = malloc((size_t)count * sizeof(float));
    assert_non_null(values);
    for (int64_t i = 0; i < count; i++)
        values[i] = NAN;
    return values;
}

static double relative_error(const float *got, const float *want, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        norm += (double)want[i] * want[i];
    }
    return sqrt(difference / norm);
}

static float *run_example(hlv_context *ctx, const hlv_dit *dit, const example *e) {
    hlv_dit_prompt *prompt = NULL;
    hlv_dit_session *session = NULL;
    check_ok(ctx, hlv_dit_prompt_create(dit, e->text, e->real_tokens, e->text_tokens, &prompt));
    check_ok(ctx, hlv_dit_session_create(dit, e->F, e->Y, e->X, &session));
    const int *patch = hlv_dit_config(dit)->patch_size;
    assert_int_equal(hlv_dit_session_tokens(session), e->F * e->Y * e->X / patch[0] / patch[1] / patch[2]);
    float *velocity = poisoned(e->count);
    check_ok(ctx, hlv_dit_forward(session, velocity, e->latents, e->timestep, prompt));
    hlv_dit_session_free(session);
    hlv_dit_prompt_free(prompt);
    return velocity;
}

static const char *const FOLDERS[] = {"one_head",  "two_heads_sharded", "three_heads", "time_patch", "stored_bf16",
                                      "hla_mixed", "hla_variants",      "many_tokens", "recipe"};
#define FOLDER_COUNT (sizeof FOLDERS / sizeof *FOLDERS)

static void parity(const char *name, hla_dtype dtype, double tolerance) {
    hlv_context *ctx = open_context(2);
    hlv_dit *dit = open_dit(ctx, name, HLV_ATTENTION_DEFAULT, dtype);
    hlv_weights *file = open_examples(ctx, name);
    example e;
    int cases = 0;
    for (; read_example(file, cases, &e); cases++) {
        float *velocity = run_example(ctx, dit, &e);
        double error = relative_error(velocity, e.velocity, e.count);
        if (!(error <= tolerance)) fail_msg("%s case %d: relative error %g", name, cases, error);
        free(velocity);
        free_example(&e);
    }
    assert_true(cases > 0);
    hlv_weights_free(file);
    hlv_dit_free(dit);
    hlv_context_free(ctx);
}

static void test_parity(void **state) {
    (void)state;
    for (size_t i = 0; i < FOLDER_COUNT; i++)
        parity(FOLDERS[i], HLA_F32, 1e-5);
}

/* bf16 products lose 8 bits a factor; the residual stream keeps the rest. */
static void test_parity_bf16(void **state) {
    (void)state;
    for (size_t i = 0; i < FOLDER_COUNT; i++)
        parity(FOLDERS[i], HLA_BF16, 2e-2);
}

/* A session and two prompts of different lengths used in turn, as guidance does, give what fresh ones give. */
static void test_reuse(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    hlv_dit *dit = open_dit(ctx, "hla_mixed", HLV_ATTENTION_DEFAULT, HLA_F32);
    hlv_weights *file = open_examples(ctx, "hla_mixed");
    example e;
    assert_true(read_example(file, 1, &e));
    hlv_dit_session *session = NULL;
    check_ok(ctx, hlv_dit_session_create(dit, e.F, e.Y, e.X, &session));
    hlv_dit_prompt *prompts[3] = {NULL};
    float *fresh[3];
    for (int64_t i = 0; i < 3; i++) { /* 3, 2 and 1 real rows */
        example shorter = e;
        shorter.real_tokens -= i;
        fresh[i] = run_example(ctx, dit, &shorter);
        check_ok(ctx, hlv_dit_prompt_create(dit, e.text, shorter.real_tokens, e.text_tokens, &prompts[i]));
    }
    assert_true(relative_error(fresh[0], fresh[1], e.count) > 1e-3);
    float *velocity = poisoned(e.count);
    for (int round = 0; round < 6; round++) {
        check_ok(ctx, hlv_dit_forward(session, velocity, e.latents, e.timestep, prompts[round % 3]));
        assert_memory_equal(velocity, fresh[round % 3], (size_t)e.count * sizeof(float));
    }
    for (int i = 0; i < 3; i++) {
        free(fresh[i]);
        hlv_dit_prompt_free(prompts[i]);
    }
    free(velocity);
    hlv_dit_session_free(session);
    free_example(&e);
    hlv_weights_free(file);
    hlv_dit_free(dit);
    hlv_context_free(ctx);
}

static void test_same_bits_on_any_threads(void **state) {
    (void)state;
    for (size_t i = 0; i < FOLDER_COUNT; i++) {
        float *one = NULL;
        for (int threads = 1; threads <= 3; threads++) {
            hlv_context *ctx = open_context(threads);
            hlv_dit *dit = open_dit(ctx, FOLDERS[i], HLV_ATTENTION_DEFAULT, i % 2 ? HLA_BF16 : HLA_F32);
            hlv_weights *file = open_examples(ctx, FOLDERS[i]);
            example e;
            assert_true(read_example(file, 0, &e));
            float *velocity = run_example(ctx, dit, &e);
            if (one) assert_memory_equal(velocity, one, (size_t)e.count * sizeof(float));
            if (one) free(velocity);
            if (!one) one = velocity;
            free_example(&e);
            hlv_weights_free(file);
            hlv_dit_free(dit);
            hlv_context_free(ctx);
        }
        free(one);
    }
}

/* Forcing softmax leaves the adapter aside, its overrides too. */
static void test_forced_softmax(void **state) {
    (void)state;
    hlv_context *ctx = open_context(1);
    hlv_weights *file = open_examples(ctx, "hla_mixed");
    example e;
    assert_true(read_example(file, 0, &e));
    hlv_dit *forced = open_dit(ctx, "hla_mixed", HLV_ATTENTION_SOFTMAX, HLA_F32), *plain = NULL;
    check_ok(ctx, hlv_dit_open(ctx, GOLDEN "hla_mixed/transformer", NULL, HLV_ATTENTION_DEFAULT, HLA_F32, &plain));
    float *a = run_example(ctx, forced, &e), *b = run_example(ctx, plain, &e);
    assert_memory_equal(a, b, (size_t)e.count * sizeof(float));
    assert_true(relative_error(a, e.velocity, e.count) > 1e-2);
    free(a), free(b), free_example(&e);
    hlv_dit_free(forced);
    hlv_dit_free(plain);
    hlv_weights_free(file);
    hlv_context_free(ctx);
}

/* A rotation keeps lengths, position 0 stays, and scores depend on the difference of positions alone. */
static void test_rope(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    enum { HEAD = 22, F = 3, Y = 4, X = 5, N = F * Y * X };
    hlv_rope *rope = NULL;
    check_ok(ctx, hlv_rope_create(ctx, HEAD, (const int64_t[]){F, Y, X}, &rope));
    float q[N * HEAD], k[N * HEAD];
    for (int n = 0; n < N; n++)
        for (int d = 0; d < HEAD; d++)
            q[n * HEAD + d] = (float)sin(d + 1), k[n * HEAD + d] = (float)cos(2.0 * d);
    hlv_rope_apply(rope, q, 1);
    hlv_rope_apply(rope, k, 1);
    for (int d = 0; d < HEAD; d++)
        assert_true(q[d] == (float)sin(d + 1));
    double score[N];
    for (int n = 0; n < N; n++) {
        double length = 0, start = 0;
        score[n] = 0;
        for (int d = 0; d < HEAD; d++) {
            length += (double)q[n * HEAD + d] * q[n * HEAD + d], start += (double)q[d] * q[d];
            score[n] += (double)q[n * HEAD + d] * k[d];
        }
        assert_true(fabs(length - start) < 1e-5);
    }
    int shift = (Y + 1) * X + 1; /* one along each axis */
    for (int f = 0; f + 1 < F; f++)
        for (int i = 0; i + 1 < Y; i++)
            for (int j = 0; j + 1 < X; j++) {
                int n = (f * Y + i) * X + j;
                double shifted = 0;
                for (int d = 0; d < HEAD; d++)
                    shifted += (double)q[(n + shift) * HEAD + d] * k[shift * HEAD + d];
                assert_true(fabs(shifted - score[n]) < 1e-5);
            }
    assert_true(fabs(score[1] - score[0]) > 1e-3 && fabs(score[X] - score[0]) > 1e-3);
    hlv_rope_free(rope);
    hlv_context_free(ctx);
}

static bool always(void *user) {
    (void)user;
    return true;
}

static void test_cancel(void **state) {
    (void)state;
    hlv_context *ctx = open_context(1);
    hlv_dit *dit = open_dit(ctx, "one_head", HLV_ATTENTION_DEFAULT, HLA_F32), *second = NULL;
    hlv_weights *file = open_examples(ctx, "one_head");
    example e;
    assert_true(read_example(file, 0, &e));
    hlv_dit_prompt *prompt = NULL;
    hlv_dit_session *session = NULL;
    check_ok(ctx, hlv_dit_prompt_create(dit, e.text, e.real_tokens, e.text_tokens, &prompt));
    check_ok(ctx, hlv_dit_session_create(dit, e.F, e.Y, e.X, &session));
    hlv_context_set_cancel(ctx, always, NULL);
    float *velocity = poisoned(e.count);
    assert_int_equal(hlv_dit_forward(session, velocity, e.latents, 5, prompt), HLV_ERROR_CANCELLED);
    assert_int_equal(hlv_dit_open(ctx, GOLDEN "one_head/transformer", NULL, HLV_ATTENTION_DEFAULT, HLA_F32, &second),
                     HLV_ERROR_CANCELLED);
    assert_null(second);
    free(velocity), free_example(&e);
    hlv_dit_session_free(session);
    hlv_dit_prompt_free(prompt);
    hlv_weights_free(file);
    hlv_dit_free(dit);
    hlv_context_free(ctx);
}

static void test_bad_sizes(void **state) {
    (void)state;
    hlv_context *ctx = open_context(1);
    hlv_dit *dit = open_dit(ctx, "one_head", HLV_ATTENTION_DEFAULT, HLA_F32);
    static const struct {
        int64_t F, Y, X;
        const char *word;
    } sizes[] = {
        {0, 4, 4, "frames"},       {1, 3, 4, "rows"},         {1, 4, 5, "columns"},          {1, -4, 4, "rows"},
        {1, 4, 4096, "positions"}, {2000, 4, 4, "positions"}, {INT64_MAX, 2, 2, "positions"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        hlv_dit_session *session = (hlv_dit_session *)ctx;
        assert_int_equal(hlv_dit_session_create(dit, sizes[i].F, sizes[i].Y, sizes[i].X, &session), HLV_ERROR_ARGUMENT);
        assert_null(session);
        assert_non_null(strstr(hlv_context_error(ctx), sizes[i].word));
    }
    static const int64_t texts[][2] = {{-1, 4}, {5, 4}, {0, 0}, {1, 4}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        hlv_dit_prompt *prompt = (hlv_dit_prompt *)ctx;
        assert_int_equal(hlv_dit_prompt_create(dit, NULL, texts[i][0], texts[i][1], &prompt), HLV_ERROR_ARGUMENT);
        assert_null(prompt);
    }
    hlv_dit_prompt *prompt = NULL;
    hlv_dit_session *session = NULL;
    check_ok(ctx, hlv_dit_prompt_create(dit, NULL, 0, 4, &prompt));
    check_ok(ctx, hlv_dit_session_create(dit, 1, 2, 2, &session));
    float latents[12] = {0}, velocity[12];
    assert_int_equal(hlv_dit_forward(session, velocity, latents, NAN, prompt), HLV_ERROR_ARGUMENT);
    hlv_dit_session_free(session);
    hlv_dit_prompt_free(prompt);
    hlv_dit_session_free(NULL);
    hlv_dit_prompt_free(NULL);
    hlv_dit_free(NULL);
    hlv_dit_free(dit);
    hlv_context_free(ctx);
}

/* A config altered in one place: old replaced by new in a copy of a golden transformer's config.json. */
static void expect_refused(const char *name, const char *old, const char *new, hlv_status want, const char *word) {
    char folder[] = "/tmp/hlv_dit_XXXXXX", path[512], text[2048], changed[4096];
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, GOLDEN "%s/transformer/config.json", name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    char *place = strstr(text, old);
    assert_non_null(place);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(place - text), text, new, place + strlen(old));
    snprintf(path, sizeof path, "%s/config.json", folder);
    file = fopen(path, "w");
    assert_non_null(file);
    fputs(changed, file);
    fclose(file);
    char weights[512], link_path[512];
    snprintf(weights, sizeof weights, GOLDEN "%s/transformer/diffusion_pytorch_model.safetensors", name);
    snprintf(link_path, sizeof link_path, "%s/diffusion_pytorch_model.safetensors", folder);
    assert_int_equal(symlink(weights, link_path), 0);
    hlv_context *ctx = open_context(1);
    hlv_dit *dit = NULL;
    hlv_status status = hlv_dit_open(ctx, folder, NULL, HLV_ATTENTION_DEFAULT, HLA_F32, &dit);
    if (status != want || !strstr(hlv_context_error(ctx), word))
        fail_msg("%s -> %s: status %d, \"%s\"", old, new, (int)status, hlv_context_error(ctx));
    assert_null(dit);
    hlv_context_free(ctx);
    unlink(link_path), unlink(path), rmdir(folder);
}

static void test_config_against_weights(void **state) {
    (void)state;
    expect_refused("one_head", "\"num_layers\": 2", "\"num_layers\": 1", HLV_ERROR_FORMAT, "num_layers");
    expect_refused("one_head", "\"num_layers\": 2", "\"num_layers\": 3", HLV_ERROR_FORMAT,
                   "blocks.2.attn1.to_q.weight");
    expect_refused("one_head", "\"num_layers\": 2", "\"num_layers\": 3", HLV_ERROR_FORMAT,
                   "blocks.2.attn1.norm_k.weight");
    expect_refused("one_head", "\"cross_attn_norm\": true", "\"cross_attn_norm\": false", HLV_ERROR_FORMAT, "norm2");
    expect_refused("hla_variants", "\"cross_attn_norm\": false", "\"cross_attn_norm\": true", HLV_ERROR_FORMAT,
                   "blocks.0.norm2.weight");
    expect_refused("one_head", "\"ffn_dim\": 20", "\"ffn_dim\": 21", HLV_ERROR_FORMAT, "ffn.net.0.proj.weight");
    expect_refused("one_head", "\"attention_head_dim\": 12", "\"attention_head_dim\": 13", HLV_ERROR_FORMAT,
                   "attention_head_dim");
    expect_refused("one_head", "\"in_channels\": 3", "\"in_channels\": 6", HLV_ERROR_UNSUPPORTED, "in_channels");
}

static void test_bad_adapters(void **state) {
    (void)state;
    hlv_context *ctx = open_context(1);
    hlv_dit *dit = NULL;
    assert_int_equal(hlv_dit_open(ctx, GOLDEN "one_head/transformer", NULL, HLV_ATTENTION_HADAMARD, HLA_F32, &dit),
                     HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "adapter"));
    assert_int_equal(
        hlv_dit_open(ctx, GOLDEN "one_head/transformer", GOLDEN "hla_mixed/hla", HLV_ATTENTION_DEFAULT, HLA_F32, &dit),
        HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), "4 blocks"));
    /* Right number of blocks, wrong widths: every mis-shaped map is named. */
    assert_int_equal(hlv_dit_open(ctx, GOLDEN "hla_mixed/transformer", GOLDEN "hla_variants/hla", HLV_ATTENTION_DEFAULT,
                                  HLA_F32, &dit),
                     HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), "blocks.0.attn1.query_map.0.weight"));
    assert_non_null(strstr(hlv_context_error(ctx), "blocks.0.attn1.key_map.1.hidden.bias"));
    assert_int_equal(hlv_dit_open(ctx, GOLDEN "one_head/transformer", NULL, HLV_ATTENTION_DEFAULT, HLA_F16, &dit),
                     HLV_ERROR_ARGUMENT);
    assert_null(dit);
    hlv_context_free(ctx);
}

/* A tensor in an adapter that fits nothing is refused; an adapter without a Hadamard block is no answer to --attention.
 */
static void test_adapter_of_softmax_blocks(void **state) {
    (void)state;
    char folder[] = "/tmp/hlv_dit_XXXXXX", config[64], weights[64];
    assert_non_null(mkdtemp(folder));
    snprintf(config, sizeof config, "%s/config.json", folder);
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
    FILE *file = fopen(config, "w");
    assert_non_null(file);
    fputs("{\"_class_name\": \"HadamardLinearAttention\", \"blocks\": [{\"kind\": \"softmax\"}, "
          "{\"kind\": \"softmax\"}]}",
          file);
    fclose(file);
    hlv_context *ctx = open_context(1);
    const float values[12] = {0};
    hlv_tensor_out tensor = {"blocks.0.attn1.to_q.bias", HLA_F32, 1, {12}, values};
    check_ok(ctx, hlv_safetensors_write(ctx, weights, &tensor, 1, NULL, 0));
    hlv_dit *dit = NULL;
    const char *transformer = GOLDEN "one_head/transformer";
    assert_int_equal(hlv_dit_open(ctx, transformer, folder, HLV_ATTENTION_HADAMARD, HLA_F32, &dit), HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "every block softmax"));
    check_ok(ctx, hlv_dit_open(ctx, transformer, folder, HLV_ATTENTION_DEFAULT, HLA_F32, &dit));
    assert_int_equal(hlv_dit_hadamard_blocks(dit), 0);
    hlv_dit_free(dit);
    /* misspelt; a map of a block that the config makes softmax */
    static const char *const strangers[] = {"blocks.0.atn1.to_q.bias", "blocks.0.attn1.query_map.0.weight"};
    for (int i = 0; i < 2; i++) {
        tensor.name = strangers[i];
        check_ok(ctx, hlv_safetensors_write(ctx, weights, &tensor, 1, NULL, 0));
        assert_int_equal(hlv_dit_open(ctx, transformer, folder, HLV_ATTENTION_DEFAULT, HLA_F32, &dit),
                         HLV_ERROR_FORMAT);
        assert_null(dit);
        assert_non_null(strstr(hlv_context_error(ctx), strangers[i]));
        assert_non_null(strstr(hlv_context_error(ctx), folder));
    }
    dit = open_dit(ctx, "hla_mixed", HLV_ATTENTION_HADAMARD, HLA_F32);
    assert_int_equal(hlv_dit_hadamard_blocks(dit), 3);
    hlv_dit_free(dit);
    hlv_context_free(ctx);
    unlink(config), unlink(weights), rmdir(folder);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parity),
        cmocka_unit_test(test_parity_bf16),
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_same_bits_on_any_threads),
        cmocka_unit_test(test_forced_softmax),
        cmocka_unit_test(test_rope),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_bad_sizes),
        cmocka_unit_test(test_config_against_weights),
        cmocka_unit_test(test_bad_adapters),
        cmocka_unit_test(test_adapter_of_softmax_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
