#include "cli/machine.h"

#include <ctype.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Copies what follows "key:" in a file of such lines, without the spaces around; false if there is no such line. */
static bool find_line(const char *path, const char *key, char *out, size_t size) {
    FILE *file = fopen(path, "re");
    if (file == NULL) return false;
    char *line = NULL;
    size_t room = 0;
    bool found = false;
    while (!found && getline(&line, &room, file) > 0) {
        char *colon = strchr(line, ':');
        size_t length = strlen(key);
        if (colon == NULL || strncmp(line, key, length) != 0 ||
            strspn(line + length, " \t") != (size_t)(colon - line) - length)
            continue;
        const char *value = colon + 1 + strspn(colon + 1, " \t");
        snprintf(out, size, "%.*s", (int)strcspn(value, "\n"), value);
        found = true;
    }
    free(line);
    fclose(file);
    return found;
}

static int64_t memory_line(const char *key) {
    char text[64];
    return find_line("/proc/meminfo", key, text, sizeof text) ? strtoll(text, NULL, 10) * 1024 : 0;
}

/* Of the flags the kernel lists, those that matter here. */
static void find_instructions(char *out, size_t size) {
    static const char *const names[] = {"sse4_2", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"};
    char *flags = malloc(16384);
    out[0] = '\0';
    if (flags == NULL) return;
    if (!find_line("/proc/cpuinfo", "flags", flags, 16384) && !find_line("/proc/cpuinfo", "Features", flags, 16384))
        flags[0] = '\0';
    char *rest = NULL;
    for (const char *flag = strtok_r(flags, " ", &rest); flag != NULL; flag = strtok_r(NULL, " ", &rest))
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
            if (strcmp(flag, names[i]) == 0)
                snprintf(out + strlen(out), size - strlen(out), "%s%s", out[0] != '\0' ? " " : "", flag);
    free(flags);
}

void read_machine(machine_info *machine) {
    *machine = (machine_info){.memory = memory_line("MemTotal"), .available = memory_line("MemAvailable")};
    if (!find_line("/proc/cpuinfo", "model name", machine->processor, sizeof machine->processor))
        snprintf(machine->processor, sizeof machine->processor, "unknown");
    find_instructions(machine->instructions, sizeof machine->instructions);
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    machine->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)online;
}

void machine_json(json_writer *json, const machine_info *machine, int threads) {
    json_open(json, "machine", '{');
    json_text(json, "processor", machine->processor);
    json_text(json, "instructions", machine->instructions);
    json_whole(json, "cores", machine->cores);
    json_whole(json, "threads", threads);
    json_whole(json, "memory_bytes", machine->memory);
    json_close(json, '}');
}
