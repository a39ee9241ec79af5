"""Objects of local stores, read without waiting: what is in the page cache of the kernel."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from itertools import takewhile

from cfstools.linux.files import close, filesystem_type
from cfstools.store.base import Store
from cfstools.store.directory import OBJECT_FLAGS, DirectoryStore

_TMPFS = 0x01021994  # linux/magic.h


class Nearby:
    """The directories at the beginning of *stores*. For one thread: what it returns is valid until the next call.

    Opening a file is not counted as waiting: names are in the kernel's cache once their directory was looked at.
    """

    def __init__(self, stores: Sequence[Store], most: int) -> None:
        near = takewhile(lambda store: isinstance(store, DirectoryStore), stores)
        self._stores = [store for store in near if isinstance(store, DirectoryStore)]
        self._buffer = memoryview(bytearray(most + 1))
        self._in_memory: dict[int, bool] = {}  # by device

    def whole(self, digest: bytes, size: int) -> memoryview | None:
        """The bytes of the object, unchecked, if they are at hand and *size* bytes; else ``None``."""
        name = digest.hex()[2:]
        for store in self._stores:
            directory = store.prefix_fds[digest[0]]
            if directory < 0:
                continue
            try:
                fd = os.open(name, OBJECT_FLAGS, dir_fd=directory)
            except FileNotFoundError:
                continue
            except OSError:
                return None
            try:
                # One byte more tells whether the object is too long.
                return self.part(fd, 0, size, more=1)
            finally:
                close(fd)
        return None

    def part(self, fd: int, offset: int, size: int, *, more: int = 0) -> memoryview | None:
        """*size* bytes of the file *fd* from *offset* on, if they are at hand, and no more if *more* are asked for."""
        buffer = (self._buffer[: size + more],)
        try:
            got = os.preadv(fd, buffer, offset, os.RWF_NOWAIT)
        except OSError as error:
            # It would have to wait, or fails: whoever may wait finds out. Files in memory need no such question.
            if error.errno != errno.EOPNOTSUPP or not self._is_memory(fd):
                return None
            try:
                got = os.preadv(fd, buffer, offset)
            except OSError:
                return None
        return self._buffer[:size] if got == size else None

    def _is_memory(self, fd: int) -> bool:
        device = os.fstat(fd).st_dev
        known = self._in_memory.get(device)
        if known is None:
            known = self._in_memory[device] = filesystem_type(fd) == _TMPFS
        return known
