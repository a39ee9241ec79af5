#include "digest_batch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

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

/* Negative for times that no stamp can hold. */
static int stamp_of(const struct stat *status, struct stamp *out) {
    *out = (struct stamp){.device = status->st_dev, .inode = status->st_ino, .size = status->st_size};
    return nanoseconds(&status->st_mtim, &out->mtime) || nanoseconds(&status->st_ctim, &out->ctime) ? -1 : 0;
}

/* Reads `size` bytes; 0 if the file ends there. */
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

/* Checks a file before it is read; -1 if it is not the expected one. A stamp is compared once, after the reading, and
 * a size is that of what is read: more bytes are asked for. */
static int expect(struct file *file, int fd) {
    struct stat status;
    if (file->stamped || file->sized)
        return 0;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return -1;
    file->size = status.st_size;
    return stamp_of(&status, &file->stamp);
}

/* Whether a file that was read still is the expected one. */
static int is_unchanged(const struct file *file, int fd) {
    struct stat status;
    struct stamp now;
    return file->sized || (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && stamp_of(&status, &now) == 0 &&
                           file->stamp.device == now.device && file->stamp.inode == now.inode &&
                           file->stamp.size == now.size && file->stamp.mtime == now.mtime &&
                           file->stamp.ctime == now.ctime);
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

/* From the digests of one level to those of the next, for all files with more than one; a single digest is the file's
 * root. Replaces `*digests`. Returns whether there is another level, -1 when memory is short. */
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

/* Makes the descriptors of all files; their digests replace the roots. */
static int finish_digests(struct batch *batch) {
    const size_t size = batch->algorithm->digest_size;
    struct sha2_start plain;
    size_t count = 0;
    batch->algorithm->init(&plain);
    for (size_t i = 0; i < batch->count; i++)
        count += batch->files[i].state == HASHED;
    if (count == 0)
        return 0;
    uint8_t *descriptors = malloc(count * VERITY_DESCRIPTOR_BYTES), *hashes = malloc(count * size), *at = descriptors;
    int failed = descriptors == NULL || hashes == NULL;
    for (size_t i = 0; !failed && i < batch->count; i++) {
        const struct file *file = &batch->files[i];
        if (file->state != HASHED)
            continue;
        memcpy(at, batch->descriptor, VERITY_DESCRIPTOR_BYTES);
        store(at, VERITY_DESCRIPTOR_DATA_SIZE, (uint64_t)file->size);
        memcpy(field(at, VERITY_DESCRIPTOR_ROOT_HASH), file->root, size);
        at += VERITY_DESCRIPTOR_BYTES;
    }
    if (!failed)
        failed = native_hash(batch->algorithm, batch->kernel, &plain, descriptors, VERITY_DESCRIPTOR_BYTES, count,
                             hashes);
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
    if (native_kernel(algorithm, NULL) == NULL)
        return 0;
    const Py_ssize_t unit = (Py_ssize_t)algorithm->compression_block;
    return block_size >= 2 * (Py_ssize_t)algorithm->digest_size && (size_t)block_size <= SHA2_SIZE_MAX &&
           block_size % unit == 0 && salt_size % unit == 0;
}

int batch_begin(struct batch *batch, const struct digesting *digesting) {
    const struct sha2_algorithm *algorithm = native_algorithm(digesting->algorithm);
    const Py_buffer *salt = &digesting->salt, *descriptor = &digesting->descriptor;
    if (descriptor->len != VERITY_DESCRIPTOR_BYTES || digesting->block_size <= 0) {
        PyErr_SetString(PyExc_ValueError, "descriptor or block size of a wrong size");
        return -1;
    }
    if (!native_has_prefixes(&digesting->prefixes, digesting->store_fd))
        return -1;
    if (!batch_takes(algorithm, digesting->block_size, salt->len))
        return 0;
    batch->arena = digesting->arena.buf;
    batch->capacity = (size_t)digesting->arena.len;
    batch->algorithm = algorithm;
    batch->kernel = native_kernel(algorithm, NULL);
    batch->block_size = (size_t)digesting->block_size;
    batch->store_fd = digesting->store_fd;
    batch->prefixes = digesting->prefixes.buf;
    memcpy(batch->descriptor, descriptor->buf, VERITY_DESCRIPTOR_BYTES);
    algorithm->init(&batch->start);
    algorithm->absorb(&batch->start, salt->buf, (size_t)salt->len / algorithm->compression_block);
    return 1;
}

void batch_release(struct digesting *digesting) {
    PyBuffer_Release(&digesting->arena);
    PyBuffer_Release(&digesting->salt);
    PyBuffer_Release(&digesting->descriptor);
    PyBuffer_Release(&digesting->prefixes);
}
