/* Objects of a store that are hashed and compared with what they should be.
 *
 * As always only what goes as expected is done here: of what is not right nothing is said but that. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "batch.h"

/* So many are hashed together, or as many as the arena takes. */
#define TOGETHER 256

/* Objects `first` to `end` of many: their digests one behind the other, and the bytes they have together up to and
 * including each. */
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

/* Opens the object below one of the store's directories; -1 also where that directory is not open. */
static int open_object(const struct batch *batch, const uint8_t *digest) {
    char name[2 * DIGEST_MAX + 1];
    const int directory = batch->prefixes[digest[0]];
    int fd;
    if (directory < 0)
        return -1;
    native_hex(digest + 1, batch->algorithm->digest_size - 1, name);
    do
        fd = openat(directory, name, BATCH_OPEN_FLAGS);
    while (fd < 0 && errno == EINTR);
    return fd;
}

/* Reads objects from `first` on until no more fit; returns how many were looked at. */
static size_t read_objects(struct batch *batch, const struct wanted *wanted, size_t first) {
    batch->used = batch->count = 0;
    while (batch->count < TOGETHER && first + batch->count < wanted->end) {
        const size_t number = first + batch->count;
        const uint64_t size = size_of(wanted, number);
        /* What no longer fits comes first the next time. */
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

/* Says of each object from `*first` on whether it was found right, for a moment; `*first` is then the first that is left.
 * -1 when memory is short. */
static int check_some(struct batch *batch, const struct wanted *wanted, size_t *first, char *right) {
    const size_t size = batch->algorithm->digest_size;
    struct timespec since = native_now();
    do {
        const size_t met = read_objects(batch, wanted, *first);
        if (batch_hash(batch))
            return -1;
        for (size_t i = 0; i < met; i++)
            right[*first - wanted->first + i] =
                batch->files[i].state == HASHED &&
                memcmp(batch->files[i].root, digest_of(batch, wanted, *first + i), size) == 0;
        *first += met;
    } while (*first < wanted->end && !native_is_time(&since));
    return 0;
}

static PyObject *check_batch(struct batch *batch, const struct wanted *wanted) {
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(wanted->end - wanted->first));
    batch->files = PyMem_Malloc(TOGETHER * sizeof *batch->files);
    int failed = batch->files == NULL || result == NULL;
    char *right = failed ? NULL : PyBytes_AsString(result);
    for (size_t first = wanted->first; !failed && first < wanted->end;) {
        Py_BEGIN_ALLOW_THREADS
        failed = check_some(batch, wanted, &first, right);
        Py_END_ALLOW_THREADS
        if (!failed && PyErr_CheckSignals() < 0)
            break;
    }
    PyMem_Free(batch->files);
    if (failed)
        PyErr_NoMemory();
    if (PyErr_Occurred())
        Py_CLEAR(result);
    return result;
}

PyObject *native_check_objects(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *result = NULL;
    Py_buffer prefixes, digests, ends, arena, salt, descriptor;
    const char *name;
    Py_ssize_t first, end, block_size;
    if (!PyArg_ParseTuple(args, "y*y*y*nnw*sny*y*", &prefixes, &digests, &ends, &first, &end, &arena, &name, &block_size,
                          &salt, &descriptor))
        return NULL;
    const struct sha2_algorithm *algorithm = native_algorithm(name);
    const struct sha2_choice *kernel = native_kernel(algorithm, NULL);
    const Py_ssize_t count = ends.len / (Py_ssize_t)sizeof(uint64_t);
    if (descriptor.len != DESCRIPTOR_SIZE || prefixes.len != PREFIXES * (Py_ssize_t)sizeof(int) || block_size <= 0) {
        PyErr_SetString(PyExc_ValueError, "descriptor, prefixes or block size of a wrong size");
    } else if (algorithm == NULL || digests.len / (Py_ssize_t)algorithm->digest_size != count || first < 0 ||
               first > end || end > count) {
        PyErr_SetString(PyExc_ValueError, "there are no such objects");
    } else if (kernel == NULL || !batch_takes(algorithm, block_size, salt.len)) {
        result = native_ask_pure("check_objects", args);
    } else {
        const struct wanted wanted = {digests.buf, ends.buf, (size_t)first, (size_t)end};
        struct batch batch = {.arena = arena.buf, .capacity = (size_t)arena.len, .store_fd = -1,
                              .prefixes = prefixes.buf};
        batch_begin(&batch, algorithm, block_size, &salt, &descriptor);
        result = check_batch(&batch, &wanted);
    }
    PyBuffer_Release(&prefixes);
    PyBuffer_Release(&digests);
    PyBuffer_Release(&ends);
    PyBuffer_Release(&arena);
    PyBuffer_Release(&salt);
    PyBuffer_Release(&descriptor);
    return result;
}
