/* video/dit/rope.c - rotary position embedding over time, height and width.
 *
 * Source: Su et al., "RoFormer", arXiv 2104.09864, with a head's pairs divided among three axes as in Wan2.1. An axis
 * of m numbers turns its pair i at position p by the angle p * 10000^(-2i/m). */
#include "video/dit/rope.h"

#include <math.h>
#include <stdlib.h>

struct hlv_rope {
    hlv_context *ctx;
    int64_t grid[3];
    int64_t pairs[3]; /* of a head, by axis */
    float *cosine[3]; /* [grid[a], pairs[a]] */
    float *sine[3];
};

static const double THETA = 10000.0;

static hlv_status fill_axis(hlv_rope *rope, int axis) {
    int64_t positions = rope->grid[axis], pairs = rope->pairs[axis];
    if (pairs == 0) return HLV_OK;
    int64_t count = 0;
    if (__builtin_mul_overflow(positions, pairs, &count))
        return hlv_fail(rope->ctx, HLV_ERROR_MEMORY, "out of memory for the position tables");
    rope->cosine[axis] = hlv_alloc_floats(rope->ctx, count);
    rope->sine[axis] = hlv_alloc_floats(rope->ctx, count);
    if (!rope->cosine[axis] || !rope->sine[axis]) return HLV_ERROR_MEMORY;
    for (int64_t p = 0; p < positions; p++)
        for (int64_t i = 0; i < pairs; i++) {
            double angle = (double)p * pow(THETA, -(double)i / (double)pairs);
            rope->cosine[axis][p * pairs + i] = (float)cos(angle);
            rope->sine[axis][p * pairs + i] = (float)sin(angle);
        }
    return HLV_OK;
}

hlv_status hlv_rope_create(hlv_context *ctx, int64_t head_dim, const int64_t grid[3], hlv_rope **out) {
    *out = NULL;
    hlv_rope *rope = calloc(1, sizeof *rope);
    if (!rope) return hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory for the position tables");
    rope->ctx = ctx;
    for (int axis = 0; axis < 3; axis++)
        rope->grid[axis] = grid[axis];
    rope->pairs[1] = rope->pairs[2] = head_dim / 6;
    rope->pairs[0] = head_dim / 2 - 2 * (head_dim / 6);
    for (int axis = 0; axis < 3; axis++) {
        hlv_status status = fill_axis(rope, axis);
        if (status != HLV_OK) {
            hlv_rope_free(rope);
            return status;
        }
    }
    *out = rope;
    return HLV_OK;
}

void hlv_rope_free(hlv_rope *rope) {
    if (!rope) return;
    for (int axis = 0; axis < 3; axis++) {
        hlv_free(rope->ctx, rope->cosine[axis]);
        hlv_free(rope->ctx, rope->sine[axis]);
    }
    free(rope);
}

/* x: the pairs of one head that belong to one axis. */
static void rotate(float *x, const float *cosine, const float *sine, int64_t pairs) {
    for (int64_t i = 0; i < pairs; i++) {
        float a = x[2 * i], b = x[2 * i + 1];
        x[2 * i] = a * cosine[i] - b * sine[i];
        x[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
}

void hlv_rope_apply(const hlv_rope *rope, float *x, int64_t heads) {
    const int64_t tokens = rope->grid[0] * rope->grid[1] * rope->grid[2];
    const int64_t head_dim = 2 * (rope->pairs[0] + rope->pairs[1] + rope->pairs[2]);
#pragma omp parallel for schedule(static) num_threads(hlv_context_threads(rope->ctx))
    for (int64_t n = 0; n < tokens; n++) {
        const int64_t position[3] = {n / (rope->grid[1] * rope->grid[2]), n / rope->grid[2] % rope->grid[1],
                                     n % rope->grid[2]};
        for (int64_t h = 0; h < heads; h++) {
            float *head = x + (n * heads + h) * head_dim;
            for (int axis = 0; axis < 3; axis++) {
                const int64_t pairs = rope->pairs[axis], row = position[axis] * pairs;
                if (pairs) rotate(head, rope->cosine[axis] + row, rope->sine[axis] + row, pairs);
                head += 2 * pairs;
            }
        }
    }
}
