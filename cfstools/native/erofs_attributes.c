/* The xattrs of an inode: those for the tree and those for overlayfs (composefs format, sections 4 and 10.2). */
#include "erofs_decode.h"

#define CACHED_MAX 65536 /* keys, and mappings, of which equal ones become one object */

int set_bit(uint8_t *bits, uint64_t number) {
    const uint8_t bit = (uint8_t)(1 << (number & 7));
    const int before = bits[number >> 3] & bit;
    bits[number >> 3] |= bit;
    return before != 0;
}

static enum outcome load_shared(struct reader *r, uint32_t id, struct xattr *out) {
    const uint64_t at = r->disk.xattr_base + (uint64_t)id * FMT_XATTR_UNIT;
    uint64_t next;
    if (at >= r->disk.length)
        return LEFT;
    TRY(disk_xattr(&r->disk, at, r->disk.length, out, &next));
    r->references++;
    if (!set_bit(r->seen_shared, at / FMT_XATTR_UNIT)) {
        /* Entries do not overlap, so together they are no longer than the image. */
        if (next - at > r->shared_left)
            return LEFT;
        r->shared_left -= next - at;
        r->shared++;
    }
    return DONE;
}

static int is_repeated(const struct meaning *meaning, size_t number) {
    for (size_t i = 0; i < number; i++)
        if (text_equal(meaning->xattrs[i].key, meaning->xattrs[number].key))
            return 1;
    return 0;
}

/* All xattrs of an inode: those stored with it, then the shared ones. */
static enum outcome load_xattrs(struct reader *r, const struct disk_inode *inode, struct meaning *meaning) {
    meaning->count = meaning->inlined = 0;
    if (inode->xattr_start == inode->tail_start)
        return DONE;
    const uint64_t area = inode->tail_start - inode->xattr_start;
    const uint8_t *start = r->disk.data + inode->xattr_start;
    const size_t shared = load(start, FMT_XATTR_HEADER_SHARED_COUNT);
    uint64_t at = inode->xattr_start + FMT_XATTR_HEADER_BYTES + FMT_XATTR_UNIT * shared, size = area;
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
        meaning->places[meaning->count] =
            (uint32_t)load(start + FMT_XATTR_HEADER_BYTES, (int)i * FMT_XATTR_UNIT, FMT_XATTR_UNIT);
        TRY(load_shared(r, meaning->places[meaning->count], one));
        size += one->key.size + one->value.size;
        if (is_repeated(meaning, meaning->count++))
            return LEFT;
    }
    return shared && size > FMT_XATTR_BYTES_MAX ? LEFT : DONE;
}

/* A key as the tree has it; equal ones are one object, up to a limit on memory. */
static PyObject *intern_key(struct reader *r, struct text prefix, struct text rest) {
    PyObject *name = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(prefix.size + rest.size));
    if (name == NULL)
        return NULL;
    memcpy(PyBytes_AsString(name), prefix.data, prefix.size);
    memcpy(PyBytes_AsString(name) + prefix.size, rest.data, rest.size);
    PyObject *known = PyDict_GetItemWithError(r->keys, name);
    if (known != NULL) {
        Py_DECREF(name);
        return Py_NewRef(known);
    }
    if (PyErr_Occurred() || (PyDict_Size(r->keys) < CACHED_MAX && PyDict_SetItem(r->keys, name, name)))
        Py_CLEAR(name);
    return name;
}

static PyObject *new_pair(struct reader *r, const struct meaning *meaning, size_t number, size_t escaped) {
    const struct xattr *xattr = &meaning->xattrs[number];
    const struct text rest = {xattr->key.data + escaped, xattr->key.size - escaped};
    PyObject *name = intern_key(r, escaped ? TEXT(KEY_OVERLAY) : TEXT(""), rest);
    return name == NULL ? NULL : Py_BuildValue("(NN)", name, new_bytes(xattr->value));
}

/* An xattr as the tree has it: "trusted.overlay." replaces the first `escaped` bytes of its key. What is shared in the
 * image is one object: a small image may have many inodes that refer to one large value. */
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

/* The pair for the tree; NULL for an xattr that overlayfs acts on, which is noted in `meaning`. */
static int interpret(struct reader *r, struct meaning *meaning, size_t number, int is_regular, PyObject **pair) {
    const struct xattr *xattr = &meaning->xattrs[number];
    const struct text key = xattr->key;
    *pair = NULL;
    if (!text_starts(key, TEXT(KEY_OVERLAY))) {
        if (text_equal(key, TEXT(KEY_USER_WHITEOUT)) || text_equal(key, TEXT(KEY_USER_WHITEOUTS)))
            return 0;
        *pair = pair_of(r, meaning, number, 0);
    } else if (text_equal(key, TEXT(KEY_METACOPY))) {
        meaning->metacopy = is_regular ? xattr : NULL;
        return 0;
    } else if (text_equal(key, TEXT(KEY_REDIRECT))) {
        meaning->redirect = is_regular ? xattr : NULL;
        return 0;
    } else if (is_regular && text_equal(key, TEXT(KEY_WHITEOUT))) {
        meaning->is_whiteout = 1;
        return 0;
    } else if (text_starts(key, TEXT(KEY_ESCAPED)) && !text_equal(key, TEXT(KEY_WHITEOUTS))) {
        *pair = pair_of(r, meaning, number, TEXT(KEY_ESCAPED).size);
    } else {
        return 0;
    }
    return *pair == NULL ? -1 : 0;
}

/* The mapping of these pairs; equal ones are one object, up to a limit on memory. */
static PyObject *mapping_of(struct reader *r, PyObject *pairs) {
    PyObject *key = PyList_AsTuple(pairs), *mapping = NULL;
    if (key == NULL)
        return NULL;
    PyObject *known = PyDict_GetItemWithError(r->mappings, key);
    if (known != NULL) {
        mapping = Py_NewRef(known);
    } else if (!PyErr_Occurred()) {
        mapping = PyObject_CallFunctionObjArgs(r->freeze, key, NULL);
        if (mapping != NULL && PyDict_Size(r->mappings) < CACHED_MAX && PyDict_SetItem(r->mappings, key, mapping))
            Py_CLEAR(mapping);
    }
    Py_DECREF(key);
    return mapping;
}

enum outcome decode_xattrs(struct reader *r, const struct disk_inode *inode, struct meaning *meaning) {
    const int is_regular = S_ISREG(inode->mode);
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

/* The digest in the metacopy xattr, which may be empty; all digests of an image are of one algorithm. */
static enum outcome digest_of(struct reader *r, const struct xattr *metacopy, struct text *out) {
    static const uint8_t headers[][4] = FMT_METACOPY_HEADERS;
    if (metacopy == NULL)
        return LEFT;
    *out = metacopy->value;
    if (out->size == 0)
        return DONE;
    for (unsigned i = 0; i < sizeof headers / sizeof *headers; i++)
        /* The second byte is the size of the value, the last the number of the algorithm. */
        if (out->size == headers[i][1] && memcmp(out->data, headers[i], sizeof headers[i]) == 0) {
            if (r->algorithm != 0 && r->algorithm != headers[i][3])
                return LEFT;
            r->algorithm = headers[i][3];
            *out = (struct text){out->data + sizeof headers[i], out->size - sizeof headers[i]};
            return DONE;
        }
    return LEFT;
}

/* Whether a redirect is a plain path of an object: Python looks at any other. */
static int is_plain_redirect(struct text value) {
    if (value.size < 2 || value.size > FMT_PAYLOAD_MAX + 1 || value.data[0] != '/' || text_has(value, 0))
        return 0;
    for (size_t i = 1; i < value.size; i++)
        if (value.data[i - 1] == '/' && (value.data[i] == '.' || value.data[i] == '/'))
            return 0;
    return value.data[value.size - 1] != '/';
}

/* The digest and the path of external contents, each of which may be empty. */
static enum outcome find_external(struct reader *r, const struct meaning *meaning, struct text *digest,
                                  struct text *path) {
    const struct text value = meaning->redirect != NULL ? meaning->redirect->value : TEXT("/");
    if (meaning->redirect != NULL && !is_plain_redirect(value))
        return LEFT;
    *path = (struct text){value.data + 1, value.size - 1};
    return digest_of(r, meaning->metacopy, digest);
}

enum outcome decode_external(struct reader *r, const struct meaning *meaning, PyObject **out) {
    struct text digest, path;
    *out = NULL;
    TRY(find_external(r, meaning, &digest, &path));
    *out = model_new_external(&r->model, digest.size > 0 ? new_bytes(digest) : Py_NewRef(Py_None),
                              path.size > 0 ? new_bytes(path) : Py_NewRef(Py_None));
    return *out != NULL ? DONE : FAILED;
}

enum outcome decode_need(struct reader *r, const struct meaning *meaning, uint64_t size) {
    struct text digest, path;
    TRY(find_external(r, meaning, &digest, &path));
    if (r->needs.digest_size == 0)
        r->needs.digest_size = digest.size;
    return digest.size > 0 ? needs_add(&r->needs, digest, path, size) : LEFT;
}
