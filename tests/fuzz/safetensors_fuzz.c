/* Bytes as a .safetensors file: as they come, and once more with a true header length put before them, since chance
 * seldom keeps that number right. What is accepted is also converted, so that a wrong offset would be touched. */
#include "video/core/context.h"
#include "video/weights/names.h"
#include "video/weights/safetensors.h"

#include <stdlib.h>
#include <string.h>

static void use(hlv_context *ctx, const uint8_t *bytes, size_t size) {
    hlv_safetensors *file = NULL;
    if (hlv_safetensors_parse(ctx, "fuzz", bytes, size, &file) != HLV_OK) return;
    char renamed[512];
    for (int64_t i = 0; i < file->count; i++) {
        const hlv_weight *tensor = &file->tensors[i];
        for (int style = HLV_NAMES_AS_THEY_ARE; style <= HLV_NAMES_WAN_TEXT; style++)
            hlv_names_rename((hlv_name_style)style, tensor->name, renamed, sizeof renamed);
        if (!tensor->usable) continue;
        float *values = hlv_weight_load_f32(ctx, tensor);
        if (!values) abort(); /* the data is in memory already */
        hlv_free(ctx, values);
    }
    hlv_safetensors_free(file);
}

/* The header is taken to end at the last '}'. */
static void use_with_length(hlv_context *ctx, const uint8_t *bytes, size_t size) {
    uint64_t length = size;
    while (length > 0 && bytes[length - 1] != '}')
        length--;
    uint8_t *whole = malloc(size + 8);
    if (!whole) abort();
    memcpy(whole, &length, 8);
    if (size) memcpy(whole + 8, bytes, size);
    use(ctx, whole, size + 8);
    free(whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    hlv_context *ctx = NULL;
    if (hlv_context_create(&ctx) != HLV_OK) abort();
    use(ctx, bytes, size);
    use_with_length(ctx, bytes, size);
    if (hlv_context_current_bytes(ctx) != 0) abort(); /* something was not freed */
    hlv_context_free(ctx);
    return 0;
}
