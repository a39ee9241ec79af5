/* What the kernel says about the names of one directory, in one call. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "native.h"

#define SYS_GETXATTRAT 464
#define SYS_LISTXATTRAT 465
#define NAMES_MAX 4096
#define VALUE_MAX 4096
#define PROC_PATH_MAX (32 + 256)

struct xattr_args_v0 {
    uint64_t value;
    uint32_t size, flags;
};

/* Whether the kernel has the calls that take a directory and a name (since 6.13). Any thread may find out. */
static int has_xattrat = 1;

struct entry {
    const char *name;
    int failed; /* nothing is known, or not for certain: the caller asks again */
    struct stat status;
    char *target; /* of a symbolic link */
    size_t target_size;
    char *xattrs; /* "key\0" and value, one after another */
    size_t xattr_count, *value_sizes;
    int unsure; /* the attributes are for the caller to read */
};

static int proc_path(char *path, int directory, const char *name) {
    return snprintf(path, PROC_PATH_MAX, "/proc/self/fd/%d/%s", directory, name) < PROC_PATH_MAX ? 0 : -1;
}

static ssize_t list_names(int directory, const char *name, char *names) {
    char path[PROC_PATH_MAX];
    if (has_xattrat) {
        const long got = syscall(SYS_LISTXATTRAT, directory, name, AT_SYMLINK_NOFOLLOW, names, (size_t)NAMES_MAX);
        if (got >= 0 || (errno != ENOSYS && errno != EPERM))
            return got;
        has_xattrat = 0;
    }
    return proc_path(path, directory, name) < 0 ? -1 : llistxattr(path, names, NAMES_MAX);
}

static ssize_t get_value(int directory, const char *name, const char *key, char *value) {
    char path[PROC_PATH_MAX];
    if (has_xattrat) {
        struct xattr_args_v0 arguments = {(uint64_t)(uintptr_t)value, VALUE_MAX, 0};
        return syscall(SYS_GETXATTRAT, directory, name, AT_SYMLINK_NOFOLLOW, key, &arguments, sizeof arguments);
    }
    return proc_path(path, directory, name) < 0 ? -1 : lgetxattr(path, key, value, VALUE_MAX);
}

/* Appends one key and its value. */
static int append(struct entry *entry, size_t *used, const char *key, const char *value, size_t size) {
    const size_t key_size = strlen(key) + 1;
    char *xattrs = realloc(entry->xattrs, *used + key_size + size);
    if (xattrs != NULL)
        entry->xattrs = xattrs;
    size_t *sizes = realloc(entry->value_sizes, (entry->xattr_count + 1) * sizeof *sizes);
    if (sizes != NULL)
        entry->value_sizes = sizes;
    if (xattrs == NULL || sizes == NULL)
        return -1;
    memcpy(xattrs + *used, key, key_size);
    memcpy(xattrs + *used + key_size, value, size);
    *used += key_size + size;
    sizes[entry->xattr_count++] = size;
    return 0;
}

static void read_xattrs(int directory, struct entry *entry) {
    char names[NAMES_MAX], value[VALUE_MAX];
    const ssize_t listed = list_names(directory, entry->name, names);
    size_t used = 0;
    entry->unsure = listed < 0 && errno != EOPNOTSUPP;
    for (ssize_t at = 0; at < listed && !entry->unsure; at += (ssize_t)strlen(names + at) + 1) {
        const ssize_t size = get_value(directory, entry->name, names + at, value);
        entry->unsure = size < 0 || append(entry, &used, names + at, value, (size_t)size) < 0;
    }
}

static void look_at(int directory, struct entry *entry, int xattrs) {
    struct stat *status = &entry->status;
    if (fstatat(directory, entry->name, status, AT_SYMLINK_NOFOLLOW) < 0) {
        entry->failed = 1;
        return;
    }
    if (S_ISLNK(status->st_mode)) {
        char target[PATH_MAX];
        const ssize_t size = readlinkat(directory, entry->name, target, sizeof target);
        if (size <= 0 || (size_t)size == sizeof target || (entry->target = malloc((size_t)size)) == NULL) {
            entry->failed = 1;
            return;
        }
        memcpy(entry->target, target, (size_t)size);
        entry->target_size = (size_t)size;
    }
    if (xattrs && !S_ISDIR(status->st_mode))
        read_xattrs(directory, entry);
}

static PyObject *xattrs_of(const struct entry *entry) {
    if (entry->unsure)
        return Py_NewRef(Py_False);
    if (entry->xattr_count == 0)
        return Py_NewRef(Py_None);
    PyObject *pairs = PyTuple_New((Py_ssize_t)entry->xattr_count);
    const char *at = entry->xattrs;
    for (size_t i = 0; pairs != NULL && i < entry->xattr_count; i++) {
        const size_t key = strlen(at), value = entry->value_sizes[i];
        PyObject *pair = Py_BuildValue("(y#y#)", at, (Py_ssize_t)key, at + key + 1, (Py_ssize_t)value);
        if (pair == NULL)
            Py_CLEAR(pairs);
        else
            PyTuple_SetItem(pairs, (Py_ssize_t)i, pair);
        at += key + 1 + value;
    }
    return pairs;
}

static PyObject *record_of(const struct entry *entry) {
    const struct stat *s = &entry->status;
    if (entry->failed)
        return Py_NewRef(Py_None);
    PyObject *target = entry->target != NULL
                           ? PyBytes_FromStringAndSize(entry->target, (Py_ssize_t)entry->target_size)
                           : Py_NewRef(Py_None);
    PyObject *xattrs = xattrs_of(entry);
    if (target == NULL || xattrs == NULL) {
        Py_XDECREF(target);
        Py_XDECREF(xattrs);
        return NULL;
    }
    return Py_BuildValue("(IKIIKKKLLlLlNN)", (unsigned)s->st_mode, (unsigned long long)s->st_nlink,
                         (unsigned)s->st_uid, (unsigned)s->st_gid, (unsigned long long)s->st_rdev,
                         (unsigned long long)s->st_dev, (unsigned long long)s->st_ino, (long long)s->st_size,
                         (long long)s->st_mtim.tv_sec, (long)s->st_mtim.tv_nsec, (long long)s->st_ctim.tv_sec,
                         (long)s->st_ctim.tv_nsec, xattrs, target);
}

PyObject *native_stat_names(PyObject *module, PyObject *args) {
    (void)module;
    int directory, xattrs;
    PyObject *names;
    if (!PyArg_ParseTuple(args, "iOp", &directory, &names, &xattrs))
        return NULL;
    PyObject *items = PySequence_Tuple(names), *results = NULL;
    if (items == NULL)
        return NULL;
    const Py_ssize_t count = PyTuple_Size(items);
    struct entry *entries = PyMem_Calloc((size_t)count + 1, sizeof *entries);
    Py_ssize_t parsed = 0;
    if (entries == NULL)
        PyErr_NoMemory();
    for (; entries != NULL && parsed < count; parsed++) {
        PyObject *name = PyTuple_GetItem(items, parsed);
        char *text;
        if (PyBytes_AsStringAndSize(name, &text, NULL) < 0)
            break;
        entries[parsed].name = text;
    }
    if (entries != NULL && parsed == count) {
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++)
            look_at(directory, &entries[i], xattrs);
        Py_END_ALLOW_THREADS
        results = PyList_New(count);
        for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
            PyObject *record = record_of(&entries[i]);
            if (record == NULL)
                Py_CLEAR(results);
            else
                PyList_SetItem(results, i, record);
        }
    }
    for (Py_ssize_t i = 0; entries != NULL && i < count; i++) {
        free(entries[i].target);
        free(entries[i].xattrs);
        free(entries[i].value_sizes);
    }
    PyMem_Free(entries);
    Py_DECREF(items);
    return results;
}
