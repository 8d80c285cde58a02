/* Every format, read back by ffmpeg and ffprobe: programs that are not ours say what is in our files. */
#include "tests/media/frames.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const metadata[] = {"prompt",  "a \"rocket\"; $(date) = 'up'", "seed", "17",
                                       "comment", "caf\xc3\xa9 \xf0\x9f\x9a\x80"};

typedef struct fixture {
    hlv_context *ctx;
    char *scratch;
    char path[256];
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    assert_int_equal(hlv_context_create(&f->ctx), HLV_OK);
    f->scratch = make_scratch();
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    remove_scratch(f->scratch);
    hlv_context_free(f->ctx);
    free(f);
    return 0;
}

static hlv_video_info describe(int width, int height, double fps) {
    return (hlv_video_info){.width = width, .height = height, .fps = fps, .metadata = metadata, .metadata_count = 3};
}

static void write_one(fixture *f, const char *name, int width, int height, double fps, picture kind, int frames) {
    join(f->path, sizeof f->path, f->scratch, name);
    hlv_video_info info = describe(width, height, fps);
    assert_int_equal(hlv_video_check(f->ctx, f->path), HLV_OK);
    hlv_status status = write_video(f->ctx, f->path, &info, kind, frames);
    if (status != HLV_OK) fail_msg("%s: %s", name, hlv_context_error(f->ctx));
}

/* The least PSNR of any frame, against the pictures themselves; the number of frames must be right. */
static double compare(const char *path, int width, int height, picture kind, int frames) {
    size_t size, frame = (size_t)width * (size_t)height * 3;
    uint8_t *got = decode(path, &size), *want = malloc(frame);
    assert_non_null(want);
    assert_int_equal(size, frame * (size_t)frames);
    double least = 1e9;
    for (int i = 0; i < frames; i++) {
        make_picture(want, kind, width, height, i);
        double quality = psnr(got + (size_t)i * frame, want, frame);
        least = quality < least ? quality : least;
    }
    free(want);
    free(got);
    return least;
}

static void assert_exact(const char *path, int width, int height, picture kind, int frames) {
    double quality = compare(path, width, height, kind, frames);
    if (!(quality > 150)) fail_msg("%s: %g dB, wanted every pixel exact", path, quality);
}

static void assert_holds(const char *text, const char *part) {
    if (strcasestr(text, part) == NULL) fail_msg("'%s' not found in:\n%s", part, text);
}

static char *probe(const char *path) {
    return run_program(NULL, "ffprobe -v error -count_frames -show_streams -show_format '%s'", path);
}

static void test_apng_is_exact(void **state) {
    static const int sizes[][2] = {{1, 1}, {2, 1}, {37, 23}, {64, 48}};
    static const picture kinds[] = {PICTURE_NOISE, PICTURE_SMOOTH, PICTURE_FEW_COLOURS};
    for (size_t i = 0; i < 4; i++)
        for (size_t k = 0; k < 3; k++) {
            write_one(*state, i % 2 ? "a.apng" : "a.png", sizes[i][0], sizes[i][1], 16, kinds[k], 3);
            assert_exact(((fixture *)*state)->path, sizes[i][0], sizes[i][1], kinds[k], 3);
        }
}

static void test_apng_plays_at_its_rate(void **state) {
    fixture *f = *state;
    write_one(f, "a.apng", 8, 8, 16, PICTURE_NOISE, 5);
    char *text = probe(f->path);
    assert_holds(text, "codec_name=apng");
    assert_holds(text, "r_frame_rate=16/1");
    assert_holds(text, "nb_read_frames=5");
    free(text);
}

/* Chunks as the standard lays them out, walked byte by byte: lengths, order, animation control, texts. */
static void test_png_chunks(void **state) {
    fixture *f = *state;
    write_one(f, "a.png", 8, 8, 16, PICTURE_NOISE, 3);
    size_t size;
    char *bytes = run_program(&size, "cat '%s'", f->path), order[256] = "";
    bool prompt = false, international = false;
    for (size_t at = 8; at + 12 <= size;) {
        const uint8_t *chunk = (const uint8_t *)bytes + at;
        size_t length = (size_t)chunk[0] << 24 | (size_t)chunk[1] << 16 | (size_t)chunk[2] << 8 | chunk[3];
        assert_true(at + 12 + length <= size);
        snprintf(order + strlen(order), sizeof order - strlen(order), "%.4s ", chunk + 4);
        if (memcmp(chunk + 4, "acTL", 4) == 0) assert_memory_equal(chunk + 8, "\0\0\0\3\0\0\0\0", 8);
        if (memcmp(chunk + 4, "tEXt", 4) == 0 && memcmp(chunk + 8, "prompt\0a \"rocket\"", 17) == 0) prompt = true;
        if (memcmp(chunk + 4, "iTXt", 4) == 0 && memcmp(chunk + 8, "comment\0\0\0\0\0caf\xc3\xa9", 17) == 0)
            international = true;
        at += 12 + length;
    }
    free(bytes);
    assert_string_equal(order, "IHDR acTL tEXt tEXt iTXt fcTL IDAT fcTL fdAT fcTL fdAT IEND ");
    assert_true(prompt);
    assert_true(international);
}

static void test_one_frame_is_a_plain_png(void **state) {
    fixture *f = *state;
    write_one(f, "still.png", 33, 17, 16, PICTURE_SMOOTH, 1);
    assert_exact(f->path, 33, 17, PICTURE_SMOOTH, 1);
    char *text = run_program(NULL, "grep -c acTL '%s' || true", f->path);
    assert_string_equal(text, "0\n");
    free(text);
    text = probe(f->path);
    assert_holds(text, "codec_name=png");
    assert_holds(text, "pix_fmt=rgb24");
    free(text);
}

static void test_png_sequence(void **state) {
    fixture *f = *state;
    write_one(f, "100%%-%03d.png", 20, 10, 16, PICTURE_NOISE, 4);
    assert_int_equal(count_files(f->scratch), 4);
    for (int i = 0; i < 4; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/100%%-%03d.png", f->scratch, i);
        size_t size;
        uint8_t *got = (uint8_t *)run_program(
            &size, "ffmpeg -v error -f image2pipe -i - -f rawvideo -pix_fmt rgb24 - <'%s'", path);
        uint8_t want[20 * 10 * 3];
        make_picture(want, PICTURE_NOISE, 20, 10, i);
        assert_int_equal(size, sizeof want);
        assert_memory_equal(got, want, sizeof want);
        free(got);
    }
}

static void test_gif_with_few_colours_is_exact(void **state) {
    static const int sizes[][2] = {{1, 1}, {3, 2}, {37, 23}, {300, 200}};
    for (size_t i = 0; i < 4; i++) {
        write_one(*state, "a.gif", sizes[i][0], sizes[i][1], 10, PICTURE_FEW_COLOURS, 3);
        assert_exact(((fixture *)*state)->path, sizes[i][0], sizes[i][1], PICTURE_FEW_COLOURS, 3);
    }
}

static void test_gif_with_many_colours(void **state) {
    fixture *f = *state;
    write_one(f, "smooth.gif", 128, 96, 16, PICTURE_SMOOTH, 4);
    double smooth = compare(f->path, 128, 96, PICTURE_SMOOTH, 4);
    write_one(f, "noise.gif", 128, 96, 16, PICTURE_NOISE, 4); /* fills the code table many times over */
    double noise = compare(f->path, 128, 96, PICTURE_NOISE, 4);
    print_message("gif: smooth %.1f dB, noise %.1f dB\n", smooth, noise);
    assert_true(smooth > 36);
    assert_true(noise > 24); /* a cube of 6x6x6 colours gives 24.7 dB at best */
}

static void test_gif_plays_at_its_rate(void **state) {
    fixture *f = *state;
    write_one(f, "a.gif", 16, 16, 16, PICTURE_SMOOTH, 33);
    char *text = run_program(
        NULL, "ffprobe -v error -show_entries frame=pkt_duration_time -of csv=p=0 '%s' | tr -d ','", f->path);
    double total = 0, longest = 0;
    int frames = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n"), frames++) {
        double seconds = strtod(line, NULL);
        total += seconds;
        longest = seconds > longest ? seconds : longest;
    }
    free(text);
    assert_int_equal(frames, 33);
    assert_true(total > 33 / 16.0 - 0.011 && total < 33 / 16.0 + 0.011);
    assert_true(longest < 0.0701);
    text = run_program(NULL, "grep -a -c 'prompt: a \"rocket\"' '%s'", f->path);
    assert_string_equal(text, "1\n");
    free(text);
}

static void test_y4m(void **state) {
    fixture *f = *state;
    write_one(f, "a.y4m", 37, 23, 30000.0 / 1001, PICTURE_SMOOTH, 3);
    double quality = compare(f->path, 37, 23, PICTURE_SMOOTH, 3);
    print_message("y4m: %.1f dB\n", quality);
    assert_true(quality > 49); /* steps of 1.16 levels a channel */
    char *text = probe(f->path);
    assert_holds(text, "r_frame_rate=30000/1001");
    assert_holds(text, "pix_fmt=yuv444p");
    assert_holds(text, "nb_read_frames=3");
    free(text);
}

/* The corner colours of BT.601, as the standard tabulates them. */
static void test_y4m_colours(void **state) {
    static const uint8_t rgb[6][3] = {{0, 0, 0}, {255, 255, 255}, {255, 0, 0}, {0, 255, 0}, {0, 0, 255}, {255, 255, 0}};
    static const uint8_t ycc[6][3] = {{16, 128, 128}, {235, 128, 128}, {81, 90, 240},
                                      {145, 54, 34},  {41, 240, 110},  {210, 16, 146}};
    fixture *f = *state;
    join(f->path, sizeof f->path, f->scratch, "a.y4m");
    hlv_video_info info = describe(6, 1, 25);
    hlv_video_writer *writer = NULL;
    assert_int_equal(hlv_video_writer_open(f->ctx, f->path, &info, &writer), HLV_OK);
    assert_int_equal(hlv_video_writer_frame(writer, rgb[0]), HLV_OK);
    assert_int_equal(hlv_video_writer_close(writer, true), HLV_OK);
    size_t size;
    uint8_t *bytes = (uint8_t *)run_program(&size, "tail -c 18 '%s'", f->path);
    assert_int_equal(size, 18);
    for (int i = 0; i < 6; i++)
        for (int c = 0; c < 3; c++)
            assert_int_equal(bytes[6 * c + i], ycc[i][c]);
    free(bytes);
}

static void check_encoded(fixture *f, const char *name, const char *codec, int width, int height) {
    write_one(f, name, width, height, 16, PICTURE_SMOOTH, 9);
    int even_width = width + width % 2, even_height = height + height % 2;
    char *text = probe(f->path), size[64];
    snprintf(size, sizeof size, "\nwidth=%d\nheight=%d\n", even_width, even_height);
    assert_holds(text, codec);
    assert_holds(text, size);
    assert_holds(text, "pix_fmt=yuv420p\n");
    assert_holds(text, "r_frame_rate=16/1");
    assert_holds(text, "nb_read_frames=9");
    assert_holds(text, "color_space=bt709");
    assert_holds(text, "TAG:prompt=a \"rocket\"; $(date) = 'up'\n");
    assert_holds(text, "TAG:seed=17\n");
    assert_holds(text, "TAG:comment=caf\xc3\xa9 \xf0\x9f\x9a\x80\n");
    free(text);
}

static void test_mp4(void **state) {
    fixture *f = *state;
    check_encoded(f, "odd.mp4", "codec_name=h264", 65, 47);
    check_encoded(f, "a.mp4", "codec_name=h264", 64, 48);
    double quality = compare(f->path, 64, 48, PICTURE_SMOOTH, 9);
    print_message("mp4: %.1f dB\n", quality);
    assert_true(quality > 40);
    char *text = run_program(NULL, "head -c 4000 '%s' | grep -a -o -m1 -E 'moov|mdat' | head -1", f->path);
    assert_string_equal(text, "moov\n"); /* fast start: the index comes first */
    free(text);
}

static void test_webm(void **state) {
    fixture *f = *state;
    check_encoded(f, "a.webm", "codec_name=vp9", 64, 48);
    double quality = compare(f->path, 64, 48, PICTURE_SMOOTH, 9);
    print_message("webm: %.1f dB\n", quality);
    assert_true(quality > 40);
}

/* A name that a shell, ffmpeg's protocols or its options could misread. */
static void test_difficult_names(void **state) {
    fixture *f = *state;
    static const char *const names[] = {"a b;$(x) 'q' %d.mp4", "http:x.mp4", "-y.mp4", "UPPER.MP4", "na\xc3\xafve.gif"};
    for (size_t i = 0; i < 5; i++) {
        join(f->path, sizeof f->path, f->scratch, names[i]);
        hlv_video_info info = describe(16, 16, 8);
        assert_int_equal(write_video(f->ctx, f->path, &info, PICTURE_SMOOTH, 2), HLV_OK);
        assert_int_equal(count_files(f->scratch), i + 1);
        FILE *file = fopen(f->path, "rb");
        assert_non_null(file);
        fclose(file);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_apng_is_exact, setup, teardown),
        cmocka_unit_test_setup_teardown(test_apng_plays_at_its_rate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_png_chunks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_frame_is_a_plain_png, setup, teardown),
        cmocka_unit_test_setup_teardown(test_png_sequence, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gif_with_few_colours_is_exact, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gif_with_many_colours, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gif_plays_at_its_rate, setup, teardown),
        cmocka_unit_test_setup_teardown(test_y4m, setup, teardown),
        cmocka_unit_test_setup_teardown(test_y4m_colours, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mp4, setup, teardown),
        cmocka_unit_test_setup_teardown(test_webm, setup, teardown),
        cmocka_unit_test_setup_teardown(test_difficult_names, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
