#include "cli/session.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define BAR 24            /* characters, fewer on a narrow terminal */
#define BESIDE_THE_BAR 60 /* characters */
#define COLUMNS 80        /* of a terminal that does not tell */
#define REDRAW_SECONDS 0.1
#define PLAIN_SECONDS 10.0 /* between lines of one stage where there is no terminal */

/* A signal handler can reach nothing else. */
static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

/* The first Ctrl-C asks, a second one ends the program. A closed pipe or a file size limit gives an error from write(),
 * which is then reported, instead of a silent end with half a file left. */
static void install_signals(void) {
    struct sigaction ask = {.sa_handler = on_signal, .sa_flags = (int)(SA_RESETHAND | SA_RESTART)};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    static const int asking[] = {SIGINT, SIGTERM, SIGHUP};
    sigemptyset(&ask.sa_mask);
    sigemptyset(&ignore.sa_mask);
    for (size_t i = 0; i < sizeof asking / sizeof asking[0]; i++) {
        struct sigaction old;
        if (sigaction(asking[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) /* nohup, or a shell's background */
            sigaction(asking[i], &ask, NULL);
    }
    sigaction(SIGPIPE, &ignore, NULL);
    sigaction(SIGXFSZ, &ignore, NULL);
}

bool session_interrupted(void) {
    return interrupted != 0;
}

double seconds_now(void) {
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void print_seconds(char *out, size_t size, double seconds) {
    if (seconds < 60)
        snprintf(out, size, "%.1f s", seconds);
    else if (seconds < 3600)
        snprintf(out, size, "%d min %02d s", (int)seconds / 60, (int)seconds % 60);
    else
        snprintf(out, size, "%d h %02d min", (int)(seconds / 3600), (int)(seconds / 60) % 60);
}

void session_end_line(cli_session *session) {
    if (session->line_open) fputc('\n', stderr);
    session->line_open = false;
}

static int bar_width(void) {
    struct winsize size = {0};
    int columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : COLUMNS;
    int room = columns - BESIDE_THE_BAR;
    return room < 0 ? 0 : room < BAR ? room : BAR;
}

/* A terminal that understands "back to the start of the line" and "clear to its end". */
static bool is_terminal(void) {
    const char *kind = getenv("TERM");
    return isatty(STDERR_FILENO) == 1 && kind != NULL && strcmp(kind, "dumb") != 0;
}

static void draw_live(cli_session *session, double elapsed) {
    double share = session->total > 0 ? (double)session->done / (double)session->total : 0;
    int bar = bar_width(), filled = (int)(share * bar + 0.5);
    char took[32], left[32] = "";
    print_seconds(took, sizeof took, elapsed);
    fprintf(stderr, "\r%-7s [", session->stage);
    for (int i = 0; i < bar; i++)
        fputc(i < filled ? '#' : '.', stderr);
    fprintf(stderr, "] %lld/%lld  %s", (long long)session->done, (long long)session->total, took);
    if (session->done > 0 && session->done < session->total) {
        double step = elapsed / (double)session->done;
        print_seconds(left, sizeof left, step * (double)(session->total - session->done));
        fprintf(stderr, "  %.2f s a step, %s left", step, left);
    }
    fputs("\033[K", stderr);
    session->line_open = true;
}

static void draw_plain(const cli_session *session, double elapsed) {
    char took[32], left[32];
    print_seconds(took, sizeof took, elapsed);
    fprintf(stderr, "%s: %lld of %lld in %s", session->stage, (long long)session->done, (long long)session->total,
            took);
    if (session->done > 0 && session->done < session->total) {
        double step = elapsed / (double)session->done;
        print_seconds(left, sizeof left, step * (double)(session->total - session->done));
        fprintf(stderr, ", %.2f s a step, %s left", step, left);
    }
    fputc('\n', stderr);
}

void session_progress(cli_session *session, const char *stage, int64_t done, int64_t total) {
    if (session->quiet) return;
    double now = seconds_now();
    bool fresh = strncmp(session->stage, stage, sizeof session->stage - 1) != 0 || done < session->done;
    if (fresh) {
        session_end_line(session);
        snprintf(session->stage, sizeof session->stage, "%s", stage);
        session->stage_start = now;
    }
    bool last = done >= total, again = !fresh && done == session->done;
    session->done = done;
    session->total = total;
    if (fresh && !session->terminal) session->last_drawn = now; /* a plain line says what was done, not what begins */
    double wait = session->terminal ? REDRAW_SECONDS : PLAIN_SECONDS;
    if (again || (!last && now - session->last_drawn < wait && (!fresh || !session->terminal))) return;
    session->last_drawn = now;
    if (session->terminal)
        draw_live(session, now - session->stage_start);
    else
        draw_plain(session, now - session->stage_start);
    fflush(stderr);
}

static void on_progress(void *user, const char *stage, int64_t done, int64_t total) {
    session_progress(user, stage, done, total);
}

static void on_log(void *user, hlv_log_level level, const char *sentence) {
    cli_session *session = user;
    if (level == HLV_LOG_WARNING || session->verbose) {
        session_end_line(session);
        fprintf(stderr, "hla %s: %s%s\n", session->command, level == HLV_LOG_WARNING ? "warning: " : "", sentence);
    }
}

static bool on_cancel(void *user) {
    (void)user;
    return session_interrupted();
}

int session_open(cli_session *session, const cli_command *command, const cli_common *options) {
    *session = (cli_session){.command = command->name,
                             .quiet = options->quiet,
                             .verbose = options->verbose,
                             .json = options->json,
                             .terminal = is_terminal()};
    hlv_status status = hlv_context_create(&session->ctx);
    if (status == HLV_OK) status = hlv_context_set_threads(session->ctx, options->threads);
    if (status == HLV_OK) status = hlv_context_set_memory_limit(session->ctx, options->memory_limit);
    if (status != HLV_OK) return session_close(session, status);
    hlv_context_set_log(session->ctx, on_log, session);
    hlv_context_set_progress(session->ctx, on_progress, session);
    hlv_context_set_cancel(session->ctx, on_cancel, session);
    install_signals();
    return STATUS_GO_ON;
}

int session_close(cli_session *session, hlv_status status) {
    session_end_line(session);
    int exit_status = status == HLV_OK ? STATUS_DONE : status == HLV_ERROR_ARGUMENT ? STATUS_USAGE : STATUS_FAILED;
    if (status != HLV_OK) {
        const char *sentence = session->sentence != NULL ? session->sentence : hlv_context_error(session->ctx);
        fprintf(stderr, "hla %s: %s\n", session->command, sentence[0] != '\0' ? sentence : hlv_status_name(status));
    }
    hlv_context_free(session->ctx);
    session->ctx = NULL;
    if ((fflush(stdout) != 0 || ferror(stdout) != 0) && exit_status == STATUS_DONE) {
        fprintf(stderr, "hla %s: the result cannot be written to standard output\n", session->command);
        exit_status = STATUS_FAILED;
    }
    return exit_status;
}

static hlv_status cannot_write(cli_session *session, const char *path, const char *why) {
    snprintf(session->message, sizeof session->message, "cannot write '%.400s': %s", path, why);
    session->sentence = session->message;
    return HLV_ERROR_IO;
}

/* A file beside path that becomes path at the end; NULL, and the sentence, when it cannot be made. */
static FILE *open_part(cli_session *session, const char *path, char **part) {
    size_t size = strlen(path) + 32;
    *part = malloc(size);
    if (*part != NULL) snprintf(*part, size, "%s.%ld.part", path, (long)getpid());
    FILE *file = *part != NULL ? fopen(*part, "wxe") : NULL;
    if (file == NULL) {
        cannot_write(session, path, strerror(errno));
        free(*part);
        *part = NULL;
    }
    return file;
}

hlv_status check_report(cli_session *session, const char *path) {
    char *part = NULL;
    struct stat info;
    if (path == NULL) return HLV_OK;
    if (lstat(path, &info) == 0 && !S_ISREG(info.st_mode)) /* a rename would replace /dev/stdout itself */
        return cannot_write(session, path, "it exists and is not a regular file");
    FILE *file = open_part(session, path, &part);
    if (file == NULL) return HLV_ERROR_IO;
    fclose(file);
    unlink(part);
    free(part);
    return HLV_OK;
}

hlv_status write_report(cli_session *session, const char *path, void (*print)(FILE *file, const void *user),
                        const void *user) {
    char *part = NULL;
    FILE *file = open_part(session, path, &part);
    if (file == NULL) return HLV_ERROR_IO;
    print(file, user);
    bool good = fflush(file) == 0 && ferror(file) == 0;
    int error = errno;
    if (fclose(file) != 0 && good) {
        good = false;
        error = errno;
    }
    if (good && rename(part, path) != 0) {
        good = false;
        error = errno;
    }
    if (!good) unlink(part);
    free(part);
    return good ? HLV_OK : cannot_write(session, path, strerror(error));
}
