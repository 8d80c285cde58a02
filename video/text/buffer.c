/* Growing strings and UTF-8. */
#include "video/text/buffer.h"

#include <stdlib.h>
#include <string.h>

/* Makes room for `extra` more elements of `size` bytes; returns false and leaves everything as it was on failure. */
static bool grow(void **data, size_t *capacity, size_t length, size_t extra, size_t size) {
    if (extra <= *capacity - length) return true;
    if (extra > SIZE_MAX / size / 2 - length) return false;
    size_t wanted = length + extra;
    size_t larger = wanted + wanted / 2 + 16;
    if (larger > SIZE_MAX / size) return false;
    void *grown = realloc(*data, larger * size);
    if (!grown) return false;
    *data = grown;
    *capacity = larger;
    return true;
}

void hlv_bytes_append(hlv_bytes *bytes, const char *data, size_t length) {
    if (bytes->failed || length == 0) return;
    void *memory = bytes->data;
    bytes->failed = !grow(&memory, &bytes->capacity, bytes->length, length, 1);
    bytes->data = memory;
    if (bytes->failed) return;
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

void hlv_bytes_free(hlv_bytes *bytes) {
    free(bytes->data);
    *bytes = (hlv_bytes){0};
}

void hlv_runes_append_all(hlv_runes *runes, const uint32_t *codes, size_t count) {
    if (runes->failed || count == 0) return;
    void *memory = runes->data;
    runes->failed = !grow(&memory, &runes->capacity, runes->length, count, sizeof *codes);
    runes->data = memory;
    if (runes->failed) return;
    memcpy(runes->data + runes->length, codes, count * sizeof *codes);
    runes->length += count;
}

void hlv_runes_append(hlv_runes *runes, uint32_t code) {
    hlv_runes_append_all(runes, &code, 1);
}

void hlv_runes_free(hlv_runes *runes) {
    free(runes->data);
    *runes = (hlv_runes){0};
}

size_t hlv_utf8_decode(uint32_t *code, const char *text, size_t size) {
    static const struct {
        uint8_t mask, lead;
        uint32_t smallest;
    } forms[] = {{0x80, 0x00, 0}, {0xE0, 0xC0, 0x80}, {0xF0, 0xE0, 0x800}, {0xF8, 0xF0, 0x10000}};
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t length = 1; length <= 4 && length <= size; length++) {
        if ((bytes[0] & forms[length - 1].mask) != forms[length - 1].lead) continue;
        uint32_t value = bytes[0] & (uint8_t)~forms[length - 1].mask;
        for (size_t i = 1; i < length; i++) {
            if ((bytes[i] & 0xC0) != 0x80) return 0;
            value = value << 6 | (bytes[i] & 0x3Fu);
        }
        if (value < forms[length - 1].smallest || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return 0;
        *code = value;
        return length;
    }
    return 0;
}

size_t hlv_utf8_encode(char out[4], uint32_t code) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t length = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    static const uint8_t leads[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = length - 1; i > 0; i--, code >>= 6)
        out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)(leads[length] | code);
    return length;
}

size_t hlv_utf8_invalid_at(const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        uint32_t code;
        size_t length = hlv_utf8_decode(&code, text + at, size - at);
        if (length == 0) return at;
        at += length;
    }
    return size;
}

bool hlv_is_space(uint32_t code) {
    return (code >= 0x9 && code <= 0xD) || code == ' ' || code == 0x85 || code == 0xA0 || code == 0x1680 ||
           (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

bool hlv_is_python_space(uint32_t code) {
    return hlv_is_space(code) || (code >= 0x1C && code <= 0x1F);
}
