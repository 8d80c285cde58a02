#!/bin/sh
# Installs the Debian packages that a task needs and this machine lacks; silent when nothing is missing.
#     scripts/install-deps.sh build|demo|test
set -eu
packages="gcc libc6-dev cmake make pkg-config libdnnl-dev libjansson-dev zlib1g-dev libgomp1"
case "${1:-build}" in
build) ;;
demo) packages="$packages ffmpeg" ;;
test) packages="$packages ffmpeg libcmocka-dev clang clang-tidy cppcheck libclang-rt-14-dev python3 bsdutils procps" ;;
*)
    echo "usage: install-deps.sh build|demo|test" >&2
    exit 2
    ;;
esac

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
