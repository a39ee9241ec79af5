"""Look at input files by their paths, and read whole ones into memory, as read-only bytes.

Files are never mapped: accessing a page of a mapped file that was truncated, or that the disk cannot read, kills the
process, and the contents could change between check and use.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, LimitExceeded, SourceChanged, naming, os_error
from cfstools.linux.files import close, data_ranges, has_changed
from cfstools.text import shown_path

MAX_STREAM = 1 << 30
"""The limit for a pipe or device, in bytes."""
MAX_FILE = 1 << 32
"""The limit for a regular file, in bytes, including holes, which take no memory."""
_PIECE = 1 << 20
_SMALL_PIECE = 1 << 16
_READ_SIZE = 8 << 20  # bytes for each call, so that signals are handled in between
_LARGE_PAGE = 2 << 20
# No file can be there; opening the path reports why. The same holds for a path with a zero byte (ValueError).
_NOTHING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})


def file_type(path: bytes, *, follow: bool = True) -> int:
    """The file type (such as ``stat.S_IFDIR``) of *path*, 0 if missing; with *follow*, of a link's target.

    Raises InputError if the lookup fails.
    """
    try:
        return stat.S_IFMT(os.stat(path, follow_symlinks=follow).st_mode)
    except ValueError:
        return 0
    except OSError as error:
        if error.errno in _NOTHING:
            return 0
        raise os_error(error, "cannot look at", subject=shown_path(path)) from error


def is_directory(path: bytes) -> bool:
    """Whether *path* is a directory or a link to one. Raises InputError if the lookup fails."""
    return file_type(path) == stat.S_IFDIR


@contextmanager
def whole_file(path: bytes) -> Iterator[memoryview]:
    """Read a regular file, pipe or device to its end; the view is valid only inside the block.

    A pipe without a writer is empty. Raises InputError, SourceChanged if the file changes meanwhile, and LimitExceeded
    for a file of more than ``MAX_FILE`` bytes or a pipe or device of more than ``MAX_STREAM``. Errors raised inside the
    block without a subject get *path* as their subject.
    """
    with naming(path):
        try:
            # O_NONBLOCK: opening a FIFO without a writer must not block.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise InputError("is a directory, not a file")
            view = read_regular(fd) if stat.S_ISREG(status.st_mode) else memoryview(_read_to_end(fd)).toreadonly()
        except OSError as error:
            raise os_error(error, "cannot read") from error
        finally:
            close(fd)
        memory = view.obj
        try:
            yield view
        finally:
            with suppress(BufferError):  # a propagating exception may still refer to a slice
                view.release()
                if isinstance(memory, mmap.mmap):
                    memory.close()


def open_file(path: bytes) -> int:
    """Open the file or pipe *path* for reading. Raises InputError, naming it."""
    try:
        # Opening a FIFO without a writer must not block; reading from one blocks as usual.
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
    """Read the regular file *fd*, or its first *size* bytes, ignoring the file offset.

    A block device needs *size*. Holes take no memory. Raises InputError with the offset of a read error, SourceChanged
    if the file changes meanwhile (unnoticed on a block device), and LimitExceeded for more than *most* bytes.
    """
    try:
        before = os.fstat(fd)
        size = before.st_size if size is None else size
        if size > most:
            raise LimitExceeded(f"has {size} bytes, at most {most} are read")
        if not size:
            return memoryview(b"")
        # Anonymous memory is only allocated when it is written, so holes cost nothing.
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with memoryview(memory) as view:
            for start, end in data_ranges(fd, size) if stat.S_ISREG(before.st_mode) else [(0, size)]:
                _ask_large_pages(memory, start, end)
                _fill(fd, view, start, end)
        changed = has_changed(fd, before)
    except OSError as error:
        raise os_error(error, "cannot read") from error
    if changed:
        raise SourceChanged("changed while it was read")
    return memoryview(memory).toreadonly()


def _ask_large_pages(memory: mmap.mmap, start: int, end: int) -> None:
    """Ask for large pages in a range that is about to be filled: to fault small ones in takes longer than to read them.

    Never beyond the range, where holes take no memory.
    """
    if end - start >= _LARGE_PAGE:
        start -= start % mmap.PAGESIZE
        with suppress(OSError):  # the kernel may have none
            memory.madvise(mmap.MADV_HUGEPAGE, start, end - start)


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
    """Call *read* until it returns nothing and join the pieces; LimitExceeded beyond ``MAX_STREAM`` bytes."""
    data = bytearray()
    while piece := read(_PIECE):
        data += piece
        if len(data) > MAX_STREAM:
            raise LimitExceeded(f"is a pipe or device of more than {MAX_STREAM} bytes", hint="save it to a file first")
    return data


def _read_to_end(fd: int) -> bytearray:
    os.set_blocking(fd, True)
    return read_stream(lambda size: os.read(fd, size))


def read_small(path: bytes, most: int, *, regular: bool = False) -> bytes:
    """Read up to *most* bytes from the start of *path*, for parsers that reject longer input.

    *path* may be a pipe, so that secrets need not be in files; with *regular*, for paths that the user did not name, it
    must be a regular file. Raises InputError.
    """
    with naming(path):
        try:
            fd = open_regular(path) if regular else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open") from error
        try:
            return read_descriptor(fd, most)
        finally:
            close(fd)


def read_secret(path: bytes, most: int, warn: Callable[[str], None]) -> bytes:
    """Read like :func:`read_small`, and call *warn* if other users can read or change the file.

    Only regular files are checked: the writer of a pipe protects its contents. Raises InputError.
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
    """Read up to *most* bytes from *fd* at its current offset. Raises InputError."""
    data = bytearray()
    try:
        while len(data) < most and (piece := os.read(fd, min(_SMALL_PIECE, most - len(data)))):
            data += piece
    except OSError as error:
        raise os_error(error, "cannot read") from error
    return bytes(data)


def open_regular(path: bytes, *, devices: bool = False) -> int:
    """Open the regular file *path*, or with *devices* a block device, for reading. Raises OSError, and InputError."""
    # O_NONBLOCK: opening a FIFO without a writer must not block.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    kind = stat.S_IFMT(os.fstat(fd).st_mode)
    if kind != stat.S_IFREG and not (devices and kind == stat.S_IFBLK):
        close(fd)
        raise InputError("is not a regular file")
    return fd
