/* Lists a directory of a store with what stat says of its objects, as in _known.py. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"
#include "native.h"

#define COLUMNS 3

struct object {
    uint8_t digest[VERITY_DIGEST_MAX];
    size_t digest_size;
    int64_t numbers[COLUMNS]; /* size, blocks, ctime in nanoseconds */
};

struct listing {
    int directory;
    int columns; /* 0: without the numbers of objects, so that most files are not looked at; else COLUMNS */
    uint8_t prefix;
    struct text sizes; /* of digests, a byte each */
    LIST(struct object) objects;
    LIST(char) others; /* names, a NUL behind each */
};

/* What a digit of hexadecimal stands for, found without a branch; any number for another character. */
static int digit(char character) { return (character & 15) + 9 * (character >> 6 & 1); }

/* The digest of the object with this name; whether there is one. */
static int read_name(const struct listing *listing, const char *name, struct object *object) {
    const size_t length = strlen(name);
    object->digest_size = length / 2 + 1;
    if (length % 2 || object->digest_size > VERITY_DIGEST_MAX || !text_has(listing->sizes, (int)object->digest_size))
        return 0;
    object->digest[0] = listing->prefix;
    char again[2 * VERITY_DIGEST_MAX];
    for (size_t i = 0; i < length; i += 2)
        object->digest[1 + i / 2] = (uint8_t)(digit(name[i]) << 4 | digit(name[i + 1]));
    write_hex(object->digest + 1, length / 2, again); /* other digits, and other letters, would be another name */
    return memcmp(again, name, length) == 0;
}

static int take_name(struct listing *listing, const char *name, int type) {
    struct object object = {0};
    struct stat status;
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return 0;
    if (read_name(listing, name, &object)) {
        if (!listing->columns && type == DT_REG)
            return PUSH(listing->objects, object) ? ENOMEM : 0;
        if (fstatat(listing->directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
            if (errno == ENOENT)
                return 0; /* removed meanwhile */
        } else if (S_ISREG(status.st_mode)) {
            object.numbers[0] = status.st_size;
            object.numbers[1] = status.st_blocks;
            object.numbers[2] = status.st_ctim.tv_sec * (int64_t)1000000000 + status.st_ctim.tv_nsec;
            return PUSH(listing->objects, object) ? ENOMEM : 0;
        }
    }
    const size_t length = strlen(name) + 1;
    if (RESERVE(listing->others, length))
        return ENOMEM;
    memcpy(listing->others.at + listing->others.count, name, length);
    listing->others.count += length;
    return 0;
}

static int compare(const void *first, const void *second) {
    const struct object *a = first, *b = second;
    return text_compare((struct text){a->digest, a->digest_size}, (struct text){b->digest, b->digest_size});
}

/* 0, or an error number. */
static int read_names(struct listing *listing) {
    const int fd = openat(listing->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *names = fd < 0 ? NULL : fdopendir(fd);
    if (names == NULL) {
        const int error = errno;
        if (fd >= 0)
            close(fd);
        return error;
    }
    int error = 0;
    for (struct dirent *entry; errno = 0, !error && (entry = readdir(names)) != NULL;)
        error = take_name(listing, entry->d_name, entry->d_type);
    error = error ? error : errno;
    closedir(names);
    if (listing->objects.count > 0)
        qsort(listing->objects.at, listing->objects.count, sizeof *listing->objects.at, compare);
    return error;
}

static PyObject *digest_at(void *context, size_t number) {
    const struct object *object = (const struct object *)context + number;
    return PyBytes_FromStringAndSize((const char *)object->digest, (Py_ssize_t)object->digest_size);
}

/* Each of the numbers of all objects, one kind after another. */
static PyObject *columns_of(const struct listing *listing) {
    const size_t count = listing->objects.count, all = listing->columns ? COLUMNS * count : 0, size = sizeof(int64_t);
    PyObject *columns = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(all * size));
    for (size_t i = 0; columns != NULL && i < all; i++)
        memcpy(PyBytes_AsString(columns) + i * size, &listing->objects.at[i % count].numbers[i / count], size);
    return columns;
}

static PyObject *other_names(const struct listing *listing) {
    PyObject *names = PyList_New(0);
    for (size_t at = 0; names != NULL && at < listing->others.count; at += strlen(listing->others.at + at) + 1) {
        PyObject *name = PyBytes_FromString(listing->others.at + at);
        if (name == NULL || PyList_Append(names, name))
            Py_CLEAR(names);
        Py_XDECREF(name);
    }
    if (names != NULL && PyList_Sort(names))
        Py_CLEAR(names);
    return names;
}

PyObject *native_list_objects(PyObject *Py_UNUSED(module), PyObject *args) {
    struct listing listing = {0};
    const char *sizes;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "iby#i", &listing.directory, &listing.prefix, &sizes, &count, &listing.columns))
        return NULL;
    listing.sizes = (struct text){(const uint8_t *)sizes, (size_t)count};
    PyObject *result = NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = read_names(&listing);
    Py_END_ALLOW_THREADS
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        result = Py_BuildValue("(NNN)", native_list(listing.objects.count, digest_at, listing.objects.at),
                               columns_of(&listing), other_names(&listing));
    }
    free(listing.objects.at);
    free(listing.others.at);
    return result;
}
