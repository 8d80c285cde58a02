#include "video/weights/weights.h"

#include "video/weights/json.h"
#include "video/weights/names.h"
#include "video/weights/safetensors.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_SHARDS 1000
#define MAX_NAME 512 /* of a renamed tensor */

struct hlv_weights {
    hlv_context *ctx;
    char *path;
    hlv_safetensors **files;
    int64_t file_count;
    hlv_weight *tensors; /* sorted by name */
    int64_t count;
    char *names; /* of tensors that were renamed */
};

/* What a directory may hold, in the order of preference. */
static const char *const single_names[] = {"diffusion_pytorch_model.safetensors", "model.safetensors"};
static const char *const index_names[] = {"diffusion_pytorch_model.safetensors.index.json",
                                          "model.safetensors.index.json"};
#define NAMES (sizeof single_names / sizeof *single_names)

static int by_name(const void *a, const void *b) {
    const hlv_weight *left = a, *right = b;
    return strcmp(left->name, right->name);
}

/* "DIR/NAME" in fresh memory; NULL when out of memory. */
static char *join(hlv_context *ctx, const char *directory, const char *name) {
    size_t bytes = strlen(directory) + strlen(name) + 2;
    char *path = hlv_alloc(ctx, bytes);
    if (path) snprintf(path, bytes, "%s/%s", directory, name);
    return path;
}

/* Adds a file to those already opened; weights->files has room. */
static hlv_status open_file(hlv_weights *weights, const char *path) {
    hlv_status status = hlv_safetensors_open(weights->ctx, path, &weights->files[weights->file_count]);
    if (status == HLV_OK) weights->file_count++;
    return status;
}

static hlv_status make_room_for_files(hlv_weights *weights, size_t count) {
    weights->files = hlv_alloc(weights->ctx, count * sizeof(hlv_safetensors *));
    return weights->files ? HLV_OK : HLV_ERROR_MEMORY;
}

/* The new names of an original Wan checkpoint: first their length, then their text. */
static hlv_status rename_tensors(hlv_weights *weights) {
    hlv_name_style style = HLV_NAMES_AS_THEY_ARE;
    for (int64_t i = 0; i < weights->count && style == HLV_NAMES_AS_THEY_ARE; i++)
        style = hlv_names_detect(weights->tensors[i].name);
    if (style == HLV_NAMES_AS_THEY_ARE) return HLV_OK;
    char renamed[MAX_NAME];
    size_t bytes = 0;
    for (int64_t i = 0; i < weights->count; i++)
        if (hlv_names_rename(style, weights->tensors[i].name, renamed, sizeof renamed)) bytes += strlen(renamed) + 1;
    weights->names = hlv_alloc(weights->ctx, bytes);
    if (!weights->names) return HLV_ERROR_MEMORY;
    char *next = weights->names;
    for (int64_t i = 0; i < weights->count; i++) {
        if (!hlv_names_rename(style, weights->tensors[i].name, renamed, sizeof renamed)) continue;
        size_t length = strlen(renamed) + 1;
        memcpy(next, renamed, length);
        weights->tensors[i].name = next;
        next += length;
    }
    return HLV_OK;
}

/* Gathers the tensors of all files, those of a shard only as far as placement (name -> file name; NULL: all) puts them
 * there. shards[i] is the file name of files[i]. */
static hlv_status gather(hlv_weights *weights, const json_t *placement, const char *const *shards) {
    int64_t total = 0;
    for (int64_t f = 0; f < weights->file_count; f++)
        total += weights->files[f]->count;
    weights->tensors = hlv_alloc(weights->ctx, (size_t)total * sizeof *weights->tensors);
    if (!weights->tensors) return HLV_ERROR_MEMORY;
    for (int64_t f = 0; f < weights->file_count; f++) {
        const hlv_safetensors *file = weights->files[f];
        for (int64_t i = 0; i < file->count; i++) {
            const char *place = json_string_value(json_object_get(placement, file->tensors[i].name));
            if (placement && (!place || strcmp(place, shards[f]) != 0)) continue;
            weights->tensors[weights->count++] = file->tensors[i];
        }
    }
    hlv_status status = rename_tensors(weights);
    if (status != HLV_OK) return status;
    if (weights->count) qsort(weights->tensors, (size_t)weights->count, sizeof *weights->tensors, by_name);
    for (int64_t i = 1; i < weights->count; i++)
        if (strcmp(weights->tensors[i].name, weights->tensors[i - 1].name) == 0)
            return hlv_fail(weights->ctx, HLV_ERROR_FORMAT, "%s: tensor '%.200s' is there twice under two spellings",
                            weights->path, weights->tensors[i].name);
    return HLV_OK;
}

/* A shard stands beside its index: its name has no '/' and is neither "." nor "..". */
static hlv_status check_shard_name(hlv_context *ctx, const char *index, const char *tensor, const json_t *value) {
    const char *name = json_string_value(value);
    if (!name)
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: weight_map entry '%.200s' is %s, and must be a file name", index,
                        tensor, hlv_json_kind(value));
    if (!*name || strchr(name, '/') || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return hlv_fail(
            ctx, HLV_ERROR_FORMAT,
            "%s: weight_map entry '%.200s' is '%.200s', and must be the name of a file in the same directory", index,
            tensor, name);
    return HLV_OK;
}

static int64_t find_shard(const char *const *shards, int64_t count, const char *name) {
    for (int64_t i = count - 1; i >= 0; i--) /* neighbours in the map are mostly in the latest shard */
        if (strcmp(shards[i], name) == 0) return i;
    return -1;
}

/* Opens every shard the map names, noting its file name in shards. */
static hlv_status open_shards(hlv_weights *weights, const char *index, json_t *map, const char **shards) {
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) {
        hlv_status status = check_shard_name(weights->ctx, index, tensor, value);
        if (status != HLV_OK) return status;
        const char *name = json_string_value(value);
        if (find_shard(shards, weights->file_count, name) >= 0) continue;
        if (weights->file_count == MAX_SHARDS)
            return hlv_fail(weights->ctx, HLV_ERROR_FORMAT, "%s: names more than %d files", index, MAX_SHARDS);
        char *path = join(weights->ctx, weights->path, name);
        if (!path) return HLV_ERROR_MEMORY;
        shards[weights->file_count] = name;
        status = open_file(weights, path);
        hlv_free(weights->ctx, path);
        if (status != HLV_OK) return status;
    }
    return HLV_OK;
}

/* Every tensor of the map must be in the shard it is said to be in. */
static hlv_status check_placement(hlv_weights *weights, const char *index, json_t *map, const char *const *shards) {
    const char *tensor;
    json_t *value;
    json_object_foreach(map, tensor, value) {
        const char *name = json_string_value(value);
        const hlv_safetensors *file = weights->files[find_shard(shards, weights->file_count, name)];
        const json_t *entry = json_object_get(file->header, tensor);
        if (!entry || entry == file->metadata)
            return hlv_fail(weights->ctx, HLV_ERROR_FORMAT,
                            "%s: weight_map says tensor '%.200s' is in '%.200s', which does not have it", index, tensor,
                            name);
    }
    return HLV_OK;
}

static hlv_status open_index(hlv_weights *weights, const char *index) {
    json_t *root = NULL;
    const char **shards = NULL;
    hlv_status status = hlv_json_read(weights->ctx, index, &root);
    if (status != HLV_OK) return status;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) {
        status = hlv_fail(weights->ctx, HLV_ERROR_FORMAT,
                          "%s: its 'weight_map' must be an object from tensor names to file names, not %s", index,
                          json_is_object(map) ? "an empty one" : hlv_json_kind(map));
    } else {
        shards = hlv_alloc(weights->ctx, MAX_SHARDS * sizeof *shards);
        status = shards ? make_room_for_files(weights, MAX_SHARDS) : HLV_ERROR_MEMORY;
        if (status == HLV_OK) status = open_shards(weights, index, map, shards);
        if (status == HLV_OK) status = check_placement(weights, index, map, shards);
        if (status == HLV_OK) status = gather(weights, map, shards);
    }
    hlv_free(weights->ctx, shards);
    json_decref(root);
    return status;
}

static hlv_status open_single(hlv_weights *weights, const char *path) {
    hlv_status status = make_room_for_files(weights, 1);
    if (status == HLV_OK) status = open_file(weights, path);
    if (status == HLV_OK) status = gather(weights, NULL, NULL);
    return status;
}

static hlv_status open_directory(hlv_weights *weights) {
    struct stat info;
    for (size_t i = 0; i < 2 * NAMES; i++) {
        char *path = join(weights->ctx, weights->path, i < NAMES ? single_names[i] : index_names[i - NAMES]);
        if (!path) return HLV_ERROR_MEMORY;
        bool found = stat(path, &info) == 0;
        hlv_status status = HLV_OK;
        if (found) status = i < NAMES ? open_single(weights, path) : open_index(weights, path);
        hlv_free(weights->ctx, path);
        if (found) return status;
    }
    return hlv_fail(weights->ctx, HLV_ERROR_IO, "%s: has no weights: neither %s nor %s, nor an index of shards",
                    weights->path, single_names[0], single_names[1]);
}

hlv_status hlv_weights_open(hlv_context *ctx, const char *path, hlv_weights **weights) {
    *weights = NULL;
    struct stat info;
    if (stat(path, &info) != 0) return hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    hlv_weights *made = hlv_alloc(ctx, sizeof *made);
    if (!made) return HLV_ERROR_MEMORY;
    *made = (hlv_weights){.ctx = ctx, .path = hlv_copy_text(ctx, path)};
    hlv_status status = HLV_ERROR_MEMORY;
    if (made->path) status = S_ISDIR(info.st_mode) ? open_directory(made) : open_single(made, path);
    if (status != HLV_OK) {
        hlv_weights_free(made);
        return status;
    }
    *weights = made;
    return HLV_OK;
}

void hlv_weights_free(hlv_weights *weights) {
    if (!weights) return;
    hlv_context *ctx = weights->ctx;
    for (int64_t i = 0; i < weights->file_count; i++)
        hlv_safetensors_free(weights->files[i]);
    hlv_free(ctx, weights->files);
    hlv_free(ctx, weights->tensors);
    hlv_free(ctx, weights->names);
    hlv_free(ctx, weights->path);
    hlv_free(ctx, weights);
}

int64_t hlv_weights_count(const hlv_weights *weights) {
    return weights->count;
}

const char *hlv_weights_path(const hlv_weights *weights) {
    return weights->path;
}

const hlv_weight *hlv_weights_at(const hlv_weights *weights, int64_t i) {
    return i >= 0 && i < weights->count ? &weights->tensors[i] : NULL;
}

const hlv_weight *hlv_weights_find_any(const hlv_weights *weights, const char *name) {
    hlv_weight wanted = {.name = name};
    if (!weights->count) return NULL;
    return bsearch(&wanted, weights->tensors, (size_t)weights->count, sizeof wanted, by_name);
}

const hlv_weight *hlv_weights_find(const hlv_weights *weights, const char *name) {
    const hlv_weight *weight = hlv_weights_find_any(weights, name);
    return weight && weight->usable ? weight : NULL;
}

const char *hlv_weights_metadata(const hlv_weights *weights, const char *key) {
    for (int64_t i = 0; i < weights->file_count; i++) {
        const char *value = json_string_value(json_object_get(weights->files[i]->metadata, key));
        if (value) return value;
    }
    return NULL;
}

int64_t hlv_weights_metadata_at(const hlv_weights *weights, int64_t i, const char **key, const char **value) {
    int64_t seen = 0;
    for (int64_t f = 0; f < weights->file_count; f++) {
        const char *name;
        json_t *text;
        json_object_foreach(weights->files[f]->metadata, name, text) {
            if (seen++ != i) continue;
            *key = name;
            *value = json_string_value(text);
        }
    }
    return seen;
}

int64_t hlv_weights_files(const hlv_weights *weights, int64_t *bytes) {
    *bytes = 0;
    for (int64_t i = 0; i < weights->file_count; i++)
        *bytes += (int64_t)weights->files[i]->size;
    return weights->file_count;
}
