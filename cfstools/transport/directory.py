"""A directory as a place: names are paths of regular files below it, and no symbolic link is followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cfstools.errors import ContentsWrong, InputError, NotFound, SourceChanged, os_error
from cfstools.linux.files import close, open_beneath
from cfstools.output.files import output_file
from cfstools.output.temporaries import is_temporary
from cfstools.streams.buffered import Read
from cfstools.text import shown_path
from cfstools.transport.base import Body, Span, Version, check_name, pieces

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

    @contextmanager
    def read(self, name: str, span: Span | None = None, version: Version | None = None) -> Iterator[Read]:
        """Read a span of it, or all."""
        with self._opened(name) as fd:
            if fd is None:
                raise NotFound("not found", subject=self.describe(name))
            status = os.fstat(fd)
            if version is not None:
                version.check(f"{status.st_ino} {status.st_mtime_ns} {status.st_size}", self.describe(name))
            span = span or Span(0, status.st_size)
            if span.end > status.st_size:
                raise ContentsWrong("is shorter there than it should be", subject=self.describe(name))
            yield self._reader(fd, span, name)

    def describe(self, name: str) -> str:
        """The path."""
        return shown_path(self._whole(name))

    def close(self) -> None:
        """Close the directory."""
        if self._root >= 0:
            close(self._root)
            self._root = -1

    def put(self, name: str, body: Body, *, replace: bool) -> bool:
        """Store a body in a file, which appears whole, with the directories above it."""
        there = self.size(name)  # refuses what is there and is no file
        if there is not None and not replace:
            return False
        self._make_parents(name)
        with output_file(self._whole(name)) as file, body.open() as read:
            for piece in pieces(read, body.size, self.describe(name)):
                file.write(piece)
        return True

    def names(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """The paths of all regular files below a directory, with their sizes, but temporaries of unfinished ones."""
        top = os.fsencode(check_name(prefix)) if prefix else b"."
        try:
            here = open_beneath(self._root, top, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise os_error(error, "cannot list", subject=self.describe(prefix)) from error
        try:
            yield from self._walk(here, prefix)
        finally:
            close(here)

    def _walk(self, top: int, prefix: str) -> Iterator[tuple[str, int]]:
        for directory, _, files, fd in os.fwalk(b".", dir_fd=top, onerror=self._fail):
            for file in files:
                status = os.lstat(file, dir_fd=fd)
                if not is_temporary(file) and stat.S_ISREG(status.st_mode):
                    name = os.fsdecode(os.path.join(directory, file)[2:])
                    yield f"{prefix}/{name}" if prefix else name, status.st_size

    def _reader(self, fd: int, span: Span, name: str) -> Read:
        at = span.start

        def read(count: int) -> bytes:
            nonlocal at
            try:
                part = os.pread(fd, min(count, span.end - at), at)
            except OSError as error:
                raise os_error(error, "cannot read", subject=self.describe(name)) from error
            if not part and count and at < span.end:
                raise SourceChanged("changed while it was read", subject=self.describe(name))
            at += len(part)
            return part

        return read

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
