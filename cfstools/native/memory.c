#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE ((uintptr_t)2 << 20)

void memory_is_large(void *at, size_t size) {
    const uintptr_t start = ((uintptr_t)at + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
    const uintptr_t end = ((uintptr_t)at + size) & ~(HUGE_PAGE - 1);
    if (start < end)
        madvise((void *)start, end - start, MADV_HUGEPAGE);
}

int list_reserve(void **at, size_t *room, size_t count, size_t size) {
    if (count <= *room)
        return 0;
    const size_t twice = *room ? 2 * *room : 64, more = count > twice ? count : twice;
    void *larger = more <= SIZE_MAX / 2 / size ? realloc(*at, more * size) : NULL;
    if (larger == NULL)
        return -1;
    memory_is_large(larger, more * size);
    *at = larger;
    *room = more;
    return 0;
}

uint8_t *pool_take(struct pool **pool, size_t size) {
    if (*pool == NULL || (*pool)->room - (*pool)->used < size) {
        const size_t twice = *pool == NULL ? 65536 : (*pool)->room < 1 << 22 ? 2 * (*pool)->room : (*pool)->room;
        const size_t room = size > twice ? size : twice;
        struct pool *fresh = malloc(sizeof *fresh + room);
        if (fresh == NULL)
            return NULL;
        memory_is_large(fresh, sizeof *fresh + room);
        *fresh = (struct pool){*pool, 0, room};
        *pool = fresh;
    }
    uint8_t *at = (*pool)->data + (*pool)->used;
    (*pool)->used += size;
    return at;
}

void pool_free(struct pool **pool) {
    while (*pool != NULL) {
        struct pool *next = (*pool)->next;
        free(*pool);
        *pool = next;
    }
}

int index_grow(struct index *index) {
    if (index->slots != NULL && 2 * index->used <= index->mask)
        return 0;
    struct index larger = {NULL, index->slots == NULL ? 1023 : 2 * index->mask + 1, index->used};
    larger.slots = calloc(larger.mask + 1, sizeof *larger.slots);
    if (larger.slots == NULL)
        return -1;
    memory_is_large(larger.slots, (larger.mask + 1) * sizeof *larger.slots);
    for (size_t i = 0; index->slots != NULL && i <= index->mask; i++)
        if (index->slots[i].number) {
            size_t at = index->slots[i].hash & larger.mask;
            while (larger.slots[at].number)
                at = (at + 1) & larger.mask;
            larger.slots[at] = index->slots[i];
        }
    free(index->slots);
    *index = larger;
    return 0;
}

uint64_t hash_bytes(uint64_t hash, const uint8_t *data, size_t size) {
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 29;
    }
    for (; size; data++, size--)
        hash = (hash ^ *data) * 0x9e3779b97f4a7c15ULL;
    return hash ^ hash >> 32;
}

uint64_t hash_pointer(const void *pointer) {
    const uint64_t value = (uint64_t)(uintptr_t)pointer * 0x9e3779b97f4a7c15ULL;
    return value ^ value >> 32;
}
