/* Encoding with a tokenizer.json, step by step as the `tokenizers` library does it. */
#include "video/text/tokenizer.h"

#include "video/text/unicode.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of white space at the front of text. */
static size_t space_at_front(const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        uint32_t code;
        size_t length = hlv_utf8_decode(&code, text + at, size - at);
        if (length == 0 || !hlv_is_space(code)) break;
        at += length;
    }
    return at;
}

/* The character that ends at `end`: its code point and length; 0 at the beginning of text or in broken UTF-8. */
static size_t character_before(uint32_t *code, const char *text, size_t end) {
    for (size_t length = 1; length <= 4 && length <= end; length++)
        if (hlv_utf8_decode(code, text + end - length, length) == length) return length;
    return 0;
}

/* Where the white space begins that ends at `end`. */
static size_t space_at_back(const char *text, size_t end) {
    uint32_t code;
    size_t length;
    while ((length = character_before(&code, text, end)) > 0 && hlv_is_space(code))
        end -= length;
    return end;
}

static void strip(const hlv_normalizer_step *step, hlv_bytes *out, const char *text, size_t size, bool *start) {
    size_t from = step->left ? space_at_front(text, size) : 0;
    size_t end = step->right ? space_at_back(text, size) : size;
    if (from > 0) *start = false;
    if (end > from) hlv_bytes_append(out, text + from, end - from);
}

static void replace(const hlv_normalizer_step *step, hlv_bytes *out, const char *text, size_t size) {
    for (size_t at = 0; at < size;) {
        size_t times = 0, end = at;
        while (size - end >= step->pattern_length && memcmp(text + end, step->pattern, step->pattern_length) == 0) {
            end += step->pattern_length;
            times++;
            if (step->repeat == 0) break;
        }
        if (times > 0 && times >= step->repeat) {
            hlv_bytes_append(out, step->content, step->content_length);
        } else {
            if (end == at) end = at + 1;
            hlv_bytes_append(out, text + at, end - at);
        }
        at = end;
    }
}

hlv_status hlv_tokenizer_normalize(const hlv_tokenizer *tokenizer, hlv_bytes *out, const char *text, size_t size,
                                   bool *start) {
    hlv_status status = HLV_OK;
    hlv_bytes from = {0};
    hlv_bytes_append(&from, text, size);
    for (int i = 0; i < tokenizer->step_count && status == HLV_OK && !from.failed; i++) {
        const hlv_normalizer_step *step = &tokenizer->steps[i];
        hlv_bytes to = {0};
        if (step->kind == HLV_NORMALIZER_STRIP) strip(step, &to, from.data, from.length, start);
        if (step->kind == HLV_NORMALIZER_REPLACE) replace(step, &to, from.data, from.length);
        if (step->kind == HLV_NORMALIZER_PRECOMPILED && !hlv_charsmap_apply(&step->map, &to, from.data, from.length))
            status = hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: precompiled_charsmap points outside itself",
                              tokenizer->name);
        if (to.length / HLV_GROWTH_FACTOR > size + HLV_GROWTH_BYTES)
            status = hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: the normalizers make a text grow without bounds",
                              tokenizer->name);
        hlv_bytes_free(&from);
        from = to;
    }
    if (from.failed) out->failed = true;
    if (status == HLV_OK && !from.failed) hlv_bytes_append(out, from.data, from.length);
    hlv_bytes_free(&from);
    return status;
}

/* What is carried through one text. */
typedef struct encoding {
    const hlv_tokenizer *tokenizer;
    hlv_ids *ids;
    size_t enough;
} encoding;

static hlv_status pre_tokenize(const encoding *run, int i, const char *text, size_t size, bool start);

static hlv_status split_words(const encoding *run, int i, const char *text, size_t size, bool start) {
    hlv_status status = HLV_OK;
    for (size_t at = 0; at < size && status == HLV_OK;) {
        size_t from = at + space_at_front(text + at, size - at), end = from;
        uint32_t code;
        size_t length;
        while (end < size && ((length = hlv_utf8_decode(&code, text + end, size - end)) == 0 || !hlv_is_space(code)))
            end += length ? length : 1;
        if (end > from) status = pre_tokenize(run, i + 1, text + from, end - from, start && from == 0);
        at = end;
    }
    return status;
}

static bool starts_with(const char *text, size_t size, const char *prefix, size_t length) {
    return size >= length && memcmp(text, prefix, length) == 0;
}

/* Spaces become the replacement character, which is put in front too, and begins each piece. */
static hlv_status split_metaspace(const encoding *run, int i, const char *text, size_t size, bool start) {
    const hlv_pre_step *step = &run->tokenizer->pre[i];
    const char *mark = step->replacement;
    size_t mark_length = step->replacement_length;
    hlv_bytes marked = {0};
    bool prepend = step->prepend == HLV_PREPEND_ALWAYS || (step->prepend == HLV_PREPEND_FIRST && start);
    if (prepend && size > 0 && text[0] != ' ' && !starts_with(text, size, mark, mark_length))
        hlv_bytes_append(&marked, mark, mark_length);
    for (size_t at = 0; at < size; at++) {
        bool space = text[at] == ' ';
        hlv_bytes_append(&marked, space ? mark : text + at, space ? mark_length : 1);
    }
    hlv_status status = HLV_OK;
    if (marked.failed)
        status = hlv_fail(run->tokenizer->ctx, HLV_ERROR_MEMORY, "no memory to tokenize a text of %zu bytes", size);
    for (size_t at = 0; at < marked.length && status == HLV_OK;) {
        size_t end = step->split ? at + 1 : marked.length;
        while (end < marked.length && !starts_with(marked.data + end, marked.length - end, mark, mark_length))
            end++;
        status = pre_tokenize(run, i + 1, marked.data + at, end - at, start && at == 0);
        at = end;
    }
    hlv_bytes_free(&marked);
    return status;
}

/* Applies the pre-tokenizers from number i on (there are at most HLV_MAX_STEPS), then the model. */
static hlv_status pre_tokenize(const encoding *run, int i, const char *text, size_t size, bool start) {
    const hlv_tokenizer *tokenizer = run->tokenizer;
    if (run->ids->length > run->enough) return HLV_OK;
    if (i == tokenizer->pre_count)
        return hlv_unigram_encode(tokenizer->ctx, tokenizer->name, &tokenizer->model, run->ids, text, size);
    return tokenizer->pre[i].metaspace ? split_metaspace(run, i, text, size, start)
                                       : split_words(run, i, text, size, start);
}

/* The longest added token that text begins with: its place, or -1, and its length. */
static int32_t match_added(const hlv_trie *trie, const char *text, size_t size, size_t *length) {
    int32_t found = -1;
    uint32_t node = 0;
    for (size_t i = 0; i < size; i++) {
        node = hlv_trie_step(trie, node, (uint8_t)text[i]);
        if (node == 0) break;
        if (trie->values[node] < 0) continue;
        found = trie->values[node];
        *length = i + 1;
    }
    return found;
}

static bool is_single_word(const char *text, size_t size, size_t from, size_t end) {
    uint32_t code;
    if (character_before(&code, text, from) > 0 && hlv_is_word(code)) return false;
    return !(end < size && hlv_utf8_decode(&code, text + end, size - end) > 0 && hlv_is_word(code));
}

typedef hlv_status (*part_fn)(const encoding *run, const char *text, size_t size, bool start);

/* Cuts the added tokens of a trie out of a text and hands what lies between them to `part`. */
static hlv_status cut_added(const encoding *run, const hlv_trie *trie, const char *text, size_t size, bool start,
                            part_fn part) {
    hlv_status status = HLV_OK;
    size_t done = 0; /* bytes handed on */
    for (size_t at = 0; at < size && status == HLV_OK && run->ids->length <= run->enough;) {
        size_t length = 0;
        int32_t place = match_added(trie, text + at, size - at, &length);
        size_t from = at, end = at + length;
        at = place < 0 ? at + 1 : end;
        if (place < 0) continue;
        const hlv_added_token *token = &run->tokenizer->added[place];
        if (token->single_word && !is_single_word(text, size, from, end)) continue;
        if (token->lstrip) from = space_at_back(text, from);
        if (from < done) from = done;
        if (token->rstrip) end += space_at_front(text + end, size - end);
        if (from > done) status = part(run, text + done, from - done, start && done == 0);
        if (status == HLV_OK) status = hlv_ids_append(run->tokenizer->ctx, run->ids, token->id);
        done = end > done ? end : done;
    }
    if (status == HLV_OK && done < size) status = part(run, text + done, size - done, start && done == 0);
    return status;
}

static hlv_status encode_normalized(const encoding *run, const char *text, size_t size, bool start) {
    return pre_tokenize(run, 0, text, size, start);
}

static hlv_status encode_raw(const encoding *run, const char *text, size_t size, bool start) {
    hlv_bytes normal = {0};
    hlv_status status = hlv_tokenizer_normalize(run->tokenizer, &normal, text, size, &start);
    if (status == HLV_OK && normal.failed)
        status = hlv_fail(run->tokenizer->ctx, HLV_ERROR_MEMORY, "no memory to normalise a text of %zu bytes", size);
    if (status == HLV_OK)
        status = cut_added(run, &run->tokenizer->normalized, normal.data, normal.length, start, encode_normalized);
    hlv_bytes_free(&normal);
    return status;
}

hlv_status hlv_tokenizer_encode_json(const hlv_tokenizer *tokenizer, hlv_ids *ids, const char *text, size_t size,
                                     size_t enough) {
    encoding run = {tokenizer, ids, enough};
    return cut_added(&run, &tokenizer->raw, text, size, true, encode_raw);
}
