#!/bin/sh
# The shared library exports the functions that the public headers mark HLA_API, with version HLA_0.1, and nothing else.
#     test_exports.sh libhla.so INCLUDE_DIR
set -eu
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

# A declaration may run over lines: from HLA_API to the first "(", the last word is the name.
cat "$2"/hla/*.h | grep -v '^#' | tr '\n' ' ' | grep -o 'HLA_API [^(;]*(' | grep -o '[a-z0-9_]*($' | tr -d '(' |
    sed 's/$/@@HLA_0.1/' | sort -u >"$work/declared"
# The version's own name is an absolute symbol.
nm -D --defined-only --with-symbol-versions "$1" | awk '$2 != "A" {print $3}' | sort -u >"$work/exported"

[ -s "$work/declared" ] || { echo "no declarations found in $2/hla" >&2; exit 1; }
diff "$work/declared" "$work/exported" >"$work/difference" && exit 0
echo "declared in the headers (<), exported by the library (>):" >&2
cat "$work/difference" >&2
exit 1
