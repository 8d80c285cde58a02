/* What damaged, lying and unknown tokenizer files, texts that are not UTF-8, and limits do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/text/golden.h"
#include "video/text/text.h"

#define MOST 512

static hlv_context *make_context(void) {
    hlv_context *ctx = NULL;
    assert_int_equal(hlv_context_create(&ctx), HLV_OK);
    return ctx;
}

/* Expects a status and a sentence that holds the phrase, a NULL tokenizer, and all memory given back. */
static void expect_refused(hlv_context *ctx, hlv_tokenizer_kind kind, const void *data, size_t size, hlv_status status,
                           const char *phrase) {
    hlv_tokenizer *tokenizer = (hlv_tokenizer *)(uintptr_t)1;
    hlv_status found = hlv_tokenizer_from_memory(ctx, kind, data, size, &tokenizer);
    if (found != status || !strstr(hlv_context_error(ctx), phrase) ||
        !strstr(hlv_context_error(ctx), kind == HLV_TOKENIZER_JSON ? "tokenizer.json" : "spiece.model"))
        fail_msg("wanted %s with \"%s\", found %s: %s", hlv_status_name(status), phrase, hlv_status_name(found),
                 found == HLV_OK ? "" : hlv_context_error(ctx));
    assert_null(tokenizer);
    assert_int_equal(hlv_context_current_bytes(ctx), 0);
}

static void truncated_files_are_refused(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    size_t size;
    char *json = golden_bytes("never.json", &size);
    for (size_t cut = 0; cut < size; cut += 97)
        expect_refused(ctx, HLV_TOKENIZER_JSON, json, cut, HLV_ERROR_FORMAT, "not valid JSON");
    free(json);
    char *model = golden_bytes("identity/spiece.model", &size);
    size_t end = size - 25; /* what comes last, the normalizer_spec, must be whole */
    for (size_t cut = 0; cut < end; cut++)
        expect_refused(ctx, HLV_TOKENIZER_SENTENCEPIECE, model, cut, HLV_ERROR_FORMAT, "SentencePiece model");
    free(model);
    hlv_context_free(ctx);
}

/* One entry of a good tokenizer.json replaced by something else. */
static const struct {
    const char *entry, *value;
    hlv_status status;
    const char *phrase;
} bad_entries[] = {
    {"normalizer", "{\"type\":\"NFKC\"}", HLV_ERROR_UNSUPPORTED, "normalizer \"NFKC\""},
    {"normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}", HLV_ERROR_UNSUPPORTED,
     "\"Lowercase\""},
    {"normalizer", "{\"type\":\"Sequence\"}", HLV_ERROR_FORMAT, "normalizers is not a list"},
    {"normalizer", "{}", HLV_ERROR_UNSUPPORTED, "(no type)"},
    {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"[ab]c\"},\"content\":\"\"}", HLV_ERROR_UNSUPPORTED,
     "\"[ab]c\""},
    {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,3}\"},\"content\":\"\"}", HLV_ERROR_UNSUPPORTED,
     "\" {2,3}\""},
    {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"x\"}", HLV_ERROR_FORMAT,
     "pattern"},
    {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"}}", HLV_ERROR_FORMAT, "content"},
    {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"a?b\"}", HLV_ERROR_FORMAT, "not base64"},
    {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}", HLV_ERROR_FORMAT, "fewer than 4"},
    {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"/////wAAAAA=\"}", HLV_ERROR_FORMAT,
     "4294967295"},
    {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":7}", HLV_ERROR_FORMAT, "not a string"},
    {"pre_tokenizer", "{\"type\":\"ByteLevel\"}", HLV_ERROR_UNSUPPORTED, "pre_tokenizer \"ByteLevel\""},
    {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"ab\"}", HLV_ERROR_FORMAT, "one character"},
    {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"last\"}", HLV_ERROR_FORMAT,
     "prepend_scheme"},
    {"post_processor", "{\"type\":\"BertProcessing\"}", HLV_ERROR_UNSUPPORTED, "post_processor \"BertProcessing\""},
    {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[]}", HLV_ERROR_FORMAT, "sequence A"},
    {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}",
     HLV_ERROR_FORMAT, "template"},
    {"model", "{\"type\":\"BPE\",\"vocab\":{}}", HLV_ERROR_UNSUPPORTED, "model \"BPE\""},
    {"model", "[]", HLV_ERROR_FORMAT, "model is not an object"},
    {"model", "{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[]}", HLV_ERROR_FORMAT, "vocab is not a list"},
    {"model", "{\"type\":\"Unigram\",\"unk_id\":2,\"vocab\":[[\"a\",0],[\"b\",-1]]}", HLV_ERROR_FORMAT, "unk_id"},
    {"model", "{\"type\":\"Unigram\",\"unk_id\":-1,\"vocab\":[[\"a\",0]]}", HLV_ERROR_FORMAT, "unk_id"},
    {"model", "{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",0],[\"b\"]]}", HLV_ERROR_FORMAT,
     "entry 1 of the vocabulary"},
    {"model", "{\"type\":\"Unigram\",\"unk_id\":0,\"vocab\":[[\"a\",\"x\"]]}", HLV_ERROR_FORMAT,
     "entry 0 of the vocabulary"},
    {"added_tokens", "7", HLV_ERROR_FORMAT, "added_tokens is not a list"},
    {"added_tokens", "[{\"content\":\"x\"}]", HLV_ERROR_FORMAT, "entry of added_tokens"},
    {"added_tokens", "[{\"content\":\"x\",\"id\":-4}]", HLV_ERROR_FORMAT, "entry of added_tokens"},
    {"added_tokens", "[{\"content\":\" \",\"id\":4,\"normalized\":true}]", HLV_ERROR_UNSUPPORTED,
     "after normalisation"},
    {"extra", "{}", HLV_ERROR_UNSUPPORTED, "entry \"extra\""},
};

static void unknown_and_lying_entries_are_refused(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    for (size_t i = 0; i < sizeof bad_entries / sizeof *bad_entries; i++) {
        json_t *document = golden_json("never.json");
        json_t *value = json_loads(bad_entries[i].value, JSON_DECODE_ANY, NULL);
        assert_non_null(value);
        assert_int_equal(json_object_set_new(document, bad_entries[i].entry, value), 0);
        char *text = json_dumps(document, 0);
        expect_refused(ctx, HLV_TOKENIZER_JSON, text, strlen(text), bad_entries[i].status, bad_entries[i].phrase);
        free(text);
        json_decref(document);
    }
    expect_refused(ctx, HLV_TOKENIZER_JSON, "[]", 2, HLV_ERROR_FORMAT, "not an object");
    expect_refused(ctx, HLV_TOKENIZER_JSON, "{\"model\":1,\"model\":2}", 21, HLV_ERROR_FORMAT, "duplicate");
    hlv_context_free(ctx);
}

/* A small spiece.model under construction. */
typedef struct proto {
    unsigned char data[65536];
    size_t size;
} proto;

static void put_bytes(proto *p, unsigned field, const void *data, size_t size) {
    assert_true(field < 16 && size < 16384 && p->size + size + 3 <= sizeof p->data);
    p->data[p->size++] = (unsigned char)(field << 3 | 2);
    p->data[p->size++] = (unsigned char)(size & 0x7F) | 0x80;
    p->data[p->size++] = (unsigned char)(size >> 7);
    memcpy(p->data + p->size, data, size);
    p->size += size;
}

static void put_number(proto *p, unsigned field, unsigned value) {
    unsigned tag = field << 3;
    assert_true(field < 2048 && value < 128);
    p->data[p->size++] = (unsigned char)(tag & 0x7F) | 0x80;
    p->data[p->size++] = (unsigned char)(tag >> 7);
    p->data[p->size++] = (unsigned char)value;
}

static void put_piece(proto *p, const char *text, size_t length, float score, unsigned type) {
    proto *piece = calloc(1, sizeof *piece);
    assert_non_null(piece);
    put_bytes(piece, 1, text, length);
    piece->data[piece->size++] = 2 << 3 | 5;
    memcpy(piece->data + piece->size, &score, sizeof score);
    piece->size += sizeof score;
    put_number(piece, 3, type);
    put_bytes(p, 1, piece->data, piece->size);
    free(piece);
}

/* What each case adds to or leaves out of a good little model. */
enum { GOOD, NO_UNKNOWN = 1, NO_END = 2, BYTE_FALLBACK = 4, NO_NORMALIZER = 8, NO_TRAINER = 16, BPE = 32 };

static const struct {
    unsigned flags;
    const char *piece; /* one more piece, NULL for none */
    size_t length;
    float score;
    unsigned type;
    const char *charsmap;
    size_t charsmap_size;
    hlv_status status;
    const char *phrase;
} bad_models[] = {
    {NO_UNKNOWN, NULL, 0, 0, 0, NULL, 0, HLV_ERROR_FORMAT, "no piece is of type UNKNOWN"},
    {NO_END, NULL, 0, 0, 0, NULL, 0, HLV_ERROR_FORMAT, "</s>"},
    {BYTE_FALLBACK, NULL, 0, 0, 0, NULL, 0, HLV_ERROR_FORMAT, "<0x00> is missing"},
    {NO_NORMALIZER, NULL, 0, 0, 0, NULL, 0, HLV_ERROR_FORMAT, "no normalizer_spec"},
    {NO_TRAINER, NULL, 0, 0, 0, NULL, 0, HLV_ERROR_FORMAT, "no trainer_spec"},
    {BPE, NULL, 0, 0, 0, NULL, 0, HLV_ERROR_UNSUPPORTED, "model_type is 2"},
    {GOOD, "", 0, -1, 1, NULL, 0, HLV_ERROR_FORMAT, "piece 4 is empty"},
    {GOOD, "x", 1, INFINITY, 1, NULL, 0, HLV_ERROR_FORMAT, "not finite"},
    {GOOD, "a", 1, -1, 1, NULL, 0, HLV_ERROR_FORMAT, "pieces 3 and 4 are the same, \"a\""},
    {GOOD, "<u>", 3, -1, 2, NULL, 0, HLV_ERROR_FORMAT, "both of type UNKNOWN"},
    {GOOD, "<0x0g>", 6, -1, 6, NULL, 0, HLV_ERROR_FORMAT, "type BYTE"},
    {GOOD, "\xe2\x96", 2, -1, 1, NULL, 0, HLV_ERROR_FORMAT, "piece 4 is not valid UTF-8"},
    {GOOD, NULL, 0, 0, 0, "\1\0\0", 3, HLV_ERROR_FORMAT, "fewer than 4"},
    {GOOD, NULL, 0, 0, 0, "\x40\0\0\0abcdefgh", 12, HLV_ERROR_FORMAT, "says that its trie takes 64"},
};

static void build_model(proto *model, unsigned flags) {
    model->size = 0;
    put_piece(model, "<pad>", 5, 0, 3);
    put_piece(model, "</s>", flags & NO_END ? 3 : 4, 0, 3);
    put_piece(model, "<unk>", 5, 0, flags & NO_UNKNOWN ? 3 : 2);
    put_piece(model, "a", 1, -2, 1);
}

static void finish_model(proto *model, unsigned flags, const char *charsmap, size_t size) {
    proto *spec = calloc(1, sizeof *spec);
    assert_non_null(spec);
    put_number(spec, 3, flags & BPE ? 2 : 1);
    put_number(spec, 35, (flags & BYTE_FALLBACK) != 0);
    if (!(flags & NO_TRAINER)) put_bytes(model, 2, spec->data, spec->size);
    spec->size = 0;
    if (charsmap) put_bytes(spec, 2, charsmap, size);
    if (!(flags & NO_NORMALIZER)) put_bytes(model, 3, spec->data, spec->size);
    free(spec);
}

static void lying_models_are_refused(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    proto *model = calloc(1, sizeof *model);
    for (size_t i = 0; i < sizeof bad_models / sizeof *bad_models; i++) {
        build_model(model, bad_models[i].flags);
        if (bad_models[i].piece)
            put_piece(model, bad_models[i].piece, bad_models[i].length, bad_models[i].score, bad_models[i].type);
        finish_model(model, bad_models[i].flags, bad_models[i].charsmap, bad_models[i].charsmap_size);
        expect_refused(ctx, HLV_TOKENIZER_SENTENCEPIECE, model->data, model->size, bad_models[i].status,
                       bad_models[i].phrase);
    }
    char long_piece[600];
    memset(long_piece, 'x', sizeof long_piece);
    build_model(model, GOOD);
    put_piece(model, long_piece, sizeof long_piece, -1, 1);
    finish_model(model, GOOD, NULL, 0);
    expect_refused(ctx, HLV_TOKENIZER_SENTENCEPIECE, model->data, model->size, HLV_ERROR_UNSUPPORTED, "600 bytes");
    free(model);
    hlv_context_free(ctx);
}

/* The root's unit leads nowhere; then one whose leaf names a replacement beyond the end. */
static void a_map_that_points_outside_fails_when_it_is_used(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    proto *model = calloc(1, sizeof *model);
    /* Units: 0 the root with offset 'a' ^ 1; 1 labelled 'a', with a leaf at offset 3, which is 1 ^ 2; 2 the leaf's
     * value. */
    const unsigned root = ('a' ^ 1u) << 10, labelled = 'a' | 1u << 8 | 3u << 10, value = 0x80000000u | 1000u;
    char map[4 + 12 + 2] = {12};
    memcpy(map + 4, &root, 4);
    memcpy(map + 8, &labelled, 4);
    memcpy(map + 12, &value, 4);
    build_model(model, GOOD);
    finish_model(model, GOOD, map, sizeof map);
    hlv_tokenizer *tokenizer = NULL;
    assert_int_equal(hlv_tokenizer_from_memory(ctx, HLV_TOKENIZER_SENTENCEPIECE, model->data, model->size, &tokenizer),
                     HLV_OK);
    int32_t ids[MOST];
    int count;
    bool truncated;
    assert_int_equal(hlv_tokenizer_encode(tokenizer, "b", MOST, ids, &count, &truncated), HLV_OK);
    assert_int_equal(hlv_tokenizer_encode(tokenizer, "ba", MOST, ids, &count, &truncated), HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), "points outside itself"));
    hlv_tokenizer_free(tokenizer);
    free(model);
    hlv_context_free(ctx);
}

static hlv_tokenizer *open_golden(hlv_context *ctx, const char *name, hlv_tokenizer_kind kind) {
    size_t size;
    char *data = golden_bytes(name, &size);
    hlv_tokenizer *tokenizer = NULL;
    assert_int_equal(hlv_tokenizer_from_memory(ctx, kind, data, size, &tokenizer), HLV_OK);
    free(data);
    return tokenizer;
}

static void long_texts_are_cut_and_said_to_be(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    const char *text = "a rocket flies up over a blue background";
    static const char *const names[] = {"t5.json", "plain/spiece.model"};
    for (int kind = 0; kind < 2; kind++) {
        hlv_tokenizer *tokenizer = open_golden(ctx, names[kind], (hlv_tokenizer_kind)kind);
        int32_t all[MOST], few[MOST];
        int count, cut;
        bool truncated;
        assert_int_equal(hlv_tokenizer_encode(tokenizer, text, MOST, all, &count, &truncated), HLV_OK);
        assert_false(truncated);
        assert_true(count > 6);
        for (int most = 1; most <= count; most++) {
            memset(few, 0x55, sizeof few);
            assert_int_equal(hlv_tokenizer_encode(tokenizer, text, most, few, &cut, &truncated), HLV_OK);
            assert_int_equal(cut, most);
            assert_int_equal(truncated, most < count);
            assert_memory_equal(few, all, (size_t)(most - 1) * sizeof *few);
            assert_int_equal(few[most - 1], 1);
            assert_int_equal(few[most], 0x55555555);
        }
        assert_int_equal(hlv_tokenizer_encode(tokenizer, text, 0, few, &cut, &truncated), HLV_ERROR_ARGUMENT);
        assert_non_null(strstr(hlv_context_error(ctx), "max_tokens is 0"));
        hlv_tokenizer_free(tokenizer);
    }
    hlv_context_free(ctx);
}

/* {text, offset of the first byte that is no UTF-8}. */
static const struct {
    const char *text;
    const char *offset;
} not_utf8[] = {
    {"\x80", "0x80 at offset 0"},           {"abc\xff", "0xFF at offset 3"},      {"a\xc0\x80", "0xC0 at offset 1"},
    {"ab\xed\xa0\x80", "0xED at offset 2"}, {"\xf4\x90\x80\x80", "offset 0"},     {"caf\xc3", "0xC3 at offset 3"},
    {"\xc3\xa9\xe2\x82", "offset 2"},       {"\xf8\x88\x80\x80\x80", "offset 0"},
};

static void texts_that_are_not_utf8_are_refused(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    hlv_tokenizer *tokenizer = open_golden(ctx, "never.json", HLV_TOKENIZER_JSON);
    for (size_t i = 0; i < sizeof not_utf8 / sizeof *not_utf8; i++) {
        int32_t ids[MOST];
        int count;
        bool truncated;
        char *cleaned = (char *)(uintptr_t)1;
        assert_int_equal(hlv_tokenizer_encode(tokenizer, not_utf8[i].text, MOST, ids, &count, &truncated),
                         HLV_ERROR_ARGUMENT);
        assert_non_null(strstr(hlv_context_error(ctx), not_utf8[i].offset));
        assert_int_equal(hlv_prompt_clean(ctx, not_utf8[i].text, &cleaned), HLV_ERROR_ARGUMENT);
        assert_non_null(strstr(hlv_context_error(ctx), not_utf8[i].offset));
        assert_null(cleaned);
    }
    hlv_tokenizer_free(tokenizer);
    hlv_context_free(ctx);
}

static void copy_into(const char *directory, const char *from, const char *name, char path[4096]) {
    size_t size;
    char *data = golden_bytes(from, &size);
    (void)snprintf(path, 4096, "%s/%s", directory, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
    free(data);
}

/* "<extra_id_0>" is a token of tokenizer.json only. */
static int tokens_of_sentinel(hlv_context *ctx, const char *directory) {
    hlv_tokenizer *tokenizer = NULL;
    if (hlv_tokenizer_open(ctx, directory, &tokenizer) != HLV_OK) fail_msg("%s", hlv_context_error(ctx));
    int32_t ids[MOST];
    int count;
    bool truncated;
    assert_int_equal(hlv_tokenizer_encode(tokenizer, "<extra_id_0>", MOST, ids, &count, &truncated), HLV_OK);
    hlv_tokenizer_free(tokenizer);
    return count;
}

static void a_directory_is_opened_tokenizer_json_first(void **state) {
    (void)state;
    hlv_context *ctx = make_context();
    char directory[] = "/tmp/hlv_text_XXXXXX", json[4096], model[4096];
    assert_non_null(mkdtemp(directory));
    hlv_tokenizer *tokenizer = NULL;
    assert_int_equal(hlv_tokenizer_open(ctx, directory, &tokenizer), HLV_ERROR_IO);
    assert_non_null(strstr(hlv_context_error(ctx), "holds neither tokenizer.json nor spiece.model"));
    assert_non_null(strstr(hlv_context_error(ctx), directory));
    copy_into(directory, "plain/spiece.model", "spiece.model", model);
    assert_true(tokens_of_sentinel(ctx, directory) > 2);
    copy_into(directory, "t5.json", "tokenizer.json", json);
    assert_int_equal(tokens_of_sentinel(ctx, directory), 2);
    copy_into(directory, "plain/spiece.model", "tokenizer.json", json);
    assert_int_equal(hlv_tokenizer_open(ctx, directory, &tokenizer), HLV_ERROR_FORMAT);
    assert_non_null(strstr(hlv_context_error(ctx), json));
    assert_null(tokenizer);
    assert_int_equal(unlink(json), 0);
    assert_int_equal(mkfifo(json, 0600), 0); /* there, so not passed over; and not waited for */
    assert_int_equal(hlv_tokenizer_open(ctx, directory, &tokenizer), HLV_ERROR_IO);
    assert_non_null(strstr(hlv_context_error(ctx), json));
    assert_int_equal(unlink(json), 0);
    assert_int_equal(unlink(model), 0);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(hlv_context_current_bytes(ctx), 0);
    hlv_context_free(ctx);
}

static void running_out_of_memory_is_said(void **state) {
    (void)state;
    static const char *const names[] = {"t5.json", "plain/spiece.model"};
    for (int kind = 0; kind < 2; kind++) {
        hlv_context *ctx = make_context();
        hlv_tokenizer *tokenizer = open_golden(ctx, names[kind], (hlv_tokenizer_kind)kind);
        int64_t loaded = hlv_context_current_bytes(ctx);
        hlv_tokenizer_free(tokenizer);
        size_t size;
        char *data = golden_bytes(names[kind], &size);
        for (int64_t limit = 1; limit < loaded; limit += loaded / 16) {
            assert_int_equal(hlv_context_set_memory_limit(ctx, limit), HLV_OK);
            assert_int_equal(hlv_tokenizer_from_memory(ctx, (hlv_tokenizer_kind)kind, data, size, &tokenizer),
                             HLV_ERROR_MEMORY);
            assert_null(tokenizer);
            assert_int_not_equal(strlen(hlv_context_error(ctx)), 0);
            assert_int_equal(hlv_context_current_bytes(ctx), 0);
        }
        free(data);
        hlv_context_free(ctx);
    }
}

/* Bytes changed at random: whatever opens must encode without harm (run with the sanitizers). Seed 1. */
static void changed_bytes_do_no_harm(void **state) {
    (void)state;
    static const char *const names[] = {"never.json", "bytes/spiece.model"};
    hlv_context *ctx = make_context();
    uint64_t random = 1;
    int opened = 0;
    for (int kind = 0; kind < 2; kind++) {
        size_t size;
        char *data = golden_bytes(names[kind], &size);
        for (int round = 0; round < 400; round++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            size_t at = (size_t)(random >> 33) % size;
            char before = data[at];
            data[at] = (char)(random >> 24);
            hlv_tokenizer *tokenizer = NULL;
            if (hlv_tokenizer_from_memory(ctx, (hlv_tokenizer_kind)kind, data, size, &tokenizer) == HLV_OK) {
                int32_t ids[MOST];
                int count = 0;
                bool truncated;
                hlv_status status = hlv_tokenizer_encode(tokenizer, "Ａ cafe\xcc\x81 猫 \xf0\x9f\x98\x80 <mask> ﬁ",
                                                         MOST, ids, &count, &truncated);
                assert_true(status == HLV_OK || status == HLV_ERROR_FORMAT);
                opened++;
            }
            hlv_tokenizer_free(tokenizer);
            data[at] = before;
        }
        free(data);
    }
    assert_in_range(opened, 100, 800);
    assert_int_equal(hlv_context_current_bytes(ctx), 0);
    hlv_context_free(ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(truncated_files_are_refused),
        cmocka_unit_test(unknown_and_lying_entries_are_refused),
        cmocka_unit_test(lying_models_are_refused),
        cmocka_unit_test(a_map_that_points_outside_fails_when_it_is_used),
        cmocka_unit_test(long_texts_are_cut_and_said_to_be),
        cmocka_unit_test(texts_that_are_not_utf8_are_refused),
        cmocka_unit_test(a_directory_is_opened_tokenizer_json_first),
        cmocka_unit_test(running_out_of_memory_is_said),
        cmocka_unit_test(changed_bytes_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
