/* attention/ops/hadamard/cuda/pairs_sm90.cuh - the causal part on Hopper: pairs of the tokens of a query tile with the
 * keys behind the tile's snapshot, through their scores. Of a warpgroup's 64 tokens and 32 keys at a time:
 *
 *     A = (f1q f1k^T) o (f2q f2k^T)        both operands in shared memory, float32 sums
 *     n += A v,  d += A 1                   A masked and rounded to 16 bits, which fragments of D are as those of A
 *
 * In float16 a row of A is scaled so that its largest number so far is in range, and what was summed before with it.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_PAIRS_SM90_CUH
#define HLA_OPS_HADAMARD_CUDA_PAIRS_SM90_CUH

#include "attention/ops/hadamard/cuda/ptx.cuh"
#include "attention/ops/hadamard/cuda/wgmma.cuh"

namespace pairs {

constexpr int KEYS = 64;    /* of a stage */
constexpr int COLUMNS = 32; /* of A at a time: more would not leave registers enough */

/* Sums of a warpgroup's 64 tokens over pairs, columns of n in the order of v. */
template <int V> struct sums {
    float (&n)[V / 2];
    float (&d)[2];     /* of this lane's keys */
    float (&scale)[2]; /* of the rows, a power of two */
};

/* Rows of features in shared memory, as copied: halves of 64 columns. */
struct rows {
    uint32_t at;
    int half, row; /* bytes from one half to the next, and of a swizzled row */
};

/* Queues scores = q k^T. */
template <bool HALF>
__device__ __forceinline__ void multiply_scores(float (&scores)[COLUMNS / 2], const rows &q, const rows &k, int rank) {
    const uint32_t swizzle = q.row == 128 ? wgmma::SWIZZLE_128 : q.row == 64 ? wgmma::SWIZZLE_64 : wgmma::SWIZZLE_32;
    auto add_step = [&](int step) {
        const uint32_t within = (step & 3) * 32;
        wgmma::multiply_rows<HALF>(scores, wgmma::describe(q.at + step / 4 * q.half + within, 16, 8 * q.row, swizzle),
                                   wgmma::describe(k.at + step / 4 * k.half + within, 16, 8 * k.row, swizzle),
                                   step > 0);
    };
    add_step(0); /* apart, so that no register but those of products is ever a sum */
#pragma unroll 1
    for (int step = 1; step < rank / 16; step++)
        add_step(step);
}

/* Multiplies the scores of both factors. seen[r]: keys that row r sees, counted from the lane's first column. */
__device__ __forceinline__ void multiply_elements(float (&a)[COLUMNS / 2], const float (&b)[COLUMNS / 2],
                                                  const int (&seen)[2]) {
#pragma unroll
    for (int i = 0; i < COLUMNS / 2; i++)
        a[i] = 8 * (i / 4) + i % 2 < seen[i / 2 % 2] ? a[i] * b[i] : 0.0f;
}

/* Scales the rows of A; where one grows beyond what its scale allows, also what was summed before. */
template <int V> __device__ __forceinline__ void scale_rows(const sums<V> &to, float (&a)[COLUMNS / 2]) {
    constexpr float LARGEST = 16384;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float most = 0;
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++)
            most = fmaxf(most, fabsf(a[i / 2 * 4 + 2 * r + i % 2]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        const float scale = most * to.scale[r] > LARGEST ? exp2f(floorf(log2f(LARGEST / most))) : to.scale[r];
        const float change = scale / to.scale[r];
        to.scale[r] = scale, to.d[r] *= change;
        if (__any_sync(0xffffffffu, change != 1.0f)) {
#pragma unroll
            for (int i = 0; i < V / 4; i++)
                to.n[i / 2 * 4 + 2 * r + i % 2] *= change;
        }
#pragma unroll
        for (int i = 0; i < COLUMNS / 4; i++)
            a[i / 2 * 4 + 2 * r + i % 2] *= scale;
    }
}

/* Queues n += A v, and adds A's rows to d. */
template <int V, bool HALF>
__device__ __forceinline__ void add_values(const sums<V> &to, const float (&a)[COLUMNS / 2], uint32_t v) {
    uint32_t fragments[COLUMNS / 16][4];
#pragma unroll
    for (int i = 0; i < COLUMNS / 4; i++) {
        uint32_t &pair = fragments[i / 4][i % 4];
        pair = ptx::pack<HALF>(a[2 * i], a[2 * i + 1]);
        const float2 weights = ptx::unpack<HALF>(pair);
        to.d[i % 2] += weights.x + weights.y;
    }
    wgmma::fence();
    const uint64_t values = wgmma::describe(v, 8192, 1024, wgmma::SWIZZLE_128);
#pragma unroll
    for (int step = 0; step < COLUMNS / 16; step++)
        wgmma::multiply<HALF, wgmma::MAJOR_N>(to.n, fragments[step], values + (uint64_t)(step * 128), 1);
    wgmma::commit();
}

/* Brings columns of n into the order of S's, which is also that in which results are written: number p of lane q goes
 * to number q of lane p, of four each. */
template <int V>
__device__ __forceinline__ void permute_columns(float (&n)[V / 2], const float (&factor)[2], int lane) {
#pragma unroll
    for (int j = 0; j < V / 32; j++)
#pragma unroll
        for (int r = 0; r < 2; r++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float *of_p = &n[16 * j + 2 * r + e]; /* of_p[4p] */
#pragma unroll
                for (int bit = 1; bit < 4; bit *= 2)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float &low = of_p[4 * (bit == 1 ? 2 * i : i)];
                        float &high = of_p[4 * ((bit == 1 ? 2 * i : i) + bit)];
                        const bool upper = lane & bit;
                        const float other = __shfl_xor_sync(0xffffffffu, upper ? low : high, bit);
                        low = upper ? other : low, high = upper ? high : other;
                    }
#pragma unroll
                for (int p = 0; p < 4; p++)
                    of_p[4 * p] *= factor[r];
            }
}

} // namespace pairs

#endif
