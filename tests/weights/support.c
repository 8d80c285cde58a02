#include "support.h"

#include "video/core/context.h"

#include <dirent.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fixture_open(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    strcpy(f->directory, "/tmp/hlv-weights-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    assert_int_equal(hlv_context_create(&f->ctx), HLV_OK);
    *state = f;
    return 0;
}

static int remove_entry(const char *path, const struct stat *info, int type, struct FTW *walk) {
    (void)info, (void)type, (void)walk;
    return remove(path);
}

int fixture_close(void **state) {
    fixture *f = *state;
    int64_t held = hlv_context_current_bytes(f->ctx);
    hlv_context_free(f->ctx);
    int removed = nftw(f->directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(f);
    return held == 0 && removed == 0 ? 0 : -1;
}

void path_in(const fixture *f, const char *name, char *path) {
    assert_true(snprintf(path, 256, "%s/%s", f->directory, name) < 256);
}

void put_file(const fixture *f, const char *name, const void *bytes, size_t size) {
    char path[256];
    path_in(f, name, path);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

void put_text(const fixture *f, const char *name, const char *text) {
    put_file(f, name, text, strlen(text));
}

void put_safetensors(const fixture *f, const char *name, const char *header, size_t data_size) {
    uint64_t length = strlen(header);
    size_t size = sizeof length + length + data_size;
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    memcpy(bytes, &length, sizeof length);
    memcpy(bytes + sizeof length, header, length);
    for (size_t i = 0; i < data_size; i++)
        bytes[sizeof length + length + i] = (uint8_t)i;
    put_file(f, name, bytes, size);
    free(bytes);
}

int count_names(const char *directory, const char *containing) {
    DIR *list = opendir(directory);
    assert_non_null(list);
    int count = 0;
    for (struct dirent *entry = readdir(list); entry; entry = readdir(list))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            count += strstr(entry->d_name, containing) != NULL;
    closedir(list);
    return count;
}

void check_failure(const fixture *f, hlv_status status, hlv_status wanted, const char *text, const char *other) {
    const char *sentence = hlv_context_error(f->ctx);
    if (status == wanted && strstr(sentence, text) && strstr(sentence, other)) return;
    fail_msg("status '%s' instead of '%s', and the sentence \"%s\" must hold \"%s\" and \"%s\"",
             hlv_status_name(status), hlv_status_name(wanted), sentence, text, other);
}
