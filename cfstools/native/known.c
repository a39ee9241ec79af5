/* What files hold, as far as it is known: from digests to the contents of a tree, and from stamps to digests. */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "disk.h"
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

void native_object_path(const uint8_t *digest, size_t size, char *out) {
    native_hex(digest, 1, out);
    out[2] = '/';
    native_hex(digest + 1, size - 1, out + 3);
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
    native_object_path((const uint8_t *)digest, (size_t)size, name);
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

/* What is where in a record of a cache: KNOWN_RECORD in _pure.py. */
enum { AT_INODE, AT_SIZE = 8, AT_MTIME = 16, AT_CTIME = 24, AT_DAY = 32, AT_INLINED = 36, AT_LENGTH, AT_VALUE = 40,
       VALUE_MAX = 64, RECORD = AT_VALUE + VALUE_MAX };

/* Records by inode number. */
struct table {
    const uint8_t **slots;
    size_t mask;
};

static const uint8_t **find_slot(const struct table *table, uint64_t inode) {
    size_t at = (size_t)(inode * 0x9e3779b97f4a7c15ULL >> 32);
    while (table->slots[at & table->mask] != NULL && disk_u64(table->slots[at & table->mask] + AT_INODE) != inode)
        at++;
    return &table->slots[at & table->mask];
}

/* Whatever are no records is nothing; -1 when memory is short. */
static int table_open(struct table *table, const uint8_t *records, size_t size) {
    const size_t count = size % RECORD == 0 ? size / RECORD : 0;
    table->mask = 15;
    while (table->mask < 2 * count)
        table->mask = 2 * table->mask + 1;
    if ((table->slots = calloc(table->mask + 1, sizeof *table->slots)) == NULL)
        return -1;
    for (size_t i = 0; i < count; i++)
        *find_slot(table, disk_u64(records + i * RECORD + AT_INODE)) = records + i * RECORD;
    return 0;
}

/* What a record that fits says: contents, or (digest, size, -1); None if it cannot be so. */
static PyObject *said_by(const uint8_t *record, long long digest_size, long long inline_limit) {
    const long long size = (long long)disk_u64(record + AT_SIZE);
    const int is_inline = size <= inline_limit;
    const long long length = is_inline ? size : digest_size;
    if (record[AT_INLINED] != is_inline || record[AT_LENGTH] != length || length > VALUE_MAX)
        return Py_NewRef(Py_None);
    PyObject *value = PyBytes_FromStringAndSize((const char *)record + AT_VALUE, (Py_ssize_t)length);
    return is_inline || value == NULL ? value : Py_BuildValue("(NLi)", value, size, -1);
}

/* Device, inode, size, mtime and ctime; negative with an error, which is OverflowError for what no record can hold. */
static int read_stamp(PyObject *stamp, uint64_t *out) {
    if (!PyTuple_Check(stamp) || PyTuple_Size(stamp) != 5) {
        PyErr_SetString(PyExc_TypeError, "a stamp must be a tuple of five numbers");
        return -1;
    }
    for (int i = 0; i < 5; i++) {
        PyObject *item = PyTuple_GetItem(stamp, i);
        out[i] = i < 2 ? PyLong_AsUnsignedLongLong(item) : (uint64_t)PyLong_AsLongLong(item);
        if (out[i] == UINT64_MAX && PyErr_Occurred())
            return -1;
    }
    return 0;
}

/* What is asked for, and the oldest day in the records that could be used. */
struct question {
    uint64_t device;
    long long digest_size, inline_limit, oldest;
};

static PyObject *match(const struct table *table, PyObject *stamp, struct question *question) {
    uint64_t numbers[5];
    if (read_stamp(stamp, numbers)) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return NULL;
        PyErr_Clear();
        return Py_NewRef(Py_None);
    }
    const uint8_t *record = *find_slot(table, numbers[1]);
    if (record == NULL || numbers[0] != question->device || disk_u64(record + AT_SIZE) != numbers[2] ||
        disk_u64(record + AT_MTIME) != numbers[3] || disk_u64(record + AT_CTIME) != numbers[4])
        return Py_NewRef(Py_None);
    PyObject *said = said_by(record, question->digest_size, question->inline_limit);
    if (said != NULL && said != Py_None && disk_u32(record + AT_DAY) < question->oldest)
        question->oldest = disk_u32(record + AT_DAY);
    return said;
}

PyObject *native_match_stamps(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *stamps, *records, *results = NULL;
    unsigned long long device;
    struct question question = {.oldest = LLONG_MAX};
    struct table table;
    if (!PyArg_ParseTuple(args, "O!O!KLL", &PyList_Type, &stamps, &PyBytes_Type, &records, &device,
                          &question.digest_size, &question.inline_limit))
        return NULL;
    question.device = device;
    if (table_open(&table, (const uint8_t *)PyBytes_AsString(records), (size_t)PyBytes_Size(records)))
        return PyErr_NoMemory();
    results = PyList_New(PyList_Size(stamps));
    for (Py_ssize_t i = 0; results != NULL && i < PyList_Size(results); i++) {
        PyObject *stamp = PyList_GetItem(stamps, i);
        PyObject *said = stamp != NULL ? match(&table, stamp, &question) : NULL;
        if (said == NULL)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, said);
    }
    free(table.slots);
    return results != NULL ? Py_BuildValue("(NL)", results, question.oldest) : NULL;
}
