/* Files read where the kernel keeps them, without a copy.
 *
 * Touching a mapped page that is not there any more, because the file was cut or cannot be read, raises SIGBUS in the
 * thread that touches it. The handler here puts zeros in place of such a window and marks it as lost, so that the work
 * goes on, to be thrown away and done again by reading, which finds out what is wrong. It is installed only while
 * somebody works on a window, and hands on every signal that is not about one. */
#define _GNU_SOURCE
#include "mapping.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

static _Thread_local struct window *current;

static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned users;
static struct sigaction before;

static int is_in_window(const struct window *window, const siginfo_t *info) {
    const uintptr_t at = (uintptr_t)info->si_addr, start = (uintptr_t)window->data;
    return info->si_code > 0 && at >= start && at - start < window->size;
}

static void hand_on(int number, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        /* What raised the signal does so again, and ends the process as it would have without us. */
        const struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(number, &plain, NULL);
        if (info->si_code <= 0)
            raise(number);
    }
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    struct window *window = current;
    const int error = errno;
    if (window != NULL && is_in_window(window, info) &&
        mmap(window->data, window->size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
        window->lost = 1;
    else
        hand_on(number, info, context);
    errno = error;
}

static int start_watching(void) {
    struct sigaction ours = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};
    int failed = 0;
    sigemptyset(&ours.sa_mask);
    pthread_mutex_lock(&users_lock);
    if (users == 0)
        failed = sigaction(SIGBUS, &ours, &before);
    users += !failed;
    pthread_mutex_unlock(&users_lock);
    return failed;
}

static void stop_watching(void) {
    struct sigaction now;
    pthread_mutex_lock(&users_lock);
    /* Whoever installed another handler meanwhile keeps it. */
    if (--users == 0 && sigaction(SIGBUS, NULL, &now) == 0 && now.sa_flags & SA_SIGINFO &&
        now.sa_sigaction == on_bus_error)
        sigaction(SIGBUS, &before, NULL);
    pthread_mutex_unlock(&users_lock);
}

int window_open(struct window *window, int fd, off_t offset, size_t size) {
    *window = (struct window){.data = NULL, .size = size, .lost = 0};
    if (size == 0 || offset % sysconf(_SC_PAGESIZE) != 0 || start_watching() != 0)
        return -1;
    void *data = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, offset);
    if (data == MAP_FAILED) {
        stop_watching();
        return -1;
    }
    window->data = data;
    current = window;
    return 0;
}

int window_close(struct window *window) {
    current = NULL;
    munmap(window->data, window->size);
    stop_watching();
    return window->lost ? -1 : 0;
}
