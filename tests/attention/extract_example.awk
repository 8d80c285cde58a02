# Prints the example a public header opens with: the first run of lines indented by five after " *", without "...".
/^ \*     / { if (!done) { started = 1; line = substr($0, 8); if (line != "...") print line } next }
started { done = 1 }
