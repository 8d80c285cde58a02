#include "cli/materialised.h"

#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__)
#define VECTOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTOR
#endif
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* under sanitizers loops stay scalar, which is no error */
#endif

enum {
    CHUNK = 256,      /* tokens at a time: a block is CHUNK x BLOCK_ROWS numbers, half of a usual level 2 cache */
    BLOCK_ROWS = 512, /* features at a time, about */
    FEWEST_ROWS = 64, /* ... also where more threads than blocks wait for work */
    SQUARE = 16,      /* tokens that are transposed together, in the first cache */
    LANES = 16        /* partial sums of a dot product */
};

/* One thread's room. */
typedef struct scratch {
    float *factors[HLA_MAX_FACTORS]; /* [R_p, CHUNK] of keys, [CHUNK, R_p] of queries */
    float *square;                   /* room for transposing: [SQUARE, R_p] */
    float *outer;                    /* products of all factors but the last: [CHUNK] of keys, [block] of a query */
    float *phi;                      /* [block, CHUNK] of keys, [CHUNK, block] of queries */
    uint16_t *phi_half, *v_half;     /* the operands of a product in bfloat16 */
    void *product;                   /* room for oneDNN */
    float *v, *sums, *denominator;   /* [CHUNK, V], [CHUNK, V], [CHUNK] */
} scratch;

/* C += A B, all row-major and dense. */
typedef struct product {
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t a, b, c, room;
} product;

/* A block's features and tokens may be fewer at the end: products for whole and for last ones. */
enum { WHOLE, LAST, KINDS };

typedef struct worker {
    dnnl_stream_t stream;
} worker;

struct materialised {
    hla_hadamard_problem problem;
    int threads;
    int64_t R, inner, outer_count; /* R = outer_count * inner, inner the last factor's rank */
    int64_t outer_rows, blocks;    /* outer rows a block has; blocks a head has */
    dnnl_engine_t engine;
    worker *workers;             /* a thread each */
    product build[KINDS][KINDS]; /* by features, by tokens */
    product query[KINDS][KINDS];
    float *state;         /* [B H, R, V] */
    uint16_t *state_half; /* the same rounded, for the queries */
    double *z;            /* [B H, R] */
    float *z_float;
    char *room;           /* of the scratches */
    size_t product_bytes; /* oneDNN's room for a product */
    size_t scratch_bytes, bytes;
};

static bool is_half(const materialised *m) {
    return m->problem.dtype != HLA_F32;
}

static int64_t block_first(const materialised *m, int64_t block) {
    return block * m->outer_rows;
}

static int64_t block_outer(const materialised *m, int64_t block) {
    int64_t left = m->outer_count - block_first(m, block);
    return left < m->outer_rows ? left : m->outer_rows;
}

static int64_t chunk_tokens(const materialised *m, int64_t first) {
    int64_t left = m->problem.keys - first;
    return left < CHUNK ? left : CHUNK;
}

static bool dense(dnnl_memory_desc_t *made, int64_t rows, int64_t columns, dnnl_data_type_t type) {
    const dnnl_dims_t sizes = {rows, columns}, strides = {columns, 1};
    return dnnl_memory_desc_init_by_strides(made, 2, sizes, type, strides) == dnnl_success;
}

/* False if oneDNN has only its reference, which is a thousand times slower. */
static bool make_product(materialised *m, product *made, int64_t rows, int64_t depth, int64_t columns) {
    const dnnl_data_type_t type = is_half(m) ? dnnl_bf16 : dnnl_f32;
    dnnl_matmul_desc_t description;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t add = NULL;
    dnnl_primitive_desc_t found = NULL;
    const char *name = "ref";
    bool good = dense(&made->a, rows, depth, type) && dense(&made->b, depth, columns, type) &&
                dense(&made->c, rows, columns, dnnl_f32) &&
                dnnl_matmul_desc_init(&description, &made->a, &made->b, NULL, &made->c) == dnnl_success &&
                dnnl_primitive_attr_create(&attributes) == dnnl_success &&
                dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user) == dnnl_success &&
                dnnl_post_ops_create(&add) == dnnl_success && dnnl_post_ops_append_sum(add, 1) == dnnl_success &&
                dnnl_primitive_attr_set_post_ops(attributes, add) == dnnl_success &&
                dnnl_primitive_desc_create(&found, &description, attributes, m->engine, NULL) == dnnl_success &&
                dnnl_primitive_desc_query(found, dnnl_query_impl_info_str, 0, &name) == dnnl_success &&
                strncmp(name, "ref", 3) != 0 && dnnl_primitive_create(&made->primitive, found) == dnnl_success;
    if (good) {
        made->room = *dnnl_primitive_desc_query_md(found, dnnl_query_scratchpad_md, 0);
        size_t bytes = dnnl_memory_desc_get_size(&made->room);
        m->product_bytes = bytes > m->product_bytes ? bytes : m->product_bytes;
    }
    dnnl_primitive_desc_destroy(found);
    dnnl_post_ops_destroy(add);
    dnnl_primitive_attr_destroy(attributes);
    return good;
}

static void multiply(const materialised *m, const scratch *own, const product *p, float *c, const void *a,
                     const void *b) {
    dnnl_memory_t memory[4] = {NULL, NULL, NULL, NULL};
    /* The C interface takes inputs through pointers to non-const too. */
    dnnl_memory_create(&memory[0], &p->a, m->engine, (void *)a);
    dnnl_memory_create(&memory[1], &p->b, m->engine, (void *)b);
    dnnl_memory_create(&memory[2], &p->c, m->engine, c);
    dnnl_memory_create(&memory[3], &p->room, m->engine, own->product);
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, memory[0]},
                                         {DNNL_ARG_WEIGHTS, memory[1]},
                                         {DNNL_ARG_DST, memory[2]},
                                         {DNNL_ARG_SCRATCHPAD, memory[3]}};
    dnnl_primitive_execute(p->primitive, m->workers[omp_get_thread_num()].stream, 4, arguments);
    for (int i = 0; i < 4; i++)
        dnnl_memory_destroy(memory[i]);
}

static bool make_products(materialised *m) {
    const int64_t V = m->problem.value_dim, last_block = block_outer(m, m->blocks - 1), last = m->problem.keys % CHUNK;
    const int64_t rows[KINDS] = {m->outer_rows * m->inner, last_block * m->inner};
    const int64_t tokens[KINDS] = {m->problem.keys < CHUNK ? 0 : CHUNK, last};
    bool good = true;
    for (int r = 0; r < KINDS; r++)
        for (int t = 0; t < KINDS && good; t++)
            if (tokens[t] > 0)
                good = make_product(m, &m->build[r][t], rows[r], tokens[t], V) &&
                       make_product(m, &m->query[r][t], tokens[t], rows[r], V);
    return good;
}

/* The next piece of a room, or only its size where there is no room yet. */
static void *take(char *base, size_t *at, size_t count, size_t size) {
    char *taken = base != NULL ? base + *at : NULL;
    *at += (count * size + 63) / 64 * 64;
    return taken;
}

/* Lays a scratch out; returns its bytes. */
static size_t carve(const materialised *m, char *base, scratch *own) {
    const size_t V = (size_t)m->problem.value_dim, rows = (size_t)(m->outer_rows * m->inner);
    size_t at = 0;
    for (int p = 0; p < m->problem.factors; p++)
        own->factors[p] = take(base, &at, CHUNK * (size_t)m->problem.rank[p], sizeof(float));
    own->square = take(base, &at, (size_t)SQUARE * HLA_MAX_RANK, sizeof(float));
    own->outer = take(base, &at, BLOCK_ROWS, sizeof(float));
    own->phi = take(base, &at, is_half(m) ? rows + CHUNK : CHUNK * rows, sizeof(float)); /* one row, if it is rounded */
    own->phi_half = take(base, &at, is_half(m) ? CHUNK * rows : 0, sizeof(uint16_t));
    own->v_half = take(base, &at, is_half(m) ? CHUNK * V : 0, sizeof(uint16_t));
    own->v = take(base, &at, CHUNK * V, sizeof(float));
    own->sums = take(base, &at, CHUNK * V, sizeof(float));
    own->denominator = take(base, &at, CHUNK, sizeof(float));
    own->product = take(base, &at, m->product_bytes, 1);
    return at;
}

static void *allocate(materialised *m, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    bytes = (bytes + 64) / 64 * 64;
    m->bytes += bytes;
    return aligned_alloc(64, bytes);
}

/* Blocks of about BLOCK_ROWS features, smaller ones where threads would wait for work. */
static void cut(materialised *m) {
    int64_t heads = m->problem.batch * m->problem.heads, rows = BLOCK_ROWS;
    while (rows > FEWEST_ROWS && heads * ((m->R + rows - 1) / rows) < m->threads)
        rows /= 2;
    m->outer_rows = rows / m->inner > 1 ? rows / m->inner : 1;
    if (m->outer_rows > m->outer_count) m->outer_rows = m->outer_count;
    m->blocks = (m->outer_count + m->outer_rows - 1) / m->outer_rows;
}

materialised *materialised_create(const hla_hadamard_problem *problem, int threads) {
    materialised *m = calloc(1, sizeof *m);
    if (m == NULL) return NULL;
    m->problem = *problem;
    m->threads = threads;
    m->inner = problem->rank[problem->factors - 1];
    m->outer_count = 1;
    for (int p = 0; p + 1 < problem->factors; p++)
        m->outer_count *= problem->rank[p];
    m->R = m->outer_count * m->inner;
    cut(m);
    size_t features = (size_t)(problem->batch * problem->heads * m->R);
    m->state = allocate(m, features * (size_t)problem->value_dim, sizeof(float));
    if (is_half(m)) m->state_half = allocate(m, features * (size_t)problem->value_dim, sizeof(uint16_t));
    m->z = allocate(m, features, sizeof(double));
    m->z_float = allocate(m, features, sizeof(float));
    m->workers = calloc((size_t)threads, sizeof *m->workers);
    bool good = m->state != NULL && (m->state_half != NULL || !is_half(m)) && m->z != NULL && m->z_float != NULL &&
                m->workers != NULL && dnnl_engine_create(&m->engine, dnnl_cpu, 0) == dnnl_success;
    for (int i = 0; i < threads && good; i++)
        good = dnnl_stream_create(&m->workers[i].stream, m->engine, dnnl_stream_default_flags) == dnnl_success;
    int saved = omp_get_max_threads();
    omp_set_num_threads(1); /* products are oneDNN's, threads are ours */
    good = good && make_products(m);
    omp_set_num_threads(saved);
    scratch own;
    m->scratch_bytes = carve(m, NULL, &own);
    m->room = good ? allocate(m, (size_t)threads, m->scratch_bytes) : NULL;
    if (m->room != NULL) return m;
    materialised_free(m);
    return NULL;
}

void materialised_free(materialised *m) {
    if (m == NULL) return;
    for (int r = 0; r < KINDS; r++)
        for (int t = 0; t < KINDS; t++) {
            dnnl_primitive_destroy(m->build[r][t].primitive);
            dnnl_primitive_destroy(m->query[r][t].primitive);
        }
    for (int i = 0; i < m->threads && m->workers != NULL; i++)
        dnnl_stream_destroy(m->workers[i].stream);
    dnnl_engine_destroy(m->engine);
    free(m->workers);
    free(m->state);
    free(m->state_half);
    free(m->z);
    free(m->z_float);
    free(m->room);
    free(m);
}

size_t materialised_bytes(const materialised *m) {
    return m->bytes;
}

VECTOR static void round_row(uint16_t *to, const float *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &from[i], sizeof bits);
        to[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    }
}

VECTOR static void widen_row(float *to, const uint16_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits = (uint32_t)from[i] << 16;
        memcpy(&to[i], &bits, sizeof bits);
    }
}

/* to[0..rows-1][0..columns-1] = token first + row of the view, float32 */
static void load_rows(float *to, const hla_tensor *from, int64_t b, int64_t first, int64_t h, int64_t rows) {
    const int64_t width = from->shape[3];
    for (int64_t t = 0; t < rows; t++) {
        int64_t at = b * from->stride[0] + (first + t) * from->stride[1] + h * from->stride[2];
        if (from->dtype == HLA_F32)
            memcpy(to + t * width, (const float *)from->data + at, (size_t)width * sizeof(float));
        else
            widen_row(to + t * width, (const uint16_t *)from->data + at, width);
    }
}

/* The same with tokens along the rows: to [X, tokens]. */
static void load_columns(float *to, float *row, const hla_tensor *from, int64_t b, int64_t first, int64_t h,
                         int64_t tokens) {
    const int64_t width = from->shape[3];
    for (int64_t t = 0; t < tokens; t += SQUARE) {
        int64_t count = tokens - t < SQUARE ? tokens - t : SQUARE;
        load_rows(row, from, b, first + t, h, count);
        for (int64_t x = 0; x < width; x++)
            for (int64_t i = 0; i < count; i++)
                to[x * tokens + t + i] = row[i * width + x];
    }
}

VECTOR static void multiply_rows(float *to, const float *a, const float *b, int64_t count) {
    for (int64_t i = 0; i < count; i++)
        to[i] = a[i] * b[i];
}

VECTOR static void add_lanes(float lanes[LANES], const float *a, int64_t count) {
    int64_t whole = count / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int64_t lane = 0; lane < LANES; lane++)
            lanes[lane] += a[i + lane];
    for (int64_t i = whole; i < count; i++)
        lanes[i - whole] += a[i];
}

/* to = outer (x) inner; returns to . z. A product of which a query's psi is made. */
VECTOR static float outer_product(float *restrict to, const float *restrict outer, int64_t outer_count,
                                  const float *restrict inner, int64_t width, const float *restrict z) {
    float lanes[LANES] = {0}, sum = 0;
    const int64_t whole = width / LANES * LANES;
    for (int64_t o = 0; o < outer_count; o++, to += width, z += width) {
        const float scale = outer[o];
        for (int64_t i = 0; i < whole; i += LANES)
            for (int64_t lane = 0; lane < LANES; lane++) {
                const float x = scale * inner[i + lane];
                to[i + lane] = x;
                lanes[lane] += x * z[i + lane];
            }
        for (int64_t i = whole; i < width; i++) {
            to[i] = scale * inner[i];
            sum += to[i] * z[i];
        }
    }
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

static float sum_lanes(const float lanes[LANES]) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

/* Keys: phi [block, tokens], a feature's row after the other; z gains the sums of the rows. */
static void write_keys(const materialised *m, const scratch *own, int64_t block, int64_t tokens, double *z) {
    const int last = m->problem.factors - 1;
    int64_t row = 0;
    for (int64_t o = block_first(m, block); o < block_first(m, block) + block_outer(m, block); o++) {
        const float *outer = NULL;
        int64_t rest = o;
        for (int p = last - 1; p >= 0; p--) {
            const float *factor = own->factors[p] + rest % m->problem.rank[p] * tokens;
            rest /= m->problem.rank[p];
            if (outer != NULL) multiply_rows(own->outer, outer, factor, tokens);
            outer = outer != NULL ? own->outer : factor;
        }
        for (int64_t r = 0; r < m->inner; r++, row++) {
            const float *inner = own->factors[last] + r * tokens;
            float lanes[LANES] = {0}, *phi = own->phi + (is_half(m) ? 0 : row * tokens);
            if (outer != NULL)
                multiply_rows(phi, outer, inner, tokens);
            else
                memcpy(phi, inner, (size_t)tokens * sizeof *phi);
            add_lanes(lanes, phi, tokens);
            if (is_half(m)) round_row(own->phi_half + row * tokens, phi, tokens);
            z[row] += (double)sum_lanes(lanes);
        }
    }
}

/* Queries: psi [tokens, block], a token's row after the other; denominator gains psi . z. */
static void write_queries(const materialised *m, const scratch *own, int64_t block, int64_t tokens, const float *z) {
    const int last = m->problem.factors - 1;
    const int64_t rows = block_outer(m, block) * m->inner;
    for (int64_t t = 0; t < tokens; t++) {
        float *psi = own->phi + (is_half(m) ? 0 : t * rows);
        for (int64_t o = 0; o < block_outer(m, block); o++) {
            int64_t rest = block_first(m, block) + o;
            own->outer[o] = 1;
            for (int p = last - 1; p >= 0; p--) {
                own->outer[o] *= own->factors[p][t * m->problem.rank[p] + rest % m->problem.rank[p]];
                rest /= m->problem.rank[p];
            }
        }
        own->denominator[t] +=
            outer_product(psi, own->outer, block_outer(m, block), own->factors[last] + t * m->inner, m->inner, z);
        if (is_half(m)) round_row(own->phi_half + t * rows, psi, rows);
    }
}

static const void *operand_of(const materialised *m, const float *full, const uint16_t *half) {
    return is_half(m) ? (const void *)half : (const void *)full;
}

/* One block of features of one head's state, over all keys. */
static void build_block(const materialised *m, const scratch *own, int64_t head, int64_t block, const hla_tensor *k,
                        const hla_tensor *v) {
    const int64_t V = m->problem.value_dim, b = head / m->problem.heads, h = head % m->problem.heads;
    const int64_t first_row = head * m->R + block_first(m, block) * m->inner, rows = block_outer(m, block) * m->inner;
    const int kind = block_outer(m, block) == m->outer_rows ? WHOLE : LAST;
    float *state = m->state + first_row * V;
    memset(state, 0, (size_t)(rows * V) * sizeof *state);
    for (int64_t f = 0; f < rows; f++)
        m->z[first_row + f] = 0;
    for (int64_t first = 0; first < m->problem.keys; first += CHUNK) {
        int64_t tokens = chunk_tokens(m, first);
        for (int p = 0; p < m->problem.factors; p++)
            load_columns(own->factors[p], own->square, &k[p], b, first, h, tokens);
        write_keys(m, own, block, tokens, m->z + first_row);
        load_rows(own->v, v, b, first, h, tokens);
        if (is_half(m)) round_row(own->v_half, own->v, tokens * V);
        multiply(m, own, &m->build[kind][tokens == CHUNK ? WHOLE : LAST], state, operand_of(m, own->phi, own->phi_half),
                 operand_of(m, own->v, own->v_half));
    }
    for (int64_t f = 0; f < rows; f++)
        m->z_float[first_row + f] = (float)m->z[first_row + f];
    if (is_half(m)) round_row(m->state_half + first_row * V, state, rows * V);
}

static void store_row(const materialised *m, const hla_tensor *out, int64_t at, float *row, float weight) {
    for (int64_t x = 0; x < m->problem.value_dim; x++)
        row[x] *= weight;
    if (is_half(m))
        round_row((uint16_t *)out->data + at, row, m->problem.value_dim);
    else
        memcpy((float *)out->data + at, row, (size_t)m->problem.value_dim * sizeof *row);
}

/* One chunk of one head's queries, over all blocks of features. */
static void query_chunk(const materialised *m, const scratch *own, int64_t head, int64_t first, const hla_tensor *q,
                        const hla_tensor *out) {
    const int64_t V = m->problem.value_dim, b = head / m->problem.heads, h = head % m->problem.heads;
    const int64_t tokens = chunk_tokens(m, first);
    memset(own->sums, 0, (size_t)(tokens * V) * sizeof *own->sums);
    memset(own->denominator, 0, (size_t)tokens * sizeof *own->denominator);
    for (int p = 0; p < m->problem.factors; p++)
        load_rows(own->factors[p], &q[p], b, first, h, tokens);
    for (int64_t block = 0; block < m->blocks; block++) {
        const int64_t row = head * m->R + block_first(m, block) * m->inner;
        const int kind = block_outer(m, block) == m->outer_rows ? WHOLE : LAST;
        write_queries(m, own, block, tokens, m->z_float + row);
        multiply(m, own, &m->query[kind][tokens == CHUNK ? WHOLE : LAST], own->sums,
                 operand_of(m, own->phi, own->phi_half),
                 operand_of(m, m->state + row * V, m->state_half != NULL ? m->state_half + row * V : NULL));
    }
    for (int64_t t = 0; t < tokens; t++)
        store_row(m, out, b * out->stride[0] + (first + t) * out->stride[1] + h * out->stride[2], own->sums + t * V,
                  1 / (own->denominator[t] + m->problem.epsilon));
}

void materialised_forward(materialised *m, const hla_tensor *out, const hla_tensor *q_features,
                          const hla_tensor *k_features, const hla_tensor *v) {
    const int64_t heads = m->problem.batch * m->problem.heads, chunks = (m->problem.queries + CHUNK - 1) / CHUNK;
#pragma omp parallel num_threads(m->threads)
    {
        scratch own;
        carve(m, m->room + (size_t)omp_get_thread_num() * m->scratch_bytes, &own);
        omp_set_num_threads(1); /* of this thread's task: for oneDNN */
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads * m->blocks; unit++)
            build_block(m, &own, unit / m->blocks, unit % m->blocks, k_features, v);
#pragma omp for schedule(dynamic, 1)
        for (int64_t unit = 0; unit < heads * chunks; unit++)
            query_chunk(m, &own, unit / chunks, unit % chunks * CHUNK, q_features, out);
    }
}
