/* cli/session.h - one run of a command: the context with its threads, progress on standard error, Ctrl-C, and the
 * sentence when something fails. */
#ifndef HLA_CLI_SESSION_H
#define HLA_CLI_SESSION_H

#include "cli/options.h"
#include "hlv/hlv.h"

#include <stdio.h>

typedef struct cli_session {
    hlv_context *ctx;
    const char *command;
    bool quiet, verbose, json;
    bool terminal;  /* standard error is one: live lines */
    bool line_open; /* a live line waits for its newline */
    char stage[16];
    int64_t done, total;
    double stage_start, last_drawn;
    const char *sentence; /* of a failure outside the engine; NULL: ask the context */
    char message[512];    /* room for such a sentence */
} cli_session;

/* STATUS_GO_ON, or an exit status with everything said. */
int session_open(cli_session *session, const cli_command *command, const cli_common *options);

/* The exit status of a finished run: status's sentence is printed when it failed, standard output is flushed and
 * checked. */
int session_close(cli_session *session, hlv_status status);

/* Ends the live line, so that something else can be printed to standard error. */
void session_end_line(cli_session *session);

/* Progress of the command's own, shown like the engine's. */
void session_progress(cli_session *session, const char *stage, int64_t done, int64_t total);

bool session_interrupted(void); /* Ctrl-C, or SIGTERM or SIGHUP, has come */

/* Whether write_report could write there, to be asked before computing; NULL is fine. */
hlv_status check_report(cli_session *session, const char *path);

/* Writes a file by print(file, user); it appears under its name only when it is whole. */
hlv_status write_report(cli_session *session, const char *path, void (*print)(FILE *file, const void *user),
                        const void *user);

double seconds_now(void); /* a steady clock */

#endif
