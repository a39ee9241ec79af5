"""Files of a directory that was walked, opened for reading only if they did not change since."""

from __future__ import annotations

import os
import stat

from cfstools.lifetime import Closable
from cfstools.linux.files import close, open_below
from cfstools.linux.numbers import Numbers, makes_numbers_up, makes_times_up, numbers_of
from cfstools.sources.inodes import SourceRoot, is_there, stamp_of
from cfstools.tree import Directory, Stamp, Unread

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class DirectorySource(Closable):
    """A directory that was walked: its tree as ``root``, and the contents of the files in it.

    Holds the directory open as ``root_fd`` until :meth:`close`; use it as a context manager.
    """

    def __init__(self, path: bytes, fd: int, root: Directory, *, use_epoch: bool = False) -> None:
        self.root = root
        self.root_fd = fd
        self._source = SourceRoot(path)
        self._use_epoch = use_epoch
        # Devices on which times are made up.
        self._timeless: set[int] = set()

    def open(self, unread: Unread) -> int:
        """Open the file for reading and return its descriptor; the caller closes it.

        Raises :class:`SourceChanged` if the path no longer leads, without links, to the very file that was
        walked, or if that has changed since; :class:`InputError` if it cannot be opened.
        """
        path = unread.path
        try:
            fd = open_below(self.root_fd, path, _FILE)
        except OSError as error:
            if is_there(self.root_fd, path, unread.stamp[:2]):
                raise self._source.refused(error, "cannot open", path) from error
            raise self._source.failed(error, "cannot open", path) from error
        try:
            self.check(unread, fd)
        except BaseException:
            close(fd)
            raise
        return fd

    def name(self, unread: Unread) -> str:
        """The path of the file with that of the directory before it."""
        return self._source.name(unread.path)

    def check(self, unread: Unread, fd: int) -> None:
        """Raise :class:`SourceChanged` if the file open as *fd* is not as it was walked.

        To be called again after the contents were read, to be sure that they are those of one moment. Where times do
        not matter (:meth:`times_matter`) they may differ, and the contents are to be read twice instead.
        """
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise self._source.failed(error, "cannot look up", unread.path) from error
        now = stamp_of(status)
        if now == unread.stamp and stat.S_ISREG(status.st_mode):
            return
        if not stat.S_ISREG(status.st_mode) or not self._is_same(unread.stamp, now, fd):
            raise self._source.changed(unread.path)

    def _is_same(self, met: Stamp, now: Stamp, fd: int) -> bool:
        """Whether *now* differs from what was *met* only in what does not tell of the file *fd*."""
        try:
            if (met.device, met.size) != (now.device, now.size):
                return False
            if met.inode != now.inode and not makes_numbers_up(fd):
                return False
        except OSError:
            return False
        return met[3:] == now[3:] or not self.times_matter(fd)

    def times_matter(self, fd: int) -> bool:
        """Whether the file *fd* has changed if its times have.

        Always, but on file systems whose times are not the kernel's own: there not if they are others at each look,
        nor with ``use_epoch``.
        """
        try:
            if numbers_of(fd) is not Numbers.INVENTED:
                return True
            device = os.fstat(fd).st_dev
            if not self._use_epoch and device not in self._timeless and makes_times_up(fd):
                self._timeless.add(device)
        except OSError:
            return True
        return not self._use_epoch and device not in self._timeless

    def close(self) -> None:
        """Close the directory. Closing twice is allowed."""
        if self.root_fd >= 0:
            close(self.root_fd)
            self.root_fd = -1
