/* video/dit/prompt.c - what depends only on the prompt: projected text, and every block's cross-attention keys, values.
 *
 * The reference attends to all text rows, the zero rows after the prompt included; those are equal to each other,
 * before and after every projection. One of them therefore stands for all n, with ln n added to its scores: exp(s + ln
 * n) is n exp(s). */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "video/dit/internal.h"

static hlv_status allocate(hlv_dit_prompt *prompt, const hlv_dit *dit) {
    int64_t rows = hlv_dit_product(2 * (int64_t)dit->config.num_layers, prompt->keys);
    prompt->rows = hlv_alloc_floats(dit->ctx, hlv_dit_product(rows, dit->width));
    prompt->key_bias = hlv_alloc_floats(dit->ctx, prompt->keys);
    return prompt->rows && prompt->key_bias ? HLV_OK : HLV_ERROR_MEMORY;
}

/* context [keys,D] = the text projection of the real rows and, if there is padding, one zero row. */
static hlv_status project_text(const hlv_dit *dit, float *context, const float *text, int64_t real_tokens,
                               int64_t keys) {
    const int64_t width = dit->config.text_dim, D = dit->width;
    float *input = hlv_alloc_floats(dit->ctx, hlv_dit_product(keys, width));
    float *middle = hlv_alloc_floats(dit->ctx, hlv_dit_product(keys, D));
    hlv_status status = input && middle ? HLV_OK : HLV_ERROR_MEMORY;
    if (status == HLV_OK) {
        if (real_tokens) memcpy(input, text, (size_t)(real_tokens * width) * sizeof(float));
        memset(input + real_tokens * width, 0, (size_t)((keys - real_tokens) * width) * sizeof(float));
        status = hlv_linear_forward(dit->text_in, middle, D, input, width, keys);
    }
    if (status == HLV_OK) status = hlv_linear_forward(dit->text_out, context, D, middle, D, keys);
    hlv_free(dit->ctx, input);
    hlv_free(dit->ctx, middle);
    return status;
}

static hlv_status project_block(const hlv_dit *dit, const hlv_dit_attention *cross, float *k, float *v,
                                const float *context, int64_t keys) {
    const int64_t D = dit->width;
    hlv_status status = hlv_linear_forward(cross->k, k, D, context, D, keys);
    if (status == HLV_OK) status = hlv_linear_forward(cross->v, v, D, context, D, keys);
    if (status == HLV_OK && cross->norm_k) hlv_rms_norm(dit->ctx, k, k, keys, D, cross->norm_k, (float)dit->config.eps);
    return status;
}

static hlv_status fill(hlv_dit_prompt *prompt, const hlv_dit *dit, const float *text, int64_t real_tokens,
                       int64_t text_tokens) {
    const int64_t keys = prompt->keys, size = keys * dit->width;
    for (int64_t j = 0; j < keys; j++)
        prompt->key_bias[j] = 0.0f;
    if (text_tokens > real_tokens) prompt->key_bias[keys - 1] = (float)log((double)(text_tokens - real_tokens));
    float *context = hlv_alloc_floats(dit->ctx, size);
    if (!context) return HLV_ERROR_MEMORY;
    hlv_status status = project_text(dit, context, text, real_tokens, keys);
    for (int n = 0; status == HLV_OK && n < dit->config.num_layers; n++) {
        float *k = prompt->rows + 2 * (int64_t)n * size;
        status = project_block(dit, &dit->blocks[n].cross, k, k + size, context, keys);
    }
    hlv_free(dit->ctx, context);
    return status;
}

hlv_status hlv_dit_prompt_create(const hlv_dit *dit, const float *text, int64_t real_tokens, int64_t text_tokens,
                                 hlv_dit_prompt **out) {
    *out = NULL;
    if (text_tokens < 1 || real_tokens < 0 || real_tokens > text_tokens || (real_tokens && !text))
        return hlv_fail(dit->ctx, HLV_ERROR_ARGUMENT,
                        "text: found %lld real rows of %lld, wanted 0 to all of at least 1", (long long)real_tokens,
                        (long long)text_tokens);
    hlv_dit_prompt *prompt = calloc(1, sizeof *prompt);
    if (!prompt) return hlv_fail(dit->ctx, HLV_ERROR_MEMORY, "out of memory for the prompt");
    prompt->ctx = dit->ctx, prompt->width = dit->width;
    prompt->keys = real_tokens + (text_tokens > real_tokens);
    hlv_status status = allocate(prompt, dit);
    if (status == HLV_OK) status = fill(prompt, dit, text, real_tokens, text_tokens);
    if (status != HLV_OK) {
        hlv_dit_prompt_free(prompt);
        return status;
    }
    *out = prompt;
    return HLV_OK;
}

void hlv_dit_prompt_free(hlv_dit_prompt *prompt) {
    if (!prompt) return;
    hlv_free(prompt->ctx, prompt->rows);
    hlv_free(prompt->ctx, prompt->key_bias);
    free(prompt);
}
