/* The lines of a dump text for ordinary entries, as cfstools/formats/dump/print.py prints them.
 *
 * The line of anything else is asked of Python, which also knows what cannot be printed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "model.h"
#include "native.h"

#define DIRENT_SIZE 12
#define TAIL_MAX (BLOCK / 2)
#define REMEMBERED 256
#define REMEMBERED_SIZE_MAX 4096

struct text {
    char *data;
    size_t size, room;
};

/* Attributes printed lately. */
struct printed {
    PyObject *xattrs, *text;
};

struct printer {
    struct model model;
    PyObject *stack, *path, *firsts, *line, *xattrs_text, *no_xattrs; /* borrowed */
    struct text out;
    struct printed printed[REMEMBERED];
};

/* Room for `size` more bytes; NULL with an exception. */
static char *make_room(struct text *text, size_t size) {
    if (text->room - text->size < size) {
        const size_t room = 2 * (text->room + size);
        char *data = realloc(text->data, room);
        if (data == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        text->data = data;
        text->room = room;
    }
    return text->data + text->size;
}

static int put(struct text *text, const char *data, size_t size) {
    char *at = make_room(text, size);
    if (at == NULL)
        return -1;
    memcpy(at, data, size);
    text->size += size;
    return 0;
}

static int put_escaped(struct text *text, const char *data, size_t size) {
    static const char digits[] = "0123456789abcdef";
    char *at = make_room(text, 4 * size);
    if (at == NULL)
        return -1;
    for (size_t i = 0; i < size; i++) {
        const uint8_t byte = (uint8_t)data[i];
        if (byte > 0x20 && byte < 0x7f && byte != '\\') {
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
            *at++ = digits[byte >> 4];
            *at++ = digits[byte & 15];
        }
    }
    text->size = (size_t)(at - text->data);
    return 0;
}

/* A field that a dash would say is not set. */
static int put_optional(struct text *text, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    if (bytes == Py_None)
        return put(text, "-", 1);
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return -1;
    if (size == 0)
        return put(text, "-", 1);
    return size == 1 && data[0] == '-' ? put(text, "\\x2d", 4) : put_escaped(text, data, (size_t)size);
}

static int put_hex(struct text *text, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return -1;
    char *at = make_room(text, 2 * (size_t)size + 1);
    if (at == NULL)
        return -1;
    native_hex((const uint8_t *)data, (size_t)size, at);
    text->size += 2 * (size_t)size;
    return 0;
}

/* Appends what a call gave, whose reference is taken over and which may be NULL with an exception. */
static int put_taken(struct text *text, PyObject *bytes) {
    char *data;
    Py_ssize_t size;
    const int failed =
        bytes == NULL || PyBytes_AsStringAndSize(bytes, &data, &size) < 0 || put(text, data, (size_t)size);
    Py_XDECREF(bytes);
    return failed ? -1 : 0;
}

static int get_unsigned(const struct printer *p, PyObject *inode, enum attribute attribute, unsigned long long *out) {
    PyObject *value = model_get(&p->model, inode, attribute);
    if (value == NULL)
        return -1;
    *out = PyLong_AsUnsignedLongLong(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

static int put_xattrs(struct printer *p, PyObject *inode) {
    PyObject *xattrs = model_get(&p->model, inode, A_XATTRS);
    if (xattrs == NULL)
        return -1;
    if (xattrs == p->no_xattrs) {
        Py_DECREF(xattrs);
        return 0;
    }
    /* Mappings are shared between inodes; holding on to one keeps its address from being used again. */
    struct printed *known = &p->printed[((uintptr_t)xattrs >> 4) % REMEMBERED];
    PyObject *text = known->xattrs == xattrs ? Py_NewRef(known->text)
                                             : PyObject_CallFunctionObjArgs(p->xattrs_text, xattrs, NULL);
    if (text != NULL && known->xattrs != xattrs && PyBytes_Check(text) && PyBytes_Size(text) <= REMEMBERED_SIZE_MAX) {
        Py_XDECREF(known->text);
        Py_XDECREF(known->xattrs);
        known->text = Py_NewRef(text);
        known->xattrs = Py_NewRef(xattrs);
    }
    Py_DECREF(xattrs);
    return put_taken(&p->out, text);
}

/* Path, size and what every inode has, up to the modification time. */
static int put_head(struct printer *p, PyObject *inode, unsigned long long size,
                    unsigned long long nlink) {
    unsigned long long mode, uid, gid, nsec;
    char numbers[200];
    PyObject *sec = model_get(&p->model, inode, A_SEC);
    const long long seconds = sec != NULL ? PyLong_AsLongLong(sec) : 0;
    Py_XDECREF(sec);
    if (sec == NULL || PyErr_Occurred() || get_unsigned(p, inode, A_MODE, &mode) || get_unsigned(p, inode, A_UID, &uid) ||
        get_unsigned(p, inode, A_GID, &gid) || get_unsigned(p, inode, A_NSEC, &nsec))
        return -1;
    const int length = snprintf(numbers, sizeof numbers, " %llu %llo %llu %llu %llu 0 %lld.%llu ", size, mode, nlink, uid,
                                gid, seconds, nsec);
    return put_escaped(&p->out, PyByteArray_AsString(p->path), (size_t)PyByteArray_Size(p->path)) ||
                   put(&p->out, numbers, (size_t)length)
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
    unsigned long long size, nlink;
    return get_unsigned(p, inode, A_SIZE, &size) || get_unsigned(p, inode, A_NLINK, &nlink) ||
                   put_head(p, inode, size, nlink) || put_contents(p, content) || put_xattrs(p, inode) ||
                   put(&p->out, "\n", 1)
               ? -1
               : 0;
}

static int print_symlink(struct printer *p, PyObject *inode) {
    unsigned long long nlink;
    PyObject *target = model_get(&p->model, inode, A_TARGET);
    const int failed = target == NULL || !PyBytes_Check(target) || get_unsigned(p, inode, A_NLINK, &nlink) ||
                       put_head(p, inode, (unsigned long long)PyBytes_Size(target), nlink) ||
                       put_optional(&p->out, target) || put(&p->out, " - -", 4) || put_xattrs(p, inode) ||
                       put(&p->out, "\n", 1);
    Py_XDECREF(target);
    if (failed && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "a target must be bytes");
    return failed ? -1 : 0;
}

/* The bytes that the entries of a directory take in an image (composefs format, section 3.2). */
struct packing {
    unsigned long long blocks;
    size_t used;
};

static void pack(struct packing *packing, size_t name_size) {
    const size_t cost = DIRENT_SIZE + name_size;
    if (packing->used + cost > BLOCK) {
        packing->blocks++;
        packing->used = 0;
    }
    packing->used += cost;
}

static unsigned long long packed_size(const struct packing *packing) {
    const int is_block = packing->used > TAIL_MAX;
    return (packing->blocks + (is_block ? 1 : 0)) * BLOCK + (is_block ? 0 : packing->used);
}

/* Looks over the sorted items of a directory: the size of its data, and its link count. */
static int measure(const struct printer *p, PyObject *items, unsigned long long *size, unsigned long long *nlink) {
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
        *nlink += (PyObject *)Py_TYPE(PyTuple_GetItem(item, 1)) == p->model.kinds[K_DIRECTORY];
    }
    for (; dot < 2; dot++)
        pack(&packing, dot + 1);
    *size = packed_size(&packing);
    return 0;
}

/* Where the entries of a directory are to be printed next: what is left of its items, the last one first, and how much
 * of the path is the directory's. Paths of all directories that are open would take room by the square of the depth. */
static int push(const struct printer *p, PyObject *items, Py_ssize_t prefix) {
    PyObject *frame = PyList_Reverse(items) ? NULL : Py_BuildValue("(On)", items, prefix);
    const int failed = frame == NULL || PyList_Append(p->stack, frame);
    Py_XDECREF(frame);
    return failed ? -1 : 0;
}

/* Makes the path that of a name in a directory whose own path is the first part of it. */
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
    PyObject *entries = model_get(&p->model, directory, A_ENTRIES);
    PyObject *items = entries != NULL && PyDict_Check(entries) ? PyDict_Items(entries) : NULL;
    Py_XDECREF(entries);
    if (items != NULL && PyList_Sort(items))
        Py_CLEAR(items);
    if (items == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "entries must be a dictionary");
    return items;
}

static int ask_line(struct printer *p, PyObject *inode, PyObject *first) {
    PyObject *path = path_bytes(p);
    const int failed = path == NULL || put_taken(&p->out, PyObject_CallFunctionObjArgs(p->line, path, inode, first, NULL));
    Py_XDECREF(path);
    return failed ? -1 : 0;
}

static int print_directory(struct printer *p, PyObject *inode) {
    unsigned long long size, nlink;
    const Py_ssize_t length = PyByteArray_Size(p->path);
    PyObject *items = sorted_items(p, inode);
    int failed = items == NULL || measure(p, items, &size, &nlink);
    if (!failed) {
        if (length == 1) /* the root has more names in an image */
            failed = ask_line(p, inode, Py_None);
        else
            failed = put_head(p, inode, size, nlink) || put(&p->out, "- - -", 5) || put_xattrs(p, inode) ||
                     put(&p->out, "\n", 1);
    }
    failed = failed || push(p, items, length == 1 ? 0 : length);
    Py_XDECREF(items);
    return failed ? -1 : 0;
}

/* The path an inode with several names was met at before, or None, which makes this one that; borrowed. */
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
    PyObject *kind = (PyObject *)Py_TYPE(inode);
    if (kind == p->model.kinds[K_DIRECTORY])
        return print_directory(p, inode);
    PyObject *first = first_of(p, inode);
    if (first == NULL)
        return -1;
    if (first == Py_None && kind == p->model.kinds[K_SYMLINK])
        return print_symlink(p, inode);
    if (first != Py_None || kind != p->model.kinds[K_FILE])
        return ask_line(p, inode, first);
    PyObject *content = model_get(&p->model, inode, A_CONTENT);
    if (content == NULL)
        return -1;
    const int is_known = PyBytes_Check(content) || (PyObject *)Py_TYPE(content) == p->model.kinds[K_EXTERNAL];
    const int failed = is_known ? print_file(p, inode, content) : ask_line(p, inode, Py_None);
    Py_DECREF(content);
    return failed;
}

static int print_entry(struct printer *p, Py_ssize_t prefix, PyObject *item) {
    if (!PyTuple_Check(item) || PyTuple_Size(item) != 2) {
        PyErr_SetString(PyExc_TypeError, "what is to be printed is (name, entry)");
        return -1;
    }
    PyObject *entry = PyTuple_GetItem(item, 1);
    if (set_path(p, prefix, PyTuple_GetItem(item, 0)))
        return -1;
    if ((PyObject *)Py_TYPE(entry) != p->model.kinds[K_LINK])
        return print_inode(p, entry);
    PyObject *inode = model_get(&p->model, entry, A_LINKED);
    const int failed = inode == NULL || print_inode(p, inode);
    Py_XDECREF(inode);
    return failed ? -1 : 0;
}

/* Prints the next item of the uppermost directory, or leaves that behind. */
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

/* Leaves behind directories that are done, so that a stack is empty only at the end. */
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
    for (Py_ssize_t frames; (frames = PyList_Size(p->stack)) > 0 && p->out.size < enough;)
        if (print_next(p, frames))
            return -1;
    return drop_empty(p);
}

PyObject *native_print_entries(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *kinds, *result = NULL;
    Py_ssize_t enough;
    struct printer p;
    memset(&p, 0, sizeof p);
    if (!PyArg_ParseTuple(args, "O!O!O!OOOO!n", &PyList_Type, &p.stack, &PyByteArray_Type, &p.path, &PyDict_Type, &p.firsts, &p.line, &p.xattrs_text,
                          &p.no_xattrs, &PyTuple_Type, &kinds, &enough))
        return NULL;
    if (model_open(&p.model, kinds) == 0 && print_some(&p, enough > 0 ? (size_t)enough : 1) == 0)
        result = PyBytes_FromStringAndSize(p.out.data, (Py_ssize_t)p.out.size);
    model_close(&p.model);
    for (int i = 0; i < REMEMBERED; i++) {
        Py_XDECREF(p.printed[i].xattrs);
        Py_XDECREF(p.printed[i].text);
    }
    free(p.out.data);
    return result;
}
