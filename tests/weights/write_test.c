/* The writer: its files are what the format says, read back equal, and appear whole or not at all. */
#include "support.h"

#include "video/core/context.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static const float singles[6] = {1.5f, -2, 3, 4, 5, 1e-30f};
static const uint16_t halves[3] = {0x3c00, 0xbf80, 0x7fff};
static const char *const metadata[] = {"format", "pt", "prompt", "a \"fox\"\n – Füchse"};

static hlv_status write_good(const fixture *f, const char *path) {
    const hlv_tensor_out tensors[] = {
        {"b", HLA_BF16, 1, {3}, halves},
        {"a", HLA_F32, 3, {1, 2, 3}, singles},
        {"none", HLA_F16, 2, {0, 7}, NULL},
        {"scalar", HLA_F32, 0, {0}, singles + 1},
    };
    return hlv_safetensors_write(f->ctx, path, tensors, 4, metadata, 2);
}

/* The whole file, as the format's description gives it. */
static void bytes_are_as_specified(void **state) {
    const fixture *f = *state;
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],"
        "\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"F16\",\"shape\":[1],\"data_offsets\":[8,10]}}";
    char path[256];
    path_in(f, "out.safetensors", path);
    const hlv_tensor_out tensors[] = {{"a", HLA_F32, 2, {1, 2}, singles}, {"b", HLA_F16, 1, {1}, halves}};
    assert_int_equal(hlv_safetensors_write(f->ctx, path, tensors, 2, metadata, 1), HLV_OK);

    uint8_t bytes[512];
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    uint64_t length = 0;
    memcpy(&length, bytes, 8);
    assert_int_equal(length % 8, 0);
    assert_int_equal(size, 8 + length + 10);
    assert_in_range(length, strlen(header), strlen(header) + 7);
    assert_memory_equal(bytes + 8, header, strlen(header));
    for (size_t i = strlen(header); i < length; i++)
        assert_int_equal(bytes[8 + i], ' ');
    assert_memory_equal(bytes + 8 + length, singles, 8);
    assert_memory_equal(bytes + 16 + length, halves, 2);
}

static void written_tensors_are_read_back(void **state) {
    const fixture *f = *state;
    char path[256];
    path_in(f, "out.safetensors", path);
    if (write_good(f, path) != HLV_OK) fail_msg("%s", hlv_context_error(f->ctx));
    hlv_weights *weights = NULL;
    if (hlv_weights_open(f->ctx, path, &weights) != HLV_OK) fail_msg("%s", hlv_context_error(f->ctx));
    assert_int_equal(hlv_weights_count(weights), 4);
    const hlv_weight *a = hlv_weights_find(weights, "a"), *b = hlv_weights_find(weights, "b");
    assert_int_equal(a->ndim, 3);
    assert_int_equal(a->shape[2], 3);
    assert_memory_equal(a->data, singles, sizeof singles);
    assert_int_equal(b->dtype, HLA_BF16);
    assert_memory_equal(b->data, halves, sizeof halves);
    assert_int_equal(hlv_weights_find(weights, "none")->shape[1], 7);
    assert_int_equal(hlv_weights_find(weights, "none")->dtype, HLA_F16);
    assert_int_equal(hlv_weights_find(weights, "scalar")->count, 1);
    assert_string_equal(hlv_weights_metadata(weights, "prompt"), metadata[3]);
    hlv_weights_free(weights);
    assert_int_equal(count_names(f->directory, ""), 1);
}

/* PyTorch's file, written again by us and read again, is the same file's content. */
static void reference_file_survives_rewriting(void **state) {
    const fixture *f = *state;
    hlv_weights *first = NULL, *second = NULL;
    assert_int_equal(hlv_weights_open(f->ctx, GOLDEN "transformer_bf16", &first), HLV_OK);
    hlv_tensor_out tensors[128];
    int count = (int)hlv_weights_count(first);
    assert_in_range(count, 1, 128);
    for (int i = 0; i < count; i++) {
        const hlv_weight *w = hlv_weights_at(first, i);
        tensors[i] = (hlv_tensor_out){.name = w->name, .dtype = w->dtype, .ndim = w->ndim, .data = w->data};
        memcpy(tensors[i].shape, w->shape, sizeof w->shape);
    }
    char path[256];
    path_in(f, "again.safetensors", path);
    assert_int_equal(hlv_safetensors_write(f->ctx, path, tensors, count, NULL, 0), HLV_OK);
    assert_int_equal(hlv_weights_open(f->ctx, path, &second), HLV_OK);
    assert_int_equal(hlv_weights_count(second), count);
    for (int i = 0; i < count; i++) {
        const hlv_weight *w = hlv_weights_at(first, i), *again = hlv_weights_find(second, w->name);
        assert_non_null(again);
        assert_int_equal(again->bytes, w->bytes);
        assert_memory_equal(again->shape, w->shape, sizeof w->shape);
        assert_memory_equal(again->data, w->data, (size_t)w->bytes);
    }
    hlv_weights_free(first);
    hlv_weights_free(second);
}

/* A file that may not grow is a disk that is full: the old file stays, nothing new is left. */
static void full_disk_leaves_nothing(void **state) {
    const fixture *f = *state;
    char path[256];
    path_in(f, "out.safetensors", path);
    put_text(f, "out.safetensors", "old");
    struct rlimit before;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    for (rlim_t limit = 0; limit < 330; limit += 5) {
        const struct rlimit small = {.rlim_cur = limit, .rlim_max = before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
        hlv_status status = write_good(f, path);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        check_failure(f, status, HLV_ERROR_IO, path, "cannot be written");
        assert_int_equal(count_names(f->directory, ""), 1);
        assert_int_equal(access(path, F_OK), 0);
    }
    char old[8] = "";
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(fread(old, 1, sizeof old, file), 3);
    fclose(file);
    assert_memory_equal(old, "old", 3);
}

static void places_that_cannot_be_written(void **state) {
    const fixture *f = *state;
    char path[256];
    path_in(f, "absent/out.safetensors", path);
    check_failure(f, write_good(f, path), HLV_ERROR_IO, path, "No such file");
    check_failure(f, write_good(f, f->directory), HLV_ERROR_IO, f->directory, "not a regular file");
    check_failure(f, write_good(f, "/dev/full"), HLV_ERROR_IO, "/dev/full", "not a regular file");
    assert_int_equal(count_names("/dev", "full."), 0);
}

static void permissions_follow_the_umask(void **state) {
    const fixture *f = *state;
    char path[256];
    path_in(f, "out.safetensors", path);
    mode_t before = umask(027);
    assert_int_equal(write_good(f, path), HLV_OK);
    umask(before);
    struct stat info;
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0640);
}

static void wrong_descriptions_are_refused(void **state) {
    const fixture *f = *state;
    static const hlv_tensor_out bad[] = {
        {"", HLA_F32, 1, {1}, singles},
        {NULL, HLA_F32, 1, {1}, singles},
        {"__metadata__", HLA_F32, 1, {1}, singles},
        {"a", HLA_F32, 1, {-1}, singles},
        {"a", HLA_F32, 9, {1, 1, 1, 1, 1, 1, 1, 1}, singles},
        {"a", HLA_F32, -1, {1}, singles},
        {"a", HLA_F32, 3, {INT64_C(1) << 31, INT64_C(1) << 31, 4}, singles},
        {"a", HLA_F32, 1, {1}, NULL},
        {"a", (hla_dtype)77, 1, {1}, singles},
        {"a\xff", HLA_F32, 1, {1}, singles},
    };
    char path[256];
    path_in(f, "out.safetensors", path);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        hlv_status status = hlv_safetensors_write(f->ctx, path, &bad[i], 1, NULL, 0);
        check_failure(f, status, HLV_ERROR_ARGUMENT, path, "tensor");
    }
    const hlv_tensor_out twice[] = {{"a", HLA_F32, 1, {1}, singles}, {"a", HLA_F32, 1, {1}, singles}};
    check_failure(f, hlv_safetensors_write(f->ctx, path, twice, 2, NULL, 0), HLV_ERROR_ARGUMENT, path, "there twice");
    const char *const latin[] = {"note", "Gr\xfc\xdf"};
    check_failure(f, hlv_safetensors_write(f->ctx, path, twice, 1, latin, 1), HLV_ERROR_ARGUMENT, path, "not UTF-8");
    assert_int_equal(count_names(f->directory, ""), 0);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(bytes_are_as_specified),
        CASE(written_tensors_are_read_back),
        CASE(reference_file_survives_rewriting),
        CASE(full_disk_leaves_nothing),
        CASE(places_that_cannot_be_written),
        CASE(permissions_follow_the_umask),
        CASE(wrong_descriptions_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
