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
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

Xattrs = Mapping[bytes, bytes]

NO_XATTRS: Xattrs = MappingProxyType({})


if TYPE_CHECKING:
    from typing import Required, TypedDict, Unpack

    class _Common(TypedDict, total=False):
        """What is given to make any inode."""

        mode: Required[int]
        uid: int
        gid: int
        mtime_sec: int
        mtime_nsec: int
        xattrs: Xattrs
        nlink: int


class Stamp(NamedTuple):
    """What identified a file's contents when it was met: if any of it changes, the contents may have."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


class _Slotted:
    """Base of what a tree is made of: attributes in slots, equal to nothing but itself, shown with all of them.

    These are written out, and no dataclasses, because every command imports them: compiling their methods for each of
    the classes takes a twentieth of the time of a small command.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in slots_of(type(self)))
        return f"{type(self).__name__}({fields})"


def slots_of(kind: type) -> list[str]:
    """The attributes of a class of this module, those of its base first."""
    return [name for base in reversed(kind.__mro__) for name in getattr(base, "__slots__", ())]


class Unread(_Slotted):
    """Contents not read yet: *path* relative to the source's root, and the file's stamp when it was met."""

    __slots__ = ("path", "stamp")

    def __init__(self, path: bytes, stamp: Stamp) -> None:
        self.path = path
        self.stamp = stamp


class External(_Slotted):
    """Contents kept as an object outside the image.

    ``digest`` is the raw fs-verity digest (32 or 64 bytes) or ``None`` when unknown; ``payload`` is the
    object's path below a store (``b"ab/cdef…"``) or ``None``.
    """

    __slots__ = ("digest", "payload")

    def __init__(self, digest: bytes | None, payload: bytes | None) -> None:
        self.digest = digest
        self.payload = payload


# Inline contents are plain bytes; an empty file has b"".
Content = bytes | External | Unread


class Inode(_Slotted):
    """What every kind of inode has."""

    __slots__ = ("mode", "uid", "gid", "mtime_sec", "mtime_nsec", "xattrs", "nlink")  # noqa: RUF023 - in their order

    def __init__(
        self,
        *,
        mode: int,
        uid: int = 0,
        gid: int = 0,
        mtime_sec: int = 0,
        mtime_nsec: int = 0,
        xattrs: Xattrs = NO_XATTRS,
        nlink: int = 1,
    ) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_sec = mtime_sec
        self.mtime_nsec = mtime_nsec
        self.xattrs = xattrs
        self.nlink = nlink


class Directory(Inode):
    """A directory. ``nlink`` is not used: writers count it from the subdirectories."""

    __slots__ = ("entries",)

    def __init__(self, *, entries: dict[bytes, Entry] | None = None, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.entries: dict[bytes, Entry] = {} if entries is None else entries


class RegularFile(Inode):
    """A regular file; inline contents are exactly ``size`` bytes long."""

    __slots__ = ("size", "content")  # noqa: RUF023 - in their order

    def __init__(self, *, size: int, content: Content, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.size = size
        self.content = content


class Symlink(Inode):
    """A symbolic link; ``target`` is 1 to 4095 bytes."""

    __slots__ = ("target",)

    def __init__(self, *, target: bytes, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.target = target


class Device(Inode):
    """A character or block device. ``rdev`` is Linux' 32-bit encoding (``st_rdev``).

    ``size`` is 0 but for dump texts, which may carry one that decides the width of the inode on disk.
    """

    __slots__ = ("rdev", "size")

    def __init__(self, *, rdev: int, size: int = 0, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.rdev = rdev
        self.size = size

    @property
    def is_whiteout(self) -> bool:
        """Whether this is a character device 0:0, overlayfs' mark of a removed name."""
        return self.rdev == 0 and self.mode & 0o170000 == 0o020000


class Fifo(Inode):
    """A named pipe (``size`` as for :class:`Device`)."""

    __slots__ = ("size",)

    def __init__(self, *, size: int = 0, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.size = size


class Socket(Inode):
    """A socket (``size`` as for :class:`Device`)."""

    __slots__ = ("size",)

    def __init__(self, *, size: int = 0, **common: Unpack[_Common]) -> None:
        super().__init__(**common)
        self.size = size


Leaf = RegularFile | Symlink | Device | Fifo | Socket


class HardLink(_Slotted):
    """One more name of an inode that has its primary name elsewhere in the same tree."""

    __slots__ = ("inode",)

    def __init__(self, inode: Leaf) -> None:
        self.inode = inode


AnyInode = TypeVar("AnyInode", bound=Inode)


def copy_of(inode: AnyInode, **changes: Any) -> AnyInode:
    """The same inode once more, with some other attributes. What it holds, also the entries, is shared."""
    kept = {name: getattr(inode, name) for name in slots_of(type(inode))}
    return type(inode)(**{**kept, **changes})


Entry = Directory | RegularFile | Symlink | Device | Fifo | Socket | HardLink

KINDS: tuple[type, ...] = (Directory, RegularFile, Symlink, Device, Fifo, Socket, HardLink, External, Unread)
"""The classes that native functions make and look into, in the order they expect."""
