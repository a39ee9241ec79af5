"""Random access to the bytes of a file, of memory, of a part of either, or of a spooled stream.

A stream that can be read only once is spooled: in memory while it is small, then in an anonymous file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Protocol

from cfstools.errors import InputError, Phrase, Remedy, os_error
from cfstools.linux.files import close, write_all
from cfstools.streams.buffered import read_up_to

IN_MEMORY = 8 << 20  # spools up to this size stay in memory
MakeFile = Callable[[], int]
"""Creates an anonymous file and returns its descriptor; raises :class:`OSError`."""

_PIECE = 1 << 18
_ZEROS = bytes(_PIECE)
_HINT = Phrase(
    "what is compressed or comes from a pipe is kept in a temporary file, which lies in the first {}, else in "
    "$TMPDIR or /var/tmp",
    Remedy.STORES,
)


class RandomAccess(Protocol):
    """Bytes that can be read at any offset."""

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; none at the end."""

    def close(self) -> None:
        """Release what is held."""


class FileAccess:
    """The bytes of the file *fd* from *start* on; takes over the descriptor."""

    def __init__(self, fd: int, start: int = 0) -> None:
        self._fd = fd
        self._start = start

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; raises :class:`InputError`."""
        try:
            return os.pread(self._fd, count, self._start + offset)
        except OSError as error:
            raise os_error(error, "cannot read") from error

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class BytesAccess:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*."""
        return self._data[offset : offset + count]

    def close(self) -> None:
        """Discard the bytes."""
        self._data = b""


class Window:
    """*size* bytes of *access* from offset *start*. Closing it leaves *access* open."""

    def __init__(self, access: RandomAccess, start: int, size: int) -> None:
        self._access = access
        self._start = start
        self._size = size

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; none at the end of the window."""
        return self._access.pread(max(0, min(count, self._size - offset)), self._start + offset)

    def close(self) -> None:
        """Do nothing: *access* stays open."""


class Spool:
    """An append-only buffer that can be read at any offset. Zeros become holes of its file."""

    def __init__(self, make_file: MakeFile) -> None:
        self._make_file = make_file
        self._memory = bytearray()
        self._fd = -1
        self._hole_at_end = False
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*. Raises :class:`InputError` if the file cannot be written."""
        try:
            if self._fd < 0 and self.size + len(data) <= IN_MEMORY:
                self._memory += data
            else:
                if self._fd < 0:
                    self._to_file()
                self._append(data)
        except OSError as error:
            raise os_error(error, "cannot keep the archive in a temporary file", hint=_HINT) from error
        self.size += len(data)

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; none at the end."""
        if self._fd < 0:
            return bytes(self._memory[offset : offset + count])
        try:
            if self._hole_at_end:
                os.ftruncate(self._fd, self.size)
                self._hole_at_end = False
            return os.pread(self._fd, count, offset)
        except OSError as error:
            raise os_error(error, "cannot read the temporary file") from error

    def close(self) -> None:
        """Discard the bytes."""
        self._memory = bytearray()
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1

    def _to_file(self) -> None:
        self._fd = self._make_file()
        write_all(self._fd, self._memory)
        self._memory = bytearray()

    def _append(self, data: bytes | memoryview) -> None:
        if not data:
            return
        self._hole_at_end = len(data) <= _PIECE and not data[0] and data == _ZEROS[: len(data)]
        if self._hole_at_end:
            os.lseek(self._fd, len(data), os.SEEK_CUR)
        else:
            write_all(self._fd, data)


class Replayable:
    """A stream from the descriptor *fd* that can be rewound after its start was examined.

    Regular files and block devices are read from the current position with random access. Anything else is spooled
    while it is read, until :meth:`forget`. Takes over the descriptor.
    """

    def __init__(self, fd: int, make_file: MakeFile) -> None:
        self._fd = fd
        self._at = 0
        try:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            start = os.lseek(fd, 0, os.SEEK_CUR) if kind in {stat.S_IFREG, stat.S_IFBLK} else -1
            if start >= 0:
                end = os.lseek(fd, 0, os.SEEK_END)
                os.lseek(fd, start, os.SEEK_SET)
        except OSError as error:
            close(fd)
            raise os_error(error, "cannot look up") from error
        self.size = None if start < 0 else max(0, end - start)  # None: it can be read only once
        self._spool = Spool(make_file) if self.size is None else None
        self.access: RandomAccess = self._spool or FileAccess(fd, start)
        self._keeping = self._spool is not None

    def read(self, count: int) -> bytes:
        """The next bytes, at most *count*; none at the end."""
        if self._spool is None:
            part = self.access.pread(count, self._at)
        elif self._at < self._spool.size:
            part = self._spool.pread(count, self._at)
        else:
            part = self._next(count)
            if self._keeping:
                self._spool.write(part)
            elif self._spool.size:
                self._spool.close()
        self._at += len(part)
        return part

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; of a stream, only bytes that were read already."""
        return self.access.pread(count, offset)

    def rewind(self) -> None:
        """Read from the start again. Not allowed after :meth:`forget`."""
        self._at = 0

    def forget(self) -> None:
        """Stop spooling: the stream will not be rewound again."""
        self._keeping = False

    def peek(self, count: int) -> bytes:
        """The first *count* bytes, fewer if the stream is shorter; the next read is from the start."""
        self.rewind()
        head = read_up_to(self.read, count)
        self.rewind()
        return head

    def close(self) -> None:
        """Close the descriptor and discard the spool."""
        self.access.close()
        if self._fd >= 0:
            if self._spool is not None:
                close(self._fd)
            self._fd = -1

    def _next(self, count: int) -> bytes:
        try:
            return os.read(self._fd, count)
        except OSError as error:
            raise os_error(error, "cannot read") from error


class RangeReader:
    """A stream of *size* bytes of *access* from *offset*. Raises :class:`InputError` if it is truncated."""

    def __init__(self, access: RandomAccess, offset: int, size: int) -> None:
        self._access = access
        self._at = offset
        self._end = offset + size

    def read(self, count: int) -> bytes:
        """The next bytes, at most *count*; none at the end of the range."""
        part = self._access.pread(min(count, self._end - self._at), self._at)
        if not part and self._at < self._end:
            raise InputError("the archive became shorter while it was read")
        self._at += len(part)
        return part

    def skip(self, count: int) -> bool:
        """Skip *count* bytes; return ``False`` if the range has fewer."""
        if self._at + count > self._end:
            return False
        self._at += count
        return True
