/* cli/main.c - the hla command: which subcommand, help and version. Only the public headers hla/ and hlv/ are used
 * here. */
#include "cli/commands.h"
#include "hla/hla.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A subcommand, or one of a group: "bench attention" is two words. */
static const struct {
    const char *word, *second; /* second: NULL for none */
    const cli_command *command;
} commands[] = {{"generate", NULL, &generate_command},
                {"attend", NULL, &attend_command},
                {"bench", "generate", &bench_generate_command},
                {"bench", "attention", &bench_attention_command},
                {"inspect", NULL, &inspect_command},
                {"doctor", NULL, &doctor_command}};

#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static void print_overview(FILE *out) {
    fputs("hla turns a text prompt into a video with a diffusion transformer whose\n"
          "self-attention is Hadamard linear attention, and gives that attention as a\n"
          "command.\n\nUsage: hla COMMAND [options]\n\nCommands:\n",
          out);
    for (size_t i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-16s %s\n", commands[i].command->name, commands[i].command->summary);
    fputs("  help [COMMAND]   This text, or a command's.\n"
          "  version          The version.\n"
          "\n"
          "Try it:  hla generate \"a rocket flies up over a blue background\" -o rocket.mp4\n"
          "Help on a command:  hla COMMAND --help\n",
          out);
}

static int finish(void) {
    return fflush(stdout) == 0 && ferror(stdout) == 0 ? STATUS_DONE : STATUS_FAILED;
}

/* The command that argv[0], and argv[1] for a group, name; *words is how many it took. NULL, with everything said. */
static const cli_command *find_command(int argc, char **argv, int *words) {
    bool group = false;
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i].word, argv[0]) != 0) continue;
        *words = commands[i].second != NULL ? 2 : 1;
        if (commands[i].second == NULL || (argc > 1 && strcmp(commands[i].second, argv[1]) == 0))
            return commands[i].command;
        group = true;
    }
    if (group)
        fprintf(stderr, "hla %s: wanted 'hla %s generate' or 'hla %s attention'\nTry 'hla help'.\n", argv[0], argv[0],
                argv[0]);
    else
        fprintf(stderr, "hla: unknown command '%s'\nTry 'hla help'.\n", argv[0]);
    return NULL;
}

static int help(int argc, char **argv) {
    int words;
    if (argc == 0) {
        print_overview(stdout);
        return finish();
    }
    const cli_command *command = find_command(argc, argv, &words);
    if (command == NULL) return STATUS_USAGE;
    print_help(command);
    return finish();
}

static bool is(const char *word, const char *name, const char *option) {
    return strcmp(word, name) == 0 || strcmp(word, option) == 0;
}

/* GCC's OpenMP lets threads spin at a barrier for milliseconds before they sleep. On a machine that does other work
 * too, the thread they wait for is then the one without a core, and a step takes seven times as long. A thousand turns
 * are as fast where nothing else runs. The runtime reads its environment before main, so the program starts itself
 * once more; where it cannot, it goes on as it is. */
static void start_with_short_spins(char **argv) {
    char program[4096];
    if (getenv("OMP_WAIT_POLICY") != NULL || getenv("GOMP_SPINCOUNT") != NULL) return;
    ssize_t length = readlink("/proc/self/exe", program, sizeof program);
    if (length <= 0 || (size_t)length >= sizeof program || setenv("GOMP_SPINCOUNT", "1000", 1) != 0) return;
    program[length] = '\0';
    execv(program, argv);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_overview(stderr);
        return STATUS_USAGE;
    }
    if (is(argv[1], "help", "--help") || strcmp(argv[1], "-h") == 0) return help(argc - 2, argv + 2);
    if (is(argv[1], "version", "--version")) {
        printf("hla %s\n", hla_version());
        return finish();
    }
    if (strcmp(argv[1], "bench") == 0 && argc > 2 && is(argv[2], "-h", "--help")) {
        print_help(&bench_generate_command);
        printf("\n");
        print_help(&bench_attention_command);
        return finish();
    }
    int words = 0;
    const cli_command *command = find_command(argc - 1, argv + 1, &words);
    if (command == NULL) return STATUS_USAGE;
    start_with_short_spins(argv);
    return command->run(argc - words, argv + words);
}
