/* The examples that open hlv/media.h and hlv/arrays.h, compiled and run as they stand there. */
#include "hlv/hlv.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

static void test_media(void **state) {
    (void)state;
    hlv_context *ctx = NULL;
    static const uint8_t rgb[128 * 128 * 3];
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);

    hlv_video_writer *writer = NULL;
    hlv_video_writer_open(ctx, "rocket.mp4", &(hlv_video_info){.width = 128, .height = 128, .fps = 16}, &writer);
    for (int i = 0; i < 3; i++)
        hlv_video_writer_frame(writer, rgb);
    hlv_status status = hlv_video_writer_close(writer, true);

    assert_int_equal(status, HLV_OK);
    assert_int_equal(unlink("rocket.mp4"), 0);
    hlv_context_free(ctx);
}

static void test_arrays(void **state) {
    (void)state;
    hlv_context *ctx = NULL;
    hlv_array made;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    assert_int_equal(hlv_array_create(ctx, 2, (int64_t[]){2, 2}, &made), HLV_OK);
    for (int i = 0; i < 4; i++)
        made.data[i] = (float)i;
    assert_int_equal(hlv_array_write(ctx, "q.npy", "q", &made), HLV_OK);

    hlv_array_file *file = NULL;
    hlv_array q = {0};
    if (hlv_array_file_open(ctx, "q.npy", &file) != HLV_OK) fail();
    if (hlv_array_read(file, "q", &q) != HLV_OK) fail();
    hlv_array_file_close(file);
    hlv_array_write(ctx, "out.npy", "out", &q);
    assert_memory_equal(q.data, made.data, 16);
    hlv_array_free(ctx, &q);

    hlv_array_free(ctx, &made);
    assert_int_equal(unlink("q.npy"), 0);
    assert_int_equal(unlink("out.npy"), 0);
    hlv_context_free(ctx);
}

int main(void) {
    char scratch[] = "/tmp/hlv-examples-XXXXXX";
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_media), cmocka_unit_test(test_arrays)};
    if (mkdtemp(scratch) == NULL || chdir(scratch) != 0) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    return rmdir(scratch) == 0 ? failed : 1;
}
