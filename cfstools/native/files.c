/* Files in batches: read, hashed and looked up in a store; and ranges of large files.
 *
 * Only what goes as expected is done here. A file that cannot be opened, is not the one it should be, or changes
 * under the reader gets no result, and the caller looks at it again in Python, where errors are found out and named. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mapping.h"
#include "native.h"

#define DESCRIPTOR_SIZE 256
#define DESCRIPTOR_DATA_SIZE_AT 8
#define DESCRIPTOR_ROOT_AT 16
#define PIECE ((size_t)1 << 18) /* small enough to stay in the cache between reading and hashing */
#define WINDOW ((size_t)4 << 20) /* of a mapped file: large enough to cost nothing, small enough to hold nothing up */

#define OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)
#define SYS_OPENAT2 437
#define RESOLVE_BENEATH_WITHOUT_LINKS (0x08 | 0x04 | 0x02)

struct open_how_v0 {
    uint64_t flags, mode, resolve;
};

/* Opens `path` below `root` without following any link; see open_beneath in cfstools/linux/files.py. */
static int open_beneath(int root, const char *path) {
    struct open_how_v0 how = {OPEN_FLAGS, 0, RESOLVE_BENEATH_WITHOUT_LINKS};
    long fd;
    do
        fd = syscall(SYS_OPENAT2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EINTR || errno == EAGAIN));
    return (int)fd;
}

enum state { UNDONE, INLINE, HASHED, FOUND };

struct file {
    const char *path;
    int stamped;
    uint64_t device, inode;
    int64_t size, mtime, ctime;
    enum state state;
    size_t offset; /* in the arena, or of inline contents */
    size_t digest; /* index of the first digest of the level last hashed */
    size_t count;  /* digests in it */
    uint8_t root[DIGEST_MAX];
};

static int nanoseconds(const struct timespec *time, int64_t *out) {
    return __builtin_mul_overflow((int64_t)time->tv_sec, 1000000000, out) ||
           __builtin_add_overflow(*out, (int64_t)time->tv_nsec, out);
}

static int is_as_stamped(const struct file *file, const struct stat *status) {
    int64_t mtime, ctime;
    return !nanoseconds(&status->st_mtim, &mtime) && !nanoseconds(&status->st_ctim, &ctime) &&
           file->device == status->st_dev && file->inode == status->st_ino && file->size == status->st_size &&
           file->mtime == mtime && file->ctime == ctime;
}

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

struct batch {
    int root_fd;
    size_t count;
    struct file *files;
    uint8_t *arena;
    size_t capacity, used;
    uint8_t *inlined;
    size_t inline_limit;
    const struct sha2_algorithm *algorithm;
    const struct sha2_choice *kernel;
    struct sha2_start start;
    size_t block_size;
    uint8_t descriptor[DESCRIPTOR_SIZE];
    int store_fd;
    const int *prefixes;
};

/* Reads exactly `size` bytes and sees that no more follow at once; 0 when that is so. */
static int read_whole(int fd, uint8_t *to, size_t size) {
    size_t done = 0;
    while (done < size) {
        const ssize_t got = pread(fd, to + done, size + 1 - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        done += (size_t)got;
    }
    return done == size ? 0 : -1;
}

static void read_open(struct batch *batch, struct file *file, int fd, size_t number) {
    struct stat status;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || (file->stamped && !is_as_stamped(file, &status)))
        return;
    if (!file->stamped) {
        file->device = status.st_dev, file->inode = status.st_ino, file->size = status.st_size;
        if (nanoseconds(&status.st_mtim, &file->mtime) || nanoseconds(&status.st_ctim, &file->ctime))
            return;
    }
    const size_t size = (size_t)file->size;
    if (size == 0 || size >= batch->capacity)
        return;
    const size_t padded = (size + batch->block_size - 1) / batch->block_size * batch->block_size;
    if (padded >= batch->capacity - batch->used)
        return;
    uint8_t *data = batch->arena + batch->used;
    if (read_whole(fd, data, size) < 0 || fstat(fd, &status) < 0 || !is_as_stamped(file, &status))
        return;
    if (size <= batch->inline_limit) {
        file->offset = number * batch->inline_limit;
        memcpy(batch->inlined + file->offset, data, size);
        file->state = INLINE;
        return;
    }
    memset(data + size, 0, padded - size);
    file->offset = batch->used;
    file->digest = batch->used / batch->block_size;
    file->count = padded / batch->block_size;
    batch->used += padded;
    file->state = HASHED;
}

static void read_files(struct batch *batch) {
    for (size_t i = 0; i < batch->count; i++) {
        struct file *file = &batch->files[i];
        const int fd = file->path != NULL ? open_beneath(batch->root_fd, file->path) : -1;
        if (fd < 0)
            continue;
        read_open(batch, file, fd, i);
        close(fd);
    }
}

/* From the digests of one level to those of the next, for all files that have more than one; what is left over is
 * each file's root. `*digests` is replaced. Returns whether there is another level, -1 when memory is short. */
static int next_level(struct batch *batch, uint8_t **digests) {
    const size_t size = batch->algorithm->digest_size, block = batch->block_size;
    size_t blocks = 0;
    for (size_t i = 0; i < batch->count; i++) {
        struct file *file = &batch->files[i];
        if (file->state != HASHED || file->count == 0)
            continue;
        if (file->count == 1) {
            memcpy(file->root, *digests + file->digest * size, size);
            file->count = 0;
        } else {
            blocks += (file->count * size + block - 1) / block;
        }
    }
    if (blocks == 0)
        return 0;
    uint8_t *level = calloc(blocks, block), *hashes = malloc(blocks * size);
    int result = level != NULL && hashes != NULL ? 1 : -1;
    size_t at = 0;
    for (size_t i = 0; result > 0 && i < batch->count; i++) {
        struct file *file = &batch->files[i];
        if (file->state != HASHED || file->count == 0)
            continue;
        memcpy(level + at * block, *digests + file->digest * size, file->count * size);
        file->digest = at;
        file->count = (file->count * size + block - 1) / block;
        at += file->count;
    }
    if (result > 0)
        result = native_hash(batch->algorithm, batch->kernel, &batch->start, level, block, blocks, hashes) ? -1 : 1;
    free(level);
    free(*digests);
    *digests = hashes;
    return result;
}

/* The descriptors of all files and their digests, which replace the roots. */
static int finish_digests(struct batch *batch) {
    const size_t size = batch->algorithm->digest_size;
    struct sha2_start plain;
    size_t count = 0;
    batch->algorithm->init(&plain);
    for (size_t i = 0; i < batch->count; i++)
        count += batch->files[i].state == HASHED;
    if (count == 0)
        return 0;
    uint8_t *descriptors = malloc(count * DESCRIPTOR_SIZE), *hashes = malloc(count * size), *at = descriptors;
    int failed = descriptors == NULL || hashes == NULL;
    for (size_t i = 0; !failed && i < batch->count; i++) {
        const struct file *file = &batch->files[i];
        if (file->state != HASHED)
            continue;
        memcpy(at, batch->descriptor, DESCRIPTOR_SIZE);
        for (int byte = 0; byte < 8; byte++)
            at[DESCRIPTOR_DATA_SIZE_AT + byte] = (uint8_t)((uint64_t)file->size >> 8 * byte);
        memcpy(at + DESCRIPTOR_ROOT_AT, file->root, size);
        at += DESCRIPTOR_SIZE;
    }
    if (!failed)
        failed = native_hash(batch->algorithm, batch->kernel, &plain, descriptors, DESCRIPTOR_SIZE, count, hashes);
    for (size_t i = 0, number = 0; !failed && i < batch->count; i++)
        if (batch->files[i].state == HASHED)
            memcpy(batch->files[i].root, hashes + number++ * size, size);
    free(descriptors);
    free(hashes);
    return failed ? -1 : 0;
}

static int hash_files(struct batch *batch) {
    const size_t blocks = batch->used / batch->block_size;
    if (blocks == 0)
        return 0;
    uint8_t *digests = malloc(blocks * batch->algorithm->digest_size);
    int more = digests == NULL ? -1
                               : native_hash(batch->algorithm, batch->kernel, &batch->start, batch->arena,
                                             batch->block_size, blocks, digests);
    if (more == 0)
        do
            more = next_level(batch, &digests);
        while (more > 0);
    free(digests);
    return more < 0 ? -1 : finish_digests(batch);
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
    failed = hash_files(batch);
    if (!failed)
        find_files(batch);
    Py_END_ALLOW_THREADS
    results = failed ? PyErr_NoMemory() : results_of(batch);
out:
    PyMem_Free(batch->files);
    PyMem_Free(batch->inlined);
    return results;
}

static int is_block_size(const struct sha2_algorithm *algorithm, Py_ssize_t block_size, Py_ssize_t salt_size) {
    const Py_ssize_t unit = (Py_ssize_t)algorithm->compression_block;
    return block_size >= 2 * (Py_ssize_t)algorithm->digest_size && (size_t)block_size <= SHA2_SIZE_MAX &&
           block_size % unit == 0 && salt_size % unit == 0;
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
    } else if (kernel == NULL || !is_block_size(algorithm, block_size, salt.len)) {
        result = native_ask_pure("digest_files", args);
    } else if ((items = PySequence_Tuple(files)) != NULL) {
        struct batch batch = {.root_fd = root_fd, .arena = arena.buf, .capacity = (size_t)arena.len,
                              .inline_limit = (size_t)inline_limit, .algorithm = algorithm, .kernel = kernel,
                              .block_size = (size_t)block_size, .store_fd = store_fd, .prefixes = prefixes.buf};
        memcpy(batch.descriptor, descriptor.buf, DESCRIPTOR_SIZE);
        algorithm->init(&batch.start);
        algorithm->absorb(&batch.start, salt.buf, (size_t)salt.len / algorithm->compression_block);
        result = digest_batch(&batch, items);
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
    } else if (kernel == NULL || !is_block_size(algorithm, block_size, salt.len) || PIECE % (size_t)block_size) {
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
