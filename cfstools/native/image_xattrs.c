/* The extended attributes of an image: keys, pairs, and the sets of pairs that inodes have (section 4). */
#include <stdlib.h>

#include "image.h"

#define FILTER_SEED 0x25bbe08fU

static uint32_t read32(const uint8_t *at) {
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint32_t rotate(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

static uint32_t xxh32(const uint8_t *data, size_t size, uint32_t seed) {
    const uint32_t p1 = 2654435761U, p2 = 2246822519U, p3 = 3266489917U, p4 = 668265263U, p5 = 374761393U;
    uint32_t hash = seed + p5;
    const uint8_t *at = data, *end = data + size;
    if (size >= 16) {
        uint32_t lanes[4] = {seed + p1 + p2, seed + p2, seed, seed - p1};
        for (; end - at >= 16; at += 16)
            for (int i = 0; i < 4; i++)
                lanes[i] = rotate(lanes[i] + read32(at + 4 * i) * p2, 13) * p1;
        hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    }
    hash += (uint32_t)size;
    for (; end - at >= 4; at += 4)
        hash = rotate(hash + read32(at) * p3, 17) * p4;
    for (; at < end; at++)
        hash = rotate(hash + *at * p5, 11) * p1;
    hash = (hash ^ hash >> 15) * p2;
    hash = (hash ^ hash >> 13) * p3;
    return hash ^ hash >> 16;
}

/* The prefixes in the order in which they are tried (section 4.1). */
static const struct {
    struct text text;
    uint32_t index;
} prefixes[] = {
    {{(const uint8_t *)"user.", 5}, 1},
    {{(const uint8_t *)"system.posix_acl_access", 23}, 2},
    {{(const uint8_t *)"system.posix_acl_default", 24}, 3},
    {{(const uint8_t *)"trusted.", 8}, 4},
    {{(const uint8_t *)"security.", 9}, 6},
};

static int add_key(struct writer *w, struct text text) {
    struct key key = {text, 0, 0, 0};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (text.size >= prefixes[i].text.size && memcmp(text.data, prefixes[i].text.data, prefixes[i].text.size) == 0) {
            key.prefix = prefixes[i].index;
            key.prefix_size = prefixes[i].text.size;
            break;
        }
    key.filter_bit = 1U << (xxh32(text.data + key.prefix_size, text.size - key.prefix_size, FILTER_SEED + key.prefix) & 31);
    return PUSH(w->keys, key);
}

enum outcome image_find_key(struct writer *w, struct text text, uint32_t *out) {
    const uint64_t hash = hash_bytes(0, text.data, text.size);
    if (index_grow(&w->key_index))
        return no_memory();
    struct index *index = &w->key_index;
    size_t at = hash & index->mask;
    for (int probes = 0; index->slots[at].number; at = (at + 1) & index->mask) {
        if (++probes > PROBES_MAX)
            return LEFT;
        *out = index->slots[at].number - 1;
        if (index->slots[at].hash == hash && equal(w->keys.at[*out].text, text))
            return DONE;
    }
    *out = (uint32_t)w->keys.count;
    if (add_key(w, text))
        return no_memory();
    index->slots[at].hash = hash;
    index->slots[at].number = *out + 1;
    index->used++;
    return DONE;
}

/* Number of a pair, counting that it is used once more if `uses`. */
enum outcome image_find_pair(struct writer *w, uint32_t key, struct text value, uint32_t uses, uint32_t *out) {
    const uint64_t hash = hash_bytes(key + 1, value.data, value.size);
    if (index_grow(&w->pair_index))
        return no_memory();
    struct index *index = &w->pair_index;
    size_t at = hash & index->mask;
    for (int probes = 0; index->slots[at].number; at = (at + 1) & index->mask) {
        if (++probes > PROBES_MAX)
            return LEFT;
        struct pair *pair = &w->pairs.at[index->slots[at].number - 1];
        if (index->slots[at].hash == hash && pair->key == key && equal(pair->value, value)) {
            pair->count += uses;
            *out = index->slots[at].number - 1;
            return DONE;
        }
    }
    *out = (uint32_t)w->pairs.count;
    if (PUSH(w->pairs, (struct pair){key, value, uses, -1}))
        return no_memory();
    index->slots[at].hash = hash;
    index->slots[at].number = *out + 1;
    index->used++;
    return DONE;
}

/* Parses what `rewrite` made of a mapping: a sorted list of (key, value), which is kept. */
static enum outcome take_pairs(struct writer *w, PyObject *pairs) {
    const Py_ssize_t count = PyList_Check(pairs) ? PyList_Size(pairs) : -1;
    if (count < 0 || PyList_Append(w->kept, pairs))
        return leave();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pair = PyList_GetItem(pairs, i);
        if (!PyTuple_Check(pair) || PyTuple_Size(pair) != 2)
            return leave();
        PyObject *key = PyTuple_GetItem(pair, 0), *value = PyTuple_GetItem(pair, 1);
        if (!PyBytes_Check(key) || !PyBytes_Check(value))
            return leave();
        uint32_t key_number, number;
        TRY(image_find_key(w, (struct text){(const uint8_t *)PyBytes_AsString(key), (size_t)PyBytes_Size(key)}, &key_number));
        TRY(image_find_pair(w, key_number,
                      (struct text){(const uint8_t *)PyBytes_AsString(value), (size_t)PyBytes_Size(value)}, 0, &number));
        if (PUSH(w->pairings, number))
            return no_memory();
    }
    return DONE;
}

/* The pairs of a mapping; inodes that share a mapping share the work. */
enum outcome image_find_set(struct writer *w, PyObject *mapping, struct set *out) {
    const uint64_t hash = hash_pointer(mapping);
    if (index_grow(&w->set_index))
        return no_memory();
    struct index *index = &w->set_index;
    size_t at = hash & index->mask;
    for (; index->slots[at].number; at = (at + 1) & index->mask)
        if (w->sets.at[index->slots[at].number - 1].mapping == mapping) {
            *out = w->sets.at[index->slots[at].number - 1];
            return DONE;
        }
    struct set set = {mapping, w->pairings.count, 0};
    const Py_ssize_t size = PyObject_Size(mapping);
    if (size < 0)
        return leave();
    if (size > 0) {
        PyObject *pairs = PyObject_CallFunctionObjArgs(w->rewrite, mapping, NULL);
        if (pairs == NULL)
            return leave();
        const enum outcome taken = take_pairs(w, pairs);
        Py_DECREF(pairs);
        TRY(taken);
    }
    set.count = w->pairings.count - set.first;
    if (PUSH(w->sets, set))
        return no_memory();
    index->slots[at].hash = hash;
    index->slots[at].number = (uint32_t)w->sets.count;
    index->used++;
    *out = set;
    return DONE;
}

static int before(const struct writer *w, uint32_t a, uint32_t b) {
    const struct pair *x = &w->pairs.at[a], *y = &w->pairs.at[b];
    const int order = compare(w->keys.at[x->key].text, w->keys.at[y->key].text);
    return order ? order < 0 : compare(x->value, y->value) < 0;
}

/* Gives a node the pairs of a set and some more, sorted. */
enum outcome image_give_pairs(struct writer *w, struct node *node, const struct set *set, const uint32_t *more,
                               size_t count) {
    node->pairing = set->first;
    node->pairs = (uint32_t)(set->count + count);
    for (size_t i = 0; i < set->count; i++)
        w->pairs.at[w->pairings.at[set->first + i]].count++;
    if (count == 0)
        return DONE;
    node->pairing = w->pairings.count;
    for (size_t i = 0; i < set->count + count; i++) {
        const uint32_t pair = i < set->count ? w->pairings.at[set->first + i] : more[i - set->count];
        if (PUSH(w->pairings, pair))
            return no_memory();
        uint32_t *at = &w->pairings.at[w->pairings.count - 1];
        for (size_t left = i; left > 0 && before(w, at[0], at[-1]); left--, at--) {
            const uint32_t swapped = at[0];
            at[0] = at[-1];
            at[-1] = swapped;
        }
    }
    return DONE;
}
