/* The C copy of cfstools/native/_pure.py: same functions, same results. Stable ABI of Python 3.11. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdlib.h>
#include <string.h>

#include "sha2.h"

/* Less data than this is hashed sooner than another thread could take over. */
#define RELEASE_BYTES 16384

static const struct sha2_algorithm *find_algorithm(const char *name) {
    const struct sha2_algorithm *algorithms = sha2_algorithms();
    for (int i = 0; i < 2; i++)
        if (strcmp(algorithms[i].name, name) == 0)
            return &algorithms[i];
    return NULL;
}

static const struct sha2_choice *find_kernel(const struct sha2_algorithm *algorithm, const char *name) {
    if (algorithm != NULL)
        for (size_t i = 0; i < algorithm->kernel_count; i++)
            if (name == NULL || strcmp(algorithm->kernels[i].name, name) == 0)
                return &algorithm->kernels[i];
    return NULL;
}

/* What no kernel here does faster is left to the system's library. */
static PyObject *ask_pure(PyObject *args) {
    PyObject *module = PyImport_ImportModule("cfstools.native._pure");
    if (module == NULL)
        return NULL;
    PyObject *function = PyObject_GetAttrString(module, "hash_blocks");
    PyObject *ours = PyTuple_GetSlice(args, 0, 4); /* without the choice of a kernel */
    PyObject *result = function != NULL && ours != NULL ? PyObject_Call(function, ours, NULL) : NULL;
    Py_XDECREF(ours);
    Py_XDECREF(function);
    Py_DECREF(module);
    return result;
}

struct work {
    const struct sha2_algorithm *algorithm;
    const struct sha2_choice *kernel;
    struct sha2_start start;
    const uint8_t *data;
    size_t size;
    size_t block_size;
};

static size_t count_blocks(size_t size, size_t block_size) { return size / block_size + (size % block_size != 0); }

/* A copy of the last blocks, as many as the kernel wants at least, with the very last one, which is not whole, zero
 * padded. */
static uint8_t *copy_end(const struct work *work) {
    const size_t rest = work->size % work->block_size;
    const size_t size = work->kernel->least * work->block_size;
    const size_t used = size - work->block_size + rest;
    uint8_t *copy = malloc(size);
    if (copy == NULL)
        return NULL;
    memcpy(copy, work->data + work->size - used, used);
    memset(copy + used, 0, size - used);
    return copy;
}

/* Hashes all blocks, of which there are at least as many as the kernel takes. */
static int run(const struct work *work, uint8_t *out) {
    const size_t digest = work->algorithm->digest_size;
    const size_t least = work->kernel->least;
    const size_t blocks = count_blocks(work->size, work->block_size);
    const size_t whole = work->size / work->block_size;
    if (whole < blocks) {
        uint8_t *end = copy_end(work);
        if (end == NULL)
            return -1;
        work->kernel->run(&work->start, end, work->block_size, least, out + (blocks - least) * digest);
        free(end);
    }
    if (whole >= least)
        work->kernel->run(&work->start, work->data, work->block_size, whole, out);
    return 0;
}

static PyObject *hash(const struct work *work) {
    const size_t blocks = count_blocks(work->size, work->block_size);
    /* Cannot overflow: a digest is smaller than any block. */
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(blocks * work->algorithm->digest_size));
    if (result == NULL || blocks == 0)
        return result;
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    int failed;
    if (work->size >= RELEASE_BYTES) {
        Py_BEGIN_ALLOW_THREADS
        failed = run(work, out);
        Py_END_ALLOW_THREADS
    } else {
        failed = run(work, out);
    }
    if (failed) {
        Py_DECREF(result);
        return PyErr_NoMemory();
    }
    return result;
}

/* Whether a kernel can do it; a block that is not a whole number of compressions is nothing fs-verity has. */
static int is_ours(const struct work *work, size_t salt_size) {
    if (work->kernel == NULL || work->block_size > SHA2_SIZE_MAX)
        return 0;
    const size_t unit = work->algorithm->compression_block;
    return work->block_size % unit == 0 && salt_size % unit == 0 &&
           count_blocks(work->size, work->block_size) >= work->kernel->least;
}

static PyObject *hash_blocks(PyObject *module, PyObject *args) {
    (void)module;
    const char *name, *kernel_name = NULL;
    Py_buffer data, salt;
    Py_ssize_t block_size;
    if (!PyArg_ParseTuple(args, "sy*ny*|z", &name, &data, &block_size, &salt, &kernel_name))
        return NULL;
    PyObject *result = NULL;
    const struct sha2_algorithm *algorithm = find_algorithm(name);
    struct work work = {algorithm, find_kernel(algorithm, kernel_name), {{0}, 0}, data.buf, (size_t)data.len,
                        (size_t)block_size};
    if (block_size <= 0) {
        PyErr_SetString(PyExc_ValueError, "the block size must be positive");
    } else if (work.kernel == NULL && kernel_name != NULL) {
        PyErr_Format(PyExc_ValueError, "no kernel %s for %s here", kernel_name, name);
    } else if (is_ours(&work, (size_t)salt.len)) {
        algorithm->init(&work.start);
        algorithm->absorb(&work.start, salt.buf, (size_t)salt.len / algorithm->compression_block);
        result = hash(&work);
    } else {
        result = ask_pure(args);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&salt);
    return result;
}

static PyObject *hash_kernels(PyObject *module, PyObject *args) {
    (void)module;
    const char *name;
    if (!PyArg_ParseTuple(args, "s", &name))
        return NULL;
    const struct sha2_algorithm *algorithm = find_algorithm(name);
    PyObject *names = PyList_New(0);
    for (size_t i = 0; names != NULL && algorithm != NULL && i < algorithm->kernel_count; i++) {
        PyObject *text = PyUnicode_FromString(algorithm->kernels[i].name);
        if (text == NULL || PyList_Append(names, text) < 0)
            Py_CLEAR(names);
        Py_XDECREF(text);
    }
    return names;
}

static PyMethodDef methods[] = {
    {"hash_blocks", hash_blocks, METH_VARARGS,
     "hash_blocks(algorithm, data, block_size, salt_prefix, kernel=None)\n\n"
     "As in _pure.py; kernel names one of hash_kernels() instead of the fastest."},
    {"hash_kernels", hash_kernels, METH_VARARGS,
     "hash_kernels(algorithm)\n\nNames of the kernels this processor runs, the fastest first."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The C copy of the hot loops.", 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC PyInit__native(void) {
    sha2_algorithms();
    return PyModule_Create(&definition);
}
