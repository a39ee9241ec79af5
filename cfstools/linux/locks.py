"""Advisory locks on open files (flock(2)), and who holds them.

Functions raise plain ``OSError``, unless documented otherwise.
"""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from typing import NamedTuple

# Errors of file systems without locks.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF})
_LOCKS_MAX = 1 << 20


class Holder(NamedTuple):
    """A process that holds a lock: its id, and its program name, empty if unknown."""

    pid: int
    program: str


def lock(fd: int, *, exclusive: bool, wait: bool) -> bool:
    """Lock the file *fd* until it is closed; return ``False`` if the file system has no locks.

    Raises ``BlockingIOError`` if another process holds the lock and *wait* is not set.
    """
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(fd, operation if wait else operation | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def unlock(fd: int) -> None:
    """Release the lock on *fd* before it is closed."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def holders(fd: int) -> list[Holder]:
    """The other processes that hold a lock on *fd*, for messages: the kernel does not list all of them.

    Empty if /proc/locks cannot be read.
    """
    try:
        inode = b"%d" % os.fstat(fd).st_ino
        with open("/proc/locks", "rb", buffering=0) as file:
            lines = file.read(_LOCKS_MAX).splitlines()
    except OSError:
        return []
    found: dict[int, Holder] = {}
    for line in lines:
        # NUMBER: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END; an arrow marks waiters. The device is not
        # compared: stat(2) reports another one on btrfs and overlays.
        fields = line.split()
        if len(fields) == 8 and fields[1] == b"FLOCK" and fields[5].rpartition(b":")[2] == inode:
            with suppress(ValueError):
                pid = int(fields[4])
                if pid > 0 and pid != os.getpid():
                    found[pid] = Holder(pid, _program(pid))
    return [found[pid] for pid in sorted(found)]


def _program(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb", buffering=0) as file:
            return os.fsdecode(file.read(64).rstrip(b"\n"))
    except OSError:
        return ""
