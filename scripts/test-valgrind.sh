#!/bin/sh
# A subset of libhla's tests under valgrind's memcheck, which sees the use of memory that was never written. Valgrind's processor has
# AVX2 and no AVX-512: the library finds that out as on any machine, and the AVX2 kernels run. The tests that are left out take
# minutes here, and test_isa compares with the real processor.
#     scripts/test-valgrind.sh BUILD_DIR
set -eu
build="$1"
tests="test_contexts test_teams test_core test_examples test_allocation test_hadamard_arguments test_feature_map_arguments
    test_feature_map_activations test_softmax_arguments test_softmax_properties"

# shellcheck disable=SC2016,SC2086 # expanded by the inner shell; the list is meant to be split
printf '%s\n' $tests | OMP_WAIT_POLICY=passive xargs -P "$(nproc)" -I '{}' sh -c '
    timeout 110 valgrind -q --error-exitcode=99 --leak-check=full --show-leak-kinds=definite \
        --errors-for-leak-kinds=definite "$0/tests/$1" >"$0/$1.valgrind" 2>&1 && exit 0
    tail -n 40 "$0/$1.valgrind" >&2
    exit 1' "$build" '{}'
echo "valgrind: $(echo $tests | wc -w) test programs, clean"
