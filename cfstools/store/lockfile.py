"""The lock file of a store, which only users with write access to the store can open.

Anyone who can open a file, even for reading, can lock it forever. All readers can open the store's directory, so the
lock is a file of its own, with the access rights for writing that the directory has. Users who can write there could
remove all objects anyway. A file of this name that is not a proper lock file is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from cfstools.errors import StoreBusy, StoreError
from cfstools.linux import files, locks
from cfstools.store.base import LOCK_NAME, store_error
from cfstools.store.sharing import mode_for_writers, share_with_writers
from cfstools.text import shown_path

# Never block on a planted FIFO or acquire a controlling terminal.
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_ATTEMPTS = 100  # while other processes keep removing and creating the file


def acquire(directory: int, path: str, *, exclusive: bool, wait: bool) -> int | None:
    """Lock the store in *directory*; *path* is for messages. Closing the returned descriptor releases the lock.

    Returns ``None`` if the file system has no locks, or if a shared lock is wanted and this process has no write access
    to the store. Raises ``StoreError``; ``StoreBusy`` if another process holds the lock and *wait* is not set.
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
                # The file may have been removed while we waited; locking it would then keep nobody out.
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
    raise StoreError("cannot lock the store: other processes keep removing its lock file", subject=path)


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
    """Open the lock file, creating it if missing; ``None`` for readers. Raises ``OSError``, ``StoreError``."""
    for _ in range(_ATTEMPTS):
        try:
            try:
                return _existing(directory, path, os.O_RDWR)
            except FileNotFoundError:
                _make(directory)
        except FileExistsError:
            continue  # another process was faster
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                kind = "a symbolic link" if error.errno == errno.ELOOP else "a directory"
                raise _odd(kind, path) from error
            if error.errno not in _NOT_ALLOWED:
                raise
            if not exclusive:
                return _for_reader(directory, path, error)
            raise
    raise StoreError("cannot lock the store: other processes keep removing its lock file", subject=path)


def _for_reader(directory: int, path: str, error: OSError) -> int | None:
    """Open the lock file without write access, which may be possible on a read-only file system."""
    if os.access(b".", os.W_OK, dir_fd=directory, effective_ids=True):
        raise error  # a process that can add objects must not do so without the lock
    try:
        return _existing(directory, path, os.O_RDONLY)
    except OSError:
        return None


def _existing(directory: int, path: str, access: int) -> int:
    """Open the existing lock file and check that it is one. Raises ``OSError`` and ``StoreError``."""
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
        # Another program's file under this name: its owner may lock it for other reasons.
        raise _odd("not empty or has several names", path)
    user = os.geteuid()
    if found.st_uid not in (0, user, store.st_uid) and not store.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _odd("of a user who may not write to the store", path)
    # Made readable later, for example by `chmod -R a+r`. Only ever remove access rights here.
    right = stat.S_IMODE(found.st_mode) & mode_for_writers(store)
    if right != stat.S_IMODE(found.st_mode) and user in (0, found.st_uid):
        with suppress(OSError):  # of a read-only file system
            os.fchmod(fd, right)


def _odd(what: str, path: str) -> StoreError:
    place = os.path.join(path, os.fsdecode(LOCK_NAME))
    return StoreError(f"the lock of the store is {what}", subject=place, hint="remove it while nothing uses the store")


def _make(directory: int) -> None:
    """Create the lock file, naming it only once it has its owner and mode. Raises ``FileExistsError``."""
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
