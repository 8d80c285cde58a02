/* attention/ops/hadamard/cpu.h - what the state and the quadratic kernel share: packing rows of tensors into
 * column panels, and writing results. Included by sources compiled once per instruction set.
 *
 * A column panel holds HLA_TILE_COLUMNS columns of a matrix, row after row, as hla_tile reads its operand B; missing
 * columns are zero.
 */
#ifndef HLA_OPS_HADAMARD_CPU_H
#define HLA_OPS_HADAMARD_CPU_H

#include "attention/ops/hadamard/kernel.h"
#include "attention/simd/tile.h"

/* Saturates; the arena then reports the overflow. */
HLA_INLINE int64_t saturating_product(int64_t a, int64_t b) {
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) ? INT64_MAX : product;
}

HLA_INLINE int64_t panel_count(int64_t columns) {
    return (columns + HLA_TILE_COLUMNS - 1) / HLA_TILE_COLUMNS;
}

/* How many vectors of the last panel hold columns: the right half may be empty. */
HLA_INLINE int panel_vectors(int64_t panel, int64_t columns) {
    return columns - panel * HLA_TILE_COLUMNS > HLA_VECTOR_WIDTH ? 2 : 1;
}

/* to += from; count is a multiple of the vector width. */
HLA_INLINE void add_floats(float *restrict to, const float *restrict from, int64_t count) {
    for (int64_t i = 0; i < count; i += HLA_VECTOR_WIDTH) {
        hla_vector_store(to + i, hla_vector_add(hla_vector_load(to + i), hla_vector_load(from + i)));
    }
}

/* out[count] = element x = first ... first + count - 1 of row [b,t,h] */
HLA_INLINE void load_row(float *restrict out, const hla_tensor *tensor, int64_t b, int64_t t, int64_t h, int64_t first,
                         int64_t count) {
    int64_t stride = tensor->stride[3];
    const char *row = hla_tensor_row(tensor, b, t, h);
    row += first * stride * hla_element_size(tensor->dtype);
    if (tensor->dtype == HLA_F32 && stride == 1 && count % HLA_VECTOR_WIDTH == 0) {
        const float *in = (const float *)(const void *)row;
        for (int64_t x = 0; x < count; x += HLA_VECTOR_WIDTH)
            hla_vector_store(out + x, hla_vector_load(in + x));
    } else {
        hla_load_floats(out, row, tensor->dtype, count, stride);
    }
}

/* panels[panel][rows][HLA_TILE_COLUMNS] = rows first ... first + count - 1 of v [b,.,h,.]; count <= rows */
HLA_INLINE void pack_values(float *restrict panels, int64_t rows, const hla_tensor *v, int64_t b, int64_t h,
                            int64_t first, int64_t count) {
    int64_t columns = v->shape[3];
    if (v->dtype == HLA_F32 && v->stride[3] == 1 && columns % HLA_TILE_COLUMNS == 0) {
        for (int64_t t = 0; t < count; t++, panels += HLA_TILE_COLUMNS) {
            const float *row = hla_tensor_row(v, b, first + t, h);
            for (int64_t x = 0; x < columns; x += HLA_VECTOR_WIDTH)
                hla_vector_store(panels + x / HLA_TILE_COLUMNS * rows * HLA_TILE_COLUMNS + x % HLA_TILE_COLUMNS,
                                 hla_vector_load(row + x));
        }
        return;
    }
    for (int64_t panel = 0; panel < panel_count(columns); panel++) {
        int64_t start = panel * HLA_TILE_COLUMNS, width = hla_smaller(columns - start, HLA_TILE_COLUMNS);
        float *to = panels + panel * rows * HLA_TILE_COLUMNS;
        for (int64_t t = 0; t < count; t++, to += HLA_TILE_COLUMNS) {
            load_row(to, v, b, first + t, h, start, width);
            if (width < HLA_TILE_COLUMNS) memset(to + width, 0, (size_t)(HLA_TILE_COLUMNS - width) * sizeof *to);
        }
    }
}

/* Whether rows can be read and written in place by whole vectors. */
HLA_INLINE bool whole_vectors(const hla_tensor *tensor) {
    return tensor->dtype == HLA_F32 && tensor->stride[3] == 1 && tensor->shape[3] % HLA_VECTOR_WIDTH == 0;
}

/* Tokens from rows into lanes: lanes[t / COLUMNS][r][t % COLUMNS] = element r of row first + t [b,.,h,.], zero for
 * count <= t < count rounded up to whole panels. */
HLA_INLINE void pack_lane_rows(float *restrict lanes, const hla_tensor *from, int64_t b, int64_t h, int64_t first,
                               int64_t count) {
    int64_t columns = from->shape[3], step = from->stride[1];
    for (int64_t t = 0; t < hla_round_up(count, HLA_TILE_COLUMNS); t += HLA_VECTOR_WIDTH) {
        float *to = lanes + t / HLA_TILE_COLUMNS * columns * HLA_TILE_COLUMNS + t % HLA_TILE_COLUMNS;
        bool in_place = t + HLA_VECTOR_WIDTH <= count && whole_vectors(from);
        const float *row = in_place ? hla_tensor_row(from, b, first + t, h) : NULL;
        for (int64_t r = 0; r < columns; r += HLA_VECTOR_WIDTH) {
            int64_t width = hla_smaller(HLA_VECTOR_WIDTH, columns - r);
            hla_vector rows[HLA_VECTOR_WIDTH];
            if (in_place) {
                HLA_UNROLL(16)
                for (int i = 0; i < HLA_VECTOR_WIDTH; i++)
                    rows[i] = hla_vector_load(row + i * step + r);
            } else {
                float part[HLA_VECTOR_WIDTH][HLA_VECTOR_WIDTH] = {{0}};
                for (int i = 0; i < HLA_VECTOR_WIDTH && t + i < count; i++)
                    load_row(part[i], from, b, first + t + i, h, r, width);
                HLA_UNROLL(16)
                for (int i = 0; i < HLA_VECTOR_WIDTH; i++)
                    rows[i] = hla_vector_load(part[i]);
            }
            hla_vector_transpose(rows);
            for (int i = 0; i < width; i++, to += HLA_TILE_COLUMNS)
                hla_vector_store(to, rows[i]);
        }
    }
}

/* The way back: row first + t of `to` = lanes[t / COLUMNS][.][t % COLUMNS], where a panel has `rows` rows. */
HLA_INLINE void write_lane_rows(const hla_tensor *to, int64_t b, int64_t h, int64_t first, int64_t count,
                                const float *restrict lanes, int64_t rows) {
    int64_t columns = to->shape[3], step = to->stride[3] * hla_element_size(to->dtype);
    for (int64_t t = 0; t < count; t += HLA_VECTOR_WIDTH) {
        const float *from = lanes + t / HLA_TILE_COLUMNS * rows * HLA_TILE_COLUMNS + t % HLA_TILE_COLUMNS;
        bool in_place = t + HLA_VECTOR_WIDTH <= count && whole_vectors(to);
        for (int64_t r = 0; r < columns; r += HLA_VECTOR_WIDTH) {
            int64_t width = hla_smaller(HLA_VECTOR_WIDTH, columns - r);
            hla_vector turned[HLA_VECTOR_WIDTH];
            for (int i = 0; i < HLA_VECTOR_WIDTH; i++, from += HLA_TILE_COLUMNS)
                turned[i] = i < width ? hla_vector_load(from) : hla_vector_zero();
            hla_vector_transpose(turned);
            for (int i = 0; i < HLA_VECTOR_WIDTH && t + i < count; i++) {
                char *row = (char *)hla_tensor_row(to, b, first + t + i, h) + r * step;
                if (in_place) {
                    hla_vector_store((float *)(void *)row, turned[i]);
                } else {
                    float part[HLA_VECTOR_WIDTH];
                    hla_vector_store(part, turned[i]);
                    hla_store_floats(row, to->dtype, width, to->stride[3], part);
                }
            }
        }
    }
}

/* What the sums of HLA_VECTOR_WIDTH queries are multiplied with: 1 / (denominator + epsilon), zero where that is zero,
 * or the scale. denominators by lanes: [HLA_VECTOR_WIDTH][HLA_VECTOR_WIDTH]. */
HLA_INLINE void output_factors(const hla_hadamard_problem *problem, float factors[HLA_VECTOR_WIDTH],
                               const float *denominators, int64_t count) {
    hla_vector sums[HLA_VECTOR_WIDTH];
    HLA_UNROLL(16)
    for (int i = 0; i < HLA_VECTOR_WIDTH; i++)
        sums[i] = i < count ? hla_vector_load(denominators + i * HLA_VECTOR_WIDTH) : hla_vector_zero();
    hla_vector_transpose(sums);
    HLA_UNROLL(4)
    for (int half = HLA_VECTOR_WIDTH / 2; half > 0; half /= 2) {
        HLA_UNROLL(8)
        for (int i = 0; i < half; i++)
            sums[i] = hla_vector_add(sums[i], sums[i + half]);
    }
    hla_vector_store(factors, sums[0]);
    for (int i = 0; i < HLA_VECTOR_WIDTH; i++) {
        float denominator = factors[i] + problem->epsilon, inverse = denominator != 0 ? 1 / denominator : 0;
        factors[i] = problem->normalised ? inverse : problem->scale;
    }
}

/* Writes query tokens first ... first + count - 1 of out [b,.,h,.]:
 *     normalised    sums / (denominator + epsilon), zero where that is zero
 *     otherwise     scale * sums
 * sums [panel][rows][HLA_TILE_COLUMNS]; denominators by lanes: [count][HLA_VECTOR_WIDTH]. */
HLA_INLINE void write_rows(const hla_hadamard_call *call, const float *sums, int64_t rows, const float *denominators,
                           int64_t b, int64_t h, int64_t first, int64_t count) {
    const hla_hadamard_problem *problem = call->problem;
    const hla_tensor *out = call->out;
    int64_t step = HLA_TILE_COLUMNS * out->stride[3] * hla_element_size(out->dtype);
    float factors[HLA_VECTOR_WIDTH];
    for (int64_t t = 0; t < count; t++) {
        if (t % HLA_VECTOR_WIDTH == 0) output_factors(problem, factors, denominators + t * HLA_VECTOR_WIDTH, count - t);
        hla_vector factor = hla_vector_set(factors[t % HLA_VECTOR_WIDTH]);
        char *to = hla_tensor_row(out, b, first + t, h);
        for (int64_t panel = 0; panel < panel_count(problem->value_dim); panel++, to += step) {
            const float *from = sums + (panel * rows + t) * HLA_TILE_COLUMNS;
            int64_t width = hla_smaller(problem->value_dim - panel * HLA_TILE_COLUMNS, HLA_TILE_COLUMNS);
            bool in_place = out->dtype == HLA_F32 && out->stride[3] == 1 && width == HLA_TILE_COLUMNS;
            float buffer[HLA_TILE_COLUMNS], *row = in_place ? (float *)(void *)to : buffer;
            for (int x = 0; x < HLA_TILE_COLUMNS; x += HLA_VECTOR_WIDTH) {
                hla_vector_store(row + x, hla_vector_multiply(hla_vector_load(from + x), factor));
            }
            if (!in_place) hla_store_floats(to, out->dtype, width, out->stride[3], buffer);
        }
    }
}

/* Writes zeros for query tokens first ... first + count - 1: a row without keys. */
HLA_INLINE void write_zeros(const hla_hadamard_call *call, int64_t b, int64_t h, int64_t first, int64_t count) {
    const hla_tensor *out = call->out;
    const float zeros[HLA_TILE_COLUMNS] = {0};
    int64_t step = HLA_TILE_COLUMNS * out->stride[3] * hla_element_size(out->dtype);
    for (int64_t t = 0; t < count; t++) {
        char *to = hla_tensor_row(out, b, first + t, h);
        for (int64_t start = 0; start < out->shape[3]; start += HLA_TILE_COLUMNS, to += step) {
            hla_store_floats(to, out->dtype, hla_smaller(out->shape[3] - start, HLA_TILE_COLUMNS), out->stride[3],
                             zeros);
        }
    }
}

#endif
