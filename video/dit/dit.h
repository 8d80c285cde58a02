/* video/dit/dit.h - the diffusion transformer of Wan2.1, its self-attention softmax or Hadamard per block. */
#ifndef HLV_DIT_H
#define HLV_DIT_H

#include "hlv/model.h"
#include "video/nn/nn.h"
#include "video/weights/config.h"

typedef struct hlv_dit hlv_dit;
hlv_status hlv_dit_open(hlv_context *ctx, const char *transformer_dir, const char *adapter_dir, hlv_attention attention,
                        hla_dtype dtype, hlv_dit **dit);
void hlv_dit_free(hlv_dit *dit);
const hlv_transformer_config *hlv_dit_config(const hlv_dit *dit);
int hlv_dit_hadamard_blocks(const hlv_dit *dit); /* how many blocks have Hadamard attention */

/* What depends only on the prompt: the projected text and every block's cross-attention keys and values, for
 * real_tokens rows of text [real_tokens, text_dim] out of text_tokens (the rest being zero rows). */
typedef struct hlv_dit_prompt hlv_dit_prompt;
hlv_status hlv_dit_prompt_create(const hlv_dit *dit, const float *text, int64_t real_tokens, int64_t text_tokens,
                                 hlv_dit_prompt **prompt);
void hlv_dit_prompt_free(hlv_dit_prompt *prompt);

/* What depends only on the size: RoPE tables, attention plans, buffers. */
typedef struct hlv_dit_session hlv_dit_session;
hlv_status hlv_dit_session_create(const hlv_dit *dit, int64_t F, int64_t Y, int64_t X, hlv_dit_session **session);
void hlv_dit_session_free(hlv_dit_session *session);
int64_t hlv_dit_session_tokens(const hlv_dit_session *session);

/* One forward: velocity [C_out, F, Y, X] from latents [C_in, F, Y, X] at timestep t (0..1000). */
hlv_status hlv_dit_forward(hlv_dit_session *session, float *velocity, const float *latents, double timestep,
                           const hlv_dit_prompt *prompt);

#endif
