/* Bytes as each of the JSON configs in turn. */
#include "video/weights/config_json.h"
#include "video/weights/json.h"

#include <stdlib.h>
#include <string.h>

/* The sentence of a failure is there; the numbers of a success are in range. */
static void check(hlv_context *ctx, hlv_status status, bool sane) {
    if (status == HLV_OK ? !sane : !hlv_context_error(ctx)[0]) abort();
}

static void use(hlv_context *ctx, json_t *root) {
    hlv_transformer_config transformer;
    hlv_status status = hlv_transformer_config_from_json(ctx, "fuzz", root, &transformer);
    check(ctx, status, transformer.num_layers >= 1 && transformer.patch_size[2] >= 1 && transformer.eps > 0);
    hlv_vae_config vae;
    status = hlv_vae_config_from_json(ctx, "fuzz", root, &vae);
    check(ctx, status, vae.stages >= 1 && vae.stages <= HLV_MAX_STAGES && vae.latents_std[vae.z_dim - 1] > 0);
    hlv_text_config text;
    status = hlv_text_config_from_json(ctx, "fuzz", root, &text);
    check(ctx, status, text.vocab_size >= 1 && text.eos_token_id < text.vocab_size);
    hlv_scheduler_config scheduler;
    status = hlv_scheduler_config_from_json(ctx, "fuzz", root, &scheduler);
    check(ctx, status, scheduler.flow_shift > 0 && scheduler.solver_order >= 1);
    hlv_default_config defaults;
    status = hlv_default_config_from_json(ctx, "fuzz", root, &defaults);
    check(ctx, status, defaults.width >= 1 && defaults.fps > 0);
    hlv_adapter_config adapter;
    status = hlv_adapter_config_from_json(ctx, "fuzz", root, &adapter);
    check(ctx, status, adapter.num_layers >= 1 && adapter.blocks);
    for (int i = 0; status == HLV_OK && i < adapter.num_layers; i++)
        for (int p = 0; p < adapter.blocks[i].factors; p++)
            if (adapter.blocks[i].rank[p] < 1 || adapter.blocks[i].rank[p] > HLA_MAX_RANK) abort();
    hlv_adapter_config_free(&adapter);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    hlv_context *ctx = NULL;
    if (hlv_context_create(&ctx) != HLV_OK) abort();
    json_t *root = NULL;
    if (hlv_json_parse(ctx, "fuzz", (const char *)bytes, size, &root) == HLV_OK) use(ctx, root);
    json_decref(root);
    if (hlv_context_current_bytes(ctx) != 0) abort();
    hlv_context_free(ctx);
    return 0;
}
