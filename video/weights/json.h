/* video/weights/json.h - JSON files into jansson trees, and fields of them into checked values. */
#ifndef HLV_JSON_H
#define HLV_JSON_H

#include "video/core/context.h"

#include <jansson.h>

#define HLV_JSON_MAX_BYTES 100000000 /* of one document: the cap the safetensors format sets for its header */

/* Reads a regular file whole; *bytes is freed with hlv_free. */
hlv_status hlv_file_read(hlv_context *ctx, const char *path, int64_t max_bytes, char **bytes, size_t *size);

/* Text to a tree whose root is an object, names unique everywhere in it. `file` is for the error sentence. The caller
 * owns *root (json_decref). */
hlv_status hlv_json_parse(hlv_context *ctx, const char *file, const char *text, size_t size, json_t **root);
hlv_status hlv_json_read(hlv_context *ctx, const char *path, json_t **root);

/* What a value is, for sentences: "an object", "null", ... */
const char *hlv_json_kind(const json_t *value);

/* Reads fields one after the other. The first thing wrong is kept in status, with its sentence in the context; after it
 * every read gives the default. An absent key gives the default; null is wrong unless the class allows it, which
 * hlv_json_is_null asks first. */
typedef struct hlv_json_fields {
    hlv_context *ctx;
    const char *file;
    const char *where; /* "" or, within an array, such as "blocks[3]: " */
    json_t *object;
    hlv_status status;
} hlv_json_fields;

bool hlv_json_is_null(const hlv_json_fields *fields, const char *key); /* null or absent */
int hlv_json_int(hlv_json_fields *fields, const char *key, int absent, int min, int max);
double hlv_json_real(hlv_json_fields *fields, const char *key, double absent, double min, double max);
bool hlv_json_bool(hlv_json_fields *fields, const char *key, bool absent);
const char *hlv_json_text(hlv_json_fields *fields, const char *key, const char *absent); /* lives as long as object */
/* An array of min_count to max_count entries, or NULL if absent or wrong. */
const json_t *hlv_json_array(hlv_json_fields *fields, const char *key, size_t min_count, size_t max_count);
/* Entry i of an array that was read from `key`. */
int hlv_json_int_at(hlv_json_fields *fields, const char *key, const json_t *array, size_t i, int min, int max);
double hlv_json_real_at(hlv_json_fields *fields, const char *key, const json_t *array, size_t i, double min,
                        double max);

/* Keeps the first failure of the fields; returns its status. */
hlv_status hlv_json_fail(hlv_json_fields *fields, hlv_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
