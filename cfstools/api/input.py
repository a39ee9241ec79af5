"""Input files that are read once into memory, so that what is checked is what is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cfstools.errors import CheckFailed, ImageError, InputError, naming, os_error, shown_path
from cfstools.formats.erofs.reader import check_head
from cfstools.linux.contents import MAX_FILE, read_regular
from cfstools.linux.files import close

MAX_IMAGE_FILE = MAX_FILE
LARGE_IMAGE = 1 << 26
HEAD = 1 << 12
_PIECE = 1 << 16


def read_image_file(path: bytes) -> memoryview:
    """All bytes of the regular file *path*, read exactly once.

    They stay the same when somebody writes to the file afterwards. Raises InputError, SourceChanged, and LimitExceeded
    for more than ``MAX_IMAGE_FILE`` bytes.
    """
    with opened_image(path) as fd:
        return read_image(fd)


@contextmanager
def opened_image(path: bytes) -> Iterator[int]:
    """The regular file *path*, open for reading; errors inside the block are named after it. Raises InputError."""
    with naming(path):
        try:
            fd = _open_regular(path)
        except OSError as error:
            raise os_error(error, "cannot read") from error
        try:
            yield fd
        finally:
            close(fd)


def read_image(fd: int) -> memoryview:
    """All bytes of the open regular file *fd*. Raises InputError, SourceChanged and LimitExceeded."""
    return read_regular(fd, most=MAX_IMAGE_FILE)


def check_large_image(fd: int) -> None:
    """Look at the first block of the open file *fd* before all of it is read, if that would take long.

    Only where nothing has to hold before the image may be interpreted. Raises CheckFailed for what is no image, and
    InputError.
    """
    try:
        size = os.fstat(fd).st_size
        if size > LARGE_IMAGE:
            check_head(os.pread(fd, HEAD, 0), size)
    except OSError as error:
        raise os_error(error, "cannot read") from error
    except ImageError as error:
        raise CheckFailed(f"{error}; the rest of the file, of {size} bytes, was not read") from error


def read_small(path: bytes, most: int, *, regular: bool = False) -> bytes:
    """At most *most* bytes from the start of *path*, for parsers that refuse what is longer.

    Pipes are fine, so that secrets need not lie in files; not with *regular*, for names the user did not give. Raises
    InputError.
    """
    with naming(path):
        try:
            fd = _open_regular(path) if regular else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            return read_descriptor(fd, most)
        finally:
            close(fd)


def read_secret(path: bytes, most: int, warn: Callable[[str], None]) -> bytes:
    """At most *most* bytes from the start of *path*, like :func:`read_small`; *warn* hears who else can have them.

    Only files with names are looked at: what comes through a pipe is its writer's. Raises InputError.
    """
    with naming(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            found = os.fstat(fd)
            data = read_descriptor(fd, most)
        except OSError as error:
            raise os_error(error, "cannot read") from error
        finally:
            close(fd)
    if stat.S_ISREG(found.st_mode):
        name, mode = shown_path(path), stat.S_IMODE(found.st_mode)
        if found.st_uid not in (os.geteuid(), 0):
            warn(f"{name}: belongs to user {found.st_uid}, who can read and change it")
        if mode & 0o077:
            warn(f"{name}: others than its owner can read or change it (mode {mode:04o}); chmod 600 keeps them out")
    return data


def read_descriptor(fd: int, most: int) -> bytes:
    """At most *most* bytes from the open file *fd*, from where it stands. Raises InputError."""
    data = bytearray()
    try:
        while len(data) < most and (piece := os.read(fd, min(_PIECE, most - len(data)))):
            data += piece
    except OSError as error:
        raise os_error(error, "cannot read") from error
    return bytes(data)


def _open_regular(path: bytes) -> int:
    # O_NONBLOCK: opening a pipe that nobody writes to must not hang.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        close(fd)
        raise InputError("is not a regular file")
    return fd
