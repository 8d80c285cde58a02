/* attention/ops/feature_map/cpu.h - what the forward and the backward kernel share: packing weights, and products of a
 * block of tokens with packed weights. Included by sources compiled once per instruction set.
 */
#ifndef HLA_OPS_FEATURE_MAP_CPU_H
#define HLA_OPS_FEATURE_MAP_CPU_H

#include "attention/ops/feature_map/kernel.h"
#include "attention/simd/tile.h"

enum { TOKEN_BLOCK = 32 }; /* 8 KB of input at D = 64 */

/* One head's matrix [rows,dim] into panels of COLUMNS rows, transposed; missing rows are zero, missing biases pad. */
static inline void pack(float *panels, float *packed_bias, const float *weight, const float *bias, int64_t rows,
                        int64_t dim, float pad) {
    for (int64_t i = 0; i < hla_round_up(rows, HLA_TILE_COLUMNS); i++) {
        float *column = panels + i / HLA_TILE_COLUMNS * HLA_TILE_COLUMNS * dim + i % HLA_TILE_COLUMNS;
        for (int64_t x = 0; x < dim; x++)
            column[x * HLA_TILE_COLUMNS] = i < rows ? weight[i * dim + x] : 0;
        packed_bias[i] = i < rows ? (bias ? bias[i] : 0) : pad;
    }
}

/* out [BLOCK][out_row] op= in [BLOCK][in_row] times the packed matrix; columns up to rows are computed. */
static inline void project(float *out, int64_t out_row, const float *in, int64_t in_row, const float *panels,
                           int64_t rows, int64_t dim, int64_t tokens, hla_tile_op op) {
    for (int64_t i = 0; i < rows; i += HLA_TILE_COLUMNS) {
        const float *panel = panels + i * dim;
        for (int64_t t = 0; t < tokens; t += HLA_TILE_ROWS) {
            float *c = out + t * out_row + i;
            if (rows - i > HLA_VECTOR_WIDTH) {
                hla_tile(c, out_row, in + t * in_row, in_row, 1, panel, dim, 2, op);
            } else {
                hla_tile(c, out_row, in + t * in_row, in_row, 1, panel, dim, 1, op);
            }
        }
    }
}

/* One row by the positions of its token, table [D/2][2]: RoPE, or with direction -1 its transpose. */
static inline void turn_row(float *row, const float *table, int64_t dim, float direction) {
    for (int64_t i = 0; i < dim; i += 2) {
        float cosine = table[i], sine = direction * table[i + 1], a = row[i], b = row[i + 1];
        row[i] = cosine * a - sine * b;
        row[i + 1] = sine * a + cosine * b;
    }
}

/* Rows first, first + 1, ... of a head, if the problem has RoPE. */
static inline void turn_rows(float *rows, int64_t row, const hla_feature_map_problem *problem, int64_t first,
                             int64_t tokens, float direction) {
    for (int64_t t = 0; problem->rope && t < tokens; t++)
        turn_row(rows + t * row, problem->rope + (first + t) * problem->dim, problem->dim, direction);
}

/* The backward pass of this instruction set, for its table entry. */
void HLA_ISA_NAME(hla_feature_map_measure_backward)(hla_arena *arena, const hla_feature_map_problem *problem,
                                                    int threads);
hla_status HLA_ISA_NAME(hla_feature_map_run_backward)(const hla_feature_map_call *call);

#endif
