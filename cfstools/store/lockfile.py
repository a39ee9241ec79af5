"""The file in a store that is locked: only who may write to the store can open it.

A lock can be taken, and kept for ever, by whoever can open a file, if only for reading. So it is not the store's
directory that is locked, which everybody may open who reads objects, but a file of its own: those may open it who may
write to the directory, and nobody else. Whoever can write there can also remove all objects, so nothing is lost to
them. What else has the file's name is not used, whoever put it there.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from cfstools.errors import StoreBusy, StoreError, shown_path
from cfstools.linux import files, locks
from cfstools.store.base import LOCK_NAME, store_error
from cfstools.store.sharing import mode_for_writers, share_with_writers

# A fifo that was planted must not hold us up, nor a terminal become ours.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_ATTEMPTS = 100  # to meet a file that others remove and make again


def acquire(directory: int, path: str, *, exclusive: bool, wait: bool) -> int | None:
    """Lock the store *directory*, whose path is *path*; a descriptor that holds the lock until it is closed.

    ``None`` where there is no lock to be had: the file system has none, or the lock is to be shared and this process
    may not write to the store. Raises ``StoreError``; ``StoreBusy`` if others have the lock and *wait* is not set.
    """
    try:
        for _ in range(_ATTEMPTS):
            fd = _open(directory, path, exclusive=exclusive)
            if fd is None:
                return None
            keep = False
            try:
                if not locks.lock(fd, exclusive=exclusive, wait=wait):
                    return None
                # While we waited the file may have been removed; a lock on it would keep nobody out.
                keep = _is_there(directory, fd)
            except BlockingIOError as error:
                raise StoreBusy(
                    "the store is in use by another process", subject=path, hint=_held_by(fd) or None
                ) from error
            finally:
                if not keep:
                    files.close(fd)
            if keep:
                return fd
    except OSError as error:
        hint = None
        if error.errno in _NOT_ALLOWED - {errno.EROFS}:
            hint = f"who may write to the store must be able to read and write {os.fsdecode(LOCK_NAME)} in it"
        raise store_error(error, "cannot lock the store", path, hint=hint) from error
    raise StoreError("cannot lock the store: its lock file is removed again and again", subject=path)


def _held_by(fd: int) -> str:
    held = [
        f"{holder.pid} ({shown_path(holder.program)})" if holder.program else str(holder.pid)
        for holder in locks.holders(fd)
    ]
    return f"its lock is held by process {', '.join(held)}" if held else ""


def _is_there(directory: int, fd: int) -> bool:
    try:
        named = os.stat(LOCK_NAME, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def _open(directory: int, path: str, *, exclusive: bool) -> int | None:
    """The lock file, made if it is missing; ``None`` for those who only read. Raises ``OSError``, ``StoreError``."""
    for _ in range(_ATTEMPTS):
        try:
            try:
                return _existing(directory, path, os.O_RDWR)
            except FileNotFoundError:
                _make(directory)
        except FileExistsError:
            continue  # somebody else was faster
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                kind = "a symbolic link" if error.errno == errno.ELOOP else "a directory"
                raise _odd(kind, path) from error
            if error.errno not in _NOT_ALLOWED:
                raise
            if not exclusive:
                return _for_reader(directory, path, error)
            raise
    raise StoreError("cannot lock the store: its lock file is removed again and again", subject=path)


def _for_reader(directory: int, path: str, error: OSError) -> int | None:
    """The lock file for those who cannot write: on a read-only file system it may be open to them all the same."""
    if os.access(b".", os.W_OK, dir_fd=directory, effective_ids=True):
        raise error  # who can add objects must not do so without the lock
    try:
        return _existing(directory, path, os.O_RDONLY)
    except OSError:
        return None


def _existing(directory: int, path: str, access: int) -> int:
    """Open the lock file that is there, once it is seen to be one. Raises ``OSError`` and ``StoreError``."""
    fd = os.open(LOCK_NAME, access | _FLAGS, dir_fd=directory)
    try:
        _check(os.fstat(directory), fd, path)
    except BaseException:
        files.close(fd)
        raise
    return fd


def _check(store: os.stat_result, fd: int, path: str) -> None:
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise _odd("no regular file", path)
    if found.st_nlink == 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    if found.st_nlink > 1 or found.st_size:
        # Somebody else's file under this name: others may lock it for reasons of their own.
        raise _odd("not empty or has several names", path)
    user = os.geteuid()
    if found.st_uid not in (0, user, store.st_uid) and not store.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _odd("of a user who may not write to the store", path)
    # Somebody made it readable, as `chmod -R a+r` does. Rights are only ever taken away.
    right = stat.S_IMODE(found.st_mode) & mode_for_writers(store)
    if right != stat.S_IMODE(found.st_mode) and user in (0, found.st_uid):
        with suppress(OSError):  # of a read-only file system
            os.fchmod(fd, right)


def _odd(what: str, path: str) -> StoreError:
    place = os.path.join(path, os.fsdecode(LOCK_NAME))
    return StoreError(f"the lock of the store is {what}", subject=place, hint="remove it while nothing uses the store")


def _make(directory: int) -> None:
    """Make the lock file; it has its name only once it has its owner and mode. ``FileExistsError`` if there is one."""
    fd = files.open_tmpfile(directory, 0o600)
    named = fd is None
    if fd is None:
        fd = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o600, dir_fd=directory)
    try:
        share_with_writers(directory, fd)
        if not named:
            files.link_tmpfile(fd, directory, LOCK_NAME)
    finally:
        files.close(fd)
