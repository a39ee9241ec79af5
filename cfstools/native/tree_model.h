/* The classes of cfstools/tree/model.py, with fast access to their slots. */
#ifndef CFSTOOLS_MODEL_H
#define CFSTOOLS_MODEL_H

#include "bytes.h"
#include "outcome.h"

enum kind { K_DIRECTORY, K_FILE, K_SYMLINK, K_DEVICE, K_FIFO, K_SOCKET, K_LINK, K_EXTERNAL, K_UNREAD, KINDS };

/* Attributes that every inode has come first; A_MODE to A_NLINK are those of any kind of inode. */
enum attribute {
    A_MODE, A_UID, A_GID, A_SEC, A_NSEC, A_XATTRS, A_NLINK,
    A_ENTRIES, A_SIZE, A_CONTENT, A_TARGET, A_RDEV, A_DEVICE_SIZE, A_FIFO_SIZE, A_SOCKET_SIZE,
    A_LINKED, A_DIGEST, A_PAYLOAD, A_PATH, A_STAMP, ATTRIBUTES
};

struct model {
    PyObject *kinds[KINDS]; /* borrowed */
    allocfunc allocate[KINDS];
    PyObject *descriptors[ATTRIBUTES];
    descrgetfunc getters[ATTRIBUTES];
    descrsetfunc setters[ATTRIBUTES];
};

/* Checks the classes; -1 with an exception if they are not what they should be. Close the model in either case. */
int model_open(struct model *model, PyObject *kinds);
void model_close(struct model *model);

/* getattr and setattr; an object made by `model_new` has no value in any slot. */
PyObject *model_get(const struct model *model, PyObject *object, enum attribute attribute);
int model_set(const struct model *model, PyObject *object, enum attribute attribute, PyObject *value);
PyObject *model_new(const struct model *model, enum kind kind);

/* The same, but steals the reference to `value`, which may be NULL with an exception. */
int model_set_taken(const struct model *model, PyObject *object, enum attribute attribute, PyObject *value);

/* -1 with an exception for anything but an integer that fits. */
int model_get_unsigned(const struct model *model, PyObject *object, enum attribute attribute, uint64_t *out);
int model_get_signed(const struct model *model, PyObject *object, enum attribute attribute, int64_t *out);

/* The entries of a directory, borrowed from it; NULL with an exception, or without one if they are no dictionary. */
PyObject *model_entries(const struct model *model, PyObject *directory);

static inline int model_is(const struct model *model, PyObject *object, enum kind kind) {
    return (PyObject *)Py_TYPE(object) == model->kinds[kind];
}

/* External contents; steals both references, either of which may be NULL with an exception. */
PyObject *model_new_external(const struct model *model, PyObject *digest, PyObject *payload);

/* Kind of the inode with this mode; -1 for none. */
int model_kind_of(uint32_t mode);

/* Recent numbers: equal ones are one object. All zero at first. */
#define NUMBERS 1024
struct numbers {
    PyObject *objects[NUMBERS]; /* by their low bits */
    uint64_t values[NUMBERS];
};

PyObject *numbers_get(struct numbers *numbers, uint64_t value);
int model_set_number(const struct model *model, struct numbers *numbers, PyObject *object, enum attribute attribute,
                     uint64_t value);

/* Attributes of every inode. */
struct common {
    uint64_t mode, uid, gid, nlink, nsec;
    int64_t sec;
    PyObject *xattrs; /* borrowed */
};

int model_set_common(const struct model *model, struct numbers *numbers, PyObject *inode, const struct common *common);

static inline PyObject *new_bytes(struct text text) {
    return PyBytes_FromStringAndSize((const char *)text.data, (Py_ssize_t)text.size);
}

/* What a bytes object holds. */
static inline struct text text_of(PyObject *bytes) {
    return (struct text){(const uint8_t *)PyBytes_AsString(bytes), (size_t)PyBytes_Size(bytes)};
}

void numbers_close(struct numbers *numbers);

#endif
