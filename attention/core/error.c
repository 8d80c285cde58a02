/* The sentence of an error. */
#include "attention/core/internal.h"

#include <stdarg.h>
#include <stdio.h>

hla_status hla_fail(hla_context *context, hla_status status, const char *format, ...) {
    if (context) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(context->error, sizeof context->error, format, arguments);
        va_end(arguments);
    }
    return status;
}
