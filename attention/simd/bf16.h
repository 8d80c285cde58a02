/* attention/simd/bf16.h - pairs of bfloat16 and the register tile over them. Included by sources compiled for
 * AVX512-BF16.
 *
 * A word holds a pair: two neighbours along the axis that is summed over, the first in the low half. One instruction
 * then adds two products to a float32 sum; it takes subnormal numbers for zero. The tile is that of tile.h with pairs
 * as steps:
 *
 *     C[i][x] op= sum_k A(i,k).first B[k][x].first + A(i,k).second B[k][x].second    i < HLA_TILE_ROWS,
 *                                                                                    x < HLA_TILE_COLUMNS, k < steps
 */
#ifndef HLA_SIMD_BF16_H
#define HLA_SIMD_BF16_H

#include "attention/simd/tile.h"

typedef __m512i hla_pairs; /* HLA_VECTOR_WIDTH words */

HLA_INLINE hla_pairs hla_pairs_load(const uint32_t *p) {
    return _mm512_loadu_si512(p);
}
HLA_INLINE void hla_pairs_store(uint32_t *p, hla_pairs x) {
    _mm512_storeu_si512(p, x);
}
HLA_INLINE hla_pairs hla_pairs_set(uint32_t word) {
    return _mm512_set1_epi32((int)word);
}

/* Pairs x[i], y[i] of two rows of bfloat16. */
HLA_INLINE hla_pairs hla_pairs_join(__m256i x, __m256i y) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(x), _mm512_slli_epi32(_mm512_cvtepu16_epi32(y), 16));
}

/* 32 floats, rounded to nearest even: neighbours within x, then within y, are pairs. */
HLA_INLINE hla_pairs hla_pairs_round(hla_vector x, hla_vector y) {
    return (hla_pairs)_mm512_cvtne2ps_pbh(y, x);
}

/* 16 floats, rounded to nearest even. */
HLA_INLINE __m256i hla_round_bf16(hla_vector x) {
    return (__m256i)_mm512_cvtneps_pbh(x);
}

/* 16 numbers of bfloat16 as floats. */
HLA_INLINE hla_vector hla_widen_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

HLA_INLINE hla_vector hla_pairs_first(hla_pairs x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
}
HLA_INLINE hla_vector hla_pairs_second(hla_pairs x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(INT32_C(-65536))));
}

/* sum + x.first y.first + x.second y.second */
HLA_INLINE hla_vector hla_pairs_dot(hla_pairs x, hla_pairs y, hla_vector sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
}

/* The first `count` of 16 lanes, count < 16. */
HLA_INLINE __mmask16 hla_lanes(int64_t count) {
    return _cvtu32_mask16((1u << count) - 1u);
}

/* Arguments as those of hla_tile_sums. */
HLA_INLINE void hla_tile_pair_sums(hla_vector sum[HLA_TILE_ROWS][2], const uint32_t *restrict a, int64_t a_row,
                                   int64_t a_step, const uint32_t *restrict b, int64_t steps, int vectors) {
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++)
        sum[i][0] = sum[i][1] = hla_vector_zero();
    HLA_UNROLL(4)
    for (int64_t k = 0; k < steps; k++) {
        hla_pairs b0 = hla_pairs_load(b);
        hla_pairs b1 = vectors == 2 ? hla_pairs_load(b + HLA_VECTOR_WIDTH) : b0;
        HLA_UNROLL(8)
        for (int i = 0; i < HLA_TILE_ROWS; i++) {
            hla_pairs x = hla_pairs_set(a[i * a_row]);
            sum[i][0] = hla_pairs_dot(x, b0, sum[i][0]);
            if (vectors == 2) sum[i][1] = hla_pairs_dot(x, b1, sum[i][1]);
        }
        a += a_step;
        b += HLA_TILE_COLUMNS;
    }
}

/* Arguments as those of hla_tile. The rows of C that it adds to are asked for before the sums begin. */
HLA_INLINE void hla_tile_pairs(float *restrict c, int64_t c_row, const uint32_t *restrict a, int64_t a_row,
                               int64_t a_step, const uint32_t *restrict b, int64_t steps, int vectors, hla_tile_op op) {
    hla_vector sum[HLA_TILE_ROWS][2];
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++) {
        if (op == HLA_TILE_ADD) __builtin_prefetch(c + i * c_row, 1);
        if (op == HLA_TILE_ADD && vectors == 2) __builtin_prefetch(c + i * c_row + HLA_VECTOR_WIDTH, 1);
    }
    hla_tile_pair_sums(sum, a, a_row, a_step, b, steps, vectors);
    HLA_UNROLL(8)
    for (int i = 0; i < HLA_TILE_ROWS; i++) {
        hla_tile_finish(c + i * c_row, sum[i][0], op);
        if (vectors == 2) hla_tile_finish(c + i * c_row + HLA_VECTOR_WIDTH, sum[i][1], op);
    }
}

#endif
