/* The extension module: C copies of the functions in cfstools/native. Stable ABI of Python 3.11. */
#include "native.h"

PyObject *native_ask_pure(const char *name, PyObject *args) {
    PyObject *module = PyImport_ImportModule("cfstools.native._pure");
    if (module == NULL)
        return NULL;
    PyObject *function = PyObject_GetAttrString(module, name);
    PyObject *result = function != NULL ? PyObject_Call(function, args, NULL) : NULL;
    Py_XDECREF(function);
    Py_DECREF(module);
    return result;
}

PyObject *native_list(size_t count, make_item *make, void *context) {
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *item = make(context, i);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, (Py_ssize_t)i, item);
    }
    return list;
}

int native_has_prefixes(const Py_buffer *prefixes, int store_fd) {
    if (prefixes->len == PREFIXES * (Py_ssize_t)sizeof(int) || (store_fd < 0 && prefixes->len == 0))
        return 1;
    PyErr_SetString(PyExc_ValueError, "there must be 256 prefixes");
    return 0;
}

#define LISTED(name) {#name, native_##name, METH_VARARGS, "See cfstools.native." #name "."},

static PyMethodDef methods[] = {NATIVE_FUNCTIONS(LISTED){NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "C copies of hot loops.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void) {
    sha2_algorithms();
    return PyModule_Create(&definition);
}
