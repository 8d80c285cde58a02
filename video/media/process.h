/* video/media/process.h - a child program fed through its standard input, its complaints kept. No shell, no
 * process-wide state. */
#ifndef HLV_PROCESS_H
#define HLV_PROCESS_H

#include "video/core/context.h"

#include <sys/types.h>

#define HLV_COMPLAINT_BYTES 1024

typedef struct hlv_process {
    pid_t pid;                      /* 0: none */
    int input;                      /* our end of its standard input; -1: closed */
    int complaint;                  /* our end of its standard error; -1: closed */
    char tail[HLV_COMPLAINT_BYTES]; /* the last of what it wrote to standard error, not terminated */
    size_t tail_length;
} hlv_process;

/* The full path of an executable `name` on PATH, malloc'ed; NULL when there is none. */
char *hlv_find_program(const char *name);

/* Starts argv[0] (a full path). The child stands in a process group of its own, so that Ctrl-C on the terminal reaches
 * the caller alone; its standard output is discarded. False, and errno, on failure. */
bool hlv_process_start(hlv_process *process, char *const argv[]);

/* Feeds bytes. HLV_OK; HLV_ERROR_IO when the child no longer reads; HLV_ERROR_CANCELLED when the context's cancel
 * callback says so. */
hlv_status hlv_process_feed(hlv_context *ctx, hlv_process *process, const void *bytes, size_t count);

/* Closes its input and waits for its end. HLV_OK: *exit_status as from waitpid. HLV_ERROR_CANCELLED: still running. */
hlv_status hlv_process_finish(hlv_context *ctx, hlv_process *process, int *exit_status);

/* Ends it and its children at once if it still runs, and closes everything. Fine after a failed start, and twice. */
void hlv_process_stop(hlv_process *process);

/* The last line it wrote to standard error, in `line`, "" when none. */
void hlv_process_last_line(const hlv_process *process, char *line, size_t size);

#endif
