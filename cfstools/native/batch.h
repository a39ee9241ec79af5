/* Files that are read one after another into one piece of memory, and hashed together.
 *
 * Only what goes as expected is done here. A file that cannot be opened, is not the one it should be, or changes
 * under the reader gets no result, and the caller looks at it again in Python, where errors are found out and named. */
#ifndef CFSTOOLS_BATCH_H
#define CFSTOOLS_BATCH_H

#include <fcntl.h>

#include "native.h"

#define DESCRIPTOR_SIZE 256

/* Opening must neither hang nor follow a link, whatever is there. */
#define BATCH_OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

enum state { UNDONE, INLINE, HASHED, FOUND };

struct file {
    const char *path;
    int stamped, sized;
    uint64_t device, inode;
    int64_t size, mtime, ctime;
    enum state state;
    size_t offset; /* in the arena, or of inline contents */
    size_t digest; /* index of the first digest of the level last hashed */
    size_t count;  /* digests in it */
    uint8_t root[DIGEST_MAX];
};

struct batch {
    int root_fd;
    size_t count;
    struct file *files;
    uint8_t *arena;
    size_t capacity, used;
    uint8_t *inlined;
    size_t inline_limit;
    const struct sha2_algorithm *algorithm;
    const struct sha2_choice *kernel;
    struct sha2_start start;
    size_t block_size;
    uint8_t descriptor[DESCRIPTOR_SIZE];
    int store_fd;
    const int *prefixes;
};

/* Opens `path` below `root` without following any link; see open_beneath in cfstools/linux/files.py. */
int batch_open(int root, const char *path);

/* Reads what is open as `fd` into the arena: what is no longer than the limit becomes INLINE, all else HASHED. A file
 * that is `stamped` has to be as its stamp says; of one that is `sized` only the size has to be right, since what it
 * holds will be compared. */
void batch_read(struct batch *batch, struct file *file, int fd);

/* The digests of all files that were read, as their roots; -1 when memory is short. */
int batch_hash(struct batch *batch);

/* Whether fs-verity has blocks of this size, and salts of this one fill blocks of the algorithm. */
int batch_takes(const struct sha2_algorithm *algorithm, Py_ssize_t block_size, Py_ssize_t salt_size);

/* Sets what decides digests, which `batch_takes` and a kernel does; the descriptor has DESCRIPTOR_SIZE bytes. */
void batch_begin(struct batch *batch, const struct sha2_algorithm *algorithm, Py_ssize_t block_size, const Py_buffer *salt,
                 const Py_buffer *descriptor);

#endif
