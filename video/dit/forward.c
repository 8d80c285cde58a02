/* video/dit/forward.c - one forward pass of the transformer. Activations are [N,D] rows of tokens, channels last.
 *
 * Source: Wan2.1 (arXiv 2503.20314) as diffusers' WanTransformer3DModel computes it; docs/WAN21.md has the
 * recipe. */
#include <math.h>
#include <string.h>

#include "video/dit/internal.h"

/* Rows of a block's modulation. */
enum { SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION, SHIFT_FFN, SCALE_FFN, GATE_FFN, MODULATIONS };

/* Where the parts of session->embedding begin; see internal.h. */
static float *temb_of(const hlv_dit_session *session) {
    return session->embedding + session->dit->config.freq_dim;
}

static float *mod0_of(const hlv_dit_session *session) {
    return temb_of(session) + 2 * session->dit->width;
}

static float *modulation_of(const hlv_dit_session *session) {
    return mod0_of(session) + MODULATIONS * session->dit->width;
}

/* Cosines, then sines. Frequencies and phases are rounded to float32 as the reference rounds them: at t near 1000 that
 * moves a phase by up to 6e-5. */
static void sinusoids(float *out, int width, double timestep) {
    const int half = width / 2; /* the config's reader has made sure of an even width */
    for (int i = 0; i < half; i++) {
        float exponent = (float)-log(10000.0) * (float)i / (float)half;
        float phase = (float)timestep * (float)exp((double)exponent);
        out[i] = (float)cos((double)phase);
        out[half + i] = (float)sin((double)phase);
    }
}

/* Fills temb [D] and mod0 [6,D]. */
static hlv_status embed_time(hlv_dit_session *session, double timestep) {
    const hlv_dit *dit = session->dit;
    const int64_t D = dit->width, freq_dim = dit->config.freq_dim;
    float *temb = temb_of(session), *activated = temb + D, *mod0 = mod0_of(session);
    sinusoids(session->embedding, dit->config.freq_dim, timestep);
    hlv_status status = hlv_linear_forward(dit->time_in, activated, D, session->embedding, freq_dim, 1);
    if (status == HLV_OK) status = hlv_linear_forward(dit->time_out, temb, D, activated, D, 1);
    if (status != HLV_OK) return status;
    memcpy(activated, temb, (size_t)D * sizeof(float));
    hlv_act_inplace(session->ctx, activated, D, HLV_ACT_SILU);
    return hlv_linear_forward(dit->time_proj, mod0, MODULATIONS * D, activated, D, 1);
}

/* Offset in a [C,F,Y,X] array of channel 0 of token n's first cell. */
static int64_t token_origin(const hlv_dit_session *session, int64_t n) {
    const int *patch = session->dit->config.patch_size;
    int64_t j = n % session->grid[2], i = n / session->grid[2] % session->grid[1];
    int64_t f = n / session->grid[2] / session->grid[1];
    return (f * patch[0] * session->Y + i * patch[1]) * session->X + j * patch[2];
}

/* A token's cells in the order (channel, time, y, x), as the patch embedding's weight has them. */
static void gather(const hlv_dit_session *session, float *row, const float *latents) {
    const int *patch = session->dit->config.patch_size;
    for (int64_t c = 0; c < session->dit->config.in_channels; c++)
        for (int64_t dt = 0; dt < patch[0]; dt++)
            for (int64_t dy = 0; dy < patch[1]; dy++)
                for (int64_t dx = 0; dx < patch[2]; dx++)
                    *row++ = latents[((c * session->F + dt) * session->Y + dy) * session->X + dx];
}

/* A token's cells in the order (time, y, x, channel), as the head gives them. */
static void scatter(const hlv_dit_session *session, float *velocity, const float *row) {
    const int *patch = session->dit->config.patch_size;
    for (int64_t dt = 0; dt < patch[0]; dt++)
        for (int64_t dy = 0; dy < patch[1]; dy++)
            for (int64_t dx = 0; dx < patch[2]; dx++)
                for (int64_t c = 0; c < session->dit->config.out_channels; c++)
                    velocity[((c * session->F + dt) * session->Y + dy) * session->X + dx] = *row++;
}

static int64_t chunk_rows(const hlv_dit_session *session, int64_t first) {
    int64_t left = session->tokens - first;
    return left < HLV_DIT_CHUNK ? left : HLV_DIT_CHUNK;
}

static hlv_status embed_patches(hlv_dit_session *session, const float *latents) {
    const int64_t D = session->dit->width, width = session->dit->patch * session->dit->config.in_channels;
    for (int64_t first = 0; first < session->tokens; first += HLV_DIT_CHUNK) {
        const int64_t rows = chunk_rows(session, first);
#pragma omp parallel for schedule(static) num_threads(hlv_context_threads(session->ctx))
        for (int64_t r = 0; r < rows; r++)
            gather(session, session->wide + r * width, latents + token_origin(session, first + r));
        hlv_status status =
            hlv_linear_forward(session->dit->patch_embedding, session->x + first * D, D, session->wide, width, rows);
        if (status != HLV_OK) return status;
    }
    return HLV_OK;
}

/* x += gate * to_out(attention(LN(x) (1 + scale) + shift)) */
static hlv_status self_part(hlv_dit_session *session, const float *modulation, int n) {
    const hlv_dit_attention *self = &session->dit->blocks[n].self;
    const int64_t N = session->tokens, D = session->dit->width;
    const float eps = (float)session->dit->config.eps;
    hlv_modulate(session->ctx, session->y, session->x, N, D, modulation + SHIFT_ATTENTION * D,
                 modulation + SCALE_ATTENTION * D, eps);
    hlv_status status = hlv_linear_forward(self->q, session->q, D, session->y, D, N);
    if (status == HLV_OK) status = hlv_linear_forward(self->k, session->k, D, session->y, D, N);
    if (status == HLV_OK) status = hlv_linear_forward(self->v, session->v, D, session->y, D, N);
    if (status != HLV_OK) return status;
    if (self->norm_q) hlv_rms_norm(session->ctx, session->q, session->q, N, D, self->norm_q, eps);
    if (self->norm_k) hlv_rms_norm(session->ctx, session->k, session->k, N, D, self->norm_k, eps);
    status = hlv_dit_self_attention(session, session->y, session->q, session->k, session->v, n);
    if (status == HLV_OK) status = hlv_linear_forward(self->out, session->q, D, session->y, D, N);
    if (status == HLV_OK) hlv_residual(session->ctx, session->x, session->q, N, D, modulation + GATE_ATTENTION * D);
    return status;
}

/* x += to_out(attention(norm2(x), text)) */
static hlv_status cross_part(hlv_dit_session *session, const hlv_dit_prompt *prompt, int n) {
    const hlv_dit_block *block = &session->dit->blocks[n];
    const int64_t N = session->tokens, D = session->dit->width;
    const float eps = (float)session->dit->config.eps;
    const float *input = session->x;
    if (block->norm2_weight) {
        hlv_layer_norm(session->ctx, session->y, session->x, N, D, block->norm2_weight, block->norm2_bias, eps);
        input = session->y;
    }
    hlv_status status = hlv_linear_forward(block->cross.q, session->q, D, input, D, N);
    if (status != HLV_OK) return status;
    if (block->cross.norm_q) hlv_rms_norm(session->ctx, session->q, session->q, N, D, block->cross.norm_q, eps);
    status = hlv_dit_cross_attention(session, session->y, session->q, prompt, n);
    if (status == HLV_OK) status = hlv_linear_forward(block->cross.out, session->q, D, session->y, D, N);
    if (status == HLV_OK) hlv_residual(session->ctx, session->x, session->q, N, D, NULL);
    return status;
}

/* x += gate * W2 gelu(W1 (LN(x) (1 + scale) + shift)), the wide middle in chunks of tokens. */
static hlv_status ffn_part(hlv_dit_session *session, const float *modulation, int n) {
    const hlv_dit_block *block = &session->dit->blocks[n];
    const int64_t D = session->dit->width, wide = session->dit->config.ffn_dim;
    for (int64_t first = 0; first < session->tokens; first += HLV_DIT_CHUNK) {
        const int64_t rows = chunk_rows(session, first);
        float *x = session->x + first * D;
        hlv_modulate(session->ctx, session->y, x, rows, D, modulation + SHIFT_FFN * D, modulation + SCALE_FFN * D,
                     (float)session->dit->config.eps);
        hlv_status status = hlv_linear_forward(block->ffn_in, session->wide, wide, session->y, D, rows);
        if (status == HLV_OK) status = hlv_linear_forward(block->ffn_out, session->q, D, session->wide, wide, rows);
        if (status != HLV_OK) return status;
        hlv_residual(session->ctx, x, session->q, rows, D, modulation + GATE_FFN * D);
    }
    return HLV_OK;
}

static hlv_status run_block(hlv_dit_session *session, const hlv_dit_prompt *prompt, int n) {
    const float *table = session->dit->blocks[n].scale_shift, *mod0 = mod0_of(session);
    float *modulation = modulation_of(session);
    for (int64_t i = 0; i < MODULATIONS * session->dit->width; i++)
        modulation[i] = table[i] + mod0[i];
    hlv_status status = self_part(session, modulation, n);
    if (status == HLV_OK) status = cross_part(session, prompt, n);
    return status == HLV_OK ? ffn_part(session, modulation, n) : status;
}

static hlv_status head(hlv_dit_session *session, float *velocity) {
    const hlv_dit *dit = session->dit;
    const int64_t D = dit->width, width = dit->patch * dit->config.out_channels;
    const float *temb = temb_of(session);
    float *shift = modulation_of(session), *scale = shift + D;
    for (int64_t i = 0; i < D; i++) {
        shift[i] = dit->scale_shift[i] + temb[i];
        scale[i] = dit->scale_shift[D + i] + temb[i];
    }
    for (int64_t first = 0; first < session->tokens; first += HLV_DIT_CHUNK) {
        const int64_t rows = chunk_rows(session, first);
        hlv_modulate(session->ctx, session->y, session->x + first * D, rows, D, shift, scale, (float)dit->config.eps);
        hlv_status status = hlv_linear_forward(dit->proj_out, session->wide, width, session->y, D, rows);
        if (status != HLV_OK) return status;
#pragma omp parallel for schedule(static) num_threads(hlv_context_threads(session->ctx))
        for (int64_t r = 0; r < rows; r++)
            scatter(session, velocity + token_origin(session, first + r), session->wide + r * width);
    }
    return HLV_OK;
}

hlv_status hlv_dit_forward(hlv_dit_session *session, float *velocity, const float *latents, double timestep,
                           const hlv_dit_prompt *prompt) {
    if (!isfinite(timestep))
        return hlv_fail(session->ctx, HLV_ERROR_ARGUMENT, "timestep: found %g, wanted a finite number", timestep);
    hlv_status status = embed_time(session, timestep);
    if (status == HLV_OK) status = embed_patches(session, latents);
    for (int n = 0; status == HLV_OK && n < session->dit->config.num_layers; n++) {
        if (hlv_cancelled(session->ctx)) return hlv_fail(session->ctx, HLV_ERROR_CANCELLED, "cancelled while sampling");
        status = run_block(session, prompt, n);
    }
    return status == HLV_OK ? head(session, velocity) : status;
}
