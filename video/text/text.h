/* video/text/text.h - prompt to text embedding: cleaning, tokenizer, UMT5 encoder. */
#ifndef HLV_TEXT_H
#define HLV_TEXT_H

#include "video/nn/nn.h"
#include "video/weights/config.h"

/* Cleaning as the Wan pipeline does it: mend mojibake, unescape HTML twice, collapse white space, strip. The result is
 * the caller's, freed with free(). Fails on bytes that are not UTF-8. */
hlv_status hlv_prompt_clean(hlv_context *ctx, const char *prompt, char **cleaned);

/* T5-style SentencePiece unigram tokenizer, read from tokenizer.json if present, else spiece.model. */
typedef struct hlv_tokenizer hlv_tokenizer;
hlv_status hlv_tokenizer_open(hlv_context *ctx, const char *tokenizer_dir, hlv_tokenizer **tokenizer);
/* The same from the content of a file in memory, which is not kept. */
typedef enum hlv_tokenizer_kind {
    HLV_TOKENIZER_JSON = 0,         /* tokenizer.json of the `tokenizers` library, model Unigram */
    HLV_TOKENIZER_SENTENCEPIECE = 1 /* spiece.model */
} hlv_tokenizer_kind;
hlv_status hlv_tokenizer_from_memory(hlv_context *ctx, hlv_tokenizer_kind kind, const void *bytes, size_t size,
                                     hlv_tokenizer **tokenizer);
void hlv_tokenizer_free(hlv_tokenizer *tokenizer);
/* Pieces and then </s>, at most max_tokens in all; *truncated says whether pieces were cut. ids: max_tokens places. */
hlv_status hlv_tokenizer_encode(const hlv_tokenizer *tokenizer, const char *text, int max_tokens, int32_t *ids,
                                int *count, bool *truncated);

/* UMT5 encoder: out [count, d_model] for the real tokens only; rows beyond are zeros by definition (see wan21 notes).
 */
typedef struct hlv_text_encoder hlv_text_encoder;
hlv_status hlv_text_encoder_open(hlv_context *ctx, const char *encoder_dir, hla_dtype dtype,
                                 hlv_text_encoder **encoder);
void hlv_text_encoder_free(hlv_text_encoder *encoder);
const hlv_text_config *hlv_text_encoder_config(const hlv_text_encoder *encoder);
hlv_status hlv_text_encoder_forward(const hlv_text_encoder *encoder, float *out, const int32_t *ids, int count);

#endif
