/* Hashes objects of a store and compares them with their digests, or only looks them up. Reports only which are right. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "digest_batch.h"

/* At most so many are hashed together; the arena may hold fewer. */
#define TOGETHER 256

/* Objects `first` to `end` of a list: digests back to back, and the total size up to and including each. */
struct wanted {
    const uint8_t *digests;
    const uint8_t *ends;
    size_t first, end;
};

static uint64_t end_of(const struct wanted *wanted, size_t number) {
    uint64_t end;
    memcpy(&end, wanted->ends + number * sizeof end, sizeof end);
    return end;
}

static uint64_t size_of(const struct wanted *wanted, size_t number) {
    return end_of(wanted, number) - (number ? end_of(wanted, number - 1) : 0);
}

static const uint8_t *digest_of(const struct batch *batch, const struct wanted *wanted, size_t number) {
    return wanted->digests + number * batch->algorithm->digest_size;
}

/* Opens an object; -1 also where its directory of the store is not open. */
static int open_object(const struct batch *batch, const uint8_t *digest) {
    char name[2 * VERITY_DIGEST_MAX + 1];
    const int directory = batch->prefixes[digest[0]];
    int fd;
    if (directory < 0)
        return -1;
    write_hex(digest + 1, batch->algorithm->digest_size - 1, name);
    do
        fd = openat(directory, name, BATCH_OPEN_FLAGS);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* Reads objects from `first` on until no more fit; returns how many were tried. */
static size_t read_objects(struct batch *batch, const struct wanted *wanted, size_t first) {
    batch->used = batch->count = 0;
    while (batch->count < TOGETHER && first + batch->count < wanted->end) {
        const size_t number = first + batch->count;
        const uint64_t size = size_of(wanted, number);
        /* What does not fit any more is the first of the next batch. */
        if (batch->used > 0 && size <= batch->capacity / 4 && size + batch->block_size >= batch->capacity - batch->used)
            break;
        struct file *file = &batch->files[batch->count++];
        memset(file, 0, sizeof *file);
        file->sized = 1;
        file->size = (int64_t)size;
        /* Large ones would leave no room for others. */
        const int fd = size <= batch->capacity / 4 ? open_object(batch, digest_of(batch, wanted, number)) : -1;
        if (fd < 0)
            continue;
        batch_read(batch, file, fd);
        close(fd);
    }
    return batch->count;
}

/* Checks objects from `*first` on, some hundred at least, until it is time to return; `*first` is then the first that is
 * left. -1 when memory is short. */
static int check_some(struct batch *batch, const struct wanted *wanted, size_t *first, char *right) {
    const size_t size = batch->algorithm->digest_size;
    struct timespec since = native_now();
    const size_t least = *first + TOGETHER;
    do {
        const size_t count = read_objects(batch, wanted, *first);
        if (batch_hash(batch))
            return -1;
        for (size_t i = 0; i < count; i++)
            right[*first - wanted->first + i] =
                batch->files[i].state == HASHED &&
                memcmp(batch->files[i].root, digest_of(batch, wanted, *first + i), size) == 0;
        *first += count;
    } while (*first < wanted->end && (*first < least || !native_is_time(&since)));
    return 0;
}

static PyObject *check_batch(struct batch *batch, const struct wanted *wanted) {
    size_t first = wanted->first;
    char *right = PyMem_Malloc(wanted->end - first + 1);
    batch->files = PyMem_Malloc(TOGETHER * sizeof *batch->files);
    int failed = batch->files == NULL || right == NULL;
    if (!failed && first < wanted->end) {
        Py_BEGIN_ALLOW_THREADS
        failed = check_some(batch, wanted, &first, right);
        Py_END_ALLOW_THREADS
    }
    PyObject *result = failed ? PyErr_NoMemory() : PyBytes_FromStringAndSize(right, (Py_ssize_t)(first - wanted->first));
    PyMem_Free(batch->files);
    PyMem_Free(right);
    return result;
}

PyObject *native_check_objects(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *result = NULL;
    Py_buffer digests, ends;
    Py_ssize_t first, end;
    struct batch batch = {0};
    struct digesting d = {.store_fd = 0}; /* there must be prefixes */
    if (!PyArg_ParseTuple(args, "y*y*y*nnw*sny*y*", &d.prefixes, &digests, &ends, &first, &end, &d.arena, &d.algorithm,
                          &d.block_size, &d.salt, &d.descriptor))
        return NULL;
    const Py_ssize_t count = ends.len / (Py_ssize_t)sizeof(uint64_t);
    const struct wanted wanted = {digests.buf, ends.buf, (size_t)first, (size_t)end};
    const int ready = batch_begin(&batch, &d);
    if (ready == 0)
        result = native_ask_pure("check_objects", args);
    else if (ready > 0 && (digests.len / (Py_ssize_t)batch.algorithm->digest_size != count || first < 0 || first > end ||
                           end > count))
        PyErr_SetString(PyExc_ValueError, "there are no such objects");
    else if (ready > 0)
        result = check_batch(&batch, &wanted);
    PyBuffer_Release(&digests);
    PyBuffer_Release(&ends);
    batch_release(&d);
    return result;
}

/* Looks objects up from `*first` on until it is time to handle signals. */
static void find_some(const int *prefixes, size_t digest_size, const struct wanted *wanted, size_t *first, char *found) {
    struct timespec since = native_now();
    do {
        const struct text digest = {wanted->digests + *first * digest_size, digest_size};
        found[*first - wanted->first] = prefixes[digest.data[0]] >= 0 &&
                                        native_find_object(-1, prefixes, digest, size_of(wanted, *first)) == 1;
        ++*first;
    } while (*first < wanted->end && (*first % TOGETHER != 0 || !native_is_time(&since)));
}

PyObject *native_find_objects(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *result = NULL;
    Py_buffer prefixes, digests, ends;
    Py_ssize_t first, end, size;
    if (!PyArg_ParseTuple(args, "y*y*y*nnn", &prefixes, &digests, &ends, &first, &end, &size))
        return NULL;
    const Py_ssize_t count = ends.len / (Py_ssize_t)sizeof(uint64_t);
    const struct wanted wanted = {digests.buf, ends.buf, (size_t)first, (size_t)end};
    if (!native_has_prefixes(&prefixes, 0))
        ;
    else if (size < 2 || size > VERITY_DIGEST_MAX || digests.len / size != count || first < 0 || first > end ||
             end > count)
        PyErr_SetString(PyExc_ValueError, "there are no such objects");
    else
        result = PyBytes_FromStringAndSize(NULL, end - first);
    for (size_t at = wanted.first; result != NULL && at < wanted.end;) {
        char *found = PyBytes_AsString(result);
        Py_BEGIN_ALLOW_THREADS
        find_some(prefixes.buf, (size_t)size, &wanted, &at, found);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            Py_CLEAR(result);
    }
    PyBuffer_Release(&prefixes);
    PyBuffer_Release(&digests);
    PyBuffer_Release(&ends);
    return result;
}
