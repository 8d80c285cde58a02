/* video/dit/rope.h - rotary position embedding over time, height and width. */
#ifndef HLV_DIT_ROPE_H
#define HLV_DIT_ROPE_H

#include "video/core/context.h"

typedef struct hlv_rope hlv_rope;
/* Tables for a grid of tokens along time, height, width, computed in double. head_dim is even; of its pairs height and
 * width take 2*(head_dim/6) numbers each and time the rest. */
hlv_status hlv_rope_create(hlv_context *ctx, int64_t head_dim, const int64_t grid[3], hlv_rope **rope);
void hlv_rope_free(hlv_rope *rope);
/* Rotates x [N, heads, head_dim] in place, pairs (2i, 2i+1), token n = (f*grid[1] + i)*grid[2] + j. */
void hlv_rope_apply(const hlv_rope *rope, float *x, int64_t heads);

#endif
