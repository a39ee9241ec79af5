#include "model.h"

#include <string.h>

/* A slot is a descriptor of its class, whose own slots can be called without looking the name up each time. */

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
    if (external != NULL && (model_set(model, external, A_DIGEST, digest) || model_set(model, external, A_PAYLOAD, payload)))
        Py_CLEAR(external);
    Py_XDECREF(digest);
    Py_XDECREF(payload);
    return external;
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
