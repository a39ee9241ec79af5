/* Files in batches: read and hashed. */
#define _GNU_SOURCE
#include "batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DESCRIPTOR_DATA_SIZE_AT 8
#define DESCRIPTOR_ROOT_AT 16

#define SYS_OPENAT2 437
#define RESOLVE_BENEATH_WITHOUT_LINKS (0x08 | 0x04 | 0x02)

struct open_how_v0 {
    uint64_t flags, mode, resolve;
};

int batch_open(int root, const char *path) {
    struct open_how_v0 how = {BATCH_OPEN_FLAGS, 0, RESOLVE_BENEATH_WITHOUT_LINKS};
    long fd;
    do
        fd = syscall(SYS_OPENAT2, root, path, &how, sizeof how);
    while (fd < 0 && (errno == EINTR || errno == EAGAIN));
    return (int)fd;
}

static int nanoseconds(const struct timespec *time, int64_t *out) {
    return __builtin_mul_overflow((int64_t)time->tv_sec, 1000000000, out) ||
           __builtin_add_overflow(*out, (int64_t)time->tv_nsec, out);
}

static int is_as_stamped(const struct file *file, const struct stat *status) {
    int64_t mtime, ctime;
    return !nanoseconds(&status->st_mtim, &mtime) && !nanoseconds(&status->st_ctim, &ctime) &&
           file->device == status->st_dev && file->inode == status->st_ino && file->size == status->st_size &&
           file->mtime == mtime && file->ctime == ctime;
}

/* Reads exactly `size` bytes and sees that no more follow at once; 0 when that is so. */
static int read_whole(int fd, uint8_t *to, size_t size) {
    size_t done = 0;
    while (done < size) {
        const ssize_t got = pread(fd, to + done, size + 1 - done, (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        done += (size_t)got;
    }
    return done == size ? 0 : -1;
}

/* Whether a file that just was opened is the one it should be, as far as that can be said before it is read. One with
 * a stamp is compared with it afterwards, once. */
static int expect(struct file *file, int fd) {
    struct stat status;
    if (file->stamped)
        return 0;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return -1;
    if (file->sized)
        return file->size == status.st_size ? 0 : -1;
    file->device = status.st_dev, file->inode = status.st_ino, file->size = status.st_size;
    return nanoseconds(&status.st_mtim, &file->mtime) || nanoseconds(&status.st_ctim, &file->ctime) ? -1 : 0;
}

/* Whether a file that was read still is the one it should be. */
static int is_unchanged(const struct file *file, int fd) {
    struct stat status;
    return file->sized || (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && is_as_stamped(file, &status));
}

void batch_read(struct batch *batch, struct file *file, int fd) {
    if (expect(file, fd) || file->size <= 0 || (uint64_t)file->size >= batch->capacity)
        return;
    const size_t size = (size_t)file->size;
    const size_t padded = (size + batch->block_size - 1) / batch->block_size * batch->block_size;
    if (padded >= batch->capacity - batch->used)
        return;
    uint8_t *data = batch->arena + batch->used;
    if (read_whole(fd, data, size) < 0 || !is_unchanged(file, fd))
        return;
    if (size <= batch->inline_limit) {
        file->offset = (size_t)(file - batch->files) * batch->inline_limit;
        memcpy(batch->inlined + file->offset, data, size);
        file->state = INLINE;
        return;
    }
    memset(data + size, 0, padded - size);
    file->offset = batch->used;
    file->digest = batch->used / batch->block_size;
    file->count = padded / batch->block_size;
    batch->used += padded;
    file->state = HASHED;
}

/* From the digests of one level to those of the next, for all files that have more than one; what is left over is
 * each file's root. `*digests` is replaced. Returns whether there is another level, -1 when memory is short. */
static int next_level(struct batch *batch, uint8_t **digests) {
    const size_t size = batch->algorithm->digest_size, block = batch->block_size;
    size_t blocks = 0;
    for (size_t i = 0; i < batch->count; i++) {
        struct file *file = &batch->files[i];
        if (file->state != HASHED || file->count == 0)
            continue;
        if (file->count == 1) {
            memcpy(file->root, *digests + file->digest * size, size);
            file->count = 0;
        } else {
            blocks += (file->count * size + block - 1) / block;
        }
    }
    if (blocks == 0)
        return 0;
    uint8_t *level = calloc(blocks, block), *hashes = malloc(blocks * size);
    int result = level != NULL && hashes != NULL ? 1 : -1;
    size_t at = 0;
    for (size_t i = 0; result > 0 && i < batch->count; i++) {
        struct file *file = &batch->files[i];
        if (file->state != HASHED || file->count == 0)
            continue;
        memcpy(level + at * block, *digests + file->digest * size, file->count * size);
        file->digest = at;
        file->count = (file->count * size + block - 1) / block;
        at += file->count;
    }
    if (result > 0)
        result = native_hash(batch->algorithm, batch->kernel, &batch->start, level, block, blocks, hashes) ? -1 : 1;
    free(level);
    free(*digests);
    *digests = hashes;
    return result;
}

/* The descriptors of all files and their digests, which replace the roots. */
static int finish_digests(struct batch *batch) {
    const size_t size = batch->algorithm->digest_size;
    struct sha2_start plain;
    size_t count = 0;
    batch->algorithm->init(&plain);
    for (size_t i = 0; i < batch->count; i++)
        count += batch->files[i].state == HASHED;
    if (count == 0)
        return 0;
    uint8_t *descriptors = malloc(count * DESCRIPTOR_SIZE), *hashes = malloc(count * size), *at = descriptors;
    int failed = descriptors == NULL || hashes == NULL;
    for (size_t i = 0; !failed && i < batch->count; i++) {
        const struct file *file = &batch->files[i];
        if (file->state != HASHED)
            continue;
        memcpy(at, batch->descriptor, DESCRIPTOR_SIZE);
        for (int byte = 0; byte < 8; byte++)
            at[DESCRIPTOR_DATA_SIZE_AT + byte] = (uint8_t)((uint64_t)file->size >> 8 * byte);
        memcpy(at + DESCRIPTOR_ROOT_AT, file->root, size);
        at += DESCRIPTOR_SIZE;
    }
    if (!failed)
        failed = native_hash(batch->algorithm, batch->kernel, &plain, descriptors, DESCRIPTOR_SIZE, count, hashes);
    for (size_t i = 0, number = 0; !failed && i < batch->count; i++)
        if (batch->files[i].state == HASHED)
            memcpy(batch->files[i].root, hashes + number++ * size, size);
    free(descriptors);
    free(hashes);
    return failed ? -1 : 0;
}

int batch_hash(struct batch *batch) {
    const size_t blocks = batch->used / batch->block_size;
    if (blocks == 0)
        return 0;
    uint8_t *digests = malloc(blocks * batch->algorithm->digest_size);
    int more = digests == NULL ? -1
                               : native_hash(batch->algorithm, batch->kernel, &batch->start, batch->arena,
                                             batch->block_size, blocks, digests);
    if (more == 0)
        do
            more = next_level(batch, &digests);
        while (more > 0);
    free(digests);
    return more < 0 ? -1 : finish_digests(batch);
}

int batch_takes(const struct sha2_algorithm *algorithm, Py_ssize_t block_size, Py_ssize_t salt_size) {
    const Py_ssize_t unit = (Py_ssize_t)algorithm->compression_block;
    return block_size >= 2 * (Py_ssize_t)algorithm->digest_size && (size_t)block_size <= SHA2_SIZE_MAX &&
           block_size % unit == 0 && salt_size % unit == 0;
}

void batch_begin(struct batch *batch, const struct sha2_algorithm *algorithm, Py_ssize_t block_size, const Py_buffer *salt,
                 const Py_buffer *descriptor) {
    batch->algorithm = algorithm;
    batch->kernel = native_kernel(algorithm, NULL);
    batch->block_size = (size_t)block_size;
    memcpy(batch->descriptor, descriptor->buf, DESCRIPTOR_SIZE);
    algorithm->init(&batch->start);
    algorithm->absorb(&batch->start, salt->buf, (size_t)salt->len / algorithm->compression_block);
}
