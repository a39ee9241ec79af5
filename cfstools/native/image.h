/* What the parts of the image writer share: how its state looks, and lists, pools and indexes.
 *
 * image_xattrs.c gathers extended attributes, image_plan.c inodes and names, image.c places them and makes bytes. */
#ifndef CFSTOOLS_IMAGE_H
#define CFSTOOLS_IMAGE_H

#include <string.h>

#include "model.h"
#include "native.h"
#include "outcome.h"

#define BLOCK_BITS 12

enum { TYPE_FIFO = 0x1, TYPE_CHR = 0x2, TYPE_DIR = 0x4, TYPE_BLK = 0x6, TYPE_REG = 0x8, TYPE_LNK = 0xa, TYPE_SOCK = 0xc };

enum { KEY_METACOPY, KEY_REDIRECT, KEY_OPAQUE, KEY_LABEL }; /* the first keys of every image */

struct text {
    const uint8_t *data;
    size_t size;
};

#define LIST(TYPE)                                                                                                     \
    struct {                                                                                                           \
        TYPE *at;                                                                                                      \
        size_t count, room;                                                                                            \
    }

/* Asks the kernel for few large pages instead of many: half of the time of a large tree is taking them one by one. */
void memory_is_large(void *at, size_t size);

int list_grow(void **at, size_t *room, size_t count, size_t size);

#define PUSH(list, ...)                                                                                                \
    (list_grow((void **)&(list).at, &(list).room, (list).count, sizeof *(list).at)                                     \
         ? -1                                                                                                          \
         : ((list).at[(list).count++] = (__VA_ARGS__), 0))

/* Memory that is freed at once. */
struct pool {
    struct pool *next;
    size_t used, room;
    uint8_t data[];
};

uint8_t *pool_take(struct pool **pool, size_t size);

/* From a hash to a number, where the caller compares. */
struct index {
    struct {
        uint64_t hash;
        uint32_t number; /* plus one; 0: free */
    } *slots;
    size_t mask, used;
};

/* More slots are never looked at: somebody may choose what is hashed so that it all comes to one place. Then it is left
 * to Python, whose hashes nobody foresees. */
#define PROBES_MAX 512

int index_grow(struct index *index);
uint64_t hash_bytes(uint64_t hash, const uint8_t *data, size_t size);
uint64_t hash_pointer(const void *pointer);

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
    struct index key_index, pair_index, set_index;
    struct pool *pool;
    int64_t build_sec;
    uint32_t build_nsec;
    uint64_t meta_end, shared_size, end;
};

/* image_xattrs.c */
/* Number of a key, which is remembered; the first ones are those above. */
enum outcome image_find_key(struct writer *w, struct text text, uint32_t *out);
/* Number of a pair, counting that it is used once more if `uses`. */
enum outcome image_find_pair(struct writer *w, uint32_t key, struct text value, uint32_t uses, uint32_t *out);
/* The pairs of a mapping; inodes that share a mapping share the work. */
enum outcome image_find_set(struct writer *w, PyObject *mapping, struct set *out);
/* Gives a node the pairs of a set and some more, sorted. */
enum outcome image_give_pairs(struct writer *w, struct node *node, const struct set *set, const uint32_t *more,
                               size_t count);

/* image_plan.c */
int image_chunk_geometry(uint64_t size, unsigned *bits, uint64_t *chunks);
/* All nodes in breadth-first order (section 2.2). */
enum outcome image_plan(struct writer *w, PyObject *root);

static inline unsigned type_of(const struct node *node) { return node->mode >> 12; }

/* For memory that cannot be had, and for objects that are not what they should be. */
static inline enum outcome no_memory(void) {
    PyErr_NoMemory();
    return FAILED;
}

static inline enum outcome leave(void) {
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return FAILED;
        PyErr_Clear();
    }
    return LEFT;
}

static inline PyObject *get(const struct writer *w, PyObject *object, enum attribute attribute) {
    return model_get(&w->model, object, attribute);
}

static inline enum outcome get_unsigned(const struct writer *w, PyObject *object, enum attribute attribute,
                                        uint64_t largest, uint64_t *out) {
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
static inline enum outcome get_bytes(const struct writer *w, PyObject *object, enum attribute attribute,
                                     struct text *out, int *is_none) {
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

static inline int compare(struct text a, struct text b) {
    const int order = memcmp(a.data, b.data, a.size < b.size ? a.size : b.size);
    return order ? order : a.size < b.size ? -1 : a.size > b.size;
}

static inline int equal(struct text a, struct text b) {
    return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

#define TEXT(literal) ((struct text){(const uint8_t *)(literal), sizeof(literal) - 1})

#endif
