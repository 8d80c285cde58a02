/* tests/weights/support.h - what the weights tests share: a context, a directory of their own, files made on the spot.
 */
#ifndef WEIGHTS_SUPPORT_H
#define WEIGHTS_SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "video/weights/weights.h"

#define GOLDEN HLA_TEST_ROOT "/tests/golden/weights/"

typedef struct fixture {
    hlv_context *ctx;
    char directory[64]; /* fresh, removed at the end */
} fixture;

int fixture_open(void **state);
int fixture_close(void **state); /* also asserts that the context holds no memory */

/* "DIRECTORY/NAME" into path (256 bytes). */
void path_in(const fixture *f, const char *name, char *path);

/* Writes bytes under the fixture's directory. */
void put_file(const fixture *f, const char *name, const void *bytes, size_t size);
void put_text(const fixture *f, const char *name, const char *text);

/* A safetensors file: the length of header, header, then data_size bytes 0, 1, 2, ... */
void put_safetensors(const fixture *f, const char *name, const char *header, size_t data_size);

/* Whether a name other than "." and ".." in the directory contains the text; also how many names there are in all. */
int count_names(const char *directory, const char *containing);

/* The call gave this status, and its sentence holds each of the two texts. */
void check_failure(const fixture *f, hlv_status status, hlv_status wanted, const char *text, const char *other);

#endif
