"""Making a mounted tree the root directory of this process, with what programs expect to find in one."""

from __future__ import annotations

import os
from contextlib import ExitStack

from cfstools.errors import InputError
from cfstools.linux import mount as linux
from cfstools.linux.files import close

_TREES = (b"/dev", b"/proc", b"/sys")
_FILES = (b"/etc/resolv.conf",)


class RootPlaces:
    """Copies of /dev, /proc, /sys and /etc/resolv.conf of this root directory, for another one."""

    def __init__(self, stack: ExitStack) -> None:
        self._copies: list[tuple[bytes, int, int]] = []
        for path in (*_TREES, *_FILES):
            flags = os.O_DIRECTORY if path in _TREES else 0
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
            except OSError:  # not here either
                continue
            try:
                copy = linux.clone_mount(fd)
            except OSError:  # what may not be seen elsewhere
                continue
            finally:
                close(fd)
            stack.callback(close, copy)
            self._copies.append((path, copy, flags))

    def bind(self) -> None:
        """Mount the copies where this root directory has such places; links there lead to places in it."""
        for path, copy, flags in self._copies:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
            except OSError:
                continue
            try:
                linux.move_mount(copy, fd)
            except OSError as error:
                raise InputError(f"cannot mount {os.fsdecode(path)} there: {error.strerror}") from error
            finally:
                close(fd)


def enter_top() -> None:
    """Make what was mounted on the root directory last the root directory, and the working directory.

    The way out is shut: nothing is above it, and namespaces can be made in it, which a process in an ordinary
    chroot may not.
    """
    # Only from ".." on does the kernel look at what is mounted on the root directory.
    os.chdir(b"/..")
    os.chroot(b".")
