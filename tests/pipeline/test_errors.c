/* What bad options, bad files and a cancel get from the pipeline: one sentence, a status, and no file left behind. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/pipeline/support.h"

static void clip(const hlv_model *model, const scratch *folder, hlv_generate_options *options) {
    hlv_generate_options_init(model, options);
    options->prompt = "a rocket flies up";
    options->width = 32, options->height = 16, options->frames = 9, options->steps = 3;
    options->output = in_scratch(folder, "out.y4m");
}

typedef void (*spoil_fn)(hlv_generate_options *options);

static void no_prompt(hlv_generate_options *o) {
    o->prompt = NULL;
}
static void empty_prompt(hlv_generate_options *o) {
    o->prompt = "";
}
static void blank_prompt(hlv_generate_options *o) {
    o->prompt = " \t\n&nbsp;";
}
static void bad_utf8(hlv_generate_options *o) {
    o->prompt = "a \xff rocket";
}
static void bad_negative(hlv_generate_options *o) {
    o->negative = "\xc3";
}
static void width_off(hlv_generate_options *o) {
    o->width = 40;
}
static void width_zero(hlv_generate_options *o) {
    o->width = 0;
}
static void height_negative(hlv_generate_options *o) {
    o->height = -16;
}
static void height_huge(hlv_generate_options *o) {
    o->height = 1 << 30;
}
static void frames_off(hlv_generate_options *o) {
    o->frames = 8;
}
static void frames_zero(hlv_generate_options *o) {
    o->frames = 0;
}
static void frames_huge(hlv_generate_options *o) {
    o->frames = 4001 * 4 + 1;
}
static void no_steps(hlv_generate_options *o) {
    o->steps = 0;
}
static void steps_huge(hlv_generate_options *o) {
    o->steps = 1 << 30;
}
static void guidance_nan(hlv_generate_options *o) {
    o->guidance = NAN;
}
static void guidance_infinite(hlv_generate_options *o) {
    o->guidance = INFINITY;
}
static void shift_zero(hlv_generate_options *o) {
    o->shift = 0;
}
static void shift_nan(hlv_generate_options *o) {
    o->shift = NAN;
}
static void fps_zero(hlv_generate_options *o) {
    o->fps = 0;
}
static void fps_nan(hlv_generate_options *o) {
    o->fps = NAN;
}
static void sampler_unknown(hlv_generate_options *o) {
    o->sampler = (hlv_sampler)7;
}
static void no_output(hlv_generate_options *o) {
    o->output = NULL;
}
static void output_unknown(hlv_generate_options *o) {
    o->output = "/tmp/clip.doc";
}
static void output_nowhere(hlv_generate_options *o) {
    o->output = "/nonexistent/clip.gif";
}
static void save_nowhere(hlv_generate_options *o) {
    o->save_latents = "/nonexistent/l.safetensors";
}
static void save_on_directory(hlv_generate_options *o) {
    o->save_latents = "/tmp";
}
static void resume_nowhere(hlv_generate_options *o) {
    o->resume = "/nonexistent/kept.safetensors";
}
static void latents_and_resume(hlv_generate_options *o) {
    o->latents = GOLDEN "softmax/golden/0.result.safetensors";
    o->resume = "/tmp/never-written.safetensors";
}
static void latents_missing(hlv_generate_options *o) {
    o->latents = "/nonexistent/l.safetensors";
}
static void initial_missing(hlv_generate_options *o) {
    o->initial_latents = "/nonexistent/n.safetensors";
}
static void initial_other_size(hlv_generate_options *o) {
    o->initial_latents = GOLDEN "softmax/golden/2.noise.safetensors";
}
static void latents_other_name(hlv_generate_options *o) {
    o->latents = GOLDEN "softmax/golden/2.noise.safetensors";
}
static void latents_other_size(hlv_generate_options *o) {
    o->latents = GOLDEN "softmax/golden/1.result.safetensors";
}
static void latents_and_save(hlv_generate_options *o) {
    o->latents = GOLDEN "softmax/golden/0.result.safetensors";
    o->save_latents = "/tmp/never-written.safetensors";
}
static void preview_not_png(hlv_generate_options *o) {
    o->preview = "/tmp/preview.gif";
}
static void preview_pattern(hlv_generate_options *o) {
    o->preview = "/tmp/preview-%d.png";
}
static void preview_never(hlv_generate_options *o) {
    o->preview = "/tmp/preview.png", o->preview_every = 0;
}
static void preview_on_output(hlv_generate_options *o) {
    o->output = o->preview = "/tmp/same.png";
}
static void not_initialised(hlv_generate_options *o) {
    o->struct_size = 0;
}

static void refuse_progress(void *user, const char *stage, int64_t done, int64_t total) {
    (void)user, (void)done, (void)total;
    fail_msg("stage %s began before the options were checked", stage);
}

static void test_bad_options(void **state) {
    (void)state;
    static const struct {
        spoil_fn spoil;
        hlv_status want;
        const char *word;
    } cases[] = {
        {no_prompt, HLV_ERROR_ARGUMENT, "prompt"},
        {empty_prompt, HLV_ERROR_ARGUMENT, "prompt"},
        {blank_prompt, HLV_ERROR_ARGUMENT, "prompt"},
        {bad_utf8, HLV_ERROR_ARGUMENT, "UTF-8"},
        {bad_negative, HLV_ERROR_ARGUMENT, "negative prompt"},
        {width_off, HLV_ERROR_ARGUMENT, "multiple of 16"},
        {width_zero, HLV_ERROR_ARGUMENT, "width"},
        {height_negative, HLV_ERROR_ARGUMENT, "height"},
        {height_huge, HLV_ERROR_ARGUMENT, "height"},
        {frames_off, HLV_ERROR_ARGUMENT, "multiple of 4"},
        {frames_zero, HLV_ERROR_ARGUMENT, "frames"},
        {frames_huge, HLV_ERROR_ARGUMENT, "frames"},
        {no_steps, HLV_ERROR_ARGUMENT, "steps"},
        {steps_huge, HLV_ERROR_ARGUMENT, "steps"},
        {guidance_nan, HLV_ERROR_ARGUMENT, "guidance"},
        {guidance_infinite, HLV_ERROR_ARGUMENT, "guidance"},
        {shift_zero, HLV_ERROR_ARGUMENT, "shift"},
        {shift_nan, HLV_ERROR_ARGUMENT, "shift"},
        {fps_zero, HLV_ERROR_ARGUMENT, "fps"},
        {fps_nan, HLV_ERROR_ARGUMENT, "fps"},
        {sampler_unknown, HLV_ERROR_ARGUMENT, "sampler"},
        {no_output, HLV_ERROR_ARGUMENT, "output"},
        {output_unknown, HLV_ERROR_ARGUMENT, "clip.doc"},
        {output_nowhere, HLV_ERROR_IO, "/nonexistent"},
        {save_nowhere, HLV_ERROR_IO, "/nonexistent"},
        {resume_nowhere, HLV_ERROR_IO, "/nonexistent"},
        {save_on_directory, HLV_ERROR_IO, "directory"},
        {latents_missing, HLV_ERROR_IO, "/nonexistent"},
        {initial_missing, HLV_ERROR_IO, "/nonexistent"},
        {initial_other_size, HLV_ERROR_ARGUMENT, "[4,3,2,4]"},
        {latents_other_name, HLV_ERROR_FORMAT, "no tensor \"latents\""},
        {latents_other_size, HLV_ERROR_ARGUMENT, "width"},
        {latents_and_save, HLV_ERROR_ARGUMENT, "save_latents"},
        {latents_and_resume, HLV_ERROR_ARGUMENT, "resume"},
        {preview_not_png, HLV_ERROR_ARGUMENT, "preview"},
        {preview_pattern, HLV_ERROR_ARGUMENT, "preview"},
        {preview_never, HLV_ERROR_ARGUMENT, "preview_every"},
        {preview_on_output, HLV_ERROR_ARGUMENT, "/tmp/same.png"},
        {not_initialised, HLV_ERROR_ARGUMENT, "struct_size"},
    };
    hlv_context *ctx = open_context(1);
    hlv_context_set_progress(ctx, refuse_progress, NULL);
    hlv_model *model = open_model(ctx, "softmax", HLA_F32);
    scratch folder = make_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hlv_generate_options options;
        clip(model, &folder, &options);
        cases[i].spoil(&options);
        hlv_status status = hlv_generate(model, &options, NULL);
        const char *sentence = hlv_context_error(ctx);
        if (status != cases[i].want || !strstr(sentence, cases[i].word) || strchr(sentence, '\n'))
            fail_msg("case %zu (%s): status %d, \"%s\"", i, cases[i].word, (int)status, sentence);
        assert_int_equal(count_files(&folder), 0);
    }
    assert_int_equal(access("/tmp/never-written.safetensors", F_OK), -1);
    remove_scratch(&folder);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

/* More than the transformer's 1024 positions on an axis, found before the text encoder runs. */
static void test_beyond_positions(void **state) {
    (void)state;
    hlv_context *ctx = open_context(1);
    hlv_context_set_progress(ctx, refuse_progress, NULL);
    hlv_model *model = open_model(ctx, "hadamard", HLA_F32); /* 4 pixels a latent, 2 frames, patch size 1 */
    scratch folder = make_scratch();
    hlv_generate_options options;
    clip(model, &folder, &options);
    options.width = 4100;
    assert_int_equal(hlv_generate(model, &options, NULL), HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "width: found 4100, but this model reaches 4096 at most"));
    clip(model, &folder, &options);
    options.frames = 2 * 1024 + 1;
    assert_int_equal(hlv_generate(model, &options, NULL), HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "frames: found 2049, but this model reaches 2047 at most"));
    remove_scratch(&folder);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

/* Stops when a stage has come so far. */
typedef struct stop {
    const char *stage;
    int64_t at;
    bool reached;
} stop;

static void watch(void *user, const char *stage, int64_t done, int64_t total) {
    stop *when = user;
    (void)total;
    if (!strcmp(stage, when->stage) && done >= when->at) when->reached = true;
}

static bool reached(void *user) {
    return ((stop *)user)->reached;
}

static void test_cancel(void **state) {
    (void)state;
    static const struct {
        const char *stage;
        int64_t at;
        bool latents_stay;
    } cases[] = {{"text", 0, false},   {"load", 5, false},  {"sample", 0, false},
                 {"sample", 2, false}, {"decode", 0, true}, {"decode", 4, true}};
    static const char *const outputs[] = {"out.y4m", "out.gif", "out-%02d.png"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        hlv_context *ctx = open_context(2);
        hlv_model *model = open_model(ctx, "hadamard", HLA_F32);
        scratch folder = make_scratch();
        stop when = {cases[i].stage, cases[i].at, false};
        hlv_context_set_progress(ctx, watch, &when);
        hlv_context_set_cancel(ctx, reached, &when);
        hlv_generate_options options;
        clip(model, &folder, &options);
        options.output = in_scratch(&folder, outputs[i % 3]);
        options.save_latents = in_scratch(&folder, "latents.safetensors");
        hlv_status status = hlv_generate(model, &options, NULL);
        if (status != HLV_ERROR_CANCELLED) fail_msg("case %zu: %d, %s", i, (int)status, hlv_context_error(ctx));
        assert_int_equal(count_files(&folder), cases[i].latents_stay);
        assert_true(cases[i].latents_stay == (strstr(hlv_context_error(ctx), options.save_latents) != NULL));
        if (cases[i].latents_stay) { /* and what is kept can be used */
            when.reached = false, when.stage = "never";
            hlv_generate_options resume;
            hlv_generate_options_init(model, &resume);
            resume.width = resume.height = resume.frames = 0;
            resume.latents = options.save_latents, resume.output = in_scratch(&folder, "resumed.y4m");
            check_ok(ctx, hlv_generate(model, &resume, NULL));
            assert_int_equal(count_files(&folder), 2);
        }
        remove_scratch(&folder);
        hlv_model_free(model);
        hlv_context_free(ctx);
    }
}

/* The folder for the latents goes away while sampling: the clip is decoded all the same, and the failure told. */
static void remove_folder(void *user, const char *stage, int64_t done, int64_t total) {
    if (!strcmp(stage, "sample") && done == total) rmdir(user);
}

static void test_latents_cannot_be_saved(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    hlv_model *model = open_model(ctx, "hadamard", HLA_F32);
    scratch kept = make_scratch(), lost = make_scratch();
    hlv_context_set_progress(ctx, remove_folder, lost.path);
    hlv_generate_options options;
    clip(model, &kept, &options);
    options.save_latents = in_scratch(&lost, "latents.safetensors");
    assert_int_equal(hlv_generate(model, &options, NULL), HLV_ERROR_IO);
    assert_non_null(strstr(hlv_context_error(ctx), lost.path));
    assert_int_equal(access(options.output, R_OK), 0);
    assert_int_equal(count_files(&kept), 1);
    remove_scratch(&kept);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

/* Latents and noise that are no numbers, or no latents; noise so large that sampling overflows. */
static void test_bad_latents(void **state) {
    (void)state;
    enum { COUNT = 4 * 3 * 2 * 4 };
    static const struct {
        const char *name;
        int ndim;
        int64_t shape[5];
        float first;
        bool starts; /* as the noise to start from */
        const char *word;
    } cases[] = {
        {"latents", 4, {4, 3, 2, 4}, NAN, false, "not finite"},
        {"latents", 5, {1, 4, 3, 2, 4}, INFINITY, false, "not finite"},
        {"latents", 3, {4, 3, 8}, 1, false, "3 axes"},
        {"latents", 5, {2, 2, 3, 2, 4}, 1, false, "5 axes"},
        {"latents", 4, {4, 3, 0, 4}, 1, false, "is empty"},
        {"latents", 4, {2, 3, 4, 4}, 1, false, "2 channels"},
        {"noise", 4, {4, 3, 2, 4}, NAN, true, "not finite"},
        {"noise", 4, {4, 3, 2, 4}, 3e38f, true, "sampled latents are not finite"},
    };
    hlv_context *ctx = open_context(1);
    hlv_model *model = open_model(ctx, "softmax", HLA_F32);
    scratch folder = make_scratch(), output = make_scratch();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float values[COUNT];
        for (int j = 0; j < COUNT; j++)
            values[j] = isnan(cases[i].first) && j ? 1.0f : cases[i].first;
        hlv_tensor_out tensor = {cases[i].name, HLA_F32, cases[i].ndim, {0}, values};
        memcpy(tensor.shape, cases[i].shape, sizeof cases[i].shape);
        const char *path = in_scratch(&folder, "l.safetensors");
        check_ok(ctx, hlv_safetensors_write(ctx, path, &tensor, 1, NULL, 0));
        hlv_generate_options options;
        clip(model, &output, &options);
        if (!cases[i].starts) options.width = options.height = options.frames = 0;
        *(cases[i].starts ? &options.initial_latents : &options.latents) = path;
        if (cases[i].starts) options.save_latents = in_scratch(&output, "saved.safetensors");
        hlv_status status = hlv_generate(model, &options, NULL);
        if (status != HLV_ERROR_FORMAT || !strstr(hlv_context_error(ctx), cases[i].word))
            fail_msg("case %zu (%s): %d, \"%s\"", i, cases[i].word, (int)status, hlv_context_error(ctx));
        assert_int_equal(count_files(&output), 0);
    }
    remove_scratch(&folder);
    remove_scratch(&output);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

/* Memory that runs out anywhere ends in a sentence, no crash and no file. */
static void test_out_of_memory(void **state) {
    (void)state;
    scratch folder = make_scratch();
    int failures = 0;
    for (int64_t limit = 1 << 12; limit < (int64_t)1 << 30; limit += limit / 3) {
        hlv_context *ctx = open_context(1);
        check_ok(ctx, hlv_context_set_memory_limit(ctx, limit));
        hlv_model *model = open_model(ctx, "hadamard", HLA_F32);
        hlv_generate_options options;
        clip(model, &folder, &options);
        options.frames = 3, options.steps = 1;
        hlv_status status = hlv_generate(model, &options, NULL);
        if (status == HLV_OK) limit = (int64_t)1 << 30;
        if (status != HLV_OK) {
            failures++;
            if (status != HLV_ERROR_MEMORY || !hlv_context_error(ctx)[0])
                fail_msg("limit %lld: %d, \"%s\"", (long long)limit, (int)status, hlv_context_error(ctx));
            assert_int_equal(count_files(&folder), 0);
        }
        hlv_model_free(model);
        hlv_context_free(ctx);
    }
    assert_true(failures > 3);
    remove_scratch(&folder);
}

static void expect_unopened(const hlv_model_options *options, hlv_status want, const char *word) {
    hlv_context *ctx = open_context(1);
    hlv_model *model = (hlv_model *)ctx;
    hlv_status status = hlv_model_open(ctx, options, &model);
    if (status != want || !strstr(hlv_context_error(ctx), word))
        fail_msg("wanted %d \"%s\": %d, \"%s\"", (int)want, word, (int)status, hlv_context_error(ctx));
    assert_null(model);
    hlv_context_free(ctx);
}

static void test_bad_models(void **state) {
    (void)state;
    hlv_model_options options;
    hlv_model_options_init(&options);
    expect_unopened(&options, HLV_ERROR_ARGUMENT, "directory");
    options.directory = "/nonexistent";
    expect_unopened(&options, HLV_ERROR_IO, "/nonexistent/model_index.json");
    options.directory = GOLDEN "softmax";
    options.attention = HLV_ATTENTION_HADAMARD;
    expect_unopened(&options, HLV_ERROR_ARGUMENT, "adapter");
    options.adapter = "/nonexistent";
    expect_unopened(&options, HLV_ERROR_IO, "/nonexistent/config.json");
    options.adapter = HLA_TEST_ROOT "/tests/golden/dit/hla_mixed/hla";
    expect_unopened(&options, HLV_ERROR_FORMAT, "4 blocks");
    options.attention = (hlv_attention)9;
    expect_unopened(&options, HLV_ERROR_ARGUMENT, "attention");
    hlv_model_options_init(&options);
    options.directory = GOLDEN "softmax", options.dtype = HLA_F16;
    expect_unopened(&options, HLV_ERROR_ARGUMENT, "dtype");
    options.struct_size = 3;
    expect_unopened(&options, HLV_ERROR_ARGUMENT, "struct_size");
}

/* A checkpoint put together from two that don't belong together. */
static void test_parts_that_do_not_fit(void **state) {
    (void)state;
    scratch folder = make_scratch();
    static const char *const parts[] = {"model_index.json", "scheduler", "tokenizer", "transformer", "vae"};
    for (size_t i = 0; i < 5; i++) {
        char target[512];
        snprintf(target, sizeof target, GOLDEN "softmax/%s", parts[i]);
        assert_int_equal(symlink(target, in_scratch(&folder, parts[i])), 0);
    }
    assert_int_equal(symlink(GOLDEN "hadamard/text_encoder", in_scratch(&folder, "text_encoder")), 0);
    hlv_model_options options;
    hlv_model_options_init(&options);
    options.directory = folder.path;
    expect_unopened(&options, HLV_ERROR_FORMAT, "text_dim is 16");
    remove_scratch(&folder);
}

/* Weights that are not there, or are cut short, are found out before anything else is done. */
static void test_missing_weights(void **state) {
    (void)state;
    static const char *const parts[] = {"model_index.json", "scheduler", "tokenizer", "transformer", "text_encoder"};
    scratch folder = make_scratch(), output = make_scratch();
    for (size_t i = 0; i < 5; i++) {
        char target[512];
        snprintf(target, sizeof target, GOLDEN "softmax/%s", parts[i]);
        assert_int_equal(symlink(target, in_scratch(&folder, parts[i])), 0);
    }
    assert_int_equal(mkdir(in_scratch(&folder, "vae"), 0700), 0);
    assert_int_equal(symlink(GOLDEN "softmax/vae/config.json", in_scratch(&folder, "vae/config.json")), 0);
    hlv_context *ctx = open_context(1);
    hlv_model_options options;
    hlv_model_options_init(&options);
    options.directory = folder.path;
    hlv_model *model = NULL;
    check_ok(ctx, hlv_model_open(ctx, &options, &model));
    hlv_context_set_progress(ctx, refuse_progress, NULL);
    hlv_generate_options call;
    clip(model, &output, &call);
    call.save_latents = in_scratch(&output, "latents.safetensors");
    assert_int_equal(hlv_generate(model, &call, NULL), HLV_ERROR_IO);
    assert_non_null(strstr(hlv_context_error(ctx), "vae: has no weights"));
    const char *weights = in_scratch(&folder, "vae/model.safetensors");
    const float number = 1;
    const hlv_tensor_out tensor = {"post_quant_conv.bias", HLA_F32, 1, {1}, &number};
    check_ok(ctx, hlv_safetensors_write(ctx, weights, &tensor, 1, NULL, 0));
    assert_int_equal(hlv_generate(model, &call, NULL), HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), "'decoder.conv_out.weight'"));
    assert_null(strstr(hlv_context_error(ctx), "encoder.")); /* which decoding does not need */
    assert_int_equal(truncate(weights, 40), 0);
    assert_int_equal(hlv_generate(model, &call, NULL), HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), weights));
    assert_int_equal(count_files(&output), 0);
    hlv_model_free(model);
    hlv_context_free(ctx);
    unlink(in_scratch(&folder, "vae/config.json")), unlink(weights);
    rmdir(in_scratch(&folder, "vae"));
    remove_scratch(&folder);
    remove_scratch(&output);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_options),      cmocka_unit_test(test_latents_cannot_be_saved),
        cmocka_unit_test(test_cancel),           cmocka_unit_test(test_out_of_memory),
        cmocka_unit_test(test_bad_models),       cmocka_unit_test(test_parts_that_do_not_fit),
        cmocka_unit_test(test_missing_weights),  cmocka_unit_test(test_bad_latents),
        cmocka_unit_test(test_beyond_positions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
