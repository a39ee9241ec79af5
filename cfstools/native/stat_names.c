/* The status and xattrs of many names of a directory, and inodes made of them. */
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

#include "tree_model.h"
#include "native.h"

#define SYS_GETXATTRAT 464
#define SYS_LISTXATTRAT 465
#define KEYS_MAX 4096
#define VALUE_MAX 4096
#define PROC_PATH_MAX (32 + 256)

struct xattr_args_v0 {
    uint64_t value;
    uint32_t size, flags;
};

/* Whether the kernel has the system calls that take a directory and a name (since 6.13). Any thread may clear it. */
static int has_xattrat = 1;

struct entry {
    const char *name;
    int failed; /* nothing is known, or not for certain: the caller tries again */
    struct stat status;
    char *target; /* of a symbolic link */
    size_t target_size;
    char *xattrs; /* "key\0" and value, one after another */
    size_t xattr_count, *value_sizes;
    int unsure; /* the caller reads the xattrs */
    const uint8_t *known; /* record of a file that is not to be read, or NULL */
};

static int proc_path(char *path, int directory, const char *name) {
    return snprintf(path, PROC_PATH_MAX, "/proc/self/fd/%d/%s", directory, name) < PROC_PATH_MAX ? 0 : -1;
}

static ssize_t list_keys(int directory, const char *name, char *names) {
    char path[PROC_PATH_MAX];
    if (has_xattrat) {
        const long got = syscall(SYS_LISTXATTRAT, directory, name, AT_SYMLINK_NOFOLLOW, names, (size_t)KEYS_MAX);
        if (got >= 0 || (errno != ENOSYS && errno != EPERM))
            return got;
        has_xattrat = 0;
    }
    return proc_path(path, directory, name) < 0 ? -1 : llistxattr(path, names, KEYS_MAX);
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
    char names[KEYS_MAX], value[VALUE_MAX];
    const ssize_t listed = list_keys(directory, entry->name, names);
    size_t used = 0;
    entry->unsure = listed < 0 && errno != EOPNOTSUPP;
    for (ssize_t at = 0; at < listed && !entry->unsure; at += (ssize_t)strlen(names + at) + 1) {
        const ssize_t size = get_value(directory, entry->name, names + at, value);
        entry->unsure = size < 0 || append(entry, &used, names + at, value, (size_t)size) < 0;
    }
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

/* --- inodes --- */

/* What inodes are made of: the last argument of native.stat_names. */
struct maker {
    struct model model;
    PyObject *stamp, *no_xattrs, *known; /* borrowed: a class, a mapping, a dictionary of mappings */
    int use_epoch, links; /* links: 0 none, 1 names with a link count over 1, 2 any names */
    newfunc new_tuple;
    struct numbers numbers;
    struct text prefix; /* of paths */
    const struct entry *entries;
    struct recall recall;
};

static int maker_open(struct maker *maker, PyObject *parts) {
    PyObject *kinds, *recall = Py_None;
    struct recall *r = &maker->recall;
    memset(maker, 0, sizeof *maker);
    if (!PyArg_ParseTuple(parts, "O!OOO!pi|O", &PyTuple_Type, &kinds, &maker->stamp, &maker->no_xattrs, &PyDict_Type,
                          &maker->known, &maker->use_epoch, &maker->links, &recall))
        return -1;
    if (recall != Py_None &&
        !PyArg_ParseTuple(recall, "y*KLLIIO!O!O!", &r->records, &r->device, &r->digest_size, &r->inline_limit, &r->seen,
                          &r->bare, &PyByteArray_Type, &r->digests, &PyByteArray_Type, &r->ends, &PyByteArray_Type,
                          &r->heads))
        return -1;
    if (!PyType_Check(maker->stamp) || !PyType_IsSubtype((PyTypeObject *)maker->stamp, &PyTuple_Type)) {
        PyErr_SetString(PyExc_TypeError, "a stamp must be a tuple");
        return -1;
    }
    maker->new_tuple = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    return model_open(&maker->model, kinds);
}

static void maker_close(struct maker *maker) {
    model_close(&maker->model);
    numbers_close(&maker->numbers);
    PyBuffer_Release(&maker->recall.records);
}

/* Whether a time in nanoseconds fits 64 bits and is not negative. */
static int is_ordinary(const struct timespec *time) { return time->tv_sec >= 0 && time->tv_sec < (int64_t)1 << 33; }

/* Whether the entry alone decides its inode; a hard link depends on others. */
static int is_plain(const struct maker *maker, const struct entry *entry) {
    const struct stat *s = &entry->status;
    return !entry->failed && !entry->unsure && (S_ISREG(s->st_mode) || S_ISLNK(s->st_mode)) &&
           (maker->links == 0 || (maker->links == 1 && s->st_nlink < 2)) && is_ordinary(&s->st_mtim) &&
           is_ordinary(&s->st_ctim);
}

static void look_at(int directory, struct entry *entry, int xattrs, const struct maker *maker) {
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
    if (S_ISREG(status->st_mode) && maker->recall.ends != NULL && is_plain(maker, entry))
        entry->known = native_recall(&maker->recall, status);
    if (xattrs && !S_ISDIR(status->st_mode) && !native_is_bare(&maker->recall, entry->known))
        read_xattrs(directory, entry);
}

/* The known mapping of an entry's xattrs, borrowed; NULL without an exception if they are new. */
static PyObject *known_xattrs(const struct maker *maker, const struct entry *entry) {
    if (entry->xattr_count == 0)
        return maker->no_xattrs;
    PyObject *pairs = xattrs_of(entry);
    PyObject *known = pairs != NULL ? PyDict_GetItemWithError(maker->known, pairs) : NULL;
    Py_XDECREF(pairs);
    return known;
}

static PyObject *nanoseconds_of(const struct timespec *time) {
    return PyLong_FromLongLong((long long)time->tv_sec * 1000000000 + time->tv_nsec);
}

static PyObject *stamp_of(struct maker *maker, const struct stat *s) {
    PyObject *fields = PyTuple_New(5), *stamp = NULL;
    PyObject *values[5] = {numbers_get(&maker->numbers, s->st_dev), PyLong_FromUnsignedLongLong(s->st_ino),
                           PyLong_FromLongLong(s->st_size), nanoseconds_of(&s->st_mtim), nanoseconds_of(&s->st_ctim)};
    int missing = fields == NULL;
    for (int i = 0; i < 5; i++)
        if (fields == NULL || values[i] == NULL) {
            missing = 1;
            Py_XDECREF(values[i]);
        } else {
            PyTuple_SetItem(fields, i, values[i]);
        }
    PyObject *arguments = missing ? NULL : PyTuple_Pack(1, fields);
    if (arguments != NULL)
        stamp = maker->new_tuple((PyTypeObject *)maker->stamp, arguments, NULL);
    Py_XDECREF(arguments);
    Py_XDECREF(fields);
    return stamp;
}

/* Contents that a digest cache knows. */
static PyObject *recalled(const struct maker *maker, const uint8_t *record) {
    char path[OBJECT_PATH_MAX];
    const struct text digest = {record + KNOWN_RECORD_BYTES, (size_t)maker->recall.digest_size};
    write_object_path(digest.data, digest.size, path);
    return native_note(&maker->recall, record) < 0
               ? NULL
               : model_new_external(&maker->model, new_bytes(digest), PyBytes_FromString(path));
}

/* Contents that are not read yet. */
static PyObject *unread_of(struct maker *maker, const struct entry *entry) {
    const size_t name_size = strlen(entry->name), prefix_size = maker->prefix.size;
    PyObject *unread = model_new(&maker->model, K_UNREAD);
    PyObject *path = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(prefix_size + name_size));
    if (path != NULL) {
        memcpy(PyBytes_AsString(path), maker->prefix.data, prefix_size);
        memcpy(PyBytes_AsString(path) + prefix_size, entry->name, name_size);
    }
    if (unread == NULL)
        Py_XDECREF(path);
    else if (model_set_taken(&maker->model, unread, A_PATH, path) ||
             model_set_taken(&maker->model, unread, A_STAMP, stamp_of(maker, &entry->status)))
        Py_CLEAR(unread);
    return unread;
}

static int fill(struct maker *maker, PyObject *inode, const struct entry *entry, PyObject *xattrs) {
    const struct stat *s = &entry->status;
    const struct model *model = &maker->model;
    const struct timespec none = {0, 0}, *time = maker->use_epoch ? &none : &s->st_mtim;
    const struct common common = {s->st_mode, s->st_uid, s->st_gid, 1, (uint64_t)time->tv_nsec, time->tv_sec, xattrs};
    if (model_set_common(model, &maker->numbers, inode, &common))
        return -1;
    if (S_ISLNK(s->st_mode))
        return model_set_taken(model, inode, A_TARGET,
                               PyBytes_FromStringAndSize(entry->target, (Py_ssize_t)entry->target_size));
    return model_set_taken(model, inode, A_SIZE, PyLong_FromLongLong(s->st_size)) ||
           model_set_taken(model, inode, A_CONTENT,
                           entry->known != NULL ? recalled(maker, entry->known)
                           : s->st_size > 0     ? unread_of(maker, entry)
                                                : PyBytes_FromStringAndSize(NULL, 0));
}

/* The inode of an entry; a record where it takes more than the maker has. */
static PyObject *make_inode(void *context, size_t number) {
    struct maker *maker = context;
    const struct entry *entry = &maker->entries[number];
    PyObject *xattrs = is_plain(maker, entry) ? known_xattrs(maker, entry) : NULL;
    if (xattrs == NULL)
        return PyErr_Occurred() ? NULL : record_of(entry);
    PyObject *inode = model_new(&maker->model, S_ISLNK(entry->status.st_mode) ? K_SYMLINK : K_FILE);
    if (inode != NULL && fill(maker, inode, entry, xattrs))
        Py_CLEAR(inode);
    return inode;
}

static int parse_names(PyObject *items, struct entry *entries, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        char *text;
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(items, i), &text, NULL) < 0)
            return -1;
        entries[i].name = text;
    }
    return 0;
}

PyObject *native_stat_names(PyObject *Py_UNUSED(module), PyObject *args) {
    int directory, xattrs;
    PyObject *names, *prefix, *parts;
    struct maker maker;
    if (!PyArg_ParseTuple(args, "iOpO!O!", &directory, &names, &xattrs, &PyBytes_Type, &prefix, &PyTuple_Type, &parts))
        return NULL;
    PyObject *items = PySequence_Tuple(names), *results = NULL;
    if (items == NULL)
        return NULL;
    const Py_ssize_t count = PyTuple_Size(items);
    struct entry *entries = PyMem_Calloc((size_t)count + 1, sizeof *entries);
    if (maker_open(&maker, parts) == 0 && entries != NULL && parse_names(items, entries, count) == 0) {
        maker.prefix = text_of(prefix);
        Py_BEGIN_ALLOW_THREADS
        for (Py_ssize_t i = 0; i < count; i++)
            look_at(directory, &entries[i], xattrs, &maker);
        Py_END_ALLOW_THREADS
        maker.entries = entries;
        results = native_list((size_t)count, make_inode, &maker);
    } else if (entries == NULL) {
        PyErr_NoMemory();
    }
    maker_close(&maker);
    for (Py_ssize_t i = 0; entries != NULL && i < count; i++) {
        free(entries[i].target);
        free(entries[i].xattrs);
        free(entries[i].value_sizes);
    }
    PyMem_Free(entries);
    Py_DECREF(items);
    return results;
}
