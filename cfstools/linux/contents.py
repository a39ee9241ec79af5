"""Whole input files as read-only bytes in memory.

Files are read and never mapped: a page of a mapped file that is cut, or that the disk cannot give, ends the process or
never arrives, and what is checked must stay what is used.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, LimitExceeded, SourceChanged, naming, os_error, shown_path
from cfstools.linux.files import close, data_ranges, state_of

MAX_STREAM = 1 << 30
"""Most bytes of a pipe or device."""
MAX_FILE = 1 << 32
"""Most bytes of a regular file, holes included: they take no memory."""
_PIECE = 1 << 20
_READ_SIZE = 8 << 20  # as much is read between two looks for signals


@contextmanager
def whole_file(path: bytes) -> Iterator[memoryview]:
    """Read a regular file, a pipe or a device to its end; the view is only good inside the block.

    A pipe that nobody writes to is empty. Raises InputError, SourceChanged for a file that changes meanwhile, and
    LimitExceeded for a file of more than ``MAX_FILE`` bytes or a pipe or device of more than ``MAX_STREAM``. Errors
    raised inside the block that have no subject get this path as theirs.
    """
    with naming(path):
        try:
            # O_NONBLOCK: opening a pipe that nobody writes to must not hang.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise InputError("is a directory, not a file")
            view = read_regular(fd) if stat.S_ISREG(status.st_mode) else memoryview(_read_descriptor(fd)).toreadonly()
        except OSError as error:
            raise os_error(error, "cannot read") from error
        finally:
            close(fd)
        memory = view.obj
        try:
            yield view
        finally:
            with suppress(BufferError):  # a traceback on its way out may still hold a slice
                view.release()
                if isinstance(memory, mmap.mmap):
                    memory.close()


def open_file(path: bytes) -> int:
    """Open the file or pipe *path* for reading. Raises InputError, naming it."""
    try:
        # A FIFO nobody writes to must not hang; reading from one that is a source after all waits as usual.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            os.set_blocking(fd, True)
        except BaseException:
            close(fd)
            raise
        return fd
    except OSError as error:
        raise os_error(error, "cannot open", subject=shown_path(path)) from error


def read_regular(fd: int, *, most: int = MAX_FILE, size: int | None = None) -> memoryview:
    """All bytes of the regular file *fd*, which must not change meanwhile, or its first *size*. The offset is not used.

    Of a block device, which tells no changes, *size* has to be given. Holes take no memory as long as they are only
    read. Raises InputError with the offset of what cannot be read, SourceChanged, and LimitExceeded for more than
    *most* bytes.
    """
    try:
        before = state_of(fd)
        size = before[0] if size is None else size
        if size > most:
            raise LimitExceeded(f"has {size} bytes, at most {most} are read")
        if not size:
            return memoryview(b"")
        # Memory that is given out when it is written to, so that a file that is all hole costs nothing.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(memory) as view:
            for start, end in data_ranges(fd, size) if stat.S_ISREG(os.fstat(fd).st_mode) else [(0, size)]:
                _fill(fd, view, start, end)
        after = state_of(fd)
    except OSError as error:
        raise os_error(error, "cannot read") from error
    if before != after:
        raise SourceChanged("changed while it was read")
    return memoryview(memory).toreadonly()


def _fill(fd: int, view: memoryview, at: int, end: int) -> None:
    while at < end:
        try:
            got = os.preadv(fd, [view[at : min(end, at + _READ_SIZE)]], at)
        except OSError as error:
            raise os_error(error, "cannot read", where=f"offset {at}") from error
        if not got:
            raise SourceChanged("changed while it was read")
        at += got


def read_stream(read: Callable[[int], bytes]) -> bytearray:
    """All bytes that *read* gives, piece by piece; raises LimitExceeded beyond ``MAX_STREAM``."""
    data = bytearray()
    while piece := read(_PIECE):
        data += piece
        if len(data) > MAX_STREAM:
            raise LimitExceeded(f"is a pipe or device of more than {MAX_STREAM} bytes", hint="save it to a file first")
    return data


def _read_descriptor(fd: int) -> bytearray:
    os.set_blocking(fd, True)
    return read_stream(lambda size: os.read(fd, size))
