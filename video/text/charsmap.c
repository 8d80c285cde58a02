/* The precompiled character map of SentencePiece. */
#include "video/text/charsmap.h"

#include "video/text/unicode.h"

#include <string.h>

#define LONGEST_RULE 256        /* bytes; the rules of NFKC have at most a few dozen */
#define LONGEST_REPLACEMENT 256 /* bytes; NFKC's longest has 33 */

static uint32_t read_u32(const uint8_t *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

hlv_status hlv_charsmap_create(hlv_context *ctx, const char *name, const void *data, size_t size, hlv_charsmap *map) {
    *map = (hlv_charsmap){0};
    if (size == 0) return HLV_OK;
    if (size < 4)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: precompiled_charsmap has %zu bytes, fewer than 4", name, size);
    size_t trie = read_u32(data);
    if (trie >= size - 4 || trie < 4 || trie % 4 != 0)
        return hlv_fail(ctx, HLV_ERROR_FORMAT,
                        "%s: precompiled_charsmap has %zu bytes and says that its trie takes %zu of them; "
                        "a multiple of 4 was wanted that leaves room for the replacements",
                        name, size, trie);
    map->blob = hlv_alloc(ctx, size);
    if (!map->blob) return HLV_ERROR_MEMORY;
    memcpy(map->blob, data, size);
    map->units = trie / 4;
    map->replacements = (const char *)map->blob + 4 + trie;
    map->replacements_size = size - 4 - trie;
    return HLV_OK;
}

void hlv_charsmap_free(hlv_context *ctx, hlv_charsmap *map) {
    hlv_free(ctx, map->blob);
    *map = (hlv_charsmap){0};
}

static bool unit_at(const hlv_charsmap *map, size_t i, uint32_t *unit) {
    if (i >= map->units) return false;
    *unit = read_u32(map->blob + 4 + 4 * i);
    return true;
}

static size_t unit_offset(uint32_t unit) {
    return (size_t)(unit >> 10) << ((unit & 0x200) >> 6);
}

/* Fills in the replacement that the map's leaf names. */
static void set_replacement(const hlv_charsmap *map, hlv_charsmap_match *match, size_t length, size_t value) {
    size_t room = value < map->replacements_size ? map->replacements_size - value : 0;
    if (room > LONGEST_REPLACEMENT + 1) room = LONGEST_REPLACEMENT + 1;
    const char *end = room ? memchr(map->replacements + value, '\0', room) : NULL;
    if (!end) {
        match->broken = true;
        return;
    }
    match->length = length;
    match->text = map->replacements + value;
    match->text_length = (size_t)(end - match->text);
}

hlv_charsmap_match hlv_charsmap_find(const hlv_charsmap *map, const char *text, size_t size, bool longest) {
    hlv_charsmap_match match = {0};
    uint32_t unit;
    if (!unit_at(map, 0, &unit)) return match;
    size_t node = unit_offset(unit);
    for (size_t i = 0; i < size && i < LONGEST_RULE; i++) {
        uint8_t byte = (uint8_t)text[i];
        node ^= byte;
        if (byte == 0 || !unit_at(map, node, &unit) || (unit & 0x800000FFu) != byte) return match;
        node ^= unit_offset(unit);
        if (!(unit >> 8 & 1)) continue;
        uint32_t leaf;
        if (unit_at(map, node, &leaf))
            set_replacement(map, &match, i + 1, leaf & 0x7FFFFFFFu);
        else
            match.broken = true;
        if (match.broken || !longest) return match;
    }
    return match;
}

bool hlv_charsmap_apply(const hlv_charsmap *map, hlv_bytes *out, const char *text, size_t size) {
    size_t at = 0;
    while (at < size) {
        size_t cluster = hlv_grapheme_length(text + at, size - at);
        for (size_t used = 0, part; used < cluster; used += part) {
            const char *from = text + at + used;
            hlv_charsmap_match match = {0};
            if (used == 0 && cluster < 6) match = hlv_charsmap_find(map, from, cluster, false);
            part = cluster;
            if (match.length == 0 && !match.broken) { /* not as a whole: each character apart */
                uint32_t code;
                part = hlv_utf8_decode(&code, from, cluster - used);
                if (part == 0) part = 1;
                match = hlv_charsmap_find(map, from, part, false);
            }
            if (match.broken) return false;
            if (match.length)
                hlv_bytes_append(out, match.text, match.text_length);
            else
                hlv_bytes_append(out, from, part);
        }
        at += cluster;
    }
    return true;
}
