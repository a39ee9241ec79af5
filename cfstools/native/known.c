/* What files hold, as far as it is known: from digests to the contents of a tree, and from stamps to digests. */
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
    PyObject *external = model_new(model, K_EXTERNAL);
    if (external != NULL && (model_set(model, external, A_DIGEST, PyTuple_GetItem(item, 0)) ||
                             model_set_taken(model, external, A_PAYLOAD, PyBytes_FromStringAndSize(name, 2 * size + 1))))
        Py_CLEAR(external);
    return external;
}

PyObject *native_make_contents(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *digested, *kinds, *results = NULL;
    struct model model;
    if (!PyArg_ParseTuple(args, "O!O!", &PyList_Type, &digested, &PyTuple_Type, &kinds))
        return NULL;
    if (model_open(&model, kinds) == 0)
        results = PyList_New(PyList_Size(digested));
    for (Py_ssize_t i = 0; results != NULL && i < PyList_Size(results); i++) {
        PyObject *item = PyList_GetItem(digested, i); /* borrowed; nothing here changes the list */
        PyObject *made = item == NULL ? NULL : PyTuple_Check(item) ? external_of(&model, item) : Py_NewRef(item);
        if (made == NULL)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, made);
    }
    model_close(&model);
    return results;
}

/* --- files known by their stamps --- */

enum { STAMP_DEVICE, STAMP_INODE, STAMP_SIZE, STAMP_MTIME, STAMP_CTIME, STAMP_FIELDS };
enum { ROW_INODE, ROW_SIZE, ROW_MTIME, ROW_CTIME, ROW_INLINED, ROW_VALUE, ROW_FIELDS };

/* The rows by the inode numbers that they have as signed numbers. */
static PyObject *rows_by_inode(PyObject *rows) {
    PyObject *found = PyDict_New();
    for (Py_ssize_t i = 0; found != NULL && i < PyList_Size(rows); i++) {
        PyObject *row = PyList_GetItem(rows, i);
        if (!PyTuple_Check(row) || PyTuple_Size(row) < ROW_FIELDS) {
            PyErr_SetString(PyExc_TypeError, "a row must be a tuple of six values or more");
            Py_CLEAR(found);
        } else if (PyDict_SetItem(found, PyTuple_GetItem(row, ROW_INODE), row)) {
            Py_CLEAR(found);
        }
    }
    return found;
}

/* Inode numbers are kept as signed ones; this is a new reference to the number of a stamp as such. */
static PyObject *signed_inode(PyObject *stamp) {
    PyObject *inode = PyTuple_GetItem(stamp, STAMP_INODE);
    const unsigned long long number = PyLong_AsUnsignedLongLong(inode);
    if (number == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    return number >> 63 ? PyLong_FromLongLong((long long)number) : Py_NewRef(inode);
}

static int are_equal(PyObject *stamp, PyObject *row) {
    for (int i = 0; i < 3; i++) {
        const int equal = PyObject_RichCompareBool(PyTuple_GetItem(stamp, STAMP_SIZE + i),
                                                   PyTuple_GetItem(row, ROW_SIZE + i), Py_EQ);
        if (equal <= 0)
            return equal;
    }
    return 1;
}

/* What a row that fits says: contents, or (digest, size, -1); None if it cannot be so. */
static PyObject *said_by(PyObject *row, Py_ssize_t digest_size, unsigned long long inline_limit) {
    PyObject *value = PyTuple_GetItem(row, ROW_VALUE), *size = PyTuple_GetItem(row, ROW_SIZE);
    const unsigned long long bytes = PyLong_AsUnsignedLongLong(size);
    const int inlined = PyObject_IsTrue(PyTuple_GetItem(row, ROW_INLINED));
    if (inlined < 0 || (bytes == (unsigned long long)-1 && PyErr_Occurred()))
        return NULL;
    if (!PyBytes_Check(value) || inlined != (bytes <= inline_limit) ||
        (unsigned long long)PyBytes_Size(value) != (inlined ? bytes : (unsigned long long)digest_size))
        return Py_NewRef(Py_None);
    return inlined ? Py_NewRef(value) : Py_BuildValue("(OOi)", value, size, -1);
}

static PyObject *match(PyObject *stamp, PyObject *rows, PyObject *device, Py_ssize_t digest_size,
                       unsigned long long inline_limit) {
    if (!PyTuple_Check(stamp) || PyTuple_Size(stamp) != STAMP_FIELDS) {
        PyErr_SetString(PyExc_TypeError, "a stamp must be a tuple of five numbers");
        return NULL;
    }
    PyObject *inode = signed_inode(stamp);
    PyObject *row = inode != NULL ? PyDict_GetItemWithError(rows, inode) : NULL;
    Py_XDECREF(inode);
    if (row == NULL)
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    int fits = PyObject_RichCompareBool(PyTuple_GetItem(stamp, STAMP_DEVICE), device, Py_EQ);
    if (fits > 0)
        fits = are_equal(stamp, row);
    return fits < 0 ? NULL : fits ? said_by(row, digest_size, inline_limit) : Py_NewRef(Py_None);
}

PyObject *native_match_stamps(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *stamps, *rows, *device, *results = NULL;
    Py_ssize_t digest_size;
    unsigned long long inline_limit;
    if (!PyArg_ParseTuple(args, "O!O!OnK", &PyList_Type, &stamps, &PyList_Type, &rows, &device, &digest_size,
                          &inline_limit))
        return NULL;
    PyObject *known = rows_by_inode(rows);
    if (known != NULL)
        results = PyList_New(PyList_Size(stamps));
    for (Py_ssize_t i = 0; results != NULL && i < PyList_Size(results); i++) {
        PyObject *stamp = PyList_GetItem(stamps, i);
        PyObject *said = stamp != NULL ? match(stamp, known, device, digest_size, inline_limit) : NULL;
        if (said == NULL)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, said);
    }
    Py_XDECREF(known);
    return results;
}
