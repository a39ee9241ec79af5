"""What cannot be published: objects in temporary files without a name, the oldest of which go when there are too many.

Small objects share a file, so that there are few descriptors. Whoever has an object open keeps it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from contextlib import suppress
from typing import NamedTuple

from cfstools.errors import os_error
from cfstools.lifetime import Closable
from cfstools.linux.files import close, fd_limit, unnamed_file, write_all
from cfstools.store.base import STAGE_PREFIX, FileObject, Object, store_error
from cfstools.text import shown_path

_SHARED = 16 << 20  # a file of small objects
_SHARES = 8  # and at least so many of them fit
_DESCRIPTORS = 512


class WindowObject:
    """An object of *size* bytes in the middle of the open file *fd*; takes over the descriptor."""

    __slots__ = ("_fd", "_offset", "size")

    checked = True

    def __init__(self, fd: int, offset: int, size: int) -> None:
        self._fd = fd
        self._offset = offset
        self.size = size

    def read(self, offset: int, count: int) -> bytes:
        """Read *count* bytes at *offset*, fewer only at the end. Raises ``InputError``."""
        try:
            return os.pread(self._fd, max(0, min(count, self.size - offset)), self._offset + offset)
        except OSError as error:
            raise os_error(error, "cannot read") from error

    def fileno(self) -> None:
        """``None``: the file has more than the object."""
        return

    def close(self) -> None:
        """Close the file. Closing twice is allowed."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1


class _File:
    """One temporary file and the objects in it."""

    __slots__ = ("digests", "fd", "shared", "size")

    def __init__(self, fd: int, *, shared: bool) -> None:
        self.fd = fd
        self.shared = shared
        self.size = 0
        self.digests: list[bytes] = []


class _Place(NamedTuple):
    """Where an object is."""

    file: _File
    offset: int
    size: int


class Cache(Closable):
    """Keeps objects in files without a name in *directory*, *limit* bytes in all; thread-safe.

    The object that came last is kept whatever its size. Nothing is made before the first object comes. Methods raise
    ``StoreError`` and ``Exhausted``.
    """

    def __init__(self, directory: bytes, limit: int) -> None:
        self._directory = directory
        self._limit = limit
        self._files: OrderedDict[_File, None] = OrderedDict()
        self._places: dict[bytes, _Place] = {}
        self._size = 0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many objects it has."""
        return len(self._places)

    def new_file(self) -> int:
        """A file without a name for a large object; whoever asked for it closes it."""
        try:
            parent = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return unnamed_file(parent, STAGE_PREFIX)
            finally:
                close(parent)
        except OSError as error:
            raise store_error(error, "cannot make a temporary file", shown_path(self._directory)) from error

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep an object in memory."""
        with self._lock:
            if digest in self._places:
                return
            file = self._shared_file(len(data))
            try:
                os.lseek(file.fd, file.size, os.SEEK_SET)
                write_all(file.fd, data)
            except OSError as error:
                raise store_error(error, "cannot keep an object", shown_path(self._directory)) from error
            self._note(digest, file, len(data))

    def put_file(self, digest: bytes, fd: int, size: int) -> None:
        """Keep an object that is all of the file *fd*; takes over the descriptor."""
        with self._lock:
            if digest in self._places:
                close(fd)
                return
            file = _File(fd, shared=False)
            self._files[file] = None
            self._note(digest, file, size)

    def has(self, digest: bytes) -> bool:
        """Whether an object is here."""
        return digest in self._places

    def open(self, digest: bytes) -> Object | None:
        """An object, ``None`` if it is not here."""
        with self._lock:
            place = self._places.get(digest)
            if place is None:
                return None
            try:
                fd = os.dup(place.file.fd)
            except OSError as error:
                raise store_error(error, "cannot open a temporary file", shown_path(self._directory)) from error
        if place.file.shared:
            return WindowObject(fd, place.offset, place.size)
        return FileObject(fd, place.size, checked=True)

    def close(self) -> None:
        """Forget everything. Closing twice is allowed."""
        with self._lock:
            while self._files:
                self._drop(next(iter(self._files)))

    def _shared_file(self, size: int) -> _File:
        """The file that the next small object goes into."""
        last = next(reversed(self._files), None)
        most = min(_SHARED, self._limit // _SHARES)
        if last is not None and last.shared and last.size + size <= most:
            return last
        file = _File(self.new_file(), shared=True)
        self._files[file] = None
        return file

    def _note(self, digest: bytes, file: _File, size: int) -> None:
        self._places[digest] = _Place(file, file.size, size)
        file.digests.append(digest)
        file.size += size
        self._size += size
        most = min(_DESCRIPTORS, fd_limit() // 4)
        while len(self._files) > 1 and (self._size > self._limit or len(self._files) > most):
            self._drop(next(iter(self._files)))

    def _drop(self, file: _File) -> None:
        del self._files[file]
        for digest in file.digests:
            del self._places[digest]
        self._size -= file.size
        close(file.fd)


def read_only(fd: int) -> int:
    """Another descriptor of the file *fd* that cannot write, closed by the caller. Raises ``InputError``."""
    with suppress(OSError):
        return os.open(b"/proc/self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.dup(fd)
    except OSError as error:
        raise os_error(error, "cannot open a temporary file") from error
