/* video/text/html.h - character references of HTML. */
#ifndef HLV_TEXT_HTML_H
#define HLV_TEXT_HTML_H

#include "video/text/buffer.h"

/* Appends text with its character references replaced, as Python's html.unescape does: HTML5 names, those that may
 * stand without a semicolon by their longest prefix too; numbers with the replacements that HTML5 asks for. */
void hlv_html_unescape(hlv_runes *out, const hlv_runes *text);

/* The careful form of ftfy: only references that end in a semicolon, and capital spellings of names (&EACUTE;). */
void hlv_html_unescape_careful(hlv_runes *out, const hlv_runes *text);

#endif
