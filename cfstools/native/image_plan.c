/* From a tree to the inodes and names of its image, in their order (section 2.2). */
#include <stdlib.h>

#include "image.h"

#define NAME_LENGTH_MAX 255
#define INLINE_LENGTH_MAX 5000
#define TARGET_LENGTH_MAX 4095
#define PAYLOAD_LENGTH_MAX 4095
#define CHUNK_BITS_MAX 43
#define CHUNKS_MAX 1024
#define HIDING 256

/* --- inodes --- */

int image_chunk_geometry(uint64_t size, unsigned *bits, uint64_t *chunks) {
    unsigned length = 0;
    while (length < 64 && (size - 1) >> length)
        length++;
    *bits = length < BLOCK_BITS ? BLOCK_BITS : length > CHUNK_BITS_MAX ? CHUNK_BITS_MAX : length;
    if (size > UINT64_MAX - ((uint64_t)1 << *bits))
        return -1;
    *chunks = (size + ((uint64_t)1 << *bits) - 1) >> *bits;
    return *chunks > CHUNKS_MAX ? -1 : 0;
}

static enum outcome fill_external(struct writer *w, struct node *node, PyObject *content, const struct set *set) {
    unsigned bits;
    uint64_t chunks;
    struct text digest, payload, value = {NULL, 0};
    uint32_t pairs[2];
    int no_digest, no_payload;
    if (node->size == 0)
        return image_give_pairs(w, node, set, NULL, 0);
    TRY(get_bytes(w, content, A_DIGEST, &digest, &no_digest));
    TRY(get_bytes(w, content, A_PAYLOAD, &payload, &no_payload));
    if (image_chunk_geometry(node->size, &bits, &chunks) || (!no_digest && digest.size != w->digest_size) ||
        payload.size > PAYLOAD_LENGTH_MAX)
        return LEFT;
    node->chunked = 1;
    if (!no_digest) {
        uint8_t *at = pool_take(&w->pool, w->metacopy_header.size + digest.size);
        if (at == NULL)
            return no_memory();
        memcpy(at, w->metacopy_header.data, w->metacopy_header.size);
        memcpy(at + w->metacopy_header.size, digest.data, digest.size);
        value = (struct text){at, w->metacopy_header.size + digest.size};
    }
    TRY(image_find_pair(w, KEY_METACOPY, value.data != NULL ? value : TEXT(""), 1, &pairs[0]));
    if (payload.size == 0)
        return image_give_pairs(w, node, set, pairs, 1);
    uint8_t *at = pool_take(&w->pool, payload.size + 1);
    if (at == NULL)
        return no_memory();
    at[0] = '/';
    memcpy(at + 1, payload.data, payload.size);
    TRY(image_find_pair(w, KEY_REDIRECT, (struct text){at, payload.size + 1}, 1, &pairs[1]));
    return image_give_pairs(w, node, set, pairs, 2);
}

static enum outcome fill_file(struct writer *w, struct node *node, PyObject *inode, const struct set *set) {
    TRY(get_unsigned(w, inode, A_SIZE, UINT64_MAX, &node->size));
    PyObject *content = get(w, inode, A_CONTENT);
    if (content == NULL)
        return leave();
    enum outcome outcome = LEFT;
    if (Py_TYPE(content) == (PyTypeObject *)w->model.kinds[K_EXTERNAL]) {
        outcome = fill_external(w, node, content, set);
    } else if (PyBytes_CheckExact(content)) {
        node->data = (struct text){(const uint8_t *)PyBytes_AsString(content), (size_t)PyBytes_Size(content)};
        if (node->data.size == node->size && node->size <= INLINE_LENGTH_MAX)
            outcome = image_give_pairs(w, node, set, NULL, 0);
    }
    Py_DECREF(content);
    return outcome;
}

static enum outcome fill_symlink(struct writer *w, struct node *node, PyObject *inode) {
    TRY(get_bytes(w, inode, A_TARGET, &node->data, NULL));
    node->size = node->data.size;
    const int bad = node->size == 0 || node->size > TARGET_LENGTH_MAX || memchr(node->data.data, 0, node->data.size);
    return bad ? LEFT : DONE;
}

static enum outcome fill_device(struct writer *w, struct node *node, PyObject *inode) {
    uint64_t rdev;
    TRY(get_unsigned(w, inode, A_DEVICE_SIZE, UINT64_MAX, &node->size));
    TRY(get_unsigned(w, inode, A_RDEV, UINT64_MAX, &rdev));
    node->rdev = (uint32_t)rdev;
    return rdev == 0 && type_of(node) == TYPE_CHR ? LEFT : DONE; /* a whiteout */
}

static enum outcome fill_common(struct writer *w, struct node *node, PyObject *inode) {
    uint64_t value;
    TRY(get_unsigned(w, inode, A_MODE, UINT64_MAX, &value));
    node->mode = (uint16_t)value;
    TRY(get_unsigned(w, inode, A_UID, UINT32_MAX, &value));
    node->uid = (uint32_t)value;
    TRY(get_unsigned(w, inode, A_GID, UINT32_MAX, &value));
    node->gid = (uint32_t)value;
    TRY(get_unsigned(w, inode, A_NLINK, UINT32_MAX, &value));
    node->nlink = (uint32_t)value;
    TRY(get_unsigned(w, inode, A_NSEC, UINT32_MAX, &value));
    node->mtime_nsec = (uint32_t)value;
    PyObject *seconds = get(w, inode, A_SEC);
    if (seconds == NULL || !PyLong_Check(seconds)) {
        Py_XDECREF(seconds);
        return leave();
    }
    node->mtime = PyLong_AsLongLong(seconds);
    Py_DECREF(seconds);
    return PyErr_Occurred() ? leave() : DONE;
}

/* What the class of an inode and the type in its mode both say; they have to agree. */
static enum outcome fill_kind(struct writer *w, struct node *node, PyObject *inode, const struct set *set) {
    PyObject *kind = (PyObject *)Py_TYPE(inode);
    const unsigned type = type_of(node);
    if (kind == w->model.kinds[K_FILE])
        return type == TYPE_REG ? fill_file(w, node, inode, set) : LEFT;
    if (kind == w->model.kinds[K_DIRECTORY]) {
        node->is_directory = 1;
        if (type != TYPE_DIR)
            return LEFT;
    } else if (kind == w->model.kinds[K_SYMLINK] && type == TYPE_LNK) {
        TRY(fill_symlink(w, node, inode));
    } else if (kind == w->model.kinds[K_DEVICE] && (type == TYPE_CHR || type == TYPE_BLK)) {
        TRY(fill_device(w, node, inode));
    } else if (kind == w->model.kinds[K_FIFO] && type == TYPE_FIFO) {
        TRY(get_unsigned(w, inode, A_FIFO_SIZE, UINT64_MAX, &node->size));
    } else if (kind == w->model.kinds[K_SOCKET] && type == TYPE_SOCK) {
        TRY(get_unsigned(w, inode, A_SOCKET_SIZE, UINT64_MAX, &node->size));
    } else {
        return LEFT;
    }
    return image_give_pairs(w, node, set, NULL, 0);
}

static enum outcome add_node(struct writer *w, PyObject *inode, uint32_t parent) {
    struct node node = {.inode = inode, .parent = parent};
    struct set set;
    PyObject *kind = (PyObject *)Py_TYPE(inode);
    int known = 0;
    for (int i = 0; i < K_LINK; i++)
        known |= kind == w->model.kinds[i];
    if (!known || w->nodes.count >= UINT32_MAX)
        return LEFT;
    TRY(fill_common(w, &node, inode));
    PyObject *mapping = get(w, inode, A_XATTRS);
    if (mapping == NULL)
        return leave();
    const enum outcome found = image_find_set(w, mapping, &set);
    Py_DECREF(mapping);
    TRY(found);
    TRY(fill_kind(w, &node, inode, &set));
    return PUSH(w->nodes, node) ? no_memory() : DONE;
}

/* --- names --- */

struct child {
    struct text name;
    PyObject *entry; /* NULL: '.', '..' or a hiding name */
    uint32_t node;
};

static int compare_children(const void *a, const void *b) {
    return compare(((const struct child *)a)->name, ((const struct child *)b)->name);
}

typedef LIST(struct child) children_list;

static enum outcome collect(struct writer *w, PyObject *entries, children_list *children) {
    (void)w;
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(entries, &position, &key, &value)) {
        if (!PyBytes_Check(key))
            return LEFT;
        const struct text name = {(const uint8_t *)PyBytes_AsString(key), (size_t)PyBytes_Size(key)};
        if (name.size == 0 || name.size > NAME_LENGTH_MAX || memchr(name.data, '/', name.size) ||
            memchr(name.data, 0, name.size) || equal(name, TEXT(".")) || equal(name, TEXT("..")))
            return LEFT;
        if (PUSH(*children, (struct child){name, value, 0}))
            return no_memory();
    }
    return DONE;
}

/* The names that hide a store's directories (section 4.7): as many nodes as are not in the root itself. */
static enum outcome add_hiding(struct writer *w, PyObject *entries, children_list *children) {
    for (int i = 0; i < HIDING; i++) {
        static const char digits[] = "0123456789abcdef";
        uint8_t *text = pool_take(&w->pool, 2);
        if (text == NULL)
            return no_memory();
        text[0] = (uint8_t)digits[i >> 4], text[1] = (uint8_t)digits[i & 15];
        PyObject *name = PyBytes_FromStringAndSize((const char *)text, 2);
        if (name == NULL)
            return FAILED;
        const int there = PyDict_Contains(entries, name);
        Py_DECREF(name);
        if (there < 0)
            return leave();
        if (!there && PUSH(*children, (struct child){{text, 2}, NULL, UINT32_MAX}))
            return no_memory();
    }
    return DONE;
}

static enum outcome add_hiding_node(struct writer *w) {
    struct node node = {.parent = 0, .mode = 0x2000 | 0644, .nlink = 1};
    const struct node *root = &w->nodes.at[0];
    struct set set = {NULL, 0, 0};
    node.uid = root->uid, node.gid = root->gid, node.mtime = root->mtime, node.mtime_nsec = root->mtime_nsec;
    for (size_t i = 0; i < root->pairs; i++)
        if (w->pairs.at[w->pairings.at[root->pairing + i]].key == KEY_LABEL)
            set = (struct set){NULL, root->pairing + i, 1};
    TRY(image_give_pairs(w, &node, &set, NULL, 0));
    return PUSH(w->nodes, node) ? no_memory() : DONE;
}

static enum outcome add_child(struct writer *w, const struct child *child, uint32_t directory, uint32_t *subdirectories) {
    struct name name = {child->name, child->node};
    if (child->entry == NULL) {
        if (child->node == UINT32_MAX) {
            name.node = (uint32_t)w->nodes.count;
            TRY(add_hiding_node(w));
        }
    } else if ((PyObject *)Py_TYPE(child->entry) == w->model.kinds[K_LINK]) {
        PyObject *inode = get(w, child->entry, A_LINKED);
        if (inode == NULL)
            return leave();
        Py_DECREF(inode); /* the link holds it */
        if (PUSH(w->links, (struct link){w->names.count, inode}))
            return no_memory();
    } else {
        name.node = (uint32_t)w->nodes.count;
        TRY(add_node(w, child->entry, directory));
        *subdirectories += w->nodes.at[name.node].is_directory;
    }
    return PUSH(w->names, name) ? no_memory() : DONE;
}

static enum outcome add_sorted(struct writer *w, children_list *children, uint32_t number) {
    uint32_t subdirectories = 0;
    for (size_t i = 1; i < children->count; i++)
        if (compare_children(&children->at[i - 1], &children->at[i]) >= 0) {
            qsort(children->at, children->count, sizeof *children->at, compare_children);
            break;
        }
    w->nodes.at[number].first = w->names.count;
    w->nodes.at[number].children = (uint32_t)children->count;
    for (size_t i = 0; i < children->count; i++)
        TRY(add_child(w, &children->at[i], number, &subdirectories));
    w->nodes.at[number].nlink = 2 + subdirectories;
    return DONE;
}

static enum outcome add_directory(struct writer *w, uint32_t number, children_list *children) {
    PyObject *entries = get(w, w->nodes.at[number].inode, A_ENTRIES);
    if (entries == NULL || !PyDict_Check(entries)) {
        Py_XDECREF(entries);
        return leave();
    }
    Py_DECREF(entries); /* the directory holds it */
    children->count = 0;
    if (PUSH(*children, (struct child){TEXT("."), NULL, number}) ||
        PUSH(*children, (struct child){TEXT(".."), NULL, w->nodes.at[number].parent}))
        return no_memory();
    if (number == 0)
        TRY(add_hiding(w, entries, children));
    TRY(collect(w, entries, children));
    return add_sorted(w, children, number);
}

/* Finds the node of each hard link's inode; of an inode met twice the last, as the Python planner does. */
static enum outcome resolve_links(struct writer *w) {
    if (w->links.count == 0)
        return DONE;
    struct index index = {NULL, 0, 0};
    for (size_t i = 0; i < w->nodes.count; i++) {
        PyObject *inode = w->nodes.at[i].inode;
        const uint64_t hash = hash_pointer(inode);
        if (inode == NULL)
            continue;
        if (index_grow(&index)) {
            free(index.slots);
            return no_memory();
        }
        size_t at = hash & index.mask;
        while (index.slots[at].number && w->nodes.at[index.slots[at].number - 1].inode != inode)
            at = (at + 1) & index.mask;
        index.used += index.slots[at].number == 0;
        index.slots[at].hash = hash;
        index.slots[at].number = (uint32_t)i + 1;
    }
    enum outcome outcome = DONE;
    for (size_t i = 0; i < w->links.count && outcome == DONE; i++) {
        size_t at = hash_pointer(w->links.at[i].inode) & index.mask;
        while (index.slots[at].number && w->nodes.at[index.slots[at].number - 1].inode != w->links.at[i].inode)
            at = (at + 1) & index.mask;
        if (index.slots[at].number == 0 || w->nodes.at[index.slots[at].number - 1].is_directory)
            outcome = LEFT;
        else
            w->names.at[w->links.at[i].name].node = index.slots[at].number - 1;
    }
    free(index.slots);
    return outcome;
}

/* All nodes in breadth-first order (section 2.2). */
enum outcome image_plan(struct writer *w, PyObject *root) {
    if ((PyObject *)Py_TYPE(root) != w->model.kinds[K_DIRECTORY])
        return LEFT;
    TRY(add_node(w, root, 0));
    struct node *top = &w->nodes.at[0];
    uint32_t opaque;
    const struct set set = {NULL, top->pairing, top->pairs};
    TRY(image_find_pair(w, KEY_OPAQUE, TEXT("y"), 1, &opaque));
    for (size_t i = 0; i < set.count; i++)
        w->pairs.at[w->pairings.at[set.first + i]].count--; /* image_give_pairs counts them again */
    TRY(image_give_pairs(w, top, &set, &opaque, 1));
    children_list children = {NULL, 0, 0};
    enum outcome outcome = DONE;
    for (size_t i = 0; i < w->nodes.count && outcome == DONE; i++)
        if (w->nodes.at[i].is_directory)
            outcome = add_directory(w, (uint32_t)i, &children);
    free(children.at);
    return outcome == DONE ? resolve_links(w) : outcome;
}
