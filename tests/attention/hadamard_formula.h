/* tests/attention/hadamard_formula.h - the formulas of docs/OPERATOR.md and their derivative, naively, pair by pair, in
 * the precision REAL. Included with REAL and NAMED(name) defined; uses no code of the library.
 *
 *     A_ij = prod_p (a_i^p . c_j^p)    (n_i, d_i) = sum_j A_ij (v_j, 1) + phi_i . initial    out_i = n_i / (d_i + eps)
 *     final = initial + sum_j phi_j (x) (v_j, 1)
 *
 * Reverse mode, with (g, G) the gradients of (out, final): dn_i = w_i g_i, dd_i = -w_i g_i . out_i, and every pair adds
 * dA_ij = dn_i . v_j + dd_i times the other factors to its a and c. Arrays are dense.
 */

/* Tensors [B][T][heads][X], states [N][Hkv][R][V+1]; NULL where there is none. Without d_out no gradient is made. */
typedef struct NAMED(arrays) {
    const hla_hadamard_problem *problem; /* kv_heads may be 0 */
    const int64_t *key_lengths, *query_starts, *key_starts;
    REAL *q[HLA_MAX_FACTORS], *k[HLA_MAX_FACTORS], *v, *initial_state, *d_out, *d_final_state;
    REAL *output[HADAMARD_OUTPUTS]; /* zeros when NAMED(formula) is called */
} NAMED(arrays);

/* One query head of one sequence. */
typedef struct NAMED(part) {
    int64_t query_row, queries, key_row, keys; /* first rows in units of tokens of the arrays */
    int64_t h, kv, heads, kv_heads, rank, state;
} NAMED(part);

static REAL *NAMED(query)(REAL *array, const NAMED(part) * part, int64_t i, int64_t width) {
    return array + ((part->query_row + i) * part->heads + part->h) * width;
}

static REAL *NAMED(key)(REAL *array, const NAMED(part) * part, int64_t j, int64_t width) {
    return array + ((part->key_row + j) * part->kv_heads + part->kv) * width;
}

/* The product of all factors' entries that state feature f names, but for factor `except`; *entry: except's index. */
static REAL NAMED(feature)(const hla_hadamard_problem *problem, REAL *const *factors, int64_t f, int except,
                           int64_t *entry) {
    REAL product = 1;
    for (int p = problem->factors - 1; p >= 0; f /= problem->rank[p--]) {
        if (p == except)
            *entry = f % problem->rank[p];
        else
            product *= factors[p][f % problem->rank[p]];
    }
    return product;
}

/* A token against a state: rows (n, d) += phi . state, or its derivative. With d_row: d_state += phi (x) d_row, and
 * d_factors get the rest. row, d_row: V + 1 numbers. */
static void NAMED(read_state)(const hla_hadamard_problem *problem, REAL *row, REAL *const *factors, const REAL *state,
                              int64_t rank) {
    int64_t width = problem->value_dim + 1;
    for (int64_t f = 0; f < rank; f++) {
        REAL feature = NAMED(feature)(problem, factors, f, -1, NULL);
        for (int64_t x = 0; x < width; x++)
            row[x] += feature * state[f * width + x];
    }
}

/* state += phi (x) row */
static void NAMED(write_state)(const hla_hadamard_problem *problem, REAL *state, REAL *const *factors, const REAL *row,
                               int64_t rank) {
    int64_t width = problem->value_dim + 1;
    for (int64_t f = 0; f < rank; f++) {
        REAL feature = NAMED(feature)(problem, factors, f, -1, NULL);
        for (int64_t x = 0; x < width; x++)
            state[f * width + x] += feature * row[x];
    }
}

/* d_factors += the derivative of phi . state . row with respect to the factors */
static void NAMED(factor_gradients)(const hla_hadamard_problem *problem, REAL *const *d_factors, REAL *const *factors,
                                    const REAL *state, const REAL *row, int64_t rank) {
    int64_t width = problem->value_dim + 1;
    for (int64_t f = 0; f < rank; f++) {
        REAL product = 0;
        for (int64_t x = 0; x < width; x++)
            product += state[f * width + x] * row[x];
        for (int p = 0; p < problem->factors; p++) {
            int64_t entry = 0;
            REAL others = NAMED(feature)(problem, factors, f, p, &entry);
            d_factors[p][entry] += product * others;
        }
    }
}

/* dots[p] = a_i^p . c_j^p; returns their product. */
static REAL NAMED(score)(const NAMED(arrays) * a, REAL *const *query, REAL *const *key, REAL *dots) {
    REAL product = 1;
    for (int p = 0; p < a->problem->factors; p++) {
        dots[p] = 0;
        for (int64_t r = 0; r < a->problem->rank[p]; r++)
            dots[p] += query[p][r] * key[p][r];
        product *= dots[p];
    }
    return product;
}

static void NAMED(pair_gradients)(const NAMED(arrays) * a, const NAMED(part) * part, int64_t i, int64_t j,
                                  REAL *const *query, REAL *const *key, const REAL *d_row) {
    const hla_hadamard_problem *problem = a->problem;
    const REAL *v = NAMED(key)(a->v, part, j, problem->value_dim);
    REAL *dv = NAMED(key)(a->output[DV], part, j, problem->value_dim), dots[HLA_MAX_FACTORS];
    REAL score = NAMED(score)(a, query, key, dots), d_score = 0;
    for (int64_t x = 0; x < problem->value_dim; x++) {
        d_score += d_row[x] * v[x];
        dv[x] += score * d_row[x];
    }
    d_score += d_row[problem->value_dim];
    for (int p = 0; p < problem->factors; p++) {
        REAL d_dot = d_score;
        for (int other = 0; other < problem->factors; other++)
            d_dot *= other == p ? 1 : dots[other];
        REAL *dq = NAMED(query)(a->output[DQ + p], part, i, problem->rank[p]);
        REAL *dk = NAMED(key)(a->output[DK + p], part, j, problem->rank[p]);
        for (int64_t r = 0; r < problem->rank[p]; r++) {
            dq[r] += d_dot * key[p][r];
            dk[r] += d_dot * query[p][r];
        }
    }
}

static void NAMED(query_gradients)(const NAMED(arrays) * a, const NAMED(part) * part, int64_t i, int64_t visible,
                                   REAL *const *query, const REAL *d_row) {
    const hla_hadamard_problem *problem = a->problem;
    for (int64_t j = 0; j < visible; j++) {
        REAL *key[HLA_MAX_FACTORS];
        for (int p = 0; p < problem->factors; p++)
            key[p] = NAMED(key)(a->k[p], part, j, problem->rank[p]);
        NAMED(pair_gradients)(a, part, i, j, query, key, d_row);
    }
    if (a->output[D_INITIAL_STATE])
        NAMED(write_state)(problem, a->output[D_INITIAL_STATE] + part->state, query, d_row, part->rank);
    if (!a->initial_state) return;
    REAL *dq[HLA_MAX_FACTORS];
    for (int p = 0; p < problem->factors; p++)
        dq[p] = NAMED(query)(a->output[DQ + p], part, i, problem->rank[p]);
    NAMED(factor_gradients)(problem, dq, query, a->initial_state + part->state, d_row, part->rank);
}

/* Row i of out and, with d_out, what it adds to the gradients. row: V + 1 numbers of scratch. */
static void NAMED(query_row)(const NAMED(arrays) * a, const NAMED(part) * part, int64_t i, REAL *row) {
    const hla_hadamard_problem *problem = a->problem;
    int64_t width = problem->value_dim, visible = problem->causal && i + 1 < part->keys ? i + 1 : part->keys;
    REAL *query[HLA_MAX_FACTORS], *key[HLA_MAX_FACTORS], dots[HLA_MAX_FACTORS];
    for (int p = 0; p < problem->factors; p++)
        query[p] = NAMED(query)(a->q[p], part, i, problem->rank[p]);
    for (int64_t x = 0; x <= width; x++)
        row[x] = 0;
    if (a->initial_state) NAMED(read_state)(problem, row, query, a->initial_state + part->state, part->rank);
    for (int64_t j = 0; j < visible; j++) {
        for (int p = 0; p < problem->factors; p++)
            key[p] = NAMED(key)(a->k[p], part, j, problem->rank[p]);
        REAL score = NAMED(score)(a, query, key, dots), *v = NAMED(key)(a->v, part, j, width);
        for (int64_t x = 0; x < width; x++)
            row[x] += score * v[x];
        row[width] += score;
    }
    REAL denominator = row[width] + (REAL)problem->epsilon, *out = NAMED(query)(a->output[OUT], part, i, width);
    bool zero = problem->normalised && !(denominator > 0) && !(denominator < 0);
    for (int64_t x = 0; x < width && !zero; x++)
        out[x] = problem->normalised ? row[x] / denominator : (REAL)problem->scale * row[x];
    if (!a->d_out) return;
    REAL *g = NAMED(query)(a->d_out, part, i, width), product = 0;
    REAL factor = problem->normalised ? (zero ? 0 : 1 / denominator) : (REAL)problem->scale;
    for (int64_t x = 0; x < width; x++) {
        product += g[x] * out[x];
        row[x] = factor * g[x];
    }
    row[width] = problem->normalised ? -factor * product : 0;
    NAMED(query_gradients)(a, part, i, visible, query, row);
}

/* What key j adds to the final state, and what its gradient adds to those of key j. */
static void NAMED(key_row)(const NAMED(arrays) * a, const NAMED(part) * part, int64_t j, REAL *row) {
    const hla_hadamard_problem *problem = a->problem;
    int64_t width = problem->value_dim;
    REAL *key[HLA_MAX_FACTORS], *dk[HLA_MAX_FACTORS] = {0}, *v = NAMED(key)(a->v, part, j, width);
    for (int p = 0; p < problem->factors; p++) {
        key[p] = NAMED(key)(a->k[p], part, j, problem->rank[p]);
        if (a->d_final_state) dk[p] = NAMED(key)(a->output[DK + p], part, j, problem->rank[p]);
    }
    for (int64_t x = 0; x <= width; x++)
        row[x] = x < width ? v[x] : 1;
    if (a->output[FINAL_STATE]) NAMED(write_state)(problem, a->output[FINAL_STATE] + part->state, key, row, part->rank);
    if (!a->d_out || !a->d_final_state) return;
    const REAL *state = a->d_final_state + part->state;
    NAMED(factor_gradients)(problem, dk, key, state, row, part->rank);
    for (int64_t x = 0; x <= width; x++)
        row[x] = 0;
    NAMED(read_state)(problem, row, key, state, part->rank);
    REAL *dv = NAMED(key)(a->output[DV], part, j, width);
    for (int64_t x = 0; x < width; x++)
        dv[x] += row[x];
}

static void NAMED(head)(const NAMED(arrays) * a, int64_t n, int64_t h, REAL *row) {
    const hla_hadamard_problem *problem = a->problem;
    NAMED(part)
    part = {.query_row = n * problem->queries,
            .queries = problem->queries,
            .key_row = n * problem->keys,
            .keys = a->key_lengths ? a->key_lengths[n] : problem->keys,
            .h = h,
            .heads = problem->heads};
    if (problem->sequences > 0) {
        part.query_row = a->query_starts[n], part.queries = a->query_starts[n + 1] - part.query_row;
        part.key_row = a->key_starts[n], part.keys = a->key_starts[n + 1] - part.key_row;
    }
    part.kv_heads = problem->kv_heads > 0 ? problem->kv_heads : problem->heads;
    int64_t group = part.heads / part.kv_heads;
    part.kv = h / group, part.rank = 1;
    for (int p = 0; p < problem->factors; p++)
        part.rank *= problem->rank[p];
    int64_t numbers = part.rank * (problem->value_dim + 1);
    part.state = (n * part.kv_heads + part.kv) * numbers;
    for (int64_t i = 0; i < part.queries; i++)
        NAMED(query_row)(a, &part, i, row);
    if (h % group != 0) return;
    for (int64_t e = part.state; e < part.state + numbers; e++) {
        if (a->output[FINAL_STATE] && a->initial_state) a->output[FINAL_STATE][e] = a->initial_state[e];
        if (a->output[D_INITIAL_STATE] && a->d_final_state) a->output[D_INITIAL_STATE][e] += a->d_final_state[e];
    }
    for (int64_t j = 0; j < part.keys; j++)
        NAMED(key_row)(a, &part, j, row);
}

static void NAMED(formula)(const NAMED(arrays) * a) {
    REAL *row = calloc((size_t)a->problem->value_dim + 1, sizeof *row);
    if (!row) abort();
    int64_t sequences = a->problem->sequences > 0 ? a->problem->sequences : a->problem->batch;
    for (int64_t n = 0; n < sequences; n++) {
        for (int64_t h = 0; h < a->problem->heads; h++)
            NAMED(head)(a, n, h, row);
    }
    free(row);
}
