/* The classes of cfstools/tree/model.py and quick access to their slots. */
#ifndef CFSTOOLS_MODEL_H
#define CFSTOOLS_MODEL_H

#include "native.h"

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

/* Looks the classes over; -1 with an exception if they are not what they should be. To be closed in either case. */
int model_open(struct model *model, PyObject *kinds);
void model_close(struct model *model);

/* As getattr and setattr; an object made by `model_new` has no value in any slot. */
PyObject *model_get(const struct model *model, PyObject *object, enum attribute attribute);
int model_set(const struct model *model, PyObject *object, enum attribute attribute, PyObject *value);
PyObject *model_new(const struct model *model, enum kind kind);

/* As model_set; takes over the reference to `value`, which may be NULL with an exception. */
int model_set_taken(const struct model *model, PyObject *object, enum attribute attribute, PyObject *value);

/* Contents outside of the image; takes over both references, either of which may be NULL with an exception. */
PyObject *model_new_external(const struct model *model, PyObject *digest, PyObject *payload);

/* Numbers met lately: those that repeat are one object. All zero at first. */
#define NUMBERS 1024
struct numbers {
    PyObject *objects[NUMBERS]; /* by their low bits */
    uint64_t values[NUMBERS];
};

PyObject *numbers_get(struct numbers *numbers, uint64_t value);
void numbers_close(struct numbers *numbers);

#endif
