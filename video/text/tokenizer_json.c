/* tokenizer.json of the `tokenizers` library, read into an hlv_tokenizer. Whatever this reader does not know is refused
 * by name: a tokenizer that is nearly right would give wrong ids in silence. */
#include "video/text/tokenizer.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static hlv_status unsupported(const hlv_tokenizer *tokenizer, const char *what, const char *found, const char *known) {
    return hlv_fail(tokenizer->ctx, HLV_ERROR_UNSUPPORTED, "%s: %s \"%s\" is not supported; %s", tokenizer->name, what,
                    found, known);
}

static hlv_status malformed(const hlv_tokenizer *tokenizer, const char *what, const char *wanted) {
    return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: %s is not %s", tokenizer->name, what, wanted);
}

static const char *type_of(const json_t *object) {
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "(no type)";
}

static bool is_type(const json_t *object, const char *type) {
    return strcmp(type_of(object), type) == 0;
}

/* A boolean member, or fallback where it is absent. */
static bool member_bool(const json_t *object, const char *name, bool fallback) {
    const json_t *value = json_object_get(object, name);
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

/* Copies a string of at most HLV_MAX_CONTENT bytes. */
static bool copy_string(char *out, size_t *length, const json_t *value) {
    if (!json_is_string(value) || json_string_length(value) > HLV_MAX_CONTENT) return false;
    *length = json_string_length(value);
    memcpy(out, json_string_value(value), *length);
    return true;
}

/* Decodes base64 into fresh memory. */
static hlv_status decode_base64(const hlv_tokenizer *tokenizer, const char *text, size_t length, uint8_t **out,
                                size_t *size) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t value[256];
    memset(value, 0xFF, sizeof value);
    for (int i = 0; i < 64; i++)
        value[(uint8_t)letters[i]] = (uint8_t)i;
    while (length > 0 && text[length - 1] == '=')
        length--;
    *out = malloc(length / 4 * 3 + 3);
    if (!*out)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_MEMORY, "no memory for the character map of %s", tokenizer->name);
    *size = 0;
    uint32_t bits = 0;
    int held = 0;
    for (size_t i = 0; i < length; i++) {
        uint8_t six = value[(uint8_t)text[i]];
        if (six == 0xFF) {
            free(*out);
            *out = NULL;
            return malformed(tokenizer, "precompiled_charsmap", "base64");
        }
        bits = bits << 6 | six;
        held += 6;
        if (held < 8) continue;
        held -= 8;
        (*out)[(*size)++] = (uint8_t)(bits >> held);
    }
    return HLV_OK;
}

static hlv_status read_precompiled(hlv_tokenizer *tokenizer, const json_t *object, hlv_normalizer_step *step) {
    const json_t *map = json_object_get(object, "precompiled_charsmap");
    if (json_is_null(map)) return HLV_OK;
    if (!json_is_string(map)) return malformed(tokenizer, "precompiled_charsmap", "a string");
    uint8_t *blob = NULL;
    size_t size = 0;
    hlv_status status = decode_base64(tokenizer, json_string_value(map), json_string_length(map), &blob, &size);
    if (status == HLV_OK) status = hlv_charsmap_create(tokenizer->ctx, tokenizer->name, blob, size, &step->map);
    free(blob);
    step->kind = HLV_NORMALIZER_PRECOMPILED;
    return status;
}

/* A pattern is {"String": literal} or {"Regex": a character (or a literal without special characters), repeated or
 * not}. */
static hlv_status read_replace(hlv_tokenizer *tokenizer, const json_t *object, hlv_normalizer_step *step) {
    const json_t *pattern = json_object_get(object, "pattern");
    const json_t *regex = json_object_get(pattern, "Regex");
    step->kind = HLV_NORMALIZER_REPLACE;
    if (!copy_string(step->content, &step->content_length, json_object_get(object, "content")))
        return malformed(tokenizer, "content of a Replace normalizer", "a string of at most 256 bytes");
    if (!copy_string(step->pattern, &step->pattern_length, regex ? regex : json_object_get(pattern, "String")) ||
        step->pattern_length == 0)
        return malformed(tokenizer, "pattern of a Replace normalizer", "a String or Regex of 1 to 256 bytes");
    if (!regex) return HLV_OK;
    const char *text = json_string_value(regex);
    uint32_t code;
    size_t character = hlv_utf8_decode(&code, step->pattern, step->pattern_length);
    char *tail = NULL;
    const char *rest = text + character;
    if (strcmp(rest, "+") == 0) {
        step->repeat = 1;
    } else if (rest[0] == '{' && rest[1] >= '1' && rest[1] <= '9') {
        step->repeat = strtoul(rest + 1, &tail, 10);
        if (strcmp(tail, ",}") != 0)
            return unsupported(tokenizer, "the regular expression", text, "only x{n,} and x+ are");
    }
    if (step->repeat) step->pattern_length = character;
    if (step->repeat > 1000000 || memchr(step->pattern, '\0', step->pattern_length))
        return unsupported(tokenizer, "the regular expression", text, "it repeats too often or holds a NUL");
    for (size_t i = 0; i < step->pattern_length; i++)
        if (strchr("\\^$.|?*+()[]{}", step->pattern[i]))
            return unsupported(tokenizer, "the regular expression", text, "only literals, x{n,} and x+ are");
    return HLV_OK;
}

static hlv_status read_normalizer(hlv_tokenizer *tokenizer, const json_t *object) {
    if (!object || json_is_null(object)) return HLV_OK;
    if (is_type(object, "Sequence")) {
        const json_t *list = json_object_get(object, "normalizers");
        if (!json_is_array(list)) return malformed(tokenizer, "normalizers", "a list");
        for (size_t i = 0; i < json_array_size(list); i++) {
            if (is_type(json_array_get(list, i), "Sequence"))
                return unsupported(tokenizer, "normalizer", "Sequence", "within a Sequence");
            hlv_status status = read_normalizer(tokenizer, json_array_get(list, i));
            if (status != HLV_OK) return status;
        }
        return HLV_OK;
    }
    if (tokenizer->step_count == HLV_MAX_STEPS)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_UNSUPPORTED, "%s has more than %d normalizers", tokenizer->name,
                        HLV_MAX_STEPS);
    hlv_normalizer_step *step = &tokenizer->steps[tokenizer->step_count++];
    if (is_type(object, "Precompiled")) return read_precompiled(tokenizer, object, step);
    if (is_type(object, "Replace")) return read_replace(tokenizer, object, step);
    if (!is_type(object, "Strip"))
        return unsupported(tokenizer, "normalizer", type_of(object), "known are Sequence, Precompiled, Strip, Replace");
    step->kind = HLV_NORMALIZER_STRIP;
    step->left = member_bool(object, "strip_left", true);
    step->right = member_bool(object, "strip_right", true);
    return HLV_OK;
}

static hlv_status read_metaspace(hlv_tokenizer *tokenizer, const json_t *object, hlv_pre_step *step) {
    static const struct {
        const char *name;
        hlv_prepend value;
    } schemes[] = {{"always", HLV_PREPEND_ALWAYS}, {"first", HLV_PREPEND_FIRST}, {"never", HLV_PREPEND_NEVER}};
    char text[HLV_MAX_CONTENT];
    uint32_t code;
    if (!copy_string(text, &step->replacement_length, json_object_get(object, "replacement")) ||
        step->replacement_length == 0 ||
        hlv_utf8_decode(&code, text, step->replacement_length) != step->replacement_length)
        return malformed(tokenizer, "replacement of Metaspace", "one character");
    memcpy(step->replacement, text, step->replacement_length);
    step->metaspace = true;
    step->split = member_bool(object, "split", true);
    /* Files of before prepend_scheme say add_prefix_space. */
    step->prepend = member_bool(object, "add_prefix_space", true) ? HLV_PREPEND_ALWAYS : HLV_PREPEND_NEVER;
    const json_t *scheme = json_object_get(object, "prepend_scheme");
    if (!scheme || json_is_null(scheme)) return HLV_OK;
    for (size_t i = 0; i < sizeof schemes / sizeof *schemes; i++) {
        if (!json_is_string(scheme) || strcmp(json_string_value(scheme), schemes[i].name) != 0) continue;
        step->prepend = schemes[i].value;
        return HLV_OK;
    }
    return malformed(tokenizer, "prepend_scheme of Metaspace", "always, first or never");
}

static hlv_status read_pre_tokenizer(hlv_tokenizer *tokenizer, const json_t *object) {
    if (!object || json_is_null(object)) return HLV_OK;
    if (is_type(object, "Sequence")) {
        const json_t *list = json_object_get(object, "pretokenizers");
        if (!json_is_array(list)) return malformed(tokenizer, "pretokenizers", "a list");
        for (size_t i = 0; i < json_array_size(list); i++) {
            if (is_type(json_array_get(list, i), "Sequence"))
                return unsupported(tokenizer, "pre_tokenizer", "Sequence", "within a Sequence");
            hlv_status status = read_pre_tokenizer(tokenizer, json_array_get(list, i));
            if (status != HLV_OK) return status;
        }
        return HLV_OK;
    }
    if (tokenizer->pre_count == HLV_MAX_STEPS)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_UNSUPPORTED, "%s has more than %d pre-tokenizers", tokenizer->name,
                        HLV_MAX_STEPS);
    hlv_pre_step *step = &tokenizer->pre[tokenizer->pre_count++];
    if (is_type(object, "Metaspace")) return read_metaspace(tokenizer, object, step);
    if (is_type(object, "WhitespaceSplit")) return HLV_OK;
    return unsupported(tokenizer, "pre_tokenizer", type_of(object), "known are Sequence, WhitespaceSplit, Metaspace");
}

/* The ids of a special token of the template, into out. */
static hlv_status read_special(hlv_tokenizer *tokenizer, const json_t *specials, const json_t *item, int32_t *out,
                               int *count) {
    const char *name = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
    const json_t *ids = name ? json_object_get(json_object_get(specials, name), "ids") : NULL;
    if (!json_is_array(ids))
        return malformed(tokenizer, "the template of post_processor", "made of sequence A and listed special tokens");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
            return malformed(tokenizer, "an id of post_processor", "a number from 0 to 2147483647");
        if (*count == HLV_MAX_STEPS)
            return unsupported(tokenizer, "post_processor with the token", name, "there are too many tokens");
        out[(*count)++] = (int32_t)json_integer_value(id);
    }
    return HLV_OK;
}

static hlv_status read_post_processor(hlv_tokenizer *tokenizer, const json_t *object) {
    if (!object || json_is_null(object)) return HLV_OK;
    if (!is_type(object, "TemplateProcessing"))
        return unsupported(tokenizer, "post_processor", type_of(object), "known is TemplateProcessing");
    const json_t *single = json_object_get(object, "single");
    const json_t *specials = json_object_get(object, "special_tokens");
    bool seen = false;
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *item = json_array_get(single, i);
        const char *sequence = json_string_value(json_object_get(json_object_get(item, "Sequence"), "id"));
        if (sequence && strcmp(sequence, "A") == 0 && !seen) {
            seen = true;
            continue;
        }
        hlv_status status = read_special(tokenizer, specials, item, seen ? tokenizer->suffix : tokenizer->prefix,
                                         seen ? &tokenizer->suffix_count : &tokenizer->prefix_count);
        if (status != HLV_OK) return status;
    }
    return seen ? HLV_OK : malformed(tokenizer, "single of post_processor", "a template that holds sequence A once");
}

static hlv_status read_piece(hlv_tokenizer *tokenizer, const json_t *entry, int32_t id) {
    const json_t *text = json_array_get(entry, 0), *score = json_array_get(entry, 1);
    if (json_array_size(entry) != 2 || !json_is_string(text) || !json_is_number(score) ||
        !isfinite(json_number_value(score)))
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: entry %d of the vocabulary is not [piece, score]",
                        tokenizer->name, id);
    hlv_unigram *model = &tokenizer->model;
    model->scores[id] = json_number_value(score);
    if (id == 0 || model->scores[id] < model->min_score) model->min_score = model->scores[id];
    const char *piece = json_string_value(text);
    size_t length = json_string_length(text);
    (void)hlv_tokenizer_note_byte(tokenizer, piece, length, id);
    return length ? hlv_tokenizer_add_piece(tokenizer, piece, length, id, true) : HLV_OK;
}

static hlv_status read_model(hlv_tokenizer *tokenizer, const json_t *object) {
    hlv_unigram *model = &tokenizer->model;
    if (!json_is_object(object)) return malformed(tokenizer, "model", "an object");
    if (json_object_get(object, "type") && !is_type(object, "Unigram"))
        return unsupported(tokenizer, "model", type_of(object), "known is Unigram");
    const json_t *vocab = json_object_get(object, "vocab"), *unknown = json_object_get(object, "unk_id");
    size_t count = json_array_size(vocab);
    if (count == 0 || count > INT32_MAX) return malformed(tokenizer, "vocab", "a list of pieces");
    model->piece_count = (int32_t)count;
    model->byte_fallback = member_bool(object, "byte_fallback", false);
    if (unknown && !json_is_null(unknown)) {
        json_int_t id = json_is_integer(unknown) ? json_integer_value(unknown) : -1;
        if (id < 0 || id >= model->piece_count)
            return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s: unk_id is no place in the vocabulary of %d pieces",
                            tokenizer->name, model->piece_count);
        model->unknown_id = (int32_t)id;
    }
    model->scores = hlv_alloc(tokenizer->ctx, count * sizeof *model->scores);
    hlv_status status = model->scores ? hlv_trie_create(tokenizer->ctx, &model->trie, count) : HLV_ERROR_MEMORY;
    for (size_t i = 0; i < count && status == HLV_OK; i++)
        status = read_piece(tokenizer, json_array_get(vocab, i), (int32_t)i);
    return status;
}

static hlv_status read_added(hlv_tokenizer *tokenizer, const json_t *entry) {
    const json_t *content = json_object_get(entry, "content"), *id = json_object_get(entry, "id");
    if (!json_is_string(content) || !json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) > INT32_MAX)
        return malformed(tokenizer, "an entry of added_tokens", "a content with an id");
    if (json_string_length(content) == 0) return HLV_OK;
    int32_t place = tokenizer->added_count++, before = -1;
    tokenizer->added[place] = (hlv_added_token){
        .id = (int32_t)json_integer_value(id),
        .single_word = member_bool(entry, "single_word", false),
        .lstrip = member_bool(entry, "lstrip", false),
        .rstrip = member_bool(entry, "rstrip", false),
    };
    bool normalized = member_bool(entry, "normalized", !member_bool(entry, "special", false));
    hlv_bytes text = {0};
    bool start = true;
    hlv_status status = HLV_OK;
    if (normalized)
        status =
            hlv_tokenizer_normalize(tokenizer, &text, json_string_value(content), json_string_length(content), &start);
    else
        hlv_bytes_append(&text, json_string_value(content), json_string_length(content));
    if (status == HLV_OK && text.failed)
        status = hlv_fail(tokenizer->ctx, HLV_ERROR_MEMORY, "no memory for the added tokens of %s", tokenizer->name);
    if (status == HLV_OK && (text.length == 0 || text.length > HLV_LONGEST_PIECE))
        status =
            unsupported(tokenizer, "added token", json_string_value(content), "1 to 512 bytes after normalisation are");
    hlv_trie *trie = normalized ? &tokenizer->normalized : &tokenizer->raw;
    if (status == HLV_OK) status = hlv_trie_insert(tokenizer->ctx, trie, text.data, text.length, place, &before);
    hlv_bytes_free(&text);
    return status;
}

static hlv_status read_all_added(hlv_tokenizer *tokenizer, const json_t *list) {
    hlv_status status = hlv_trie_create(tokenizer->ctx, &tokenizer->raw, 0);
    if (status == HLV_OK) status = hlv_trie_create(tokenizer->ctx, &tokenizer->normalized, 0);
    if (status != HLV_OK || !list || json_is_null(list)) return status;
    if (!json_is_array(list)) return malformed(tokenizer, "added_tokens", "a list");
    size_t count = json_array_size(list);
    tokenizer->added = calloc(count + 1, sizeof *tokenizer->added);
    if (!tokenizer->added)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_MEMORY, "no memory for the added tokens of %s", tokenizer->name);
    for (size_t i = 0; i < count && status == HLV_OK; i++)
        status = read_added(tokenizer, json_array_get(list, i));
    return status;
}

static hlv_status read_root(hlv_tokenizer *tokenizer, json_t *root) {
    static const char *const known[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                        "pre_tokenizer", "post_processor", "decoder", "model"};
    const char *key;
    json_t *value;
    json_object_foreach(root, key, value) {
        bool found = false;
        for (size_t i = 0; i < sizeof known / sizeof *known && !found; i++)
            found = strcmp(key, known[i]) == 0;
        if (!found) return unsupported(tokenizer, "the entry", key, "it is no part of a tokenizer.json that is known");
    }
    tokenizer->steps = calloc(HLV_MAX_STEPS, sizeof *tokenizer->steps);
    if (!tokenizer->steps) return hlv_fail(tokenizer->ctx, HLV_ERROR_MEMORY, "no memory for %s", tokenizer->name);
    hlv_status status = read_normalizer(tokenizer, json_object_get(root, "normalizer"));
    if (status == HLV_OK) status = read_pre_tokenizer(tokenizer, json_object_get(root, "pre_tokenizer"));
    if (status == HLV_OK) status = read_post_processor(tokenizer, json_object_get(root, "post_processor"));
    if (status == HLV_OK) status = read_model(tokenizer, json_object_get(root, "model"));
    return status == HLV_OK ? read_all_added(tokenizer, json_object_get(root, "added_tokens")) : status;
}

hlv_status hlv_tokenizer_read_json(hlv_tokenizer *tokenizer, const char *data, size_t size) {
    json_error_t error;
    json_t *root = json_loadb(data, size, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return hlv_fail(tokenizer->ctx, HLV_ERROR_FORMAT, "%s is not valid JSON: %s, at line %d, column %d",
                        tokenizer->name, error.text, error.line, error.column);
    hlv_status status = json_is_object(root) ? read_root(tokenizer, root)
                                             : malformed(tokenizer, "the file", "an object as `tokenizers` writes it");
    json_decref(root);
    return status;
}
