/* Parts of files as memory: mapping.c. */
#ifndef CFSTOOLS_MAPPING_H
#define CFSTOOLS_MAPPING_H

#include <signal.h>
#include <stdint.h>
#include <sys/types.h>

struct window {
    uint8_t *data;
    size_t size;
    volatile sig_atomic_t lost; /* zeros are read instead of the file */
};

/* Maps `size` bytes of the file, which must be there, for this thread; it can have one window at a time. Negative when
 * that cannot be done, which is no error: the file is to be read then. */
int window_open(struct window *window, int fd, off_t offset, size_t size);

/* Negative if not all that was read in the window was of the file. */
int window_close(struct window *window);

#endif
