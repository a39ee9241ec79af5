"""Write output files atomically: they appear complete or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cfstools.errors import InputError, naming, os_error
from cfstools.linux.files import close, link_tmpfile, open_tmpfile, write_all
from cfstools.linux.paths import ResolvedPath, UntrustedPath, open_directory, resolve
from cfstools.output.removal import clean_up, remove_file
from cfstools.output.temporaries import hold, make_held, remove_stale, temporary_name
from cfstools.text import shown_path

if TYPE_CHECKING:
    from typing_extensions import Buffer

_MODE = 0o666  # minus the umask
_NO_SYNC = frozenset({errno.EINVAL, errno.EROFS, errno.EOPNOTSUPP})  # pipes and some devices


class Sink(Protocol):
    """The destination of the bytes of an output."""

    def write(self, data: Buffer, /) -> object:
        """Write all of *data*."""


class OutputFile:
    """A file being written; the :class:`Sink` for real files."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, data: Buffer) -> None:
        """Write all of *data*."""
        write_all(self._fd, data)

    def sync(self) -> None:
        """Sync the file, so that few errors are possible afterwards."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            if error.errno not in _NO_SYNC:
                raise


@contextmanager
def output_file(path: bytes, *, mode: int = _MODE) -> Iterator[OutputFile]:
    """Open a temporary that replaces *path*, complete and durable, when the block ends without an exception.

    Until then, and after an error or a kill, the old file at *path* stays; temporaries of killed writers are removed. A
    symbolic link is followed and its target replaced; devices and pipes are written in place. Links and pipes that
    another user may have planted are refused. Raises InputError.
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
        except UntrustedPath as untrusted:
            raise refused(untrusted, path) from untrusted
        except OSError as error:
            raise os_error(error, "cannot write") from error


@contextmanager
def _found(path: bytes) -> Iterator[ResolvedPath]:
    place = resolve(path)
    try:
        yield place
    finally:
        close(place.directory)


def refused(untrusted: UntrustedPath, path: bytes) -> InputError:
    """The error for *path* because another user may have planted a link or FIFO on the way."""
    return InputError(untrusted.about(path), subject=shown_path(path), hint=untrusted.hint)


@contextmanager
def opened_directory(path: bytes, subject: bytes, what: str) -> Iterator[int]:
    """Open the directory *path*, refusing links of other users; errors say *what* failed for *subject*."""
    try:
        fd = open_directory(path)
    except UntrustedPath as untrusted:
        raise refused(untrusted, subject) from untrusted
    except OSError as error:
        raise os_error(error, what, subject=shown_path(subject)) from error
    try:
        yield fd
    finally:
        close(fd)


def create_file(directory: int, path: bytes, data: bytes, *, mode: int, hint: str) -> None:
    """Create the file *path* in *directory* with *data*, durably or not at all.

    Raises InputError, with *hint* if the file exists.
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
    """Remove the file *path* in *directory* after *error*; add a note to *error* if that fails."""
    clean_up(error, partial(remove_file, directory, os.path.basename(path)), path)


def delete_file(path: bytes) -> None:
    """Unlink *path*. Raises InputError."""
    directory, name = os.path.split(path)
    with opened_directory(directory or b".", path, "cannot delete") as fd:
        try:
            remove_file(fd, name)
        except OSError as error:
            raise os_error(error, "cannot delete", subject=shown_path(path)) from error


def _in_place(path: bytes, place: ResolvedPath) -> Iterator[OutputFile]:
    # Open the path itself: the target of /dev/stdout may have no name.
    fd = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if place.status is None or not os.path.samestat(os.fstat(fd), place.status):
            raise InputError("was replaced while it was opened")
        output = OutputFile(fd)
        yield output
        output.sync()
    finally:
        close(fd)


def _replace(place: ResolvedPath, mode: int) -> Iterator[OutputFile]:
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
    """Create a locked temporary; return its name, its descriptor, and whether it has the name already.

    An anonymous file leaves nothing behind when the process is killed, except between link and rename.
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
    # Reading the umask requires setting it; /proc may not be mounted.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
