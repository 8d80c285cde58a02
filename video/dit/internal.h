/* video/dit/internal.h - the transformer's weights and per-size state, shared by the files of this folder.
 *
 * Letters: N tokens, D model width (heads x head width), L real text rows; F, Y, X the latents' frames, rows, columns;
 * P factors and R_p their ranks, as in hla/hadamard.h. */
#ifndef HLV_DIT_INTERNAL_H
#define HLV_DIT_INTERNAL_H

#include "hla/hla.h"
#include "video/dit/dit.h"
#include "video/dit/rope.h"

/* Tokens that pass at once through the wide middle of the feed-forward part, the patch embedding and the head. */
#define HLV_DIT_CHUNK 1024

typedef struct hlv_dit_attention {
    hlv_linear *q, *k, *v, *out;
    float *norm_q, *norm_k; /* [D] each; NULL: no norm */
} hlv_dit_attention;

/* The feature maps of one factor's queries or keys. */
typedef struct hlv_dit_map {
    float *weight, *bias, *hidden_weight, *hidden_bias;
} hlv_dit_map;

typedef struct hlv_dit_block {
    hlv_block_config config;
    hlv_dit_attention self, cross;
    hlv_dit_map query_map[HLA_MAX_FACTORS], key_map[HLA_MAX_FACTORS];
    hlv_linear *ffn_in, *ffn_out;
    float *scale_shift;               /* [6,D] rows: shift, scale, gate of attention, then of the feed-forward part */
    float *norm2_weight, *norm2_bias; /* [D]; NULL: cross attention sees the residual stream itself */
} hlv_dit_block;

struct hlv_dit {
    hlv_context *ctx;
    hlv_transformer_config config;
    hlv_adapter_config adapter; /* num_layers 0: every block softmax */
    int64_t width;              /* D */
    int64_t patch;              /* latent cells a token */
    hlv_linear *patch_embedding, *time_in, *time_out, *time_proj, *text_in, *text_out, *proj_out;
    float *scale_shift; /* [2,D] of the head */
    hlv_dit_block *blocks;
};

struct hlv_dit_prompt {
    hlv_context *ctx;
    int64_t keys;    /* L, plus one row that stands for all the padding */
    int64_t width;   /* D */
    float *rows;     /* [blocks, 2, keys, D]: keys and values of every block's cross attention */
    float *key_bias; /* [keys]: 0, and ln(number of padding rows) for the last */
};

/* A plan for cross attention with a given number of keys; two prompts (with and without guidance) take turns. */
typedef struct hlv_dit_cross_plan {
    int64_t keys;
    hla_softmax_plan *plan;
} hlv_dit_cross_plan;

struct hlv_dit_session {
    const hlv_dit *dit;
    hlv_context *ctx;
    hla_context *hla;                 /* ctx's, of the number of threads when the session was made */
    int64_t F, Y, X, grid[3], tokens; /* grid: tokens along time, height, width */
    hlv_rope *rope;
    hla_softmax_plan *softmax;    /* NULL unless a block needs it */
    hla_hadamard_plan **hadamard; /* [blocks]; NULL for softmax blocks, shared among blocks of the same shape */
    hlv_dit_cross_plan cross[2];
    int next_cross;
    float *x, *y, *q, *k, *v; /* [N,D]: residual stream, then what the block at hand needs */
    float *wide;              /* [CHUNK, widest] */
    float *features;          /* [P, 2, N, H, R_p] of the widest block: queries, then keys, factor by factor */
    float *embedding;         /* [freq_dim + 2D + 6D + 6D]: sinusoids, temb, SiLU(temb), mod0, a block's modulation */
    void *workspace;
    size_t workspace_size;
};

/* A product that saturates at INT64_MAX, so that a size which overflows is refused by the allocator. */
int64_t hlv_dit_product(int64_t a, int64_t b);

/* Grows the session's workspace to at least size bytes. */
hlv_status hlv_dit_workspace(hlv_dit_session *session, size_t size);

/* Loads every weight that dit->config and its blocks ask for; adapter may be NULL, its tensors come first. dtype: of
 * the blocks' matrix products. */
hlv_status hlv_dit_load(hlv_dit *dit, const hlv_weights *weights, const hlv_weights *adapter, hla_dtype dtype);

/* out [N,D] = the block's self-attention over q, k, v [N,D], before its output projection; q and k are rotated in place
 * where the block wants it. */
hlv_status hlv_dit_self_attention(hlv_dit_session *session, float *out, float *q, float *k, const float *v, int block);

/* out [N,D] = attention of q [N,D] over the block's prompt keys and values. */
hlv_status hlv_dit_cross_attention(hlv_dit_session *session, float *out, const float *q, const hlv_dit_prompt *prompt,
                                   int block);

#endif
