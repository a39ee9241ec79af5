"""A directory as a place: names are paths of regular files below it, and no symbolic link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import InputError, os_error, shown_path
from cfstools.linux.files import close, open_beneath
from cfstools.output.files import output_file
from cfstools.output.temporaries import is_temporary
from cfstools.streams.buffered import Read
from cfstools.transport.base import Span, check_name, pieces

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY
_PARENT = os.O_PATH | os.O_DIRECTORY


class DirectoryTarget:
    """The files below the directory *path*, which must exist."""

    def __init__(self, path: bytes) -> None:
        self._path = os.path.abspath(path)
        try:
            self._root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise os_error(error, "cannot open", subject=shown_path(path)) from error

    def size(self, name: str) -> int | None:
        """Length in bytes, or ``None``."""
        with self._opened(name) as fd:
            return None if fd is None else os.fstat(fd).st_size

    def read(self, name: str, span: Span) -> bytes:
        """The first bytes of a span."""
        with self._opened(name) as fd:
            if fd is None:
                raise InputError("not found", subject=self.describe(name))
            try:
                return os.pread(fd, span.size, span.offset)
            except OSError as error:
                raise os_error(error, "cannot read", subject=self.describe(name)) from error

    def describe(self, name: str) -> str:
        """The path."""
        return shown_path(self._whole(name))

    def close(self) -> None:
        """Close the directory."""
        if self._root >= 0:
            close(self._root)
            self._root = -1

    def put(self, name: str, read: Read, size: int) -> None:
        """Store what *read* gives in a file, which appears whole, with the directories above it."""
        self.size(name)  # refuses what is there and is no file
        self._make_parents(name)
        with output_file(self._whole(name)) as file:
            for piece in pieces(read, size, self.describe(name)):
                file.write(piece)

    def names(self) -> Iterator[str]:
        """The paths of all regular files but temporaries of unfinished ones."""
        for directory, _, files, fd in os.fwalk(b".", dir_fd=self._root, onerror=self._fail):
            for file in files:
                if not is_temporary(file) and stat.S_ISREG(os.lstat(file, dir_fd=fd).st_mode):
                    yield os.fsdecode(os.path.join(directory, file)[2:])

    def _whole(self, name: str) -> bytes:
        return os.path.join(self._path, os.fsencode(name))

    def _fail(self, error: OSError) -> None:
        raise os_error(error, "cannot list", subject=shown_path(self._path)) from error

    @contextmanager
    def _opened(self, name: str) -> Iterator[int | None]:
        """The regular file of a name, ``None`` if there is none. Raises :class:`InputError` for anything else."""
        path = os.fsencode(check_name(name))
        try:
            fd = open_beneath(self._root, path, _READ)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except OSError as error:
            raise os_error(error, "cannot open", subject=self.describe(name)) from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InputError("is not a regular file", subject=self.describe(name))
            yield fd
        finally:
            close(fd)

    def _make_parents(self, name: str) -> None:
        """Make the directories above a name, without following a link on the way."""
        here = os.dup(self._root)
        try:
            for part in os.fsencode(name).split(b"/")[:-1]:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=here)
                below = open_beneath(here, part, _PARENT)
                close(here)
                here = below
        except OSError as error:
            raise os_error(error, "cannot make the directories above", subject=self.describe(name)) from error
        finally:
            close(here)
