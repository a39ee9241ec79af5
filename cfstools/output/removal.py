"""Remove an unfinished output, even on a full file system, and report what could not be removed.

A full file system may refuse renames and changes, so nothing is renamed, and only the mode of unreadable directories is
changed. Links are not followed. The walk returns through ``..``, and checks that this is the directory it came from.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from cfstools.linux.files import close, syncfs
from cfstools.linux.pinned import chmod, pin
from cfstools.text import shown_path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PRIVATE = 0o700


def clean_up(error: BaseException, remove: Callable[[], object], path: bytes) -> None:
    """Call *remove* after *error*; add a note to *error* if *path* could not be removed."""
    try:
        remove()
    except FileNotFoundError:
        pass
    except OSError as why:
        error.add_note(f"{shown_path(path)} could not be removed ({why.strerror}): delete it")
    except BaseException as other:
        other.add_note(f"{shown_path(path)} was not removed completely: delete it")
        raise


def remove_file(directory: int, name: bytes) -> None:
    """Unlink *name*, truncating it first if a full file system requires that. Raises OSError."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in _FULL or not _truncate(directory, name):
            raise
        os.unlink(name, dir_fd=directory)


def _truncate(directory: int, name: bytes) -> bool:
    """Truncate the file, unless it has other hard links, as an object of a store may have."""
    try:
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False
        os.ftruncate(fd, 0)
        os.fsync(fd)
    except OSError:
        return False
    else:
        return True
    finally:
        close(fd)


def remove_directory(place: int, name: bytes, fd: int) -> None:
    """Remove the directory *name* in *place*, open as *fd*, with its contents. Raises OSError."""
    with suppress(OSError):
        # Its owner may be set already, and must not interfere while it is emptied.
        os.fchown(fd, os.geteuid(), -1)
    empty_directory(fd)
    os.rmdir(name, dir_fd=place)


def empty_directory(fd: int) -> None:
    """Remove everything below the directory *fd* at any depth, without following links, and continue after errors.

    Raises the first OSError if something remains.
    """
    with suppress(OSError):
        os.fchmod(fd, _PRIVATE)
    synced = False
    while True:
        work = _Emptying(fd)
        work.run()
        if work.error is None:
            return
        if not work.removed:
            # A sync may be needed to free the space of deleted files.
            if synced or work.error.errno not in _FULL:
                raise work.error
            syncfs(fd)
        synced = not work.removed


class _Emptying:
    """One walk below *top* that removes what it can; needs two descriptors at any depth."""

    def __init__(self, top: int) -> None:
        self._top = top
        self.error: OSError | None = None
        self.removed = 0

    def run(self) -> None:
        try:
            here = os.open(b".", _DIRECTORY, dir_fd=self._top)
        except OSError as error:
            self.error = error
            return
        # For each directory on the way down: its status, its name, and its subdirectories still to empty.
        trail = [(os.fstat(here), b"", self._remove_files(here))]
        try:
            while True:
                if trail[-1][2]:
                    name = trail[-1][2].pop()
                    below = self._enter(here, name)
                    if below is not None:
                        close(here)
                        here = below
                        trail.append((os.fstat(here), name, self._remove_files(here)))
                    continue
                _, name, _ = trail.pop()
                if not trail:
                    return
                above = self._leave(here, trail[-1][0])
                close(here)
                here = above
                self._try(os.rmdir, name, here)
        except OSError as error:
            self.error = self.error or error
        finally:
            if here >= 0:
                close(here)

    def _remove_files(self, here: int) -> list[bytes]:
        """Remove all files and return the names of the directories."""
        directories = []
        try:
            names = list(map(os.fsencode, os.listdir(here)))
        except OSError as error:
            self.error = self.error or error
            return []
        for name in names:
            try:
                remove_file(here, name)
                self.removed += 1
            except IsADirectoryError:
                directories.append(name)
            except OSError as error:
                self.error = self.error or error
        return directories

    def _enter(self, here: int, name: bytes) -> int | None:
        try:
            return _open_to_empty(here, name)
        except OSError as error:
            self.error = self.error or error
            return None

    def _leave(self, here: int, expected: os.stat_result) -> int:
        above = os.open(b"..", _DIRECTORY, dir_fd=here)
        if not os.path.samestat(os.fstat(above), expected):
            close(above)
            raise OSError(errno.EBUSY, "it was moved while it was emptied")
        return above

    def _try(self, remove: Callable[..., None], name: bytes, here: int) -> None:
        try:
            remove(name, dir_fd=here)
            self.removed += 1
        except OSError as error:
            self.error = self.error or error


def _open_to_empty(place: int, name: bytes) -> int:
    """Open a directory, making it accessible first."""
    found = pin(place, name)
    try:
        with suppress(OSError):
            chmod(found, _PRIVATE)
        return os.open(b".", _DIRECTORY, dir_fd=found)
    finally:
        close(found)
