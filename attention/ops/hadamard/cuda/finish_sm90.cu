/* Between the kernels that build states and those that read them: adds the partial sums of states that were built in
 * parts, in the order of the line; makes z and its 16-bit split. Causal, a group's snapshots lack what groups before it
 * have summed of the state, and z was summed piece by piece: both are added up here, and carried to the next round.
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
    int key_head;
    int snapshot, snapshots; /* causal: the first, and how many */
    bool continues, goes_on; /* from the round before, in the next */
};

__device__ stretch stretch_of(const arguments &in, int state) {
    int heads = (int)in.side.heads, group = (int)in.side.group, key_heads = heads / group;
    int sequence = state / key_heads;
    hla_hopper_span span = line::span_of(in.side, sequence), next = line::span_of(in.side, sequence + 1);
    int units = (int)span.units, chunks = (int)next.units - units;
    stretch found;
    found.key_head = state - sequence * key_heads;
    found.begin = units * heads + found.key_head * chunks * group;
    found.end = found.begin + chunks * group;
    found.first = 0, found.last = -1;
    if (found.end > found.begin)
        found.first = line::group_at(in.shares, found.begin), found.last = line::group_at(in.shares, found.end - 1);
    found.snapshots = (int)(next.snapshots - span.snapshots);
    found.snapshot = (int)span.snapshots * key_heads + found.key_head * found.snapshots;
    found.continues = in.state.snapshots.continues && sequence == 0;
    found.goes_on = in.state.snapshots.goes_on && sequence == (int)in.side.sequences - 1;
    return found;
}

__device__ __forceinline__ int64_t slot_of(const arguments &in, const stretch &parts, int group) {
    if (group > parts.first) return 2 * group; /* these begin within the stretch */
    return line::partial_slot(group, line::group_begin(in.shares, group), parts.begin);
}

/* Eight neighbouring numbers of a row of a state. */
struct eight {
    float number[8];

    __device__ __forceinline__ void add(const float *from) {
        const float4 low = ((const float4 *)from)[0], high = ((const float4 *)from)[1];
        number[0] += low.x, number[1] += low.y, number[2] += low.z, number[3] += low.w;
        number[4] += high.x, number[5] += high.y, number[6] += high.z, number[7] += high.w;
    }
    __device__ __forceinline__ void store(float *to) const {
        ((float4 *)to)[0] = make_float4(number[0], number[1], number[2], number[3]);
        ((float4 *)to)[1] = make_float4(number[4], number[5], number[6], number[7]);
    }
    /* The numbers times sigma, in 16 bits, and those plus what four pairs hold. */
    template <bool HALF> __device__ __forceinline__ uint4 rounded(float sigma, uint4 pairs = uint4()) const {
        uint32_t pair[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 value = ptx::unpack<HALF>(pair[i]);
            pair[i] = ptx::pack<HALF>(fmaf(sigma, number[2 * i], value.x), fmaf(sigma, number[2 * i + 1], value.y));
        }
        return make_uint4(pair[0], pair[1], pair[2], pair[3]);
    }
};

/* Eight neighbouring columns, as permuted, of row f. */
template <bool HALF>
__device__ void add_parts(const arguments &in, const stretch &parts, int state, int64_t rank, int64_t f, int column) {
    eight sum = {};
    const float *from = in.state.partial + f * in.width + column;
#pragma unroll 4
    for (int group = parts.first; group <= parts.last; group++)
        sum.add(from + slot_of(in, parts, group) * rank * in.width);
    *(uint4 *)((uint16_t *)in.state.s + (state * rank + f) * in.width + column) = sum.rounded<HALF>(in.sigma);
}

/* The same, causal: to the snapshots that group g took, the sums of the groups before it. Snapshot k stands before
 * chunk k * every of the stretch. */
template <bool HALF>
__device__ void add_to_snapshots(const arguments &in, const stretch &parts, int64_t rank, int64_t f, int column) {
    const int every = (int)in.state.snapshots.every;
    const int64_t stride = rank * in.width, row = f * in.width + column; /* of states, and in them */
    uint16_t *s = (uint16_t *)in.state.s + parts.snapshot * stride + row;
    eight sum = {};
    for (int group = parts.first; group <= parts.last; group++) {
        const int begin = line::group_begin(in.shares, group) - parts.begin;
        const int end = min(parts.end, line::group_begin(in.shares, group + 1)) - parts.begin;
        constexpr int AT_ONCE = 8;
        for (int k = (begin + every - 1) / every; group > parts.first && k * every < end; k += AT_ONCE) {
            const int last = (end - 1) / every;
            uint4 snapshot[AT_ONCE];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (k + i <= last) snapshot[i] = *(const uint4 *)(s + (k + i) * stride);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (k + i <= last) *(uint4 *)(s + (k + i) * stride) = sum.rounded<HALF>(in.sigma, snapshot[i]);
        }
        sum.add(in.state.partial + slot_of(in, parts, group) * stride + row);
    }
    if (parts.goes_on) sum.store(in.state.snapshots.carry + parts.key_head * stride + row);
}

/* z of row f, summed by 16 neighbouring threads of a warp. */
__device__ float sum_z(const arguments &in, const stretch &parts, int state, int64_t rank, int64_t f) {
    const int slice = (int)f / in.rank2 / 16, lane = threadIdx.x % 16;
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

/* z in 16 bits, times sigma; to: of its row. */
template <bool HALF> __device__ void store_split(const arguments &in, int64_t state, int64_t rank, int64_t f, float z) {
    uint16_t *split = (uint16_t *)in.state.z_split + 2 * state * rank + f;
    uint32_t high = ptx::pack<HALF>(z, 0);
    split[0] = (uint16_t)high;
    split[rank] = (uint16_t)ptx::pack<HALF>(z - ptx::unpack<HALF>(high).x, 0);
}

/* z of row f before each snapshot, by 16 neighbouring threads of a warp, a snapshot each. */
template <bool HALF>
__device__ void store_z_snapshots(const arguments &in, const stretch &parts, int64_t rank, int64_t f) {
    const int every = (int)in.state.snapshots.every, lane = (int)threadIdx.x % 16;
    const int helpers = hla_hopper_helpers(in.division, (int)f / in.rank2 / 16);
    const int64_t piece = hla_hopper_helpers(in.division, 0) * rank; /* floats that all helpers leave of one */
    float *carry = in.state.snapshots.z_carry + parts.key_head * rank + f;
    float before = parts.continues ? *carry : 0;
    for (int first = 0; first < parts.snapshots; first += 16) {
        const int k = first + lane, begin = parts.begin + k * every, end = min(parts.end, begin + every);
        float own = 0;
        if (k < parts.snapshots) {
            for (int group = line::group_at(in.shares, begin);
                 group <= parts.last && line::group_begin(in.shares, group) < end; group++) {
                const float *from = in.state.z_partial + (group + parts.snapshot + k) * piece + f;
                for (int i = 0; i < helpers; i++)
                    own += from[i * rank];
            }
        }
        float sum = own; /* of those up to this one */
#pragma unroll
        for (int step = 1; step < 16; step *= 2) {
            const float other = __shfl_up_sync(0xffffffffu, sum, step, 16);
            if (lane >= step) sum += other;
        }
        if (k < parts.snapshots) store_split<HALF>(in, parts.snapshot + k, rank, f, in.sigma * (before + (sum - own)));
        before += __shfl_sync(0xffffffffu, sum, 15, 16);
    }
    if (parts.goes_on && lane == 0) *carry = before;
}

template <bool HALF> __global__ __launch_bounds__(THREADS) void finish(const __grid_constant__ arguments in) {
    ptx::wait_for_previous_kernel();
    const int rank = in.rank1 * in.rank2, blocks = rank / ROWS;
    const int state = (int)blockIdx.x / blocks, first = (int)blockIdx.x % blocks * ROWS;
    __shared__ stretch parts; /* it takes many divisions */
    if (threadIdx.x == 0) parts = stretch_of(in, state);
    __syncthreads();
    const int z_row = first + (int)threadIdx.x / 16;
    const bool causal = in.state.snapshots.every > 0;
    if (causal) {
        store_z_snapshots<HALF>(in, parts, rank, z_row);
    } else {
        float z =
            in.state.z_given ? in.state.z_given[(int64_t)state * rank + z_row] : sum_z(in, parts, state, rank, z_row);
        if (threadIdx.x % 16 == 0) {
            in.state.z[(int64_t)state * rank + z_row] = in.sigma * z;
            store_split<HALF>(in, state, rank, z_row, in.sigma * z);
        }
    }
    if (parts.first == parts.last) return; /* written whole */
    const int pieces = in.width / 8;
    for (int i = (int)threadIdx.x; i < ROWS * pieces; i += THREADS) {
        if (causal)
            add_to_snapshots<HALF>(in, parts, rank, first + i / pieces, i % pieces * 8);
        else
            add_parts<HALF>(in, parts, state, rank, first + i / pieces, i % pieces * 8);
    }
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
