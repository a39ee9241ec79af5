#include "tree_model.h"

#include <string.h>
#include <sys/stat.h>

/* A slot is a descriptor of its class. Its functions are called directly: no lookup by name each time. */

static const struct {
    enum kind kind;
    const char *name;
} attributes[ATTRIBUTES] = {
    [A_MODE] = {K_DIRECTORY, "mode"},
    [A_UID] = {K_DIRECTORY, "uid"},
    [A_GID] = {K_DIRECTORY, "gid"},
    [A_SEC] = {K_DIRECTORY, "mtime_sec"},
    [A_NSEC] = {K_DIRECTORY, "mtime_nsec"},
    [A_XATTRS] = {K_DIRECTORY, "xattrs"},
    [A_NLINK] = {K_DIRECTORY, "nlink"},
    [A_ENTRIES] = {K_DIRECTORY, "entries"},
    [A_SIZE] = {K_FILE, "size"},
    [A_CONTENT] = {K_FILE, "content"},
    [A_TARGET] = {K_SYMLINK, "target"},
    [A_RDEV] = {K_DEVICE, "rdev"},
    [A_DEVICE_SIZE] = {K_DEVICE, "size"},
    [A_FIFO_SIZE] = {K_FIFO, "size"},
    [A_SOCKET_SIZE] = {K_SOCKET, "size"},
    [A_LINKED] = {K_LINK, "inode"},
    [A_DIGEST] = {K_EXTERNAL, "digest"},
    [A_PAYLOAD] = {K_EXTERNAL, "payload"},
    [A_PATH] = {K_UNREAD, "path"},
    [A_STAMP] = {K_UNREAD, "stamp"},
};

int model_open(struct model *model, PyObject *kinds) {
    memset(model, 0, sizeof *model);
    if (PyTuple_Size(kinds) != KINDS) {
        PyErr_SetString(PyExc_ValueError, "there must be nine kinds");
        return -1;
    }
    for (int i = 0; i < KINDS; i++) {
        model->kinds[i] = PyTuple_GetItem(kinds, i);
        if (!PyType_Check(model->kinds[i])) {
            PyErr_SetString(PyExc_TypeError, "a kind must be a class");
            return -1;
        }
        model->allocate[i] = (allocfunc)PyType_GetSlot((PyTypeObject *)model->kinds[i], Py_tp_alloc);
    }
    for (int i = 0; i < ATTRIBUTES; i++) {
        PyObject *descriptor = PyObject_GetAttrString(model->kinds[attributes[i].kind], attributes[i].name);
        if (descriptor == NULL)
            return -1;
        model->descriptors[i] = descriptor;
        model->getters[i] = (descrgetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_get);
        model->setters[i] = (descrsetfunc)PyType_GetSlot(Py_TYPE(descriptor), Py_tp_descr_set);
        if (model->getters[i] == NULL || model->setters[i] == NULL) {
            PyErr_Format(PyExc_TypeError, "%s is not a slot", attributes[i].name);
            return -1;
        }
    }
    return 0;
}

void model_close(struct model *model) {
    for (int i = 0; i < ATTRIBUTES; i++)
        Py_CLEAR(model->descriptors[i]);
}

PyObject *model_get(const struct model *model, PyObject *object, enum attribute attribute) {
    return model->getters[attribute](model->descriptors[attribute], object, (PyObject *)Py_TYPE(object));
}

int model_set(const struct model *model, PyObject *object, enum attribute attribute, PyObject *value) {
    return model->setters[attribute](model->descriptors[attribute], object, value);
}

PyObject *model_new(const struct model *model, enum kind kind) {
    return model->allocate[kind]((PyTypeObject *)model->kinds[kind], 0);
}

int model_set_taken(const struct model *model, PyObject *object, enum attribute attribute, PyObject *value) {
    const int failed = value == NULL || model_set(model, object, attribute, value);
    Py_XDECREF(value);
    return failed;
}

PyObject *model_new_external(const struct model *model, PyObject *digest, PyObject *payload) {
    PyObject *external = digest != NULL && payload != NULL ? model_new(model, K_EXTERNAL) : NULL;
    if (external != NULL &&
        (model_set(model, external, A_DIGEST, digest) || model_set(model, external, A_PAYLOAD, payload)))
        Py_CLEAR(external);
    Py_XDECREF(digest);
    Py_XDECREF(payload);
    return external;
}

int model_get_unsigned(const struct model *model, PyObject *object, enum attribute attribute, uint64_t *out) {
    PyObject *value = model_get(model, object, attribute);
    *out = value != NULL ? PyLong_AsUnsignedLongLong(value) : 0;
    Py_XDECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

int model_get_signed(const struct model *model, PyObject *object, enum attribute attribute, int64_t *out) {
    PyObject *value = model_get(model, object, attribute);
    *out = value != NULL ? PyLong_AsLongLong(value) : 0;
    Py_XDECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

PyObject *model_entries(const struct model *model, PyObject *directory) {
    PyObject *entries = model_get(model, directory, A_ENTRIES);
    Py_XDECREF(entries); /* the directory holds it */
    return entries != NULL && PyDict_Check(entries) ? entries : NULL;
}

int model_kind_of(uint32_t mode) {
    switch (mode & S_IFMT) {
    case S_IFDIR: return K_DIRECTORY;
    case S_IFREG: return K_FILE;
    case S_IFLNK: return K_SYMLINK;
    case S_IFCHR:
    case S_IFBLK: return K_DEVICE;
    case S_IFIFO: return K_FIFO;
    case S_IFSOCK: return K_SOCKET;
    default: return -1;
    }
}

PyObject *numbers_get(struct numbers *numbers, uint64_t value) {
    const size_t at = (value ^ value >> 17) % NUMBERS;
    if (numbers->objects[at] == NULL || numbers->values[at] != value) {
        PyObject *fresh = PyLong_FromUnsignedLongLong(value);
        if (fresh == NULL)
            return NULL;
        Py_XDECREF(numbers->objects[at]);
        numbers->objects[at] = fresh;
        numbers->values[at] = value;
    }
    return Py_NewRef(numbers->objects[at]);
}

void numbers_close(struct numbers *numbers) {
    for (int i = 0; i < NUMBERS; i++)
        Py_CLEAR(numbers->objects[i]);
}

int model_set_number(const struct model *model, struct numbers *numbers, PyObject *object, enum attribute attribute,
                     uint64_t value) {
    return model_set_taken(model, object, attribute, numbers_get(numbers, value));
}

int model_set_common(const struct model *model, struct numbers *numbers, PyObject *inode, const struct common *common) {
    PyObject *sec = common->sec < 0 ? PyLong_FromLongLong(common->sec) : numbers_get(numbers, (uint64_t)common->sec);
    return model_set_taken(model, inode, A_SEC, sec) ||
           model_set_number(model, numbers, inode, A_MODE, common->mode) ||
           model_set_number(model, numbers, inode, A_UID, common->uid) ||
           model_set_number(model, numbers, inode, A_GID, common->gid) ||
           model_set_number(model, numbers, inode, A_NLINK, common->nlink) ||
           model_set_number(model, numbers, inode, A_NSEC, common->nsec) ||
           model_set(model, inode, A_XATTRS, common->xattrs);
}
