"""Whole input files as read-only bytes."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, naming, os_error


@contextmanager
def mapped_file(path: bytes) -> Iterator[memoryview]:
    """Map a regular file; the view is only good inside the block. Raises InputError, naming the path.

    Errors raised inside the block that have no subject get this path as theirs.
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
            if not stat.S_ISREG(status.st_mode):
                raise InputError("is not a regular file")
            mapping = mmap.mmap(fd, status.st_size, prot=mmap.PROT_READ) if status.st_size else None
        except OSError as error:
            raise os_error(error, "cannot read") from error
        finally:
            os.close(fd)
        if mapping is None:
            yield memoryview(b"")
            return
        view = memoryview(mapping)
        try:
            yield view
        finally:
            view.release()
            with suppress(BufferError):  # a traceback on its way out may still hold a slice
                mapping.close()
