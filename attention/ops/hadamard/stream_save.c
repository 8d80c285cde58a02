/* Saving and loading a streaming state: the format of include/hla/state.h, every field of it checked. */
#include "attention/cuda/backend.h"
#include "attention/ops/hadamard/stream.h"

#include <inttypes.h>
#include <math.h>

enum { VERSION = 1, ORDER_MARK = 0x01020304, SWAPPED_MARK = 0x04030201 };

typedef struct header {
    char magic[8];
    uint32_t version, order;
    uint64_t bytes;
    int64_t batch, heads, kv_heads, value_dim, rank[4];
    int32_t factors, dtype, normalised;
    float epsilon, scale;
    uint32_t reserved;
    int64_t tokens;
    uint64_t checksum;
} header;
_Static_assert(sizeof(header) == 128 && offsetof(header, checksum) == 120, "the format has no padding");
_Static_assert(HLA_MAX_FACTORS == 4, "the format holds four ranks");

static const char magic[8] = {'H', 'L', 'A', 'S', 'T', 'A', 'T', 'E'};

/* FNV-1a over words, with a shift that brings the high bits down. Each step can be undone, so one changed word always
 * changes the result. */
static uint64_t add_to_checksum(uint64_t sum, const void *data, size_t size) {
    const char *bytes = data;
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
        uint64_t word = 0;
        memcpy(&word, bytes + i, size - i < sizeof word ? size - i : sizeof word);
        sum = (sum ^ word) * UINT64_C(0x100000001b3);
        sum ^= sum >> 32;
    }
    return sum;
}

static uint64_t checksum(const header *head, const void *numbers, size_t bytes) {
    uint64_t sum = add_to_checksum(UINT64_C(0xcbf29ce484222325), head, offsetof(header, checksum));
    return add_to_checksum(sum, numbers, bytes);
}

/* ---- saving ---- */

size_t hla_state_saved_size(const hla_state *state) {
    return state ? sizeof(header) + state->count * sizeof(float) : 0;
}

static header describe(const hla_state *state) {
    const hla_hadamard_problem *problem = &state->problem;
    header head = {.version = VERSION,
                   .order = ORDER_MARK,
                   .bytes = hla_state_saved_size(state),
                   .batch = problem->batch,
                   .heads = problem->heads,
                   .kv_heads = problem->kv_heads,
                   .value_dim = problem->value_dim,
                   .factors = problem->factors,
                   .dtype = (int32_t)problem->dtype,
                   .normalised = problem->normalised,
                   .epsilon = problem->epsilon,
                   .scale = problem->scale,
                   .tokens = state->tokens};
    memcpy(head.magic, magic, sizeof magic);
    for (int p = 0; p < problem->factors; p++)
        head.rank[p] = problem->rank[p];
    return head;
}

/* Between the host and where the state lies. */
static hla_status copy_numbers(const hla_state *state, void *to, const void *from, size_t bytes) {
    if (state->cuda) return state->cuda->copy(state->context, to, from, bytes);
    memcpy(to, from, bytes);
    return HLA_OK;
}

hla_status hla_state_save(const hla_state *state, void *buffer, size_t size) {
    if (!state) return HLA_ERROR_ARGUMENT;
    if (!buffer) return hla_fail(state->context, HLA_ERROR_ARGUMENT, "buffer is NULL");
    size_t needed = hla_state_saved_size(state), bytes = state->count * sizeof(float);
    if (size < needed) {
        return hla_fail(state->context, HLA_ERROR_ARGUMENT, "buffer holds %zu bytes, wanted %zu", size, needed);
    }
    header head = describe(state);
    char *numbers = (char *)buffer + sizeof head;
    hla_status status = copy_numbers(state, numbers, state->data, bytes);
    if (status != HLA_OK) return status;
    head.checksum = checksum(&head, numbers, bytes);
    memcpy(buffer, &head, sizeof head);
    return HLA_OK;
}

/* ---- loading ---- */

static hla_status check_start(hla_context *context, const header *head) {
    if (memcmp(head->magic, magic, sizeof magic) != 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "data is no saved state: it does not begin with \"HLASTATE\"");
    }
    if (head->order == SWAPPED_MARK) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "data was saved by a machine of the other byte order");
    }
    if (head->order != ORDER_MARK) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "data has the byte order mark 0x%08" PRIx32 ", wanted 0x%08x",
                        head->order, (unsigned)ORDER_MARK);
    }
    if (head->version != VERSION) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "data has version %" PRIu32 " of the format, wanted %d",
                        head->version, VERSION);
    }
    return HLA_OK;
}

static hla_status check_fields(hla_context *context, const header *head) {
    const struct {
        const char *name;
        int64_t value, least, most;
    } fields[] = {
        {"batch", head->batch, 1, HLA_MAX_SIZE},
        {"heads", head->heads, 1, HLA_MAX_SIZE},
        {"kv_heads", head->kv_heads, 1, head->heads},
        {"value_dim", head->value_dim, 1, HLA_MAX_SIZE},
        {"factors", head->factors, 1, HLA_MAX_FACTORS},
        {"rank[0]", head->rank[0], 1, HLA_MAX_RANK},
        {"rank[1]", head->rank[1], head->factors > 1, head->factors > 1 ? HLA_MAX_RANK : 0},
        {"rank[2]", head->rank[2], head->factors > 2, head->factors > 2 ? HLA_MAX_RANK : 0},
        {"rank[3]", head->rank[3], head->factors > 3, head->factors > 3 ? HLA_MAX_RANK : 0},
        {"dtype", head->dtype, HLA_F32, HLA_F16},
        {"normalised", head->normalised, 0, 1},
        {"a reserved field", head->reserved, 0, 0},
        {"tokens", head->tokens, 0, INT64_MAX},
    };
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (fields[i].value >= fields[i].least && fields[i].value <= fields[i].most) continue;
        return hla_fail(context, HLA_ERROR_ARGUMENT, "data has %s %" PRId64 ", wanted %" PRId64 " to %" PRId64,
                        fields[i].name, fields[i].value, fields[i].least, fields[i].most);
    }
    if (head->heads % head->kv_heads != 0) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "data has kv_heads %" PRId64 ", wanted a divisor of heads, %" PRId64, head->kv_heads,
                        head->heads);
    }
    if (!isfinite(head->epsilon) || head->epsilon < 0 || !isfinite(head->scale)) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "data has epsilon %g and scale %g, wanted finite numbers, epsilon at least 0",
                        (double)head->epsilon, (double)head->scale);
    }
    return HLA_OK;
}

/* Fields checked. That the data is as long as it says, and as its problem's state is. */
static hla_status check_length(hla_context *context, const header *head, size_t size) {
    size_t bytes = sizeof(float);
    bool fits = hla_size_multiply(&bytes, head->batch) && hla_size_multiply(&bytes, head->kv_heads) &&
                hla_size_multiply(&bytes, head->value_dim + 1);
    for (int p = 0; p < head->factors && fits; p++)
        fits = hla_size_multiply(&bytes, head->rank[p]);
    fits = fits && hla_size_add(&bytes, sizeof *head);
    if (fits && head->bytes == bytes && size == bytes) return HLA_OK;
    if (fits && head->bytes == bytes) {
        return hla_fail(context, HLA_ERROR_ARGUMENT,
                        "data holds %zu bytes, wanted the %zu of a saved state of its shape", size, bytes);
    }
    return hla_fail(context, HLA_ERROR_ARGUMENT, "data says it has %" PRIu64 " bytes, which its sizes do not give",
                    head->bytes);
}

static hla_status check_saved(hla_context *context, const void *data, size_t size, header *head) {
    if (!data) return hla_fail(context, HLA_ERROR_ARGUMENT, "data is NULL");
    if (size < sizeof *head) {
        return hla_fail(context, HLA_ERROR_ARGUMENT, "data holds %zu bytes, wanted at least the %zu of a header", size,
                        sizeof *head);
    }
    memcpy(head, data, sizeof *head);
    hla_status status = check_start(context, head);
    if (status == HLA_OK) status = check_fields(context, head);
    if (status == HLA_OK) status = check_length(context, head, size);
    if (status != HLA_OK) return status;
    if (checksum(head, (const char *)data + sizeof *head, size - sizeof *head) == head->checksum) return HLA_OK;
    return hla_fail(context, HLA_ERROR_ARGUMENT, "data is damaged: its checksum is not that of its bytes");
}

hla_status hla_state_saved_problem(hla_context *context, const void *data, size_t size, hla_hadamard_problem *problem) {
    if (!problem) return hla_fail(context, HLA_ERROR_ARGUMENT, "problem is NULL");
    header head = {0};
    hla_status status = check_saved(context, data, size, &head);
    if (status != HLA_OK) return status;
    hla_hadamard_problem_init(problem);
    problem->batch = head.batch, problem->heads = head.heads, problem->kv_heads = head.kv_heads;
    problem->value_dim = head.value_dim, problem->factors = head.factors, problem->dtype = (hla_dtype)head.dtype;
    problem->normalised = head.normalised != 0, problem->epsilon = head.epsilon, problem->scale = head.scale;
    memcpy(problem->rank, head.rank, sizeof head.rank);
    return HLA_OK;
}

static hla_status check_same(const hla_state *state, const header *found) {
    header own = describe(state);
    const struct {
        const char *name;
        double found, own; /* each exact: sizes are at most 2^40 */
    } members[] = {
        {"batch", (double)found->batch, (double)own.batch},
        {"heads", (double)found->heads, (double)own.heads},
        {"kv_heads", (double)found->kv_heads, (double)own.kv_heads},
        {"value_dim", (double)found->value_dim, (double)own.value_dim},
        {"factors", found->factors, own.factors},
        {"rank[0]", (double)found->rank[0], (double)own.rank[0]},
        {"rank[1]", (double)found->rank[1], (double)own.rank[1]},
        {"rank[2]", (double)found->rank[2], (double)own.rank[2]},
        {"rank[3]", (double)found->rank[3], (double)own.rank[3]},
        {"dtype", found->dtype, own.dtype},
        {"normalised", found->normalised, own.normalised},
        {"epsilon", (double)found->epsilon, (double)own.epsilon},
        {"scale", (double)found->scale, (double)own.scale},
    };
    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        if (members[i].found == members[i].own) continue;
        return hla_fail(state->context, HLA_ERROR_ARGUMENT, "data was saved with problem.%s %.9g, this state has %.9g",
                        members[i].name, members[i].found, members[i].own);
    }
    return HLA_OK;
}

hla_status hla_state_load(hla_state *state, const void *data, size_t size) {
    if (!state) return HLA_ERROR_ARGUMENT;
    header head = {0};
    hla_status status = check_saved(state->context, data, size, &head);
    if (status == HLA_OK) status = check_same(state, &head);
    if (status != HLA_OK) return status;
    const char *numbers = (const char *)data + sizeof head;
    for (size_t i = 0; state->context->check_finite && i < state->count; i++) {
        float number;
        memcpy(&number, numbers + i * sizeof number, sizeof number);
        if (isfinite(number)) continue;
        return hla_fail(state->context, HLA_ERROR_NOT_FINITE, "data holds NaN or infinity at number %zu", i);
    }
    status = copy_numbers(state, state->data, numbers, state->count * sizeof *state->data);
    if (status == HLA_OK) state->tokens = head.tokens;
    return status;
}
