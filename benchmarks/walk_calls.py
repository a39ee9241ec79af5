"""Nothing but the system calls that a build of a directory cannot do without, as a program in C.

``status`` lists all directories and asks for the status of each name; beside it another process looks up each object of
a store. ``read`` also lists the attributes of each file, and opens, reads, checks and closes it; the files are shared
out among two processes.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.inputs import cached

_CALLS = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <sys/syscall.h>
#include <unistd.h>
static char data[1 << 20];
static long count, process, processes;
static int reads;
static void read_file(int directory, const char *name) {
    struct stat status;
    syscall(465, directory, name, AT_SYMLINK_NOFOLLOW, data, sizeof data); /* listxattrat */
    const int file = openat(directory, name, O_RDONLY | O_NOFOLLOW);
    if (file < 0)
        return;
    for (off_t at = 0, got; (got = pread(file, data, sizeof data, at)) == (off_t)sizeof data;)
        at += got;
    fstat(file, &status);
    close(file);
}
static void walk(int parent, const char *name) {
    const int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    for (struct dirent *entry; directory && (entry = readdir(directory));) {
        struct stat status;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (entry->d_type != DT_DIR && count++ % processes != process)
            continue;
        if (fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW))
            continue;
        if (S_ISDIR(status.st_mode))
            walk(fd, entry->d_name);
        else if (reads && S_ISREG(status.st_mode))
            read_file(fd, entry->d_name);
    }
    if (directory)
        closedir(directory);
}
int main(int argc, char **argv) {
    reads = argc > 2 && !strcmp(argv[1], "read");
    processes = reads ? 2 : 1;
    const int child = fork();
    process = reads && child == 0;
    if (reads || child)
        walk(AT_FDCWD, argv[2]);
    else if (argc > 3)
        walk(AT_FDCWD, argv[3]);
    if (child > 0)
        wait(NULL);
    return count == 0 && (reads || child || argc > 3);
}
"""


def calls(what: str, *places: Path) -> list[str]:
    """Return the command that only makes the system calls; *places* are the source and the store."""

    def make(place: Path) -> None:
        source = place / "calls.c"
        source.write_text(_CALLS, encoding="ascii")
        subprocess.run(["cc", "-O2", "-o", str(place / "calls"), str(source)], check=True)

    return [str(cached("walk-calls", make) / "calls"), what, *map(str, places)]
