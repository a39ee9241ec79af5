"""Whole input files as read-only bytes."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, LimitExceeded, naming, os_error
from cfstools.linux.files import close

MAX_STREAM = 1 << 30
"""Most bytes of a pipe or device: they are held in memory, which a mapping is not."""
_PIECE = 1 << 20


@contextmanager
def mapped_file(path: bytes) -> Iterator[memoryview]:
    """Map a regular file, or read a pipe or device to its end; the view is only good inside the block.

    A pipe that nobody writes to is empty. Raises InputError, and LimitExceeded for a pipe or device with more than
    ``MAX_STREAM`` bytes. Errors raised inside the block that have no subject get this path as theirs.
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
            streamed = None if stat.S_ISREG(status.st_mode) else _read_descriptor(fd)
            mapping = None
            if streamed is None and status.st_size:
                mapping = mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ)
        except OSError as error:
            raise os_error(error, "cannot read") from error
        finally:
            close(fd)
        if mapping is None:
            yield memoryview(streamed or b"").toreadonly()
            return
        view = memoryview(mapping)
        try:
            yield view
        finally:
            view.release()
            with suppress(BufferError):  # a traceback on its way out may still hold a slice
                mapping.close()


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
