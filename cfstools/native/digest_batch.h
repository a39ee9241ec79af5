/* Files that are read one after another into one buffer (the arena) and hashed together.
 *
 * A file that cannot be opened, is not the expected one, or changes while it is read gets no result: the caller reads
 * it again in Python, which reports errors. */
#ifndef CFSTOOLS_DIGEST_BATCH_H
#define CFSTOOLS_DIGEST_BATCH_H

#include <fcntl.h>

#include "native.h"

/* Never block on a FIFO, acquire a terminal or follow a link. */
#define BATCH_OPEN_FLAGS (O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC)

enum state { UNDONE, INLINE, HASHED, FOUND };

struct file {
    const char *path;
    int stamped, sized;
    struct stamp stamp;
    int64_t size;
    enum state state;
    size_t offset; /* in the arena, or of inline contents */
    size_t digest; /* index of the first digest of the level last hashed */
    size_t count;  /* digests in it */
    uint8_t root[VERITY_DIGEST_MAX];
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
    uint8_t descriptor[VERITY_DESCRIPTOR_BYTES];
    int store_fd;
    const int *prefixes;
};

/* Opens `path` below `root` without following any link; see open_beneath in cfstools/linux/files.py. */
int batch_open(int root, const char *path);

/* Reads the file `fd` into the arena: INLINE if it is no longer than the limit, else HASHED. A `stamped` file must be
 * as its stamp says before and after. Of a `sized` one only what can be read counts: its digest will be compared. */
void batch_read(struct batch *batch, struct file *file, int fd);

/* The digests of all files that were read, as their roots; -1 when memory is short. */
int batch_hash(struct batch *batch);

/* Whether fs-verity has such blocks and salts, and a kernel hashes them; if not, the pure twin is asked. */
int batch_takes(const struct sha2_algorithm *algorithm, Py_ssize_t block_size, Py_ssize_t salt_size);

/* What the functions that digest take from their callers; releases nothing. */
struct digesting {
    const char *algorithm;
    Py_ssize_t block_size;
    Py_buffer arena, salt, descriptor, prefixes;
    int store_fd;
};

/* Sets up a batch: 1, 0 where the pure twin is asked, -1 with an exception. */
int batch_begin(struct batch *batch, const struct digesting *digesting);
void batch_release(struct digesting *digesting);

#endif
