/* Golden files of tests/golden/text, made by tests/golden/make_text.py from the reference implementations. */
#ifndef TESTS_TEXT_GOLDEN_H
#define TESTS_TEXT_GOLDEN_H

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#define GOLDEN HLA_TEST_ROOT "/tests/golden/text/"

/* A golden JSON file; ends the program if it is missing, since no test could mean anything then. */
static inline json_t *golden_json(const char *name) {
    char path[4096];
    json_error_t error;
    (void)snprintf(path, sizeof path, "%s%s", GOLDEN, name);
    json_t *value = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!value) {
        (void)fprintf(stderr, "%s: %s\n", path, error.text);
        exit(1);
    }
    return value;
}

/* The bytes of a golden file, freed with free(). */
static inline char *golden_bytes(const char *name, size_t *size) {
    char path[4096];
    (void)snprintf(path, sizeof path, "%s%s", GOLDEN, name);
    FILE *file = fopen(path, "rb");
    char *data = malloc((size_t)1 << 20);
    if (!file || !data) {
        (void)fprintf(stderr, "%s cannot be read\n", path);
        exit(1);
    }
    *size = fread(data, 1, (size_t)1 << 20, file);
    (void)fclose(file);
    return data;
}

#endif
