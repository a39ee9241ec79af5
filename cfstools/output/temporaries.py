"""Temporaries beside an output, locked by their writer, so that stale ones can be recognised and removed.

A killed writer holds no lock any more. On a file system without locks nothing is removed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

from cfstools.linux.files import close
from cfstools.linux.locks import lock

_TEMPORARY = rb"(?s:\..+\.[0-9a-f]{16}\.tmp)"
_KEPT = 200  # bytes of the output's name, so that the temporary's name is not too long
# A file must be opened for writing: a network file system may require that for a lock.
_OPEN = {stat.S_IFREG: os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY, stat.S_IFDIR: os.O_RDONLY | os.O_DIRECTORY}

Make = Callable[[bytes], int]
"""Creates the temporary with this name and returns its descriptor."""

Remove = Callable[[bytes, int], object]
"""Removes the temporary with this name, open as this descriptor."""


def temporary_name(name: bytes) -> bytes:
    """A new random name for a temporary of the output *name*."""
    return b".%s.%s.tmp" % (name[:_KEPT], os.urandom(8).hex().encode())


def is_temporary(name: bytes) -> bool:
    """Whether *name* was made by :func:`temporary_name`: the output is being written or was never finished."""
    return re.fullmatch(_TEMPORARY, name) is not None


def hold(fd: int) -> None:
    """Lock the temporary *fd*, which shows until it is closed that its writer is alive."""
    lock(fd, exclusive=True, wait=True)  # a process that checks for stale temporaries holds the lock only briefly


def make_held(directory: int, name: bytes, make: Make, remove: Remove) -> tuple[bytes, int]:
    """Create a locked temporary of the output *name* in *directory* with *make*; return its name and descriptor.

    After an error it is removed with *remove*.
    """
    while True:
        temporary = temporary_name(name)
        fd = make(temporary)
        try:
            hold(fd)
            if leads_to(directory, temporary, fd):
                return temporary, fd
        except BaseException:
            with suppress(OSError):
                remove(temporary, fd)
            close(fd)
            raise
        # Another process locked it before we did, and removed it as stale; retry.
        close(fd)


def remove_stale(directory: int, name: bytes, kind: int, remove: Remove) -> None:
    """Remove with *remove* the stale temporaries of the output *name* in *directory*, ignoring errors.

    A stale temporary has this *kind* (``S_IFREG`` or ``S_IFDIR``), belongs to this user, and is not locked. The owner
    of a directory does not matter if only this user can create files in *directory*: its writer may have changed the
    owner already. Links are not followed.
    """
    pattern = re.compile(rb"\.%b\.[0-9a-f]{16}\.tmp" % re.escape(name[:_KEPT]))
    with suppress(OSError):
        for found in filter(pattern.fullmatch, map(os.fsencode, os.listdir(directory))):
            with suppress(OSError):
                _remove_if_stale(directory, found, kind, remove)


def _remove_if_stale(directory: int, name: bytes, kind: int, remove: Remove) -> None:
    # Check before opening: opening a device or FIFO has side effects.
    status = os.lstat(name, dir_fd=directory)
    if stat.S_IFMT(status.st_mode) != kind:
        return
    if status.st_uid != os.geteuid() and not (kind == stat.S_IFDIR and _is_private(directory)):
        return
    fd = os.open(name, _OPEN[kind] | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not lock(fd, exclusive=True, wait=False):
            return
        # Since the lookup its writer may have renamed it and exited; the name may now be another file's.
        if os.path.samestat(status, os.fstat(fd)) and leads_to(directory, name, fd):
            remove(name, fd)
    finally:
        close(fd)


def _is_private(directory: int) -> bool:
    """Whether only this user can create files in *directory*. ACLs show in the group bits."""
    status = os.fstat(directory)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def leads_to(directory: int, name: bytes, fd: int) -> bool:
    """Whether *name* in *directory* is the file that *fd* has open."""
    try:
        return os.path.samestat(os.lstat(name, dir_fd=directory), os.fstat(fd))
    except FileNotFoundError:
        return False
