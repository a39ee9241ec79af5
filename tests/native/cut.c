/* Preloaded: when a file is mapped, cuts the file that MKCFS_TEST_CUT names, or raises the signal that
 * MKCFS_TEST_RAISE says, once. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) =
        (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    void *mapped = real(at, size, protection, flags, fd, offset);
    const char *cut = getenv("MKCFS_TEST_CUT"), *number = getenv("MKCFS_TEST_RAISE");
    static int done;
    if (fd >= 0 && (flags & MAP_POPULATE) && !done) {
        done = 1;
        if (cut != NULL && truncate(cut, 8192) != 0)
            abort();
        if (number != NULL)
            raise(atoi(number));
    }
    return mapped;
}
