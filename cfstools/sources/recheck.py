"""Whether a directory is as it was, where its times do not tell: its names are listed and looked at once more."""

from __future__ import annotations

import os

from cfstools.sources.inodes import RDEV_MASK, NameStatus, SourceRoot, list_names, statuses
from cfstools.tree import Device, Directory, Entry, HardLink, RegularFile, Symlink

_TOGETHER = 1024


class Listing:
    """A directory when it was listed: the names in it, and which subdirectories they led to, as far as numbers tell."""

    __slots__ = ("names", "status", "subdirectories")

    def __init__(self, names: list[bytes], status: os.stat_result) -> None:
        self.names = names
        self.status = status
        self.subdirectories: dict[bytes, tuple[int, int]] = {}

    def check(self, source: SourceRoot, path: bytes, fd: int, directory: Directory) -> None:
        """Compare the directory *fd* and what is in it with *directory*, which was made of it, but for times.

        Raises :class:`SourceChanged` for names that came, went or are something else now, and ``OSError``.
        """
        before, now = self.status, os.fstat(fd)
        said = (before.st_mode, before.st_uid, before.st_gid)
        if said != (now.st_mode, now.st_uid, now.st_gid) or list_names(fd) != self.names:
            raise source.changed(path, "directory changed")
        entries = directory.entries
        # What was left out may change.
        names = [name for name in self.names if name in entries]
        for first in range(0, len(names), _TOGETHER):
            some = names[first : first + _TOGETHER]
            for name, met in zip(some, statuses(fd, some), strict=True):
                if met is None or not _is_same(entries[name], met, self.subdirectories.get(name)):
                    raise source.changed(path + b"/" + name if path else name)


def _is_same(entry: Entry, met: NameStatus, number: tuple[int, int] | None) -> bool:
    inode = entry.inode if isinstance(entry, HardLink) else entry
    if (inode.mode, inode.uid, inode.gid) != (met[0], met[2], met[3]):
        return False
    match inode:
        case Directory():
            return number is None or met[5:7] == number
        case RegularFile():
            return inode.size == met[7]
        case Symlink():
            return inode.target == met[13]
        case Device():
            return inode.rdev == met[4] & RDEV_MASK
        case _:
            return True
