"""The files an image consists of, by path: in a directory, in memory; archives have their own module.

``BlobFiles`` is the seam between where bytes lie and what they mean: layouts and docker archives are read the
same way over each of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from cfstools.errors import OciError, naming, os_error
from cfstools.linux.files import close, open_beneath
from cfstools.oci.bytesource import Read
from cfstools.text import quoted

# How a kernel says that a path would lead through a symbolic link or out of the directory.
_LED_AWAY = frozenset({errno.ELOOP, errno.EXDEV, errno.ENOTDIR})


class BlobFiles(Protocol):
    """Files by their path from the root of the image, parts joined by ``/``."""

    def size(self, path: str) -> int | None:
        """Length in bytes, or ``None`` where there is no such file. Raises :class:`OciError` for what is no file."""

    def open(self, path: str) -> AbstractContextManager[Read]:
        """The file's bytes from its start; one file at a time. Raises :class:`OciError` where there is none."""

    def close(self) -> None:
        """Give back what is held open."""


class MemoryFiles:
    """Files held in memory."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def size(self, path: str) -> int | None:
        """Length in bytes, or ``None``."""
        data = self.files.get(path)
        return None if data is None else len(data)

    @contextmanager
    def open(self, path: str) -> Iterator[Read]:
        """The file's bytes."""
        if path not in self.files:
            raise missing(path)
        view = memoryview(self.files[path])
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            part = bytes(view[at : at + count])
            at += len(part)
            return part

        yield read

    def close(self) -> None:
        """Nothing is held."""


class DirectoryFiles:
    """Files below a directory. No symbolic link is followed below it, and only regular files are files."""

    def __init__(self, path: str | bytes) -> None:
        self._path = path
        with naming(path):
            try:
                self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise os_error(error, "cannot open") from error

    def size(self, path: str) -> int | None:
        """Length in bytes, or ``None``."""
        fd = self._open(path)
        if fd is None:
            return None
        try:
            return _status(fd, path).st_size
        finally:
            close(fd)

    @contextmanager
    def open(self, path: str) -> Iterator[Read]:
        """The file's bytes."""
        fd = self._open(path)
        if fd is None:
            raise missing(path)

        def read(count: int) -> bytes:
            try:
                return os.read(fd, count)
            except OSError as error:
                raise os_error(error, f"cannot read {path}") from error

        try:
            yield read
        finally:
            close(fd)

    def close(self) -> None:
        """Close the directory."""
        if self._root >= 0:
            close(self._root)
            self._root = -1

    def _open(self, path: str) -> int | None:
        """A regular file below the root, or ``None``; no symbolic link leads to it."""
        if any(part in {"", ".", ".."} for part in path.split("/")):
            raise OciError("a path that leaves the image", where=quoted(path))
        try:
            fd = open_beneath(self._root, path.encode(), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in _LED_AWAY:
                raise OciError("a symbolic link in the image is not followed", where=path) from error
            raise os_error(error, f"cannot open {path}") from error
        try:
            if not stat.S_ISREG(_status(fd, path).st_mode):
                raise OciError("not a regular file", where=path)
        except BaseException:
            close(fd)
            raise
        return fd


def _status(fd: int, path: str) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise os_error(error, f"cannot look up {path}") from error


def missing(path: str) -> OciError:
    """The error for a file the image names and does not have."""
    return OciError("missing from the image", where=path)


def read_all(files: BlobFiles, path: str, limit: int) -> bytes:
    """A small file at once; raises :class:`OciError` where there is none or it is longer than *limit* bytes."""
    parts: list[bytes] = []
    left = limit + 1
    with files.open(path) as read:
        while left and (part := read(min(left, 1 << 20))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise OciError(f"longer than {limit} bytes", where=path)
    return b"".join(parts)
