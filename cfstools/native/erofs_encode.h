/* What the parts of the image writer share: erofs_xattrs.c collects xattrs, erofs_plan.c inodes and names, and
 * erofs_encode.c decides their places and writes the bytes. */
#ifndef CFSTOOLS_EROFS_ENCODE_H
#define CFSTOOLS_EROFS_ENCODE_H

#include <sys/stat.h>

#include "bytes.h"
#include "memory.h"
#include "outcome.h"
#include "tree_model.h"

/* The first keys of each image. */
enum { KEY_NUMBER_METACOPY, KEY_NUMBER_REDIRECT, KEY_NUMBER_OPAQUE, KEY_NUMBER_LABEL };

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
    PyObject *inode; /* borrowed from the tree; NULL for the whiteouts that hide a store's directories */
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

/* erofs_xattrs.c */
/* Number of a key, which is added if it is new; the first ones are those above. */
enum outcome encode_key(struct writer *w, struct text text, uint32_t *out);
/* Number of a pair, which is added if it is new; `uses` is added to its count. */
enum outcome encode_pair(struct writer *w, uint32_t key, struct text value, uint32_t uses, uint32_t *out);
/* The pairs of a mapping; inodes that share a mapping share the work. */
enum outcome encode_set(struct writer *w, PyObject *mapping, struct set *out);
/* Gives a node the pairs of a set and some more, sorted. */
enum outcome encode_pairs(struct writer *w, struct node *node, const struct set *set, const uint32_t *more,
                          size_t count);

/* erofs_plan.c */
int encode_chunks(uint64_t size, unsigned *bits, uint64_t *chunks);
/* All nodes in breadth-first order (section 2.2). */
enum outcome encode_plan(struct writer *w, PyObject *root);

static inline enum outcome get_unsigned(const struct writer *w, PyObject *object, enum attribute attribute,
                                        uint64_t largest, uint64_t *out) {
    return model_get_unsigned(&w->model, object, attribute, out) || *out > largest ? leave() : DONE;
}

/* The reference is borrowed from the tree, which holds the object as well. */
static inline enum outcome get_bytes(const struct writer *w, PyObject *object, enum attribute attribute,
                                     struct text *out, int *is_none) {
    PyObject *value = model_get(&w->model, object, attribute);
    if (value == NULL || (!PyBytes_Check(value) && !(is_none != NULL && value == Py_None))) {
        Py_XDECREF(value);
        return leave();
    }
    if (is_none != NULL)
        *is_none = value == Py_None;
    *out = value == Py_None ? (struct text){NULL, 0} : text_of(value);
    Py_DECREF(value);
    return DONE;
}

#endif
