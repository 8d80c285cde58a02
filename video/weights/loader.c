/* Looking tensors up by name and shape, with one sentence about everything that is missing or does not fit. */
#include "video/weights/safetensors.h"
#include "video/weights/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_NAME 512

/* A text that grows: a list "a, b, c" of count names, or the whole sentence. */
typedef struct growing_text {
    FILE *out; /* writes text; NULL while nothing was printed */
    char *text;
    size_t size;
    int64_t count;
} growing_text;

struct hlv_loader {
    hlv_context *ctx;
    const hlv_weights *weights, *overrides;
    bool *used; /* which of the overrides have been asked for; NULL without overrides */
    growing_text missing, unfit, unused;
    bool out_of_memory; /* while printing */
};

static void __attribute__((format(printf, 3, 4))) print(hlv_loader *loader, growing_text *to, const char *format, ...) {
    if (!to->out) to->out = open_memstream(&to->text, &to->size);
    if (!to->out) {
        loader->out_of_memory = true;
        return;
    }
    va_list arguments;
    va_start(arguments, format);
    if (vfprintf(to->out, format, arguments) < 0) loader->out_of_memory = true;
    va_end(arguments);
}

/* Makes to->text complete. */
static void end(hlv_loader *loader, growing_text *to) {
    if (to->out && fclose(to->out) != 0) loader->out_of_memory = true;
    to->out = NULL;
}

/* What stands before the next name of a list. */
static const char *comma(growing_text *list) {
    return list->count++ ? ", " : "";
}

hlv_status hlv_loader_create(hlv_context *ctx, const hlv_weights *weights, const hlv_weights *overrides,
                             hlv_loader **loader) {
    *loader = hlv_alloc(ctx, sizeof **loader);
    if (!*loader) return HLV_ERROR_MEMORY;
    **loader = (hlv_loader){.ctx = ctx, .weights = weights, .overrides = overrides};
    if (!overrides) return HLV_OK;
    size_t bytes = (size_t)hlv_weights_count(overrides) * sizeof *(*loader)->used;
    (*loader)->used = hlv_alloc(ctx, bytes);
    if ((*loader)->used) {
        memset((*loader)->used, 0, bytes);
        return HLV_OK;
    }
    hlv_free(ctx, *loader);
    *loader = NULL;
    return HLV_ERROR_MEMORY;
}

static const hlv_weight *find(const hlv_loader *loader, const char *name) {
    const hlv_weight *weight = loader->overrides ? hlv_weights_find_any(loader->overrides, name) : NULL;
    if (!weight) return hlv_weights_find_any(loader->weights, name);
    loader->used[weight - hlv_weights_at(loader->overrides, 0)] = true;
    return weight;
}

static bool shape_fits(const hlv_weight *weight, int ndim, const int64_t *shape) {
    if (weight->ndim != ndim) return false;
    for (int i = 0; i < ndim; i++)
        if (shape[i] != -1 && shape[i] != weight->shape[i]) return false;
    return true;
}

const hlv_weight *hlv_loader_get(hlv_loader *loader, int ndim, const int64_t *shape, const char *name, ...) {
    char full[MAX_NAME];
    va_list arguments;
    va_start(arguments, name);
    if (vsnprintf(full, sizeof full, name, arguments) < 0) full[0] = '\0';
    va_end(arguments);

    const hlv_weight *weight = find(loader, full);
    if (!weight) {
        print(loader, &loader->missing, "%s'%.200s'", comma(&loader->missing), full);
        return NULL;
    }
    if (!weight->usable) {
        print(loader, &loader->unfit, "%s'%.200s' has dtype %s instead of F32, F16 or BF16", comma(&loader->unfit),
              full, weight->dtype_name);
        return NULL;
    }
    if (!shape_fits(weight, ndim, shape)) {
        char wanted[160], found[160];
        hlv_shape_text(wanted, sizeof wanted, ndim, shape);
        hlv_shape_text(found, sizeof found, weight->ndim, weight->shape);
        print(loader, &loader->unfit, "%s'%.200s' has shape %s instead of %s", comma(&loader->unfit), full, found,
              wanted);
        return NULL;
    }
    return weight;
}

bool hlv_loader_has(const hlv_loader *loader, const char *name) {
    return find(loader, name) != NULL;
}

static void list_unused(hlv_loader *loader) {
    for (int64_t i = 0; loader->overrides && i < hlv_weights_count(loader->overrides); i++)
        if (!loader->used[i])
            print(loader, &loader->unused, "%s'%.200s'", comma(&loader->unused),
                  hlv_weights_at(loader->overrides, i)->name);
}

/* "PATH: 2 tensors are missing: 'a', 'b'; 1 tensor does not fit ...", a clause for each list that holds something. */
static hlv_status tell(hlv_loader *loader) {
    const struct {
        growing_text *list;
        const char *one, *many;
    } clauses[] = {
        {&loader->missing, "tensor is missing", "tensors are missing"},
        {&loader->unfit, "tensor does not fit the config", "tensors do not fit the config"},
        {&loader->unused, "tensor is in the latter that the config has no use for",
         "tensors are in the latter that the config has no use for"},
    };
    growing_text sentence = {.out = NULL};
    print(loader, &sentence, "%s", hlv_weights_path(loader->weights));
    if (loader->overrides) print(loader, &sentence, " with %s", hlv_weights_path(loader->overrides));
    const char *between = ": ";
    for (size_t i = 0; i < sizeof clauses / sizeof *clauses; i++) {
        growing_text *list = clauses[i].list;
        end(loader, list);
        if (!list->count || loader->out_of_memory) continue;
        print(loader, &sentence, "%s%lld %s: %s", between, (long long)list->count,
              list->count == 1 ? clauses[i].one : clauses[i].many, list->text);
        between = "; ";
    }
    end(loader, &sentence);
    hlv_status status = loader->out_of_memory ? hlv_fail(loader->ctx, HLV_ERROR_MEMORY,
                                                         "%s: out of memory for the names of tensors that are missing",
                                                         hlv_weights_path(loader->weights))
                                              : hlv_fail(loader->ctx, HLV_ERROR_FORMAT, "%s", sentence.text);
    free(sentence.text);
    return status;
}

hlv_status hlv_loader_finish(hlv_loader *loader) {
    if (!loader) return HLV_OK;
    hlv_context *ctx = loader->ctx;
    list_unused(loader);
    hlv_status status = HLV_OK;
    if (loader->missing.count || loader->unfit.count || loader->unused.count) status = tell(loader);
    free(loader->missing.text);
    free(loader->unfit.text);
    free(loader->unused.text);
    hlv_free(ctx, loader->used);
    hlv_free(ctx, loader);
    return status;
}
