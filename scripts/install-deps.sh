#!/bin/sh
# Installs the Debian packages that the build and the tests need and this machine lacks; silent when nothing is missing.
set -eu
packages="gcc cmake make pkg-config libdnnl-dev libjansson-dev libgomp1 ffmpeg"
[ "${1:-}" = test ] && packages="$packages libcmocka-dev clang clang-tidy cppcheck libclang-rt-14-dev python3"

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
