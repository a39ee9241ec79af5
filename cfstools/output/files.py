"""Output files that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cfstools.errors import InputError, naming, os_error, shown_path
from cfstools.linux.files import close, link_tmpfile, open_tmpfile, write_all
from cfstools.linux.places import Doubt, Place, find, open_directory
from cfstools.output.removal import clean_up, remove_file
from cfstools.output.temporaries import hold, make_held, remove_stale, temporary_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MODE = 0o666  # minus the umask
_NO_SYNC = frozenset({errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP})  # pipes and some devices


class Sink(Protocol):
    """Where the bytes of an output go."""

    def write(self, data: Buffer, /) -> object:
        """Take all of *data*."""


class OutputFile:
    """A file being written; the :class:`Sink` for real files."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: Buffer) -> None:
        """Take all of *data*."""
        write_all(self._fd, data)

    def sync(self) -> None:
        """Bring all that was written to stable storage, so that little can go wrong afterwards."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


@contextmanager
def output_file(path: bytes, *, mode: int = _MODE) -> Iterator[OutputFile]:
    """Open *path* for a new file that replaces the old one, durable and whole, when the block ends well.

    Until then, and after an error or a kill, whatever was at *path* is untouched; what a killed writer of *path* left
    is removed. A symbolic link is followed, so that the file it names is the one replaced, unless another user may
    have put it there; a device or pipe is written in place, a pipe not if another user may have put it there.
    Raises InputError.
    """
    with naming(path):
        try:
            with _found(path) as place:
                kind = stat.S_IFMT(place.status.st_mode) if place.status is not None else stat.S_IFREG
                if kind == stat.S_IFDIR:
                    raise InputError("is a directory, not a place for a file")
                if kind == stat.S_IFREG:
                    yield from _replace(place, mode)
                else:
                    yield from _in_place(path, place)
        except Doubt as doubt:
            raise refused(doubt, path) from doubt
        except OSError as error:
            raise os_error(error, "cannot write") from error


@contextmanager
def _found(path: bytes) -> Iterator[Place]:
    place = find(path)
    try:
        yield place
    finally:
        close(place.directory)


def refused(doubt: Doubt, path: bytes) -> InputError:
    """The error for *path*, where another user may have put a link that leads there, or a fifo."""
    return InputError(doubt.about(path), subject=shown_path(path), hint=doubt.hint)


@contextmanager
def opened_directory(path: bytes, subject: bytes, what: str) -> Iterator[int]:
    """The directory *path*, unless a link of another user leads there; errors say *what* failed with *subject*."""
    try:
        fd = open_directory(path)
    except Doubt as doubt:
        raise refused(doubt, subject) from doubt
    except OSError as error:
        raise os_error(error, what, subject=shown_path(subject)) from error
    try:
        yield fd
    finally:
        close(fd)


def create_file(directory: int, path: bytes, data: bytes, *, mode: int, hint: str) -> None:
    """Write the file *path* in *directory*, which must not exist yet, durably or not at all.

    Raises InputError, with the *hint* if it exists.
    """
    with naming(path):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(os.path.basename(path), flags, mode, dir_fd=directory)
        except FileExistsError as error:
            raise os_error(error, "will not be overwritten", hint=hint) from error
        except OSError as error:
            raise os_error(error, "cannot write") from error
        try:
            write_all(fd, data)
            os.fsync(fd)
        except BaseException as error:
            take_back(directory, path, error)
            if isinstance(error, OSError):
                raise os_error(error, "cannot write") from error
            raise
        finally:
            close(fd)


def take_back(directory: int, path: bytes, error: BaseException) -> None:
    """Remove the file *path* in *directory* because of *error*, to which a note is added if it stays."""
    clean_up(error, partial(remove_file, directory, os.path.basename(path)), path)


def delete_file(path: bytes) -> None:
    """Delete the name *path*. Raises InputError."""
    directory, name = os.path.split(path)
    with opened_directory(directory or b".", path, "cannot delete") as fd:
        try:
            remove_file(fd, name)
        except OSError as error:
            raise os_error(error, "cannot delete", subject=shown_path(path)) from error


def _in_place(path: bytes, place: Place) -> Iterator[OutputFile]:
    # Through the path itself: what /dev/stdout leads to may have no name of its own.
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if place.status is None or not os.path.samestat(os.fstat(fd), place.status):
            raise InputError("was replaced while it was opened")
        output = OutputFile(fd)
        yield output
        output.sync()
    finally:
        close(fd)


def _replace(place: Place, mode: int) -> Iterator[OutputFile]:
    name = place.name
    directory_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        remove = partial(_unlink, directory_fd)
        remove_stale(directory_fd, name, stat.S_IFREG, remove)
        temporary, fd, named = _temporary(directory_fd, name)
        try:
            yield OutputFile(fd)
            os.fchmod(fd, mode & ~_umask())
            os.fsync(fd)
            if not named:
                link_tmpfile(fd, directory_fd, temporary)
                named = True
            os.rename(temporary, name, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
            os.fsync(directory_fd)
        except BaseException as error:
            if named:
                clean_up(error, partial(remove, temporary, fd), os.path.join(os.path.dirname(place.path), temporary))
            raise
        finally:
            close(fd)
    finally:
        close(directory_fd)


def _temporary(directory_fd: int, name: bytes) -> tuple[bytes, int, bool]:
    """The name of a temporary, its descriptor, locked, and whether it has the name yet.

    A nameless file leaves nothing behind when we are killed, but for the moment between its two names.
    """

    fd = open_tmpfile(directory_fd)
    if fd is None:
        return *make_held(directory_fd, name, partial(_create, directory_fd), partial(_unlink, directory_fd)), True
    try:
        hold(fd)
    except BaseException:
        close(fd)
        raise
    return temporary_name(name), fd, False


def _create(directory_fd: int, name: bytes) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd)


def _unlink(directory_fd: int, name: bytes, _fd: int) -> None:
    remove_file(directory_fd, name)


def _umask() -> int:
    # The only way to read the mask is to set it; /proc is not everywhere.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
