/* The records of an image, checked (composefs format, sections 2 to 4 and 10.2).
 *
 * The answer to whatever breaks a rule, and to some things that are only rare, is LEFT:
 * cfstools/formats/erofs/reader.py reads the record again and reports the error. So whatever that refuses must not be
 * DONE here. */
#ifndef CFSTOOLS_EROFS_RECORDS_H
#define CFSTOOLS_EROFS_RECORDS_H

#include <sys/stat.h>

#include "bytes.h"
#include "outcome.h"

struct disk {
    const uint8_t *data;
    uint64_t length; /* of the image */
    uint64_t xattr_base;
    int64_t build_sec;
    uint32_t build_nsec;
};

struct disk_inode {
    uint64_t nid, offset, size;
    int is_chunked;
    uint32_t mode, nlink, union_field, uid, gid, nsec;
    int64_t sec;
    uint64_t xattr_start, tail_start, data_start, data_size, tail_size;
};

struct dirent {
    struct text name;
    uint64_t nid;
    unsigned type;
};

/* Iterates over the entries of a directory. */
struct dirents {
    uint64_t at, data_left, tail_start, tail_size;
    const uint8_t *piece;
    size_t piece_size, count, next;
    struct text last;
};

/* A whole key, put together in `buffer`, and the value, in the image. */
struct xattr {
    uint8_t buffer[FMT_XATTR_PREFIX_MAX + UINT8_MAX];
    struct text key, value;
};

enum outcome disk_inode(const struct disk *disk, uint64_t nid, struct disk_inode *out);

/* The type byte that a directory entry has for this mode; 0 for none. */
unsigned disk_file_type(uint32_t mode);

void disk_dirents(const struct disk_inode *directory, struct dirents *out);

/* The next entry; DONE with an empty name at the end. */
enum outcome disk_next_dirent(const struct disk *disk, struct dirents *dirents, struct dirent *out);

/* The entry at `at`, which must end by `limit`; `*next` is the place of the one after it. */
enum outcome disk_xattr(const struct disk *disk, uint64_t at, uint64_t limit, struct xattr *out, uint64_t *next);

#endif
