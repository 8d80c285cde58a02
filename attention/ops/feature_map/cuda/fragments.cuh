/* attention/ops/feature_map/cuda/fragments.cuh - products of 16 tokens with weights on tensor cores (mma.sync m16n8k16,
 * sm_80 and later), laid out so that inputs and outputs move 16 bytes at a time and never pass through shared memory.
 *
 * Lane 4g + q of a warp holds rows g and g + 8. A sum does not care about the order of its terms: of 32 inputs the lane
 * reads 8q ... 8q + 7, contiguous, and calls them terms 2q, 2q + 1, 2q + 8, 2q + 9 of two steps of 16; weights are laid
 * out likewise. Nor about the order of results: output 8q + 2i + e of 32 is column 2q + e of tile i, so that the lane
 * ends up with eight contiguous ones, which are the next product's inputs as they stand.
 *
 * Weights are float32 and become two 16-bit numbers whose sum they are to 16 (bfloat16) or 22 bits; those of float16
 * are first multiplied by a power of two that brings the largest to 2^13, so that neither part leaves the type's range.
 */
#ifndef HLA_OPS_FEATURE_MAP_CUDA_FRAGMENTS_CUH
#define HLA_OPS_FEATURE_MAP_CUDA_FRAGMENTS_CUH

#include "attention/cuda/pairs.cuh"
#include "attention/ops/feature_map/cuda/elements.cuh"

namespace {

/* Row of the weights, within a group of 8 TILES, that is column n of the group's tile i; TILES is 2 or 4. */
template <int TILES> __device__ __forceinline__ int weight_row(int i, int n) {
    return 2 * TILES * (n / 2) + 2 * i + n % 2;
}

/* The power of two that weights [count] are multiplied by, for all threads of the block; starts and ends with a
 * barrier. */
template <class type, int THREADS> __device__ float weight_scale(const float *weight, int count, float *largest) {
    if (!type::scaled) return 1;
    float own = 0;
    for (int i = (int)threadIdx.x; i < count; i += THREADS)
        own = fmaxf(own, fabsf(weight[i]));
    for (int step = 16; step > 0; step /= 2)
        own = fmaxf(own, __shfl_xor_sync(0xffffffffu, own, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) largest[threadIdx.x / 32] = own;
    __syncthreads();
    for (int i = 0; i < THREADS / 32; i++)
        own = fmaxf(own, largest[i]);
    return own > 0 && own < INFINITY ? ldexpf(1, min(max(13 - ilogbf(own), -100), 100)) : 1;
}

/* Weights [rows][dim] times scale into panels [chunk of 32 terms][tile][lane], 16 bytes each: high parts, then as many
 * low ones. Missing rows and columns are zero. dim is a multiple of 8, weights are aligned to 16 bytes. */
template <class type, int CHUNKS, int ALL_TILES, int TILES, int THREADS>
__device__ void pack_weights(uint4 *panels, const float *weight, int rows, int dim, float scale) {
    constexpr int COUNT = CHUNKS * ALL_TILES * 32;
    for (int i = (int)threadIdx.x; i < COUNT; i += THREADS) {
        const int lane = i % 32, tile = i / 32 % ALL_TILES, chunk = i / 32 / ALL_TILES;
        const int row = tile / TILES * TILES * 8 + weight_row<TILES>(tile % TILES, lane / 4);
        const int column = chunk * 32 + lane % 4 * 8;
        uint32_t high[4] = {}, low[4] = {};
        if (row < rows && column < dim) {
            const float4 *from = (const float4 *)(weight + row * dim + column);
            const float4 a = from[0], b = from[1];
            const float w[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float first = w[2 * j] * scale, second = w[2 * j + 1] * scale;
                high[j] = type::pack(first, second);
                float2 rounded = type::unpack(high[j]);
                low[j] = type::pack(first - rounded.x, second - rounded.y);
            }
        }
        panels[i] = make_uint4(high[0], high[1], high[2], high[3]);
        panels[COUNT + i] = make_uint4(low[0], low[1], low[2], low[3]);
    }
}

/* Of rows g and g + 8: eight inputs of each chunk of 32, as pairs. */
template <int CHUNKS> struct rows16 { uint4 row[CHUNKS][2]; };

/* sum [TILES][4] += the warp's rows times tiles first ... first + TILES - 1 of packed weights. */
template <class type, int CHUNKS, int ALL_TILES, int TILES>
__device__ __forceinline__ void multiply_tiles(float (&sum)[TILES][4], const rows16<CHUNKS> &in, const uint4 *panels,
                                               int first) {
    constexpr int COUNT = CHUNKS * ALL_TILES * 32;
    const int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        const uint4 a = in.row[chunk][0], b = in.row[chunk][1];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            const uint4 *panel = panels + (chunk * ALL_TILES + first + i) * 32 + lane;
            const uint4 high = panel[0], low = panel[COUNT];
            type::mma(sum[i], a.x, b.x, a.y, b.y, low.x, low.y);
            type::mma(sum[i], a.z, b.z, a.w, b.w, low.z, low.w);
            type::mma(sum[i], a.x, b.x, a.y, b.y, high.x, high.y);
            type::mma(sum[i], a.z, b.z, a.w, b.w, high.z, high.w);
        }
    }
}

} // namespace

#endif
