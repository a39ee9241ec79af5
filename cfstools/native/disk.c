#include "disk.h"

#include <string.h>

enum { LAYOUT_PLAIN = 0, LAYOUT_INLINE = 2, LAYOUT_CHUNK = 4 };
enum { INLINE_MAX = 5000, SYMLINK_MAX = 4095, CHUNKS_MAX = 1024, NAME_SIZE_MAX = 255, DIRENT_SIZE = 12 };

uint32_t disk_u16(const uint8_t *at) { return at[0] | (uint32_t)at[1] << 8; }

uint32_t disk_u32(const uint8_t *at) { return disk_u16(at) | disk_u16(at + 2) << 16; }

uint64_t disk_u64(const uint8_t *at) { return disk_u32(at) | (uint64_t)disk_u32(at + 4) << 32; }

unsigned disk_file_type(uint32_t mode) {
    switch (mode & MODE_TYPE) {
    case MODE_REG: return 1;
    case MODE_DIR: return 2;
    case MODE_CHR: return 3;
    case MODE_BLK: return 4;
    case MODE_FIFO: return 5;
    case MODE_SOCK: return 6;
    case MODE_LNK: return 7;
    default: return 0;
    }
}

static enum outcome block_start(const struct disk *disk, uint64_t first, uint64_t blocks, uint64_t *out) {
    *out = 0;
    if (blocks == 0)
        return DONE;
    /* Neither number is larger than 2^32, the first because of its field, the second because of the image's length. */
    if (first == 0 || (first + blocks) * BLOCK > disk->length)
        return LEFT;
    *out = first * BLOCK;
    return DONE;
}

static enum outcome chunk_table(const struct disk *disk, struct disk_inode *inode) {
    const unsigned bits = 12 + (inode->union_field & 0x1f);
    if (inode->union_field > 0x1f || inode->size == 0)
        return LEFT;
    const uint64_t chunks = ((inode->size - 1) >> bits) + 1;
    if (chunks > CHUNKS_MAX)
        return LEFT;
    const uint64_t table = chunks * 4, tail = inode->tail_start;
    /* A longer one went to a block that nothing points to, which is rare. */
    if (table > BLOCK - tail % SLOT || tail % BLOCK + table > BLOCK || tail + table > disk->length)
        return LEFT;
    for (uint64_t i = 0; i < table; i++)
        if (disk->data[tail + i] != 0xff)
            return LEFT;
    inode->tail_size = table;
    return DONE;
}

static int size_fits(const struct disk *disk, const struct disk_inode *inode, unsigned layout) {
    switch (inode->mode & MODE_TYPE) {
    case MODE_REG: return inode->size <= INLINE_MAX;
    case MODE_LNK: return inode->size > 0 && inode->size <= SYMLINK_MAX;
    case MODE_DIR: return inode->size <= disk->length;
    default: return inode->size == 0 && layout == LAYOUT_PLAIN;
    }
}

/* Where the data is; the fields of the record are there already. */
static enum outcome extent(const struct disk *disk, struct disk_inode *inode, unsigned layout) {
    if (inode->tail_start > disk->length || disk_file_type(inode->mode) == 0)
        return LEFT;
    if (layout == LAYOUT_CHUNK) {
        inode->is_chunked = 1;
        return (inode->mode & MODE_TYPE) == MODE_REG ? chunk_table(disk, inode) : LEFT;
    }
    if (!size_fits(disk, inode, layout))
        return LEFT;
    if (layout == LAYOUT_PLAIN) {
        inode->data_size = inode->size;
        return block_start(disk, inode->union_field, (inode->size + BLOCK - 1) / BLOCK, &inode->data_start);
    }
    inode->tail_size = inode->size % BLOCK;
    if (inode->tail_size == 0 || inode->tail_start % BLOCK + inode->tail_size > BLOCK ||
        inode->tail_start + inode->tail_size > disk->length)
        return LEFT;
    inode->data_size = inode->size - inode->tail_size;
    return block_start(disk, inode->union_field, inode->size / BLOCK, &inode->data_start);
}

enum outcome disk_inode(const struct disk *disk, uint64_t nid, struct disk_inode *out) {
    if (nid > disk->length / SLOT - 1 || nid * SLOT < FIRST_INODE)
        return LEFT;
    const uint8_t *at = disk->data + nid * SLOT;
    const unsigned form = disk_u16(at), layout = form >> 1, extended = form & 1;
    if (layout != LAYOUT_PLAIN && layout != LAYOUT_INLINE && layout != LAYOUT_CHUNK)
        return LEFT;
    memset(out, 0, sizeof *out);
    out->nid = nid;
    out->offset = nid * SLOT;
    out->mode = disk_u16(at + 4);
    out->union_field = disk_u32(at + 16);
    out->xattr_start = out->offset + (extended ? 64 : 32);
    if (out->xattr_start > disk->length)
        return LEFT;
    if (extended) {
        out->size = disk_u64(at + 8);
        out->uid = disk_u32(at + 24);
        out->gid = disk_u32(at + 28);
        out->sec = (int64_t)disk_u64(at + 32);
        out->nsec = disk_u32(at + 40);
        out->nlink = disk_u32(at + 44);
    } else {
        out->nlink = disk_u16(at + 6);
        out->size = disk_u32(at + 8);
        out->uid = disk_u16(at + 24);
        out->gid = disk_u16(at + 26);
        out->sec = disk->build_sec;
        out->nsec = disk->build_nsec;
    }
    const unsigned xattrs = disk_u16(at + 2);
    out->tail_start = out->xattr_start + (xattrs ? 12 + 4 * (xattrs - 1) : 0);
    return extent(disk, out, layout);
}

void disk_dirents(const struct disk_inode *directory, struct dirents *out) {
    memset(out, 0, sizeof *out);
    out->at = directory->data_start;
    out->data_left = directory->data_size;
    out->tail_start = directory->tail_start;
    out->tail_size = directory->tail_size;
}

/* The next block or tail of the directory and the number of its entries; no entries at the end. */
static enum outcome next_piece(const struct disk *disk, struct dirents *d) {
    d->next = d->count = 0;
    if (d->data_left > 0) {
        d->piece = disk->data + d->at;
        d->piece_size = d->data_left < BLOCK ? d->data_left : BLOCK;
        d->at += d->piece_size;
        d->data_left -= d->piece_size;
    } else if (d->tail_size > 0) {
        d->piece = disk->data + d->tail_start;
        d->piece_size = d->tail_size;
        d->tail_size = 0;
    } else {
        return DONE;
    }
    if (d->piece_size < DIRENT_SIZE)
        return LEFT;
    const size_t first = disk_u16(d->piece + 8);
    if (first == 0 || first % DIRENT_SIZE || first > d->piece_size)
        return LEFT;
    d->count = first / DIRENT_SIZE;
    return DONE;
}

static int is_before(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size) {
    const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);
    return order < 0 || (order == 0 && a_size < b_size);
}

enum outcome disk_next_dirent(const struct disk *disk, struct dirents *d, struct dirent *out) {
    out->size = 0;
    if (d->next == d->count) {
        TRY(next_piece(disk, d));
        if (d->count == 0)
            return DONE;
    }
    const uint8_t *record = d->piece + d->next * DIRENT_SIZE;
    const size_t start = disk_u16(record + 8);
    size_t end;
    if (++d->next < d->count) {
        end = disk_u16(record + DIRENT_SIZE + 8);
        if (start >= end || end > d->piece_size)
            return LEFT;
    } else {
        if (start >= d->piece_size)
            return LEFT;
        const uint8_t *nul = memchr(d->piece + start, 0, d->piece_size - start);
        end = nul != NULL ? (size_t)(nul - d->piece) : d->piece_size;
    }
    out->name = d->piece + start;
    if (start >= end || end - start > NAME_SIZE_MAX || memchr(out->name, '/', end - start) ||
        memchr(out->name, 0, end - start))
        return LEFT;
    out->nid = disk_u64(record);
    out->type = record[10];
    if (d->last != NULL && !is_before(d->last, d->last_size, out->name, end - start))
        return LEFT;
    d->last = out->name;
    d->last_size = out->size = end - start;
    return DONE;
}

enum outcome disk_xattr(const struct disk *disk, uint64_t at, uint64_t limit, struct xattr *out, uint64_t *next) {
    static const char *const prefixes[] = {"",         "user.",   "system.posix_acl_access", "system.posix_acl_default",
                                           "trusted.", "lustre.", "security."};
    if (at > limit || limit - at < 4)
        return LEFT;
    const uint8_t *entry = disk->data + at;
    const size_t name_size = entry[0], prefix = entry[1], value_size = disk_u16(entry + 2);
    const uint64_t end = at + 4 + name_size + value_size;
    if (end > limit || prefix >= sizeof prefixes / sizeof *prefixes || memchr(entry + 4, 0, name_size))
        return LEFT;
    const size_t prefix_size = strlen(prefixes[prefix]);
    memcpy(out->key, prefixes[prefix], prefix_size);
    memcpy(out->key + prefix_size, entry + 4, name_size);
    out->key_size = prefix_size + name_size;
    out->value = entry + 4 + name_size;
    out->value_size = value_size;
    *next = (end + 3) & ~(uint64_t)3;
    return out->key_size > 0 ? DONE : LEFT;
}
