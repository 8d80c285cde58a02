/* Character references of HTML. */
#include "video/text/html.h"

#include <stdlib.h>
#include <string.h>

#define LONGEST_NAME 32 /* characters, a semicolon included; of HTML5's names and of what Python looks at */
#define LONGEST_CAREFUL 24

typedef struct entity {
    char name[LONGEST_NAME + 1];
    char text[8]; /* UTF-8 */
} entity;

#include "video/text/entities.inc"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* What HTML5 makes of the numbers 0x80 to 0x9F. */
static const uint16_t number_replacements[32] = {0x20AC, 0x81,   0x201A, 0x192,  0x201E, 0x2026, 0x2020, 0x2021,
                                                 0x2C6,  0x2030, 0x160,  0x2039, 0x152,  0x8D,   0x17D,  0x8F,
                                                 0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014,
                                                 0x2DC,  0x2122, 0x161,  0x203A, 0x153,  0x9D,   0x17E,  0x178};

static int compare_names(const void *key, const void *item) {
    const entity *candidate = item;
    return strcmp(key, candidate->name);
}

static const entity *find_entity(const entity *table, size_t count, const char *name) {
    return bsearch(name, table, count, sizeof *table, compare_names);
}

static void append_utf8(hlv_runes *out, const char *text) {
    size_t size = strlen(text);
    for (size_t at = 0; at < size;) {
        uint32_t code;
        size_t length = hlv_utf8_decode(&code, text + at, size - at);
        if (length == 0) return;
        hlv_runes_append(out, code);
        at += length;
    }
}

static bool is_digit(uint32_t code) {
    return code >= '0' && code <= '9';
}

static bool is_letter(uint32_t code) {
    return (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z');
}

/* The value of a digit of base 10 or 16, or -1. */
static int digit_value(uint32_t code, uint32_t base) {
    if (is_digit(code)) return (int)(code - '0');
    if (base == 16 && code >= 'a' && code <= 'f') return (int)(code - 'a' + 10);
    if (base == 16 && code >= 'A' && code <= 'F') return (int)(code - 'A' + 10);
    return -1;
}

static void append_number(hlv_runes *out, uint32_t number) {
    bool control =
        (number >= 0x1 && number <= 0x8) || number == 0xB || (number >= 0xE && number <= 0x1F) || number == 0x7F;
    bool no_character = (number >= 0xFDD0 && number <= 0xFDEF) || (number & 0xFFFE) == 0xFFFE;
    if (number == 0 || (number >= 0xD800 && number <= 0xDFFF) || number > 0x10FFFF)
        hlv_runes_append(out, 0xFFFD);
    else if (number >= 0x80 && number <= 0x9F)
        hlv_runes_append(out, number_replacements[number - 0x80]);
    else if (!control && !no_character)
        hlv_runes_append(out, number);
}

/* Reads &#123; or &#x1F; at the front, the semicolon being optional; returns its length or 0. */
static size_t read_number(uint32_t *number, const uint32_t *text, size_t count) {
    if (count < 3 || text[1] != '#') return 0;
    uint32_t base = text[2] == 'x' || text[2] == 'X' ? 16 : 10;
    size_t first = base == 16 ? 3 : 2, at = first;
    *number = 0;
    for (int digit; at < count && (digit = digit_value(text[at], base)) >= 0; at++)
        *number = *number > 0x10FFFF ? *number : *number * base + (uint32_t)digit;
    if (at == first) return 0;
    return at < count && text[at] == ';' ? at + 1 : at;
}

/* Reads what may be a name at the front, behind the ampersand: its ASCII beginning into name, its length in all
 * returned. */
static size_t read_name(char name[LONGEST_NAME + 2], const uint32_t *text, size_t count) {
    size_t at = 0, ascii = 0;
    while (at < count && at < LONGEST_NAME) {
        uint32_t c = text[at];
        if (c == '\t' || c == '\n' || c == '\f' || c == ' ' || c == '<' || c == '&' || c == '#' || c == ';') break;
        if (ascii == at && c > 0 && c < 0x80) name[ascii++] = (char)c;
        at++;
    }
    if (at > 0 && at < count && text[at] == ';') {
        if (ascii == at) name[ascii++] = ';';
        at++;
    }
    name[ascii] = '\0';
    return at;
}

/* Appends what a name of `length` characters stands for: the whole of it, or the longest known beginning and the rest.
 */
static void append_name(hlv_runes *out, char *name, const uint32_t *text, size_t length) {
    size_t ascii = strlen(name);
    for (size_t end = ascii; end >= 2; end--) {
        name[end] = '\0';
        const entity *found = find_entity(entities, COUNT(entities), name);
        if (!found) continue;
        append_utf8(out, found->text);
        hlv_runes_append_all(out, text + end, length - end);
        return;
    }
    hlv_runes_append(out, '&');
    hlv_runes_append_all(out, text, length);
}

void hlv_html_unescape(hlv_runes *out, const hlv_runes *text) {
    for (size_t at = 0; at < text->length;) {
        const uint32_t *front = text->data + at;
        size_t count = text->length - at, length = 0;
        if (front[0] == '&') {
            uint32_t number;
            char name[LONGEST_NAME + 2];
            length = read_number(&number, front, count);
            if (length) {
                append_number(out, number);
            } else if ((length = read_name(name, front + 1, count - 1)) > 0) {
                append_name(out, name, front + 1, length);
                length++;
            }
        }
        if (length == 0) {
            hlv_runes_append(out, front[0]);
            length = 1;
        }
        at += length;
    }
}

/* The text of a name in capitals whose own spelling is all small: its upper case. False if there is none, or if a part
 * of the capitals is a name itself. */
static bool append_capitals(hlv_runes *out, const char *name) {
    char small[LONGEST_NAME + 1] = "", part[LONGEST_NAME + 1];
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++) {
        if (name[i] >= 'a' && name[i] <= 'z') return false;
        small[i] = (char)(is_letter((uint8_t)name[i]) ? name[i] - 'A' + 'a' : name[i]);
    }
    for (size_t end = length; end >= 2; end--) {
        memcpy(part, name, end);
        part[end] = '\0';
        if (find_entity(entities, COUNT(entities), part)) return false;
    }
    const entity *found = find_entity(entities, COUNT(entities), small);
    if (!found) return false;
    const entity *upper = find_entity(upper_texts, COUNT(upper_texts), found->text);
    append_utf8(out, upper ? upper->text : found->text);
    return true;
}

/* Replaces one reference of 1 to 24 letters and digits and a semicolon; returns its length, or 0 if there is none. */
static size_t replace_careful(hlv_runes *out, const uint32_t *text, size_t count) {
    size_t first = count > 1 && text[1] == '#' ? 2 : 1, end = first;
    char name[LONGEST_CAREFUL + 2];
    while (end < count && end - first < LONGEST_CAREFUL && (is_digit(text[end]) || is_letter(text[end]))) {
        name[end - first] = (char)text[end];
        end++;
    }
    if (end == first || end == count || text[end] != ';') return 0;
    memcpy(name + (end - first), ";", 2);
    size_t length = end + 1;
    uint32_t number;
    if (first == 2) {
        if (read_number(&number, text, count) != length || number == ';') return 0;
        append_number(out, number);
        return length;
    }
    const entity *found = find_entity(entities, COUNT(entities), name);
    if (found)
        append_utf8(out, found->text);
    else if (!append_capitals(out, name))
        return 0;
    return length;
}

void hlv_html_unescape_careful(hlv_runes *out, const hlv_runes *text) {
    for (size_t at = 0; at < text->length;) {
        size_t length = text->data[at] == '&' ? replace_careful(out, text->data + at, text->length - at) : 0;
        if (length == 0) {
            hlv_runes_append(out, text->data[at]);
            length = 1;
        }
        at += length;
    }
}
