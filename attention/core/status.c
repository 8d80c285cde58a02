/* Names of status values and the library's version. */
#include "hla/core.h"

const char *hla_status_name(hla_status status) {
    static const char *const names[] = {"ok", "argument", "memory", "unsupported", "workspace", "not finite"};
    size_t i = (size_t)status;
    return i < sizeof names / sizeof names[0] ? names[i] : "unknown";
}

const char *hla_version(void) {
    return HLA_VERSION;
}
