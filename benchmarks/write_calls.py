"""What fills an empty store, against nothing but the system calls that give a store its objects.

The program below makes as many objects, of the same sizes, as a finished store has: files without names, or with names
in one directory, which are written, synced together, named and synced again. It reads no source and hashes nothing, so
what a build takes beyond that is its own: the source, decompression, digests and the image.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.inputs import cached
from benchmarks.runner import MKCFS, Job, run_once, set_aside

_CALLS = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define BATCH 3000
static struct object { char prefix[4], name[129]; size_t size; int file; } *objects;
static size_t count;
static void list(const char *model) {
    for (int number = 0; number < 256; number++) {
        char path[4096], prefix[4];
        struct stat status;
        snprintf(prefix, sizeof prefix, "%02x", number);
        snprintf(path, sizeof path, "%s/%s", model, prefix);
        DIR *directory = opendir(path);
        for (struct dirent *entry; directory && (entry = readdir(directory));) {
            if (entry->d_name[0] == '.' || fstatat(dirfd(directory), entry->d_name, &status, 0))
                continue;
            if (count % 4096 == 0)
                objects = realloc(objects, (count + 4096) * sizeof *objects);
            strcpy(objects[count].prefix, prefix);
            strcpy(objects[count].name, entry->d_name);
            objects[count++].size = (size_t)status.st_size;
        }
        if (directory)
            closedir(directory);
    }
}
static int write_whole(int file, const char *data, size_t room, size_t size) {
    while (size > 0) {
        const ssize_t done = write(file, data, size < room ? size : room);
        if (done <= 0)
            return -1;
        size -= (size_t)done;
    }
    return 0;
}
int main(int argc, char **argv) {
    static char data[1 << 20], name[24];
    const int named = argc > 3 && !strcmp(argv[1], "named");
    int store, prefixes[256];
    memset(data, 1, sizeof data);
    list(argv[2]);
    if (mkdir(argv[3], 0755) || (store = open(argv[3], O_RDONLY | O_DIRECTORY)) < 0 || mkdirat(store, ".tmp", 0700))
        return 1;
    const int stage = openat(store, ".tmp", O_RDONLY | O_DIRECTORY);
    for (int number = 0; number < 256; number++) {
        snprintf(name, sizeof name, "%02x", number);
        mkdirat(store, name, 0755);
        prefixes[number] = openat(store, name, O_PATH);
    }
    for (size_t first = 0, end; first < count; first = end) {
        end = named || first + BATCH > count ? count : first + BATCH;
        for (size_t at = first; at < end; at++) {
            struct object *object = &objects[at];
            snprintf(name, sizeof name, "%zu", at);
            object->file = named ? openat(stage, name, O_RDWR | O_CREAT | O_EXCL, 0644)
                                 : openat(store, ".", O_RDWR | O_TMPFILE, 0644);
            if (object->file < 0 || write_whole(object->file, data, sizeof data, object->size))
                return 1;
            if (named)
                close(object->file);
        }
        syncfs(store);
        for (size_t at = first; at < end; at++) {
            const struct object *object = &objects[at];
            const int prefix = prefixes[strtol(object->prefix, NULL, 16)];
            snprintf(name, sizeof name, "%zu", at);
            if (named ? renameat2(stage, name, prefix, object->name, RENAME_NOREPLACE)
                      : linkat(object->file, "", prefix, object->name, AT_EMPTY_PATH))
                return 1;
            if (!named)
                close(object->file);
        }
    }
    return syncfs(store) || count == 0;
}
"""


def jobs(label: str, source: str, scratch: Path, *, named: bool, options: Sequence[str] = ()) -> Iterator[Job]:
    """Yield the job for one source; *named* says which kind of temporaries a build of it has."""
    ours, theirs, model = (scratch / f"calls-{side}" for side in ("ours", "theirs", "model"))
    image = scratch / "calls.cfs"
    build = [*MKCFS, "build", *options, source, str(image), "--store"]

    def make() -> None:
        set_aside(model)
        run_once([*build, str(model)])

    yield Job(
        name=f"{label}, cold store / system calls of writing",
        ours=[*build, str(ours)],
        theirs=[str(_program()), "named" if named else "anonymous", str(model), str(theirs)],
        make=make,
        before=lambda: set_aside(ours, theirs),
    )


def _program() -> Path:

    def make(place: Path) -> None:
        source = place / "calls.c"
        source.write_text(_CALLS, encoding="ascii")
        subprocess.run(["cc", "-O2", "-o", str(place / "calls"), str(source)], check=True)

    return cached("write-calls", make) / "calls"
