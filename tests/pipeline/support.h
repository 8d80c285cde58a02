/* What the tests of the pipeline share: checkpoints, scratch folders, and files read back. */
#ifndef TESTS_PIPELINE_SUPPORT_H
#define TESTS_PIPELINE_SUPPORT_H

#include "hlv/hlv.h"
#include "video/weights/weights.h"

#define GOLDEN HLA_TEST_ROOT "/tests/golden/pipeline/"

hlv_context *open_context(int threads);
/* Fails the test with the library's own sentence. */
void check_ok(hlv_context *ctx, hlv_status status);
hlv_model *open_model(hlv_context *ctx, const char *name, hla_dtype dtype);
hlv_model *open_converted(hlv_context *ctx, const char *name, const char *adapter); /* adapter: a directory */

/* A fresh directory under /tmp, removed with what is in it by remove_scratch. */
typedef struct scratch {
    char path[64];
} scratch;
scratch make_scratch(void);
void remove_scratch(const scratch *folder);
int count_files(const scratch *folder); /* hidden ones too */
/* The path of a file in it; a static buffer for each of four calls in turn. */
const char *in_scratch(const scratch *folder, const char *name);

unsigned char *read_bytes(const char *path, size_t *size); /* to be freed */
void assert_same_files(const char *a, const char *b);
float *read_tensor(hlv_context *ctx, const char *path, const char *name, int64_t *count); /* to be freed */
double relative_error(const float *got, const float *want, int64_t count);

/* An 8-bit RGB PNG without interlace (the first picture of an animated one): height*width*3 bytes, to be freed. */
unsigned char *read_png(const char *path, int *width, int *height);

#endif
