/* .npy files as NumPy writes them, byte by byte, and files that lie. */
#include "hlv/arrays.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct fixture {
    hlv_context *ctx;
    char scratch[64], path[128];
} fixture;

static int setup(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    assert_int_equal(hlv_context_create(&f->ctx), HLV_OK);
    strcpy(f->scratch, "/tmp/hlv-arrays-XXXXXX");
    assert_non_null(mkdtemp(f->scratch));
    snprintf(f->path, sizeof f->path, "%s/a.npy", f->scratch);
    *state = f;
    return 0;
}

static int teardown(void **state) {
    fixture *f = *state;
    char path[128];
    unlink(f->path);
    snprintf(path, sizeof path, "%s/a.safetensors", f->scratch);
    unlink(path);
    assert_int_equal(rmdir(f->scratch), 0); /* nothing half-written is left */
    hlv_context_free(f->ctx);
    free(f);
    return 0;
}

/* A .npy file of this header text and data; the header length is as given, or the text's where it is negative. */
static void write_file(fixture *f, int version, const char *header, int length, const void *data, size_t size) {
    FILE *file = fopen(f->path, "wb");
    assert_non_null(file);
    fwrite("\x93NUMPY", 1, 6, file);
    fputc(version, file);
    fputc(0, file);
    size_t bytes = length < 0 ? strlen(header) : (size_t)length;
    for (int i = 0; i < (version == 1 ? 2 : 4); i++)
        fputc((int)(bytes >> 8 * i & 0xff), file);
    fwrite(header, 1, strlen(header), file);
    fwrite(data, 1, size, file);
    fclose(file);
}

static hlv_status read_back(fixture *f, hlv_array *array) {
    hlv_array_file *file = NULL;
    hlv_status status = hlv_array_file_open(f->ctx, f->path, &file);
    if (status == HLV_OK) status = hlv_array_read(file, "any", array);
    hlv_array_file_close(file);
    return status;
}

static void test_types(void **state) {
    fixture *f = *state;
    hlv_array array = {0};
    const float singles[6] = {0, 1, -2.5f, 1e30f, -0.0f, 3};
    write_file(f, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n", -1, singles,
               sizeof singles);
    assert_int_equal(read_back(f, &array), HLV_OK);
    assert_int_equal(array.ndim, 2);
    assert_int_equal(array.shape[0], 2);
    assert_int_equal(array.shape[1], 3);
    assert_memory_equal(array.data, singles, sizeof singles);
    hlv_array_free(f->ctx, &array);

    /* 0, 1, -2, largest, smallest subnormal, smallest normal, infinity, 1/3 as half precision */
    const uint16_t halves[8] = {0x0000, 0x3c00, 0xc000, 0x7bff, 0x0001, 0x0400, 0x7c00, 0x3555};
    const float values[8] = {0, 1, -2, 65504, 0x1p-24f, 0x1p-14f, INFINITY, 0.333251953125f};
    write_file(f, 2, "{\"shape\":(8,),\"fortran_order\":False,\"descr\":\"<f2\"}\n", -1, halves, sizeof halves);
    assert_int_equal(read_back(f, &array), HLV_OK);
    assert_int_equal(array.ndim, 1);
    assert_memory_equal(array.data, values, sizeof values);
    hlv_array_free(f->ctx, &array);

    const double doubles[1] = {M_PI};
    write_file(f, 3, "{'descr': '<f8', 'fortran_order': False, 'shape': ()}\n", -1, doubles, sizeof doubles);
    assert_int_equal(read_back(f, &array), HLV_OK);
    assert_int_equal(array.ndim, 0);
    assert_int_equal(array.count, 1);
    assert_true(array.data[0] == (float)M_PI);
    hlv_array_free(f->ctx, &array);
}

static void test_bad_files(void **state) {
    static const char good[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
    static const struct {
        int version, length; /* length -1: the header's own */
        const char *header;
        size_t data;
        const char *part; /* of the sentence */
    } table[] = {
        {1, -1, good, 20, "20 bytes of data, wanted 24"},
        {1, -1, good, 28, "28 bytes of data, wanted 24"},
        {1, 1000, good, 24, "ends within its header"},
        {2, 0x7fffffff, good, 24, "wanted at most"},
        {4, -1, good, 24, "version 4"},
        {1, 10, good, 24, "not a dictionary"},
        {1, -1, "", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", 24, "Fortran"},
        {1, -1, "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", 24, "'<i4'"},
        {1, -1, "{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", 24, "'>f4'"},
        {1, -1, "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (6,), }", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, -3), }", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (6), }", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3) ", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False}", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (6,)}", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,6)}", 24, "at most 8 axes"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 24, "not a dictionary"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", 0, "too large"},
        {1, -1, "{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} x", 24, "not a dictionary"},
    };
    fixture *f = *state;
    const char data[64] = {0};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        hlv_array array = {0};
        write_file(f, table[i].version, table[i].header, table[i].length, data, table[i].data);
        hlv_status status = read_back(f, &array);
        const char *sentence = hlv_context_error(f->ctx);
        if (status == HLV_OK || strstr(sentence, table[i].part) == NULL || strstr(sentence, f->path) == NULL)
            fail_msg("case %zu: wanted '%s' in: %s", i, table[i].part, sentence);
        assert_null(array.data);
    }
}

static void test_cut_anywhere(void **state) {
    fixture *f = *state;
    const float data[6] = {1, 2, 3, 4, 5, 6};
    write_file(f, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", -1, data, sizeof data);
    struct stat info;
    assert_int_equal(stat(f->path, &info), 0);
    for (off_t size = info.st_size - 1; size >= 0; size--) {
        hlv_array array = {0};
        assert_int_equal(truncate(f->path, size), 0);
        assert_int_equal(read_back(f, &array), HLV_ERROR_FORMAT);
    }
}

static void test_other_files(void **state) {
    fixture *f = *state;
    hlv_array_file *file = NULL;
    assert_int_equal(hlv_array_file_open(f->ctx, "/no/such/file.npy", &file), HLV_ERROR_IO);
    assert_int_equal(hlv_array_file_open(f->ctx, "/no/such/file.safetensors", &file), HLV_ERROR_IO);
    assert_int_equal(hlv_array_file_open(f->ctx, "/etc/passwd", &file), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_array_file_open(f->ctx, NULL, &file), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_array_file_open(f->ctx, ".npy", &file), HLV_ERROR_ARGUMENT);
    assert_null(file);
    hlv_array_file_close(NULL);
}

/* Both formats give back what was written; NumPy's rule that the data start at a multiple of 64 holds. */
static void test_write(void **state) {
    static const char *const names[] = {"a.npy", "a.safetensors"};
    fixture *f = *state;
    for (int i = 0; i < 2; i++) {
        hlv_array array, back;
        assert_int_equal(hlv_array_create(f->ctx, 3, (int64_t[]){2, 1, 5}, &array), HLV_OK);
        for (int j = 0; j < 10; j++)
            array.data[j] = (float)j / 3;
        snprintf(f->path, sizeof f->path, "%s/%s", f->scratch, names[i]);
        assert_int_equal(hlv_array_write(f->ctx, f->path, "any", &array), HLV_OK);
        assert_int_equal(read_back(f, &back), HLV_OK);
        assert_int_equal(back.ndim, 3);
        assert_memory_equal(back.shape, array.shape, 3 * sizeof(int64_t));
        assert_memory_equal(back.data, array.data, 40);
        hlv_array_free(f->ctx, &array);
        hlv_array_free(f->ctx, &back);
    }
    snprintf(f->path, sizeof f->path, "%s/a.npy", f->scratch);
    struct stat info;
    assert_int_equal(stat(f->path, &info), 0);
    assert_int_equal((info.st_size - 40) % 64, 0);
}

static void test_write_fails(void **state) {
    fixture *f = *state;
    hlv_array array = {0};
    assert_int_equal(hlv_array_create(f->ctx, 1, (int64_t[]){4}, &array), HLV_OK);
    memset(array.data, 0, 16);
    assert_int_equal(hlv_array_write(f->ctx, "/no/such/dir/a.npy", "x", &array), HLV_ERROR_IO);
    assert_int_equal(hlv_array_write(f->ctx, "/tmp/a.txt", "x", &array), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_array_check(f->ctx, f->scratch), HLV_ERROR_ARGUMENT);
    hlv_array_free(f->ctx, &array);
    assert_int_equal(hlv_array_create(f->ctx, 2, (int64_t[]){INT64_MAX, 2}, &array), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_array_create(f->ctx, 1, (int64_t[]){-1}, &array), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_array_create(f->ctx, 9, (int64_t[9]){0}, &array), HLV_ERROR_ARGUMENT);
    assert_int_equal(hlv_array_create(f->ctx, 1, (int64_t[]){INT64_MAX / 8}, &array), HLV_ERROR_MEMORY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_types, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cut_anywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_files, setup, teardown),
        cmocka_unit_test_setup_teardown(test_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_write_fails, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
