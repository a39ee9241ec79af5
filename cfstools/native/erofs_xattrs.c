/* The extended attributes of an image: keys, pairs, and the sets of pairs that inodes have (section 4). */
#include "erofs_encode.h"

static uint32_t rotate(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

static uint32_t xxh32(const uint8_t *data, size_t size, uint32_t seed) {
    const uint32_t p1 = 2654435761U, p2 = 2246822519U, p3 = 3266489917U, p4 = 668265263U, p5 = 374761393U;
    uint32_t hash = seed + p5;
    const uint8_t *at = data, *end = data + size;
    if (size >= 16) {
        uint32_t lanes[4] = {seed + p1 + p2, seed + p2, seed, seed - p1};
        for (; end - at >= 16; at += 16)
            for (int i = 0; i < 4; i++)
                lanes[i] = rotate(lanes[i] + (uint32_t)load(at, 4 * i, 4) * p2, 13) * p1;
        hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    }
    hash += (uint32_t)size;
    for (; end - at >= 4; at += 4)
        hash = rotate(hash + (uint32_t)load(at, 0, 4) * p3, 17) * p4;
    for (; at < end; at++)
        hash = rotate(hash + *at * p5, 11) * p1;
    hash = (hash ^ hash >> 15) * p2;
    hash = (hash ^ hash >> 13) * p3;
    return hash ^ hash >> 16;
}

static int add_key(struct writer *w, struct text text) {
    static const struct text prefixes[] = FMT_XATTR_PREFIX;
    struct key key = {text, FMT_XATTR_INDEX_NONE, 0, 0};
    /* Writers test the prefixes in this order, but never write that of lustre (section 4.1). */
    for (uint32_t i = FMT_XATTR_INDEX_NONE + 1; i < sizeof prefixes / sizeof *prefixes; i++)
        if (i != FMT_XATTR_INDEX_LUSTRE && text_starts(text, prefixes[i])) {
            key.prefix = i;
            key.prefix_size = prefixes[i].size;
            break;
        }
    const uint32_t seed = FMT_XATTR_FILTER_SEED + key.prefix;
    key.filter_bit = 1U << (xxh32(text.data + key.prefix_size, text.size - key.prefix_size, seed) & 31);
    return PUSH(w->keys, key);
}

static int same_key(const void *writer, uint32_t number, const void *wanted) {
    return text_equal(((const struct writer *)writer)->keys.at[number].text, *(const struct text *)wanted);
}

enum outcome encode_key(struct writer *w, struct text text, uint32_t *out) {
    const uint64_t hash = hash_bytes(0, text.data, text.size);
    if (index_grow(&w->key_index))
        return no_memory();
    struct index_slot *slot = index_find(&w->key_index, hash, same_key, w, &text);
    if (slot == NULL)
        return LEFT;
    if (slot->number == 0) {
        if (add_key(w, text))
            return no_memory();
        index_fill(&w->key_index, slot, hash, w->keys.count - 1);
    }
    *out = slot->number - 1;
    return DONE;
}

static int same_pair(const void *writer, uint32_t number, const void *wanted) {
    const struct pair *one = &((const struct writer *)writer)->pairs.at[number], *other = wanted;
    return one->key == other->key && text_equal(one->value, other->value);
}

enum outcome encode_pair(struct writer *w, uint32_t key, struct text value, uint32_t uses, uint32_t *out) {
    const uint64_t hash = hash_bytes(key + 1, value.data, value.size);
    const struct pair pair = {key, value, 0, -1};
    if (index_grow(&w->pair_index))
        return no_memory();
    struct index_slot *slot = index_find(&w->pair_index, hash, same_pair, w, &pair);
    if (slot == NULL)
        return LEFT;
    if (slot->number == 0) {
        if (PUSH(w->pairs, pair))
            return no_memory();
        index_fill(&w->pair_index, slot, hash, w->pairs.count - 1);
    }
    *out = slot->number - 1;
    w->pairs.at[*out].count += uses;
    return DONE;
}

/* Takes the pairs of a mapping that `rewrite` returned: a sorted list of (key, value), which is kept. */
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
        TRY(encode_key(w, text_of(key), &key_number));
        TRY(encode_pair(w, key_number, text_of(value), 0, &number));
        if (PUSH(w->pairings, number))
            return no_memory();
    }
    return DONE;
}

static int same_set(const void *writer, uint32_t number, const void *wanted) {
    return ((const struct writer *)writer)->sets.at[number].mapping == wanted;
}

enum outcome encode_set(struct writer *w, PyObject *mapping, struct set *out) {
    const uint64_t hash = hash_pointer(mapping);
    if (index_grow(&w->set_index))
        return no_memory();
    struct index_slot *slot = index_find(&w->set_index, hash, same_set, w, mapping);
    if (slot == NULL)
        return LEFT;
    if (slot->number != 0) {
        *out = w->sets.at[slot->number - 1];
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
    index_fill(&w->set_index, slot, hash, w->sets.count - 1);
    *out = set;
    return DONE;
}

static int before(const struct writer *w, uint32_t a, uint32_t b) {
    const struct pair *x = &w->pairs.at[a], *y = &w->pairs.at[b];
    const int order = text_compare(w->keys.at[x->key].text, w->keys.at[y->key].text);
    return order ? order < 0 : text_compare(x->value, y->value) < 0;
}

enum outcome encode_pairs(struct writer *w, struct node *node, const struct set *set, const uint32_t *more,
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
