#include "erofs_records.h"

unsigned disk_file_type(uint32_t mode) {
    static const uint8_t types[] = FMT_FILE_TYPE_OF_MODE;
    return types[(mode & S_IFMT) >> 12];
}

static enum outcome block_start(const struct disk *disk, uint64_t first, uint64_t blocks, uint64_t *out) {
    *out = 0;
    if (blocks == 0)
        return DONE;
    /* No overflow: the field bounds the first number, the length of the image the second, both below 2^32. */
    if (first == 0 || (first + blocks) * FMT_BLOCK_SIZE > disk->length)
        return LEFT;
    *out = first * FMT_BLOCK_SIZE;
    return DONE;
}

static enum outcome chunk_table(const struct disk *disk, struct disk_inode *inode) {
    const unsigned bits = FMT_BLOCK_BITS + (inode->union_field & FMT_CHUNK_FORMAT_BITS_MASK);
    if (inode->union_field > FMT_CHUNK_FORMAT_BITS_MASK || inode->size == 0)
        return LEFT;
    const uint64_t chunks = ((inode->size - 1) >> bits) + 1;
    if (chunks > FMT_CHUNK_ENTRIES_MAX)
        return LEFT;
    const uint64_t table = chunks * FMT_CHUNK_HOLE_SIZE, tail = inode->tail_start;
    /* Rare: a longer table goes to a block that nothing points to. */
    if (table > FMT_BLOCK_SIZE - tail % FMT_SLOT_SIZE || tail % FMT_BLOCK_SIZE + table > FMT_BLOCK_SIZE ||
        tail + table > disk->length)
        return LEFT;
    for (uint64_t i = 0; i < table; i++)
        if (disk->data[tail + i] != FMT_CHUNK_HOLE_BYTE)
            return LEFT;
    inode->tail_size = table;
    return DONE;
}

static int size_fits(const struct disk *disk, const struct disk_inode *inode, unsigned layout) {
    switch (inode->mode & S_IFMT) {
    case S_IFREG: return inode->size <= FMT_INLINE_MAX;
    case S_IFLNK: return inode->size > 0 && inode->size <= FMT_SYMLINK_MAX;
    case S_IFDIR: return inode->size <= disk->length;
    default: return inode->size == 0 && layout == FMT_DATA_LAYOUT_PLAIN;
    }
}

/* Finds the data of an inode whose fields are set. */
static enum outcome extent(const struct disk *disk, struct disk_inode *inode, unsigned layout) {
    if (inode->tail_start > disk->length || disk_file_type(inode->mode) == 0)
        return LEFT;
    if (layout == FMT_DATA_LAYOUT_CHUNK) {
        inode->is_chunked = 1;
        return (inode->mode & S_IFMT) == S_IFREG ? chunk_table(disk, inode) : LEFT;
    }
    if (!size_fits(disk, inode, layout))
        return LEFT;
    if (layout == FMT_DATA_LAYOUT_PLAIN) {
        inode->data_size = inode->size;
        return block_start(disk, inode->union_field, round_up(inode->size, FMT_BLOCK_SIZE) / FMT_BLOCK_SIZE,
                           &inode->data_start);
    }
    inode->tail_size = inode->size % FMT_BLOCK_SIZE;
    if (inode->tail_size == 0 || inode->tail_start % FMT_BLOCK_SIZE + inode->tail_size > FMT_BLOCK_SIZE ||
        inode->tail_start + inode->tail_size > disk->length)
        return LEFT;
    inode->data_size = inode->size - inode->tail_size;
    return block_start(disk, inode->union_field, inode->size / FMT_BLOCK_SIZE, &inode->data_start);
}

/* Both return the field that says how long the xattr area is. */
static unsigned load_compact(const struct disk *disk, const uint8_t *at, struct disk_inode *out) {
    out->mode = (uint32_t)load(at, FMT_COMPACT_INODE_MODE);
    out->nlink = (uint32_t)load(at, FMT_COMPACT_INODE_NLINK);
    out->size = load(at, FMT_COMPACT_INODE_SIZE);
    out->union_field = (uint32_t)load(at, FMT_COMPACT_INODE_UNION);
    out->uid = (uint32_t)load(at, FMT_COMPACT_INODE_UID);
    out->gid = (uint32_t)load(at, FMT_COMPACT_INODE_GID);
    out->sec = disk->build_sec;
    out->nsec = disk->build_nsec;
    return (unsigned)load(at, FMT_COMPACT_INODE_XATTR_COUNT);
}

static unsigned load_extended(const uint8_t *at, struct disk_inode *out) {
    out->mode = (uint32_t)load(at, FMT_EXTENDED_INODE_MODE);
    out->nlink = (uint32_t)load(at, FMT_EXTENDED_INODE_NLINK);
    out->size = load(at, FMT_EXTENDED_INODE_SIZE);
    out->union_field = (uint32_t)load(at, FMT_EXTENDED_INODE_UNION);
    out->uid = (uint32_t)load(at, FMT_EXTENDED_INODE_UID);
    out->gid = (uint32_t)load(at, FMT_EXTENDED_INODE_GID);
    out->sec = (int64_t)load(at, FMT_EXTENDED_INODE_MTIME_SEC);
    out->nsec = (uint32_t)load(at, FMT_EXTENDED_INODE_MTIME_NSEC);
    return (unsigned)load(at, FMT_EXTENDED_INODE_XATTR_COUNT);
}

enum outcome disk_inode(const struct disk *disk, uint64_t nid, struct disk_inode *out) {
    if (nid > disk->length / FMT_SLOT_SIZE - 1 || nid * FMT_SLOT_SIZE < FMT_FIRST_INODE_OFFSET)
        return LEFT;
    const uint8_t *at = disk->data + nid * FMT_SLOT_SIZE;
    const unsigned form = (unsigned)load(at, FMT_COMPACT_INODE_FORMAT), layout = form >> 1, extended = form & 1;
    if (layout != FMT_DATA_LAYOUT_PLAIN && layout != FMT_DATA_LAYOUT_INLINE && layout != FMT_DATA_LAYOUT_CHUNK)
        return LEFT;
    memset(out, 0, sizeof *out);
    out->nid = nid;
    out->offset = nid * FMT_SLOT_SIZE;
    out->xattr_start = out->offset + (extended ? FMT_EXTENDED_INODE_BYTES : FMT_COMPACT_INODE_BYTES);
    if (out->xattr_start > disk->length)
        return LEFT;
    const unsigned xattrs = extended ? load_extended(at, out) : load_compact(disk, at, out);
    out->tail_start = out->xattr_start + (xattrs ? FMT_XATTR_HEADER_BYTES + FMT_XATTR_UNIT * (xattrs - 1) : 0);
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
        d->piece_size = d->data_left < FMT_BLOCK_SIZE ? d->data_left : FMT_BLOCK_SIZE;
        d->at += d->piece_size;
        d->data_left -= d->piece_size;
    } else if (d->tail_size > 0) {
        d->piece = disk->data + d->tail_start;
        d->piece_size = d->tail_size;
        d->tail_size = 0;
    } else {
        return DONE;
    }
    if (d->piece_size < FMT_DIRENT_BYTES)
        return LEFT;
    const size_t first = load(d->piece, FMT_DIRENT_NAME_OFFSET);
    if (first == 0 || first % FMT_DIRENT_BYTES || first > d->piece_size)
        return LEFT;
    d->count = first / FMT_DIRENT_BYTES;
    return DONE;
}

enum outcome disk_next_dirent(const struct disk *disk, struct dirents *d, struct dirent *out) {
    out->name.size = 0;
    if (d->next == d->count) {
        TRY(next_piece(disk, d));
        if (d->count == 0)
            return DONE;
    }
    const uint8_t *record = d->piece + d->next * FMT_DIRENT_BYTES;
    const size_t start = load(record, FMT_DIRENT_NAME_OFFSET);
    size_t end;
    if (++d->next < d->count) {
        end = load(record + FMT_DIRENT_BYTES, FMT_DIRENT_NAME_OFFSET);
        if (start >= end || end > d->piece_size)
            return LEFT;
    } else {
        if (start >= d->piece_size)
            return LEFT;
        const uint8_t *nul = memchr(d->piece + start, 0, d->piece_size - start);
        end = nul != NULL ? (size_t)(nul - d->piece) : d->piece_size;
    }
    if (start >= end || end - start > FMT_NAME_MAX)
        return LEFT;
    const struct text name = {d->piece + start, end - start};
    if (text_has(name, '/') || text_has(name, 0) || (d->last.data != NULL && text_compare(d->last, name) >= 0))
        return LEFT;
    out->nid = load(record, FMT_DIRENT_NID);
    out->type = (unsigned)load(record, FMT_DIRENT_FILE_TYPE);
    d->last = out->name = name;
    return DONE;
}

enum outcome disk_xattr(const struct disk *disk, uint64_t at, uint64_t limit, struct xattr *out, uint64_t *next) {
    static const struct text prefixes[] = FMT_XATTR_PREFIX;
    if (at > limit || limit - at < FMT_XATTR_ENTRY_BYTES)
        return LEFT;
    const uint8_t *entry = disk->data + at, *name = entry + FMT_XATTR_ENTRY_BYTES;
    const size_t name_size = load(entry, FMT_XATTR_ENTRY_NAME_SIZE);
    const size_t value_size = load(entry, FMT_XATTR_ENTRY_VALUE_SIZE);
    const size_t index = load(entry, FMT_XATTR_ENTRY_INDEX);
    const uint64_t end = at + FMT_XATTR_ENTRY_BYTES + name_size + value_size;
    if (end > limit || index >= sizeof prefixes / sizeof *prefixes || memchr(name, 0, name_size))
        return LEFT;
    memcpy(out->buffer, prefixes[index].data, prefixes[index].size);
    memcpy(out->buffer + prefixes[index].size, name, name_size);
    out->key = (struct text){out->buffer, prefixes[index].size + name_size};
    out->value = (struct text){name + name_size, value_size};
    *next = round_up(end, FMT_XATTR_UNIT);
    return out->key.size > 0 ? DONE : LEFT;
}
