/* The VAE against AutoencoderKLWan of diffusers (tests/golden/vae, made by make_vae.py), both ways; and what streaming
 * promises: the same bits on any number of threads, memory that does not grow with the clip, a stop between latent
 * frames. */
#include "../nn/nn_test.h"

#include <pthread.h>
#include <unistd.h>

#include "video/vae/vae.h"

#define TOLERANCE 1e-4
#define GOLDEN HLA_TEST_ROOT "/tests/golden/vae/"

static const char *const cases[] = {"wan", "uneven", "odd", "flat"};
#define CASES (sizeof cases / sizeof cases[0])

/* What a sink has gathered, [frames, height, width, 3]. */
typedef struct clip {
    float *x;
    int64_t frames, height, width;
    int64_t calls;
    int64_t stop_after; /* frames; 0: never */
} clip;

static hlv_status gather(void *user, const float *frames, int64_t first, int64_t count, int64_t height, int64_t width) {
    clip *c = user;
    assert_int_equal(first, c->frames);
    assert_true(first == 0 || (height == c->height && width == c->width));
    const size_t frame = (size_t)(height * width * 3);
    c->x = realloc(c->x, (size_t)(first + count) * frame * sizeof *c->x);
    assert_non_null(c->x);
    memcpy(c->x + (size_t)first * frame, frames, (size_t)count * frame * sizeof *c->x);
    c->frames += count, c->calls++;
    c->height = height, c->width = width;
    return c->stop_after && c->frames >= c->stop_after ? HLV_ERROR_IO : HLV_OK;
}

static hlv_vae *open_case(hlv_context *ctx, const char *name, hla_dtype dtype) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s", name);
    hlv_vae *vae = NULL;
    if (hlv_vae_open(ctx, path, dtype, HLV_VAE_DECODER | HLV_VAE_ENCODER, &vae) != HLV_OK)
        fail_msg("%s: %s", name, hlv_context_error(ctx));
    return vae;
}

static hlv_weights *open_golden(hlv_context *ctx, const char *name) {
    char path[512];
    snprintf(path, sizeof path, GOLDEN "%s/golden.safetensors", name);
    hlv_weights *golden = NULL;
    if (hlv_weights_open(ctx, path, &golden) != HLV_OK) fail_msg("%s: %s", path, hlv_context_error(ctx));
    return golden;
}

/* Tensor "WHAT_i" as floats, or NULL where there is none. */
static float *take(hlv_context *ctx, const hlv_weights *golden, const char *what, int i, const hlv_weight **tensor) {
    char name[64];
    snprintf(name, sizeof name, "%s_%d", what, i);
    *tensor = hlv_weights_find(golden, name);
    return *tensor ? hlv_weight_load_f32(ctx, *tensor) : NULL;
}

/* [3, frames, height, width] to [frames, height, width, 3] */
static float *channels_last(const float *x, int64_t pixels) {
    float *y = malloc((size_t)(pixels * 3) * sizeof *y);
    assert_non_null(y);
    for (int64_t i = 0; i < pixels * 3; i++)
        y[i % pixels * 3 + i / pixels] = x[i];
    return y;
}

static double *doubles(const float *x, int64_t count) {
    double *y = malloc((size_t)count * sizeof *y);
    assert_non_null(y);
    for (int64_t i = 0; i < count; i++)
        y[i] = (double)x[i];
    return y;
}

static void check_decode(const hlv_vae *vae, const hlv_weight *latents, const float *z, const hlv_weight *frames,
                         const float *want, double tolerance, const char *what) {
    clip c = {0};
    assert_int_equal(hlv_vae_decode(vae, z, latents->shape[1], latents->shape[2], latents->shape[3], gather, &c),
                     HLV_OK);
    assert_int_equal(c.frames, frames->shape[1]);
    assert_int_equal(c.height, frames->shape[2]);
    assert_int_equal(c.width, frames->shape[3]);
    float *last = channels_last(want, c.frames * c.height * c.width);
    double *wanted = doubles(last, frames->count);
    test_close(c.x, wanted, frames->count, tolerance, what);
    free(wanted);
    free(last);
    free(c.x);
}

static void check_encode(const hlv_vae *vae, const hlv_weight *frames, const float *x, const hlv_weight *encoded,
                         const float *want, double tolerance, const char *what) {
    float *last = channels_last(x, frames->count / 3), *latents = test_poison(encoded->count);
    double *wanted = doubles(want, encoded->count);
    assert_int_equal(hlv_vae_encode(vae, latents, last, frames->shape[1], frames->shape[2], frames->shape[3]), HLV_OK);
    test_close(latents, wanted, encoded->count, tolerance, what);
    free(wanted);
    free(latents);
    free(last);
}

/* Every clip of a case, both ways; one VAE for all, so that no clip leaks into the next. */
static void check_case(const char *name, hla_dtype dtype, double tolerance) {
    hlv_context *ctx = test_context(2);
    hlv_vae *vae = open_case(ctx, name, dtype);
    hlv_weights *golden = open_golden(ctx, name);
    const hlv_weight *latents, *frames, *encoded;
    int clips = 0;
    for (float *z; (z = take(ctx, golden, "latents", clips, &latents)); clips++) {
        float *x = take(ctx, golden, "frames", clips, &frames), *e = take(ctx, golden, "encoded", clips, &encoded);
        assert_true(x && e);
        char what[64];
        snprintf(what, sizeof what, "%s, clip %d, decoded", name, clips);
        check_decode(vae, latents, z, frames, x, tolerance, what);
        snprintf(what, sizeof what, "%s, clip %d, encoded", name, clips);
        check_encode(vae, frames, x, encoded, e, tolerance, what);
        hlv_free(ctx, e);
        hlv_free(ctx, x);
        hlv_free(ctx, z);
    }
    assert_true(clips >= 2);
    hlv_weights_free(golden);
    hlv_vae_free(vae);
    hlv_context_free(ctx);
}

static void test_parity(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        check_case(cases[i], HLA_F32, TOLERANCE);
}

/* bf16 operands keep 8 bits: 2^-9 an operand, grown by some twenty layers of a net that was not trained to forgive it.
 */
static void test_parity_bf16(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        check_case(cases[i], HLA_BF16, 0.03);
}

/* Decoded and encoded on 1, 2 and 3 threads. */
static void test_threads(void **state) {
    (void)state;
    for (int dtype = HLA_F32; dtype <= HLA_BF16; dtype++) {
        clip first = {0};
        float *first_latents = NULL;
        for (int threads = 1; threads <= 3; threads++) {
            hlv_context *ctx = test_context(threads);
            hlv_vae *vae = open_case(ctx, "wan", (hla_dtype)dtype);
            float *z = test_numbers(31, 16 * 3 * 6 * 5, 1.0f), *latents = test_poison(16 * 3 * 6 * 5);
            clip c = {0};
            assert_int_equal(hlv_vae_decode(vae, z, 3, 6, 5, gather, &c), HLV_OK);
            assert_int_equal(hlv_vae_encode(vae, latents, c.x, c.frames, c.height, c.width), HLV_OK);
            if (threads == 1) first = c, first_latents = latents;
            assert_memory_equal(first.x, c.x, (size_t)(c.frames * c.height * c.width * 3) * sizeof *c.x);
            assert_memory_equal(first_latents, latents, 16 * 3 * 6 * 5 * sizeof *latents);
            if (threads > 1) free(c.x), free(latents);
            free(z);
            hlv_vae_free(vae);
            hlv_context_free(ctx);
        }
        free(first.x);
        free(first_latents);
    }
}

/* Two contexts at work at once, each in a thread of its own, give what each gives alone. */
static void *decode_alone(void *user) {
    hlv_context *ctx = test_context(2);
    hlv_vae *vae = open_case(ctx, "odd", HLA_F32);
    float *z = test_numbers(36, 3 * 3 * 6 * 5, 1.0f);
    assert_int_equal(hlv_vae_decode(vae, z, 3, 6, 5, gather, user), HLV_OK);
    free(z);
    hlv_vae_free(vae);
    hlv_context_free(ctx);
    return NULL;
}

static void test_two_contexts(void **state) {
    (void)state;
    clip alone = {0}, together[2] = {{0}, {0}};
    pthread_t threads[2];
    decode_alone(&alone);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, decode_alone, &together[i]), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(together[i].frames, alone.frames);
        assert_memory_equal(together[i].x, alone.x,
                            (size_t)(alone.frames * alone.height * alone.width * 3) * sizeof(float));
        free(together[i].x);
    }
    free(alone.x);
}

static hlv_status drop(void *user, const float *frames, int64_t first, int64_t count, int64_t height, int64_t width) {
    (void)user, (void)frames, (void)first, (void)count, (void)height, (void)width;
    return HLV_OK;
}

/* Most bytes held while decoding and encoding 1 + 4k frames. */
static int64_t peak_of(int64_t k, bool encode) {
    hlv_context *ctx = test_context(2);
    hlv_vae *vae = open_case(ctx, "wan", HLA_F32);
    const int64_t F = 1 + k, Y = 4, X = 4, N = 1 + 4 * k;
    float *z = test_numbers(32, 16 * F * Y * X, 1.0f), *x = test_numbers(33, N * Y * X * 64 * 3, 1.0f);
    (void)hlv_context_peak_bytes(ctx, true);
    hlv_status status =
        encode ? hlv_vae_encode(vae, z, x, N, Y * 8, X * 8) : hlv_vae_decode(vae, z, F, Y, X, drop, NULL);
    assert_int_equal(status, HLV_OK);
    int64_t peak = hlv_context_peak_bytes(ctx, false);
    free(x);
    free(z);
    hlv_vae_free(vae);
    hlv_context_free(ctx);
    return peak;
}

/* A clip ten times as long takes not a byte more. */
static void test_memory(void **state) {
    (void)state;
    for (int encode = 0; encode < 2; encode++) {
        int64_t small = peak_of(2, encode), large = peak_of(20, encode);
        assert_true(small > 0);
        assert_int_equal(small, large);
    }
}

typedef struct watch {
    int64_t limit; /* stop once this much is done */
    int64_t done, total, calls;
    const char *stage;
} watch;

static bool stop_after(void *user) {
    const watch *w = user;
    return w->done >= w->limit;
}

static bool two_calls(void *user) {
    return ((const clip *)user)->calls == 2;
}

static void note(void *user, const char *stage, int64_t done, int64_t total) {
    watch *w = user;
    assert_true(done >= w->done || w->calls == 0);
    w->stage = stage, w->done = done, w->total = total;
    w->calls++;
}

static void test_progress_and_cancel(void **state) {
    (void)state;
    hlv_context *ctx = test_context(2);
    hlv_vae *vae = open_case(ctx, "odd", HLA_F32);
    float *z = test_numbers(34, 3 * 4 * 2 * 2, 1.0f);
    watch w = {.limit = 100};
    hlv_context_set_progress(ctx, note, &w);
    hlv_context_set_cancel(ctx, stop_after, &w);
    clip c = {0};
    assert_int_equal(hlv_vae_decode(vae, z, 4, 2, 2, gather, &c), HLV_OK);
    assert_int_equal(c.calls, 4); /* one a latent frame, by which the sink tells how far it is */
    assert_int_equal(w.calls, 0);
    assert_int_equal(hlv_vae_encode(vae, z, c.x, c.frames, c.height, c.width), HLV_OK);
    assert_string_equal(w.stage, "encode");
    assert_true(w.done == 4 && w.total == 4);
    free(c.x);

    c = (clip){0};
    hlv_context_set_cancel(ctx, two_calls, &c);
    assert_int_equal(hlv_vae_decode(vae, z, 4, 2, 2, gather, &c), HLV_ERROR_CANCELLED);
    assert_int_equal(c.frames, 5); /* two latent frames: 1 + 4 */
    assert_non_null(strstr(hlv_context_error(ctx), "2 of 4"));
    watch at_once = {.limit = 0};
    hlv_context_set_progress(ctx, note, &at_once);
    hlv_context_set_cancel(ctx, stop_after, &at_once);
    assert_int_equal(hlv_vae_encode(vae, z, c.x, 5, 8, 8), HLV_ERROR_CANCELLED);
    assert_non_null(strstr(hlv_context_error(ctx), "0 of 2"));
    free(c.x);
    hlv_context_set_cancel(ctx, NULL, NULL);
    hlv_context_set_progress(ctx, NULL, NULL);

    c = (clip){.stop_after = 1};
    assert_int_equal(hlv_vae_decode(vae, z, 4, 2, 2, gather, &c), HLV_ERROR_IO); /* the sink's own status */
    assert_int_equal(c.frames, 1);
    free(c.x);
    free(z);
    hlv_vae_free(vae);
    hlv_context_free(ctx);
}

static void test_bad_arguments(void **state) {
    (void)state;
    hlv_context *ctx = test_context(1);
    hlv_vae *vae = open_case(ctx, "wan", HLA_F32), *none = NULL;
    assert_int_equal(hlv_vae_pixels_a_latent(hlv_vae_get_config(vae)), 8);
    assert_int_equal(hlv_vae_frames_a_latent(hlv_vae_get_config(vae)), 4);
    assert_int_equal(hlv_vae_get_config(vae)->z_dim, 16);
    float x[16] = {0};
    static const int64_t wrong_latents[][3] = {{0, 2, 2}, {1, 0, 2}, {1, 2, -1}, {1, 65536, 2}, {INT64_MAX, 2, 2}};
    for (size_t i = 0; i < sizeof wrong_latents / sizeof wrong_latents[0]; i++) {
        const int64_t *w = wrong_latents[i];
        assert_int_equal(hlv_vae_decode(vae, x, w[0], w[1], w[2], drop, NULL), HLV_ERROR_ARGUMENT);
    }
    assert_non_null(strstr(hlv_context_error(ctx), "latents"));
    static const int64_t wrong_frames[][3] = {{0, 8, 8}, {2, 8, 8}, {4, 8, 8}, {1, 12, 8}, {1, 8, 0}, {1, 8, 1 << 20}};
    for (size_t i = 0; i < sizeof wrong_frames / sizeof wrong_frames[0]; i++) {
        const int64_t *w = wrong_frames[i];
        assert_int_equal(hlv_vae_encode(vae, x, x, w[0], w[1], w[2]), HLV_ERROR_ARGUMENT);
    }
    assert_int_equal(hlv_vae_decode(vae, NULL, 1, 1, 1, drop, NULL), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_vae_decode(vae, x, 1, 1, 1, NULL, NULL), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_vae_encode(vae, NULL, x, 1, 8, 8), HLV_ERROR_ARGUMENT);
    hlv_vae_free(vae);
    assert_int_equal(hlv_vae_open(ctx, GOLDEN "wan", HLA_F32, 0, &none), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_vae_open(ctx, GOLDEN "wan", HLA_F16, HLV_VAE_DECODER, &none), HLV_ERROR_ARGUMENT);
    assert_int_not_equal(hlv_vae_open(ctx, GOLDEN "nowhere", HLA_F32, HLV_VAE_DECODER, &none), HLV_OK);
    assert_null(none);
    assert_int_equal(hlv_vae_open(ctx, GOLDEN "wan", HLA_F32, HLV_VAE_DECODER, &vae), HLV_OK);
    assert_int_equal(hlv_vae_encode(vae, x, x, 1, 8, 8), HLV_ERROR_ARGUMENT);
    hlv_vae_free(vae);
    assert_int_equal(hlv_vae_open(ctx, GOLDEN "wan", HLA_F32, HLV_VAE_ENCODER, &vae), HLV_OK);
    assert_int_equal(hlv_vae_decode(vae, x, 1, 1, 1, drop, NULL), HLV_ERROR_ARGUMENT);
    hlv_vae_free(vae);
    hlv_vae_free(NULL);
    hlv_context_free(ctx);
}

/* "flat" again, without two of its tensors and with two of a wrong shape: all four are named. */
static void test_missing_tensors(void **state) {
    (void)state;
    static const char *const gone[] = {"decoder.mid_block.attentions.0.to_qkv.weight",
                                       "encoder.down_blocks.0.norm2.gamma"};
    static const char *const bent[] = {"decoder.conv_in.weight", "quant_conv.bias"};
    hlv_context *ctx = test_context(1);
    hlv_weights *whole = NULL;
    assert_int_equal(hlv_weights_open(ctx, GOLDEN "flat/diffusion_pytorch_model.safetensors", &whole), HLV_OK);
    hlv_tensor_out out[256];
    int count = 0;
    for (int64_t i = 0; i < hlv_weights_count(whole); i++) {
        const hlv_weight *w = hlv_weights_at(whole, i);
        if (strcmp(w->name, gone[0]) == 0 || strcmp(w->name, gone[1]) == 0) continue;
        assert_true(count < 256);
        out[count] = (hlv_tensor_out){.name = w->name, .dtype = w->dtype, .ndim = w->ndim, .data = w->data};
        memcpy(out[count].shape, w->shape, sizeof w->shape);
        if (strcmp(w->name, bent[0]) == 0 || strcmp(w->name, bent[1]) == 0) {
            out[count].ndim = 1;
            out[count].shape[0] = w->count - 1;
        }
        count++;
    }
    char directory[] = "/tmp/hla-vae-XXXXXX", path[128], config[128];
    assert_non_null(mkdtemp(directory));
    snprintf(path, sizeof path, "%s/diffusion_pytorch_model.safetensors", directory);
    snprintf(config, sizeof config, "%s/config.json", directory);
    assert_int_equal(hlv_safetensors_write(ctx, path, out, count, NULL, 0), HLV_OK);
    assert_int_equal(symlink(GOLDEN "flat/config.json", config), 0);
    hlv_vae *vae = NULL;
    assert_int_equal(hlv_vae_open(ctx, directory, HLA_F32, HLV_VAE_DECODER | HLV_VAE_ENCODER, &vae), HLV_ERROR_FORMAT);
    assert_null(vae);
    for (int i = 0; i < 2; i++) {
        assert_non_null(strstr(hlv_context_error(ctx), gone[i]));
        assert_non_null(strstr(hlv_context_error(ctx), bent[i]));
    }
    hlv_weights_free(whole);
    assert_int_equal(unlink(config), 0);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
    hlv_context_free(ctx);
}

/* Whatever allocation fails, the call says so, frees what it had, and works once there is memory again. */
static void test_out_of_memory(void **state) {
    (void)state;
    hlv_context *ctx = test_context(2);
    hlv_vae *vae = NULL;
    int failed_open = 0, failed_decode = 0;
    for (int64_t limit = 1024; !vae; limit += limit / 8) {
        assert_int_equal(hlv_context_set_memory_limit(ctx, limit), HLV_OK);
        hlv_status status = hlv_vae_open(ctx, GOLDEN "flat", HLA_F32, HLV_VAE_DECODER, &vae);
        assert_true(status == HLV_OK || status == HLV_ERROR_MEMORY);
        if (status == HLV_ERROR_MEMORY) assert_int_equal(hlv_context_current_bytes(ctx), 0);
        failed_open += status != HLV_OK;
    }
    float *z = test_numbers(35, 4 * 3 * 16 * 16, 1.0f);
    hlv_status status = HLV_ERROR_MEMORY;
    for (int64_t limit = hlv_context_current_bytes(ctx) + 1024; status != HLV_OK; limit += limit / 16) {
        assert_int_equal(hlv_context_set_memory_limit(ctx, limit), HLV_OK);
        status = hlv_vae_decode(vae, z, 3, 16, 16, drop, NULL);
        assert_true(status == HLV_OK || status == HLV_ERROR_MEMORY);
        if (status != HLV_OK) assert_true(hlv_context_error(ctx)[0]);
        failed_decode += status != HLV_OK;
    }
    assert_true(failed_open > 3 && failed_decode > 3);
    free(z);
    hlv_vae_free(vae);
    assert_int_equal(hlv_context_current_bytes(ctx), 0);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parity),        cmocka_unit_test(test_parity_bf16),
        cmocka_unit_test(test_threads),       cmocka_unit_test(test_two_contexts),
        cmocka_unit_test(test_memory),        cmocka_unit_test(test_progress_and_cancel),
        cmocka_unit_test(test_bad_arguments), cmocka_unit_test(test_missing_tensors),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
