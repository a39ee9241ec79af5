/* From a tree to the bytes of its image, as cfstools/formats/composefs/writer.py and cfstools/formats/erofs/writer.py
 * do it.
 *
 * Those say what is right and why; section numbers are those of the composefs format. Declines a tree with anything
 * rare (whiteouts) or wrong: Python encodes it, or names the place of the error. */
#include "erofs_encode.h"

#include <stdlib.h>

#include "native.h"

#define AREA_MAX (FMT_XATTR_HEADER_BYTES + FMT_XATTR_UNIT * (UINT16_MAX - 1))

/* --- sizes and places --- */

static size_t entry_size(const struct writer *w, const struct pair *pair) {
    const struct key *key = &w->keys.at[pair->key];
    return round_up(FMT_XATTR_ENTRY_BYTES + key->text.size - key->prefix_size + pair->value.size, FMT_XATTR_UNIT);
}

static const struct writer *sorted_writer; /* qsort passes nothing on; the interpreter is locked */

static int compare_shared(const void *a, const void *b) {
    const struct writer *w = sorted_writer;
    const struct pair *x = &w->pairs.at[*(const uint32_t *)a], *y = &w->pairs.at[*(const uint32_t *)b];
    int order = text_compare(w->keys.at[y->key].text, w->keys.at[x->key].text);
    if (order == 0)
        order = (x->value.size < y->value.size) - (x->value.size > y->value.size);
    return order ? order : text_compare(y->value, x->value);
}

/* The shared table (section 4.3): numbers of its pairs in their order. */
static uint32_t *share(struct writer *w, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < w->pairs.count; i++)
        *count += w->pairs.at[i].count > 1;
    uint32_t *shared = malloc((*count + 1) * sizeof *shared);
    if (shared == NULL)
        return NULL;
    size_t at = 0;
    for (size_t i = 0; i < w->pairs.count; i++)
        if (w->pairs.at[i].count > 1)
            shared[at++] = (uint32_t)i;
    sorted_writer = w;
    qsort(shared, *count, sizeof *shared, compare_shared);
    for (size_t i = 0; i < *count; i++) {
        w->pairs.at[shared[i]].shared = (int64_t)w->shared_size;
        w->shared_size += entry_size(w, &w->pairs.at[shared[i]]);
    }
    return shared;
}

static enum outcome measure_xattrs(struct writer *w, struct node *node) {
    uint64_t size = FMT_XATTR_HEADER_BYTES;
    uint32_t references = 0;
    if (node->pairs == 0)
        return DONE;
    for (size_t i = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        if (pair->shared >= 0 && references < FMT_XATTR_SHARED_MAX) {
            references++;
            size += FMT_XATTR_UNIT;
        } else {
            size += entry_size(w, pair);
        }
    }
    if (size > AREA_MAX)
        return LEFT;
    node->xattr_size = (uint32_t)size;
    return DONE;
}

/* Where the group of names that starts at `first` ends (section 3.2), and its size in bytes. */
static size_t group_end(const struct writer *w, size_t first, size_t end, size_t *used) {
    *used = 0;
    size_t at = first;
    for (; at < end; at++) {
        const size_t cost = FMT_DIRENT_BYTES + w->names.at[at].text.size;
        if (*used + cost > FMT_BLOCK_SIZE)
            break;
        *used += cost;
    }
    return at;
}

static void measure_directory(const struct writer *w, struct node *node) {
    const size_t end = node->first + node->children;
    size_t at = node->first, used;
    while ((at = group_end(w, at, end, &used)) < end)
        node->blocks++;
    if (used <= FMT_TAIL_MAX)
        node->tail = (uint32_t)used;
    else
        node->blocks++;
    node->size = (uint64_t)node->blocks * FMT_BLOCK_SIZE + node->tail;
}

static enum outcome measure(struct writer *w, struct node *node) {
    TRY(measure_xattrs(w, node));
    if (node->is_directory) {
        measure_directory(w, node);
    } else if (node->chunked) {
        unsigned bits;
        uint64_t chunks;
        encode_chunks(node->size, &bits, &chunks);
        node->tail = (uint32_t)(FMT_CHUNK_HOLE_SIZE * chunks);
    } else if (S_ISLNK(node->mode)) {
        node->tail = (uint32_t)node->data.size;
    } else if (node->data.size) {
        const uint32_t remainder = (uint32_t)(node->data.size % FMT_BLOCK_SIZE);
        node->blocks = (uint32_t)(node->data.size / FMT_BLOCK_SIZE);
        if (remainder > FMT_TAIL_MAX)
            node->blocks++;
        else
            node->tail = remainder;
    }
    node->compact = node->nlink <= UINT16_MAX && node->uid <= UINT16_MAX && node->gid <= UINT16_MAX &&
                    node->size <= UINT32_MAX && node->mtime == w->build_sec && node->mtime_nsec == w->build_nsec;
    return DONE;
}

/* Where a node with a tail starts, so that the tail stays inside one block (section 2.6). */
static uint64_t fit_tail(struct node *node, uint64_t start, uint64_t head) {
    if (S_ISLNK(node->mode)) {
        const uint64_t total = head + node->tail;
        const int crosses = start / FMT_BLOCK_SIZE != (start + total - 1) / FMT_BLOCK_SIZE;
        if (total >= FMT_BLOCK_SIZE)
            node->blocks = 1, node->tail = 0;
        return crosses ? round_up(start, FMT_BLOCK_SIZE) : start;
    }
    const uint64_t room = FMT_BLOCK_SIZE - (start + head) % FMT_BLOCK_SIZE;
    if (room >= node->tail)
        return start;
    const uint64_t shift = round_up(room, FMT_SLOT_SIZE);
    if (node->tail <= FMT_BLOCK_SIZE - (start + head + shift) % FMT_BLOCK_SIZE)
        return start + shift;
    node->blocks++;
    node->tail = 0;
    return round_up(start, FMT_BLOCK_SIZE);
}

static enum outcome place(struct writer *w) {
    w->build_sec = w->nodes.at[0].mtime, w->build_nsec = w->nodes.at[0].mtime_nsec;
    for (size_t i = 1; i < w->nodes.count; i++) {
        const struct node *node = &w->nodes.at[i];
        if (node->mtime < w->build_sec || (node->mtime == w->build_sec && node->mtime_nsec < w->build_nsec))
            w->build_sec = node->mtime, w->build_nsec = node->mtime_nsec;
    }
    uint64_t position = FMT_FIRST_INODE_OFFSET;
    for (size_t i = 0; i < w->nodes.count; i++) {
        struct node *node = &w->nodes.at[i];
        TRY(measure(w, node));
        const uint64_t head = (node->compact ? FMT_COMPACT_INODE_BYTES : FMT_EXTENDED_INODE_BYTES) + node->xattr_size;
        node->offset = round_up(position, FMT_SLOT_SIZE);
        if (node->tail)
            node->offset = fit_tail(node, node->offset, head);
        position = node->offset + head + node->tail;
    }
    w->meta_end = round_up(position, FMT_SLOT_SIZE);
    uint64_t block = round_up(w->meta_end + w->shared_size, FMT_BLOCK_SIZE) >> FMT_BLOCK_BITS;
    for (size_t i = 0; i < w->nodes.count; i++)
        if (w->nodes.at[i].blocks) {
            w->nodes.at[i].first_block = (uint32_t)block;
            block += w->nodes.at[i].blocks;
        }
    w->end = block << FMT_BLOCK_BITS;
    return DONE;
}

/* --- bytes --- */

static uint8_t *put_text(uint8_t *at, const uint8_t *data, size_t size) {
    if (size)
        memcpy(at, data, size);
    return at + size;
}

static uint8_t *put_entry(const struct writer *w, uint8_t *at, const struct pair *pair) {
    const struct key *key = &w->keys.at[pair->key];
    const size_t name = key->text.size - key->prefix_size;
    store(at, FMT_XATTR_ENTRY_NAME_SIZE, name);
    store(at, FMT_XATTR_ENTRY_INDEX, key->prefix);
    store(at, FMT_XATTR_ENTRY_VALUE_SIZE, pair->value.size);
    uint8_t *value = put_text(at + FMT_XATTR_ENTRY_BYTES, key->text.data + key->prefix_size, name);
    put_text(value, pair->value.data, pair->value.size);
    return at + entry_size(w, pair);
}

static uint8_t *put_area(const struct writer *w, uint8_t *start, const struct node *node) {
    uint32_t filter = UINT32_MAX, references = 0;
    uint8_t *at = start + FMT_XATTR_HEADER_BYTES;
    for (size_t i = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        filter &= ~w->keys.at[pair->key].filter_bit;
        if (pair->shared >= 0 && references < FMT_XATTR_SHARED_MAX) {
            store(at, 0, FMT_XATTR_UNIT, (w->meta_end % FMT_BLOCK_SIZE + (uint64_t)pair->shared) / FMT_XATTR_UNIT);
            at += FMT_XATTR_UNIT;
            references++;
        }
    }
    store(start, FMT_XATTR_HEADER_FILTER, filter);
    store(start, FMT_XATTR_HEADER_SHARED_COUNT, references);
    for (size_t i = 0, shared = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        if (pair->shared >= 0 && shared < FMT_XATTR_SHARED_MAX)
            shared++;
        else
            at = put_entry(w, at, pair);
    }
    return at;
}

static void put_group(const struct writer *w, uint8_t *at, size_t first, size_t end) {
    static const uint8_t types[] = FMT_FILE_TYPE_OF_MODE;
    uint8_t *text = at + (end - first) * FMT_DIRENT_BYTES;
    const uint8_t *start = at;
    for (size_t i = first; i < end; i++, at += FMT_DIRENT_BYTES) {
        const struct node *child = &w->nodes.at[w->names.at[i].node];
        store(at, FMT_DIRENT_NID, child->offset / FMT_SLOT_SIZE);
        store(at, FMT_DIRENT_NAME_OFFSET, (uint64_t)(text - start));
        store(at, FMT_DIRENT_FILE_TYPE, types[child->mode >> 12]);
        text = put_text(text, w->names.at[i].text.data, w->names.at[i].text.size);
    }
}

/* What the union field of an inode says. */
static uint32_t union_of(const struct node *node) {
    unsigned bits;
    uint64_t chunks;
    if (S_ISCHR(node->mode) || S_ISBLK(node->mode))
        return node->rdev;
    if (!node->chunked)
        return node->first_block;
    encode_chunks(node->size, &bits, &chunks);
    return (node->first_block & 0xffff0000U) | (bits - FMT_BLOCK_BITS);
}

static uint8_t *put_inode(uint8_t *at, const struct node *node, size_t number) {
    const unsigned layout = node->chunked ? FMT_DATA_LAYOUT_CHUNK
                            : node->tail  ? FMT_DATA_LAYOUT_INLINE
                                          : FMT_DATA_LAYOUT_PLAIN;
    const uint64_t size = node->is_directory || node->chunked ? node->size : node->data.size;
    const uint32_t xattrs = node->xattr_size ? (node->xattr_size - FMT_XATTR_HEADER_BYTES) / FMT_XATTR_UNIT + 1 : 0;
    if (node->compact) {
        store(at, FMT_COMPACT_INODE_FORMAT, layout << 1);
        store(at, FMT_COMPACT_INODE_XATTR_COUNT, xattrs);
        store(at, FMT_COMPACT_INODE_MODE, node->mode);
        store(at, FMT_COMPACT_INODE_NLINK, node->nlink);
        store(at, FMT_COMPACT_INODE_SIZE, size);
        store(at, FMT_COMPACT_INODE_UNION, union_of(node));
        store(at, FMT_COMPACT_INODE_INO, number);
        store(at, FMT_COMPACT_INODE_UID, node->uid);
        store(at, FMT_COMPACT_INODE_GID, node->gid);
        return at + FMT_COMPACT_INODE_BYTES;
    }
    store(at, FMT_EXTENDED_INODE_FORMAT, layout << 1 | 1);
    store(at, FMT_EXTENDED_INODE_XATTR_COUNT, xattrs);
    store(at, FMT_EXTENDED_INODE_MODE, node->mode);
    store(at, FMT_EXTENDED_INODE_SIZE, size);
    store(at, FMT_EXTENDED_INODE_UNION, union_of(node));
    store(at, FMT_EXTENDED_INODE_INO, number);
    store(at, FMT_EXTENDED_INODE_UID, node->uid);
    store(at, FMT_EXTENDED_INODE_GID, node->gid);
    store(at, FMT_EXTENDED_INODE_MTIME_SEC, (uint64_t)node->mtime);
    store(at, FMT_EXTENDED_INODE_MTIME_NSEC, node->mtime_nsec);
    store(at, FMT_EXTENDED_INODE_NLINK, node->nlink);
    return at + FMT_EXTENDED_INODE_BYTES;
}

/* An inode with all that follows it, and its data blocks. */
static void put_node(const struct writer *w, uint8_t *image, const struct node *node, size_t number) {
    uint8_t *at = put_inode(image + node->offset, node, number);
    uint8_t *block = image + (uint64_t)node->first_block * FMT_BLOCK_SIZE;
    if (node->xattr_size)
        at = put_area(w, at, node);
    if (node->is_directory) {
        const size_t end = node->first + node->children;
        size_t first = node->first, used;
        for (uint32_t i = 0; i < node->blocks; i++, block += FMT_BLOCK_SIZE) {
            const size_t next = group_end(w, first, end, &used);
            put_group(w, block, first, next);
            first = next;
        }
        if (node->tail)
            put_group(w, at, first, end);
    } else if (node->chunked) {
        memset(at, FMT_CHUNK_HOLE_BYTE, node->tail);
        if (node->blocks)
            memset(block, FMT_CHUNK_HOLE_BYTE, FMT_BLOCK_SIZE);
    } else if (node->data.size) {
        const size_t in_blocks = node->data.size - node->tail;
        put_text(block, node->data.data, in_blocks);
        put_text(at, node->data.data + in_blocks, node->tail);
    }
}

static int has_acl(const struct writer *w) {
    for (size_t i = 0; i < w->keys.count; i++) {
        const struct key *key = &w->keys.at[i];
        if ((key->prefix == FMT_XATTR_INDEX_ACL_ACCESS || key->prefix == FMT_XATTR_INDEX_ACL_DEFAULT) &&
            key->text.size == key->prefix_size)
            return 1;
    }
    return 0;
}

static void put_image(const struct writer *w, uint8_t *image, const uint32_t *shared, size_t count) {
    uint8_t *at = image + FMT_SUPERBLOCK_OFFSET;
    store(image, FMT_COMPOSEFS_HEADER_MAGIC, FMT_COMPOSEFS_MAGIC);
    store(image, FMT_COMPOSEFS_HEADER_HEADER_VERSION, FMT_COMPOSEFS_HEADER_VERSION);
    store(image, FMT_COMPOSEFS_HEADER_FLAGS, has_acl(w) ? FMT_HEADER_FLAG_HAS_ACL : 0);
    store(image, FMT_COMPOSEFS_HEADER_COMPOSEFS_VERSION, w->version);
    store(at, FMT_SUPERBLOCK_MAGIC, FMT_EROFS_MAGIC);
    store(at, FMT_SUPERBLOCK_FEATURE_COMPAT, FMT_FEATURE_COMPAT);
    store(at, FMT_SUPERBLOCK_BLOCK_BITS, FMT_BLOCK_BITS);
    store(at, FMT_SUPERBLOCK_ROOT_NID, w->nodes.at[0].offset / FMT_SLOT_SIZE);
    store(at, FMT_SUPERBLOCK_INODE_COUNT, w->nodes.count);
    store(at, FMT_SUPERBLOCK_BUILD_TIME_SEC, (uint64_t)w->build_sec);
    store(at, FMT_SUPERBLOCK_BUILD_TIME_NSEC, w->build_nsec);
    store(at, FMT_SUPERBLOCK_BLOCKS, w->end >> FMT_BLOCK_BITS);
    store(at, FMT_SUPERBLOCK_XATTR_BLOCK, w->meta_end >> FMT_BLOCK_BITS);
    for (size_t i = 0; i < w->nodes.count; i++)
        put_node(w, image, &w->nodes.at[i], i);
    at = image + w->meta_end;
    for (size_t i = 0; i < count; i++)
        at = put_entry(w, at, &w->pairs.at[shared[i]]);
}

/* --- the call --- */

static enum outcome prepare(struct writer *w, PyObject *kinds) {
    static const struct text first_keys[] = {
        [KEY_NUMBER_METACOPY] = LITERAL(KEY_METACOPY),
        [KEY_NUMBER_REDIRECT] = LITERAL(KEY_REDIRECT),
        [KEY_NUMBER_OPAQUE] = LITERAL(KEY_OPAQUE),
        [KEY_NUMBER_LABEL] = LITERAL(KEY_SELINUX),
    };
    if (model_open(&w->model, kinds))
        return FAILED;
    for (size_t i = 0; i < sizeof first_keys / sizeof *first_keys; i++) {
        uint32_t number;
        TRY(encode_key(w, first_keys[i], &number));
    }
    w->kept = PyList_New(0);
    return w->kept == NULL ? FAILED : DONE;
}

static void release(struct writer *w) {
    model_close(&w->model);
    Py_XDECREF(w->kept);
    free(w->nodes.at);
    free(w->names.at);
    free(w->links.at);
    free(w->keys.at);
    free(w->pairs.at);
    free(w->pairings.at);
    free(w->sets.at);
    free(w->key_index.slots);
    free(w->pair_index.slots);
    free(w->set_index.slots);
    pool_free(&w->pool);
}

static enum outcome encode(struct writer *w, PyObject *root, PyObject **image) {
    size_t count;
    TRY(encode_plan(w, root));
    uint32_t *shared = share(w, &count);
    if (shared == NULL)
        return no_memory();
    enum outcome outcome = place(w);
    if (outcome == DONE &&
        (w->end > (uint64_t)1 << 62 || (*image = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)w->end)) == NULL))
        outcome = no_memory();
    if (outcome == DONE) {
        uint8_t *bytes = (uint8_t *)PyBytes_AsString(*image);
        memory_is_large(bytes, w->end);
        memset(bytes, 0, w->end);
        put_image(w, bytes, shared, count);
    }
    free(shared);
    return outcome;
}

PyObject *native_encode_tree(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *root, *kinds, *rewrite;
    Py_buffer metacopy;
    Py_ssize_t digest_size;
    unsigned version;
    if (!PyArg_ParseTuple(args, "OO!Oy*nI", &root, &PyTuple_Type, &kinds, &rewrite, &metacopy, &digest_size, &version))
        return NULL;
    PyObject *image = NULL;
    struct writer w = {.rewrite = rewrite, .metacopy_header = {metacopy.buf, (size_t)metacopy.len},
                       .digest_size = (size_t)digest_size, .version = version};
    enum outcome outcome;
    if ((outcome = prepare(&w, kinds)) == DONE)
        outcome = encode(&w, root, &image);
    PyObject *result = NULL;
    if (outcome == DONE)
        result = Py_BuildValue("(On)", image, (Py_ssize_t)w.nodes.count);
    else if (outcome == LEFT)
        result = Py_NewRef(Py_None);
    Py_XDECREF(image);
    release(&w);
    PyBuffer_Release(&metacopy);
    return result;
}
