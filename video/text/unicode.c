/* Grapheme clusters, canonical composition and character widths. */
#include "video/text/unicode.h"

#include <stdlib.h>

enum {
    GRAPHEME_OTHER,
    GRAPHEME_CR,
    GRAPHEME_LF,
    GRAPHEME_CONTROL,
    GRAPHEME_EXTEND,
    GRAPHEME_ZWJ,
    GRAPHEME_REGIONAL,
    GRAPHEME_PREPEND,
    GRAPHEME_SPACING,
    GRAPHEME_PICTOGRAPH,
    GRAPHEME_L,
    GRAPHEME_V,
    GRAPHEME_T,
    GRAPHEME_LV,
    GRAPHEME_LVT
};
enum { CONJUNCT_NONE, CONJUNCT_CONSONANT, CONJUNCT_LINKER };

typedef struct decomposition {
    uint32_t code, first, second;
} decomposition;

#include "video/text/unicode.inc"

#define COUNT(array) (sizeof(array) / sizeof *(array))
#define HANGUL_FIRST 0xAC00u
#define HANGUL_COUNT 11172u
#define HANGUL_L 0x1100u
#define HANGUL_V 0x1161u
#define HANGUL_T 0x11A7u
#define HANGUL_V_COUNT 21u
#define HANGUL_T_COUNT 28u

uint8_t hlv_class_find(const class_range *ranges, size_t count, uint32_t code, uint8_t fallback) {
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (code > ranges[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && code >= ranges[low].first ? ranges[low].value : fallback;
}

bool hlv_is_word(uint32_t code) {
    return hlv_class_find(word_ranges, COUNT(word_ranges), code, 0) != 0;
}

static uint8_t grapheme_class(uint32_t code) {
    if (code >= HANGUL_FIRST && code < HANGUL_FIRST + HANGUL_COUNT)
        return (code - HANGUL_FIRST) % HANGUL_T_COUNT == 0 ? GRAPHEME_LV : GRAPHEME_LVT;
    return hlv_class_find(grapheme_ranges, COUNT(grapheme_ranges), code, GRAPHEME_OTHER);
}

/* What has been seen of a cluster so far. */
typedef struct cluster {
    uint8_t last;    /* grapheme class of the last character */
    bool pictograph; /* a pictograph and then only Extend */
    bool joined;     /* ... and then ZWJ */
    bool even;       /* an even number of regional indicators ends here */
    int conjunct;    /* 0, 1: a consonant with extenders, 2: with a linker among them */
} cluster;

static bool is_one_of(uint8_t class, unsigned set) {
    return (set >> class & 1u) != 0;
}

/* Whether the cluster ends before a character of this class. */
static bool breaks(const cluster *seen, uint8_t next, uint8_t conjunct) {
    const unsigned control = 1u << GRAPHEME_CR | 1u << GRAPHEME_LF | 1u << GRAPHEME_CONTROL;
    const unsigned vowel = 1u << GRAPHEME_V | 1u << GRAPHEME_LV, tail = 1u << GRAPHEME_T | 1u << GRAPHEME_LVT;
    if (seen->last == GRAPHEME_CR && next == GRAPHEME_LF) return false;          /* GB3 */
    if (is_one_of(seen->last, control) || is_one_of(next, control)) return true; /* GB4, GB5 */
    if (seen->last == GRAPHEME_L && is_one_of(next, vowel | 1u << GRAPHEME_L | 1u << GRAPHEME_LVT))
        return false;                                                                             /* GB6 */
    if (is_one_of(seen->last, vowel) && (next == GRAPHEME_V || next == GRAPHEME_T)) return false; /* GB7 */
    if (is_one_of(seen->last, tail) && next == GRAPHEME_T) return false;                          /* GB8 */
    if (next == GRAPHEME_EXTEND || next == GRAPHEME_ZWJ) return false;                            /* GB9 */
    if (next == GRAPHEME_SPACING || seen->last == GRAPHEME_PREPEND) return false;                 /* GB9a, GB9b */
    if (seen->conjunct == 2 && conjunct == CONJUNCT_CONSONANT) return false;                      /* GB9c */
    if (seen->joined && next == GRAPHEME_PICTOGRAPH) return false;                                /* GB11 */
    return !(seen->last == GRAPHEME_REGIONAL && next == GRAPHEME_REGIONAL && !seen->even);        /* GB12, GB13 */
}

static void extend_cluster(cluster *seen, uint8_t next, uint8_t conjunct) {
    bool extends = next == GRAPHEME_EXTEND || next == GRAPHEME_ZWJ;
    seen->joined = seen->pictograph && next == GRAPHEME_ZWJ;
    seen->pictograph = next == GRAPHEME_PICTOGRAPH || (seen->pictograph && next == GRAPHEME_EXTEND);
    seen->even = next == GRAPHEME_REGIONAL && seen->last == GRAPHEME_REGIONAL && !seen->even;
    if (conjunct == CONJUNCT_CONSONANT)
        seen->conjunct = 1;
    else if (conjunct == CONJUNCT_LINKER && seen->conjunct > 0)
        seen->conjunct = 2;
    else if (!extends)
        seen->conjunct = 0;
    seen->last = next;
}

size_t hlv_grapheme_length(const char *text, size_t size) {
    cluster seen = {0};
    size_t at = 0;
    while (at < size) {
        uint32_t code;
        size_t length = hlv_utf8_decode(&code, text + at, size - at);
        if (length == 0) return at > 0 ? at : 1;
        uint8_t next = grapheme_class(code);
        uint8_t conjunct = hlv_class_find(conjunct_ranges, COUNT(conjunct_ranges), code, CONJUNCT_NONE);
        if (at > 0 && breaks(&seen, next, conjunct)) return at;
        extend_cluster(&seen, next, conjunct);
        at += length;
    }
    return at;
}

static uint8_t combining_class(uint32_t code) {
    return hlv_class_find(combining_ranges, COUNT(combining_ranges), code, 0);
}

static void decompose(hlv_runes *out, uint32_t code) {
    if (code >= HANGUL_FIRST && code < HANGUL_FIRST + HANGUL_COUNT) {
        uint32_t place = code - HANGUL_FIRST;
        hlv_runes_append(out, HANGUL_L + place / (HANGUL_V_COUNT * HANGUL_T_COUNT));
        hlv_runes_append(out, HANGUL_V + place / HANGUL_T_COUNT % HANGUL_V_COUNT);
        if (place % HANGUL_T_COUNT) hlv_runes_append(out, HANGUL_T + place % HANGUL_T_COUNT);
        return;
    }
    size_t low = 0, high = COUNT(decompositions);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (code > decompositions[middle].code)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == COUNT(decompositions) || decompositions[low].code != code) {
        hlv_runes_append(out, code);
        return;
    }
    decompose(out, decompositions[low].first); /* at most a few deep: Unicode's mappings are finite */
    if (decompositions[low].second) hlv_runes_append(out, decompositions[low].second);
}

/* The composition of two code points, or 0. */
static uint32_t compose(uint32_t first, uint32_t second) {
    if (first >= HANGUL_L && first < HANGUL_L + 19 && second >= HANGUL_V && second < HANGUL_V + HANGUL_V_COUNT)
        return HANGUL_FIRST + ((first - HANGUL_L) * HANGUL_V_COUNT + (second - HANGUL_V)) * HANGUL_T_COUNT;
    if (first >= HANGUL_FIRST && first < HANGUL_FIRST + HANGUL_COUNT && (first - HANGUL_FIRST) % HANGUL_T_COUNT == 0 &&
        second > HANGUL_T && second < HANGUL_T + HANGUL_T_COUNT)
        return first + second - HANGUL_T;
    size_t low = 0, high = COUNT(compositions);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const decomposition *pair = &decompositions[compositions[middle]];
        if (first > pair->first || (first == pair->first && second > pair->second))
            low = middle + 1;
        else
            high = middle;
    }
    if (low == COUNT(compositions)) return 0;
    const decomposition *pair = &decompositions[compositions[low]];
    return pair->first == first && pair->second == second ? pair->code : 0;
}

/* A combining character; its place makes the sorting by class stable. */
typedef struct mark {
    uint32_t code;
    uint8_t class;
    size_t place;
} mark;

static int compare_marks(const void *a, const void *b) {
    const mark *x = a, *y = b;
    if (x->class != y->class) return x->class < y->class ? -1 : 1;
    return x->place < y->place ? -1 : x->place > y->place;
}

/* Canonical ordering: each run of combining characters sorted by class. */
static void order_marks(hlv_runes *runes) {
    mark *marks = NULL;
    size_t capacity = 0;
    for (size_t i = 0; i < runes->length; i++) {
        size_t end = i;
        while (end < runes->length && combining_class(runes->data[end]) != 0)
            end++;
        if (end - i < 2) {
            i = end > i ? end - 1 : i;
            continue;
        }
        if (end - i > capacity) {
            capacity = runes->length - i;
            mark *larger = realloc(marks, capacity * sizeof *marks);
            if (!larger) {
                runes->failed = true;
                break;
            }
            marks = larger;
        }
        for (size_t k = i; k < end; k++)
            marks[k - i] = (mark){runes->data[k], combining_class(runes->data[k]), k};
        qsort(marks, end - i, sizeof *marks, compare_marks);
        for (size_t k = i; k < end; k++)
            runes->data[k] = marks[k - i].code;
        i = end - 1;
    }
    free(marks);
}

void hlv_runes_compose(hlv_runes *runes) {
    size_t plain = 0; /* below U+0300 nothing combines */
    while (plain < runes->length && runes->data[plain] < 0x300)
        plain++;
    if (plain == runes->length) return;
    hlv_runes apart = {0};
    for (size_t i = 0; i < runes->length; i++)
        decompose(&apart, runes->data[i]);
    order_marks(&apart);
    if (apart.failed) {
        hlv_runes_free(&apart);
        runes->failed = true;
        return;
    }
    size_t out = 0, starter = SIZE_MAX;
    uint8_t last = 0; /* class of the character before, among those kept after the starter */
    for (size_t i = 0; i < apart.length; i++) {
        uint32_t code = apart.data[i];
        uint8_t class = combining_class(code);
        bool adjacent = starter != SIZE_MAX && starter + 1 == out;
        uint32_t joined = starter != SIZE_MAX && (adjacent || last < class) ? compose(apart.data[starter], code) : 0;
        if (joined) {
            apart.data[starter] = joined;
            continue;
        }
        if (class == 0) starter = out;
        last = class;
        apart.data[out++] = code;
    }
    apart.length = out;
    hlv_runes_free(runes);
    *runes = apart;
}

size_t hlv_usual_width(uint32_t out[2], uint32_t code) {
    out[0] = code;
    if (code == 0x3000) out[0] = ' ';
    if (code >= 0xFF01 && code <= 0xFF5E) out[0] = code - 0xFF01 + '!';
    if (code < 0xFF5F || code >= 0xFF5F + COUNT(width_forms) || width_forms[code - 0xFF5F][0] == 0) return 1;
    out[0] = width_forms[code - 0xFF5F][0];
    out[1] = width_forms[code - 0xFF5F][1];
    return out[1] ? 2 : 1;
}
