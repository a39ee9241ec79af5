/* The ordinary lines of a dump text, as cfstools/formats/dump/parse.py reads them.
 *
 * A line with anything out of the ordinary (escapes outside of contents, hard links, odd numbers, errors) is left to
 * Python, which says what the text means and what is wrong with it. */
#include <string.h>

#include "model.h"
#include "native.h"
#include "outcome.h"

#define NAME_LENGTH_MAX 255
#define PAYLOAD_LENGTH_MAX 4095
#define INLINE_LENGTH_MAX 5000
#define EXTERNAL_SIZE_MAX ((uint64_t)1024 << 43)

enum { PATH, SIZE, MODE, NLINK, UID, GID, RDEV, MTIME, PAYLOAD, CONTENT, DIGEST, XATTRS, FIELDS };
enum { TYPE_FIFO = 0x1, TYPE_CHR = 0x2, TYPE_DIR = 0x4, TYPE_BLK = 0x6, TYPE_REG = 0x8, TYPE_LNK = 0xa, TYPE_SOCK = 0xc };

struct field {
    const uint8_t *data;
    size_t size;
};

struct line {
    struct field fields[FIELDS];
    int has_xattrs;
    uint64_t mode, size, nlink, uid, gid, rdev, sec, nsec;
};

struct parser {
    struct model model;
    PyObject *directories, *xattrs, *no_xattrs; /* borrowed */
    size_t digits;
    int strict;
    struct numbers numbers;
    const uint8_t *parent_path; /* of the line before; entries of its parent, borrowed */
    size_t parent_size;
    PyObject *entries;
    const uint8_t *xattr_text; /* of the last line that had any */
    size_t xattr_size;
    PyObject *xattr_value;
};

/* After a call that failed: an ordinary exception is for Python to raise again, with the place. */
static enum outcome leave(void) {
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return FAILED;
    PyErr_Clear();
    return LEFT;
}

static int is_unset(struct field field) { return field.size == 1 && field.data[0] == '-'; }

static int has(struct field field, int byte) { return memchr(field.data, byte, field.size) != NULL; }

/* A plain number without leading sign or space; -1 for anything else. */
static int number(struct field field, unsigned base, size_t digits, uint64_t *out) {
    *out = 0;
    if (field.size == 0 || field.size > digits)
        return -1;
    for (size_t i = 0; i < field.size; i++) {
        const unsigned digit = (unsigned)field.data[i] - '0';
        if (digit >= base)
            return -1;
        *out = *out * base + digit;
    }
    return 0;
}

static enum outcome split(struct line *line, const uint8_t *at, const uint8_t *end) {
    int count = 0;
    line->has_xattrs = 0;
    if (memchr(at, 0, (size_t)(end - at)))
        return LEFT;
    while (count < XATTRS) {
        const uint8_t *space = memchr(at, ' ', (size_t)(end - at));
        const uint8_t *stop = space != NULL ? space : end;
        line->fields[count++] = (struct field){at, (size_t)(stop - at)};
        if (space == NULL)
            return count == XATTRS ? DONE : LEFT;
        at = space + 1;
    }
    line->fields[XATTRS] = (struct field){at, (size_t)(end - at)};
    line->has_xattrs = at < end;
    return DONE;
}

static enum outcome parse_numbers(struct line *line) {
    const struct field *f = line->fields;
    const uint8_t *dot = memchr(f[MTIME].data, '.', f[MTIME].size);
    if (dot == NULL || number(f[MODE], 8, 7, &line->mode) || number(f[SIZE], 10, 19, &line->size) ||
        number(f[NLINK], 10, 19, &line->nlink) || number(f[UID], 10, 19, &line->uid) ||
        number(f[GID], 10, 19, &line->gid) || number(f[RDEV], 10, 19, &line->rdev))
        return LEFT;
    const size_t before = (size_t)(dot - f[MTIME].data);
    const struct field sec = {f[MTIME].data, before}, nsec = {dot + 1, f[MTIME].size - before - 1};
    if (number(sec, 10, 18, &line->sec) || number(nsec, 10, 19, &line->nsec))
        return LEFT;
    line->mode &= 0xffff;
    line->nlink &= UINT32_MAX, line->uid &= UINT32_MAX, line->gid &= UINT32_MAX;
    line->nsec &= UINT32_MAX;
    return DONE;
}

static int set_number(struct parser *p, PyObject *object, enum attribute attribute, uint64_t value) {
    return model_set_taken(&p->model, object, attribute, numbers_get(&p->numbers, value));
}

static PyObject *bytes_of(struct field field) {
    return PyBytes_FromStringAndSize((const char *)field.data, (Py_ssize_t)field.size);
}

static int hex_digit(uint8_t byte) {
    return byte >= '0' && byte <= '9'   ? byte - '0'
           : byte >= 'a' && byte <= 'f' ? byte - 'a' + 10
           : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10
                                        : -1;
}

/* Undoes the escapes; returns the length, -1 for what is no escape or too long. */
static long unescape(struct field field, uint8_t *out) {
    size_t size = 0;
    for (size_t i = 0; i < field.size; i++) {
        uint8_t byte = field.data[i];
        if (size == INLINE_LENGTH_MAX)
            return -1;
        if (byte == '\\') {
            if (++i == field.size)
                return -1;
            switch (field.data[i]) {
            case '\\': byte = '\\'; break;
            case 'n': byte = '\n'; break;
            case 'r': byte = '\r'; break;
            case 't': byte = '\t'; break;
            case 'x': {
                const int high = i + 2 < field.size ? hex_digit(field.data[i + 1]) : -1;
                const int low = i + 2 < field.size ? hex_digit(field.data[i + 2]) : -1;
                if (high < 0 || low < 0)
                    return -1;
                byte = (uint8_t)(high << 4 | low);
                i += 2;
                break;
            }
            default: return -1;
            }
        }
        out[size++] = byte;
    }
    return (long)size;
}

/* The attributes of a line; most lines have those of the line before. */
static enum outcome find_xattrs(struct parser *p, const struct line *line, PyObject **out) {
    const struct field text = line->fields[XATTRS];
    if (!line->has_xattrs) {
        *out = Py_NewRef(p->no_xattrs);
        return DONE;
    }
    if (p->xattr_value == NULL || p->xattr_size != text.size || memcmp(p->xattr_text, text.data, text.size) != 0) {
        PyObject *key = bytes_of(text);
        PyObject *value = key != NULL ? PyObject_GetItem(p->xattrs, key) : NULL;
        Py_XDECREF(key);
        if (value == NULL)
            return leave();
        Py_XDECREF(p->xattr_value);
        p->xattr_value = value;
        p->xattr_text = text.data;
        p->xattr_size = text.size;
    }
    *out = Py_NewRef(p->xattr_value);
    return DONE;
}

/* The entries of the directory a line's path is in, and the path's last name. */
static enum outcome find_parent(struct parser *p, const struct line *line, PyObject **name) {
    const struct field path = line->fields[PATH];
    size_t prefix = path.size;
    while (prefix > 0 && path.data[prefix - 1] != '/')
        prefix--;
    if (prefix == 0 || has(path, '\\'))
        return LEFT;
    const struct field last = {path.data + prefix, path.size - prefix};
    prefix--;
    if (last.size == 0 || last.size > NAME_LENGTH_MAX || (last.data[0] == '.' && last.size <= 2 && last.data[last.size - 1] == '.'))
        return LEFT;
    if (p->entries == NULL || p->parent_size != prefix || memcmp(p->parent_path, path.data, prefix) != 0) {
        PyObject *key = bytes_of((struct field){path.data, prefix});
        PyObject *parent = key != NULL ? PyDict_GetItemWithError(p->directories, key) : NULL;
        Py_XDECREF(key);
        if (parent == NULL)
            return PyErr_Occurred() ? FAILED : LEFT;
        if ((PyObject *)Py_TYPE(parent) != p->model.kinds[K_DIRECTORY])
            return LEFT;
        PyObject *entries = model_get(&p->model, parent, A_ENTRIES);
        if (entries == NULL)
            return leave();
        Py_DECREF(entries); /* the directory holds it, and the dictionary of directories that */
        if (!PyDict_Check(entries))
            return LEFT;
        p->entries = entries;
        p->parent_path = path.data;
        p->parent_size = prefix;
    }
    *name = bytes_of(last);
    if (*name == NULL)
        return FAILED;
    const int there = PyDict_Contains(p->entries, *name);
    if (there == 0)
        return DONE;
    Py_CLEAR(*name);
    return there < 0 ? FAILED : LEFT;
}

static enum outcome make_external(struct parser *p, const struct line *line, PyObject **out) {
    const struct field digest = line->fields[DIGEST], payload = line->fields[PAYLOAD];
    uint8_t raw[DIGEST_MAX];
    if (line->size > EXTERNAL_SIZE_MAX)
        return LEFT;
    PyObject *value;
    if (is_unset(digest)) {
        value = Py_NewRef(Py_None);
    } else {
        if (digest.size != p->digits)
            return LEFT;
        for (size_t i = 0; i < digest.size; i += 2) {
            const int high = hex_digit(digest.data[i]), low = hex_digit(digest.data[i + 1]);
            if (high < 0 || low < 0)
                return LEFT;
            raw[i / 2] = (uint8_t)(high << 4 | low);
        }
        value = PyBytes_FromStringAndSize((const char *)raw, (Py_ssize_t)(digest.size / 2));
    }
    *out = model_new_external(&p->model, value, is_unset(payload) ? Py_NewRef(Py_None) : bytes_of(payload));
    return *out != NULL ? DONE : FAILED;
}

static enum outcome make_content(struct parser *p, const struct line *line, PyObject **out) {
    const struct field content = line->fields[CONTENT];
    uint8_t inlined[INLINE_LENGTH_MAX];
    long size = 0;
    if (!is_unset(content)) {
        size = unescape(content, inlined);
        if (size < 0 || (uint64_t)size != line->size)
            return LEFT;
    } else if (line->size > 0) {
        return make_external(p, line, out);
    }
    *out = PyBytes_FromStringAndSize((const char *)inlined, size);
    return *out == NULL ? FAILED : DONE;
}

static int set_common(struct parser *p, PyObject *inode, const struct line *line, PyObject *xattrs) {
    return set_number(p, inode, A_MODE, line->mode) || set_number(p, inode, A_UID, line->uid) ||
           set_number(p, inode, A_GID, line->gid) || set_number(p, inode, A_SEC, line->sec) ||
           set_number(p, inode, A_NSEC, line->nsec) || model_set(&p->model, inode, A_XATTRS, xattrs);
}

static int kind_of(unsigned type) {
    switch (type) {
    case TYPE_DIR: return K_DIRECTORY;
    case TYPE_REG: return K_FILE;
    case TYPE_LNK: return K_SYMLINK;
    case TYPE_CHR:
    case TYPE_BLK: return K_DEVICE;
    case TYPE_FIFO: return K_FIFO;
    case TYPE_SOCK: return K_SOCKET;
    default: return -1;
    }
}

static enum outcome fill(struct parser *p, PyObject *inode, int kind, const struct line *line) {
    PyObject *content;
    int failed;
    if (set_number(p, inode, A_NLINK, kind == K_DIRECTORY ? 1 : line->nlink))
        return FAILED;
    switch (kind) {
    case K_DIRECTORY: failed = model_set_taken(&p->model, inode, A_ENTRIES, PyDict_New()); break;
    case K_FILE:
        TRY(make_content(p, line, &content));
        failed = model_set_taken(&p->model, inode, A_CONTENT, content) || set_number(p, inode, A_SIZE, line->size);
        break;
    case K_SYMLINK: failed = model_set_taken(&p->model, inode, A_TARGET, bytes_of(line->fields[PAYLOAD])); break;
    case K_DEVICE:
        failed = set_number(p, inode, A_RDEV, line->rdev & UINT32_MAX) || set_number(p, inode, A_DEVICE_SIZE, line->size);
        break;
    case K_FIFO: failed = set_number(p, inode, A_FIFO_SIZE, line->size); break;
    default: failed = set_number(p, inode, A_SOCKET_SIZE, line->size); break;
    }
    return failed ? FAILED : DONE;
}

/* Rules that do not depend on the tree. */
static enum outcome check(const struct parser *p, const struct line *line, int kind) {
    const struct field *f = line->fields;
    const int has_payload = !is_unset(f[PAYLOAD]), has_content = !is_unset(f[CONTENT]);
    if (kind < 0 || f[PAYLOAD].size == 0 || f[CONTENT].size == 0 || f[DIGEST].size == 0)
        return LEFT;
    if (has(f[PAYLOAD], '\\') || has(f[DIGEST], '\\') || f[PAYLOAD].size > PAYLOAD_LENGTH_MAX)
        return LEFT;
    if (kind != K_FILE && has_content)
        return LEFT;
    if (kind == K_SYMLINK && !has_payload)
        return LEFT;
    if (p->strict && ((kind != K_DEVICE && line->rdev) || (kind == K_SYMLINK && line->size != f[PAYLOAD].size)))
        return LEFT;
    return DONE;
}

static enum outcome add_inode(struct parser *p, const struct line *line, int kind, PyObject *name, PyObject *xattrs) {
    PyObject *inode = model_new(&p->model, (enum kind)kind);
    if (inode == NULL)
        return FAILED;
    enum outcome outcome = set_common(p, inode, line, xattrs) ? FAILED : fill(p, inode, kind, line);
    if (outcome == DONE && kind == K_DIRECTORY) {
        PyObject *path = bytes_of(line->fields[PATH]);
        if (path == NULL || PyDict_SetItem(p->directories, path, inode))
            outcome = FAILED;
        Py_XDECREF(path);
    }
    if (outcome == DONE && PyDict_SetItem(p->entries, name, inode))
        outcome = FAILED;
    Py_DECREF(inode);
    return outcome;
}

static enum outcome add_line(struct parser *p, const uint8_t *start, const uint8_t *end) {
    struct line line;
    PyObject *name, *xattrs;
    TRY(split(&line, start, end));
    TRY(parse_numbers(&line));
    const int kind = kind_of((unsigned)line.mode >> 12);
    TRY(check(p, &line, kind));
    TRY(find_parent(p, &line, &name));
    enum outcome outcome = find_xattrs(p, &line, &xattrs);
    if (outcome == DONE) {
        outcome = add_inode(p, &line, kind, name, xattrs);
        Py_DECREF(xattrs);
    }
    Py_DECREF(name);
    return outcome;
}

PyObject *native_parse_lines(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *text, *kinds, *result = NULL;
    Py_ssize_t start, digits, lines = 0;
    struct parser p = {.strict = 0};
    if (!PyArg_ParseTuple(args, "O!nO!O!OOnp", &PyBytes_Type, &text, &start, &PyTuple_Type, &kinds, &PyDict_Type,
                          &p.directories, &p.xattrs, &p.no_xattrs, &digits, &p.strict))
        return NULL;
    const uint8_t *data = (const uint8_t *)PyBytes_AsString(text);
    const Py_ssize_t length = PyBytes_Size(text);
    if (start < 0 || start > length || digits < 2 || digits > 2 * DIGEST_MAX || digits % 2) {
        PyErr_SetString(PyExc_ValueError, "start or digits out of range");
        return NULL;
    }
    p.digits = (size_t)digits;
    enum outcome outcome = model_open(&p.model, kinds) ? FAILED : DONE;
    while (outcome == DONE && start <= length) {
        const uint8_t *newline = memchr(data + start, '\n', (size_t)(length - start));
        const uint8_t *end = newline != NULL ? newline : data + length;
        outcome = add_line(&p, data + start, end);
        if (outcome == DONE) {
            start = end - data + 1;
            lines++;
        }
    }
    if (outcome != FAILED)
        result = Py_BuildValue("(nn)", start, lines);
    model_close(&p.model);
    Py_XDECREF(p.xattr_value);
    numbers_close(&p.numbers);
    return result;
}
