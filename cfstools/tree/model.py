"""Inodes and directory entries of a file system held in memory.

A tree is a :class:`Directory`. Its ``entries`` map a name (bytes, byte order is the only order) to an
:class:`Entry`: either an inode, of which this name is the *primary* name, or a :class:`HardLink` to an inode
whose primary name is elsewhere in the tree. An inode has exactly one primary name; formats that number or
place inodes do it there.

Modes are whole ``st_mode`` values (type and permissions). Times are a pair of signed seconds and unsigned
nanoseconds. Extended attributes map whole names (``b"user.x"``) to values and are replaced, never changed in
place, so that inodes may share one mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

Xattrs = Mapping[bytes, bytes]

NO_XATTRS: Xattrs = MappingProxyType({})


class Stamp(NamedTuple):
    """What identified a file's contents when it was met: if any of it changes, the contents may have."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(slots=True, eq=False)
class Unread:
    """Contents not read yet: *path* relative to the source's root, and the file's stamp when it was met."""

    path: bytes
    stamp: Stamp


@dataclass(slots=True, eq=False)
class External:
    """Contents kept as an object outside the image.

    ``digest`` is the raw fs-verity digest (32 or 64 bytes) or ``None`` when unknown; ``payload`` is the
    object's path below a store (``b"ab/cdef…"``) or ``None``.
    """

    digest: bytes | None
    payload: bytes | None


# Inline contents are plain bytes; an empty file has b"".
Content = bytes | External | Unread


@dataclass(slots=True, eq=False, kw_only=True)
class Inode:
    """What every kind of inode has."""

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_sec: int = 0
    mtime_nsec: int = 0
    xattrs: Xattrs = field(default_factory=lambda: NO_XATTRS)
    nlink: int = 1


@dataclass(slots=True, eq=False, kw_only=True)
class Directory(Inode):
    """A directory. ``nlink`` is not used: writers count it from the subdirectories."""

    entries: dict[bytes, Entry] = field(default_factory=dict)


@dataclass(slots=True, eq=False, kw_only=True)
class RegularFile(Inode):
    """A regular file; inline contents are exactly ``size`` bytes long."""

    size: int
    content: Content


@dataclass(slots=True, eq=False, kw_only=True)
class Symlink(Inode):
    """A symbolic link; ``target`` is 1 to 4095 bytes."""

    target: bytes


@dataclass(slots=True, eq=False, kw_only=True)
class Device(Inode):
    """A character or block device. ``rdev`` is Linux' 32-bit encoding (``st_rdev``).

    ``size`` is 0 but for dump texts, which may carry one that decides the width of the inode on disk.
    """

    rdev: int
    size: int = 0

    @property
    def is_whiteout(self) -> bool:
        """Whether this is a character device 0:0, overlayfs' mark of a removed name."""
        return self.rdev == 0 and self.mode & 0o170000 == 0o020000


@dataclass(slots=True, eq=False, kw_only=True)
class Fifo(Inode):
    """A named pipe (``size`` as for :class:`Device`)."""

    size: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Socket(Inode):
    """A socket (``size`` as for :class:`Device`)."""

    size: int = 0


Leaf = RegularFile | Symlink | Device | Fifo | Socket


@dataclass(slots=True, eq=False)
class HardLink:
    """One more name of an inode that has its primary name elsewhere in the same tree."""

    inode: Leaf


Entry = Directory | RegularFile | Symlink | Device | Fifo | Socket | HardLink

KINDS: tuple[type, ...] = (Directory, RegularFile, Symlink, Device, Fifo, Socket, HardLink, External, Unread)
"""The classes that native functions make and look into, in the order they expect."""
