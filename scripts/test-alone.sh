#!/bin/sh
# attention/ by itself, with the other compiler: configure, build, test, install, and a program against what was installed.
#     scripts/test-alone.sh BUILD_DIR
set -eu
root="$(cd "$(dirname "$0")/.." && pwd)"
build="$1"

CC=clang cmake -S "$root/attention" -B "$build" -DHLA_CUDA=OFF -DCMAKE_INSTALL_LIBDIR=lib >/dev/null
# Not through a pipe, which would hide a failure.
log="$build/alone.log"
cmake --build "$build" -j "$(nproc)" >"$log" 2>&1 || { cat "$log"; exit 1; }
ctest --output-on-failure -j "$(nproc)" --test-dir "$build" >"$log" 2>&1 || { cat "$log"; exit 1; }
tail -n 4 "$log"
rm -rf "$build/prefix"
cmake --install "$build" --prefix "$PWD/$build/prefix" >/dev/null

cat >"$build/user.c" <<'END'
#include "hla/hla.h"
#include <stdio.h>
int main(void) {
    hla_context *ctx = NULL;
    if (hla_context_create(&ctx, NULL) != HLA_OK) return 1;
    printf("libhla %s on its own, %d threads\n", hla_version(), hla_context_threads(ctx));
    hla_context_free(ctx);
    return 0;
}
END
clang -Wall -Werror -I "$build/prefix/include" "$build/user.c" -o "$build/user" -L "$build/prefix/lib" -lhla \
    -Wl,-rpath,"$PWD/$build/prefix/lib"
"$build/user"
