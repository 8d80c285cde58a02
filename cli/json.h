/* cli/json.h - JSON as it is printed: objects and arrays, commas and escapes kept right. */
#ifndef HLA_CLI_JSON_H
#define HLA_CLI_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct json_writer {
    FILE *out;
    int depth;
    bool first; /* nothing written at this level yet */
} json_writer;

/* key is NULL for elements of an array and for the outermost value. */
void json_open(json_writer *json, const char *key, char bracket); /* '{' or '[' */
void json_close(json_writer *json, char bracket);                 /* '}' or ']' */
void json_text(json_writer *json, const char *key,
               const char *text); /* NULL text: null; bytes that are no UTF-8 become U+FFFD */
void json_whole(json_writer *json, const char *key, int64_t value);
void json_seed(json_writer *json, const char *key, uint64_t value);
void json_number(json_writer *json, const char *key, double value); /* not finite: null */
void json_bool(json_writer *json, const char *key, bool value);

#endif
