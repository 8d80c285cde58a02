/* video/text/unigram.h - a unigram language model over pieces: the segmentation with the greatest sum of scores.
 * Source: Kudo, "Subword Regularization", arXiv 1804.10959, section 3; ties, unknown characters and rounding as the
 * `tokenizers` and `sentencepiece` libraries have them. */
#ifndef HLV_TEXT_UNIGRAM_H
#define HLV_TEXT_UNIGRAM_H

#include "video/core/context.h"

/* A set of byte strings, each with a number. One hash table from (node, byte) to node. */
typedef struct hlv_trie {
    uint64_t *slots;   /* key in the upper 40 bits: node and byte; node reached in the lower 24; 0 is free */
    size_t slot_count; /* a power of two */
    int32_t *values;   /* of each node, or -1 */
    size_t node_count, node_capacity;
} hlv_trie;

#define HLV_LONGEST_PIECE 512 /* bytes: bounds the walk from each place of a text */

/* keys: about how many strings will be inserted; a hint. */
hlv_status hlv_trie_create(hlv_context *ctx, hlv_trie *trie, size_t keys);
void hlv_trie_free(hlv_context *ctx, hlv_trie *trie);
/* Gives key the value; *before is the value it had, or -1. key has 1 to HLV_LONGEST_PIECE bytes. */
hlv_status hlv_trie_insert(hlv_context *ctx, hlv_trie *trie, const char *key, size_t length, int32_t value,
                           int32_t *before);
/* One step from node (0 is the root) along a byte; 0 if there is none. */
uint32_t hlv_trie_step(const hlv_trie *trie, uint32_t node, uint8_t byte);
int32_t hlv_trie_find(const hlv_trie *trie, const char *key, size_t length); /* value, or -1 */

typedef struct hlv_unigram {
    hlv_trie trie;  /* piece to id */
    double *scores; /* of each id */
    int32_t piece_count;
    int32_t unknown_id; /* -1: none */
    double min_score;
    /* True: sums are kept in float, and an unknown piece always becomes bytes where there is byte_fallback. False, as
     * in tokenizers: sums in double, and a run of unknown characters that is a piece by itself is that piece. */
    bool as_sentencepiece;
    bool byte_fallback;
    int32_t byte_ids[256]; /* of <0x00> to <0xFF>, or -1 */
} hlv_unigram;

void hlv_unigram_free(hlv_context *ctx, hlv_unigram *model);

/* Ids, growing as needed. */
typedef struct hlv_ids {
    int32_t *data;
    size_t length, capacity;
} hlv_ids;

/* Appends an id; HLV_ERROR_MEMORY with its sentence on failure. Free data with free(). */
hlv_status hlv_ids_append(hlv_context *ctx, hlv_ids *ids, int32_t id);

/* Appends the ids of text (valid UTF-8). A run of unknown characters gives one unknown id, or its bytes. `name` is for
 * the error sentence where an unknown character meets a model without an unknown id. */
hlv_status hlv_unigram_encode(hlv_context *ctx, const char *name, const hlv_unigram *model, hlv_ids *ids,
                              const char *text, size_t size);

#endif
