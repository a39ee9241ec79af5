"""Walking a directory in tests, and naming what was found."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from cfstools.errors import SourceChanged
from cfstools.sources.directory import open_directory
from cfstools.sources.files import DirectorySource
from cfstools.sources.source import WalkOptions
from cfstools.tree import Directory, HardLink, RegularFile, Unread
from cfstools.tree.model import Leaf
from cfstools.tree.walk import inode_of, iter_entries, lookup

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="making device nodes and trusted attributes needs root")
NOBODY = 65534


def walk(path: Path, **options: object) -> Directory:
    with open_directory(os.fsencode(path), options=WalkOptions(**options)) as source:  # type: ignore[arg-type]
        return source.root


def get(root: Directory, path: bytes) -> Leaf:
    entry = lookup(root, path)
    assert entry is not None
    inode = inode_of(entry)
    assert not isinstance(inode, Directory)
    return inode


def paths(root: Directory) -> list[bytes]:
    return [path for path, _, _ in iter_entries(root)]


def links(root: Directory) -> set[frozenset[str]]:
    """The names of each inode that has several; their number is its link count, and the first one is primary."""
    names: dict[int, list[str]] = {}
    inodes: dict[int, Leaf] = {}
    for path, _, entry in iter_entries(root):
        inode = inode_of(entry)
        if isinstance(inode, Directory):
            continue
        before = names.setdefault(id(inode), [])
        assert isinstance(entry, HardLink) is bool(before)
        before.append(os.fsdecode(path)[1:])
        inodes[id(inode)] = inode
    for number, inode in inodes.items():
        assert inode.nlink == len(names[number])
    return {frozenset(group) for group in names.values() if len(group) > 1}


def read(source: DirectorySource, inode: RegularFile) -> bytes:
    assert isinstance(inode.content, Unread)
    fd = source.open(inode.content)
    with open(fd, "rb") as file:
        return file.read()


def later() -> None:
    """Let the clock of the file system go on, which on older kernels ticks every few milliseconds."""
    time.sleep(0.02)


class AtNames:
    """Progress that runs *action* when the names of the *count*-th directory are known but not yet looked at."""

    def __init__(self, count: int, action: Callable[[], object]) -> None:
        self._count = count
        self._action = action

    def stage(self, name: str, total: int | None, unit: str) -> Self:
        assert (name, total, unit) == ("walk", None, "entry")
        return self

    def advance(self, amount: int) -> None:
        self._count -= 1
        if self._count == 0:
            later()
            self._action()

    def finish(self) -> None:
        self._count = 0


def change(tmp_path: Path, src: Path, count: int, action: Callable[[], object]) -> SourceChanged:
    """Do *action* when the *count*-th directory was listed; return the error that comes of it."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SourceChanged) as caught:
        open_directory(os.fsencode(src), progress=AtNames(count, action))
    assert len(os.listdir("/proc/self/fd")) == before
    return caught.value


def set_xattr(path: Path, key: str, value: bytes) -> None:
    try:
        os.setxattr(path, key, value, follow_symlinks=False)
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EPERM}:
            pytest.skip(f"{key} cannot be set here: {error.strerror}")
        raise


@contextmanager
def deep(path: Path, name: bytes, depth: int, contents: bytes) -> Iterator[None]:
    """*depth* directories called *name* inside each other below *path*, with a file in the last."""
    top = fd = os.open(path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        if fd != top:
            os.close(fd)
        fd = inner
    with open(os.open(b"file", os.O_WRONLY | os.O_CREAT, dir_fd=fd), "wb") as file:
        file.write(contents)
    try:
        yield
    finally:
        os.unlink(b"file", dir_fd=fd)
        for _ in range(depth):
            outer = os.open(b"..", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            with suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=outer)
            fd = outer
        os.close(fd)
        os.close(top)
