/* The objects that a tree needs, each once, as cfstools/view/needed.py lists them. */
#include <stdlib.h>

#include "native.h"
#include "object_list.h"
#include "tree_model.h"

static int same_digest(const void *list, uint32_t number, const void *wanted) {
    const struct needs *needs = list;
    return memcmp(needs->digests.at + number * needs->digest_size, wanted, needs->digest_size) == 0;
}

/* Digests are random: some bytes of one serve as its hash. */
enum outcome needs_add(struct needs *needs, struct text digest, struct text path, uint64_t size) {
    const uint64_t before = needs->ends.count ? needs->ends.at[needs->ends.count - 1] : 0;
    char expected[OBJECT_PATH_MAX];
    uint64_t hash;
    if (digest.size != needs->digest_size || size > (uint64_t)INT64_MAX - before ||
        needs->ends.count >= UINT32_MAX - 1)
        return LEFT;
    write_object_path(digest.data, digest.size, expected);
    if (!text_equal(path, (struct text){(const uint8_t *)expected, 2 * digest.size + 1}))
        return LEFT;
    memcpy(&hash, digest.data, sizeof hash);
    if (index_grow(&needs->index))
        return no_memory();
    struct index_slot *slot = index_find(&needs->index, hash, same_digest, needs, digest.data);
    if (slot == NULL)
        return LEFT;
    if (slot->number != 0) {
        const uint64_t *end = &needs->ends.at[slot->number - 1];
        return *end - (slot->number > 1 ? end[-1] : 0) == size ? DONE : LEFT;
    }
    if (RESERVE(needs->digests, needs->digest_size) || PUSH(needs->ends, before + size))
        return no_memory();
    memcpy(needs->digests.at + needs->digests.count, digest.data, digest.size);
    needs->digests.count += digest.size;
    index_fill(&needs->index, slot, hash, needs->ends.count - 1);
    return DONE;
}

PyObject *needs_packed(const struct needs *needs) {
    const struct text ends = {(const uint8_t *)needs->ends.at, needs->ends.count * sizeof *needs->ends.at};
    return Py_BuildValue("(NN)", new_bytes((struct text){needs->digests.at, needs->digests.count}), new_bytes(ends));
}

void needs_close(struct needs *needs) {
    free(needs->index.slots);
    free(needs->digests.at);
    free(needs->ends.at);
}

/* External contents at the path that their digest gives; declines any others. */
static enum outcome add_external(const struct model *model, struct needs *needs, PyObject *content, uint64_t size) {
    PyObject *path = model_get(model, content, A_PAYLOAD), *digest = model_get(model, content, A_DIGEST);
    enum outcome outcome = LEFT;
    if (path != NULL && PyBytes_Check(path) && digest != NULL && PyBytes_Check(digest))
        outcome = needs_add(needs, text_of(digest), text_of(path), size);
    Py_XDECREF(path);
    Py_XDECREF(digest);
    return outcome == LEFT ? leave() : outcome;
}

static enum outcome take_file(const struct model *model, struct needs *needs, PyObject *inode) {
    PyObject *content = model_get(model, inode, A_CONTENT);
    if (content == NULL)
        return leave();
    enum outcome outcome = DONE;
    uint64_t size;
    if (model_is(model, content, K_EXTERNAL))
        outcome = model_get_unsigned(model, inode, A_SIZE, &size) ? leave() : add_external(model, needs, content, size);
    else if (!PyBytes_Check(content) && !model_is(model, content, K_UNREAD))
        outcome = LEFT;
    Py_DECREF(content);
    return outcome;
}

/* Adds the files of a directory, and puts its subdirectories onto the stack, the first of them last. */
static enum outcome take_directory(const struct model *model, struct needs *needs, PyObject *directory,
                                   PyObject *stack) {
    PyObject *entries = model_entries(model, directory);
    PyObject *below = entries != NULL ? PyList_New(0) : NULL;
    enum outcome outcome = below != NULL ? DONE : LEFT;
    PyObject *name, *entry;
    for (Py_ssize_t at = 0; outcome == DONE && PyDict_Next(entries, &at, &name, &entry);) {
        if (model_is(model, entry, K_FILE))
            outcome = take_file(model, needs, entry);
        else if (model_is(model, entry, K_DIRECTORY) && PyList_Append(below, name))
            outcome = FAILED;
    }
    if (outcome == DONE && PyList_Size(below) > 0 && (PyList_Sort(below) || PyList_Reverse(below)))
        outcome = LEFT;
    for (Py_ssize_t i = 0; outcome == DONE && i < PyList_Size(below); i++)
        if ((entry = PyDict_GetItemWithError(entries, PyList_GetItem(below, i))) == NULL || PyList_Append(stack, entry))
            outcome = LEFT;
    Py_XDECREF(below);
    return outcome == LEFT ? leave() : outcome;
}

static enum outcome take_tree(const struct model *model, struct needs *needs, PyObject *root, PyObject *stack) {
    enum outcome outcome = PyList_Append(stack, root) ? FAILED : DONE;
    while (outcome == DONE && PyList_Size(stack) > 0) {
        const Py_ssize_t last = PyList_Size(stack) - 1;
        PyObject *directory = Py_NewRef(PyList_GetItem(stack, last));
        outcome = PyList_SetSlice(stack, last, last + 1, NULL) ? FAILED : take_directory(model, needs, directory, stack);
        Py_DECREF(directory);
    }
    return outcome;
}

PyObject *native_needed_objects(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *root, *kinds, *stack = NULL, *result = NULL;
    Py_ssize_t digest_size;
    struct needs needs = {0};
    struct model model = {0};
    if (!PyArg_ParseTuple(args, "OO!n", &root, &PyTuple_Type, &kinds, &digest_size))
        return NULL;
    enum outcome outcome = FAILED;
    if (digest_size < (Py_ssize_t)sizeof(uint64_t) || digest_size > VERITY_DIGEST_MAX) {
        PyErr_SetString(PyExc_ValueError, "not the size of a digest");
    } else if (model_open(&model, kinds) == 0 && (stack = PyList_New(0)) != NULL) {
        needs.digest_size = (size_t)digest_size;
        outcome = model_is(&model, root, K_DIRECTORY) ? take_tree(&model, &needs, root, stack) : LEFT;
    }
    if (outcome == DONE)
        result = needs_packed(&needs);
    else if (outcome == LEFT)
        result = Py_NewRef(Py_None);
    needs_close(&needs);
    Py_XDECREF(stack);
    model_close(&model);
    return result;
}
