/* video/core/context.h - the inside of hlv_context: errors, memory, progress, cancel, the attention context. */
#ifndef HLV_CORE_CONTEXT_H
#define HLV_CORE_CONTEXT_H

#include "hlv/context.h"

/* Stores the sentence in the context and returns status, so that `return hlv_fail(ctx, HLV_ERROR_IO, "...", ...)` reads
 * well. A sentence names the file, tensor or option and says what was found and what was wanted. */
hlv_status hlv_fail(hlv_context *ctx, hlv_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The sentence of a failed libhla call, carried over with a matching status. */
hlv_status hlv_fail_hla(hlv_context *ctx, hla_status status);

void hlv_log(hlv_context *ctx, hlv_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void hlv_progress(hlv_context *ctx, const char *stage, int64_t done, int64_t total);
bool hlv_cancelled(hlv_context *ctx); /* asks the cancel callback; never call it inside a parallel region */

/* The libhla context with the same number of threads, made at the first call and kept until hlv_context_free, also when
 * the number of threads is changed later. NULL with an error sentence when it cannot be made. */
hla_context *hlv_context_hla(hlv_context *ctx);

/* 64-byte aligned, counted in the context's peak; NULL and an error sentence when there is none. Not zeroed.
 * hlv_free(ctx, NULL) is fine. Every large buffer of the engine comes from here. */
void *hlv_alloc(hlv_context *ctx, size_t bytes);
float *hlv_alloc_floats(hlv_context *ctx, int64_t count); /* refuses negative counts and overflow */
void hlv_free(hlv_context *ctx, void *memory);
int64_t hlv_context_current_bytes(const hlv_context *ctx); /* bytes held now; 0 after everything was freed */

#endif
