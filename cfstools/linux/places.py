"""Directories that are where a path says, although others share the machine.

A path is walked component by component, nothing is followed by the kernel, and each step is looked at after it is
open: so what was looked at is what is used. Functions raise plain ``OSError``, and :class:`Doubt` for a step that
somebody else could have put there.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from cfstools.errors import shown_path
from cfstools.linux import files
from cfstools.linux.files import close

MAX_HOPS = 40

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PRIVATE = 0o700
_PROC = 0x9FA0  # linux/magic.h
_ALL_IDS = [b"0", b"0", b"4294967295"]


class Doubt(OSError):
    """Others decide where a path leads, or can change it: *path* is the step, *why* what is wrong with it."""

    hint = "name the place itself, or make what is there anew as the user who runs this"

    def __init__(self, path: bytes, why: str) -> None:
        super().__init__(errno.EACCES, why)
        self.path = path
        self.why = why

    def about(self, path: bytes) -> str:
        """What is wrong with *path*, the whole of which a step is doubtful."""
        if self.path == path:
            return self.why
        return f"{'the current directory' if self.path == b'.' else shown_path(self.path)} {self.why}"


class Place(NamedTuple):
    """Where a name is: in *directory*, an ``O_PATH`` descriptor that the holder closes, as *name*.

    *status* is that of what has the name, ``None`` if nothing has. *path* leads to the name, links on the way followed.
    """

    directory: int
    name: bytes
    status: os.stat_result | None
    path: bytes


def doubt_about(status: os.stat_result) -> str | None:
    """What lets others rename and replace names in a directory with this *status*; ``None`` if nothing does.

    In a sticky directory they can do that only to what is theirs. An ACL that lets others write shows in the group's
    bits. For what is no directory: whether its owner is one of them.
    """
    if _is_other(status.st_uid):
        return f"belongs to user {status.st_uid}"
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_ISVTX or not status.st_mode & _OTHERS_WRITE:
        return None
    return "can be written by other users"


def open_directory(path: bytes, *, private: bool = False, make: int | None = None) -> int:
    """Open the directory *path*; with *private* nobody else may be able to change the way to it or its names.

    Links that others made are not followed where that could harm: by root never, by anyone else not from sticky
    directories that all may write. With *make*, directories of *path* that are missing are made with this mode, minus
    the umask; none that only a link names.
    """
    walk = _Walk(path, private=private, make=make)
    try:
        while walk.pending:
            walk.step()
        walk.examine()
        return os.open(b".", _DIRECTORY, dir_fd=walk.here)
    finally:
        walk.close()


def is_private(path: bytes) -> bool:
    """Whether *path* leads to a directory, and nobody else can change the way to it or its names."""
    try:
        close(open_directory(path, private=True))
    except OSError:
        return False
    return True


def find(path: bytes, *, private: bool = False) -> Place:
    """Where the name at the end of *path* is, with links followed as by :func:`open_directory`, that at the end too.

    What has no name of its own, as a pipe behind /dev/stdout, has the *status* of what it is.
    """
    walk = _Walk(path, private=private)
    try:
        while True:
            while len(walk.pending) > 1:
                walk.step()
            walk.examine()
            name = walk.pending[0] if walk.pending else b"."
            found = walk.look(name)
            if found is None or not stat.S_ISLNK(found.st_mode):
                if found is not None and stat.S_ISFIFO(found.st_mode):
                    walk.judge(name, found, "a fifo")  # opening it may wait for ever
                return walk.ended(name, found)
            if files.filesystem_type(walk.here) == _PROC:
                real = os.stat(name, dir_fd=walk.here)
                if not stat.S_ISREG(real.st_mode):
                    return walk.ended(name, real)
            walk.pending.clear()
            walk.follow(name, found)
    finally:
        walk.close()


class _Walk:
    """A walk along *path*: *here* is the directory reached so far, *pending* what is left, the next one last."""

    def __init__(self, path: bytes, *, private: bool, make: int | None = None) -> None:
        if b"\0" in path:
            raise ValueError("embedded null byte")
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        self._private = private
        self._make = make
        self._hops = 0
        self.pending: list[bytes] = []
        self.here = -1
        self._shown = b""
        self._enter(path)
        self._own = len(self.pending)  # how many of the pending ones are those of the path, not of a link

    def _enter(self, path: bytes) -> None:
        if path.startswith(b"/") or self.here < 0:
            start = b"/" if path.startswith(b"/") else b"."
            self._move(os.open(start, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), start)
        self.pending += [part for part in path.split(b"/") if part not in (b"", b".")][::-1]

    def _move(self, fd: int, shown: bytes) -> None:
        if self.here >= 0:
            close(self.here)
        self.here, self._shown = fd, shown

    def ended(self, name: bytes, status: os.stat_result | None) -> Place:
        """Leave the directory reached to the caller, with *name* as what was looked for."""
        fd, self.here = self.here, -1
        return Place(fd, name, status, self._beside(name))

    def close(self) -> None:
        if self.here >= 0:
            close(self.here)

    def examine(self) -> None:
        """Raise Doubt if the directory reached must be private and is not."""
        if self._private:
            why = doubt_about(os.fstat(self.here))
            if why is not None:
                raise Doubt(self._shown, why)

    def look(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.here, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def step(self) -> None:
        """Go into the next directory, or see where a link leads."""
        self.examine()
        name = self.pending.pop()
        is_own = len(self.pending) < self._own
        self._own = min(self._own, len(self.pending))
        try:
            fd = self._open(name, make=self._make if is_own else None)
        except NotADirectoryError:
            status = os.stat(name, dir_fd=self.here, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                raise
            if files.filesystem_type(self.here) == _PROC:
                # It leads to an open directory, which its text need not name.
                fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.here)
            else:
                self.follow(name, status)
                return
        self._move(fd, self._beside(name))

    def _open(self, name: bytes, *, make: int | None) -> int:
        # As a directory: only so is a file system that waits there (autofs) mounted.
        flags = _PATH | os.O_DIRECTORY
        try:
            return os.open(name, flags, dir_fd=self.here)
        except FileNotFoundError:
            if make is None:
                raise
        with suppress(FileExistsError):
            os.mkdir(name, make, dir_fd=self.here)
        return os.open(name, flags, dir_fd=self.here)

    def follow(self, name: bytes, status: os.stat_result) -> None:
        """Go where the text of the link *name* with this *status* leads."""
        self._hops += 1
        if self._hops > MAX_HOPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        fd = os.open(name, _PATH, dir_fd=self.here)
        try:
            if not os.path.samestat(os.fstat(fd), status):
                raise Doubt(self._beside(name), "was replaced meanwhile")
            self.judge(name, status, "a symbolic link")
            target = os.readlink(b"", dir_fd=fd)
        finally:
            close(fd)
        self._enter(target)

    def judge(self, name: bytes, status: os.stat_result, what: str) -> None:
        """Raise Doubt if *name* with this *status*, which is *what*, may have been put there to deceive us."""
        around = os.fstat(self.here)
        if os.geteuid() == 0:
            why = doubt_about(status)
            if why is None and doubt_about(around) is not None:
                why = f"is in a directory that {doubt_about(around)}"
        else:
            shared = around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH
            ours = status.st_uid in (os.geteuid(), around.st_uid)
            why = f"belongs to user {status.st_uid}" if shared and not ours else None
        if why is not None:
            raise Doubt(self._beside(name), f"is {what} that {why}")

    def _beside(self, name: bytes) -> bytes:
        return name if self._shown == b"." else self._shown.rstrip(b"/") + b"/" + name


def make_directory(dirfd: int, name: bytes) -> int:
    """Make the directory *name*, which nobody else may enter, and open it.

    What was opened is what was made: empty, closed, and of the owner that new files have there. Raises Doubt if it is
    not, and ``FileNotFoundError`` if it is gone.
    """
    os.mkdir(name, _PRIVATE, dir_fd=dirfd)
    fd = -1
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=dirfd)
        _examine_new(dirfd, name, fd)
    except FileNotFoundError:
        raise
    except BaseException:
        if fd >= 0:
            close(fd)
        with suppress(OSError):
            os.rmdir(name, dir_fd=dirfd)
        raise
    return fd


def _examine_new(dirfd: int, name: bytes, fd: int) -> None:
    status, around = os.fstat(fd), os.fstat(dirfd)
    with os.scandir(fd) as entries:
        empty = next(entries, None) is None
    ours = status.st_uid == os.geteuid() or status.st_uid == _owner_of_new(dirfd)
    if not (empty and ours and status.st_dev == around.st_dev):
        raise Doubt(name, "was replaced by another directory")


def _owner_of_new(dirfd: int) -> int:
    """The owner of a new file there, which not every file system lets be the one who made it."""
    name = b".%b.tmp" % os.urandom(16).hex().encode()
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dirfd)
    try:
        return os.fstat(fd).st_uid
    finally:
        close(fd)
        os.unlink(name, dir_fd=dirfd)


def _is_other(uid: int) -> bool:
    return uid not in (0, os.geteuid()) and not _is_unmapped(uid)


def _is_unmapped(uid: int) -> bool:
    """Whether this stands for every user outside of our user namespace, among them the machine's root."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            unmapped = int(file.read())
        with open("/proc/self/uid_map", "rb") as file:
            return uid == unmapped and file.read().split() != _ALL_IDS
    except (OSError, ValueError):
        return False
