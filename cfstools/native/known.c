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

/* What is where in a record of a cache: KNOWN_RECORD in _known.py, in the machine's byte order; then comes the digest. */
enum { AT_INODE, AT_SIZE = 8, AT_MTIME = 16, AT_CTIME = 24, AT_MET = 32, AT_VALUE = 40 };

static uint64_t load_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t load_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Records of one size, by rising inode number. */
struct table {
    const uint8_t *records;
    size_t size, count;
};

/* Whatever are no records, or no digests, is nothing. */
static struct table table_of(const Py_buffer *records, long long digest_size) {
    struct table table = {.records = records->buf, .size = AT_VALUE};
    if (digest_size > 0 && digest_size <= DIGEST_MAX && digest_size % 8 == 0) {
        table.size += (size_t)digest_size;
        if ((size_t)records->len % table.size == 0)
            table.count = (size_t)records->len / table.size;
    }
    return table;
}

/* The record of this inode, or NULL. */
static const uint8_t *find_record(const struct table *table, uint64_t inode) {
    size_t low = 0, high = table->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (load_u64(table->records + middle * table->size + AT_INODE) < inode)
            low = middle + 1;
        else
            high = middle;
    }
    const uint8_t *record = table->records + low * table->size;
    return low < table->count && load_u64(record + AT_INODE) == inode ? record : NULL;
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
    long long oldest, lost, objects, object_bytes;
};

/* What stands for a file without contents, of which nothing has to be known. */
static const uint8_t EMPTY[1];

/* The record of the file with this stamp, of which `size` is told; NULL with or without an exception. */
static const uint8_t *match(const struct table *table, PyObject *stamp, const struct question *question,
                            uint64_t *size) {
    uint64_t numbers[5];
    *size = 1;
    if (read_stamp(stamp, numbers)) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Clear();
        return NULL;
    }
    *size = numbers[2];
    if (numbers[0] != question->device || (long long)numbers[2] <= question->inline_limit)
        return NULL;
    const uint8_t *record = find_record(table, numbers[1]);
    if (record == NULL || load_u64(record + AT_SIZE) != numbers[2] || load_u64(record + AT_MTIME) != numbers[3] ||
        load_u64(record + AT_CTIME) != numbers[4])
        return NULL;
    return record;
}

/* Leaves out the records of objects that the store does not have as they should be. */
static void look_up(const uint8_t **records, size_t count, struct question *question) {
    for (size_t i = 0; question->store_fd >= 0 && i < count; i++)
        if (records[i] != NULL && records[i] != EMPTY &&
            native_find_object(question->store_fd, question->prefixes, records[i] + AT_VALUE,
                               (size_t)question->digest_size, load_u64(records[i] + AT_SIZE)) <= 0) {
            records[i] = NULL;
            question->lost++;
        }
}

/* (digest, size, -1). */
static PyObject *said_by(const uint8_t *record, struct question *question) {
    const long long size = (long long)load_u64(record + AT_SIZE);
    if (load_u32(record + AT_MET) < question->oldest)
        question->oldest = load_u32(record + AT_MET);
    question->objects++;
    question->object_bytes += size;
    return Py_BuildValue("(y#Li)", (const char *)record + AT_VALUE, (Py_ssize_t)question->digest_size, size, -1);
}

static PyObject *match_all(const struct table *table, PyObject *stamps, struct question *question) {
    const Py_ssize_t count = PyList_Size(stamps);
    const uint8_t **records = PyMem_Malloc((size_t)count * sizeof *records + 1);
    PyObject *results = records != NULL ? PyList_New(count) : PyErr_NoMemory();
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *stamp = PyList_GetItem(stamps, i);
        uint64_t size = 1;
        records[i] = stamp != NULL ? match(table, stamp, question, &size) : NULL;
        if (records[i] == NULL && PyErr_Occurred())
            Py_CLEAR(results);
        if (size == 0)
            records[i] = EMPTY;
    }
    if (results != NULL) {
        Py_BEGIN_ALLOW_THREADS
        look_up(records, (size_t)count, question);
        Py_END_ALLOW_THREADS
    }
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *said = records[i] == NULL    ? Py_NewRef(Py_None)
                         : records[i] == EMPTY ? PyBytes_FromStringAndSize(NULL, 0)
                                               : said_by(records[i], question);
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
    PyObject *stamps, *results = NULL;
    Py_buffer records, prefixes;
    unsigned long long device;
    struct question question = {.oldest = LLONG_MAX};
    if (!PyArg_ParseTuple(args, "O!y*KLLiy*", &PyList_Type, &stamps, &records, &device, &question.digest_size,
                          &question.inline_limit, &question.store_fd, &prefixes))
        return NULL;
    question.device = device;
    question.prefixes = prefixes.buf;
    if (prefixes.len != PREFIXES * (Py_ssize_t)sizeof(int) && (question.store_fd >= 0 || prefixes.len != 0)) {
        PyErr_SetString(PyExc_ValueError, "there must be 256 prefixes");
    } else {
        const struct table table = table_of(&records, question.digest_size);
        results = match_all(&table, stamps, &question);
    }
    PyBuffer_Release(&records);
    PyBuffer_Release(&prefixes);
    return results == NULL ? NULL
                           : Py_BuildValue("(NLLLL)", results, question.oldest, question.lost, question.objects,
                                           question.object_bytes);
}

/* By inode number; those of one inode in the order in which they lie. */
static int compare(const void *first, const void *second) {
    const uint8_t *a = *(const uint8_t *const *)first, *b = *(const uint8_t *const *)second;
    const uint64_t one = load_u64(a + AT_INODE), other = load_u64(b + AT_INODE);
    return one != other ? (one > other) - (one < other) : (a > b) - (a < b);
}

/* Merges `made` into `old`; where both have an inode, and in `made` of several, the last counts. How many there are. */
static size_t merge(const struct table *old, const uint8_t **made, size_t count, uint32_t oldest, uint8_t *out) {
    const uint8_t *const start = out;
    size_t next = 0;
    for (size_t i = 0; i <= count; i++) {
        const uint64_t inode = i < count ? load_u64(made[i] + AT_INODE) : 0;
        if (i + 1 < count && load_u64(made[i + 1] + AT_INODE) == inode)
            continue;
        for (; next < old->count; next++) {
            const uint8_t *record = old->records + next * old->size;
            const uint64_t other = load_u64(record + AT_INODE);
            if (i < count && other >= inode) {
                next += other == inode;
                break;
            }
            if (load_u32(record + AT_MET) >= oldest)
                out = (uint8_t *)memcpy(out, record, old->size) + old->size;
        }
        if (i < count)
            out = (uint8_t *)memcpy(out, made[i], old->size) + old->size;
    }
    return (size_t)(out - start);
}

PyObject *native_merge_records(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer records, made;
    long long digest_size;
    unsigned long oldest;
    PyObject *result = NULL;
    if (!PyArg_ParseTuple(args, "y*y*Lk", &records, &made, &digest_size, &oldest))
        return NULL;
    const struct table old = table_of(&records, digest_size), new = table_of(&made, digest_size);
    const uint8_t **order = malloc(new.count * sizeof *order + 1);
    uint8_t *out = malloc((old.count + new.count) * old.size + 1);
    if (order != NULL && out != NULL) {
        size_t size;
        Py_BEGIN_ALLOW_THREADS
        for (size_t i = 0; i < new.count; i++)
            order[i] = new.records + i * new.size;
        qsort(order, new.count, sizeof *order, compare);
        size = merge(&old, order, new.count, (uint32_t)oldest, out);
        Py_END_ALLOW_THREADS
        result = PyBytes_FromStringAndSize((const char *)out, (Py_ssize_t)size);
    } else {
        PyErr_NoMemory();
    }
    free(out);
    free(order);
    PyBuffer_Release(&records);
    PyBuffer_Release(&made);
    return result;
}
