/* Gradients of the feature maps in float32, for any size, type and strides.
 *
 * Each head's blocks of tokens are cut into chunks whose number depends on nothing but the problem. A block of threads
 * takes a chunk: tokens of a block are summed in registers, blocks in a run, runs in the chunk's total, all by the same
 * thread in the same order; then the chunks are added, in double. So the same call gives the same bits, and a million
 * equal terms add up.
 */
#include "attention/ops/feature_map/cuda/block.cuh"

namespace {

constexpr int RUN = 32; /* blocks summed up before they go to the chunk's total */

/* out [rows][outputs] (+)= in [rows][terms] times weight [terms][outputs]. Starts and ends with a barrier. */
__device__ void multiply_rows(float *out, const float *in, const float *weight, float *tile, int rows, int outputs,
                              int terms, bool add) {
    const int in_row = padded(terms), out_row = padded(outputs), tile_row = TILE + 4;
    const int column = (int)threadIdx.x % 16 * 4, line = (int)threadIdx.x / 16;
    for (int n = 0; n < outputs; n += TILE) {
        float sum[2][4] = {};
        for (int k = 0; k < terms; k += DEPTH) {
            __syncthreads();
            for (int i = (int)threadIdx.x; i < TILE * DEPTH; i += THREADS) {
                int r = i / TILE, x = i % TILE;
                bool there = k + r < terms && n + x < outputs;
                tile[r * tile_row + x] = there ? weight[(int64_t)(k + r) * outputs + n + x] : 0;
            }
            __syncthreads();
            const int last = min(DEPTH, in_row - k);
            for (int r = 0; r < last; r++) {
                float4 w = *(const float4 *)(tile + r * tile_row + column);
#pragma unroll
                for (int j = 0; j < 2; j++) {
                    float a = in[min(line + 16 * j, rows - 1) * in_row + k + r];
                    sum[j][0] = fmaf(a, w.x, sum[j][0]);
                    sum[j][1] = fmaf(a, w.y, sum[j][1]);
                    sum[j][2] = fmaf(a, w.z, sum[j][2]);
                    sum[j][3] = fmaf(a, w.w, sum[j][3]);
                }
            }
        }
#pragma unroll
        for (int j = 0; j < 2; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int x = n + column + i;
                if (line + 16 * j >= rows || x >= out_row) continue;
                float *to = out + (line + 16 * j) * out_row + x;
                *to = add ? *to + sum[j][i] : sum[j][i];
            }
        }
    }
    __syncthreads();
}

/* weight [width][D] += a^T b over the rows of a block, and bias [width] += a's sum; a [rows][width], b [rows][D]. */
__device__ void add_outer(float *weight, float *bias, const float *a, const float *b, int rows, int width, int dim) {
    const int a_row = padded(width), b_row = padded(dim);
    const int line = (int)threadIdx.x / 16 * 4, column = (int)threadIdx.x % 16 * 4;
    for (int r = line; r < a_row; r += TILE) {
        for (int x = column; x < b_row; x += TILE) {
            float sum[4][4] = {};
            for (int t = 0; t < rows; t++) {
                float4 left = *(const float4 *)(a + t * a_row + r), right = *(const float4 *)(b + t * b_row + x);
                const float l[4] = {left.x, left.y, left.z, left.w}, w[4] = {right.x, right.y, right.z, right.w};
#pragma unroll
                for (int i = 0; i < 16; i++)
                    sum[i / 4][i % 4] = fmaf(l[i / 4], w[i % 4], sum[i / 4][i % 4]);
            }
#pragma unroll
            for (int i = 0; i < 16; i++) {
                if (r + i / 4 < width && x + i % 4 < dim)
                    weight[(int64_t)(r + i / 4) * dim + x + i % 4] += sum[i / 4][i % 4];
            }
        }
    }
    for (int r = (int)threadIdx.x; r < width; r += THREADS) {
        float sum = 0;
        for (int t = 0; t < rows; t++)
            sum += a[t * a_row + r];
        bias[r] += sum;
    }
}

/* e = dL/dy of one row becomes dL/du, by a warp; u is used up. */
__device__ void differentiate_row(float *e, float *u, const float *bias, const hla_cuda_map &map) {
    const int lane = (int)threadIdx.x % 32, rank = map.rank;
    const float largest = add_bias(u, bias, rank), shift = shifts_by_largest(map) ? largest : map.shift;
    if (map.activation == HLA_ACTIVATION_SOFTMAX) { /* y_r (e_r - sum_s y_s e_s) */
        float total = 0, sum = 0;
        for (int r = lane; r < rank; r += 32) {
            float y = u[r] = expf(u[r] - shift);
            total += y;
            sum = fmaf(y, e[r], sum);
        }
        float factor = 1 / warp_sum(total), mean = warp_sum(sum) * factor;
        for (int r = lane; r < rank; r += 32)
            e[r] = u[r] * factor * (e[r] - mean);
        return;
    }
    float sum = 0;
    int place = rank; /* of the first largest */
    for (int r = lane; r < rank; r += 32) {
        sum += e[r] = differentiate(map.activation, e[r], u[r], shift);
        if (u[r] == largest) place = min(place, r);
    }
    if (map.activation != HLA_ACTIVATION_EXP || !map.is_query) return;
    sum = warp_sum(sum);
    place = (int)__reduce_min_sync(0xffffffffu, (unsigned)place);
    __syncwarp();
    if (lane == 0 && place < rank) e[place] -= sum;
}

/* Pointers into shared memory: x, hidden, z, dx [rows][D], u, e [rows][R], a tile of weights. */
struct scratch {
    float *x, *hidden, *z, *dx, *u, *e, *tile;
};

__device__ scratch carve(float *shared, const hla_cuda_map &map, int rows) {
    const int wide = rows * padded(map.dim), narrow = rows * padded(map.rank);
    scratch own;
    own.x = shared;
    own.dx = own.x + wide;
    own.u = own.dx + wide;
    own.e = own.u + narrow;
    own.tile = own.e + narrow;
    own.z = own.tile + TILE_FLOATS; /* only with a hidden layer */
    own.hidden = own.z + wide;
    return own;
}

/* Sums of one head's weight gradients. */
struct sums {
    float *weight, *bias, *hidden_weight, *hidden_bias;
};

__device__ sums sums_at(float *base, const hla_cuda_map &map) {
    const int64_t dim = map.dim, rank = map.rank;
    return {base, base + rank * dim, base + rank * (dim + 1), base + rank * (dim + 1) + dim * dim};
}

/* Sums that are in use: the hidden ones, which come last, only with a hidden layer. */
__device__ int64_t used_sums(const hla_cuda_map &map) {
    return map.hidden_weight ? map.size : (int64_t)map.rank * (map.dim + 1);
}

/* From du = e: dx of a block, and what it gives to the hidden layer's gradients. */
__device__ void differentiate_input(const hla_cuda_map &map, const scratch &own, const sums &run, int rows, int64_t b,
                                    int64_t h, int64_t first) {
    const int dim = map.dim;
    multiply_rows(own.dx, own.e, map.weight + h * map.rank * dim, own.tile, rows, dim, map.rank, false);
    if (map.hidden_weight) {
        for (int i = (int)threadIdx.x; i < rows * padded(dim); i += THREADS)
            own.z[i] = own.z[i] > 0 ? own.dx[i] : 0; /* now dz */
        __syncthreads();
        add_outer(run.hidden_weight, run.hidden_bias, own.z, own.x, rows, dim, dim);
        if (map.dx.data)
            multiply_rows(own.dx, own.z, map.hidden_weight + h * dim * dim, own.tile, rows, dim, dim, true);
    }
    if (!map.dx.data) return;
    if (map.rope) {
        turn_rows(own.dx, map, rows, first, -1);
        __syncthreads();
    }
    store_rows(map.dx, own.dx, map.dtype, dim, rows, b, h, first, map.tokens);
}

/* One block of tokens of one head; weight gradients are added to run. */
__device__ void differentiate_block(const hla_cuda_map &map, const scratch &own, const sums &run, int rows, int64_t b,
                                    int64_t h, int64_t first) {
    const int dim = map.dim, rank = map.rank;
    const float *hidden = own.x;
    __syncthreads();
    load_rows(own.x, map.x, map.dtype, dim, rows, b, h, first, map.tokens);
    load_rows(own.e, map.out, map.dtype, rank, rows, b, h, first, map.tokens);
    if (map.rope) {
        __syncthreads();
        turn_rows(own.x, map, rows, first, 1);
    }
    if (map.hidden_weight) {
        multiply(own.z, own.x, map.hidden_weight + h * dim * dim, own.tile, rows, dim, dim);
        finish_hidden(own.hidden, own.z, own.z, own.x, map.hidden_bias ? map.hidden_bias + h * dim : NULL, rows, dim);
        hidden = own.hidden;
    }
    multiply(own.u, hidden, map.weight + h * rank * dim, own.tile, rows, rank, dim);
    for (int t = (int)threadIdx.x / 32; t < rows && first + t < map.tokens; t += THREADS / 32) {
        differentiate_row(own.e + t * padded(rank), own.u + t * padded(rank), map.bias ? map.bias + h * rank : NULL,
                          map);
    }
    __syncthreads();
    if (map.gradients.weight || map.gradients.bias) add_outer(run.weight, run.bias, own.e, hidden, rows, rank, dim);
    if (map.dx.data || map.gradients.hidden_weight || map.gradients.hidden_bias)
        differentiate_input(map, own, run, rows, b, h, first);
}

/* total += run, and run is cleared. */
__device__ void move_sums(float *total, float *run, int64_t count) {
    __syncthreads();
    for (int64_t i = threadIdx.x; i < count; i += THREADS) {
        total[i] += run[i];
        run[i] = 0;
    }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS) differentiate_chunks(const __grid_constant__ hla_cuda_map map, int rows) {
    extern __shared__ __align__(16) float shared[];
    const scratch own = carve(shared, map, rows);
    const int64_t blocks = (map.tokens - 1) / rows + 1, all = map.batch * blocks, units = map.heads * map.chunks;
    const int64_t size = map.size, used = used_sums(map);
    const int64_t each = all / map.chunks, more = all % map.chunks;
    for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
        const int64_t h = unit % map.heads, chunk = unit / map.heads;
        const int64_t start = chunk * each + min(chunk, more), end = start + each + (chunk < more);
        float *total = map.sums + (h * map.chunks + chunk) * size, *run = total + units * size;
        for (int64_t i = threadIdx.x; i < used; i += THREADS)
            total[i] = run[i] = 0;
        for (int64_t i = start; i < end; i++) {
            differentiate_block(map, own, sums_at(run, map), rows, i / blocks, h, i % blocks * rows);
            if ((i - start) % RUN == RUN - 1) move_sums(total, run, used);
        }
        move_sums(total, run, used);
    }
}

/* gradient [H][count]: the chunks' totals, whose part of that gradient starts at offset, in their order. */
__global__ void __launch_bounds__(THREADS) add_chunks(float *gradient, const float *totals, int64_t heads,
                                                      int64_t chunks, int64_t size, int64_t offset, int64_t count) {
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < heads * count;
         i += (int64_t)gridDim.x * THREADS) {
        const float *from = totals + i / count * chunks * size + offset + i % count;
        double sum = 0;
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            sum += (double)from[chunk * size];
        gradient[i] = (float)sum;
    }
}

int finish(float *gradient, const hla_cuda_map *map, int64_t offset, int64_t count, cudaStream_t stream) {
    if (!gradient) return 0;
    int64_t blocks = (map->heads * count - 1) / THREADS + 1, most = 65535;
    add_chunks<<<(unsigned)(blocks < most ? blocks : most), THREADS, 0, stream>>>(
        gradient, map->sums, map->heads, map->chunks, map->size, offset, count);
    return (int)cudaGetLastError();
}

} // namespace

extern "C" int hla_cuda_map_finish_backward(const hla_cuda_map *map, void *stream) {
    const int64_t dim = map->dim, rank = map->rank;
    const hla_feature_map_weight_gradients &wanted = map->gradients;
    cudaStream_t queue = (cudaStream_t)stream;
    int error = finish(wanted.weight, map, 0, rank * dim, queue);
    if (error == 0) error = finish(wanted.bias, map, rank * dim, rank, queue);
    if (error == 0) error = finish(wanted.hidden_weight, map, rank * (dim + 1), dim * dim, queue);
    if (error == 0) error = finish(wanted.hidden_bias, map, rank * (dim + 1) + dim * dim, dim, queue);
    return error;
}

extern "C" int hla_cuda_map_backward(const hla_cuda_map *map, void *stream) {
    int64_t floats = (map->hidden_weight ? 4 : 2) * (int64_t)padded(map->dim) + 2 * padded(map->rank);
    int rows = block_rows(floats);
    int64_t units = map->heads * map->chunks, most = INT32_MAX;
    size_t bytes = (size_t)(rows * floats + TILE_FLOATS) * sizeof(float);
    cudaError_t error =
        cudaFuncSetAttribute(differentiate_chunks, cudaFuncAttributeMaxDynamicSharedMemorySize, HLA_CUDA_MAP_SHARED);
    if (error != cudaSuccess) return (int)error;
    differentiate_chunks<<<(unsigned)(units < most ? units : most), THREADS, bytes, (cudaStream_t)stream>>>(*map, rows);
    error = cudaGetLastError();
    return error == cudaSuccess ? hla_cuda_map_finish_backward(map, stream) : (int)error;
}
