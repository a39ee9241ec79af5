"""Resolve paths so that other users of the machine cannot redirect them.

A path is walked component by component, the kernel follows no links, and each component is examined after it was
opened: what was examined is what is used. Functions raise plain ``OSError``, and :class:`UntrustedPath` for a component
that another user could have put there.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import NamedTuple

from cfstools.linux import files
from cfstools.linux.files import close
from cfstools.text import shown_path

MAX_HOPS = 40

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_PRIVATE = 0o700
_PROC = 0x9FA0  # linux/magic.h
_ALL_IDS = [b"0", b"0", b"4294967295"]


class UntrustedPath(OSError):
    """Another user decides where a path leads, or can change it: *path* is the component, *why* the reason."""

    hint = "name the place itself, or make what is there anew as the user who runs this"

    def __init__(self, path: bytes, why: str) -> None:
        super().__init__(errno.EACCES, why)
        self.path = path
        self.why = why

    def about(self, path: bytes) -> str:
        """The message for *path*, of which the untrusted component is a part."""
        if self.path == path:
            return self.why
        return f"{'the current directory' if self.path == b'.' else shown_path(self.path)} {self.why}"


class ResolvedPath(NamedTuple):
    """A path whose links were followed: *name* in *directory*, an ``O_PATH`` descriptor that the holder closes.

    *status* is that of the file with this name, ``None`` if there is none. *path* is the resolved path as text.
    """

    directory: int
    name: bytes
    status: os.stat_result | None
    path: bytes


def untrusted_because(status: os.stat_result) -> str | None:
    """Why other users can rename and replace names in a directory with this *status*; ``None`` if they cannot.

    In a sticky directory users can only replace their own files. An ACL that lets others write shows in the group bits.
    For anything but a directory, only the owner counts.
    """
    if _is_other(status.st_uid):
        return f"belongs to user {status.st_uid}"
    if not stat.S_ISDIR(status.st_mode) or status.st_mode & stat.S_ISVTX or not status.st_mode & _OTHERS_WRITE:
        return None
    return "can be written by other users"


def open_directory(path: bytes, *, private: bool = False, make: int | None = None) -> int:
    """Open the directory *path*; with *private* no other user may be able to change its names or any above it.

    Links of other users are not followed where that could do harm: never by root, and by others not in sticky
    directories that everyone can write to. With *make*, missing directories of *path* are made with this mode, minus
    the umask, but none that only a link names.
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
    """Whether *path* is a directory and no other user can change its names or any above it."""
    try:
        close(open_directory(path, private=True))
    except OSError:
        return False
    return True


def resolve(path: bytes, *, private: bool = False) -> ResolvedPath:
    """Resolve *path*, following links as :func:`open_directory` does, also one at the end.

    A file without a name of its own, such as a pipe behind /dev/stdout, is described by its own status.
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
                    walk.judge(name, found, "a fifo")  # opening it may block forever
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
    """A walk along *path*: *here* is the directory reached so far, *pending* the components left, the next one last."""

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

    def ended(self, name: bytes, status: os.stat_result | None) -> ResolvedPath:
        """Hand the directory reached to the caller, with *name* as the last component."""
        fd, self.here = self.here, -1
        return ResolvedPath(fd, name, status, self._beside(name))

    def close(self) -> None:
        if self.here >= 0:
            close(self.here)

    def examine(self) -> None:
        """Raise UntrustedPath if the directory reached must be private and is not."""
        if self._private:
            why = untrusted_because(os.fstat(self.here))
            if why is not None:
                raise UntrustedPath(self._shown, why)

    def look(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.here, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def step(self) -> None:
        """Enter the next directory, or follow a link."""
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
                # It leads to an open directory, whatever its text says.
                fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.here)
            else:
                self.follow(name, status)
                return
        self._move(fd, self._beside(name))

    def _open(self, name: bytes, *, make: int | None) -> int:
        # O_DIRECTORY: only then does autofs mount the file system that belongs there.
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
        """Continue with the target of the link *name* with this *status*."""
        self._hops += 1
        if self._hops > MAX_HOPS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        fd = os.open(name, _PATH, dir_fd=self.here)
        try:
            if not os.path.samestat(os.fstat(fd), status):
                raise UntrustedPath(self._beside(name), "was replaced meanwhile")
            self.judge(name, status, "a symbolic link")
            target = os.readlink(b"", dir_fd=fd)
        finally:
            close(fd)
        self._enter(target)

    def judge(self, name: bytes, status: os.stat_result, what: str) -> None:
        """Raise UntrustedPath if another user may have planted *name*, which is *what* and has this *status*."""
        around = os.fstat(self.here)
        if os.geteuid() == 0:
            why = untrusted_because(status)
            if why is None and untrusted_because(around) is not None:
                why = f"is in a directory that {untrusted_because(around)}"
        else:
            shared = around.st_mode & stat.S_ISVTX and around.st_mode & stat.S_IWOTH
            ours = status.st_uid in (os.geteuid(), around.st_uid)
            why = f"belongs to user {status.st_uid}" if shared and not ours else None
        if why is not None:
            raise UntrustedPath(self._beside(name), f"is {what} that {why}")

    def _beside(self, name: bytes) -> bytes:
        return name if self._shown == b"." else self._shown.rstrip(b"/") + b"/" + name


def make_directory(dirfd: int, name: bytes) -> int:
    """Make the directory *name* with mode 0700 and open it.

    Checks that the directory opened is the one made: empty, on the same file system, and owned as new files are there.
    Raises UntrustedPath if it is another one, and ``FileNotFoundError`` if it is gone.
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
        raise UntrustedPath(name, "was replaced by another directory")


def _owner_of_new(dirfd: int) -> int:
    """The owner of a new file there: not every file system makes it the user who created it."""
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
    """Whether *uid* stands for all users outside of our user namespace, among them the machine's root."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            unmapped = int(file.read())
        with open("/proc/self/uid_map", "rb") as file:
            return uid == unmapped and file.read().split() != _ALL_IDS
    except (OSError, ValueError):
        return False
