/* cli/machine.h - what this machine is, for reports. */
#ifndef HLA_CLI_MACHINE_H
#define HLA_CLI_MACHINE_H

#include "cli/json.h"

typedef struct machine_info {
    char processor[128];       /* model name, "unknown" where the system does not tell */
    char instructions[256];    /* vector instruction sets, with spaces between */
    int cores;                 /* this process may use */
    int64_t memory, available; /* bytes; 0: unknown */
} machine_info;

void read_machine(machine_info *machine);

/* "machine": {...} */
void machine_json(json_writer *json, const machine_info *machine, int threads);

#endif
