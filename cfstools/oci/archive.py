"""The files of a tar archive, read where they lie: nothing is extracted.

One pass finds where each member's contents begin. In an uncompressed archive that pass steps over contents, and
files are then read by their range. A compressed archive cannot be entered in the middle: the pass decompresses it
once, and files are then read by decompressing again from where the last one ended, or from the start when a
file lies before that. Copying tools write layers base first, so that costs one more pass as a rule; memory
stays bounded whatever the order.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cfstools.errors import InputError, LimitExceeded, OciError, TarError, os_error
from cfstools.linux.files import close
from cfstools.oci.bytesource import Read
from cfstools.oci.choices import DecompressionLimits
from cfstools.oci.compression import Compression, Decompressed, open_compressed, sniff
from cfstools.oci.files import missing
from cfstools.oci.tar import Member, MemberType, TarReader
from cfstools.oci.tar.stream import READ_SIZE

MAX_MEMBERS = 1 << 18
_HEAD = 6


class Extent(NamedTuple):
    """Where a member's contents lie in the uncompressed archive."""

    offset: int
    size: int


class _Alias(NamedTuple):
    """A member that is a link to another one."""

    path: str | None


def member_path(name: bytes) -> str | None:
    """A member's path from the root of the archive; ``None`` for the root itself and for paths that lead out of it."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if not parts or b".." in parts:
        return None
    return b"/".join(parts).decode("utf-8", "surrogateescape")


def _link_path(member: Member) -> str | None:
    """Where a link member leads, resolved by text inside the archive."""
    target = member.linkname
    if member.type is MemberType.SYMLINK and not target.startswith(b"/"):
        target = member.name.rpartition(b"/")[0] + b"/" + target
    parts: list[bytes] = []
    for part in target.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in {b"", b"."}:
            parts.append(part)
    return member_path(b"/".join(parts))


class ArchiveFiles:
    """The regular files of a tar archive, plain or compressed, by their paths; a link is followed once.

    *fd* must be seekable; it is closed with this object, also when opening fails. Raises :class:`TarError`,
    :class:`CompressionError` for a damaged archive, :class:`OciError` for one path twice, :class:`LimitExceeded`
    for more than 262144 members, :class:`InputError` for what cannot be read or sought.
    """

    def __init__(self, fd: int, *, limits: DecompressionLimits | None = None) -> None:
        self._fd = fd
        self._limits = limits
        self._stream: Decompressed | None = None
        self._position = 0
        self._files: dict[str, Extent | _Alias] = {}
        try:
            self._size = _seekable_size(fd)
            self.compression = sniff(_pread(fd, _HEAD, 0))
            self._index()
        except BaseException:
            self.close()
            raise

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def size(self, path: str) -> int | None:
        """Length in bytes, or ``None``."""
        extent = self._extent(path)
        return None if extent is None else extent.size

    @contextmanager
    def open(self, path: str) -> Iterator[Read]:
        """The file's bytes."""
        extent = self._extent(path)
        if extent is None:
            raise missing(path)
        yield self._range(extent) if self.compression is Compression.NONE else self._forward(extent)

    def close(self) -> None:
        """Close the archive."""
        self._stream = None
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    def _extent(self, path: str) -> Extent | None:
        found = self._files.get(path)
        if isinstance(found, _Alias):
            target = self._files.get(found.path) if found.path is not None else None
            if not isinstance(target, Extent):
                raise OciError("a link in the archive that leads to no file of it", where=path)
            return target
        return found

    # The index

    def _index(self) -> None:
        if self.compression is Compression.NONE:
            reader: TarReader = _Stepping(self._fd, self._size)
        else:
            reader = TarReader(self._restart().read)
        for member in reader:
            self._note(member, reader.offset)
        self._stream = None

    def _note(self, member: Member, offset: int) -> None:
        path = member_path(member.name)
        if path is None or member.type is MemberType.DIR:
            return
        if path in self._files:
            raise OciError("two members of one name in the archive", where=path)
        if len(self._files) == MAX_MEMBERS:
            raise LimitExceeded(f"more than {MAX_MEMBERS} files in the archive")
        if member.type in {MemberType.SYMLINK, MemberType.HARDLINK}:
            self._files[path] = _Alias(_link_path(member))
        elif member.type is MemberType.FILE and member.sparse is None:
            self._files[path] = Extent(offset, member.size)

    # Contents

    def _range(self, extent: Extent) -> Read:
        at, end = extent.offset, extent.offset + extent.size

        def read(count: int) -> bytes:
            nonlocal at
            part = _pread(self._fd, min(count, end - at), at)
            if not part and at < end:
                raise InputError("the archive became shorter while it was read")
            at += len(part)
            return part

        return read

    def _forward(self, extent: Extent) -> Read:
        stream = self._stream
        if stream is None or self._position > extent.offset:
            stream = self._stream = self._restart()
        end = extent.offset + extent.size

        def step(count: int) -> bytes:
            part = stream.read(count)
            if not part:
                raise TarError("the archive became shorter while it was read")
            self._position += len(part)
            return part

        def read(count: int) -> bytes:
            while self._position < extent.offset:
                step(min(READ_SIZE, extent.offset - self._position))
            left = end - self._position
            return step(min(count, left)) if left else b""

        return read

    def _restart(self) -> Decompressed:
        at = 0

        def read(count: int) -> bytes:
            nonlocal at
            part = _pread(self._fd, count, at)
            at += len(part)
            return part

        self._position = 0
        return open_compressed(read, limits=self._limits)


class _Stepping(TarReader):
    """A tar reader over a seekable file that steps over long contents instead of reading them."""

    def __init__(self, fd: int, size: int) -> None:
        self._next_at = 0
        self._end = size

        def read(count: int) -> bytes:
            part = _pread(fd, count, self._next_at)
            self._next_at += len(part)
            return part

        super().__init__(read)

    def _skip(self) -> None:
        buffered = len(self._buffer) - self._at
        beyond = self._left + self._padding - buffered
        # A cut archive is left to the plain way, which says what is missing.
        if beyond > 0 and self._next_at + beyond <= self._end:
            self._base += len(self._buffer) + beyond
            self._buffer, self._at = b"", 0
            self._next_at += beyond
            self._left = self._padding = 0
        else:
            super()._skip()


def _seekable_size(fd: int) -> int:
    try:
        status = os.fstat(fd)
    except OSError as error:
        raise os_error(error, "cannot look up") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(
            "an image archive is read in several places, so it must be a regular file",
            hint="save standard input to a file first; a single layer tar can be piped",
        )
    return status.st_size


def _pread(fd: int, count: int, offset: int) -> bytes:
    try:
        return os.pread(fd, count, offset)
    except OSError as error:
        raise os_error(error, "cannot read") from error
