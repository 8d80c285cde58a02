#!/bin/sh
# HTML and manual pages of libhla's functions from the comments in include/hla, into OUTPUT (default build-docs). A public function
# without a comment is an error, and so is whatever else doxygen complains of, members and constants that explain themselves aside.
#     scripts/docs.sh [OUTPUT]
set -eu
root="$(cd "$(dirname "$0")/.." && pwd)"
output="${1:-$root/build-docs}"
version="$(sed -n 's/^project(libhla VERSION \([0-9.]*\).*/\1/p' "$root/attention/CMakeLists.txt")"
rm -rf "$output"
mkdir -p "$output"
sed "s|@ROOT@|$root|g; s|@OUTPUT@|$output|g; s|@VERSION@|$version|g" "$root/docs/Doxyfile.in" >"$output/Doxyfile"
doxygen "$output/Doxyfile"

if grep -vE '\((variable|enumvalue|typedef|enumeration|macro definition)\) of|Compound' "$output/warnings"; then
    echo "docs: the comments in include/hla need what is named above" >&2
    exit 1
fi

# Of the manual pages those with names of this library's stay: the functions', which lead to their header's, and core.h.3 becomes
# hla_core.h.3.
cd "$output/man/man3"
find . -name '*.3' ! -name 'hla_*' ! -name '*.h.3' -delete
for page in *.h.3; do
    case "$page" in hla_*) continue ;; esac
    mv "$page" "hla_$page"
    sed -i "s|^\.so man3/$page\$|.so man3/hla_$page|" ./*.3
done
echo "docs: $output/html/index.html, $(ls | wc -l) manual pages in $output/man"
