/* Files that lie: each gives the format status and one sentence that names the file and what is wrong. */
#include "support.h"

#include "video/core/context.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define GOOD "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]}}"
#define TENSOR(dtype, shape, offsets) "{\"a\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second)                                                                                             \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" first "},"                                             \
    "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":" second "}}"

typedef struct malformed {
    const char *header;
    size_t data_size;
    const char *says;
} malformed;

static const malformed headers[] = {
    {"", 0, "not readable JSON"},
    {"   ", 0, "not readable JSON"},
    {"nonsense", 16, "not readable JSON"},
    {"[]", 0, "an array, and must be an object"},
    {"[{\"a\":1}]", 0, "an array, and must be an object"},
    {"\"a\"", 0, "not readable JSON"},
    {GOOD "x", 16, "not readable JSON"},
    {"{\"a\":1}", 16, "tensor 'a': its entry is an integer"},
    {"{\"a\":null}", 16, "tensor 'a': its entry is null"},
    {"{\"a\":{}}", 16, "tensor 'a': its dtype is absent"},
    {TENSOR("7", "[2,2]", "[0,16]"), 16, "its dtype is an integer"},
    {TENSOR("\"F33\"", "[2,2]", "[0,16]"), 16, "its dtype is 'F33'"},
    {TENSOR("\"f32\"", "[2,2]", "[0,16]"), 16, "its dtype is 'f32'"},
    {TENSOR("\"F32\"", "4", "[0,16]"), 16, "its shape is an integer"},
    {TENSOR("\"F32\"", "[2,-2]", "[0,16]"), 16, "axis 1 of its shape is negative"},
    {TENSOR("\"F32\"", "[2.0,2]", "[0,16]"), 16, "axis 0 of its shape is a real number"},
    {TENSOR("\"F32\"", "[\"2\",2]", "[0,16]"), 16, "axis 0 of its shape is a string"},
    {TENSOR("\"F32\"", "[1,1,1,1,1,1,1,1,4]", "[0,16]"), 16, "has 9 axes"},
    {TENSOR("\"F32\"", "[4294967296,4294967296]", "[0,16]"), 16, "does not fit 64 bits"},
    {TENSOR("\"F32\"", "[4611686018427387905]", "[0,4]"), 16, "is not of that size"},
    {TENSOR("\"F32\"", "[99999999999999999999]", "[0,16]"), 16, "not readable JSON"},
    {TENSOR("\"F32\"", "[1e400]", "[0,16]"), 16, "not readable JSON"},
    {TENSOR("\"F32\"", "[2,2]", "[0,15]"), 16, "span 15 bytes"},
    {TENSOR("\"F32\"", "[2,2]", "[0,20]"), 20, "span 20 bytes"},
    {TENSOR("\"F16\"", "[2,2]", "[0,16]"), 16, "span 16 bytes, and F16 of shape [2, 2]"},
    {TENSOR("\"F4\"", "[3]", "[0,1]"), 1, "span 1 bytes, and F4 of shape [3]"},
    {TENSOR("\"F32\"", "[2,2]", "[16,0]"), 16, "data_offsets are [16, 0]"},
    {TENSOR("\"F32\"", "[2,2]", "[-16,0]"), 16, "data_offsets are [-16, 0]"},
    {TENSOR("\"F32\"", "[2,2]", "[0,17]"), 16, "within the 16 bytes of data"},
    {TENSOR("\"F32\"", "[2,2]", "[9223372036854775800,9223372036854775807]"), 16, "within the 16 bytes of data"},
    {TENSOR("\"F32\"", "[2,2]", "[0]"), 16, "must be an array of two integers"},
    {TENSOR("\"F32\"", "[2,2]", "[0,16,16]"), 16, "must be an array of two integers"},
    {TENSOR("\"F32\"", "[2,2]", "[0,16.0]"), 16, "must be an array of two integers"},
    {TENSOR("\"F32\"", "[2,2]", "16"), 16, "must be an array of two integers"},
    {TWO("[0,8]", "[0,8]"), 8, "begins at 0, within tensor"},
    {TWO("[0,8]", "[4,12]"), 12, "tensor 'b': its data begins at 4, within tensor 'a'"},
    {TWO("[0,8]", "[12,20]"), 20, "tensor 'b': its data begins at 12, and must follow at 8"},
    {TWO("[4,12]", "[12,20]"), 20, "tensor 'a': its data begins at 4, and must follow at 0"},
    {GOOD, 20, "has 20 bytes of data, and its tensors account for 16"},
    {"{}", 1, "has 1 bytes of data, and its tensors account for 0"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"F32\",\"shape\":[0],"
     "\"data_offsets\":[0,0]}}",
     0, "duplicate object key"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "duplicate object key"},
    {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "not readable JSON"},
    {"{\"\xff\xfe\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "not readable JSON"},
    {"{\"__metadata__\":[]}", 0, "'__metadata__' is an array"},
    {"{\"__metadata__\":{\"k\":1}}", 0, "'__metadata__' entry 'k' is an integer"},
    {"{\"__metadata__\":{\"k\":\"v\",\"k\":\"w\"}}", 0, "duplicate object key"},
};

static void open_bad(const fixture *f, const char *says) {
    char path[256];
    path_in(f, "bad.safetensors", path);
    hlv_weights *weights = (hlv_weights *)(uintptr_t)1;
    hlv_status status = hlv_weights_open(f->ctx, path, &weights);
    check_failure(f, status, HLV_ERROR_FORMAT, path, says);
    assert_null(weights);
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
}

static void lying_headers(void **state) {
    const fixture *f = *state;
    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++) {
        put_safetensors(f, "bad.safetensors", headers[i].header, headers[i].data_size);
        open_bad(f, headers[i].says);
    }
}

static void the_good_one_is_good(void **state) {
    const fixture *f = *state;
    put_safetensors(f, "good.safetensors", GOOD "  ", 16);
    char path[256];
    path_in(f, "good.safetensors", path);
    hlv_weights *weights = NULL;
    assert_int_equal(hlv_weights_open(f->ctx, path, &weights), HLV_OK);
    assert_int_equal(hlv_weights_find(weights, "a")->count, 4);
    assert_int_equal(((const uint8_t *)hlv_weights_find(weights, "a")->data)[5], 5);
    hlv_weights_free(weights);
    put_safetensors(f, "good.safetensors", "{}", 0); /* no tensors at all is a legal file */
    assert_int_equal(hlv_weights_open(f->ctx, path, &weights), HLV_OK);
    assert_int_equal(hlv_weights_count(weights), 0);
    assert_null(hlv_weights_find(weights, "a"));
    hlv_weights_free(weights);
}

static void cut_off_anywhere(void **state) {
    const fixture *f = *state;
    uint8_t bytes[256];
    uint64_t length = strlen(GOOD);
    size_t size = 8 + length + 16;
    memset(bytes, 0, sizeof bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, GOOD, length);
    for (size_t cut = 0; cut < size; cut++) {
        put_file(f, "bad.safetensors", bytes, cut);
        const char *says = "has only";
        if (cut < 8) says = "begins with 8 for the header's length";
        if (cut >= 8 + length) says = "within the";
        open_bad(f, says);
    }
}

static void absurd_header_lengths(void **state) {
    const fixture *f = *state;
    const struct {
        uint64_t length;
        const char *says;
    } cases[] = {
        {UINT64_MAX, "claims 18446744073709551615 bytes, and at most"},
        {UINT64_MAX - 7, "at most 100000000 are allowed"},
        {(uint64_t)1 << 63, "at most 100000000 are allowed"},
        {100000001, "at most 100000000 are allowed"},
        {100000000, "has only 56"},
        {57, "has only 56"},
        {0, "not readable JSON"},
        {1, "not readable JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint8_t bytes[64] = {0};
        memcpy(bytes, &cases[i].length, 8);
        memcpy(bytes + 8, "{}", 2);
        put_file(f, "bad.safetensors", bytes, sizeof bytes);
        open_bad(f, cases[i].says);
    }
}

static void deep_nesting(void **state) {
    const fixture *f = *state;
    size_t depth = 1000000;
    char *header = malloc(depth + 8);
    assert_non_null(header);
    memcpy(header, "{\"a\":", 5);
    memset(header + 5, '[', depth);
    header[depth + 5] = '\0';
    put_safetensors(f, "bad.safetensors", header, 0);
    free(header);
    open_bad(f, "maximum parsing depth reached");
}

/* Every byte of a header changed in several ways: an answer each time, never a crash (the sanitizer build looks on). */
static void every_byte_changed(void **state) {
    const fixture *f = *state;
    static const char changes[] = {'0', '9', '"', '{', ']', ',', '\0', (char)0xff, '-', 'e'};
    char path[256];
    path_in(f, "bad.safetensors", path);
    uint8_t bytes[256] = {0};
    uint64_t length = strlen(GOOD);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, GOOD, length);
    int refused = 0;
    for (size_t at = 0; at < 8 + length; at++)
        for (size_t c = 0; c < sizeof changes; c++) {
            uint8_t before = bytes[at];
            bytes[at] = (uint8_t)changes[c];
            put_file(f, "bad.safetensors", bytes, 8 + length + 16);
            bytes[at] = before;
            hlv_weights *weights = NULL;
            hlv_status status = hlv_weights_open(f->ctx, path, &weights);
            if (status != HLV_OK) check_failure(f, status, HLV_ERROR_FORMAT, path, ":");
            refused += status != HLV_OK;
            hlv_weights_free(weights);
        }
    assert_true(refused > 400);
}

static void check_index(const fixture *f, const char *index, hlv_status wanted, const char *says) {
    put_text(f, "model.safetensors.index.json", index);
    hlv_weights *weights = NULL;
    check_failure(f, hlv_weights_open(f->ctx, f->directory, &weights), wanted, f->directory, says);
    assert_null(weights);
    assert_int_equal(hlv_context_current_bytes(f->ctx), 0);
}

static void lying_indices(void **state) {
    const fixture *f = *state;
    put_safetensors(f, "one.safetensors", GOOD, 16);
    check_index(f, "{", HLV_ERROR_FORMAT, "index.json: is not readable JSON");
    check_index(f, "[]", HLV_ERROR_FORMAT, "an array, and must be an object");
    check_index(f, "{}", HLV_ERROR_FORMAT, "'weight_map' must be an object");
    check_index(f, "{\"weight_map\":{}}", HLV_ERROR_FORMAT, "an empty one");
    check_index(f, "{\"weight_map\":[\"a\"]}", HLV_ERROR_FORMAT, "not an array");
    check_index(f, "{\"weight_map\":{\"a\":1}}", HLV_ERROR_FORMAT, "'a' is an integer");
    check_index(f, "{\"weight_map\":{\"a\":\"\"}}", HLV_ERROR_FORMAT, "must be the name of a file");
    check_index(f, "{\"weight_map\":{\"a\":\"..\"}}", HLV_ERROR_FORMAT, "must be the name of a file");
    check_index(f, "{\"weight_map\":{\"a\":\"../one.safetensors\"}}", HLV_ERROR_FORMAT, "must be the name of a file");
    check_index(f, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", HLV_ERROR_FORMAT, "must be the name of a file");
    check_index(f, "{\"weight_map\":{\"a\":\"two.safetensors\"}}", HLV_ERROR_IO, "two.safetensors: cannot be opened");
    check_index(f, "{\"weight_map\":{\"b\":\"one.safetensors\"}}", HLV_ERROR_FORMAT,
                "tensor 'b' is in 'one.safetensors', which does not have it");
    check_index(f, "{\"weight_map\":{\"__metadata__\":\"one.safetensors\"}}", HLV_ERROR_FORMAT, "does not have it");
    check_index(f, "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"one.safetensors\"}}", HLV_ERROR_FORMAT,
                "duplicate object key");

    put_safetensors(f, "two.safetensors", TWO("[0,8]", "[8,16]"), 16); /* its own 'a' is not the one the index means */
    put_text(f, "model.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\"}}");
    hlv_weights *weights = NULL;
    assert_int_equal(hlv_weights_open(f->ctx, f->directory, &weights), HLV_OK);
    assert_int_equal(hlv_weights_count(weights), 2);
    assert_int_equal(hlv_weights_find(weights, "a")->count, 4);
    assert_int_equal(hlv_weights_find(weights, "b")->count, 2);
    hlv_weights_free(weights);
}

static void places_that_hold_no_weights(void **state) {
    const fixture *f = *state;
    hlv_weights *weights = NULL;
    char path[256];
    check_failure(f, hlv_weights_open(f->ctx, f->directory, &weights), HLV_ERROR_IO, f->directory, "has no weights");
    path_in(f, "absent.safetensors", path);
    check_failure(f, hlv_weights_open(f->ctx, path, &weights), HLV_ERROR_IO, path, "No such file");
    path_in(f, "fifo.safetensors", path);
    assert_int_equal(mkfifo(path, 0600), 0);
    check_failure(f, hlv_weights_open(f->ctx, path, &weights), HLV_ERROR_IO, path, "not a regular file");
    path_in(f, "model.safetensors", path);
    assert_int_equal(mkdir(path, 0700), 0);
    check_failure(f, hlv_weights_open(f->ctx, f->directory, &weights), HLV_ERROR_IO, path, "not a regular file");
    assert_null(weights);
}

#define CASE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)

int main(void) {
    const struct CMUnitTest tests[] = {
        CASE(lying_headers), CASE(the_good_one_is_good), CASE(cut_off_anywhere), CASE(absurd_header_lengths),
        CASE(deep_nesting),  CASE(every_byte_changed),   CASE(lying_indices),    CASE(places_that_hold_no_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
