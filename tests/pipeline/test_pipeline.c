/* The whole way from prompt to frames against diffusers' WanPipeline (tests/golden/make_pipeline.py); the same bits on
 * any number of threads; saving, resuming, previews, guidance. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/pipeline/support.h"

static const char *metadata(const hlv_weights *file, const char *key) {
    const char *value = hlv_weights_metadata(file, key);
    assert_non_null(value);
    return value;
}

static int integer(const hlv_weights *file, const char *key) {
    return atoi(metadata(file, key));
}

/* Frames written as single PNGs against the reference's bytes: truncation may fall on either side of a whole number. */
static void compare_frames(hlv_context *ctx, const scratch *folder, const char *result, int frames) {
    int64_t count;
    float *want = read_tensor(ctx, result, "frames", &count);
    double sum = 0;
    int worst = 0;
    for (int f = 0; f < frames; f++) {
        char name[32];
        int width, height;
        snprintf(name, sizeof name, "frame-%03d.png", f);
        unsigned char *pixels = read_png(in_scratch(folder, name), &width, &height);
        const int64_t size = (int64_t)width * height * 3;
        assert_int_equal(count, size * frames);
        for (int64_t i = 0; i < size; i++) {
            int difference = abs(pixels[i] - (int)want[f * size + i]);
            sum += difference;
            if (difference > worst) worst = difference;
        }
        free(pixels);
    }
    free(want);
    if (!(sum / (double)count <= 0.05) || worst > 1)
        fail_msg("%s: pixels differ by %g on average, %d at most", result, sum / (double)count, worst);
}

/* Case c of folder/golden. The model is the folder's, or with the folder's hla/ another's. */
static void follow(const char *folder_name, const char *model_name, int c) {
    char noise[512], result_path[512], adapter[512];
    snprintf(noise, sizeof noise, GOLDEN "%s/golden/%d.noise.safetensors", folder_name, c);
    snprintf(result_path, sizeof result_path, GOLDEN "%s/golden/%d.result.safetensors", folder_name, c);
    snprintf(adapter, sizeof adapter, GOLDEN "%s/hla", folder_name);
    hlv_context *ctx = open_context(2);
    hlv_model *model = model_name ? open_converted(ctx, model_name, adapter) : open_model(ctx, folder_name, HLA_F32);
    hlv_weights *call = NULL;
    check_ok(ctx, hlv_weights_open(ctx, noise, &call));
    scratch folder = make_scratch();
    hlv_generate_options options;
    hlv_generate_options_init(model, &options);
    options.prompt = metadata(call, "prompt"), options.negative = metadata(call, "negative");
    options.width = integer(call, "width"), options.height = integer(call, "height");
    options.frames = integer(call, "frames"), options.steps = integer(call, "steps");
    options.guidance = atof(metadata(call, "guidance")), options.shift = atof(metadata(call, "shift"));
    options.initial_latents = noise;
    options.save_latents = in_scratch(&folder, "latents.safetensors");
    options.output = in_scratch(&folder, "frame-%03d.png");
    hlv_generate_result result;
    check_ok(ctx, hlv_generate(model, &options, &result));
    int64_t count, wanted;
    float *got = read_tensor(ctx, options.save_latents, "latents", &count);
    float *want = read_tensor(ctx, result_path, "latents", &wanted);
    assert_int_equal(count, wanted);
    double error = relative_error(got, want, count);
    if (!(error <= 1e-4)) fail_msg("%s case %d: relative error %g", folder_name, c, error);
    compare_frames(ctx, &folder, result_path, options.frames);
    assert_true(result.sample_seconds > 0 && result.decode_seconds > 0 && result.text_seconds > 0);
    assert_true(result.seconds_per_step > 0 && result.tokens > 0 && result.peak_bytes > 0);
    assert_true(result.prompt_tokens > 1 && !result.prompt_truncated);
    free(got), free(want);
    remove_scratch(&folder);
    hlv_weights_free(call);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

static void test_parity(void **state) {
    (void)state;
    for (int c = 0; c < 3; c++)
        follow("softmax", NULL, c);
    follow("hadamard", NULL, 0);
    follow("../converted", "softmax", 0); /* latents of the Python package in diffusers' pipeline */
}

static void small_clip(const hlv_model *model, hlv_generate_options *options) {
    hlv_generate_options_init(model, options);
    options->prompt = "a rocket flies up";
    options->negative = "dark";
    options->width = 32, options->height = 16, options->frames = 9, options->steps = 3, options->seed = 11;
    options->guidance = 4;
}

static void test_same_bits_on_any_threads(void **state) {
    (void)state;
    static const char *const checkpoints[] = {"softmax", "hadamard"};
    for (int i = 0; i < 4; i++) {
        scratch folder = make_scratch();
        for (int threads = 1; threads <= 3; threads++) {
            char latents[32], video[32];
            snprintf(latents, sizeof latents, "%d.safetensors", threads);
            snprintf(video, sizeof video, "%d.y4m", threads);
            hlv_context *ctx = open_context(threads);
            hlv_model *model = open_model(ctx, checkpoints[i / 2], i % 2 ? HLA_BF16 : HLA_F32);
            hlv_generate_options options;
            small_clip(model, &options);
            options.save_latents = in_scratch(&folder, latents);
            options.output = in_scratch(&folder, video);
            check_ok(ctx, hlv_generate(model, &options, NULL));
            assert_same_files(options.save_latents, in_scratch(&folder, "1.safetensors"));
            assert_same_files(options.output, in_scratch(&folder, "1.y4m"));
            hlv_model_free(model);
            hlv_context_free(ctx);
        }
        remove_scratch(&folder);
    }
}

/* Decoding saved latents gives the very file that decoding at once gave, metadata and all; so does a second call on the
 * same model. */
static void test_resume(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    hlv_model *model = open_model(ctx, "hadamard", HLA_F32);
    scratch folder = make_scratch();
    hlv_generate_options options;
    small_clip(model, &options);
    options.save_latents = in_scratch(&folder, "latents.safetensors");
    options.output = in_scratch(&folder, "at-once.png");
    check_ok(ctx, hlv_generate(model, &options, NULL));
    hlv_generate_options resume;
    hlv_generate_options_init(model, &resume);
    resume.width = resume.height = resume.frames = 0;
    resume.latents = options.save_latents;
    resume.output = in_scratch(&folder, "later.png");
    hlv_generate_result result;
    check_ok(ctx, hlv_generate(model, &resume, &result));
    assert_int_equal(result.tokens, 0);
    assert_same_files(options.output, resume.output);
    options.output = NULL;
    options.save_latents = in_scratch(&folder, "again.safetensors");
    check_ok(ctx, hlv_generate(model, &options, NULL));
    assert_same_files(options.save_latents, resume.latents);
    hlv_weights *file = NULL;
    check_ok(ctx, hlv_weights_open(ctx, options.save_latents, &file));
    assert_string_equal(metadata(file, "prompt"), "a rocket flies up");
    assert_string_equal(metadata(file, "negative_prompt"), "dark");
    assert_string_equal(metadata(file, "seed"), "11");
    assert_string_equal(metadata(file, "model"), "hadamard");
    assert_non_null(
        strstr(metadata(file, "settings"), "steps 3, guidance 4, shift 5, sampler unipc, attention hadamard"));
    hlv_weights_free(file);
    remove_scratch(&folder);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

/* ---- going on after a stop ---- */

/* Asks for a stop once so many steps are done. */
typedef struct stopper {
    int64_t at, first, done; /* first: what was reported first */
} stopper;

static void follow_steps(void *user, const char *stage, int64_t done, int64_t total) {
    stopper *s = user;
    (void)total;
    if (strcmp(stage, "sample") != 0) return;
    if (s->first < 0) s->first = done;
    s->done = done;
}

static bool is_enough(void *user) {
    const stopper *s = user;
    return s->done >= 0 && s->done == s->at;
}

static hlv_status generate_until(const char *output, const char *kept, int sampler, int threads, stopper *s) {
    hlv_context *ctx = open_context(threads);
    hlv_model *model = open_model(ctx, "hadamard", HLA_F32);
    hlv_context_set_progress(ctx, follow_steps, s);
    hlv_context_set_cancel(ctx, is_enough, s);
    hlv_generate_options options;
    small_clip(model, &options);
    options.sampler = (hlv_sampler)sampler, options.steps = 5;
    options.output = output, options.resume = kept;
    hlv_status status = hlv_generate(model, &options, NULL);
    if (status != HLV_OK && status != HLV_ERROR_CANCELLED) check_ok(ctx, status);
    hlv_model_free(model);
    hlv_context_free(ctx);
    return status;
}

/* Stopped after each number of steps, UniPC and Euler: the same bits as at once, and the file is gone. */
static void test_go_on(void **state) {
    (void)state;
    scratch folder = make_scratch();
    const char *kept = in_scratch(&folder, "kept.safetensors");
    const char *at_once = in_scratch(&folder, "at-once.png"), *stopped = in_scratch(&folder, "stopped.png");
    for (int sampler = HLV_SAMPLER_UNIPC; sampler <= HLV_SAMPLER_EULER; sampler++) {
        stopper never = {.at = -1, .first = -1, .done = -1};
        assert_int_equal(generate_until(at_once, kept, sampler, 2, &never), HLV_OK);
        for (int steps = 0; steps <= 4; steps++) {
            stopper s = {.at = steps, .first = -1, .done = -1};
            assert_int_equal(generate_until(stopped, kept, sampler, 2, &s), HLV_ERROR_CANCELLED);
            assert_int_equal(access(kept, F_OK), steps > 0 ? 0 : -1);
            s = (stopper){.at = -1, .first = -1, .done = -1};
            assert_int_equal(generate_until(stopped, kept, sampler, 1, &s), HLV_OK);
            assert_int_equal(s.first, steps);
            assert_int_equal(access(kept, F_OK), -1);
            assert_same_files(stopped, at_once);
        }
    }
    remove_scratch(&folder);
}

static void refuse_kept(hlv_context *ctx, hlv_model *model, const hlv_generate_options *options, const char *sentence) {
    hlv_status status = hlv_generate(model, options, NULL);
    assert_true(status == HLV_ERROR_ARGUMENT || status == HLV_ERROR_FORMAT);
    if (!strstr(hlv_context_error(ctx), sentence)) fail_msg("'%s', wanted '%s'", hlv_context_error(ctx), sentence);
    assert_int_equal(access(options->resume, F_OK), 0); /* it may be worth hours: nobody removes it */
}

/* Another clip's file, and a damaged one, are named and left alone. */
static void test_wrong_kept_file(void **state) {
    (void)state;
    scratch folder = make_scratch();
    stopper s = {.at = 2, .first = -1, .done = -1};
    const char *kept = in_scratch(&folder, "kept.safetensors"), *output = in_scratch(&folder, "clip.png");
    assert_int_equal(generate_until(output, kept, HLV_SAMPLER_UNIPC, 2, &s), HLV_ERROR_CANCELLED);
    hlv_context *ctx = open_context(2);
    hlv_model *model = open_model(ctx, "hadamard", HLA_F32);
    hlv_generate_options options;
    small_clip(model, &options);
    options.steps = 5, options.output = output, options.resume = kept;
    options.seed = 12;
    refuse_kept(ctx, model, &options, "is of another clip: its seed is '11', this one's '12'");
    options.seed = 11, options.prompt = "a cat";
    refuse_kept(ctx, model, &options, "its prompt is 'a rocket flies up', this one's 'a cat'");
    options.prompt = "a rocket flies up", options.steps = 6;
    refuse_kept(ctx, model, &options, "its settings is '");
    options.steps = 5;
    assert_int_equal(truncate(kept, 2000), 0);
    refuse_kept(ctx, model, &options, "kept.safetensors");
    options.resume = GOLDEN "softmax/golden/0.result.safetensors";
    refuse_kept(ctx, model, &options, "is of another clip");
    hlv_model_free(model);
    hlv_context_free(ctx);
    remove_scratch(&folder);
}

static float *latents_of(hlv_context *ctx, hlv_model *model, hlv_generate_options *options, int64_t *count) {
    scratch folder = make_scratch();
    options->save_latents = in_scratch(&folder, "latents.safetensors");
    check_ok(ctx, hlv_generate(model, options, NULL));
    float *latents = read_tensor(ctx, options->save_latents, "latents", count);
    remove_scratch(&folder);
    return latents;
}

/* What each option must and must not change. */
static void test_options_matter(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    hlv_model *model = open_model(ctx, "softmax", HLA_F32);
    hlv_generate_options base, o;
    small_clip(model, &base);
    base.frames = 1;
    int64_t count;
    float *reference = latents_of(ctx, model, &base, &count), *other;
    const size_t bytes = (size_t)count * sizeof(float);
    for (int change = 0; change < 7; change++) {
        o = base;
        if (change == 0) o.seed = 12;
        if (change == 1) o.prompt = "a dog spins around";
        if (change == 2) o.negative = "blurry";
        if (change == 3) o.guidance = 2;
        if (change == 4) o.steps = 4;
        if (change == 5) o.shift = 8;
        if (change == 6) o.sampler = HLV_SAMPLER_EULER;
        other = latents_of(ctx, model, &o, &count);
        if (!(relative_error(other, reference, count) > 1e-4)) fail_msg("change %d changed nothing", change);
        free(other);
    }
    o = base;
    o.prompt = "  a   rocket flies&#32;up ", o.negative = " dark\n"; /* cleaning makes them the same */
    other = latents_of(ctx, model, &o, &count);
    assert_memory_equal(other, reference, bytes);
    free(other), free(reference);
    base.guidance = 1;
    reference = latents_of(ctx, model, &base, &count);
    base.negative = "something else", base.guidance = 0;
    other = latents_of(ctx, model, &base, &count);
    assert_memory_equal(other, reference, bytes); /* without guidance the negative prompt is not used */
    free(other), free(reference);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

typedef struct stages {
    char names[32][16];
    int64_t last[32], total[32];
    int count;
} stages;

static void note_progress(void *user, const char *stage, int64_t done, int64_t total) {
    stages *seen = user;
    int i = seen->count - 1;
    if (i < 0 || strcmp(seen->names[i], stage) != 0 || done < seen->last[i]) {
        assert_true(++i < 32);
        seen->count = i + 1;
        snprintf(seen->names[i], sizeof seen->names[i], "%s", stage);
    }
    assert_true(done >= 0 && done <= total);
    seen->last[i] = done, seen->total[i] = total;
}

/* The first latent frame's picture does not depend on later ones, and the last step ends on the estimate: the preview
 * of the last step is the video's first frame. Also: every stage reports its end. */
static void test_preview_and_progress(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    hlv_model *model = open_model(ctx, "softmax", HLA_F32);
    scratch folder = make_scratch();
    stages seen = {0};
    hlv_context_set_progress(ctx, note_progress, &seen);
    hlv_generate_options options;
    small_clip(model, &options);
    options.preview = in_scratch(&folder, "preview.png"), options.preview_every = 1;
    options.output = in_scratch(&folder, "frame-%d.png");
    check_ok(ctx, hlv_generate(model, &options, NULL));
    assert_int_equal(count_files(&folder), 1 + options.frames);
    int width[2], height[2];
    unsigned char *preview = read_png(options.preview, &width[0], &height[0]);
    unsigned char *first = read_png(in_scratch(&folder, "frame-0.png"), &width[1], &height[1]);
    assert_true(width[0] == 32 && height[0] == 16 && width[1] == 32 && height[1] == 16);
    assert_memory_equal(preview, first, 32 * 16 * 3);
    free(preview), free(first);
    /* prompts, steps, latent frames; a preview does not break into the sampling's progress */
    static const char *const wanted[] = {"load", "text", "load", "sample", "decode"};
    static const int64_t totals[] = {0, 2, 0, 3, 3};
    assert_int_equal(seen.count, 5);
    for (int i = 0; i < 5; i++) {
        assert_string_equal(seen.names[i], wanted[i]);
        assert_int_equal(seen.last[i], seen.total[i]);
        if (totals[i]) assert_int_equal(seen.total[i], totals[i]);
    }
    remove_scratch(&folder);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

static void note_warning(void *user, hlv_log_level level, const char *sentence) {
    if (level == HLV_LOG_WARNING && strstr(sentence, "longer")) ++*(int *)user;
}

static void test_long_prompt(void **state) {
    (void)state;
    hlv_context *ctx = open_context(2);
    hlv_model *model = open_model(ctx, "softmax", HLA_F32);
    int warnings = 0;
    hlv_context_set_log(ctx, note_warning, &warnings);
    char *prompt = malloc(20001);
    assert_non_null(prompt);
    for (int i = 0; i < 20000; i++)
        prompt[i] = "a rocket "[i % 9];
    prompt[20000] = 0;
    scratch folder = make_scratch();
    hlv_generate_options options;
    small_clip(model, &options);
    options.prompt = prompt, options.frames = 1, options.steps = 1;
    options.save_latents = in_scratch(&folder, "l.safetensors");
    hlv_generate_result result;
    check_ok(ctx, hlv_generate(model, &options, &result));
    assert_true(result.prompt_truncated);
    assert_int_equal(result.prompt_tokens, 512);
    assert_int_equal(warnings, 1);
    free(prompt);
    remove_scratch(&folder);
    hlv_model_free(model);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parity),
        cmocka_unit_test(test_same_bits_on_any_threads),
        cmocka_unit_test(test_resume),
        cmocka_unit_test(test_go_on),
        cmocka_unit_test(test_wrong_kept_file),
        cmocka_unit_test(test_options_matter),
        cmocka_unit_test(test_preview_and_progress),
        cmocka_unit_test(test_long_prompt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
