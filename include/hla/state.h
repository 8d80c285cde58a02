/* hla/state.h - streaming Hadamard linear attention: a state that tokens are appended to and that queries read.
 *
 *     hla_hadamard_problem problem;
 *     hla_hadamard_problem_init(&problem);
 *     problem.batch = 1, problem.heads = H, problem.value_dim = V;
 *     problem.factors = 2, problem.rank[0] = problem.rank[1] = 16;
 *     hla_state *state = NULL;
 *     hla_state_create(ctx, &problem, &state);
 *     hla_state_step(state, &out, q_features, k_features, &v);
 *     printf("%lld tokens in %zu bytes\n", (long long)hla_state_tokens(state), hla_state_memory(state));
 *     hla_state_free(state);
 *
 * All that keys and values contribute to attention is one array, whatever their number (arXiv 2602.12128, sequential
 * updates; phi_j = c_j^1 (x) ... (x) c_j^P, R = R_1 ... R_P numbers, feature f = (r_1 R_2 + r_2) R_3 + ...):
 *
 *     state[f][x] = sum_j phi_j[f] v_j[x], x < V      state[f][V] = sum_j phi_j[f]
 *     out_i = sum_f phi_i[f] state[f][0 ... V-1] / (sum_f phi_i[f] state[f][V] + epsilon)   or scale * sum_f ...
 *
 * A problem is one of hla/hadamard.h; of its members, batch B, heads H, kv_heads Hkv, value_dim V, factors P, rank R_p,
 * dtype, normalised, epsilon, scale and kernel matter. queries, keys, causal, stateful are ignored, for each call
 * brings as many tokens T as its tensors have (0 is fine); sequences has to be 0, form not HLA_FORM_QUADRATIC.
 *
 * Tensors are of problem.dtype, have any strides and belong to the caller; T is the token axis of v or out. Every call
 * checks its arguments first: after an error the state and the outputs are as before, and hla_context_error of the
 * state's context says why. A NULL state is HLA_ERROR_ARGUMENT. Results have the same bits for any number of threads.
 * One state, like its context, is for one thread at a time.
 *
 * With a context on a GPU the state lies in its memory, tensors too, and calls queue their work on the context's
 * stream; gammas stay in host memory. What creates, clones, saves or loads a state waits for the GPU, and so does a call with
 * more tokens than all before, which may allocate; a step of one token does neither and may be captured into a CUDA
 * graph. The context stays on that GPU as long as the state is used.
 */
#ifndef HLA_STATE_H
#define HLA_STATE_H

#include "hla/hadamard.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hla_state hla_state;

/* An empty state. It keeps a pointer to context, which must outlive it. On an error *state is NULL:
 * HLA_ERROR_ARGUMENT, HLA_ERROR_UNSUPPORTED or HLA_ERROR_MEMORY. */
HLA_API hla_status hla_state_create(hla_context *context, const hla_hadamard_problem *problem, hla_state **state);
HLA_API void hla_state_free(hla_state *state); /* NULL is fine */

/* ---- tokens ---- */

/* Adds T tokens: k_features P views [B,T,Hkv,R_p], v [B,T,Hkv,V]. Any split of the tokens into calls gives the same
 * state up to rounding. Allocates only if T is larger than in all calls before (HLA_ERROR_MEMORY), never for T = 1. */
HLA_API hla_status hla_state_append(hla_state *state, const hla_tensor *k_features, const hla_tensor *v);

/* out [B,T,H,V]: T queries, each of which sees all that was appended; q_features P views [B,T,H,R_p]. A row with a
 * denominator of exactly zero (an empty state) becomes zeros. out must not overlap itself or an input. */
HLA_API hla_status hla_state_query(hla_state *state, const hla_tensor *out, const hla_tensor *q_features);

/* Causal: appends T tokens, and query i sees those of before and tokens 0 ... i of these. T = 1 decodes one token, a
 * larger T takes in a prompt. Shapes as above. */
HLA_API hla_status hla_state_step(hla_state *state, const hla_tensor *out, const hla_tensor *q_features,
                                  const hla_tensor *k_features, const hla_tensor *v);

/* ---- the state as a whole ---- */

/* Empties the state. */
HLA_API hla_status hla_state_reset(hla_state *state);

/* Adds the tokens of `from`, a different state of equal batch, kv_heads, value_dim, factors and ranks (else
 * HLA_ERROR_ARGUMENT) and on the same device, which stays as it is. The sum of the states of disjoint sets of tokens is
 * that of their union. */
HLA_API hla_status hla_state_merge(hla_state *state, const hla_state *from);

/* Multiplies the state by gamma, 0 to 1: tokens so far count that much less. */
HLA_API hla_status hla_state_decay(hla_state *state, float gamma);

/* The same with a number for each key head, gamma [Hkv]. */
HLA_API hla_status hla_state_decay_heads(hla_state *state, const float *gamma);

/* *clone is a new state with the same problem, tokens and numbers, of a context that may be another thread's or of
 * another device; neither depends on the other afterwards. On an error (recorded in context) *clone is NULL. */
HLA_API hla_status hla_state_clone(hla_context *context, const hla_state *state, hla_state **clone);

/* How many tokens of each batch entry were appended (and merged in) since the state was empty; 0 for NULL. For
 * information: no result depends on it. */
HLA_API int64_t hla_state_tokens(const hla_state *state);

/* The state itself, float32 [B,Hkv,R,V+1], *count numbers (count may be NULL), valid until hla_state_free; on a GPU a
 * pointer to its memory. It may be written between calls (there in the order of the context's stream), e.g. by the
 * all-reduce that adds the states of several machines; NULL for NULL. */
HLA_API float *hla_state_data(hla_state *state, size_t *count);

/* Sets what hla_state_tokens returns, for who wrote the data: at least 0. */
HLA_API hla_status hla_state_set_tokens(hla_state *state, int64_t tokens);

/* Bytes the state occupies: its numbers and the workspace its calls needed so far. 0 for NULL. */
HLA_API size_t hla_state_memory(const hla_state *state);

/* ---- save and load ----
 *
 * A saved state is one block of bytes, for the caller to write to a file: a header of 128 bytes, then the numbers of
 * hla_state_data. In the byte order of the machine that wrote it:
 *
 *       0  "HLASTATE"                            88  int32 factors, dtype, normalised (0 or 1)
 *       8  uint32 version, 1                    100  float32 epsilon, scale
 *      12  uint32 0x01020304, the byte order    108  uint32 0
 *      16  uint64 bytes in all                  112  int64 tokens
 *      24  int64 batch, heads, kv_heads, V      120  uint64 checksum
 *      56  int64 rank[4], 0 where unused
 *
 * The checksum goes over all bytes but its own, as 64-bit words w, the last filled up with zeros: from
 * h = 0xcbf29ce484222325, h = (h xor w) * 0x100000001b3 and h = h xor (h >> 32) for each. */

/* Bytes that hla_state_save writes; 0 for NULL. */
HLA_API size_t hla_state_saved_size(const hla_state *state);

/* buffer: size bytes, at least hla_state_saved_size (else HLA_ERROR_ARGUMENT), any alignment. */
HLA_API hla_status hla_state_save(const hla_state *state, void *buffer, size_t size);

/* Replaces numbers and tokens by those saved in data, of exactly size bytes. HLA_ERROR_ARGUMENT if data is no whole,
 * unharmed saved state of this version and byte order, or if its problem differs from the state's in any member;
 * HLA_ERROR_NOT_FINITE if the context checks inputs and a number is NaN or infinite. */
HLA_API hla_status hla_state_load(hla_state *state, const void *data, size_t size);

/* The problem of a saved state, checked as by hla_state_load, so that a state to load it into can be created. On an
 * error *problem is unchanged. */
HLA_API hla_status hla_state_saved_problem(hla_context *context, const void *data, size_t size,
                                           hla_hadamard_problem *problem);

#ifdef __cplusplus
}
#endif
#endif
