/* Lists, memory that is freed all at once, and hash indexes. */
#ifndef CFSTOOLS_MEMORY_H
#define CFSTOOLS_MEMORY_H

#include <stddef.h>
#include <stdint.h>

#define LIST(TYPE)                                                                                                     \
    struct {                                                                                                           \
        TYPE *at;                                                                                                      \
        size_t count, room;                                                                                            \
    }

/* Makes room for `more` items; 0, or -1 when memory is short. */
#define RESERVE(list, more) list_reserve((void **)&(list).at, &(list).room, (list).count + (more), sizeof *(list).at)
#define PUSH(list, ...) (RESERVE(list, 1) ? -1 : ((list).at[(list).count++] = (__VA_ARGS__), 0))

int list_reserve(void **at, size_t *room, size_t count, size_t size);

/* Asks the kernel for few large pages instead of many: page faults take half the time of a large tree. */
void memory_is_large(void *at, size_t size);

struct pool {
    struct pool *next;
    size_t used, room;
    uint8_t data[];
};

uint8_t *pool_take(struct pool **pool, size_t size);
void pool_free(struct pool **pool);

/* From hashes to numbers of things that the caller keeps and compares. */
struct index_slot {
    uint64_t hash;
    uint32_t number; /* plus one; 0: free */
};

struct index {
    struct index_slot *slots;
    size_t mask, used;
};

int index_grow(struct index *index);
uint64_t hash_bytes(uint64_t hash, const uint8_t *data, size_t size);
uint64_t hash_pointer(const void *pointer);

/* An attacker may choose what is hashed so that it all collides. After so many probes the caller declines: Python's
 * hashes are not predictable. */
#define PROBES_MAX 512

/* The slot of the one of `things` that is `same` as what is wanted, or a free slot for it, which the caller fills with
 * `index_fill`. NULL after too many probes. Call `index_grow` first. */
typedef int is_same(const void *things, uint32_t number, const void *wanted);
static inline struct index_slot *index_find(const struct index *index, uint64_t hash, is_same *same, const void *things,
                                            const void *wanted) {
    size_t at = hash & index->mask;
    for (int probes = 0; index->slots[at].number; at = (at + 1) & index->mask) {
        if (++probes > PROBES_MAX)
            return NULL;
        if (index->slots[at].hash == hash && same(things, index->slots[at].number - 1, wanted))
            break;
    }
    return &index->slots[at];
}

static inline void index_fill(struct index *index, struct index_slot *slot, uint64_t hash, size_t number) {
    *slot = (struct index_slot){hash, (uint32_t)number + 1};
    index->used++;
}

#endif
