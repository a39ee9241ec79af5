"""Removing an unfinished output, even where the disk is full, and reporting what could not be removed.

Nothing is moved and, but for what it takes to open a closed directory, nothing is changed on the way: a full file
system may refuse both. Links are not followed; directories are left the way they were entered, and that is checked.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from cfstools.errors import shown_path
from cfstools.linux.files import close, syncfs
from cfstools.linux.pinned import chmod, pin

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PRIVATE = 0o700


def clean_up(error: BaseException, remove: Callable[[], object], path: bytes) -> None:
    """Call *remove* because of *error*, to which a note is added if *path* stays."""
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
    """Unlink *name*, also where a full disk refuses to do so before the contents are gone. Raises OSError."""
    try:
        os.unlink(name, dir_fd=directory)
    except OSError as error:
        if error.errno not in _FULL or not _truncate(directory, name):
            raise
        os.unlink(name, dir_fd=directory)


def _truncate(directory: int, name: bytes) -> bool:
    """Cut the file to nothing unless it has other names, as an object that was linked has."""
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
    """Remove the directory *name* of *place*, which *fd* has open, with all that is in it. Raises OSError."""
    with suppress(OSError):
        # It may have the tree's owner already, who must not come in while it is emptied.
        os.fchown(fd, os.geteuid(), -1)
    empty_directory(fd)
    os.rmdir(name, dir_fd=place)


def empty_directory(fd: int) -> None:
    """Remove all that is below the directory *fd*, however deep, without following links; goes on past errors.

    Raises the first OSError if something stays.
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
            # What was deleted may become free only by this.
            if synced or work.error.errno not in _FULL:
                raise work.error
            syncfs(fd)
        synced = not work.removed


class _Emptying:
    """One walk through what is below *top*, removing what it can; needs two descriptors at any depth."""

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
        # Of each directory on the way down: what it is, its name, and the directories in it that are still to do.
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
        """Remove all but the directories, whose names are returned."""
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
    """Open a directory, which may have lost the permissions to be emptied."""
    found = pin(place, name)
    try:
        with suppress(OSError):
            chmod(found, _PRIVATE)
        return os.open(b".", _DIRECTORY, dir_fd=found)
    finally:
        close(found)
