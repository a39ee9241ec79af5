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

/* What is asked for, and what came of it. */
struct question {
    uint64_t device;
    long long digest_size, inline_limit;
    int store_fd; /* -1: no object is looked up */
    const int *prefixes;
    long long oldest, lost, objects, object_bytes, bytes;
};

/* Whether a record that fits is of the form that this question is about. */
static int can_be(const uint8_t *record, const struct question *question) {
    const long long size = (long long)disk_u64(record + AT_SIZE);
    const int is_inline = size <= question->inline_limit;
    const long long length = is_inline ? size : question->digest_size;
    return record[AT_INLINED] == is_inline && record[AT_LENGTH] == length && length <= VALUE_MAX &&
           (is_inline || length > 0);
}

/* The record of the file with this stamp, if it can be true; NULL with or without an exception. */
static const uint8_t *match(const struct table *table, PyObject *stamp, const struct question *question) {
    uint64_t numbers[5];
    if (read_stamp(stamp, numbers)) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Clear();
        return NULL;
    }
    const uint8_t *record = *find_slot(table, numbers[1]);
    if (record == NULL || numbers[0] != question->device || disk_u64(record + AT_SIZE) != numbers[2] ||
        disk_u64(record + AT_MTIME) != numbers[3] || disk_u64(record + AT_CTIME) != numbers[4] ||
        !can_be(record, question))
        return NULL;
    return record;
}

/* Leaves out the records of objects that the store does not have as they should be. */
static void look_up(const uint8_t **records, size_t count, struct question *question) {
    for (size_t i = 0; question->store_fd >= 0 && i < count; i++)
        if (records[i] != NULL && !records[i][AT_INLINED] &&
            native_find_object(question->store_fd, question->prefixes, records[i] + AT_VALUE,
                               (size_t)question->digest_size, disk_u64(records[i] + AT_SIZE)) <= 0) {
            records[i] = NULL;
            question->lost++;
        }
}

/* Contents, or (digest, size, -1). */
static PyObject *said_by(const uint8_t *record, struct question *question) {
    const long long size = (long long)disk_u64(record + AT_SIZE);
    PyObject *value = PyBytes_FromStringAndSize((const char *)record + AT_VALUE, record[AT_LENGTH]);
    if (disk_u32(record + AT_DAY) < question->oldest)
        question->oldest = disk_u32(record + AT_DAY);
    question->bytes += size;
    if (record[AT_INLINED] || value == NULL)
        return value;
    question->objects++;
    question->object_bytes += size;
    PyObject *number = PyLong_FromLongLong(size), *place = PyLong_FromLong(-1);
    PyObject *said = number != NULL && place != NULL ? PyTuple_Pack(3, value, number, place) : NULL;
    Py_DECREF(value);
    Py_XDECREF(number);
    Py_XDECREF(place);
    return said;
}

static PyObject *match_all(const struct table *table, PyObject *stamps, struct question *question) {
    const Py_ssize_t count = PyList_Size(stamps);
    const uint8_t **records = PyMem_Malloc((size_t)count * sizeof *records + 1);
    PyObject *results = records != NULL ? PyList_New(count) : PyErr_NoMemory();
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *stamp = PyList_GetItem(stamps, i);
        records[i] = stamp != NULL ? match(table, stamp, question) : NULL;
        if (records[i] == NULL && PyErr_Occurred())
            Py_CLEAR(results);
    }
    if (results != NULL) {
        Py_BEGIN_ALLOW_THREADS
        look_up(records, (size_t)count, question);
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *said = records[i] != NULL ? said_by(records[i], question) : Py_NewRef(Py_None);
        if (said == NULL)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, i, said);
    }
    PyMem_Free(records);
    return results;
}

PyObject *native_match_stamps(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *stamps, *records, *results = NULL;
    Py_buffer prefixes;
    unsigned long long device;
    struct question question = {.oldest = LLONG_MAX};
    struct table table;
    if (!PyArg_ParseTuple(args, "O!O!KLLiy*", &PyList_Type, &stamps, &PyBytes_Type, &records, &device,
                          &question.digest_size, &question.inline_limit, &question.store_fd, &prefixes))
        return NULL;
    question.device = device;
    question.prefixes = prefixes.buf;
    if (prefixes.len != PREFIXES * (Py_ssize_t)sizeof(int) && (question.store_fd >= 0 || prefixes.len != 0)) {
        PyErr_SetString(PyExc_ValueError, "there must be 256 prefixes");
    } else if (table_open(&table, (const uint8_t *)PyBytes_AsString(records), (size_t)PyBytes_Size(records))) {
        PyErr_NoMemory();
    } else {
        results = match_all(&table, stamps, &question);
        free(table.slots);
    }
    PyBuffer_Release(&prefixes);
    return results == NULL ? NULL
                           : Py_BuildValue("(NLLLLL)", results, question.oldest, question.lost, question.objects,
                                           question.object_bytes, question.bytes);
}
