/* video/text/text.h - prompt to text embedding: cleaning, tokenizer, UMT5 encoder. */
#ifndef HLV_TEXT_H
#define HLV_TEXT_H

#include "video/nn/nn.h"
#include "video/weights/config.h"

/* Cleaning as the Wan pipeline does it: mend mojibake, unescape HTML twice, collapse white space, strip (README.md).
 * The result, UTF-8, is the caller's, freed with free(); it may be empty. HLV_ERROR_ARGUMENT and the offset in the
 * sentence for bytes that are not UTF-8. */
hlv_status hlv_prompt_clean(hlv_context *ctx, const char *prompt, char **cleaned);

/* T5-style SentencePiece unigram tokenizer, read from tokenizer.json if present, else spiece.model. *tokenizer is NULL
 * on failure: HLV_ERROR_IO, HLV_ERROR_FORMAT for a damaged file, HLV_ERROR_UNSUPPORTED for parts that are not known. */
typedef struct hlv_tokenizer hlv_tokenizer;
hlv_status hlv_tokenizer_open(hlv_context *ctx, const char *tokenizer_dir, hlv_tokenizer **tokenizer);
/* The same from the content of a file in memory, which is not kept. */
typedef enum hlv_tokenizer_kind {
    HLV_TOKENIZER_JSON = 0,         /* tokenizer.json of the `tokenizers` library, model Unigram */
    HLV_TOKENIZER_SENTENCEPIECE = 1 /* spiece.model */
} hlv_tokenizer_kind;
hlv_status hlv_tokenizer_from_memory(hlv_context *ctx, hlv_tokenizer_kind kind, const void *bytes, size_t size,
                                     hlv_tokenizer **tokenizer);
void hlv_tokenizer_free(hlv_tokenizer *tokenizer); /* NULL is fine */
/* Pieces and then </s>, at most max_tokens in all; *truncated says whether pieces were cut. ids: max_tokens places. An
 * empty text is </s> alone. HLV_ERROR_ARGUMENT for text that is not UTF-8, or a max_tokens without room for </s>. */
hlv_status hlv_tokenizer_encode(const hlv_tokenizer *tokenizer, const char *text, int max_tokens, int32_t *ids,
                                int *count, bool *truncated);

/* UMT5 encoder: out [count, d_model], float32, for the real tokens only; rows beyond are zeros by definition. */
typedef struct hlv_text_encoder hlv_text_encoder;
/* encoder_dir: config.json and model.safetensors, or shards and their index. dtype: of the matrix products' operands.
 * Reports the stage "load", by layers.
 * The files stay mapped until the encoder is freed: embedding rows are read from them. */
hlv_status hlv_text_encoder_open(hlv_context *ctx, const char *encoder_dir, hla_dtype dtype,
                                 hlv_text_encoder **encoder);
void hlv_text_encoder_free(hlv_text_encoder *encoder); /* NULL is fine */
const hlv_text_config *hlv_text_encoder_config(const hlv_text_encoder *encoder);
/* ids: count of them, at least 1, each below vocab_size. The result is the same, to the bit, on any number of threads.
 */
hlv_status hlv_text_encoder_forward(const hlv_text_encoder *encoder, float *out, const int32_t *ids, int count);

#endif
