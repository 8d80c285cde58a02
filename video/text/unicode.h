/* video/text/unicode.h - Unicode properties and algorithms that cleaning and normalisation need. Tables: unicode.inc.
 */
#ifndef HLV_TEXT_UNICODE_H
#define HLV_TEXT_UNICODE_H

#include "video/text/buffer.h"

/* A run of code points and what they have in common; tables of these are sorted. */
typedef struct class_range {
    uint32_t first, last;
    uint8_t value;
} class_range;

/* The value of the range that holds code, or fallback. */
uint8_t hlv_class_find(const class_range *ranges, size_t count, uint32_t code, uint8_t fallback);

/* Letters, digits, underscore, as \w of a regular expression. */
bool hlv_is_word(uint32_t code);

/* Length in bytes of the first extended grapheme cluster of valid UTF-8 text (Unicode Annex 29, rules GB3 to GB13, GB9c
 * included); size is at least 1. */
size_t hlv_grapheme_length(const char *text, size_t size);

/* Replaces runes by their canonical composition (NFC). */
void hlv_runes_compose(hlv_runes *runes);

/* The usual form of a halfwidth or fullwidth character: 1 or 2 code points into out; code itself if it is not one. */
size_t hlv_usual_width(uint32_t out[2], uint32_t code);

#endif
