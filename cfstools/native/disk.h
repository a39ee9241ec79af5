/* The records of an image, checked (composefs format, sections 2 to 4 and 10.2).
 *
 * Whatever breaks a rule, and some things that are only rare, are answered with LEFT: cfstools/formats/erofs/reader.py
 * then looks again and says what is wrong where. So nothing may be DONE here that is refused there. */
#ifndef CFSTOOLS_DISK_H
#define CFSTOOLS_DISK_H

#include <stddef.h>
#include <stdint.h>

#include "outcome.h"

enum { MODE_TYPE = 0xf000, MODE_FIFO = 0x1000, MODE_CHR = 0x2000, MODE_DIR = 0x4000, MODE_BLK = 0x6000,
       MODE_REG = 0x8000, MODE_LNK = 0xa000, MODE_SOCK = 0xc000 };
enum { BLOCK = 4096, SLOT = 32, FIRST_INODE = 1152, KEY_MAX = 24 + 255 };

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
    const uint8_t *name;
    size_t size;
    uint64_t nid;
    unsigned type;
};

/* Where the entries of a directory are being read. All zero but the first three members at first. */
struct dirents {
    uint64_t at, data_left, tail_start, tail_size;
    const uint8_t *piece;
    size_t piece_size, count, next;
    const uint8_t *last;
    size_t last_size;
};

/* A key put together from its prefix and the stored name, and the value. */
struct xattr {
    uint8_t key[KEY_MAX];
    size_t key_size;
    const uint8_t *value;
    size_t value_size;
};

enum outcome disk_inode(const struct disk *disk, uint64_t nid, struct disk_inode *out);

/* The type of a directory entry that a mode has; 0 for none. */
unsigned disk_file_type(uint32_t mode);

void disk_dirents(const struct disk_inode *directory, struct dirents *out);

/* The next entry; DONE with a size of 0 at the end. */
enum outcome disk_next_dirent(const struct disk *disk, struct dirents *dirents, struct dirent *out);

/* The entry at `at`, which must end by `limit`; `*next` is where one behind it would be. */
enum outcome disk_xattr(const struct disk *disk, uint64_t at, uint64_t limit, struct xattr *out, uint64_t *next);

uint32_t disk_u16(const uint8_t *at);
uint32_t disk_u32(const uint8_t *at);
uint64_t disk_u64(const uint8_t *at);

#endif
