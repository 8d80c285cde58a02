/* attention/ops/hadamard/cuda/state_sm90.cuh - sizes that the state kernel and `finish` agree on. */
#ifndef HLA_OPS_HADAMARD_CUDA_STATE_SM90_CUH
#define HLA_OPS_HADAMARD_CUDA_STATE_SM90_CUH

#include "attention/ops/hadamard/cuda/hopper.h"

/* How a state's 64-row tiles are shared out. A thread block sees at most 64 values of factor 1: with rank 128 the first
 * half of a group's members sees the first half of them. z is summed by slices of 16 of these values: member m of a
 * half sums slice m % slices over every helpers(slice)-th chunk. */
struct hla_hopper_division {
    int tiles;   /* of 64 rows, a warpgroup */
    int members; /* thread blocks of a group, two warpgroups each */
    int groups;
    int half_members, slices; /* of a half */
};

static inline hla_hopper_division hla_hopper_divide(const hla_hopper_shape *shape) {
    hla_hopper_division division;
    int tiles = (int)(shape->rank1 * shape->rank2 / 64);
    division.tiles = shape->rank1 == 64 && shape->rank2 == 64 ? 3 : 2;
    division.members = (tiles + 2 * division.tiles - 1) / (2 * division.tiles);
    division.groups = shape->processors / division.members > 0 ? shape->processors / division.members : 1;
    division.half_members = shape->rank1 > 64 ? division.members / 2 : division.members;
    division.slices = (int)(shape->rank1 > 64 ? 64 : shape->rank1) / 16;
    return division;
}

/* Members that sum a slice; slice: of all halves. */
__host__ __device__ static inline int hla_hopper_helpers(const hla_hopper_division &division, int slice) {
    return (division.half_members + division.slices - 1 - slice % division.slices) / division.slices;
}

int hla_hopper_finish(const hla_hopper_shape *shape, const hla_hopper_division *division, const hla_hopper_side *side,
                      const hla_hopper_state *state, cudaStream_t stream);

#endif
