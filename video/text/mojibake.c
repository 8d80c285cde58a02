/* Mojibake: detection by a table of unlikely sequences, repair by encoding the text back and decoding it as UTF-8. */
#include "video/text/mojibake.h"

#include "video/text/unicode.h"

#include <string.h>

#define DEEPEST_PART 8 /* parts within parts; real text has one or two levels */

#define LONGEST_RULE 7 /* characters */
#define MOST_STEPS 64

/* A set of character classes. */
typedef struct class_set {
    uint64_t low, high;
} class_set;

typedef struct badness_rule {
    bool anchored; /* at the beginning of the text only */
    uint8_t length;
    class_set classes[LONGEST_RULE];
} badness_rule;

typedef struct charmap {
    bool sloppy;          /* U+FFFD stands for a lost byte, written 0x1A */
    bool restores_spaces; /* a space may be a lost byte 0xA0 */
    uint16_t upper[128];  /* code points of the bytes from 0x80 on */
} charmap;

typedef struct ligature {
    uint16_t code, parts[3];
} ligature;

#include "video/text/mojibake.inc"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define LOST_BYTE 0x1A

static uint8_t class_of(uint32_t code) {
    uint8_t class = hlv_class_find(mojibake_ranges, COUNT(mojibake_ranges), code, UINT8_MAX);
    if (class != UINT8_MAX) return class;
    return hlv_is_word(code) ? CLASS_OTHER_WORD : hlv_is_python_space(code) ? CLASS_OTHER_SPACE : CLASS_OTHER;
}

static bool in_set(class_set set, uint8_t class) {
    return ((class < 64 ? set.low >> class : set.high >> (class - 64)) & 1) != 0;
}

static bool matches(const badness_rule *rule, const uint8_t classes[LONGEST_RULE], size_t count) {
    if (rule->length > count) return false;
    for (size_t i = 0; i < rule->length; i++)
        if (!in_set(rule->classes[i], classes[i])) return false;
    return true;
}

/* Whether text holds a sequence that good text does not. */
static bool is_bad(const uint32_t *text, size_t count) {
    uint8_t classes[LONGEST_RULE] = {0}; /* of the characters from `at` on */
    for (size_t i = 0; i + 1 < LONGEST_RULE && i < count; i++)
        classes[i + 1] = class_of(text[i]);
    for (size_t at = 0; at < count; at++) {
        memmove(classes, classes + 1, LONGEST_RULE - 1);
        if (at + LONGEST_RULE <= count) classes[LONGEST_RULE - 1] = class_of(text[at + LONGEST_RULE - 1]);
        for (size_t r = 0; r < COUNT(badness_rules); r++)
            if ((at == 0 || !badness_rules[r].anchored) && matches(&badness_rules[r], classes, count - at)) return true;
    }
    return false;
}

/* The byte that a code point has in an encoding, or -1. */
static int encode_one(const charmap *map, uint32_t code) {
    if (map->sloppy && code == 0xFFFD) return LOST_BYTE;
    if (code < 0x80) return map->sloppy && code == LOST_BYTE ? -1 : (int)code;
    for (int i = 0; i < 128; i++)
        if (map->upper[i] == code) return 0x80 + i;
    return -1;
}

static bool encode_all(hlv_bytes *out, const charmap *map, const hlv_runes *text) {
    for (size_t i = 0; i < text->length; i++) {
        int byte = encode_one(map, text->data[i]);
        if (byte < 0) return false;
        char c = (char)byte;
        hlv_bytes_append(out, &c, 1);
    }
    return true;
}

/* A byte pattern of 2 to 6 byte sets; each is a list of ranges. Byte patterns below are written as strings in which
 * each letter names a set of byte_sets. */
typedef struct byte_set {
    char letter;
    const char *ranges; /* pairs of first and last */
    size_t size;
} byte_set;

#define RANGES(text) text, sizeof(text) - 1
static const byte_set byte_sets[] = {
    {' ', RANGES("\x20\x20")},
    {'?', RANGES("??")},
    {'!', RANGES("\x1a\x1a")},         /* a lost byte */
    {'C', RANGES("\x80\xbf")},         /* a continuation byte */
    {'c', RANGES("\x1a\x1a\x80\xbf")}, /* ... or a lost one */
    {'q', RANGES("\x1a\x1a??")},       /* a lost byte, or the ? that some programs write for it */
    {'Q', RANGES("\x1a\x1a??\x80\xbf")},
    {'k', RANGES("\x80\x84\x86\x9f\xa1\xbf")},                 /* continuations beside which a space was 0xA0 */
    {'2', RANGES("\xc2\xc3\xc5\xc5\xce\xce\xd0\xd0\xd9\xd9")}, /* leads of two bytes that 0xA0 is likely to follow */
    {'e', RANGES("\xe2\xe3")},
    {'E', RANGES("\xe0\xe3")},
    {'F', RANGES("\xf0\xf0")},
    {'d', RANGES("\xc2\xdf")},
    {'a', RANGES("\xc2\xc3")},
    {'D', RANGES("\xed\xed")},
    {'h', RANGES("\xa0\xaf")}, /* second byte of a high surrogate */
    {'l', RANGES("\xb0\xbf")}, /* ... of a low one */
    {'3', RANGES("\xe0\xef")},
    {'4', RANGES("\xf0\xf4")},
};

static bool in_byte_set(char letter, uint8_t byte) {
    for (size_t s = 0; s < COUNT(byte_sets); s++) {
        if (byte_sets[s].letter != letter) continue;
        for (size_t i = 0; i + 1 < byte_sets[s].size; i += 2)
            if (byte >= (uint8_t)byte_sets[s].ranges[i] && byte <= (uint8_t)byte_sets[s].ranges[i + 1]) return true;
        return false;
    }
    return false;
}

/* The length of the first of the patterns that bytes begin with, or 0. */
static size_t match_bytes(const char *const *patterns, size_t pattern_count, const char *bytes, size_t size) {
    for (size_t p = 0; p < pattern_count; p++) {
        size_t length = strlen(patterns[p]), i = 0;
        while (i < length && i < size && in_byte_set(patterns[p][i], (uint8_t)bytes[i]))
            i++;
        if (i == length) return length;
    }
    return 0;
}

/* UTF-8 in which a byte 0xA0 became a space; leads are kept to those that make likely characters. */
static const char *const spaced_patterns[] = {"2 ", "e k", "Ek ", "F CC", "FC C", "FCC "};
/* UTF-8 in which a continuation byte was lost. */
static const char *const lossy_patterns[] = {"d!", "a?", "DhqDlQ", "DhQDlq", "3qc", "3cq", "4qcc", "4cqc", "4ccq", "!"};

static bool starts_with(const char *bytes, size_t size, const char *prefix) {
    size_t length = strlen(prefix);
    return size >= length && memcmp(bytes, prefix, length) == 0;
}

/* Whether bytes begin with 0xC3 and a space that is a word `à` of its own; Portuguese words that go on are excepted. */
static bool is_a_grave(const char *bytes, size_t size) {
    static const char *const going_on[] = {" ", "quele", "quela", "quilo", "s "};
    if (!starts_with(bytes, size, "\xc3 ")) return false;
    for (size_t i = 0; i < COUNT(going_on); i++)
        if (starts_with(bytes + 2, size - 2, going_on[i])) return false;
    return true;
}

/* Puts back the bytes 0xA0 that became spaces, if any. */
static void restore_spaces(hlv_bytes *bytes) {
    bool any = false;
    for (size_t i = 0; i < bytes->length && !any; i++)
        any = match_bytes(spaced_patterns, COUNT(spaced_patterns), bytes->data + i, bytes->length - i) > 0;
    if (!any) return;
    hlv_bytes out = {0};
    for (size_t i = 0; i < bytes->length;) {
        bool grave = is_a_grave(bytes->data + i, bytes->length - i);
        hlv_bytes_append(&out, grave ? "\xc3\xa0 " : bytes->data + i, grave ? 3 : 1);
        i += grave ? 2 : 1;
    }
    for (size_t i = 0; i < out.length && !out.failed;) {
        size_t length = match_bytes(spaced_patterns, COUNT(spaced_patterns), out.data + i, out.length - i);
        for (size_t k = i; k < i + length; k++)
            if (out.data[k] == ' ') out.data[k] = (char)0xA0;
        i += length ? length : 1;
    }
    hlv_bytes_free(bytes);
    *bytes = out;
}

/* Writes U+FFFD for sequences that lost a byte. */
static void replace_lossy(hlv_bytes *bytes) {
    hlv_bytes out = {0};
    for (size_t i = 0; i < bytes->length;) {
        size_t length = match_bytes(lossy_patterns, COUNT(lossy_patterns), bytes->data + i, bytes->length - i);
        hlv_bytes_append(&out, length ? "\xef\xbf\xbd" : bytes->data + i, length ? 3 : 1);
        i += length ? length : 1;
    }
    hlv_bytes_free(bytes);
    *bytes = out;
}

/* Decodes one of the forms beyond UTF-8: a pair of surrogates of three bytes each, or Java's NUL. */
static size_t decode_variant(uint32_t *code, const char *text, size_t size) {
    static const char *const pair[] = {"DhCDlC"};
    const uint8_t *b = (const uint8_t *)text;
    bool last_line = size == 2 && b[1] == '\n'; /* ftfy takes 0xC0 before a final line feed for a NUL, too */
    if (size >= 2 && b[0] == 0xC0 && (b[1] == 0x80 || last_line)) {
        *code = 0;
        return 2;
    }
    if (match_bytes(pair, 1, text, size) == 0) return 0;
    *code = 0x10000 + ((b[1] & 0x0Fu) << 16 | (b[2] & 0x3Fu) << 10 | (b[4] & 0x0Fu) << 6 | (b[5] & 0x3Fu));
    return 6;
}

static bool decode_all(hlv_runes *out, const hlv_bytes *bytes) {
    for (size_t at = 0; at < bytes->length;) {
        uint32_t code;
        size_t length = decode_variant(&code, bytes->data + at, bytes->length - at);
        if (length == 0) length = hlv_utf8_decode(&code, bytes->data + at, bytes->length - at);
        if (length == 0) return false;
        hlv_runes_append(out, code);
        at += length;
    }
    return true;
}

static bool are_equal(const hlv_runes *runes, const uint32_t *codes, size_t count) {
    return runes->length == count && (count == 0 || memcmp(runes->data, codes, count * sizeof *codes) == 0);
}

/* Replaces text by the UTF-8 that it was before it was read in this encoding; false if it is none. *changed tells
 * whether the text is another one now: lost characters by themselves stay as they are. */
static bool decode_as(const charmap *map, hlv_runes *text, bool *changed) {
    hlv_bytes bytes = {0};
    hlv_runes out = {0};
    bool good = encode_all(&bytes, map, text);
    if (good && map->restores_spaces) restore_spaces(&bytes);
    if (good && map->sloppy) replace_lossy(&bytes);
    good = good && decode_all(&out, &bytes);
    if (bytes.failed || out.failed) text->failed = true;
    hlv_bytes_free(&bytes);
    if (!good || text->failed) {
        hlv_runes_free(&out);
        return false;
    }
    *changed = !are_equal(&out, text->data, text->length);
    hlv_runes_free(text);
    *text = out;
    return true;
}

/* The length of a run of what looks like misread UTF-8 at text[at], or 0. */
static size_t misread_length(const hlv_runes *text, size_t at) {
    const class_set first[] = {utf8_first_of_2, utf8_first_of_3, utf8_first_of_4};
    if (at > 0 && in_set(utf8_continuation_strict, class_of(text->data[at - 1]))) return 0;
    size_t end = at;
    for (bool more = true; more;) {
        more = false;
        for (size_t kind = 0; kind < COUNT(first) && !more; kind++) {
            size_t length = kind + 2, i = 1;
            if (text->length - end < length || !in_set(first[kind], class_of(text->data[end]))) continue;
            while (i < length && in_set(utf8_continuation, class_of(text->data[end + i])))
                i++;
            more = i == length;
            if (more) end += length;
        }
    }
    return end - at;
}

static void fix_at_depth(hlv_runes *text, int depth);

/* Mends parts of the text that look misread by themselves. Returns whether anything changed. */
static bool fix_parts(hlv_runes *text, int depth) {
    hlv_runes out = {0};
    bool changed = false;
    for (size_t at = 0; at < text->length;) {
        size_t length = misread_length(text, at);
        if (length == 0 || length == text->length || depth == DEEPEST_PART || !is_bad(text->data + at, length)) {
            length = length ? length : 1;
            hlv_runes_append_all(&out, text->data + at, length);
            at += length;
            continue;
        }
        hlv_runes part = {0};
        hlv_runes_append_all(&part, text->data + at, length);
        fix_at_depth(&part, depth + 1);
        changed = changed || !are_equal(&part, text->data + at, length);
        hlv_runes_append_all(&out, part.data, part.length);
        out.failed = out.failed || part.failed;
        hlv_runes_free(&part);
        at += length;
    }
    text->failed = text->failed || out.failed;
    if (!changed || text->failed) {
        hlv_runes_free(&out);
        return false;
    }
    hlv_runes_free(text);
    *text = out;
    return true;
}

/* Reads C1 controls as Windows-1252. */
static bool fix_c1(hlv_runes *text) {
    bool changed = false;
    for (size_t i = 0; i < text->length; i++) {
        uint32_t code = hlv_c1_as_windows(text->data[i]);
        changed = changed || code != text->data[i];
        text->data[i] = code;
    }
    return changed;
}

/* One step of mending; returns whether it changed the text. */
static bool fix_step(hlv_runes *text, int depth) {
    bool ascii = true;
    for (size_t i = 0; i < text->length && ascii; i++)
        ascii = text->data[i] < 0x80;
    if (ascii || !is_bad(text->data, text->length)) return false;
    bool changed = false;
    for (size_t m = 0; m < COUNT(charmaps) && !text->failed; m++)
        if (decode_as(&charmaps[m], text, &changed)) return changed;
    return !text->failed && (fix_parts(text, depth) || fix_c1(text));
}

static void fix_at_depth(hlv_runes *text, int depth) {
    for (int step = 0; step < MOST_STEPS && !text->failed; step++)
        if (!fix_step(text, depth)) return;
}

void hlv_mojibake_fix(hlv_runes *text) {
    fix_at_depth(text, 0);
}

uint32_t hlv_c1_as_windows(uint32_t code) {
    return code >= 0x80 && code <= 0x9F ? windows_1252_c1[code - 0x80] : code;
}

size_t hlv_ligature_parts(uint32_t out[3], uint32_t code) {
    for (size_t i = 0; i < COUNT(ligatures); i++) {
        if (ligatures[i].code != code) continue;
        size_t count = 0;
        for (; count < 3 && ligatures[i].parts[count]; count++)
            out[count] = ligatures[i].parts[count];
        return count;
    }
    return 0;
}
