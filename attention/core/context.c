/* The context: number of threads, options, the sentence of the last error. */
#include "attention/core/internal.h"

#include <omp.h>
#include <stdlib.h>

enum { MAX_THREADS = 4096 };

void hla_context_options_init(hla_context_options *options) {
    if (options) *options = (hla_context_options){.struct_size = sizeof *options};
}

hla_status hla_context_create(hla_context **context, const hla_context_options *options) {
    if (!context) return HLA_ERROR_ARGUMENT;
    *context = NULL;
    if (options && options->struct_size < sizeof *options) return HLA_ERROR_ARGUMENT;
    int threads = options ? options->threads : 0;
    if (threads < 0 || threads > MAX_THREADS) return HLA_ERROR_ARGUMENT;
    hla_context *created = calloc(1, sizeof *created);
    if (!created) return HLA_ERROR_MEMORY;
    created->threads = threads > 0 ? threads : omp_get_max_threads();
    created->check_finite = options && options->check_finite;
    *context = created;
    return HLA_OK;
}

void hla_context_free(hla_context *context) {
    free(context);
}

const char *hla_context_error(const hla_context *context) {
    return context ? context->error : "";
}

int hla_context_threads(const hla_context *context) {
    return context ? context->threads : 0;
}
