/* What goes wrong while writing a video: each gives a status and a sentence, and leaves nothing behind. */
#include "tests/media/frames.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct fixture {
    hlv_context *ctx;
    char *scratch; /* outputs */
    char *bin;     /* a fake ffmpeg, or none */
    char *old_path;
    char path[256];
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    assert_int_equal(hlv_context_create(&f->ctx), HLV_OK);
    f->scratch = make_scratch();
    f->bin = make_scratch();
    const char *path = getenv("PATH");
    f->old_path = strdup(path != NULL ? path : "");
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    setenv("PATH", f->old_path, 1);
    remove_scratch(f->scratch);
    remove_scratch(f->bin);
    hlv_context_free(f->ctx);
    free(f->old_path);
    free(f);
    return 0;
}

static const hlv_video_info small = {.width = 64, .height = 64, .fps = 16};

static void assert_failed(fixture *f, hlv_status got, hlv_status want, const char *part) {
    const char *sentence = hlv_context_error(f->ctx);
    if (got != want || strstr(sentence, part) == NULL)
        fail_msg("status %d, wanted %d with '%s' in: %s", (int)got, (int)want, part, sentence);
    assert_int_equal(count_files(f->scratch), 0);
}

static void name_output(fixture *f, const char *name) {
    join(f->path, sizeof f->path, f->scratch, name);
}

static void fake_ffmpeg(fixture *f, const char *script) {
    char path[256];
    join(path, sizeof path, f->bin, "ffmpeg");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fprintf(file, "#!/bin/sh\nPATH='%s'\n%s\n", f->old_path, script);
    fclose(file);
    assert_int_equal(chmod(path, 0755), 0);
    setenv("PATH", f->bin, 1);
}

static void test_ffmpeg_missing(void **state) {
    fixture *f = *state;
    setenv("PATH", f->bin, 1);
    name_output(f, "a.mp4");
    assert_failed(f, hlv_video_check(f->ctx, f->path), HLV_ERROR_UNSUPPORTED, "formats that need no ffmpeg: .gif");
    assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_SMOOTH, 2), HLV_ERROR_UNSUPPORTED, "not on PATH");
    name_output(f, "a.gif");
    assert_int_equal(hlv_video_check(f->ctx, f->path), HLV_OK);
}

static void test_ffmpeg_cannot_be_started(void **state) {
    fixture *f = *state;
    fake_ffmpeg(f, "");
    char path[256];
    join(path, sizeof path, f->bin, "ffmpeg");
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("#!/no/such/interpreter\n", file);
    fclose(file);
    name_output(f, "a.mp4");
    assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_SMOOTH, 2), HLV_ERROR_IO, "cannot start");
}

static void test_ffmpeg_ends_at_once(void **state) {
    fixture *f = *state;
    fake_ffmpeg(f, "echo 'one line' >&2; echo \"Unknown encoder 'libx264'\" >&2; exit 1");
    name_output(f, "a.mp4");
    assert_failed(f, hlv_video_check(f->ctx, f->path), HLV_ERROR_IO, "exit status 1");
    assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_NOISE, 60), HLV_ERROR_IO,
                  "Unknown encoder 'libx264'");
}

/* Reads a little, leaves a half-written file, and dies. */
static void test_ffmpeg_dies_midway(void **state) {
    fixture *f = *state;
    fake_ffmpeg(f, "for last; do :; done; head -c 40000 >\"${last#file:}\"; kill -KILL $$");
    name_output(f, "a.webm");
    assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_NOISE, 200), HLV_ERROR_IO, "signal 9");
}

static void test_ffmpeg_fails_at_the_end(void **state) {
    fixture *f = *state;
    fake_ffmpeg(f, "for last; do :; done; cat >\"${last#file:}\"; echo 'disk is full' >&2; exit 3");
    name_output(f, "a.mp4");
    assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_NOISE, 20), HLV_ERROR_IO, "exit status 3");
    assert_non_null(strstr(hlv_context_error(f->ctx), "disk is full"));
}

static void test_ffmpeg_writes_nothing(void **state) {
    fixture *f = *state;
    fake_ffmpeg(f, "cat >/dev/null");
    name_output(f, "a.mp4");
    assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_NOISE, 20), HLV_ERROR_IO, "without writing");
}

/* Complaints beyond what a pipe holds must not stop the frames. */
static void test_ffmpeg_talks_a_lot(void **state) {
    fixture *f = *state;
    fake_ffmpeg(f, "for last; do :; done; yes complaint | head -c 300000 >&2; cat >\"${last#file:}\"");
    name_output(f, "a.mp4");
    assert_int_equal(write_video(f->ctx, f->path, &small, PICTURE_NOISE, 20), HLV_OK);
}

static bool cancel_after(void *user) {
    int *asked = user;
    return ++*asked > 3;
}

/* One that never reads, and one that never ends: cancel gets out of both, and they are ended. */
static void test_ffmpeg_hangs(void **state) {
    static const char *const scripts[] = {"echo $$ >\"$0.pid\"; sleep 60",
                                          "echo $$ >\"$0.pid\"; cat >/dev/null; exec 2>&-; sleep 60"};
    fixture *f = *state;
    for (int i = 0; i < 2; i++) {
        int asked = 0;
        fake_ffmpeg(f, scripts[i]);
        name_output(f, "a.mp4");
        hlv_context_set_cancel(f->ctx, cancel_after, &asked);
        assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_NOISE, i == 0 ? 200 : 1), HLV_ERROR_CANCELLED,
                      "cancelled");
        setenv("PATH", f->old_path, 1);
        char *pid = run_program(NULL, "cat '%s/ffmpeg.pid'", f->bin);
        assert_int_equal(kill((pid_t)strtol(pid, NULL, 10), 0), -1);
        free(pid);
    }
}

static void test_abandoned(void **state) {
    static const char *const names[] = {"a.mp4", "a.webm", "a.gif", "a.png", "a.apng", "a.y4m", "a-%d.png"};
    fixture *f = *state;
    uint8_t rgb[64 * 64 * 3] = {0};
    for (size_t i = 0; i < 7; i++) {
        hlv_video_writer *writer = NULL;
        name_output(f, names[i]);
        assert_int_equal(hlv_video_writer_open(f->ctx, f->path, &small, &writer), HLV_OK);
        assert_int_equal(hlv_video_writer_frame(writer, rgb), HLV_OK);
        assert_int_equal(hlv_video_writer_frame(writer, rgb), HLV_OK);
        assert_int_equal(hlv_video_writer_close(writer, false), HLV_OK);
        assert_int_equal(count_files(f->scratch), 0);
        assert_failed(f, write_video(f->ctx, f->path, &small, PICTURE_NOISE, 0), HLV_ERROR_ARGUMENT, "no frames");
    }
    assert_int_equal(hlv_video_writer_close(NULL, true), HLV_OK);
}

/* An older file of the same name stays as it was when writing fails. */
static void test_old_file_survives(void **state) {
    fixture *f = *state;
    name_output(f, "a.y4m");
    FILE *file = fopen(f->path, "w");
    assert_non_null(file);
    fputs("old", file);
    fclose(file);
    hlv_video_writer *writer = NULL;
    uint8_t rgb[64 * 64 * 3] = {0};
    assert_int_equal(hlv_video_writer_open(f->ctx, f->path, &small, &writer), HLV_OK);
    assert_int_equal(hlv_video_writer_frame(writer, rgb), HLV_OK);
    assert_int_equal(hlv_video_writer_close(writer, false), HLV_OK);
    char *text = run_program(NULL, "cat '%s'", f->path);
    assert_string_equal(text, "old");
    free(text);
    assert_int_equal(count_files(f->scratch), 1);
    assert_int_equal(write_video(f->ctx, f->path, &small, PICTURE_NOISE, 1), HLV_OK);
    assert_int_equal(count_files(f->scratch), 1);
}

/* A limit on the size of files stands in for a full disk: the same path through write() and its error. */
static void test_disk_full(void **state) {
    static const char *const names[] = {"a.gif", "a.png", "a.y4m", "a-%d.png", "a.mp4"};
    fixture *f = *state;
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    void (*old_handler)(int) = signal(SIGXFSZ, SIG_IGN);
    low = old;
    low.rlim_cur = 5000;
    for (size_t i = 0; i < 5; i++) {
        name_output(f, names[i]);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
        hlv_status status = write_video(f->ctx, f->path, &small, PICTURE_NOISE, 8);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        assert_failed(f, status, HLV_ERROR_IO, names[i]);
    }
    signal(SIGXFSZ, old_handler);
}

static void test_bad_paths(void **state) {
    static const struct {
        const char *path;
        hlv_status status;
        const char *part;
    } table[] = {
        {"", HLV_ERROR_ARGUMENT, "empty"},
        {"/tmp/video", HLV_ERROR_ARGUMENT, ".mp4 .webm"},
        {"/tmp/video.avi", HLV_ERROR_ARGUMENT, "video.avi"},
        {"/tmp/.mp4", HLV_ERROR_ARGUMENT, ".mp4 .webm"},
        {"/tmp/f-%s.png", HLV_ERROR_ARGUMENT, "exactly one %d"},
        {"/tmp/f-%d-%d.png", HLV_ERROR_ARGUMENT, "exactly one %d"},
        {"/no/such/dir/a.gif", HLV_ERROR_IO, "/no/such/dir/"},
        {"/etc/passwd/a.gif", HLV_ERROR_IO, "/etc/passwd/"},
    };
    fixture *f = *state;
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        assert_failed(f, hlv_video_check(f->ctx, table[i].path), table[i].status, table[i].part);
        assert_failed(f, write_video(f->ctx, table[i].path, &small, PICTURE_NOISE, 1), table[i].status, table[i].part);
    }
    assert_int_equal(hlv_video_check(f->ctx, NULL), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_video_check(NULL, "a.gif"), HLV_ERROR_ARGUMENT);
}

static void test_target_is_no_file(void **state) {
    fixture *f = *state;
    name_output(f, "a.gif");
    assert_int_equal(mkdir(f->path, 0755), 0);
    assert_int_equal(hlv_video_check(f->ctx, f->path), HLV_ERROR_IO);
    assert_non_null(strstr(hlv_context_error(f->ctx), "directory"));
    assert_int_equal(rmdir(f->path), 0);
    assert_int_equal(mkfifo(f->path, 0644), 0);
    assert_int_equal(hlv_video_check(f->ctx, f->path), HLV_ERROR_IO);
    assert_non_null(strstr(hlv_context_error(f->ctx), "not a regular file"));
}

static void test_bad_info(void **state) {
    static const char *const key_with_equals[] = {"a=b", "c"}, *const no_value[] = {"a", NULL},
                             *const empty_key[] = {"", "c"};
    static const hlv_video_info table[] = {
        {.width = 0, .height = 8, .fps = 16},
        {.width = 8, .height = -1, .fps = 16},
        {.width = 8, .height = 100000, .fps = 16},
        {.width = 8, .height = 8, .fps = 0},
        {.width = 8, .height = 8, .fps = -16},
        {.width = 8, .height = 8, .fps = 0.0 / 1.0},
        {.width = 8, .height = 8, .fps = __builtin_nan("")},
        {.width = 8, .height = 8, .fps = __builtin_inf()},
        {.width = 8, .height = 8, .fps = 16, .metadata_count = -1},
        {.width = 8, .height = 8, .fps = 16, .metadata_count = 1},
        {.width = 8, .height = 8, .fps = 16, .metadata = key_with_equals, .metadata_count = 1},
        {.width = 8, .height = 8, .fps = 16, .metadata = no_value, .metadata_count = 1},
        {.width = 8, .height = 8, .fps = 16, .metadata = empty_key, .metadata_count = 1},
    };
    fixture *f = *state;
    name_output(f, "a.gif");
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        hlv_video_writer *writer = NULL;
        assert_failed(f, hlv_video_writer_open(f->ctx, f->path, &table[i], &writer), HLV_ERROR_ARGUMENT, "a.gif");
        assert_null(writer);
    }
}

/* Closing standard input and output in the caller must not mix up the child's. */
static void test_without_standard_streams(void **state) {
    fixture *f = *state;
    name_output(f, "a.mp4");
    int in = dup(0), out = dup(1), err = dup(2);
    close(0);
    close(1);
    close(2);
    hlv_status status = write_video(f->ctx, f->path, &small, PICTURE_SMOOTH, 3);
    dup2(in, 0);
    dup2(out, 1);
    dup2(err, 2);
    close(in);
    close(out);
    close(err);
    assert_int_equal(status, HLV_OK);
    char *text = run_program(
        NULL, "ffprobe -v error -count_frames -show_entries stream=nb_read_frames -of csv=p=0 '%s'", f->path);
    assert_string_equal(text, "3\n");
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_ffmpeg_missing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_cannot_be_started, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_ends_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_dies_midway, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_fails_at_the_end, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_writes_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_talks_a_lot, setup, teardown),
        cmocka_unit_test_setup_teardown(test_ffmpeg_hangs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_abandoned, setup, teardown),
        cmocka_unit_test_setup_teardown(test_old_file_survives, setup, teardown),
        cmocka_unit_test_setup_teardown(test_disk_full, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_paths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_target_is_no_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_info, setup, teardown),
        cmocka_unit_test_setup_teardown(test_without_standard_streams, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
