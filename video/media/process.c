/* video/media/process.c - a child program fed through a socket: a socket, because send() can be told not to raise
 * SIGPIPE, so no signal disposition of the process has to change. */
#include "video/media/process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define FEED_MILLISECONDS 100 /* how late a cancel may be noticed */
#define END_MILLISECONDS 5    /* between looks whether a child that has closed its standard error has ended */

char *hlv_find_program(const char *name) {
    const char *path = getenv("PATH");
    if (path == NULL) return NULL;
    while (true) {
        size_t length = strcspn(path, ":");
        size_t size = length + strlen(name) + 3;
        char *candidate = malloc(size);
        if (candidate == NULL) return NULL;
        snprintf(candidate, size, "%.*s/%s", (int)(length > 0 ? length : 1), length > 0 ? path : ".", name);
        struct stat info;
        if (stat(candidate, &info) == 0 && S_ISREG(info.st_mode) && access(candidate, X_OK) == 0) return candidate;
        free(candidate);
        if (path[length] == '\0') return NULL;
        path += length + 1;
    }
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* The child's side: descriptors 0 to 2, default signals, an empty mask, a group of its own. */
static int spawn(pid_t *pid, char *const argv[], int input, int complaint) {
    extern char **environ;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    int error = posix_spawn_file_actions_init(&actions);
    if (error != 0) return error;
    error = posix_spawnattr_init(&attributes);
    if (error != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return error;
    }
    sigset_t none, defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    sigaddset(&defaults, SIGINT);
    sigaddset(&defaults, SIGTERM);
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP;
    if ((error = posix_spawn_file_actions_adddup2(&actions, input, 0)) == 0 &&
        (error = posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0)) == 0 &&
        (error = posix_spawn_file_actions_adddup2(&actions, complaint, 2)) == 0 &&
        (error = posix_spawnattr_setsigmask(&attributes, &none)) == 0 &&
        (error = posix_spawnattr_setsigdefault(&attributes, &defaults)) == 0 &&
        (error = posix_spawnattr_setflags(&attributes, flags)) == 0)
        error = posix_spawn(pid, argv[0], &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* Descriptors 0 to 2 would be overwritten in the child before they are used; a caller without standard streams could
 * get them from socketpair or pipe. */
static bool move_above_standard(int *fd) {
    if (*fd > 2) return true;
    int moved = fcntl(*fd, F_DUPFD_CLOEXEC, 3);
    if (moved < 0) return false;
    close(*fd);
    *fd = moved;
    return true;
}

bool hlv_process_start(hlv_process *process, char *const argv[]) {
    *process = (hlv_process){.input = -1, .complaint = -1};
    int input[2] = {-1, -1}, complaint[2] = {-1, -1};
    int error = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, input) != 0 || pipe2(complaint, O_CLOEXEC) != 0 ||
        !move_above_standard(&input[0]) || !move_above_standard(&complaint[1]) ||
        fcntl(complaint[0], F_SETFL, O_NONBLOCK) != 0)
        error = errno;
    else
        error = spawn(&process->pid, argv, input[0], complaint[1]);
    close_fd(&input[0]);
    close_fd(&complaint[1]);
    if (error != 0) {
        process->pid = 0;
        close_fd(&input[1]);
        close_fd(&complaint[0]);
        errno = error;
        return false;
    }
    shutdown(input[1], SHUT_RD);
    process->input = input[1];
    process->complaint = complaint[0];
    return true;
}

/* Keeps the last bytes of what the child says. */
static void keep_tail(hlv_process *process, const char *bytes, size_t count) {
    size_t room = sizeof process->tail - process->tail_length;
    if (count > room) {
        size_t drop = count - room;
        memmove(process->tail, process->tail + drop, process->tail_length - drop);
        process->tail_length -= drop;
    }
    memcpy(process->tail + process->tail_length, bytes, count);
    process->tail_length += count;
}

static void read_complaints(hlv_process *process) {
    char buffer[sizeof process->tail / 2];
    while (process->complaint >= 0) {
        ssize_t got = read(process->complaint, buffer, sizeof buffer);
        if (got > 0)
            keep_tail(process, buffer, (size_t)got);
        else if (got == 0)
            close_fd(&process->complaint);
        else if (errno != EINTR)
            return;
    }
}

/* Waits a moment until the child reads or speaks, and listens to what it says. */
static void wait_a_moment(hlv_process *process) {
    struct pollfd wait[2] = {{.fd = process->input, .events = POLLOUT}, {.fd = process->complaint, .events = POLLIN}};
    poll(wait, 2, process->complaint >= 0 ? FEED_MILLISECONDS : END_MILLISECONDS);
    read_complaints(process);
}

hlv_status hlv_process_feed(hlv_context *ctx, hlv_process *process, const void *bytes, size_t count) {
    const char *next = bytes;
    while (count > 0) {
        if (process->input < 0) return HLV_ERROR_IO;
        ssize_t sent = send(process->input, next, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent >= 0) {
            next += sent;
            count -= (size_t)sent;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            wait_a_moment(process);
            if (hlv_cancelled(ctx)) return HLV_ERROR_CANCELLED;
        } else if (errno != EINTR) {
            return HLV_ERROR_IO;
        }
    }
    return HLV_OK;
}

hlv_status hlv_process_finish(hlv_context *ctx, hlv_process *process, int *exit_status) {
    close_fd(&process->input);
    *exit_status = 0;
    while (process->pid > 0) {
        wait_a_moment(process);
        pid_t ended = waitpid(process->pid, exit_status, WNOHANG);
        if (ended == process->pid || (ended < 0 && errno != EINTR))
            process->pid = 0; /* ECHILD: the caller of the library reaps all children itself */
        else if (hlv_cancelled(ctx))
            return HLV_ERROR_CANCELLED;
    }
    read_complaints(process);
    return HLV_OK;
}

void hlv_process_stop(hlv_process *process) {
    if (process->pid > 0) {
        kill(-process->pid, SIGKILL); /* its group: it may be a script with children */
        while (waitpid(process->pid, NULL, 0) < 0 && errno == EINTR)
            ;
        process->pid = 0;
    }
    close_fd(&process->input);
    close_fd(&process->complaint);
}

void hlv_process_last_line(const hlv_process *process, char *line, size_t size) {
    size_t end = process->tail_length;
    while (end > 0 &&
           (process->tail[end - 1] == '\n' || process->tail[end - 1] == '\r' || process->tail[end - 1] == ' '))
        end--;
    size_t start = end;
    while (start > 0 && process->tail[start - 1] != '\n')
        start--;
    snprintf(line, size, "%.*s", (int)(end - start), process->tail + start);
}
