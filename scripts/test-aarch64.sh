#!/bin/sh
# attention/ for 64-bit ARM: cross-compiled, and its tests run in an emulator, the NEON kernels among them.
#     scripts/test-aarch64.sh BUILD_DIR
set -eu
root="$(cd "$(dirname "$0")/.." && pwd)"
build="$1"

cmake -S "$root/attention" -B "$build" -DCMAKE_TOOLCHAIN_FILE="$root/cmake/aarch64-linux-gnu.cmake" -DHLA_TESTS=ON >/dev/null
# Not through a pipe, which would hide a failure.
log="$build/aarch64.log"
cmake --build "$build" -j "$(nproc)" >"$log" 2>&1 || { cat "$log"; exit 1; }
ctest --output-on-failure -j "$(nproc)" --test-dir "$build" >"$log" 2>&1 || { cat "$log"; exit 1; }
echo "AArch64, emulated: $(grep 'tests passed' "$log")"
