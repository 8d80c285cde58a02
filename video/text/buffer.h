/* video/text/buffer.h - growing strings and UTF-8, for the parts of video/text. */
#ifndef HLV_TEXT_BUFFER_H
#define HLV_TEXT_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that grow. After a failed allocation `failed` stays true and further appends do nothing, so that callers check
 * once at the end. {0} is an empty buffer; free with hlv_bytes_free. */
typedef struct hlv_bytes {
    char *data;
    size_t length, capacity;
    bool failed;
} hlv_bytes;

void hlv_bytes_append(hlv_bytes *bytes, const char *data, size_t length);
void hlv_bytes_free(hlv_bytes *bytes);

/* The same for code points. */
typedef struct hlv_runes {
    uint32_t *data;
    size_t length, capacity;
    bool failed;
} hlv_runes;

void hlv_runes_append(hlv_runes *runes, uint32_t code);
void hlv_runes_append_all(hlv_runes *runes, const uint32_t *codes, size_t count);
void hlv_runes_free(hlv_runes *runes);

/* Length in bytes of the UTF-8 sequence at text (1 to 4) and its code point; 0 where the bytes are not UTF-8: overlong
 * forms, surrogates and numbers beyond U+10FFFF are not. Reads no more than size bytes. */
size_t hlv_utf8_decode(uint32_t *code, const char *text, size_t size);
/* Writes 1 to 4 bytes; code is at most U+10FFFF and no surrogate. */
size_t hlv_utf8_encode(char out[4], uint32_t code);
/* The offset of the first byte that is not part of valid UTF-8, or size if there is none. */
size_t hlv_utf8_invalid_at(const char *text, size_t size);

/* White space as Unicode defines it; Python's str counts U+001C to U+001F as well. */
bool hlv_is_space(uint32_t code);
bool hlv_is_python_space(uint32_t code);

#endif
