/* video/text/charsmap.h - the precompiled character map of SentencePiece: replacements found by a double-array trie.
 *
 * Layout: u32 little endian size of the trie in bytes; the trie's u32 units (Darts: leaf bit 8, label in bits 0-7 and
 * 31, offset (u >> 10) << ((u & 0x200) >> 6), value u & 0x7FFFFFFF); then NUL-terminated replacements. */
#ifndef HLV_TEXT_CHARSMAP_H
#define HLV_TEXT_CHARSMAP_H

#include "video/core/context.h"
#include "video/text/buffer.h"

typedef struct hlv_charsmap {
    uint8_t *blob; /* owned */
    size_t units;  /* of the trie */
    const char *replacements;
    size_t replacements_size;
} hlv_charsmap;

/* Copies size bytes; `name` is for the error sentence. */
hlv_status hlv_charsmap_create(hlv_context *ctx, const char *name, const void *data, size_t size, hlv_charsmap *map);
void hlv_charsmap_free(hlv_context *ctx, hlv_charsmap *map);

typedef struct hlv_charsmap_match {
    size_t length; /* bytes of text replaced; 0 for no match */
    const char *text;
    size_t text_length;
    bool broken; /* the map points outside itself */
} hlv_charsmap_match;

/* The shortest or longest rule that text begins with. */
hlv_charsmap_match hlv_charsmap_find(const hlv_charsmap *map, const char *text, size_t size, bool longest);

/* Normalises as the `tokenizers` library does: a grapheme cluster of at most 5 bytes that begins with a rule is
 * replaced whole by the shortest such rule's text; of other clusters each character apart. False if the map is broken.
 */
bool hlv_charsmap_apply(const hlv_charsmap *map, hlv_bytes *out, const char *text, size_t size);

#endif
