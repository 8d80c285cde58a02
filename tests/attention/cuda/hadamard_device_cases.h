/* tests/attention/cuda/hadamard_device_cases.h - larger shapes, those of the fast kernels, beside hadamard_cases. */
#ifndef HLA_TESTS_CUDA_HADAMARD_DEVICE_CASES_H
#define HLA_TESTS_CUDA_HADAMARD_DEVICE_CASES_H

#include "tests/attention/hadamard_cases.h"

static const hadamard_case device_cases[] = {
    /* B, H, Tq, Tk, V, P, ranks, layout, modes */
    {1, 1, 300, 300, 128, 2, {16, 16}, LAYOUT_BTHD, 0},
    {1, 2, 300, 1000, 64, 2, {16, 16}, LAYOUT_BHTD, 0},
    {1, 1, 130, 4100, 128, 2, {32, 32}, LAYOUT_BTHD, 0},
    {1, 2, 300, 300, 64, 2, {32, 32}, LAYOUT_BHTD, 0},
    {1, 2, 300, 300, 128, 2, {64, 64}, LAYOUT_BTHD, 0},
    {1, 1, 64, 4100, 64, 2, {64, 64}, LAYOUT_BHTD, 0},
    {1, 1, 300, 300, 128, 2, {128, 128}, LAYOUT_BTHD, 0},
    {1, 1, 100, 1000, 64, 2, {128, 128}, LAYOUT_BHTD, 0},
    {1, 1, 300, 300, 128, 2, {64, 32}, LAYOUT_BHTD, 0},
    {1, 1, 300, 300, 64, 2, {32, 64}, LAYOUT_BTHD, 0},
    {1, 1, 270, 300, 128, 2, {16, 128}, LAYOUT_BTHD, 0},
    {1, 1, 270, 300, 128, 2, {128, 16}, LAYOUT_BHTD, 0},
    {1, 1, 4100, 70, 128, 2, {32, 16}, LAYOUT_BTHD, 0},
    {1, 1, 300, 300, 128, 3, {8, 8, 8}, LAYOUT_BTHD, 0},
    {1, 1, 300, 300, 64, 3, {16, 16, 16}, LAYOUT_BHTD, 0},
    {1, 1, 300, 300, 128, 3, {16, 8, 16}, LAYOUT_BTHD, 0},
    {2, 2, 100, 257, 128, 2, {64, 64}, LAYOUT_BTHD, LENGTHS},
    {3, 2, 130, 300, 64, 2, {32, 32}, LAYOUT_BHTD, LENGTHS | GROUPED},
    {1, 4, 200, 300, 128, 2, {32, 32}, LAYOUT_BTHD, GROUPED},
    {1, 2, 700, 600, 128, 2, {32, 32}, LAYOUT_BTHD, PACKED},
    {1, 2, 300, 300, 64, 2, {64, 64}, LAYOUT_BHTD, PACKED | GROUPED},
    {1, 1, 300, 300, 128, 2, {64, 64}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 1000, 1000, 64, 2, {16, 16}, LAYOUT_BHTD, CAUSAL},
    {1, 2, 1000, 1000, 128, 2, {32, 32}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 1500, 1500, 64, 2, {64, 64}, LAYOUT_BHTD, CAUSAL},
    {1, 4, 300, 300, 128, 2, {32, 64}, LAYOUT_BTHD, CAUSAL | GROUPED},
    {2, 1, 300, 290, 128, 2, {32, 32}, LAYOUT_BHTD, CAUSAL | LENGTHS},
    {1, 2, 1000, 900, 64, 2, {32, 32}, LAYOUT_BTHD, CAUSAL | PACKED},
    {1, 1, 1700, 1700, 128, 2, {32, 32}, LAYOUT_BHTD, CAUSAL}, /* four chunks of the fast path */
    {1, 2, 1400, 1400, 64, 2, {16, 64}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 800, 800, 128, 2, {128, 16}, LAYOUT_BTHD, CAUSAL},
    {1, 1, 600, 600, 64, 2, {128, 128}, LAYOUT_BHTD, CAUSAL},
    {1, 2, 1300, 500, 128, 2, {16, 32}, LAYOUT_BTHD, CAUSAL}, /* queries behind the last key, and behind its chunk */
    {1, 2, 300, 1300, 64, 2, {32, 16}, LAYOUT_BHTD, CAUSAL},
    {3, 2, 700, 690, 128, 2, {16, 16}, LAYOUT_BTHD, CAUSAL | LENGTHS | GROUPED},
    {1, 4, 1500, 1500, 128, 2, {16, 16}, LAYOUT_BTHD, CAUSAL | PACKED | GROUPED},
    {1, 1, 300, 300, 64, 3, {8, 8, 8}, LAYOUT_BTHD, CAUSAL},
    {1, 2, 300, 300, 128, 1, {128}, LAYOUT_BTHD, CAUSAL}, /* one and four factors, odd multiples of 8 and 16 */
    {1, 4, 260, 300, 48, 1, {24}, LAYOUT_BHTD, GROUPED},
    {2, 2, 300, 270, 64, 3, {16, 8, 16}, LAYOUT_BTHD, CAUSAL | LENGTHS},
    {1, 2, 300, 290, 128, 4, {8, 8, 8, 8}, LAYOUT_BHTD, CAUSAL | PACKED},
    {1, 4, 700, 700, 80, 2, {24, 40}, LAYOUT_BTHD, CAUSAL | GROUPED},
    {1, 2, 70, 140, 128, 2, {32, 32}, LAYOUT_BTHD, STATEFUL},
    {1, 2, 300, 300, 64, 2, {32, 32}, LAYOUT_BHTD, STATEFUL | CAUSAL | GROUPED},
    {2, 1, 60, 150, 128, 2, {64, 64}, LAYOUT_BTHD, STATEFUL | LENGTHS},
    {1, 2, 300, 300, 128, 2, {16, 32}, LAYOUT_BTHD, STATEFUL | PACKED | CAUSAL},
    {1, 2, 1, 1, 128, 2, {64, 64}, LAYOUT_BTHD, STATEFUL},
    {1, 2, 300, 300, 128, 2, {32, 32}, LAYOUT_PADDED, 0}, /* rows that are not aligned to 16 bytes */
    {1, 2, 300, 300, 64, 2, {32, 32}, LAYOUT_TRANSPOSED, CAUSAL},
    {1, 2, 130, 600, 200, 2, {20, 50}, LAYOUT_BTHD, 0},
    {1, 1, 300, 300, 72, 2, {200, 3}, LAYOUT_BTHD, CAUSAL},
};
enum { DEVICE_CASES = sizeof device_cases / sizeof device_cases[0] };

#endif
