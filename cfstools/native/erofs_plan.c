/* From a tree to the inodes and names of its image, in their order (section 2.2). */
#include "erofs_encode.h"

#include <stdlib.h>

#define HIDING 256 /* directories of a store */

/* --- inodes --- */

int encode_chunks(uint64_t size, unsigned *bits, uint64_t *chunks) {
    unsigned length = 0;
    while (length < 64 && (size - 1) >> length)
        length++;
    *bits = length < FMT_BLOCK_BITS ? FMT_BLOCK_BITS : length > FMT_CHUNK_BITS_MAX ? FMT_CHUNK_BITS_MAX : length;
    if (size > UINT64_MAX - ((uint64_t)1 << *bits))
        return -1;
    *chunks = (size + ((uint64_t)1 << *bits) - 1) >> *bits;
    return *chunks > FMT_CHUNK_ENTRIES_MAX ? -1 : 0;
}

static enum outcome fill_external(struct writer *w, struct node *node, PyObject *content, const struct set *set) {
    unsigned bits;
    uint64_t chunks;
    struct text digest, payload, value = {NULL, 0};
    uint32_t pairs[2];
    int no_digest, no_payload;
    if (node->size == 0)
        return encode_pairs(w, node, set, NULL, 0);
    TRY(get_bytes(w, content, A_DIGEST, &digest, &no_digest));
    TRY(get_bytes(w, content, A_PAYLOAD, &payload, &no_payload));
    if (encode_chunks(node->size, &bits, &chunks) || (!no_digest && digest.size != w->digest_size) ||
        payload.size > FMT_PAYLOAD_MAX)
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
    TRY(encode_pair(w, KEY_NUMBER_METACOPY, value.data != NULL ? value : TEXT(""), 1, &pairs[0]));
    if (payload.size == 0)
        return encode_pairs(w, node, set, pairs, 1);
    uint8_t *at = pool_take(&w->pool, payload.size + 1);
    if (at == NULL)
        return no_memory();
    at[0] = '/';
    memcpy(at + 1, payload.data, payload.size);
    TRY(encode_pair(w, KEY_NUMBER_REDIRECT, (struct text){at, payload.size + 1}, 1, &pairs[1]));
    return encode_pairs(w, node, set, pairs, 2);
}

static enum outcome fill_file(struct writer *w, struct node *node, PyObject *inode, const struct set *set) {
    TRY(get_unsigned(w, inode, A_SIZE, UINT64_MAX, &node->size));
    PyObject *content = model_get(&w->model, inode, A_CONTENT);
    if (content == NULL)
        return leave();
    enum outcome outcome = LEFT;
    if (model_is(&w->model, content, K_EXTERNAL)) {
        outcome = fill_external(w, node, content, set);
    } else if (PyBytes_CheckExact(content)) {
        node->data = text_of(content);
        if (node->data.size == node->size && node->size <= FMT_INLINE_MAX)
            outcome = encode_pairs(w, node, set, NULL, 0);
    }
    Py_DECREF(content);
    return outcome;
}

static enum outcome fill_symlink(struct writer *w, struct node *node, PyObject *inode) {
    TRY(get_bytes(w, inode, A_TARGET, &node->data, NULL));
    node->size = node->data.size;
    const int bad = node->size == 0 || node->size > FMT_SYMLINK_MAX || text_has(node->data, 0);
    return bad ? LEFT : DONE;
}

static enum outcome fill_device(struct writer *w, struct node *node, PyObject *inode) {
    uint64_t rdev;
    TRY(get_unsigned(w, inode, A_DEVICE_SIZE, UINT64_MAX, &node->size));
    TRY(get_unsigned(w, inode, A_RDEV, UINT64_MAX, &rdev));
    node->rdev = (uint32_t)rdev;
    return rdev == 0 && S_ISCHR(node->mode) ? LEFT : DONE; /* a whiteout */
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
    return model_get_signed(&w->model, inode, A_SEC, &node->mtime) ? leave() : DONE;
}

/* Declines an inode whose class and mode do not agree. */
static enum outcome fill_kind(struct writer *w, struct node *node, PyObject *inode, const struct set *set) {
    const int kind = model_kind_of(node->mode);
    if (kind < 0 || !model_is(&w->model, inode, (enum kind)kind))
        return LEFT;
    switch (kind) {
    case K_FILE: return fill_file(w, node, inode, set);
    case K_DIRECTORY: node->is_directory = 1; break;
    case K_SYMLINK: TRY(fill_symlink(w, node, inode)); break;
    case K_DEVICE: TRY(fill_device(w, node, inode)); break;
    case K_FIFO: TRY(get_unsigned(w, inode, A_FIFO_SIZE, UINT64_MAX, &node->size)); break;
    default: TRY(get_unsigned(w, inode, A_SOCKET_SIZE, UINT64_MAX, &node->size));
    }
    return encode_pairs(w, node, set, NULL, 0);
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
    PyObject *mapping = model_get(&w->model, inode, A_XATTRS);
    if (mapping == NULL)
        return leave();
    const enum outcome found = encode_set(w, mapping, &set);
    Py_DECREF(mapping);
    TRY(found);
    TRY(fill_kind(w, &node, inode, &set));
    return PUSH(w->nodes, node) ? no_memory() : DONE;
}

/* --- names --- */

struct child {
    struct text name;
    PyObject *entry; /* NULL: '.', '..' or a whiteout that hides a store's directory */
    uint32_t node;
};

static int compare_children(const void *a, const void *b) {
    return text_compare(((const struct child *)a)->name, ((const struct child *)b)->name);
}

typedef LIST(struct child) children_list;

static enum outcome collect(PyObject *entries, children_list *children) {
    PyObject *key, *value;
    Py_ssize_t position = 0;
    while (PyDict_Next(entries, &position, &key, &value)) {
        if (!PyBytes_Check(key))
            return LEFT;
        if (!is_name(text_of(key)))
            return LEFT;
        if (PUSH(*children, (struct child){text_of(key), value, 0}))
            return no_memory();
    }
    return DONE;
}

/* Whiteouts that hide a store's directories (section 4.7), for all names that the root does not have itself. */
static enum outcome add_hiding(struct writer *w, PyObject *entries, children_list *children) {
    for (int i = 0; i < HIDING; i++) {
        const uint8_t byte = (uint8_t)i;
        uint8_t *text = pool_take(&w->pool, 3);
        if (text == NULL)
            return no_memory();
        write_hex(&byte, 1, (char *)text);
        PyObject *name = new_bytes((struct text){text, 2});
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
    struct node node = {.parent = 0, .mode = S_IFCHR | 0644, .nlink = 1};
    const struct node *root = &w->nodes.at[0];
    struct set set = {NULL, 0, 0};
    node.uid = root->uid, node.gid = root->gid, node.mtime = root->mtime, node.mtime_nsec = root->mtime_nsec;
    for (size_t i = 0; i < root->pairs; i++)
        if (w->pairs.at[w->pairings.at[root->pairing + i]].key == KEY_NUMBER_LABEL)
            set = (struct set){NULL, root->pairing + i, 1};
    TRY(encode_pairs(w, &node, &set, NULL, 0));
    return PUSH(w->nodes, node) ? no_memory() : DONE;
}

static enum outcome add_child(struct writer *w, const struct child *child, uint32_t directory,
                              uint32_t *subdirectories) {
    struct name name = {child->name, child->node};
    if (child->entry == NULL) {
        if (child->node == UINT32_MAX) {
            name.node = (uint32_t)w->nodes.count;
            TRY(add_hiding_node(w));
        }
    } else if (model_is(&w->model, child->entry, K_LINK)) {
        PyObject *inode = model_get(&w->model, child->entry, A_LINKED);
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
    PyObject *entries = model_entries(&w->model, w->nodes.at[number].inode);
    if (entries == NULL)
        return leave();
    children->count = 0;
    if (PUSH(*children, (struct child){TEXT("."), NULL, number}) ||
        PUSH(*children, (struct child){TEXT(".."), NULL, w->nodes.at[number].parent}))
        return no_memory();
    if (number == 0)
        TRY(add_hiding(w, entries, children));
    TRY(collect(entries, children));
    return add_sorted(w, children, number);
}

static int same_inode(const void *writer, uint32_t number, const void *wanted) {
    return ((const struct writer *)writer)->nodes.at[number].inode == wanted;
}

/* Of an inode that the tree has twice, the last node counts, as in the Python planner. */
static enum outcome index_nodes(struct writer *w, struct index *index) {
    for (size_t i = 0; i < w->nodes.count; i++) {
        PyObject *inode = w->nodes.at[i].inode;
        const uint64_t hash = hash_pointer(inode);
        if (inode == NULL)
            continue;
        if (index_grow(index))
            return no_memory();
        struct index_slot *slot = index_find(index, hash, same_inode, w, inode);
        if (slot == NULL)
            return LEFT;
        if (slot->number == 0)
            index_fill(index, slot, hash, i);
        slot->number = (uint32_t)i + 1;
    }
    return DONE;
}

/* Finds the node of each hard link's inode. */
static enum outcome resolve_links(struct writer *w) {
    if (w->links.count == 0)
        return DONE;
    struct index index = {NULL, 0, 0};
    enum outcome outcome = index_nodes(w, &index);
    for (size_t i = 0; i < w->links.count && outcome == DONE; i++) {
        PyObject *inode = w->links.at[i].inode;
        const struct index_slot *slot = index_find(&index, hash_pointer(inode), same_inode, w, inode);
        if (slot == NULL || slot->number == 0 || w->nodes.at[slot->number - 1].is_directory)
            outcome = LEFT;
        else
            w->names.at[w->links.at[i].name].node = slot->number - 1;
    }
    free(index.slots);
    return outcome;
}

enum outcome encode_plan(struct writer *w, PyObject *root) {
    if (!model_is(&w->model, root, K_DIRECTORY))
        return LEFT;
    TRY(add_node(w, root, 0));
    struct node *top = &w->nodes.at[0];
    uint32_t opaque;
    const struct set set = {NULL, top->pairing, top->pairs};
    TRY(encode_pair(w, KEY_NUMBER_OPAQUE, TEXT("y"), 1, &opaque));
    for (size_t i = 0; i < set.count; i++)
        w->pairs.at[w->pairings.at[set.first + i]].count--; /* encode_pairs counts them again */
    TRY(encode_pairs(w, top, &set, &opaque, 1));
    children_list children = {NULL, 0, 0};
    enum outcome outcome = DONE;
    for (size_t i = 0; i < w->nodes.count && outcome == DONE; i++)
        if (w->nodes.at[i].is_directory)
            outcome = add_directory(w, (uint32_t)i, &children);
    free(children.at);
    return outcome == DONE ? resolve_links(w) : outcome;
}
