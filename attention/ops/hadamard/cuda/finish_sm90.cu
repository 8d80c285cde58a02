/* Between the kernels that build states and those that read them: adds the partial sums of states that were built in
 * parts, in the order of the line, and an initial state; gives out final states; makes z and its 16-bit split.
 */
#include "attention/ops/hadamard/cuda/line.cuh"
#include "attention/ops/hadamard/cuda/ptx.cuh"
#include "attention/ops/hadamard/cuda/state_sm90.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int ROWS = THREADS / 16; /* of a state, a block */

struct arguments {
    hla_hopper_side side;
    hla_hopper_state state;
    hla_hopper_division division;
    line::shares shares;
    int rank1, rank2, width;
    float sigma;
};

/* A state's stretch of the line, and the groups that share it: none if last < first. */
struct stretch {
    int begin, end, first, last;
};

__device__ stretch stretch_of(const arguments &in, int state) {
    int heads = (int)in.side.heads, group = (int)in.side.group, key_heads = heads / group;
    int sequence = state / key_heads;
    int units = (int)line::span_of(in.side, sequence).units;
    int chunks = (int)line::span_of(in.side, sequence + 1).units - units;
    stretch found;
    found.begin = units * heads + state % key_heads * chunks * group;
    found.end = found.begin + chunks * group;
    found.first = 0, found.last = -1;
    if (found.end > found.begin)
        found.first = line::group_at(in.shares, found.begin), found.last = line::group_at(in.shares, found.end - 1);
    return found;
}

__device__ __forceinline__ int64_t slot_of(const arguments &in, const stretch &parts, int group) {
    if (group > parts.first) return 2 * group; /* these begin within the stretch */
    return line::partial_slot(group, line::group_begin(in.shares, group), parts.begin);
}

/* Eight neighbouring columns, as permuted, of row f. */
template <bool HALF>
__device__ void add_parts(const arguments &in, const stretch &parts, int state, int64_t rank, int64_t f, int column) {
    float sum[8] = {};
    const float *from = in.state.partial + f * in.width + column;
#pragma unroll 4
    for (int group = parts.first; group <= parts.last; group++) {
        const float4 *part = (const float4 *)(from + slot_of(in, parts, group) * rank * in.width);
        float4 low = part[0], high = part[1];
        sum[0] += low.x, sum[1] += low.y, sum[2] += low.z, sum[3] += low.w;
        sum[4] += high.x, sum[5] += high.y, sum[6] += high.z, sum[7] += high.w;
    }
    int64_t row = state * rank + f;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int value = column / 32 * 32 + 8 * (i / 2) + 2 * (column / 8 % 4) + i % 2;
        if (in.state.initial) sum[i] += in.state.initial[row * (in.width + 1) + value];
        if (in.state.final) in.state.final[row * (in.width + 1) + value] = sum[i];
    }
    uint4 packed;
    packed.x = ptx::pack<HALF>(in.sigma * sum[0], in.sigma * sum[1]);
    packed.y = ptx::pack<HALF>(in.sigma * sum[2], in.sigma * sum[3]);
    packed.z = ptx::pack<HALF>(in.sigma * sum[4], in.sigma * sum[5]);
    packed.w = ptx::pack<HALF>(in.sigma * sum[6], in.sigma * sum[7]);
    *(uint4 *)((uint16_t *)in.state.s + row * in.width + column) = packed;
}

/* z of row f, summed by 16 neighbouring threads of a warp. */
__device__ float sum_z(const arguments &in, const stretch &parts, int state, int64_t rank, int64_t f) {
    const int slice = (int)(f / in.rank2) / 16, lane = threadIdx.x % 16;
    const int helpers = hla_hopper_helpers(in.division, slice), most = hla_hopper_helpers(in.division, 0);
    float z = 0;
#pragma unroll 4
    for (int i = lane; i < (parts.last - parts.first + 1) * helpers; i += 16)
        z += in.state.z_partial[((int64_t)(parts.first + i / helpers + state) * most + i % helpers) * rank + f];
#pragma unroll
    for (int step = 8; step > 0; step /= 2)
        z += __shfl_xor_sync(0xffffffffu, z, step);
    return z;
}

template <bool HALF> __device__ void store_z(const arguments &in, int state, int64_t rank, int64_t f, float z) {
    int64_t row = state * rank + f;
    if (in.state.initial) z += in.state.initial[row * (in.width + 1) + in.width];
    if (in.state.final) in.state.final[row * (in.width + 1) + in.width] = z;
    z *= in.sigma;
    in.state.z[row] = z;
    uint16_t *split = (uint16_t *)in.state.z_split + 2 * state * rank + f;
    uint32_t high = ptx::pack<HALF>(z, 0);
    split[0] = (uint16_t)high;
    split[rank] = (uint16_t)ptx::pack<HALF>(z - ptx::unpack<HALF>(high).x, 0);
}

template <bool HALF> __global__ __launch_bounds__(THREADS) void finish(const __grid_constant__ arguments in) {
    ptx::wait_for_previous_kernel();
    const int64_t rank = (int64_t)in.rank1 * in.rank2, blocks = rank / ROWS;
    const int state = (int)(blockIdx.x / blocks);
    const int64_t first = blockIdx.x % blocks * ROWS;
    const stretch parts = stretch_of(in, state);
    const int64_t z_row = first + threadIdx.x / 16;
    float z = in.state.z_given ? in.state.z_given[state * rank + z_row] : sum_z(in, parts, state, rank, z_row);
    if (threadIdx.x % 16 == 0) store_z<HALF>(in, state, rank, z_row, z);
    if (parts.first == parts.last) return; /* written whole */
    const int pieces = in.width / 8;
    for (int i = threadIdx.x; i < ROWS * pieces; i += THREADS)
        add_parts<HALF>(in, parts, state, rank, first + i / pieces, i % pieces * 8);
}

} // namespace

int hla_hopper_finish(const hla_hopper_shape *shape, const hla_hopper_division *division, const hla_hopper_side *side,
                      const hla_hopper_state *state, cudaStream_t stream) {
    arguments in = {};
    in.side = *side, in.state = *state, in.division = *division;
    in.shares = line::share((int)(side->units * side->heads), division->groups);
    in.rank1 = (int)shape->rank1, in.rank2 = (int)shape->rank2, in.width = (int)shape->value_dim;
    in.sigma = shape->sigma;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(state->states * (shape->rank1 * shape->rank2 / ROWS)));
    config.blockDim = dim3(THREADS);
    config.stream = stream;
    config.attrs = &overlap, config.numAttrs = 1;
    return (int)cudaLaunchKernelEx(&config, shape->half ? finish<true> : finish<false>, in);
}
