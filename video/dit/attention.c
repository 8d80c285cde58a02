/* video/dit/attention.c - a block's attention over views of the session's buffers: softmax, Hadamard linear, cross. */
#include "video/dit/internal.h"

/* x [N,D] seen as [1,N,H,width]. */
static hla_tensor view(const hlv_dit_session *session, const float *x, int64_t rows, int64_t width) {
    return hla_tensor_bthd(x, HLA_F32, 1, rows, session->dit->config.num_attention_heads, width);
}

static hlv_status softmax_attention(hlv_dit_session *session, float *out, const float *q, const float *k,
                                    const float *v) {
    const int64_t N = session->tokens, head = session->dit->config.attention_head_dim;
    hla_tensor out_view = view(session, out, N, head), q_view = view(session, q, N, head);
    hla_tensor k_view = view(session, k, N, head), v_view = view(session, v, N, head);
    hla_status status = hla_softmax_forward(session->softmax, &out_view, &q_view, &k_view, &v_view, NULL, NULL,
                                            session->workspace, session->workspace_size);
    return status == HLA_OK ? HLV_OK : hlv_fail_hla(session->ctx, status);
}

/* features = act(W x + b), one factor of the queries or keys. */
static hlv_status map_features(hlv_dit_session *session, const hla_tensor *features, const float *x,
                               const hlv_block_config *config, const hlv_dit_map *map, bool is_query) {
    const int64_t head = session->dit->config.attention_head_dim;
    hla_feature_map_problem problem;
    hla_feature_map_problem_init(&problem);
    problem.batch = 1, problem.heads = session->dit->config.num_attention_heads;
    problem.tokens = session->tokens, problem.dim = head, problem.rank = features->shape[3];
    problem.dtype = HLA_F32;
    problem.activation = config->activation;
    problem.floor = (float)config->floor;
    problem.is_query = is_query;
    const hla_feature_map_weights weights = {map->weight, map->bias, map->hidden_weight, map->hidden_bias};
    hla_tensor x_view = view(session, x, session->tokens, head);
    hla_status status = hla_feature_map_forward(session->hla, &problem, features, &x_view, &weights);
    return status == HLA_OK ? HLV_OK : hlv_fail_hla(session->ctx, status);
}

static hlv_status hadamard_attention(hlv_dit_session *session, float *out, const float *q, const float *k,
                                     const float *v, int n) {
    const hlv_dit_block *block = &session->dit->blocks[n];
    const int64_t N = session->tokens, H = session->dit->config.num_attention_heads;
    const int64_t head = session->dit->config.attention_head_dim;
    hla_tensor q_features[HLA_MAX_FACTORS], k_features[HLA_MAX_FACTORS];
    float *next = session->features;
    for (int p = 0; p < block->config.factors; p++) {
        const int64_t rank = block->config.rank[p];
        q_features[p] = view(session, next, N, rank);
        k_features[p] = view(session, next + N * H * rank, N, rank);
        next += 2 * N * H * rank;
        hlv_status status = map_features(session, &q_features[p], q, &block->config, &block->query_map[p], true);
        if (status == HLV_OK)
            status = map_features(session, &k_features[p], k, &block->config, &block->key_map[p], false);
        if (status != HLV_OK) return status;
    }
    hla_tensor out_view = view(session, out, N, head), v_view = view(session, v, N, head);
    const hla_hadamard_inputs inputs = {.q_features = q_features, .k_features = k_features, .v = &v_view};
    hla_status status = hla_hadamard_forward(session->hadamard[n], &out_view, NULL, &inputs, session->workspace,
                                             session->workspace_size);
    return status == HLA_OK ? HLV_OK : hlv_fail_hla(session->ctx, status);
}

hlv_status hlv_dit_self_attention(hlv_dit_session *session, float *out, float *q, float *k, const float *v, int n) {
    const hlv_block_config *config = &session->dit->blocks[n].config;
    if (!config->hadamard || config->rope_before) {
        hlv_rope_apply(session->rope, q, session->dit->config.num_attention_heads);
        hlv_rope_apply(session->rope, k, session->dit->config.num_attention_heads);
    }
    return config->hadamard ? hadamard_attention(session, out, q, k, v, n) : softmax_attention(session, out, q, k, v);
}

/* The plan for this number of keys: one of the last two used, or a new one in the place of the older. */
static hlv_status cross_plan(hlv_dit_session *session, int64_t keys, const hla_softmax_plan **plan) {
    for (int i = 0; i < 2; i++)
        if (session->cross[i].plan && session->cross[i].keys == keys) {
            *plan = session->cross[i].plan;
            return HLV_OK;
        }
    hlv_dit_cross_plan *slot = &session->cross[session->next_cross];
    session->next_cross = !session->next_cross;
    hla_softmax_plan_free(slot->plan);
    slot->plan = NULL;
    hla_softmax_problem problem;
    hla_softmax_problem_init(&problem);
    problem.batch = 1, problem.heads = session->dit->config.num_attention_heads;
    problem.queries = session->tokens, problem.keys = keys;
    problem.dim = problem.value_dim = session->dit->config.attention_head_dim;
    problem.dtype = HLA_F32;
    hla_status status = hla_softmax_plan_create(session->hla, &problem, &slot->plan);
    if (status != HLA_OK) return hlv_fail_hla(session->ctx, status);
    slot->keys = keys;
    *plan = slot->plan;
    return hlv_dit_workspace(session, hla_softmax_plan_workspace(slot->plan));
}

hlv_status hlv_dit_cross_attention(hlv_dit_session *session, float *out, const float *q, const hlv_dit_prompt *prompt,
                                   int n) {
    const int64_t N = session->tokens, keys = prompt->keys, head = session->dit->config.attention_head_dim;
    const float *k = prompt->rows + 2 * (int64_t)n * keys * prompt->width, *v = k + keys * prompt->width;
    const hla_softmax_plan *plan = NULL;
    hlv_status status = cross_plan(session, keys, &plan);
    if (status != HLV_OK) return status;
    hla_tensor out_view = view(session, out, N, head), q_view = view(session, q, N, head);
    hla_tensor k_view = view(session, k, keys, head), v_view = view(session, v, keys, head);
    hla_status hla = hla_softmax_forward(plan, &out_view, &q_view, &k_view, &v_view, NULL, prompt->key_bias,
                                         session->workspace, session->workspace_size);
    return hla == HLA_OK ? HLV_OK : hlv_fail_hla(session->ctx, hla);
}
