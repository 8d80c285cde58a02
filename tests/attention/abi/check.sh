#!/bin/sh
# Compares the binary interface of libhla with the kept description, libhla.abi in this folder. Removed or changed functions and
# types fail; additions do not.
#     tests/attention/abi/check.sh              compare
#     tests/attention/abi/check.sh --renew      keep today's interface, after a change that is meant
#     tests/attention/abi/check.sh --against F  compare with another description
# The library is compiled again, with gcc and debug information, so that the answer depends neither on the build under test nor
# on its compiler. The description holds x86-64's layouts.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
kept="$here/libhla.abi"
mode="${1:-compare}"
[ "$mode" != --against ] || kept="$2"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

if ! { env -u CFLAGS CC=gcc cmake -S "$root/attention" -B "$work/build" -DHLA_TESTS=OFF -DHLA_CUDA=OFF -DCMAKE_BUILD_TYPE=Debug \
    -DCMAKE_C_FLAGS="-ffile-prefix-map=$root/= -ffile-prefix-map=$work/build/=" &&
    cmake --build "$work/build" -j "$(nproc)"; } >"$work/log" 2>&1; then
    cat "$work/log" >&2
    exit 1
fi
abidw --exported-interfaces-only --no-elf-needed --drop-undefined-syms --no-corpus-path --no-comp-dir-path --no-show-locs --type-id-style hash \
    --headers-dir "$root/include/hla" \
    --drop-private-types --out-file "$work/libhla.abi" "$work/build/libhla.so"

if [ "$mode" = --renew ]; then
    cp "$work/libhla.abi" "$kept"
elif ! abidiff --no-added-syms "$kept" "$work/libhla.abi" >"$work/report"; then
    cat "$work/report" >&2
    echo "The interface of libhla has changed. If that is meant: tests/attention/abi/check.sh --renew" >&2
    exit 1
fi
