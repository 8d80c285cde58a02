/* cli/commands.h - the subcommands. */
#ifndef HLA_CLI_COMMANDS_H
#define HLA_CLI_COMMANDS_H

#include "cli/options.h"

extern const cli_command generate_command, attend_command, bench_generate_command, bench_attention_command,
    inspect_command, doctor_command;

#endif
