/* video/text/tokenizer.h - the inside of hlv_tokenizer: what its two file formats are read into. */
#ifndef HLV_TEXT_TOKENIZER_H
#define HLV_TEXT_TOKENIZER_H

#include "video/text/buffer.h"
#include "video/text/charsmap.h"
#include "video/text/text.h"
#include "video/text/unigram.h"

#define HLV_MAX_STEPS 16    /* normalisers, pre-tokenizers, special tokens of a template */
#define HLV_MAX_CONTENT 256 /* bytes of a replacement text */

/* A text may not grow beyond this by normalisation: no real map does, a hostile one might. */
#define HLV_GROWTH_FACTOR 64
#define HLV_GROWTH_BYTES ((size_t)1 << 16)

typedef enum hlv_normalizer_kind {
    HLV_NORMALIZER_PRECOMPILED,
    HLV_NORMALIZER_STRIP,
    HLV_NORMALIZER_REPLACE
} hlv_normalizer_kind;

typedef struct hlv_normalizer_step {
    hlv_normalizer_kind kind;
    hlv_charsmap map;              /* PRECOMPILED */
    bool left, right;              /* STRIP */
    char pattern[HLV_MAX_CONTENT]; /* REPLACE: a literal, replaced `repeat` or more times in a row ... */
    size_t pattern_length;
    size_t repeat; /* ... or, if 0, each time by itself */
    char content[HLV_MAX_CONTENT];
    size_t content_length;
} hlv_normalizer_step;

typedef enum hlv_prepend { HLV_PREPEND_ALWAYS, HLV_PREPEND_FIRST, HLV_PREPEND_NEVER } hlv_prepend;

typedef struct hlv_pre_step {
    bool metaspace; /* otherwise: split at white space and drop it */
    char replacement[4];
    size_t replacement_length;
    hlv_prepend prepend;
    bool split;
} hlv_pre_step;

typedef struct hlv_added_token {
    int32_t id;
    bool single_word, lstrip, rstrip;
} hlv_added_token;

struct hlv_tokenizer {
    hlv_context *ctx;
    char *name; /* of the file, for error sentences */
    hlv_unigram model;
    int32_t prefix[HLV_MAX_STEPS], suffix[HLV_MAX_STEPS]; /* ids around the pieces */
    int prefix_count, suffix_count;

    /* tokenizer.json: added tokens are cut out first, the rest is normalised, cut again, pre-tokenized, segmented. */
    hlv_normalizer_step *steps; /* step_count, at most HLV_MAX_STEPS */
    int step_count;
    hlv_pre_step pre[HLV_MAX_STEPS];
    int pre_count;
    hlv_added_token *added; /* the values of the two tries are places in it */
    int32_t added_count;
    hlv_trie raw, normalized; /* tokens matched before and after normalisation */

    /* spiece.model */
    bool is_sentencepiece;
    hlv_charsmap map;
    hlv_trie symbols; /* user-defined pieces: never normalised */
    bool dummy_prefix, remove_extra_spaces, escape_spaces, space_as_suffix;
};

/* Fill in a zeroed tokenizer from the content of a file; what was made is freed by hlv_tokenizer_free on failure too.
 */
hlv_status hlv_tokenizer_read_json(hlv_tokenizer *tokenizer, const char *data, size_t size);
hlv_status hlv_tokenizer_read_sentencepiece(hlv_tokenizer *tokenizer, const uint8_t *data, size_t size);

/* Append the pieces of valid UTF-8 text. The first may stop early once more than `enough` ids are there. */
hlv_status hlv_tokenizer_encode_json(const hlv_tokenizer *tokenizer, hlv_ids *ids, const char *text, size_t size,
                                     size_t enough);
hlv_status hlv_tokenizer_encode_sentencepiece(const hlv_tokenizer *tokenizer, hlv_ids *ids, const char *text,
                                              size_t size);

/* Normalises valid UTF-8 with the steps of tokenizer.json. *start becomes false where the text's beginning is cut off.
 */
hlv_status hlv_tokenizer_normalize(const hlv_tokenizer *tokenizer, hlv_bytes *out, const char *text, size_t size,
                                   bool *start);

/* Checks that piece number id may enter the vocabulary's trie, and enters it. */
hlv_status hlv_tokenizer_add_piece(hlv_tokenizer *tokenizer, const char *piece, size_t length, int32_t id,
                                   bool may_repeat);
/* Notes <0x00> to <0xFF> in byte_ids; returns the byte, or -1 for another piece. */
int hlv_tokenizer_note_byte(hlv_tokenizer *tokenizer, const char *piece, size_t length, int32_t id);

#endif
