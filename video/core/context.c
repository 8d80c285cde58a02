/* The context: error sentence, callbacks, threads, counted memory and the attention contexts that go with it. */
#include "video/core/context.h"

#include <omp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ERROR_BYTES 1024 /* of a usual sentence; a longer one has memory of its own */
#define LOG_BYTES 1024
#define MAX_THREADS 4096
#define MAX_BYTES ((size_t)1 << 46) /* of one block: as much as a process can address */
#define ALIGNMENT 64 /* a cache line and an AVX-512 vector; also the room for the header before each block */

typedef struct attention_entry {
    int threads; /* as asked for */
    hla_context *context;
} attention_entry;

struct hlv_context {
    int threads;
    hlv_log_fn log;
    void *log_user;
    hlv_progress_fn progress;
    void *progress_user;
    hlv_cancel_fn cancel;
    void *cancel_user;
    /* Atomic, so that a thread of a parallel region may allocate. */
    _Atomic int64_t current_bytes, peak_bytes;
    int64_t memory_limit; /* 0: none */
    /* One for each number of threads ever asked for: plans made before a change keep theirs. */
    attention_entry *attention;
    int attention_count;
    char *long_error; /* the last sentence where it does not fit error; else NULL */
    char error[ERROR_BYTES];
};

/* Stands before the memory handed out, within the first ALIGNMENT bytes. */
typedef struct block_header {
    int64_t bytes; /* header included */
} block_header;

static const char *const status_names[] = {
    [HLV_OK] = "ok",
    [HLV_ERROR_ARGUMENT] = "argument",
    [HLV_ERROR_MEMORY] = "memory",
    [HLV_ERROR_UNSUPPORTED] = "unsupported",
    [HLV_ERROR_IO] = "io",
    [HLV_ERROR_FORMAT] = "format",
    [HLV_ERROR_CANCELLED] = "cancelled",
};

const char *hlv_status_name(hlv_status status) {
    int i = (int)status;
    if (i < 0 || i >= (int)(sizeof status_names / sizeof *status_names)) return "unknown";
    return status_names[i];
}

hlv_status hlv_context_create(hlv_context **context) {
    if (!context) return HLV_ERROR_ARGUMENT;
    *context = calloc(1, sizeof **context);
    if (!*context) return HLV_ERROR_MEMORY;
    (*context)->threads = omp_get_max_threads();
    return HLV_OK;
}

void hlv_context_free(hlv_context *context) {
    if (!context) return;
    for (int i = 0; i < context->attention_count; i++)
        hla_context_free(context->attention[i].context);
    free(context->attention);
    free(context->long_error);
    free(context);
}

hlv_status hlv_context_set_threads(hlv_context *context, int threads) {
    if (!context) return HLV_ERROR_ARGUMENT;
    if (threads < 0 || threads > MAX_THREADS)
        return hlv_fail(context, HLV_ERROR_ARGUMENT, "threads is %d, and must be 0 (all) or 1 to %d", threads,
                        MAX_THREADS);
    context->threads = threads ? threads : omp_get_max_threads();
    return HLV_OK;
}

void hlv_context_set_log(hlv_context *context, hlv_log_fn log, void *user) {
    context->log = log;
    context->log_user = user;
}

void hlv_context_set_progress(hlv_context *context, hlv_progress_fn progress, void *user) {
    context->progress = progress;
    context->progress_user = user;
}

void hlv_context_set_cancel(hlv_context *context, hlv_cancel_fn cancel, void *user) {
    context->cancel = cancel;
    context->cancel_user = user;
}

hlv_status hlv_context_set_memory_limit(hlv_context *context, int64_t bytes) {
    if (!context) return HLV_ERROR_ARGUMENT;
    if (bytes < 0)
        return hlv_fail(context, HLV_ERROR_ARGUMENT, "memory limit is %lld bytes, and must be 0 (none) or more",
                        (long long)bytes);
    context->memory_limit = bytes;
    return HLV_OK;
}

const char *hlv_context_error(const hlv_context *context) {
    if (!context) return "";
    return context->long_error ? context->long_error : context->error;
}

int hlv_context_threads(const hlv_context *context) {
    return context->threads;
}

int64_t hlv_context_peak_bytes(hlv_context *context, bool reset) {
    int64_t peak = atomic_load(&context->peak_bytes);
    if (reset) atomic_store(&context->peak_bytes, atomic_load(&context->current_bytes));
    return peak;
}

int64_t hlv_context_current_bytes(const hlv_context *ctx) {
    return atomic_load(&ctx->current_bytes);
}

hlv_status hlv_fail(hlv_context *ctx, hlv_status status, const char *format, ...) {
    if (!ctx) return status;
    char usual[ERROR_BYTES], *sentence = usual; /* apart: the arguments may point into the old sentence */
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(usual, sizeof usual, format, arguments);
    va_end(arguments);
    if (length < 0) usual[0] = '\0';
    char *longer = length < ERROR_BYTES ? NULL : malloc((size_t)length + 1); /* without memory the sentence is cut */
    if (longer) {
        sentence = longer;
        va_start(arguments, format);
        vsnprintf(longer, (size_t)length + 1, format, arguments);
        va_end(arguments);
    }
    for (char *c = sentence; *c; c++) /* a file's own words must not break lines or steer a terminal */
        if ((unsigned char)*c < ' ' || *c == 127) *c = ' ';
    free(ctx->long_error);
    ctx->long_error = longer;
    memcpy(ctx->error, usual, sizeof usual);
    return status;
}

hlv_status hlv_fail_hla(hlv_context *ctx, hla_status status) {
    static const hlv_status matching[] = {
        [HLA_OK] = HLV_OK,
        [HLA_ERROR_ARGUMENT] = HLV_ERROR_ARGUMENT,
        [HLA_ERROR_MEMORY] = HLV_ERROR_MEMORY,
        [HLA_ERROR_UNSUPPORTED] = HLV_ERROR_UNSUPPORTED,
        [HLA_ERROR_WORKSPACE] = HLV_ERROR_ARGUMENT,
        [HLA_ERROR_NOT_FINITE] = HLV_ERROR_ARGUMENT,
    };
    if (status == HLA_OK) return HLV_OK;
    int i = (int)status;
    bool known = i >= 0 && i < (int)(sizeof matching / sizeof *matching);
    const char *sentence = "";
    for (int c = 0; ctx && c < ctx->attention_count && !sentence[0]; c++)
        if (ctx->attention[c].threads == ctx->threads) sentence = hla_context_error(ctx->attention[c].context);
    if (sentence[0]) return hlv_fail(ctx, known ? matching[i] : HLV_ERROR_ARGUMENT, "attention: %s", sentence);
    return hlv_fail(ctx, known ? matching[i] : HLV_ERROR_ARGUMENT, "attention failed with status '%s'",
                    hla_status_name(status));
}

void hlv_log(hlv_context *ctx, hlv_log_level level, const char *format, ...) {
    if (!ctx || !ctx->log) return;
    char sentence[LOG_BYTES];
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    if (written >= 0) ctx->log(ctx->log_user, level, sentence);
}

void hlv_progress(hlv_context *ctx, const char *stage, int64_t done, int64_t total) {
    if (ctx && ctx->progress) ctx->progress(ctx->progress_user, stage, done, total);
}

bool hlv_cancelled(hlv_context *ctx) {
    return ctx && ctx->cancel && ctx->cancel(ctx->cancel_user);
}

hla_context *hlv_context_hla(hlv_context *ctx) {
    for (int i = 0; i < ctx->attention_count; i++)
        if (ctx->attention[i].threads == ctx->threads) return ctx->attention[i].context;

    size_t places = (size_t)ctx->attention_count + 1;
    attention_entry *grown = realloc(ctx->attention, places * sizeof *grown);
    if (!grown) {
        hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory: no room for an attention context");
        return NULL;
    }
    ctx->attention = grown;
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = ctx->threads;
    hla_context *made = NULL;
    hla_status status = hla_context_create(&made, &options);
    if (status != HLA_OK) {
        hlv_fail_hla(ctx, status);
        return NULL;
    }
    grown[ctx->attention_count++] = (attention_entry){.threads = ctx->threads, .context = made};
    return made;
}

/* Counts `bytes` more and says whether they stay within the limit; counts nothing if not. */
static bool reserve(hlv_context *ctx, int64_t bytes) {
    int64_t now = atomic_fetch_add(&ctx->current_bytes, bytes) + bytes;
    if (ctx->memory_limit && now > ctx->memory_limit) {
        atomic_fetch_sub(&ctx->current_bytes, bytes);
        return false;
    }
    int64_t peak = atomic_load(&ctx->peak_bytes);
    while (now > peak && !atomic_compare_exchange_weak(&ctx->peak_bytes, &peak, now)) {
    }
    return true;
}

void *hlv_alloc(hlv_context *ctx, size_t bytes) {
    if (bytes > MAX_BYTES) {
        hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory: %zu bytes asked for, more than can be addressed", bytes);
        return NULL;
    }
    size_t whole = (bytes + 2 * ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!reserve(ctx, (int64_t)whole)) {
        hlv_fail(ctx, HLV_ERROR_MEMORY,
                 "out of memory: %zu bytes asked for with %lld in use, over the limit of %lld bytes", bytes,
                 (long long)hlv_context_current_bytes(ctx), (long long)ctx->memory_limit);
        return NULL;
    }
    char *block = aligned_alloc(ALIGNMENT, whole);
    if (!block) {
        atomic_fetch_sub(&ctx->current_bytes, (int64_t)whole);
        hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory: %zu bytes asked for with %lld in use", bytes,
                 (long long)hlv_context_current_bytes(ctx));
        return NULL;
    }
    *(block_header *)(void *)block = (block_header){.bytes = (int64_t)whole};
    return block + ALIGNMENT;
}

float *hlv_alloc_floats(hlv_context *ctx, int64_t count) {
    if (count < 0 || (uint64_t)count > MAX_BYTES / sizeof(float)) {
        hlv_fail(ctx, HLV_ERROR_MEMORY, "out of memory: %lld floats asked for", (long long)count);
        return NULL;
    }
    return hlv_alloc(ctx, (size_t)count * sizeof(float));
}

void hlv_free(hlv_context *ctx, void *memory) {
    if (!memory) return;
    char *block = (char *)memory - ALIGNMENT;
    atomic_fetch_sub(&ctx->current_bytes, ((const block_header *)(const void *)block)->bytes);
    free(block);
}
