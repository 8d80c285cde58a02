/* Looking tensors up by name and shape, with one sentence about everything that is missing or does not fit. */
#include "video/weights/safetensors.h"
#include "video/weights/weights.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define MAX_NAME 512
#define MAX_LISTED 20
#define LIST_BYTES 1700 /* two lists and the words around them fit an error sentence */

/* "a, b, c": the first names, and how many there are in all. */
typedef struct name_list {
    char text[LIST_BYTES];
    size_t used;
    int listed;
    int64_t count;
} name_list;

struct hlv_loader {
    hlv_context *ctx;
    const hlv_weights *weights, *overrides;
    name_list missing, unfit;
};

/* What has no place in the list goes to the log, so that every name is told. */
static void note(const hlv_loader *loader, name_list *list, const char *item) {
    size_t length = strlen(item);
    list->count++;
    if (list->listed == MAX_LISTED || list->used + length + 3 > LIST_BYTES) {
        hlv_log(loader->ctx, HLV_LOG_WARNING, "%.400s: %s%s", hlv_weights_path(loader->weights), item,
                list == &loader->missing ? " is missing" : "");
        return;
    }
    list->used +=
        (size_t)snprintf(list->text + list->used, LIST_BYTES - list->used, "%s%s", list->listed ? ", " : "", item);
    list->listed++;
}

hlv_status hlv_loader_create(hlv_context *ctx, const hlv_weights *weights, const hlv_weights *overrides,
                             hlv_loader **loader) {
    *loader = hlv_alloc(ctx, sizeof **loader);
    if (!*loader) return HLV_ERROR_MEMORY;
    **loader = (hlv_loader){.ctx = ctx, .weights = weights, .overrides = overrides};
    return HLV_OK;
}

static const hlv_weight *find(const hlv_loader *loader, const char *name) {
    const hlv_weight *weight = loader->overrides ? hlv_weights_find_any(loader->overrides, name) : NULL;
    return weight ? weight : hlv_weights_find_any(loader->weights, name);
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

    char item[MAX_NAME + 400];
    const hlv_weight *weight = find(loader, full);
    if (!weight) {
        snprintf(item, sizeof item, "'%.150s'", full);
        note(loader, &loader->missing, item);
        return NULL;
    }
    if (!weight->usable) {
        snprintf(item, sizeof item, "'%.150s' has dtype %s instead of F32, F16 or BF16", full, weight->dtype_name);
        note(loader, &loader->unfit, item);
        return NULL;
    }
    if (!shape_fits(weight, ndim, shape)) {
        char wanted[160], found[160];
        hlv_shape_text(wanted, sizeof wanted, ndim, shape);
        hlv_shape_text(found, sizeof found, weight->ndim, weight->shape);
        snprintf(item, sizeof item, "'%.150s' has shape %s instead of %s", full, found, wanted);
        note(loader, &loader->unfit, item);
        return NULL;
    }
    return weight;
}

bool hlv_loader_has(const hlv_loader *loader, const char *name) {
    return find(loader, name) != NULL;
}

static void end_list(name_list *list, char *more, size_t size) {
    more[0] = '\0';
    if (list->count > list->listed) snprintf(more, size, " and %lld more", (long long)(list->count - list->listed));
}

hlv_status hlv_loader_finish(hlv_loader *loader) {
    if (!loader) return HLV_OK;
    hlv_context *ctx = loader->ctx;
    name_list *missing = &loader->missing, *unfit = &loader->unfit;
    char more_missing[40], more_unfit[40], lead[80] = "", unfit_lead[80] = "";
    end_list(missing, more_missing, sizeof more_missing);
    end_list(unfit, more_unfit, sizeof more_unfit);
    if (missing->count)
        snprintf(lead, sizeof lead, missing->count == 1 ? "%lld tensor is missing: " : "%lld tensors are missing: ",
                 (long long)missing->count);
    if (unfit->count)
        snprintf(unfit_lead, sizeof unfit_lead,
                 unfit->count == 1 ? "%s%lld tensor does not fit the config: "
                                   : "%s%lld tensors do not fit the config: ",
                 missing->count ? "; " : "", (long long)unfit->count);
    hlv_status status = HLV_OK;
    if (missing->count || unfit->count)
        status = hlv_fail(ctx, HLV_ERROR_FORMAT, "%.400s: %s%s%s%s%s%s", hlv_weights_path(loader->weights), lead,
                          missing->text, more_missing, unfit_lead, unfit->text, more_unfit);
    hlv_free(ctx, loader);
    return status;
}
