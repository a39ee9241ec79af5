"""Access to bytes at any offset: of a file, of memory, of a part of either, or spooled from a stream.

What can be read only once is spooled: in memory while it is small, then in a file without a name.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Protocol

from cfstools.errors import InputError, os_error
from cfstools.linux.files import close, write_all
from cfstools.streams.buffered import read_up_to

IN_MEMORY = 8 << 20  # so many bytes are kept in memory before a file is made
MakeFile = Callable[[], int]
"""Makes an empty file without a name and gives its descriptor; raises :class:`OSError`."""

_PIECE = 1 << 18
_ZEROS = bytes(_PIECE)
_HINT = (
    "what is compressed or comes from a pipe is kept in a temporary file, which lies in the first --store, else in "
    "$TMPDIR or /var/tmp"
)


class RandomAccess(Protocol):
    """Bytes that can be read at any offset."""

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; none at the end."""

    def close(self) -> None:
        """Release what is held."""


class FileAccess:
    """The bytes of the file *fd* from *start* on. The descriptor is closed with it."""

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
    """*size* bytes of *place* from *start* on. Closing it leaves *place* open."""

    def __init__(self, place: RandomAccess, start: int, size: int) -> None:
        self._place = place
        self._start = start
        self._size = size

    def pread(self, count: int, offset: int) -> bytes:
        """At most *count* bytes at *offset*; none at the end of the window."""
        return self._place.pread(max(0, min(count, self._size - offset)), self._start + offset)

    def close(self) -> None:
        """Nothing: *place* is its owner's."""


class Spool:
    """A spool: appended to, and read at any offset. Zeros become holes of its file."""

    def __init__(self, make_file: MakeFile) -> None:
        self._make_file = make_file
        self._memory = bytearray()
        self._fd = -1
        self._hole_at_end = False
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append *data*. Raises :class:`InputError` where there is no room."""
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
    """A stream from the descriptor *fd* that can be rewound, so that its start can be examined first.

    A regular file or block device is read at any offset, from the current position on. Anything else is spooled as it
    is read, until :meth:`forget`. The descriptor is closed with this object.
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
        self.place: RandomAccess = self._spool or FileAccess(fd, start)
        self._keeping = self._spool is not None

    def read(self, count: int) -> bytes:
        """The next bytes, at most *count*; none at the end."""
        if self._spool is None:
            part = self.place.pread(count, self._at)
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
        """At most *count* bytes at *offset*, of what was read if it can be read only once."""
        return self.place.pread(count, offset)

    def rewind(self) -> None:
        """Read from the start again. Only before :meth:`forget`."""
        self._at = 0

    def forget(self) -> None:
        """Stop spooling: there will be no further rewind."""
        self._keeping = False

    def peek(self, count: int) -> bytes:
        """The first *count* bytes, fewer if there are no more; the next read is from the start."""
        self.rewind()
        head = read_up_to(self.read, count)
        self.rewind()
        return head

    def close(self) -> None:
        """Close the descriptor and discard the spool."""
        self.place.close()
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
    """Reads *size* bytes of *place* from *offset* on. Raises :class:`InputError` if they are not there."""

    def __init__(self, place: RandomAccess, offset: int, size: int) -> None:
        self._place = place
        self._at = offset
        self._end = offset + size

    def read(self, count: int) -> bytes:
        """The next bytes, at most *count*; none at the end of the range."""
        part = self._place.pread(min(count, self._end - self._at), self._at)
        if not part and self._at < self._end:
            raise InputError("the archive became shorter while it was read")
        self._at += len(part)
        return part

    def skip(self, count: int) -> bool:
        """Pass over *count* bytes, if there are so many."""
        if self._at + count > self._end:
            return False
        self._at += count
        return True
