"""Where contents that a tree has not read yet come from."""

from __future__ import annotations

import os
from typing import Protocol, runtime_checkable

from cfstools.errors import InputError, os_error
from cfstools.linux.files import close
from cfstools.tree.model import Stamp, Unread


def stamp(status: os.stat_result) -> Stamp:
    """The stamp for a file's *status*."""
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Blobs(Protocol):
    """The source of unread contents. Implementations are thread-safe."""

    def open(self, unread: Unread) -> int:
        """Open the regular file at its start; the caller closes the descriptor. Raises ``CfsError``."""

    def name(self, unread: Unread) -> str:
        """The name of the file for messages: its path if it has one."""


@runtime_checkable
class RootedBlobs(Blobs, Protocol):
    """Blobs at their paths below one directory, which may be read without :meth:`open`."""

    root_fd: int


@runtime_checkable
class DatedBlobs(Blobs, Protocol):
    """Blobs on file systems whose times may be invented."""

    def times_matter(self, fd: int) -> bool:
        """Whether changed times of the file *fd* mean that it was changed."""


class MemoryBlobs:
    """Contents in memory files (memfd), one descriptor each: for generated trees and tests."""

    def __init__(self) -> None:
        self._files: dict[bytes, int] = {}

    def add(self, path: bytes, data: bytes) -> Unread:
        """Keep *data* as the contents of *path*; returns the content for a ``RegularFile``."""
        try:
            fd = os.memfd_create("contents", os.MFD_CLOEXEC)
            self._files[path] = fd
            with open(os.dup(fd), "wb") as file:
                file.write(data)
            return Unread(path, stamp(os.fstat(fd)))
        except OSError as error:
            raise os_error(error, "cannot keep contents in memory") from error

    def open(self, unread: Unread) -> int:
        """Open the contents of *unread* again."""
        fd = self._files.get(unread.path)
        if fd is None:
            raise InputError("no such contents", subject=self.name(unread))
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open", subject=self.name(unread)) from error

    def name(self, unread: Unread) -> str:
        """The path given with the contents."""
        return os.fsdecode(unread.path)

    def close(self) -> None:
        """Close all memory files."""
        while self._files:
            close(self._files.popitem()[1])
