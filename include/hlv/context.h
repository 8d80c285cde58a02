/* hlv/context.h - what every part of libhlv shares: status, threads, log, progress, cancel, error text.
 *
 *     hlv_context *ctx = NULL;
 *     if (hlv_context_create(&ctx) != HLV_OK) return 1;
 *     hlv_context_set_threads(ctx, 2);
 *     ...
 *     fprintf(stderr, "%s\n", hlv_context_error(ctx));
 *     hlv_context_free(ctx);
 */
#ifndef HLV_CONTEXT_H
#define HLV_CONTEXT_H

#include "hla/core.h"

#define HLV_API HLA_API

#ifdef __cplusplus
extern "C" {
#endif

/* Numbers are stable. */
typedef enum hlv_status {
    HLV_OK = 0,
    HLV_ERROR_ARGUMENT = 1,    /* an option or argument out of range; the sentence names it */
    HLV_ERROR_MEMORY = 2,      /* out of memory */
    HLV_ERROR_UNSUPPORTED = 3, /* legal, but not by this build or machine */
    HLV_ERROR_IO = 4,          /* a file cannot be read or written; the sentence names it */
    HLV_ERROR_FORMAT = 5,      /* a file's content is wrong: truncated, lying, missing tensors */
    HLV_ERROR_CANCELLED = 6    /* the cancel callback asked to stop */
} hlv_status;

HLV_API const char *hlv_status_name(hlv_status status);

typedef struct hlv_context hlv_context;

typedef enum hlv_log_level { HLV_LOG_DEBUG = 0, HLV_LOG_INFO = 1, HLV_LOG_WARNING = 2 } hlv_log_level;

/* stage is one of "load", "text", "sample", "decode", "encode"; done and total count its steps. */
typedef void (*hlv_progress_fn)(void *user, const char *stage, int64_t done, int64_t total);
typedef void (*hlv_log_fn)(void *user, hlv_log_level level, const char *sentence);
typedef bool (*hlv_cancel_fn)(void *user); /* true: stop as soon as possible; called from the calling thread only */

HLV_API hlv_status hlv_context_create(hlv_context **context);
HLV_API void hlv_context_free(hlv_context *context); /* after everything made from it; NULL is fine */
HLV_API hlv_status hlv_context_set_threads(hlv_context *context, int threads); /* 0: as many as OpenMP would use */
HLV_API void hlv_context_set_log(hlv_context *context, hlv_log_fn log, void *user);
HLV_API void hlv_context_set_progress(hlv_context *context, hlv_progress_fn progress, void *user);
HLV_API void hlv_context_set_cancel(hlv_context *context, hlv_cancel_fn cancel, void *user);
/* The sentence of the last error, "" if none; of any length, and there until the next error. */
HLV_API const char *hlv_context_error(const hlv_context *context);
HLV_API int hlv_context_threads(const hlv_context *context);
HLV_API int64_t hlv_context_peak_bytes(hlv_context *context, bool reset); /* most bytes held at once by this context */
/* Allocations that would bring the bytes held over the limit fail with HLV_ERROR_MEMORY; 0: no limit, the default. */
HLV_API hlv_status hlv_context_set_memory_limit(hlv_context *context, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
