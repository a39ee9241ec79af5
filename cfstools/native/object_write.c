/* Objects of a store: lookup, writing and names, as in _pure.py. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "native.h"

#define HOLE ((size_t)1 << 16) /* zeros that fill such a unit of a file are not written; as in _pure.py */
#define BETWEEN_SIGNALS 50      /* milliseconds */

int native_find_object(int store_fd, const int *prefixes, struct text digest, uint64_t size) {
    char path[OBJECT_PATH_MAX];
    struct stat status;
    write_object_path(digest.data, digest.size, path);
    path[2] = 0; /* ends the prefix; the name begins behind it */
    int fd = prefixes[digest.data[0]];
    const int opened = fd < 0;
    if (opened) {
        fd = openat(store_fd, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return errno == ENOENT ? 0 : -1;
    }
    const int failed = fstatat(fd, path + 3, &status, AT_SYMLINK_NOFOLLOW);
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
    return write_whole(fd, data + written, size - written, offset + (off_t)written);
}

/* A span of the arena, and the file that holds it. */
struct span {
    size_t offset, size;
    int fd;
};

/* A new file with these bytes, named by a number, or without a name if that is negative; -1 on an error, and then no
 * file is left. */
static int write_new(int directory, long long number, mode_t mode, const uint8_t *data, size_t size) {
    char name[24] = ".";
    if (number >= 0)
        snprintf(name, sizeof name, "%lld", number);
    const int fd = openat(directory, name, O_RDWR | O_CLOEXEC | (number < 0 ? O_TMPFILE : O_CREAT | O_EXCL | O_NOFOLLOW),
                          mode);
    const int may_be_short = size > 0 && data[size - 1] == 0;
    if (fd < 0 || (native_write_with_holes(fd, data, size, 0) == 0 &&
                   (!may_be_short || ftruncate(fd, (off_t)size) == 0)))
        return fd;
    close(fd);
    if (number >= 0)
        unlinkat(directory, name, 0);
    return -1;
}

static int parse_span(PyObject *item, size_t end, struct span *span) {
    Py_ssize_t offset, size;
    if (!PyTuple_Check(item))
        PyErr_SetString(PyExc_TypeError, "a span is (offset, size)");
    if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "nn", &offset, &size))
        return -1;
    *span = (struct span){(size_t)offset, (size_t)size, -1};
    if (offset >= 0 && size >= 0 && span->offset <= end && span->size <= end - span->offset)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a span is outside of the arena");
    return -1;
}

static PyObject *descriptor_of(void *spans, size_t number) { return PyLong_FromLong(((struct span *)spans)[number].fd); }

static PyObject *write_spans(int directory, const Py_buffer *arena, PyObject *items, mode_t mode, long long number) {
    const size_t count = (size_t)PyTuple_Size(items);
    struct span *spans = PyMem_Calloc(count + 1, sizeof *spans);
    size_t done = 0;
    for (size_t i = 0; spans != NULL && i < count; i++)
        if (parse_span(PyTuple_GetItem(items, (Py_ssize_t)i), (size_t)arena->len, &spans[i])) {
            PyMem_Free(spans);
            return NULL;
        }
    if (spans == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    for (; done < count; done++) {
        const uint8_t *data = (const uint8_t *)arena->buf + spans[done].offset;
        spans[done].fd = write_new(directory, number < 0 ? -1 : number + (long long)done, mode, data, spans[done].size);
        if (spans[done].fd < 0)
            break;
    }
    Py_END_ALLOW_THREADS
    PyObject *result = native_list(done, descriptor_of, spans);
    for (size_t i = 0; result == NULL && i < done; i++)
        close(spans[i].fd);
    PyMem_Free(spans);
    return result;
}

PyObject *native_write_files(PyObject *Py_UNUSED(module), PyObject *args) {
    int directory;
    unsigned mode;
    long long number;
    Py_buffer arena;
    PyObject *spans;
    if (!PyArg_ParseTuple(args, "iy*OIL", &directory, &arena, &spans, &mode, &number))
        return NULL;
    PyObject *items = PySequence_Tuple(spans);
    PyObject *result = items != NULL ? write_spans(directory, &arena, items, (mode_t)mode, number) : NULL;
    Py_XDECREF(items);
    PyBuffer_Release(&arena);
    return result;
}

/* A file without a name that gets one, and 0 or an error number. */
struct link {
    int fd, directory;
    const char *name;
    int error;
};

/* 0 or an error number. The first way needs a privilege, the second /proc. */
static int link_unnamed(const struct link *link) {
    char path[40];
    if (linkat(link->fd, "", link->directory, link->name, AT_EMPTY_PATH) == 0)
        return 0;
    if (errno == EEXIST)
        return EEXIST;
    snprintf(path, sizeof path, "/proc/self/fd/%d", link->fd);
    return linkat(AT_FDCWD, path, link->directory, link->name, AT_SYMLINK_FOLLOW) == 0 ? 0 : errno;
}

static PyObject *error_of(void *links, size_t number) { return PyLong_FromLong(((struct link *)links)[number].error); }

/* Parses all links before it makes one. */
static PyObject *link_items(PyObject *items) {
    const size_t count = (size_t)PyTuple_Size(items);
    struct link *links = PyMem_Calloc(count + 1, sizeof *links);
    if (links == NULL)
        return PyErr_NoMemory();
    for (size_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(items, (Py_ssize_t)i);
        if (!PyTuple_Check(item))
            PyErr_SetString(PyExc_TypeError, "a link is (descriptor, directory, name)");
        if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "iiy", &links[i].fd, &links[i].directory, &links[i].name)) {
            PyMem_Free(links);
            return NULL;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    for (size_t i = 0; i < count; i++)
        links[i].error = link_unnamed(&links[i]);
    Py_END_ALLOW_THREADS
    PyObject *result = native_list(count, error_of, links);
    PyMem_Free(links);
    return result;
}

PyObject *native_link_files(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *wanted;
    if (!PyArg_ParseTuple(args, "O", &wanted))
        return NULL;
    PyObject *items = PySequence_Tuple(wanted), *result = items != NULL ? link_items(items) : NULL;
    Py_XDECREF(items);
    return result;
}
