/* An ordinary image back to its tree, as cfstools/formats/composefs_reader.py reads it.
 *
 * An image with anything in it that is wrong, or rare, is left to Python as a whole. */
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "model.h"
#include "native.h"

#define OVERLAY "trusted.overlay."
#define ESCAPED "trusted.overlay.overlay."
#define XATTRS_MAX 64 /* of one inode: more are rare */
#define XATTR_BYTES_MAX 65536
#define PAYLOAD_MAX 4095
#define DEPTH_MAX 100000
#define ASK_SIGNALS 4096
#define MAPPINGS_MAX 65536

/* One directory on the way down. */
struct level {
    uint64_t nid, parent;
    struct dirents dirents;
    PyObject *entries; /* borrowed: its directory is in the tree */
    int dots;          /* 1: "." was met, 2: ".." was */
};

struct reader {
    struct disk disk;
    struct model model;
    struct numbers numbers;
    PyObject *no_xattrs, *freeze; /* borrowed */
    PyObject *mappings, *linked;  /* attributes by their pairs; inodes with several names by number */
    PyObject *keys, *shared_pairs; /* keys by themselves; pairs of the shared table by their place */
    uint8_t *met, *met_shared;    /* a bit for each slot, and for each place in the shared table */
    uint64_t left, shared_left;   /* bytes that inodes, and shared attributes, may still take up */
    unsigned algorithm;           /* 0 as long as no digest was met */
    unsigned long long hiding, further_names, shared, references, entries;
    struct level *levels;
    size_t depth, room;
};

/* What the attributes of an inode say. */
struct meaning {
    struct xattr xattrs[XATTRS_MAX];
    size_t count, inlined; /* the first ones are stored with the inode */
    uint32_t places[XATTRS_MAX]; /* of the shared ones in their table */
    const struct xattr *redirect, *metacopy;
    int is_whiteout;
    PyObject *kept;
};

static int is_key(const struct xattr *xattr, const char *key) {
    return strlen(key) == xattr->key_size && memcmp(xattr->key, key, xattr->key_size) == 0;
}

static int has_prefix(const struct xattr *xattr, const char *prefix) {
    const size_t size = strlen(prefix);
    return size <= xattr->key_size && memcmp(xattr->key, prefix, size) == 0;
}

/* Marks a bit; whether it was marked before. */
static int mark(uint8_t *bits, uint64_t number) {
    const uint8_t bit = (uint8_t)(1 << (number & 7));
    const int before = bits[number >> 3] & bit;
    bits[number >> 3] |= bit;
    return before != 0;
}

static enum outcome load_shared(struct reader *r, uint32_t id, struct xattr *out) {
    const uint64_t at = r->disk.xattr_base + (uint64_t)id * 4;
    uint64_t next;
    if (at >= r->disk.length)
        return LEFT;
    TRY(disk_xattr(&r->disk, at, r->disk.length, out, &next));
    r->references++;
    if (!mark(r->met_shared, at / 4)) {
        /* Entries of an image do not overlap, so that together they cannot be longer than it. */
        if (next - at > r->shared_left)
            return LEFT;
        r->shared_left -= next - at;
        r->shared++;
    }
    return DONE;
}

static int is_repeated(const struct meaning *meaning, size_t number) {
    const struct xattr *one = &meaning->xattrs[number];
    for (size_t i = 0; i < number; i++)
        if (meaning->xattrs[i].key_size == one->key_size && memcmp(meaning->xattrs[i].key, one->key, one->key_size) == 0)
            return 1;
    return 0;
}

/* All attributes of an inode: those stored with it, then the shared ones. */
static enum outcome load_xattrs(struct reader *r, const struct disk_inode *inode, struct meaning *meaning) {
    meaning->count = meaning->inlined = 0;
    if (inode->xattr_start == inode->tail_start)
        return DONE;
    const uint64_t area = inode->tail_start - inode->xattr_start;
    const uint8_t *start = r->disk.data + inode->xattr_start;
    const size_t shared = start[4];
    uint64_t at = inode->xattr_start + 12 + 4 * shared, size = area;
    if (at > inode->tail_start)
        return LEFT;
    while (at < inode->tail_start) {
        if (meaning->count == XATTRS_MAX)
            return LEFT;
        TRY(disk_xattr(&r->disk, at, inode->tail_start, &meaning->xattrs[meaning->count], &at));
        if (is_repeated(meaning, meaning->count++))
            return LEFT;
    }
    meaning->inlined = meaning->count;
    for (size_t i = 0; i < shared; i++) {
        if (meaning->count == XATTRS_MAX)
            return LEFT;
        struct xattr *one = &meaning->xattrs[meaning->count];
        meaning->places[meaning->count] = disk_u32(start + 12 + 4 * i);
        TRY(load_shared(r, meaning->places[meaning->count], one));
        size += one->key_size + one->value_size;
        if (is_repeated(meaning, meaning->count++))
            return LEFT;
    }
    return shared && size > XATTR_BYTES_MAX ? LEFT : DONE;
}

/* The key once more, as the object it was before, as far as memory is well spent on that. */
static PyObject *intern_key(struct reader *r, const char *prefix, const uint8_t *rest, size_t size) {
    const size_t prefix_size = strlen(prefix);
    PyObject *name = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(prefix_size + size));
    if (name == NULL)
        return NULL;
    memcpy(PyBytes_AsString(name), prefix, prefix_size);
    memcpy(PyBytes_AsString(name) + prefix_size, rest, size);
    PyObject *known = PyDict_GetItemWithError(r->keys, name);
    if (known != NULL) {
        Py_DECREF(name);
        return Py_NewRef(known);
    }
    if (PyErr_Occurred() || (PyDict_Size(r->keys) < MAPPINGS_MAX && PyDict_SetItem(r->keys, name, name)))
        Py_CLEAR(name);
    return name;
}

static PyObject *new_pair(struct reader *r, const struct meaning *meaning, size_t number, size_t escaped) {
    const struct xattr *xattr = &meaning->xattrs[number];
    PyObject *name = intern_key(r, escaped ? OVERLAY : "", xattr->key + escaped, xattr->key_size - escaped);
    return name == NULL ? NULL
                        : Py_BuildValue("(Ny#)", name, (const char *)xattr->value, (Py_ssize_t)xattr->value_size);
}

/* An attribute as it is in the tree, without `escaped` bytes of its key in front of which "trusted.overlay." stands
 * then. What is shared in the image is one object: an image is small for all the inodes that refer to a large value. */
static PyObject *pair_of(struct reader *r, const struct meaning *meaning, size_t number, size_t escaped) {
    if (number < meaning->inlined)
        return new_pair(r, meaning, number, escaped);
    PyObject *place = PyLong_FromUnsignedLong(meaning->places[number]);
    PyObject *pair = place != NULL ? PyDict_GetItemWithError(r->shared_pairs, place) : NULL;
    Py_XINCREF(pair);
    if (place != NULL && pair == NULL && !PyErr_Occurred()) {
        pair = new_pair(r, meaning, number, escaped);
        if (pair != NULL && PyDict_SetItem(r->shared_pairs, place, pair))
            Py_CLEAR(pair);
    }
    Py_XDECREF(place);
    return pair;
}

/* Keeps an attribute for the tree, or sees what it says to overlayfs; NULL in `*pair` for the latter. */
static int interpret(struct reader *r, struct meaning *meaning, size_t number, int is_regular, PyObject **pair) {
    const struct xattr *xattr = &meaning->xattrs[number];
    *pair = NULL;
    if (!has_prefix(xattr, OVERLAY)) {
        if (is_key(xattr, "user.overlay.whiteout") || is_key(xattr, "user.overlay.whiteouts"))
            return 0;
        *pair = pair_of(r, meaning, number, 0);
    } else if (is_key(xattr, OVERLAY "metacopy")) {
        meaning->metacopy = is_regular ? xattr : NULL;
        return 0;
    } else if (is_key(xattr, OVERLAY "redirect")) {
        meaning->redirect = is_regular ? xattr : NULL;
        return 0;
    } else if (is_regular && is_key(xattr, ESCAPED "whiteout")) {
        meaning->is_whiteout = 1;
        return 0;
    } else if (has_prefix(xattr, ESCAPED) && !is_key(xattr, ESCAPED "whiteouts")) {
        *pair = pair_of(r, meaning, number, strlen(ESCAPED));
    } else {
        return 0;
    }
    return *pair == NULL ? -1 : 0;
}

/* The mapping of these pairs; equal ones are one object, as far as memory is well spent on that. */
static PyObject *mapping_of(struct reader *r, PyObject *pairs) {
    PyObject *key = PyList_AsTuple(pairs), *mapping = NULL;
    if (key == NULL)
        return NULL;
    PyObject *known = PyDict_GetItemWithError(r->mappings, key);
    if (known != NULL) {
        mapping = Py_NewRef(known);
    } else if (!PyErr_Occurred()) {
        mapping = PyObject_CallFunctionObjArgs(r->freeze, key, NULL);
        if (mapping != NULL && PyDict_Size(r->mappings) < MAPPINGS_MAX && PyDict_SetItem(r->mappings, key, mapping))
            Py_CLEAR(mapping);
    }
    Py_DECREF(key);
    return mapping;
}

static enum outcome understand(struct reader *r, const struct disk_inode *inode, struct meaning *meaning) {
    const int is_regular = (inode->mode & MODE_TYPE) == MODE_REG;
    PyObject *pairs = NULL;
    meaning->redirect = meaning->metacopy = NULL;
    meaning->is_whiteout = 0;
    meaning->kept = NULL;
    TRY(load_xattrs(r, inode, meaning));
    for (size_t i = 0; i < meaning->count; i++) {
        PyObject *pair;
        int failed = interpret(r, meaning, i, is_regular, &pair);
        if (pair != NULL) {
            if (pairs == NULL)
                pairs = PyList_New(0);
            failed = pairs == NULL || PyList_Append(pairs, pair);
            Py_DECREF(pair);
        }
        if (failed) {
            Py_XDECREF(pairs);
            return FAILED;
        }
    }
    meaning->kept = pairs != NULL ? mapping_of(r, pairs) : Py_NewRef(r->no_xattrs);
    Py_XDECREF(pairs);
    return meaning->kept != NULL ? DONE : FAILED;
}

static PyObject *bytes_at(const uint8_t *at, uint64_t size) {
    return PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)size);
}

/* The digest that the metacopy attribute has, or None; the same algorithm everywhere. */
static enum outcome digest_of(struct reader *r, const struct xattr *metacopy, PyObject **out) {
    static const uint8_t headers[2][4] = {{0, 36, 0, 1}, {0, 68, 0, 2}};
    *out = NULL;
    if (metacopy == NULL)
        return LEFT;
    if (metacopy->value_size == 0) {
        *out = Py_NewRef(Py_None);
        return DONE;
    }
    for (unsigned i = 0; i < 2; i++)
        if (metacopy->value_size == headers[i][1] && memcmp(metacopy->value, headers[i], 4) == 0) {
            if (r->algorithm != 0 && r->algorithm != i + 1)
                return LEFT;
            r->algorithm = i + 1;
            *out = bytes_at(metacopy->value + 4, metacopy->value_size - 4);
            return *out != NULL ? DONE : FAILED;
        }
    return LEFT;
}

/* Whether a redirect is the path of an object and nothing else; odd ones are looked at elsewhere. */
static int is_plain_redirect(const struct xattr *redirect) {
    const uint8_t *value = redirect->value;
    const size_t size = redirect->value_size;
    if (size < 2 || size > PAYLOAD_MAX + 1 || value[0] != '/' || memchr(value, 0, size))
        return 0;
    for (size_t i = 1; i < size; i++)
        if (value[i - 1] == '/' && (value[i] == '.' || value[i] == '/'))
            return 0;
    return value[size - 1] != '/';
}

static enum outcome external_of(struct reader *r, const struct meaning *meaning, PyObject **out) {
    PyObject *digest;
    *out = NULL;
    if (meaning->redirect != NULL && !is_plain_redirect(meaning->redirect))
        return LEFT;
    TRY(digest_of(r, meaning->metacopy, &digest));
    PyObject *payload = meaning->redirect != NULL
                            ? bytes_at(meaning->redirect->value + 1, meaning->redirect->value_size - 1)
                            : Py_NewRef(Py_None);
    *out = model_new_external(&r->model, digest, payload);
    return *out != NULL ? DONE : FAILED;
}

/* The bytes of an inode that are in the image. */
static PyObject *data_of(const struct reader *r, const struct disk_inode *inode) {
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(inode->data_size + inode->tail_size));
    if (data != NULL) {
        memcpy(PyBytes_AsString(data), r->disk.data + inode->data_start, inode->data_size);
        memcpy(PyBytes_AsString(data) + inode->data_size, r->disk.data + inode->tail_start, inode->tail_size);
    }
    return data;
}

static int set_number(struct reader *r, PyObject *object, enum attribute attribute, uint64_t value) {
    return model_set_taken(&r->model, object, attribute, numbers_get(&r->numbers, value));
}

static int set_common(struct reader *r, PyObject *made, const struct disk_inode *inode, uint32_t mode, PyObject *kept) {
    return set_number(r, made, A_MODE, mode) || set_number(r, made, A_UID, inode->uid) ||
           set_number(r, made, A_GID, inode->gid) || set_number(r, made, A_NLINK, inode->nlink) ||
           set_number(r, made, A_NSEC, inode->nsec) || model_set(&r->model, made, A_XATTRS, kept) ||
           model_set_taken(&r->model, made, A_SEC,
                           inode->sec < 0 ? PyLong_FromLongLong(inode->sec)
                                          : numbers_get(&r->numbers, (uint64_t)inode->sec));
}

static enum outcome set_content(struct reader *r, PyObject *made, const struct disk_inode *inode,
                                const struct meaning *meaning) {
    PyObject *content;
    if (inode->is_chunked) {
        TRY(external_of(r, meaning, &content));
    } else {
        if (meaning->redirect != NULL || meaning->metacopy != NULL)
            return LEFT;
        content = data_of(r, inode);
    }
    return model_set_taken(&r->model, made, A_CONTENT, content) || set_number(r, made, A_SIZE, inode->size) ? FAILED
                                                                                                           : DONE;
}

static enum outcome set_target(struct reader *r, PyObject *made, const struct disk_inode *inode) {
    PyObject *target = data_of(r, inode);
    if (target == NULL)
        return FAILED;
    if (memchr(PyBytes_AsString(target), 0, (size_t)PyBytes_Size(target))) {
        Py_DECREF(target);
        return LEFT;
    }
    return model_set_taken(&r->model, made, A_TARGET, target) ? FAILED : DONE;
}

static enum outcome set_device(struct reader *r, PyObject *made, uint32_t number) {
    return set_number(r, made, A_RDEV, number) || set_number(r, made, A_DEVICE_SIZE, 0) ? FAILED : DONE;
}

/* What a kind of inode has of its own. */
static enum outcome set_own(struct reader *r, PyObject *made, enum kind kind, const struct disk_inode *inode,
                            const struct meaning *meaning) {
    switch (kind) {
    case K_FILE: return set_content(r, made, inode, meaning);
    case K_SYMLINK: return set_target(r, made, inode);
    case K_DEVICE: return set_device(r, made, meaning->is_whiteout ? 0 : inode->union_field);
    case K_FIFO: return set_number(r, made, A_FIFO_SIZE, 0) ? FAILED : DONE;
    case K_SOCKET: return set_number(r, made, A_SOCKET_SIZE, 0) ? FAILED : DONE;
    default: return model_set_taken(&r->model, made, A_ENTRIES, PyDict_New()) ? FAILED : DONE;
    }
}

static enum kind kind_of(const struct disk_inode *inode, const struct meaning *meaning) {
    switch (inode->mode & MODE_TYPE) {
    case MODE_REG: return meaning->is_whiteout ? K_DEVICE : K_FILE;
    case MODE_LNK: return K_SYMLINK;
    case MODE_CHR:
    case MODE_BLK: return K_DEVICE;
    case MODE_FIFO: return K_FIFO;
    case MODE_SOCK: return K_SOCKET;
    default: return K_DIRECTORY;
    }
}

static enum outcome make(struct reader *r, const struct disk_inode *inode, PyObject **out) {
    struct meaning meaning;
    *out = NULL;
    TRY(understand(r, inode, &meaning));
    const enum kind kind = kind_of(inode, &meaning);
    const uint32_t mode = meaning.is_whiteout ? MODE_CHR | (inode->mode & 07777) : inode->mode;
    PyObject *made = model_new(&r->model, kind);
    enum outcome outcome = made == NULL || set_common(r, made, inode, mode, meaning.kept) ? FAILED : DONE;
    if (outcome == DONE)
        outcome = set_own(r, made, kind, inode, &meaning);
    Py_DECREF(meaning.kept);
    if (outcome == DONE)
        *out = made;
    else
        Py_XDECREF(made);
    return outcome;
}

/* Sees whether an inode is new, and that inodes do not overlap and directories are met once. */
static enum outcome meet(struct reader *r, const struct disk_inode *inode, int *is_new) {
    *is_new = !mark(r->met, inode->nid);
    if (!*is_new)
        return (inode->mode & MODE_TYPE) == MODE_DIR ? LEFT : DONE;
    const uint64_t size = inode->tail_start - inode->offset + inode->tail_size + inode->data_size;
    if (size > r->left)
        return LEFT;
    r->left -= size;
    return DONE;
}

static enum outcome descend(struct reader *r, const struct disk_inode *inode, PyObject *directory, uint64_t parent) {
    if (r->depth == DEPTH_MAX)
        return LEFT;
    if (r->depth == r->room) {
        const size_t room = r->room ? 2 * r->room : 64;
        struct level *levels = realloc(r->levels, room * sizeof *levels);
        if (levels == NULL) {
            PyErr_NoMemory();
            return FAILED;
        }
        r->levels = levels;
        r->room = room;
    }
    struct level *level = &r->levels[r->depth++];
    PyObject *entries = model_get(&r->model, directory, A_ENTRIES);
    if (entries == NULL)
        return FAILED;
    Py_DECREF(entries);
    *level = (struct level){.nid = inode->nid, .parent = parent, .entries = entries};
    disk_dirents(inode, &level->dirents);
    return DONE;
}

/* "." and ".." lead where they must. */
static enum outcome meet_dots(struct level *level, const struct dirent *entry) {
    if (entry->nid != (entry->size == 1 ? level->nid : level->parent) || entry->type != disk_file_type(MODE_DIR))
        return LEFT;
    level->dots |= (int)entry->size;
    return DONE;
}

static int is_dots(const struct dirent *entry) {
    return entry->size <= 2 && entry->name[0] == '.' && entry->name[entry->size - 1] == '.';
}

/* One more name of an inode met before. */
static enum outcome link_again(struct reader *r, const struct disk_inode *inode, PyObject **out) {
    PyObject *number = PyLong_FromUnsignedLongLong(inode->nid);
    PyObject *known = number != NULL ? PyDict_GetItemWithError(r->linked, number) : NULL;
    Py_XDECREF(number);
    if (known == NULL)
        return PyErr_Occurred() ? FAILED : LEFT;
    r->further_names++;
    *out = model_new(&r->model, K_LINK);
    if (*out == NULL || model_set(&r->model, *out, A_LINKED, known)) {
        Py_CLEAR(*out);
        return FAILED;
    }
    return DONE;
}

/* Inodes that say they have several names are remembered; if another turns out to have them, Python reads it all. */
static int remember(struct reader *r, const struct disk_inode *inode, PyObject *made) {
    if (inode->nlink == 1 || (inode->mode & MODE_TYPE) == MODE_DIR)
        return 0;
    PyObject *number = PyLong_FromUnsignedLongLong(inode->nid);
    const int failed = number == NULL || PyDict_SetItem(r->linked, number, made);
    Py_XDECREF(number);
    return failed;
}

static enum outcome add_entry(struct reader *r, const struct dirent *entry) {
    struct level *level = &r->levels[r->depth - 1];
    struct disk_inode inode;
    PyObject *made;
    int is_new;
    TRY(disk_inode(&r->disk, entry->nid, &inode));
    if (disk_file_type(inode.mode) != entry->type)
        return LEFT;
    TRY(meet(r, &inode, &is_new));
    if ((inode.mode & MODE_TYPE) == MODE_CHR && inode.union_field == 0) {
        r->hiding += (unsigned)is_new;
        return DONE;
    }
    if (is_new)
        TRY(make(r, &inode, &made));
    else
        TRY(link_again(r, &inode, &made));
    PyObject *name = bytes_at(entry->name, entry->size);
    enum outcome outcome = name == NULL || PyDict_SetItem(level->entries, name, made) ? FAILED : DONE;
    Py_XDECREF(name);
    if (outcome == DONE && is_new && remember(r, &inode, made))
        outcome = FAILED;
    if (outcome == DONE && (inode.mode & MODE_TYPE) == MODE_DIR)
        outcome = descend(r, &inode, made, level->nid);
    Py_DECREF(made);
    return outcome;
}

static enum outcome walk(struct reader *r) {
    while (r->depth > 0) {
        struct level *level = &r->levels[r->depth - 1];
        struct dirent entry;
        TRY(disk_next_dirent(&r->disk, &level->dirents, &entry));
        if (entry.size == 0) {
            if (level->dots != 3)
                return LEFT;
            r->depth--;
        } else if (is_dots(&entry)) {
            TRY(meet_dots(level, &entry));
        } else {
            TRY(add_entry(r, &entry));
        }
        if (++r->entries % ASK_SIGNALS == 0 && PyErr_CheckSignals())
            return FAILED;
    }
    return DONE;
}

static enum outcome read_tree(struct reader *r, uint64_t root, PyObject **out) {
    struct disk_inode inode;
    int is_new;
    *out = NULL;
    TRY(disk_inode(&r->disk, root, &inode));
    if ((inode.mode & MODE_TYPE) != MODE_DIR)
        return LEFT;
    TRY(meet(r, &inode, &is_new));
    TRY(make(r, &inode, out));
    TRY(descend(r, &inode, *out, root));
    return walk(r);
}

static int reader_open(struct reader *r, PyObject *kinds, size_t length) {
    r->disk.length = r->left = r->shared_left = length;
    r->mappings = PyDict_New();
    r->linked = PyDict_New();
    r->keys = PyDict_New();
    r->shared_pairs = PyDict_New();
    r->met = calloc(length / SLOT / 8 + 1, 1);
    r->met_shared = calloc(length / 4 / 8 + 1, 1);
    if (r->met == NULL || r->met_shared == NULL)
        PyErr_NoMemory();
    return r->met == NULL || r->met_shared == NULL || r->mappings == NULL || r->linked == NULL ||
           r->keys == NULL || r->shared_pairs == NULL || model_open(&r->model, kinds);
}

static void reader_close(struct reader *r) {
    model_close(&r->model);
    numbers_close(&r->numbers);
    Py_XDECREF(r->mappings);
    Py_XDECREF(r->linked);
    Py_XDECREF(r->keys);
    Py_XDECREF(r->shared_pairs);
    free(r->met);
    free(r->met_shared);
    free(r->levels);
}

PyObject *native_read_tree(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer data;
    PyObject *kinds, *result = NULL, *root = NULL;
    unsigned long long root_nid, xattr_base;
    long long build_sec;
    unsigned build_nsec;
    struct reader r;
    memset(&r, 0, sizeof r);
    if (!PyArg_ParseTuple(args, "y*KKLIO!OO", &data, &root_nid, &xattr_base, &build_sec, &build_nsec, &PyTuple_Type,
                          &kinds, &r.no_xattrs, &r.freeze))
        return NULL;
    r.disk.data = data.buf;
    r.disk.xattr_base = xattr_base;
    r.disk.build_sec = build_sec;
    r.disk.build_nsec = build_nsec;
    if ((size_t)data.len < BLOCK || xattr_base % 4) {
        PyErr_SetString(PyExc_ValueError, "too short for an image, or the shared attributes lie oddly");
    } else if (reader_open(&r, kinds, (size_t)data.len) == 0) {
        const enum outcome outcome = read_tree(&r, root_nid, &root);
        if (outcome == DONE)
            result = Py_BuildValue("(OIKKnKK)", root, r.algorithm, r.hiding, r.further_names, PyDict_Size(r.linked),
                                   r.shared, r.references);
        else if (outcome == LEFT)
            result = Py_NewRef(Py_None);
    }
    Py_XDECREF(root);
    reader_close(&r);
    PyBuffer_Release(&data);
    return result;
}
