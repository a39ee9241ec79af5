/* Parses the ordinary lines of a dump text, as cfstools/formats/dump/parse.py does.
 *
 * Declines a line with anything unusual (escapes outside of contents, hard links, odd numbers, errors): Python parses
 * it, or reports the error. */
#include "native.h"
#include "tree_model.h"

#define EXTERNAL_SIZE_MAX ((uint64_t)FMT_CHUNK_ENTRIES_MAX << FMT_CHUNK_BITS_MAX)

struct line {
    struct text fields[DUMP_XATTRS + 1];
    int has_xattrs;
    uint64_t mode, size, nlink, uid, gid, rdev, sec, nsec;
};

struct parser {
    struct model model;
    PyObject *directories, *xattrs, *no_xattrs; /* borrowed */
    size_t digits;
    int strict;
    struct numbers numbers;
    struct text parent; /* the directory of the line before, and its entries, borrowed */
    PyObject *entries;
    struct text xattr_text; /* of the last line that had any */
    PyObject *xattr_value;
};

static int is_unset(struct text text) { return text.size == 1 && text.data[0] == '-'; }

/* A plain number without leading sign or space; -1 for anything else. */
static int number(struct text text, unsigned base, size_t digits, uint64_t *out) {
    *out = 0;
    if (text.size == 0 || text.size > digits)
        return -1;
    for (size_t i = 0; i < text.size; i++) {
        const unsigned digit = (unsigned)text.data[i] - '0';
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
    while (count < DUMP_XATTRS) {
        const uint8_t *space = memchr(at, ' ', (size_t)(end - at));
        const uint8_t *stop = space != NULL ? space : end;
        line->fields[count++] = (struct text){at, (size_t)(stop - at)};
        if (space == NULL)
            return count == DUMP_XATTRS ? DONE : LEFT;
        at = space + 1;
    }
    line->fields[DUMP_XATTRS] = (struct text){at, (size_t)(end - at)};
    line->has_xattrs = at < end;
    return DONE;
}

static enum outcome parse_numbers(struct line *line) {
    const struct text *f = line->fields;
    const uint8_t *dot = memchr(f[DUMP_MTIME].data, '.', f[DUMP_MTIME].size);
    if (dot == NULL || number(f[DUMP_MODE], 8, 7, &line->mode) || number(f[DUMP_SIZE], 10, 19, &line->size) ||
        number(f[DUMP_NLINK], 10, 19, &line->nlink) || number(f[DUMP_UID], 10, 19, &line->uid) ||
        number(f[DUMP_GID], 10, 19, &line->gid) || number(f[DUMP_RDEV], 10, 19, &line->rdev))
        return LEFT;
    const size_t before = (size_t)(dot - f[DUMP_MTIME].data);
    const struct text sec = {f[DUMP_MTIME].data, before}, nsec = {dot + 1, f[DUMP_MTIME].size - before - 1};
    if (number(sec, 10, 18, &line->sec) || number(nsec, 10, 19, &line->nsec))
        return LEFT;
    line->mode &= 0xffff;
    line->nlink &= UINT32_MAX, line->uid &= UINT32_MAX, line->gid &= UINT32_MAX;
    line->nsec &= UINT32_MAX;
    return DONE;
}

/* Undoes the escapes; returns the length, -1 for an unknown escape or a text that is too long. */
static long unescape(struct text text, uint8_t *out) {
    size_t size = 0;
    for (size_t i = 0; i < text.size; i++) {
        uint8_t byte = text.data[i];
        if (size == FMT_INLINE_MAX)
            return -1;
        if (byte == '\\') {
            if (++i == text.size)
                return -1;
            switch (text.data[i]) {
            case '\\': byte = '\\'; break;
            case 'n': byte = '\n'; break;
            case 'r': byte = '\r'; break;
            case 't': byte = '\t'; break;
            case 'x': {
                const int value = i + 2 < text.size ? read_hex(text.data + i + 1) : -1;
                if (value < 0)
                    return -1;
                byte = (uint8_t)value;
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

/* The xattrs of a line. Most lines have the same as the line before. */
static enum outcome find_xattrs(struct parser *p, const struct line *line, PyObject **out) {
    const struct text text = line->fields[DUMP_XATTRS];
    if (!line->has_xattrs) {
        *out = Py_NewRef(p->no_xattrs);
        return DONE;
    }
    if (p->xattr_value == NULL || !text_equal(p->xattr_text, text)) {
        PyObject *key = new_bytes(text);
        PyObject *value = key != NULL ? PyObject_GetItem(p->xattrs, key) : NULL;
        Py_XDECREF(key);
        if (value == NULL)
            return leave();
        Py_XDECREF(p->xattr_value);
        p->xattr_value = value;
        p->xattr_text = text;
    }
    *out = Py_NewRef(p->xattr_value);
    return DONE;
}

/* The entries of the directory a line's path is in, and the path's last name. */
static enum outcome find_parent(struct parser *p, const struct line *line, PyObject **name) {
    const struct text path = line->fields[DUMP_PATH];
    size_t prefix = path.size;
    while (prefix > 0 && path.data[prefix - 1] != '/')
        prefix--;
    if (prefix == 0 || text_has(path, '\\'))
        return LEFT;
    const struct text last = {path.data + prefix, path.size - prefix}, parent = {path.data, prefix - 1};
    if (!is_name(last))
        return LEFT;
    if (p->entries == NULL || !text_equal(p->parent, parent)) {
        PyObject *key = new_bytes(parent);
        PyObject *directory = key != NULL ? PyDict_GetItemWithError(p->directories, key) : NULL;
        Py_XDECREF(key);
        if (directory == NULL)
            return PyErr_Occurred() ? FAILED : LEFT;
        p->entries = model_is(&p->model, directory, K_DIRECTORY) ? model_entries(&p->model, directory) : NULL;
        if (p->entries == NULL)
            return leave();
        p->parent = parent;
    }
    *name = new_bytes(last);
    if (*name == NULL)
        return FAILED;
    const int there = PyDict_Contains(p->entries, *name);
    if (there == 0)
        return DONE;
    Py_CLEAR(*name);
    return there < 0 ? FAILED : LEFT;
}

static enum outcome make_external(struct parser *p, const struct line *line, PyObject **out) {
    const struct text digest = line->fields[DUMP_DIGEST], payload = line->fields[DUMP_PAYLOAD];
    uint8_t raw[VERITY_DIGEST_MAX];
    if (line->size > EXTERNAL_SIZE_MAX)
        return LEFT;
    PyObject *value;
    if (is_unset(digest)) {
        value = Py_NewRef(Py_None);
    } else {
        if (digest.size != p->digits)
            return LEFT;
        for (size_t i = 0; i < digest.size; i += 2) {
            const int byte = read_hex(digest.data + i);
            if (byte < 0)
                return LEFT;
            raw[i / 2] = (uint8_t)byte;
        }
        value = PyBytes_FromStringAndSize((const char *)raw, (Py_ssize_t)(digest.size / 2));
    }
    *out = model_new_external(&p->model, value, is_unset(payload) ? Py_NewRef(Py_None) : new_bytes(payload));
    return *out != NULL ? DONE : FAILED;
}

static enum outcome make_content(struct parser *p, const struct line *line, PyObject **out) {
    const struct text content = line->fields[DUMP_CONTENT];
    uint8_t inlined[FMT_INLINE_MAX];
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

static int set_number(struct parser *p, PyObject *inode, enum attribute attribute, uint64_t value) {
    return model_set_number(&p->model, &p->numbers, inode, attribute, value);
}

static enum outcome fill(struct parser *p, PyObject *inode, int kind, const struct line *line) {
    PyObject *content;
    int failed;
    switch (kind) {
    case K_DIRECTORY: failed = model_set_taken(&p->model, inode, A_ENTRIES, PyDict_New()); break;
    case K_FILE:
        TRY(make_content(p, line, &content));
        failed = model_set_taken(&p->model, inode, A_CONTENT, content) || set_number(p, inode, A_SIZE, line->size);
        break;
    case K_SYMLINK: failed = model_set_taken(&p->model, inode, A_TARGET, new_bytes(line->fields[DUMP_PAYLOAD])); break;
    case K_DEVICE:
        failed = set_number(p, inode, A_RDEV, line->rdev & UINT32_MAX) ||
                 set_number(p, inode, A_DEVICE_SIZE, line->size);
        break;
    case K_FIFO: failed = set_number(p, inode, A_FIFO_SIZE, line->size); break;
    default: failed = set_number(p, inode, A_SOCKET_SIZE, line->size); break;
    }
    return failed ? FAILED : DONE;
}

/* Rules that do not depend on the tree. */
static enum outcome check(const struct parser *p, const struct line *line, int kind) {
    const struct text *f = line->fields;
    const int has_payload = !is_unset(f[DUMP_PAYLOAD]), has_content = !is_unset(f[DUMP_CONTENT]);
    if (kind < 0 || f[DUMP_PAYLOAD].size == 0 || f[DUMP_CONTENT].size == 0 || f[DUMP_DIGEST].size == 0)
        return LEFT;
    if (text_has(f[DUMP_PAYLOAD], '\\') || text_has(f[DUMP_DIGEST], '\\') || f[DUMP_PAYLOAD].size > FMT_PAYLOAD_MAX)
        return LEFT;
    if (kind != K_FILE && has_content)
        return LEFT;
    if (kind == K_SYMLINK && !has_payload)
        return LEFT;
    if (p->strict && ((kind != K_DEVICE && line->rdev) || (kind == K_SYMLINK && line->size != f[DUMP_PAYLOAD].size)))
        return LEFT;
    return DONE;
}

static enum outcome add_inode(struct parser *p, const struct line *line, int kind, PyObject *name, PyObject *xattrs) {
    PyObject *inode = model_new(&p->model, (enum kind)kind);
    if (inode == NULL)
        return FAILED;
    const struct common common = {line->mode, line->uid, line->gid, kind == K_DIRECTORY ? 1 : line->nlink, line->nsec,
                                  (int64_t)line->sec, xattrs};
    enum outcome outcome =
        model_set_common(&p->model, &p->numbers, inode, &common) ? FAILED : fill(p, inode, kind, line);
    if (outcome == DONE && kind == K_DIRECTORY) {
        PyObject *path = new_bytes(line->fields[DUMP_PATH]);
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
    const int kind = model_kind_of((uint32_t)line.mode);
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

PyObject *native_parse_lines(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *text, *kinds, *result = NULL;
    Py_ssize_t start, digits, lines = 0;
    struct parser p = {.strict = 0};
    if (!PyArg_ParseTuple(args, "O!nO!O!OOnp", &PyBytes_Type, &text, &start, &PyTuple_Type, &kinds, &PyDict_Type,
                          &p.directories, &p.xattrs, &p.no_xattrs, &digits, &p.strict))
        return NULL;
    const uint8_t *data = (const uint8_t *)PyBytes_AsString(text);
    const Py_ssize_t length = PyBytes_Size(text);
    if (start < 0 || start > length || digits < 2 || digits > 2 * VERITY_DIGEST_MAX || digits % 2) {
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
