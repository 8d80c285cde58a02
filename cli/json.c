#include "cli/json.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

/* Bytes of the well-formed UTF-8 character at text, 0 if there is none (Unicode, table 3-7). */
static size_t character(const unsigned char *text) {
    static const struct {
        unsigned char first, last, low, high; /* of the first byte; of the second */
        size_t length;
    } table[] = {{0x00, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
                 {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
                 {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (text[0] < table[i].first || text[0] > table[i].last) continue;
        if (table[i].length > 1 && (text[1] < table[i].low || text[1] > table[i].high)) return 0;
        for (size_t j = 2; j < table[i].length; j++)
            if ((text[j] & 0xc0) != 0x80) return 0;
        return table[i].length;
    }
    return 0;
}

static void quote(FILE *out, const char *text) {
    fputc('"', out);
    while (*text != '\0') {
        size_t length = character((const unsigned char *)text);
        if (length == 0) {
            fputs("\\ufffd", out);
            length = 1;
        } else if (*text == '"' || *text == '\\') {
            fprintf(out, "\\%c", *text);
        } else if ((unsigned char)*text < 0x20) {
            fprintf(out, "\\u%04x", (unsigned)*text);
        } else {
            fwrite(text, 1, length, out);
        }
        text += length;
    }
    fputc('"', out);
}

static void begin(json_writer *json, const char *key) {
    if (json->depth > 0) fprintf(json->out, "%s\n%*s", json->first ? "" : ",", 2 * json->depth, "");
    json->first = false;
    if (key != NULL) {
        quote(json->out, key);
        fputs(": ", json->out);
    }
}

void json_open(json_writer *json, const char *key, char bracket) {
    begin(json, key);
    fputc(bracket, json->out);
    json->depth++;
    json->first = true;
}

void json_close(json_writer *json, char bracket) {
    json->depth--;
    if (!json->first) fprintf(json->out, "\n%*s", 2 * json->depth, "");
    fputc(bracket, json->out);
    json->first = false;
    if (json->depth == 0) fputc('\n', json->out);
}

void json_text(json_writer *json, const char *key, const char *text) {
    begin(json, key);
    if (text == NULL)
        fputs("null", json->out);
    else
        quote(json->out, text);
}

void json_whole(json_writer *json, const char *key, int64_t value) {
    begin(json, key);
    fprintf(json->out, "%" PRId64, value);
}

void json_seed(json_writer *json, const char *key, uint64_t value) {
    begin(json, key);
    fprintf(json->out, "%" PRIu64, value);
}

void json_number(json_writer *json, const char *key, double value) {
    begin(json, key);
    if (isfinite(value))
        fprintf(json->out, "%.9g", value);
    else
        fputs("null", json->out);
}

void json_bool(json_writer *json, const char *key, bool value) {
    begin(json, key);
    fputs(value ? "true" : "false", json->out);
}
