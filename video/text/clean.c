/* Cleaning of prompts as diffusers' WanPipeline does it; README.md says what that is and where it differs. */
#include "video/text/html.h"
#include "video/text/mojibake.h"
#include "video/text/text.h"
#include "video/text/unicode.h"

#include <stdlib.h>
#include <string.h>

#define MOST_ROUNDS 64
#define LONGEST_SEGMENT 1000000 /* code points that ftfy looks at together */

static void take(hlv_runes *text, hlv_runes *from) {
    from->failed = from->failed || text->failed;
    hlv_runes_free(text);
    *text = *from;
}

static uint32_t straight_quote(uint32_t code) {
    if (code >= 0x201C && code <= 0x201F) return '"';
    if (code == 0x2BC || (code >= 0x2018 && code <= 0x201B)) return '\'';
    return code;
}

/* C1 controls, ligatures, width, quotes: each character by itself. */
static void fix_characters(hlv_runes *text) {
    hlv_runes out = {0};
    for (size_t i = 0; i < text->length; i++) {
        uint32_t parts[3], wide[2];
        uint32_t code = hlv_c1_as_windows(text->data[i]);
        if (code < 0x80) {
            hlv_runes_append(&out, code);
            continue;
        }
        size_t count = hlv_ligature_parts(parts, code);
        if (count == 0) parts[0] = code, count = 1;
        for (size_t p = 0; p < count; p++) {
            size_t width = hlv_usual_width(wide, parts[p]);
            for (size_t w = 0; w < width; w++)
                hlv_runes_append(&out, straight_quote(wide[w]));
        }
    }
    take(text, &out);
}

static void fix_line_breaks(hlv_runes *text) {
    size_t out = 0;
    for (size_t i = 0; i < text->length; i++) {
        uint32_t code = text->data[i];
        if (code == '\r' && i + 1 < text->length && text->data[i + 1] == '\n') continue;
        bool line_break = code == '\r' || code == 0x2028 || code == 0x2029 || code == 0x85;
        text->data[out++] = line_break ? '\n' : code;
    }
    text->length = out;
}

/* The length of a terminal escape (ESC [ digits and semicolons, a letter) at text[at], or 0. */
static size_t escape_length(const hlv_runes *text, size_t at) {
    if (text->length - at < 3 || text->data[at] != 0x1B || text->data[at + 1] != '[') return 0;
    size_t end = at + 2;
    while (end < text->length && ((text->data[end] >= '0' && text->data[end] <= '9') || text->data[end] == ';'))
        end++;
    if (end == text->length) return 0;
    uint32_t letter = text->data[end] | 0x20;
    return letter >= 'a' && letter <= 'z' && text->data[end] < 0x80 ? end + 1 - at : 0;
}

static bool is_unwanted(uint32_t code) {
    return code <= 0x8 || code == 0xB || (code >= 0xE && code <= 0x1F) || code == 0x7F ||
           (code >= 0x206A && code <= 0x206F) || code == 0xFEFF || (code >= 0xFFF9 && code <= 0xFFFC);
}

static void remove_controls(hlv_runes *text) {
    size_t out = 0;
    for (size_t i = 0; i < text->length;) { /* escapes first: what is left of a control may not become one */
        size_t escape = escape_length(text, i);
        if (escape == 0) text->data[out++] = text->data[i];
        i += escape ? escape : 1;
    }
    text->length = out;
    out = 0;
    for (size_t i = 0; i < text->length; i++)
        if (!is_unwanted(text->data[i])) text->data[out++] = text->data[i];
    text->length = out;
}

static bool holds(const hlv_runes *text, uint32_t code) {
    for (size_t i = 0; i < text->length; i++)
        if (text->data[i] == code) return true;
    return false;
}

/* All the fixes of ftfy, until nothing changes. */
static void fix_segment(hlv_runes *text, bool unescape) {
    for (int round = 0; round < MOST_ROUNDS && !text->failed; round++) {
        hlv_runes before = {0}, out = {0};
        hlv_runes_append_all(&before, text->data, text->length);
        if (unescape) {
            hlv_html_unescape_careful(&out, text);
            take(text, &out);
        }
        hlv_mojibake_fix(text);
        fix_characters(text);
        fix_line_breaks(text);
        remove_controls(text);
        hlv_runes_compose(text);
        text->failed = text->failed || before.failed;
        bool same = before.length == text->length &&
                    (text->length == 0 || memcmp(before.data, text->data, text->length * sizeof *text->data) == 0);
        hlv_runes_free(&before);
        if (same) return;
    }
}

/* Line by line. From the first line on that holds "<" nothing is unescaped: the text is HTML on purpose. */
static void fix_text(hlv_runes *text) {
    hlv_runes out = {0};
    bool unescape = true;
    for (size_t at = 0; at < text->length;) {
        size_t end = at;
        while (end < text->length && end - at < LONGEST_SEGMENT && (end == at || text->data[end - 1] != '\n'))
            end++;
        hlv_runes segment = {0};
        hlv_runes_append_all(&segment, text->data + at, end - at);
        if (holds(&segment, '<')) unescape = false;
        fix_segment(&segment, unescape);
        hlv_runes_append_all(&out, segment.data, segment.length);
        out.failed = out.failed || segment.failed;
        hlv_runes_free(&segment);
        at = end;
    }
    take(text, &out);
}

/* Runs of white space to one space, none at the ends; the result as a string, NULL if there is no memory. */
static char *collapse(const hlv_runes *text) {
    hlv_bytes out = {0};
    bool space = false;
    for (size_t i = 0; i < text->length; i++) {
        uint32_t code = text->data[i];
        if (hlv_is_python_space(code)) {
            space = out.length > 0;
            continue;
        }
        if (space) hlv_bytes_append(&out, " ", 1);
        space = false;
        char encoded[4];
        size_t length = hlv_utf8_encode(encoded, code);
        if (code) hlv_bytes_append(&out, encoded, length);
    }
    hlv_bytes_append(&out, "", 1);
    if (out.failed) hlv_bytes_free(&out);
    return out.data;
}

hlv_status hlv_prompt_clean(hlv_context *ctx, const char *prompt, char **cleaned) {
    if (!cleaned) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "hlv_prompt_clean: cleaned is NULL");
    *cleaned = NULL;
    if (!prompt) return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the prompt is NULL");
    size_t size = strlen(prompt), bad = hlv_utf8_invalid_at(prompt, size);
    if (bad != size)
        return hlv_fail(ctx, HLV_ERROR_ARGUMENT, "the prompt is not valid UTF-8: byte 0x%02X at offset %zu",
                        (unsigned)(unsigned char)prompt[bad], bad);
    hlv_runes text = {0};
    for (size_t at = 0; at < size;) {
        uint32_t code = 0;
        at += hlv_utf8_decode(&code, prompt + at, size - at);
        hlv_runes_append(&text, code);
    }
    fix_text(&text);
    for (int i = 0; i < 2; i++) {
        hlv_runes out = {0};
        hlv_html_unescape(&out, &text);
        take(&text, &out);
    }
    if (!text.failed) *cleaned = collapse(&text);
    hlv_runes_free(&text);
    return *cleaned ? HLV_OK : hlv_fail(ctx, HLV_ERROR_MEMORY, "no memory to clean a prompt of %zu bytes", size);
}
