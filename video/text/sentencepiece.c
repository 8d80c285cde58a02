/* spiece.model: a protocol buffer (ModelProto of sentencepiece_model.proto), and its normalisation. */
#include "video/text/tokenizer.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define SPACE_SYMBOL "\xe2\x96\x81" /* U+2581 */

enum { PIECE_NORMAL = 1, PIECE_UNKNOWN, PIECE_CONTROL, PIECE_USER_DEFINED, PIECE_UNUSED, PIECE_BYTE };
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

typedef struct slice {
    const uint8_t *data;
    size_t size;
} slice;

/* One field of a message. */
typedef struct field {
    uint64_t number;
    unsigned wire;
    uint64_t value; /* WIRE_VARINT, WIRE_64, WIRE_32 */
    slice bytes;    /* WIRE_BYTES */
} field;

static bool read_varint(slice *from, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; shift < 64 && from->size > 0; shift += 7) {
        uint8_t byte = *from->data;
        from->data++;
        from->size--;
        *value |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

static bool read_fixed(slice *from, uint64_t *value, size_t size) {
    if (from->size < size) return false;
    *value = 0;
    for (size_t i = 0; i < size; i++)
        *value |= (uint64_t)from->data[i] << 8 * i;
    from->data += size;
    from->size -= size;
    return true;
}

/* Reads the field at the front of a message and moves past it; false if it is cut short or no field. */
static bool read_field(slice *from, field *out) {
    uint64_t tag;
    *out = (field){0};
    if (!read_varint(from, &tag)) return false;
    out->number = tag >> 3;
    out->wire = (unsigned)(tag & 7);
    if (out->number == 0) return false;
    if (out->wire == WIRE_VARINT) return read_varint(from, &out->value);
    if (out->wire == WIRE_64) return read_fixed(from, &out->value, 8);
    if (out->wire == WIRE_32) return read_fixed(from, &out->value, 4);
    if (out->wire != WIRE_BYTES || !read_varint(from, &out->value) || out->value > from->size) return false;
    out->bytes = (slice){from->data, (size_t)out->value};
    from->data += out->bytes.size;
    from->size -= out->bytes.size;
    return true;
}

static bool is_field(const field *f, uint64_t number, unsigned wire) {
    return f->number == number && f->wire == wire;
}

/* What is needed of trainer_spec and normalizer_spec. */
typedef struct specs {
    uint64_t model_type; /* 1: unigram */
    slice charsmap, end_piece;
    bool has_trainer, has_normalizer;
} specs;

static bool read_trainer(hlv_tokenizer *tokenizer, specs *out, slice message) {
    field f;
    while (message.size > 0) {
        if (!read_field(&message, &f)) return false;
        if (is_field(&f, 3, WIRE_VARINT)) out->model_type = f.value;
        if (is_field(&f, 24, WIRE_VARINT)) tokenizer->space_as_suffix = f.value != 0;
        if (is_field(&f, 35, WIRE_VARINT)) tokenizer->model.byte_fallback = f.value != 0;
        if (is_field(&f, 47, WIRE_BYTES)) out->end_piece = f.bytes;
    }
    return true;
}

static bool read_normalizer(hlv_tokenizer *tokenizer, specs *out, slice message) {
    field f;
    while (message.size > 0) {
        if (!read_field(&message, &f)) return false;
        if (is_field(&f, 2, WIRE_BYTES)) out->charsmap = f.bytes;
        if (is_field(&f, 3, WIRE_VARINT)) tokenizer->dummy_prefix = f.value != 0;
        if (is_field(&f, 4, WIRE_VARINT)) tokenizer->remove_extra_spaces = f.value != 0;
        if (is_field(&f, 5, WIRE_VARINT)) tokenizer->escape_spaces = f.value != 0;
    }
    return true;
}

typedef struct piece {
    slice text;
    float score;
    uint64_t type;
} piece;

static bool read_piece(piece *out, slice message) {
    field f;
    *out = (piece){.type = PIECE_NORMAL};
    while (message.size > 0) {
        if (!read_field(&message, &f)) return false;
        if (is_field(&f, 1, WIRE_BYTES)) out->text = f.bytes;
        if (is_field(&f, 2, WIRE_32)) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&out->score, &bits, sizeof out->score);
        }
        if (is_field(&f, 3, WIRE_VARINT)) out->type = f.value;
    }
    return true;
}

/* Walks through the file once to check its frame, read the specs and count the pieces. */
static hlv_status read_specs(hlv_tokenizer *tokenizer, specs *out, slice file) {
    field f;
    size_t total = file.size;
    int64_t pieces = 0;
    while (file.size > 0) {
        size_t at = total - file.size;
        bool good = read_field(&file, &f);
        if (good && is_field(&f, 2, WIRE_BYTES)) good = read_trainer(tokenizer, out, f.bytes);
        if (good && is_field(&f, 3, WIRE_BYTES)) good = read_normalizer(tokenizer, out, f.bytes);
        if (!good)
            return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT,
                            "%s is truncated or no SentencePiece model: the field at byte %zu of %zu cannot be read",
                            tokenizer->name, at, total);
        if (is_field(&f, 1, WIRE_BYTES)) pieces++;
        out->has_trainer = out->has_trainer || is_field(&f, 2, WIRE_BYTES);
        out->has_normalizer = out->has_normalizer || is_field(&f, 3, WIRE_BYTES);
    }
    if (pieces == 0 || pieces > INT32_MAX)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s is no SentencePiece model: it holds %lld pieces",
                        tokenizer->name, (long long)pieces);
    if (!out->has_trainer ||
        !out->has_normalizer) /* they stand behind the pieces: a file cut between two pieces lacks them */
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s is truncated or no SentencePiece model: it has no %s",
                        tokenizer->name, out->has_trainer ? "normalizer_spec" : "trainer_spec");
    if (out->model_type != 1)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_UNSUPPORTED, "%s: model_type is %llu, and only 1 (unigram) is read",
                        tokenizer->name, (unsigned long long)out->model_type);
    tokenizer->model.piece_count = (int32_t)pieces;
    return HLV_OK;
}

/* Notes the special ids that a piece may have. */
static hlv_status note_special(hlv_tokenizer *tokenizer, const specs *spec, const piece *p, int32_t id) {
    hlv_unigram *model = &tokenizer->model;
    const char *end = spec->end_piece.data ? (const char *)spec->end_piece.data : "</s>";
    size_t end_length = spec->end_piece.data ? spec->end_piece.size : 4;
    if (p->text.size == end_length && memcmp(p->text.data, end, end_length) == 0) {
        tokenizer->suffix[0] = id;
        tokenizer->suffix_count = 1;
    }
    if (p->type == PIECE_UNKNOWN) {
        if (model->unknown_id >= 0)
            return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT,
                            "%s: pieces %d and %d are both of type UNKNOWN; one was wanted", tokenizer->name,
                            model->unknown_id, id);
        model->unknown_id = id;
    }
    if (p->type == PIECE_BYTE && hlv_tokenizer_note_byte(tokenizer, (const char *)p->text.data, p->text.size, id) < 0)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: piece %d is of type BYTE and not named <0x00> to <0xFF>",
                        tokenizer->name, id);
    return HLV_OK;
}

static hlv_status add_piece(hlv_tokenizer *tokenizer, const specs *spec, const piece *p, int32_t id) {
    if (p->text.size == 0 || !isfinite(p->score))
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: piece %d %s", tokenizer->name, id,
                        p->text.size == 0 ? "is empty" : "has a score that is not finite");
    hlv_status status = note_special(tokenizer, spec, p, id);
    bool listed = p->type == PIECE_NORMAL || p->type == PIECE_USER_DEFINED;
    if (status == HLV_OK && listed)
        status = hlv_tokenizer_add_piece(tokenizer, (const char *)p->text.data, p->text.size, id, false);
    int32_t before;
    if (status == HLV_OK && p->type == PIECE_USER_DEFINED)
        status =
            hlv_trie_insert(tokenizer->ctx, &tokenizer->symbols, (const char *)p->text.data, p->text.size, id, &before);
    return status;
}

/* Reads the next piece of the file; false where there is none or it cannot be read, which leaves rest not empty. */
static bool next_piece(slice *rest, piece *out) {
    field f;
    while (rest->size > 0) {
        slice before = *rest;
        *out = (piece){0};
        if (read_field(rest, &f) && !is_field(&f, 1, WIRE_BYTES)) continue;
        if (is_field(&f, 1, WIRE_BYTES) && read_piece(out, f.bytes)) return true;
        *rest = before;
        return false;
    }
    return false;
}

static hlv_status read_pieces(hlv_tokenizer *tokenizer, const specs *spec, slice file) {
    hlv_unigram *model = &tokenizer->model;
    float smallest = FLT_MAX, largest = FLT_MIN;
    slice rest = file;
    piece p;
    int32_t id = 0;
    for (; next_piece(&rest, &p); id++) {
        hlv_status status = add_piece(tokenizer, spec, &p, id);
        if (status != HLV_OK) return status;
        model->scores[id] = (double)p.score;
        if (p.type != PIECE_NORMAL) continue;
        smallest = fminf(smallest, p.score);
        largest = fmaxf(largest, p.score);
    }
    if (rest.size > 0)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: piece %d cannot be read", tokenizer->name, id);
    /* User-defined pieces are scored above all others, as sentencepiece does. */
    rest = file;
    for (id = 0; next_piece(&rest, &p); id++)
        if (p.type == PIECE_USER_DEFINED) model->scores[id] = (double)((float)p.text.size * largest) - 0.1;
    model->min_score = (double)smallest;
    return HLV_OK;
}

static hlv_status check_model(const hlv_tokenizer *tokenizer) {
    const hlv_unigram *model = &tokenizer->model;
    if (model->unknown_id < 0)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: no piece is of type UNKNOWN; one was wanted",
                        tokenizer->name);
    if (tokenizer->suffix_count == 0)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: no piece is the end of a text (</s>); one was wanted",
                        tokenizer->name);
    for (int b = 0; b < 256 && model->byte_fallback; b++)
        if (model->byte_ids[b] < 0)
            return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT,
                            "%s: byte_fallback is on and the piece <0x%02X> is missing", tokenizer->name, (unsigned)b);
    return HLV_OK;
}

hlv_status hlv_tokenizer_read_sentencepiece(hlv_tokenizer *tokenizer, const uint8_t *data, size_t size) {
    hlv_context *ctx = tokenizer->ctx;
    hlv_unigram *model = &tokenizer->model;
    specs spec = {.model_type = 1};
    slice file = {data, size};
    tokenizer->is_sentencepiece = model->as_sentencepiece = true;
    tokenizer->dummy_prefix = tokenizer->remove_extra_spaces = tokenizer->escape_spaces = true;
    hlv_status status = read_specs(tokenizer, &spec, file);
    if (status == HLV_OK)
        status = hlv_charsmap_create(ctx, tokenizer->name, spec.charsmap.data, spec.charsmap.size, &tokenizer->map);
    if (status == HLV_OK) status = hlv_trie_create(ctx, &model->trie, (size_t)model->piece_count);
    if (status == HLV_OK) status = hlv_trie_create(ctx, &tokenizer->symbols, 0);
    if (status == HLV_OK) {
        model->scores = hlv_alloc(ctx, (size_t)model->piece_count * sizeof *model->scores);
        status = model->scores ? read_pieces(tokenizer, &spec, file) : HLV_ERROR_MEMORY;
    }
    return status == HLV_OK ? check_model(tokenizer) : status;
}

/* The longest user-defined piece at the front of text, in bytes. */
static size_t symbol_length(const hlv_tokenizer *tokenizer, const char *text, size_t size) {
    size_t longest = 0;
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        node = hlv_trie_step(&tokenizer->symbols, node, (uint8_t)text[i]);
        if (node == 0) break;
        if (tokenizer->symbols.values[node] >= 0) longest = i + 1;
    }
    return longest;
}

/* What the front of text becomes: a symbol stays, then the longest rule of the map, then one character. */
static hlv_charsmap_match normalize_front(const hlv_tokenizer *tokenizer, const char *text, size_t size) {
    size_t symbol = symbol_length(tokenizer, text, size);
    if (symbol) return (hlv_charsmap_match){.length = symbol, .text = text, .text_length = symbol};
    hlv_charsmap_match match = hlv_charsmap_find(&tokenizer->map, text, size, true);
    if (match.length || match.broken) return match;
    uint32_t code;
    size_t length = hlv_utf8_decode(&code, text, size);
    if (length == 0) length = 1;
    return (hlv_charsmap_match){.length = length, .text = text, .text_length = length};
}

static void append_escaped(const hlv_tokenizer *tokenizer, hlv_bytes *out, const char *text, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (tokenizer->escape_spaces && text[i] == ' ')
            hlv_bytes_append(out, SPACE_SYMBOL, 3);
        else
            hlv_bytes_append(out, text + i, 1);
    }
}

static hlv_status normalize(const hlv_tokenizer *tokenizer, hlv_bytes *out, const char *text, size_t size) {
    const char *space = tokenizer->escape_spaces ? SPACE_SYMBOL : " ";
    size_t space_length = strlen(space), at = 0;
    bool after_space = tokenizer->remove_extra_spaces, first = true;
    while (at < size) {
        hlv_charsmap_match match = normalize_front(tokenizer, text + at, size - at);
        if (match.broken || out->length / HLV_GROWTH_FACTOR > size + HLV_GROWTH_BYTES)
            return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: precompiled_charsmap %s", tokenizer->name,
                            match.broken ? "points outside itself" : "makes a text grow without bounds");
        at += match.length;
        if (first && tokenizer->remove_extra_spaces && match.text_length == 1 && match.text[0] == ' ') continue;
        if (first && tokenizer->dummy_prefix && !tokenizer->space_as_suffix) hlv_bytes_append(out, space, space_length);
        first = false;
        while (after_space && match.text_length > 0 && match.text[0] == ' ')
            match.text++, match.text_length--;
        append_escaped(tokenizer, out, match.text, match.text_length);
        if (match.text_length > 0)
            after_space = tokenizer->remove_extra_spaces && match.text[match.text_length - 1] == ' ';
    }
    if (first) return HLV_OK; /* nothing but space */
    while (tokenizer->remove_extra_spaces && out->length >= space_length &&
           memcmp(out->data + out->length - space_length, space, space_length) == 0)
        out->length -= space_length;
    if (tokenizer->dummy_prefix && tokenizer->space_as_suffix) hlv_bytes_append(out, space, space_length);
    return HLV_OK;
}

hlv_status hlv_tokenizer_encode_sentencepiece(const hlv_tokenizer *tokenizer, hlv_ids *ids, const char *text,
                                              size_t size) {
    hlv_bytes normal = {0};
    hlv_status status = normalize(tokenizer, &normal, text, size);
    if (status == HLV_OK && normal.failed)
        status = hlv_fail(tokenizer->ctx, HLV_ERROR_MEMORY, "no memory to normalise a text of %zu bytes", size);
    if (status == HLV_OK)
        status =
            hlv_unigram_encode(tokenizer->ctx, tokenizer->name, &tokenizer->model, ids, normal.data, normal.length);
    hlv_bytes_free(&normal);
    return status;
}
