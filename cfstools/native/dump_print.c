/* Prints the lines of a dump text for ordinary entries, or of a listing, as cfstools/formats/dump/print.py does.
 *
 * Asks Python for the line of any other entry, and for errors. */
#include <stdlib.h>

#include "memory.h"
#include "native.h"
#include "tree_model.h"

#define CACHED 256
#define CACHED_SIZE_MAX 4096

typedef LIST(char) char_list;

/* A recent mapping of xattrs and its text. */
struct printed {
    PyObject *xattrs, *text;
};

struct printer {
    struct model model;
    PyObject *stack, *path, *firsts, *line, *xattrs_text, *no_xattrs; /* borrowed; the line is None in a listing */
    char_list out;
    struct printed printed[CACHED];
};

/* Room for `size` more bytes; NULL with an exception. */
static char *make_room(char_list *out, size_t size) {
    if (RESERVE(*out, size)) {
        PyErr_NoMemory();
        return NULL;
    }
    return out->at + out->count;
}

static int put(char_list *out, const char *data, size_t size) {
    char *at = make_room(out, size);
    if (at == NULL)
        return -1;
    memcpy(at, data, size);
    out->count += size;
    return 0;
}

/* The bytes from this one on that stand for themselves, in a field and in the path of a listing. */
enum plain { FIELD = '!', LISTED = ' ' };

static int put_escaped(char_list *out, enum plain least, const char *data, size_t size) {
    char *at = make_room(out, 4 * size);
    if (at == NULL)
        return -1;
    for (size_t i = 0; i < size; i++) {
        const uint8_t byte = (uint8_t)data[i];
        if (byte >= (int)least && byte < 0x7f && byte != '\\') {
            *at++ = (char)byte;
            continue;
        }
        *at++ = '\\';
        switch (byte) {
        case '\\': *at++ = '\\'; break;
        case '\n': *at++ = 'n'; break;
        case '\r': *at++ = 'r'; break;
        case '\t': *at++ = 't'; break;
        default:
            *at++ = 'x';
            *at++ = HEX_DIGITS[byte >> 4];
            *at++ = HEX_DIGITS[byte & 15];
        }
    }
    out->count = (size_t)(at - out->at);
    return 0;
}

/* A field in which a dash means that it is not set. */
static int put_optional(char_list *out, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    if (bytes == Py_None)
        return put(out, "-", 1);
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return -1;
    if (size == 0)
        return put(out, "-", 1);
    return size == 1 && data[0] == '-' ? put(out, "\\x2d", 4) : put_escaped(out, FIELD, data, (size_t)size);
}

static int put_hex(char_list *out, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return -1;
    char *at = make_room(out, 2 * (size_t)size + 1);
    if (at == NULL)
        return -1;
    write_hex((const uint8_t *)data, (size_t)size, at);
    out->count += 2 * (size_t)size;
    return 0;
}

/* Appends the result of a call: steals the reference, which may be NULL with an exception. */
static int put_taken(char_list *out, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    const int failed =
        bytes == NULL || PyBytes_AsStringAndSize(bytes, &data, &size) < 0 || put(out, data, (size_t)size);
    Py_XDECREF(bytes);
    return failed ? -1 : 0;
}

static int get_unsigned(const struct printer *p, PyObject *inode, enum attribute attribute, uint64_t *out) {
    return model_get_unsigned(&p->model, inode, attribute, out);
}

static int put_xattrs(struct printer *p, PyObject *inode) {
    PyObject *xattrs = model_get(&p->model, inode, A_XATTRS);
    if (xattrs == NULL)
        return -1;
    if (xattrs == p->no_xattrs) {
        Py_DECREF(xattrs);
        return 0;
    }
    /* Inodes share mappings. A reference to the cached one keeps its address from being used again. */
    struct printed *known = &p->printed[((uintptr_t)xattrs >> 4) % CACHED];
    PyObject *text = known->xattrs == xattrs ? Py_NewRef(known->text)
                                             : PyObject_CallFunctionObjArgs(p->xattrs_text, xattrs, NULL);
    if (text != NULL && known->xattrs != xattrs && PyBytes_Check(text) && PyBytes_Size(text) <= CACHED_SIZE_MAX) {
        Py_XDECREF(known->text);
        Py_XDECREF(known->xattrs);
        known->text = Py_NewRef(text);
        known->xattrs = Py_NewRef(xattrs);
    }
    Py_DECREF(xattrs);
    return put_taken(&p->out, text);
}

static int put_path(struct printer *p, enum plain least) {
    return put_escaped(&p->out, least, PyByteArray_AsString(p->path), (size_t)PyByteArray_Size(p->path));
}

/* A number and the byte after it. Not snprintf, which takes longer than the rest of a line. */
static inline int put_number(char_list *out, uint64_t number, unsigned base, char after) {
    char text[24], *at = text + sizeof text;
    *--at = after;
    do
        *--at = (char)('0' + number % base);
    while (number /= base);
    return put(out, at, (size_t)(text + sizeof text - at));
}

/* PATH to MTIME. */
static int put_head(struct printer *p, PyObject *inode, uint64_t size, uint64_t nlink) {
    uint64_t mode, uid, gid, nsec;
    int64_t sec;
    char_list *out = &p->out;
    if (model_get_signed(&p->model, inode, A_SEC, &sec) || get_unsigned(p, inode, A_MODE, &mode) ||
        get_unsigned(p, inode, A_UID, &uid) || get_unsigned(p, inode, A_GID, &gid) ||
        get_unsigned(p, inode, A_NSEC, &nsec))
        return -1;
    return put_path(p, FIELD) || put(out, " ", 1) || put_number(out, size, 10, ' ') || put_number(out, mode, 8, ' ') ||
                   put_number(out, nlink, 10, ' ') || put_number(out, uid, 10, ' ') || put_number(out, gid, 10, ' ') ||
                   put(out, sec < 0 ? "0 -" : "0 ", sec < 0 ? 3 : 2) ||
                   put_number(out, sec < 0 ? -(uint64_t)sec : (uint64_t)sec, 10, '.') || put_number(out, nsec, 10, ' ')
               ? -1
               : 0;
}

/* PAYLOAD, CONTENT and DIGEST of a regular file. */
static int put_contents(struct printer *p, PyObject *content) {
    if (PyBytes_Check(content))
        return put(&p->out, "- ", 2) || put_optional(&p->out, content) || put(&p->out, " -", 2) ? -1 : 0;
    PyObject *payload = model_get(&p->model, content, A_PAYLOAD), *digest = model_get(&p->model, content, A_DIGEST);
    const int failed = payload == NULL || digest == NULL || put_optional(&p->out, payload) || put(&p->out, " - ", 3) ||
                       (digest == Py_None ? put(&p->out, "-", 1) : put_hex(&p->out, digest));
    Py_XDECREF(payload);
    Py_XDECREF(digest);
    return failed ? -1 : 0;
}

static int print_file(struct printer *p, PyObject *inode, PyObject *content) {
    uint64_t size, nlink;
    return get_unsigned(p, inode, A_SIZE, &size) || get_unsigned(p, inode, A_NLINK, &nlink) ||
                   put_head(p, inode, size, nlink) || put_contents(p, content) || put_xattrs(p, inode) ||
                   put(&p->out, "\n", 1)
               ? -1
               : 0;
}

static int print_symlink(struct printer *p, PyObject *inode) {
    uint64_t nlink;
    PyObject *target = model_get(&p->model, inode, A_TARGET);
    const int failed = target == NULL || !PyBytes_Check(target) || get_unsigned(p, inode, A_NLINK, &nlink) ||
                       put_head(p, inode, (uint64_t)PyBytes_Size(target), nlink) ||
                       put_optional(&p->out, target) || put(&p->out, " - -", 4) || put_xattrs(p, inode) ||
                       put(&p->out, "\n", 1);
    Py_XDECREF(target);
    if (failed && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "a target must be bytes");
    return failed ? -1 : 0;
}

/* A line of a listing. What a symlink or an external file refers to follows the first name of its inode. */
static int list_inode(struct printer *p, PyObject *inode, int is_first) {
    const int is_link = is_first && model_is(&p->model, inode, K_SYMLINK);
    PyObject *content = is_first && model_is(&p->model, inode, K_FILE) ? model_get(&p->model, inode, A_CONTENT) : NULL;
    PyObject *target = is_link ? model_get(&p->model, inode, A_TARGET) : NULL;
    if (content != NULL && model_is(&p->model, content, K_EXTERNAL))
        target = model_get(&p->model, content, A_PAYLOAD);
    int failed = PyErr_Occurred() || put_path(p, LISTED) ||
                 (model_is(&p->model, inode, K_DIRECTORY) && put(&p->out, "/\t", 2));
    if (!failed && target != NULL && target != Py_None && (is_link || PyObject_Size(target) != 0)) {
        char *data;
        Py_ssize_t size;
        failed = PyBytes_AsStringAndSize(target, &data, &size) < 0 ||
                 (is_link ? put(&p->out, "\t-> ", 4) : put(&p->out, "\t@ ", 3)) ||
                 put_escaped(&p->out, FIELD, data, (size_t)size);
    }
    Py_XDECREF(content);
    Py_XDECREF(target);
    return failed || put(&p->out, "\n", 1) ? -1 : 0;
}

/* The bytes that the entries of a directory take in an image (composefs format, section 3.2). */
struct packing {
    uint64_t blocks;
    size_t used;
};

static void pack(struct packing *packing, size_t name_size) {
    const size_t cost = FMT_DIRENT_BYTES + name_size;
    if (packing->used + cost > FMT_BLOCK_SIZE) {
        packing->blocks++;
        packing->used = 0;
    }
    packing->used += cost;
}

static uint64_t packed_size(const struct packing *packing) {
    const int is_block = packing->used > FMT_TAIL_MAX;
    return (packing->blocks + (is_block ? 1 : 0)) * FMT_BLOCK_SIZE + (is_block ? 0 : packing->used);
}

/* The data size and the link count of a directory with these sorted items. */
static int measure(const struct printer *p, PyObject *items, uint64_t *size, uint64_t *nlink) {
    static const char *const dots[] = {".", ".."};
    struct packing packing = {0, 0};
    size_t dot = 0;
    *nlink = 2;
    for (Py_ssize_t i = 0; i < PyList_Size(items); i++) {
        PyObject *item = PyList_GetItem(items, i), *name = PyTuple_GetItem(item, 0);
        char *text;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(name, &text, &length) < 0)
            return -1;
        for (; dot < 2 && strcmp(dots[dot], text) < 0; dot++)
            pack(&packing, dot + 1);
        pack(&packing, (size_t)length);
        *nlink += model_is(&p->model, PyTuple_GetItem(item, 1), K_DIRECTORY);
    }
    for (; dot < 2; dot++)
        pack(&packing, dot + 1);
    *size = packed_size(&packing);
    return 0;
}

/* Puts a directory on the stack: its items, the last one first, and how much of the path is its own. Whole paths of all
 * directories on the stack would take memory by the square of the depth. */
static int push(const struct printer *p, PyObject *items, Py_ssize_t prefix) {
    PyObject *frame = PyList_Reverse(items) ? NULL : Py_BuildValue("(On)", items, prefix);
    const int failed = frame == NULL || PyList_Append(p->stack, frame);
    Py_XDECREF(frame);
    return failed ? -1 : 0;
}

/* Sets the path to that of a name in the directory whose own path is the first `prefix` bytes. */
static int set_path(const struct printer *p, Py_ssize_t prefix, PyObject *name) {
    char *text, *at;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(name, &text, &size) < 0)
        return -1;
    if (prefix < 0 || prefix > PyByteArray_Size(p->path)) {
        PyErr_SetString(PyExc_ValueError, "the path is shorter than that of the directory");
        return -1;
    }
    if (PyByteArray_Resize(p->path, prefix + 1 + size))
        return -1;
    at = PyByteArray_AsString(p->path) + prefix;
    at[0] = '/';
    memcpy(at + 1, text, (size_t)size);
    return 0;
}

static PyObject *path_bytes(const struct printer *p) {
    return PyBytes_FromStringAndSize(PyByteArray_AsString(p->path), PyByteArray_Size(p->path));
}

static PyObject *sorted_items(const struct printer *p, PyObject *directory) {
    PyObject *entries = model_entries(&p->model, directory);
    PyObject *items = entries != NULL ? PyDict_Items(entries) : NULL;
    if (items != NULL && PyList_Sort(items))
        Py_CLEAR(items);
    if (items == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "entries must be a dictionary");
    return items;
}

static int ask_line(struct printer *p, PyObject *inode, PyObject *first) {
    PyObject *path = path_bytes(p);
    const int failed =
        path == NULL || put_taken(&p->out, PyObject_CallFunctionObjArgs(p->line, path, inode, first, NULL));
    Py_XDECREF(path);
    return failed ? -1 : 0;
}

static int print_directory(struct printer *p, PyObject *inode) {
    uint64_t size, nlink;
    const Py_ssize_t length = PyByteArray_Size(p->path);
    PyObject *items = sorted_items(p, inode);
    int failed = items == NULL;
    if (!failed && p->line == Py_None)
        failed = list_inode(p, inode, 1);
    else if (!failed && length == 1) /* the root of an image has more entries */
        failed = ask_line(p, inode, Py_None);
    else if (!failed)
        failed = measure(p, items, &size, &nlink) || put_head(p, inode, size, nlink) || put(&p->out, "- - -", 5) ||
                 put_xattrs(p, inode) || put(&p->out, "\n", 1);
    failed = failed || push(p, items, length == 1 ? 0 : length);
    Py_XDECREF(items);
    return failed ? -1 : 0;
}

/* The first path of an inode with several names, borrowed; None where this path is the first. */
static PyObject *first_of(struct printer *p, PyObject *inode) {
    const int is_linked = PyDict_Contains(p->firsts, inode);
    if (is_linked <= 0)
        return is_linked < 0 ? NULL : Py_None;
    PyObject *first = PyDict_GetItemWithError(p->firsts, inode);
    if (first == Py_None) {
        PyObject *path = path_bytes(p);
        const int failed = path == NULL || PyDict_SetItem(p->firsts, inode, path);
        Py_XDECREF(path);
        return failed ? NULL : Py_None;
    }
    return first;
}

static int print_inode(struct printer *p, PyObject *inode) {
    if (model_is(&p->model, inode, K_DIRECTORY))
        return print_directory(p, inode);
    PyObject *first = first_of(p, inode);
    if (first == NULL)
        return -1;
    if (p->line == Py_None)
        return list_inode(p, inode, first == Py_None);
    if (first == Py_None && model_is(&p->model, inode, K_SYMLINK))
        return print_symlink(p, inode);
    if (first != Py_None || !model_is(&p->model, inode, K_FILE))
        return ask_line(p, inode, first);
    PyObject *content = model_get(&p->model, inode, A_CONTENT);
    if (content == NULL)
        return -1;
    const int is_known = PyBytes_Check(content) || model_is(&p->model, content, K_EXTERNAL);
    const int failed = is_known ? print_file(p, inode, content) : ask_line(p, inode, Py_None);
    Py_DECREF(content);
    return failed;
}

static int print_entry(struct printer *p, Py_ssize_t prefix, PyObject *item) {
    if (!PyTuple_Check(item) || PyTuple_Size(item) != 2) {
        PyErr_SetString(PyExc_TypeError, "an item is (name, entry)");
        return -1;
    }
    PyObject *entry = PyTuple_GetItem(item, 1);
    if (set_path(p, prefix, PyTuple_GetItem(item, 0)))
        return -1;
    if (!model_is(&p->model, entry, K_LINK))
        return print_inode(p, entry);
    PyObject *inode = model_get(&p->model, entry, A_LINKED);
    const int failed = inode == NULL || print_inode(p, inode);
    Py_XDECREF(inode);
    return failed ? -1 : 0;
}

/* Prints the next item of the topmost directory, or removes that from the stack. */
static int print_next(struct printer *p, Py_ssize_t frames) {
    PyObject *items;
    Py_ssize_t prefix;
    PyObject *frame = PyList_GetItem(p->stack, frames - 1);
    if (!PyTuple_Check(frame)) {
        PyErr_SetString(PyExc_TypeError, "the stack is of (items, length)");
        return -1;
    }
    if (!PyArg_ParseTuple(frame, "O!n", &PyList_Type, &items, &prefix))
        return -1;
    const Py_ssize_t left = PyList_Size(items);
    if (left == 0)
        return PyList_SetSlice(p->stack, frames - 1, frames, NULL);
    PyObject *item = Py_NewRef(PyList_GetItem(items, left - 1));
    const int failed = PyList_SetSlice(items, left - 1, left, NULL) || print_entry(p, prefix, item);
    Py_DECREF(item);
    return failed;
}

/* Removes directories without items, so that the stack is empty only at the end. */
static int drop_empty(struct printer *p) {
    for (Py_ssize_t frames; (frames = PyList_Size(p->stack)) > 0;) {
        PyObject *items = PyTuple_GetItem(PyList_GetItem(p->stack, frames - 1), 0);
        if (items == NULL)
            return -1;
        if (PyList_Size(items) != 0)
            return PyErr_Occurred() ? -1 : 0;
        if (PyList_SetSlice(p->stack, frames - 1, frames, NULL))
            return -1;
    }
    return 0;
}

/* Prints from the stack until it is empty or there is enough. */
static int print_some(struct printer *p, size_t enough) {
    for (Py_ssize_t frames; (frames = PyList_Size(p->stack)) > 0 && p->out.count < enough;)
        if (print_next(p, frames))
            return -1;
    return drop_empty(p);
}

PyObject *native_print_entries(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *kinds, *result = NULL;
    Py_ssize_t enough;
    struct printer p;
    memset(&p, 0, sizeof p);
    if (!PyArg_ParseTuple(args, "O!O!O!OOOO!n", &PyList_Type, &p.stack, &PyByteArray_Type, &p.path, &PyDict_Type,
                          &p.firsts, &p.line, &p.xattrs_text, &p.no_xattrs, &PyTuple_Type, &kinds, &enough))
        return NULL;
    if (model_open(&p.model, kinds) == 0 && print_some(&p, enough > 0 ? (size_t)enough : 1) == 0)
        result = PyBytes_FromStringAndSize(p.out.at, (Py_ssize_t)p.out.count);
    model_close(&p.model);
    for (int i = 0; i < CACHED; i++) {
        Py_XDECREF(p.printed[i].xattrs);
        Py_XDECREF(p.printed[i].text);
    }
    free(p.out.at);
    return result;
}
