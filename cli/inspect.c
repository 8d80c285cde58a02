/* cli/inspect.c - hla inspect: what is in a checkpoint, and what a clip costs with it. */
#include "cli/commands.h"
#include "cli/model.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct inspect_settings {
    cli_common common;
    int size[2], frames;
} inspect_settings;

static const cli_option table[] = {{"size", 's', OPTION_SIZE, offsetof(inspect_settings, size), "WxH",
                                    "pixels that FLOPs and memory are given for (default: the model's)", 0, 0, NULL},
                                   {"frames", 'f', OPTION_INTEGER, offsetof(inspect_settings, frames), "N",
                                    "frames, 4k+1 (default: the model's)", 1, 100000, NULL},
                                   {0}};

static int run(int argc, char **argv);

const cli_command inspect_command = {
    "inspect",
    "Shows what is in a checkpoint, and what a clip costs with it.",
    "[DIR|FILE] [options]",
    table,
    "DIR is a checkpoint in the Diffusers layout, FILE one .safetensors file; without\n"
    "either the default model is shown. A clip's cost is given in FLOPs and memory.\n"
    "\n"
    "Examples:\n"
    "  hla inspect\n"
    "  hla inspect Wan2.1-T2V-1.3B-Diffusers --size 832x480 --frames 81\n"
    "  hla inspect models/hla-tiny/hla/model.safetensors --json\n",
    run};

static int run(int argc, char **argv) {
    inspect_settings settings = {0};
    text_list words;
    int exit_status = parse_options(&inspect_command, argc, argv, &settings, &words, 1);
    cli_session session;
    if (exit_status == STATUS_GO_ON) exit_status = session_open(&session, &inspect_command, &settings.common);
    if (exit_status != STATUS_GO_ON) return exit_status;
    char *found = words.count > 0 ? NULL : find_default_model(), *text = NULL;
    const char *path = words.count > 0 ? words.items[0] : found;
    if (path == NULL) {
        session.sentence =
            "the embedded hla-tiny is not installed here; name a directory or file, or set HLA_MODEL=DIR";
        return session_close(&session, HLV_ERROR_IO);
    }
    hlv_status status = hlv_inspect(session.ctx, path, settings.size[0], settings.size[1], settings.frames,
                                    settings.common.json, &text);
    if (status == HLV_OK) fputs(text, stdout);
    free(text);
    free(found);
    return session_close(&session, status);
}
