/* From an ordinary image to its tree, as cfstools/formats/composefs/reader.py reads it.
 *
 * Declines an image with anything wrong or rare in it: Python reads that as a whole. */
#include "erofs_decode.h"

#include <stdlib.h>

#include "native.h"

#define DEPTH_MAX 100000
#define ASK_SIGNALS 4096

static int set_number(struct reader *r, PyObject *object, enum attribute attribute, uint64_t value) {
    return model_set_number(&r->model, &r->numbers, object, attribute, value);
}

/* The bytes of an inode that are in the image. */
static PyObject *data_of(const struct reader *r, const struct disk_inode *inode) {
    PyObject *data = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(inode->data_size + inode->tail_size));
    if (data != NULL) {
        memcpy(PyBytes_AsString(data), r->disk.data + inode->data_start, inode->data_size);
        memcpy(PyBytes_AsString(data) + inode->data_size, r->disk.data + inode->tail_start, inode->tail_size);
    }
    return data;
}

static enum outcome set_content(struct reader *r, PyObject *made, const struct disk_inode *inode,
                                const struct meaning *meaning) {
    PyObject *content;
    if (inode->is_chunked) {
        TRY(decode_external(r, meaning, &content));
    } else {
        if (meaning->redirect != NULL || meaning->metacopy != NULL)
            return LEFT;
        content = data_of(r, inode);
    }
    return model_set_taken(&r->model, made, A_CONTENT, content) || set_number(r, made, A_SIZE, inode->size) ? FAILED
                                                                                                           : DONE;
}

static enum outcome set_target(struct reader *r, PyObject *made, const struct disk_inode *inode) {
    PyObject *target = data_of(r, inode);
    if (target == NULL)
        return FAILED;
    if (memchr(PyBytes_AsString(target), 0, (size_t)PyBytes_Size(target))) {
        Py_DECREF(target);
        return LEFT;
    }
    return model_set_taken(&r->model, made, A_TARGET, target) ? FAILED : DONE;
}

static enum outcome set_device(struct reader *r, PyObject *made, uint32_t number) {
    return set_number(r, made, A_RDEV, number) || set_number(r, made, A_DEVICE_SIZE, 0) ? FAILED : DONE;
}

/* What a kind of inode has of its own. */
static enum outcome set_own(struct reader *r, PyObject *made, enum kind kind, const struct disk_inode *inode,
                            const struct meaning *meaning) {
    switch (kind) {
    case K_FILE: return set_content(r, made, inode, meaning);
    case K_SYMLINK: return set_target(r, made, inode);
    case K_DEVICE: return set_device(r, made, meaning->is_whiteout ? 0 : inode->union_field);
    case K_FIFO: return set_number(r, made, A_FIFO_SIZE, 0) ? FAILED : DONE;
    case K_SOCKET: return set_number(r, made, A_SOCKET_SIZE, 0) ? FAILED : DONE;
    default: return model_set_taken(&r->model, made, A_ENTRIES, PyDict_New()) ? FAILED : DONE;
    }
}

/* Only the objects of an inode, and None for it, if nothing else of it can be wrong. */
static enum outcome pack(struct reader *r, const struct disk_inode *inode, const struct meaning *meaning,
                         PyObject **out) {
    *out = Py_NewRef(Py_None);
    if (inode->is_chunked)
        return decode_need(r, meaning, inode->size);
    return meaning->redirect != NULL || meaning->metacopy != NULL ? LEFT : DONE;
}

static enum outcome make(struct reader *r, const struct disk_inode *inode, PyObject **out) {
    struct meaning meaning;
    *out = NULL;
    TRY(decode_xattrs(r, inode, &meaning));
    const uint32_t mode = meaning.is_whiteout ? S_IFCHR | (inode->mode & 07777) : inode->mode;
    const enum kind kind = (enum kind)model_kind_of(mode);
    if (r->packs && (kind == K_FILE || kind == K_DIRECTORY)) {
        Py_DECREF(meaning.kept);
        const enum outcome packed = pack(r, inode, &meaning, out);
        if (packed != DONE)
            Py_CLEAR(*out);
        return packed;
    }
    const struct common common = {mode, inode->uid, inode->gid, inode->nlink, inode->nsec, inode->sec, meaning.kept};
    PyObject *made = model_new(&r->model, kind);
    enum outcome outcome =
        made == NULL || model_set_common(&r->model, &r->numbers, made, &common) ? FAILED : DONE;
    if (outcome == DONE)
        outcome = set_own(r, made, kind, inode, &meaning);
    Py_DECREF(meaning.kept);
    if (outcome == DONE)
        *out = made;
    else
        Py_XDECREF(made);
    return outcome;
}

/* Whether an inode is new. Inodes must not overlap, and a directory must have one name. */
static enum outcome visit(struct reader *r, const struct disk_inode *inode, int *is_new) {
    *is_new = !set_bit(r->seen, inode->nid);
    if (!*is_new)
        return S_ISDIR(inode->mode) ? LEFT : DONE;
    const uint64_t size = inode->tail_start - inode->offset + inode->tail_size + inode->data_size;
    if (size > r->left)
        return LEFT;
    r->left -= size;
    return DONE;
}

static enum outcome descend(struct reader *r, const struct disk_inode *inode, PyObject *directory, uint64_t parent) {
    PyObject *entries = r->packs ? NULL : model_entries(&r->model, directory);
    if ((entries == NULL && !r->packs) || r->levels.count == DEPTH_MAX)
        return leave();
    if (PUSH(r->levels, (struct level){.nid = inode->nid, .parent = parent, .entries = entries}))
        return no_memory();
    disk_dirents(inode, &r->levels.at[r->levels.count - 1].dirents);
    return DONE;
}

/* "." and ".." must refer to the directory and its parent. */
static enum outcome check_dots(struct level *level, const struct dirent *entry) {
    if (entry->nid != (entry->name.size == 1 ? level->nid : level->parent) || entry->type != FMT_FILE_TYPE_DIRECTORY)
        return LEFT;
    level->dots |= (int)entry->name.size;
    return DONE;
}

static int is_dots(const struct dirent *entry) {
    return text_equal(entry->name, TEXT(".")) || text_equal(entry->name, TEXT(".."));
}

/* A hard link: another name of an inode that the tree has. */
static enum outcome link_to(struct reader *r, const struct disk_inode *inode, PyObject **out) {
    PyObject *number = PyLong_FromUnsignedLongLong(inode->nid);
    PyObject *known = number != NULL ? PyDict_GetItemWithError(r->linked, number) : NULL;
    Py_XDECREF(number);
    if (known == NULL)
        return PyErr_Occurred() ? FAILED : LEFT;
    r->hard_links++;
    *out = model_new(&r->model, K_LINK);
    if (*out == NULL || model_set(&r->model, *out, A_LINKED, known)) {
        Py_CLEAR(*out);
        return FAILED;
    }
    return DONE;
}

/* Keeps an inode whose link count says that it has several names. If another has them, Python reads the image. */
static int remember(struct reader *r, const struct disk_inode *inode, PyObject *made) {
    if (inode->nlink == 1 || S_ISDIR(inode->mode))
        return 0;
    PyObject *number = PyLong_FromUnsignedLongLong(inode->nid);
    const int failed = number == NULL || PyDict_SetItem(r->linked, number, made);
    Py_XDECREF(number);
    return failed;
}

static enum outcome add_entry(struct reader *r, const struct dirent *entry) {
    struct level *level = &r->levels.at[r->levels.count - 1];
    struct disk_inode inode;
    PyObject *made;
    int is_new;
    TRY(disk_inode(&r->disk, entry->nid, &inode));
    if (disk_file_type(inode.mode) != entry->type)
        return LEFT;
    TRY(visit(r, &inode, &is_new));
    if (S_ISCHR(inode.mode) && inode.union_field == 0) {
        r->hiding += (unsigned)is_new;
        return DONE;
    }
    if (is_new)
        TRY(make(r, &inode, &made));
    else
        TRY(link_to(r, &inode, &made));
    PyObject *name = r->packs ? NULL : new_bytes(entry->name);
    enum outcome outcome =
        r->packs || (name != NULL && PyDict_SetItem(level->entries, name, made) == 0) ? DONE : FAILED;
    Py_XDECREF(name);
    if (outcome == DONE && is_new && remember(r, &inode, made))
        outcome = FAILED;
    if (outcome == DONE && S_ISDIR(inode.mode))
        outcome = descend(r, &inode, made, level->nid);
    Py_DECREF(made);
    return outcome;
}

/* The directory is complete, and so is all below it. */
static enum outcome leave_directory(struct reader *r) {
    PyObject *entries = r->levels.at[--r->levels.count].entries;
    PyObject *result = r->leave != NULL ? PyObject_CallFunctionObjArgs(r->leave, entries, NULL) : Py_NewRef(Py_None);
    Py_XDECREF(result);
    return result == NULL ? FAILED : DONE;
}

static enum outcome walk(struct reader *r) {
    while (r->levels.count > 0) {
        struct level *level = &r->levels.at[r->levels.count - 1];
        struct dirent entry;
        TRY(disk_next_dirent(&r->disk, &level->dirents, &entry));
        if (entry.name.size == 0) {
            if (level->dots != 3)
                return LEFT;
            TRY(leave_directory(r));
        } else if (is_dots(&entry)) {
            TRY(check_dots(level, &entry));
        } else {
            TRY(add_entry(r, &entry));
        }
        if (++r->entries % ASK_SIGNALS == 0 && PyErr_CheckSignals())
            return FAILED;
    }
    return DONE;
}

static enum outcome read_tree(struct reader *r, uint64_t root, PyObject **out) {
    struct disk_inode inode;
    int is_new;
    *out = NULL;
    TRY(disk_inode(&r->disk, root, &inode));
    if (!S_ISDIR(inode.mode))
        return LEFT;
    TRY(visit(r, &inode, &is_new));
    TRY(make(r, &inode, out));
    TRY(descend(r, &inode, *out, root));
    return walk(r);
}

static int reader_open(struct reader *r, PyObject *kinds, size_t length) {
    r->disk.length = r->left = r->shared_left = length;
    r->mappings = PyDict_New();
    r->linked = PyDict_New();
    r->keys = PyDict_New();
    r->shared_pairs = PyDict_New();
    r->seen = calloc(length / FMT_SLOT_SIZE / 8 + 1, 1);
    r->seen_shared = calloc(length / FMT_XATTR_UNIT / 8 + 1, 1);
    if (r->seen == NULL || r->seen_shared == NULL)
        PyErr_NoMemory();
    return r->seen == NULL || r->seen_shared == NULL || r->mappings == NULL || r->linked == NULL ||
           r->keys == NULL || r->shared_pairs == NULL || model_open(&r->model, kinds);
}

static void reader_close(struct reader *r) {
    model_close(&r->model);
    numbers_close(&r->numbers);
    Py_XDECREF(r->mappings);
    Py_XDECREF(r->linked);
    Py_XDECREF(r->keys);
    Py_XDECREF(r->shared_pairs);
    free(r->seen);
    free(r->seen_shared);
    free(r->levels.at);
    needs_close(&r->needs);
}

PyObject *native_read_tree(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer data;
    PyObject *kinds, *result = NULL, *root = NULL;
    unsigned long long root_nid, xattr_base;
    long long build_sec;
    unsigned build_nsec;
    struct reader r;
    memset(&r, 0, sizeof r);
    if (!PyArg_ParseTuple(args, "y*KKLIO!OO|O", &data, &root_nid, &xattr_base, &build_sec, &build_nsec, &PyTuple_Type,
                          &kinds, &r.no_xattrs, &r.freeze, &r.leave))
        return NULL;
    r.packs = r.leave == Py_None;
    r.leave = r.packs ? NULL : r.leave;
    r.disk.data = data.buf;
    r.disk.xattr_base = xattr_base;
    r.disk.build_sec = build_sec;
    r.disk.build_nsec = build_nsec;
    if ((size_t)data.len < FMT_BLOCK_SIZE || xattr_base % FMT_XATTR_UNIT) {
        PyErr_SetString(PyExc_ValueError, "too short for an image, or the shared attributes lie oddly");
    } else if (reader_open(&r, kinds, (size_t)data.len) == 0) {
        const enum outcome outcome = read_tree(&r, root_nid, &root);
        if (outcome == DONE)
            result = Py_BuildValue("(NIKKnKK)", r.packs ? needs_packed(&r.needs) : Py_NewRef(root), r.algorithm,
                                   r.hiding, r.hard_links, PyDict_Size(r.linked), r.shared, r.references);
        else if (outcome == LEFT)
            result = Py_NewRef(Py_None);
    }
    Py_XDECREF(root);
    reader_close(&r);
    PyBuffer_Release(&data);
    return result;
}
