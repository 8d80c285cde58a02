/* tests/media/frames.h - test pictures, a scratch directory, and other people's programs to read our files with. */
#ifndef HLV_TEST_FRAMES_H
#define HLV_TEST_FRAMES_H

#include "hlv/media.h"

typedef enum picture { PICTURE_NOISE, PICTURE_SMOOTH, PICTURE_FEW_COLOURS } picture;

/* [height, width, 3] of frame number i, the same each time it is asked for. */
void make_picture(uint8_t *rgb, picture kind, int width, int height, int i);

char *make_scratch(void);               /* a fresh directory, malloc'ed */
void remove_scratch(char *directory);   /* and its files; frees */
int count_files(const char *directory); /* hidden ones included */
void join(char *out, size_t size, const char *directory, const char *name);

/* Runs a shell command and returns what it prints, malloc'ed and terminated; *size its bytes (may be NULL). Fails the
 * test when the command fails. */
char *run_program(size_t *size, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The file's frames as ffmpeg decodes them, rgb24. */
uint8_t *decode(const char *path, size_t *size);

/* Mean squared error in dB against 255. */
double psnr(const uint8_t *a, const uint8_t *b, size_t count);

/* Writes `frames` pictures; the status of the first call that failed, the writer closed with keep. */
hlv_status write_video(hlv_context *ctx, const char *path, const hlv_video_info *info, picture kind, int frames);

#endif
