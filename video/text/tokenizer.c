/* Tokenizers: opening one of the two file formats, encoding a text. */
#include "video/text/tokenizer.h"

#include "video/weights/json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LARGEST_FILE ((int64_t)1 << 30)

hlv_status hlv_tokenizer_add_piece(hlv_tokenizer *tokenizer, const char *piece, size_t length, int32_t id,
                                   bool may_repeat) {
    if (length > HLV_LONGEST_PIECE)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_UNSUPPORTED, "%s: piece %d has %zu bytes, more than the %d supported",
                        tokenizer->name, id, length, HLV_LONGEST_PIECE);
    if (hlv_utf8_invalid_at(piece, length) != length)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: piece %d is not valid UTF-8", tokenizer->name, id);
    int32_t before = -1;
    hlv_status status = hlv_trie_insert(tokenizer->ctx, &tokenizer->model.trie, piece, length, id, &before);
    if (status == HLV_OK && before >= 0 && !may_repeat)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: pieces %d and %d are the same, \"%.*s\"",
                        tokenizer->name, before, id, (int)length, piece);
    return status;
}

static int hex_digit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

int hlv_tokenizer_note_byte(hlv_tokenizer *tokenizer, const char *piece, size_t length, int32_t id) {
    if (length != 6 || memcmp(piece, "<0x", 3) != 0 || piece[5] != '>') return -1;
    int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
    if (high < 0 || low < 0) return -1;
    int byte = high * 16 + low;
    tokenizer->model.byte_ids[byte] = id;
    return byte;
}

static hlv_status create(hlv_context *ctx, const char *name, hlv_tokenizer_kind kind, const void *data, size_t size,
                         hlv_tokenizer **tokenizer) {
    *tokenizer = calloc(1, sizeof **tokenizer);
    char *copy = strdup(name);
    if (!*tokenizer || !copy) {
        free(*tokenizer);
        free(copy);
        *tokenizer = NULL;
        return hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory for the tokenizer of %s", name);
    }
    (*tokenizer)->ctx = ctx;
    (*tokenizer)->name = copy;
    (*tokenizer)->model.unknown_id = -1;
    for (int b = 0; b < 256; b++)
        (*tokenizer)->model.byte_ids[b] = -1;
    hlv_status status = kind == HLV_TOKENIZER_JSON ? hlv_tokenizer_read_json(*tokenizer, data, size)
                                                   : hlv_tokenizer_read_sentencepiece(*tokenizer, data, size);
    if (status != HLV_OK) {
        hlv_tokenizer_free(*tokenizer);
        *tokenizer = NULL;
    }
    return status;
}

hlv_status hlv_tokenizer_from_memory(hlv_context *ctx, hlv_tokenizer_kind kind, const void *bytes, size_t size,
                                     hlv_tokenizer **tokenizer) {
    if (!tokenizer) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "tokenizer is NULL");
    *tokenizer = NULL;
    if (!bytes && size > 0) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the tokenizer's bytes are NULL");
    if (kind != HLV_TOKENIZER_JSON && kind != HLV_TOKENIZER_SENTENCEPIECE)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "%d is no kind of tokenizer", (int)kind);
    return create(ctx, kind == HLV_TOKENIZER_JSON ? "tokenizer.json" : "spiece.model", kind, bytes, size, tokenizer);
}

static hlv_status open_file(hlv_context *ctx, const char *path, hlv_tokenizer_kind kind, hlv_tokenizer **tokenizer) {
    char *data = NULL;
    size_t size = 0;
    hlv_status status = hlv_file_read(ctx, path, LARGEST_FILE, &data, &size);
    if (status == HLV_OK) status = create(ctx, path, kind, data, size, tokenizer);
    hlv_free(ctx, data);
    return status;
}

hlv_status hlv_tokenizer_open(hlv_context *ctx, const char *tokenizer_dir, hlv_tokenizer **tokenizer) {
    static const char *const names[] = {
        [HLV_TOKENIZER_JSON] = "tokenizer.json", [HLV_TOKENIZER_SENTENCEPIECE] = "spiece.model"};
    if (!tokenizer) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "tokenizer is NULL");
    *tokenizer = NULL;
    if (!tokenizer_dir) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the tokenizer's directory is NULL");
    for (int kind = 0; kind < 2; kind++) {
        char *path = NULL;
        if (asprintf(&path, "%s/%s", tokenizer_dir, names[kind]) < 0)
            return hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory for the path of %s", names[kind]);
        bool absent = access(path, F_OK) != 0 && (errno == ENOENT || errno == ENOTDIR);
        hlv_status status = absent ? HLV_OK : open_file(ctx, path, (hlv_tokenizer_kind)kind, tokenizer);
        free(path);
        if (!absent) return status;
    }
    return hlv_fail(ctx, HLV_ERROR_IO, "%s holds neither tokenizer.json nor spiece.model", tokenizer_dir);
}

void hlv_tokenizer_free(hlv_tokenizer *tokenizer) {
    if (!tokenizer) return;
    hlv_context *ctx = tokenizer->ctx;
    hlv_unigram_free(ctx, &tokenizer->model);
    hlv_charsmap_free(ctx, &tokenizer->map);
    hlv_trie_free(ctx, &tokenizer->symbols);
    hlv_trie_free(ctx, &tokenizer->raw);
    hlv_trie_free(ctx, &tokenizer->normalized);
    for (int i = 0; i < tokenizer->step_count; i++)
        hlv_charsmap_free(ctx, &tokenizer->steps[i].map);
    free(tokenizer->steps);
    free(tokenizer->added);
    free(tokenizer->name);
    free(tokenizer);
}

hlv_status hlv_tokenizer_encode(const hlv_tokenizer *tokenizer, const char *text, int max_tokens, int32_t *ids,
                                int *count, bool *truncated) {
    hlv_context *ctx = tokenizer->ctx;
    int around = tokenizer->prefix_count + tokenizer->suffix_count;
    if (!text || !ids || !count || !truncated)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "hlv_tokenizer_encode: an argument is NULL");
    *count = 0;
    *truncated = false;
    if (max_tokens < around || max_tokens < 1)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "max_tokens is %d, and %s puts %d tokens around every text",
                        max_tokens, tokenizer->name, around);
    size_t size = strlen(text), bad = hlv_utf8_invalid_at(text, size);
    if (bad != size)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the prompt is not valid UTF-8: byte 0x%02X at offset %zu",
                        (unsigned)(unsigned char)text[bad], bad);
    hlv_ids pieces = {0};
    size_t room = (size_t)(max_tokens - around);
    hlv_status status = tokenizer->is_sentencepiece ? hlv_tokenizer_encode_sentencepiece(tokenizer, &pieces, text, size)
                                                    : hlv_tokenizer_encode_json(tokenizer, &pieces, text, size, room);
    if (status == HLV_OK) {
        size_t kept = pieces.length < room ? pieces.length : room;
        *truncated = pieces.length > room;
        memcpy(ids, tokenizer->prefix, (size_t)tokenizer->prefix_count * sizeof *ids);
        if (kept) memcpy(ids + tokenizer->prefix_count, pieces.data, kept * sizeof *ids);
        memcpy(ids + tokenizer->prefix_count + kept, tokenizer->suffix, (size_t)tokenizer->suffix_count * sizeof *ids);
        *count = (int)kept + around;
    }
    free(pieces.data);
    return status;
}
