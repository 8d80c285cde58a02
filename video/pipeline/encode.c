/* video/pipeline/encode.c - prompts to text rows. The text encoder is much larger than what follows: it is opened for
 * this alone and freed again. */
#include <stdlib.h>

#include "video/pipeline/run.h"
#include "video/text/text.h"

static hlv_status tokenize(hlv_run *run, int32_t ids[HLV_PROMPTS][HLV_TEXT_TOKENS]) {
    char *path = hlv_model_path(run->model, "tokenizer");
    if (!path) return HLV_ERROR_MEMORY;
    hlv_tokenizer *tokenizer = NULL;
    hlv_status status = hlv_tokenizer_open(run->ctx, path, &tokenizer);
    free(path);
    for (int i = 0; status == HLV_OK && i < HLV_PROMPTS; i++) {
        bool truncated = false;
        if (!run->cleaned[i]) continue;
        status =
            hlv_tokenizer_encode(tokenizer, run->cleaned[i], HLV_TEXT_TOKENS, ids[i], &run->text_count[i], &truncated);
        if (status == HLV_OK && truncated)
            hlv_log(run->ctx, HLV_LOG_WARNING, "the %s is longer than %d pieces; what follows is left out",
                    i == HLV_POSITIVE ? "prompt" : "negative prompt", HLV_TEXT_TOKENS);
        if (i == HLV_POSITIVE) run->result.prompt_truncated = truncated;
    }
    run->result.prompt_tokens = run->text_count[HLV_POSITIVE];
    hlv_tokenizer_free(tokenizer);
    return status;
}

static hlv_status forward(hlv_run *run, const hlv_text_encoder *encoder, int which, const int32_t *ids) {
    const int64_t width = run->model->text.d_model;
    run->text[which] = hlv_alloc_floats(run->ctx, run->text_count[which] * width);
    if (!run->text[which]) return HLV_ERROR_MEMORY;
    return hlv_text_encoder_forward(encoder, run->text[which], ids, run->text_count[which]);
}

static hlv_status encode(hlv_run *run, const hlv_text_encoder *encoder, int32_t ids[HLV_PROMPTS][HLV_TEXT_TOKENS]) {
    const int total = run->guided ? HLV_PROMPTS : 1;
    hlv_status status = HLV_OK;
    hlv_progress(run->ctx, "text", 0, total);
    for (int i = 0; status == HLV_OK && i < total; i++) {
        if (hlv_cancelled(run->ctx))
            return hlv_fail(run->ctx, HLV_ERROR_CANCELLED, "cancelled while reading the prompt");
        status = forward(run, encoder, i, ids[i]);
        if (status == HLV_OK) hlv_progress(run->ctx, "text", i + 1, total);
    }
    return status;
}

hlv_status hlv_run_encode(hlv_run *run) {
    int32_t ids[HLV_PROMPTS][HLV_TEXT_TOKENS];
    double start = hlv_seconds();
    hlv_status status = tokenize(run, ids);
    if (status != HLV_OK) return status;
    char *path = hlv_model_path(run->model, "text_encoder");
    if (!path) return HLV_ERROR_MEMORY;
    double opening = hlv_seconds();
    hlv_text_encoder *encoder = NULL;
    status = hlv_text_encoder_open(run->ctx, path, run->model->dtype, &encoder);
    double opened = hlv_seconds();
    free(path);
    if (status == HLV_OK) status = encode(run, encoder, ids);
    hlv_text_encoder_free(encoder);
    run->result.load_seconds += opened - opening;
    run->result.text_seconds = hlv_seconds() - start - (opened - opening);
    return status;
}
