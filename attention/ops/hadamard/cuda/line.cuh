/* attention/ops/hadamard/cuda/line.cuh - how the state kernel's work is laid out and divided.
 *
 * Chunks of one side lie on a line, ordered by sequence, head, token: the heads of a group follow each other, so each
 * state owns one stretch of it. Groups of thread blocks take equal stretches; the blocks of a group take rows of the
 * state. Where a group's stretch meets a state's, that is a segment. A segment that is all of a state is written as it
 * is; others are partial sums, at most two a group, which `finish` adds in the order of the line.
 *
 * Causal, a segment consists of pieces, which begin where a snapshot is taken or the segment does.
 */
#ifndef HLA_OPS_HADAMARD_CUDA_LINE_CUH
#define HLA_OPS_HADAMARD_CUDA_LINE_CUH

#include "attention/ops/hadamard/cuda/hopper.h"

namespace line {

/* Sequence n of a side; n may be the number of sequences. */
__device__ __forceinline__ hla_hopper_span span_of(const hla_hopper_side &side, int64_t n) {
    if (side.spans) return side.spans[n];
    return {n, 0, side.tokens, n * side.units_each, 0};
}

/* The last sequence that begins at or before a position of the line. */
__device__ __forceinline__ int sequence_at(const hla_hopper_side &side, int64_t position) {
    int low = 0, high = (int)side.sequences - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (span_of(side, middle).units * side.heads <= position)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

struct segment {
    int sequence, state;
    int begin, end;             /* on the line */
    int state_begin, state_end; /* the state's whole stretch */
    int snapshot;               /* causal: the state's first */
};

/* How groups share the line: the first `rest` of them have a chunk more than `each`. */
struct shares {
    int length, groups, each, rest;
};

static inline shares share(int length, int groups) {
    if (groups > length) groups = length;
    return {length, groups, groups > 0 ? length / groups : 0, groups > 0 ? length % groups : 0};
}

__device__ __forceinline__ int group_begin(const shares &s, int group) {
    return group * s.each + min(group, s.rest);
}

__device__ __forceinline__ int group_at(const shares &s, int position) {
    int longer = s.rest * (s.each + 1); /* chunks of the groups that have one more */
    return position < longer ? position / (s.each + 1) : s.rest + (position - longer) / s.each;
}

/* The segment at position `begin` of a stretch that ends at `end`. */
__device__ __forceinline__ segment segment_at(const hla_hopper_side &side, int begin, int end) {
    int heads = (int)side.heads, group = (int)side.group, sequence = sequence_at(side, begin);
    hla_hopper_span span = span_of(side, sequence), next = span_of(side, sequence + 1);
    int units = (int)span.units, key_heads = heads / group;
    int stretch = ((int)next.units - units) * group; /* of a state */
    int key_head = (begin - units * heads) / stretch;
    segment found;
    found.sequence = sequence;
    found.state = sequence * key_heads + key_head;
    found.snapshot = (int)span.snapshots * key_heads + key_head * (int)(next.snapshots - span.snapshots);
    found.begin = begin;
    found.state_begin = units * heads + key_head * stretch;
    found.state_end = found.state_begin + stretch;
    found.end = found.state_end < end ? found.state_end : end;
    return found;
}

/* Of the piece at a position of a segment: its end, and the snapshot whose sums it adds to. every: chunks between
 * snapshots, or 0: the segment is one piece. */
__device__ __forceinline__ int piece_end(const segment &s, int at, int every) {
    if (every == 0) return s.end;
    return min(s.end, at + every - (at - s.state_begin) % every);
}
__device__ __forceinline__ int piece_snapshot(const segment &s, int at, int every) {
    return every == 0 ? s.state : s.snapshot + (at - s.state_begin) / every;
}

__device__ __forceinline__ bool is_whole(const segment &s) {
    return s.begin == s.state_begin && s.end == s.state_end;
}

/* Where a group keeps the partial sum of a state: its first segment's, or a later one's. */
__device__ __forceinline__ int partial_slot(int group, int group_begin, int state_begin) {
    return 2 * group + (group_begin < state_begin ? 1 : 0);
}

} // namespace line

#endif
