/* Files that a digest cache knows by their stamps, as in _known.py. */
#include <stdlib.h>

#include "native.h"

/* A field of a record, in the byte order of the machine: number(record, KNOWN_RECORD_INODE). */
static uint64_t number(const uint8_t *record, int at, int width) {
    uint64_t value;
    uint32_t short_value;
    if (width == sizeof short_value) {
        memcpy(&short_value, record + at, sizeof short_value);
        return short_value;
    }
    memcpy(&value, record + at, sizeof value);
    return value;
}

/* Records of one size, by rising inode number. */
struct table {
    const uint8_t *records;
    size_t size, count;
};

/* The four numbers that a record begins with lie in a stamp in the same way. */
#define KNOWN_STAMP_BYTES 32

/* An empty table for anything else. */
static struct table table_of(const Py_buffer *records, long long digest_size) {
    struct table table = {.records = records->buf, .size = KNOWN_RECORD_BYTES};
    if (digest_size > 0 && digest_size <= VERITY_DIGEST_MAX && digest_size % 8 == 0) {
        table.size += (size_t)digest_size;
        if ((size_t)records->len % table.size == 0)
            table.count = (size_t)records->len / table.size;
    }
    return table;
}

/* The record of the file with this stamp, whatever its device; or NULL. */
static const uint8_t *find_record(const struct table *table, const struct stamp *stamp) {
    size_t low = 0, high = table->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (number(table->records + middle * table->size, KNOWN_RECORD_INODE) < stamp->inode)
            low = middle + 1;
        else
            high = middle;
    }
    const uint8_t *record = table->records + low * table->size;
    return low < table->count && memcmp(record, &stamp->inode, KNOWN_STAMP_BYTES) == 0 ? record : NULL;
}

const uint8_t *native_recall(const struct recall *recall, const struct stat *status) {
    const struct table table = table_of(&recall->records, recall->digest_size);
    const struct stamp stamp = {status->st_dev, status->st_ino, status->st_size,
                                status->st_mtim.tv_sec * (int64_t)1000000000 + status->st_mtim.tv_nsec,
                                status->st_ctim.tv_sec * (int64_t)1000000000 + status->st_ctim.tv_nsec};
    if (stamp.device != recall->device || stamp.size <= recall->inline_limit)
        return NULL;
    const uint8_t *record = find_record(&table, &stamp);
    return record != NULL && number(record, KNOWN_RECORD_SEEN) >= recall->seen ? record : NULL;
}

int native_is_bare(const struct recall *recall, const uint8_t *record) {
    return record != NULL && recall->bare != 0 && number(record, KNOWN_RECORD_BARE) == recall->bare;
}

static int append(PyObject *array, const void *data, size_t size) {
    const Py_ssize_t end = PyByteArray_Size(array);
    if (PyByteArray_Resize(array, end + (Py_ssize_t)size) < 0)
        return -1;
    memcpy(PyByteArray_AsString(array) + end, data, size);
    return 0;
}

int native_note(const struct recall *recall, const uint8_t *record) {
    const Py_ssize_t size = PyByteArray_Size(recall->ends);
    uint64_t end = 0;
    if (size > 0)
        memcpy(&end, PyByteArray_AsString(recall->ends) + size - sizeof end, sizeof end);
    end += number(record, KNOWN_RECORD_SIZE);
    return append(recall->digests, record + KNOWN_RECORD_BYTES, (size_t)recall->digest_size) ||
                   append(recall->ends, &end, sizeof end) || append(recall->heads, record, KNOWN_RECORD_BYTES)
               ? -1
               : 0;
}

/* By inode number; those of one inode stay in their order. */
static int compare_records(const void *first, const void *second) {
    const uint8_t *a = *(const uint8_t *const *)first, *b = *(const uint8_t *const *)second;
    const uint64_t one = number(a, KNOWN_RECORD_INODE), other = number(b, KNOWN_RECORD_INODE);
    return one != other ? (one > other) - (one < other) : (a > b) - (a < b);
}

/* Merges `made` into `old`: of several records of an inode the last counts. Returns the number of bytes. */
static size_t merge(const struct table *old, const uint8_t **made, size_t count, uint32_t oldest, uint8_t *out) {
    const uint8_t *const start = out;
    size_t next = 0;
    for (size_t i = 0; i <= count; i++) {
        const uint64_t inode = i < count ? number(made[i], KNOWN_RECORD_INODE) : 0;
        if (i + 1 < count && number(made[i + 1], KNOWN_RECORD_INODE) == inode)
            continue;
        for (; next < old->count; next++) {
            const uint8_t *record = old->records + next * old->size;
            const uint64_t other = number(record, KNOWN_RECORD_INODE);
            if (i < count && other >= inode) {
                next += other == inode;
                break;
            }
            if (number(record, KNOWN_RECORD_SEEN) >= oldest)
                out = (uint8_t *)memcpy(out, record, old->size) + old->size;
        }
        if (i < count)
            out = (uint8_t *)memcpy(out, made[i], old->size) + old->size;
    }
    return (size_t)(out - start);
}

PyObject *native_merge_records(PyObject *Py_UNUSED(module), PyObject *args) {
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
        qsort(order, new.count, sizeof *order, compare_records);
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
