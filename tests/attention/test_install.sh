#!/bin/sh
# Installs libhla from a build folder under a temporary DESTDIR and uses it as a stranger would: an example is compiled through
# pkg-config, through find_package, and with plain flags, and each program is run with the installed library.
#     test_install.sh BUILD_DIR PREFIX LIBDIR VERSION COMPILER EXAMPLE.c
set -eu
build="$1" prefix="$2" libdir="$3" version="$4" compiler="$5" example="$6"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
root="$stage/root"
lib="$root$prefix/$libdir"

fail() {
    echo "test_install: $*" >&2
    exit 1
}

run() { # PROGRAM: it must find the installed library, not the one in the build folder
    LD_LIBRARY_PATH="$lib" ldd "$1" | grep -q "libhla.so.0 => $lib/libhla.so.0" || fail "$1 does not use $lib/libhla.so.0"
    LD_LIBRARY_PATH="$lib" OMP_WAIT_POLICY=passive "$1" >"$stage/output" || fail "$1 failed: $(cat "$stage/output")"
}

DESTDIR="$root" cmake --install "$build" --component libhla >"$stage/log"

# Nothing outside the prefix, none of the video engine, and the names that linkers and loaders look for.
[ "$(find "$root" -type f -o -type l | grep -vc "^$root$prefix/")" = 0 ] || fail "files outside of $prefix"
[ -z "$(find "$root" -name '*hlv*')" ] || fail "the component libhla holds parts of the video engine"
[ "$(readlink "$lib/libhla.so")" = libhla.so.0 ] || fail "libhla.so is no link to libhla.so.0"
[ "$(readlink "$lib/libhla.so.0")" = "libhla.so.$version" ] || fail "libhla.so.0 is no link to libhla.so.$version"
objdump -p "$lib/libhla.so" | grep -q 'SONAME *libhla.so.0$' || fail "the soname is not libhla.so.0"
[ -f "$root$prefix/share/man/man3/libhla.3" ] || fail "no libhla.3"
[ -z "$(grep -rl "$stage" "$root$prefix/$libdir/cmake" "$root$prefix/$libdir/pkgconfig")" ] || fail "DESTDIR is in a file"

# plain
"$compiler" -Wall -Wextra -Werror -std=c11 "$example" -o "$stage/plain" -I "$root$prefix/include" -L "$lib" -lhla -lm
run "$stage/plain"

# pkg-config; the sysroot variable stands for an installation without DESTDIR
export PKG_CONFIG_SYSROOT_DIR="$root" PKG_CONFIG_LIBDIR="$lib/pkgconfig"
[ "$(pkg-config --modversion hla)" = "$version" ] || fail "pkg-config says $(pkg-config --modversion hla)"
# shellcheck disable=SC2046 # flags are meant to be split
"$compiler" -std=c11 "$example" -o "$stage/pkgconfig" $(pkg-config --cflags --libs hla) -lm
run "$stage/pkgconfig"

# CMake; a version that is too new must not be found
mkdir "$stage/user"
cat >"$stage/user/CMakeLists.txt" <<'CMAKE'
cmake_minimum_required(VERSION 3.20)
project(user C)
find_package(hla ${WANTED} REQUIRED CONFIG)
add_executable(user ${EXAMPLE})
target_link_libraries(user PRIVATE hla::hla m)
CMAKE
configure() { # VERSION
    cmake -S "$stage/user" -B "$stage/user/build" -DCMAKE_C_COMPILER="$compiler" -DCMAKE_PREFIX_PATH="$root$prefix" \
        -DEXAMPLE="$example" -DWANTED="$1" >"$stage/log" 2>&1
}
configure "${version%.*}" || fail "find_package(hla ${version%.*}): $(cat "$stage/log")"
cmake --build "$stage/user/build" >"$stage/log" 2>&1 || fail "the CMake user: $(cat "$stage/log")"
run "$stage/user/build/user"
! configure 99.0 || fail "find_package(hla 99.0) was satisfied"
