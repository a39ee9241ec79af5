/* Files in batches: read, hashed and looked up in a store; and ranges of large files. */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "digest_batch.h"

#define PIECE ((size_t)1 << 18) /* small enough to stay in the cache between reading and hashing */

/* Whether no name is empty, and none before the last is "..": the same paths as in _pure.py. */
static int is_plain(const char *path) {
    const char *name = path;
    for (const char *end; (end = strchr(name, '/')) != NULL; name = end + 1)
        if (end == name || (end - name == 2 && name[0] == '.' && name[1] == '.'))
            return 0;
    return *name != '\0';
}

/* Parses (path, stamp or None); -1 with an exception for anything else. */
static int parse_file(PyObject *item, struct file *file) {
    PyObject *path = PyTuple_Check(item) && PyTuple_Size(item) == 2 ? PyTuple_GetItem(item, 0) : NULL;
    PyObject *stamp = path != NULL ? PyTuple_GetItem(item, 1) : NULL;
    char *text;
    Py_ssize_t length;
    if (path == NULL || !PyBytes_Check(path) ||
        (stamp != Py_None && (!PyTuple_Check(stamp) || PyTuple_Size(stamp) != 5))) {
        PyErr_SetString(PyExc_TypeError, "a file is (path, stamp) with bytes and a tuple of five numbers or None");
        return -1;
    }
    if (PyBytes_AsStringAndSize(path, &text, &length) < 0)
        return -1;
    memset(file, 0, sizeof *file);
    file->path = length < PATH_MAX && strlen(text) == (size_t)length && is_plain(text) ? text : NULL;
    if (stamp == Py_None)
        return 0;
    file->stamp = (struct stamp){PyLong_AsUnsignedLongLong(PyTuple_GetItem(stamp, 0)),
                                 PyLong_AsUnsignedLongLong(PyTuple_GetItem(stamp, 1)),
                                 PyLong_AsLongLong(PyTuple_GetItem(stamp, 2)), PyLong_AsLongLong(PyTuple_GetItem(stamp, 3)),
                                 PyLong_AsLongLong(PyTuple_GetItem(stamp, 4))};
    file->stamped = 1;
    file->size = file->stamp.size;
    if (!PyErr_Occurred())
        return 0;
    file->path = NULL; /* no file system here has numbers that do not fit */
    if (!PyErr_ExceptionMatches(PyExc_OverflowError))
        return -1;
    PyErr_Clear();
    return 0;
}

/* Reads files from `first` on until it is time to handle signals; returns the first that is left. */
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
        const struct text digest = {file->root, batch->algorithm->digest_size};
        const int found = native_find_object(batch->store_fd, batch->prefixes, digest,
                                             (uint64_t)file->size);
        file->state = found < 0 ? UNDONE : found ? FOUND : HASHED;
    }
}

static PyObject *result_of(void *context, size_t number) {
    const struct batch *batch = context;
    const struct file *file = &batch->files[number];
    const Py_ssize_t size = (Py_ssize_t)batch->algorithm->digest_size;
    switch (file->state) {
    case INLINE:
        return PyBytes_FromStringAndSize((const char *)batch->inlined + file->offset, (Py_ssize_t)file->size);
    case HASHED:
    case FOUND:
        return Py_BuildValue("(y#Ln)", (const char *)file->root, size, (long long)file->size,
                             file->state == FOUND ? -1 : (Py_ssize_t)file->offset);
    default:
        return Py_NewRef(Py_None);
    }
}

/* Hashes what was read, looks it up in the store, and lists the results. */
static PyObject *finish(struct batch *batch) {
    int failed;
    Py_BEGIN_ALLOW_THREADS
    failed = batch_hash(batch);
    if (!failed)
        find_files(batch);
    Py_END_ALLOW_THREADS
    return failed ? PyErr_NoMemory() : native_list(batch->count, result_of, batch);
}

static PyObject *digest_batch(struct batch *batch, PyObject *items) {
    PyObject *results = NULL;
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
    results = finish(batch);
out:
    PyMem_Free(batch->files);
    PyMem_Free(batch->inlined);
    return results;
}

PyObject *native_digest_files(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *files, *items = NULL, *result = NULL;
    struct batch batch = {0};
    struct digesting d;
    Py_ssize_t inline_limit;
    if (!PyArg_ParseTuple(args, "iOw*sny*y*niy*", &batch.root_fd, &files, &d.arena, &d.algorithm, &d.block_size,
                          &d.salt, &d.descriptor, &inline_limit, &d.store_fd, &d.prefixes))
        return NULL;
    if (inline_limit < 0 || inline_limit > PIPE_BUF) {
        PyErr_SetString(PyExc_ValueError, "inline limit out of range");
    } else {
        const int ready = batch_begin(&batch, &d);
        batch.inline_limit = (size_t)inline_limit;
        if (ready == 0)
            result = native_ask_pure("digest_files", args);
        else if (ready > 0 && (items = PySequence_Tuple(files)) != NULL)
            result = digest_batch(&batch, items);
    }
    Py_XDECREF(items);
    batch_release(&d);
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
        results = finish(batch);
    }
    PyMem_Free(batch->files);
    return results;
}

PyObject *native_digest_spans(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *spans, *result = NULL, *items = NULL;
    struct batch batch = {0};
    struct digesting d;
    if (!PyArg_ParseTuple(args, "y*Osny*y*iy*", &d.arena, &spans, &d.algorithm, &d.block_size, &d.salt, &d.descriptor,
                          &d.store_fd, &d.prefixes))
        return NULL;
    const int ready = batch_begin(&batch, &d);
    if (ready == 0)
        result = native_ask_pure("digest_spans", args);
    else if (ready > 0 && (items = PySequence_Tuple(spans)) != NULL)
        result = digest_parsed(&batch, items);
    Py_XDECREF(items);
    batch_release(&d);
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
    size_t done;            /* bytes read and hashed so far */
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

/* Reads, hashes and copies one piece from `done` on. Returns whether there is more to do. */
static int digest_piece(struct range *range) {
    const size_t left = range->length - range->done, wanted = left < PIECE ? left : PIECE;
    const off_t at = range->offset + (off_t)range->done;
    size_t got;
    if (read_piece(range->fd, range->piece, wanted, at, &got) < 0) {
        range->unread = errno;
        /* The caller reports the place of an error; after a signal the piece is read again. */
        if (errno != EINTR)
            range->done += got;
        return 0;
    }
    if (got == 0)
        return 0;
    const size_t blocks = (got + range->block_size - 1) / range->block_size;
    memset(range->piece + got, 0, blocks * range->block_size - got);
    uint8_t *out = range->out + range->done / range->block_size * range->algorithm->digest_size;
    if (native_hash(range->algorithm, range->kernel, &range->start, range->piece, range->block_size, blocks, out)) {
        range->unread = ENOMEM;
        return 0;
    }
    if (range->copy_fd >= 0 && native_write_with_holes(range->copy_fd, range->piece, got, at) < 0) {
        range->unwritten = errno;
        return 0;
    }
    range->done += got;
    return got == wanted && range->done < range->length;
}

/* Digests all of it, and handles signals now and then. Negative with an exception of a signal handler. */
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

PyObject *native_digest_range(PyObject *Py_UNUSED(module), PyObject *args) {
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
    } else if (!batch_takes(algorithm, block_size, salt.len) || PIECE % (size_t)block_size) {
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
            const size_t blocks = range.unread ? 0 : (range.done + range.block_size - 1) / range.block_size;
            result = Py_BuildValue("(y#nii)", (const char *)range.out, (Py_ssize_t)(blocks * algorithm->digest_size),
                                   (Py_ssize_t)range.done, range.unread, range.unwritten);
        }
        PyMem_Free(range.piece);
        PyMem_Free(range.out);
    }
    PyBuffer_Release(&salt);
    return result;
}
