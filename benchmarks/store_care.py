"""Verbs that ask a store about all of its objects, against the C tool and against nothing but the system calls.

The program below does what no answer can do without: it lists the directories of a store, asks for the status of each
object, or reads each. What a verb takes beyond that is its own, and the start of Python.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inputs import cached
from benchmarks.runner import MKCFS, Job, Limit, build_image
from tests.reference import Reference

_CALLS = r"""
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
static char data[1 << 20];
static long look(int directory, const char *name, const char *what) {
    struct stat status;
    if (*what == 's')
        return fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    const int file = *what == 'r' ? openat(directory, name, O_RDONLY | O_NOFOLLOW) : -1;
    if (file >= 0) {
        for (off_t at = 0, got; fstat(file, &status) == 0 && (got = pread(file, data, sizeof data, at)) > 0; at += got)
            if (got < (off_t)sizeof data)
                break;
        close(file);
    }
    return 1;
}
int main(int argc, char **argv) {
    const int processes = argc > 3 ? atoi(argv[3]) : 1;
    long count = 0;
    if (chdir(argv[2]))
        return 1;
    for (int process = 1; process <= processes; process++) {
        if (process < processes && fork())
            continue;
        for (int number = process - 1; number < 256; number += processes) {
            char name[3];
            snprintf(name, sizeof name, "%02x", number);
            DIR *directory = opendir(name);
            for (struct dirent *entry; directory && (entry = readdir(directory));)
                if (entry->d_name[0] != '.')
                    count += look(dirfd(directory), entry->d_name, argv[1]);
            if (directory)
                closedir(directory);
        }
        if (process < processes)
            return count < 0;
    }
    while (wait(NULL) > 0)
        ;
    return count == 0;
}
"""


def calls(what: str, store: Path, processes: int = 1) -> list[str]:
    """Return the command that only makes the system calls: ``names``, ``status`` or ``read``."""

    def make(place: Path) -> None:
        source = place / "calls.c"
        source.write_text(_CALLS, encoding="ascii")
        subprocess.run(["cc", "-O2", "-o", str(place / "calls"), str(source)], check=True)

    return [str(cached("calls", make) / "calls"), what, str(store), str(processes)]


def jobs(reference: Reference, label: str, source: Path, scratch: Path, limits: dict[str, Limit]) -> Iterator[Job]:
    """Yield the jobs for one source, whose objects are put into a store first; *limits* by verb."""
    image, store = scratch / f"care-{source.name}.cfs", scratch / f"care-{source.name}"

    def make() -> None:
        if not image.exists():
            build_image(source, image, "--store", str(store))

    def job(verb: str, peer: str, *words: str, theirs: list[str] | list[bytes]) -> Job:
        return Job(
            name=f"{label}, {verb} / {peer}",
            ours=[*MKCFS, *words],
            make=make,
            theirs=theirs,
            target=limits.get(verb),
        )

    missing = reference.command("composefs-info", b"--basedir=" + reference.seen(store), "missing-objects", image)
    shallow = ("verify", "--shallow", str(image), "--store", str(store))
    listed = ("objects", "--missing", "--store", str(store), str(image))
    collect = ("store", "gc", "--dry-run", "--store", str(store), "--keep", str(image))
    deep = ("verify", "-j2", str(image), "--store", str(store))
    xargs = ["sh", "-c", 'find "$0" -type f -print0 | xargs -0 -P2 -n1000 fsverity digest', str(store)]
    yield job("verify --shallow", "missing-objects", *shallow, theirs=missing)
    yield job("verify --shallow", "system calls", *shallow, theirs=calls("status", store))
    yield job("objects --missing", "missing-objects", *listed, theirs=missing)
    yield job("objects --missing", "system calls", *listed, theirs=calls("status", store))
    yield job("gc --dry-run", "system calls", *collect, theirs=calls("names", store))
    yield job("stat", "system calls", "store", "stat", "--store", str(store), theirs=calls("status", store))
    yield job("verify -j2", "xargs -P2 fsverity", *deep, theirs=xargs)
    yield job("verify -j2", "system calls of two processes", *deep, theirs=calls("read", store, 2))


DEBIAN = {
    "verify --shallow": Limit(0.1, 0.07),
    "gc --dry-run": Limit(0.1, 0.07),
    "stat": Limit(0.1, 0.07),
    "verify -j2": Limit(0.2, 0.12),
}
SMALL = {
    "verify --shallow": Limit(0.25, 0.15),
    "objects --missing": Limit(0.2, 0.1),
    "gc --dry-run": Limit(0.25, 0.12),
    "stat": Limit(0.2, 0.15),
    "verify -j2": Limit(0.4, 0.25),
}
