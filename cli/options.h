/* cli/options.h - the command line: one table of options a command gives parsing, --help and the sentences of wrong
 * usage. */
#ifndef HLA_CLI_OPTIONS_H
#define HLA_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { STATUS_DONE = 0, STATUS_FAILED = 1, STATUS_USAGE = 2, STATUS_GO_ON = -1 };

#define MAX_LIST 16

typedef struct text_list {
    const char *items[MAX_LIST];
    int count;
} text_list;

typedef struct count_list {
    int64_t items[MAX_LIST];
    int count;
} count_list;

typedef enum option_kind {
    OPTION_FLAG,    /* bool */
    OPTION_TEXT,    /* const char * */
    OPTION_LIST,    /* text_list: may be given several times */
    OPTION_INTEGER, /* int */
    OPTION_SEED,    /* uint64_t */
    OPTION_NUMBER,  /* double */
    OPTION_SIZE,    /* int[2], from "WxH" */
    OPTION_BYTES,   /* int64_t, from "512M" */
    OPTION_COUNTS,  /* count_list, from "256,1024,4096" */
    OPTION_CHOICE   /* int: place in choices */
} option_kind;

typedef struct cli_option {
    const char *name; /* without the dashes; NULL ends the table */
    char letter;      /* short form, or 0 */
    option_kind kind;
    size_t offset;        /* of the value in the command's settings */
    const char *argument; /* how --help calls it; NULL for flags */
    const char *help;
    double least, most;         /* of numbers, both allowed */
    const char *const *choices; /* NULL-terminated */
} cli_option;

/* Options that every command takes; the first member of each command's settings. */
typedef struct cli_common {
    int threads; /* 0: all */
    bool quiet, verbose, json;
    int64_t memory_limit; /* 0: none */
} cli_common;

typedef struct cli_command {
    const char *name;    /* "generate", "bench attention" */
    const char *summary; /* one line */
    const char *usage;   /* what follows "hla NAME" */
    const cli_option *options;
    const char *details;               /* the end of --help: examples, units */
    int (*run)(int argc, char **argv); /* argv[0] is the command's name; returns an exit status */
} cli_command;

/* Fills settings (already holding the defaults) from argv[1..]. Words that are no options go to positional, at most
 * most_positional of them. STATUS_GO_ON, or the exit status after --help or wrong usage, everything said. */
int parse_options(const cli_command *command, int argc, char **argv, void *settings, text_list *positional,
                  int most_positional);

/* "hla NAME: sentence", and where help is found; returns STATUS_USAGE. */
int wrong_usage(const cli_command *command, const char *format, ...) __attribute__((format(printf, 2, 3)));

void print_help(const cli_command *command);

bool ends_with(const char *text, const char *ending);

#endif
