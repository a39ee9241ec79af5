/* Files in batches: read, hashed and looked up in a store; and ranges of large files. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "batch.h"

#define PIECE ((size_t)1 << 18) /* small enough to stay in the cache between reading and hashing */

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

/* Reads files from `first` on, for a moment; returns the first that is left. */
static size_t read_files(struct batch *batch, size_t first) {
    struct timespec since = native_now();
    size_t i = first;
    while (i < batch->count && (i == first || !native_is_time(&since))) {
        struct file *file = &batch->files[i++];
        const int fd = file->path != NULL ? batch_open(batch->root_fd, file->path) : -1;
        if (fd < 0)
            continue;
        batch_read(batch, file, fd);
        close(fd);
    }
    return i;
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
    for (size_t next = 0; next < batch->count;) {
        Py_BEGIN_ALLOW_THREADS
        next = read_files(batch, next);
        Py_END_ALLOW_THREADS
        if (next < batch->count && PyErr_CheckSignals() < 0)
            goto out;
    }
    Py_BEGIN_ALLOW_THREADS
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
    uint8_t *piece;
    uint8_t *out;
    size_t met;           /* bytes read and hashed so far */
    int unread, unwritten; /* error numbers */
};

/* Fills `piece` as far as the file goes. On an error `*done` tells how far it got. */
static int read_piece(int fd, uint8_t *piece, size_t size, off_t offset, size_t *done) {
    *done = 0;
    while (*done < size) {
        const ssize_t got = pread(fd, piece + *done, size - *done, offset + (off_t)*done);
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        *done += (size_t)got;
    }
    return 0;
}

/* Reads, hashes and copies one piece from `met` on. Returns whether there is more to do. */
static int digest_piece(struct range *range) {
    const size_t left = range->length - range->met, wanted = left < PIECE ? left : PIECE;
    const off_t at = range->offset + (off_t)range->met;
    size_t got;
    if (read_piece(range->fd, range->piece, wanted, at, &got) < 0) {
        range->unread = errno;
        /* A caller that is told of an error learns where it is; after a signal the piece is read again. */
        if (errno != EINTR)
            range->met += got;
        return 0;
    }
    if (got == 0)
        return 0;
    const size_t blocks = (got + range->block_size - 1) / range->block_size;
    memset(range->piece + got, 0, blocks * range->block_size - got);
    uint8_t *out = range->out + range->met / range->block_size * range->algorithm->digest_size;
    if (native_hash(range->algorithm, range->kernel, &range->start, range->piece, range->block_size, blocks, out)) {
        range->unread = ENOMEM;
        return 0;
    }
    if (range->copy_fd >= 0 && native_write_with_holes(range->copy_fd, range->piece, got, at) < 0) {
        range->unwritten = errno;
        return 0;
    }
    range->met += got;
    return got == wanted && range->met < range->length;
}

/* Does all of it, looking for signals now and then. Negative with an exception of a signal handler. */
static int digest_range(struct range *range) {
    int more = range->length > 0;
    while (more) {
        struct timespec since = native_now();
        Py_BEGIN_ALLOW_THREADS
        do
            more = digest_piece(range);
        while (more && !native_is_time(&since));
        Py_END_ALLOW_THREADS
        const int interrupted = range->unread == EINTR;
        if ((more || interrupted) && PyErr_CheckSignals() < 0)
            return -1;
        if (interrupted)
            range->unread = 0, more = 1;
    }
    return 0;
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
        range.piece = PyMem_Malloc(PIECE);
        range.out = PyMem_Malloc((range.length / range.block_size + 1) * algorithm->digest_size);
        if (range.piece == NULL || range.out == NULL)
            PyErr_NoMemory();
        else if (digest_range(&range) == 0) {
            const size_t blocks = range.unread ? 0 : (range.met + range.block_size - 1) / range.block_size;
            result = Py_BuildValue("(y#nii)", (const char *)range.out, (Py_ssize_t)(blocks * algorithm->digest_size),
                                   (Py_ssize_t)range.met, range.unread, range.unwritten);
        }
        PyMem_Free(range.piece);
        PyMem_Free(range.out);
    }
    PyBuffer_Release(&salt);
    return result;
}
