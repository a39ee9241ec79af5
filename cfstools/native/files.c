/* Files in batches: read, hashed and looked up in a store; and ranges of large files. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "batch.h"
#include "mapping.h"

#define PIECE ((size_t)1 << 18) /* small enough to stay in the cache between reading and hashing */
#define WINDOW ((size_t)4 << 20) /* of a mapped file: large enough to cost nothing, small enough to hold nothing up */

/* Whether the last name is not empty, and none before it is empty or "..": the same paths as in _pure.py. Others are
 * left to the caller. */
static int is_plain(const char *path) {
    const char *name = path;
    for (const char *end; (end = strchr(name, '/')) != NULL; name = end + 1)
        if (end == name || (end - name == 2 && name[0] == '.' && name[1] == '.'))
            return 0;
    return *name != '\0';
}

/* Takes (path, stamp or None) apart; -1 with an exception for anything else. */
static int parse_file(PyObject *item, struct file *file) {
    PyObject *path = PyTuple_Check(item) && PyTuple_Size(item) == 2 ? PyTuple_GetItem(item, 0) : NULL;
    PyObject *stamp = path != NULL ? PyTuple_GetItem(item, 1) : NULL;
    char *text;
    Py_ssize_t length;
    if (path == NULL || !PyBytes_Check(path) || (stamp != Py_None && (!PyTuple_Check(stamp) || PyTuple_Size(stamp) != 5))) {
        PyErr_SetString(PyExc_TypeError, "a file is (path, stamp) with bytes and a tuple of five numbers or None");
        return -1;
    }
    if (PyBytes_AsStringAndSize(path, &text, &length) < 0)
        return -1;
    memset(file, 0, sizeof *file);
    file->path = length < PATH_MAX && strlen(text) == (size_t)length && is_plain(text) ? text : NULL;
    if (stamp == Py_None)
        return 0;
    file->stamped = 1;
    file->device = PyLong_AsUnsignedLongLong(PyTuple_GetItem(stamp, 0));
    file->inode = PyLong_AsUnsignedLongLong(PyTuple_GetItem(stamp, 1));
    file->size = PyLong_AsLongLong(PyTuple_GetItem(stamp, 2));
    file->mtime = PyLong_AsLongLong(PyTuple_GetItem(stamp, 3));
    file->ctime = PyLong_AsLongLong(PyTuple_GetItem(stamp, 4));
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError))
            return -1;
        PyErr_Clear();
        file->path = NULL; /* a number no file system here gives */
    }
    return 0;
}

static void read_files(struct batch *batch) {
    for (size_t i = 0; i < batch->count; i++) {
        struct file *file = &batch->files[i];
        const int fd = file->path != NULL ? batch_open(batch->root_fd, file->path) : -1;
        if (fd < 0)
            continue;
        batch_read(batch, file, fd);
        close(fd);
    }
}

static void find_files(struct batch *batch) {
    if (batch->store_fd < 0)
        return;
    for (size_t i = 0; i < batch->count; i++) {
        struct file *file = &batch->files[i];
        if (file->state != HASHED)
            continue;
        const int found = native_find_object(batch->store_fd, batch->prefixes, file->root, batch->algorithm->digest_size,
                                      (uint64_t)file->size);
        file->state = found < 0 ? UNDONE : found ? FOUND : HASHED;
    }
}

static PyObject *result_of(const struct batch *batch, const struct file *file) {
    const Py_ssize_t size = (Py_ssize_t)batch->algorithm->digest_size;
    switch (file->state) {
    case INLINE:
        return PyBytes_FromStringAndSize((const char *)batch->inlined + file->offset, (Py_ssize_t)file->size);
    case HASHED:
        return Py_BuildValue("(y#Ln)", (const char *)file->root, size, (long long)file->size,
                             (Py_ssize_t)file->offset);
    case FOUND:
        return Py_BuildValue("(y#Li)", (const char *)file->root, size, (long long)file->size, -1);
    default:
        return Py_NewRef(Py_None);
    }
}

static PyObject *results_of(const struct batch *batch) {
    PyObject *results = PyList_New((Py_ssize_t)batch->count);
    for (size_t i = 0; results != NULL && i < batch->count; i++) {
        PyObject *result = result_of(batch, &batch->files[i]);
        if (result == NULL)
            Py_CLEAR(results);
        else
            PyList_SetItem(results, (Py_ssize_t)i, result);
    }
    return results;
}

static PyObject *digest_batch(struct batch *batch, PyObject *items) {
    PyObject *results = NULL;
    int failed;
    batch->count = (size_t)PyTuple_Size(items);
    batch->files = PyMem_Malloc(batch->count * sizeof *batch->files + 1);
    batch->inlined = PyMem_Malloc(batch->count * batch->inline_limit + 1);
    if (batch->files == NULL || batch->inlined == NULL) {
        PyErr_NoMemory();
        goto out;
    }
    for (size_t i = 0; i < batch->count; i++)
        if (parse_file(PyTuple_GetItem(items, (Py_ssize_t)i), &batch->files[i]) < 0)
            goto out;
    Py_BEGIN_ALLOW_THREADS
    read_files(batch);
    failed = batch_hash(batch);
    if (!failed)
        find_files(batch);
    Py_END_ALLOW_THREADS
    results = failed ? PyErr_NoMemory() : results_of(batch);
out:
    PyMem_Free(batch->files);
    PyMem_Free(batch->inlined);
    return results;
}

PyObject *native_digest_files(PyObject *module, PyObject *args) {
    (void)module;
    int root_fd, store_fd;
    PyObject *files, *result = NULL;
    Py_buffer arena, salt, descriptor, prefixes;
    const char *name;
    Py_ssize_t block_size, inline_limit;
    if (!PyArg_ParseTuple(args, "iOw*sny*y*niy*", &root_fd, &files, &arena, &name, &block_size, &salt, &descriptor,
                          &inline_limit, &store_fd, &prefixes))
        return NULL;
    const struct sha2_algorithm *algorithm = native_algorithm(name);
    const struct sha2_choice *kernel = native_kernel(algorithm, NULL);
    PyObject *items = NULL;
    if (descriptor.len != DESCRIPTOR_SIZE || inline_limit < 0 || inline_limit > PIPE_BUF || block_size <= 0 ||
        (prefixes.len != PREFIXES * (Py_ssize_t)sizeof(int) && (store_fd >= 0 || prefixes.len != 0))) {
        PyErr_SetString(PyExc_ValueError, "descriptor, inline limit, block size or prefixes of a wrong size");
    } else if (kernel == NULL || !batch_takes(algorithm, block_size, salt.len)) {
        result = native_ask_pure("digest_files", args);
    } else if ((items = PySequence_Tuple(files)) != NULL) {
        struct batch batch = {.root_fd = root_fd, .arena = arena.buf, .capacity = (size_t)arena.len,
                              .inline_limit = (size_t)inline_limit, .store_fd = store_fd, .prefixes = prefixes.buf};
        batch_begin(&batch, algorithm, block_size, &salt, &descriptor);
        result = digest_batch(&batch, items);
    }
    Py_XDECREF(items);
    PyBuffer_Release(&arena);
    PyBuffer_Release(&salt);
    PyBuffer_Release(&descriptor);
    PyBuffer_Release(&prefixes);
    return result;
}

/* --- contents in memory --- */

static int parse_span(PyObject *item, struct batch *batch, struct file *file) {
    Py_ssize_t offset, size;
    memset(file, 0, sizeof *file);
    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "a span is (offset, size)");
        return -1;
    }
    if (!PyArg_ParseTuple(item, "nn", &offset, &size))
        return -1;
    const size_t blocks = size > 0 ? ((size_t)size + batch->block_size - 1) / batch->block_size : 0;
    if (offset < 0 || size <= 0 || (size_t)offset % batch->block_size || (size_t)offset > batch->capacity ||
        blocks > (batch->capacity - (size_t)offset) / batch->block_size) {
        PyErr_SetString(PyExc_ValueError, "a span is empty, is outside of the arena, or does not begin with a block");
        return -1;
    }
    file->size = size;
    file->offset = (size_t)offset;
    file->digest = (size_t)offset / batch->block_size;
    file->count = blocks;
    file->state = HASHED;
    if (batch->used < (size_t)offset + blocks * batch->block_size)
        batch->used = (size_t)offset + blocks * batch->block_size;
    return 0;
}

static PyObject *digest_parsed(struct batch *batch, PyObject *items) {
    PyObject *results = NULL;
    int failed = 0;
    batch->count = (size_t)PyTuple_Size(items);
    batch->files = PyMem_Malloc(batch->count * sizeof *batch->files + 1);
    if (batch->files == NULL)
        PyErr_NoMemory();
    for (size_t i = 0; batch->files != NULL && !failed && i < batch->count; i++)
        failed = parse_span(PyTuple_GetItem(items, (Py_ssize_t)i), batch, &batch->files[i]);
    if (batch->files != NULL && !failed) {
        Py_BEGIN_ALLOW_THREADS
        failed = batch_hash(batch);
        if (!failed)
            find_files(batch);
        Py_END_ALLOW_THREADS
        results = failed ? PyErr_NoMemory() : results_of(batch);
    }
    PyMem_Free(batch->files);
    return results;
}

PyObject *native_digest_spans(PyObject *module, PyObject *args) {
    (void)module;
    int store_fd;
    PyObject *spans, *result = NULL, *items = NULL;
    Py_buffer arena, salt, descriptor, prefixes;
    const char *name;
    Py_ssize_t block_size;
    if (!PyArg_ParseTuple(args, "y*Osny*y*iy*", &arena, &spans, &name, &block_size, &salt, &descriptor, &store_fd,
                          &prefixes))
        return NULL;
    const struct sha2_algorithm *algorithm = native_algorithm(name);
    const struct sha2_choice *kernel = native_kernel(algorithm, NULL);
    if (descriptor.len != DESCRIPTOR_SIZE || block_size <= 0 ||
        (prefixes.len != PREFIXES * (Py_ssize_t)sizeof(int) && (store_fd >= 0 || prefixes.len != 0))) {
        PyErr_SetString(PyExc_ValueError, "descriptor, block size or prefixes of a wrong size");
    } else if (kernel == NULL || !batch_takes(algorithm, block_size, salt.len)) {
        result = native_ask_pure("digest_spans", args);
    } else if ((items = PySequence_Tuple(spans)) != NULL) {
        struct batch batch = {.arena = arena.buf, .capacity = (size_t)arena.len, .store_fd = store_fd,
                              .prefixes = prefixes.buf};
        batch_begin(&batch, algorithm, block_size, &salt, &descriptor);
        result = digest_parsed(&batch, items);
    }
    Py_XDECREF(items);
    PyBuffer_Release(&arena);
    PyBuffer_Release(&salt);
    PyBuffer_Release(&descriptor);
    PyBuffer_Release(&prefixes);
    return result;
}

/* --- one range of a large file --- */

struct range {
    int fd, copy_fd;
    off_t offset;
    size_t length, block_size;
    const struct sha2_algorithm *algorithm;
    const struct sha2_choice *kernel;
    struct sha2_start start;
};

/* Fills `piece` as far as the file goes. */
static ssize_t read_piece(int fd, uint8_t *piece, size_t size, off_t offset) {
    size_t done = 0;
    while (done < size) {
        const ssize_t got = pread(fd, piece + done, size - done, offset + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

/* Hashes whole blocks where the kernel keeps them, as far as that goes, and returns how many bytes that is. What is
 * copied is read instead: the copy must be of the very bytes that were hashed, whoever writes to the file meanwhile. */
static size_t hash_mapped(const struct range *range, uint8_t *out) {
    struct stat status;
    if (range->copy_fd >= 0 || fstat(range->fd, &status) < 0 || !S_ISREG(status.st_mode) ||
        status.st_size <= range->offset)
        return 0;
    const size_t there = (size_t)(status.st_size - range->offset);
    const size_t whole = (there < range->length ? there : range->length) / range->block_size * range->block_size;
    for (size_t met = 0; met < whole;) {
        struct window window;
        const size_t size = whole - met < WINDOW ? whole - met : WINDOW, blocks = size / range->block_size;
        if (window_open(&window, range->fd, range->offset + (off_t)met, size) < 0)
            return met;
        const int failed = native_hash(range->algorithm, range->kernel, &range->start, window.data, range->block_size,
                                       blocks, out);
        if (window_close(&window) < 0 || failed)
            return met;
        out += blocks * range->algorithm->digest_size;
        met += size;
    }
    return whole;
}

/* Reads and hashes from `met` on. Returns how many bytes were met in all, -1 with errno. */
static ssize_t hash_read(const struct range *range, size_t met, uint8_t *piece, uint8_t *out, int *unwritten) {
    out += met / range->block_size * range->algorithm->digest_size;
    while (met < range->length) {
        const size_t wanted = range->length - met < PIECE ? range->length - met : PIECE;
        const off_t at = range->offset + (off_t)met;
        const ssize_t got = read_piece(range->fd, piece, wanted, at);
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        const size_t blocks = ((size_t)got + range->block_size - 1) / range->block_size;
        memset(piece + got, 0, blocks * range->block_size - (size_t)got);
        if (native_hash(range->algorithm, range->kernel, &range->start, piece, range->block_size, blocks, out)) {
            errno = ENOMEM;
            return -1;
        }
        if (range->copy_fd >= 0 && native_write_whole(range->copy_fd, piece, (size_t)got, at)) {
            *unwritten = errno;
            break;
        }
        out += blocks * range->algorithm->digest_size;
        met += (size_t)got;
        if ((size_t)got < wanted)
            break;
    }
    return (ssize_t)met;
}

/* Returns how many bytes were met, -1 with errno. An error of writing goes to `*unwritten` and ends the work. */
static ssize_t digest_range(const struct range *range, uint8_t *out, int *unwritten) {
    const size_t mapped = hash_mapped(range, out);
    if (mapped == range->length)
        return (ssize_t)mapped;
    uint8_t *piece = malloc(PIECE);
    const ssize_t met = piece != NULL ? hash_read(range, mapped, piece, out, unwritten) : -1;
    const int why = piece != NULL ? errno : ENOMEM;
    free(piece);
    errno = why;
    return met;
}

PyObject *native_digest_range(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    int fd, copy_fd;
    long long offset;
    Py_ssize_t length, block_size;
    Py_buffer salt;
    if (!PyArg_ParseTuple(args, "siLnny*i", &name, &fd, &offset, &length, &block_size, &salt, &copy_fd))
        return NULL;
    const struct sha2_algorithm *algorithm = native_algorithm(name);
    const struct sha2_choice *kernel = native_kernel(algorithm, NULL);
    PyObject *result = NULL;
    if (offset < 0 || length < 0 || block_size <= 0) {
        PyErr_SetString(PyExc_ValueError, "offset, length or block size out of range");
    } else if (kernel == NULL || !batch_takes(algorithm, block_size, salt.len) || PIECE % (size_t)block_size) {
        result = native_ask_pure("digest_range", args);
    } else {
        struct range range = {.fd = fd, .copy_fd = copy_fd, .offset = (off_t)offset, .length = (size_t)length,
                              .block_size = (size_t)block_size, .algorithm = algorithm, .kernel = kernel};
        algorithm->init(&range.start);
        algorithm->absorb(&range.start, salt.buf, (size_t)salt.len / algorithm->compression_block);
        const size_t blocks = range.length / range.block_size + 1;
        uint8_t *out = PyMem_Malloc(blocks * algorithm->digest_size);
        if (out == NULL) {
            PyErr_NoMemory();
        } else {
            ssize_t met;
            int unwritten = 0;
            Py_BEGIN_ALLOW_THREADS
            met = digest_range(&range, out, &unwritten);
            Py_END_ALLOW_THREADS
            if (met < 0)
                PyErr_SetFromErrno(PyExc_OSError);
            else
                result = Py_BuildValue("(y#ni)", (const char *)out,
                                       (Py_ssize_t)(((size_t)met + range.block_size - 1) / range.block_size *
                                                    algorithm->digest_size),
                                       (Py_ssize_t)met, unwritten);
            PyMem_Free(out);
        }
    }
    PyBuffer_Release(&salt);
    return result;
}
