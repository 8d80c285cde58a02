/* hlv_conv against double loops: kernels, strides, one-sided padding, odd sizes and channel counts, f32 and bf16, added
 * to what is there, doubled pixels, and the same bits on any number of threads. */
#include "nn_test.h"

typedef struct conv_case {
    int64_t in, out, kt, ky, kx;
    hlv_conv_options options;
    int64_t frames, height, width;
    hlv_conv_flags flags;
    bool bias;
} conv_case;

#define SAME                                                                                                           \
    { .pad_top = 1, .pad_bottom = 1, .pad_left = 1, .pad_right = 1 }
static const conv_case cases[] = {
    {16, 16, 3, 3, 3, SAME, 4, 33, 20, {false, false}, true},
    {3, 8, 3, 3, 3, SAME, 3, 17, 13, {false, false}, true},
    {12, 3, 3, 3, 3, SAME, 5, 9, 11, {false, false}, true},
    {32, 64, 1, 3, 3, SAME, 2, 16, 16, {true, false}, true},
    {24, 24, 3, 3, 3, SAME, 3, 40, 7, {true, false}, false},
    {8, 24, 1, 1, 1, {0}, 2, 10, 6, {false, false}, true},
    {20, 40, 3, 1, 1, {0}, 5, 8, 6, {false, false}, true},
    {6, 6, 3, 1, 1, {.stride_t = 2}, 7, 5, 9, {false, false}, true},
    {16, 16, 1, 3, 3, {.stride_y = 2, .stride_x = 2, .pad_bottom = 1, .pad_right = 1}, 2, 34, 26, {false, false}, true},
    {5, 7, 1, 3, 3, {.stride_y = 2, .stride_x = 2, .pad_bottom = 1, .pad_right = 1}, 1, 3, 3, {false, false}, true},
    {32, 16, 1, 3, 3, SAME, 2, 12, 9, {false, true}, true},
    {1, 1, 1, 1, 1, {0}, 1, 1, 1, {false, false}, false},
    {2, 3, 2, 5, 3, {.pad_top = 2, .pad_left = 1}, 3, 8, 9, {false, false}, true},
    {48, 80, 3, 3, 3, SAME, 3, 21, 18, {false, false}, true},
};

typedef struct conv_sizes {
    int64_t height, width, frames_out, height_out, width_out, x, w, y; /* counts of floats */
} conv_sizes;

static int64_t stride(int given) {
    return given ? given : 1;
}

static conv_sizes sizes_of(const conv_case *c) {
    const hlv_conv_options *o = &c->options;
    conv_sizes s = {.height = c->height * (c->flags.upsample ? 2 : 1), .width = c->width * (c->flags.upsample ? 2 : 1)};
    s.frames_out = (c->frames - c->kt) / stride(o->stride_t) + 1;
    s.height_out = (s.height + o->pad_top + o->pad_bottom - c->ky) / stride(o->stride_y) + 1;
    s.width_out = (s.width + o->pad_left + o->pad_right - c->kx) / stride(o->stride_x) + 1;
    s.x = c->frames * c->height * c->width * c->in;
    s.w = c->out * c->in * c->kt * c->ky * c->kx;
    s.y = s.frames_out * s.height_out * s.width_out * c->out;
    return s;
}

/* One output value. */
static double reference_at(const conv_case *c, const conv_sizes *s, const float *x, const float *w, int64_t frame,
                           int64_t row, int64_t column, int64_t out) {
    double sum = 0.0;
    const int64_t half = c->flags.upsample ? 2 : 1;
    for (int64_t k = 0; k < c->kt * c->ky * c->kx; k++) {
        int64_t f = frame * stride(c->options.stride_t) + k / (c->ky * c->kx);
        int64_t yy = row * stride(c->options.stride_y) + k / c->kx % c->ky - c->options.pad_top;
        int64_t xx = column * stride(c->options.stride_x) + k % c->kx - c->options.pad_left;
        if (yy < 0 || yy >= s->height || xx < 0 || xx >= s->width) continue;
        const float *pixel = x + ((f * c->height + yy / half) * c->width + xx / half) * c->in;
        for (int64_t i = 0; i < c->in; i++)
            sum += (double)pixel[i] * (double)w[(out * c->in + i) * c->kt * c->ky * c->kx + k];
    }
    return sum;
}

static double *reference(const conv_case *c, const float *x, const float *w, const float *b, const float *start) {
    const conv_sizes s = sizes_of(c);
    double *want = malloc((size_t)s.y * sizeof *want);
    assert_non_null(want);
    for (int64_t i = 0; i < s.y; i++) {
        int64_t out = i % c->out, pixel = i / c->out;
        want[i] = reference_at(c, &s, x, w, pixel / s.width_out / s.height_out, pixel / s.width_out % s.height_out,
                               pixel % s.width_out, out);
        want[i] += (c->bias ? (double)b[out] : 0.0) + (c->flags.accumulate ? (double)start[i] : 0.0);
    }
    return want;
}

static float *forward(const conv_case *c, hla_dtype dtype, int threads, const float *x, const float *w, const float *b,
                      const float *start) {
    const conv_sizes s = sizes_of(c);
    hlv_context *ctx = test_context(threads);
    hlv_weight weight = test_weight("w", w, 5, (int64_t[]){c->out, c->in, c->kt, c->ky, c->kx});
    if (c->kt == 1) weight = test_weight("w", w, 4, (int64_t[]){c->out, c->in, c->ky, c->kx});
    hlv_weight bias = test_weight("b", b, 1, (int64_t[]){c->out});
    hlv_conv *conv = NULL;
    assert_int_equal(hlv_conv_create(ctx, dtype, &weight, c->bias ? &bias : NULL, &c->options, &conv), HLV_OK);
    float *y = test_poison(s.y);
    if (c->flags.accumulate) memcpy(y, start, (size_t)s.y * sizeof *y);
    if (c->flags.accumulate || c->flags.upsample) {
        const float *frames[8];
        for (int64_t f = 0; f < c->frames; f++)
            frames[f] = x + f * c->height * c->width * c->in;
        assert_int_equal(hlv_conv_run(conv, y, frames, c->frames, c->height, c->width, c->flags), HLV_OK);
    } else {
        assert_int_equal(hlv_conv_forward(conv, y, x, c->frames, c->height, c->width), HLV_OK);
    }
    hlv_conv_free(conv);
    hlv_context_free(ctx);
    return y;
}

static void check_case(const conv_case *c, hla_dtype dtype, const char *what) {
    const conv_sizes s = sizes_of(c);
    float *x = test_numbers(21, s.x, 1.0f), *w = test_numbers(22, s.w, 0.2f);
    float *b = test_numbers(23, c->out, 1.0f), *start = test_numbers(24, s.y, 1.0f);
    float *one = forward(c, dtype, 1, x, w, b, start);
    for (int threads = 2; threads <= 3; threads++) {
        float *more = forward(c, dtype, threads, x, w, b, start);
        assert_memory_equal(one, more, (size_t)s.y * sizeof *one);
        free(more);
    }
    if (dtype == HLA_BF16) { /* the reference's operands are rounded too */
        test_bf16_all(x, s.x);
        test_bf16_all(w, s.w);
    }
    double *want = reference(c, x, w, b, start);
    test_close(one, want, s.y, 1e-6, what);
    free(want);
    free(one);
    free(start);
    free(b);
    free(w);
    free(x);
}

static void check_all(hla_dtype dtype) {
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char what[64];
        snprintf(what, sizeof what, "case %d dtype %d", (int)i, (int)dtype);
        check_case(&cases[i], dtype, what);
    }
}

static void test_f32(void **state) {
    (void)state;
    check_all(HLA_F32);
}

static void test_bf16_operands(void **state) {
    (void)state;
    check_all(HLA_BF16);
}

static void count_warning(void *user, hlv_log_level level, const char *sentence) {
    (void)sentence;
    if (level == HLV_LOG_WARNING) ++*(int *)user;
}

/* One convolution, several image sizes in turn: the plan follows, and so does the layout of the weights: with 96
 * channels oneDNN wants another for narrow images and falls back to plain loops, some thousand times slower, where it
 * does not get it. */
static void test_sizes_in_turn(void **state) {
    (void)state;
    hlv_context *ctx = test_context(2);
    int warnings = 0;
    const float none[96] = {0};
    hlv_context_set_log(ctx, count_warning, &warnings);
    conv_case c = {96, 96, 1, 3, 3, SAME, 1, 0, 0, {false, false}, false};
    float *w = test_numbers(25, 96 * 96 * 9, 0.2f);
    hlv_weight weight = test_weight("w", w, 4, (int64_t[]){96, 96, 3, 3});
    hlv_conv *conv = NULL;
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, &weight, NULL, &c.options, &conv), HLV_OK);
    static const int64_t side[] = {4, 16, 4, 37, 1};
    for (size_t i = 0; i < sizeof side / sizeof side[0]; i++) {
        c.height = side[i] + 1, c.width = side[i];
        const conv_sizes s = sizes_of(&c);
        float *x = test_numbers(26 + i, s.x, 1.0f), *y = test_poison(s.y);
        double *want = reference(&c, x, w, none, none);
        assert_int_equal(hlv_conv_forward(conv, y, x, 1, c.height, c.width), HLV_OK);
        test_close(y, want, s.y, 1e-6, "sizes in turn");
        free(want);
        free(y);
        free(x);
    }
    if (__builtin_cpu_supports("avx512bw") && !getenv("ONEDNN_MAX_CPU_ISA")) assert_int_equal(warnings, 0);
    hlv_conv_free(conv);
    hlv_context_free(ctx);
    free(w);
}

static void test_bad_arguments(void **state) {
    (void)state;
    hlv_context *ctx = test_context(1);
    float w[54] = {0}, x[64] = {0}, y[64] = {0};
    hlv_weight weight = test_weight("conv.weight", w, 5, (int64_t[]){2, 1, 3, 3, 3});
    hlv_weight flat = test_weight("flat", w, 2, (int64_t[]){2, 27}),
               bias = test_weight("conv.bias", w, 1, (int64_t[]){3});
    hlv_weight huge = test_weight("huge", w, 4, (int64_t[]){1, 1, 1, 54});
    hlv_conv_options wrong = {.pad_top = -1};
    hlv_conv *conv = NULL;
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, NULL, NULL, NULL, &conv), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_conv_create(ctx, HLA_F16, &weight, NULL, NULL, &conv), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, &flat, NULL, NULL, &conv), HLV_ERROR_FORMAT);
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, &huge, NULL, NULL, &conv), HLV_ERROR_FORMAT);
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, &weight, &bias, NULL, &conv), HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), "conv.bias"));
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, &weight, NULL, &wrong, &conv), HLV_ERROR_ARGUMENT);
    assert_null(conv);
    assert_int_equal(hlv_conv_create(ctx, HLA_F32, &weight, NULL, NULL, &conv), HLV_OK);
    assert_int_equal(hlv_conv_forward(conv, y, x, 2, 4, 4), HLV_ERROR_ARGUMENT); /* fewer frames than the kernel */
    assert_int_equal(hlv_conv_forward(conv, y, x, 3, 2, 4), HLV_ERROR_ARGUMENT); /* lower than the kernel */
    assert_int_equal(hlv_conv_forward(conv, y, x, 3, 4, 0), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_conv_forward(conv, y, x, 0, 4, 4), HLV_ERROR_ARGUMENT);
    assert_non_null(strstr(hlv_context_error(ctx), "conv.weight"));
    assert_int_equal(hlv_conv_forward(conv, y, x, 3, 4, 4), HLV_OK);
    hlv_conv_free(conv);
    hlv_conv_free(NULL);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_bf16_operands),
        cmocka_unit_test(test_sizes_in_turn),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
