/* The best segmentation of a text under a unigram model, by the Viterbi algorithm. */
#include "video/text/unigram.h"

#include "video/text/buffer.h"

#include <stdlib.h>

#define UNKNOWN_PENALTY 10.0

void hlv_unigram_free(hlv_context *ctx, hlv_unigram *model) {
    hlv_trie_free(ctx, &model->trie);
    hlv_free(ctx, model->scores);
    *model = (hlv_unigram){0};
}

hlv_status hlv_ids_append(hlv_context *ctx, hlv_ids *ids, int32_t id) {
    if (ids->length == ids->capacity) {
        size_t larger = ids->capacity * 2 + 64;
        int32_t *grown = larger < SIZE_MAX / sizeof *grown ? realloc(ids->data, larger * sizeof *grown) : NULL;
        if (!grown) return hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory for %zu token ids", larger);
        ids->data = grown;
        ids->capacity = larger;
    }
    ids->data[ids->length++] = id;
    return HLV_OK;
}

/* The best path that ends at a place: its last piece and the sum of scores. */
typedef struct path {
    double score;
    int32_t id;
    uint32_t length; /* bytes of the last piece; 0: no path ends here */
} path;

/* Keeps a path that ends at `end` if it is better than the one there; of equals the one found first stays, so that what
 * counts as equal matters: sums in float round more of them together than sums in double. */
static void offer(const hlv_unigram *model, path *end, double score, int32_t id, size_t length) {
    if (model->as_sentencepiece) score = (double)(float)score;
    if (end->length != 0 && !(score > end->score)) return;
    *end = (path){score, id, (uint32_t)length};
}

/* Offers every piece that starts at `at`, whose first character has `character` bytes; returns false if that is unknown
 * and the model has no unknown id. */
static bool extend(const hlv_unigram *model, path *paths, const char *text, size_t size, size_t at, size_t character) {
    double here = paths[at].score;
    bool known = false; /* the first character is a piece by itself */
    uint32_t node = 0;
    for (size_t end = at; end < size;) {
        node = hlv_trie_step(&model->trie, node, (uint8_t)text[end++]);
        if (node == 0) break;
        int32_t id = model->trie.values[node];
        if (id < 0) continue;
        offer(model, &paths[end], model->scores[id] + here, id, end - at);
        known = known || end - at == character;
    }
    if (known) return true;
    if (model->unknown_id < 0) return false;
    double unknown = model->min_score - UNKNOWN_PENALTY;
    if (model->as_sentencepiece) unknown = (double)(float)unknown;
    offer(model, &paths[at + character], unknown + here, model->unknown_id, character);
    return true;
}

/* The ids of a run of unknown characters. */
static hlv_status emit_unknown(hlv_context *ctx, const hlv_unigram *model, hlv_ids *ids, const char *run, size_t size) {
    int32_t id = model->as_sentencepiece ? -1 : hlv_trie_find(&model->trie, run, size);
    bool bytes = id < 0 && model->byte_fallback;
    for (size_t i = 0; i < size && bytes; i++)
        bytes = model->byte_ids[(uint8_t)run[i]] >= 0;
    if (!bytes) return hlv_ids_append(ctx, ids, id < 0 ? model->unknown_id : id);
    hlv_status status = HLV_OK;
    for (size_t i = 0; i < size && status == HLV_OK; i++)
        status = hlv_ids_append(ctx, ids, model->byte_ids[(uint8_t)run[i]]);
    return status;
}

/* Turns the links from each end to its piece's start into links from each start, in place: paths[start] then tells the
 * piece that starts there. */
static void turn_around(path *paths, size_t size) {
    path piece = paths[size];
    for (size_t end = size; end > 0;) {
        size_t start = end - piece.length;
        path before = paths[start];
        paths[start] = piece;
        piece = before;
        end = start;
    }
}

static hlv_status emit(hlv_context *ctx, const hlv_unigram *model, hlv_ids *ids, const char *text, size_t size,
                       const path *paths) {
    hlv_status status = HLV_OK;
    for (size_t at = 0; at < size && status == HLV_OK;) {
        size_t end = at + paths[at].length;
        if (paths[at].id != model->unknown_id) {
            status = hlv_ids_append(ctx, ids, paths[at].id);
        } else {
            while (end < size && paths[end].id == model->unknown_id)
                end += paths[end].length;
            status = emit_unknown(ctx, model, ids, text + at, end - at);
        }
        at = end;
    }
    return status;
}

hlv_status hlv_unigram_encode(hlv_context *ctx, const char *name, const hlv_unigram *model, hlv_ids *ids,
                              const char *text, size_t size) {
    if (size == 0) return HLV_OK;
    path *paths = size < SIZE_MAX / sizeof *paths - 1 ? calloc(size + 1, sizeof *paths) : NULL;
    if (!paths) return hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory to tokenize a text of %zu bytes", size);
    hlv_status status = HLV_OK;
    for (size_t at = 0; at < size && status == HLV_OK;) {
        uint32_t code;
        size_t character = hlv_utf8_decode(&code, text + at, size - at);
        if (character == 0) character = 1;
        if (!extend(model, paths, text, size, at, character))
            status =
                hlv_fail(ctx, HLV_ERROR_FORMAT,
                         "%s: the text holds a character that is no piece, and the vocabulary has no unk_id", name);
        at += character;
    }
    if (status == HLV_OK) {
        turn_around(paths, size);
        status = emit(ctx, model, ids, text, size, paths);
    }
    free(paths);
    return status;
}
