/* video/text/mojibake.h - UTF-8 that was read as another encoding, mended by the method of the Python library ftfy 6.3
 * (Robyn Speer, Apache-2.0): text is touched only where it holds sequences that good text does not. */
#ifndef HLV_TEXT_MOJIBAKE_H
#define HLV_TEXT_MOJIBAKE_H

#include "video/text/buffer.h"

/* Mends runes in place, as often as it helps. Texts that no encoding explains as a whole are mended in parts. */
void hlv_mojibake_fix(hlv_runes *text);

/* C1 controls (U+0080 to U+009F) as the Windows-1252 characters that they were meant to be. */
uint32_t hlv_c1_as_windows(uint32_t code);

/* Code points of a Latin ligature or digraph taken apart, at most 3; 0 for any other character. */
size_t hlv_ligature_parts(uint32_t out[3], uint32_t code);

#endif
