# Doxygen's input filter: the headers' plain comments become documentation comments. A comment that begins a line documents what
# follows, one behind code what stands before it; the first of a file is the file's. Indented lines, samples and formulas, are kept
# as they stand.
function leave() { if (block) print " * @endcode"; block = 0 }
NR == 1 && sub(/^\/\* /, "") { print "/** @file"; sub(/^[a-z_\/]+\.h - /, ""); print " * " $0; inside = 1; first = 1; if (/\*\/$/) inside = first = 0; next }
/^#ifdef __cplusplus/, /^#endif/ { print ""; next }
/^\/\* ----/ { print ""; heading = !/\*\/$/; next }
heading { print ""; heading = !/\*\/$/; next }
!inside && /^\/\* / { sub(/^\/\* /, "/** "); inside = !/\*\/$/; print; next }
inside && /^ \*\// { leave(); inside = first = 0; print; next }
inside && /^ \*   / {
    if (!block) { block = 1; print " * @code" }
    closing = sub(/ *\*\/$/, "")
    print
    if (closing) { leave(); print " */"; inside = first = 0 }
    next
}
inside { if (block && !/^ \*$/) leave(); print; if (/\*\/$/) inside = first = 0; next }
/[^ ].*\/\* / { sub(/\/\* /, "/**< ") }
{ print }
