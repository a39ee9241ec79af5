"""Temporaries beside an output, locked by their writer, so that what a killed one left is told apart and removed.

A writer that was killed holds no lock any more. Where the file system has no locks nothing is removed.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress

from cfstools.linux.files import close
from cfstools.linux.locks import lock

_TEMPORARY = re.compile(rb"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)
_KEPT = 200  # of the output's name, so that the temporary's is not too long
# A file is opened for writing, without which a network file system may not lock it.
_OPEN = {stat.S_IFREG: os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY, stat.S_IFDIR: os.O_RDONLY | os.O_DIRECTORY}

Make = Callable[[bytes], int]
"""Makes the temporary of this name and returns its descriptor."""

Remove = Callable[[bytes, int], object]
"""Takes the temporary of this name, which the descriptor leads to, away."""


def temporary_name(name: bytes) -> bytes:
    """A name for a temporary of the output *name* that nothing has."""
    return b".%s.%s.tmp" % (name[:_KEPT], os.urandom(8).hex().encode())


def is_temporary(name: bytes) -> bool:
    """Whether *name* is one that :func:`temporary_name` makes: its output is being written, or never was finished."""
    return _TEMPORARY.fullmatch(name) is not None


def hold(fd: int) -> None:
    """Show that the temporary open as *fd* has a living writer, until *fd* is closed."""
    lock(fd, exclusive=True, wait=True)  # whoever checks whether it is stale holds it for a moment only


def make_held(directory: int, name: bytes, make: Make, remove: Remove) -> tuple[bytes, int]:
    """Let *make* make a temporary of the output *name* in *directory*; returns its name and descriptor, locked.

    After an error *remove* takes it away.
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
        # Somebody who cleaned up locked it before we did, and took it for a killed writer's.
        close(fd)


def remove_stale(directory: int, name: bytes, kind: int, remove: Remove) -> None:
    """Let *remove* take away what killed writers of the output *name* left in *directory*; what resists stays.

    Only what is of the *kind* (``S_IFREG`` or ``S_IFDIR``), is ours, and has no living writer. A directory in which
    nobody but us makes names is ours whoever owns it: the writer may have given it away already. No link is followed.
    """
    pattern = re.compile(rb"\.%b\.[0-9a-f]{16}\.tmp" % re.escape(name[:_KEPT]))
    with suppress(OSError):
        for found in filter(pattern.fullmatch, map(os.fsencode, os.listdir(directory))):
            with suppress(OSError):
                _remove_if_stale(directory, found, kind, remove)


def _remove_if_stale(directory: int, name: bytes, kind: int, remove: Remove) -> None:
    # Nothing is opened that might do something when it is opened.
    status = os.lstat(name, dir_fd=directory)
    if stat.S_IFMT(status.st_mode) != kind:
        return
    if status.st_uid != os.geteuid() and not (kind == stat.S_IFDIR and _is_private(directory)):
        return
    fd = os.open(name, _OPEN[kind] | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not lock(fd, exclusive=True, wait=False):
            return
        # Its writer may have given it its final name, and exited, since the lookup; the name may be another's now.
        if os.path.samestat(status, os.fstat(fd)) and leads_to(directory, name, fd):
            remove(name, fd)
    finally:
        close(fd)


def _is_private(directory: int) -> bool:
    """Whether all names in *directory* were made by us. An ACL that lets others write shows in the group's bits."""
    status = os.fstat(directory)
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def leads_to(directory: int, name: bytes, fd: int) -> bool:
    """Whether *name* in *directory* is what *fd* has open."""
    try:
        return os.path.samestat(os.lstat(name, dir_fd=directory), os.fstat(fd))
    except FileNotFoundError:
        return False
