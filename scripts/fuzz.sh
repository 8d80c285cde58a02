#!/bin/sh
# Builds the libFuzzer targets with clang and runs each for SECONDS (default 60), all at the same time.
#     scripts/fuzz.sh [SECONDS] [BUILD_DIR]
# Exit status 0: nothing was found. The input that made a target fail is left in BUILD_DIR/findings/.
set -eu
seconds="${1:-60}"
root="$(cd "$(dirname "$0")/.." && pwd)"
build="${2:-$root/build-fuzz}"
targets="safetensors index config tokenizer hla"

CC=clang cmake -S "$root" -B "$build" -DHLA_CUDA=OFF -DHLA_FUZZ=ON -DHLA_TESTS=ON >/dev/null
cmake --build "$build" -j "$(nproc)" --target fuzzers >/dev/null
mkdir -p "$build/findings"

running=""
for target in $targets; do
    mkdir -p "$build/corpus/$target"
    options="-dict=$root/tests/fuzz/json.dict -max_len=65536"
    [ "$target" != hla ] || options="-max_len=512 -len_control=0"
    # shellcheck disable=SC2086 # two options
    OMP_NUM_THREADS=1 "$build/fuzz_$target" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 \
        $options -artifact_prefix="$build/findings/$target-" -print_final_stats=1 \
        "$build/corpus/$target" "$root/tests/fuzz/corpus/$target" >"$build/$target.log" 2>&1 &
    running="$running $target:$!"
done

failed=0
for entry in $running; do
    target="${entry%%:*}"
    if wait "${entry#*:}"; then
        echo "fuzz_$target: $(grep -o 'number_of_executed_units: *[0-9]*' "$build/$target.log" | grep -o '[0-9]*$') inputs, nothing found"
    else
        failed=1
        echo "fuzz_$target: FAILED, see $build/$target.log" >&2
        tail -40 "$build/$target.log" >&2
    fi
done
exit $failed
