/* Bytes as a tokenizer model: tokenizer.json if they begin with '{', else spiece.model. What is accepted encodes a few
 * texts, one of them cut short. */
#include "video/core/context.h"
#include "video/text/text.h"

#include <stdlib.h>

#define MAX_TOKENS 32

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void encode(const hlv_tokenizer *tokenizer) {
    static const char *const texts[] = {"", "a rocket flies up", "  a\tb  ",
                                        "\xc3\xa9\xe4\xb8\xad\xf0\x9f\x9a\x80 <pad></s>",
                                        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        int32_t ids[MAX_TOKENS];
        int count = 0;
        bool truncated = false;
        if (hlv_tokenizer_encode(tokenizer, texts[i], MAX_TOKENS, ids, &count, &truncated) != HLV_OK) continue;
        if (count < 1 || count > MAX_TOKENS) abort();
        for (int t = 0; t < count; t++)
            if (ids[t] < 0) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    hlv_context *ctx = NULL;
    if (hlv_context_create(&ctx) != HLV_OK) abort();
    hlv_tokenizer_kind kind = size && bytes[0] == '{' ? HLV_TOKENIZER_JSON : HLV_TOKENIZER_SENTENCEPIECE;
    hlv_tokenizer *tokenizer = NULL;
    if (hlv_tokenizer_from_memory(ctx, kind, bytes, size, &tokenizer) == HLV_OK) {
        encode(tokenizer);
        hlv_tokenizer_free(tokenizer);
    }
    if (hlv_context_current_bytes(ctx) != 0) abort();
    hlv_context_free(ctx);
    return 0;
}
