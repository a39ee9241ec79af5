/* SHA-256 and SHA-512 of many blocks of one size at once. sha2.c says which kernels there are and why. */
#ifndef CFSTOOLS_SHA2_H
#define CFSTOOLS_SHA2_H

#include <stddef.h>
#include <stdint.h>

/* A hash in the making: the state after `bytes` bytes, a multiple of the compression block. The words of a SHA-256
 * state are kept in 64 bits so that both algorithms share one form. */
struct sha2_start {
    uint64_t state[8];
    uint64_t bytes;
};

/* Hashes `count` blocks of `size` bytes each, back to back at `data`, each as a continuation of `start`; digests go
 * to `out` back to back. `size` is a multiple of the compression block, not 0 and at most SHA2_SIZE_MAX; `count` is
 * not less than the kernel's `least`. */
#define SHA2_SIZE_MAX ((size_t)1 << 26)
typedef void sha2_kernel(const struct sha2_start *start, const uint8_t *data, size_t size, size_t count, uint8_t *out);

struct sha2_choice {
    const char *name;
    sha2_kernel *run;
    size_t least; /* fewer blocks than this the kernel does not take */
};

struct sha2_algorithm {
    const char *name;
    size_t digest_size;
    size_t compression_block;
    void (*init)(struct sha2_start *start);
    void (*absorb)(struct sha2_start *start, const uint8_t *data, size_t blocks);
    /* Kernels this processor runs, the fastest first; empty where no kernel beats the system's library. */
    size_t kernel_count;
    struct sha2_choice kernels[4];
};

/* The two algorithms, SHA-256 first. To be called once before any other use, with the interpreter locked. */
struct sha2_algorithm *sha2_algorithms(void);

#endif
