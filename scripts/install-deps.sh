#!/bin/sh
# Installs the Debian packages that a task needs and this machine lacks; silent when nothing is missing.
#     scripts/install-deps.sh build|demo|docs|test|full
set -eu
packages="gcc libc6-dev cmake make pkg-config libdnnl-dev libjansson-dev zlib1g-dev libgomp1"
case "${1:-build}" in
build) ;;
demo) packages="$packages ffmpeg" ;;
docs) packages="doxygen" ;;
test | full)
    packages="$packages ffmpeg libcmocka-dev clang clang-tidy cppcheck libclang-rt-14-dev python3 bsdutils procps
        libomp-dev binutils abigail-tools"
    [ "$1" = test ] || packages="$packages gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
        valgrind doxygen python3-venv python3-pytest python3-numpy python3-torch"
    ;;
*)
    echo "usage: install-deps.sh build|demo|docs|test|full" >&2
    exit 2
    ;;
esac

# nvcc, where it is, compiles host code by g++.
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then packages="$packages g++"; fi

missing=""
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $package"
done
[ -z "$missing" ] && exit 0

as_root=""
[ "$(id -u)" -eq 0 ] || as_root="sudo"
echo "installing:$missing" >&2
$as_root apt-get update -qq
# shellcheck disable=SC2086 # the list is meant to be split
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >/dev/null
