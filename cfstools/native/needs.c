/* The objects that the files of a tree need. */
#include <stdlib.h>

#include "image.h"

struct needs {
    struct model model;
    struct index index;
    size_t digest_size;
    uint8_t *digests; /* one behind the other, with room for as many as there is for `ends` */
    LIST(uint64_t) ends; /* how many bytes the objects have together up to and including each */
};

static uint64_t size_of(const struct needs *needs, size_t number) {
    return needs->ends.at[number] - (number ? needs->ends.at[number - 1] : 0);
}

static int append(struct needs *needs, const uint8_t *digest, uint64_t end) {
    const size_t number = needs->ends.count, room = needs->ends.room;
    if (PUSH(needs->ends, end))
        return -1;
    if (needs->ends.room != room) {
        uint8_t *larger = realloc(needs->digests, needs->ends.room * needs->digest_size);
        if (larger == NULL)
            return -1;
        needs->digests = larger;
    }
    memcpy(needs->digests + number * needs->digest_size, digest, needs->digest_size);
    return 0;
}

/* Takes an object in, if it was not met before. Digests are random: some bytes of them are as good as a hash. */
static enum outcome add(struct needs *needs, const uint8_t *digest, uint64_t size) {
    const uint64_t before = needs->ends.count ? needs->ends.at[needs->ends.count - 1] : 0;
    uint64_t hash;
    memcpy(&hash, digest, sizeof hash);
    if (size > (uint64_t)INT64_MAX - before || needs->ends.count >= UINT32_MAX - 1)
        return LEFT;
    if (index_grow(&needs->index))
        return no_memory();
    struct index *index = &needs->index;
    size_t at = hash & index->mask;
    for (int probes = 0; index->slots[at].number; at = (at + 1) & index->mask) {
        const size_t other = index->slots[at].number - 1;
        if (++probes > PROBES_MAX)
            return LEFT;
        if (index->slots[at].hash == hash && size_of(needs, other) == size &&
            memcmp(needs->digests + other * needs->digest_size, digest, needs->digest_size) == 0)
            return DONE;
    }
    if (append(needs, digest, before + size))
        return no_memory();
    index->slots[at].hash = hash;
    index->slots[at].number = (uint32_t)needs->ends.count;
    index->used++;
    return DONE;
}

/* Contents at the path made of their digest; any others are left. */
static enum outcome add_external(struct needs *needs, PyObject *content, PyObject *size) {
    PyObject *path = model_get(&needs->model, content, A_PAYLOAD), *digest = model_get(&needs->model, content, A_DIGEST);
    char place[2 * DIGEST_MAX + 2];
    enum outcome outcome = LEFT;
    if (path != NULL && PyBytes_Check(path) && (size_t)PyBytes_Size(path) == 2 * needs->digest_size + 1 &&
        digest != NULL && PyBytes_Check(digest) && (size_t)PyBytes_Size(digest) == needs->digest_size &&
        PyLong_Check(size)) {
        const uint8_t *bytes = (const uint8_t *)PyBytes_AsString(digest);
        const uint64_t number = PyLong_AsUnsignedLongLong(size);
        native_object_path(bytes, needs->digest_size, place);
        if (!PyErr_Occurred() && memcmp(place, PyBytes_AsString(path), 2 * needs->digest_size + 1) == 0)
            outcome = add(needs, bytes, number);
    }
    Py_XDECREF(path);
    Py_XDECREF(digest);
    return outcome == LEFT ? leave() : outcome;
}

static enum outcome take_file(struct needs *needs, PyObject *inode) {
    PyObject *content = model_get(&needs->model, inode, A_CONTENT);
    if (content == NULL)
        return leave();
    enum outcome outcome = DONE;
    if (Py_TYPE(content) == (PyTypeObject *)needs->model.kinds[K_EXTERNAL]) {
        PyObject *size = model_get(&needs->model, inode, A_SIZE);
        outcome = size != NULL ? add_external(needs, content, size) : leave();
        Py_XDECREF(size);
    }
    Py_DECREF(content);
    return outcome;
}

/* The files of a directory; its directories, in the opposite of their order, go onto the stack. */
static enum outcome take_directory(struct needs *needs, PyObject *directory, PyObject *stack) {
    PyObject *entries = model_get(&needs->model, directory, A_ENTRIES);
    PyObject *below = entries != NULL && PyDict_CheckExact(entries) ? PyList_New(0) : NULL;
    enum outcome outcome = below != NULL ? DONE : LEFT;
    PyObject *name, *entry;
    for (Py_ssize_t at = 0; outcome == DONE && PyDict_Next(entries, &at, &name, &entry);) {
        PyObject *kind = (PyObject *)Py_TYPE(entry);
        if (kind == needs->model.kinds[K_FILE])
            outcome = take_file(needs, entry);
        else if (kind == needs->model.kinds[K_DIRECTORY] && PyList_Append(below, name))
            outcome = FAILED;
    }
    if (outcome == DONE && PyList_Size(below) > 0 && (PyList_Sort(below) || PyList_Reverse(below)))
        outcome = LEFT;
    for (Py_ssize_t i = 0; outcome == DONE && i < PyList_Size(below); i++)
        if ((entry = PyDict_GetItemWithError(entries, PyList_GetItem(below, i))) == NULL || PyList_Append(stack, entry))
            outcome = LEFT;
    Py_XDECREF(below);
    Py_XDECREF(entries);
    return outcome == LEFT ? leave() : outcome;
}

static enum outcome take_tree(struct needs *needs, PyObject *root, PyObject *stack) {
    enum outcome outcome = PyList_Append(stack, root) ? FAILED : DONE;
    while (outcome == DONE && PyList_Size(stack) > 0) {
        const Py_ssize_t last = PyList_Size(stack) - 1;
        PyObject *directory = Py_NewRef(PyList_GetItem(stack, last));
        outcome = PyList_SetSlice(stack, last, last + 1, NULL) ? FAILED : take_directory(needs, directory, stack);
        Py_DECREF(directory);
    }
    return outcome;
}

PyObject *native_needed_objects(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *root, *kinds, *stack = NULL, *result = NULL;
    Py_ssize_t digest_size;
    struct needs needs = {0};
    if (!PyArg_ParseTuple(args, "OO!n", &root, &PyTuple_Type, &kinds, &digest_size))
        return NULL;
    enum outcome outcome = FAILED;
    if (digest_size < (Py_ssize_t)sizeof(uint64_t) || digest_size > DIGEST_MAX) {
        PyErr_SetString(PyExc_ValueError, "not the size of a digest");
    } else if (model_open(&needs.model, kinds) == 0 && (stack = PyList_New(0)) != NULL) {
        needs.digest_size = (size_t)digest_size;
        outcome = (PyObject *)Py_TYPE(root) == needs.model.kinds[K_DIRECTORY] ? take_tree(&needs, root, stack) : LEFT;
    }
    if (outcome == DONE)
        result = Py_BuildValue("(NN)",
                               PyBytes_FromStringAndSize((const char *)needs.digests,
                                                         (Py_ssize_t)(needs.ends.count * needs.digest_size)),
                               PyBytes_FromStringAndSize((const char *)needs.ends.at,
                                                         (Py_ssize_t)(needs.ends.count * sizeof *needs.ends.at)));
    else if (outcome == LEFT)
        result = Py_NewRef(Py_None);
    free(needs.index.slots);
    free(needs.digests);
    free(needs.ends.at);
    Py_XDECREF(stack);
    model_close(&needs.model);
    return result;
}
