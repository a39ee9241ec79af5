/* What files hold, as far as it is known: from digests to the contents of a tree, and from stamps to digests. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "model.h"
#include "native.h"

void native_hex(const uint8_t *digest, size_t size, char *out) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < size; i++) {
        *out++ = digits[digest[i] >> 4];
        *out++ = digits[digest[i] & 15];
    }
    *out = 0;
}

/* The contents that (digest, size, place) stands for. */
static PyObject *external_of(const struct model *model, PyObject *item) {
    char *digest, name[2 * DIGEST_MAX + 2];
    Py_ssize_t size;
    if (PyTuple_Size(item) != 3 || PyBytes_AsStringAndSize(PyTuple_GetItem(item, 0), &digest, &size) < 0)
        return NULL;
    if (size < 1 || size > DIGEST_MAX) {
        PyErr_SetString(PyExc_ValueError, "not a digest");
        return NULL;
    }
    /* "ab/cdef..." */
    native_hex((const uint8_t *)digest, 1, name);
    name[2] = '/';
    native_hex((const uint8_t *)digest + 1, (size_t)size - 1, name + 3);
    return model_new_external(model, Py_NewRef(PyTuple_GetItem(item, 0)), PyBytes_FromStringAndSize(name, 2 * size + 1));
}

/* How many files have which contents, and their sizes. */
struct tally {
    long long external, external_size, inlined, inlined_size, empty;
};

/* Gives the file what was found out about it, unless that is nothing. */
static int give(const struct model *model, PyObject *file, PyObject *item, struct tally *tally) {
    if (item == Py_None)
        return 0;
    PyObject *number = model_get(model, file, A_SIZE);
    const long long size = number != NULL ? PyLong_AsLongLong(number) : -1;
    Py_XDECREF(number);
    if (size < 0 && PyErr_Occurred())
        return -1;
    if (PyBytes_Check(item)) {
        tally->inlined += size != 0;
        tally->inlined_size += size;
        tally->empty += size == 0;
    } else {
        tally->external++;
        tally->external_size += size;
    }
    return model_set_taken(model, file, A_CONTENT, PyTuple_Check(item) ? external_of(model, item) : Py_NewRef(item));
}

PyObject *native_give_contents(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *files, *digested, *kinds, *result = NULL;
    struct model model;
    struct tally tally = {0};
    if (!PyArg_ParseTuple(args, "O!O!O!", &PyList_Type, &files, &PyList_Type, &digested, &PyTuple_Type, &kinds))
        return NULL;
    int failed = model_open(&model, kinds);
    if (!failed && PyList_Size(files) != PyList_Size(digested)) {
        PyErr_SetString(PyExc_ValueError, "there must be one result for each file");
        failed = -1;
    }
    for (Py_ssize_t i = 0; !failed && i < PyList_Size(files); i++)
        failed = give(&model, PyList_GetItem(files, i), PyList_GetItem(digested, i), &tally);
    if (!failed)
        result = Py_BuildValue("(LLLLL)", tally.external, tally.external_size, tally.inlined, tally.inlined_size,
                               tally.empty);
    model_close(&model);
    return result;
}

/* --- files known by their stamps --- */

/* One line of what a cache says. */
struct known {
    long long inode, size, mtime, ctime, day;
    const char *value; /* hexadecimal */
    size_t value_size;
    int inlined, is_used;
};

struct table {
    struct known *slots;
    size_t mask;
};

/* A number and the space behind it; 0 if that is not what is there. */
static int take_number(const char **at, long long *out) {
    char *end;
    *out = strtoll(*at, &end, 10);
    if (end == *at || *end != ' ')
        return 0;
    *at = end + 1;
    return 1;
}

static int parse_line(const char *line, const char *end, struct known *out) {
    long long inlined;
    if (!take_number(&line, &out->inode) || !take_number(&line, &out->size) || !take_number(&line, &out->mtime) ||
        !take_number(&line, &out->ctime) || !take_number(&line, &inlined) || !take_number(&line, &out->day) || line > end)
        return 0;
    out->inlined = inlined != 0;
    out->value = line;
    out->value_size = (size_t)(end - line);
    out->is_used = 1;
    return 1;
}

static struct known *find_slot(const struct table *table, long long inode) {
    size_t at = (size_t)((uint64_t)inode * 0x9e3779b97f4a7c15ULL >> 32);
    while (table->slots[at & table->mask].is_used && table->slots[at & table->mask].inode != inode)
        at++;
    return &table->slots[at & table->mask];
}

/* The lines of `text` by inode number, and the oldest day in them; -1 when memory is short. */
static int table_open(struct table *table, const char *text, long long *oldest) {
    size_t lines = 1;
    for (const char *at = text; (at = strchr(at, '\n')) != NULL; at++)
        lines++;
    table->mask = 15;
    while (table->mask < 2 * lines)
        table->mask = 2 * table->mask + 1;
    if ((table->slots = calloc(table->mask + 1, sizeof *table->slots)) == NULL)
        return -1;
    *oldest = LLONG_MAX;
    while (*text != 0) {
        const char *end = strchr(text, '\n');
        struct known known;
        if (end == NULL)
            end = text + strlen(text);
        if (parse_line(text, end, &known)) {
            *find_slot(table, known.inode) = known;
            if (known.day < *oldest)
                *oldest = known.day;
        }
        text = *end != 0 ? end + 1 : end;
    }
    return 0;
}

static int hex_digit(char byte) {
    return byte >= '0' && byte <= '9' ? byte - '0' : byte >= 'A' && byte <= 'F' ? byte - 'A' + 10 : -1;
}

static PyObject *value_of(const struct known *known) {
    const size_t size = known->value_size / 2;
    PyObject *value = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    for (size_t i = 0; value != NULL && i < size; i++) {
        const int high = hex_digit(known->value[2 * i]), low = hex_digit(known->value[2 * i + 1]);
        if (high < 0 || low < 0) {
            Py_DECREF(value);
            return Py_NewRef(Py_None);
        }
        PyBytes_AsString(value)[i] = (char)(high << 4 | low);
    }
    return value;
}

/* What a line that fits says: contents, or (digest, size, -1); None if it cannot be so. */
static PyObject *said_by(const struct known *known, size_t digest_size, long long inline_limit) {
    const int is_inline = known->size <= inline_limit;
    const uint64_t length = known->inlined ? (uint64_t)known->size : digest_size;
    if (known->inlined != is_inline || known->value_size != 2 * length)
        return Py_NewRef(Py_None);
    PyObject *value = value_of(known);
    if (value == NULL || value == Py_None || known->inlined)
        return value;
    return Py_BuildValue("(NLi)", value, known->size, -1);
}

static PyObject *match(const struct table *table, PyObject *stamp, uint64_t device, size_t digest_size,
                       long long inline_limit) {
    if (!PyTuple_Check(stamp) || PyTuple_Size(stamp) != 5) {
        PyErr_SetString(PyExc_TypeError, "a stamp must be a tuple of five numbers");
        return NULL;
    }
    const uint64_t on = PyLong_AsUnsignedLongLong(PyTuple_GetItem(stamp, 0));
    const uint64_t inode = PyLong_AsUnsignedLongLong(PyTuple_GetItem(stamp, 1));
    long long rest[3];
    for (int i = 0; i < 3; i++)
        rest[i] = PyLong_AsLongLong(PyTuple_GetItem(stamp, 2 + i));
    if (PyErr_Occurred())
        return NULL;
    const struct known *known = find_slot(table, (long long)inode);
    if (!known->is_used || on != device || known->size != rest[0] || known->mtime != rest[1] || known->ctime != rest[2])
        return Py_NewRef(Py_None);
    return said_by(known, digest_size, inline_limit);
}

PyObject *native_match_stamps(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *stamps, *results = NULL;
    const char *text;
    unsigned long long device;
    Py_ssize_t digest_size;
    long long inline_limit, oldest;
    struct table table;
    if (!PyArg_ParseTuple(args, "O!sKnL", &PyList_Type, &stamps, &text, &device, &digest_size, &inline_limit))
        return NULL;
    if (table_open(&table, text, &oldest))
        return PyErr_NoMemory();
    results = PyList_New(PyList_Size(stamps));
    for (Py_ssize_t i = 0; results != NULL && i < PyList_Size(results); i++) {
        PyObject *stamp = PyList_GetItem(stamps, i);
        PyObject *said = stamp != NULL ? match(&table, stamp, device, (size_t)digest_size, inline_limit) : NULL;
        if (said == NULL)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, said);
    }
    free(table.slots);
    return results != NULL ? Py_BuildValue("(NL)", results, oldest) : NULL;
}
