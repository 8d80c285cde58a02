/* What the streaming state refuses: bad arguments, saved bytes that are damaged, cut, of another version or problem,
 * and memory that runs out; each with its status, a sentence that names the trouble, and state and outputs as before.
 * The linker's --wrap leads the library's allocations here. */
#include "tests/attention/hadamard_cases.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- allocations ---- */

static int allocations_left = -1; /* then one fails; negative: none does */

void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t alignment, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t alignment, size_t size);

static bool allocation_fails(void) {
    return allocations_left >= 0 && allocations_left-- == 0;
}

void *__wrap_calloc(size_t count, size_t size) {
    return allocation_fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_aligned_alloc(size_t alignment, size_t size) {
    return allocation_fails() ? NULL : __real_aligned_alloc(alignment, size);
}

/* ---- a state with some tokens, and arguments for calls ---- */

enum { B = 3, T = 3, H = 2, KV = 1, V = 2, R1 = 3, R2 = 5, NUMBERS = B * KV * R1 * R2 * (V + 1), MANY = 40 };

typedef struct setting {
    hla_context *context;
    hla_hadamard_problem problem;
    hla_state *state;
    float q_memory[2][B * MANY * H * R2], k_memory[2][B * MANY * KV * R2], v_memory[B * MANY * KV * V];
    float out_memory[B * MANY * H * V];
    hla_tensor q[2], k[2], v, out;
    float before[NUMBERS]; /* the state's numbers */
} setting;

static void set_tokens(setting *s, int64_t tokens) {
    for (int p = 0; p < 2; p++) {
        s->q[p] = hla_tensor_bthd(s->q_memory[p], HLA_F32, B, tokens, H, p ? R2 : R1);
        s->k[p] = hla_tensor_bthd(s->k_memory[p], HLA_F32, B, tokens, KV, p ? R2 : R1);
    }
    s->v = hla_tensor_bthd(s->v_memory, HLA_F32, B, tokens, KV, V);
    s->out = hla_tensor_bthd(s->out_memory, HLA_F32, B, tokens, H, V);
}

static void fill(float *numbers, size_t count, random_state *random) {
    for (size_t i = 0; i < count; i++)
        numbers[i] = (float)uniform(random);
}

static setting *make_setting(bool check_finite) {
    setting *s = calloc(1, sizeof *s);
    assert_non_null(s);
    hla_context_options options;
    hla_context_options_init(&options);
    options.threads = 2, options.check_finite = check_finite;
    assert_int_equal(hla_context_create(&s->context, &options), HLA_OK);
    hla_hadamard_problem_init(&s->problem);
    s->problem.batch = B, s->problem.heads = H, s->problem.kv_heads = KV, s->problem.value_dim = V;
    s->problem.factors = 2, s->problem.rank[0] = R1, s->problem.rank[1] = R2;
    assert_int_equal(hla_state_create(s->context, &s->problem, &s->state), HLA_OK);
    random_state random = {900};
    for (int p = 0; p < 2; p++) {
        fill(s->q_memory[p], sizeof s->q_memory[p] / sizeof(float), &random);
        fill(s->k_memory[p], sizeof s->k_memory[p] / sizeof(float), &random);
    }
    fill(s->v_memory, sizeof s->v_memory / sizeof(float), &random);
    set_tokens(s, T);
    assert_int_equal(hla_state_append(s->state, s->k, &s->v), HLA_OK);
    memcpy(s->before, hla_state_data(s->state, NULL), sizeof s->before);
    memset(s->out_memory, 0xff, sizeof s->out_memory);
    return s;
}

static void free_setting(setting *s) {
    hla_state_free(s->state);
    hla_context_free(s->context);
    free(s);
}

/* Status and sentence as wanted; neither the state nor out touched. */
static void expect(const setting *s, hla_status found, hla_status wanted, const char *named) {
    const char *sentence = hla_context_error(s->context);
    if (found != wanted || !strstr(sentence, named)) {
        fail_msg("status %s, sentence \"%s\"; wanted status %s and a sentence that names \"%s\"",
                 hla_status_name(found), sentence, hla_status_name(wanted), named);
    }
    assert_memory_equal(s->before, hla_state_data(s->state, NULL), sizeof s->before);
    assert_int_equal(hla_state_tokens(s->state), T);
    const unsigned char *out = (const unsigned char *)s->out_memory;
    for (size_t i = 0; i < sizeof s->out_memory; i++)
        assert_true(out[i] == 0xff);
}

/* ---- arguments ---- */

typedef enum call { APPEND, QUERY, STEP } call;

static hla_status run(setting *s, call kind) {
    if (kind == APPEND) return hla_state_append(s->state, s->k, &s->v);
    if (kind == QUERY) return hla_state_query(s->state, &s->out, s->q);
    return hla_state_step(s->state, &s->out, s->q, s->k, &s->v);
}

#define SPOIL(name, statement)                                                                                         \
    static void name(setting *s) {                                                                                     \
        statement;                                                                                                     \
    }
SPOIL(v_dtype, s->v.dtype = HLA_BF16)
SPOIL(v_width, s->v.shape[3] = V + 1)
SPOIL(v_heads, s->v.shape[2] = H)
SPOIL(v_negative, s->v.shape[1] = -1)
SPOIL(v_null, s->v.data = NULL)
SPOIL(v_odd, s->v.data = (char *)s->v.data + 1)
SPOIL(v_in_state, s->v.data = hla_state_data(s->state, NULL))
SPOIL(v_not_finite, s->v_memory[3] = NAN)
SPOIL(k_rank, s->k[1].shape[3] = R2 + 1)
SPOIL(k_tokens, s->k[0].shape[1] = T + 1)
SPOIL(k_not_finite, s->k_memory[1][2] = INFINITY)
SPOIL(q_heads, s->q[0].shape[2] = KV)
SPOIL(q_not_finite, s->q_memory[0][2] = INFINITY)
SPOIL(q_far, s->q[1].stride[1] = INT64_MAX / 2)
SPOIL(out_overlaps, s->out.stride[1] = 0)
SPOIL(out_on_q, s->q[0].data = s->out.data)
SPOIL(out_on_v, s->v.data = s->out.data)
SPOIL(out_in_state, s->out.data = hla_state_data(s->state, NULL))
SPOIL(out_shape, s->out.shape[0] = 1)
SPOIL(out_huge, s->out.shape[1] = INT64_MAX)

static void test_calls(void **unused) {
    (void)unused;
    static const struct {
        void (*spoil)(setting *s);
        const char *named;
        bool of_call[3];
        hla_status status;
    } table[] = {
        {v_dtype, "v has dtype", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_width, "v has shape", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_heads, "v has shape", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_negative, "v has", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_null, "v.data", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_odd, "v.data", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_in_state, "the state's data overlaps v", {true, false, true}, HLA_ERROR_ARGUMENT},
        {v_not_finite, "v holds", {true, false, true}, HLA_ERROR_NOT_FINITE},
        {k_rank, "k_features[1]", {true, false, true}, HLA_ERROR_ARGUMENT},
        {k_tokens, "k_features[0]", {true, false, true}, HLA_ERROR_ARGUMENT},
        {k_not_finite, "k_features[1] holds", {true, false, true}, HLA_ERROR_NOT_FINITE},
        {q_heads, "q_features[0]", {false, true, true}, HLA_ERROR_ARGUMENT},
        {q_not_finite, "q_features[0] holds", {false, true, true}, HLA_ERROR_NOT_FINITE},
        {q_far, "q_features[1]", {false, true, true}, HLA_ERROR_ARGUMENT},
        {out_overlaps, "out overlaps itself", {false, true, true}, HLA_ERROR_ARGUMENT},
        {out_on_q, "out overlaps q_features[0]", {false, true, true}, HLA_ERROR_ARGUMENT},
        {out_on_v, "out overlaps v", {false, false, true}, HLA_ERROR_ARGUMENT},
        {out_in_state, "out overlaps the state's data", {false, true, true}, HLA_ERROR_ARGUMENT},
        {out_shape, "out has shape", {false, true, true}, HLA_ERROR_ARGUMENT},
        {out_huge, "out has", {false, true, true}, HLA_ERROR_ARGUMENT},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        for (call kind = APPEND; kind <= STEP; kind++) {
            if (!table[i].of_call[kind]) continue;
            setting *s = make_setting(true);
            table[i].spoil(s);
            expect(s, run(s, kind), table[i].status, table[i].named);
            free_setting(s);
        }
    }
}

static void test_missing(void **unused) {
    (void)unused;
    setting *s = make_setting(false);
    hla_hadamard_problem problem;
    float gamma = 1;
    expect(s, hla_state_append(s->state, NULL, &s->v), HLA_ERROR_ARGUMENT, "k_features is NULL");
    expect(s, hla_state_append(s->state, s->k, NULL), HLA_ERROR_ARGUMENT, "v is NULL");
    expect(s, hla_state_query(s->state, NULL, s->q), HLA_ERROR_ARGUMENT, "out is NULL");
    expect(s, hla_state_query(s->state, &s->out, NULL), HLA_ERROR_ARGUMENT, "q_features is NULL");
    expect(s, hla_state_step(s->state, &s->out, s->q, s->k, NULL), HLA_ERROR_ARGUMENT, "v is NULL");
    expect(s, hla_state_merge(s->state, NULL), HLA_ERROR_ARGUMENT, "from is NULL");
    expect(s, hla_state_merge(s->state, s->state), HLA_ERROR_ARGUMENT, "from is the state");
    expect(s, hla_state_decay_heads(s->state, NULL), HLA_ERROR_ARGUMENT, "gamma is NULL");
    expect(s, hla_state_save(s->state, NULL, 1000), HLA_ERROR_ARGUMENT, "buffer is NULL");
    expect(s, hla_state_save(s->state, &gamma, sizeof gamma), HLA_ERROR_ARGUMENT, "buffer holds 4 bytes");
    expect(s, hla_state_load(s->state, NULL, 1000), HLA_ERROR_ARGUMENT, "data is NULL");
    expect(s, hla_state_saved_problem(s->context, NULL, 9, &problem), HLA_ERROR_ARGUMENT, "data is NULL");
    expect(s, hla_state_saved_problem(s->context, &gamma, 4, NULL), HLA_ERROR_ARGUMENT, "problem is NULL");
    expect(s, hla_state_set_tokens(s->state, -1), HLA_ERROR_ARGUMENT, "tokens is -1");
    const float gammas[] = {-0.5f, 1.5f, NAN};
    for (int i = 0; i < 3; i++) {
        expect(s, hla_state_decay(s->state, gammas[i]), HLA_ERROR_ARGUMENT, "gamma is");
        expect(s, hla_state_decay_heads(s->state, &gammas[i]), HLA_ERROR_ARGUMENT, "gamma[0] is");
    }
    size_t count = 1;
    assert_int_equal(hla_state_append(NULL, s->k, &s->v), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_query(NULL, &s->out, s->q), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_step(NULL, &s->out, s->q, s->k, &s->v), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_reset(NULL), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_merge(NULL, s->state), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_decay(NULL, 1), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_decay_heads(NULL, &gamma), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_set_tokens(NULL, 1), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_save(NULL, &gamma, 4), HLA_ERROR_ARGUMENT);
    assert_int_equal(hla_state_load(NULL, &gamma, 4), HLA_ERROR_ARGUMENT);
    assert_true(hla_state_tokens(NULL) == 0 && hla_state_memory(NULL) == 0 && hla_state_saved_size(NULL) == 0);
    assert_true(!hla_state_data(NULL, &count) && count == 0);
    free_setting(s);
}

#define SPOIL_PROBLEM(name, statement)                                                                                 \
    static void name(hla_hadamard_problem *p) {                                                                        \
        statement;                                                                                                     \
    }
SPOIL_PROBLEM(packed, (p->sequences = 2, p->batch = 1))
SPOIL_PROBLEM(quadratic, p->form = HLA_FORM_QUADRATIC)
SPOIL_PROBLEM(quadratic_kernel, p->kernel = "quadratic_baseline")
SPOIL_PROBLEM(no_struct_size, p->struct_size = 0)
SPOIL_PROBLEM(no_divisor, p->kv_heads = 3)
SPOIL_PROBLEM(large_rank, p->rank[1] = HLA_MAX_RANK + 1)
SPOIL_PROBLEM(giant, (p->factors = 4, p->rank[0] = p->rank[1] = p->rank[2] = p->rank[3] = 256,
                      p->value_dim = INT64_C(1) << 30))

static void test_create(void **unused) {
    (void)unused;
    static const struct {
        void (*spoil)(hla_hadamard_problem *problem);
        const char *named;
        hla_status status;
    } table[] = {
        {packed, "problem.sequences", HLA_ERROR_ARGUMENT},
        {quadratic, "problem.form", HLA_ERROR_ARGUMENT},
        {quadratic_kernel, "quadratic_baseline", HLA_ERROR_ARGUMENT},
        {no_struct_size, "problem.struct_size", HLA_ERROR_ARGUMENT},
        {no_divisor, "problem.kv_heads", HLA_ERROR_ARGUMENT},
        {large_rank, "problem.rank[1]", HLA_ERROR_ARGUMENT},
        {giant, "overflows", HLA_ERROR_ARGUMENT},
    };
    setting *s = make_setting(false);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        hla_hadamard_problem problem = s->problem;
        table[i].spoil(&problem);
        hla_state *state = (hla_state *)s;
        expect(s, hla_state_create(s->context, &problem, &state), table[i].status, table[i].named);
        assert_null(state);
    }
    hla_state *state = (hla_state *)s;
    expect(s, hla_state_create(s->context, NULL, &state), HLA_ERROR_ARGUMENT, "problem is NULL");
    assert_null(state);
    expect(s, hla_state_create(s->context, &s->problem, NULL), HLA_ERROR_ARGUMENT, "state is NULL");
    expect(s, hla_state_clone(s->context, s->state, NULL), HLA_ERROR_ARGUMENT, "clone is NULL");
    expect(s, hla_state_clone(s->context, NULL, &state), HLA_ERROR_ARGUMENT, "state is NULL");
    state = (hla_state *)s;
    assert_int_equal(hla_state_clone(NULL, s->state, &state), HLA_ERROR_ARGUMENT);
    assert_null(state);
    assert_int_equal(hla_state_create(NULL, &s->problem, &state), HLA_ERROR_ARGUMENT);
    free_setting(s);
}

/* ---- saved bytes ---- */

enum { HEADER = 128, SAVED = HEADER + NUMBERS * 4 };

/* As include/hla/state.h tells it. */
static uint64_t checksum_of(const unsigned char *saved, size_t size) {
    uint64_t sum = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i += 8) {
        if (i == 120) continue;
        uint64_t word = 0;
        memcpy(&word, saved + i, size - i < 8 ? size - i : 8);
        sum = (sum ^ word) * 0x100000001b3u;
        sum ^= sum >> 32;
    }
    return sum;
}

static void sign(unsigned char *saved) {
    uint64_t sum = checksum_of(saved, SAVED);
    memcpy(saved + 120, &sum, sizeof sum);
}

static void save(const setting *s, unsigned char *saved) {
    assert_int_equal(hla_state_saved_size(s->state), SAVED);
    assert_int_equal(hla_state_save(s->state, saved, SAVED), HLA_OK);
}

static void test_round_trip(void **unused) {
    (void)unused;
    setting *s = make_setting(true);
    unsigned char block[SAVED + 9], *saved = block + 1; /* any alignment */
    memset(block, 0x5a, sizeof block);
    assert_int_equal(hla_state_save(s->state, saved, SAVED + 8), HLA_OK);
    for (size_t i = SAVED + 1; i < sizeof block; i++)
        assert_true(block[i] == 0x5a);
    uint64_t sum;
    memcpy(&sum, saved + 120, sizeof sum);
    assert_true(sum == checksum_of(saved, SAVED));
    hla_hadamard_problem problem;
    assert_int_equal(hla_state_saved_problem(s->context, saved, SAVED, &problem), HLA_OK);
    assert_true(problem.batch == B && problem.heads == H && problem.kv_heads == KV && problem.value_dim == V);
    assert_true(problem.factors == 2 && problem.rank[0] == R1 && problem.rank[1] == R2 && problem.normalised);
    assert_true(problem.epsilon == s->problem.epsilon && problem.scale == s->problem.scale);
    hla_state *other = NULL;
    assert_int_equal(hla_state_create(s->context, &problem, &other), HLA_OK);
    assert_int_equal(hla_state_load(other, saved, SAVED), HLA_OK);
    assert_memory_equal(s->before, hla_state_data(other, NULL), sizeof s->before);
    assert_int_equal(hla_state_tokens(other), T);
    hla_state_free(other);
    free_setting(s);
}

/* Every byte, changed in every bit at once and in one; every length but the right one. */
static void test_damage(void **unused) {
    (void)unused;
    setting *s = make_setting(false);
    unsigned char saved[SAVED + 8] = {0};
    save(s, saved);
    for (size_t i = 0; i < SAVED; i++) {
        for (int bit = 0; bit <= 8; bit++) {
            unsigned char change = (unsigned char)(bit < 8 ? 1 << bit : 0xff);
            saved[i] = (unsigned char)(saved[i] ^ change);
            expect(s, hla_state_load(s->state, saved, SAVED), HLA_ERROR_ARGUMENT, "data ");
            saved[i] = (unsigned char)(saved[i] ^ change);
        }
    }
    for (size_t size = 0; size <= SAVED + 8; size++) {
        if (size != SAVED) expect(s, hla_state_load(s->state, saved, size), HLA_ERROR_ARGUMENT, "bytes");
    }
    /* the signs of two numbers in the upper halves of words: a plain word-wise FNV would miss it */
    saved[HEADER + 7] ^= 0x80, saved[HEADER + 15] ^= 0x80;
    expect(s, hla_state_load(s->state, saved, SAVED), HLA_ERROR_ARGUMENT, "checksum");
    free_setting(s);
}

/* Fields that are wrong, in data whose checksum is right. */
static void test_fields(void **unused) {
    (void)unused;
    static const struct {
        size_t at, size;
        int64_t value;
        const char *named;
    } table[] = {
        {0, 1, 'h', "HLASTATE"},
        {8, 4, 2, "version 2"},
        {8, 4, 0, "version 0"},
        {12, 4, 0x04030201, "byte order"},
        {12, 4, 0, "byte order"},
        {16, 8, SAVED + 4, "bytes"},
        {24, 8, 0, "batch"},
        {24, 8, INT64_MAX, "batch"},
        {24, 8, INT64_C(1) << 40, "sizes"},
        {32, 8, -1, "heads"},
        {32, 8, 3, "heads 3"}, /* legal, but another problem */
        {40, 8, 0, "kv_heads"},
        {40, 8, 3, "kv_heads"},
        {48, 8, 0, "value_dim"},
        {48, 8, INT64_C(1) << 39, "sizes"},
        {48, 8, V + 1, "sizes"},
        {56, 8, 257, "rank[0]"},
        {64, 8, 0, "rank[1]"},
        {72, 8, 1, "rank[2]"},
        {80, 8, 1, "rank[3]"},
        {88, 4, 0, "factors"},
        {88, 4, 5, "factors"},
        {92, 4, 3, "dtype"},
        {92, 4, HLA_F16, "problem.dtype 2"},
        {96, 4, 2, "normalised"},
        {96, 4, 0, "problem.normalised 0"},
        {100, 4, 0x7fc00000, "epsilon"},
        {100, 4, 0x3f800000, "problem.epsilon 1"},
        {104, 4, 0x7f800000, "scale"},
        {104, 4, 0x40000000, "problem.scale 2"},
        {108, 4, 1, "reserved"},
        {112, 8, -1, "tokens"},
    };
    setting *s = make_setting(false);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        unsigned char saved[SAVED];
        save(s, saved);
        memcpy(saved + table[i].at, &table[i].value, table[i].size);
        sign(saved);
        expect(s, hla_state_load(s->state, saved, SAVED), HLA_ERROR_ARGUMENT, table[i].named);
    }
    free_setting(s);
    s = make_setting(true);
    unsigned char saved[SAVED];
    save(s, saved);
    memset(saved + SAVED - 4, 0xff, 4);
    sign(saved);
    expect(s, hla_state_load(s->state, saved, SAVED), HLA_ERROR_NOT_FINITE, "NaN");
    free_setting(s);
}

/* States of other shapes are not merged; neither is what was saved of them loaded. */
static void test_other_problems(void **unused) {
    (void)unused;
    static const struct {
        size_t member;
        int64_t value;
        const char *named;
    } table[] = {
        {offsetof(hla_hadamard_problem, batch), 1, "batch 1"},
        {offsetof(hla_hadamard_problem, kv_heads), 2, "kv_heads 2"},
        {offsetof(hla_hadamard_problem, value_dim), 3, "value_dim 3"},
        {offsetof(hla_hadamard_problem, rank[0]), 4, "rank[0] 4"},
        {offsetof(hla_hadamard_problem, rank[1]), 2, "rank[1] 2"},
    };
    setting *s = make_setting(false);
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        hla_hadamard_problem problem = s->problem;
        memcpy((char *)&problem + table[i].member, &table[i].value, sizeof table[i].value);
        hla_state *other = NULL;
        assert_int_equal(hla_state_create(s->context, &problem, &other), HLA_OK);
        expect(s, hla_state_merge(s->state, other), HLA_ERROR_ARGUMENT, table[i].named);
        size_t size = hla_state_saved_size(other);
        void *saved = malloc(size);
        assert_non_null(saved);
        assert_int_equal(hla_state_save(other, saved, size), HLA_OK);
        expect(s, hla_state_load(s->state, saved, size), HLA_ERROR_ARGUMENT, table[i].named);
        free(saved);
        hla_state_free(other);
    }
    hla_hadamard_problem problem = s->problem;
    problem.factors = 3, problem.rank[2] = 1;
    hla_state *other = NULL;
    assert_int_equal(hla_state_create(s->context, &problem, &other), HLA_OK);
    expect(s, hla_state_merge(s->state, other), HLA_ERROR_ARGUMENT, "factors 3");
    hla_state_free(other);
    free_setting(s);
}

/* ---- memory ---- */

static void test_out_of_memory(void **unused) {
    (void)unused;
    setting *s = make_setting(false);
    for (int i = 0; i < 4; i++) { /* the struct, a plan, the numbers, the workspace */
        hla_state *state = (hla_state *)s;
        allocations_left = i;
        expect(s, hla_state_create(s->context, &s->problem, &state), HLA_ERROR_MEMORY, "out of memory");
        assert_null(state);
        allocations_left = i;
        expect(s, hla_state_clone(s->context, s->state, &state), HLA_ERROR_MEMORY, "out of memory");
        assert_null(state);
    }
    allocations_left = 4;
    hla_state *state = NULL;
    assert_int_equal(hla_state_create(s->context, &s->problem, &state), HLA_OK);
    assert_int_equal(allocations_left, 0);
    allocations_left = -1;
    hla_state_free(state);
    for (call kind = APPEND; kind <= STEP; kind++) {
        for (int i = 0; i < 2; i++) { /* a plan, the workspace */
            free_setting(s);
            s = make_setting(false);
            set_tokens(s, MANY);
            allocations_left = i;
            expect(s, run(s, kind), HLA_ERROR_MEMORY, "out of memory");
        }
    }
    set_tokens(s, 1); /* needs none */
    allocations_left = 0;
    assert_int_equal(run(s, STEP), HLA_OK);
    allocations_left = -1;
    set_tokens(s, MANY); /* works once there is memory again */
    assert_int_equal(run(s, STEP), HLA_OK);
    assert_int_equal(hla_state_tokens(s->state), T + 1 + MANY);
    free_setting(s);
}

int main(void) {
    unsetenv("HLA_KERNEL");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),          cmocka_unit_test(test_missing),       cmocka_unit_test(test_create),
        cmocka_unit_test(test_round_trip),     cmocka_unit_test(test_damage),        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_other_problems), cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
