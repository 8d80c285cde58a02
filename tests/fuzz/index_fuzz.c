/* Bytes as the index of a checkpoint in shards, beside two true shards "a" and "b" of one tensor each and a file "c"
 * that is none. What is accepted is walked through, so that a wrong placement would be touched. */
#include "video/weights/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_BYTES 128

static char directory[64];

static void path_of(const char *name, char path[PATH_BYTES]) {
    if (snprintf(path, PATH_BYTES, "%s/%s", directory, name) >= PATH_BYTES) abort();
}

static void put(const char *name, const void *bytes, size_t size) {
    char path[PATH_BYTES];
    path_of(name, path);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) abort();
}

static void clean_up(void) {
    static const char *const names[] = {"a", "b", "c", "model.safetensors.index.json"};
    char path[PATH_BYTES];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        path_of(names[i], path);
        unlink(path);
    }
    rmdir(directory);
}

static void make_shards(hlv_context *ctx) {
    static const float numbers[2] = {1, 2};
    const char *room = getenv("TMPDIR");
    snprintf(directory, sizeof directory, "%.40s/hlv-index-XXXXXX", room ? room : "/tmp");
    if (!mkdtemp(directory)) abort();
    if (atexit(clean_up) != 0) abort();
    char path[PATH_BYTES];
    for (int i = 0; i < 2; i++) {
        const hlv_tensor_out tensor = {i ? "y" : "x", HLA_F32, 1, {2}, numbers};
        path_of(i ? "b" : "a", path);
        if (hlv_safetensors_write(ctx, path, &tensor, 1, NULL, 0) != HLV_OK) abort();
    }
    put("c", "no shard", 8);
}

static void use(const hlv_weights *weights) {
    float values[2];
    if (hlv_weights_count(weights) < 1 || hlv_weights_count(weights) > 2) abort();
    for (int64_t i = 0; i < hlv_weights_count(weights); i++) {
        const hlv_weight *tensor = hlv_weights_at(weights, i);
        if (hlv_weights_find(weights, tensor->name) != tensor || tensor->count != 2) abort();
        hlv_weight_to_f32(tensor, values);
        if (values[0] != 1 || values[1] != 2) abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    hlv_context *ctx = NULL;
    if (hlv_context_create(&ctx) != HLV_OK) abort();
    if (!directory[0]) make_shards(ctx);
    put("model.safetensors.index.json", bytes, size);
    hlv_weights *weights = NULL;
    if (hlv_weights_open(ctx, directory, &weights) == HLV_OK)
        use(weights);
    else if (weights || !hlv_context_error(ctx)[0])
        abort();
    hlv_weights_free(weights);
    if (hlv_context_current_bytes(ctx) != 0) abort(); /* something was not freed */
    hlv_context_free(ctx);
    return 0;
}
