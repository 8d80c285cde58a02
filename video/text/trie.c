/* A trie over bytes, its edges in one hash table: quick to build from a quarter of a million pieces. */
#include "video/text/unigram.h"

#include <string.h>

#define NODE_LIMIT ((size_t)1 << 24) /* nodes are numbered in 24 bits */

static size_t slot_of(const hlv_trie *trie, uint64_t key) {
    uint64_t mixed = key * 0x9E3779B97F4A7C15u;
    return (size_t)(mixed ^ mixed >> 32) & (trie->slot_count - 1);
}

static uint64_t edge_key(uint32_t node, uint8_t byte) {
    return ((uint64_t)node << 8 | byte) + 1; /* never 0 */
}

uint32_t hlv_trie_step(const hlv_trie *trie, uint32_t node, uint8_t byte) {
    uint64_t key = edge_key(node, byte);
    for (size_t i = slot_of(trie, key); trie->slots[i]; i = (i + 1) & (trie->slot_count - 1))
        if (trie->slots[i] >> 24 == key) return (uint32_t)(trie->slots[i] & 0xFFFFFF);
    return 0;
}

static void put(hlv_trie *trie, uint64_t slot) {
    size_t i = slot_of(trie, slot >> 24);
    while (trie->slots[i])
        i = (i + 1) & (trie->slot_count - 1);
    trie->slots[i] = slot;
}

/* Room for `nodes` nodes, a power of two; at most half of the slots are then in use. */
static hlv_status reserve(hlv_context *ctx, hlv_trie *trie, size_t nodes) {
    hlv_trie larger = {.slot_count = 2 * nodes, .node_count = trie->node_count, .node_capacity = nodes};
    larger.slots = hlv_alloc(ctx, larger.slot_count * sizeof *larger.slots);
    larger.values = hlv_alloc(ctx, larger.node_capacity * sizeof *larger.values);
    if (!larger.slots || !larger.values) {
        hlv_trie_free(ctx, &larger);
        return HLV_ERROR_MEMORY;
    }
    memset(larger.slots, 0, larger.slot_count * sizeof *larger.slots);
    for (size_t i = 0; i < trie->slot_count; i++)
        if (trie->slots[i]) put(&larger, trie->slots[i]);
    if (trie->values) memcpy(larger.values, trie->values, trie->node_count * sizeof *larger.values);
    hlv_trie_free(ctx, trie);
    *trie = larger;
    return HLV_OK;
}

hlv_status hlv_trie_create(hlv_context *ctx, hlv_trie *trie, size_t keys) {
    *trie = (hlv_trie){0};
    size_t nodes = 128;
    while (nodes / 4 < keys && nodes < NODE_LIMIT)
        nodes *= 2;
    hlv_status status = reserve(ctx, trie, nodes);
    if (status != HLV_OK) return status;
    trie->node_count = 1;
    trie->values[0] = -1;
    return HLV_OK;
}

void hlv_trie_free(hlv_context *ctx, hlv_trie *trie) {
    hlv_free(ctx, trie->slots);
    hlv_free(ctx, trie->values);
    *trie = (hlv_trie){0};
}

hlv_status hlv_trie_insert(hlv_context *ctx, hlv_trie *trie, const char *key, size_t length, int32_t value,
                           int32_t *before) {
    uint32_t node = 0;
    for (size_t i = 0; i < length; i++) {
        uint32_t next = hlv_trie_step(trie, node, (uint8_t)key[i]);
        if (next == 0) {
            if (trie->node_count == NODE_LIMIT)
                return hlv_fail(ctx, HLV_ERROR_UNSUPPORTED,
                                "a vocabulary whose trie has more than %zu nodes is too large", NODE_LIMIT);
            if (trie->node_count == trie->node_capacity) {
                hlv_status status = reserve(ctx, trie, 2 * trie->node_capacity);
                if (status != HLV_OK) return status;
            }
            next = (uint32_t)trie->node_count++;
            trie->values[next] = -1;
            put(trie, edge_key(node, (uint8_t)key[i]) << 24 | next);
        }
        node = next;
    }
    *before = trie->values[node];
    trie->values[node] = value;
    return HLV_OK;
}

int32_t hlv_trie_find(const hlv_trie *trie, const char *key, size_t length) {
    uint32_t node = 0;
    for (size_t i = 0; i < length; i++) {
        node = hlv_trie_step(trie, node, (uint8_t)key[i]);
        if (node == 0) return -1;
    }
    return trie->values[node];
}
