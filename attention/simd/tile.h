/* attention/simd/tile.h - the register tile under every matrix product of the attention kernels.
 *
 *     C[i][x] op= sum_k A(i,k) B[k][x]        i < HLA_TILE_ROWS, x < HLA_TILE_COLUMNS, k < steps
 *
 * B lies packed, HLA_TILE_COLUMNS floats a step; A is read one float at a time and broadcast, at a[i * row + k * step],
 * so it may lie either way round. The sums over k stay in registers; op is applied once at the end, which also makes
 * every long sum a sum of block sums.
 */
#ifndef HLA_SIMD_TILE_H
#define HLA_SIMD_TILE_H

#include "attention/simd/vector.h"

enum { HLA_TILE_COLUMNS = 2 * HLA_VECTOR_WIDTH };

typedef enum hla_tile_op { HLA_TILE_STORE, HLA_TILE_ADD, HLA_TILE_MULTIPLY } hla_tile_op;

HLA_INLINE void hla_tile_finish(float *c, hla_vector sum, hla_tile_op op) {
    if (op == HLA_TILE_ADD) sum = hla_vector_add(hla_vector_load(c), sum);
    if (op == HLA_TILE_MULTIPLY) sum = hla_vector_multiply(hla_vector_load(c), sum);
    hla_vector_store(c, sum);
}

/* sum[i] = the two vectors of sums of row i. vectors: 2, or 1 to fill only the left half of the columns. Called with
 * constants for a_row or a_step, and vectors. */
HLA_INLINE void hla_tile_sums(hla_vector sum[HLA_TILE_ROWS][2], const float *restrict a, int64_t a_row, int64_t a_step,
                              const float *restrict b, int64_t steps, int vectors) {
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++)
        sum[i][0] = sum[i][1] = hla_vector_zero();
    HLA_UNROLL(4)
    for (int64_t k = 0; k < steps; k++) {
        hla_vector b0 = hla_vector_load(b);
        hla_vector b1 = vectors == 2 ? hla_vector_load(b + HLA_VECTOR_WIDTH) : b0;
        HLA_UNROLL(8)
        for (int i = 0; i < HLA_TILE_ROWS; i++) {
            hla_vector x = hla_vector_set(a[i * a_row]);
            sum[i][0] = hla_vector_multiply_add(x, b0, sum[i][0]);
            if (vectors == 2) sum[i][1] = hla_vector_multiply_add(x, b1, sum[i][1]);
        }
        a += a_step;
        b += HLA_TILE_COLUMNS;
    }
}

HLA_INLINE void hla_tile(float *restrict c, int64_t c_row, const float *restrict a, int64_t a_row, int64_t a_step,
                         const float *restrict b, int64_t steps, int vectors, hla_tile_op op) {
    hla_vector sum[HLA_TILE_ROWS][2];
    hla_tile_sums(sum, a, a_row, a_step, b, steps, vectors);
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++) {
        hla_tile_finish(c + i * c_row, sum[i][0], op);
        if (vectors == 2) hla_tile_finish(c + i * c_row + HLA_VECTOR_WIDTH, sum[i][1], op);
    }
}

#endif
