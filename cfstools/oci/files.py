"""The files of an image, by path: in a directory or in memory (those in archives: :mod:`cfstools.oci.archive`).

Layouts and docker archives are read through ``BlobFiles``, so they can be in any of these places.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from cfstools.errors import OciError, naming, os_error
from cfstools.linux.files import close, open_beneath
from cfstools.streams.buffered import Read, read_up_to
from cfstools.streams.limits import MAX_LINK_HOPS
from cfstools.streams.spool import BytesAccess, FileAccess, RandomAccess
from cfstools.text import quoted, shown_path

# The kernel's errors for a path that leads through a symbolic link or out of the directory.
_LED_AWAY = frozenset({errno.ELOOP, errno.EXDEV, errno.ENOTDIR})


class BlobFiles(Protocol):
    """Files by path from the root of the image, with ``/`` between parts."""

    def size(self, path: str) -> int | None:
        """Length in bytes, or ``None`` if there is no such file. Raises :class:`OciError` for other file types."""

    def open(self, path: str) -> AbstractContextManager[Read]:
        """The file's bytes from its start; one file at a time. Raises :class:`OciError` if it is missing."""

    def ranges(self, path: str) -> RandomAccess | None:
        """Random access to the file, closed by the caller; ``None`` if it can only be read in order."""

    def close(self) -> None:
        """Release what is held open."""


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
        yield io.BytesIO(self.files[path]).read

    def ranges(self, path: str) -> RandomAccess:
        """The file at any offset."""
        if path not in self.files:
            raise missing(path)
        return BytesAccess(self.files[path])

    def close(self) -> None:
        """Nothing to close."""


class DirectoryFiles:
    """Regular files below a directory. Symbolic links are followed, but never out of the directory."""

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
                raise os_error(error, f"cannot read {shown_path(path)}") from error

        try:
            yield read
        finally:
            close(fd)

    def ranges(self, path: str) -> RandomAccess:
        """The file at any offset."""
        fd = self._open(path)
        if fd is None:
            raise missing(path)
        return FileAccess(fd)

    def close(self) -> None:
        """Close the directory."""
        if self._root >= 0:
            close(self._root)
            self._root = -1

    def _open(self, path: str) -> int | None:
        """Open a regular file below the root; ``None`` if it is missing."""
        parts = path.encode("utf-8", "surrogateescape").split(b"/")
        if any(part in {b"", b".", b".."} for part in parts):
            raise OciError("a path that leaves the image", where=quoted(path))
        try:
            fd = self._open_parts(parts, path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise os_error(error, f"cannot open {shown_path(path)}") from error
        try:
            if not stat.S_ISREG(_status(fd, path).st_mode):
                raise OciError("not a regular file", where=shown_path(path))
        except BaseException:
            close(fd)
            raise
        return fd

    def _open_parts(self, parts: list[bytes], path: str) -> int:
        """Open *parts* below the root. The kernel follows no links here: they are resolved in this class, so that
        none leads out of the root."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            return open_beneath(self._root, b"/".join(parts), flags)
        except OSError as error:
            if error.errno not in _LED_AWAY:
                raise
        return open_beneath(self._root, b"/".join(self._without_links(parts, path)), flags)

    def _without_links(self, parts: list[bytes], path: str) -> list[bytes]:
        """Resolve the symbolic links in *parts*. Raises :class:`OciError` for a link that leads out of the root."""
        resolved: list[bytes] = []
        pending = parts[::-1]
        links = 0
        while pending:
            part = pending.pop()
            if part == b"..":
                if not resolved:
                    raise _leaves(path)
                resolved.pop()
            elif part not in {b"", b"."}:
                target = self._link(resolved, part)
                if target is None:
                    resolved.append(part)
                    continue
                links += 1
                if links > MAX_LINK_HOPS:
                    raise OciError(f"more than {MAX_LINK_HOPS} symbolic links on the way", where=shown_path(path))
                if target.startswith(b"/"):
                    raise _leaves(path)
                pending += target.split(b"/")[::-1]
        return resolved or [b"."]

    def _link(self, above: list[bytes], name: bytes) -> bytes | None:
        """The target of a symbolic link; ``None`` for anything else."""
        parent = open_beneath(self._root, b"/".join(above) or b".", os.O_PATH | os.O_DIRECTORY)
        try:
            return os.readlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return None
            raise
        finally:
            close(parent)


def _leaves(path: str) -> OciError:
    return OciError(
        "a symbolic link leads out of the image",
        where=shown_path(path),
        hint="links are followed inside a layout only: copy what it leads to in its place, as with `cp -rL`",
    )


def _status(fd: int, path: str) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise os_error(error, f"cannot look up {shown_path(path)}") from error


def missing(path: str) -> OciError:
    """The error for a file that the image refers to and does not have."""
    return OciError("missing from the image", where=shown_path(path))


def read_all(files: BlobFiles, path: str, limit: int) -> bytes:
    """Read a small file whole. Raises :class:`OciError` if it is missing or longer than *limit* bytes."""
    with files.open(path) as read:
        data = read_up_to(read, limit + 1)
    if len(data) > limit:
        raise OciError(f"longer than {limit} bytes", where=shown_path(path))
    return data
