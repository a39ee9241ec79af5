/* The C copy of cfstools/native/_pure.py: same functions, same results. Stable ABI of Python 3.11. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

/* Less data than this is hashed sooner than another thread could take over. */
#define RELEASE_BYTES 16384

const struct sha2_algorithm *native_algorithm(const char *name) {
    const struct sha2_algorithm *algorithms = sha2_algorithms();
    for (int i = 0; i < 2; i++)
        if (strcmp(algorithms[i].name, name) == 0)
            return &algorithms[i];
    return NULL;
}

const struct sha2_choice *native_kernel(const struct sha2_algorithm *algorithm, const char *name) {
    if (algorithm != NULL)
        for (size_t i = 0; i < algorithm->kernel_count; i++)
            if (name == NULL || strcmp(algorithm->kernels[i].name, name) == 0)
                return &algorithm->kernels[i];
    return NULL;
}

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

int native_hash(const struct sha2_algorithm *algorithm, const struct sha2_choice *kernel,
                const struct sha2_start *start, const uint8_t *data, size_t block_size, size_t count, uint8_t *out) {
    const size_t least = kernel->least;
    if (count >= least) {
        kernel->run(start, data, block_size, count, out);
        return 0;
    }
    uint8_t *padded = calloc(least, block_size), *digests = malloc(least * algorithm->digest_size);
    const int failed = padded == NULL || digests == NULL;
    if (!failed) {
        memcpy(padded, data, count * block_size);
        kernel->run(start, padded, block_size, least, digests);
        memcpy(out, digests, count * algorithm->digest_size);
    }
    free(padded);
    free(digests);
    return failed ? -1 : 0;
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
    const struct sha2_algorithm *algorithm = native_algorithm(name);
    struct work work = {algorithm, native_kernel(algorithm, kernel_name), {{0}, 0}, data.buf, (size_t)data.len,
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
        PyObject *ours = PyTuple_GetSlice(args, 0, 4); /* without the choice of a kernel */
        result = ours != NULL ? native_ask_pure("hash_blocks", ours) : NULL;
        Py_XDECREF(ours);
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
    const struct sha2_algorithm *algorithm = native_algorithm(name);
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
    {"digest_files", native_digest_files, METH_VARARGS,
     "digest_files(root_fd, files, arena, algorithm, block_size, salt_prefix, descriptor, inline_limit, store_fd, "
     "prefixes)\n\nAs in _pure.py."},
    {"digest_spans", native_digest_spans, METH_VARARGS,
     "digest_spans(arena, spans, algorithm, block_size, salt_prefix, descriptor, store_fd, prefixes)\n\nAs in _pure.py."},
    {"rename_files", native_rename_files, METH_VARARGS, "rename_files(directory, renames)\n\nAs in _pure.py."},
    {"give_contents", native_give_contents, METH_VARARGS, "give_contents(files, digested, kinds)\n\nAs in _pure.py."},
    {"match_stamps", native_match_stamps, METH_VARARGS,
     "match_stamps(stamps, records, device, digest_size, inline_limit, store_fd, prefixes)\n\nAs in _pure.py."},
    {"merge_records", native_merge_records, METH_VARARGS,
     "merge_records(records, made, digest_size, oldest)\n\nAs in _pure.py."},
    {"digest_range", native_digest_range, METH_VARARGS,
     "digest_range(algorithm, fd, offset, length, block_size, salt_prefix, copy_fd)\n\nAs in _pure.py."},
    {"check_objects", native_check_objects, METH_VARARGS,
     "check_objects(prefixes, digests, ends, first, end, arena, algorithm, block_size, salt_prefix, descriptor)\n\n"
     "As in _pure.py."},
    {"write_sparse", native_write_sparse, METH_VARARGS,
     "write_sparse(fd, data, offset)\n\nAs in _pure.py."},
    {"write_files", native_write_files, METH_VARARGS,
     "write_files(directory, arena, spans, mode, number)\n\nAs in _pure.py."},
    {"link_files", native_link_files, METH_VARARGS, "link_files(links)\n\nAs in _pure.py."},
    {"list_names", native_list_names, METH_VARARGS, "list_names(directory)\n\nAs in _pure.py."},
    {"stat_names", native_stat_names, METH_VARARGS,
     "stat_names(directory, names, xattrs, prefix, maker)\n\nAs in _pure.py."},
    {"take_entries", native_take_entries, METH_VARARGS,
     "take_entries(names, met, first, entries, files, kinds)\n\nAs in _pure.py."},
    {"encode_tree", native_encode_tree, METH_VARARGS,
     "encode_tree(root, kinds, rewrite, metacopy_header, digest_size, version)\n\nAs _pure.py says."},
    {"parse_lines", native_parse_lines, METH_VARARGS,
     "parse_lines(text, start, kinds, directories, xattrs, no_xattrs, digits, strict)\n\nAs _pure.py says."},
    {"read_tree", native_read_tree, METH_VARARGS,
     "read_tree(data, root_nid, xattr_base, build_sec, build_nsec, kinds, no_xattrs, freeze)\n\nAs _pure.py says."},
    {"needed_objects", native_needed_objects, METH_VARARGS,
     "needed_objects(root, kinds, digest_size)\n\nAs _pure.py says."},
    {"print_entries", native_print_entries, METH_VARARGS,
     "print_entries(stack, firsts, line, xattrs_text, no_xattrs, kinds, enough)\n\nAs _pure.py says."},
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
