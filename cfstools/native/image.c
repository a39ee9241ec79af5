/* From a tree to the bytes of its image, as cfstools/formats/composefs.py and cfstools/formats/erofs/writer.py do it.
 *
 * Those say what is right and why; section numbers here are those of the composefs format, too. A tree with anything
 * that is rare (whiteouts) or wrong gives no image here, and the caller does it in Python, which names the place.
 * Attributes are gathered in image_xattrs.c, inodes and names in image_plan.c; here they get their places and become
 * bytes. */
#include <stdlib.h>

#include "image.h"

#define BLOCK 4096
#define SLOT 32
#define SUPERBLOCK_OFFSET 1024
#define FIRST_INODE 1152
#define COMPOSEFS_MAGIC 0xd078629aU
#define EROFS_MAGIC 0xe0f5e1e2U
#define FEATURES 6U
#define TAIL_MAX 2048
#define SHARED_MAX 128
#define AREA_MAX (12 + 4 * (0xffff - 1))
#define DIRENT_SIZE 12

static const uint8_t file_types[16] = {
    [TYPE_REG] = 1, [TYPE_DIR] = 2, [TYPE_CHR] = 3, [TYPE_BLK] = 4, [TYPE_FIFO] = 5, [TYPE_SOCK] = 6, [TYPE_LNK] = 7,
};

/* --- sizes and places --- */

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) & ~(unit - 1); }

static size_t entry_size(const struct writer *w, const struct pair *pair) {
    const struct key *key = &w->keys.at[pair->key];
    return (4 + key->text.size - key->prefix_size + pair->value.size + 3) & ~(size_t)3;
}

static const struct writer *sorted_writer; /* qsort passes nothing on; the interpreter is locked */

static int compare_shared(const void *a, const void *b) {
    const struct writer *w = sorted_writer;
    const struct pair *x = &w->pairs.at[*(const uint32_t *)a], *y = &w->pairs.at[*(const uint32_t *)b];
    int order = compare(w->keys.at[y->key].text, w->keys.at[x->key].text);
    if (order == 0)
        order = (x->value.size < y->value.size) - (x->value.size > y->value.size);
    return order ? order : compare(y->value, x->value);
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
    uint64_t size = 12;
    uint32_t references = 0;
    if (node->pairs == 0)
        return DONE;
    for (size_t i = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        if (pair->shared >= 0 && references < SHARED_MAX) {
            references++;
            size += 4;
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
        const size_t cost = DIRENT_SIZE + w->names.at[at].text.size;
        if (*used + cost > BLOCK)
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
    if (used <= TAIL_MAX)
        node->tail = (uint32_t)used;
    else
        node->blocks++;
    node->size = (uint64_t)node->blocks * BLOCK + node->tail;
}

static enum outcome measure(struct writer *w, struct node *node) {
    TRY(measure_xattrs(w, node));
    if (node->is_directory) {
        measure_directory(w, node);
    } else if (node->chunked) {
        unsigned bits;
        uint64_t chunks;
        image_chunk_geometry(node->size, &bits, &chunks);
        node->tail = (uint32_t)(4 * chunks);
    } else if (type_of(node) == TYPE_LNK) {
        node->tail = (uint32_t)node->data.size;
    } else if (node->data.size) {
        const uint32_t remainder = (uint32_t)(node->data.size % BLOCK);
        node->blocks = (uint32_t)(node->data.size / BLOCK);
        if (remainder > TAIL_MAX)
            node->blocks++;
        else
            node->tail = remainder;
    }
    node->compact = node->nlink <= 0xffff && node->uid <= 0xffff && node->gid <= 0xffff && node->size <= UINT32_MAX &&
                    node->mtime == w->build_sec && node->mtime_nsec == w->build_nsec;
    return DONE;
}

/* Where a node with a tail starts, so that the tail stays inside one block (section 2.6). */
static uint64_t fit_tail(struct node *node, uint64_t start, uint64_t head) {
    if (type_of(node) == TYPE_LNK) {
        const uint64_t total = head + node->tail;
        const int crosses = start / BLOCK != (start + total - 1) / BLOCK;
        if (total >= BLOCK)
            node->blocks = 1, node->tail = 0;
        return crosses ? round_up(start, BLOCK) : start;
    }
    const uint64_t room = BLOCK - (start + head) % BLOCK;
    if (room >= node->tail)
        return start;
    const uint64_t shift = round_up(room, SLOT);
    if (node->tail <= BLOCK - (start + head + shift) % BLOCK)
        return start + shift;
    node->blocks++;
    node->tail = 0;
    return round_up(start, BLOCK);
}

static enum outcome place(struct writer *w) {
    w->build_sec = w->nodes.at[0].mtime, w->build_nsec = w->nodes.at[0].mtime_nsec;
    for (size_t i = 1; i < w->nodes.count; i++) {
        const struct node *node = &w->nodes.at[i];
        if (node->mtime < w->build_sec || (node->mtime == w->build_sec && node->mtime_nsec < w->build_nsec))
            w->build_sec = node->mtime, w->build_nsec = node->mtime_nsec;
    }
    uint64_t position = FIRST_INODE;
    for (size_t i = 0; i < w->nodes.count; i++) {
        struct node *node = &w->nodes.at[i];
        TRY(measure(w, node));
        const uint64_t head = (node->compact ? 32 : 64) + node->xattr_size;
        node->offset = round_up(position, SLOT);
        if (node->tail)
            node->offset = fit_tail(node, node->offset, head);
        position = node->offset + head + node->tail;
    }
    w->meta_end = round_up(position, SLOT);
    uint64_t block = round_up(w->meta_end + w->shared_size, BLOCK) >> BLOCK_BITS;
    for (size_t i = 0; i < w->nodes.count; i++)
        if (w->nodes.at[i].blocks) {
            w->nodes.at[i].first_block = (uint32_t)block;
            block += w->nodes.at[i].blocks;
        }
    w->end = block << BLOCK_BITS;
    return DONE;
}

/* --- bytes --- */

static uint8_t *put(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        *at++ = (uint8_t)(value >> 8 * i);
    return at;
}

static uint8_t *put_text(uint8_t *at, const uint8_t *data, size_t size) {
    if (size)
        memcpy(at, data, size);
    return at + size;
}

static uint8_t *put_entry(const struct writer *w, uint8_t *at, const struct pair *pair) {
    const struct key *key = &w->keys.at[pair->key];
    const size_t name = key->text.size - key->prefix_size;
    uint8_t *start = at;
    at = put(at, name, 1);
    at = put(at, key->prefix, 1);
    at = put(at, pair->value.size, 2);
    at = put_text(at, key->text.data + key->prefix_size, name);
    put_text(at, pair->value.data, pair->value.size);
    return start + entry_size(w, pair);
}

static uint8_t *put_area(const struct writer *w, uint8_t *at, const struct node *node) {
    uint32_t filter = UINT32_MAX, references = 0;
    uint8_t *start = at;
    at += 12;
    for (size_t i = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        filter &= ~w->keys.at[pair->key].filter_bit;
        if (pair->shared >= 0 && references < SHARED_MAX) {
            at = put(at, (w->meta_end % BLOCK + (uint64_t)pair->shared) / 4, 4);
            references++;
        }
    }
    put(start, filter, 4);
    put(start + 4, references, 1);
    for (size_t i = 0, met = 0; i < node->pairs; i++) {
        const struct pair *pair = &w->pairs.at[w->pairings.at[node->pairing + i]];
        if (pair->shared >= 0 && met < SHARED_MAX)
            met++;
        else
            at = put_entry(w, at, pair);
    }
    return at;
}

static uint8_t *put_group(const struct writer *w, uint8_t *at, size_t first, size_t end) {
    uint64_t offset = (end - first) * DIRENT_SIZE;
    for (size_t i = first; i < end; i++) {
        const struct node *child = &w->nodes.at[w->names.at[i].node];
        at = put(at, child->offset / SLOT, 8);
        at = put(at, offset, 2);
        at = put(at, file_types[type_of(child)], 2);
        offset += w->names.at[i].text.size;
    }
    for (size_t i = first; i < end; i++)
        at = put_text(at, w->names.at[i].text.data, w->names.at[i].text.size);
    return at;
}

static uint8_t *put_inode(uint8_t *at, const struct node *node, size_t number) {
    const unsigned type = type_of(node), layout = node->chunked ? 4 : node->tail ? 2 : 0;
    const uint64_t size = node->is_directory || node->chunked ? node->size : node->data.size;
    const uint32_t count = node->xattr_size ? (node->xattr_size - 12) / 4 + 1 : 0;
    uint32_t place = type == TYPE_CHR || type == TYPE_BLK ? node->rdev : node->first_block;
    if (node->chunked) {
        unsigned bits;
        uint64_t chunks;
        image_chunk_geometry(size, &bits, &chunks);
        place = (place & 0xffff0000U) | (bits - BLOCK_BITS);
    }
    at = put(at, layout * 2 + !node->compact, 2);
    at = put(at, count, 2);
    at = put(at, node->mode, 2);
    at = put(at, node->compact ? node->nlink : 0, 2);
    if (node->compact) {
        at = put(at, size, 4) + 4;
        at = put(at, place, 4);
        at = put(at, number, 4);
        at = put(at, node->uid, 2);
        return put(at, node->gid, 2) + 4;
    }
    at = put(at, size, 8);
    at = put(at, place, 4);
    at = put(at, number, 4);
    at = put(at, node->uid, 4);
    at = put(at, node->gid, 4);
    at = put(at, (uint64_t)node->mtime, 8);
    at = put(at, node->mtime_nsec, 4);
    return put(at, node->nlink, 4) + 16;
}

/* An inode with all that follows it, and its data blocks. */
static void put_node(const struct writer *w, uint8_t *image, const struct node *node, size_t number) {
    uint8_t *at = put_inode(image + node->offset, node, number);
    uint8_t *block = image + (uint64_t)node->first_block * BLOCK;
    if (node->xattr_size)
        at = put_area(w, at, node);
    if (node->is_directory) {
        const size_t end = node->first + node->children;
        size_t first = node->first, used;
        for (uint32_t i = 0; i < node->blocks; i++, block += BLOCK) {
            const size_t next = group_end(w, first, end, &used);
            put_group(w, block, first, next);
            first = next;
        }
        if (node->tail)
            put_group(w, at, first, end);
    } else if (node->chunked) {
        memset(at, 0xff, node->tail);
        if (node->blocks)
            memset(block, 0xff, BLOCK);
    } else if (node->data.size) {
        const size_t in_blocks = node->data.size - node->tail;
        put_text(block, node->data.data, in_blocks);
        put_text(at, node->data.data + in_blocks, node->tail);
    }
}

static int has_acl(const struct writer *w) {
    for (size_t i = 0; i < w->keys.count; i++)
        if ((w->keys.at[i].prefix == 2 || w->keys.at[i].prefix == 3) &&
            w->keys.at[i].text.size == w->keys.at[i].prefix_size)
            return 1;
    return 0;
}

static void put_image(const struct writer *w, uint8_t *image, const uint32_t *shared, size_t count) {
    uint8_t *at = put(image, COMPOSEFS_MAGIC, 4);
    at = put(at, 1, 4);
    at = put(at, (uint64_t)has_acl(w), 4);
    put(at, w->version, 4);
    at = put(image + SUPERBLOCK_OFFSET, EROFS_MAGIC, 4) + 4;
    at = put(at, FEATURES, 4);
    at = put(at, BLOCK_BITS, 1) + 1;
    at = put(at, w->nodes.at[0].offset / SLOT, 2);
    at = put(at, w->nodes.count, 8);
    at = put(at, (uint64_t)w->build_sec, 8);
    at = put(at, w->build_nsec, 4);
    at = put(at, w->end >> BLOCK_BITS, 4) + 4;
    put(at, w->meta_end >> BLOCK_BITS, 4);
    for (size_t i = 0; i < w->nodes.count; i++)
        put_node(w, image, &w->nodes.at[i], i);
    at = image + w->meta_end;
    for (size_t i = 0; i < count; i++)
        at = put_entry(w, at, &w->pairs.at[shared[i]]);
}

/* --- the call --- */

static enum outcome prepare(struct writer *w, PyObject *kinds) {
    static const struct text first_keys[] = {
        {(const uint8_t *)"trusted.overlay.metacopy", 24},
        {(const uint8_t *)"trusted.overlay.redirect", 24},
        {(const uint8_t *)"trusted.overlay.opaque", 22},
        {(const uint8_t *)"security.selinux", 16},
    };
    if (model_open(&w->model, kinds))
        return FAILED;
    for (size_t i = 0; i < sizeof first_keys / sizeof *first_keys; i++) {
        uint32_t number;
        TRY(image_find_key(w, first_keys[i], &number));
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
    while (w->pool != NULL) {
        struct pool *next = w->pool->next;
        free(w->pool);
        w->pool = next;
    }
}

static enum outcome encode(struct writer *w, PyObject *root, PyObject **image) {
    size_t count;
    TRY(image_plan(w, root));
    uint32_t *shared = share(w, &count);
    if (shared == NULL)
        return no_memory();
    enum outcome outcome = place(w);
    if (outcome == DONE && (w->end > (uint64_t)1 << 62 || (*image = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)w->end)) == NULL))
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

PyObject *native_encode_tree(PyObject *module, PyObject *args) {
    (void)module;
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
