/* Objects of a store: looked up, written without names, and given their names. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "native.h"

#define RENAME_NOREPLACE_V0 1U
#define HOLE ((size_t)1 << 16)  /* a unit of a file, not written if it is zeros; as in _pure.py */
#define BETWEEN_SIGNALS 50      /* milliseconds */

int native_find_object(int store_fd, const int *prefixes, const uint8_t *digest, size_t digest_size, uint64_t size) {
    char name[2 * DIGEST_MAX + 1], prefix[3];
    struct stat status;
    native_hex(digest, digest_size, name);
    memcpy(prefix, name, 2);
    prefix[2] = 0;
    int fd = prefixes[digest[0]];
    const int opened = fd < 0;
    if (opened) {
        fd = openat(store_fd, prefix, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return errno == ENOENT ? 0 : -1;
    }
    const int failed = fstatat(fd, name + 2, &status, AT_SYMLINK_NOFOLLOW);
    const int missing = failed && errno == ENOENT;
    if (opened)
        close(fd);
    if (failed)
        return missing ? 0 : -1;
    return S_ISREG(status.st_mode) && (uint64_t)status.st_size == size ? 1 : -1;
}

struct timespec native_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now;
}

int native_is_time(struct timespec *since) {
    const struct timespec now = native_now();
    if ((now.tv_sec - since->tv_sec) * 1000 + (now.tv_nsec - since->tv_nsec) / 1000000 < BETWEEN_SIGNALS)
        return 0;
    *since = now;
    return 1;
}

static int write_whole(int fd, const uint8_t *data, size_t size, off_t offset) {
    while (size > 0) {
        const ssize_t done = pwrite(fd, data, size, offset);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return -1;
        data += done, size -= (size_t)done, offset += done;
    }
    return 0;
}

static int is_zero(const uint8_t *data, size_t size) { return data[0] == 0 && memcmp(data, data + 1, size - 1) == 0; }

int native_write_with_holes(int fd, const uint8_t *data, size_t size, off_t offset) {
    size_t written = 0; /* or left out */
    for (size_t at = 0, next; at < size; at = next) {
        next = at + HOLE - (size_t)(offset + (off_t)at) % HOLE;
        if (next > size)
            next = size;
        if (!is_zero(data + at, next - at))
            continue;
        if (write_whole(fd, data + written, at - written, offset + (off_t)written) < 0)
            return -1;
        written = next;
    }
    if (size > 0 && written == size)
        return 1;
    return write_whole(fd, data + written, size - written, offset + (off_t)written);
}

PyObject *native_write_sparse(PyObject *module, PyObject *args) {
    (void)module;
    int fd, result, why;
    long long offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "iy*L", &fd, &data, &offset))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    result = native_write_with_holes(fd, data.buf, (size_t)data.len, (off_t)offset);
    why = errno;
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    errno = why;
    return result < 0 ? PyErr_SetFromErrno(PyExc_OSError) : PyBool_FromLong(result);
}

/* A new file that holds these bytes, named by a number or, with a negative one, without a name; -1 when that did not
 * work, and then nothing is left of it. */
static int write_new(int directory, long long number, mode_t mode, const uint8_t *data, size_t size) {
    char name[24] = ".";
    int flags = O_TMPFILE | O_RDWR | O_CLOEXEC;
    if (number >= 0) {
        snprintf(name, sizeof name, "%lld", number);
        flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    }
    const int fd = openat(directory, name, flags, mode);
    const int written = fd < 0 ? 0 : native_write_with_holes(fd, data, size, 0);
    if (written == 0 || (written > 0 && ftruncate(fd, (off_t)size) == 0))
        return fd;
    close(fd);
    if (number >= 0)
        unlinkat(directory, name, 0);
    return -1;
}

PyObject *native_write_files(PyObject *module, PyObject *args) {
    (void)module;
    int store_fd;
    unsigned mode;
    long long number;
    Py_buffer arena;
    PyObject *spans, *items = NULL, *result = NULL;
    if (!PyArg_ParseTuple(args, "iy*OIL", &store_fd, &arena, &spans, &mode, &number))
        return NULL;
    struct {
        size_t offset, size;
        int fd;
    } *files = NULL;
    items = PySequence_Tuple(spans);
    const Py_ssize_t count = items != NULL ? PyTuple_Size(items) : 0;
    if (items != NULL && (files = PyMem_Malloc((size_t)count * sizeof *files + 1)) == NULL)
        PyErr_NoMemory();
    Py_ssize_t parsed = 0, done = 0;
    for (; files != NULL && parsed < count; parsed++) {
        Py_ssize_t offset, size;
        PyObject *item = PyTuple_GetItem(items, parsed);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a span is (offset, size)");
            break;
        }
        if (!PyArg_ParseTuple(item, "nn", &offset, &size))
            break;
        if (offset < 0 || size < 0 || offset > arena.len || size > arena.len - offset) {
            PyErr_SetString(PyExc_ValueError, "a span is outside of the arena");
            break;
        }
        files[parsed].offset = (size_t)offset;
        files[parsed].size = (size_t)size;
    }
    if (files != NULL && parsed == count) {
        Py_BEGIN_ALLOW_THREADS
        for (; done < count; done++) {
            files[done].fd = write_new(store_fd, number < 0 ? -1 : number + done, (mode_t)mode,
                                       (const uint8_t *)arena.buf + files[done].offset, files[done].size);
            if (files[done].fd < 0)
                break;
        }
        Py_END_ALLOW_THREADS
        result = PyList_New(done);
        for (Py_ssize_t i = 0; result != NULL && i < done; i++) {
            PyObject *fd = PyLong_FromLong(files[i].fd);
            if (fd == NULL)
                Py_CLEAR(result);
            else
                PyList_SetItem(result, i, fd);
        }
        for (Py_ssize_t i = 0; result == NULL && i < done; i++)
            close(files[i].fd);
    }
    PyMem_Free(files);
    Py_XDECREF(items);
    PyBuffer_Release(&arena);
    return result;
}

/* A file on its way to its name. */
struct naming {
    int fd; /* of a file without a name, or of the directory in which it is called `old` */
    const char *old;
    int directory;
    const char *name;
    int error;
};

/* 0 or an error number. Without the privilege for the first way, the kernel wants the second. */
static int link_unnamed(const struct naming *naming) {
    char path[40];
    if (linkat(naming->fd, "", naming->directory, naming->name, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno == EEXIST)
        return EEXIST;
    snprintf(path, sizeof path, "/proc/self/fd/%d", naming->fd);
    return linkat(AT_FDCWD, path, naming->directory, naming->name, AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
}

static int rename_named(const struct naming *naming) {
    return syscall(SYS_renameat2, naming->fd, naming->old, naming->directory, naming->name, RENAME_NOREPLACE_V0) == 0
               ? 0
               : errno;
}

static int parse_link(PyObject *item, struct naming *naming) {
    return PyArg_ParseTuple(item, "iiy", &naming->fd, &naming->directory, &naming->name);
}

static int parse_rename(PyObject *item, struct naming *naming) {
    return PyArg_ParseTuple(item, "yiy", &naming->old, &naming->directory, &naming->name);
}

/* Parses all before it names one; a list of 0 or the error number for each. */
static PyObject *name_all(PyObject *wanted, int fd, int (*parse)(PyObject *, struct naming *),
                          int (*give_name)(const struct naming *)) {
    PyObject *items = PySequence_Tuple(wanted), *result = NULL;
    if (items == NULL)
        return NULL;
    const Py_ssize_t count = PyTuple_Size(items);
    struct naming *namings = PyMem_Calloc((size_t)count + 1, sizeof *namings);
    Py_ssize_t parsed = 0;
    if (namings == NULL)
        PyErr_NoMemory();
    for (; namings != NULL && parsed < count; parsed++) {
        PyObject *item = PyTuple_GetItem(items, parsed);
        namings[parsed].fd = fd;
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "what is to be named must be a tuple");
            break;
        }
        if (!parse(item, &namings[parsed]))
            break;
    }
    if (namings != NULL && parsed == count) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++)
            namings[i].error = give_name(&namings[i]);
        Py_END_ALLOW_THREADS
        result = PyList_New(count);
        for (Py_ssize_t i = 0; result != NULL && i < count; i++) {
            PyObject *number = PyLong_FromLong(namings[i].error);
            if (number == NULL)
                Py_CLEAR(result);
            else
                PyList_SetItem(result, i, number);
        }
    }
    PyMem_Free(namings);
    Py_DECREF(items);
    return result;
}

PyObject *native_link_files(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *wanted;
    return PyArg_ParseTuple(args, "O", &wanted) ? name_all(wanted, -1, parse_link, link_unnamed) : NULL;
}

PyObject *native_rename_files(PyObject *module, PyObject *args) {
    (void)module;
    int from;
    PyObject *wanted;
    return PyArg_ParseTuple(args, "iO", &from, &wanted) ? name_all(wanted, from, parse_rename, rename_named) : NULL;
}
