#!/bin/sh
# attention/ under ThreadSanitizer: contexts and teams beside each other, every operator, the examples. With clang and LLVM's OpenMP,
# which tells ThreadSanitizer of its barriers; gcc's does not.
#     scripts/test-threads.sh BUILD_DIR
set -eu
root="$(cd "$(dirname "$0")/.." && pwd)"
build="$1"

CC=clang cmake -S "$root/attention" -B "$build" -DHLA_TESTS=ON -DHLA_SANITIZE=thread -DCMAKE_BUILD_TYPE=RelWithDebInfo >/dev/null
cmake --build "$build" -j "$(nproc)" | tail -n 1
ctest --output-on-failure -j "$(nproc)" --test-dir "$build" | tail -n 4
