/* Feature maps in float32, for any size, type and strides: a block of tokens of one head at a time in shared memory. */
#include "attention/ops/feature_map/cuda/block.cuh"

namespace {

/* act(u + bias) of one row, by a warp. */
__device__ void activate_row(float *u, const float *bias, const hla_cuda_map &map) {
    const int lane = (int)threadIdx.x % 32;
    const float largest = add_bias(u, bias, map.rank), shift = shifts_by_largest(map) ? largest : map.shift;
    float sum = 0;
    for (int r = lane; r < map.rank; r += 32)
        sum += u[r] = activate(map.activation, u[r], map.floor, shift);
    if (map.activation != HLA_ACTIVATION_SOFTMAX) return;
    sum = warp_sum(sum);
    for (int r = lane; r < map.rank; r += 32)
        u[r] /= sum;
}

/* Shared memory: x [rows][D], hidden [rows][D] if there is a hidden layer, features [rows][R], a tile of weights.
 * Heads fastest: in [B,T,H,D] they lie side by side. */
__global__ void __launch_bounds__(THREADS) map_blocks(const __grid_constant__ hla_cuda_map map, int rows) {
    extern __shared__ __align__(16) float shared[];
    float *x = shared, *hidden = x + rows * padded(map.dim);
    float *features = map.hidden_weight ? hidden + rows * padded(map.dim) : hidden;
    float *tile = features + rows * padded(map.rank);
    const int64_t blocks = (map.tokens - 1) / rows + 1, units = map.batch * blocks * map.heads;
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const int64_t h = unit % map.heads, b = unit / map.heads / blocks, first = unit / map.heads % blocks * rows;
        const float *in = x;
        load_rows(x, map.x, map.dtype, map.dim, rows, b, h, first, map.tokens);
        if (map.rope) {
            __syncthreads();
            turn_rows(x, map, rows, first, 1);
        }
        if (map.hidden_weight) {
            multiply(hidden, x, map.hidden_weight + h * map.dim * map.dim, tile, rows, map.dim, map.dim);
            finish_hidden(hidden, NULL, hidden, x, map.hidden_bias ? map.hidden_bias + h * map.dim : NULL, rows,
                          map.dim);
            in = hidden;
        }
        multiply(features, in, map.weight + h * map.rank * map.dim, tile, rows, map.rank, map.dim);
        for (int t = (int)threadIdx.x / 32; t < rows; t += THREADS / 32)
            activate_row(features + t * padded(map.rank), map.bias ? map.bias + h * map.rank : NULL, map);
        __syncthreads();
        store_rows(map.out, features, map.dtype, map.rank, rows, b, h, first, map.tokens);
        __syncthreads();
    }
}

} // namespace

extern "C" bool hla_cuda_map_fits(int64_t dim, int64_t rank, bool backward) {
    if (dim > HLA_CUDA_MAP_SHARED || rank > HLA_CUDA_MAP_SHARED) return false;
    int64_t wide = padded((int)dim), narrow = padded((int)rank);
    return block_rows(backward ? 4 * wide + 2 * narrow : 2 * wide + narrow) > 0;
}

extern "C" int hla_cuda_map_forward(const hla_cuda_map *map, void *stream) {
    int64_t floats = (map->hidden_weight ? 2 : 1) * (int64_t)padded(map->dim) + padded(map->rank);
    int rows = block_rows(floats);
    int64_t units = map->batch * ((map->tokens - 1) / rows + 1) * map->heads, most = INT32_MAX;
    size_t bytes = (size_t)(rows * floats + TILE_FLOATS) * sizeof(float);
    cudaError_t error =
        cudaFuncSetAttribute(map_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, HLA_CUDA_MAP_SHARED);
    if (error != cudaSuccess) return (int)error;
    map_blocks<<<(unsigned)(units < most ? units : most), THREADS, bytes, (cudaStream_t)stream>>>(*map, rows);
    return (int)cudaGetLastError();
}
