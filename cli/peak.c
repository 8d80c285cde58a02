#include "cli/peak.h"
#include "cli/session.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define TURNS 400000
#define RUNS 2 /* of which the faster one counts */

#define QUOTE_(x) #x
#define QUOTE(x) QUOTE_(x)
#if defined(__clang__)
#define UNROLL(n) _Pragma(QUOTE(unroll n))
#else
#define UNROLL(n) _Pragma(QUOTE(GCC unroll n))
#endif

/* Makes the compiler believe that a register was changed, so that no product is folded and no chain dropped. */
#if defined(__x86_64__)
#define HIDE(x) __asm__ volatile("" : "+v"(x))
#else
#define HIDE(x) __asm__ volatile("" : "+w"(x))
#endif

/* `chains` sums of independent steps: enough that each has its result before its next turn (a latency of 4 at two a
 * cycle takes 8), and few enough to stay in registers beside the two operands. */
#define PROBE(name, attributes, vector, chains, one, step)                                                             \
    attributes static void name(int64_t turns) {                                                                       \
        vector sums[chains], x = (one), y = (one);                                                                     \
        HIDE(x);                                                                                                       \
        HIDE(y);                                                                                                       \
        UNROLL(chains) for (int i = 0; i < (chains); i++) sums[i] = x;                                                 \
        for (int64_t turn = 0; turn < turns; turn++) {                                                                 \
            UNROLL(chains) for (int i = 0; i < (chains); i++) {                                                        \
                sums[i] = (step);                                                                                      \
                HIDE(sums[i]);                                                                                         \
            }                                                                                                          \
        }                                                                                                              \
    }

enum { CHAINS_16 = 12, CHAINS_32 = 24 }; /* of 16 and 32 registers */

typedef float four_floats __attribute__((vector_size(16)));
/* Products and sums apart, in chains of their own: both units are busy. */
PROBE(probe_baseline, , four_floats, CHAINS_16, ((four_floats){1, 1, 1, 1}), (i % 2 ? sums[i] * x : sums[i] + y))

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2,fma")))
#define AVX512 __attribute__((target("avx512f")))
#define AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
PROBE(probe_avx2, AVX2, __m256, CHAINS_16, _mm256_set1_ps(1), _mm256_fmadd_ps(x, y, sums[i]))
PROBE(probe_avx512, AVX512, __m512, CHAINS_32, _mm512_set1_ps(1), _mm512_fmadd_ps(x, y, sums[i]))
PROBE(probe_avx512_bf16, AVX512_BF16, __m512, CHAINS_32, _mm512_set1_ps(1),
      _mm512_dpbf16_ps(sums[i], (__m512bh)_mm512_castps_si512(x), (__m512bh)_mm512_castps_si512(y)))
#elif defined(__aarch64__)
PROBE(probe_neon, , float32x4_t, CHAINS_32, vdupq_n_f32(1), vfmaq_f32(sums[i], x, y))
#endif

static const struct {
    const char *name, *suffix; /* of the kernels */
    void (*probe)(int64_t turns);
    int operations; /* a turn */
} units[] = {
    [PEAK_BASELINE] = {"baseline multiply and add", "baseline", probe_baseline, 4 * CHAINS_16},
#if defined(__x86_64__)
    [PEAK_AVX2] = {"AVX2 FMA", "avx2", probe_avx2, 2 * 8 * CHAINS_16},
    [PEAK_AVX512] = {"AVX-512 FMA", "avx512", probe_avx512, 2 * 16 * CHAINS_32},
    [PEAK_AVX512_BF16] = {"AVX-512 BF16 dot product", "avx512_bf16", probe_avx512_bf16, 4 * 16 * CHAINS_32},
#elif defined(__aarch64__)
    [PEAK_NEON] = {"NEON FMA", "neon", probe_neon, 2 * 4 * CHAINS_32},
#endif
};
#define UNIT_COUNT ((int)(sizeof units / sizeof units[0]))

const char *peak_name(peak_unit unit) {
    return units[unit].name;
}

bool peak_runs(peak_unit unit) {
    if ((int)unit >= UNIT_COUNT || units[unit].probe == NULL) return false;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (unit == PEAK_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (unit == PEAK_AVX512) return __builtin_cpu_supports("avx512f") != 0;
    if (unit == PEAK_AVX512_BF16) return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vl");
#endif
    return true;
}

static peak_unit widest(void) {
    static const peak_unit order[] = {PEAK_NEON, PEAK_AVX512, PEAK_AVX2};
    for (size_t i = 0; i < sizeof order / sizeof order[0]; i++)
        if (peak_runs(order[i])) return order[i];
    return PEAK_BASELINE;
}

peak_unit peak_of(const char *kernel, hla_dtype dtype) {
    peak_unit unit = widest();
    for (int i = UNIT_COUNT - 1; kernel != NULL && i >= 0; i--)
        if (units[i].suffix != NULL && strstr(kernel, units[i].suffix) != NULL) {
            unit = (peak_unit)i;
            break;
        }
    if (unit == PEAK_AVX512_BF16) unit = PEAK_AVX512;
    return unit == PEAK_AVX512 && dtype == HLA_BF16 && peak_runs(PEAK_AVX512_BF16) ? PEAK_AVX512_BF16 : unit;
}

double peak_measure(peak_unit unit, int threads) {
    double best = INFINITY;
    for (int run = 0; run < RUNS; run++) {
        double start = seconds_now();
        /* Bound to places where OMP_PLACES names them, like the kernels' threads. */
#pragma omp parallel num_threads(threads) proc_bind(spread)
        units[unit].probe(TURNS);
        best = fmin(best, seconds_now() - start);
    }
    return (double)threads * TURNS * units[unit].operations / best;
}
