/* Hashes of the blocks of a buffer, by the fastest kernel of this processor. */
#include "native.h"

#include <stdlib.h>
#include <string.h>

/* Less data than this takes less time than releasing the GIL. */
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

/* Hashes all blocks, the incomplete last one zero padded. */
static int run(const struct work *work, uint8_t *out) {
    const size_t whole = work->size / work->block_size, rest = work->size % work->block_size;
    if (whole > 0 && native_hash(work->algorithm, work->kernel, &work->start, work->data, work->block_size, whole, out))
        return -1;
    if (rest == 0)
        return 0;
    uint8_t *last = calloc(1, work->block_size);
    if (last != NULL)
        memcpy(last, work->data + whole * work->block_size, rest);
    const int failed = last == NULL || native_hash(work->algorithm, work->kernel, &work->start, last, work->block_size,
                                                   1, out + whole * work->algorithm->digest_size);
    free(last);
    return failed ? -1 : 0;
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

/* Whether a kernel can do it. Blocks of fs-verity are always a whole number of compressions. */
static int is_ours(const struct work *work, size_t salt_size) {
    if (work->kernel == NULL || work->block_size > SHA2_SIZE_MAX)
        return 0;
    const size_t unit = work->algorithm->compression_block;
    return work->block_size % unit == 0 && salt_size % unit == 0 &&
           count_blocks(work->size, work->block_size) >= work->kernel->least;
}

PyObject *native_hash_blocks(PyObject *Py_UNUSED(module), PyObject *args) {
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
        PyObject *ours = PyTuple_GetSlice(args, 0, 4); /* without the kernel */
        result = ours != NULL ? native_ask_pure("hash_blocks", ours) : NULL;
        Py_XDECREF(ours);
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&salt);
    return result;
}
