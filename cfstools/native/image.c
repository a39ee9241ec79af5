/* From a tree to the bytes of its image, as cfstools/formats/composefs.py and cfstools/formats/erofs/writer.py do it.
 *
 * Those say what is right and why; section numbers here are those of the composefs format, too. A tree with anything
 * that is rare (whiteouts) or wrong gives no image here, and the caller does it in Python, which names the place.
 * All numbers of layout.py that decide bytes stand in the next lines. */
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "native.h"

#define BLOCK 4096
#define BLOCK_BITS 12
#define SLOT 32
#define SUPERBLOCK_OFFSET 1024
#define FIRST_INODE 1152
#define COMPOSEFS_MAGIC 0xd078629aU
#define EROFS_MAGIC 0xe0f5e1e2U
#define FEATURES 6U
#define TAIL_MAX 2048
#define NAME_LENGTH_MAX 255
#define INLINE_LENGTH_MAX 5000
#define TARGET_LENGTH_MAX 4095
#define PAYLOAD_LENGTH_MAX 4095
#define CHUNK_BITS_MAX 43
#define CHUNKS_MAX 1024
#define SHARED_MAX 128
#define AREA_MAX (12 + 4 * (0xffff - 1))
#define FILTER_SEED 0x25bbe08fU
#define DIRENT_SIZE 12
#define HIDING 256

enum { TYPE_FIFO = 0x1, TYPE_CHR = 0x2, TYPE_DIR = 0x4, TYPE_BLK = 0x6, TYPE_REG = 0x8, TYPE_LNK = 0xa, TYPE_SOCK = 0xc };

static const uint8_t file_types[16] = {
    [TYPE_REG] = 1, [TYPE_DIR] = 2, [TYPE_CHR] = 3, [TYPE_BLK] = 4, [TYPE_FIFO] = 5, [TYPE_SOCK] = 6, [TYPE_LNK] = 7,
};

struct text {
    const uint8_t *data;
    size_t size;
};

/* --- growing arrays and memory that is freed at once --- */

#define LIST(TYPE)                                                                                                     \
    struct {                                                                                                           \
        TYPE *at;                                                                                                      \
        size_t count, room;                                                                                            \
    }

static int grow(void **at, size_t *room, size_t count, size_t size) {
    if (count < *room)
        return 0;
    const size_t more = *room ? 2 * *room : 64;
    void *larger = realloc(*at, more * size);
    if (larger == NULL)
        return -1;
    *at = larger;
    *room = more;
    return 0;
}

#define PUSH(list, ...)                                                                                                \
    (grow((void **)&(list).at, &(list).room, (list).count, sizeof *(list).at)                                          \
         ? -1                                                                                                          \
         : ((list).at[(list).count++] = (__VA_ARGS__), 0))

struct pool {
    struct pool *next;
    size_t used, room;
    uint8_t data[];
};

static uint8_t *take(struct pool **pool, size_t size) {
    if (*pool == NULL || (*pool)->room - (*pool)->used < size) {
        const size_t room = size > 65536 ? size : 65536;
        struct pool *fresh = malloc(sizeof *fresh + room);
        if (fresh == NULL)
            return NULL;
        *fresh = (struct pool){*pool, 0, room};
        *pool = fresh;
    }
    uint8_t *at = (*pool)->data + (*pool)->used;
    (*pool)->used += size;
    return at;
}

/* --- indexes: from a hash to a number, where the caller compares --- */

struct index {
    struct {
        uint64_t hash;
        uint32_t number; /* plus one; 0: free */
    } *slots;
    size_t mask, used;
};

static int index_grow(struct index *index) {
    if (index->slots != NULL && 2 * index->used <= index->mask)
        return 0;
    struct index larger = {NULL, index->slots == NULL ? 1023 : 2 * index->mask + 1, index->used};
    larger.slots = calloc(larger.mask + 1, sizeof *larger.slots);
    if (larger.slots == NULL)
        return -1;
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

static uint64_t hash_bytes(uint64_t hash, const uint8_t *data, size_t size) {
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

static uint64_t hash_pointer(const void *pointer) {
    const uint64_t value = (uint64_t)(uintptr_t)pointer * 0x9e3779b97f4a7c15ULL;
    return value ^ value >> 32;
}

/* --- the state of one call --- */

struct key {
    struct text text;
    uint32_t prefix;
    size_t prefix_size;
    uint32_t filter_bit;
};

struct pair {
    uint32_t key;
    struct text value;
    uint32_t count;
    int64_t shared; /* offset in the shared table, -1: not there */
};

struct set { /* the pairs of one xattr mapping, sorted */
    const void *mapping;
    size_t first, count; /* in `pairings` */
};

struct node {
    PyObject *inode; /* borrowed from the tree; NULL for the names that hide a store's directories */
    uint64_t size, offset;
    int64_t mtime;
    uint32_t mtime_nsec, nlink, uid, gid, rdev;
    uint32_t blocks, tail, first_block, xattr_size;
    struct text data;
    size_t first; /* in `names` or, for xattrs, in `pairings` */
    uint32_t children;
    size_t pairing;
    uint32_t pairs;
    uint32_t parent;
    uint16_t mode;
    uint8_t chunked, compact, is_directory;
};

struct name {
    struct text text;
    uint32_t node;
};

struct link {
    size_t name;
    PyObject *inode;
};

struct writer {
    struct model model;
    PyObject *rewrite; /* borrowed */
    struct text metacopy_header;
    size_t digest_size;
    uint32_t version;
    LIST(struct node) nodes;
    LIST(struct name) names;
    LIST(struct link) links;
    LIST(struct key) keys;
    LIST(struct pair) pairs;
    LIST(uint32_t) pairings;
    LIST(struct set) sets;
    PyObject *kept; /* lists that `rewrite` returned */
    struct index pair_index, set_index;
    struct pool *pool;
    int64_t build_sec;
    uint32_t build_nsec;
    uint64_t meta_end, shared_size, end;
};

/* --- what every step returns --- */

enum outcome { DONE, LEFT, FAILED }; /* LEFT: the caller does it in Python; FAILED: an exception is set */

/* For memory that cannot be had, and for objects that are not what they should be. */
static enum outcome no_memory(void) {
    PyErr_NoMemory();
    return FAILED;
}

static enum outcome leave(void) {
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return FAILED;
        PyErr_Clear();
    }
    return LEFT;
}

#define TRY(expression)                                                                                                \
    do {                                                                                                               \
        const enum outcome tried = (expression);                                                                       \
        if (tried != DONE)                                                                                             \
            return tried;                                                                                              \
    } while (0)

static PyObject *get(const struct writer *w, PyObject *object, enum attribute attribute) {
    return model_get(&w->model, object, attribute);
}

static enum outcome get_unsigned(const struct writer *w, PyObject *object, enum attribute attribute, uint64_t largest,
                                 uint64_t *out) {
    PyObject *value = get(w, object, attribute);
    if (value == NULL || !PyLong_Check(value)) {
        Py_XDECREF(value);
        return leave();
    }
    *out = PyLong_AsUnsignedLongLong(value);
    Py_DECREF(value);
    return PyErr_Occurred() || *out > largest ? leave() : DONE;
}

/* The reference is borrowed from the tree, which holds the object as well. */
static enum outcome get_bytes(const struct writer *w, PyObject *object, enum attribute attribute, struct text *out,
                              int *is_none) {
    PyObject *value = get(w, object, attribute);
    if (value == NULL || (!PyBytes_Check(value) && !(is_none != NULL && value == Py_None))) {
        Py_XDECREF(value);
        return leave();
    }
    if (is_none != NULL)
        *is_none = value == Py_None;
    *out = (struct text){NULL, 0};
    if (value != Py_None)
        *out = (struct text){(const uint8_t *)PyBytes_AsString(value), (size_t)PyBytes_Size(value)};
    Py_DECREF(value);
    return DONE;
}

static int compare(struct text a, struct text b) {
    const int order = memcmp(a.data, b.data, a.size < b.size ? a.size : b.size);
    return order ? order : a.size < b.size ? -1 : a.size > b.size;
}

static int equal(struct text a, struct text b) { return a.size == b.size && memcmp(a.data, b.data, a.size) == 0; }

#define TEXT(literal) ((struct text){(const uint8_t *)(literal), sizeof(literal) - 1})

/* --- xattrs --- */

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

/* Number of a key; there are few, and those of external files come first. */
static enum outcome find_key(struct writer *w, struct text text, uint32_t *out) {
    for (*out = 0; *out < w->keys.count; ++*out)
        if (equal(w->keys.at[*out].text, text))
            return DONE;
    return *out > 4096 ? LEFT : add_key(w, text) ? no_memory() : DONE;
}

enum { KEY_METACOPY, KEY_REDIRECT, KEY_OPAQUE, KEY_LABEL };

/* Number of a pair, counting that it is used once more if `uses`. */
static enum outcome find_pair(struct writer *w, uint32_t key, struct text value, uint32_t uses, uint32_t *out) {
    const uint64_t hash = hash_bytes(key + 1, value.data, value.size);
    if (index_grow(&w->pair_index))
        return no_memory();
    struct index *index = &w->pair_index;
    size_t at = hash & index->mask;
    for (; index->slots[at].number; at = (at + 1) & index->mask) {
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
        TRY(find_key(w, (struct text){(const uint8_t *)PyBytes_AsString(key), (size_t)PyBytes_Size(key)}, &key_number));
        TRY(find_pair(w, key_number,
                      (struct text){(const uint8_t *)PyBytes_AsString(value), (size_t)PyBytes_Size(value)}, 0, &number));
        if (PUSH(w->pairings, number))
            return no_memory();
    }
    return DONE;
}

/* The pairs of a mapping; inodes that share a mapping share the work. */
static enum outcome find_set(struct writer *w, PyObject *mapping, struct set *out) {
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
static enum outcome give_pairs(struct writer *w, struct node *node, const struct set *set, const uint32_t *more,
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

/* --- inodes --- */

static unsigned type_of(const struct node *node) { return node->mode >> 12; }

static int chunk_geometry(uint64_t size, unsigned *bits, uint64_t *chunks) {
    unsigned length = 0;
    while (length < 64 && (size - 1) >> length)
        length++;
    *bits = length < BLOCK_BITS ? BLOCK_BITS : length > CHUNK_BITS_MAX ? CHUNK_BITS_MAX : length;
    if (size > UINT64_MAX - ((uint64_t)1 << *bits))
        return -1;
    *chunks = (size + ((uint64_t)1 << *bits) - 1) >> *bits;
    return *chunks > CHUNKS_MAX ? -1 : 0;
}

static enum outcome fill_external(struct writer *w, struct node *node, PyObject *content, const struct set *set) {
    unsigned bits;
    uint64_t chunks;
    struct text digest, payload, value = {NULL, 0};
    uint32_t pairs[2];
    int no_digest, no_payload;
    if (node->size == 0)
        return give_pairs(w, node, set, NULL, 0);
    TRY(get_bytes(w, content, A_DIGEST, &digest, &no_digest));
    TRY(get_bytes(w, content, A_PAYLOAD, &payload, &no_payload));
    if (chunk_geometry(node->size, &bits, &chunks) || (!no_digest && digest.size != w->digest_size) ||
        payload.size > PAYLOAD_LENGTH_MAX)
        return LEFT;
    node->chunked = 1;
    if (!no_digest) {
        uint8_t *at = take(&w->pool, w->metacopy_header.size + digest.size);
        if (at == NULL)
            return no_memory();
        memcpy(at, w->metacopy_header.data, w->metacopy_header.size);
        memcpy(at + w->metacopy_header.size, digest.data, digest.size);
        value = (struct text){at, w->metacopy_header.size + digest.size};
    }
    TRY(find_pair(w, KEY_METACOPY, value.data != NULL ? value : TEXT(""), 1, &pairs[0]));
    if (payload.size == 0)
        return give_pairs(w, node, set, pairs, 1);
    uint8_t *at = take(&w->pool, payload.size + 1);
    if (at == NULL)
        return no_memory();
    at[0] = '/';
    memcpy(at + 1, payload.data, payload.size);
    TRY(find_pair(w, KEY_REDIRECT, (struct text){at, payload.size + 1}, 1, &pairs[1]));
    return give_pairs(w, node, set, pairs, 2);
}

static enum outcome fill_file(struct writer *w, struct node *node, PyObject *inode, const struct set *set) {
    TRY(get_unsigned(w, inode, A_SIZE, UINT64_MAX, &node->size));
    PyObject *content = get(w, inode, A_CONTENT);
    if (content == NULL)
        return leave();
    enum outcome outcome = LEFT;
    if (Py_TYPE(content) == (PyTypeObject *)w->model.kinds[K_EXTERNAL]) {
        outcome = fill_external(w, node, content, set);
    } else if (PyBytes_CheckExact(content)) {
        node->data = (struct text){(const uint8_t *)PyBytes_AsString(content), (size_t)PyBytes_Size(content)};
        if (node->data.size == node->size && node->size <= INLINE_LENGTH_MAX)
            outcome = give_pairs(w, node, set, NULL, 0);
    }
    Py_DECREF(content);
    return outcome;
}

static enum outcome fill_symlink(struct writer *w, struct node *node, PyObject *inode) {
    TRY(get_bytes(w, inode, A_TARGET, &node->data, NULL));
    node->size = node->data.size;
    const int bad = node->size == 0 || node->size > TARGET_LENGTH_MAX || memchr(node->data.data, 0, node->data.size);
    return bad ? LEFT : DONE;
}

static enum outcome fill_device(struct writer *w, struct node *node, PyObject *inode) {
    uint64_t rdev;
    TRY(get_unsigned(w, inode, A_DEVICE_SIZE, UINT64_MAX, &node->size));
    TRY(get_unsigned(w, inode, A_RDEV, UINT64_MAX, &rdev));
    node->rdev = (uint32_t)rdev;
    return rdev == 0 && type_of(node) == TYPE_CHR ? LEFT : DONE; /* a whiteout */
}

static enum outcome fill_common(struct writer *w, struct node *node, PyObject *inode) {
    uint64_t value;
    TRY(get_unsigned(w, inode, A_MODE, UINT64_MAX, &value));
    node->mode = (uint16_t)value;
    TRY(get_unsigned(w, inode, A_UID, UINT32_MAX, &value));
    node->uid = (uint32_t)value;
    TRY(get_unsigned(w, inode, A_GID, UINT32_MAX, &value));
    node->gid = (uint32_t)value;
    TRY(get_unsigned(w, inode, A_NLINK, UINT32_MAX, &value));
    node->nlink = (uint32_t)value;
    TRY(get_unsigned(w, inode, A_NSEC, UINT32_MAX, &value));
    node->mtime_nsec = (uint32_t)value;
    PyObject *seconds = get(w, inode, A_SEC);
    if (seconds == NULL || !PyLong_Check(seconds)) {
        Py_XDECREF(seconds);
        return leave();
    }
    node->mtime = PyLong_AsLongLong(seconds);
    Py_DECREF(seconds);
    return PyErr_Occurred() ? leave() : DONE;
}

/* What the class of an inode and the type in its mode both say; they have to agree. */
static enum outcome fill_kind(struct writer *w, struct node *node, PyObject *inode, const struct set *set) {
    PyObject *kind = (PyObject *)Py_TYPE(inode);
    const unsigned type = type_of(node);
    if (kind == w->model.kinds[K_FILE])
        return type == TYPE_REG ? fill_file(w, node, inode, set) : LEFT;
    if (kind == w->model.kinds[K_DIRECTORY]) {
        node->is_directory = 1;
        if (type != TYPE_DIR)
            return LEFT;
    } else if (kind == w->model.kinds[K_SYMLINK] && type == TYPE_LNK) {
        TRY(fill_symlink(w, node, inode));
    } else if (kind == w->model.kinds[K_DEVICE] && (type == TYPE_CHR || type == TYPE_BLK)) {
        TRY(fill_device(w, node, inode));
    } else if (kind == w->model.kinds[K_FIFO] && type == TYPE_FIFO) {
        TRY(get_unsigned(w, inode, A_FIFO_SIZE, UINT64_MAX, &node->size));
    } else if (kind == w->model.kinds[K_SOCKET] && type == TYPE_SOCK) {
        TRY(get_unsigned(w, inode, A_SOCKET_SIZE, UINT64_MAX, &node->size));
    } else {
        return LEFT;
    }
    return give_pairs(w, node, set, NULL, 0);
}

static enum outcome add_node(struct writer *w, PyObject *inode, uint32_t parent) {
    struct node node = {.inode = inode, .parent = parent};
    struct set set;
    PyObject *kind = (PyObject *)Py_TYPE(inode);
    int known = 0;
    for (int i = 0; i < K_LINK; i++)
        known |= kind == w->model.kinds[i];
    if (!known || w->nodes.count >= UINT32_MAX)
        return LEFT;
    TRY(fill_common(w, &node, inode));
    PyObject *mapping = get(w, inode, A_XATTRS);
    if (mapping == NULL)
        return leave();
    const enum outcome found = find_set(w, mapping, &set);
    Py_DECREF(mapping);
    TRY(found);
    TRY(fill_kind(w, &node, inode, &set));
    return PUSH(w->nodes, node) ? no_memory() : DONE;
}

/* --- names --- */

struct child {
    struct text name;
    PyObject *entry; /* NULL: '.', '..' or a hiding name */
    uint32_t node;
};

static int compare_children(const void *a, const void *b) {
    return compare(((const struct child *)a)->name, ((const struct child *)b)->name);
}

typedef LIST(struct child) children_list;

static enum outcome collect(struct writer *w, PyObject *entries, children_list *children) {
    (void)w;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(entries, &position, &key, &value)) {
        if (!PyBytes_Check(key))
            return LEFT;
        const struct text name = {(const uint8_t *)PyBytes_AsString(key), (size_t)PyBytes_Size(key)};
        if (name.size == 0 || name.size > NAME_LENGTH_MAX || memchr(name.data, '/', name.size) ||
            memchr(name.data, 0, name.size) || equal(name, TEXT(".")) || equal(name, TEXT("..")))
            return LEFT;
        if (PUSH(*children, (struct child){name, value, 0}))
            return no_memory();
    }
    return DONE;
}

/* The names that hide a store's directories (section 4.7): as many nodes as are not in the root itself. */
static enum outcome add_hiding(struct writer *w, PyObject *entries, children_list *children) {
    for (int i = 0; i < HIDING; i++) {
        static const char digits[] = "0123456789abcdef";
        uint8_t *text = take(&w->pool, 2);
        if (text == NULL)
            return no_memory();
        text[0] = (uint8_t)digits[i >> 4], text[1] = (uint8_t)digits[i & 15];
        PyObject *name = PyBytes_FromStringAndSize((const char *)text, 2);
        if (name == NULL)
            return FAILED;
        const int there = PyDict_Contains(entries, name);
        Py_DECREF(name);
        if (there < 0)
            return leave();
        if (!there && PUSH(*children, (struct child){{text, 2}, NULL, UINT32_MAX}))
            return no_memory();
    }
    return DONE;
}

static enum outcome add_hiding_node(struct writer *w) {
    struct node node = {.parent = 0, .mode = 0x2000 | 0644, .nlink = 1};
    const struct node *root = &w->nodes.at[0];
    struct set set = {NULL, 0, 0};
    node.uid = root->uid, node.gid = root->gid, node.mtime = root->mtime, node.mtime_nsec = root->mtime_nsec;
    for (size_t i = 0; i < root->pairs; i++)
        if (w->pairs.at[w->pairings.at[root->pairing + i]].key == KEY_LABEL)
            set = (struct set){NULL, root->pairing + i, 1};
    TRY(give_pairs(w, &node, &set, NULL, 0));
    return PUSH(w->nodes, node) ? no_memory() : DONE;
}

static enum outcome add_child(struct writer *w, const struct child *child, uint32_t directory, uint32_t *subdirectories) {
    struct name name = {child->name, child->node};
    if (child->entry == NULL) {
        if (child->node == UINT32_MAX) {
            name.node = (uint32_t)w->nodes.count;
            TRY(add_hiding_node(w));
        }
    } else if ((PyObject *)Py_TYPE(child->entry) == w->model.kinds[K_LINK]) {
        PyObject *inode = get(w, child->entry, A_LINKED);
        if (inode == NULL)
            return leave();
        Py_DECREF(inode); /* the link holds it */
        if (PUSH(w->links, (struct link){w->names.count, inode}))
            return no_memory();
    } else {
        name.node = (uint32_t)w->nodes.count;
        TRY(add_node(w, child->entry, directory));
        *subdirectories += w->nodes.at[name.node].is_directory;
    }
    return PUSH(w->names, name) ? no_memory() : DONE;
}

static enum outcome add_sorted(struct writer *w, children_list *children, uint32_t number) {
    uint32_t subdirectories = 0;
    for (size_t i = 1; i < children->count; i++)
        if (compare_children(&children->at[i - 1], &children->at[i]) >= 0) {
            qsort(children->at, children->count, sizeof *children->at, compare_children);
            break;
        }
    w->nodes.at[number].first = w->names.count;
    w->nodes.at[number].children = (uint32_t)children->count;
    for (size_t i = 0; i < children->count; i++)
        TRY(add_child(w, &children->at[i], number, &subdirectories));
    w->nodes.at[number].nlink = 2 + subdirectories;
    return DONE;
}

static enum outcome add_directory(struct writer *w, uint32_t number, children_list *children) {
    PyObject *entries = get(w, w->nodes.at[number].inode, A_ENTRIES);
    if (entries == NULL || !PyDict_Check(entries)) {
        Py_XDECREF(entries);
        return leave();
    }
    Py_DECREF(entries); /* the directory holds it */
    children->count = 0;
    if (PUSH(*children, (struct child){TEXT("."), NULL, number}) ||
        PUSH(*children, (struct child){TEXT(".."), NULL, w->nodes.at[number].parent}))
        return no_memory();
    if (number == 0)
        TRY(add_hiding(w, entries, children));
    TRY(collect(w, entries, children));
    return add_sorted(w, children, number);
}

/* Finds the node of each hard link's inode; of an inode met twice the last, as the Python planner does. */
static enum outcome resolve_links(struct writer *w) {
    if (w->links.count == 0)
        return DONE;
    struct index index = {NULL, 0, 0};
    for (size_t i = 0; i < w->nodes.count; i++) {
        PyObject *inode = w->nodes.at[i].inode;
        const uint64_t hash = hash_pointer(inode);
        if (inode == NULL)
            continue;
        if (index_grow(&index)) {
            free(index.slots);
            return no_memory();
        }
        size_t at = hash & index.mask;
        while (index.slots[at].number && w->nodes.at[index.slots[at].number - 1].inode != inode)
            at = (at + 1) & index.mask;
        index.used += index.slots[at].number == 0;
        index.slots[at].hash = hash;
        index.slots[at].number = (uint32_t)i + 1;
    }
    enum outcome outcome = DONE;
    for (size_t i = 0; i < w->links.count && outcome == DONE; i++) {
        size_t at = hash_pointer(w->links.at[i].inode) & index.mask;
        while (index.slots[at].number && w->nodes.at[index.slots[at].number - 1].inode != w->links.at[i].inode)
            at = (at + 1) & index.mask;
        if (index.slots[at].number == 0 || w->nodes.at[index.slots[at].number - 1].is_directory)
            outcome = LEFT;
        else
            w->names.at[w->links.at[i].name].node = index.slots[at].number - 1;
    }
    free(index.slots);
    return outcome;
}

/* All nodes in breadth-first order (section 2.2). */
static enum outcome plan(struct writer *w, PyObject *root) {
    if ((PyObject *)Py_TYPE(root) != w->model.kinds[K_DIRECTORY])
        return LEFT;
    TRY(add_node(w, root, 0));
    struct node *top = &w->nodes.at[0];
    uint32_t opaque;
    const struct set set = {NULL, top->pairing, top->pairs};
    TRY(find_pair(w, KEY_OPAQUE, TEXT("y"), 1, &opaque));
    for (size_t i = 0; i < set.count; i++)
        w->pairs.at[w->pairings.at[set.first + i]].count--; /* give_pairs counts them again */
    TRY(give_pairs(w, top, &set, &opaque, 1));
    children_list children = {NULL, 0, 0};
    enum outcome outcome = DONE;
    for (size_t i = 0; i < w->nodes.count && outcome == DONE; i++)
        if (w->nodes.at[i].is_directory)
            outcome = add_directory(w, (uint32_t)i, &children);
    free(children.at);
    return outcome == DONE ? resolve_links(w) : outcome;
}

/* --- sizes and places --- */

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

static size_t entry_size(const struct writer *w, const struct pair *pair) {
    const struct key *key = &w->keys.at[pair->key];
    return (4 + key->text.size - key->prefix_size + pair->value.size + 3) & ~(size_t)3;
}

static const struct writer *sorted_writer; /* qsort passes nothing on; the interpreter is locked */

static int compare_shared(const void *a, const void *b) {
    const struct writer *w = sorted_writer;
    const struct pair *x = &w->pairs.at[*(const uint32_t *)a], *y = &w->pairs.at[*(const uint32_t *)b];
    int order = compare(w->keys.at[y->key].text, w->keys.at[x->key].text);
    if (order == 0)
        order = (x->value.size < y->value.size) - (x->value.size > y->value.size);
    return order ? order : compare(y->value, x->value);
}

/* The shared table (section 4.3): numbers of its pairs in their order. */
static uint32_t *share(struct writer *w, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < w->pairs.count; i++)
        *count += w->pairs.at[i].count > 1;
    uint32_t *shared = malloc((*count + 1) * sizeof *shared);
    if (shared == NULL)
        return NULL;
    size_t at = 0;
    for (size_t i = 0; i < w->pairs.count; i++)
        if (w->pairs.at[i].count > 1)
            shared[at++] = (uint32_t)i;
    sorted_writer = w;
    qsort(shared, *count, sizeof *shared, compare_shared);
    for (size_t i = 0; i < *count; i++) {
        w->pairs.at[shared[i]].shared = (int64_t)w->shared_size;
        w->shared_size += entry_size(w, &w->pairs.at[shared[i]]);
    }
    return shared;
}

static enum outcome measure_xattrs(struct writer *w, struct node *node) {
    uint64_t size = 12;
    uint32_t references = 0;
    if (node->pairs == 0)
        return DONE;
    for (size_t i = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        if (pair->shared >= 0 && references < SHARED_MAX) {
            references++;
            size += 4;
        } else {
            size += entry_size(w, pair);
        }
    }
    if (size > AREA_MAX)
        return LEFT;
    node->xattr_size = (uint32_t)size;
    return DONE;
}

/* Where the group of names that starts at `first` ends (section 3.2), and its size in bytes. */
static size_t group_end(const struct writer *w, size_t first, size_t end, size_t *used) {
    *used = 0;
    size_t at = first;
    for (; at < end; at++) {
        const size_t cost = DIRENT_SIZE + w->names.at[at].text.size;
        if (*used + cost > BLOCK)
            break;
        *used += cost;
    }
    return at;
}

static void measure_directory(const struct writer *w, struct node *node) {
    const size_t end = node->first + node->children;
    size_t at = node->first, used;
    while ((at = group_end(w, at, end, &used)) < end)
        node->blocks++;
    if (used <= TAIL_MAX)
        node->tail = (uint32_t)used;
    else
        node->blocks++;
    node->size = (uint64_t)node->blocks * BLOCK + node->tail;
}

static enum outcome measure(struct writer *w, struct node *node) {
    TRY(measure_xattrs(w, node));
    if (node->is_directory) {
        measure_directory(w, node);
    } else if (node->chunked) {
        unsigned bits;
        uint64_t chunks;
        chunk_geometry(node->size, &bits, &chunks);
        node->tail = (uint32_t)(4 * chunks);
    } else if (type_of(node) == TYPE_LNK) {
        node->tail = (uint32_t)node->data.size;
    } else if (node->data.size) {
        const uint32_t remainder = (uint32_t)(node->data.size % BLOCK);
        node->blocks = (uint32_t)(node->data.size / BLOCK);
        if (remainder > TAIL_MAX)
            node->blocks++;
        else
            node->tail = remainder;
    }
    node->compact = node->nlink <= 0xffff && node->uid <= 0xffff && node->gid <= 0xffff && node->size <= UINT32_MAX &&
                    node->mtime == w->build_sec && node->mtime_nsec == w->build_nsec;
    return DONE;
}

/* Where a node with a tail starts, so that the tail stays inside one block (section 2.6). */
static uint64_t fit_tail(struct node *node, uint64_t start, uint64_t head) {
    if (type_of(node) == TYPE_LNK) {
        const uint64_t total = head + node->tail;
        const int crosses = start / BLOCK != (start + total - 1) / BLOCK;
        if (total >= BLOCK)
            node->blocks = 1, node->tail = 0;
        return crosses ? round_up(start, BLOCK) : start;
    }
    const uint64_t room = BLOCK - (start + head) % BLOCK;
    if (room >= node->tail)
        return start;
    const uint64_t shift = round_up(room, SLOT);
    if (node->tail <= BLOCK - (start + head + shift) % BLOCK)
        return start + shift;
    node->blocks++;
    node->tail = 0;
    return round_up(start, BLOCK);
}

static enum outcome place(struct writer *w) {
    w->build_sec = w->nodes.at[0].mtime, w->build_nsec = w->nodes.at[0].mtime_nsec;
    for (size_t i = 1; i < w->nodes.count; i++) {
        const struct node *node = &w->nodes.at[i];
        if (node->mtime < w->build_sec || (node->mtime == w->build_sec && node->mtime_nsec < w->build_nsec))
            w->build_sec = node->mtime, w->build_nsec = node->mtime_nsec;
    }
    uint64_t position = FIRST_INODE;
    for (size_t i = 0; i < w->nodes.count; i++) {
        struct node *node = &w->nodes.at[i];
        TRY(measure(w, node));
        const uint64_t head = (node->compact ? 32 : 64) + node->xattr_size;
        node->offset = round_up(position, SLOT);
        if (node->tail)
            node->offset = fit_tail(node, node->offset, head);
        position = node->offset + head + node->tail;
    }
    w->meta_end = round_up(position, SLOT);
    uint64_t block = round_up(w->meta_end + w->shared_size, BLOCK) >> BLOCK_BITS;
    for (size_t i = 0; i < w->nodes.count; i++)
        if (w->nodes.at[i].blocks) {
            w->nodes.at[i].first_block = (uint32_t)block;
            block += w->nodes.at[i].blocks;
        }
    w->end = block << BLOCK_BITS;
    return DONE;
}

/* --- bytes --- */

static uint8_t *put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static uint8_t *put_text(uint8_t *at, const uint8_t *data, size_t size) {
    if (size)
        memcpy(at, data, size);
    return at + size;
}

static uint8_t *put_entry(const struct writer *w, uint8_t *at, const struct pair *pair) {
    const struct key *key = &w->keys.at[pair->key];
    const size_t name = key->text.size - key->prefix_size;
    uint8_t *start = at;
    at = put(at, name, 1);
    at = put(at, key->prefix, 1);
    at = put(at, pair->value.size, 2);
    at = put_text(at, key->text.data + key->prefix_size, name);
    put_text(at, pair->value.data, pair->value.size);
    return start + entry_size(w, pair);
}

static uint8_t *put_area(const struct writer *w, uint8_t *at, const struct node *node) {
    uint32_t filter = UINT32_MAX, references = 0;
    uint8_t *start = at;
    at += 12;
    for (size_t i = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        filter &= ~w->keys.at[pair->key].filter_bit;
        if (pair->shared >= 0 && references < SHARED_MAX) {
            at = put(at, (w->meta_end % BLOCK + (uint64_t)pair->shared) / 4, 4);
            references++;
        }
    }
    put(start, filter, 4);
    put(start + 4, references, 1);
    for (size_t i = 0, met = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        if (pair->shared >= 0 && met < SHARED_MAX)
            met++;
        else
            at = put_entry(w, at, pair);
    }
    return at;
}

static uint8_t *put_group(const struct writer *w, uint8_t *at, size_t first, size_t end) {
    uint64_t offset = (end - first) * DIRENT_SIZE;
    for (size_t i = first; i < end; i++) {
        const struct node *child = &w->nodes.at[w->names.at[i].node];
        at = put(at, child->offset / SLOT, 8);
        at = put(at, offset, 2);
        at = put(at, file_types[type_of(child)], 2);
        offset += w->names.at[i].text.size;
    }
    for (size_t i = first; i < end; i++)
        at = put_text(at, w->names.at[i].text.data, w->names.at[i].text.size);
    return at;
}

static uint8_t *put_inode(uint8_t *at, const struct node *node, size_t number) {
    const unsigned type = type_of(node), layout = node->chunked ? 4 : node->tail ? 2 : 0;
    const uint64_t size = node->is_directory || node->chunked ? node->size : node->data.size;
    const uint32_t count = node->xattr_size ? (node->xattr_size - 12) / 4 + 1 : 0;
    uint32_t place = type == TYPE_CHR || type == TYPE_BLK ? node->rdev : node->first_block;
    if (node->chunked) {
        unsigned bits;
        uint64_t chunks;
        chunk_geometry(size, &bits, &chunks);
        place = (place & 0xffff0000U) | (bits - BLOCK_BITS);
    }
    at = put(at, layout * 2 + !node->compact, 2);
    at = put(at, count, 2);
    at = put(at, node->mode, 2);
    at = put(at, node->compact ? node->nlink : 0, 2);
    if (node->compact) {
        at = put(at, size, 4) + 4;
        at = put(at, place, 4);
        at = put(at, number, 4);
        at = put(at, node->uid, 2);
        return put(at, node->gid, 2) + 4;
    }
    at = put(at, size, 8);
    at = put(at, place, 4);
    at = put(at, number, 4);
    at = put(at, node->uid, 4);
    at = put(at, node->gid, 4);
    at = put(at, (uint64_t)node->mtime, 8);
    at = put(at, node->mtime_nsec, 4);
    return put(at, node->nlink, 4) + 16;
}

/* An inode with all that follows it, and its data blocks. */
static void put_node(const struct writer *w, uint8_t *image, const struct node *node, size_t number) {
    uint8_t *at = put_inode(image + node->offset, node, number);
    uint8_t *block = image + (uint64_t)node->first_block * BLOCK;
    if (node->xattr_size)
        at = put_area(w, at, node);
    if (node->is_directory) {
        const size_t end = node->first + node->children;
        size_t first = node->first, used;
        for (uint32_t i = 0; i < node->blocks; i++, block += BLOCK) {
            const size_t next = group_end(w, first, end, &used);
            put_group(w, block, first, next);
            first = next;
        }
        if (node->tail)
            put_group(w, at, first, end);
    } else if (node->chunked) {
        memset(at, 0xff, node->tail);
        if (node->blocks)
            memset(block, 0xff, BLOCK);
    } else {
        const size_t in_blocks = node->data.size - node->tail;
        put_text(block, node->data.data, in_blocks);
        put_text(at, node->data.data + in_blocks, node->tail);
    }
}

static int has_acl(const struct writer *w) {
    for (size_t i = 0; i < w->keys.count; i++)
        if ((w->keys.at[i].prefix == 2 || w->keys.at[i].prefix == 3) &&
            w->keys.at[i].text.size == w->keys.at[i].prefix_size)
            return 1;
    return 0;
}

static void put_image(const struct writer *w, uint8_t *image, const uint32_t *shared, size_t count) {
    uint8_t *at = put(image, COMPOSEFS_MAGIC, 4);
    at = put(at, 1, 4);
    at = put(at, (uint64_t)has_acl(w), 4);
    put(at, w->version, 4);
    at = put(image + SUPERBLOCK_OFFSET, EROFS_MAGIC, 4) + 4;
    at = put(at, FEATURES, 4);
    at = put(at, BLOCK_BITS, 1) + 1;
    at = put(at, w->nodes.at[0].offset / SLOT, 2);
    at = put(at, w->nodes.count, 8);
    at = put(at, (uint64_t)w->build_sec, 8);
    at = put(at, w->build_nsec, 4);
    at = put(at, w->end >> BLOCK_BITS, 4) + 4;
    put(at, w->meta_end >> BLOCK_BITS, 4);
    for (size_t i = 0; i < w->nodes.count; i++)
        put_node(w, image, &w->nodes.at[i], i);
    at = image + w->meta_end;
    for (size_t i = 0; i < count; i++)
        at = put_entry(w, at, &w->pairs.at[shared[i]]);
}

/* --- the call --- */

static enum outcome prepare(struct writer *w, PyObject *kinds) {
    static const struct text first_keys[] = {
        {(const uint8_t *)"trusted.overlay.metacopy", 24},
        {(const uint8_t *)"trusted.overlay.redirect", 24},
        {(const uint8_t *)"trusted.overlay.opaque", 22},
        {(const uint8_t *)"security.selinux", 16},
    };
    if (model_open(&w->model, kinds))
        return FAILED;
    for (size_t i = 0; i < sizeof first_keys / sizeof *first_keys; i++)
        if (add_key(w, first_keys[i]))
            return no_memory();
    w->kept = PyList_New(0);
    return w->kept == NULL ? FAILED : DONE;
}

static void release(struct writer *w) {
    model_close(&w->model);
    Py_XDECREF(w->kept);
    free(w->nodes.at);
    free(w->names.at);
    free(w->links.at);
    free(w->keys.at);
    free(w->pairs.at);
    free(w->pairings.at);
    free(w->sets.at);
    free(w->pair_index.slots);
    free(w->set_index.slots);
    while (w->pool != NULL) {
        struct pool *next = w->pool->next;
        free(w->pool);
        w->pool = next;
    }
}

static enum outcome encode(struct writer *w, PyObject *root, PyObject **image) {
    size_t count;
    TRY(plan(w, root));
    uint32_t *shared = share(w, &count);
    if (shared == NULL)
        return no_memory();
    enum outcome outcome = place(w);
    if (outcome == DONE && (w->end > (uint64_t)1 << 62 || (*image = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)w->end)) == NULL))
        outcome = no_memory();
    if (outcome == DONE) {
        uint8_t *bytes = (uint8_t *)PyBytes_AsString(*image);
        memset(bytes, 0, w->end);
        put_image(w, bytes, shared, count);
    }
    free(shared);
    return outcome;
}

PyObject *native_encode_tree(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *root, *kinds, *rewrite;
    Py_buffer metacopy;
    Py_ssize_t digest_size;
    unsigned version;
    if (!PyArg_ParseTuple(args, "OO!Oy*nI", &root, &PyTuple_Type, &kinds, &rewrite, &metacopy, &digest_size, &version))
        return NULL;
    PyObject *image = NULL;
    struct writer w = {.rewrite = rewrite, .metacopy_header = {metacopy.buf, (size_t)metacopy.len},
                       .digest_size = (size_t)digest_size, .version = version};
    enum outcome outcome;
    if ((outcome = prepare(&w, kinds)) == DONE)
        outcome = encode(&w, root, &image);
    PyObject *result = NULL;
    if (outcome == DONE)
        result = Py_BuildValue("(On)", image, (Py_ssize_t)w.nodes.count);
    else if (outcome == LEFT)
        result = Py_NewRef(Py_None);
    Py_XDECREF(image);
    release(&w);
    PyBuffer_Release(&metacopy);
    return result;
}
