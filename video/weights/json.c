#include "video/weights/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static hlv_status read_all(hlv_context *ctx, const char *path, int file, char *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t got = read(file, bytes + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be read: %s", path, strerror(errno));
        if (got == 0) return hlv_fail(ctx, HLV_ERROR_IO, "%s: became shorter while it was read", path);
        done += (size_t)got;
    }
    return HLV_OK;
}

hlv_status hlv_file_read(hlv_context *ctx, const char *path, int64_t max_bytes, char **bytes, size_t *size) {
    *bytes = NULL;
    *size = 0;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block */
    if (file < 0) return hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    hlv_status status = HLV_OK;
    struct stat info;
    if (fstat(file, &info) != 0)
        status = hlv_fail(ctx, HLV_ERROR_IO, "%s: cannot be read: %s", path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        status = hlv_fail(ctx, HLV_ERROR_IO, "%s: is not a regular file", path);
    else if (info.st_size > max_bytes)
        status = hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: has %lld bytes, more than the %lld such a file may have", path,
                          (long long)info.st_size, (long long)max_bytes);
    if (status == HLV_OK) {
        *size = (size_t)info.st_size;
        *bytes = hlv_alloc(ctx, *size);
        status = *bytes ? read_all(ctx, path, file, *bytes, *size) : HLV_ERROR_MEMORY;
    }
    close(file);
    if (status != HLV_OK) {
        hlv_free(ctx, *bytes);
        *bytes = NULL;
    }
    return status;
}

hlv_status hlv_json_parse(hlv_context *ctx, const char *file, const char *text, size_t size, json_t **root) {
    json_error_t error;
    *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!*root) {
        if (json_error_code(&error) == json_error_out_of_memory)
            return hlv_fail(ctx, HLV_ERROR_MEMORY, "%s: out of memory while its JSON was read", file);
        return hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: is not readable JSON: line %d, column %d: %s", file, error.line,
                        error.column, error.text);
    }
    if (json_is_object(*root)) return HLV_OK;
    hlv_fail(ctx, HLV_ERROR_FORMAT, "%s: its JSON is %s, and must be an object", file, hlv_json_kind(*root));
    json_decref(*root);
    *root = NULL;
    return HLV_ERROR_FORMAT;
}

hlv_status hlv_json_read(hlv_context *ctx, const char *path, json_t **root) {
    *root = NULL;
    char *text = NULL;
    size_t size = 0;
    hlv_status status = hlv_file_read(ctx, path, HLV_JSON_MAX_BYTES, &text, &size);
    if (status != HLV_OK) return status;
    status = hlv_json_parse(ctx, path, text, size, root);
    hlv_free(ctx, text);
    return status;
}

const char *hlv_json_kind(const json_t *value) {
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object",   [JSON_ARRAY] = "an array",     [JSON_STRING] = "a string",
        [JSON_INTEGER] = "an integer", [JSON_REAL] = "a real number", [JSON_TRUE] = "true",
        [JSON_FALSE] = "false",        [JSON_NULL] = "null",
    };
    return value ? kinds[json_typeof(value)] : "absent";
}

hlv_status hlv_json_fail(hlv_json_fields *fields, hlv_status status, const char *format, ...) {
    if (fields->status != HLV_OK) return fields->status;
    char sentence[1024];
    va_list arguments;
    va_start(arguments, format);
    if (vsnprintf(sentence, sizeof sentence, format, arguments) < 0) sentence[0] = '\0';
    va_end(arguments);
    fields->status = status;
    return hlv_fail(fields->ctx, status, "%s: %s%s", fields->file, fields->where, sentence);
}

bool hlv_json_is_null(const hlv_json_fields *fields, const char *key) {
    const json_t *value = json_object_get(fields->object, key);
    return !value || json_is_null(value);
}

static int checked_int(hlv_json_fields *fields, const char *name, const json_t *value, int absent, int min, int max) {
    if (!json_is_integer(value)) {
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %s, and must be an integer from %d to %d", name,
                      hlv_json_kind(value), min, max);
        return absent;
    }
    json_int_t number = json_integer_value(value);
    if (number < min || number > max) {
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %lld, and must be an integer from %d to %d", name,
                      (long long)number, min, max);
        return absent;
    }
    return (int)number;
}

static double checked_real(hlv_json_fields *fields, const char *name, const json_t *value, double absent, double min,
                           double max) {
    if (!json_is_number(value)) {
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %s, and must be a number from %g to %g", name,
                      hlv_json_kind(value), min, max);
        return absent;
    }
    double number = json_number_value(value);
    if (!(number >= min && number <= max)) {
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %g, and must be a number from %g to %g", name, number, min,
                      max);
        return absent;
    }
    return number;
}

int hlv_json_int(hlv_json_fields *fields, const char *key, int absent, int min, int max) {
    const json_t *value = json_object_get(fields->object, key);
    if (!value || fields->status != HLV_OK) return absent;
    return checked_int(fields, key, value, absent, min, max);
}

double hlv_json_real(hlv_json_fields *fields, const char *key, double absent, double min, double max) {
    const json_t *value = json_object_get(fields->object, key);
    if (!value || fields->status != HLV_OK) return absent;
    return checked_real(fields, key, value, absent, min, max);
}

bool hlv_json_bool(hlv_json_fields *fields, const char *key, bool absent) {
    const json_t *value = json_object_get(fields->object, key);
    if (!value || fields->status != HLV_OK) return absent;
    if (json_is_boolean(value)) return json_is_true(value);
    hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %s, and must be true or false", key, hlv_json_kind(value));
    return absent;
}

const char *hlv_json_text(hlv_json_fields *fields, const char *key, const char *absent) {
    const json_t *value = json_object_get(fields->object, key);
    if (!value || fields->status != HLV_OK) return absent;
    if (json_is_string(value)) return json_string_value(value);
    hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %s, and must be a string", key, hlv_json_kind(value));
    return absent;
}

const json_t *hlv_json_array(hlv_json_fields *fields, const char *key, size_t min_count, size_t max_count) {
    const json_t *value = json_object_get(fields->object, key);
    if (!value || fields->status != HLV_OK) return NULL;
    if (!json_is_array(value)) {
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' is %s, and must be an array", key, hlv_json_kind(value));
        return NULL;
    }
    size_t count = json_array_size(value);
    if (count >= min_count && count <= max_count) return value;
    if (min_count == max_count)
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' has %zu entries, and must have %zu", key, count, min_count);
    else
        hlv_json_fail(fields, HLV_ERROR_FORMAT, "'%s' has %zu entries, and must have %zu to %zu", key, count, min_count,
                      max_count);
    return NULL;
}

int hlv_json_int_at(hlv_json_fields *fields, const char *key, const json_t *array, size_t i, int min, int max) {
    char name[160];
    snprintf(name, sizeof name, "%s[%zu]", key, i);
    if (fields->status != HLV_OK) return min;
    return checked_int(fields, name, json_array_get(array, i), min, min, max);
}

double hlv_json_real_at(hlv_json_fields *fields, const char *key, const json_t *array, size_t i, double min,
                        double max) {
    char name[160];
    snprintf(name, sizeof name, "%s[%zu]", key, i);
    if (fields->status != HLV_OK) return min;
    return checked_real(fields, name, json_array_get(array, i), min, min, max);
}
