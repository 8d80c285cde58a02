#include "cli/options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HELP_COLUMN 28
#define HELP_WIDTH 80

static const cli_option common_table[] = {
    {"threads", 't', OPTION_INTEGER, offsetof(cli_common, threads), "N",
     "threads to compute with; the result does not depend on it (default: all cores)", 0, 4096, NULL},
    {"memory-limit", 0, OPTION_BYTES, offsetof(cli_common, memory_limit), "SIZE",
     "fail instead of holding more memory than this, such as 2G (default: none)", 1, 0x1p62, NULL},
    {"json", 'j', OPTION_FLAG, offsetof(cli_common, json), NULL, "print the result as JSON", 0, 0, NULL},
    {"quiet", 'q', OPTION_FLAG, offsetof(cli_common, quiet), NULL, "no progress, only warnings and errors", 0, 0, NULL},
    {"verbose", 'v', OPTION_FLAG, offsetof(cli_common, verbose), NULL, "say more on the way", 0, 0, NULL},
    {0}};

int wrong_usage(const cli_command *command, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "hla %s: ", command->name);
    vfprintf(stderr, format, args);
    fprintf(stderr, "\nTry 'hla %s --help'.\n", command->name);
    va_end(args);
    return STATUS_USAGE;
}

bool ends_with(const char *text, const char *ending) {
    size_t length = strlen(text), tail = strlen(ending);
    return length >= tail && strcmp(text + length - tail, ending) == 0;
}

/* Prints text from HELP_COLUMN on, broken between words; the cursor stands at column `at`. */
static void print_wrapped(const char *text, int at) {
    while (*text != '\0') {
        printf("%*s", at < HELP_COLUMN ? HELP_COLUMN - at : 0, "");
        size_t length = strlen(text), room = HELP_WIDTH - HELP_COLUMN;
        if (length > room) {
            length = room;
            while (length > 0 && text[length] != ' ')
                length--;
            if (length == 0) length = room;
        }
        printf("%.*s\n", (int)length, text);
        text += length;
        text += *text == ' ';
        at = 0;
    }
}

static void print_option(const cli_option *entry) {
    char left[128], choices[128] = "";
    for (int i = 0; entry->choices != NULL && entry->choices[i] != NULL; i++)
        snprintf(choices + strlen(choices), sizeof choices - strlen(choices), "%s%s", i > 0 ? "|" : "",
                 entry->choices[i]);
    const char *argument = entry->choices != NULL ? choices : entry->argument;
    char letter[] = {'-', entry->letter, ',', ' ', '\0'};
    int used = snprintf(left, sizeof left, "  %s--%s%s%s", entry->letter != 0 ? letter : "    ", entry->name,
                        argument != NULL ? " " : "", argument != NULL ? argument : "");
    printf("%s", left);
    if (used >= HELP_COLUMN - 1) {
        printf("\n");
        used = 0;
    }
    print_wrapped(entry->help, used);
}

static const cli_option *find_in(const cli_option *table, const char *name, size_t length, char letter) {
    for (; table->name != NULL; table++)
        if (name != NULL ? strlen(table->name) == length && strncmp(table->name, name, length) == 0
                         : table->letter == letter)
            return table;
    return NULL;
}

void print_help(const cli_command *command) {
    printf("Usage: hla %s %s\n\n%s\n\nOptions:\n", command->name, command->usage, command->summary);
    for (const cli_option *entry = command->options; entry->name != NULL; entry++)
        print_option(entry);
    for (const cli_option *entry = common_table; entry->name != NULL; entry++)
        if (find_in(command->options, entry->name, strlen(entry->name), 0) == NULL) /* a command may have its own */
            print_option(entry);
    printf("  -h, --help%*sthis text\n", HELP_COLUMN - 12, "");
    if (command->details != NULL) printf("\n%s", command->details);
}

/* Whole text, no spaces, no overflow. */
static bool read_whole(const char *text, int64_t *value) {
    char *end;
    if ((*text < '0' || *text > '9') && *text != '-') return false;
    errno = 0;
    long long number = strtoll(text, &end, 10);
    *value = number;
    return errno == 0 && end != text && *end == '\0';
}

static bool read_seed(const char *text, uint64_t *value) {
    char *end;
    if (*text < '0' || *text > '9') return false;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    *value = number;
    return errno == 0 && *end == '\0';
}

static bool read_number(const char *text, double *value) {
    char *end;
    if (strchr("+-.0123456789", *text) == NULL || *text == '\0' || strpbrk(text, "xXpP") != NULL) return false;
    errno = 0;
    *value = strtod(text, &end);
    return errno == 0 && *end == '\0' && isfinite(*value);
}

/* A number with K, M, G or T for powers of 1024. */
static bool read_bytes(const char *text, int64_t *value) {
    static const char letters[] = "KMGT";
    char digits[32];
    size_t length = strlen(text);
    if (length == 0 || length >= sizeof digits) return false;
    memcpy(digits, text, length + 1);
    const char *unit = strchr(letters, digits[length - 1]);
    int shift = 0;
    if (unit != NULL) {
        digits[length - 1] = '\0';
        shift = 10 * (int)(unit - letters + 1);
    }
    return read_whole(digits, value) && *value >= 0 && !__builtin_mul_overflow(*value, (int64_t)1 << shift, value);
}

static bool read_size(const char *text, int *size) {
    const char *cross = strchr(text, 'x');
    char width[16];
    int64_t w, h;
    if (cross == NULL || (size_t)(cross - text) >= sizeof width) return false;
    memcpy(width, text, (size_t)(cross - text));
    width[cross - text] = '\0';
    if (!read_whole(width, &w) || !read_whole(cross + 1, &h) || w < 1 || h < 1 || w > 16384 || h > 16384) return false;
    size[0] = (int)w;
    size[1] = (int)h;
    return true;
}

static bool read_counts(const char *text, count_list *list, double least, double most) {
    list->count = 0;
    while (true) {
        char number[24];
        size_t length = strcspn(text, ",");
        int64_t value;
        if (length >= sizeof number || list->count == MAX_LIST) return false;
        memcpy(number, text, length);
        number[length] = '\0';
        if (!read_whole(number, &value) || (double)value < least || (double)value > most) return false;
        list->items[list->count++] = value;
        if (text[length] == '\0') return true;
        text += length + 1;
    }
}

static int wrong_choice(const cli_command *command, const cli_option *entry, const char *text) {
    char wanted[256] = "";
    for (int i = 0; entry->choices[i] != NULL; i++)
        snprintf(wanted + strlen(wanted), sizeof wanted - strlen(wanted), "%s%s", i > 0 ? ", " : "", entry->choices[i]);
    return wrong_usage(command, "--%s is '%s', wanted one of: %s", entry->name, text, wanted);
}

static int set_choice(const cli_command *command, const cli_option *entry, const char *text, int *choice) {
    for (int i = 0; entry->choices[i] != NULL; i++)
        if (strcmp(entry->choices[i], text) == 0) {
            *choice = i;
            return STATUS_GO_ON;
        }
    return wrong_choice(command, entry, text);
}

static int set_list(const cli_command *command, const cli_option *entry, const char *text, text_list *list) {
    if (list->count == MAX_LIST) return wrong_usage(command, "--%s is given more than %d times", entry->name, MAX_LIST);
    list->items[list->count++] = text;
    return STATUS_GO_ON;
}

static int set_value(const cli_command *command, const cli_option *entry, const char *text, void *settings) {
    char *place = (char *)settings + entry->offset;
    int64_t whole = 0;
    double number = 0;
    switch (entry->kind) {
    case OPTION_FLAG:
        *(bool *)(void *)place = true;
        return STATUS_GO_ON;
    case OPTION_TEXT:
        *(const char **)(void *)place = text;
        return STATUS_GO_ON;
    case OPTION_LIST:
        return set_list(command, entry, text, (text_list *)(void *)place);
    case OPTION_CHOICE:
        return set_choice(command, entry, text, (int *)(void *)place);
    case OPTION_INTEGER:
        if (!read_whole(text, &whole) || (double)whole < entry->least || (double)whole > entry->most)
            return wrong_usage(command, "--%s is '%s', wanted a whole number from %.0f to %.0f", entry->name, text,
                               entry->least, entry->most);
        *(int *)(void *)place = (int)whole;
        return STATUS_GO_ON;
    case OPTION_NUMBER:
        if (!read_number(text, &number) || number < entry->least || number > entry->most)
            return wrong_usage(command, "--%s is '%s', wanted a number from %g to %g", entry->name, text, entry->least,
                               entry->most);
        *(double *)(void *)place = number;
        return STATUS_GO_ON;
    case OPTION_SEED:
        if (!read_seed(text, (uint64_t *)(void *)place))
            return wrong_usage(command, "--%s is '%s', wanted a whole number from 0 to 18446744073709551615",
                               entry->name, text);
        return STATUS_GO_ON;
    case OPTION_SIZE:
        if (!read_size(text, (int *)(void *)place))
            return wrong_usage(command, "--%s is '%s', wanted WIDTHxHEIGHT in pixels, such as 832x480", entry->name,
                               text);
        return STATUS_GO_ON;
    case OPTION_BYTES:
        if (!read_bytes(text, (int64_t *)(void *)place) || *(int64_t *)(void *)place < 1)
            return wrong_usage(command, "--%s is '%s', wanted bytes, such as 512M or 2G", entry->name, text);
        return STATUS_GO_ON;
    case OPTION_COUNTS:
        if (!read_counts(text, (count_list *)(void *)place, entry->least, entry->most))
            return wrong_usage(command,
                               "--%s is '%s', wanted up to %d whole numbers from %.0f to %.0f with commas between",
                               entry->name, text, MAX_LIST, entry->least, entry->most);
        return STATUS_GO_ON;
    }
    return wrong_usage(command, "--%s cannot be read", entry->name);
}

/* argv[*i] is an option: "--name value", "--name=value", "-n value", "-nvalue". Moves *i over its value. */
static int parse_option(const cli_command *command, int argc, char **argv, int *i, void *settings) {
    const char *word = argv[*i], *name = word[1] == '-' ? word + 2 : NULL;
    size_t length = name != NULL ? strcspn(name, "=") : 0;
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        print_help(command);
        return fflush(stdout) == 0 ? STATUS_DONE : STATUS_FAILED;
    }
    const cli_option *entry = find_in(command->options, name, length, word[1]);
    if (entry == NULL) entry = find_in(common_table, name, length, word[1]);
    if (entry == NULL) return wrong_usage(command, "unknown option '%s'", word);
    const char *value = NULL;
    if (name == NULL && word[2] != '\0') value = word + 2;
    if (name != NULL && name[length] == '=') value = name + length + 1;
    if (entry->kind == OPTION_FLAG && value != NULL) return wrong_usage(command, "--%s takes no value", entry->name);
    if (entry->kind != OPTION_FLAG && value == NULL) {
        if (*i + 1 >= argc)
            return wrong_usage(command, "--%s needs a value (%s)", entry->name,
                               entry->argument != NULL ? entry->argument : "one of its names");
        value = argv[++*i];
    }
    return set_value(command, entry, value, settings);
}

int parse_options(const cli_command *command, int argc, char **argv, void *settings, text_list *positional,
                  int most_positional) {
    bool options = true;
    positional->count = 0;
    for (int i = 1; i < argc; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && argv[i][0] == '-' && argv[i][1] != '\0') {
            int status = parse_option(command, argc, argv, &i, settings);
            if (status != STATUS_GO_ON) return status;
        } else if (positional->count == most_positional) {
            return wrong_usage(command, "'%s' is one word too many%s", argv[i],
                               most_positional > 0 ? "; put words that belong together in quotes" : "");
        } else {
            positional->items[positional->count++] = argv[i];
        }
    }
    return STATUS_GO_ON;
}
