/* video/dit/session.c - what depends only on the clip's size: token grid, position tables, attention plans, buffers. */
#include <stdlib.h>

#include "video/dit/internal.h"

static const char *const AXIS[3] = {"frames", "rows", "columns"};

static hlv_status set_grid(hlv_dit_session *session, const int64_t size[3]) {
    const hlv_transformer_config *config = &session->dit->config;
    session->tokens = 1;
    for (int axis = 0; axis < 3; axis++) {
        const int patch = config->patch_size[axis];
        if (size[axis] < 1 || size[axis] % patch)
            return hlv_fail(session->ctx, HLV_ERROR_ARGUMENT,
                            "latents have %lld %s, wanted a multiple of the patch's %d", (long long)size[axis],
                            AXIS[axis], patch);
        session->grid[axis] = size[axis] / patch;
        if (session->grid[axis] > config->rope_max_seq_len)
            return hlv_fail(session->ctx, HLV_ERROR_ARGUMENT,
                            "latents have %lld %s, more than the transformer's %d positions (rope_max_seq_len) allow",
                            (long long)size[axis], AXIS[axis], config->rope_max_seq_len);
        session->tokens = hlv_dit_product(session->tokens, session->grid[axis]);
    }
    session->F = size[0], session->Y = size[1], session->X = size[2];
    return HLV_OK;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static hlv_status plan_softmax(hlv_dit_session *session) {
    const hlv_transformer_config *config = &session->dit->config;
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 1, problem.heads = config->num_attention_heads;
    problem.queries = problem.keys = session->tokens;
    problem.dim = problem.value_dim = config->attention_head_dim;
    problem.dtype = HLA_F32;
    hla_status status = hla_softmax_plan_create(session->hla, &problem, &session->softmax);
    if (status != HLA_OK) return hlv_fail_hla(session->ctx, status);
    return hlv_dit_workspace(session, hla_softmax_plan_workspace(session->softmax));
}

static hlv_status plan_hadamard(hlv_dit_session *session, int n) {
    const hlv_transformer_config *config = &session->dit->config;
    const hlv_block_config *block = &session->dit->blocks[n].config;
    hla_hadamard_problem problem;
    hla_hadamard_problem_init(&problem);
    problem.batch = 1, problem.heads = config->num_attention_heads;
    problem.queries = problem.keys = session->tokens;
    problem.value_dim = config->attention_head_dim;
    problem.factors = block->factors;
    for (int p = 0; p < block->factors; p++)
        problem.rank[p] = block->rank[p];
    problem.dtype = HLA_F32;
    problem.normalised = block->normalised;
    problem.epsilon = (float)block->epsilon, problem.scale = (float)block->scale;
    hla_status status = hla_hadamard_plan_create(session->hla, &problem, &session->hadamard[n]);
    if (status != HLA_OK) return hlv_fail_hla(session->ctx, status);
    hlv_log(session->ctx, HLV_LOG_DEBUG, "block %d: %s", n, hla_hadamard_plan_explain(session->hadamard[n]));
    return hlv_dit_workspace(session, hla_hadamard_plan_workspace(session->hadamard[n]));
}

/* Plans for every block; *features receives the numbers per token and head that the widest block's features take. */
static hlv_status plan_blocks(hlv_dit_session *session, int64_t *features) {
    const int blocks = session->dit->config.num_layers;
    session->hadamard = calloc((size_t)blocks, sizeof(hla_hadamard_plan *));
    if (!session->hadamard) return hlv_fail(session->ctx, HLV_ERROR_MEMORY, "out of memory for %d plans", blocks);
    *features = 0;
    hlv_status status = HLV_OK;
    for (int n = 0; status == HLV_OK && n < blocks; n++) {
        const hlv_block_config *block = &session->dit->blocks[n].config;
        if (!block->hadamard) {
            if (!session->softmax) status = plan_softmax(session);
            continue;
        }
        int64_t ranks = 0;
        for (int p = 0; p < block->factors; p++)
            ranks += block->rank[p];
        *features = larger(*features, 2 * ranks);
        status = plan_hadamard(session, n);
    }
    return status;
}

static hlv_status allocate(hlv_dit_session *session, int64_t features) {
    const hlv_transformer_config *config = &session->dit->config;
    const int64_t D = session->dit->width, patch = session->dit->patch, count = hlv_dit_product(session->tokens, D);
    int64_t wide = larger(config->ffn_dim, patch * larger(config->in_channels, config->out_channels));
    int64_t chunk = session->tokens < HLV_DIT_CHUNK ? session->tokens : HLV_DIT_CHUNK;
    int64_t per_head = hlv_dit_product(session->tokens, config->num_attention_heads);
    struct {
        float **buffer;
        int64_t count;
    } buffers[] = {{&session->x, count},
                   {&session->y, count},
                   {&session->q, count},
                   {&session->k, count},
                   {&session->v, count},
                   {&session->wide, hlv_dit_product(chunk, wide)},
                   {&session->embedding, config->freq_dim + 14 * D},
                   {&session->features, hlv_dit_product(per_head, features)}};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        if (buffers[i].count == 0) continue;
        *buffers[i].buffer = hlv_alloc_floats(session->ctx, buffers[i].count);
        if (!*buffers[i].buffer) return HLV_ERROR_MEMORY;
    }
    return HLV_OK;
}

hlv_status hlv_dit_workspace(hlv_dit_session *session, size_t size) {
    if (size <= session->workspace_size) return HLV_OK;
    hlv_free(session->ctx, session->workspace);
    session->workspace_size = 0;
    session->workspace = hlv_alloc(session->ctx, size);
    if (!session->workspace) return HLV_ERROR_MEMORY;
    session->workspace_size = size;
    return HLV_OK;
}

hlv_status hlv_dit_session_create(const hlv_dit *dit, int64_t F, int64_t Y, int64_t X, hlv_dit_session **out) {
    *out = NULL;
    hlv_dit_session *session = calloc(1, sizeof *session);
    if (!session) return hlv_fail(dit->ctx, HLV_ERROR_MEMORY, "out of memory for the session");
    session->dit = dit, session->ctx = dit->ctx;
    session->hla = hlv_context_hla(dit->ctx);
    int64_t features = 0;
    hlv_status status = session->hla ? set_grid(session, (const int64_t[]){F, Y, X}) : HLV_ERROR_MEMORY;
    if (status == HLV_OK)
        status = hlv_rope_create(dit->ctx, dit->config.attention_head_dim, session->grid, &session->rope);
    if (status == HLV_OK) status = plan_blocks(session, &features);
    if (status == HLV_OK) status = allocate(session, features);
    if (status != HLV_OK) {
        hlv_dit_session_free(session);
        return status;
    }
    *out = session;
    return HLV_OK;
}

void hlv_dit_session_free(hlv_dit_session *session) {
    if (!session) return;
    hlv_rope_free(session->rope);
    hla_softmax_plan_free(session->softmax);
    for (int n = 0; session->hadamard && n < session->dit->config.num_layers; n++)
        hla_hadamard_plan_free(session->hadamard[n]);
    free(session->hadamard);
    for (int i = 0; i < 2; i++)
        hla_softmax_plan_free(session->cross[i].plan);
    float *const buffers[] = {session->x, session->y,    session->q,         session->k,
                              session->v, session->wide, session->embedding, session->features};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        hlv_free(session->ctx, buffers[i]);
    hlv_free(session->ctx, session->workspace);
    free(session);
}

int64_t hlv_dit_session_tokens(const hlv_dit_session *session) {
    return session->tokens;
}
